//! Which way up a picture is, as Pillow's `exif_transpose` finds it, in every container that can say so.
//!
//! Broken metadata does not spoil a picture: what cannot be read says nothing.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;

use super::jpeg::segments::{APP1, SOS, next_segment};
use super::sniff::Format;

const TAG_ORIENTATION: u16 = 0x0112;
const TAG_XMP: u16 = 700;

/// What a text chunk may unpack to, as in Pillow.
const MAX_TEXT: u64 = 1 << 20;

/// The orientation that a whole file asks for.
pub(super) fn orientation(format: Format, bytes: &[u8]) -> Orientation {
    let metadata = match format {
        Format::Jpeg => of_jpeg(bytes),
        Format::Png => of_png(bytes),
        Format::WebP => of_webp(bytes),
        Format::Tiff => return turned(of_tiff(bytes)),
        _ => return Orientation::NoTransforms,
    };
    metadata.orientation()
}

/// The blocks that may name an orientation.
#[derive(Default)]
pub(super) struct Metadata<'a> {
    /// A TIFF structure, with or without `Exif\0\0` before it.
    pub exif: Option<Cow<'a, [u8]>>,
    pub xmp: Option<Cow<'a, [u8]>>,
}

impl Metadata<'_> {
    /// EXIF's, or XMP's where EXIF has none.
    pub fn orientation(&self) -> Orientation {
        let exif = self.exif.as_deref().and_then(in_exif);
        turned(exif.or_else(|| self.xmp.as_deref().and_then(in_xmp)))
    }
}

/// A number beyond 2 to 8 turns nothing, and neither does half of one.
fn turned(value: Option<f64>) -> Orientation {
    let number = value.filter(|value| (1.0..=8.0).contains(value) && value.fract() == 0.0);
    number.and_then(|number| Orientation::from_exif(number as u8)).unwrap_or(Orientation::NoTransforms)
}

fn in_exif(exif: &[u8]) -> Option<f64> {
    // Some writers put the prefix where only its content belongs, and some put it twice.
    let exif = exif.strip_prefix(PREFIX).unwrap_or(exif);
    Directory::first(exif.strip_prefix(PREFIX).unwrap_or(exif))?.number(TAG_ORIENTATION)
}

const PREFIX: &[u8] = b"Exif\0\0";

/// `tiff:Orientation` as an attribute or an element.
fn in_xmp(xmp: &[u8]) -> Option<f64> {
    const NAME: &[u8] = b"tiff:Orientation";
    memchr::memmem::find_iter(xmp, NAME).find_map(|at| {
        let rest = &xmp[at + NAME.len()..];
        let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        digit.is_ascii_digit().then(|| f64::from(digit - b'0'))
    })
}

/// A file's own first directory; of XMP the packet it holds.
fn of_tiff(bytes: &[u8]) -> Option<f64> {
    let directory = Directory::first(bytes)?;
    directory.number(TAG_ORIENTATION).or_else(|| in_xmp(directory.find(TAG_XMP)?.1))
}

/// All `Exif` segments before the first scan are one block; the last XMP packet counts.
fn of_jpeg(bytes: &[u8]) -> Metadata<'_> {
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let mut metadata = Metadata::default();
    let mut at = 2;
    while let Some(segment) = next_segment(bytes, at) {
        at = segment.end;
        match segment.marker {
            SOS => break,
            APP1 => {
                if let Some(exif) = segment.payload.strip_prefix(PREFIX) {
                    match &mut metadata.exif {
                        Some(begun) => begun.to_mut().extend_from_slice(exif),
                        none => *none = Some(exif.into()),
                    }
                } else if let Some(xmp) = segment.payload.strip_prefix(XMP) {
                    metadata.xmp = Some(xmp.into());
                }
            }
            _ => {}
        }
    }
    metadata
}

/// Chunks before and behind the pixels alike: `eXIf`, ImageMagick's raw profile as text where there is none, and XMP.
fn of_png(bytes: &[u8]) -> Metadata<'_> {
    let mut metadata = Metadata::default();
    let mut profile = None;
    for (kind, data) in png_chunks(bytes) {
        if kind == b"eXIf" {
            metadata.exif = Some(data.into());
            continue;
        }
        let Some((key, text)) = png_text(kind, data) else { continue };
        match key {
            b"exif" => metadata.exif = Some(text),
            b"Raw profile type exif" => profile = raw_profile(&text),
            b"XML:com.adobe.xmp" => metadata.xmp = Some(text),
            _ => {}
        }
    }
    if metadata.exif.is_none() {
        metadata.exif = profile.map(Cow::from);
    }
    metadata
}

fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 8usize;
    std::iter::from_fn(move || {
        let (length, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let (kind, rest) = rest.split_at_checked(4)?;
        at = at.checked_add(length)?.checked_add(12)?;
        Some((kind, rest.get(..length)?))
    })
}

/// Keyword and text of `tEXt`, `zTXt` and `iTXt`.
fn png_text<'a>(kind: &[u8], data: &'a [u8]) -> Option<(&'a [u8], Cow<'a, [u8]>)> {
    let cut = |data: &'a [u8]| -> Option<(&'a [u8], &'a [u8])> {
        let end = memchr::memchr(0, data)?;
        Some((&data[..end], &data[end + 1..]))
    };
    let (key, rest) = match kind {
        b"tEXt" | b"zTXt" | b"iTXt" => cut(data)?,
        _ => return None,
    };
    let text = match kind {
        b"tEXt" => rest.into(),
        b"zTXt" => inflated(rest.strip_prefix(&[0])?)?,
        _ => {
            let (&[compressed, method], rest) = rest.split_first_chunk::<2>()?;
            let (_language, rest) = cut(rest)?;
            let (_translated, text) = cut(rest)?;
            match (compressed, method) {
                (0, _) => text.into(),
                (_, 0) => inflated(text)?,
                _ => return None,
            }
        }
    };
    Some((key, text))
}

fn inflated<'a>(data: &[u8]) -> Option<Cow<'a, [u8]>> {
    let mut text = Vec::new();
    ZlibDecoder::new(data).take(MAX_TEXT + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MAX_TEXT).then(|| text.into())
}

/// Hexadecimal digits behind three lines: an empty one, the profile's name and its length.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let mut digits = text.splitn(4, |&byte| byte == b'\n').nth(3)?.iter().filter(|byte| !byte.is_ascii_whitespace());
    let mut bytes = Vec::new();
    while let Some(&high) = digits.next() {
        let pair = [high, *digits.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
    }
    Some(bytes)
}

/// Chunks that the extended header announces.
fn of_webp(bytes: &[u8]) -> Metadata<'_> {
    const HAS_XMP: u8 = 4;
    const HAS_EXIF: u8 = 8;
    let mut metadata = Metadata::default();
    let Some(&flags) = bytes.get(20).filter(|_| bytes.get(12..16) == Some(b"VP8X")) else { return metadata };
    let mut at = 12usize;
    while let Some((head, rest)) = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<8>()) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some(data) = rest.get(..length) else { break };
        match &head[..4] {
            b"EXIF" if flags & HAS_EXIF != 0 && metadata.exif.is_none() => metadata.exif = Some(data.into()),
            b"XMP " if flags & HAS_XMP != 0 && metadata.xmp.is_none() => metadata.xmp = Some(data.into()),
            _ => {}
        }
        at += 8 + length + length % 2;
    }
    metadata
}

/// A directory of a TIFF structure.
struct Directory<'a> {
    bytes: &'a [u8],
    at: usize,
    little: bool,
    big: bool,
}

impl<'a> Directory<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.first_chunk::<4>()?;
        let (little, big) = match head {
            b"II*\0" | b"II\0*" => (true, false),
            b"MM\0*" | b"MM*\0" => (false, false),
            b"II+\0" => (true, true),
            b"MM\0+" => (false, true),
            _ => return None,
        };
        let mut directory = Self { bytes, at: 0, little, big };
        directory.at = if big { directory.word(8, 8)? } else { directory.word(4, 4)? } as usize;
        Some(directory)
    }

    /// The number in `width` bytes at an offset.
    fn word(&self, at: usize, width: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(width)?)?;
        Some(number(bytes, self.little))
    }

    /// Type and bytes of a tag's first entry that can be read.
    fn find(&self, tag: u16) -> Option<(u16, &'a [u8])> {
        let (count_width, entry_width, value_width) = if self.big { (8, 20, 8) } else { (2, 12, 4) };
        let begin = self.at.checked_add(count_width)?;
        for index in 0..self.word(self.at, count_width)? {
            let at = usize::try_from(index).ok()?.checked_mul(entry_width)?.checked_add(begin)?;
            // Beyond the end there is nothing more.
            self.bytes.get(at..at.checked_add(entry_width)?)?;
            if self.word(at, 2)? != u64::from(tag) {
                continue;
            }
            let kind = self.word(at + 2, 2)? as u16;
            let size = unit(kind).and_then(|unit| self.word(at + 4, value_width)?.checked_mul(unit));
            let Some(size) = size.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0) else { continue };
            let value = at + 4 + value_width;
            let place = if size <= value_width { value } else { self.word(value, value_width)? as usize };
            let Some(data) = place.checked_add(size).and_then(|end| self.bytes.get(place..end)) else { continue };
            return Some((kind, data));
        }
        None
    }

    /// A tag's first number; what is no number (bytes, text) is there and says nothing.
    fn number(&self, tag: u16) -> Option<f64> {
        let (kind, data) = self.find(tag)?;
        let data = data.get(..unit(kind)? as usize)?;
        let raw = number(data, self.little);
        let half = |at: usize| number(&data[at..at + 4], self.little);
        Some(match kind {
            3 | 4 | 13 | 16 => raw as f64,
            5 => half(0) as f64 / half(4) as f64,
            6 => f64::from(raw as u8 as i8),
            8 => f64::from(raw as u16 as i16),
            9 => f64::from(raw as u32 as i32),
            10 => f64::from(half(0) as u32 as i32) / f64::from(half(4) as u32 as i32),
            11 => f64::from(f32::from_bits(raw as u32)),
            12 => f64::from_bits(raw),
            _ => f64::NAN,
        })
    }
}

fn number(bytes: &[u8], little: bool) -> u64 {
    let add = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
    if little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
}

/// Bytes of a value of a type.
fn unit(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One directory of one entry; `value` is what stands in its four bytes, or behind the directory.
    fn tiff(little: bool, kind: u16, count: u32, value: &[u8]) -> Vec<u8> {
        let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut file = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        file.extend(long(8));
        file.extend(short(1));
        file.extend(short(TAG_ORIENTATION));
        file.extend(short(kind));
        file.extend(long(count));
        if value.len() <= 4 {
            file.extend(value);
            file.resize(file.len() + 4 - value.len(), 0);
        } else {
            file.extend(long(26));
        }
        file.extend([0; 4]);
        if value.len() > 4 {
            file.extend(value);
        }
        file
    }

    fn exif(block: Vec<u8>) -> Orientation {
        Metadata { exif: Some(block.into()), xmp: None }.orientation()
    }

    /// Values as Pillow 13 turns them.
    #[test]
    fn every_type_of_number_counts_and_bytes_and_text_do_not() {
        let six = Orientation::Rotate90;
        let none = Orientation::NoTransforms;
        let of = |kind, value: &[u8]| (exif(tiff(true, kind, 1, value)), kind);
        assert_eq!(of(1, &[6]), (none, 1));
        assert_eq!(of(2, b"6"), (none, 2));
        assert_eq!(of(3, &[6, 0]), (six, 3));
        assert_eq!(of(4, &[6, 0, 0, 0]), (six, 4));
        assert_eq!(of(5, &[12, 0, 0, 0, 2, 0, 0, 0]), (six, 5));
        assert_eq!(of(5, &[13, 0, 0, 0, 2, 0, 0, 0]), (none, 5));
        assert_eq!(of(5, &[6, 0, 0, 0, 0, 0, 0, 0]), (none, 5));
        assert_eq!(of(6, &[6]), (six, 6));
        assert_eq!(of(7, &[6]), (none, 7));
        assert_eq!(of(8, &[6, 0]), (six, 8));
        assert_eq!(of(9, &[6, 0, 0, 0]), (six, 9));
        assert_eq!(of(10, &[6, 0, 0, 0, 1, 0, 0, 0]), (six, 10));
        assert_eq!(of(11, &6f32.to_le_bytes()), (six, 11));
        assert_eq!(of(12, &6f64.to_le_bytes()), (six, 12));
        assert_eq!(of(99, &[6]), (none, 99));
        assert_eq!(exif(tiff(false, 4, 1, &[0, 0, 0, 8])), Orientation::Rotate270);
        assert_eq!(exif(tiff(false, 3, 2, &[0, 3, 0, 6])), Orientation::Rotate180);
        for value in [0, 1, 9, 255] {
            assert_eq!(of(3, &[value, 0]), (none, 3));
        }
    }

    #[test]
    fn prefixes_are_skipped_up_to_twice() {
        let block = tiff(true, 3, 1, &[6, 0]);
        let prefixed = |times| exif([PREFIX.repeat(times), block.clone()].concat());
        assert_eq!([0, 1, 2].map(prefixed), [Orientation::Rotate90; 3]);
        assert_eq!(prefixed(3), Orientation::NoTransforms);
    }

    #[test]
    fn xmp_counts_where_exif_says_nothing() {
        let of = |exif: Option<Vec<u8>>, xmp: &str| {
            Metadata { exif: exif.map(Cow::from), xmp: Some(xmp.as_bytes().into()) }.orientation()
        };
        assert_eq!(of(None, r#"<rdf:Description tiff:Orientation="6"/>"#), Orientation::Rotate90);
        assert_eq!(of(None, "tiff:Orientation= <tiff:Orientation>3</tiff:Orientation>"), Orientation::Rotate180);
        assert_eq!(of(None, r#"tiff:Orientation="x""#), Orientation::NoTransforms);
        assert_eq!(of(Some(tiff(true, 3, 1, &[1, 0])), r#"tiff:Orientation="6""#), Orientation::NoTransforms);
        assert_eq!(of(Some(tiff(true, 99, 1, &[1, 0])), r#"tiff:Orientation="6""#), Orientation::Rotate90);
    }

    #[test]
    fn blocks_that_end_anywhere_say_nothing() {
        for block in [tiff(true, 3, 1, &[6, 0]), tiff(false, 12, 1, &6f64.to_be_bytes())] {
            for end in 0..block.len() {
                exif(block[..end].to_vec());
            }
        }
        let mut far = tiff(true, 3, 1, &[6, 0]);
        far[4..8].fill(0xFF);
        assert_eq!(exif(far), Orientation::NoTransforms);
        assert_eq!(exif(tiff(true, 5, u32::MAX, &[6, 0])), Orientation::NoTransforms);
    }
}
