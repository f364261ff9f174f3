//! JPEG by zune-jpeg: strictly first, because the lenient way paints missing data grey and reports nothing.

use image::RgbImage;
use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::decode::{Header, Limits};
use super::failure::{Failure, Reason};
use super::jpeg_entropy::{Verdict, judge};
use super::jpeg_segments::{SOS, has_end, next_segment};
use super::sniff::Format;

fn open(bytes: &[u8], strict: bool) -> JpegDecoder<ZCursor<&[u8]>> {
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    JpegDecoder::new_with_options(ZCursor::new(bytes), options)
}

/// The stored size and the orientation, from everything up to the first scan.
pub(super) fn header(bytes: &[u8]) -> Result<Header, Failure> {
    let mut decoder = open(bytes, false);
    decoder.decode_headers().map_err(|error| header_failure(bytes, &error))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| Failure::new(Reason::Corrupt, "JPEG without a size"))?;
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let side = |pixels| u32::try_from(pixels).map_err(|_| Failure::new(Reason::TooLarge, "JPEG larger than JPEG can be"));
    Ok(Header {
        format: Format::Jpeg,
        width: side(width)?,
        height: side(height)?,
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    })
}

fn header_failure(bytes: &[u8], error: &DecodeErrors) -> Failure {
    let mut at = 2;
    while let Some(segment) = next_segment(bytes, at) {
        if segment.marker == SOS {
            return Failure::new(Reason::Corrupt, format!("JPEG header: {error}"));
        }
        at = segment.end;
    }
    Failure::new(Reason::Truncated, "JPEG ends within its header")
}

/// Pixels as stored, not turned. `header` is this file's, checked against the limits.
pub(super) fn decode(bytes: &[u8], header: &Header, limits: &Limits) -> Result<RgbImage, Failure> {
    // The smallest unit of code is a bit for 16 blocks: what is smaller cannot be whole, and gets no memory.
    let blocks = u64::from(header.width.div_ceil(8)) * u64::from(header.height.div_ceil(8));
    if (bytes.len() as u64) < blocks / 16 / 8 {
        return Err(ends_early());
    }
    match (pixels(bytes, header, limits, true), has_end(bytes)) {
        (Ok(image), true) => Ok(image),
        (strict, _) => match (judge(bytes), strict) {
            (Verdict::Complete, Ok(image)) => Ok(image),
            (Verdict::Complete, Err(_)) => pixels(bytes, header, limits, false),
            (Verdict::EndsEarly, _) => Err(ends_early()),
            (Verdict::Damaged, Err(failure)) => Err(failure),
            (Verdict::Damaged, Ok(_)) => Err(Failure::new(Reason::Corrupt, "JPEG holds data that belongs to no picture")),
        },
    }
}

fn ends_early() -> Failure {
    Failure::new(Reason::Truncated, "JPEG data ends before the picture does")
}

fn pixels(bytes: &[u8], header: &Header, limits: &Limits, strict: bool) -> Result<RgbImage, Failure> {
    let corrupt = |error: DecodeErrors| Failure::new(Reason::Corrupt, format!("JPEG: {error}"));
    let mut decoder = open(bytes, strict);
    decoder.decode_headers().map_err(corrupt)?;
    if let Some(space @ ColorSpace::MultiBand(_)) = decoder.input_colorspace() {
        return Err(Failure::new(Reason::Corrupt, format!("JPEG with unknown colours ({space:?})")));
    }
    // A later frame header would change the size behind the check.
    if decoder.dimensions() != Some((header.width as usize, header.height as usize)) {
        return Err(Failure::new(Reason::Corrupt, "JPEG with two sizes"));
    }
    let mut data = vec![0; limits.rgb_bytes(header)?];
    decoder.decode_into(&mut data).map_err(corrupt)?;
    RgbImage::from_raw(header.width, header.height, data)
        .ok_or_else(|| Failure::new(Reason::Corrupt, "JPEG gave fewer pixels than its size says"))
}
