//! Which split an image is in. Captions follow their image, so none of them straddles splits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::naming::{composed, normal, without_extension};

/// `train=0.9,dev=0.05,test=0.05`: shares by a hash of the image's id, so that adding images moves none.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratios(Vec<(String, f64)>);

impl Ratios {
    /// The split of an image: SHA-256 of the seed (8 bytes, little-endian) and the id, as a share of 2^64.
    pub fn split_of(&self, image_id: &str, seed: u64) -> &str {
        let mut hasher = Sha256::new();
        hasher.update(seed.to_le_bytes());
        hasher.update(image_id.as_bytes());
        let digest = hasher.finalize();
        let head: [u8; 8] = digest[..8].try_into().expect("a SHA-256 has 32 bytes");
        let share = u64::from_be_bytes(head) as f64 / 2f64.powi(64);
        let mut sum = 0.0;
        for (name, ratio) in &self.0 {
            sum += ratio;
            if share < sum {
                return name;
            }
        }
        // Rounding may leave the sum a hair below 1.
        &self.0[self.0.len() - 1].0
    }
}

impl std::fmt::Display for Ratios {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(name, share)| format!("{name}={share}")).collect();
        f.write_str(&parts.join(","))
    }
}

impl FromStr for Ratios {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ratios: Vec<(String, f64)> = Vec::new();
        for part in text.split(',') {
            let shape = || format!("{part}: write NAME=SHARE, such as train=0.9,dev=0.05,test=0.05");
            let (name, share) = part.split_once('=').ok_or_else(shape)?;
            let share: f64 = share.trim().parse().map_err(|_| shape())?;
            let name = canonical(name);
            if name.is_empty() || !(0.0..=1.0).contains(&share) {
                return Err(shape());
            }
            if ratios.iter().any(|(n, _)| *n == name) {
                return Err(format!("the split {name} is named twice"));
            }
            ratios.push((name, share));
        }
        let sum: f64 = ratios.iter().map(|(_, share)| share).sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(format!("the shares add up to {sum}, not to 1"));
        }
        Ok(Self(ratios))
    }
}

/// One word a split: `val` and `validation` are dev, Karpathy's `restval` is train; other names stay.
pub fn canonical(name: &str) -> String {
    match name.trim().to_lowercase().as_str() {
        "val" | "valid" | "validation" | "dev" => "dev".into(),
        "restval" | "train" | "training" => "train".into(),
        "test" | "testing" => "test".into(),
        other => other.into(),
    }
}

/// Official lists: what they call images, to the split. An image may be called by id, file name or path, with or without its extension.
#[derive(Debug, Clone, Default)]
pub struct SplitLists {
    /// What lines say, and what they say without the extension of an image.
    whole: HashMap<String, Listed>,
    /// What lines say without their first folders; None where lines of several splits end so.
    ends: HashMap<String, Option<String>>,
    num_lines: usize,
}

#[derive(Debug, Clone)]
struct Listed {
    /// None: lines of several splits, which differ in their extension.
    split: Option<String>,
    line: String,
}

impl SplitLists {
    /// Takes a line of a split's list. The error names another split that has the same image.
    pub fn add(&mut self, line: &str, split: &str) -> Result<(), String> {
        let line = &*normal(line);
        let stem = without_extension(line);
        for name in if stem == line { vec![line] } else { vec![line, stem] } {
            match self.whole.entry(name.into()) {
                Entry::Vacant(entry) => {
                    entry.insert(Listed { split: Some(split.into()), line: line.into() });
                }
                Entry::Occupied(mut entry) if entry.get().split.as_deref() != Some(split) => {
                    // One extension of the two would do to tell them apart.
                    let is_same = entry.get().line == line || name == line || entry.get().line == name;
                    if let (true, Some(other)) = (is_same, &entry.get().split) {
                        return Err(other.clone());
                    }
                    entry.get_mut().split = None;
                }
                Entry::Occupied(_) => {}
            }
            for (at, _) in name.match_indices('/') {
                let end = self.ends.entry(name[at + 1..].into()).or_insert_with(|| Some(split.into()));
                if end.as_deref() != Some(split) {
                    *end = None;
                }
            }
        }
        self.num_lines += 1;
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.num_lines == 0
    }

    pub fn num_lines(&self) -> usize {
        self.num_lines
    }

    /// The split of an image, by its path where a file is known and by its id: as a line calls it, as a line ends, or without folders that
    /// no line has.
    fn split_of(&self, image_id: &str, image_path: Option<&str>) -> Option<&str> {
        let image_path = image_path.map(composed);
        let image_path = image_path.as_deref();
        let names = || image_path.into_iter().chain(image_path.map(without_extension)).chain([image_id]);
        let whole = |name: &str| self.whole.get(name).and_then(|listed| listed.split.as_deref());
        let bare = |name: &str| name.match_indices('/').find_map(|(at, _)| whole(&name[at + 1..]));
        names()
            .find_map(whole)
            .or_else(|| names().find_map(|name| self.ends.get(name)?.as_deref()))
            .or_else(|| names().find_map(bare))
    }
}

/// Where splits come from.
#[derive(Debug, Clone, Default)]
pub struct SplitRule {
    /// Official lists; they come first.
    pub lists: SplitLists,
    /// Shares for every image that no list names.
    pub ratios: Option<(Ratios, u64)>,
    /// Where neither is given: what the files say of the image. False: no split at all.
    pub own: bool,
}

impl SplitRule {
    /// `said` are the splits that the captions of the image name. Where they differ the one held out counts: test, then dev,
    /// then train, so that nothing is trained on that is tested on.
    pub fn split_of<'a>(&'a self, image_id: &str, image_path: Option<&str>, said: &[&'a str]) -> Option<&'a str> {
        if let Some(split) = self.lists.split_of(image_id, image_path) {
            return Some(split);
        }
        if let Some((ratios, seed)) = &self.ratios {
            return Some(ratios.split_of(image_id, *seed));
        }
        if !self.own || !self.lists.is_empty() {
            return None;
        }
        ["test", "dev", "train"].into_iter().find(|split| said.contains(split)).or_else(|| said.iter().copied().min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_out_and_adding_images_moves_none() {
        let ratios: Ratios = "train=0.9,val=0.05,test=0.05".parse().unwrap();
        let splits: Vec<&str> = (0..20_000).map(|i| ratios.split_of(&i.to_string(), 0)).collect();
        let share = |name: &str| splits.iter().filter(|&&s| s == name).count() as f64 / 20_000.0;
        assert!((share("train") - 0.9).abs() < 0.01 && (share("dev") - 0.05).abs() < 0.01 && (share("test") - 0.05).abs() < 0.01);
        assert_ne!(splits, (0..20_000).map(|i| ratios.split_of(&i.to_string(), 1)).collect::<Vec<_>>());
    }

    #[test]
    fn bad_shares_say_what_is_wrong() {
        assert!("train=0.9".parse::<Ratios>().unwrap_err().contains("0.9"));
        assert!("train=0.5,train=0.5".parse::<Ratios>().unwrap_err().contains("twice"));
        assert!("train".parse::<Ratios>().is_err());
        assert!("train=2,dev=-1".parse::<Ratios>().is_err());
        assert!("train=nan".parse::<Ratios>().is_err());
    }

    #[test]
    fn lists_come_first_and_what_is_held_out_stays_so() {
        let said = ["train", "test"];
        let own = SplitRule { own: true, ..SplitRule::default() };
        assert_eq!(own.split_of("1", None, &said), Some("test"));
        assert_eq!(own.split_of("1", None, &[]), None);
        let lists = SplitRule { lists: listed(&[("1", "dev")]).unwrap(), own: true, ..SplitRule::default() };
        assert_eq!(lists.split_of("1", None, &said), Some("dev"));
        assert_eq!(lists.split_of("2", None, &said), None);
        assert_eq!(SplitRule::default().split_of("1", None, &said), None);
    }

    fn listed(lines: &[(&str, &str)]) -> Result<SplitLists, String> {
        let mut lists = SplitLists::default();
        lines.iter().try_for_each(|(line, split)| lists.add(line, split)).map(|()| lists)
    }

    #[test]
    fn lists_call_images_by_id_name_or_path() {
        let lists =
            listed(&[("a/1.jpg", "train"), ("b/1.jpg", "test"), ("2.png", "dev"), ("/data/c/3.jpg", "dev"), ("4.v2", "test")])
                .unwrap();
        let split = |id: &str, path: Option<&str>| lists.split_of(id, path);
        assert_eq!((split("a/1", None), split("b/1", None)), (Some("train"), Some("test")));
        assert_eq!(split("1", None), None, "two lines end so, in different splits");
        assert_eq!(split("1", Some("b/1.jpg")), Some("test"));
        assert_eq!((split("2", None), split("x/2", Some("x/2.png"))), (Some("dev"), Some("dev")));
        assert_eq!((split("c/3", None), split("3", None), split("data/c/3", None)), (Some("dev"), Some("dev"), Some("dev")));
        assert_eq!((split("4.v2", None), split("4", None), split("d/1", None)), (Some("test"), None, None));
        assert_eq!(listed(&[("1.jpg", "train"), ("1.jpg", "test")]).unwrap_err(), "train");
        assert_eq!(listed(&[("1.jpg", "train"), ("1", "test")]).unwrap_err(), "train");
        let twins = listed(&[("1.jpg", "train"), ("1.png", "test")]).unwrap();
        assert_eq!((twins.split_of("1", Some("1.jpg")), twins.split_of("1.png", Some("1.png"))), (Some("train"), Some("test")));
    }
}
