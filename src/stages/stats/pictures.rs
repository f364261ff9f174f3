//! Histograms, curves and bars of the statistics as PNG and SVG files.

use anyhow::Result;
use plotters::prelude::*;

use super::Statistics;
use super::lengths::Unit;
use super::page::{BySplit, splits_of};
use crate::dataset::distribution::Distribution;
use crate::html::chart::{nice_step, number, thousands};
use crate::html::plot::{Area, Axis, COLORS, Curve, Drawing, Failed, Frame, curves, png, svg};

/// Pictures that a run may draw, without their extension.
pub const NAMES: [&str; 6] = ["characters", "words", "tokens", "captions_per_image", "lengths_by_split", "openings"];

/// Pictures as (file name, bytes).
pub fn draw(statistics: &Statistics) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut put = |name: &str, chart: &Chart| -> Result<()> {
        files.push((format!("{name}.png"), png(chart)?));
        files.push((format!("{name}.svg"), svg(chart)?));
        Ok(())
    };
    for unit in statistics.lengths.units() {
        let Some(all) = statistics.lengths.all(unit) else { continue };
        let title = format!("Caption length in {}, {} captions", unit.plural(), thousands(all.count()));
        let x = match unit {
            Unit::Char => "characters per caption",
            Unit::Word => "words per caption",
            Unit::Token => "tokens per caption",
        };
        put(unit.plural(), &Chart::Histogram { bins: all.bars(statistics.bins), title, x, y: "captions" })?;
    }
    if let Some(BySplit { unit, all, splits }) = splits_of(statistics) {
        let share = |distribution: &Distribution, count: u64| count as f64 * 100.0 / distribution.count().max(1) as f64;
        let curve = |(split, distribution): (&str, &Distribution)| {
            let bars = distribution.bars_beside(all, statistics.bins).into_iter();
            let points = bars.map(|(low, high, count)| ((low + high) / 2.0, share(distribution, count))).collect();
            (split.to_string(), points)
        };
        let title = format!("Caption length in {} by split", unit.plural());
        put("lengths_by_split", &Chart::Curves { curves: splits.into_iter().map(curve).collect(), title, x: unit.plural() })?;
    }
    let per_image = &statistics.lengths.per_image;
    if per_image.count() > 0 {
        let title = format!("Captions per image, {} images", thousands(per_image.count()));
        put("captions_per_image", &Chart::Histogram { bins: per_image.bars(100), title, x: "captions", y: "images" })?;
    }
    if let Some((n, top)) = statistics.phrases.openings.last()
        && !top.is_empty()
    {
        let items = top.iter().take(20).cloned().collect();
        // Chinese labels need the viewer's fonts, so this picture is an SVG alone.
        files.push((
            "openings.svg".into(),
            svg(&Chart::Bars { items, title: format!("Most frequent openings of {n} characters") })?,
        ));
    }
    Ok(files)
}

enum Chart {
    Histogram {
        bins: Vec<(f64, f64, u64)>,
        title: String,
        x: &'static str,
        y: &'static str,
    },
    /// By split: points of (length, share in percent).
    Curves {
        curves: Vec<(String, Vec<(f64, f64)>)>,
        title: String,
        x: &'static str,
    },
    /// Names with bars beside them.
    Bars {
        items: Vec<(String, u64)>,
        title: String,
    },
}

/// How all pictures look, with room for labels of `left` pixels.
fn frame(title: &str, left: u32) -> Frame<'_> {
    Frame { title, title_size: 22, name_size: 16, room: (48, left), has_hairlines: false }
}

/// A number of captions.
fn whole(value: &f64) -> String {
    thousands(value.round() as u64)
}

impl Drawing for Chart {
    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, scale: u32) -> Result<(), Failed<DB>> {
        match self {
            Self::Histogram { bins, title, x, y } => {
                let (Some(first), Some(last)) = (bins.first(), bins.last()) else { return Ok(()) };
                let top = bins.iter().map(|bin| bin.2).max().unwrap_or(0).max(1) as f64;
                let step = nice_step(top / 5.0).max(1.0);
                let ceiling = (top / step).ceil() * step;
                let format = &|value: &f64| number(*value);
                let x = Axis { name: Some(*x), range: first.0..last.1, labels: 10, has_grid: false, format };
                let labels = (ceiling / step) as usize + 1;
                let y = Axis { name: Some(*y), range: 0.0..ceiling, labels, has_grid: true, format: &whole };
                let bar = |&(low, high, count): &(f64, f64, u64)| bar([(low, 0.0), (high, count as f64)], (0, scale));
                frame(title, 76).plot(area, scale, x, y)?.draw_series(bins.iter().map(bar))?;
                Ok(())
            }
            Self::Curves { curves: all, title, x } => {
                let points = || all.iter().flat_map(|(_, points)| points);
                let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.0), high.max(p.0)));
                let top = points().map(|point| point.1).fold(1e-9, f64::max) * 1.05;
                let name = format!("{x} per caption");
                let format = &|value: &f64| number(*value);
                let x = Axis { name: Some(&name), range: low..high.max(low + 1.0), labels: 11, has_grid: false, format };
                let y = Axis { name: Some("% of the split's captions"), range: 0.0..top, labels: 11, has_grid: true, format };
                let colored = all.iter().zip(COLORS.into_iter().cycle());
                let all: Vec<Curve> = colored.map(|((name, points), color)| Curve { name, points, color, dots: 2 }).collect();
                curves(&mut frame(title, 76).plot(area, scale, x, y)?, scale, &all, SeriesLabelPosition::UpperRight)
            }
            Self::Bars { items, title } => {
                let top = items.iter().map(|item| item.1).max().unwrap_or(0).max(1) as f64;
                let x = Axis { name: Some("captions"), range: 0.0..top * 1.05, labels: 11, has_grid: true, format: &whole };
                let name = |at: &SegmentValue<usize>| match at {
                    SegmentValue::CenterOf(at) => items.iter().rev().nth(*at).map(|item| item.0.clone()).unwrap_or_default(),
                    _ => String::new(),
                };
                // A segmented range holds its end.
                let range = (0..items.len().saturating_sub(1)).into_segmented();
                let y = Axis { name: None, range, labels: items.len(), has_grid: false, format: &name };
                let bar = |(at, item): (usize, &(String, u64))| {
                    bar([(0.0, SegmentValue::Exact(at)), (item.1 as f64, SegmentValue::Exact(at + 1))], (2 * scale, 0))
                };
                frame(title, 96).plot(area, scale, x, y)?.draw_series(items.iter().rev().enumerate().map(bar))?;
                Ok(())
            }
        }
    }
}

/// A bar with air above and below, and at its sides.
fn bar<P>(corners: [P; 2], (above, beside): (u32, u32)) -> Rectangle<P> {
    let mut bar = Rectangle::new(corners, COLORS[0].filled());
    bar.set_margin(above, above, beside, beside);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::plot::{PNG_SCALE, SIZE};

    #[test]
    fn pictures_have_their_size_and_labels() {
        let bins = (0..20).map(|i| (i as f64, i as f64 + 1.0, i * 1000)).collect();
        let chart = Chart::Histogram { bins, title: "Title".into(), x: "length", y: "captions" };
        let picture = image::load_from_memory(&png(&chart).unwrap()).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE));
        // The title is drawn: there is ink in the band above the plot.
        assert!(picture.enumerate_pixels().any(|(_, y, p)| (28..80).contains(&y) && p.0[0] < 120));
        let text = String::from_utf8(svg(&chart).unwrap()).unwrap();
        assert!(text.contains("Title") && text.contains("captions") && text.contains("15,000"));
    }

    #[test]
    fn chinese_stands_in_the_svg_as_text() {
        let chart = Chart::Bars { items: vec![("一个男人".into(), 5), ("两个<人".into(), 2)], title: "Openings".into() };
        let text = String::from_utf8(svg(&chart).unwrap()).unwrap();
        assert!(text.contains("一个男人") && text.contains("两个&lt;人"));
        assert_eq!(text.matches("一个男人").count(), 1);
    }
}
