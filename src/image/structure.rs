//! What containers say without a decoder: how large the picture is, and whether the file reaches its own end.
//!
//! Decoders want more than the size before they tell it, stop at the last pixel, or call a cut stream damaged.

use super::jpeg::segments::next_segment;
use super::sniff::Format;

/// The size near the beginning of the file, for formats that have it in one place, however little follows it.
pub(super) fn declared_size(format: Format, bytes: &[u8]) -> Option<(u32, u32)> {
    match format {
        Format::Png => {
            let [w, x, y, z, size @ ..] = *bytes.get(16..24)?.first_chunk::<8>()?;
            Some((u32::from_be_bytes([w, x, y, z]), u32::from_be_bytes(size)))
        }
        Format::Jpeg => {
            let mut at = 2;
            loop {
                let segment = next_segment(bytes, at)?;
                if matches!(segment.marker, 0xC0..=0xC2) {
                    let &[_, w, x, y, z] = segment.payload.first_chunk()?;
                    return Some((u16::from_be_bytes([y, z]).into(), u16::from_be_bytes([w, x]).into()));
                }
                at = segment.end;
            }
        }
        Format::Gif | Format::WebP | Format::Bmp | Format::Tiff | Format::Jxl => None,
    }
}

/// Whether the container breaks off before the place where it says it ends. Formats without such a place never do.
pub(super) fn ends_early(format: Format, bytes: &[u8]) -> bool {
    match format {
        Format::Png => !png_reaches_end(bytes),
        Format::WebP => match bytes.get(4..8).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes) {
            Some(size) => (bytes.len() as u64) < u64::from(size) + 8,
            None => true,
        },
        Format::Jpeg | Format::Gif | Format::Bmp | Format::Tiff | Format::Jxl => false,
    }
}

/// Walks the chunks up to `IEND` and its checksum; where the walk loses its way, the end may be there all the same.
fn png_reaches_end(bytes: &[u8]) -> bool {
    const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";
    let mut at = 8;
    while let Some((length, rest)) = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<4>()) {
        match at.checked_add(12 + u32::from_be_bytes(*length) as usize) {
            Some(next) if next <= bytes.len() => {
                if rest.starts_with(b"IEND") {
                    return true;
                }
                at = next;
            }
            _ => break,
        }
    }
    memchr::memmem::find(bytes, END).is_some()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, RgbImage};

    use super::*;

    #[test]
    fn every_cut_is_an_early_end() {
        let image = RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 5, y as u8 * 7, (x * y) as u8]));
        for (format, kind) in [(Format::Png, ImageFormat::Png), (Format::WebP, ImageFormat::WebP)] {
            let mut file = Cursor::new(Vec::new());
            image.write_to(&mut file, kind).unwrap();
            let file = file.into_inner();
            assert!(!ends_early(format, &file), "{format}");
            for length in 0..file.len() {
                assert!(ends_early(format, &file[..length]), "{format} cut at {length} of {}", file.len());
            }
        }
    }
}
