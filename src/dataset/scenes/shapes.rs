//! How a scene is drawn.

use image::{Rgb, RgbImage};

/// What is drawn: equal shapes on a background. Lengths are shares of the picture's side.
pub struct Drawing {
    /// 0 ring, 1 square, 2 triangle, 3 cross, 4 star: each covers another share of its square, so that they differ at a glance.
    pub shape: usize,
    pub colour: [f32; 3],
    pub background: [f32; 3],
    pub radius: f32,
    pub centres: Vec<(f32, f32)>,
    /// Key of the grain.
    pub noise: u64,
}

/// Beyond this many radii from its middle a shape has no colour, its soft edge included.
const REACH: f32 = 1.2;

impl Drawing {
    /// With soft edges and a little grain.
    pub fn render(&self, side: u32) -> RgbImage {
        let Self { shape, colour, background, radius, centres, noise } = self;
        RgbImage::from_fn(side, side, |px, py| {
            let (u, v) = ((px as f32 + 0.5) / side as f32, (py as f32 + 0.5) / side as f32);
            let distance = centres
                .iter()
                .map(|(cx, cy)| ((u - cx) / radius, (v - cy) / radius))
                .filter(|(x, y)| x.abs().max(y.abs()) < REACH)
                .map(|(x, y)| shape_distance(*shape, x, y))
                .fold(f32::INFINITY, f32::min);
            let cover = (0.5 - distance * radius * side as f32).clamp(0.0, 1.0);
            let grain = grain(*noise, px, py) * 6.0;
            Rgb([0, 1, 2].map(|c| {
                let mixed = background[c] * (1.0 - cover) + colour[c] * cover;
                (mixed + grain).round().clamp(0.0, 255.0) as u8
            }))
        })
    }
}

/// Distance to the edge of a shape of radius 1 at the origin, negative inside (y points down).
fn shape_distance(shape: usize, x: f32, y: f32) -> f32 {
    let polygon = |corners: usize, turn: f32, inner: f32| {
        let part = std::f32::consts::TAU / corners as f32;
        let angle = (y.atan2(x) - turn).rem_euclid(part);
        let (px, py) = {
            let r = x.hypot(y);
            (r * angle.cos(), r * angle.sin())
        };
        // The edge from a corner (1, 0) to the point at half the angle, then mirrored.
        let half = part / 2.0;
        let (px, py) = if angle > half {
            let a = part - angle;
            let r = px.hypot(py);
            (r * a.cos(), r * a.sin())
        } else {
            (px, py)
        };
        let (ex, ey) = (inner * half.cos() - 1.0, inner * half.sin());
        ((px - 1.0) * ey - py * ex) / ex.hypot(ey)
    };
    match shape {
        0 => (x.hypot(y) - 0.75).abs() - 0.185,
        1 => x.abs().max(y.abs()) - 0.9,
        2 => polygon(3, -std::f32::consts::FRAC_PI_2, 0.5),
        3 => {
            let (a, b) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
            (a - 0.95).max(b - 0.37)
        }
        _ => polygon(5, -std::f32::consts::FRAC_PI_2, 0.26),
    }
}

/// -1..1, a hash of the place.
fn grain(key: u64, x: u32, y: u32) -> f32 {
    let mut h = key ^ (u64::from(x) << 32 | u64::from(y)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    h = (h ^ (h >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((h ^ (h >> 29)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_but_the_ring_covers_its_middle_and_none_the_far_corner() {
        for shape in 0..5 {
            assert_eq!(shape_distance(shape, 0.0, 0.0) < 0.0, shape != 0, "{shape}");
            assert!(shape_distance(shape, 2.0, 2.0) > 0.0, "{shape}");
        }
    }

    #[test]
    fn shapes_differ_in_what_they_cover() {
        let grid = |i: i32| i as f32 / 50.0;
        let covered = |shape| {
            let row = |y: i32| (-60..60).filter(|&x| shape_distance(shape, grid(x), grid(y)) < 0.0).count();
            (-60..60).map(row).sum::<usize>() as f32
        };
        let mut areas = [0, 1, 2, 3, 4].map(covered);
        areas.sort_by(f32::total_cmp);
        assert!(areas.windows(2).all(|pair| pair[1] > 1.25 * pair[0]), "{areas:?}");
    }
}
