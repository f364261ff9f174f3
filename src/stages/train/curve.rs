//! The loss curve of a run as a picture: `curve.svg` and `curve.png`.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::{DrawingBackend, SeriesLabelPosition};

use crate::files;
use crate::html::plot::{Area, Axis, COLORS, Curve, Drawing, Failed, Frame, curves, png, svg};
use crate::training::metrics::Metrics;

/// More points than this are averaged in groups: a picture has no room for them.
const MAX_POINTS: usize = 400;

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
    for (name, bytes) in [("curve.svg", svg(&curves)?), ("curve.png", png(&curves)?)] {
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
    /// Ranges of steps and losses, with some air above and below.
    fn ranges(&self) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
        let all = || self.train.iter().chain(&self.dev);
        let last = all().map(|p| p.0).fold(1.0, f64::max);
        let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)));
        let air = ((high - low) * 0.05).max(1e-3);
        (0.0..last, (low - air).max(0.0)..high + air)
    }
}

impl Drawing for Curves {
    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, scale: u32) -> Result<(), Failed<DB>> {
        let frame = Frame { title: "Loss by step", title_size: 20, name_size: 15, room: (44, 60), has_hairlines: true };
        let (steps, losses) = self.ranges();
        let format = &|x: &f64| format!("{x:.0}");
        let x = Axis { name: Some("optimizer steps"), range: steps, labels: 11, has_grid: true, format };
        let format = &|y: &f64| format!("{y:.2}");
        let y = Axis { name: Some("loss per token (nats)"), range: losses, labels: 11, has_grid: true, format };
        let train = Curve { name: "train", points: &self.train, color: COLORS[0], dots: 0 };
        let dev = Curve { name: "dev", points: &self.dev, color: COLORS[1], dots: 3 };
        let drawn = if self.dev.is_empty() { vec![train] } else { vec![train, dev] };
        curves(&mut frame.plot(area, scale, x, y)?, scale, &drawn, SeriesLabelPosition::MiddleRight)
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
        for color in &COLORS[..2] {
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
