//! Tokens for scoring and counting Chinese text: characters, or words by jieba.
//!
//! Two rules, which agree on text of Chinese characters, ASCII and punctuation:
//!
//! - [`Letters::Every`], the default: every letter and digit counts, in its compatible form (NFKC) and lower case. Kana, bopomofo and hangul are a token
//!   a character, as Chinese characters are; runs of other letters and digits (`café`, `кот`, `１２` as `12`) are one token.
//! - [`Letters::Strict`], pycocoevalcap's way on text cut so: one token a Chinese character, one a run of ASCII letters and digits (lower-cased);
//!   everything else is dropped.

use std::borrow::Cow;
use std::sync::OnceLock;

use jieba_rs::Jieba;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use super::han::is_han;

/// Which letters make tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Letters {
    /// Those of every script.
    #[default]
    Every,
    /// Chinese characters, ASCII letters and digits.
    Strict,
}

/// The characters of a text as tokens, and its words in other scripts.
pub fn char_tokens(text: &str, letters: Letters) -> Vec<Cow<'_, str>> {
    if letters == Letters::Strict || !has_others(text) {
        return strict_char_tokens(text).collect();
    }
    let folded = folded(text);
    runs(&folded).filter(|run| run.chars().any(is_letter)).map(|run| Cow::Owned(run.to_string())).collect()
}

fn strict_char_tokens(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let first = rest.chars().next()?;
            if first.is_ascii_alphanumeric() {
                let end = rest.bytes().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(rest.len());
                let (run, after) = rest.split_at(end);
                rest = after;
                return Some(lower(run));
            }
            let (token, after) = rest.split_at(first.len_utf8());
            rest = after;
            if is_han(first) {
                return Some(Cow::Borrowed(token));
            }
        }
    })
}

/// Words as jieba cuts them (with its model for unknown words), lower-cased; runs of other scripts' letters are words. A word without any letter or
/// digit that counts is dropped.
pub fn word_tokens(text: &str, letters: Letters) -> Vec<Cow<'_, str>> {
    let counts = |c: char| is_han(c) || c.is_ascii_alphanumeric();
    if letters == Letters::Strict || !has_others(text) {
        let cut = jieba().cut(text, true);
        return cut.into_iter().filter(|token| token.word.chars().any(counts)).map(|token| lower(token.word)).collect();
    }
    let folded = folded(text);
    let mut words: Vec<Cow<str>> = Vec::new();
    let cut = |rest: &str, words: &mut Vec<Cow<str>>| {
        let cut = jieba().cut(rest, true).into_iter().filter(|token| token.word.chars().any(is_letter));
        words.extend(cut.map(|token| Cow::Owned(token.word.to_string())));
    };
    // Runs in other scripts stand for themselves, and what lies between them is jieba's.
    let (mut start, mut at) = (0, 0);
    for run in runs(&folded) {
        let end = at + run.len();
        if run.chars().any(|c| !c.is_ascii() && is_letter(c) && !stands_alone(c)) {
            cut(&folded[start..at], &mut words);
            words.push(Cow::Owned(run.to_string()));
            start = end;
        }
        at = end;
    }
    cut(&folded[start..], &mut words);
    words
}

/// How many of a text's characters make no token, and how many there are: letters, digits and symbols, but neither white space nor punctuation.
pub fn dropped(text: &str, letters: Letters) -> (usize, usize) {
    let is_symbol = |c: char| matches!(u32::from(c), 0x2190..=0x2BFF | 0x1_F000..=0x1_FAFF | 0xE000..=0xF8FF);
    let kept = |c: char| match letters {
        Letters::Every => is_letter(c),
        Letters::Strict => is_han(c) || c.is_ascii_alphanumeric(),
    };
    text.chars().filter(|&c| is_letter(c) || is_symbol(c)).fold((0, 0), |(lost, all), c| (lost + usize::from(!kept(c)), all + 1))
}

fn is_letter(c: char) -> bool {
    // Asked first: the tables of all letters are slow to look up.
    matches!(c, '\u{4e00}'..='\u{9fff}') || c.is_alphanumeric() || !c.is_ascii() && is_combining_mark(c)
}

/// A token by itself: Chinese characters, kana, bopomofo, hangul.
fn stands_alone(c: char) -> bool {
    is_han(c)
        || matches!(u32::from(c),
            0x1100..=0x11FF | 0x3005..=0x3007 | 0x3021..=0x3029 | 0x3031..=0x3035 | 0x3038..=0x303C | 0x3040..=0x31BF | 0x31F0..=0x31FF
            | 0xA960..=0xA97F | 0xAC00..=0xD7FF)
}

/// Whether there are letters that only [`Letters::Every`] takes, or takes in another form.
fn has_others(text: &str) -> bool {
    !text.is_ascii() && text.chars().any(|c| !c.is_ascii() && !matches!(c, '\u{4e00}'..='\u{9fff}') && is_letter(c))
}

/// Letters in their compatible form and lower case; what is no letter stays, since commas and points mean something to jieba.
fn folded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_letter(c)).unwrap_or(rest.len());
        out.extend(rest[..end].nfkc().flat_map(char::to_lowercase));
        let after = rest[end..].find(is_letter).map_or(rest.len(), |start| end + start);
        out.push_str(&rest[end..after]);
        rest = &rest[after..];
    }
    out
}

/// A text cut into characters that stand alone, runs of other letters, and single characters that are none. Nothing is left out.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let in_run = |c: char| is_letter(c) && !stands_alone(c);
        let end = match in_run(first) {
            true => rest.find(|c| !in_run(c)).unwrap_or(rest.len()),
            // Its marks go with it.
            false => {
                let after = &rest[first.len_utf8()..];
                let marks = after.find(|c: char| c.is_ascii() || !is_combining_mark(c)).unwrap_or(after.len());
                first.len_utf8() + if stands_alone(first) { marks } else { 0 }
            }
        };
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}

/// The segmenter with its built-in dictionary, loaded once.
pub fn jieba() -> &'static Jieba {
    static JIEBA: OnceLock<Jieba> = OnceLock::new();
    JIEBA.get_or_init(Jieba::new)
}

fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str, letters: Letters) -> Vec<String> {
        char_tokens(text, letters).into_iter().map(Cow::into_owned).collect()
    }

    #[test]
    fn characters_and_latin_runs_are_tokens() {
        for letters in [Letters::Every, Letters::Strict] {
            assert_eq!(chars("穿T恤的 iPhone15，3.5！\u{1F600}", letters), ["穿", "t", "恤", "的", "iphone15", "3", "5"]);
            assert!(chars("，。 !", letters).is_empty());
        }
    }

    #[test]
    fn letters_of_every_script_are_tokens_unless_told() {
        let tokens = |text: &str| chars(text, Letters::Every);
        assert_eq!(tokens("犬のカメラ"), ["犬", "の", "カ", "メ", "ラ"]);
        assert_eq!(tokens("ｶﾞﾗｽ"), ["ガ", "ラ", "ス"]);
        assert_eq!(tokens("고양이 두 마리"), ["고", "양", "이", "두", "마", "리"]);
        assert_eq!(tokens("Рыжий кот, 2 шт."), ["рыжий", "кот", "2", "шт"]);
        assert_eq!(tokens("１２只Ｔ恤"), ["12", "只", "t", "恤"]);
        assert_eq!(tokens("un Café, größe"), ["un", "café", "größe"]);
        assert_eq!(tokens("cafe\u{301}"), ["café"]);
        assert_eq!(tokens("कुत्ता"), ["कुत्ता"]);
        assert_eq!(chars("犬のカメラ café кот １２", Letters::Strict), ["犬", "caf"]);
    }

    #[test]
    fn words_are_longer_than_characters() {
        for letters in [Letters::Every, Letters::Strict] {
            let tokens = word_tokens("一个男人在玩iPhone，很开心。", letters);
            assert!(tokens.iter().any(|t| t == "男人") && tokens.iter().any(|t| t == "iphone"), "{tokens:?}");
            assert_eq!(tokens.concat(), "一个男人在玩iphone很开心");
        }
        assert_eq!(word_tokens("Un café кот", Letters::Every), ["un", "café", "кот"]);
        assert!(word_tokens("男人在café", Letters::Every).iter().any(|t| t == "男人"));
        assert_eq!(word_tokens("кот", Letters::Strict).len(), 0);
    }

    #[test]
    fn chinese_characters_are_letters_to_unicode_too() {
        assert!(('\u{4e00}'..='\u{9fff}').all(char::is_alphanumeric));
    }

    #[test]
    fn what_makes_no_token_is_counted() {
        assert_eq!(dropped("一只猫。 a cat!", Letters::Strict), (0, 7));
        assert_eq!(dropped("猫の", Letters::Strict), (1, 2));
        assert_eq!(dropped("猫の\u{1F600}", Letters::Every), (1, 3));
    }

    proptest::proptest! {
        #[test]
        fn both_rules_agree_on_chinese_and_ascii(text in "[a-zA-Z0-9 ,.%!，。！％—一只猫狗在跑]{0,30}") {
            assert_eq!(char_tokens(&text, Letters::Every), char_tokens(&text, Letters::Strict));
            assert_eq!(word_tokens(&text, Letters::Every), word_tokens(&text, Letters::Strict));
        }
    }
}
