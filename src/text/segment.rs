//! Tokens for scoring and counting Chinese text: characters, or words by jieba.

use std::borrow::Cow;
use std::sync::OnceLock;

use jieba_rs::Jieba;

use super::han::is_han;

/// One token a Han character, one a run of ASCII letters and digits (lower-cased); everything else is dropped.
pub fn char_tokens(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
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

/// Words as jieba cuts them (with its model for unknown words), lower-cased; a word with neither a Han character nor an ASCII letter or
/// digit is dropped.
pub fn word_tokens(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let counts = |c: char| is_han(c) || c.is_ascii_alphanumeric();
    jieba().cut(text, true).into_iter().filter_map(move |token| token.word.chars().any(counts).then(|| lower(token.word)))
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

    #[test]
    fn characters_and_latin_runs_are_tokens() {
        let tokens: Vec<_> = char_tokens("穿T恤的 iPhone15，3.5！\u{1F600}").collect();
        assert_eq!(tokens, ["穿", "t", "恤", "的", "iphone15", "3", "5"]);
        assert_eq!(char_tokens("，。 !").count(), 0);
    }

    #[test]
    fn words_are_longer_than_characters() {
        let tokens: Vec<_> = word_tokens("一个男人在玩iPhone，很开心。").collect();
        assert!(tokens.iter().any(|t| t == "男人") && tokens.iter().any(|t| t == "iphone"), "{tokens:?}");
        assert_eq!(tokens.concat(), "一个男人在玩iphone很开心");
    }
}
