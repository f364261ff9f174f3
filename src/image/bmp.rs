//! BMP, read by ourselves: OS/2's headers, files that do not say where their pixels are, runs that leave pixels out.

use image::RgbImage;

use super::decode::{Header, Limits};
use super::failure::{Failure, Reason};
use super::sniff::Format;

/// What the headers say.
struct Bitmap<'a> {
    bytes: &'a [u8],
    width: u32,
    height: u32,
    is_top_down: bool,
    bits: u32,
    packing: Packing,
    /// Bits of red, green and blue in a pixel of 16 bits or more.
    masks: [u32; 3],
    palette: [[u8; 3]; 256],
    /// Where the pixels begin.
    offset: usize,
}

#[derive(PartialEq, Eq)]
enum Packing {
    Plain,
    Runs,
}

fn truncated() -> Failure {
    Failure::new(Reason::Truncated, "BMP data ends before the picture does")
}

fn corrupt(what: &str) -> Failure {
    Failure::new(Reason::Corrupt, format!("BMP: {what}"))
}

fn unsupported(feature: &str) -> Failure {
    Failure::new(Reason::UnsupportedFormat, format!("BMP with {feature} is not read"))
}

fn open(bytes: &[u8]) -> Result<Bitmap<'_>, Failure> {
    // A clipboard's picture (DIB) has no file header.
    let base = if bytes.starts_with(b"BM") { 14 } else { 0 };
    let word = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).ok_or_else(truncated);
    let half = |at: usize| bytes.get(at..at + 2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).ok_or_else(truncated);
    let header = word(base)? as usize;
    // OS/2's second header may stop after any field.
    let field = |at: usize| if at + 4 <= header { word(base + at) } else { Ok(0) };
    let is_small = header == 12;
    if !is_small && !(16..=124).contains(&header) {
        return Err(unsupported(&format!("a header of {header} bytes")));
    }
    let (width, height, bits) = match is_small {
        true => (half(base + 4)?, half(base + 6)? as i32, half(base + 10)?),
        false => (word(base + 4)?, word(base + 8)? as i32, half(base + 14)?),
    };
    if width > i32::MAX as u32 {
        return Err(corrupt("a negative width"));
    }
    let compression = if is_small { 0 } else { field(16)? };
    let is_os2 = header == 64 || (16..40).contains(&header);
    let packing = match compression {
        0 => Packing::Plain,
        1 | 2 if bits == if compression == 1 { 8 } else { 4 } => Packing::Runs,
        3 if is_os2 => return Err(unsupported("OS/2's Huffman compression")),
        4 if is_os2 => return Err(unsupported("OS/2's runs of 24 bits")),
        3 | 6 => Packing::Plain,
        4 => return Err(unsupported("a JPEG inside")),
        5 => return Err(unsupported("a PNG inside")),
        other => return Err(unsupported(&format!("compression {other} of {bits} bits"))),
    };
    let mut after = base + header;
    let mut masks = if bits == 16 { [0x7C00, 0x3E0, 0x1F] } else { [0xFF_0000, 0xFF00, 0xFF] };
    if matches!(compression, 3 | 6) {
        let given = [word(base + 40)?, word(base + 44)?, word(base + 48)?];
        if header < 52 {
            after += if compression == 6 { 16 } else { 12 };
        }
        if given != [0; 3] {
            masks = given;
        }
    }
    let mut palette = [[0; 3]; 256];
    let entry = if is_small { 3 } else { 4 };
    let mut colours = 0;
    match bits {
        1 | 2 | 4 | 8 => {
            let used = if is_small { 0 } else { field(32)? };
            colours = if used == 0 { 1 << bits } else { used as usize };
            let table = bytes.get(after..).unwrap_or_default().chunks_exact(entry);
            palette.iter_mut().zip(table.take(colours)).for_each(|(colour, bgr)| *colour = [bgr[2], bgr[1], bgr[0]]);
        }
        16 | 24 | 32 => {}
        other => return Err(unsupported(&format!("{other} bits a pixel"))),
    }
    // Where no place is said, or the palette's, the pixels follow the palette.
    let behind = after.saturating_add(colours.saturating_mul(entry));
    let offset = match if base == 0 { 0 } else { word(10)? as usize } {
        0 => behind,
        said if said == base + header && colours > 0 => behind,
        said => said,
    };
    let is_top_down = !is_small && height < 0;
    Ok(Bitmap { bytes, width, height: height.unsigned_abs(), is_top_down, bits, packing, masks, palette, offset })
}

/// Width and height.
///
/// # Errors
/// Truncated, corrupt, or unsupported by name.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), Failure> {
    open(bytes).map(|bitmap| (bitmap.width, bitmap.height))
}

/// The pixels.
///
/// # Errors
/// As [`size`]'s, and too large.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Failure> {
    let bitmap = open(bytes)?;
    let (width, height) = (bitmap.width as usize, bitmap.height as usize);
    let size = limits.rgb_bytes(&Header::plain(Format::Bmp, (bitmap.width, bitmap.height)))?;
    let unpacked: Vec<u8>;
    let (data, stride, bits) = match bitmap.packing {
        Packing::Runs => {
            unpacked = bitmap.runs()?;
            (&unpacked[..], width, 8)
        }
        Packing::Plain => {
            let stride = (width * bitmap.bits as usize).div_ceil(32) * 4;
            let data = bytes.get(bitmap.offset..).unwrap_or_default();
            // The last row's padding may be missing.
            if data.len() < stride * (height - 1) + (width * bitmap.bits as usize).div_ceil(8) {
                return Err(truncated());
            }
            (data, stride, bitmap.bits)
        }
    };
    let mut rgb = vec![0; size];
    for (n, row) in data.chunks(stride).take(height).enumerate() {
        let y = if bitmap.is_top_down { n } else { height - 1 - n };
        bitmap.row(row, bits, rgb[y * width * 3..][..width * 3].as_chunks_mut::<3>().0);
    }
    Ok(RgbImage::from_raw(bitmap.width, bitmap.height, rgb).expect("three bytes were made for each pixel"))
}

impl Bitmap<'_> {
    fn row(&self, row: &[u8], bits: u32, out: &mut [[u8; 3]]) {
        match bits {
            24 => out.iter_mut().zip(row.as_chunks::<3>().0).for_each(|(out, &[b, g, r])| *out = [r, g, b]),
            16 => {
                out.iter_mut().zip(row.as_chunks::<2>().0).for_each(|(out, &v)| *out = self.masked(u16::from_le_bytes(v).into()))
            }
            32 => out.iter_mut().zip(row.as_chunks::<4>().0).for_each(|(out, &v)| *out = self.masked(u32::from_le_bytes(v))),
            _ => {
                let in_byte = 8 / bits as usize;
                for (x, out) in out.iter_mut().enumerate() {
                    let shift = 8 - bits as usize * (x % in_byte + 1);
                    let index = usize::from(row[x / in_byte] >> shift) & ((1 << bits) - 1);
                    *out = self.palette[index];
                }
            }
        }
    }

    fn masked(&self, pixel: u32) -> [u8; 3] {
        self.masks.map(|mask| {
            let shift = mask.trailing_zeros().min(31);
            let greatest = u64::from(mask >> shift);
            // A colour without bits is black.
            (u64::from((pixel & mask) >> shift) * 255).checked_div(greatest).unwrap_or(0) as u8
        })
    }

    /// Palette indices from runs, a byte each, in the order of the file. Pixels that are left out have the first colour.
    fn runs(&self) -> Result<Vec<u8>, Failure> {
        let (width, pixels) = (self.width as usize, self.width as usize * self.height as usize);
        let mut out = vec![0; pixels];
        let (mut at, mut x) = (0, 0);
        let data = self.bytes.get(self.offset..).unwrap_or_default();
        let mut rest = data;
        let index = |byte: u8, n: usize| match self.bits {
            4 if n.is_multiple_of(2) => byte >> 4,
            4 => byte & 15,
            _ => byte,
        };
        while at < pixels {
            let Some((&[count, value], tail)) = rest.split_first_chunk() else { return Err(truncated()) };
            rest = tail;
            match (usize::from(count), value) {
                (0, 0) => {
                    // A line that is full has ended already.
                    at = at.next_multiple_of(width);
                    x = 0;
                }
                (0, 1) => return Ok(out),
                (0, 2) => {
                    let Some((&[right, up], tail)) = rest.split_first_chunk() else { return Err(truncated()) };
                    rest = tail;
                    at += usize::from(right) + usize::from(up) * width;
                    x = at % width;
                }
                (0, literal) => {
                    let count = usize::from(literal);
                    let bytes = if self.bits == 4 { count.div_ceil(2) } else { count };
                    let padded = bytes.next_multiple_of(2).min(rest.len());
                    if padded < bytes {
                        return Err(truncated());
                    }
                    for n in 0..count.min(pixels - at) {
                        out[at + n] = index(rest[if self.bits == 4 { n / 2 } else { n }], n);
                    }
                    rest = &rest[padded..];
                    at += count;
                    x += count;
                }
                (count, value) => {
                    let count = count.min(width.saturating_sub(x)).min(pixels - at);
                    (0..count).for_each(|n| out[at + n] = index(value, n));
                    at += count;
                    x += count;
                }
            }
        }
        Ok(out)
    }
}
