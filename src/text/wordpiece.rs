use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{DecoderWrapper, Model, PostProcessorWrapper, TokenizerImpl};

use super::vocabulary::{self, CLS, MASK, PAD, SEP, UNK};
use super::{TextError, join_pieces};

type BertTokenizer = TokenizerImpl<WordPiece, BertNormalizer, BertPreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// BERT's WordPiece over a `vocab.txt`, as the Chinese GPT2 models use it.
///
/// A piece that stands on several lines has the last line's id, as in transformers; the other ids still decode. Special tokens must be unique.
/// Text never encodes to a special token other than `[UNK]`: a `[SEP]` in a caption is five ordinary characters.
pub(super) struct WordPieceTokenizer {
    inner: BertTokenizer,
    pieces: Vec<String>,
    unk: u32,
    sep: u32,
    special: Vec<u32>,
    /// Ids of characters that are always a word of their own; see [`characters`].
    characters: HashMap<char, u32>,
}

impl WordPieceTokenizer {
    /// From a vocabulary's bytes; `origin` names it in errors. `lower_case` also strips accents, as BERT does. `[UNK]` and `[SEP]` must be
    /// there.
    pub fn from_bytes(vocab: &[u8], origin: &Path, lower_case: bool) -> Result<Self, TextError> {
        Self::from_pieces(vocabulary::parse(vocab, origin)?, origin, lower_case)
    }

    fn from_pieces(pieces: Vec<String>, origin: &Path, lower_case: bool) -> Result<Self, TextError> {
        let encode = |source| TextError::Encode { bytes: 0, source };
        // The builder wants the hash map of a crate of its own; reading nothing gives an empty one to fill.
        let mut ids = WordPiece::read_bytes(b"").map_err(encode)?;
        for (id, piece) in (0u32..).zip(&pieces) {
            ids.insert(piece.clone(), id);
        }
        let model = WordPiece::builder().vocab(ids).unk_token(UNK.into()).build().map_err(encode)?;
        let required = |piece: &'static str| {
            model.token_to_id(piece).ok_or_else(|| TextError::MissingSpecial { path: origin.into(), piece })
        };
        let (unk, sep) = (required(UNK)?, required(SEP)?);
        let special = (0u32..).zip(&pieces).filter(|(_, piece)| vocabulary::is_special(piece)).map(|(id, _)| id).collect();
        let mut inner = BertTokenizer::new(model);
        inner.with_normalizer(Some(BertNormalizer::new(true, true, None, lower_case))).map_err(encode)?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        let characters = characters(&inner, &pieces).map_err(encode)?;
        Ok(Self { inner, pieces, unk, sep, special, characters })
    }

    /// Ids of a text, without special tokens around it. What the vocabulary lacks is `[UNK]`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        // Start of the text between characters that stand alone.
        let mut start = 0;
        for (at, c) in text.char_indices() {
            if let Some(&id) = self.characters.get(&c) {
                self.encode_run(&text[start..at], &mut ids)?;
                ids.push(id);
                start = at + c.len_utf8();
            }
        }
        self.encode_run(&text[start..], &mut ids)?;
        Ok(ids)
    }

    fn encode_run(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        if !text.trim_matches(' ').is_empty() {
            let encoding = self.inner.encode_fast(text, false);
            ids.extend_from_slice(encoding.map_err(|source| TextError::Encode { bytes: text.len(), source })?.get_ids());
        }
        Ok(())
    }

    /// Readable text of ids. Special tokens, `[unusedN]` and ids outside the vocabulary leave nothing behind.
    pub fn decode(&self, ids: &[u32]) -> String {
        join_pieces(ids.iter().filter_map(|&id| self.piece(id)).filter(|piece| !vocabulary::is_special(piece)))
    }

    /// The id of a piece, spelled as in the vocabulary (`##` included).
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.inner.get_model().token_to_id(piece)
    }

    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(usize::try_from(id).ok()?).map(String::as_str)
    }

    /// Lines of the vocabulary. A model's own vocabulary may be padded to more.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    pub fn unk_id(&self) -> u32 {
        self.unk
    }

    /// The token that ends a caption.
    pub fn sep_id(&self) -> u32 {
        self.sep
    }

    pub fn pad_id(&self) -> Option<u32> {
        self.id(PAD)
    }

    pub fn cls_id(&self) -> Option<u32> {
        self.id(CLS)
    }

    pub fn mask_id(&self) -> Option<u32> {
        self.id(MASK)
    }

    /// Ids that stand for no text, ascending: `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`, `[MASK]` and every `[unusedN]`.
    pub fn special_ids(&self) -> &[u32] {
        &self.special
    }
}

/// Pieces of one character that BERT always cuts out of a text and never changes: Unicode's first ideographs, and punctuation that
/// encodes to itself. Looking these up makes a Chinese caption many times as fast to encode, and the ids are the same.
fn characters(inner: &BertTokenizer, pieces: &[String]) -> tokenizers::Result<HashMap<char, u32>> {
    let mut characters = HashMap::new();
    for (id, piece) in (0u32..).zip(pieces) {
        let Some(c) = piece.chars().next().filter(|c| c.len_utf8() == piece.len()) else { continue };
        let stands_alone = match c {
            '\u{4E00}'..='\u{9FA5}' => true,
            '，' | '。' | '、' | '！' | '？' | '；' | '：' | '（' | '）' | '“' | '”' | '《' | '》' => {
                inner.encode_fast(piece.as_str(), false)?.get_ids() == [id]
            }
            _ if c.is_ascii_punctuation() => inner.encode_fast(piece.as_str(), false)?.get_ids() == [id],
            _ => false,
        };
        if stands_alone {
            // The last of several lines wins here too.
            characters.insert(c, id);
        }
    }
    Ok(characters)
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;
    use crate::text::han::is_han;

    const SMALL: &str = "[PAD]\n[unused1]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n穿\n着\nt\n恤\n衫\n的\n人\n在\n看\niphone\n15\n手\n机\n[\n]\nsep\nsky\n##scraper\n，\nA\na\n,";

    fn small() -> WordPieceTokenizer {
        WordPieceTokenizer::from_bytes(SMALL.as_bytes(), Path::new("vocab.txt"), true).unwrap()
    }

    #[test]
    fn latin_words_survive_a_round_trip() {
        let tokenizer = small();
        let ids = tokenizer.encode("穿着T恤衫的人在看 iPhone 15 手机").unwrap();
        assert!(!ids.contains(&tokenizer.unk_id()));
        assert_eq!(tokenizer.decode(&ids), "穿着t恤衫的人在看iphone 15手机");
        assert_eq!(tokenizer.decode(&tokenizer.encode("skyscraper，人").unwrap()), "skyscraper，人");
    }

    #[test]
    fn special_tokens_are_neither_read_from_text_nor_printed() {
        let tokenizer = small();
        let ids = tokenizer.encode("[SEP]").unwrap();
        assert_eq!(ids.iter().filter_map(|&id| tokenizer.piece(id)).collect::<Vec<_>>(), ["[", "sep", "]"]);
        assert_eq!(tokenizer.special_ids(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(tokenizer.decode(&[0, 1, 2, 3, 4, 5, 12, 99_999, u32::MAX]), "人");
        assert_eq!(tokenizer.encode("狗").unwrap(), [tokenizer.unk_id()]);
        assert_eq!((tokenizer.sep_id(), tokenizer.pad_id(), tokenizer.mask_id()), (4, Some(0), Some(5)));
    }

    #[test]
    fn case_is_kept_where_the_model_keeps_it() {
        let cased = WordPieceTokenizer::from_bytes(SMALL.as_bytes(), Path::new("vocab.txt"), false).unwrap();
        assert_eq!(cased.encode("A").unwrap(), [cased.id("A").unwrap()]);
        assert_eq!(small().encode("A").unwrap(), [small().id("a").unwrap()]);
    }

    #[test]
    fn the_last_of_several_lines_has_the_piece_and_all_of_them_decode() {
        let tokenizer =
            WordPieceTokenizer::from_bytes("[UNK]\n[SEP]\n狗\n狗\n".as_bytes(), Path::new("vocab.txt"), true).unwrap();
        assert_eq!(tokenizer.encode("狗").unwrap(), [3]);
        assert_eq!(tokenizer.decode(&[2, 3]), "狗狗");
        assert_eq!(tokenizer.vocab_size(), 4);
    }

    #[test]
    fn a_vocabulary_without_an_end_of_caption_is_refused() {
        let error = WordPieceTokenizer::from_bytes(b"[UNK]\na\n", Path::new("d/vocab.txt"), true).err().unwrap().to_string();
        assert!(error.contains("d/vocab.txt") && error.contains("[SEP]"), "{error}");
    }

    fn published() -> Option<&'static WordPieceTokenizer> {
        static TOKENIZER: OnceLock<Option<WordPieceTokenizer>> = OnceLock::new();
        let open = || {
            Some(
                WordPieceTokenizer::from_bytes(
                    &std::fs::read(crate::testing::shared("golden/gpt2/vocab.txt")?).unwrap(),
                    Path::new("vocab.txt"),
                    true,
                )
                .unwrap(),
            )
        };
        TOKENIZER.get_or_init(open).as_ref()
    }

    fn golden(name: &str) -> Option<serde_json::Value> {
        let text = std::fs::read(crate::testing::shared("golden")?.join(name)).unwrap();
        Some(serde_json::from_slice(&text).unwrap())
    }

    fn ids_of(value: &serde_json::Value) -> Vec<u32> {
        value["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    #[test]
    fn golden_texts_have_the_golden_ids() {
        let (Some(tokenizer), Some(cases)) = (published(), golden("tokenizer.expected.json")) else { return };
        let cases = cases.as_array().unwrap();
        assert!(cases.len() > 10);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids_of(case), "{text}");
        }
    }

    #[test]
    fn golden_captions_read_as_expected_apart_from_spaces() {
        let (Some(tokenizer), Some(expected)) = (published(), golden("expected.json")) else { return };
        let mut seen = 0;
        for (name, captions) in expected.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("greedy_")) {
            let captions: Vec<_> = match captions {
                serde_json::Value::Object(by_photo) => by_photo.values().collect(),
                list => list.as_array().unwrap().iter().collect(),
            };
            for caption in captions {
                let text = tokenizer.decode(&ids_of(caption)).replace(' ', "");
                assert_eq!(text, caption["text"].as_str().unwrap(), "{name}");
                seen += 1;
            }
        }
        assert!(seen >= 12, "{seen} captions");
    }

    proptest! {
        #[test]
        fn any_ids_decode(ids in prop::collection::vec(prop_oneof![0u32..22_000, any::<u32>()], 0..60)) {
            if let Some(tokenizer) = published() {
                let text = tokenizer.decode(&ids);
                prop_assert!(!text.contains("[SEP]") && !text.contains("[unused") && !text.contains("  "));
                prop_assert!(!text.starts_with(' ') && !text.ends_with(' '));
            }
        }

        #[test]
        fn any_text_encodes(text in "\\PC{0,80}") {
            if let Some(tokenizer) = published() {
                let ids = tokenizer.encode(&text).unwrap();
                let size = tokenizer.vocab_size() as u32;
                prop_assert!(ids.iter().all(|&id| id < size));
            }
        }

        #[test]
        fn the_short_way_gives_the_ids_of_the_long_way(
            text in "([一-龥]|[a-zA-Z0-9 é]|[，。、！？；：（）“”《》,.!?#\\[\\]]|[\u{300}-\u{310}\u{0}\t\u{200b}\u{fffd}豈㐀\u{20000}か가]){0,40}",
            lower_case in any::<bool>(),
        ) {
            static CASED: OnceLock<Option<WordPieceTokenizer>> = OnceLock::new();
            let cased = || Some(WordPieceTokenizer::from_bytes(&std::fs::read(crate::testing::shared("golden/gpt2/vocab.txt")?).unwrap(), Path::new("vocab.txt"), false).unwrap());
            if let Some(tokenizer) = if lower_case { published() } else { CASED.get_or_init(cased).as_ref() } {
                let long = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(tokenizer.encode(&text).unwrap(), long.get_ids());
            }
        }

        #[test]
        fn chinese_text_comes_back_as_it_was(picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
            if let Some(tokenizer) = published() {
                static ALPHABET: OnceLock<Vec<char>> = OnceLock::new();
                let alphabet = ALPHABET.get_or_init(|| {
                    let single = |piece: &str| piece.chars().next().filter(|c| c.len_utf8() == piece.len());
                    // Compatibility ideographs are left out: BERT's accent stripping replaces them.
                    let kept = |c: &char| (is_han(*c) && *c < '\u{F900}') || "，。！？、；：（）《》「」,.".contains(*c);
                    (0..tokenizer.vocab_size() as u32).filter_map(|id| single(tokenizer.piece(id)?).filter(kept)).collect()
                });
                let text: String = picks.iter().map(|pick| alphabet[pick.index(alphabet.len())]).collect();
                prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
            }
        }
    }
}
