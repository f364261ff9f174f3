//! From bytes to upright RGB pixels, within limits.

use std::io::{self, Cursor};

use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, RgbImage};

use super::failure::{Failure, Reason};
use super::guard::guarded;
use super::orientation::orientation;
use super::sniff::{Format, sniff_named};
use super::structure::{declared_size, ends_early};
use super::{bmp, foreign, gif, jpeg, jxl, png, tiff};

/// What an image may cost. Checked before memory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width times height. Decoding takes at most about 12 bytes a pixel (16-bit colour with alpha).
    pub max_pixels: u64,
    /// Size of the file, which is read whole.
    pub max_bytes: u64,
}

impl Default for Limits {
    /// 200 million pixels (the largest phone cameras' pictures pass) and 1 GiB.
    fn default() -> Self {
        Self { max_pixels: 200_000_000, max_bytes: 1 << 30 }
    }
}

impl Limits {
    fn check(&self, header: &Header) -> Result<(), Failure> {
        let (width, height) = (header.width, header.height);
        if width == 0 || height == 0 {
            return Err(Failure::new(Reason::Corrupt, format!("{} of {width} x {height} pixels", header.format)));
        }
        self.check_pixels(width, height)
    }

    fn check_pixels(&self, width: u32, height: u32) -> Result<(), Failure> {
        let limit = self.max_pixels;
        if u64::from(width) * u64::from(height) > limit {
            return Err(Failure::new(Reason::TooLarge, format!("{width} x {height} pixels, limit {limit} in all")));
        }
        Ok(())
    }

    /// Bytes of the decoded picture.
    pub(super) fn rgb_bytes(&self, header: &Header) -> Result<usize, Failure> {
        self.check(header)?;
        let bytes = u64::from(header.width) * u64::from(header.height) * 3;
        usize::try_from(bytes).map_err(|_| Failure::new(Reason::TooLarge, format!("{bytes} bytes of pixels")))
    }
}

/// What a file says about itself before its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Told by the content, whatever the file is called.
    pub format: Format,
    /// As stored, before EXIF's orientation is applied; see [`upright`](Self::upright).
    pub width: u32,
    /// As stored, like the width.
    pub height: u32,
    /// How the pixels must be turned to stand upright: EXIF's or XMP's word; none where neither says any.
    pub orientation: Orientation,
}

impl Header {
    /// Of a picture that is not turned.
    pub(super) fn plain(format: Format, (width, height): (u32, u32)) -> Self {
        Self { format, width, height, orientation: Orientation::NoTransforms }
    }

    /// Width and height as [`decode`] with `exif` set gives them.
    pub fn upright(&self) -> (u32, u32) {
        match self.orientation {
            Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
                (self.height, self.width)
            }
            _ => (self.width, self.height),
        }
    }
}

/// Reads only the header: format, size, orientation. Pixels may still turn out to be damaged.
///
/// # Errors
/// As [`decode`]'s, [`Reason::TooLarge`] among them.
pub fn header(bytes: &[u8], limits: &Limits) -> Result<Header, Failure> {
    let format = recognise(bytes, limits)?;
    guarded(|| read_header(format, bytes)).unwrap_or_else(panicked).and_then(|header| {
        limits.check(&header)?;
        Ok(header)
    })
}

fn read_header(format: Format, bytes: &[u8]) -> Result<Header, Failure> {
    let header = match format {
        Format::Jpeg => jpeg::header(bytes)?,
        Format::Png | Format::WebP => described(format, &*open(format, bytes)?),
        Format::Gif => Header::plain(format, gif::size(bytes)?),
        Format::Bmp => Header::plain(format, bmp::size(bytes)?),
        Format::Tiff => Header::plain(format, tiff::size(bytes)?),
        Format::Jxl => Header::plain(format, jxl::size(bytes)?),
    };
    Ok(Header { orientation: orientation(format, bytes), ..header })
}

/// A decoded picture, upright if that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// RGB, 8 bits per channel, upright if that was asked for.
    pub pixels: RgbImage,
    /// Width and height of the whole picture, which may have been decoded smaller.
    pub full: (u32, u32),
    /// Where in `pixels` the picture lies: all of them, but for a fraction at two edges of one decoded smaller.
    pub area: Area,
    /// What is wrong with a file that has a picture all the same: why it would have failed.
    pub damage: Option<Failure>,
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    /// From the left edge of the pixels.
    pub left: f64,
    /// From their upper edge.
    pub top: f64,
    /// May have a fraction: a picture of 5 pixels at half its size has 2.5.
    pub width: f64,
    /// As the width.
    pub height: f64,
}

/// Decodes a whole file into RGB, 8 bits a channel; animations give their first frame.
///
/// Alpha is dropped, not blended, as Pillow's `convert("RGB")` does; of 16-bit channels the high byte is kept (Pillow does so for
/// colour and clips grey, which would leave it white). CMYK is taken as Adobe writes it. With `exif`, the picture is turned as its
/// orientation says. A picture that is given with [`Decoded::damage`] is given.
///
/// # Errors
/// [`Reason::Empty`], [`Reason::UnsupportedFormat`], [`Reason::TooLarge`], [`Reason::Truncated`] or [`Reason::Corrupt`]. A decoder
/// that panics is the last.
pub fn decode(bytes: &[u8], limits: &Limits, exif: bool) -> Result<RgbImage, Failure> {
    Ok(decode_at(bytes, limits, exif, &|_, _| 1)?.pixels)
}

/// [`decode`], at a fraction of the size where the format can: `denominator` (1, 2, 4 or 8) of the upright width and height.
///
/// # Errors
/// As [`decode`]'s.
pub fn decode_at(bytes: &[u8], limits: &Limits, exif: bool, denominator: &dyn Fn(u32, u32) -> u32) -> Result<Decoded, Failure> {
    let format = recognise(bytes, limits)?;
    guarded(|| decode_as(format, bytes, limits, exif, denominator)).unwrap_or_else(panicked)
}

fn decode_as(
    format: Format,
    bytes: &[u8],
    limits: &Limits,
    exif: bool,
    denominator: &dyn Fn(u32, u32) -> u32,
) -> Result<Decoded, Failure> {
    let orientation = if exif { orientation(format, bytes) } else { Orientation::NoTransforms };
    if format != Format::Jpeg {
        let pixels = decode_whole(format, bytes, limits)?;
        let size = pixels.dimensions();
        return Ok(upright(pixels, size, 1, orientation, None));
    }
    let header = Header { orientation, ..jpeg::header(bytes)? };
    limits.check(&header)?;
    let (width, height) = header.upright();
    let denominator = denominator(width, height);
    let jpeg::Decoded { pixels, denominator, damage } = jpeg::decode(bytes, &header, limits, denominator)?;
    let size = (header.width, header.height);
    Ok(upright(pixels, size, denominator, orientation, damage))
}

fn decode_whole(format: Format, bytes: &[u8], limits: &Limits) -> Result<RgbImage, Failure> {
    let result = match format {
        Format::Tiff => return tiff::decode(bytes, limits),
        Format::Gif => return gif::decode(bytes, limits),
        Format::Bmp => return bmp::decode(bytes, limits),
        Format::Jxl => return jxl::decode(bytes, limits),
        // All pixels may be there without the end.
        Format::Png => match decode_other(format, &png::with_end(bytes), limits) {
            Ok(image) => return Ok(image),
            failed => failed,
        },
        _ => decode_other(format, bytes, limits),
    };
    match result {
        Err(failure) if failure.reason == Reason::TooLarge => Err(failure),
        _ if ends_early(format, bytes) => Err(Failure::new(Reason::Truncated, format!("{format} file ends early"))),
        other => other,
    }
}

/// Turns pixels decoded at `1 / denominator` of `size`.
fn upright(pixels: RgbImage, size: (u32, u32), denominator: u32, orientation: Orientation, damage: Option<Failure>) -> Decoded {
    let (stored_width, stored_height) = pixels.dimensions();
    let mut image = DynamicImage::ImageRgb8(pixels);
    image.apply_orientation(orientation);
    let part = |side: u32| f64::from(side) / f64::from(denominator);
    let (swapped, reversed_x, reversed_y) = match orientation {
        Orientation::NoTransforms => (false, false, false),
        Orientation::FlipHorizontal => (false, true, false),
        Orientation::FlipVertical => (false, false, true),
        Orientation::Rotate180 => (false, true, true),
        Orientation::Rotate90FlipH => (true, false, false),
        Orientation::Rotate90 => (true, true, false),
        Orientation::Rotate270 => (true, false, true),
        Orientation::Rotate270FlipH => (true, true, true),
    };
    let (mut full, mut stored) = (size, (stored_width, stored_height));
    if swapped {
        (full, stored) = ((full.1, full.0), (stored.1, stored.0));
    }
    let (width, height) = (part(full.0), part(full.1));
    // The decoder rounds up: what is more than the picture lies behind its last stored column and row.
    let left = if reversed_x { f64::from(stored.0) - width } else { 0.0 };
    let top = if reversed_y { f64::from(stored.1) - height } else { 0.0 };
    Decoded { pixels: image.into_rgb8(), full, area: Area { left, top, width, height }, damage }
}

fn decode_other(format: Format, bytes: &[u8], limits: &Limits) -> Result<RgbImage, Failure> {
    let mut decoder = open(format, bytes)?;
    let header = described(format, &*decoder);
    let bytes_rgb = limits.rgb_bytes(&header)? as u64;
    let mut library = image::Limits::no_limits();
    // Room for what a decoder needs beside its output: tables, metadata, one frame of an animation.
    library.max_alloc = Some(decoder.total_bytes().max(bytes_rgb) * 2 + (64 << 20));
    decoder.set_limits(library).map_err(|error| failed(format, &error))?;
    let image = DynamicImage::from_decoder(decoder).map_err(|error| failed(format, &error))?;
    Ok(rgb(image))
}

/// The format, and no picture that already says it is too large.
fn recognise(bytes: &[u8], limits: &Limits) -> Result<Format, Failure> {
    if bytes.is_empty() {
        return Err(Failure::new(Reason::Empty, "the file is empty"));
    }
    let unsupported = |message: String| Err(Failure::new(Reason::UnsupportedFormat, message));
    let Some(format) = sniff_named(bytes) else {
        return unsupported(match (foreign::camera_raw(bytes), foreign::name(bytes)) {
            (Some(kind), _) => format!("camera raw ({kind}) is not read: develop it first"),
            (None, Some(name)) => format!("the content is {name}, which is not read"),
            (None, None) => "the content is not JPEG, PNG, GIF, WebP, BMP, TIFF or JPEG XL".to_owned(),
        });
    };
    if let Some((width, height)) = png::cgbi(bytes).filter(|_| format == Format::Png) {
        return unsupported(format!("Apple's CgBI variant of PNG is not read ({width} x {height} pixels)"));
    }
    if let Some(chunk) = png::unknown_critical(bytes).filter(|_| format == Format::Png) {
        return unsupported(format!("PNG with a chunk {chunk}, which must be understood and is of no known kind"));
    }
    if let Some((width, height)) = declared_size(format, bytes) {
        limits.check_pixels(width, height)?;
    }
    Ok(format)
}

/// A decoder of PNG or WebP.
fn open<'a>(format: Format, bytes: &'a [u8]) -> Result<Box<dyn ImageDecoder + 'a>, Failure> {
    let cursor = Cursor::new(bytes);
    let decoder: Result<Box<dyn ImageDecoder + 'a>, ImageError> = match format {
        Format::Png => PngDecoder::with_limits(cursor, beside(bytes)).map(|decoder| Box::new(decoder) as _),
        Format::WebP => WebPDecoder::new(cursor).map(|decoder| Box::new(decoder) as _),
        _ => return Err(Failure::new(Reason::Corrupt, format!("{format} has a decoder of its own"))),
    };
    decoder.map_err(|error| failed(format, &error))
}

/// What a PNG may unpack before its pixels: colour profiles, which nothing here looks at, inflate a thousandfold.
fn beside(bytes: &[u8]) -> image::Limits {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(bytes.len() as u64 + (16 << 20));
    limits
}

fn described(format: Format, decoder: &dyn ImageDecoder) -> Header {
    let (width, height) = decoder.dimensions();
    Header { format, width, height, orientation: Orientation::NoTransforms }
}

fn panicked<T>(message: String) -> Result<T, Failure> {
    Err(Failure::new(Reason::Corrupt, format!("the decoder gave up: {message}")))
}

fn failed(format: Format, error: &ImageError) -> Failure {
    match error {
        ImageError::Limits(_) => Failure::new(Reason::TooLarge, format!("{format}: {error}")),
        _ if ran_out(error) => Failure::new(Reason::Truncated, format!("{format} data ends before the picture does")),
        _ => Failure::new(Reason::Corrupt, format!("{format}: {error}")),
    }
}

/// Whether the end of the file is at the bottom of an error.
fn ran_out(error: &ImageError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            return true;
        }
        if let Some(ImageError::IoError(error)) = error.downcast_ref() {
            return error.kind() == io::ErrorKind::UnexpectedEof;
        }
        cause = error.source();
    }
    false
}

/// Drops alpha and low bytes, and repeats grey. Grey of 16 bits that never goes beyond a byte is taken as bytes, as Pillow takes it.
fn rgb(image: DynamicImage) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let high = |channel: u16| (channel >> 8) as u8;
    let data: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => return image,
        DynamicImage::ImageLuma16(image) if image.iter().all(|&grey| grey < 256) => {
            image.iter().flat_map(|&grey| [grey as u8; 3]).collect()
        }
        DynamicImage::ImageLuma16(image) => image.iter().flat_map(|&grey| [high(grey); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.chunks_exact(2).flat_map(|pixel| [high(pixel[0]); 3]).collect(),
        DynamicImage::ImageRgb16(image) => image.iter().map(|&channel| high(channel)).collect(),
        DynamicImage::ImageRgba16(image) => image.chunks_exact(4).flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect(),
        other => return other.into_rgb8(),
    };
    RgbImage::from_raw(width, height, data).expect("three bytes were made of each pixel")
}
