//! What a TIFF directory says of its picture: size, samples, colours, and where the strips or tiles lie.

use super::super::failure::{Failure, Reason};
use super::directory::{Directory, File};
use super::fax::Code;
use super::samples::{Colour, Depth, Scale, palette};
use super::unpack::Packing;
use super::{corrupt, tag, truncated, unsupported, ycbcr};

/// A picture that can be decoded.
pub(super) struct Layout<'a> {
    pub file: File<'a>,
    pub width: u32,
    pub height: u32,
    pub depth: Depth,
    pub scale: Scale,
    pub colour: Colour,
    pub premultiplied: bool,
    pub packing: Compression<'a>,
    /// Of YCbCr that is not JPEG, where chroma is coarser than luma.
    pub subsampling: Option<(u32, u32)>,
    pub predictor: u64,
    /// The lowest bit of a byte comes first.
    pub is_reversed: bool,
    /// Samples of a pixel in a chunk: one where each has planes of its own.
    pub samples: usize,
    /// Planes that are needed: one where samples lie side by side.
    pub planes: usize,
    pub chunks: Chunks,
}

/// How chunks are packed.
pub(super) enum Compression<'a> {
    Packed(Packing),
    /// Tables for all chunks, and Adobe's number for the colours' transform.
    Jpeg {
        tables: Option<&'a [u8]>,
        transform: u8,
    },
}

/// Strips are tiles as wide as the picture.
pub(super) struct Chunks {
    pub width: u32,
    pub height: u32,
    pub across: u32,
    pub down: u32,
    offsets: Vec<u64>,
    /// Missing in some files.
    lengths: Vec<u64>,
}

impl Chunks {
    /// Where a chunk begins and how long it is, as far as that is said.
    pub fn place(&self, plane: usize, n: usize) -> Result<(u64, u64), Failure> {
        let at = plane * self.across as usize * self.down as usize + n;
        let offset = self.offsets.get(at).copied().ok_or_else(|| corrupt("fewer strips or tiles than the picture has"))?;
        Ok((offset, self.lengths.get(at).copied().unwrap_or(u64::MAX)))
    }
}

/// More samples in a pixel than any picture has.
const MAX_SAMPLES: u64 = 64;

/// Width and height, as stored.
pub(super) fn size(directory: &Directory<'_>) -> Result<(u32, u32), Failure> {
    let side = |name, tag| {
        let value = directory.first(tag)?.ok_or_else(|| corrupt(&format!("no {name} is given")))?;
        u32::try_from(value).map_err(|_| corrupt(&format!("a {name} of {value}")))
    };
    Ok((side("width", tag::WIDTH)?, side("height", tag::HEIGHT)?))
}

impl<'a> Layout<'a> {
    /// # Errors
    /// What is no TIFF picture is corrupt; what is one of a kind that is not read is unsupported, by name.
    pub fn new(file: File<'a>, directory: &Directory<'a>) -> Result<Self, Failure> {
        let (width, height) = size(directory)?;
        if width == 0 || height == 0 {
            return Err(corrupt(&format!("{width} x {height} pixels")));
        }
        let bits = directory.list(tag::BITS_PER_SAMPLE, MAX_SAMPLES as usize)?;
        let samples = directory.or(tag::SAMPLES_PER_PIXEL, bits.len().max(1) as u64)?;
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return Err(unsupported(&format!("{samples} samples a pixel")));
        }
        let depth = depth(directory, &bits, samples as usize)?;
        let compression = directory.or(tag::COMPRESSION, 1)?;
        let photometric = if compression == 6 { 6 } else { directory.or(tag::PHOTOMETRIC, 0)? };
        let mut colour = colour(directory, photometric, depth, samples)?;
        let packing = packing(directory, compression, photometric)?;
        let is_planar = directory.or(tag::PLANAR, 1)? == 2 && samples > 1;
        if (samples as usize) < colour.samples() {
            return Err(corrupt(&format!("{samples} samples a pixel, of colours that have {}", colour.samples())));
        }
        let premultiplied =
            directory.first(tag::EXTRA_SAMPLES)? == Some(1) && samples as usize > colour.samples() && colour != Colour::Cmyk;
        let mut subsampling = None;
        if colour == Colour::YCbCr {
            let coarser = Some(ycbcr::subsampling(&directory.list(tag::SUBSAMPLING, 2)?)?).filter(|&coarser| coarser != (1, 1));
            match packing {
                // The JPEG decoder gives RGB.
                Compression::Jpeg { .. } if !is_planar => colour = Colour::Rgb,
                _ if coarser.is_none() => {}
                Compression::Packed(_) if !is_planar && samples == 3 && depth == Depth::Bits(8) => subsampling = coarser,
                _ => return Err(unsupported("subsampled chroma in planes of its own")),
            }
        }
        let one_bit = depth == Depth::Bits(1) && samples == 1;
        match packing {
            Compression::Packed(Packing::Fax(_)) if !one_bit => return Err(corrupt("fax data of more than one bit a pixel")),
            Compression::Jpeg { .. } if depth != Depth::Bits(8) => return Err(unsupported("JPEG of other than 8 bits a sample")),
            _ => {}
        }
        let has_predictor = matches!(packing, Compression::Packed(packing) if packing.has_predictor());
        let predictor = if has_predictor { directory.or(tag::PREDICTOR, 1)? } else { 1 };
        Ok(Self {
            file,
            width,
            height,
            depth,
            scale: match colour {
                Colour::Palette(_) => Scale::Index,
                Colour::Grey { .. } => Scale::Grey,
                _ => Scale::Colour,
            },
            planes: if is_planar { colour.samples() + usize::from(premultiplied) } else { 1 },
            samples: if is_planar { 1 } else { samples as usize },
            colour,
            premultiplied,
            packing,
            subsampling,
            predictor,
            is_reversed: directory.or(tag::FILL_ORDER, 1)? == 2,
            chunks: chunks(directory, width, height, if is_planar { samples } else { 1 })?,
        })
    }

    /// Bytes of a row of `width` pixels in a chunk.
    pub fn row_bytes(&self, width: u32) -> u64 {
        (u64::from(width) * self.samples as u64 * self.depth.bits()).div_ceil(8)
    }

    /// Bytes that the first `rows` rows of a chunk unpack to.
    ///
    /// # Errors
    /// Too large where tiles are far larger than their picture, or pixels have far more samples than one that is seen.
    pub fn chunk_bytes(&self, rows: u32) -> Result<usize, Failure> {
        let bytes = match self.subsampling {
            Some((across, down)) => ycbcr::chunk_bytes(self.chunks.width, rows, across, down),
            None => self.row_bytes(self.chunks.width).saturating_mul(rows.into()),
        };
        let pixels = u64::from(self.width) * u64::from(self.height);
        if bytes > pixels * 16 + (64 << 20) {
            return Err(Failure::new(Reason::TooLarge, format!("TIFF: strips or tiles of {bytes} bytes for {pixels} pixels")));
        }
        Ok(bytes as usize)
    }
}

fn depth(directory: &Directory<'_>, bits: &[u64], samples: usize) -> Result<Depth, Failure> {
    let bits = &bits[..bits.len().min(samples)];
    let formats = directory.list(tag::SAMPLE_FORMAT, samples)?;
    let (bits, format) = match (bits, &formats[..]) {
        (bits, _) if bits.windows(2).any(|pair| pair[0] != pair[1]) => {
            return Err(unsupported(&format!("samples of different depths {bits:?}")));
        }
        (_, formats) if formats.windows(2).any(|pair| pair[0] != pair[1]) => {
            return Err(unsupported("samples of different kinds"));
        }
        (bits, formats) => (bits.first().copied().unwrap_or(1), formats.first().copied().unwrap_or(1)),
    };
    match (format, bits) {
        (1 | 4, 1..=16) => Ok(Depth::Bits(bits as u8)),
        (2, 8) => Ok(Depth::Bits(8)),
        (2, 16) => Ok(Depth::Signed16),
        (2, 32) => Ok(Depth::Signed32),
        (1 | 4, 32) => Ok(Depth::Unsigned32),
        (3, 16) => Ok(Depth::Float16),
        (3, 32) => Ok(Depth::Float32),
        (3, 64) => Ok(Depth::Float64),
        (1, _) => Err(unsupported(&format!("samples of {bits} bits"))),
        (2, _) => Err(unsupported(&format!("signed samples of {bits} bits"))),
        (3, _) => Err(unsupported(&format!("floats of {bits} bits"))),
        _ => Err(unsupported("complex numbers as samples")),
    }
}

fn colour(directory: &Directory<'_>, photometric: u64, depth: Depth, samples: u64) -> Result<Colour, Failure> {
    let is_float = matches!(depth, Depth::Float16 | Depth::Float32 | Depth::Float64);
    match photometric {
        // Of floats nobody knows what white is: Pillow takes them as they are.
        0 | 1 => Ok(Colour::Grey { white_is_zero: photometric == 0 && !is_float }),
        2 => Ok(Colour::Rgb),
        3 => match depth {
            Depth::Bits(bits @ 1..=8) => {
                let columns = directory.list(tag::COLOUR_MAP, 3 << bits)?;
                if columns.is_empty() { Err(corrupt("a palette is missing")) } else { Ok(Colour::Palette(palette(&columns))) }
            }
            _ => Err(unsupported("a palette of more than 256 colours")),
        },
        5 if directory.or(tag::INK_SET, 1)? == 1 => Ok(Colour::Cmyk),
        5 => Err(unsupported("inks other than CMYK")),
        6 if samples == 1 => Ok(Colour::Grey { white_is_zero: false }),
        6 if matches!(depth, Depth::Bits(8 | 16)) => Ok(Colour::YCbCr),
        6 => Err(unsupported("YCbCr of other than 8 bits")),
        4 => Err(unsupported("a transparency mask")),
        8 if depth == Depth::Bits(8) => Ok(Colour::Lab),
        8..=10 => Err(unsupported("CIELab colours of this kind")),
        32844 | 32845 => Err(unsupported("LogLuv colours")),
        other => Err(unsupported(&format!("colours of kind {other}"))),
    }
}

fn packing<'a>(directory: &Directory<'a>, compression: u64, photometric: u64) -> Result<Compression<'a>, Failure> {
    let packing = match compression {
        1 => Packing::None,
        2 => Packing::Fax(Code::Runs { align: 1 }),
        32771 => Packing::Fax(Code::Runs { align: 2 }),
        3 => Packing::Fax(Code::Group3 { mixed: directory.or(tag::T4_OPTIONS, 0)? & 1 == 1 }),
        4 => Packing::Fax(Code::Group4),
        5 => Packing::Lzw,
        8 | 32946 => Packing::Deflate,
        32773 => Packing::PackBits,
        50000 | 34926 => Packing::Zstd,
        7 => {
            let transform = u8::from(photometric == 6);
            return Ok(Compression::Jpeg { tables: directory.bytes(tag::JPEG_TABLES)?, transform });
        }
        // Of the old style, only what holds a whole JPEG somewhere.
        6 if directory.has(tag::OLD_JPEG) => return Ok(Compression::Jpeg { tables: None, transform: 1 }),
        6 => return Err(unsupported("old-style JPEG compression")),
        32766 => return Err(unsupported("NeXT compression")),
        32809 => return Err(unsupported("ThunderScan compression")),
        33003..=33005 | 34712 => return Err(unsupported("JPEG 2000 compression")),
        34661 => return Err(unsupported("JBIG compression")),
        34676 | 34677 => return Err(unsupported("SGI log compression")),
        34887 => return Err(unsupported("LERC compression")),
        34925 => return Err(unsupported("LZMA compression")),
        34927 | 50001 => return Err(unsupported("WebP compression")),
        50002 | 52546 => return Err(unsupported("JPEG XL compression")),
        other => return Err(unsupported(&format!("compression {other}"))),
    };
    Ok(Compression::Packed(packing))
}

fn chunks(directory: &Directory<'_>, width: u32, height: u32, planes: u64) -> Result<Chunks, Failure> {
    if directory.or(tag::COMPRESSION, 1)? == 6 {
        let (offsets, lengths) = (directory.list(tag::OLD_JPEG, 1)?, directory.list(tag::OLD_JPEG_LENGTH, 1)?);
        return Ok(Chunks { width, height, across: 1, down: 1, offsets, lengths });
    }
    let is_tiled = directory.has(tag::TILE_OFFSETS);
    let (wide, high) = match is_tiled {
        true => (directory.or(tag::TILE_WIDTH, 0)?, directory.or(tag::TILE_HEIGHT, 0)?),
        false => (width.into(), directory.or(tag::ROWS_PER_STRIP, height.into())?.min(height.into())),
    };
    // Strips of no rows are meant to hold all of them.
    let high = if high == 0 && !is_tiled { height.into() } else { high };
    let (Ok(wide @ 1..), Ok(high @ 1..)) = (u32::try_from(wide), u32::try_from(high)) else {
        return Err(corrupt(&format!("tiles of {wide} x {high} pixels")));
    };
    let (across, down) = (width.div_ceil(wide), height.div_ceil(high));
    let count = (u64::from(across) * u64::from(down)).saturating_mul(planes);
    let count = usize::try_from(count).map_err(|_| corrupt("more tiles than a file can hold"))?;
    let (offsets, lengths) = match is_tiled {
        true => (tag::TILE_OFFSETS, tag::TILE_LENGTHS),
        false => (tag::STRIP_OFFSETS, tag::STRIP_LENGTHS),
    };
    let offsets = directory.list(offsets, count)?;
    if offsets.is_empty() {
        return Err(corrupt("no strips and no tiles"));
    }
    let lengths = directory.list(lengths, count)?;
    Ok(Chunks { width: wide, height: high, across, down, offsets, lengths })
}

/// The bytes of a chunk, to the end of the file at most; `wanted` says how many it has where they are not packed.
pub(super) fn chunk_data<'a>(layout: &Layout<'a>, plane: usize, n: usize, wanted: usize) -> Result<&'a [u8], Failure> {
    let (offset, mut length) = layout.chunks.place(plane, n)?;
    if matches!(layout.packing, Compression::Packed(Packing::None)) {
        // Some writers count wrongly where the size is known anyway.
        length = wanted as u64;
    }
    let bytes = layout.file.bytes;
    let from = usize::try_from(offset).ok().filter(|&from| from < bytes.len()).ok_or_else(truncated)?;
    let to = offset.saturating_add(length).min(bytes.len() as u64) as usize;
    Ok(&bytes[from..to])
}
