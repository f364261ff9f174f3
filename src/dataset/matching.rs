//! Which image file a caption means: by path, by the end of a path, or by name.

use std::borrow::Cow;

use foldhash::HashMap;
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::listing::image_id;

/// The extensions of images, which are not part of an image's id.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "jfif"];

/// A path or file name without the extension of an image; other dots stay.
pub fn without_extension(reference: &str) -> &str {
    let dot = memchr::memrchr(b'.', reference.as_bytes());
    match dot.map(|dot| (&reference[..dot], &reference[dot + 1..])) {
        Some((stem, extension)) if !stem.is_empty() && EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e)) => stem,
        _ => reference,
    }
}

/// A listed image that a reference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Index into the list.
    pub at: usize,
    /// False where the file has another extension than the reference, or lies in another folder than it says: then the file is meant only
    /// where nothing else means it for certain.
    pub is_certain: bool,
}

/// Finds listed images by what caption files call them. Made from image paths in listing order.
pub struct Matcher<'a> {
    by_path: HashMap<&'a str, usize>,
    by_stem: HashMap<&'a str, usize>,
    /// None where several files have the name.
    by_name: HashMap<&'a str, Option<usize>>,
    /// Stems that are not in NFC (as a Mac writes file names), in it.
    composed: HashMap<String, usize>,
}

impl<'a> Matcher<'a> {
    pub fn new(image_paths: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut by_path, mut by_stem, mut by_name) = (HashMap::default(), HashMap::default(), HashMap::default());
        let mut composed = HashMap::default();
        for (at, path) in image_paths.into_iter().enumerate() {
            by_path.insert(path, at);
            let stem = without_extension(path);
            // a.jpg and a.png share a stem: the first in the list's order has it.
            by_stem.entry(stem).or_insert(at);
            by_stem.entry(image_id(path)).or_insert(at);
            if !is_nfc(stem) {
                composed.entry(stem.nfc().collect()).or_insert(at);
            }
            let name = stem.rsplit('/').next().unwrap_or(stem);
            by_name.entry(name).and_modify(|slot| *slot = None).or_insert(Some(at));
        }
        Self { by_path, by_stem, by_name, composed }
    }

    /// The listed image that `reference` (an id, a file name or a path) means. Leading folders of it that the list does not
    /// know are dropped one by one; at last a name counts where only one file has it. It may be written as an image_path or as the
    /// file is called, its letters composed or not.
    pub fn find(&self, reference: &str) -> Option<Found> {
        let as_written = |reference: &str| {
            self.find_written(reference).or_else(|| match encoded(reference) {
                Cow::Owned(encoded) => self.find_written(&encoded),
                Cow::Borrowed(_) => None,
            })
        };
        as_written(reference).or_else(|| {
            if reference.is_ascii() {
                return None;
            }
            let reference: String = reference.nfc().collect();
            let composed = || self.composed.get(without_extension(&reference)).map(|&at| Found { at, is_certain: false });
            as_written(&reference).or_else(composed)
        })
    }

    fn find_written(&self, reference: &str) -> Option<Found> {
        let mut rest = reference.trim_start_matches("./").trim_start_matches('/');
        loop {
            if let Some(&at) = self.by_path.get(rest) {
                return Some(Found { at, is_certain: true });
            }
            let stem = without_extension(rest);
            // Another extension: the file was converted since, or it is another image.
            if let Some(&at) = self.by_stem.get(stem).or_else(|| self.by_stem.get(rest)) {
                return Some(Found { at, is_certain: stem == rest });
            }
            match rest.split_once('/') {
                Some((_, tail)) => rest = tail,
                None => break,
            }
        }
        let at = self.by_name.get(without_extension(rest)).copied().flatten()?;
        Some(Found { at, is_certain: !reference.contains('/') })
    }
}

/// A reference as image paths are written: `\`, `%` and control characters percent-encoded.
fn encoded(reference: &str) -> Cow<'_, str> {
    if !reference.bytes().any(|b| b == b'\\' || b == b'%' || b.is_ascii_control()) {
        return reference.into();
    }
    const SET: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'\\').add(b'%');
    // CONTROLS covers non-ASCII bytes too only when bytes are encoded one by one; text keeps its letters.
    let mut out = String::with_capacity(reference.len() + 8);
    for c in reference.chars() {
        if c.is_ascii() {
            out.extend(percent_encoding::utf8_percent_encode(c.encode_utf8(&mut [0; 4]), SET));
        } else {
            out.push(c);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_path_end_of_path_and_name() {
        let paths = ["a/1.jpg", "a/2.png", "b/1.jpg", "b/x y.JPG", "c/100%25.jpg", "3.jpg", "3.png"];
        let matcher = Matcher::new(paths);
        let find = |reference| matcher.find(reference).map(|found| paths[found.at]);
        assert_eq!(find("a/1.jpg"), Some("a/1.jpg"));
        assert_eq!(find("b/1"), Some("b/1.jpg"));
        assert_eq!(find("/data/set/a/1.jpg"), Some("a/1.jpg"));
        assert_eq!(find("1.jpg"), None, "two files have the name");
        assert_eq!(find("2"), Some("a/2.png"));
        assert_eq!(find("2.jpg"), Some("a/2.png"), "converted since");
        assert_eq!(find("x y.jpg"), Some("b/x y.JPG"));
        assert_eq!(find("c/100%.jpg"), Some("c/100%25.jpg"));
        assert_eq!(find("3"), Some("3.jpg"));
        assert_eq!(find("3.png"), Some("3.png"));
        assert_eq!(find("c/100%25.jpg"), Some("c/100%25.jpg"), "as image_paths are written");
        assert_eq!(find("../../etc/passwd"), None);
        let mac = Matcher::new(["a/cafe\u{301}.jpg"]);
        assert_eq!(mac.find("a/caf\u{e9}.jpg"), Some(Found { at: 0, is_certain: false }));
        assert_eq!(Matcher::new(["caf\u{e9}.jpg"]).find("cafe\u{301}").map(|found| found.at), Some(0));
    }

    #[test]
    fn what_contradicts_the_reference_is_not_certain() {
        let matcher = Matcher::new(["a/1.jpg", "b/2.jpg", "v1.2"]);
        let certain = |reference| matcher.find(reference).map(|found| found.is_certain);
        for reference in ["a/1.jpg", "a/1", "/data/a/1.jpg", "2", "2.jpg", "v1", "v1.2"] {
            assert_eq!(certain(reference), Some(true), "{reference}");
        }
        assert_eq!((certain("a/1.png"), certain("a/2.jpg")), (Some(false), Some(false)));
    }

    #[test]
    fn only_extensions_of_images_come_off() {
        assert_eq!(without_extension("a.b/1.v2.JPEG"), "a.b/1.v2");
        assert_eq!(without_extension("v1.2"), "v1.2");
        assert_eq!(without_extension(".jpg"), ".jpg");
    }
}
