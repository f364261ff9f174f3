//! Charts as inline SVG and HTML in the page's colours, so that they turn dark with it.

use std::fmt::Write;

use super::escape;

/// One bar of a histogram: from, to and how many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    pub low: f64,
    pub high: f64,
    pub count: u64,
}

// Small enough for labels to stay readable on a telephone, where the whole is drawn about 330 pixels wide.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 46.0;

/// A chart while it is drawn: its axes run from the first to the second number.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    svg: String,
}

impl Axes {
    fn new(what: &str, x: (f64, f64), y: (f64, f64)) -> Self {
        let what = escape(what);
        let svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{what}\" font-size=\"13\">\n");
        Self { x, y, svg }
    }

    fn left(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn top(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (value - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }

    /// Puts a line of markup.
    fn put(&mut self, line: std::fmt::Arguments) {
        let _ = self.svg.write_fmt(line);
        self.svg.push('\n');
    }

    /// A line across the chart, with its value at the left.
    fn rule(&mut self, value: f64, text: &str) {
        let (at, right, end) = (self.top(value), WIDTH - RIGHT, LEFT - 6.0);
        self.put(format_args!(
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{end:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            at + 4.0
        ));
    }

    /// A value below the chart.
    fn tick(&mut self, value: f64, text: &str) {
        let (at, below) = (self.left(value), HEIGHT - BOTTOM + 16.0);
        self.put(format_args!("<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{text}</text>"));
    }

    /// The whole with the names of its axes and of what is in it.
    fn finish(mut self, x_label: &str, y_label: &str, names: &[&str]) -> String {
        let (middle, side, below) = ((LEFT + WIDTH - RIGHT) / 2.0, (TOP + HEIGHT - BOTTOM) / 2.0, HEIGHT - 8.0);
        let (x_label, y_label) = (escape(x_label), escape(y_label));
        self.put(format_args!("<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{x_label}</text>"));
        self.put(format_args!(
            "<text transform=\"translate(13 {side:.1}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text>\n</svg>"
        ));
        self.svg + &legend(names)
    }
}

/// One of the histograms that share a chart. Bins have the same bounds in all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is called in the legend; text.
    pub name: String,
    pub bins: Vec<Bin>,
}

/// A histogram with labelled axes and marks (`name`, where) such as the median. Labels are text.
pub fn histogram(bins: &[Bin], x_label: &str, y_label: &str, marks: &[(&str, f64)]) -> String {
    histograms(&[Series { name: String::new(), bins: bins.into() }], x_label, y_label, marks)
}

/// Histograms on the same axes: bars of a bin stand beside each other, and a legend says whose they are where there are several.
pub fn histograms(series: &[Series], x_label: &str, y_label: &str, marks: &[(&str, f64)]) -> String {
    let bounds = series.first().map_or(&[][..], |series| &series.bins);
    let (Some(first), Some(last)) = (bounds.first(), bounds.last()) else {
        return "<p class=\"soft\">nothing to show</p>\n".into();
    };
    let (low, high) = (first.low, if last.high > first.low { last.high } else { first.low + 1.0 });
    let top = series.iter().flat_map(|series| &series.bins).map(|b| b.count).max().unwrap_or(0).max(1) as f64;
    let step = nice_step(top / 4.0).max(1.0);
    let ceiling = (top / step).ceil() * step;
    let mut axes = Axes::new(&format!("histogram: {y_label} by {x_label}"), (low, high), (0.0, ceiling));
    let mut tick = 0.0;
    while tick <= ceiling {
        axes.rule(tick, &thousands(tick as u64));
        tick += step;
    }
    for (number_of, one) in series.iter().enumerate() {
        let of = if series.len() > 1 { format!("{}, ", escape(&one.name)) } else { String::new() };
        for bin in &one.bins {
            let (left, right) = (axes.left(bin.low) + 0.5, axes.left(bin.high) - 0.5);
            let width = ((right - left) / series.len() as f64).max(0.5);
            let at = axes.top(bin.count as f64);
            axes.put(format_args!(
                "<rect class=\"bar s{number_of}\" x=\"{:.1}\" y=\"{at:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{of}{} to {}: {}</title></rect>",
                left + width * number_of as f64,
                (HEIGHT - BOTTOM - at).max(0.0),
                number(bin.low),
                number(bin.high),
                thousands(bin.count)
            ));
        }
    }
    let x_step = nice_step((high - low) / 7.0);
    let mut tick = (low / x_step).ceil() * x_step;
    while tick <= high + x_step * 1e-9 {
        axes.tick(tick, &number(tick));
        tick += x_step;
    }
    for (at, (name, value)) in marks.iter().enumerate().filter(|(_, (_, value))| (low..=high).contains(value)) {
        let place = axes.left(*value);
        // Labels of marks that lie close stand one under the other.
        let height = TOP - 9.0 + 14.0 * at as f64;
        let (anchor, side) = if place > WIDTH - 110.0 { ("end", -5.0) } else { ("start", 5.0) };
        axes.put(format_args!(
            "<line class=\"mark\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><text class=\"mark-label\" x=\"{:.1}\" y=\"{height:.1}\" text-anchor=\"{anchor}\">{} {}</text>",
            height - 7.0,
            HEIGHT - BOTTOM,
            place + side,
            escape(name),
            number(*value)
        ));
    }
    axes.finish(x_label, y_label, &series.iter().map(|series| series.name.as_str()).collect::<Vec<_>>())
}

/// Names beside their colours; nothing for one alone.
fn legend(names: &[&str]) -> String {
    if names.len() < 2 {
        return String::new();
    }
    let item = |(number, name): (usize, &&str)| format!("<li class=\"s{number}\">{}</li>\n", escape(name));
    format!("<ul class=\"legend\">\n{}</ul>\n", names.iter().enumerate().map(item).collect::<String>())
}

/// A curve of a chart: its name and points from left to right.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What it is called in the legend; text.
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Curves on the same axes. Lines without a point are left out; the horizontal axis begins at 0.
pub fn lines(all: &[Line], x_label: &str, y_label: &str) -> String {
    let all: Vec<&Line> = all.iter().filter(|line| !line.points.is_empty()).collect();
    let points = || all.iter().flat_map(|line| &line.points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let (least, most) = points().fold((f64::MAX, f64::MIN), |(low, high), point| (low.min(point.1), high.max(point.1)));
    if all.is_empty() || !least.is_finite() || !most.is_finite() {
        return "<p class=\"soft\">nothing to show</p>\n".into();
    }
    let step = step_of(((most - least) / 4.0).max(most.abs() * 1e-6).max(1e-12));
    let (floor, ceiling) = ((least / step).floor() * step, ((most / step).floor() + 1.0) * step);
    let mut axes = Axes::new(&format!("curve: {y_label} by {x_label}"), (0.0, right), (floor, ceiling));
    let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    for tick in 0..=((ceiling - floor) / step).round() as usize {
        let value = floor + step * tick as f64;
        axes.rule(value, &format!("{value:.digits$}"));
    }
    let x_step = nice_step(right / 5.0);
    for tick in 0..=(right / x_step + 1e-9) as usize {
        let value = x_step * tick as f64;
        axes.tick(value, &if value.fract() == 0.0 { thousands(value as u64) } else { number(value) });
    }
    for (at, line) in all.iter().enumerate() {
        let path: Vec<String> = line.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", axes.left(x), axes.top(y))).collect();
        axes.put(format_args!("<polyline class=\"line s{at}\" points=\"{}\"/>", path.join(" ")));
        // Few points are seen one by one, and one alone is no line.
        for &(x, y) in line.points.iter().filter(|_| line.points.len() <= 30) {
            let (left, top, x) = (axes.left(x), axes.top(y), number(x));
            axes.put(format_args!(
                "<circle class=\"dot s{at}\" cx=\"{left:.1}\" cy=\"{top:.1}\" r=\"3\"><title>{x}: {y}</title></circle>"
            ));
        }
    }
    axes.finish(x_label, y_label, &all.iter().map(|line| line.name.as_str()).collect::<Vec<_>>())
}

/// As [`nice_step`], for numbers of any size.
fn step_of(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|step| *step >= raw * 0.999_999).unwrap_or(10.0 * power)
}

/// Names with bars beside them, longest first as given.
pub fn bars(items: &[(String, u64)]) -> String {
    let top = items.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1) as f64;
    let mut out = String::from("<div class=\"bars\">\n");
    for (name, count) in items {
        let _ = writeln!(
            out,
            "<span class=\"name\">{}</span><i style=\"width:{:.1}%\"></i><span class=\"n\">{}</span>",
            escape(name),
            *count as f64 / top * 100.0,
            thousands(*count)
        );
    }
    out.push_str("</div>\n");
    out
}

/// 1, 2 or 5 times a power of ten, at least `raw`.
pub fn nice_step(raw: f64) -> f64 {
    if raw <= 0.0 || !raw.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw * 0.999_999).unwrap_or(10.0 * power)
}

/// `1234567` as `1,234,567`.
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// At most two decimals, and none that are zeros.
pub fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!((thousands(0), thousands(999), thousands(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((number(3.0), number(2.5), number(0.126)), ("3".into(), "2.5".into(), "0.13".into()));
        assert_eq!((nice_step(0.3), nice_step(7.0), nice_step(0.0), nice_step(200.0)), (0.5, 10.0, 1.0, 200.0));
    }

    #[test]
    fn charts_hold_every_bin_and_no_markup_from_data() {
        let bins: Vec<Bin> = (0..20).map(|i| Bin { low: i as f64, high: i as f64 + 1.0, count: i * i }).collect();
        let svg = histogram(&bins, "<x>", "count", &[("median", 10.0), ("far", 99.0)]);
        assert_eq!(svg.matches("<rect").count(), 20);
        assert!(svg.contains("median 10") && !svg.contains("far") && !svg.contains("<x>"));
        assert!(bars(&[("<b>".into(), 3)]).contains("&lt;b&gt;"));
        assert!(histogram(&[], "x", "y", &[]).contains("nothing"));
        let flat = histogram(&[Bin { low: 4.0, high: 4.0, count: 0 }], "x", "y", &[]);
        assert!(!flat.contains("NaN") && !flat.contains("inf"));
    }

    #[test]
    fn curves_stay_inside_their_axes_whatever_they_are() {
        let line = |name: &str, points: &[(f64, f64)]| Line { name: name.into(), points: points.into() };
        let svg = lines(&[line("<a>", &[(0.0, 0.5), (50.0, 4.0)]), line("b", &[(10.0, 2.0)]), line("c", &[])], "x", "y");
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 3));
        assert!(svg.contains("&lt;a&gt;") && !svg.contains(">c<"));
        for points in [&[(1.0, 0.0)][..], &[(1.0, -3e-9), (2.0, 1e-9)], &[(5.0, 1e6)], &[(1.0, 1e-5), (1e5, 2e-5)]] {
            let svg = lines(&[line("a", points)], "x", "y");
            let path = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            for pair in path.split(' ') {
                let (x, y) = pair.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT + 0.1).contains(&x) && (TOP - 0.1..=HEIGHT - BOTTOM + 0.1).contains(&y), "{pair}");
            }
        }
        assert!(lines(&[line("a", &[])], "x", "y").contains("nothing"));
    }

    #[test]
    fn histograms_share_their_axes_and_are_told_apart() {
        let bins =
            |counts: [u64; 2]| counts.iter().zip([0.0, 1.0]).map(|(&count, low)| Bin { low, high: low + 1.0, count }).collect();
        let series = [("A <1>", [4, 2]), ("B", [1, 8])].map(|(name, counts)| Series { name: name.into(), bins: bins(counts) });
        let svg = histograms(&series, "x", "y", &[]);
        let field = |rect: &str, name: &str| -> f64 {
            rect.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        let rects: Vec<(f64, f64)> = svg.split("<rect").skip(1).map(|rect| (field(rect, "x"), field(rect, "height"))).collect();
        // A's two bins, then B's: heights by the same scale, and no bar over another.
        assert!((rects[0].1 / rects[3].1 - 0.5).abs() < 1e-3 && (rects[1].1 / rects[0].1 - 0.5).abs() < 1e-3, "{rects:?}");
        assert!(rects[0].0 < rects[2].0 && rects[2].0 < rects[1].0 && rects[1].0 < rects[3].0, "{rects:?}");
        assert!(svg.contains("<li class=\"s0\">A &lt;1&gt;</li>") && svg.contains("class=\"bar s1\""));
        assert!(!histogram(&series[0].bins, "x", "y", &[]).contains("legend"));
    }
}
