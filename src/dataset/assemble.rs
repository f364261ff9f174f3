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
mod tests {
    use std::path::PathBuf;

    use super::super::captions::{ReadOptions, read_captions};
    use super::*;

    fn read(files: &[(&str, &str)], order: &[usize]) -> Captions {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = files
            .iter()
            .map(|(name, text)| {
                let path = folder.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            })
            .collect();
        let ordered: Vec<PathBuf> = order.iter().map(|&i| paths[i].clone()).collect();
        read_captions(&ordered, &ReadOptions::default()).unwrap()
    }

    fn table(set: &Assembled) -> Vec<(String, i32, String, Option<String>)> {
        (0..set.places.len())
            .map(|at| {
                let image = &set.images[set.places[at].image as usize];
                (image.id.clone(), set.caption_ids[at], set.caption(at).to_string(), image.split.clone())
            })
            .collect()
    }

    const FILES: [(&str, &str); 2] =
        [("a-train.txt", "2#zhb#1 猫\n2#zhb#0 狗\n10#zhb#0 人\n2#zhb#0 狗 狗\n"), ("b-test.txt", "3#zhm#0 车\n2#zhm#0 鸟\n")];

    #[test]
    fn order_numbers_and_splits_do_not_depend_on_the_order_of_files() {
        let rule = SplitRule { own: true, ..SplitRule::default() };
        let one = assemble(read(&FILES, &[0, 1]), None, &rule);
        let two = assemble(read(&FILES, &[1, 0]), None, &rule);
        let row = |id: &str, n, text: &str, split: &str| (id.to_string(), n, text.to_string(), Some(split.to_string()));
        let expected = [
            row("10", 0, "人", "train"),
            row("2", 0, "狗", "test"),
            row("2", 1, "猫", "test"),
            row("2", 2, "鸟", "test"),
            row("3", 0, "车", "test"),
        ];
        assert_eq!(table(&one), expected);
        assert_eq!(table(&two), expected);
        assert_eq!((one.split_conflicts, one.captions.bad.len(), one.captions.files[0].bad), (1, 1, 1));
        assert!(one.captions.bad[0].bad.message.contains("line 2"));
        assert_eq!(one.captions.bad[0].line, 4);
    }

    fn with(captions: Captions, paths: &[&str]) -> Assembled {
        let ids = crate::dataset::naming::ids_of(paths.iter().copied());
        let listed: Vec<Listed> = paths.iter().zip(&ids).map(|(path, id)| Listed { path, id }).collect();
        assemble(captions, Some(&listed), &SplitRule::default())
    }

    #[test]
    fn images_are_matched_and_those_without_captions_stay() {
        let files =
            [("c.jsonl", "{\"file_name\": \"x/1.jpg\", \"text\": \"狗\"}\n{\"file_name\": \"9.jpg\", \"text\": \"猫\"}\n")];
        let set = with(read(&files, &[0]), &["1.jpg", "2.jpg", "2.png"]);
        let images: Vec<_> = set.images.iter().map(|i| (i.id.as_str(), i.listed, i.captions)).collect();
        assert_eq!(images, [("1", Some(0), 1), ("2", Some(1), 0), ("2.png", Some(2), 0), ("9", None, 1)]);
    }

    #[test]
    fn files_that_share_a_stem_are_images_of_their_own() {
        let files = [("c.csv", "image,caption\ns/1.jpg,甲\ns/1.png,乙\n"), ("d.tsv", "s/1\t丙\n")];
        let captions = |paths: Option<&[&str]>| {
            let captions = read(&files, &[0, 1]);
            let set = match paths {
                None => assemble(captions, None, &SplitRule::default()),
                Some(paths) => with(captions, paths),
            };
            let images: Vec<_> = set.images.iter().map(|i| (i.id.clone(), i.listed, i.captions)).collect();
            images
        };
        let image = |id: &str, listed, captions| (id.to_string(), listed, captions);
        assert_eq!(captions(None), [image("s/1", None, 2), image("s/1.png", None, 1)]);
        let there = captions(Some(&["s/1.jpg", "s/1.png"]));
        assert_eq!(there, [image("s/1", Some(0), 2), image("s/1.png", Some(1), 1)]);
        assert_eq!(captions(Some(&["s/1.jpg"])), [image("s/1", Some(0), 2), image("s/1.png", None, 1)]);
    }

    #[test]
    fn a_file_that_another_name_means_for_certain_is_not_taken() {
        let files = [("c.csv", "image,caption\ntrain/1.jpg,训\nval/1.jpg,验\n")];
        let set = with(read(&files, &[0]), &["val/1.jpg"]);
        let images: Vec<_> = set.images.iter().map(|i| (i.id.as_str(), i.listed, i.captions)).collect();
        assert_eq!(images, [("train/1", None, 1), ("val/1", Some(0), 1)]);
    }

    #[test]
    fn one_id_of_two_files_is_two_images() {
        let coco = |file: &str, caption: &str| {
            format!(
                r#"{{"images": [{{"id": 1, "file_name": "{file}"}}], "annotations": [{{"image_id": 1, "caption": "{caption}"}}]}}"#
            )
        };
        let documents = [("a.json", coco("x/a.jpg", "甲")), ("b.json", coco("y/a.jpg", "乙")), ("c.json", coco("a.jpg", "丙"))];
        let files: Vec<(&str, &str)> = documents.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let images = |paths: Option<&[&str]>| {
            let captions = read(&files, &[0, 1, 2]);
            let set = match paths {
                None => assemble(captions, None, &SplitRule::default()),
                Some(paths) => with(captions, paths),
            };
            set.images.iter().map(|i| (i.id.clone(), i.listed, i.captions)).collect::<Vec<_>>()
        };
        assert_eq!(images(None), [("1".into(), None, 2), ("y/a".into(), None, 1)]);
        assert_eq!(images(Some(&["x/a.jpg", "y/a.jpg"])), [("1".into(), Some(0), 2), ("y/a".into(), Some(1), 1)]);
    }

    #[test]
    fn a_path_and_an_id_may_be_one_image() {
        let files = [("c.csv", "image,caption\nset/1.jpg,狗\n"), ("d.tsv", "1\t猫\n")];
        let set = with(read(&files, &[0, 1]), &["1.jpg"]);
        assert_eq!((set.images.len(), set.images[0].captions), (1, 2));
    }

    /// Who is whose: `id file captions` of each image, and why names have no file.
    fn of(captions: &[(&str, &str)], paths: &[&str]) -> (Vec<String>, Vec<String>) {
        let set = with(read(captions, &(0..captions.len()).collect::<Vec<_>>()), paths);
        let file = |image: &Image| image.listed.map_or("-", |at| paths[at]).to_string();
        let images = set.images.iter().map(|image| format!("{} {} {}", image.id, file(image), image.captions)).collect();
        let unplaced = set.unplaced.iter().map(|line| format!("{} {}", line.bad.reason.name(), line.bad.message)).collect();
        (images, unplaced)
    }

    #[test]
    fn names_that_could_both_be_a_file_are_told_and_have_none() {
        let (images, notes) = of(&[("c.tsv", "001/1.png\t狗\n002/1.png\t猫\n")], &["1.png", "2.png"]);
        assert_eq!(images, ["001/1 - 1", "002/1 - 1", "1 1.png 0", "2 2.png 0"]);
        assert!(
            notes.len() == 2 && notes.iter().all(|t| t.starts_with("image_conflict") && t.contains("001/1.png")),
            "{notes:?}"
        );
        assert!(notes[0].contains("002/1.png") && notes[1].contains("002/1.png"));
        // In files of their own, too.
        let (images, _) = of(&[("a.tsv", "001/1.png\t狗\n"), ("b.tsv", "002/1.png\t猫\n")], &["1.png"]);
        assert_eq!(images, ["001/1 - 1", "002/1 - 1", "1 1.png 0"]);
        let (images, notes) = of(&[("c.tsv", "train/1.png\t狗\ntest/1.png\t猫\n")], &["val/1.png"]);
        assert_eq!((images.len(), notes.len()), (3, 2));
    }

    #[test]
    fn a_name_that_is_the_files_own_comes_before_others() {
        let (images, notes) = of(&[("c.tsv", "b.JPG\t鸟\nb.jpg\t鱼\n")], &["b.JPG", "b.jpg"]);
        assert_eq!((images, notes.len()), (vec!["b b.JPG 1".into(), "b.jpg b.jpg 1".into()], 0));
        let (images, notes) = of(&[("c.tsv", "b.JPG\t鸟\nb.jpg\t鱼\n")], &["b.jpg"]);
        assert_eq!((images, notes.len()), (vec!["b b.jpg 1".to_string(), "b.JPG - 1".into()], 1));
        let (images, notes) = of(&[("c.tsv", "train/1.png\t狗\n1.png\t猫\n")], &["1.png"]);
        assert_eq!((images, notes.len()), (vec!["1 1.png 1".to_string(), "train/1 - 1".into()], 1));
    }

    #[test]
    fn a_bare_name_is_the_file_that_has_it_whatever_else_is_named() {
        let captions = [("c.tsv", "a\t一\na.png\t二\n")];
        assert_eq!(of(&captions, &["a.jpg", "a.png"]).0, ["a a.jpg 1", "a.png a.png 1"]);
        assert_eq!(of(&captions, &["a.png"]).0, ["a a.png 2"]);
    }

    #[test]
    fn what_no_file_is_says_so() {
        let (_, notes) = of(&[("c.tsv", "9.png\t狗\n1.png\t猫\n")], &["a/1.png", "b/1.png"]);
        assert_eq!(
            notes,
            ["missing_image no image file is 9.png", "image_conflict 1.png could be a/1.png or b/1.png: write more of the path"]
        );
        let (images, notes) = of(&[("c.tsv", "train/1.png\t狗\n")], &["val/1.png"]);
        assert_eq!(images, ["train/1 - 1", "val/1 val/1.png 0"]);
        assert!(notes[0].starts_with("missing_image") && notes[0].contains("val/1.png") && notes.len() == 1, "{notes:?}");
    }

    #[test]
    fn a_file_name_decides_over_an_id() {
        let swapped = r#"{"images":[{"id":1,"file_name":"2.png"},{"id":2,"file_name":"1.png"}],"annotations":[{"id":1,"image_id":1,"caption":"二"},{"id":2,"image_id":2,"caption":"一"}]}"#;
        let two = ["1.png", "2.png"];
        assert_eq!(of(&[("c.json", swapped)], &two).0, ["1 2.png 1", "2 1.png 1"]);
        let csv = "image_id,file_name,caption\n1,2.png,二\n2,1.png,一\n";
        assert_eq!(of(&[("c.csv", csv)], &two).0, ["1 2.png 1", "2 1.png 1"]);
        let zero = r#"{"images":[{"id":0,"file_name":"1.png"},{"id":1,"file_name":"2.png"}],"annotations":[{"id":1,"image_id":0,"caption":"一"},{"id":2,"image_id":1,"caption":"二"}]}"#;
        assert_eq!(of(&[("c.json", zero)], &two).0, ["0 1.png 1", "1 2.png 1"]);
        let folders = zero.replace("1.png", "001/1.png").replace("2.png", "002/1.png");
        assert_eq!(of(&[("c.json", &folders)], &two).0, ["0 - 1", "1 - 1", "1.png 1.png 0", "2 2.png 0"]);
        let bare = "id,filename,caption\n1,2.png,二\n2,1.png,一\n";
        assert_eq!(of(&[("c.csv", bare)], &two).0, ["1 1.png 1", "2 2.png 1"]);
    }
}
