//! The draws of captions: neither batches nor interruptions change one.

use sha2::{Digest, Sha256};

use super::of_hash;
use crate::files::ContentHash;

/// The uniform numbers of one drawn caption: number `position` is the first 53 bits of
/// SHA-256(`"clipcap draw/1"`, seed, the image's SHA-256, draw, position), integers little-endian, as a fraction.
///
/// SHA-256 costs a fraction of a microsecond a token, needs no state to carry, and is the same in every version and language.
#[derive(Clone)]
pub struct Draws(Sha256);

impl Draws {
    /// `draw` is the caption_index, and counts on from `num_captions` for what is drawn again.
    pub fn new(seed: u64, image: &ContentHash, draw: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"clipcap draw/1");
        hash.update(seed.to_le_bytes());
        hash.update(image.bytes());
        hash.update(draw.to_le_bytes());
        Self(hash)
    }

    /// In [0, 1).
    pub fn uniform(&self, position: u32) -> f64 {
        (of_hash(self.0.clone().chain_update(position.to_le_bytes())) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By Python: `int.from_bytes(hashlib.sha256(b"clipcap draw/1" + struct.pack("<Q32sII", 42, b"\7" * 32, 3, p)).digest()[:8], "little") >> 11`.
    #[test]
    fn numbers_are_the_same_in_every_version() {
        let draws = Draws::new(42, &[7; 32].into(), 3);
        assert_eq!(draws.uniform(0), 0.3119237997165264);
        assert_eq!(draws.uniform(1), 0.7668475886962118);
    }

    #[test]
    fn every_part_of_the_seed_counts() {
        let base = Draws::new(1, &[0; 32].into(), 0).uniform(0);
        let mut other_image = [0; 32];
        other_image[31] = 1;
        assert_ne!(base, Draws::new(2, &[0; 32].into(), 0).uniform(0));
        assert_ne!(base, Draws::new(1, &other_image.into(), 0).uniform(0));
        assert_ne!(base, Draws::new(1, &[0; 32].into(), 1).uniform(0));
        assert_ne!(base, Draws::new(1, &[0; 32].into(), 0).uniform(1));
    }

    #[test]
    fn numbers_are_uniform() {
        const BINS: usize = 64;
        const DRAWS: u32 = 64_000;
        let mut counts = [0u32; BINS];
        for draw in 0..DRAWS {
            let number = Draws::new(9, &[1; 32].into(), draw / 16).uniform(draw % 16);
            counts[(number * BINS as f64) as usize] += 1;
        }
        let expected = DRAWS as f64 / BINS as f64;
        let chi2: f64 = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
        // 63 degrees of freedom: 0.999 quantile 103.4.
        assert!(chi2 < 103.4, "chi-square {chi2}");
    }
}
