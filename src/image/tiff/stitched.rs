//! JPEG in TIFF: each strip or tile is a JPEG of its own, whose tables lie elsewhere and whose colours TIFF knows.

use super::super::decode::Limits;
use super::super::failure::Failure;
use super::super::jpeg;
use super::{corrupt, unsupported};

/// The pixels of a chunk of `width` and at least `rows` rows, `samples` bytes each; three of them are RGB.
///
/// # Errors
/// Truncated, corrupt or unsupported, as the data is.
pub(super) fn decode(
    tables: Option<&[u8]>,
    chunk: &[u8],
    transform: u8,
    samples: usize,
    (width, rows): (u32, u32),
) -> Result<Vec<u8>, Failure> {
    if !matches!(samples, 1 | 3 | 4) {
        return Err(unsupported(&format!("JPEG of {samples} samples a pixel")));
    }
    let whole = stitch(tables, chunk, transform);
    let in_tiff = |failure: Failure| Failure { message: format!("TIFF: {}", failure.message), ..failure };
    let header = jpeg::header(&whole).map_err(in_tiff)?;
    // A chunk at the picture's lower edge may go on below it.
    if header.width != width || header.height < rows {
        return Err(corrupt(&format!("JPEG of {} x {} pixels for {width} x {rows}", header.width, header.height)));
    }
    let limits = Limits { max_pixels: u64::from(width) * (u64::from(rows) + 4096), ..Limits::default() };
    if samples == 4 {
        return jpeg::decode_four_colours(&whole, &limits).map_err(in_tiff);
    }
    let decoded = jpeg::decode(&whole, &header, &limits, 1).map_err(in_tiff)?;
    match decoded.damage {
        Some(damage) => Err(in_tiff(damage)),
        None if samples == 3 => Ok(decoded.pixels.into_raw()),
        None => Ok(decoded.pixels.into_raw().into_iter().step_by(3).collect()),
    }
}

/// One stream: tables, then the chunk, with TIFF's word on the colours in place of the stream's own.
fn stitch(tables: Option<&[u8]>, chunk: &[u8], transform: u8) -> Vec<u8> {
    let tables = tables.unwrap_or_default();
    let mut whole = Vec::with_capacity(chunk.len() + tables.len() + 18);
    whole.extend_from_slice(&[0xFF, 0xD8, 0xFF, 0xEE, 0, 14]);
    whole.extend_from_slice(b"Adobe\0\x64\0\0\0\0");
    whole.push(transform);
    let body = |stream: &[u8]| stream.strip_prefix(&[0xFF, 0xD8]).map_or(0, |_| 2);
    let tables = tables.strip_suffix(&[0xFF, 0xD9]).unwrap_or(tables);
    whole.extend_from_slice(&tables[body(tables)..]);
    let mut at = body(chunk);
    // JFIF's and Adobe's segments say what libjpeg would believe of the colours.
    while let Some(&[0xFF, marker, high, low]) = chunk.get(at..).and_then(|rest| rest.first_chunk()) {
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let is_header = (0xC0..=0xFE).contains(&marker) && !matches!(marker, 0xD0..=0xDA);
        if !is_header || end > chunk.len() {
            break;
        }
        if !matches!(marker, 0xE0 | 0xEE) {
            whole.extend_from_slice(&chunk[at..end]);
        }
        at = end;
    }
    whole.extend_from_slice(&chunk[at.min(chunk.len())..]);
    whole
}
