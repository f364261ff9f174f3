//! From the bytes of a strip or tile to its samples, without more of them than the picture needs.

use std::io::Read;

use super::super::failure::Failure;
use super::fax::{self, Code};
use super::{corrupt, truncated, unsupported};

/// What compression a file may have that is undone here; JPEG is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Fax(Code),
    Lzw,
    Deflate,
    PackBits,
    Zstd,
}

impl Packing {
    /// Whether differences between neighbours may have been taken first.
    pub fn has_predictor(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate | Self::Zstd)
    }
}

/// The first `wanted` bytes of a chunk of `width` and `height`, unpacked.
///
/// # Errors
/// Truncated where `data` ends first, corrupt where it is no such data.
pub(super) fn unpack(packing: Packing, data: &[u8], wanted: usize, width: u32, height: u32) -> Result<Vec<u8>, Failure> {
    let out = match packing {
        Packing::None => data[..wanted.min(data.len())].to_vec(),
        Packing::Fax(code) => fax::lines(data, code, width, height)?,
        Packing::PackBits => pack_bits(data, wanted),
        Packing::Lzw => lzw(data, wanted)?,
        Packing::Deflate => read(flate2::read::ZlibDecoder::new(data), wanted, "deflate")?,
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(data).map_err(|error| corrupt(&format!("zstd: {error}")))?;
            read(decoder, wanted, "zstd")?
        }
    };
    if out.len() < wanted { Err(truncated()) } else { Ok(out) }
}

/// Memory grows with what really comes out.
fn read(decoder: impl Read, wanted: usize, name: &str) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    match decoder.take(wanted as u64).read_to_end(&mut out) {
        Ok(_) => Ok(out),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(truncated()),
        Err(error) => Err(corrupt(&format!("{name}: {error}"))),
    }
}

fn lzw(data: &[u8], wanted: usize) -> Result<Vec<u8>, Failure> {
    use weezl::{BitOrder, LzwStatus, decode::Configuration};
    // Before TIFF 6.0 codes began at the lowest bit; the first code of all, "clear", shows it.
    let old = data.len() > 1 && data[0] == 0 && data[1] & 1 == 1;
    let configuration = match old {
        true => Configuration::new(BitOrder::Lsb, 8),
        false => Configuration::with_tiff_size_switch(BitOrder::Msb, 8),
    };
    let mut decoder = configuration.with_yield_on_full_buffer(true).build();
    let (mut out, mut read, mut written) = (vec![0; wanted], 0, 0);
    while written < wanted {
        let result = decoder.decode_bytes(&data[read..], &mut out[written..]);
        read += result.consumed_in;
        written += result.consumed_out;
        match result.status {
            Ok(LzwStatus::Ok) => {}
            Ok(LzwStatus::NoProgress | LzwStatus::Done) => break,
            Err(error) => return Err(corrupt(&format!("LZW: {error}"))),
        }
    }
    out.truncate(written);
    Ok(out)
}

fn pack_bits(data: &[u8], wanted: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(wanted.min(data.len().saturating_mul(64)));
    let mut rest = data;
    while let Some((&head, tail)) = rest.split_first().filter(|_| out.len() < wanted) {
        match head as i8 {
            -128 => rest = tail,
            literal @ 0.. => {
                let length = (literal as usize + 1).min(tail.len());
                out.extend_from_slice(&tail[..length]);
                rest = &tail[length..];
            }
            repeat => {
                let Some((&value, tail)) = tail.split_first() else { break };
                out.resize(out.len() + 1 - repeat as isize as usize, value);
                rest = tail;
            }
        }
    }
    out.truncate(wanted);
    out
}

/// Undoes a predictor on a row of samples of `bits` each, `samples` a pixel; samples of several bytes come in the file's byte order
/// and leave in this machine's.
///
/// # Errors
/// Unsupported or corrupt, for predictors that do not fit the samples.
pub(super) fn restore(row: &mut [u8], predictor: u64, bits: u64, samples: usize, big_endian: bool) -> Result<(), Failure> {
    if predictor == 3 {
        return restore_floats(row, bits, samples);
    }
    let size = (bits / 8) as usize;
    if big_endian && bits.is_multiple_of(8) && matches!(size, 2 | 4 | 8) {
        row.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    match (predictor, bits) {
        (1, _) => {}
        (2, 8) => (samples..row.len()).for_each(|n| row[n] = row[n].wrapping_add(row[n - samples])),
        (2, 16 | 32 | 64) => {
            for at in (samples * size..row.len() - row.len() % size).step_by(size) {
                let (before, here) = row.split_at_mut(at);
                let mut carry = 0;
                for (byte, &left) in here[..size].iter_mut().zip(&before[at - samples * size..]) {
                    let sum = u16::from(*byte) + u16::from(left) + carry;
                    *byte = sum as u8;
                    carry = sum >> 8;
                }
            }
        }
        (2, _) => return Err(unsupported(&format!("differences between samples of {bits} bits"))),
        _ => return Err(unsupported(&format!("predictor {predictor}"))),
    }
    Ok(())
}

/// The bytes of a row of floats lie by significance, highest first, as differences.
fn restore_floats(row: &mut [u8], bits: u64, samples: usize) -> Result<(), Failure> {
    if !matches!(bits, 16 | 32 | 64) {
        return Err(unsupported(&format!("differences between floats of {bits} bits")));
    }
    for n in samples..row.len() {
        row[n] = row[n].wrapping_add(row[n - samples]);
    }
    let size = (bits / 8) as usize;
    let values = row.len() / size;
    let planes = row.to_vec();
    for (n, value) in row.chunks_exact_mut(size).enumerate() {
        for (significance, byte) in value.iter_mut().rev().enumerate() {
            *byte = planes[significance * values + n];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_bits_is_undone() {
        let packed = [0xFE, 0xAA, 0x02, 0x80, 0x00, 0x2A, 0x80, 0xFD, 0x07];
        assert_eq!(pack_bits(&packed, 100), [0xAA, 0xAA, 0xAA, 0x80, 0x00, 0x2A, 7, 7, 7, 7]);
        assert_eq!(pack_bits(&packed, 4), [0xAA, 0xAA, 0xAA, 0x80]);
    }

    #[test]
    fn differences_are_added_up_with_their_carry() {
        let mut row = [0x01, 0xF0, 0x00, 0x20, 0x00, 0x01];
        restore(&mut row, 2, 16, 1, true).unwrap();
        assert_eq!(row, [0xF0, 0x01, 0x10, 0x02, 0x11, 0x02]);
        let mut floats = [0x3F, 0x01, 0x40, 0x80];
        restore(&mut floats, 3, 16, 1, true).unwrap();
        // Sums: 3F 40 | 80 00 (wrapped): 3F80 and 4000.
        assert_eq!(floats, [0x80, 0x3F, 0x00, 0x40]);
    }
}
