//! What earlier runs made for an output: none of it goes unasked, and what goes is counted.

use std::collections::HashMap;

use super::index::{content_key, path_key};
use crate::files::ContentHash;
use crate::pipeline::artifact::Lost;

/// Images that have a result from before: 16 bytes each.
#[derive(Default)]
pub struct EarlierResults {
    /// path_key and content_key (0 where the content is not known), sorted.
    images: Vec<(u64, u64)>,
}

/// More than this share of the images gone is more than tidying up.
const TENTH: u64 = 10;

impl EarlierResults {
    /// From the keys of the images.
    pub fn of(images: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut images: Vec<_> = images.into_iter().collect();
        images.sort_unstable();
        // One image, one entry: the last of them is one whose content is known, if any is.
        images.reverse();
        images.dedup_by_key(|(path, _)| *path);
        images.reverse();
        Self { images }
    }

    /// What [`of`](Self::of) takes.
    pub fn keys(image_path: &str, sha256: Option<&ContentHash>) -> (u64, u64) {
        (path_key(image_path), sha256.map_or(0, content_key))
    }

    /// Number of images.
    pub fn len(&self) -> u64 {
        self.images.len() as u64
    }

    /// Whether there were no results.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Whether this image has a result.
    pub fn contains(&self, image_path: &str) -> bool {
        self.position(image_path).is_some()
    }

    fn position(&self, image_path: &str) -> Option<usize> {
        self.images.binary_search_by_key(&path_key(image_path), |(path, _)| *path).ok()
    }

    /// Whether so many are too many to lose unasked.
    pub fn is_much(&self, lost: u64) -> bool {
        lost.saturating_mul(TENTH) > self.len()
    }
}

/// Compares what a run finds with the earlier results.
pub struct ResultCheck<'a> {
    earlier: &'a EarlierResults,
    found: Vec<bool>,
    /// content_keys of images under names that had no result.
    added: Vec<u64>,
}

impl<'a> ResultCheck<'a> {
    /// Nothing is found yet.
    pub fn new(earlier: &'a EarlierResults) -> Self {
        Self { earlier, found: vec![false; earlier.images.len()], added: Vec::new() }
    }

    /// Takes in an image that the new output has, or that is listed (then without its content).
    pub fn take(&mut self, image_path: &str, sha256: Option<&ContentHash>) {
        match self.earlier.position(image_path) {
            Some(at) => self.found[at] = true,
            None if self.earlier.is_empty() => {}
            None => self.added.push(sha256.map_or(0, content_key)),
        }
    }

    /// Whether everything held was found, and nothing else.
    pub fn is_same(&self) -> bool {
        self.added.is_empty() && self.found.iter().all(|found| *found)
    }

    /// Whether this image had a result and was not found.
    pub fn is_missing(&self, image_path: &str) -> bool {
        self.earlier.position(image_path).is_some_and(|at| !self.found[at])
    }

    /// At least so many are lost, whatever the contents of what was listed turn out to be.
    pub fn at_least_lost(&self) -> u64 {
        let gone = self.found.iter().filter(|found| !**found).count();
        gone.saturating_sub(self.added.len()) as u64
    }

    /// What is left out, once everything was taken in.
    pub fn lost(&self) -> Lost {
        let mut added: HashMap<u64, u64> = HashMap::new();
        for content in self.added.iter().filter(|content| **content != 0) {
            *added.entry(*content).or_default() += 1;
        }
        let mut lost = Lost::default();
        let gone = self.earlier.images.iter().zip(&self.found).filter(|(_, found)| !**found);
        for ((_, content), _) in gone {
            match added.get_mut(content).filter(|left| **left > 0) {
                Some(left) => {
                    *left -= 1;
                    lost.renamed += 1;
                }
                None => lost.dropped += 1,
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_counted_and_a_new_name_is_no_loss() {
        let keys = |name: &str, content: u8| EarlierResults::keys(name, Some(&[content; 32].into()));
        let earlier =
            EarlierResults::of([keys("a", 1), keys("b", 2), keys("c", 2), EarlierResults::keys("c", None), keys("d", 4)]);
        assert_eq!((earlier.len(), earlier.contains("c"), earlier.contains("e")), (4, true, false));
        let mut check = ResultCheck::new(&earlier);
        assert_eq!(check.at_least_lost(), 4);
        check.take("a", Some(&[9; 32].into()));
        check.take("x", Some(&[2; 32].into()));
        check.take("y", Some(&[7; 32].into()));
        assert_eq!((check.at_least_lost(), check.lost()), (1, Lost { dropped: 2, renamed: 1 }));
        assert!(check.is_missing("d") && !check.is_missing("a") && !check.is_missing("x"));
        let ten = EarlierResults::of((0..10).map(|i| keys(&i.to_string(), i)));
        assert!(!ten.is_much(1) && ten.is_much(2));
    }
}
