//! From captions as they were read to a dataset in order: images with their ids, captions with their numbers.

use foldhash::HashSet;
use rayon::prelude::*;

use super::captions::{Bad, BadLine, Batch, Captions, Details, Reason, Row};
use super::matching::{Found, Level, Matcher};
use super::naming::{composed, last_part, without_extension};
use super::splits::SplitRule;

pub use super::matching::Listed;

mod names;

use names::{Named, Names, is_end_of, names};

/// An image that captions name, or a listed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    /// Index into the list of images; None where no listed file is it.
    pub listed: Option<usize>,
    /// What captions call it beside its id, in the normal form, where no listed file is it.
    pub reference: Option<String>,
    /// The same as it is written, where only that may be the name of a file: its letters are not composed.
    pub written: Option<String>,
    pub split: Option<String>,
    pub captions: u32,
}

/// Where a caption stands: its image, its number there, and where its text lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index into [`Assembled::images`].
    pub image: u32,
    pub file: u16,
    /// The language mark's bytes, so that `zhb` and `zhm` count apart.
    mark: u64,
    /// The number the file states; the greatest there is where it states none.
    number: u32,
    pub line: u64,
    batch: u32,
    row: u32,
}

/// A dataset in its final order: images by id, captions by image and number.
#[derive(Debug, Default)]
pub struct Assembled {
    pub captions: Captions,
    pub images: Vec<Image>,
    pub places: Vec<Place>,
    /// The number of each caption within its image, from 0.
    pub caption_ids: Vec<i32>,
    /// Images whose captions stand in files of different splits.
    pub split_conflicts: u64,
    /// Names of images that no file is, or that no file can be for certain, where they stand first.
    pub unplaced: Vec<BadLine>,
}

impl Assembled {
    /// The batch and row of a caption.
    pub fn row(&self, at: usize) -> (&Batch, &Row) {
        let place = &self.places[at];
        let batch = &self.captions.batches[place.batch as usize].1;
        (batch, &batch.rows[place.row as usize])
    }

    /// What the file says of a caption besides its text, where that was read.
    pub fn details(&self, at: usize) -> Option<&Details> {
        let place = &self.places[at];
        self.captions.batches[place.batch as usize].1.details.get(place.row as usize)
    }

    pub fn caption(&self, at: usize) -> &str {
        let (batch, row) = self.row(at);
        batch.get(row.caption)
    }

    /// Leaves images out, with their captions. Returns how many of both.
    pub fn drop_images(&mut self, is_dropped: impl Fn(&Image) -> bool) -> (u64, u64) {
        let mut kept = 0;
        let rank: Vec<Option<u32>> = self
            .images
            .iter()
            .map(|image| {
                let number = (!is_dropped(image)).then_some(kept);
                kept += u32::from(number.is_some());
                number
            })
            .collect();
        let before = (self.images.len(), self.places.len());
        let places = std::mem::take(&mut self.places);
        let ids = std::mem::take(&mut self.caption_ids);
        (self.places, self.caption_ids) = places
            .into_iter()
            .zip(ids)
            .filter_map(|(place, id)| Some((Place { image: rank[place.image as usize]?, ..place }, id)))
            .unzip();
        let mut keeps = rank.iter().map(Option::is_some);
        self.images.retain(|_| keeps.next().unwrap_or(true));
        ((before.0 - self.images.len()) as u64, (before.1 - self.places.len()) as u64)
    }
}

/// Puts captions and listed images together. `listed` are in listing order; None: there is no list, so nothing is matched.
///
/// The result does not depend on the order in which files were given.
pub fn assemble(mut captions: Captions, listed: Option<&[Listed]>, rule: &SplitRule) -> Assembled {
    let matcher = listed.map(Matcher::new);
    let names = names(&captions, matcher.as_ref());
    let ids = names.ids();
    let Names { named, runs, splits } = names;
    let (files, unplaced) = listed
        .zip(matcher.as_ref())
        .map_or_else(|| (vec![None; named.len()], Vec::new()), |(listed, matcher)| place(&named, listed, matcher));
    let (images, image_of) = images(named, ids, &files, listed);
    let split_conflicts = images.iter().filter(|(_, said)| said.len() > 1).count() as u64;
    let (mut images, rank) = in_order(images, listed.unwrap_or_default(), &splits, rule);
    let mut places = places(&captions, &runs, |name| rank[image_of[name as usize] as usize]);
    drop_repeated_numbers(&mut captions, &mut places);
    let caption_ids = number(&places, &mut images);
    Assembled { captions, images, places, caption_ids, split_conflicts, unplaced }
}

impl Image {
    fn new(id: String, listed: Option<usize>) -> Self {
        Self { id, listed, reference: None, written: None, split: None, captions: 0 }
    }
}

/// Images with the splits said of them.
type Images = Vec<(Image, Vec<u16>)>;

/// The file of each name: the one it agrees with best, if no other name agrees with that as well. What has none says why.
fn place(named: &[Named], listed: &[Listed], matcher: &Matcher) -> (Vec<Option<usize>>, Vec<BadLine>) {
    let found: Vec<Option<Found>> = named.par_iter().map(|entry| matcher.find(entry.written)).collect();
    let mut files: Vec<Option<usize>> = found.iter().map(|found| found.map(|found| found.at)).collect();
    let mut unplaced = Vec::new();
    let mut tell = |entry: &Named, reason: Reason, message: String| {
        let (file, line) = entry.first;
        unplaced.push(BadLine { file, line, bad: Bad::new(reason, message) });
    };
    let mut claims: Vec<(usize, Level, usize)> =
        found.iter().enumerate().filter_map(|(name, found)| found.map(|found| (found.at, found.level, name))).collect();
    claims.par_sort_unstable();
    for claims in claims.chunk_by(|a, b| a.0 == b.0).filter(|claims| claims.len() > 1) {
        let (best, rest) = claims.split_at(claims.iter().take_while(|claim| claim.1 == claims[0].1).count());
        let entry = |claim: &(usize, Level, usize)| &named[claim.2];
        let path = listed[claims[0].0].path;
        let agree = |a: &(usize, Level, usize), b: &(usize, Level, usize)| entry(a).may_be(entry(b));
        let is_one = claims[0].1 == Level::Exact
            || best.len() <= MOST_NAMES && best.iter().enumerate().all(|(at, a)| best[..at].iter().all(|b| agree(a, b)));
        for claim in if is_one { rest } else { claims }.iter().filter(|claim| !is_one || !agree(claim, &best[0])) {
            files[claim.2] = None;
            let other = entry(if claim.2 == best[0].2 { &claims[1] } else { &best[0] }).written;
            let written = entry(claim).written;
            let message = match is_one {
                true => format!("{written} is not {path}, which is the file that {other} names: no other file is it"),
                false => format!("{written} and {other} could both be {path}, so neither is: write more of the path"),
            };
            tell(entry(claim), Reason::ImageConflict, message);
        }
    }
    for (entry, _) in named.iter().zip(&found).filter(|(_, found)| found.is_none()) {
        let written = entry.written;
        let rivals = matcher.rivals(written);
        let may_be = |path: &&&str| is_end_of(without_extension(path), without_extension(&entry.reference));
        match (&rivals.iter().filter(may_be).collect::<Vec<_>>()[..], &rivals[..]) {
            ([one, other, ..], _) => {
                tell(entry, Reason::ImageConflict, format!("{written} could be {one} or {other}: write more of the path"));
            }
            (_, [one, ..]) => {
                let message =
                    format!("no image file is {written}; {one} has its name and lies in another folder, so it is another image");
                tell(entry, Reason::MissingImage, message);
            }
            (_, []) => tell(entry, Reason::MissingImage, format!("no image file is {written}")),
        }
    }
    unplaced.sort_by_key(|line| (line.file, line.line));
    (files, unplaced)
}

/// Names of one file that are compared with each other.
const MOST_NAMES: usize = 8;

/// The image of each name, each with an id of its own. Listed images that nothing names follow.
fn images(named: Vec<Named>, ids: Vec<String>, files: &[Option<usize>], listed: Option<&[Listed]>) -> (Images, Vec<u32>) {
    let mut taken: HashSet<String> = HashSet::with_capacity_and_hasher(named.len(), Default::default());
    let mut by_file: Vec<Option<u32>> = vec![None; listed.map_or(0, <[Listed]>::len)];
    let mut images: Images = Vec::with_capacity(named.len());
    let mut image_of = vec![0; named.len()];
    // Ids that files say come first, then those of files that are there.
    let rank = |at: usize| (named[at].own_id.is_none(), files[at].is_none());
    let mut order: Vec<usize> = (0..named.len()).collect();
    if order.windows(2).any(|pair| rank(pair[0]) > rank(pair[1])) {
        order.sort_by_key(|&at| rank(at));
    }
    for at in order {
        let entry = &named[at];
        let image = files[at].and_then(|file| by_file[file]).unwrap_or_else(|| {
            let own = entry.own_id.as_deref();
            let (base, whole) = match files[at].zip(listed) {
                None => (ids[at].as_str(), &*entry.reference),
                // A bare name stays one, though its file lies deeper.
                Some((file, listed)) if entry.reference.contains('/') => (listed[file].id, listed[file].path),
                Some((file, listed)) => (last_part(listed[file].id), listed[file].id),
            };
            let id = own.into_iter().chain([base, whole, &*entry.reference]).find(|id| !taken.contains(*id));
            let id = id.map_or_else(|| numbered(&entry.reference, &taken), str::to_string);
            taken.insert(id.clone());
            let reference = (files[at].is_none() && entry.reference != id).then(|| entry.reference.to_string());
            let is_other = listed.is_none() && entry.written != entry.reference && composed(entry.written) == entry.reference;
            let written = is_other.then(|| entry.written.to_string());
            images.push((Image { reference, written, ..Image::new(id, files[at]) }, Vec::new()));
            images.len() as u32 - 1
        });
        if let Some(file) = files[at] {
            by_file[file] = Some(image);
        }
        image_of[at] = image;
        let said = &mut images[image as usize].1;
        entry.said.iter().for_each(|split| {
            if !said.contains(split) {
                said.push(*split)
            }
        });
    }
    for (at, file) in listed.unwrap_or_default().iter().enumerate().filter(|(at, _)| by_file[*at].is_none()) {
        let id = [file.id, file.path].into_iter().find(|id| !taken.contains(*id));
        let id = id.map_or_else(|| numbered(file.path, &taken), str::to_string);
        taken.insert(id.clone());
        images.push((Image::new(id, Some(at)), Vec::new()));
    }
    (images, image_of)
}

/// Where everything else is taken.
fn numbered(name: &str, taken: &HashSet<String>) -> String {
    (2u64..).map(|number| format!("{name}~{number}")).find(|id| !taken.contains(id)).unwrap_or_default()
}

/// Images by id, each with its split; and from an old index to the new one.
fn in_order(images: Images, listed: &[Listed], splits: &[String], rule: &SplitRule) -> (Vec<Image>, Vec<u32>) {
    // A merge sort: caption files often have their images in order.
    let mut order: Vec<(&str, u32)> = images.iter().zip(0..).map(|((image, _), at)| (image.id.as_str(), at)).collect();
    order.par_sort();
    let order: Vec<u32> = order.into_iter().map(|(_, at)| at).collect();
    let mut rank = vec![0; images.len()];
    for (new, &old) in order.iter().enumerate() {
        rank[old as usize] = new as u32;
    }
    let mut slots: Vec<Option<(Image, Vec<u16>)>> = images.into_iter().map(Some).collect();
    let sorted: Vec<(Image, Vec<u16>)> =
        order.iter().map(|&old| slots[old as usize].take().expect("each index stands in the order once")).collect();
    let settle = |(mut image, said): (Image, Vec<u16>)| {
        let said: Vec<&str> = said.iter().map(|&at| splits[at as usize].as_str()).collect();
        image.split = rule.split_of(&image.id, image.listed.map(|at| listed[at].path), &said).map(str::to_string);
        image
    };
    (sorted.into_par_iter().map(settle).collect(), rank)
}

/// Captions by image; those of an image by file, mark, number and line.
fn places(captions: &Captions, runs: &[(u32, u32, u32)], rank: impl Fn(u32) -> u32 + Sync) -> Vec<Place> {
    // Captions of an image come in runs, of which there are far fewer.
    let mut order: Vec<(u32, u32)> = runs.iter().zip(0..).map(|(&(_, _, name), run)| (rank(name), run)).collect();
    order.par_sort();
    let of_images = order.par_chunk_by(|a, b| a.0 == b.0);
    let parts: Vec<Vec<Place>> = of_images
        .fold(Vec::new, |mut places, of_image| {
            let start = places.len();
            places.extend(of_image.iter().flat_map(|&(image, run)| places_of_run(captions, runs, run as usize, image)));
            places[start..].sort_unstable();
            places
        })
        .collect();
    parts.concat()
}

fn places_of_run<'a>(
    captions: &'a Captions,
    runs: &[(u32, u32, u32)],
    run: usize,
    image: u32,
) -> impl Iterator<Item = Place> + use<'a> {
    let (batch_at, first, _) = runs[run];
    let (file, batch) = &captions.batches[batch_at as usize];
    let end = match runs.get(run + 1) {
        Some(&(next_batch, next, _)) if next_batch == batch_at => next as usize,
        _ => batch.rows.len(),
    };
    (first..end as u32).zip(&batch.rows[first as usize..end]).map(move |(row_at, row)| Place {
        image,
        file: *file,
        mark: mark_bytes(batch.get(row.mark)),
        number: row.number.unwrap_or(u32::MAX),
        line: row.line,
        batch: batch_at,
        row: row_at,
    })
}

/// A mark of at most 8 bytes as a number that sorts like its text.
fn mark_bytes(mark: &str) -> u64 {
    let mut bytes = [0; 8];
    let len = mark.len().min(8);
    bytes[..len].copy_from_slice(&mark.as_bytes()[..len]);
    u64::from_be_bytes(bytes)
}

/// In one file `ID#lang#k` means one caption: its first line counts, and further ones are bad lines.
fn drop_repeated_numbers(captions: &mut Captions, places: &mut Vec<Place>) {
    let same =
        |a: &Place, b: &Place| b.number != u32::MAX && (a.image, a.file, a.mark, a.number) == (b.image, b.file, b.mark, b.number);
    let mut bad: Vec<BadLine> = Vec::new();
    let mut first: Option<Place> = None;
    places.retain(|place| match first {
        Some(kept) if same(&kept, place) => {
            let text = |p: &Place| {
                let batch = &captions.batches[p.batch as usize].1;
                batch.get(batch.rows[p.row as usize].caption)
            };
            let what = if text(&kept) == text(place) { "the same caption" } else { "another caption" };
            let message = format!("the same id and number as line {}, with {what}", kept.line);
            bad.push(BadLine { file: place.file, line: place.line, bad: Bad::new(Reason::DuplicateId, message) });
            false
        }
        _ => {
            first = Some(*place);
            true
        }
    });
    for line in &bad {
        let report = &mut captions.files[line.file as usize];
        report.bad += 1;
        report.captions -= 1;
    }
    captions.bad.extend(bad);
    captions.bad.sort_by_key(|line| (line.file, line.line));
}

fn number(places: &[Place], images: &mut [Image]) -> Vec<i32> {
    places
        .iter()
        .map(|place| {
            let count = &mut images[place.image as usize].captions;
            *count += 1;
            *count as i32 - 1
        })
        .collect()
}

#[cfg(test)]
mod tests;
