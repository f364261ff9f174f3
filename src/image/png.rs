//! PNG's odd relatives: files that lack their end, and Apple's variant for phones.

use std::borrow::Cow;

/// Width and height of Apple's "CgBI", which is PNG in name only: other compression, other channels.
pub(super) fn cgbi(bytes: &[u8]) -> Option<(u32, u32)> {
    let side = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    (bytes.get(12..16) == Some(b"CgBI")).then_some(())?;
    // Behind its own chunk comes the usual first one.
    let header = 8 + 12 + side(8)? as usize;
    Some((side(header.checked_add(8)?)?, side(header.checked_add(12)?)?))
}

/// A chunk that must be understood and is of no kind that PNG has, in front of the pixels.
pub(super) fn unknown_critical(bytes: &[u8]) -> Option<String> {
    let mut at = 8;
    while let Some(&[a, b, c, d, kind @ ..]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        match &kind {
            b"IDAT" | b"IEND" => return None,
            b"IHDR" | b"PLTE" => {}
            kind if kind.iter().all(u8::is_ascii_alphabetic) && kind[0].is_ascii_uppercase() => {
                let end = at.checked_add(8)?.checked_add(u32::from_be_bytes([a, b, c, d]) as usize)?;
                let mut sum = flate2::Crc::new();
                sum.update(bytes.get(at + 4..end)?);
                // With another checksum it is a damaged chunk of some other kind.
                let is_whole = bytes.get(end..end + 4)? == sum.sum().to_be_bytes();
                return is_whole.then(|| String::from_utf8_lossy(kind).into_owned());
            }
            _ => {}
        }
        at = at.checked_add(12)?.checked_add(u32::from_be_bytes([a, b, c, d]) as usize)?;
    }
    None
}

/// The file with the end that it lacks: all pixels may be there without it. A file that reaches its end stays as it is.
pub(super) fn with_end(bytes: &[u8]) -> Cow<'_, [u8]> {
    const END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";
    let mut at = 8;
    while let Some(&[a, b, c, d, kind @ ..]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        match at.checked_add(12).and_then(|at| at.checked_add(length)).filter(|&next| next <= bytes.len()) {
            Some(_) if kind == *b"IEND" => return Cow::Borrowed(bytes),
            Some(next) => at = next,
            None if kind == *b"IDAT" => {
                // The pixels' last chunk is cut: what is left of it becomes a whole one.
                let data = &bytes[at + 8..bytes.len().min(at + 8 + length)];
                let mut sum = flate2::Crc::new();
                sum.update(b"IDAT");
                sum.update(data);
                let length = data.len() as u32;
                let parts = [&bytes[..at], &length.to_be_bytes(), b"IDAT", data, &sum.sum().to_be_bytes(), &END];
                return Cow::Owned(parts.concat());
            }
            None => break,
        }
    }
    // The walk lost its way in a file that has its end all the same: damage, which the decoder will find.
    if memchr::memmem::find(bytes, &END).is_some() {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned([&bytes[..at.min(bytes.len())], &END].concat())
}
