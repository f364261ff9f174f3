//! YCbCr that is not JPEG: blocks of luma, each with one pair of chroma.

use super::super::failure::Failure;
use super::unsupported;

/// Bytes of a chunk: blocks of `across` x `down` lumas and two chromas, row by row.
pub(super) fn chunk_bytes(width: u32, height: u32, across: u32, down: u32) -> u64 {
    u64::from(width.div_ceil(across)) * u64::from(height.div_ceil(down)) * u64::from(across * down + 2)
}

/// How many lumas, across and down, share a pair of chromas.
///
/// # Errors
/// Unsupported where no format has such a number.
pub(super) fn subsampling(values: &[u64]) -> Result<(u32, u32), Failure> {
    match *values {
        [] => Ok((2, 2)),
        [across @ (1 | 2 | 4), down @ (1 | 2 | 4)] => Ok((across as u32, down as u32)),
        _ => Err(unsupported(&format!("chroma subsampling {values:?}"))),
    }
}

/// The blocks as rows of pixels of Y, Cb and Cr.
pub(super) fn spread(blocks: &[u8], width: u32, height: u32, across: u32, down: u32) -> Vec<u8> {
    let (width, height, across, down) = (width as usize, height as usize, across as usize, down as usize);
    let mut out = vec![0; width * height * 3];
    let (size, blocks_across) = (across * down + 2, width.div_ceil(across));
    for (n, block) in blocks.chunks_exact(size).enumerate() {
        let (left, top) = (n % blocks_across * across, n / blocks_across * down);
        for y in top..(top + down).min(height) {
            for x in left..(left + across).min(width) {
                let at = (y * width + x) * 3;
                out[at] = block[(y - top) * across + x - left];
                out[at + 1..at + 3].copy_from_slice(&block[size - 2..]);
            }
        }
    }
    out
}

/// One pixel by CCIR 601, as JPEG has it.
pub(super) fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| value.round().clamp(0.0, 255.0) as u8)
}
