//! GIF's first frame, on a screen that holds it: what Pillow shows, of files that stop, begin or measure as they should not.
//!
//! Nothing behind the first frame's pixels is looked at.

use image::RgbImage;
use weezl::{BitOrder, LzwStatus, decode::Configuration};

use super::decode::{Header, Limits};
use super::failure::{Failure, Reason};
use super::sniff::Format;

/// The first frame and what it is drawn with.
struct Frame<'a> {
    screen: (u32, u32),
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    is_interlaced: bool,
    palette: [[u8; 3]; 256],
    /// The colour that no pixel shows: where the frame does not reach, it lies.
    transparent: Option<u8>,
    /// From the code size on.
    data: &'a [u8],
}

fn truncated() -> Failure {
    Failure::new(Reason::Truncated, "GIF data ends before the picture does")
}

fn corrupt(what: &str) -> Failure {
    Failure::new(Reason::Corrupt, format!("GIF: {what}"))
}

fn short(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

/// Colours beyond a palette's end are black; where there is no palette, they are shades of grey.
fn palette(bytes: &[u8]) -> [[u8; 3]; 256] {
    let mut palette = std::array::from_fn(|n| if bytes.is_empty() { [n as u8; 3] } else { [0; 3] });
    palette.iter_mut().zip(bytes.as_chunks::<3>().0).for_each(|(colour, &given)| *colour = given);
    palette
}

/// Walks up to the first frame.
fn first_frame(bytes: &[u8]) -> Result<Frame<'_>, Failure> {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let next = |at: usize| bytes.get(at).copied().ok_or_else(truncated);
    let colours = |at: usize, length: usize| bytes.get(at..at + length).ok_or_else(truncated);
    let (Some(wide), Some(high)) = (short(bytes, 6), short(bytes, 8)) else { return Err(truncated()) };
    let global = colours(13, table(next(10)?))?;
    let mut at = 13 + global.len();
    let mut transparent = None;
    loop {
        match next(at)? {
            b',' => break,
            b';' => return Err(corrupt("no picture in it")),
            b'!' => {
                let (label, mut block) = (next(at + 1)?, at + 2);
                if let (0xF9, Some(&[4..=255, flags, _, _, colour])) =
                    (label, bytes.get(block..).and_then(|rest| rest.first_chunk()))
                {
                    transparent = (flags & 1 == 1).then_some(colour).or(transparent);
                }
                while let length @ 1.. = next(block)? {
                    block += 1 + usize::from(length);
                }
                at = block + 1;
            }
            // What is no block is passed over, as every viewer does.
            _ => at += 1,
        }
    }
    let place: Option<Vec<u32>> = (0..4).map(|n| short(bytes, at + 1 + n * 2)).collect();
    let &[left, top, width, height] = &place.ok_or_else(truncated)?[..] else { return Err(truncated()) };
    let flags = next(at + 9)?;
    let local = colours(at + 10, table(flags))?;
    if width == 0 || height == 0 {
        return Err(corrupt(&format!("a frame of {width} x {height} pixels")));
    }
    Ok(Frame {
        screen: (wide.max(left + width), high.max(top + height)),
        left,
        top,
        width,
        height,
        is_interlaced: flags & 0x40 != 0,
        palette: palette(if local.is_empty() { global } else { local }),
        transparent,
        data: &bytes[at + 10 + local.len()..],
    })
}

/// Size of the screen, grown to hold the first frame.
///
/// # Errors
/// Truncated, or corrupt where there is no frame.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), Failure> {
    first_frame(bytes).map(|frame| frame.screen)
}

/// The first frame's pixels.
///
/// # Errors
/// Truncated, too large, or corrupt.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Failure> {
    let frame = first_frame(bytes)?;
    let (wide, high) = frame.screen;
    limits.rgb_bytes(&Header::plain(Format::Gif, frame.screen))?;
    let indices = unpacked(&frame)?;
    let around = frame.palette[usize::from(frame.transparent.unwrap_or(0))];
    let mut image = RgbImage::from_pixel(wide, high, image::Rgb(around));
    let rows: Vec<u32> = match frame.is_interlaced {
        true => [(0, 8), (4, 8), (2, 4), (1, 2)].into_iter().flat_map(|(from, by)| (from..frame.height).step_by(by)).collect(),
        false => (0..frame.height).collect(),
    };
    for (row, y) in indices.chunks_exact(frame.width as usize).zip(rows) {
        let from = ((frame.top + y) as usize * wide as usize + frame.left as usize) * 3;
        let pixels = image.as_flat_samples_mut().samples;
        for (pixel, &index) in pixels[from..].as_chunks_mut::<3>().0.iter_mut().zip(row) {
            *pixel = frame.palette[usize::from(index)];
        }
    }
    Ok(image)
}

/// The frame's palette indices, in the order of the file.
fn unpacked(frame: &Frame<'_>) -> Result<Vec<u8>, Failure> {
    let (&code_size, blocks) = frame.data.split_first().ok_or_else(truncated)?;
    if !(1..=11).contains(&code_size) {
        return Err(corrupt(&format!("codes of {code_size} bits")));
    }
    let wanted = frame.width as usize * frame.height as usize;
    let mut decoder = Configuration::new(BitOrder::Lsb, code_size).with_yield_on_full_buffer(true).build();
    let (mut out, mut rest) = (Vec::new(), blocks);
    let mut buffer = [0; 1 << 14];
    while let Some((&length @ 1.., tail)) = rest.split_first() {
        let (mut data, tail) = tail.split_at(usize::from(length).min(tail.len()));
        rest = tail;
        loop {
            let result = decoder.decode_bytes(data, &mut buffer);
            data = &data[result.consumed_in..];
            out.extend_from_slice(&buffer[..result.consumed_out]);
            if out.len() >= wanted {
                out.truncate(wanted);
                return Ok(out);
            }
            match result.status {
                Ok(LzwStatus::Ok) if result.consumed_in + result.consumed_out > 0 => {}
                Ok(LzwStatus::Ok | LzwStatus::NoProgress) => break,
                Ok(LzwStatus::Done) => return Err(truncated()),
                Err(error) => return Err(corrupt(&format!("LZW: {error}"))),
            }
        }
    }
    Err(truncated())
}
