//! JPEG XL by jxl-oxide, in sRGB. Its orientation belongs to the picture and is always applied.

use std::io::Cursor;

use image::RgbImage;
use jxl_oxide::{AllocTracker, EnumColourEncoding, JxlImage, JxlThreadPool, RenderingIntent};

use super::decode::{Header, Limits};
use super::failure::{Failure, Reason};
use super::sniff::Format;

/// Memory that a header may need.
const HEADER_BYTES: usize = 256 << 20;

fn truncated() -> Failure {
    Failure::new(Reason::Truncated, "JPEG XL data ends before the picture does")
}

fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Failure {
    let text = error.to_string();
    let ended = text.contains("reader ended") || text.contains("end of file") || text.contains("failed to fill");
    if ended {
        return truncated();
    }
    let reason = if text.contains("memory") || text.contains("alloc") { Reason::TooLarge } else { Reason::Corrupt };
    Failure::new(reason, format!("JPEG XL: {text}"))
}

fn open(bytes: &[u8], memory: usize) -> Result<JxlImage, Failure> {
    let builder = JxlImage::builder().pool(JxlThreadPool::none()).alloc_tracker(AllocTracker::with_limit(memory));
    builder.read(Cursor::new(bytes)).map_err(|error| failed(&*error))
}

/// Width and height of the upright picture.
///
/// # Errors
/// Truncated or corrupt.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), Failure> {
    let mut image =
        JxlImage::builder().pool(JxlThreadPool::none()).alloc_tracker(AllocTracker::with_limit(HEADER_BYTES)).build_uninit();
    // The header lies in the first bytes; only a colour profile makes it longer.
    for part in bytes.chunks(1 << 14) {
        image.feed_bytes(part).map_err(|error| failed(&*error))?;
        image = match image.try_init().map_err(|error| failed(&*error))? {
            jxl_oxide::InitializeResult::NeedMoreData(more) => more,
            jxl_oxide::InitializeResult::Initialized(image) => return Ok((image.width(), image.height())),
        };
    }
    Err(truncated())
}

/// The first frame's pixels, without alpha.
///
/// # Errors
/// Truncated, corrupt, too large, or unsupported: more channels than grey or colour.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Failure> {
    let (width, height) = size(bytes)?;
    let size = limits.rgb_bytes(&Header::plain(Format::Jxl, (width, height)))?;
    // Floats of three colours and an alpha, twice, and what frames that others are made of take.
    let mut image = open(bytes, size.saturating_mul(24).saturating_add(HEADER_BYTES))?;
    if !image.is_loading_done() {
        return Err(truncated());
    }
    image.request_color_encoding(EnumColourEncoding::srgb(RenderingIntent::Relative));
    let render = image.render_frame(0).map_err(|error| failed(&*error))?;
    let mut stream = render.stream_no_alpha();
    if (stream.width(), stream.height()) != (width, height) {
        return Err(Failure::new(Reason::Corrupt, "JPEG XL: a frame of another size"));
    }
    let channels = stream.channels() as usize;
    let mut samples = vec![0u8; width as usize * height as usize * channels];
    stream.write_to_buffer(&mut samples);
    let rgb = match channels {
        3 => samples,
        1 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
        other => return Err(Failure::new(Reason::UnsupportedFormat, format!("JPEG XL with {other} channels is not read"))),
    };
    Ok(RgbImage::from_raw(width, height, rgb).expect("three bytes were made for each pixel"))
}
