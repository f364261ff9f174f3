//! libjpeg-turbo, the decoder of Pillow, OpenCV and torchvision.
//!
//! Its errors leave by `longjmp`, which must not cross Rust: `library.c` keeps them inside, and this file holds the one call into it.
//! (The TurboJPEG interface on top of the library tells only its first warning, and not whether the data ended or was damaged.)

use std::ffi::{c_char, c_uint};

// The library itself is linked by this crate.
use turbojpeg_sys as _;

use image::RgbImage;

/// What a decoded file was like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// The file could not be decoded to its end.
    pub error: Option<LibraryError>,
    /// The data of a scan ended, by an end marker or the end of the file, before its last block.
    pub data_ended: bool,
    /// Codes or markers that belong to no such picture.
    pub bad_data: bool,
    /// An arithmetic decoder makes up what is missing: of such a file nobody can say that its data ended.
    pub arithmetic: bool,
    /// The longest stretch of bytes behind the first scan's header that belonged to nothing.
    pub skipped: std::ops::Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LibraryError {
    /// More scans than a picture of its size needs.
    TooMuchWork,
    TooMuchMemory,
    /// The file's frame is not the one that its header had.
    OtherSize,
    /// A kind of JPEG that the library does not decode, in its words.
    Unsupported(String),
    Broken(String),
}

/// As `struct clipcap_jpeg_report` in library.c.
#[repr(C)]
struct RawReport {
    code: i32,
    data_ended: u8,
    bad_data: u8,
    arithmetic: u8,
    skipped: u64,
    skipped_end: u64,
    message: [c_char; 200],
}

unsafe extern "C" {
    fn clipcap_jpeg_decode(
        data: *const u8,
        length: usize,
        denominator: c_uint,
        max_work: u64,
        max_memory: usize,
        pixels: *mut u8,
        width: c_uint,
        height: c_uint,
        channels: c_uint,
        report: *mut RawReport,
    );
}

/// How a file is to be decoded.
pub(super) struct Request {
    /// Of the picture that comes out.
    pub width: u32,
    pub height: u32,
    pub four_colours: bool,
    /// 1, 2, 4 or 8: the size is the stored one divided by it, rounded up.
    pub denominator: u32,
    /// Of the whole picture.
    pub stored_pixels: u64,
    /// Bytes beside the pixels.
    pub max_memory: usize,
}

/// Blocks of 8 x 8 that may be read, scan by scan, before the first pixel comes out: half a second, or each block of the picture 20
/// times, which is more than any encoder makes of it.
fn max_work(pixels: u64) -> u64 {
    (pixels / 64 * 3 * 20).max(100_000_000)
}

/// Decodes into RGB. Where the report has an error, some or all rows may be black.
pub(super) fn decode(data: &[u8], request: &Request) -> (RgbImage, Report) {
    let (mut pixels, report) = decode_as_stored(data, request);
    if request.four_colours {
        cmyk_to_rgb(&mut pixels);
    }
    let image = RgbImage::from_raw(request.width, request.height, pixels).expect("three bytes a pixel were reserved");
    (image, report)
}

/// As [`decode`], with the four bytes of a pixel of four colours as the file has them.
pub(super) fn decode_as_stored(data: &[u8], request: &Request) -> (Vec<u8>, Report) {
    let channels: usize = if request.four_colours { 4 } else { 3 };
    let mut pixels = vec![0; request.width as usize * request.height as usize * channels];
    let mut raw = RawReport { code: 0, data_ended: 0, bad_data: 0, arithmetic: 0, skipped: 0, skipped_end: 0, message: [0; 200] };
    // SAFETY: `data` is valid for its length and only read. `pixels` has width x height x channels bytes, and the C side writes no
    // row before it has compared these three numbers with the library's own. `raw` has the C struct's layout. No pointer outlives
    // the call, no Rust code runs inside it, and every error of the library ends in a return.
    unsafe {
        clipcap_jpeg_decode(
            data.as_ptr(),
            data.len(),
            request.denominator,
            max_work(request.stored_pixels),
            request.max_memory,
            pixels.as_mut_ptr(),
            request.width,
            request.height,
            channels as c_uint,
            &raw mut raw,
        );
    }
    (pixels, report(&raw, data.len()))
}

fn report(raw: &RawReport, length: usize) -> Report {
    let text: Vec<u8> = raw.message.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    let error = match (raw.code, text) {
        (0, _) => None,
        (-1, _) => Some(LibraryError::TooMuchWork),
        (-2, _) => Some(LibraryError::OtherSize),
        (_, text) if MEMORY.iter().any(|begin| text.starts_with(begin)) => Some(LibraryError::TooMuchMemory),
        (_, text) if UNSUPPORTED.iter().any(|begin| text.starts_with(begin)) => Some(LibraryError::Unsupported(text)),
        (_, text) => Some(LibraryError::Broken(text)),
    };
    // At the end of the data the library stands on an end marker of its own, elsewhere in memory.
    let end = usize::try_from(raw.skipped_end).map_or(length, |end| end.min(length));
    Report {
        error,
        data_ended: raw.data_ended != 0,
        bad_data: raw.bad_data != 0,
        arithmetic: raw.arithmetic != 0,
        skipped: end.saturating_sub(raw.skipped as usize)..end,
    }
}

/// How the library's messages begin, by what they mean (jerror.h; the numbers behind them move from release to release).
const MEMORY: [&str; 2] = ["Memory limit exceeded", "Insufficient memory"];
const UNSUPPORTED: [&str; 10] = [
    "Unsupported JPEG process",
    "Unsupported JPEG data precision",
    "Unsupported color conversion",
    "Fractional sampling not implemented",
    "CCIR601 sampling not implemented",
    "Requested feature",
    "Sampling factors too large",
    "Too many color components",
    "Maximum supported image dimension",
    "Empty JPEG image",
];

/// Four bytes become three, as Pillow's `convert("RGB")` turns them: Adobe's files, and by now all others, hold inverted ink.
fn cmyk_to_rgb(pixels: &mut Vec<u8>) {
    let count = pixels.len() / 4;
    for index in 0..count {
        let [c, m, y, k] = pixels[4 * index..].first_chunk().copied().unwrap_or_default();
        for (channel, ink) in [c, m, y].into_iter().enumerate() {
            pixels[3 * index + channel] = k - product(255 - ink, k);
        }
    }
    pixels.truncate(3 * count);
}

/// `a * b / 255`, rounded.
fn product(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}
