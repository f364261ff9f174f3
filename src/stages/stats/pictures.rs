//! Histograms as PNG and SVG files. PNG labels are Latin, from a font that is built in; SVG text is drawn by the viewer's fonts.

use std::io::Cursor;
use std::sync::Once;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use super::Statistics;
use super::lengths::Unit;
use super::page::{BySplit, splits_of};
use crate::dataset::distribution::Distribution;
use crate::html::chart::{nice_step, number, thousands};

/// Pictures that a run may draw, without their extension.
pub const NAMES: [&str; 6] = ["characters", "words", "tokens", "captions_per_image", "lengths_by_split", "openings"];

/// Drawn at twice the size of the SVG, for sharp displays.
const PNG_SCALE: u32 = 2;
const SIZE: (u32, u32) = (800, 500);
const FONT: &str = "sans-serif";

/// Pictures as (file name, bytes).
pub fn draw(statistics: &Statistics) -> Result<Vec<(String, Vec<u8>)>> {
    register();
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

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only for bytes that are no font, which the built-in ones are.
        let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
}

fn png(chart: &Chart) -> Result<Vec<u8>> {
    let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        chart.draw(&area, PNG_SCALE)?;
        area.present().map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    let picture = image::RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| anyhow!("the picture has another size than its buffer"))?;
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

fn svg(chart: &Chart) -> Result<Vec<u8>> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        chart.draw(&area, 1)?;
        area.present().map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(text.into_bytes())
}

const INK: RGBColor = RGBColor(29, 33, 38);
const SOFT: RGBColor = RGBColor(223, 227, 232);
const FILL: RGBColor = RGBColor(63, 111, 159);

impl Chart {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Result<()> {
        let failed = |error: DrawingAreaErrorKind<DB::ErrorType>| anyhow!("cannot draw: {error}");
        area.fill(&WHITE).map_err(failed)?;
        match self {
            Self::Histogram { bins, title, x, y } => histogram(area, scale, bins, title, x, y).map_err(failed),
            Self::Curves { curves, title, x } => curves_of(area, scale, curves, title, x).map_err(failed),
            Self::Bars { items, title } => bars(area, scale, items, title).map_err(failed),
        }
    }
}

fn font(size: u32, scale: u32) -> TextStyle<'static> {
    (FONT, (size * scale) as f64).into_font().color(&INK)
}

fn histogram<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scale: u32,
    bins: &[(f64, f64, u64)],
    title: &str,
    x: &str,
    y: &str,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else { return Ok(()) };
    let top = bins.iter().map(|bin| bin.2).max().unwrap_or(0).max(1) as f64;
    let step = nice_step(top / 5.0).max(1.0);
    let ceiling = (top / step).ceil() * step;
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(22, scale))
        .margin(14 * scale)
        .x_label_area_size(48 * scale)
        .y_label_area_size(76 * scale)
        .build_cartesian_2d(first.0..last.1, 0.0..ceiling)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(SOFT.stroke_width(scale))
        .axis_style(INK.stroke_width(scale))
        .x_desc(x)
        .y_desc(y)
        .axis_desc_style(font(16, scale))
        .label_style(font(14, scale))
        .x_labels(10)
        .y_labels((ceiling / step) as usize + 1)
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&|value| thousands(value.round() as u64))
        .draw()?;
    chart.draw_series(bins.iter().map(|&(low, high, count)| {
        let mut bar = Rectangle::new([(low, 0.0), (high, count as f64)], FILL.filled());
        bar.set_margin(0, 0, scale, scale);
        bar
    }))?;
    Ok(())
}

/// Colours of curves, which other curves than these begin again.
const COLORS: [RGBColor; 5] =
    [FILL, RGBColor(196, 85, 43), RGBColor(76, 138, 91), RGBColor(139, 99, 168), RGBColor(160, 138, 44)];

fn curves_of<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scale: u32,
    curves: &[(String, Vec<(f64, f64)>)],
    title: &str,
    x: &str,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.0), high.max(p.0)));
    let top = points().map(|point| point.1).fold(1e-9, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(22, scale))
        .margin(14 * scale)
        .x_label_area_size(48 * scale)
        .y_label_area_size(76 * scale)
        .build_cartesian_2d(low..high.max(low + 1.0), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(SOFT.stroke_width(scale))
        .axis_style(INK.stroke_width(scale))
        .x_desc(format!("{x} per caption"))
        .y_desc("% of the split's captions")
        .axis_desc_style(font(16, scale))
        .label_style(font(14, scale))
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&|value| number(*value))
        .draw()?;
    for ((name, points), color) in curves.iter().zip(COLORS.into_iter().cycle()) {
        let line = LineSeries::new(points.iter().copied(), color.filled().stroke_width(2 * scale)).point_size(2 * scale);
        let key = move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 18 * scale as i32, y)], color.stroke_width(2 * scale));
        chart.draw_series(line)?.label(name).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(font(15, scale))
        .legend_area_size(24 * scale)
        .background_style(WHITE)
        .border_style(SOFT)
        .draw()
}

fn bars<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scale: u32,
    items: &[(String, u64)],
    title: &str,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let top = items.iter().map(|item| item.1).max().unwrap_or(0).max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(22, scale))
        .margin(14 * scale)
        .x_label_area_size(48 * scale)
        .y_label_area_size(96 * scale)
        // A segmented range holds its end.
        .build_cartesian_2d(0.0..top * 1.05, (0..items.len().saturating_sub(1)).into_segmented())?;
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(at) => items.iter().rev().nth(*at).map(|item| item.0.clone()).unwrap_or_default(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(SOFT.stroke_width(scale))
        .axis_style(INK.stroke_width(scale))
        .x_desc("captions")
        .axis_desc_style(font(16, scale))
        .label_style(font(14, scale))
        .y_labels(items.len())
        .y_label_formatter(&name)
        .x_label_formatter(&|value| thousands(value.round() as u64))
        .draw()?;
    chart.draw_series(items.iter().rev().enumerate().map(|(at, item)| {
        let mut bar =
            Rectangle::new([(0.0, SegmentValue::Exact(at)), (item.1 as f64, SegmentValue::Exact(at + 1))], FILL.filled());
        bar.set_margin(2 * scale, 2 * scale, 0, 0);
        bar
    }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_their_size_and_labels() {
        register();
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
        register();
        let chart = Chart::Bars { items: vec![("一个男人".into(), 5), ("两个<人".into(), 2)], title: "Openings".into() };
        let text = String::from_utf8(svg(&chart).unwrap()).unwrap();
        assert!(text.contains("一个男人") && text.contains("两个&lt;人"));
        assert_eq!(text.matches("一个男人").count(), 1);
    }
}
