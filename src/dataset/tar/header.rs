//! A header's block of 512 bytes: names, numbers, and its own checksum.

use super::BLOCK;

pub(super) fn padding(bytes: u64) -> u64 {
    (BLOCK as u64 - bytes % BLOCK as u64) % BLOCK as u64
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The sum of a header's bytes, its own field taken as spaces; old tars summed them with a sign.
pub(super) fn is_header(block: &[u8; BLOCK]) -> bool {
    let Some(stored) = number(&block[148..156]) else { return false };
    let bytes = || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let unsigned: u64 = bytes().map(u64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
    stored == unsigned || i64::try_from(stored).is_ok_and(|stored| stored == signed)
}

/// Octal digits among spaces and NULs, or GNU's binary form for what is larger.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7F);
        return field[1..].iter().try_fold(first, |all, byte| all.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits: Vec<u8> = field.iter().copied().filter(|byte| !matches!(byte, b' ' | 0)).collect();
    digits.iter().try_fold(0_u64, |all, digit| match digit {
        b'0'..=b'7' => all.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

pub(super) fn name_of(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    // POSIX's tars have a second field for what is in front; GNU's keep times there.
    let prefix = if &block[257..263] == b"ustar\0" { until_nul(&block[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// A member's name as a relative path; None where it leads out of the tar.
pub fn inner_path(name: &[u8]) -> Option<Vec<u8>> {
    if name.starts_with(b"/") {
        return None;
    }
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.is_empty() || parts.contains(&&b".."[..]) { None } else { Some(parts.join(&b'/')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_a_tar_are_none() {
        assert_eq!(inner_path(b"./a//b/./c.jpg").unwrap(), b"a/b/c.jpg");
        for out in [&b"../a"[..], b"a/../../b", b"/etc/passwd", b"", b".", b"a/.."] {
            assert!(inner_path(out).is_none(), "{}", String::from_utf8_lossy(out));
        }
    }

    #[test]
    fn numbers_of_both_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 12 \0"), Some(10));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Some(1 << 32));
        assert_eq!((number(b"9"), number(&[0xFF; 12])), (None, None));
    }
}
