//! From samples of any depth to bytes, and from bytes of any colour to RGB, as Pillow does it.

/// How a sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// 1 to 16 bits, packed.
    Bits(u8),
    Signed16,
    Signed32,
    Unsigned32,
    Float16,
    Float32,
    Float64,
}

impl Depth {
    pub fn bits(self) -> u64 {
        match self {
            Self::Bits(bits) => bits.into(),
            Self::Signed16 | Self::Float16 => 16,
            Self::Signed32 | Self::Unsigned32 | Self::Float32 => 32,
            Self::Float64 => 64,
        }
    }
}

/// What numbers beyond a byte mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Palette entries: as they are.
    Index,
    /// Few bits fill the byte, of many the highest stay; floats, signed and 32-bit numbers are cut to 0 to 255.
    Grey,
    /// Grey of more than 8 bits of which no sample needs more than 8: as they are.
    LowGrey,
    /// As grey, but floats run from 0 to 1.
    Colour,
}

/// The samples of a row, a byte each. Samples of several bytes come in this machine's (little-endian) order.
pub(super) fn reduce(row: &[u8], depth: Depth, scale: Scale, out: &mut [u8]) {
    let cut = |value: f64| if scale == Scale::Colour { (value.clamp(0.0, 1.0) * 255.0).round() as u8 } else { value as u8 };
    match depth {
        Depth::Bits(8) => out.copy_from_slice(&row[..out.len()]),
        Depth::Bits(16) if scale == Scale::LowGrey => {
            out.iter_mut().zip(row.as_chunks::<2>().0).for_each(|(o, v)| *o = u16::from_le_bytes(*v).min(255) as u8);
        }
        Depth::Bits(16) if scale != Scale::Index => out.iter_mut().zip(row.as_chunks::<2>().0).for_each(|(o, v)| *o = v[1]),
        Depth::Bits(bits) => packed(row, bits, scale, out),
        Depth::Signed16 => each(row, out, |v: [u8; 2]| i16::from_le_bytes(v).clamp(0, 255) as u8),
        Depth::Signed32 => each(row, out, |v: [u8; 4]| i32::from_le_bytes(v).clamp(0, 255) as u8),
        Depth::Unsigned32 => each(row, out, |v: [u8; 4]| u32::from_le_bytes(v).min(255) as u8),
        Depth::Float16 => each(row, out, |v: [u8; 2]| cut(half::f16::from_le_bytes(v).to_f64())),
        Depth::Float32 => each(row, out, |v: [u8; 4]| cut(f32::from_le_bytes(v).into())),
        Depth::Float64 => each(row, out, |v: [u8; 8]| cut(f64::from_le_bytes(v))),
    }
}

fn each<const N: usize>(row: &[u8], out: &mut [u8], value: impl Fn([u8; N]) -> u8) {
    out.iter_mut().zip(row.as_chunks::<N>().0).for_each(|(out, &bytes)| *out = value(bytes));
}

fn packed(row: &[u8], bits: u8, scale: Scale, out: &mut [u8]) {
    let (mut at, mask) = (0usize, (1u32 << bits) - 1);
    for out in out {
        let byte = |n: usize| u32::from(row.get(at / 8 + n).copied().unwrap_or(0));
        let window = byte(0) << 16 | byte(1) << 8 | byte(2);
        let value = window >> (24 - at % 8 - usize::from(bits)) & mask;
        *out = match scale {
            Scale::Index | Scale::LowGrey => value.min(255) as u8,
            _ if bits > 8 => (value >> (bits - 8)) as u8,
            _ => (value * 255 / mask) as u8,
        };
        at += usize::from(bits);
    }
}

/// What the bytes of a pixel mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Colour {
    Grey { white_is_zero: bool },
    Rgb,
    Palette(Vec<[u8; 3]>),
    Cmyk,
    YCbCr,
    Lab,
}

impl Colour {
    /// Samples of a pixel that carry the colour.
    pub fn samples(&self) -> usize {
        match self {
            Self::Grey { .. } | Self::Palette(_) => 1,
            Self::Rgb | Self::YCbCr | Self::Lab => 3,
            Self::Cmyk => 4,
        }
    }

    /// Pixels of `samples` bytes each become RGB. With `premultiplied`, the sample behind the colour is an alpha that is divided out.
    pub fn convert(&self, pixels: &[u8], samples: usize, premultiplied: bool, out: &mut [u8]) {
        let whole = |value: u8, pixel: &[u8], at: usize| match premultiplied.then(|| pixel[at]) {
            None | Some(255) => value,
            Some(0) => 0,
            Some(alpha) => (u32::from(value) * 255 / u32::from(alpha)).min(255) as u8,
        };
        for (pixel, out) in pixels.chunks_exact(samples).zip(out.as_chunks_mut::<3>().0) {
            *out = match self {
                Self::Grey { white_is_zero: true } => [255 - whole(pixel[0], pixel, 1); 3],
                Self::Grey { white_is_zero: false } => [whole(pixel[0], pixel, 1); 3],
                Self::Rgb => [0, 1, 2].map(|n| whole(pixel[n], pixel, 3)),
                Self::Palette(colours) => colours.get(usize::from(pixel[0])).copied().unwrap_or_default(),
                Self::Cmyk => [0, 1, 2].map(|n| {
                    let white = 255 - u32::from(pixel[3]);
                    let product = u32::from(pixel[n]) * white + 128;
                    (white - (((product >> 8) + product) >> 8)) as u8
                }),
                Self::YCbCr => super::ycbcr::rgb(pixel[0], pixel[1], pixel[2]),
                Self::Lab => super::lab::rgb(pixel[0], pixel[1], pixel[2]),
            };
        }
    }
}

/// A palette from its three columns of 16-bit numbers; where none is beyond a byte, its writer meant bytes.
pub(super) fn palette(columns: &[u64]) -> Vec<[u8; 3]> {
    let entries = columns.len() / 3;
    let shift = if columns.iter().all(|&value| value < 256) { 0 } else { 8 };
    (0..entries).map(|n| [0, 1, 2].map(|column| (columns[column * entries + n] >> shift) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(row: &[u8], depth: Depth, scale: Scale, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        reduce(row, depth, scale, &mut out);
        out
    }

    #[test]
    fn samples_of_any_depth_become_bytes() {
        assert_eq!(reduced(&[0b1010_0000], Depth::Bits(1), Scale::Grey, 3), [255, 0, 255]);
        assert_eq!(reduced(&[0b0001_1011], Depth::Bits(2), Scale::Grey, 4), [0, 85, 170, 255]);
        assert_eq!(reduced(&[0x5F], Depth::Bits(4), Scale::Grey, 2), [85, 255]);
        assert_eq!(reduced(&[0x5F], Depth::Bits(4), Scale::Index, 2), [5, 15]);
        assert_eq!(reduced(&[0x12, 0x3F, 0xED], Depth::Bits(12), Scale::Grey, 2), [0x12, 0xFE]);
        assert_eq!(reduced(&[0x34, 0x12], Depth::Bits(16), Scale::Grey, 1), [0x12]);
        let floats: Vec<u8> = [-4.0f32, 0.9, 100.7, 300.0, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(reduced(&floats, Depth::Float32, Scale::Grey, 5), [0, 0, 100, 255, 0]);
        let signed: Vec<u8> = [-4i16, 90, 3000].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(reduced(&signed, Depth::Signed16, Scale::Grey, 3), [0, 90, 255]);
    }

    #[test]
    fn alpha_is_divided_out_where_it_was_multiplied_in() {
        let mut out = [0; 9];
        Colour::Rgb.convert(&[50, 25, 200, 100, 9, 9, 9, 0, 7, 8, 9, 255], 4, true, &mut out);
        assert_eq!(out, [127, 63, 255, 0, 0, 0, 7, 8, 9]);
        Colour::Rgb.convert(&[50, 25, 200, 100], 4, false, &mut out);
        assert_eq!(out[..3], [50, 25, 200]);
    }
}
