//! A small world that needs no download: rendered scenes of coloured shapes, with Chinese captions that say what is in them.
//!
//! A scene is a pure function of (seed, number). One in five combinations of colour, shape and position never occurs in training, so held-out
//! scenes show whether a model puts attributes together or has learnt pictures by heart.

use image::{Rgb, RgbImage};
use sha2::{Digest, Sha256};

/// Side of a picture, in pixels.
pub const SIDE: u32 = 96;
/// Captions of a scene.
pub const CAPTIONS: usize = 5;

const COLOURS: [(&str, [u8; 3]); 6] = [
    ("红色", [214, 48, 49]),
    ("蓝色", [41, 98, 255]),
    ("绿色", [34, 160, 80]),
    ("黄色", [245, 200, 30]),
    ("紫色", [142, 68, 173]),
    ("橙色", [240, 130, 30]),
];
const SHAPES: [&str; 5] = ["圆形", "正方形", "三角形", "十字形", "星形"];
const POSITIONS: [(&str, f32, f32); 5] =
    [("左边", 0.22, 0.5), ("右边", 0.78, 0.5), ("上方", 0.5, 0.22), ("下方", 0.5, 0.78), ("中间", 0.5, 0.5)];
const SIZES: [(&str, f32); 2] = [("小", 0.085), ("大", 0.155)];
const BACKGROUNDS: [(&str, [u8; 3]); 3] = [("白色", [250, 250, 248]), ("灰色", [190, 192, 196]), ("黑色", [28, 28, 32])];
const COUNTS: [&str; 3] = ["一个", "两个", "三个"];

/// Which part of the data a scene belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Val,
    Test,
}

impl Split {
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

/// What a picture shows: `count` equal shapes around a place on a background.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    colour: usize,
    shape: usize,
    position: usize,
    size: usize,
    background: usize,
    count: usize,
    /// Small differences between pictures of the same description, each in -1..1.
    jitter: [f32; 2],
    noise: u64,
    pub split: Split,
}

/// A stream of numbers that depends on nothing but its key.
struct Draws {
    key: [u8; 32],
    counter: u64,
}

impl Draws {
    fn new(key: &str) -> Self {
        Self { key: Sha256::digest(key).into(), counter: 0 }
    }

    fn next(&mut self) -> u64 {
        let mut hasher = Sha256::new();
        hasher.update(self.key);
        hasher.update(self.counter.to_le_bytes());
        self.counter += 1;
        let digest = hasher.finalize();
        u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

impl Scene {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut draws = Draws::new(&format!("scene/{seed}/{number}"));
        let [colour, shape, position] = [COLOURS.len(), SHAPES.len(), POSITIONS.len()].map(|n| draws.below(n));
        let [size, background, count] = [SIZES.len(), BACKGROUNDS.len(), COUNTS.len()].map(|n| draws.below(n));
        // Whether a combination is held out is the seed's choice, and the same for every scene.
        let held_out = Draws::new(&format!("held-out/{seed}/{colour}/{shape}/{position}")).below(5) == 0;
        let split = match (held_out, draws.below(10)) {
            (true, _) => Split::Test,
            (false, 0) => Split::Val,
            (false, _) => Split::Train,
        };
        let jitter = [draws.signed(), draws.signed()];
        Self { colour, shape, position, size, background, count, jitter, noise: draws.next(), split }
    }

    /// The words that a right caption names: colour, shape, position.
    pub fn words(&self) -> [&'static str; 3] {
        [COLOURS[self.colour].0, SHAPES[self.shape], POSITIONS[self.position].0]
    }

    /// [`CAPTIONS`] captions, words apart by spaces as segmented corpora have them.
    pub fn captions(&self) -> [String; CAPTIONS] {
        let [colour, shape, position] = self.words();
        let (count, size, background) = (COUNTS[self.count], SIZES[self.size].0, BACKGROUNDS[self.background].0);
        [
            format!("{background} 的 背景 上 , {position} 有 {count} {size} 的 {colour} {shape} 。"),
            format!("{count} {size} 的 {colour} {shape} 在 {background} 背景 的 {position} 。"),
            format!("图片 {position} 有 {count} {colour} 的 {size} {shape} , 背景 是 {background} 。"),
            format!("在 {background} 背景 的 {position} , 有 {count} {size} 的 {colour} {shape} 。"),
            format!("{position} 有 {count} {colour} {shape} , {size} 的 , 背景 {background} 。"),
        ]
    }

    /// The picture, with soft edges and a little noise.
    pub fn render(&self) -> RgbImage {
        let (_, x, y) = POSITIONS[self.position];
        let radius = SIZES[self.size].1;
        let (x, y) = (x + 0.02 * self.jitter[0], y + 0.02 * self.jitter[1]);
        // Several shapes stand side by side across the middle line, or one above the other at the sides.
        let beside = !(0.3..0.7).contains(&x);
        let step = 2.15 * radius;
        let centres: Vec<(f32, f32)> = (0..=self.count)
            .map(|i| {
                let shift = (i as f32 - self.count as f32 / 2.0) * step;
                if beside { (x, y + shift) } else { (x + shift, y) }
            })
            .collect();
        let (background, colour) = (BACKGROUNDS[self.background].1, COLOURS[self.colour].1);
        RgbImage::from_fn(SIDE, SIDE, |px, py| {
            let (u, v) = ((px as f32 + 0.5) / SIDE as f32, (py as f32 + 0.5) / SIDE as f32);
            let distance = centres
                .iter()
                .map(|(cx, cy)| shape_distance(self.shape, (u - cx) / radius, (v - cy) / radius))
                .fold(f32::INFINITY, f32::min);
            let cover = (0.5 - distance * radius * SIDE as f32).clamp(0.0, 1.0);
            let grain = noise(self.noise, px, py) * 6.0;
            Rgb([0, 1, 2].map(|c| {
                let mixed = f32::from(background[c]) * (1.0 - cover) + f32::from(colour[c]) * cover;
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
        0 => x.hypot(y) - 0.95,
        1 => x.abs().max(y.abs()) - 0.85,
        2 => polygon(3, -std::f32::consts::FRAC_PI_2, 0.5),
        3 => {
            let (a, b) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
            (a - 0.95).max(b - 0.3)
        }
        _ => polygon(5, -std::f32::consts::FRAC_PI_2, 0.42),
    }
}

/// -1..1, a hash of the place.
fn noise(key: u64, x: u32, y: u32) -> f32 {
    let mut h = key ^ (u64::from(x) << 32 | u64::from(y)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    h = (h ^ (h >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((h ^ (h >> 29)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scene_is_a_function_of_seed_and_number() {
        assert_eq!(Scene::new(7, 3), Scene::new(7, 3));
        assert_eq!(Scene::new(7, 3).render(), Scene::new(7, 3).render());
        assert_ne!(Scene::new(7, 3).render(), Scene::new(7, 4).render());
    }

    #[test]
    fn held_out_combinations_never_occur_in_training() {
        let scenes: Vec<Scene> = (0..3000).map(|n| Scene::new(1, n)).collect();
        let combinations = |split: Split| {
            scenes.iter().filter(|s| s.split == split).map(Scene::words).collect::<std::collections::BTreeSet<_>>()
        };
        let (train, test) = (combinations(Split::Train), combinations(Split::Test));
        assert!(train.is_disjoint(&test));
        assert!(train.len() > 90 && test.len() > 15, "{} and {}", train.len(), test.len());
    }

    #[test]
    fn every_shape_covers_its_middle_and_not_the_far_corner() {
        for (shape, name) in SHAPES.iter().enumerate() {
            assert!(shape_distance(shape, 0.0, 0.0) < 0.0, "{name}");
            assert!(shape_distance(shape, 2.0, 2.0) > 0.0, "{name}");
        }
    }
}
