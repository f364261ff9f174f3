//! Text that is not UTF-8: read on request (`--encoding gbk`), and noticed where nobody asked.

use std::io::{self, Read};
use std::str::FromStr;

use encoding_rs::{BIG5, Decoder, GB18030};

/// The encoding of a caption file, by its name on the web: gbk, gb18030, big5, utf-16, utf-8 and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding(&'static encoding_rs::Encoding);

impl Encoding {
    /// What files are in unless something else is said.
    pub const UTF_8: Self = Self(encoding_rs::UTF_8);

    /// The name as the web has it.
    pub fn name(self) -> String {
        self.0.name().to_ascii_lowercase()
    }

    /// Bytes as text; what is no text in this encoding becomes U+FFFD, and a byte order mark goes.
    pub fn decode(self, bytes: &[u8]) -> String {
        self.0.decode(bytes).0.into_owned()
    }
}

impl FromStr for Encoding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = encoding_rs::Encoding::for_label(text.trim().as_bytes());
        known.map(Self).ok_or_else(|| {
            format!("no encoding {text}; there are: utf-8, gbk, gb18030, big5, utf-16, shift_jis, euc-kr and others")
        })
    }
}

/// Reads text of another encoding as UTF-8. What is no text in it becomes U+FFFD, and a byte order mark goes.
pub struct Decoded<R> {
    reader: R,
    decoder: Decoder,
    raw: Vec<u8>,
    /// Decoded, and from `start` on not yet given away.
    text: String,
    start: usize,
    ended: bool,
}

/// Bytes read at once.
const RAW_BYTES: usize = 1 << 16;

impl<R: Read> Decoded<R> {
    /// Reads `reader` as text of `encoding`.
    pub fn new(reader: R, encoding: Encoding) -> Self {
        let decoder = encoding.0.new_decoder();
        Self { reader, decoder, raw: vec![0; RAW_BYTES], text: String::new(), start: 0, ended: false }
    }

    /// What was read from.
    pub fn into_inner(self) -> R {
        self.reader
    }
}

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.start == self.text.len() && !self.ended {
            let read = self.reader.read(&mut self.raw)?;
            self.ended = read == 0;
            self.text.clear();
            self.start = 0;
            // With room for the worst there is always room.
            self.text.reserve(self.decoder.max_utf8_buffer_length(read).unwrap_or(4 * RAW_BYTES));
            let _ = self.decoder.decode_to_string(&self.raw[..read], &mut self.text, self.ended);
        }
        let count = out.len().min(self.text.len() - self.start);
        out[..count].copy_from_slice(&self.text.as_bytes()[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }
}

/// Whether some text can only be UTF-8, and not `given`: other encodings do not give valid sequences of three bytes one after the other, and in
/// UTF-16 plain letters have zeros beside them.
pub fn is_surely_utf8(head: &[u8], given: Encoding) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character may be cut where the head ends.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
        Err(_) => return false,
    };
    let is_wide = [encoding_rs::UTF_16LE, encoding_rs::UTF_16BE].contains(&given.0);
    let is_plain = is_wide && valid.is_ascii() && !head.contains(&0);
    head.starts_with(b"\xEF\xBB\xBF") || is_plain || valid.bytes().filter(|&byte| byte >= 0xE0).count() > 1
}

/// The encoding that bytes, which are not UTF-8, are likely to be in.
pub fn likely(bytes: &[u8]) -> Option<&'static str> {
    if bytes.iter().filter(|&&byte| byte == 0).count() * 4 > bytes.len() {
        return Some("utf-16");
    }
    // The commonest characters stand first in both sets; text of one read as the other is full of rare ones.
    let common = |encoding: &'static encoding_rs::Encoding, lead: std::ops::RangeInclusive<u8>, trail: fn(u8) -> bool| {
        let (text, had_errors) = encoding.decode_without_bom_handling(bytes);
        let han = text.chars().filter(|&c| ('\u{4e00}'..='\u{9fff}').contains(&c)).count();
        if had_errors || han == 0 {
            return 0.0;
        }
        let (mut at, mut pairs, mut good) = (0, 0usize, 0usize);
        while at < bytes.len() {
            if bytes[at] < 0x80 {
                at += 1;
                continue;
            }
            pairs += 1;
            good += usize::from(lead.contains(&bytes[at]) && bytes.get(at + 1).is_some_and(|&byte| trail(byte)));
            at += 2;
        }
        good as f64 / pairs as f64
    };
    let gbk = common(GB18030, 0xB0..=0xD7, |byte| byte >= 0xA1);
    let big5 = common(BIG5, 0xA4..=0xC6, |byte| byte >= 0x40);
    match (gbk, big5) {
        (gbk, big5) if gbk >= 0.5 && gbk >= big5 => Some("gbk"),
        (_, big5) if big5 >= 0.5 => Some("big5"),
        (gbk, _) if gbk > 0.0 => Some("gbk"),
        _ => None,
    }
}

/// The encoding that a text file's first bytes are likely to be in; None where they are UTF-8.
pub fn likely_encoding(head: &[u8]) -> Option<Encoding> {
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return "utf-16".parse().ok();
    }
    // A character may be cut where the head ends; a line is whole.
    let whole = &head[..memchr::memrchr(b'\n', head).map_or(head.len(), |at| at + 1)];
    match std::str::from_utf8(whole) {
        // Two characters of GBK may be letters of UTF-8 by chance; scripts mixed as no language mixes them are no text.
        Ok(text) if !text.chars().any(|c| c >= '\u{800}') && text.lines().any(|line| by_chance(line).is_some()) => {
            "gbk".parse().ok()
        }
        Ok(_) => None,
        Err(_) => likely(whole)?.parse().ok(),
    }
}

/// What to do about bytes that are not UTF-8.
pub fn cure(bytes: &[u8]) -> String {
    match likely(bytes) {
        Some(name) => format!("it looks like {name}: give --encoding {name}"),
        None => "say which it is with --encoding".into(),
    }
}

/// Whether a block of UTF-8 may hold text of another encoding that is UTF-8 by chance: asked of every byte, without a branch.
pub fn may_be_chance(block: &[u8]) -> bool {
    block.iter().fold(false, |any, &byte| any | (0xC2..=0xD7).contains(&byte))
}

/// The scripts that letters of two bytes have in UTF-8. Marks without a letter and letters of few languages are scripts of their own.
fn script(c: char) -> u32 {
    match c {
        '\u{80}'..='\u{24f}' => 0,
        '\u{250}'..='\u{36f}' => 1,
        '\u{370}'..='\u{3ff}' => 2,
        '\u{400}'..='\u{45f}' => 3,
        '\u{460}'..='\u{52f}' => 4,
        '\u{530}'..='\u{58f}' => 5,
        _ => 6,
    }
}

/// The Chinese that a text of other scripts is in GBK: all of its letters beyond ASCII are two bytes that are common characters there.
fn as_chinese(text: &str) -> Option<String> {
    let is_common = |c: char| {
        let mut buffer = [0; 4];
        matches!(c.encode_utf8(&mut buffer).as_bytes(), [lead, trail] if (0xB0..=0xD7).contains(lead) && *trail >= 0xA1)
    };
    if text.is_ascii() || !text.chars().filter(|c| !c.is_ascii()).all(is_common) {
        return None;
    }
    GB18030.decode_without_bom_handling_and_without_replacement(text.as_bytes()).map(Into::into)
}

/// The Chinese that a line is in GBK, where that is what it must be: scripts mixed as no language mixes them, UTF-8 by chance.
pub fn by_chance(text: &str) -> Option<String> {
    let chinese = as_chinese(text)?;
    let scripts = text.chars().filter(|c| !c.is_ascii()).fold(0u32, |all, c| all | 1 << script(c));
    (scripts.count_ones() > 1 || scripts & 0b1010010 != 0).then_some(chinese)
}

/// The same where the lines beside it are not UTF-8 for certain: one script is no proof then.
pub fn by_chance_among_others(text: &str) -> Option<String> {
    as_chinese(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_in_the_encoding_that_its_bytes_are_in() {
        let of = |bytes: &[u8]| likely_encoding(bytes).map(Encoding::name);
        assert_eq!(of("1.jpg\t一只狗\n".as_bytes()), None);
        assert_eq!(of(b"1.jpg\ta dog\n"), None);
        assert_eq!(of("1.jpg\tcaf\u{e9}\n".as_bytes()), None);
        assert_eq!(of(&gbk("1.jpg\t一只狗\n")).as_deref(), Some("gbk"));
        // Valid UTF-8 as well.
        assert_eq!(of(&gbk("一只猫")).as_deref(), Some("gbk"));
        assert_eq!(of(b"\xff\xfea\0").as_deref(), Some("utf-16le"));
    }

    fn gbk(text: &str) -> Vec<u8> {
        encoding_rs::GBK.encode(text).0.into_owned()
    }

    #[test]
    fn other_encodings_are_read_whatever_the_pieces() {
        let text = "一只狗在草地上跑, two cats\n";
        for (name, bytes) in [
            ("gbk", gbk(text)),
            ("GB18030", gbk(text)),
            ("big5", BIG5.encode(text).0.into_owned()),
            ("utf-16", text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("utf-16", std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect()),
            ("utf-8", [b"\xEF\xBB\xBF", text.as_bytes()].concat()),
        ] {
            struct Slowly<'a>(&'a [u8]);
            impl Read for Slowly<'_> {
                fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                    let count = out.len().min(3).min(self.0.len());
                    out[..count].copy_from_slice(&self.0[..count]);
                    self.0 = &self.0[count..];
                    Ok(count)
                }
            }
            let mut read = String::new();
            Decoded::new(Slowly(&bytes), name.parse().unwrap()).read_to_string(&mut read).unwrap();
            assert_eq!(read, text, "{name}");
        }
        assert!("klingon".parse::<Encoding>().unwrap_err().contains("gb18030"));
    }

    #[test]
    fn a_file_that_is_plainly_utf8_is_told_from_one_that_is_not() {
        let (gbk_name, wide): (Encoding, Encoding) = ("gbk".parse().unwrap(), "utf-16".parse().unwrap());
        assert!(is_surely_utf8("1\t一只猫".as_bytes(), gbk_name) && is_surely_utf8("1\t一只猫".as_bytes(), wide));
        assert!(
            !is_surely_utf8(&gbk("1\t一只猫"), gbk_name)
                && !is_surely_utf8(b"1\tdog", gbk_name)
                && is_surely_utf8(b"1\tdog", wide)
        );
        assert!(!is_surely_utf8(&"1\tdog".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), wide));
    }

    #[test]
    fn the_likely_encoding_is_named() {
        assert_eq!(likely(&gbk("一只狗在草地上跑")), Some("gbk"));
        assert_eq!(likely(&gbk("1.jpg\t两个男人在下棋")), Some("gbk"));
        assert_eq!(likely(&BIG5.encode("兩個男人在下棋").0), Some("big5"));
        assert_eq!(likely(&"dog".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()), Some("utf-16"));
        assert_eq!(likely(b"\xff\xff"), None);
    }

    #[test]
    fn chinese_that_is_utf8_by_chance_is_noticed_and_other_languages_are_not() {
        let mojibake = String::from_utf8(gbk("一只猫")).unwrap();
        assert_eq!(by_chance(&mojibake).as_deref(), Some("一只猫"));
        assert_eq!(by_chance(&format!("1.png\t{mojibake}")).as_deref(), Some("1.png\t一只猫"));
        for text in [
            "a dog",
            "一只猫",
            "кот сидит на диване",
            "дина",
            "un café crème",
            "größe",
            "γάτα",
            "חתול",
            "T恤·é",
            "¿qué?",
            "Łódź",
            "20°C ± 1",
        ] {
            assert_eq!(by_chance(text), None, "{text}");
        }
    }
}
