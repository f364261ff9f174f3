//! What images are called: the one rule of `prepare`, `caption`, `embed`, `evaluate`, `report` and `stats`.
//!
//! - An **image_path** names a file below its root, byte for byte: `/` between parts; bytes that are not UTF-8, control characters, `\` and `%`
//!   are percent-encoded ([`image_path`](super::listing::image_path)).
//! - An **image_id** is the image_path without its extension, in Unicode's composed form (NFC), so that a name written by a Mac and the
//!   same name written elsewhere are one id. Where files of a folder share a stem, the first in the order of the list that is called an
//!   image has it (`a` for `a.jpg`), and the others go by their whole names (`a.png`): see [`FolderIds`].
//! - A **reference** is what a caption file calls an image. Its normal form ([`normal`]) is written as image_paths are, but composed, with `/`
//!   for a Windows path's `\`, without `./`, a drive or a URL's scheme and host. The image_id of a reference is that of the file it means; where no
//!   file is known, its normal form without the extension.

use std::borrow::Cow;

use foldhash::{HashMap, HashSet};
use percent_encoding::percent_decode_str;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The extensions of images, which are not part of an image's id.
const EXTENSIONS: [&str; 14] =
    ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "jfif", "jpe", "jxl", "avif", "heic", "heif"];

/// A path or file name without the extension of an image; other dots stay.
pub fn without_extension(reference: &str) -> &str {
    let dot = memchr::memrchr(b'.', reference.as_bytes());
    match dot.map(|dot| (&reference[..dot], &reference[dot + 1..])) {
        Some((stem, extension)) if !stem.is_empty() && is_extension(extension) => stem,
        _ => reference,
    }
}

fn is_extension(text: &str) -> bool {
    EXTENSIONS.iter().any(|e| text.eq_ignore_ascii_case(e))
}

/// The last part of a path.
pub fn last_part(path: &str) -> &str {
    memchr::memrchr(b'/', path.as_bytes()).map_or(path, |slash| &path[slash + 1..])
}

/// An image_path without its extension: `a/b.c.jpg` is `a/b.c`. A name that only begins with a dot keeps it.
fn stem(image_path: &str) -> &str {
    let name = image_path.rfind('/').map_or(0, |slash| slash + 1);
    match image_path[name..].rfind('.') {
        Some(dot) if dot > 0 && &image_path[name..] != ".." => &image_path[..name + dot],
        _ => image_path,
    }
}

/// In Unicode's composed form (NFC).
pub fn composed(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc(text) { text.into() } else { text.nfc().collect() }
}

/// The id of an image that shares its stem with no other file.
pub fn image_id(image_path: &str) -> Cow<'_, str> {
    composed(stem(image_path))
}

/// The ids of the files of one folder: a file's id depends on the names beside it and on nothing else.
#[derive(Debug, Default)]
pub struct FolderIds {
    /// Names whose file does not have its stem, with the part of its id behind the folder.
    other: HashMap<String, String>,
}

impl FolderIds {
    /// From the names of the files in a folder, as the last parts of their image_paths, in the order of the list.
    pub fn new<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let called = |name: &str| without_extension(name) != name;
        let mut ids = Self::default();
        // Files under other names may be no images, so they take no stem from one, nor from each other; their whole names are theirs.
        let others: Vec<&str> = names.clone().filter(|name| !called(name)).collect();
        let mut taken: HashSet<Cow<str>> = others.iter().map(|name| composed(name)).collect();
        for name in names.filter(|name| called(name)) {
            ids.settle(name, &mut taken);
        }
        let mut count: HashMap<Cow<str>, u32> = HashMap::default();
        others.iter().for_each(|name| *count.entry(image_id(name)).or_default() += 1);
        for name in others {
            let (id, whole) = (image_id(name), composed(name));
            if id != whole && (count[&id] > 1 || taken.contains(&id)) {
                ids.other.insert(name.into(), whole.into_owned());
            }
        }
        ids
    }

    /// The stem where it is free, else the whole name, which is free but for its composed form.
    fn settle<'a>(&mut self, name: &'a str, taken: &mut HashSet<Cow<'a, str>>) {
        if taken.insert(image_id(name)) {
            return;
        }
        let whole = composed(name);
        let whole = if taken.contains(&whole) { name.into() } else { whole };
        self.other.insert(name.into(), whole.clone().into_owned());
        taken.insert(whole);
    }

    /// The id of the file with this image_path, which lies in the folder.
    pub fn of(&self, image_path: &str) -> String {
        let name = last_part(image_path);
        match self.other.get(name) {
            Some(other) => composed(&image_path[..image_path.len() - name.len()]).into_owned() + other,
            None => image_id(image_path).into_owned(),
        }
    }
}

/// What a file's id may be, as far as that is decided by its name: files that share none of these with another decide nothing of each other's ids.
pub fn keys(name: &str) -> Vec<Cow<'_, str>> {
    let (stem, whole) = (image_id(name), composed(name));
    if stem == whole { vec![whole] } else { vec![stem, whole] }
}

/// The ids of image_paths in listing order, where a whole list is at hand.
pub fn ids_of<'a>(image_paths: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let mut folders: HashMap<&str, Vec<&str>> = HashMap::default();
    let folder = |path: &'a str| &path[..path.len() - last_part(path).len()];
    for path in image_paths.clone() {
        folders.entry(folder(path)).or_default().push(last_part(path));
    }
    let ids: HashMap<&str, FolderIds> =
        folders.into_iter().map(|(folder, names)| (folder, FolderIds::new(names.iter().copied()))).collect();
    image_paths.map(|path| ids[folder(path)].of(path)).collect()
}

/// The normal form of what a caption file calls an image. Applied twice it changes nothing.
pub fn normal(reference: &str) -> Cow<'_, str> {
    if is_plain(reference) {
        return reference.into();
    }
    let mut text = without_place(reference);
    if text.contains('\\') {
        text = text.replace('\\', "/").into();
    }
    let relative: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let relative = relative.join("/");
    let whole = whole_number(&relative).unwrap_or(&relative);
    Cow::Owned(composed(&encoded(whole, Percent::MayBeEncoded)).into_owned())
}

/// Nothing in it that the normal form changes: decided by bytes, since nearly all references are so.
fn is_plain(reference: &str) -> bool {
    let bytes = reference.as_bytes();
    let odd = |&b: &u8| !(0x21..0x7f).contains(&b) && b != b' ' || matches!(b, b'\\' | b'%' | b':' | b'?');
    if bytes.iter().any(odd) {
        return false;
    }
    let edges = matches!(bytes.first(), Some(b'/' | b'.')) || matches!(bytes.last(), Some(b'/' | b'.'));
    !edges && !reference.contains("//") && !reference.contains("/./") && whole_number(reference).is_none()
}

/// `391895` of `391895.0`, as tables of floats write an id.
pub fn whole_number(text: &str) -> Option<&str> {
    let (number, rest) = text.split_once('.')?;
    let is_whole = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (is_whole && !rest.is_empty() && rest.bytes().all(|b| b == b'0')).then_some(number)
}

/// Without a URL's scheme, host and query, and decoded where it is one; without a Windows drive.
fn without_place(reference: &str) -> Cow<'_, str> {
    if let Some((scheme, rest)) = reference.split_once("://")
        && (2..=8).contains(&scheme.len())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        let path = rest.split_once('/').map_or(rest, |(_, path)| path);
        let path = path.split(['?', '#']).next().unwrap_or(path);
        return percent_decode_str(path).decode_utf8().map_or(path.into(), |decoded| decoded.into_owned().into());
    }
    match reference.as_bytes() {
        [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic() => reference[3..].into(),
        _ => reference.into(),
    }
}

/// Without `/` and `./` in front.
fn without_start(mut path: &str) -> &str {
    while let Some(rest) = path.strip_prefix("./").or_else(|| path.strip_prefix('/')) {
        path = rest;
    }
    path
}

/// What a `%` in a text means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Percent {
    /// Itself.
    Itself,
    /// The mark of an encoded byte where it is one that image_paths encode.
    MayBeEncoded,
}

/// A text as image_paths are written: `\`, `%` and control characters percent-encoded.
fn encoded(text: &str, percent: Percent) -> Cow<'_, str> {
    let is_odd = |c: char| matches!(c, '\\' | '%') || c.is_control();
    if !text.contains(is_odd) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for (at, c) in text.char_indices() {
        let stays = c == '%' && percent == Percent::MayBeEncoded && is_encoded_byte(&text.as_bytes()[at..]);
        if is_odd(c) && !stays {
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            bytes.iter().for_each(|&byte| out.push_str(percent_encoding::percent_encode_byte(byte)));
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// `%XX` of a byte that image_paths encode: others are a `%` and two letters.
fn is_encoded_byte(text: &[u8]) -> bool {
    let digit = |at: usize| text.get(at).and_then(|&b| char::from(b).to_digit(16));
    let Some(byte) = digit(1).zip(digit(2)).map(|(high, low)| high * 16 + low) else { return false };
    !(0x20..0x7f).contains(&byte) || byte == u32::from(b'%') || byte == u32::from(b'\\')
}

/// What a reference may be written as in a list of image_paths, best first: as it is (an image_path), as the file is called (`%` and `\` are part of
/// its name), in its normal form, and as a text that some tool has percent-encoded whole.
pub fn spellings(reference: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let plain = is_plain(reference);
    let others = (!plain).then(|| {
        let named = encoded(without_start(reference), Percent::Itself).into_owned();
        let decoded = percent_decode_str(reference).decode_utf8().ok();
        let decoded = decoded.filter(|decoded| *decoded != reference).map(|decoded| normal(&decoded).into_owned());
        [Some(named), Some(normal(reference).into_owned()), decoded].into_iter().flatten().map(Cow::Owned)
    });
    std::iter::once(Cow::Borrowed(without_start(reference))).chain(others.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_a_path_without_its_extension() {
        for (path, id) in [
            ("a/b.c.jpg", "a/b.c"),
            ("a.b/c", "a.b/c"),
            ("a/.jpg", "a/.jpg"),
            ("x.", "x"),
            ("..", ".."),
            ("猫.png", "猫"),
            ("cafe\u{301}.png", "caf\u{e9}"),
            ("50%25.png", "50%25"),
        ] {
            assert_eq!(image_id(path), id);
        }
    }

    #[test]
    fn only_extensions_of_images_come_off() {
        assert_eq!(without_extension("a.b/1.v2.JPEG"), "a.b/1.v2");
        assert_eq!(without_extension("v1.2"), "v1.2");
        assert_eq!(without_extension(".jpg"), ".jpg");
    }

    #[test]
    fn files_of_a_folder_that_share_a_stem_have_ids_of_their_own() {
        let ids = |paths: &[&str]| ids_of(paths.iter().copied());
        assert_eq!(ids(&["a.jpg", "a.png", "s/a.png"]), ["a", "a.png", "s/a"]);
        assert_eq!(ids(&["b.JPG", "b.jpg"]), ["b", "b.jpg"]);
        assert_eq!(ids(&["a.json", "a.png", "a.txt"]), ["a.json", "a", "a.txt"]);
        assert_eq!(ids(&["a.jpg", "a.png", "a.png.jpg"]), ["a", "a.png", "a.png.jpg"]);
        assert_eq!(ids(&["d/photo", "d/x.dat"]), ["d/photo", "d/x"]);
        assert_eq!(ids(&["photo", "photo.jpg"]), ["photo", "photo.jpg"]);
        assert_eq!(ids(&["cafe\u{301}.png", "caf\u{e9}.png"]), ["caf\u{e9}", "caf\u{e9}.png"]);
        assert_eq!(ids(&["cafe\u{301}.jpg", "cafe\u{301}.png", "caf\u{e9}.png"]).len(), 3);
    }

    #[test]
    fn references_have_one_normal_form() {
        for (reference, expected) in [
            ("a/b.jpg", "a/b.jpg"),
            ("./a//b.jpg", "a/b.jpg"),
            ("/data/b.jpg", "data/b.jpg"),
            ("imgs\\a b\\1.png", "imgs/a b/1.png"),
            ("D:\\data\\c\\1.png", "data/c/1.png"),
            (".\\a\\2.png", "a/2.png"),
            ("50%.png", "50%25.png"),
            ("50%25.png", "50%25.png"),
            ("100%41.png", "100%2541.png"),
            ("cafe\u{301}", "caf\u{e9}"),
            ("391895.0", "391895"),
            ("1.50", "1.50"),
            ("file:///data/a%20b/1.png", "data/a b/1.png"),
            ("https://example.org/x/1.png?size=big", "x/1.png"),
            ("a:b.png", "a:b.png"),
        ] {
            assert_eq!(normal(reference), expected, "{reference}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_final(text in "[%0-9A-F\\\\./:?é猫e ]{0,10}") {
            let once = normal(&text).into_owned();
            prop_assert_eq!(normal(&once), once.clone());
        }

        #[test]
        fn ids_of_a_folder_differ(names in proptest::collection::btree_set("[ab]{1,2}(\\.(jpg|png|dat|JPG)){0,2}", 0..12)) {
            let ids = ids_of(names.iter().map(String::as_str));
            let called = |name: &&String| without_extension(name) != name.as_str();
            let different: std::collections::BTreeSet<&String> =
                names.iter().zip(&ids).filter(|(name, _)| called(name)).map(|(_, id)| id).collect();
            prop_assert_eq!(different.len(), names.iter().filter(called).count());
        }
    }
}
