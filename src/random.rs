//! Numbers that are a pure function of what they are for: the same seed, step and place give the same draw on any machine, whatever was
//! drawn before. The order of an epoch, dropout masks, new weights and resampled scores come from a counter that is mixed; the draws of captions and
//! of scenes are SHA-256's, which any program can make again.

use sha2::{Digest, Sha256};

mod draws;

pub use draws::Draws;

/// SplitMix64's output function: a bijection of 64 bits that leaves no trace of its input's pattern.
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Odd and without pattern: steps of a counter by it visit every number (Steele, Lea and Flood 2014).
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The first 64 bits of a SHA-256, little-endian.
pub fn of_hash(hasher: Sha256) -> u64 {
    let digest: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

/// One key for a list of numbers; their order matters.
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(GOLDEN, |key, &part| mix(key.wrapping_add(GOLDEN) ^ mix(part.wrapping_add(GOLDEN))))
}

/// A key for a name.
pub fn name_key(name: &str) -> u64 {
    name.bytes().fold(name.len() as u64, |key, byte| mix(key.wrapping_mul(0x100).wrapping_add(u64::from(byte))))
}

/// A sequence of draws.
#[derive(Debug, Clone)]
pub struct Stream(u64);

impl Stream {
    /// The sequence that belongs to a key.
    pub fn new(key: u64) -> Self {
        Self(key)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of a 128-bit product; the bias is below bound / 2^64.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Puts a slice into random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64() {
        // First outputs for state 1234567, as published with the reference implementation.
        let mut stream = Stream::new(1_234_567);
        assert_eq!([stream.next_u64(), stream.next_u64()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_keys_tell_order_apart() {
        let mut items: Vec<u32> = (0..1000).collect();
        Stream::new(key(&[1, 2])).shuffle(&mut items);
        assert_ne!(items, (0..1000).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
        assert_ne!(key(&[1, 2]), key(&[2, 1]));
        assert_ne!(key(&[0]), key(&[0, 0]));
        assert_ne!(name_key("embd"), name_key("h.0.attn"));
    }

    #[test]
    fn every_position_of_a_shuffle_is_as_likely() {
        let mut counts = [0u32; 5];
        for seed in 0..5000 {
            let mut items = [0, 1, 2, 3, 4];
            Stream::new(key(&[seed])).shuffle(&mut items);
            counts[items.iter().position(|&i| i == 0).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&c| (900..1100).contains(&c)), "{counts:?}");
    }
}
