//! What a file is: by the bytes it begins with, and by the name it goes under.

use std::fmt;
use std::path::Path;

use super::foreign::called_camera_raw;
use crate::remote;

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Baseline, progressive, CMYK.
    Jpeg,
    /// Apple's CgBI variant is refused.
    Png,
    /// The first frame.
    Gif,
    /// Lossy or lossless; of an animation the first frame.
    WebP,
    /// Windows' and OS/2's.
    Bmp,
    /// The first page.
    Tiff,
    /// JPEG XL, bare or in a container.
    Jxl,
}

impl Format {
    /// The name that messages have.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Jxl => "JPEG XL",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

const JPEG: &[u8] = b"\xFF\xD8\xFF";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// JPEG XL in its container; the two bytes that it begins with elsewhere are believed where the name helps.
const JXL: &[u8] = b"\0\0\0\x0cJXL \r\n\x87\n";

/// How many bytes [`sniff`] looks at.
pub(super) const SNIFFED_BYTES: usize = 32;

/// The format a file's first bytes (32 are enough) claim. The two letters of BMP are too little to believe alone: a plausible
/// header must follow them.
pub fn sniff(head: &[u8]) -> Option<Format> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(0, JPEG) {
        Some(Format::Jpeg)
    } else if at(0, PNG) {
        Some(Format::Png)
    } else if at(0, b"GIF87a") || at(0, b"GIF89a") {
        Some(Format::Gif)
    } else if at(0, b"RIFF") && at(8, b"WEBP") {
        Some(Format::WebP)
    } else if at(0, b"II*\0") || at(0, b"MM\0*") || at(0, b"II+\0\x08\0\0\0") || at(0, b"MM\0+\0\x08\0\0") {
        Some(Format::Tiff)
    } else if at(0, JXL) {
        Some(Format::Jxl)
    } else if at(0, b"BM") && plausible_bmp(head) {
        Some(Format::Bmp)
    } else {
        None
    }
}

/// Sizes of the information headers that BMP has had.
fn plausible_bmp(head: &[u8]) -> bool {
    let size = head.get(14..18).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    matches!(size, Some(12 | 16 | 40 | 52 | 56 | 64 | 108 | 124))
}

/// A bitmap without its file header: the size of a header, one plane, a number of bits that there is.
fn plausible_dib(bytes: &[u8]) -> bool {
    let numbers =
        bytes.get(12..16).map(|bytes| [u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]])]);
    bytes.starts_with(&[40, 0, 0, 0]) && matches!(numbers, Some([1, 1 | 4 | 8 | 16 | 24 | 32]))
}

/// The format a whole file claims that is called an image: [`sniff`], and also a file so short that its magic is cut off.
pub(super) fn sniff_named(bytes: &[u8]) -> Option<Format> {
    let cut_from = |magic: &[u8], at_least: usize| bytes.len() >= at_least && magic.starts_with(bytes);
    sniff(bytes).or_else(|| {
        if cut_from(JPEG, 1) {
            Some(Format::Jpeg)
        } else if cut_from(PNG, 1) {
            Some(Format::Png)
        } else if cut_from(b"GIF87a", 3) || cut_from(b"GIF89a", 3) {
            Some(Format::Gif)
        } else if bytes.len() < 12 && bytes.starts_with(b"RIFF") {
            Some(Format::WebP)
        } else if bytes.len() < 18 && bytes.starts_with(b"BM") {
            Some(Format::Bmp)
        } else if cut_from(b"II*\0", 3) || cut_from(b"MM\0*", 3) || bytes.starts_with(b"MM*\0") || bytes.starts_with(b"II\0*") {
            Some(Format::Tiff)
        } else if bytes.starts_with(b"\xFF\x0A") || cut_from(JXL, 5) {
            Some(Format::Jxl)
        } else if plausible_dib(bytes) {
            Some(Format::Bmp)
        } else {
            None
        }
    })
}

/// Extensions of images, read or not: someone whose folder holds photos of another kind wants to hear that they were left out.
const EXTENSIONS: [&str; 21] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "bmp", "dib", "tif", "tiff", "heic", "heif", "hif", "avif",
    "jxl", "jp2", "j2k", "jpf", "jpx",
];

/// Whether a file's name says that it is an image (by extension, upper or lower case).
pub fn called_an_image(path: &Path) -> bool {
    if remote::is_web(path) {
        // What is behind `?` is no part of the name.
        return called_an_image_here(Path::new(&remote::shown(path)));
    }
    called_an_image_here(path)
}

fn called_an_image_here(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let known = |extension: &str| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
    extension.is_some_and(known) || called_camera_raw(path)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn formats_are_told_by_content() {
        assert_eq!(sniff(b"\xFF\xD8\xFF\xE0\0\x10JFIF"), Some(Format::Jpeg));
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), Some(Format::Png));
        assert_eq!(sniff(b"GIF89a\x01\0"), Some(Format::Gif));
        assert_eq!(sniff(b"RIFF\x24\0\0\0WEBPVP8 "), Some(Format::WebP));
        assert_eq!(sniff(b"II*\0\x08\0\0\0"), Some(Format::Tiff));
        assert_eq!(sniff(b"MM\0*\0\0\0\x08"), Some(Format::Tiff));
        assert_eq!(sniff(b"RIFF\x24\0\0\0WAVEfmt "), None);
        assert_eq!(sniff(b""), None);
    }

    #[test]
    fn text_that_begins_with_bm_is_no_bmp() {
        let mut bmp = b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        assert_eq!(sniff(&bmp), Some(Format::Bmp));
        assert_eq!(sniff(b"BMW drives through the rain and nobody sees it"), None);
        bmp.truncate(10);
        assert_eq!(sniff(&bmp), None);
        assert_eq!(sniff_named(&bmp), Some(Format::Bmp));
    }

    #[test]
    fn a_cut_magic_counts_only_where_the_name_helps() {
        assert_eq!(sniff(b"\x89PN"), None);
        assert_eq!(sniff_named(b"\x89PN"), Some(Format::Png));
        assert_eq!(sniff_named(b"RIFF\x24\0"), Some(Format::WebP));
        assert_eq!(sniff_named(b"G"), None);
        assert_eq!(sniff_named(b"hello"), None);
    }

    #[test]
    fn names_of_images() {
        for name in ["a.jpg", "a.JPeG", "b.c.PNG", "x.tif", "中.webp", "i.heic"] {
            assert!(called_an_image(Path::new(name)), "{name}");
        }
        assert!(called_an_image(Path::new("https://h/a.jpg?X-Amz-Credential=a/b")));
        assert!(!called_an_image(Path::new("https://h/a?b=c.jpg")) && !called_an_image(Path::new("s3://b/a.jpg?b")));
        for name in ["jpg", ".jpg", "a.jpg.txt", "a.svg", "a", "a.jpg "] {
            assert!(!called_an_image(Path::new(name)), "{name}");
        }
        assert!(called_an_image(Path::new(OsStr::from_bytes(b"\xFF\xFE.jpg"))));
    }
}
