//! Which split an image is in. Captions follow their image, so none of them straddles splits.

use std::collections::HashMap;
use std::str::FromStr;

use sha2::{Digest, Sha256};

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

/// Where splits come from.
#[derive(Debug, Clone, Default)]
pub struct SplitRule {
    /// Official lists, image id to split; they come first.
    pub lists: HashMap<String, String>,
    /// Shares for every image that no list names.
    pub ratios: Option<(Ratios, u64)>,
    /// Where neither is given: what the files say of the image. False: no split at all.
    pub own: bool,
}

impl SplitRule {
    /// `said` are the splits that the captions of the image name. Where they differ the one held out counts: test, then dev,
    /// then train, so that nothing is trained on that is tested on.
    pub fn split_of<'a>(&'a self, image_id: &str, said: &[&'a str]) -> Option<&'a str> {
        if let Some(split) = self.lists.get(image_id) {
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
        assert_eq!(own.split_of("1", &said), Some("test"));
        assert_eq!(own.split_of("1", &[]), None);
        let lists = SplitRule { lists: [("1".to_string(), "dev".to_string())].into(), own: true, ..SplitRule::default() };
        assert_eq!(lists.split_of("1", &said), Some("dev"));
        assert_eq!(lists.split_of("2", &said), None);
        assert_eq!(SplitRule::default().split_of("1", &said), None);
    }
}
