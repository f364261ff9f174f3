//! Captions that are written again, and what the splits of a dataset share: captions, and pictures where `prepare` has compared them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use foldhash::{HashMap, HashSet};
use rayon::prelude::*;

use super::phrases::sum;
use crate::dataset::captions::CaptionRows;
use crate::table;

/// What stands more than once.
#[derive(Debug, Default)]
pub struct Repeats {
    /// Captions that stand more than once, the most frequent first.
    pub duplicates: Vec<Duplicate>,
    /// Images and captions of each split; those in none are left out.
    pub splits: BTreeMap<String, Size>,
    /// By kind and splits.
    pub overlaps: Vec<Overlap>,
}

/// A caption that stands more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    pub caption: String,
    pub count: u64,
    /// Images that have it; 0 where the table names no images.
    pub images: u64,
    /// Where it stands, in order.
    pub splits: Vec<String>,
}

/// How large a split is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Size {
    pub images: u64,
    pub captions: u64,
}

/// How much of a split is in another one too.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Overlap {
    /// `caption`; `exact` and `near` for pictures, as the dataset's duplicates.parquet calls them.
    pub kind: String,
    pub split: String,
    pub other_split: String,
    /// Captions (or pictures) of the other split that are in this one too.
    pub count: u64,
    /// All captions (or pictures) of the other split.
    pub of: u64,
}

impl Overlap {
    pub fn share(&self) -> f64 {
        self.count as f64 / self.of.max(1) as f64
    }

    /// What is counted, in a sentence.
    pub fn what(&self) -> &'static str {
        match self.kind.as_str() {
            "caption" => "captions",
            "exact" => "pictures",
            _ => "pictures, nearly,",
        }
    }
}

impl Repeats {
    /// Captions that say what another one says.
    pub fn num_repeated(&self) -> u64 {
        self.duplicates.iter().map(|duplicate| duplicate.count).sum()
    }
}

/// Where a caption stands.
#[derive(Default)]
struct Places<'a> {
    count: u64,
    images: HashSet<&'a str>,
    splits: BTreeMap<&'a str, u64>,
}

/// Counts captions; `pictures` is a dataset's duplicates.parquet, where there is one.
pub fn count(rows: &[CaptionRows], pictures: Option<&Path>) -> Result<Repeats> {
    let counts = sum(rows.par_iter().map(|rows| {
        let mut counts: HashMap<&str, u64> = HashMap::default();
        rows.iter().for_each(|row| *counts.entry(row.caption).or_default() += 1);
        counts
    }));
    let mut repeated: HashMap<&str, Places> = HashMap::default();
    let mut images: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    let mut splits: BTreeMap<String, Size> = BTreeMap::new();
    for row in rows.iter().flat_map(CaptionRows::iter) {
        if let Some(split) = row.split {
            images.entry(split).or_default().extend(row.image);
            match splits.get_mut(split) {
                Some(size) => size.captions += 1,
                None => drop(splits.insert(split.into(), Size { images: 0, captions: 1 })),
            }
        }
        if counts[row.caption] > 1 {
            let places = repeated.entry(row.caption).or_default();
            places.count += 1;
            places.images.extend(row.image);
            row.split.iter().for_each(|split| *places.splits.entry(split).or_default() += 1);
        }
    }
    for (split, size) in &mut splits {
        size.images = images.get(split.as_str()).map_or(0, |images| images.len() as u64);
    }
    let mut shared: BTreeMap<(String, String), u64> = BTreeMap::new();
    for by_split in repeated.values().map(|places| &places.splits) {
        for split in by_split.keys() {
            for (other, count) in by_split.iter().filter(|(other, _)| *other != split) {
                *shared.entry((split.to_string(), other.to_string())).or_default() += count;
            }
        }
    }
    let mut overlaps = overlaps("caption", &splits, &shared, |size| size.captions);
    if let Some(path) = pictures {
        overlaps.extend(shared_pictures(path, &splits)?);
    }
    let duplicate = |(caption, places): (&str, Places)| Duplicate {
        caption: caption.into(),
        count: places.count,
        images: places.images.len() as u64,
        splits: places.splits.into_keys().map(str::to_string).collect(),
    };
    let mut duplicates: Vec<Duplicate> = repeated.into_iter().map(duplicate).collect();
    duplicates.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.caption.cmp(&b.caption)));
    Ok(Repeats { duplicates, splits, overlaps })
}

/// A row for each ordered pair of splits, also where nothing is shared: that is what one wants to read.
fn overlaps(
    kind: &str,
    splits: &BTreeMap<String, Size>,
    shared: &BTreeMap<(String, String), u64>,
    of: fn(&Size) -> u64,
) -> Vec<Overlap> {
    let pairs = splits.keys().flat_map(|split| splits.iter().map(move |(other, size)| (split, other, size)));
    pairs
        .filter(|(split, other, _)| split != other)
        .map(|(split, other, size)| Overlap {
            kind: kind.into(),
            split: split.clone(),
            other_split: other.clone(),
            count: shared.get(&(split.clone(), other.clone())).copied().unwrap_or(0),
            of: of(size),
        })
        .collect()
}

/// What `prepare` found: pictures of one content, and such that look alike where it was asked to compare them.
fn shared_pictures(path: &Path, splits: &BTreeMap<String, Size>) -> Result<Vec<Overlap>> {
    let mut images: BTreeMap<String, BTreeMap<(String, String), BTreeSet<String>>> = BTreeMap::new();
    // Equal pictures are told wherever files were read.
    images.insert("exact".into(), BTreeMap::new());
    for row in table::texts(path, None, ["kind", "image_id", "other_image_id", "split", "other_split"])? {
        let [kind, id, other_id, split, other] = row?;
        let found = images.entry(kind.unwrap_or_default()).or_default();
        if let (Some(split), Some(other)) = (split, other)
            && split != other
        {
            found.entry((split.clone(), other.clone())).or_default().extend(other_id);
            found.entry((other, split)).or_default().extend(id);
        }
    }
    let of_kind = |(kind, found): (String, BTreeMap<(String, String), BTreeSet<String>>)| {
        let shared = found.into_iter().map(|(pair, images)| (pair, images.len() as u64)).collect();
        overlaps(&kind, splits, &shared, |size| size.images)
    };
    Ok(images.into_iter().flat_map(of_kind).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_that_stand_again_are_counted_where_they_stand() {
        let rows = [CaptionRows::from_iter([("1", "一只狗", "a"), ("2", "一只狗", "a"), ("2", "猫", "a"), ("3", "一只狗", "a")])];
        let repeats = count(&rows, None).unwrap();
        let wanted = Duplicate { caption: "一只狗".into(), count: 3, images: 3, splits: vec![] };
        assert_eq!((repeats.duplicates.as_slice(), repeats.num_repeated()), (&[wanted][..], 3));
        assert!(repeats.splits.is_empty() && repeats.overlaps.is_empty());
    }
}
