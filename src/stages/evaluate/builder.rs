//! Rows of captions, gathered into images.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, bail};

use super::captions::{CaptionSet, Details, ImageCaptions};

/// A longer caption is a fault of the file; the comparison of two sequences takes time by the product of their lengths.
pub(super) const MAX_CAPTION_BYTES: usize = 64 << 10;

/// One caption on its way into a [`Builder`], with what the file says of it.
#[derive(Clone, Default)]
pub(super) struct Row<'a> {
    pub id: &'a str,
    pub alias: Option<&'a str>,
    pub sha256: Option<&'a str>,
    pub split: Option<&'a str>,
    /// Orders the captions of an image; without one, they stay as they come.
    pub index: Option<i64>,
    /// None where the row has a null.
    pub caption: Option<&'a str>,
    pub details: Details,
}

/// Gathers rows into images.
#[derive(Default)]
pub(super) struct Builder {
    by_id: HashMap<String, usize>,
    images: Vec<(ImageCaptions, Vec<i64>)>,
    num_missing: usize,
    other_splits: BTreeSet<String>,
}

impl Builder {
    /// Whether a row of `found` is wanted; remembers the splits that are not.
    pub fn wants(&mut self, found: Option<&str>, wanted: Option<&str>) -> bool {
        if wanted.is_none() || found == wanted {
            return true;
        }
        if let Some(found) = found.filter(|found| !self.other_splits.contains(*found)) {
            self.other_splits.insert(found.to_string());
        }
        false
    }

    pub fn add(&mut self, row: Row) -> Result<()> {
        let Row { id, alias, sha256, split, index, caption, details } = row;
        let Some(caption) = caption else {
            self.num_missing += 1;
            return Ok(());
        };
        if caption.len() > MAX_CAPTION_BYTES {
            bail!("the caption of {id} has {} bytes, and {MAX_CAPTION_BYTES} are the most: is the file damaged?", caption.len());
        }
        // Two files of a folder may share an id: the second goes by its path.
        let is_another = |slot: &usize| match (alias, &self.images[*slot].0.alias) {
            (Some(alias), Some(known)) => alias != known,
            _ => false,
        };
        let id = alias.filter(|_| self.by_id.get(id).is_some_and(is_another)).unwrap_or(id);
        let slot = match self.by_id.get(id) {
            Some(&slot) => slot,
            None => {
                self.by_id.insert(id.into(), self.images.len());
                self.images.push((ImageCaptions { id: id.into(), ..ImageCaptions::default() }, Vec::new()));
                self.images.len() - 1
            }
        };
        let (image, order) = &mut self.images[slot];
        let keep = |kept: &mut Option<String>, found: Option<&str>| {
            if kept.is_none() {
                *kept = found.filter(|text| !text.is_empty()).map(Into::into);
            }
        };
        keep(&mut image.alias, alias.filter(|alias| *alias != id));
        keep(&mut image.sha256, sha256);
        keep(&mut image.split, split);
        order.push(index.unwrap_or(i64::try_from(order.len())?));
        image.captions.push(caption.into());
        image.details.push(details);
        Ok(())
    }

    pub fn finish(self) -> CaptionSet {
        let sorted = |(mut image, order): (ImageCaptions, Vec<i64>)| {
            let captions = image.captions.into_iter().zip(image.details);
            let mut captions: Vec<(i64, (String, Details))> = order.into_iter().zip(captions).collect();
            captions.sort_by_key(|(index, _)| *index);
            (image.captions, image.details) = captions.into_iter().map(|(_, caption)| caption).unzip();
            image
        };
        let mut images: Vec<ImageCaptions> = self.images.into_iter().map(sorted).collect();
        images.sort_by(|a, b| a.id.cmp(&b.id));
        CaptionSet { images, num_missing: self.num_missing, other_splits: self.other_splits }
    }
}
