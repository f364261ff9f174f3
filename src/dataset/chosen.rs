//! Lists of images: which are to be captioned anew, or left out.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::naming::{composed, spellings};

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("cannot read the list {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: no image in it; a list has one image_id or image_path per line, or is what a report exports (those marked n)", path.display())]
    Empty { path: PathBuf },
}

/// The mark of a report that chooses an image.
const BAD: &str = "n";

/// Images by image_id or image_path, a line each; or the table that a report exports, of which those marked as bad count.
#[derive(Debug, Default)]
pub struct ImageList {
    /// What an image is called in the list, and whether it was met.
    images: Vec<(String, AtomicBool)>,
    /// Every way to write a name, with the images that are called so.
    names: HashMap<String, usize>,
}

impl ImageList {
    /// Reads a list.
    ///
    /// # Errors
    /// A file that cannot be read, or names no image.
    pub fn read(path: &Path) -> Result<Self, ListError> {
        let text = fs::read_to_string(path).map_err(|source| ListError::Io { path: path.into(), source })?;
        let list = Self::parse(&text);
        if list.is_empty() { Err(ListError::Empty { path: path.into() }) } else { Ok(list) }
    }

    fn parse(text: &str) -> Self {
        let mut list = Self::default();
        let mut lines = text.trim_start_matches('\u{feff}').lines().filter(|line| !line.trim().is_empty()).peekable();
        let header: Vec<&str> = lines.peek().map_or(vec![], |line| line.split('\t').map(str::trim).collect());
        let column = |name: &str| header.iter().position(|cell| *cell == name);
        let names = [column("image_path"), column("image_id")];
        if names.iter().all(Option::is_none) {
            lines.for_each(|line| list.add(&[line.split('\t').next().unwrap_or_default().trim()]));
            return list;
        }
        let mark = column("mark");
        for line in lines.skip(1) {
            let cells: Vec<&str> = line.split('\t').map(str::trim).collect();
            let cell = |at: usize| cells.get(at).copied().filter(|cell| !cell.is_empty());
            if mark.is_none_or(|at| cell(at) == Some(BAD)) {
                list.add(&names.iter().flatten().filter_map(|at| cell(*at)).collect::<Vec<_>>());
            }
        }
        list
    }

    fn add(&mut self, names: &[&str]) {
        let Some(first) = names.first().filter(|name| !name.is_empty()) else { return };
        if self.names.contains_key(&*composed(first)) {
            return;
        }
        let number = self.images.len();
        for name in names.iter().flat_map(|name| spellings(name)) {
            self.names.entry(composed(&name).into_owned()).or_insert(number);
        }
        self.images.push(((*first).into(), AtomicBool::new(false)));
    }

    pub fn len(&self) -> usize {
        self.images.len()
    }

    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Whether an image that is called by any of these names is in the list; it counts as met then.
    pub fn has<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        let found = names.into_iter().find_map(|name| self.names.get(&*composed(name)));
        if let Some(&number) = found {
            self.images[number].1.store(true, Ordering::Relaxed);
        }
        found.is_some()
    }

    /// Images of the list that were not met so far.
    pub fn missing(&self) -> Vec<&str> {
        self.images.iter().filter(|(_, met)| !met.load(Ordering::Relaxed)).map(|(name, _)| name.as_str()).collect()
    }

    /// What is said of the images that were not met, once all were looked at; none where there is nothing to say.
    pub fn missing_note(&self, path: &Path) -> Option<String> {
        let missing = self.missing();
        let some = missing.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        let more = if missing.len() > 3 { ", ..." } else { "" };
        (!missing.is_empty())
            .then(|| format!("{}: {} of its {} images are not here: {some}{more}", path.display(), missing.len(), self.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_ids_or_paths_and_an_export_those_marked_bad() {
        let list = ImageList::parse("\u{feff}a\n\nsub/b.jpg\r\nc 1%.png\tmore\na\n");
        // The second `a` is the first's image.
        assert_eq!(list.len(), 3);
        assert!(list.has(["a.jpg", "a"]) && list.has(["sub/b.jpg", "sub/b"]) && list.has(["c 1%25.png"]));
        assert!(!list.has(["sub/b.png", "b"]));
        assert!(list.missing().is_empty());
        let export = ImageList::parse("image_id\timage_path\tmark\tcaption\nx\tx.jpg\tn\t狗\ny\ty.jpg\ty\t猫\nz\tz.jpg\tn\t\n");
        assert_eq!(export.len(), 2);
        assert!(export.has(["x.jpg", "other"]) && !export.has(["y.jpg", "y"]));
        assert_eq!(export.missing_note(Path::new("l.tsv")).unwrap(), "l.tsv: 1 of its 2 images are not here: z.jpg");
        assert_eq!(ImageList::parse("image_id\nq\n").len(), 1);
        assert!(ImageList::parse("image_id\timage_path\tmark\nq\tq.jpg\ty\n").is_empty());
    }
}
