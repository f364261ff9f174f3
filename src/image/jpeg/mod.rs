//! JPEG: pixels by libjpeg-turbo, and what its warnings say about a file: whole, ended early, damaged, or merely odd.
//!
//! The library makes a picture of anything: what is missing it paints grey or black. What is refused here for that is told as
//! [`Reason::Truncated`] or [`Reason::Corrupt`]; where a picture is given all the same, [`Decoded::damage`] says what is wrong with it.

mod frame;
mod library;
pub(super) mod segments;

use image::RgbImage;
use image::metadata::Orientation;

use self::frame::{Coverage, Frame, coverage, frame};
use self::library::{LibraryError, Report, Request};
use self::segments::{EOI, end_marker};
use super::decode::{Header, Limits};
use super::failure::{Failure, Reason};
use super::sniff::Format;

/// Pixels as stored, not turned.
pub(super) struct Decoded {
    pub pixels: RgbImage,
    /// What the stored size was divided by: lossless files have no way to be smaller.
    pub denominator: u32,
    /// What is wrong with the file though it has a picture that others show as well.
    pub damage: Option<Failure>,
}

/// The stored size, from everything up to the first scan. The orientation is not looked for.
pub(super) fn header(bytes: &[u8]) -> Result<Header, Failure> {
    let frame = frame(bytes)?;
    Ok(Header { format: Format::Jpeg, width: frame.width, height: frame.height, orientation: Orientation::NoTransforms })
}

/// Decodes at the stored size divided by `denominator` (1, 2, 4 or 8), rounded up. `header` is this file's, checked against the
/// limits.
pub(super) fn decode(bytes: &[u8], header: &Header, limits: &Limits, denominator: u32) -> Result<Decoded, Failure> {
    let frame = frame(bytes)?;
    // The smallest unit of code is a bit for 16 blocks: what is smaller cannot be whole, and gets no memory.
    let blocks = u64::from(frame.width.div_ceil(8)) * u64::from(frame.height.div_ceil(8));
    if (bytes.len() as u64) < blocks / 16 / 8 {
        return Err(ends_early());
    }
    let denominator = if frame.lossless { 1 } else { denominator };
    let request = request(&frame, denominator, limits.rgb_bytes(header)?);
    let (pixels, report) = library::decode(bytes, &request);
    let damage = judged(bytes, &frame, &report, limits.rgb_bytes(header)?)?;
    Ok(Decoded { pixels, denominator, damage })
}

/// The four bytes of each pixel of a file of four colours, as stored; a damaged file is refused.
pub(super) fn decode_four_colours(bytes: &[u8], limits: &Limits) -> Result<Vec<u8>, Failure> {
    let (header, frame) = (header(bytes)?, frame(bytes)?);
    if frame.components.len() != 4 || frame.lossless {
        return Err(Failure::new(Reason::Corrupt, "JPEG of other than four colours"));
    }
    let rgb_bytes = limits.rgb_bytes(&header)?;
    let (pixels, report) = library::decode_as_stored(bytes, &request(&frame, 1, rgb_bytes));
    match judged(bytes, &frame, &report, rgb_bytes)? {
        Some(damage) => Err(damage),
        None => Ok(pixels),
    }
}

fn request(frame: &Frame, denominator: u32, rgb_bytes: usize) -> Request {
    Request {
        width: frame.width.div_ceil(denominator),
        height: frame.height.div_ceil(denominator),
        four_colours: frame.components.len() == 4,
        denominator,
        stored_pixels: u64::from(frame.width) * u64::from(frame.height),
        // Coefficients are two bytes, of up to four channels.
        max_memory: (rgb_bytes / 3).saturating_mul(12).saturating_add(64 << 20),
    }
}

fn ends_early() -> Failure {
    Failure::new(Reason::Truncated, "JPEG data ends before the picture does")
}

fn filled_with_zeros() -> Failure {
    Failure::new(Reason::Truncated, "the end of the JPEG's data is zeros, as of a copy that was not finished")
}

/// Whether the picture is whole (`None`), to be used with care, or not to be used.
fn judged(bytes: &[u8], frame: &Frame, report: &Report, rgb_bytes: usize) -> Result<Option<Failure>, Failure> {
    let end = end_marker(bytes);
    if let Some(error) = &report.error {
        return Err(refused(error, frame, end.is_some()));
    }
    let coverage = coverage(bytes, frame);
    let plain = !report.data_ended && !report.bad_data && report.skipped.is_empty();
    if plain && coverage == Coverage::Full && (end.is_some() || !report.arithmetic) {
        return Ok(None);
    }
    if zeros_stand_for_data(bytes, frame, end, rgb_bytes) {
        return Ok(Some(filled_with_zeros()));
    }
    match coverage {
        // Damaged data may end early too; a file without its end marker is a cut one first of all.
        _ if report.bad_data && end.is_some() => Err(Failure::new(Reason::Corrupt, "JPEG with damaged data")),
        _ if report.data_ended || report.bad_data => Err(ends_early()),
        Coverage::Missing => Err(ends_early()),
        Coverage::Coarse if end.is_none() => Err(ends_early()),
        Coverage::Coarse => Ok(Some(Failure::new(Reason::Truncated, "progressive JPEG whose finest detail is missing"))),
        Coverage::Full if end.is_none() && report.arithmetic => Err(ends_early()),
        Coverage::Full if holds_data(bytes.get(report.skipped.clone()).unwrap_or_default()) => {
            let message = "the JPEG has data after its last pixel: it is damaged, or its size is wrong";
            Ok(Some(Failure::new(Reason::Corrupt, message)))
        }
        Coverage::Full => Ok(None),
    }
}

/// More than the few odd bytes or the padding that some cameras leave behind a scan.
fn holds_data(skipped: &[u8]) -> bool {
    skipped.len() >= 64 && skipped.iter().any(|&byte| byte != skipped[0])
}

/// Whether the file's data ends in zeros, and without them before the picture does. (Zeros alone say nothing: where a flat area has
/// short codes, its data is zeros too. Nor do they behind the last pixel.)
fn zeros_stand_for_data(bytes: &[u8], frame: &Frame, end: Option<usize>, rgb_bytes: usize) -> bool {
    const FEWEST: usize = 16;
    let data = &bytes[..end.unwrap_or(bytes.len())];
    let zeros = data.iter().rev().take_while(|&&byte| byte == 0).count();
    if zeros < FEWEST {
        return false;
    }
    let mut rest = data[..data.len() - zeros].to_vec();
    rest.extend([0xFF, EOI]);
    let (_, report) = library::decode(&rest, &request(frame, if frame.lossless { 1 } else { 8 }, rgb_bytes));
    report.data_ended || report.error.is_some() || coverage(&rest, frame) != Coverage::Full
}

fn refused(error: &LibraryError, frame: &Frame, has_end: bool) -> Failure {
    let (reason, message) = match error {
        LibraryError::TooMuchWork => (Reason::TooLarge, "JPEG with more scans than its picture could need".to_owned()),
        LibraryError::TooMuchMemory => (Reason::TooLarge, "JPEG that takes more memory than its picture could need".to_owned()),
        LibraryError::Unsupported(text) | LibraryError::Broken(text) if frame.lossless => {
            (Reason::UnsupportedFormat, format!("lossless JPEG, which is supported only for plain RGB or grey: {text}"))
        }
        LibraryError::Unsupported(text) => (Reason::UnsupportedFormat, format!("JPEG of a kind that is not read: {text}")),
        LibraryError::Broken(_) if !has_end => return ends_early(),
        LibraryError::OtherSize => (Reason::Corrupt, "JPEG with two sizes".to_owned()),
        LibraryError::Broken(text) => (Reason::Corrupt, format!("JPEG: {text}")),
    };
    Failure::new(reason, message)
}
