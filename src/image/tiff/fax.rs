//! CCITT's codes for black and white: run lengths (compression 2), Group 3 in one and two dimensions (3), Group 4 (4).

use std::convert::Infallible;

use fax::BitReader;
use fax::maps::{Mode, black, mode, white};

use super::super::failure::Failure;
use super::{corrupt, truncated, unsupported};

/// How lines are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// Runs; every line begins at a byte, or at an even one.
    Runs {
        align: usize,
    },
    /// Group 3; `mixed` lines say whether they are runs or differences.
    Group3 {
        mixed: bool,
    },
    Group4,
}

/// Bits from the highest to the lowest of each byte, with zeros behind the end.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn window(&self) -> u32 {
        let byte = |n: usize| u32::from(self.bytes.get(self.at / 8 + n).copied().unwrap_or(0));
        (byte(0) << 24 | byte(1) << 16 | byte(2) << 8 | byte(3)) << (self.at % 8)
    }

    fn has_ended(&self) -> bool {
        self.at >= self.bytes.len() * 8
    }

    fn align(&mut self, bytes: usize) {
        self.at = self.at.next_multiple_of(8 * bytes);
    }
}

impl BitReader for Bits<'_> {
    type Error = Infallible;

    fn peek(&self, bits: u8) -> Option<u16> {
        Some(if bits == 0 { 0 } else { (self.window() >> (32 - u32::from(bits))) as u16 })
    }

    fn consume(&mut self, bits: u8) -> Result<(), Infallible> {
        self.at += usize::from(bits);
        Ok(())
    }

    fn bits_to_byte_boundary(&self) -> u8 {
        (self.at.next_multiple_of(8) - self.at) as u8
    }
}

/// Lines of `width` bits, packed into bytes, 1 for black. Lines that the data ends before are white where the code says that it ends
/// there.
///
/// # Errors
/// Truncated where the data ends within the picture, corrupt where it holds what is no code.
pub(super) fn lines(data: &[u8], code: Code, width: u32, height: u32) -> Result<Vec<u8>, Failure> {
    let row = width.div_ceil(8) as usize;
    let mut out = vec![0; row * height as usize];
    let mut bits = Bits { bytes: data, at: 0 };
    let (mut reference, mut current) = (vec![width], Vec::new());
    for line in out.chunks_exact_mut(row) {
        let whole = match code {
            Code::Runs { align } => {
                bits.align(align);
                runs(&mut bits, width, &mut current)?
            }
            Code::Group3 { mixed } => match group3_line(&mut bits, mixed)? {
                Line::Runs => runs(&mut bits, width, &mut current)?,
                Line::Differences => differences(&mut bits, width, &reference, &mut current)?,
                Line::End => return Ok(out),
            },
            Code::Group4 => differences(&mut bits, width, &reference, &mut current)?,
        };
        if !whole {
            return Ok(out);
        }
        paint(&current, line);
        std::mem::swap(&mut reference, &mut current);
    }
    Ok(out)
}

enum Line {
    Runs,
    Differences,
    End,
}

/// Takes the end-of-line code in front of a line (some writers leave them out), and the bit behind it. Six in a row end the picture.
fn group3_line(bits: &mut Bits<'_>, mixed: bool) -> Result<Line, Failure> {
    let (mut ends, mut runs) = (0, true);
    // Eleven zeros begin no other code; more may fill up to a byte.
    while bits.peek(11) == Some(0) {
        while bits.peek(1) == Some(0) {
            if bits.has_ended() {
                return Err(truncated());
            }
            bits.at += 1;
        }
        bits.at += 1;
        if mixed {
            runs = bits.peek(1) == Some(1);
            bits.at += 1;
        }
        ends += 1;
        if ends == 6 {
            return Ok(Line::End);
        }
    }
    if mixed && ends == 0 {
        return Err(corrupt("a line of Group 3 in two dimensions does not say how it is coded"));
    }
    Ok(if runs { Line::Runs } else { Line::Differences })
}

/// One run: its make-up codes and the one that ends it.
fn run(bits: &mut Bits<'_>, is_black: bool) -> Result<u32, Failure> {
    let mut length = 0u32;
    loop {
        let part = if is_black { black::decode(bits) } else { white::decode(bits) };
        let Some(part) = part.filter(|_| bits.at <= bits.bytes.len() * 8) else { return Err(broken(bits)) };
        length = length.saturating_add(part.into());
        if part < 64 {
            return Ok(length);
        }
    }
}

fn broken(bits: &Bits<'_>) -> Failure {
    // The longest code has 13 bits.
    if bits.at + 13 >= bits.bytes.len() * 8 { truncated() } else { corrupt("invalid fax code") }
}

/// A line in one dimension: the places where the colour changes, white first, the width last.
fn runs(bits: &mut Bits<'_>, width: u32, changes: &mut Vec<u32>) -> Result<bool, Failure> {
    changes.clear();
    let (mut at, mut is_black) = (0u32, false);
    while at < width {
        at = at.saturating_add(run(bits, is_black)?).min(width);
        changes.push(at);
        is_black = !is_black;
    }
    Ok(true)
}

/// A line in two dimensions, by its differences from the one above. False at the end of the block.
fn differences(bits: &mut Bits<'_>, width: u32, above: &[u32], changes: &mut Vec<u32>) -> Result<bool, Failure> {
    changes.clear();
    let (mut at, mut is_black, mut started) = (0u32, false, false);
    // Places above alternate: even ones begin black, odd ones white.
    let mut from = 0;
    while at < width {
        let begin = bits.at;
        let code = mode::decode(bits).filter(|_| begin < bits.bytes.len() * 8);
        // The next change above, right of here, to the other colour.
        while from > 0 && above.get(from - 1).is_some_and(|&place| place > at) {
            from -= 1;
        }
        while above.get(from).is_some_and(|&place| (place <= at && (started || place < at)) || (from % 2 == 1) != is_black) {
            from += 1;
        }
        let b1 = above.get(from).copied().unwrap_or(width);
        match code {
            Some(Mode::Pass) => {
                at = above.get(from + 1).copied().unwrap_or(width);
                started = true;
                continue;
            }
            Some(Mode::Vertical(by)) => {
                let place = i64::from(b1) + i64::from(by);
                if place < i64::from(at) || place > i64::from(width) {
                    return Err(corrupt("fax data that leads out of its line"));
                }
                at = place as u32;
                changes.push(at);
                is_black = !is_black;
            }
            Some(Mode::Horizontal) => {
                for colour in [is_black, !is_black] {
                    at = at.saturating_add(run(bits, colour)?).min(width);
                    changes.push(at);
                }
            }
            Some(Mode::Extension) => return Err(unsupported("fax data with uncompressed parts")),
            Some(Mode::EOF) if !started => return Ok(false),
            Some(Mode::EOF) | None => return Err(broken(bits)),
        }
        started = true;
    }
    Ok(true)
}

/// Sets the bits of a line's black runs: from each even change to the odd one behind it.
fn paint(changes: &[u32], line: &mut [u8]) {
    for &[from, to] in changes.as_chunks::<2>().0 {
        let (mut at, to) = (from as usize, to as usize);
        while at < to {
            if at % 8 == 0 && to - at >= 8 {
                line[at / 8] = 0xFF;
                at += 8;
            } else {
                line[at / 8] |= 0x80 >> (at % 8);
                at += 1;
            }
        }
    }
}
