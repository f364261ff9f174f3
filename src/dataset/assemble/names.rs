//! What caption files call images.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};

use crate::dataset::captions::Captions;
use crate::dataset::matching::without_extension;
use crate::dataset::splits::canonical;

/// An image as caption files call it.
pub struct Named<'a> {
    /// What stands for it the first time.
    pub reference: &'a str,
    /// Of the reference or, where that has none, of the file: two extensions are two images. Empty where none is known.
    extension: &'a str,
    pub file: Option<&'a str>,
    /// Splits that files and rows say: indices into [`Names::splits`].
    pub said: Vec<u16>,
}

/// What caption files call images, and where.
pub struct Names<'a> {
    /// Different ids in order of appearance.
    pub named: Vec<(Cow<'a, str>, Named<'a>)>,
    /// Runs of rows of one image: batch, first row, index into `named`.
    pub runs: Vec<(u32, u32, u32)>,
    /// Canonical names of splits.
    pub splits: Vec<String>,
}

/// What `captions` call their images.
pub fn names(captions: &Captions) -> Names<'_> {
    let rows: usize = captions.batches.iter().map(|(_, batch)| batch.rows.len()).sum();
    // Five captions an image are usual.
    let mut names = Names { named: Vec::with_capacity(rows / 5), runs: Vec::with_capacity(rows / 5), splits: Vec::new() };
    let mut index: HashMap<(&str, &str), u32> = HashMap::with_capacity(rows / 5);
    for (at, (file, batch)) in captions.batches.iter().enumerate() {
        let implied = captions.files[*file as usize].split;
        let coco_files = &captions.coco_files[*file as usize];
        let mut previous = None;
        let mut previous_said: Option<(&str, u16)> = None;
        for (row_at, row) in batch.rows.iter().enumerate() {
            // Rows of one image share their spans: no need to look at the text again.
            let key = (row.image, row.file, row.split);
            if previous == Some(key) {
                continue;
            }
            previous = Some(key);
            let reference = batch.get(row.image);
            let name = without_extension(reference);
            let (coco, coco_split) = coco_files.get(reference).map_or((None, ""), |(f, s)| (Some(f.as_str()), s.as_str()));
            let own = batch.get(row.split);
            let said = if own.is_empty() { coco_split } else { own };
            let said = if said.is_empty() { implied.unwrap_or_default() } else { said };
            let said = (!said.is_empty()).then(|| match previous_said {
                Some((name, index)) if name == said => index,
                _ => previous_said.insert((said, names.split_index(said))).1,
            });
            let file = row.file.map(|span| batch.get(span)).or(coco);
            let extension = match &reference[name.len()..] {
                none if none.is_empty() => file.map_or(none, |file| extension_beyond(file, name)),
                extension => extension,
            };
            let mut entry = enter(&mut names.named, &mut index, name, extension, reference);
            // Two files of one id are two images: the second goes by its file's name.
            if let (Some(file), Some(known)) = (file, names.named[entry as usize].1.file)
                && are_apart(file, known)
            {
                entry = enter(&mut names.named, &mut index, without_extension(file), extension, file);
            }
            let known = &mut names.named[entry as usize].1;
            known.file = known.file.or(file);
            known.said.extend(said.filter(|said| !known.said.contains(said)));
            names.runs.push((at as u32, row_at as u32, entry));
        }
    }
    names.join_by_stem();
    names
}

/// The entry of a name, made where there is none yet.
fn enter<'a>(
    named: &mut Vec<(Cow<'a, str>, Named<'a>)>,
    index: &mut HashMap<(&'a str, &'a str), u32>,
    name: &'a str,
    extension: &'a str,
    reference: &'a str,
) -> u32 {
    *index.entry((name, extension)).or_insert_with(|| {
        named.push((name.into(), Named { reference, extension, file: None, said: Vec::new() }));
        named.len() as u32 - 1
    })
}

/// Whether two files can be no one file: neither is the end of the other's path.
fn are_apart(a: &str, b: &str) -> bool {
    let (a, b) = (without_extension(a), without_extension(b));
    let ends = |path: &str, end: &str| path.strip_suffix(end).is_some_and(|folders| folders.is_empty() || folders.ends_with('/'));
    !ends(a, b) && !ends(b, a)
}

/// The extension of a file called like the image, such as `.png` of `a/1.png` for `1`; empty for another name.
fn extension_beyond<'a>(file: &'a str, image: &str) -> &'a str {
    let stem = without_extension(file);
    let last = |path: &str| path.rsplit('/').next().unwrap_or(path).len();
    let same = stem[stem.len() - last(stem)..] == image[image.len() - last(image)..];
    if same { &file[stem.len()..] } else { &file[..0] }
}

impl Names<'_> {
    /// `1.jpg`, `1.JPG` and `1` are one image; `1.png` beside them is another, which goes by its whole name.
    fn join_by_stem(&mut self) {
        let Some((_, first)) = self.named.first() else { return };
        // Different names with one extension have different stems.
        if self.named.iter().all(|(_, entry)| entry.extension == first.extension) {
            return;
        }
        let mut joined: Vec<(Cow<str>, Named)> = Vec::with_capacity(self.named.len());
        let mut of_stem: HashMap<Cow<str>, Vec<u32>> = HashMap::with_capacity(self.named.len());
        let mut moved = Vec::with_capacity(self.named.len());
        for (stem, entry) in std::mem::take(&mut self.named) {
            let others = of_stem.entry(stem.clone()).or_default();
            let fits = |other: &&u32| {
                let extension = joined[**other as usize].1.extension;
                extension.is_empty() || entry.extension.is_empty() || extension.eq_ignore_ascii_case(entry.extension)
            };
            if let Some(&other) = others.iter().find(fits) {
                let known = &mut joined[other as usize].1;
                if known.extension.is_empty() {
                    (known.extension, known.reference) = (entry.extension, entry.reference);
                }
                known.file = known.file.or(entry.file);
                known.said.extend(entry.said.iter().filter(|said| !known.said.contains(said)).copied().collect::<Vec<_>>());
                moved.push(other);
                continue;
            }
            let id = if others.is_empty() { stem } else { format!("{stem}{}", entry.extension).into() };
            others.push(joined.len() as u32);
            moved.push(joined.len() as u32);
            joined.push((id, entry));
        }
        self.named = joined;
        self.runs.iter_mut().for_each(|(_, _, name)| *name = moved[*name as usize]);
    }

    /// There are few splits, so looking through them is quick; what is beyond 65,535 of them counts as the last.
    fn split_index(&mut self, said: &str) -> u16 {
        let name = canonical(said);
        let known = self.splits.iter().position(|split| *split == name);
        let at = known.unwrap_or_else(|| {
            self.splits.push(name);
            self.splits.len() - 1
        });
        at.min(usize::from(u16::MAX)) as u16
    }
}
