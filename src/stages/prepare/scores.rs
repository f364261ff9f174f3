//! How well captions fit their pictures, for `--scorer`: `clip_score`, and captions below a least one in a table of their own.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::{Array, Float32Array, StringArray};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::decoders;
use super::images::Found;
use super::scored::Known;
use crate::dataset::assemble::{Assembled, Place};
use crate::dataset::tables::write_captions;
use crate::files::ContentHash;
use crate::pipeline::{Content, Decode, Entry, Interrupt, Prepare, Prepared, Reporter, Tick, Turns};
use crate::remote;
use crate::stages::score::{Scorer, exact, fit, rounded};
use crate::table;

/// The captions that score too little, with the columns of `captions.parquet`.
pub const BELOW: &str = "below_min_clip_score.parquet";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// The scorer's identity.
    pub scorer: String,
    /// Captions that score less go into a table of their own.
    pub min_clip_score: Option<f64>,
}

/// A score for each caption of a set.
pub struct Scores {
    /// None where the picture is missing or cannot be read, or the caption is blank.
    pub all: Vec<Option<f32>>,
    /// Images whose header is right and whose pixels cannot be read.
    pub unread: u64,
}

/// A picture by its content, and the captions it has in all places where it lies.
struct Pictured<'a> {
    sha256: ContentHash,
    file: &'a Found,
    captions: Vec<usize>,
}

/// Scores every caption whose picture is there. Each content is read and embedded once; what `known` has is not done again. None after an
/// interrupt.
///
/// # Errors
/// A file that changed since it was listed; the scorer's own.
pub fn compute(
    set: &Assembled,
    folder: &[Found],
    scorer: &mut Scorer,
    decode: &Decode,
    known: &mut Known,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<Option<Scores>> {
    let mut scores = Scores { all: vec![None; set.places.len()], unread: 0 };
    let (pictures, decoders) = (pictured(set, folder), decoders());
    let (mut done, total) = (0, set.places.len() as u64);
    for some in pictures.chunks(scorer.max_images()) {
        if interrupt.is_set() {
            return Ok(None);
        }
        let is_open =
            |picture: &&Pictured| picture.captions.iter().any(|&at| known.get(picture.sha256, set.caption(at)).is_none());
        let open: Vec<&Pictured> = some.iter().filter(is_open).collect();
        let prepared: Vec<Option<Prepared>> = open.par_iter().map(|picture| prepare(picture.file, decode, &decoders)).collect();
        let (mut ready, mut pixels) = (vec![], vec![]);
        for (picture, prepared) in open.into_iter().zip(prepared) {
            match prepared {
                Some(Prepared::Input { sha256, data, .. }) if sha256 == picture.sha256 => {
                    ready.push(picture);
                    pixels.extend(data);
                }
                Some(Prepared::Input { .. }) => {
                    bail!("{}: changed since it was listed: run prepare again", remote::shown(picture.file.place.path()))
                }
                _ => scores.unread += 1,
            }
        }
        if !ready.is_empty() {
            let images = scorer.images(&pixels, ready.len())?;
            let texts: Vec<&str> = ready.iter().flat_map(|picture| &picture.captions).map(|&at| set.caption(at)).collect();
            let mut texts = scorer.captions(&texts)?.into_iter();
            for (picture, image) in ready.iter().zip(&images) {
                for (&at, text) in picture.captions.iter().zip(texts.by_ref()) {
                    let score = fit(image, text.as_ref()).map(rounded);
                    known.put(picture.sha256, set.caption(at), score)?;
                }
            }
        }
        for picture in some {
            for &at in &picture.captions {
                scores.all[at] = known.get(picture.sha256, set.caption(at)).flatten();
            }
            done += picture.captions.len() as u64;
        }
        reporter.tick(&Tick { label: "scoring captions", done, total, ..Tick::default() });
    }
    scorer.model.cut_note().iter().for_each(|note| reporter.warn(note));
    Ok(Some(scores))
}

/// The pictures that can be read, in order of their first caption.
fn pictured<'a>(set: &Assembled, folder: &'a [Found]) -> Vec<Pictured<'a>> {
    let mut numbers: HashMap<ContentHash, usize> = HashMap::new();
    let mut pictures: Vec<Pictured> = vec![];
    for (at, place) in set.places.iter().enumerate() {
        let Some(file) = set.images[place.image as usize].listed.map(|listed| &folder[listed]) else { continue };
        let Some(content) = file.content.as_ref().filter(|_| file.failure.is_none()) else { continue };
        let number = *numbers.entry(content.sha256).or_insert_with(|| {
            pictures.push(Pictured { sha256: content.sha256, file, captions: vec![] });
            pictures.len() - 1
        });
        pictures[number].captions.push(at);
    }
    pictures
}

/// None where the file cannot be read any more.
fn prepare(file: &Found, decode: &Decode, decoders: &Turns) -> Option<Prepared> {
    let (bytes, _share) = file.place.read(&decode.reading.limits).ok()?.into_parts();
    let content = Content::Bytes(bytes.into());
    let _turn = decoders.take();
    let entry = Entry { image_path: file.image_path.clone(), image_id: file.image_id.clone(), content };
    Some(decode.prepare(&entry, &mut |_| false))
}

/// The scores that a finished dataset of the same settings and inputs holds; None where it lacks any.
pub fn read_back(set: &Assembled, dataset: &Path) -> Result<Option<Scores>> {
    let mut by_caption: HashMap<(String, String), Option<f32>> = HashMap::new();
    for name in ["captions.parquet", BELOW] {
        let path = dataset.join(name);
        if !path.is_file() {
            continue;
        }
        for batch in table::open(&path, None)? {
            let batch = batch.with_context(|| format!("cannot read {}", path.display()))?;
            let ids: &StringArray = table::column(&batch, "image_id", &path)?;
            let captions: &StringArray = table::column(&batch, "caption", &path)?;
            let scores: &Float32Array = table::column(&batch, "clip_score", &path)?;
            let rows = (0..batch.num_rows()).map(|row| {
                let score = (!scores.is_null(row)).then(|| scores.value(row));
                ((ids.value(row).to_owned(), captions.value(row).to_owned()), score)
            });
            by_caption.extend(rows);
        }
    }
    let score = |at: usize| {
        let id = set.images[set.places[at].image as usize].id.clone();
        by_caption.get(&(id, set.caption(at).to_owned())).copied()
    };
    let all: Option<Vec<Option<f32>>> = (0..set.places.len()).map(score).collect();
    Ok(all.map(|all| Scores { all, unread: 0 }))
}

/// Captions taken out of a set, with their numbers and scores.
#[derive(Default)]
pub struct LowScored {
    places: Vec<Place>,
    caption_ids: Vec<i32>,
    scores: Vec<Option<f32>>,
    /// Captions of each split; the empty name holds those in none.
    pub splits: BTreeMap<String, u64>,
}

impl LowScored {
    /// Takes captions that score less than `min` out of `set` and of `scores`; those that are left are numbered anew.
    pub fn take(set: &mut Assembled, scores: &mut Vec<Option<f32>>, min: Option<f64>) -> Self {
        let mut below = Self::default();
        let Some(min) = min else { return below };
        let (places, ids, all) = (std::mem::take(&mut set.places), std::mem::take(&mut set.caption_ids), std::mem::take(scores));
        set.images.iter_mut().for_each(|image| image.captions = 0);
        for ((place, id), score) in places.into_iter().zip(ids).zip(all) {
            let image = &mut set.images[place.image as usize];
            if score.is_some_and(|score| exact(score) < min) {
                *below.splits.entry(image.split.clone().unwrap_or_default()).or_default() += 1;
                below.places.push(place);
                below.caption_ids.push(id);
                below.scores.push(score);
            } else {
                set.caption_ids.push(image.captions as i32);
                image.captions += 1;
                set.places.push(place);
                scores.push(score);
            }
        }
        below
    }

    pub fn len(&self) -> u64 {
        self.places.len() as u64
    }

    /// Writes them as a table of their own.
    pub fn write(&mut self, set: &mut Assembled, folder: &Path) -> Result<()> {
        let path: PathBuf = folder.join(BELOW);
        self.swap(set);
        let written = write_captions(&path, set, None, Some(&self.scores));
        self.swap(set);
        written?.commit().with_context(|| format!("cannot write {}", path.display()))
    }

    fn swap(&mut self, set: &mut Assembled) {
        std::mem::swap(&mut self.places, &mut set.places);
        std::mem::swap(&mut self.caption_ids, &mut set.caption_ids);
    }
}
