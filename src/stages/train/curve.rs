//! The loss curve of a run as a picture: `curve.svg` and `curve.png`.

use std::io::Cursor;
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use crate::files;
use crate::training::metrics::Metrics;

const SIZE: (u32, u32) = (800, 500);
/// The PNG is drawn at twice the size, for sharp displays.
const PNG_SCALE: u32 = 2;
const FONT: &str = "sans-serif";

/// More points than this are averaged in groups: a picture has no room for them.
const MAX_POINTS: usize = 400;

const INK: RGBColor = RGBColor(29, 33, 38);
const GRID: RGBColor = RGBColor(223, 227, 232);
const TRAIN: RGBColor = RGBColor(63, 111, 159);
const DEV: RGBColor = RGBColor(196, 85, 43);

/// What is drawn: (step, loss) of both curves.
struct Curves {
    train: Vec<(f64, f64)>,
    dev: Vec<(f64, f64)>,
}

/// Writes the pictures into a run's folder; nothing where there is nothing to draw.
pub fn write(run: &Path, rows: &[Metrics]) -> Result<()> {
    let finite = |value: Option<f64>| value.filter(|v| v.is_finite());
    let pick = |get: fn(&Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter().filter_map(|row| Some((row.step as f64, finite(get(row))?))).collect()
    };
    let curves = Curves { train: thin(&pick(|row| row.train_loss)), dev: pick(|row| row.dev_loss) };
    if curves.train.is_empty() {
        return Ok(());
    }
    static FONTS: Once = Once::new();
    // Fails only for bytes that are no font, which the built-in ones are.
    FONTS.call_once(|| drop(register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)));
    let mut svg = String::new();
    curves.draw(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), 1)?;
    for (name, bytes) in [("curve.svg", svg.into_bytes()), ("curve.png", curves.png()?)] {
        let path = run.join(name);
        files::write_atomic(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Means of neighbouring points, so that at most [`MAX_POINTS`] are left.
pub(super) fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)], get: fn(&(f64, f64)) -> f64| part.iter().map(get).sum::<f64>() / part.len() as f64;
    points.chunks(group).map(|part| (mean(part, |p| p.0), mean(part, |p| p.1))).collect()
}

impl Curves {
    fn png(&self) -> Result<Vec<u8>> {
        let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
        let mut pixels = vec![0; (width * height * 3) as usize];
        self.draw(&BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area(), PNG_SCALE)?;
        let picture = image::RgbImage::from_raw(width, height, pixels).context("the picture is as large as its buffer")?;
        let mut bytes = Cursor::new(vec![]);
        picture.write_to(&mut bytes, image::ImageFormat::Png)?;
        Ok(bytes.into_inner())
    }

    /// Ranges of steps and losses, with some air above and below.
    fn ranges(&self) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
        let all = || self.train.iter().chain(&self.dev);
        let last = all().map(|p| p.0).fold(1.0, f64::max);
        let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)));
        let air = ((high - low) * 0.05).max(1e-3);
        (0.0..last, (low - air).max(0.0)..high + air)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Result<()> {
        let failed = |error: DrawingAreaErrorKind<DB::ErrorType>| anyhow!("cannot draw the loss curve: {error}");
        self.try_draw(area, scale).map_err(failed)
    }

    fn try_draw<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, Shift>,
        scale: u32,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let font = |size: u32| (FONT, f64::from(size * scale)).into_font().color(&INK);
        let (steps, losses) = self.ranges();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .margin(14 * scale)
            .caption("Loss by step", font(20))
            .x_label_area_size(44 * scale)
            .y_label_area_size(60 * scale)
            .build_cartesian_2d(steps, losses)?;
        chart
            .configure_mesh()
            .x_desc("optimizer steps")
            .y_desc("loss per token (nats)")
            .label_style(font(14))
            .axis_desc_style(font(15))
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .draw()?;
        let key = move |color: RGBColor| {
            move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 18 * scale as i32, y)], color.stroke_width(2 * scale))
        };
        chart
            .draw_series(LineSeries::new(self.train.iter().copied(), TRAIN.stroke_width(2 * scale)))?
            .label("train")
            .legend(key(TRAIN));
        if !self.dev.is_empty() {
            chart
                .draw_series(
                    LineSeries::new(self.dev.iter().copied(), DEV.filled().stroke_width(2 * scale)).point_size(3 * scale),
                )?
                .label("dev")
                .legend(key(DEV));
        }
        chart
            .configure_series_labels()
            .label_font(font(15))
            .legend_area_size(24 * scale)
            .background_style(WHITE)
            .border_style(GRID)
            .draw()?;
        area.present()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_drawn_in_both_formats_and_nothing_without_losses() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let rows: Vec<Metrics> = (1..=5000)
            .map(|step| Metrics {
                step,
                train_loss: Some(if step == 7 { f64::NAN } else { 5.0 / (step as f64).sqrt() }),
                dev_loss: step.is_multiple_of(1000).then_some(1.0),
                ..Metrics::default()
            })
            .collect();
        write(folder.path(), &rows).unwrap();
        let svg = std::fs::read_to_string(folder.path().join("curve.svg")).unwrap();
        for word in ["Loss by step", "optimizer steps", "train", "dev", "5000"] {
            assert!(svg.contains(word), "{word}");
        }
        let png = image::open(folder.path().join("curve.png")).unwrap().to_rgb8();
        assert_eq!(png.dimensions(), (1600, 1000));
        for color in [TRAIN, DEV] {
            let pixels = png.pixels().filter(|pixel| pixel.0 == [color.0, color.1, color.2]).count();
            assert!(pixels > 500, "{pixels}");
        }
    }

    #[test]
    fn many_points_become_few_means() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), 2.0)).collect();
        let thinned = thin(&points);
        assert_eq!((thinned.len(), thinned[0]), (334, (1.0, 2.0)));
        assert!(thin(&[]).is_empty());
    }
}
