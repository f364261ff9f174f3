//! CLIP's tokenizer: byte-level pairs over lower-case text, the end of a word being part of its last piece.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{DecoderWrapper, PostProcessorWrapper, TokenizerImpl};

use super::TextError;

type Inner = TokenizerImpl<BPE, Normalizers, PreTokenizers, PostProcessorWrapper, DecoderWrapper>;

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// What a word is, before it is cut into pieces.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// `vocab.json` and `merges.txt` of a CLIP.
pub struct ClipTokenizer {
    inner: Inner,
    begin: u32,
    end: u32,
}

impl ClipTokenizer {
    /// From the texts of both files; `origin` names their folder in errors.
    ///
    /// # Errors
    /// Files that are not a vocabulary and its merges, or do not belong together, or lack the two tokens around a caption.
    pub fn new(vocabulary: &str, merges: &str, origin: &Path) -> Result<Self, TextError> {
        let invalid = |problem: String| TextError::Invalid { path: origin.into(), problem };
        let vocabulary: BTreeMap<String, u32> =
            serde_json::from_str(vocabulary).map_err(|error| invalid(format!("vocab.json is not a vocabulary: {error}")))?;
        let special = |piece: &str| {
            vocabulary
                .get(piece)
                .copied()
                .ok_or_else(|| invalid(format!("vocab.json lacks {piece}, which stands around captions")))
        };
        let (begin, end) = (special(BEGIN)?, special(END)?);
        let mut pairs = vec![];
        for (number, line) in merges.lines().enumerate() {
            if (number == 0 && line.starts_with("#version")) || line.is_empty() {
                continue;
            }
            match line.split_once(' ') {
                Some((a, b)) if !b.contains(' ') => pairs.push((a.to_owned(), b.to_owned())),
                _ => return Err(invalid(format!("merges.txt, line {}: two pieces are expected", number + 1))),
            }
        }
        let wrong = |error: tokenizers::Error| invalid(format!("vocab.json and merges.txt do not belong together: {error}"));
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), pairs)
            .unk_token(END.into())
            .end_of_word_suffix("</w>".into())
            .build()
            .map_err(wrong)?;
        let encode = |source| TextError::Encode { bytes: 0, source };
        let regex = |pattern: &str| SplitPattern::Regex(pattern.into());
        let spaces = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ").map_err(encode)?;
        let words = Split::new(regex(WORDS), SplitDelimiterBehavior::Removed, true).map_err(encode)?;
        let mut inner = Inner::new(bpe);
        inner.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]))).map_err(encode)?;
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), ByteLevel::new(false, true, true).into()])));
        Ok(Self { inner, begin, end })
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(false).values().max().map_or(0, |&largest| largest as usize + 1)
    }

    /// The ids of a caption, the tokens at its beginning and end included; at most `length` of them (2 at least).
    ///
    /// # Errors
    /// Where the tokenizer fails.
    pub fn encode(&self, text: &str, length: usize) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|source| TextError::Encode { bytes: text.len(), source })?;
        let room = length.max(2) - 2;
        let inside = encoding.get_ids().iter().copied().take(room);
        Ok(std::iter::once(self.begin).chain(inside).chain([self.end]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(vocabulary: &str, merges: &str) -> Result<ClipTokenizer, TextError> {
        ClipTokenizer::new(vocabulary, merges, Path::new("clip"))
    }

    #[test]
    fn golden_captions_have_the_golden_ids() {
        let Some(folder) = crate::testing::shared("golden_models/clip_text") else { return };
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let tokenizer = tokenizer(&read("vocab.json"), &read("merges.txt")).unwrap();
        let expected = std::fs::read(folder.join("../expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
        let (texts, ids) = (expected["english"].as_array().unwrap(), expected["clip_text_ids"].as_array().unwrap());
        assert!(texts.len() > 5 && texts.len() == ids.len());
        for (text, ids) in texts.iter().zip(ids) {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let found = tokenizer.encode(text.as_str().unwrap(), 77).unwrap();
            // What stands behind the end is padding.
            assert_eq!(found, ids[..found.len()], "{text}");
            assert!(ids[found.len()..].iter().all(|id| Some(id) == found.last()), "{text}");
        }
    }

    #[test]
    fn words_end_and_long_captions_are_cut() {
        let vocabulary = r#"{"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}"#;
        let tokenizer = tokenizer(vocabulary, "#version: 0.2\na b</w>\n").unwrap();
        assert_eq!(tokenizer.encode("AB  a", 77).unwrap(), [5, 4, 2, 6]);
        assert_eq!(tokenizer.encode("ab a b ab", 4).unwrap(), [5, 4, 2, 6]);
        assert_eq!(tokenizer.encode("", 0).unwrap(), [5, 6]);
    }

    #[test]
    fn files_that_do_not_fit_are_told() {
        let message = |vocabulary: &str, merges: &str| tokenizer(vocabulary, merges).err().unwrap().to_string();
        assert!(message("[]", "").contains("vocab.json"));
        assert!(message(r#"{"a": 0}"#, "").contains(BEGIN));
        let two = r#"{"a": 0, "<|startoftext|>": 5, "<|endoftext|>": 6}"#;
        assert!(message(two, "a").contains("line 1"));
        assert!(message(two, "a b").contains("do not belong together"));
    }
}
