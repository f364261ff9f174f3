//! Captions put in order after they are made: script, replacements, punctuation, and words that must or must not be there.

use ferrous_opencc::OpenCC;
use ferrous_opencc::config::BuiltinConfig;
use serde::{Deserialize, Serialize};

/// What is done to captions; nothing unless it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cleaning {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,
    /// Regular expressions and what stands in for what they match ($1 for a group), one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replace: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub punctuation: Option<Punctuation>,
    /// A caption with any of these is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub banned: Vec<String>,
    /// A caption without any of these is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
}

/// Chinese characters of one script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Script {
    Simplified,
    Traditional,
}

/// What becomes of punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Punctuation {
    /// All of it goes.
    None,
    /// What stands at the end goes.
    NoEnd,
    /// Wide marks, as Chinese has them.
    Wide,
    /// ASCII marks.
    Ascii,
}

/// A [`Cleaning`] made ready.
pub struct Cleaner {
    opencc: Option<OpenCC>,
    replace: Vec<(regex::Regex, String)>,
    settings: Cleaning,
}

/// Marks as ASCII and as Chinese has them.
const MARKS: [(char, char); 8] =
    [(',', '，'), ('.', '。'), ('!', '！'), ('?', '？'), (';', '；'), (':', '：'), ('(', '（'), (')', '）')];

impl Cleaner {
    /// # Errors
    /// A regular expression that is none.
    pub fn new(settings: &Cleaning) -> Result<Self, String> {
        let opencc = match settings.script {
            None => None,
            Some(script) => {
                let config = if script == Script::Simplified { BuiltinConfig::T2s } else { BuiltinConfig::S2t };
                Some(
                    OpenCC::from_config(config)
                        .map_err(|error| format!("the conversion of characters cannot be loaded: {error}"))?,
                )
            }
        };
        let compile = |(pattern, text): &(String, String)| match regex::RegexBuilder::new(pattern).size_limit(1 << 20).build() {
            Ok(regex) => Ok((regex, text.clone())),
            Err(error) => Err(format!("--replace {pattern}: {error}")),
        };
        Ok(Self { opencc, replace: settings.replace.iter().map(compile).collect::<Result<_, _>>()?, settings: settings.clone() })
    }

    /// A caption put in order.
    pub fn clean(&self, text: String) -> String {
        let mut text = match &self.opencc {
            Some(opencc) => opencc.convert(&text),
            None => text,
        };
        for (pattern, with) in &self.replace {
            text = pattern.replace_all(&text, with.as_str()).into_owned();
        }
        match self.settings.punctuation {
            None => {}
            Some(Punctuation::None) => {
                let spaced: String = text.chars().map(|c| if is_mark(c) { ' ' } else { c }).collect();
                text = closed_up(&spaced);
            }
            Some(Punctuation::NoEnd) => text.truncate(text.trim_end_matches(|c: char| is_mark(c) || c.is_whitespace()).len()),
            Some(Punctuation::Wide) => text = turned(&text, |(ascii, wide)| (ascii, wide)),
            Some(Punctuation::Ascii) => text = turned(&text, |(ascii, wide)| (wide, ascii)),
        }
        if *self.settings() == Cleaning::default() { text } else { text.trim().to_string() }
    }

    /// Why a caption is left out, if it is.
    pub fn refuses(&self, text: &str) -> Option<String> {
        let lower = text.to_lowercase();
        let has = |word: &&String| lower.contains(&word.to_lowercase());
        if let Some(word) = self.settings.banned.iter().find(has) {
            return Some(format!("{word:?} is a banned word"));
        }
        let missing = !self.settings.required.is_empty() && !self.settings.required.iter().any(|word| has(&word));
        missing.then(|| "none of the required words is in it".into())
    }

    fn settings(&self) -> &Cleaning {
        &self.settings
    }
}

/// Punctuation of Latin and Chinese text; apostrophes and hyphens inside words are none.
fn is_mark(c: char) -> bool {
    c.is_ascii_punctuation() && !matches!(c, '\'' | '-' | '%' | '&' | '$' | '#' | '@' | '+' | '/')
        || matches!(
            c,
            '。' | '，'
                | '、'
                | '！'
                | '？'
                | '；'
                | '：'
                | '“'
                | '”'
                | '‘'
                | '’'
                | '（'
                | '）'
                | '《'
                | '》'
                | '「'
                | '」'
                | '…'
                | '—'
        )
}

/// One space for several, and none next to a Chinese character.
fn closed_up(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        let han = |c: Option<char>| c.is_some_and(super::han::is_han);
        if !out.is_empty() && !han(out.chars().next_back()) && !han(word.chars().next()) {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Marks turned from one form into the other; a mark inside a number stays.
fn turned(text: &str, pair: impl Fn((char, char)) -> (char, char)) -> String {
    let chars: Vec<char> = text.chars().collect();
    let digit = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(char::is_ascii_digit);
    let one = |(at, &c): (usize, &char)| match MARKS.iter().copied().map(&pair).find(|(from, _)| *from == c) {
        Some(_) if digit(at.checked_sub(1)) && digit(Some(at + 1)) => c,
        Some((_, to)) => to,
        None => c,
    };
    chars.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(settings: Cleaning, text: &str) -> String {
        Cleaner::new(&settings).unwrap().clean(text.into())
    }

    fn marks(punctuation: Punctuation) -> Cleaning {
        Cleaning { punctuation: Some(punctuation), ..Cleaning::default() }
    }

    #[test]
    fn nothing_is_done_unless_asked_for() {
        assert_eq!(cleaned(Cleaning::default(), " 一只狗, OK. "), " 一只狗, OK. ");
        assert_eq!(serde_json::to_string(&Cleaning::default()).unwrap(), "{}");
    }

    #[test]
    fn characters_become_those_of_one_script() {
        let script = |script| Cleaning { script: Some(script), ..Cleaning::default() };
        assert_eq!(cleaned(script(Script::Traditional), "一个戴着头盔的人在骑马"), "一個戴着頭盔的人在騎馬");
        assert_eq!(cleaned(script(Script::Simplified), "一個人在騎馬 OK"), "一个人在骑马 OK");
    }

    #[test]
    fn punctuation_goes_or_takes_one_form() {
        assert_eq!(cleaned(marks(Punctuation::None), "狗，在 草地。"), "狗在草地");
        assert_eq!(cleaned(marks(Punctuation::None), "A dog, isn't it?"), "A dog isn't it");
        assert_eq!(cleaned(marks(Punctuation::NoEnd), "A dog, a cat."), "A dog, a cat");
        assert_eq!(cleaned(marks(Punctuation::Wide), "狗,3.5米."), "狗，3.5米。");
        assert_eq!(cleaned(marks(Punctuation::Ascii), "狗，猫。"), "狗,猫.");
    }

    #[test]
    fn expressions_are_replaced_in_turn_and_faults_are_named() {
        let replace = |pairs: &[(&str, &str)]| Cleaning {
            replace: pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(),
            ..Cleaning::default()
        };
        assert_eq!(cleaned(replace(&[("(?i)^a photo of (.*)", "$1"), ("dog", "hound")]), "A photo of a dog"), "a hound");
        assert!(Cleaner::new(&replace(&[("(", "")])).err().unwrap().contains("--replace ("));
    }

    #[test]
    fn words_decide_which_captions_stay() {
        let words = |banned: &[&str], required: &[&str]| {
            let list = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
            Cleaner::new(&Cleaning { banned: list(banned), required: list(required), ..Cleaning::default() }).unwrap()
        };
        assert!(words(&["Gun"], &[]).refuses("a man with a gun").unwrap().contains("Gun"));
        assert_eq!(words(&["gun"], &["man", "woman"]).refuses("a man"), None);
        assert!(words(&[], &["狗", "猫"]).refuses("一只鸟").is_some());
    }
}
