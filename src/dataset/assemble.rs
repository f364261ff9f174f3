//! From captions as they were read to a dataset in order: images with their ids, captions with their numbers.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};
use rayon::prelude::*;

use super::captions::{Bad, BadLine, Batch, Captions, Reason, Row};
use super::listing::image_id;
use super::matching::{Found, Matcher, without_extension};
use super::splits::SplitRule;

mod names;

use names::{Named, Names, names};

/// An image that captions name, or a listed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    /// Index into the list of image paths; None where no listed file is it.
    pub listed: Option<usize>,
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
}

impl Assembled {
    /// The batch and row of a caption.
    pub fn row(&self, at: usize) -> (&Batch, &Row) {
        let place = &self.places[at];
        let batch = &self.captions.batches[place.batch as usize].1;
        (batch, &batch.rows[place.row as usize])
    }

    pub fn caption(&self, at: usize) -> &str {
        let (batch, row) = self.row(at);
        batch.get(row.caption)
    }
}

/// Puts captions and listed images together. `image_paths` are in listing order; None: there is no list, so nothing is matched.
///
/// The result does not depend on the order in which files were given.
pub fn assemble(mut captions: Captions, image_paths: Option<&[&str]>, rule: &SplitRule) -> Assembled {
    let Names { named, runs, splits } = names(&captions);
    let (images, image_of) = match image_paths {
        None => {
            let bare = |(name, entry): (Cow<str>, Named)| (Image::new(&name, None), entry.said);
            let image_of = (0..named.len() as u32).collect();
            (named.into_iter().map(bare).collect(), image_of)
        }
        Some(paths) => match_images(named, paths),
    };
    let split_conflicts = images.iter().filter(|(_, said)| said.len() > 1).count() as u64;
    let (mut images, rank) = in_order(images, image_paths.unwrap_or_default(), &splits, rule);
    let mut places = places(&captions, &runs, |name| rank[image_of[name as usize] as usize]);
    drop_repeated_numbers(&mut captions, &mut places);
    let caption_ids = number(&places, &mut images);
    Assembled { captions, images, places, caption_ids, split_conflicts }
}

impl Image {
    fn new(id: &str, listed: Option<usize>) -> Self {
        Self { id: id.into(), listed, split: None, captions: 0 }
    }
}

/// Images with the splits said of them.
type Images = Vec<(Image, Vec<u16>)>;

/// Finds the file of each named image. Names may turn out to be the same image: also gives the image of each name.
/// Listed images that nothing names follow.
fn match_images(named: Vec<(Cow<str>, Named)>, paths: &[&str]) -> (Images, Vec<u32>) {
    let matcher = Matcher::new(paths.iter().copied());
    let find = |(_, entry): &(Cow<str>, Named)| {
        let found = [entry.file, Some(entry.reference)].map(|reference| matcher.find(reference?));
        found.into_iter().flatten().max_by_key(|found| found.is_certain)
    };
    let found: Vec<Option<Found>> = named.iter().map(find).collect();
    let mut is_meant = vec![false; paths.len()];
    found.iter().flatten().filter(|found| found.is_certain).for_each(|found| is_meant[found.at] = true);
    let mut by_id: HashMap<String, u32> = HashMap::with_capacity(named.len());
    let mut by_file: Vec<Option<u32>> = vec![None; paths.len()];
    let mut images: Images = Vec::with_capacity(named.len());
    let image_of = named
        .into_iter()
        .zip(found)
        .map(|((name, entry), found)| {
            let listed = found.filter(|found| found.is_certain || !is_meant[found.at]).map(|found| found.at);
            // An id that is a path becomes the path of the file it was found to be.
            let id = listed.filter(|_| name.contains('/')).map_or(&*name, |at| without_extension(paths[at]));
            let known = listed.and_then(|at| by_file[at]);
            let image = known.unwrap_or_else(|| {
                // Two files may share a stem: the second goes by its whole name.
                let id = listed.filter(|_| by_id.contains_key(id)).map_or(id, |at| paths[at]);
                *by_id.entry(id.to_string()).or_insert_with(|| {
                    images.push((Image::new(id, listed), Vec::new()));
                    images.len() as u32 - 1
                })
            });
            if let Some(at) = listed {
                by_file[at] = Some(image);
            }
            let said = &mut images[image as usize].1;
            said.extend(entry.said.iter().filter(|split| !said.contains(split)).copied().collect::<Vec<_>>());
            image
        })
        .collect();
    for (at, path) in paths.iter().enumerate().filter(|(at, _)| by_file[*at].is_none()) {
        let stem = image_id(path);
        // Two files may share a stem: the second goes by its whole name.
        let id = if by_id.contains_key(stem) { path } else { stem };
        by_id.insert(id.to_string(), images.len() as u32);
        images.push((Image::new(id, Some(at)), Vec::new()));
    }
    (images, image_of)
}

/// Images by id, each with its split; and from an old index to the new one.
fn in_order(images: Images, paths: &[&str], splits: &[String], rule: &SplitRule) -> (Vec<Image>, Vec<u32>) {
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
        image.split = rule.split_of(&image.id, image.listed.map(|at| paths[at]), &said).map(str::to_string);
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

    #[test]
    fn images_are_matched_and_those_without_captions_stay() {
        let files =
            [("c.jsonl", "{\"file_name\": \"x/1.jpg\", \"text\": \"狗\"}\n{\"file_name\": \"9.jpg\", \"text\": \"猫\"}\n")];
        let paths = ["1.jpg", "2.jpg", "2.png"];
        let set = assemble(read(&files, &[0]), Some(&paths), &SplitRule::default());
        let images: Vec<_> = set.images.iter().map(|i| (i.id.as_str(), i.listed, i.captions)).collect();
        assert_eq!(images, [("1", Some(0), 1), ("2", Some(1), 0), ("2.png", Some(2), 0), ("9", None, 1)]);
    }

    #[test]
    fn files_that_share_a_stem_are_images_of_their_own() {
        let files = [("c.csv", "image,caption\ns/1.jpg,甲\ns/1.png,乙\n"), ("d.tsv", "s/1\t丙\n")];
        let captions = |paths: Option<&[&str]>| {
            let set = assemble(read(&files, &[0, 1]), paths, &SplitRule::default());
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
        let set = assemble(read(&files, &[0]), Some(&["val/1.jpg"]), &SplitRule::default());
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
            let set = assemble(read(&files, &[0, 1, 2]), paths, &SplitRule::default());
            set.images.iter().map(|i| (i.id.clone(), i.listed, i.captions)).collect::<Vec<_>>()
        };
        assert_eq!(images(None), [("1".into(), None, 2), ("y/a".into(), None, 1)]);
        assert_eq!(images(Some(&["x/a.jpg", "y/a.jpg"])), [("1".into(), Some(0), 2), ("y/a".into(), Some(1), 1)]);
    }

    #[test]
    fn a_path_and_an_id_may_be_one_image() {
        let files = [("c.csv", "image,caption\nset/1.jpg,狗\n"), ("d.tsv", "1\t猫\n")];
        let set = assemble(read(&files, &[0, 1]), Some(&["1.jpg"]), &SplitRule::default());
        assert_eq!((set.images.len(), set.images[0].captions), (1, 2));
    }
}
