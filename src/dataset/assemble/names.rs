//! What caption files call images, and which of these names are one image's.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};

use crate::dataset::captions::Captions;
use crate::dataset::matching::Matcher;
use crate::dataset::naming::{composed, ids_of, normal, without_extension};
use crate::dataset::splits::canonical;

/// An image as caption files call it.
#[derive(Debug)]
pub struct Named<'a> {
    /// Its file as it is written the first time, or its id where no file is named.
    pub written: &'a str,
    /// The normal form of that.
    pub reference: Cow<'a, str>,
    /// The id it has beside a file's name.
    pub own_id: Option<Cow<'a, str>>,
    /// Splits that files and rows say: indices into [`Names::splits`].
    pub said: Vec<u16>,
    /// The caption file and line where it is named first.
    pub first: (u16, u64),
    /// Further caption files that name it.
    more_files: Vec<u16>,
    /// Ids of a finished dataset: two that differ are two images.
    is_exact: bool,
}

/// What caption files call images, and where.
pub struct Names<'a> {
    /// Different images in order of appearance.
    pub named: Vec<Named<'a>>,
    /// Runs of rows of one image: batch, first row, index into `named`.
    pub runs: Vec<(u32, u32, u32)>,
    /// Canonical names of splits.
    pub splits: Vec<String>,
}

/// What `captions` call their images. `files` finds listed ones, where there is a list: what it tells apart is not one image.
pub fn names<'a>(captions: &'a Captions, files: Option<&Matcher>) -> Names<'a> {
    let rows: usize = captions.batches.iter().map(|(_, batch)| batch.rows.len()).sum();
    // Five captions an image are usual.
    let mut names = Names { named: Vec::with_capacity(rows / 5), runs: Vec::with_capacity(rows / 5), splits: Vec::new() };
    let mut index: HashMap<(&str, &str), u32> = HashMap::with_capacity(rows / 5);
    for (at, (file_at, batch)) in captions.batches.iter().enumerate() {
        let implied = captions.files[*file_at as usize].split;
        let is_exact = captions.files[*file_at as usize].exact_ids;
        let coco_files = &captions.coco_files[*file_at as usize];
        let mut previous = None;
        let mut previous_said: Option<(&str, u16)> = None;
        for (row_at, row) in batch.rows.iter().enumerate() {
            // Rows of one image share their spans: no need to look at the text again.
            let key = (row.image, row.file, row.split);
            if previous == Some(key) {
                continue;
            }
            previous = Some(key);
            let image = batch.get(row.image);
            let (coco, coco_split) = coco_files.get(image).map_or((None, ""), |(f, s)| (Some(f.as_str()), s.as_str()));
            let own = batch.get(row.split);
            let said = if own.is_empty() { coco_split } else { own };
            let said = if said.is_empty() { implied.unwrap_or_default() } else { said };
            let said = (!said.is_empty()).then(|| match previous_said {
                Some((name, index)) if name == said => index,
                _ => previous_said.insert((said, names.split_index(said))).1,
            });
            let file = row.file.map(|span| batch.get(span)).or(coco);
            let entry = *index.entry((image, file.unwrap_or_default())).or_insert_with(|| {
                let written = file.unwrap_or(image);
                let own_id = file.filter(|file| *file != image).map(|_| match is_exact {
                    true => image.into(),
                    false => without_extension_of(normal(image)),
                });
                let reference = if is_exact { composed(written) } else { normal(written) };
                let first = (*file_at, row.line);
                names.named.push(Named { written, reference, own_id, said: vec![], first, more_files: vec![], is_exact });
                names.named.len() as u32 - 1
            });
            let known = &mut names.named[entry as usize];
            known.said.extend(said.filter(|said| !known.said.contains(said)));
            if known.first.0 != *file_at && !known.more_files.contains(file_at) {
                known.more_files.push(*file_at);
            }
            names.runs.push((at as u32, row_at as u32, entry));
        }
    }
    names.join(files);
    names
}

fn without_extension_of(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => without_extension(text).into(),
        Cow::Owned(text) => without_extension(&text).to_string().into(),
    }
}

/// Whether one path is the end of the other, or may be: extensions do not contradict each other.
pub fn is_end_of(a: &str, b: &str) -> bool {
    let (stem_a, stem_b) = (without_extension(a), without_extension(b));
    let ends = |path: &str, end: &str| path.strip_suffix(end).is_some_and(|folders| folders.is_empty() || folders.ends_with('/'));
    let (extension_a, extension_b) = (&a[stem_a.len()..], &b[stem_b.len()..]);
    (extension_a.is_empty() || extension_b.is_empty() || extension_a == extension_b)
        && (ends(stem_a, stem_b) || ends(stem_b, stem_a))
}

impl Named<'_> {
    /// Whether two names, which differ, may mean one file all the same: different caption files begin paths in different folders.
    pub fn may_be(&self, other: &Self) -> bool {
        let shares_a_file = self.files().any(|file| other.files().any(|known| known == file));
        !shares_a_file && is_end_of(&self.reference, &other.reference)
    }

    fn files(&self) -> impl Iterator<Item = u16> + '_ {
        std::iter::once(self.first.0).chain(self.more_files.iter().copied())
    }

    fn is_bare(&self) -> bool {
        self.own_id.is_none() && without_extension(&self.reference).len() == self.reference.len()
    }
}

impl<'a> Names<'a> {
    /// One image for each name: names of one normal form, one id with files that do not contradict each other, a bare id and the file
    /// that has it.
    fn join(&mut self, files: Option<&Matcher>) {
        if !self.may_join() {
            return;
        }
        let mut joined: Vec<Named> = Vec::with_capacity(self.named.len());
        let mut moved: Vec<u32> = vec![0; self.named.len()];
        let mut by_reference: HashMap<Cow<str>, u32> = HashMap::with_capacity(self.named.len());
        let mut by_id: HashMap<Cow<str>, Vec<u32>> = HashMap::new();
        let mut by_stem: HashMap<String, u32> = HashMap::new();
        let mut bare: Vec<(usize, Named)> = Vec::new();
        for (at, entry) in std::mem::take(&mut self.named).into_iter().enumerate() {
            if entry.is_bare() && !entry.is_exact {
                bare.push((at, entry));
                continue;
            }
            let same_id = entry.own_id.as_ref().and_then(|id| {
                by_id.get(id)?.iter().copied().find(|&other| is_end_of(&joined[other as usize].reference, &entry.reference))
            });
            match by_reference.get(&entry.reference).copied().or(same_id) {
                Some(other) => {
                    moved[at] = other;
                    merge(&mut joined[other as usize], entry);
                }
                None => {
                    moved[at] = joined.len() as u32;
                    by_reference.insert(entry.reference.clone(), moved[at]);
                    if let Some(id) = &entry.own_id {
                        by_id.entry(id.clone()).or_default().push(moved[at]);
                    }
                    if !entry.is_exact {
                        // Of files that share a stem the first by name has it.
                        let known = by_stem.entry(without_extension(&entry.reference).into()).or_insert(moved[at]);
                        if entry.reference < joined.get(*known as usize).map_or(entry.reference.clone(), |k| k.reference.clone())
                        {
                            *known = moved[at];
                        }
                    }
                    joined.push(entry);
                }
            }
        }
        for (at, entry) in bare {
            let same_id = by_id.get(&entry.reference).filter(|of_id| of_id.len() == 1).map(|of_id| of_id[0]);
            let known = same_id.or_else(|| by_stem.get(&*entry.reference).copied());
            // `a` is `a.jpg` where that is listed, whatever is said of `a.png`.
            let is_other = |known: &u32| {
                let file = |written: &str| files.and_then(|files| files.find(written)).map(|found| found.at);
                let [own, theirs] = [entry.written, joined[*known as usize].written].map(file);
                own.is_some() && theirs.is_some() && own != theirs
            };
            match known.filter(|known| !is_other(known)).or_else(|| by_reference.get(&entry.reference).copied()) {
                Some(other) => {
                    moved[at] = other;
                    merge(&mut joined[other as usize], entry);
                }
                None => {
                    moved[at] = joined.len() as u32;
                    by_reference.insert(entry.reference.clone(), moved[at]);
                    joined.push(entry);
                }
            }
        }
        self.named = joined;
        self.runs.iter_mut().for_each(|(_, _, name)| *name = moved[*name as usize]);
    }

    /// False for the usual files, whose names are all bare ids or all files of one extension.
    fn may_join(&self) -> bool {
        fn extension<'b>(entry: &'b Named) -> &'b str {
            &entry.reference[without_extension(&entry.reference).len()..]
        }
        let Some(first) = self.named.first() else { return false };
        !self.named.iter().all(|entry| {
            let is_as_written = matches!(entry.reference, Cow::Borrowed(_)) && entry.own_id.is_none();
            is_as_written && extension(entry) == extension(first)
        })
    }

    /// The ids of images whose files are not known, one for each name: its own, or its reference without the extension.
    pub fn ids(&self) -> Vec<String> {
        let bare = |entry: &Named| without_extension(&entry.reference).to_string();
        if !self.may_join() {
            return self.named.iter().map(bare).collect();
        }
        // References in the order of a list, where the first of a stem has it.
        let mut order: Vec<usize> = (0..self.named.len()).filter(|&at| !self.named[at].is_exact).collect();
        order.sort_by(|&a, &b| self.named[a].reference.cmp(&self.named[b].reference));
        let mut ids: Vec<String> = self.named.iter().map(|entry| entry.reference.to_string()).collect();
        for (at, id) in order.iter().zip(ids_of(order.iter().map(|&at| &*self.named[at].reference))) {
            ids[*at] = id;
        }
        ids
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

fn merge<'a>(known: &mut Named<'a>, entry: Named<'a>) {
    for said in &entry.said {
        if !known.said.contains(said) {
            known.said.push(*said);
        }
    }
    for file in entry.files() {
        if !known.files().any(|one| one == file) {
            known.more_files.push(file);
        }
    }
    known.own_id = known.own_id.take().or(entry.own_id);
    known.first = known.first.min(entry.first);
    // The longer of two paths says more.
    if entry.reference.len() > known.reference.len() {
        (known.reference, known.written) = (entry.reference, entry.written);
    }
}
