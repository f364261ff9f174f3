//! What a JPEG's headers say: the frame, and which of its data the scans bring.

use super::super::failure::{Failure, Reason};
use super::segments::{EOI, SOI, SOS, next_segment};

/// The frame header, of a kind that is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub width: u32,
    pub height: u32,
    pub progressive: bool,
    pub lossless: bool,
    /// Identifiers, by component.
    pub components: Vec<u8>,
    /// Where the first scan's data begins, behind its header.
    pub data_at: usize,
}

/// Everything up to the first scan.
pub(super) fn frame(bytes: &[u8]) -> Result<Frame, Failure> {
    let corrupt = |message: &str| Failure::new(Reason::Corrupt, message);
    let mut frame = None;
    let mut at = 2;
    loop {
        let segment = next_segment(bytes, at).ok_or_else(|| Failure::new(Reason::Truncated, "JPEG ends within its header"))?;
        at = segment.end;
        match segment.marker {
            SOS => {
                let mut frame: Frame = frame.ok_or_else(|| corrupt("JPEG without a frame header"))?;
                frame.data_at = at;
                return Ok(frame);
            }
            EOI => return Err(corrupt("JPEG without a picture")),
            // A second frame is left to the decoder, which refuses it.
            marker if frame.is_none() && is_frame(marker) => frame = Some(read(marker, segment.payload)?),
            _ => {}
        }
    }
}

/// `C4`, `C8` and `CC` are tables and a reserved marker; `F7` is JPEG-LS.
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | 0xF7)
}

fn read(marker: u8, payload: &[u8]) -> Result<Frame, Failure> {
    let unsupported = |what: String| Err(Failure::new(Reason::UnsupportedFormat, what));
    match marker {
        0xF7 => return unsupported("JPEG-LS, which is not read".into()),
        0xC5..=0xC7 | 0xCD..=0xCF => return unsupported("hierarchical JPEG, which is not read".into()),
        0xCB => return unsupported("lossless JPEG with arithmetic coding, which is not read".into()),
        _ => {}
    }
    let Some((&[precision, h1, h0, w1, w0, count], rest)) = payload.split_first_chunk::<6>() else {
        return Err(Failure::new(Reason::Corrupt, "JPEG with half a frame header"));
    };
    if precision != 8 {
        return unsupported(format!("JPEG of {precision} bits per sample (8 are read)"));
    }
    if !matches!(count, 1 | 3 | 4) {
        return unsupported(format!("JPEG of {count} colour channels (1, 3 and 4 are read)"));
    }
    let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
    if height == 0 && width > 0 {
        return unsupported("JPEG that tells its height behind the picture (DNL), which is not read".into());
    }
    Ok(Frame {
        width: width.into(),
        height: height.into(),
        progressive: matches!(marker, 0xC2 | 0xCA),
        lossless: marker == 0xC3,
        components: rest.chunks_exact(3).take(count.into()).map(|component| component[0]).collect(),
        data_at: 0,
    })
}

/// How much of the picture its scans bring, by their headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    Full,
    /// All of the picture is there, and some of its detail never comes (progressive).
    Coarse,
    /// A colour channel never comes.
    Missing,
}

const NEVER: u8 = u8::MAX;

/// Looks at every scan's header.
pub(super) fn coverage(bytes: &[u8], frame: &Frame) -> Coverage {
    // Of each coefficient the lowest bit that came.
    let mut lowest = vec![[NEVER; 64]; frame.components.len()];
    let mut at = 2;
    while let Some(segment) = next_segment(bytes, at) {
        at = segment.end;
        match segment.marker {
            SOS => {
                note_scan(segment.payload, frame, &mut lowest);
                // Most files are one scan, and the walk through its data is saved.
                if !frame.progressive && lowest.iter().all(|bits| bits[0] == 0) {
                    return Coverage::Full;
                }
            }
            EOI | SOI if at > frame.data_at => break,
            _ => {}
        }
    }
    if lowest.iter().any(|bits| bits[0] == NEVER) {
        Coverage::Missing
    } else if lowest.iter().flatten().any(|&bit| bit != 0) {
        Coverage::Coarse
    } else {
        Coverage::Full
    }
}

fn note_scan(header: &[u8], frame: &Frame, lowest: &mut [[u8; 64]]) {
    let Some((&count, rest)) = header.split_first() else { return };
    let Some((members, rest)) = rest.split_at_checked(2 * usize::from(count)) else { return };
    let (band, bit) = match rest.first_chunk() {
        Some(&[first, last, precision]) if frame.progressive => (first.into()..=usize::from(last), precision & 15),
        _ => (0..=63, 0),
    };
    for member in members.chunks_exact(2) {
        // Some files give two channels one identifier: the first that has not come yet is meant.
        let same = || frame.components.iter().enumerate().filter(|(_, id)| **id == member[0]).map(|(index, _)| index);
        let index = same().find(|&index| lowest[index][0] == NEVER).or_else(|| same().next());
        if let Some(bits) = index.and_then(|index| lowest[index].get_mut(band.clone())) {
            bits.fill(bit);
        }
    }
}
