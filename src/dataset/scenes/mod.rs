//! A small world that needs no download: rendered scenes of coloured shapes, with Chinese captions that say what is in them.
//!
//! A scene is a pure function of (seed, number). One in five combinations of colour, shape and position is held out, the same ones for every
//! seed, so that no model trained on the other splits has seen them: held-out scenes show whether it puts attributes together or has learnt pictures by
//! heart. Any two of a held-out combination's attributes occur together in training.

mod shapes;
mod words;

use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::random::of_hash;
use shapes::Drawing;
use words::{BACKGROUNDS, COLOURS, COUNTS, POSITIONS, SENTENCES, SHAPES, SIZES, Values, named};

/// Side of a picture, in pixels.
pub const SIDE: u32 = 96;
/// Captions of a scene.
pub const CAPTIONS: usize = 5;

const COLOUR_VALUES: [[u8; 3]; 6] = [[214, 48, 49], [41, 98, 255], [34, 160, 80], [245, 200, 30], [142, 68, 173], [240, 130, 30]];
const BACKGROUND_VALUES: [[u8; 3]; 3] = [[250, 250, 248], [176, 178, 182], [28, 28, 32]];
const PLACES: [(f32, f32); 5] = [(0.25, 0.5), (0.75, 0.5), (0.5, 0.25), (0.5, 0.75), (0.5, 0.5)];
/// By size: radius of a shape, and from the middle of one to the middle of the next.
const RADII: [f32; 2] = [0.11, 0.155];
const STEPS: [f32; 2] = [0.25, 1.0 / 3.0];

/// Of four words, three are the usual one where there are others.
const USUAL: (usize, usize) = (3, 4);

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
    /// Small differences between pictures of the same description: place, size, and the colour's channels, each in -1..1.
    jitter: [f32; 6],
    noise: u64,
    captions: [String; CAPTIONS],
    pub split: Split,
}

/// What a caption got right of a scene's colour, shape, position, size, background and count. None where it names no value, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict(pub [Option<bool>; 6]);

impl Verdict {
    /// The attributes, in order.
    pub const ATTRIBUTES: [&str; 6] = ["colour", "shape", "position", "size", "background", "count"];

    /// Whether colour, shape and position are all named and right.
    pub fn is_right(&self) -> bool {
        self.0[..3].iter().all(|right| *right == Some(true))
    }
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
        let draw = of_hash(Sha256::new_with_prefix(self.key).chain_update(self.counter.to_le_bytes()));
        self.counter += 1;
        draw
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn word(&mut self, words: &[&'static str]) -> &'static str {
        let usual = words.len() == 1 || self.below(USUAL.1) < USUAL.0;
        if usual { words[0] } else { words[1 + self.below(words.len() - 1)] }
    }
}

impl Scene {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut draws = Draws::new(&format!("scene/{seed}/{number}"));
        let [colour, shape, position] = [COLOURS, SHAPES, POSITIONS].map(|values| draws.below(values.len()));
        let [size, background, count] = [SIZES, BACKGROUNDS, COUNTS].map(|values| draws.below(values.len()));
        let split = match (is_held_out(colour, shape, position), draws.below(10)) {
            (true, _) => Split::Test,
            (false, 0) => Split::Val,
            (false, _) => Split::Train,
        };
        let jitter = [(); 6].map(|()| draws.signed());
        let noise = draws.next();
        let mut sentences: Vec<&str> = SENTENCES.to_vec();
        let captions = [(); CAPTIONS].map(|()| {
            let sentence = sentences.swap_remove(draws.below(sentences.len()));
            let mut said = |value: usize, values: Values| draws.word(values[value]);
            let words = sentence.split(' ').map(|word| match word {
                "C" => said(colour, COLOURS),
                "S" => said(shape, SHAPES),
                "P" => said(position, POSITIONS),
                "Z" => said(size, SIZES),
                "B" => said(background, BACKGROUNDS),
                "N" => said(count, COUNTS),
                other => other,
            });
            words.collect::<Vec<_>>().join(" ")
        });
        Self { colour, shape, position, size, background, count, jitter, noise, captions, split }
    }

    /// [`CAPTIONS`] captions, words apart by spaces as segmented corpora have them.
    pub fn captions(&self) -> &[String; CAPTIONS] {
        &self.captions
    }

    /// What a caption says of this scene.
    pub fn judge(&self, caption: &str) -> Verdict {
        let text: String = caption.split_whitespace().collect();
        let said = [
            (COLOURS, self.colour),
            (SHAPES, self.shape),
            (POSITIONS, self.position),
            (SIZES, self.size),
            (BACKGROUNDS, self.background),
            (COUNTS, self.count),
        ];
        Verdict(said.map(|(values, is)| named(values, &text).map(|value| value == is)))
    }

    pub fn render(&self) -> RgbImage {
        let (x, y) = PLACES[self.position];
        let (x, y) = (x + 0.01 * self.jitter[0], y + 0.01 * self.jitter[1]);
        let radius = RADII[self.size] * (1.0 + 0.04 * self.jitter[2]);
        // Several shapes stand side by side across the middle line, or one above the other at the sides.
        let beside = !(0.4..0.6).contains(&x);
        let step = STEPS[self.size];
        let centres = (0..=self.count).map(|i| {
            let shift = (i as f32 - self.count as f32 / 2.0) * step;
            if beside { (x, y + shift) } else { (x + shift, y) }
        });
        let channel = |c: usize| f32::from(COLOUR_VALUES[self.colour][c]) + 10.0 * self.jitter[3 + c];
        let drawing = Drawing {
            shape: self.shape,
            colour: [0, 1, 2].map(channel),
            background: BACKGROUND_VALUES[self.background].map(f32::from),
            radius,
            centres: centres.collect(),
            noise: self.noise,
        };
        drawing.render(SIDE)
    }
}

/// One position for each pair of colour and shape.
fn is_held_out(colour: usize, shape: usize, position: usize) -> bool {
    (colour + shape + position).is_multiple_of(POSITIONS.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_scene_is_a_function_of_seed_and_number() {
        assert_eq!(Scene::new(7, 3), Scene::new(7, 3));
        assert_eq!(Scene::new(7, 3).render(), Scene::new(7, 3).render());
        assert_ne!(Scene::new(7, 3).render(), Scene::new(7, 4).render());
    }

    #[test]
    fn held_out_combinations_never_occur_in_training_and_their_pairs_do() {
        let combinations = |seed: u64, test: bool| -> BTreeSet<[usize; 3]> {
            let scenes = (0..3000).map(|n| Scene::new(seed, n)).filter(|s| (s.split == Split::Test) == test);
            scenes.map(|s| [s.colour, s.shape, s.position]).collect()
        };
        let (train, test) = (combinations(1, false), combinations(2, true));
        assert!(train.is_disjoint(&test));
        assert_eq!((train.len(), test.len()), (120, 30));
        for [colour, shape, position] in test {
            assert!(train.iter().any(|t| t[..2] == [colour, shape]));
            assert!(train.iter().any(|t| t[1..] == [shape, position]));
            assert!(train.iter().any(|t| (t[0], t[2]) == (colour, position)));
        }
    }

    #[test]
    fn captions_differ_and_are_judged_right_for_their_scene_alone() {
        let mut opened = BTreeSet::new();
        for number in 0..300 {
            let (scene, other) = (Scene::new(1, number), Scene::new(1, number + 1));
            let captions: BTreeSet<&String> = scene.captions().iter().collect();
            assert_eq!(captions.len(), CAPTIONS);
            for caption in captions {
                let verdict = scene.judge(caption);
                assert!(verdict.is_right() && !verdict.0.contains(&Some(false)), "{caption}: {verdict:?}");
                let same = [scene.colour, scene.shape, scene.position] == [other.colour, other.shape, other.position];
                assert_eq!(other.judge(caption).is_right(), same, "{caption}");
                opened.insert(caption.chars().take(4).collect::<String>());
            }
        }
        assert!(opened.len() > 30, "{opened:?}");
        let scene = Scene::new(1, 0);
        assert_eq!(scene.judge("").0, [None; 6]);
        assert_eq!(scene.judge("红色和蓝色").0[0], None, "two colours are none");
    }
}
