//! A JPEG's markers, enough to know where it ends.

pub(super) const SOI: u8 = 0xD8;
pub(super) const EOI: u8 = 0xD9;
pub(in crate::image) const SOS: u8 = 0xDA;
pub(in crate::image) const APP1: u8 = 0xE1;

/// A marker and what belongs to it.
pub(in crate::image) struct Segment<'a> {
    pub marker: u8,
    /// Without the two bytes of its length; empty where the marker stands alone.
    pub payload: &'a [u8],
    /// Offset just behind the segment.
    pub end: usize,
}

/// The first segment at or behind `from`. Bytes that belong to no segment are skipped, as decoders do (entropy-coded data among
/// them). None where the file ends first.
pub(in crate::image) fn next_segment(bytes: &[u8], from: usize) -> Option<Segment<'_>> {
    let mut at = from;
    loop {
        at += memchr::memchr(0xFF, bytes.get(at..)?)?;
        let code = *bytes.get(at + 1)?;
        match code {
            0x00 => at += 2,
            0xFF => at += 1,
            0x01 | 0xD0..=0xD9 => return Some(Segment { marker: code, payload: &[], end: at + 2 }),
            _ => {
                let length = usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]));
                let payload = bytes.get(at + 4..at + 2 + length.max(2))?;
                return Some(Segment { marker: code, payload, end: at + 2 + length.max(2) });
            }
        }
    }
}

/// Where the end marker of the first picture in the file is.
pub(super) fn end_marker(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    // The picture's own end is looked for behind its header, where thumbnails with ends of their own live.
    loop {
        let segment = next_segment(bytes, at)?;
        at = segment.end;
        if segment.marker == SOS {
            break;
        }
    }
    // Almost every file ends with its end marker, and the walk through the scans is saved.
    if bytes.len() >= at + 2 && bytes.ends_with(&[0xFF, EOI]) {
        return Some(bytes.len() - 2);
    }
    loop {
        let segment = next_segment(bytes, at)?;
        match segment.marker {
            EOI => return Some(segment.end - 2),
            SOI => return None,
            _ => at = segment.end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_end() {
        let thumbnail = [0xFF, 0xD8, 0xFF, 0xD9];
        let mut file = vec![0xFF, SOI, 0xFF, 0xE1, 0, 6];
        file.extend(thumbnail);
        assert_eq!(end_marker(&file), None);
        file.extend([0xFF, SOS, 0, 2, 0x12, 0xFF, 0x00, 0x34, 0xFF, 0xD0]);
        assert_eq!(end_marker(&file), None);
        let end = file.len();
        file.extend([0xFF, EOI]);
        assert_eq!(end_marker(&file), Some(end));
        file.extend(b"trailer");
        assert_eq!(end_marker(&file), Some(end));
    }

    #[test]
    fn a_cut_segment_is_none() {
        assert!(next_segment(&[0xFF, 0xE0, 0, 9, 1, 2], 0).is_none());
        assert!(next_segment(&[0xFF], 0).is_none());
        assert!(next_segment(&[], 0).is_none());
        assert!(next_segment(&[1], 5).is_none());
    }
}
