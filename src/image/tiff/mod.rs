//! TIFF, read by ourselves: what photo shops, scanners, fax servers and microscopes write is more than any decoder in Rust takes, and Pillow
//! (by libtiff) takes most of it. What is not taken is refused by its name.

mod directory;
mod fax;
mod lab;
mod layout;
mod raw;
mod samples;
mod stitched;
mod unpack;
mod ycbcr;

use image::RgbImage;

use self::directory::File;
use self::layout::{Compression, Layout, chunk_data};
use self::samples::{Colour, Depth, Scale};
use super::decode::{Header, Limits};
use super::failure::{Failure, Reason};
use super::sniff::Format;

/// The numbers of the tags that are read.
mod tag {
    pub const WIDTH: u16 = 256;
    pub const HEIGHT: u16 = 257;
    pub const BITS_PER_SAMPLE: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC: u16 = 262;
    pub const FILL_ORDER: u16 = 266;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const SAMPLES_PER_PIXEL: u16 = 277;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_LENGTHS: u16 = 279;
    pub const PLANAR: u16 = 284;
    pub const T4_OPTIONS: u16 = 292;
    pub const PREDICTOR: u16 = 317;
    pub const COLOUR_MAP: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_HEIGHT: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_LENGTHS: u16 = 325;
    pub const SUB_DIRECTORIES: u16 = 330;
    pub const INK_SET: u16 = 332;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const SAMPLE_FORMAT: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
    pub const OLD_JPEG: u16 = 513;
    pub const OLD_JPEG_LENGTH: u16 = 514;
    pub const SUBSAMPLING: u16 = 530;
    pub const DNG_VERSION: u16 = 50706;
    pub const DNG_BACKWARD_VERSION: u16 = 50707;
}

fn truncated() -> Failure {
    Failure::new(Reason::Truncated, "TIFF data ends before the picture does")
}

fn corrupt(what: &str) -> Failure {
    Failure::new(Reason::Corrupt, format!("TIFF: {what}"))
}

fn unsupported(feature: &str) -> Failure {
    Failure::new(Reason::UnsupportedFormat, format!("TIFF with {feature} is not read"))
}

/// The first picture's layout.
fn open(bytes: &[u8]) -> Result<Layout<'_>, Failure> {
    let (file, first) = File::open(bytes)?;
    if let Some(kind) = raw::camera_raw(file, first) {
        return Err(Failure::new(Reason::UnsupportedFormat, format!("camera raw ({kind}) is not read: develop it first")));
    }
    Layout::new(file, &file.directory(first)?)
}

/// Width and height of the first picture, as stored.
///
/// # Errors
/// Truncated, corrupt, or unsupported by name.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), Failure> {
    open(bytes).map(|layout| (layout.width, layout.height))
}

/// The first picture's pixels, as stored.
///
/// # Errors
/// As [`size`]'s, and too large.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Failure> {
    let mut layout = open(bytes)?;
    let header = Header::plain(Format::Tiff, (layout.width, layout.height));
    let mut rgb = vec![0; limits.rgb_bytes(&header)?];
    chunks(&layout, &mut rgb)?;
    if let (Colour::Grey { white_is_zero }, Depth::Bits(9..)) = (&layout.colour, layout.depth) {
        // The highest bits are empty: the numbers are those of a byte, or the picture is black either way.
        let black = if *white_is_zero { 255 } else { 0 };
        if rgb.iter().all(|&value| value == black) {
            layout.scale = Scale::LowGrey;
            chunks(&layout, &mut rgb)?;
        }
    }
    Ok(RgbImage::from_raw(layout.width, layout.height, rgb).expect("three bytes were made for each pixel"))
}

fn chunks(layout: &Layout<'_>, rgb: &mut [u8]) -> Result<(), Failure> {
    for down in 0..layout.chunks.down {
        for across in 0..layout.chunks.across {
            chunk(layout, across, down, rgb)?;
        }
    }
    Ok(())
}

/// Decodes one strip or tile into its place.
fn chunk(layout: &Layout<'_>, across: u32, down: u32, rgb: &mut [u8]) -> Result<(), Failure> {
    let (left, top) = (across * layout.chunks.width, down * layout.chunks.height);
    let (wide, rows) = (layout.chunks.width.min(layout.width - left), layout.chunks.height.min(layout.height - top));
    let n = down as usize * layout.chunks.across as usize + across as usize;
    let planes: Vec<Vec<u8>> = (0..layout.planes).map(|plane| unpacked(layout, plane, n, rows)).collect::<Result<_, _>>()?;
    let is_jpeg = matches!(layout.packing, Compression::Jpeg { .. });
    let stride = if is_jpeg || layout.subsampling.is_some() {
        layout.chunks.width as usize * layout.samples
    } else {
        layout.row_bytes(layout.chunks.width) as usize
    };
    // A byte a sample: as stored side by side, then of all planes side by side.
    let mut line = vec![0; wide as usize * layout.samples];
    let samples = if layout.planes > 1 { layout.planes } else { layout.samples };
    let mut pixels = vec![0; if layout.planes > 1 { wide as usize * samples } else { 0 }];
    for row in 0..rows as usize {
        for (at, plane) in planes.iter().enumerate() {
            samples::reduce(&plane[row * stride..(row + 1) * stride], layout.depth, layout.scale, &mut line);
            if layout.planes > 1 {
                pixels.iter_mut().skip(at).step_by(samples).zip(&line).for_each(|(pixel, &sample)| *pixel = sample);
            }
        }
        let from = ((top as usize + row) * layout.width as usize + left as usize) * 3;
        let pixels = if layout.planes > 1 { &pixels } else { &line };
        layout.colour.convert(pixels, samples, layout.premultiplied, &mut rgb[from..from + wide as usize * 3]);
    }
    Ok(())
}

/// The samples of one plane of a chunk, as rows, in this machine's byte order.
fn unpacked(layout: &Layout<'_>, plane: usize, n: usize, rows: u32) -> Result<Vec<u8>, Failure> {
    let wanted = layout.chunk_bytes(rows)?;
    let data = chunk_data(layout, plane, n, wanted)?;
    let packing = match layout.packing {
        Compression::Jpeg { tables, transform } => {
            return stitched::decode(tables, data, transform, layout.samples, (layout.chunks.width, rows));
        }
        Compression::Packed(packing) => packing,
    };
    let turned: Vec<u8>;
    let data = if layout.is_reversed {
        turned = data.iter().map(|byte| byte.reverse_bits()).collect();
        &turned
    } else {
        data
    };
    let mut samples = unpack::unpack(packing, data, wanted, layout.chunks.width, rows)?;
    if let Some((across, down)) = layout.subsampling {
        return Ok(ycbcr::spread(&samples, layout.chunks.width, rows, across, down));
    }
    if layout.predictor != 1 || (layout.file.big_endian && layout.depth.bits() >= 16) {
        let stride = layout.row_bytes(layout.chunks.width) as usize;
        for row in samples.chunks_exact_mut(stride) {
            unpack::restore(row, layout.predictor, layout.depth.bits(), layout.samples, layout.file.big_endian)?;
        }
    }
    Ok(samples)
}
