//! Which predictions belong to which references: ids compared as text, then, for what is left, in looser and looser ways.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::captions::ImageCaptions;
use crate::dataset::naming::{last_part, without_extension};

/// Pairs of predictions and references for the same image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// Positions in the predictions and in the references, ascending by the former.
    pub pairs: Vec<(usize, usize)>,
    /// Pairs whose ids are the same text; the others were matched by path or name.
    pub num_exact: usize,
    pub unmatched_predictions: Vec<usize>,
    pub unmatched_references: Vec<usize>,
}

/// Matches each prediction to at most one reference. In order: the same path; the same id; the same id or path; the same without the image
/// extension; the end of the other's path; the same name; the same COCO number. A step pairs only what is unique on both sides, and never two
/// files whose names or folders differ (`train/1` is not `val/1`), so nothing is guessed.
pub fn match_images(predictions: &[ImageCaptions], references: &[ImageCaptions]) -> Matching {
    let mut left: Vec<usize> = (0..predictions.len()).collect();
    let mut right: Vec<usize> = (0..references.len()).collect();
    let mut pairs = Vec::new();
    let steps: [fn(&ImageCaptions) -> Vec<&str>; 7] = [
        |image| image.alias.as_deref().into_iter().collect(),
        |image| vec![image.id.as_str()],
        |image| names(image).collect(),
        |image| names(image).map(without_extension).collect(),
        |image| names(image).flat_map(|name| ends(without_extension(name))).collect(),
        |image| names(image).map(|name| last_part(without_extension(name))).collect(),
        |image| names(image).filter_map(|name| coco_number(last_part(without_extension(name)))).collect(),
    ];
    for keys in steps {
        let mut found = unique_pairs(&left, &right, |i| keys(&predictions[i]), |i| keys(&references[i]));
        found.retain(|&(l, r)| may_be_one(&predictions[l], &references[r]));
        let taken: (HashSet<usize>, HashSet<usize>) = found.iter().copied().unzip();
        left.retain(|i| !taken.0.contains(i));
        right.retain(|i| !taken.1.contains(i));
        pairs.extend(found);
        if left.is_empty() || right.is_empty() {
            break;
        }
    }
    pairs.sort_unstable();
    let num_exact = pairs.iter().filter(|&&(l, r)| predictions[l].id == references[r].id).count();
    Matching { pairs, num_exact, unmatched_predictions: left, unmatched_references: right }
}

/// False for two files of different names, or of different folders: a file's path decides over an id.
fn may_be_one(a: &ImageCaptions, b: &ImageCaptions) -> bool {
    let path = |image: &ImageCaptions| without_extension(image.alias.as_deref().unwrap_or(&image.id)).to_owned();
    let (path_a, path_b) = (path(a), path(b));
    let [name_a, name_b] = [&path_a, &path_b].map(|path| last_part(path));
    // COCO's releases name one image in several ways.
    if name_a != name_b && coco_number(name_a).is_some_and(|number| coco_number(name_b) == Some(number)) {
        return true;
    }
    // A bare id says nothing of a file.
    let says_a_file = |image: &ImageCaptions| image.alias.is_some() || image.id.contains('/');
    let is_end =
        |path: &str, end: &str| path.strip_suffix(end).is_some_and(|folders| folders.is_empty() || folders.ends_with('/'));
    !says_a_file(a) || !says_a_file(b) || is_end(&path_a, &path_b) || is_end(&path_b, &path_a)
}

/// Pairs that share a key which no other item on either side has, and that meet nobody else that way.
fn unique_pairs<'a>(
    left: &[usize],
    right: &[usize],
    left_keys: impl Fn(usize) -> Vec<&'a str>,
    right_keys: impl Fn(usize) -> Vec<&'a str>,
) -> Vec<(usize, usize)> {
    let mut by_key: BTreeMap<&str, (HashSet<usize>, HashSet<usize>)> = BTreeMap::new();
    for &item in left {
        for key in left_keys(item) {
            by_key.entry(key).or_default().0.insert(item);
        }
    }
    for &item in right {
        for key in right_keys(item) {
            by_key.entry(key).or_default().1.insert(item);
        }
    }
    let only = |items: &HashSet<usize>| items.iter().next().copied().filter(|_| items.len() == 1);
    let found: HashSet<(usize, usize)> = by_key.values().filter_map(|(l, r)| Some((only(l)?, only(r)?))).collect();
    let (mut left_uses, mut right_uses) = (HashMap::new(), HashMap::new());
    for (l, r) in &found {
        *left_uses.entry(*l).or_insert(0) += 1;
        *right_uses.entry(*r).or_insert(0) += 1;
    }
    found.into_iter().filter(|(l, r)| left_uses[l] == 1 && right_uses[r] == 1).collect()
}

fn names(image: &ImageCaptions) -> impl Iterator<Item = &str> {
    std::iter::once(image.id.as_str()).chain(image.alias.as_deref())
}

/// A path and its ends that have a folder.
fn ends(path: &str) -> impl Iterator<Item = &str> {
    let all = memchr::memchr_iter(b'/', path.as_bytes()).map(|slash| &path[slash + 1..]);
    std::iter::once(path).chain(all.filter(|end| end.contains('/')))
}

/// `42` of `COCO_val2014_000000000042`, `000000000042` and `42`.
fn coco_number(name: &str) -> Option<&str> {
    let digits = match name.strip_prefix("COCO_") {
        Some(rest) => rest.split_once('_')?.1,
        None => name,
    };
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let padded = digits.len() == 12 || (name.len() == digits.len() && !digits.starts_with('0'));
    (all_digits && padded).then(|| digits.trim_start_matches('0')).filter(|number| !number.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(ids: &[&str]) -> Vec<ImageCaptions> {
        let image = |id: &&str| match id.split_once('|') {
            Some((id, alias)) => ImageCaptions { id: id.into(), alias: Some(alias.into()), ..Default::default() },
            None => ImageCaptions { id: (*id).into(), ..Default::default() },
        };
        ids.iter().map(image).collect()
    }

    fn matched(predictions: &[&str], references: &[&str]) -> (Vec<(usize, usize)>, usize) {
        let found = match_images(&images(predictions), &images(references));
        assert_eq!(found.pairs.len() + found.unmatched_predictions.len(), predictions.len());
        assert_eq!(found.pairs.len() + found.unmatched_references.len(), references.len());
        (found.pairs, found.num_exact)
    }

    #[test]
    fn the_same_text_comes_first() {
        assert_eq!(matched(&["a", "a.jpg"], &["a.jpg", "a"]), (vec![(0, 1), (1, 0)], 2));
        assert_eq!(matched(&["0001"], &["1"]), (vec![], 0));
    }

    #[test]
    fn extension_folder_and_path_may_differ() {
        assert_eq!(matched(&["1000092795", "x"], &["flickr30k/1000092795.JPG"]), (vec![(0, 0)], 0));
        assert_eq!(matched(&["val/a.png"], &["a"]), (vec![(0, 0)], 0));
        assert_eq!(matched(&["7|photos/a.jpg"], &["a"]), (vec![(0, 0)], 0));
        assert_eq!(matched(&["v1.5"], &["v1"]), (vec![], 0));
        // Leading folders may be missing on one side; folders that differ are other images.
        assert_eq!(matched(&["data/train/a.jpg"], &["train/a"]), (vec![(0, 0)], 0));
        assert_eq!(matched(&["train/a.jpg"], &["val/a.jpg"]), (vec![], 0));
        assert_eq!(matched(&["2014/train/a.jpg"], &["2017/train/a.jpg"]), (vec![], 0));
        assert_eq!(matched(&["1|train/a.jpg"], &["1|val/a.jpg"]), (vec![], 0));
        assert_eq!(matched(&["val2017/000000000042.jpg"], &["COCO_val2014_000000000042"]), (vec![(0, 0)], 0));
    }

    #[test]
    fn what_is_not_unique_is_not_guessed() {
        assert_eq!(matched(&["x/a.jpg", "y/a.jpg"], &["a"]), (vec![], 0));
        assert_eq!(matched(&["a"], &["x/a", "y/a"]), (vec![], 0));
        // The exact one is taken first, and what is left over is unique then.
        assert_eq!(matched(&["a", "x/b"], &["a", "b", "y/a"]), (vec![(0, 0), (1, 1)], 1));
    }

    #[test]
    fn coco_numbers_meet_coco_names() {
        assert_eq!(matched(&["42", "7"], &["COCO_val2014_000000000042", "000000000007.jpg"]), (vec![(0, 0), (1, 1)], 0));
        assert_eq!(coco_number("COCO_val2014_x"), None);
        assert_eq!(coco_number("000000000000"), None);
    }
}
