//! N-grams of one to four token ids, each packed exactly into 128 bits.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The longest n-gram that counts.
pub(super) const MAX_N: usize = 4;

/// Up to four ids, 32 bits each and one added to every id, so that no two n-grams of any lengths share a key. Keys sort by length first.
pub(super) type Key = u128;

/// How many tokens a key holds.
pub(super) fn length_of(key: Key) -> usize {
    MAX_N - key.leading_zeros() as usize / 32
}

/// Hashes a [`Key`] with one wide multiplication: scoring is mostly looking keys up.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write_u128(&mut self, key: u128) {
        let (low, high) = (key as u64 ^ 0x9E37_79B9_7F4A_7C15, (key >> 64) as u64 ^ 0xD1B5_4A32_D192_ED03);
        let product = u128::from(low) * u128::from(high);
        self.0 ^= product as u64 ^ (product >> 64) as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u128(u128::from(self.0) << 8 | u128::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A map by [`Key`].
pub(super) type KeyMap<T> = HashMap<Key, T, BuildHasherDefault<KeyHasher>>;

/// The n-grams of one sequence with their counts, sorted by key.
pub(super) struct NgramCounts {
    pub num_tokens: usize,
    pub counts: Vec<(Key, u32)>,
}

impl NgramCounts {
    pub fn of(tokens: &[u32]) -> Self {
        let mut keys: Vec<Key> = Vec::with_capacity(tokens.len() * MAX_N);
        ngrams_of(tokens, &mut keys);
        keys.sort_unstable();
        let counts = keys.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect();
        Self { num_tokens: tokens.len(), counts }
    }
}

/// Adds the n-grams of a sequence, as often as they stand in it.
pub(super) fn ngrams_of(tokens: &[u32], keys: &mut Vec<Key>) {
    for start in 0..tokens.len() {
        let mut key: Key = 0;
        for &token in tokens[start..].iter().take(MAX_N) {
            key = key << 32 | (Key::from(token) + 1);
            keys.push(key);
        }
    }
}

/// Calls `visit` with every key that both have, and the value on either side. Both must be sorted by key.
pub(super) fn for_each_shared<A: Copy, B: Copy>(left: &[(Key, A)], right: &[(Key, B)], mut visit: impl FnMut(Key, A, B)) {
    let mut right = right.iter().peekable();
    for &(key, a) in left {
        while right.next_if(|(other, _)| *other < key).is_some() {}
        if let Some(&&(other, b)) = right.peek()
            && other == key
        {
            visit(key, a, b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ngrams_are_counted_by_length() {
        let counts = NgramCounts::of(&[0, 7, 0, 7, 0]);
        let by_length = |n| counts.counts.iter().filter(|(k, _)| length_of(*k) == n).map(|(_, c)| *c).collect::<Vec<_>>();
        assert_eq!(by_length(1), [3, 2]);
        assert_eq!(by_length(2), [2, 2]);
        assert_eq!(by_length(3), [2, 1]);
        assert_eq!(by_length(4), [1, 1]);
        assert!(NgramCounts::of(&[]).counts.is_empty());
        // The largest id an interner gives still has a key of its own.
        assert_eq!(length_of(NgramCounts::of(&[u32::MAX - 1]).counts[0].0), 1);
    }

    #[test]
    fn shared_keys_meet_once() {
        let (a, b) = (NgramCounts::of(&[1, 2, 3]), NgramCounts::of(&[2, 3, 9, 2]));
        let mut shared = Vec::new();
        for_each_shared(&a.counts, &b.counts, |key, x, y| shared.push((length_of(key), x, y)));
        assert_eq!(shared, [(1, 1, 2), (1, 1, 1), (2, 1, 1)]);
    }
}
