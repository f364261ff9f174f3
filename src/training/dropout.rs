//! Dropout masks: a pure function of (seed, step, micro-batch, site, element), so that a resumed run drops what the other would have.

use rayon::prelude::*;

use crate::random::{self, GOLDEN, mix, name_key};

/// Elements one task fills; even, since one draw serves two.
const CHUNK: usize = 1 << 15;

/// What a mask is a function of, besides its site: equal keys, equal masks.
#[derive(Debug, Clone, Copy)]
pub struct DropoutKey {
    /// The run's.
    pub seed: u64,
    /// Optimizer steps done before.
    pub step: u64,
    /// Which batch of the step, where gradients are accumulated.
    pub micro_batch: u64,
}

/// What dropout multiplies what stays by.
pub fn scale(probability: f32) -> f32 {
    (1.0 / (1.0 - f64::from(probability))) as f32
}

/// Fills a mask: 0 with `probability`, [`scale`] otherwise, which is what dropout multiplies by.
pub fn fill(mask: &mut [f32], probability: f32, key: DropoutKey, site: &str) {
    let scale = scale(probability);
    draw(mask, probability, key, site, |stays| if stays { scale } else { 0.0 });
}

/// The same mask before it is scaled, a byte each: 0 or 1. A quarter of it goes to a device.
pub fn fill_bytes(mask: &mut [u8], probability: f32, key: DropoutKey, site: &str) {
    draw(mask, probability, key, site, u8::from);
}

fn draw<T: Send>(mask: &mut [T], probability: f32, key: DropoutKey, site: &str, value_of: impl Fn(bool) -> T + Sync) {
    let mixed = random::key(&[key.seed, key.step, key.micro_batch, name_key(site)]);
    // A draw of 32 bits below this drops.
    let threshold = (f64::from(probability) * 2f64.powi(32)).round().min(f64::from(u32::MAX)) as u32;
    mask.par_chunks_mut(CHUNK).enumerate().for_each(|(number, chunk)| {
        let first = (number * CHUNK / 2) as u64;
        for (i, pair) in chunk.chunks_mut(2).enumerate() {
            let draw = mix(mixed.wrapping_add((first + i as u64).wrapping_mul(GOLDEN)));
            for (value, draw) in pair.iter_mut().zip([draw as u32, (draw >> 32) as u32]) {
                *value = value_of(draw >= threshold);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DropoutKey = DropoutKey { seed: 1, step: 2, micro_batch: 0 };

    fn mask(len: usize, probability: f32, key: DropoutKey, site: &str) -> Vec<f32> {
        let mut mask = vec![f32::NAN; len];
        fill(&mut mask, probability, key, site);
        mask
    }

    #[test]
    fn bytes_are_the_same_mask() {
        for (len, probability) in [(100_001, 0.1f32), (7, 0.5), (70_000, 0.9)] {
            let mut bytes = vec![9; len];
            fill_bytes(&mut bytes, probability, KEY, "embd");
            let scaled: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) * scale(probability)).collect();
            assert_eq!(scaled, mask(len, probability, KEY, "embd"));
        }
    }

    #[test]
    fn the_share_dropped_is_the_probability_and_the_mean_is_kept() {
        for probability in [0.1f32, 0.5, 0.9] {
            let mask = mask(1_000_000, probability, KEY, "embd");
            let dropped = mask.iter().filter(|&&v| v == 0.0).count() as f64 / 1e6;
            let mean = mask.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e6;
            assert!((dropped - f64::from(probability)).abs() < 0.002, "{probability}: {dropped}");
            assert!((mean - 1.0).abs() < 0.012, "{probability}: {mean}");
        }
        assert!(mask(1000, 0.0, KEY, "embd").iter().all(|&v| v == 1.0));
    }

    #[test]
    fn a_mask_depends_on_all_it_is_named_by_and_on_nothing_else() {
        let base = mask(3 * CHUNK + 5, 0.3, KEY, "h.0.attn");
        assert_eq!(base, mask(3 * CHUNK + 5, 0.3, KEY, "h.0.attn"));
        // A longer tensor starts with the same elements.
        assert_eq!(base[..], mask(5 * CHUNK, 0.3, KEY, "h.0.attn")[..base.len()]);
        for other in [
            mask(base.len(), 0.3, KEY, "h.1.attn"),
            mask(base.len(), 0.3, DropoutKey { seed: 2, ..KEY }, "h.0.attn"),
            mask(base.len(), 0.3, DropoutKey { step: 3, ..KEY }, "h.0.attn"),
            mask(base.len(), 0.3, DropoutKey { micro_batch: 1, ..KEY }, "h.0.attn"),
        ] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / base.len() as f64;
            // 0.7 * 0.7 + 0.3 * 0.3 where the two have nothing to do with each other.
            assert!((same - 0.58).abs() < 0.01, "{same}");
        }
    }
}
