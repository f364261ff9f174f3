//! Which image file a caption means: by path, or by the end of a path. A file of the same name in another folder is another image.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};
use rayon::prelude::*;
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::naming::{composed, last_part, spellings, without_extension};

/// A listed file: its path and its id; see [`naming`](super::naming).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    pub path: &'a str,
    pub id: &'a str,
}

/// How well a reference and a file agree, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The file's path or id.
    Exact,
    /// The end of the reference is the file's path, or the reference is the end of that.
    End,
    /// So, but for the extension: the file was converted since, or it is another image.
    Converted,
}

/// A listed image that a reference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Index into the list.
    pub at: usize,
    pub level: Level,
}

/// Finds listed images by what caption files call them.
pub struct Matcher<'a> {
    listed: &'a [Listed<'a>],
    by_path: HashMap<&'a str, u32>,
    by_id: HashMap<&'a str, u32>,
    /// Paths that are not in NFC (as a Mac writes file names), in it.
    composed: HashMap<String, u32>,
    /// Every file's name without folders and extension, in NFC, sorted.
    names: Vec<(Cow<'a, str>, u32)>,
}

impl<'a> Matcher<'a> {
    /// From a list in its order.
    pub fn new(listed: &'a [Listed<'a>]) -> Self {
        let (mut by_path, mut by_id) = (HashMap::with_capacity(listed.len()), HashMap::with_capacity(listed.len()));
        let mut composed = HashMap::new();
        let mut names = Vec::with_capacity(listed.len());
        for (file, at) in listed.iter().zip(0u32..) {
            by_path.insert(file.path, at);
            by_id.entry(file.id).or_insert(at);
            let name = without_extension(last_part(file.path));
            if file.path.is_ascii() || is_nfc(file.path) {
                names.push((Cow::Borrowed(name), at));
            } else {
                composed.entry(file.path.nfc().collect()).or_insert(at);
                names.push((Cow::Owned(name.nfc().collect()), at));
            }
        }
        names.par_sort();
        Self { listed, by_path, by_id, composed, names }
    }

    /// The listed image that `reference` (an id, a file name or a path) means. Leading folders of it that the list does not
    /// know are dropped one by one, and so are leading folders of the list that the reference does not say; `train/1.png` is never
    /// `val/1.png`. It may be written as an image_path or as the file is called, its letters composed or not.
    pub fn find(&self, reference: &str) -> Option<Found> {
        let found = |at: u32, level: Level| Found { at: at as usize, level };
        let exact = || spellings(reference).find_map(|written| self.exact(&written));
        let end = || {
            let dropped = spellings(reference).find_map(|written| ends(&written).find_map(|end| self.exact(end)));
            dropped.or_else(|| spellings(reference).find_map(|written| self.ending_with(&written, true)))
        };
        let converted = || {
            let stem = |text: &str| self.by_id.get(&*composed(without_extension(text))).copied();
            let whole = spellings(reference).find_map(|written| stem(&written).or_else(|| ends(&written).find_map(stem)));
            whole.or_else(|| spellings(reference).find_map(|written| self.ending_with(&written, false)))
        };
        exact()
            .map(|at| found(at, Level::Exact))
            .or_else(|| end().map(|at| found(at, Level::End)))
            .or_else(|| converted().map(|at| found(at, Level::Converted)))
    }

    /// Files that have the reference's name, of which none was found to be it.
    pub fn rivals(&self, reference: &str) -> Vec<&'a str> {
        let rivals = spellings(reference).map(|written| self.of_name(&composed(last_part(&written)))).find(|of| !of.is_empty());
        rivals.unwrap_or_default().iter().map(|(_, at)| self.listed[*at as usize].path).collect()
    }

    fn exact(&self, written: &str) -> Option<u32> {
        let text = composed(written);
        let by_id = || if without_extension(&text).len() == text.len() { self.by_id.get(&*text).copied() } else { None };
        self.by_path
            .get(written)
            .or_else(|| self.by_path.get(&*text))
            .or_else(|| self.composed.get(&*text))
            .copied()
            .or_else(by_id)
    }

    /// The one file whose path ends with the reference, its extension being the same (or not said) or another.
    fn ending_with(&self, written: &str, with_extension: bool) -> Option<u32> {
        let reference = composed(written);
        let stem = without_extension(&reference);
        let extension = &reference[stem.len()..];
        let fits = |path: &str| {
            let path = composed(path);
            let path_stem = without_extension(&path);
            let same = extension.is_empty() || path[path_stem.len()..] == *extension;
            (same || !with_extension)
                && path_stem.strip_suffix(stem).is_some_and(|folders| folders.is_empty() || folders.ends_with('/'))
        };
        let mut fitting = self.of_name(last_part(&reference)).iter().filter(|(_, at)| fits(self.listed[*at as usize].path));
        match (fitting.next(), fitting.next()) {
            (Some((_, at)), None) => Some(*at),
            _ => None,
        }
    }

    /// The files whose name is that of `name`, extensions aside.
    fn of_name(&self, name: &str) -> &[(Cow<'a, str>, u32)] {
        let name = without_extension(name);
        let start = self.names.partition_point(|(known, _)| **known < *name);
        let count = self.names[start..].partition_point(|(known, _)| **known == *name);
        &self.names[start..start + count]
    }
}

/// A path without its first folder, without its first two, and so on.
fn ends(path: &str) -> impl Iterator<Item = &str> {
    memchr::memchr_iter(b'/', path.as_bytes()).map(|slash| &path[slash + 1..])
}

#[cfg(test)]
mod tests {
    use super::super::naming::ids_of;
    use super::*;

    fn find(paths: &[&str], reference: &str) -> Option<(String, Level)> {
        let ids = ids_of(paths.iter().copied());
        let listed: Vec<Listed> = paths.iter().zip(&ids).map(|(path, id)| Listed { path, id }).collect();
        Matcher::new(&listed).find(reference).map(|found| (paths[found.at].to_string(), found.level))
    }

    #[test]
    fn images_are_found_by_path_end_of_path_and_name() {
        let paths = ["3.jpg", "3.png", "a/1.jpg", "a/2.png", "b/1.jpg", "b/x y.JPG", "c/100%25.jpg", "d/e/1.jpg"];
        let is =
            |reference: &str, path: &str, level| assert_eq!(find(&paths, reference), Some((path.into(), level)), "{reference}");
        is("a/1.jpg", "a/1.jpg", Level::Exact);
        is("b/1", "b/1.jpg", Level::Exact);
        is("/data/set/a/1.jpg", "a/1.jpg", Level::End);
        assert_eq!(find(&paths, "1.jpg"), None, "several files have the name");
        is("e/1.jpg", "d/e/1.jpg", Level::End);
        is("2", "a/2.png", Level::End);
        is("2.jpg", "a/2.png", Level::Converted);
        is("x y.jpg", "b/x y.JPG", Level::Converted);
        is("c/100%.jpg", "c/100%25.jpg", Level::Exact);
        is("c/100%25.jpg", "c/100%25.jpg", Level::Exact);
        is("3", "3.jpg", Level::Exact);
        is("3.png", "3.png", Level::Exact);
        assert_eq!(find(&paths, "b/2.png"), None, "it lies in another folder");
        assert_eq!(find(&["val/1.png"], "train/1.png"), None);
        assert_eq!(find(&["2014/val/1.png"], "2017/val/1.png"), None);
        assert_eq!(find(&["data/val2014/1.png"], "val2014/1.png").unwrap().1, Level::End);
        assert_eq!(find(&["1.png"], "data/val2014/1.png").unwrap().1, Level::End);
        is("imgs\\a\\1.jpg", "a/1.jpg", Level::End);
        is("D:\\x\\b\\1.jpg", "b/1.jpg", Level::End);
        is("https://example.org/c/100%25.jpg?size=1", "c/100%25.jpg", Level::Exact);
        is("file:///data/b/x%20y.JPG", "b/x y.JPG", Level::End);
        assert_eq!(find(&paths, "../../etc/passwd"), None);
    }

    #[test]
    fn letters_may_be_composed_or_not() {
        let mac = ["cafe\u{301}.png", "sub/\u{30ab}\u{3099}.png"];
        for (reference, at, level) in [
            ("caf\u{e9}.png", 0, Level::Exact),
            ("data/imgs/caf\u{e9}.png", 0, Level::End),
            ("sub/\u{30ac}.png", 1, Level::Exact),
            ("\u{30ac}.png", 1, Level::End),
            ("\u{30ab}\u{3099}.png", 1, Level::End),
            ("caf\u{e9}.jpg", 0, Level::Converted),
        ] {
            assert_eq!(find(&mac, reference), Some((mac[at].into(), level)), "{reference}");
        }
        assert_eq!(find(&["caf\u{e9}.jpg"], "cafe\u{301}").unwrap().1, Level::Exact);
    }

    #[test]
    fn a_backslash_may_be_part_of_a_name() {
        assert_eq!(find(&["a%5Cb.png", "a/b.png"], "a\\b.png").unwrap().0, "a%5Cb.png");
        assert_eq!(find(&["a/b.png"], "a\\b.png").unwrap().0, "a/b.png");
    }
}
