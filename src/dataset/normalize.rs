//! Caption text as models should see it: NFC, no white space around Chinese, Latin words and numbers apart.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Which full-width forms (U+FF01 to U+FF5E) become their ASCII twins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoldWidth {
    /// Leave all of them.
    #[default]
    None,
    /// Fold letters and digits, and leave punctuation (a Chinese comma stays one).
    Letters,
    /// Fold all of them, punctuation too.
    All,
}

impl FoldWidth {
    fn apply(self, c: char) -> char {
        if self == Self::None || !('\u{ff01}'..='\u{ff5e}').contains(&c) {
            return c;
        }
        let folded = char::from_u32(c as u32 - 0xfee0).expect("U+FF01 to U+FF5E less 0xFEE0 is ASCII");
        if self == Self::All || folded.is_ascii_alphanumeric() { folded } else { c }
    }
}

/// Appends the normalized form of `raw` to `out`; nothing is appended where only white space is left.
///
/// White space goes where a Chinese character (or its punctuation) is on either side, and shrinks to one space elsewhere.
/// So segmented words join, and `iPhone 15` keeps its space. Zero-width and control characters go. Applying it twice changes nothing.
pub fn normalize_caption(raw: &str, fold: FoldWidth, out: &mut String) {
    if join_common(raw, fold, out) {
        return;
    }
    let start = out.len();
    let chars = || raw.chars().map(|c| fold.apply(c)).filter(|&c| !is_dropped(c));
    if raw.chars().all(|c| is_inert(c) || c.is_whitespace()) {
        join(chars(), out);
        return;
    }
    // Composed before, since marks may change places; and after, since what was apart may now compose.
    join(chars().nfc(), out);
    let composed: String = out[start..].nfc().collect();
    out.truncate(start);
    out.push_str(&composed);
}

/// The same for text of nothing but visible ASCII, spaces, unified ideographs and common Chinese punctuation, which nearly all captions
/// are. False, with nothing appended, where there is something else.
fn join_common(raw: &str, fold: FoldWidth, out: &mut String) -> bool {
    if !is_common(raw.as_bytes(), fold) {
        return false;
    }
    let is_space = |byte: u8| (byte == b' ') | (byte == b'\t');
    let has_latin = raw.bytes().fold(false, |has, byte| has | byte.is_ascii_graphic());
    let start = out.len();
    let mut buffer = std::mem::take(out).into_bytes();
    buffer.resize(start + raw.len() + 1, 0);
    let (mut end, mut after_space) = (start, false);
    for &byte in raw.as_bytes() {
        // Of the characters accepted here the Chinese ones are those beyond ASCII.
        if has_latin && after_space && byte.is_ascii_graphic() && end > start && buffer[end - 1].is_ascii() {
            buffer[end] = b' ';
            end += 1;
        }
        // Every byte is written, and white space gives its place to the next one: where words end cannot be guessed.
        buffer[end] = byte;
        end += usize::from(!is_space(byte));
        after_space = is_space(byte);
    }
    buffer.truncate(end);
    // SAFETY: the bytes of whole characters of `raw` and spaces stand behind the text that was there.
    *out = unsafe { String::from_utf8_unchecked(buffer) };
    true
}

/// Whether UTF-8 text consists of the characters that [`join_common`] knows. Asked of every byte, without a branch: the compiler asks many
/// at once.
fn is_common(text: &[u8], fold: FoldWidth) -> bool {
    let full_width = fold == FoldWidth::None;
    let is_known = |first: u8, second: u8, third: u8| {
        let ascii = (b' '..=b'~').contains(&first) | (first == b'\t');
        // The rest of a character, which its first byte has answered for.
        let rest = first & 0xc0 == 0x80;
        let ideograph = (0xe5..=0xe9).contains(&first) | (first == 0xe4) & (second >= 0xb8);
        let punctuation = (first == 0xe3) & (second == 0x80) & (0x81..=0xa9).contains(&third);
        let wide = (second == 0xbc) & (third >= 0x81) | (second == 0xbd) & (third <= 0x9e);
        ascii | rest | ideograph | punctuation | full_width & (first == 0xef) & wide
    };
    let inner = text.len().saturating_sub(2);
    let (seconds, thirds) = (text.get(1..).unwrap_or_default(), text.get(2..).unwrap_or_default());
    let all = text[..inner].iter().zip(seconds).zip(thirds).fold(true, |all, ((&a, &b), &c)| all & is_known(a, b, c));
    // No character of three bytes begins in the last two.
    all & text[inner..].iter().all(|&byte| is_known(byte, 0, 0))
}

/// Appends characters, with one space for white space between two that are not Chinese and none elsewhere.
///
/// A combining mark belongs to the character before it, whatever white space lies between: which of several marks comes first is up to NFC.
fn join(chars: impl Iterator<Item = char>, out: &mut String) {
    let mut last: Option<char> = None;
    let mut space = false;
    for c in chars {
        if c.is_whitespace() {
            space = true;
            continue;
        }
        if !c.is_ascii() && is_combining_mark(c) {
            out.push(c);
            continue;
        }
        if space && last.is_some_and(|last| !is_chinese(last) && !is_chinese(c)) {
            out.push(' ');
        }
        space = false;
        out.push(c);
        last = Some(c);
    }
}

/// As [`normalize_caption`], for a text of its own.
pub fn normalized(raw: &str, fold: FoldWidth) -> String {
    let mut out = String::with_capacity(raw.len());
    normalize_caption(raw, fold, &mut out);
    out
}

/// Visible ASCII, unified ideographs and common Chinese punctuation: not changed by NFC, whatever their neighbours.
fn is_inert(c: char) -> bool {
    matches!(c, '!'..='~' | '\u{4e00}'..='\u{9fff}' | '\u{3001}'..='\u{3029}' | '\u{ff01}'..='\u{ff5e}' | '\u{2018}'..='\u{201d}')
}

/// Seen by nobody: control characters that are no white space, zero-width ones, soft hyphens.
fn is_dropped(c: char) -> bool {
    c.is_control() && !c.is_whitespace()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{00ad}')
}

/// Ideographs, kana, and the punctuation and full-width forms set with them: text that is written without spaces.
pub fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{4e00}'..='\u{9fff}'
        | '\u{2329}'..='\u{232a}'
        | '\u{2e80}'..='\u{312f}'
        | '\u{31a0}'..='\u{4dbf}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe4f}'
        | '\u{ff00}'..='\u{ffef}'
        | '\u{20000}'..='\u{3ffff}')
}

/// An ideograph proper, as counted by lint and statistics.
pub fn is_han(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' | '\u{3007}')
}

/// Takes the part-of-speech marks off `word:tag` tokens; a token without one stays as it is.
pub fn without_tags(segmented: &str) -> String {
    let mut out = String::with_capacity(segmented.len());
    for token in segmented.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(split_tag(token).map_or(token, |(word, _)| word));
    }
    out
}

/// `word:tag` taken apart. Tags are short ASCII words such as `n`, `vshi` or `nr_name`; `10:30` is no tagged word.
pub fn split_tag(token: &str) -> Option<(&str, &str)> {
    let (word, tag) = token.rsplit_once(':')?;
    let letters = tag.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let plain = tag.len() <= 12 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (!word.is_empty() && letters && plain).then_some((word, tag))
}

/// Text with control characters written as escapes, cut to `limit` characters: safe to show in a message.
pub fn excerpt(text: &[u8], limit: usize) -> String {
    let text: Cow<str> = String::from_utf8_lossy(&text[..text.len().min(limit * 4)]);
    let mut out: String =
        text.chars().take(limit).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    if text.chars().count() > limit {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(raw: &str) -> String {
        normalized(raw, FoldWidth::None)
    }

    #[test]
    fn segmented_words_join_and_latin_words_keep_their_spaces() {
        assert_eq!(plain("两 个 人 拿 着 iPhone 15 手机"), "两个人拿着iPhone 15手机");
        assert_eq!(plain("  穿着 T恤衫\u{3000}的 人 \t"), "穿着T恤衫的人");
        assert_eq!(plain("a  New\u{a0}York 街 头 ， 很 热闹 。"), "a New York街头，很热闹。");
        assert_eq!(plain("红\u{200b}衣\u{feff}"), "红衣");
        assert_eq!(plain(" \u{3000}\t"), "");
    }

    #[test]
    fn nfc_composes_what_was_apart() {
        assert_eq!(plain("cafe\u{301} 里 的 人"), "café里的人");
        assert_eq!(plain("\u{f900}"), "\u{8c48}");
        assert_eq!(plain("か \u{3099}"), "が");
        assert_eq!(plain("1 \u{301}\u{3000}\u{3099}"), "1\u{3099}\u{301}");
    }

    #[test]
    fn full_width_forms_fold_by_choice() {
        let raw = "ＡＢ１２，好！";
        assert_eq!(normalized(raw, FoldWidth::None), raw);
        assert_eq!(normalized(raw, FoldWidth::Letters), "AB12，好！");
        assert_eq!(normalized(raw, FoldWidth::All), "AB12,好!");
    }

    #[test]
    fn tags_come_off_and_times_stay() {
        assert_eq!(without_tags("一架:m 飞机:n ::w 在:p"), "一架 飞机 : 在");
        assert_eq!(without_tags("10:30 的"), "10:30 的");
    }

    #[test]
    fn the_short_way_takes_the_characters_it_says_and_no_others() {
        for c in '\0'..='\u{20fff}' {
            let simple = matches!(c, ' '..='~' | '\t' | '\u{3001}'..='\u{3029}' | '\u{4e00}'..='\u{9fff}');
            let wide = matches!(c, '\u{ff01}'..='\u{ff5e}');
            for text in [format!("{c}"), format!("狗{c}"), format!("{c}狗 a狗b")] {
                assert_eq!(is_common(text.as_bytes(), FoldWidth::None), simple || wide, "{c:?}");
                assert_eq!(is_common(text.as_bytes(), FoldWidth::All), simple, "{c:?}");
            }
        }
        assert!(is_common(b"", FoldWidth::None));
    }

    #[test]
    fn an_excerpt_shows_no_control_characters() {
        assert_eq!(excerpt(b"a\0b", 10), "a\\u{0}b");
        assert_eq!(excerpt("狗狗狗".as_bytes(), 2), "狗狗…");
    }

    proptest! {
        #[test]
        fn twice_is_once(raw in "\\PC{0,40}|[ a-c1你好，\u{301}\u{3000}\u{200b}\u{3099}か\u{2329}Ａ]{0,20}") {
            for fold in [FoldWidth::None, FoldWidth::Letters, FoldWidth::All] {
                let once = normalized(&raw, fold);
                prop_assert_eq!(&normalized(&once, fold), &once);
            }
        }

        #[test]
        fn the_short_way_agrees_with_the_long_way(raw in "[ -~你好吗，。！Ａ　\t]{0,40}") {
            let mut long = String::new();
            join(raw.chars(), &mut long);
            let mut short = String::from("x");
            if join_common(&raw, FoldWidth::None, &mut short) {
                prop_assert_eq!(&short[1..], &long);
            }
            prop_assert_eq!(plain(&raw), long);
        }

        #[test]
        fn only_white_space_is_lost_from_plain_text(raw in "[a-z0-9 你好吗，。\t]{0,40}") {
            let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(bare(&plain(&raw)), bare(&raw));
        }
    }
}
