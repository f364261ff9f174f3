//! What a file is that is not read: its name, for the reader of the errors table.

use std::path::Path;

/// Extensions of camera raw.
const RAW_EXTENSIONS: [&str; 24] = [
    "dng", "nef", "nrw", "cr2", "cr3", "crw", "arw", "srf", "sr2", "orf", "rw2", "rwl", "raf", "pef", "srw", "3fr", "iiq", "x3f",
    "mrw", "kdc", "dcr", "mef", "erf", "mos",
];

/// Whether a file's name says that it is camera raw.
pub(super) fn called_camera_raw(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| RAW_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// The kind of camera raw that a file's first bytes show, where it is not TIFF.
pub(super) fn camera_raw(head: &[u8]) -> Option<&'static str> {
    let begins = |magic: &[u8]| head.starts_with(magic);
    let kinds: [(&[u8], &str); 9] = [
        (b"FUJIFILMCCD-RAW", "RAF"),
        (b"IIU\0", "RW2"),
        (b"IIRO", "ORF"),
        (b"IIRS", "ORF"),
        (b"MMOR", "ORF"),
        (b"FOVb", "X3F"),
        (b"\0MRM", "MRW"),
        (b"II\x1a\0\0\0HEAPCCDR", "CRW"),
        (b"MM\0\x1a\0\0HEAPCCDR", "CRW"),
    ];
    let known = kinds.iter().find(|(magic, _)| begins(magic)).map(|&(_, name)| name);
    known.or_else(|| brands(head).any(|brand| brand == b"crx ").then_some("CR3"))
}

/// The brands of an ISO media file, the first of them its own; none for other files.
pub(super) fn brands(head: &[u8]) -> impl Iterator<Item = &[u8; 4]> {
    let is_media = head.get(4..8) == Some(b"ftyp");
    let length = head.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize).min(256).min(head.len());
    let list = if is_media && length >= 12 { &head[8..length] } else { &[] };
    // The second place holds a version.
    list.as_chunks::<4>().0.iter().enumerate().filter(|&(n, _)| n != 1).map(|(_, brand)| brand)
}

/// The name of a format that is known and not read.
pub(super) fn name(bytes: &[u8]) -> Option<&'static str> {
    let formats: [(&[u8], &str); 21] = [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xFF\x4F\xFF\x51", "JPEG 2000"),
        (b"8BPS", "Photoshop (PSD)"),
        (b"II\xBC", "JPEG XR"),
        (b"DDS ", "DDS"),
        (b"qoif", "QOI"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?R", "Radiance HDR"),
        (b"icns", "Apple icons (ICNS)"),
        (b"\0\0\x01\0", "icons (ICO)"),
        (b"\0\0\x02\0", "cursors (CUR)"),
        (b"%!PS", "PostScript"),
        (b"\xC5\xD0\xD3\xC6", "PostScript"),
        (b"%PDF", "PDF"),
        (b"\xD7\xCD\xC6\x9A", "Windows metafile (WMF)"),
        (b"BPG\xFB", "BPG"),
        (b"FLIF", "FLIF"),
        (b"gimp xcf", "GIMP (XCF)"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "gzip data"),
        (b"\xD0\xCF\x11\xE0", "a Microsoft compound file"),
    ];
    if let Some((_, name)) = formats.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(name);
    }
    const HEIF: [&[u8; 4]; 9] = [b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1"];
    if brands(bytes).any(|brand| [b"avif", b"avis"].contains(&brand)) {
        return Some("AVIF");
    }
    if brands(bytes).any(|brand| HEIF.contains(&brand)) {
        return Some("HEIC");
    }
    if brands(bytes).next().is_some() {
        return Some("a video or another ISO media file");
    }
    if matches!(bytes, [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..]) {
        return Some("a portable bitmap (PNM)");
    }
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).trim_ascii_start();
    let begins = |tag: &str| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes()));
    if begins("<!doctype html") || begins("<html") {
        return Some("an HTML page (a failed download?)");
    }
    let has_svg = || memchr::memmem::find(&text[..text.len().min(1024)], b"<svg").is_some();
    if begins("<svg") || (begins("<?xml") && has_svg()) {
        return Some("SVG");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_that_are_not_read_have_names() {
        assert_eq!(name(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), Some("HEIC"));
        assert_eq!(name(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"), Some("AVIF"));
        assert_eq!(name(b"\0\0\0\x18ftypisom\0\0\0\0isomiso2"), Some("a video or another ISO media file"));
        assert_eq!(name(b"  <!DOCTYPE HTML><html>"), Some("an HTML page (a failed download?)"));
        assert_eq!(name(b"<?xml version=\"1.0\"?>\n<svg/>"), Some("SVG"));
        assert_eq!(name(b"hello"), None);
        assert_eq!(camera_raw(b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom"), Some("CR3"));
        assert_eq!(camera_raw(b"FUJIFILMCCD-RAW 0201"), Some("RAF"));
        assert!(called_camera_raw(Path::new("a.NEF")) && !called_camera_raw(Path::new("a.jpg")));
    }
}
