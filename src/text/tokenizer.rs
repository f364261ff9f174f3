//! A model's tokenizer, of whatever kind, and how its captions end.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::bpe::BpeTokenizer;
use super::files;
use super::han::is_spaced_word;
use super::wordpiece::WordPieceTokenizer;
use super::{TextError, Vocabulary};

/// What ends a caption, as a bundle records it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endings {
    /// A piece of text, such as the original ClipCap's `.`, or a special token by its name. A piece of text belongs to the caption; a special
    /// token does not. None: `[SEP]`, or the first of `eos_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_token: Option<String>,
    /// Special tokens that end a text, as the decoder's configuration says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eos_token_ids: Vec<u32>,
    /// Begins a text where no prefix stands before it; `[CLS]` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
}

impl Endings {
    /// WordPiece's own: `[CLS]` and `[SEP]`.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// From text to a model's ids and back.
pub struct Tokenizer {
    kind: Kind,
    begin: Option<u32>,
    /// The first is what training puts behind a caption.
    ends: Vec<u32>,
    /// The first of `ends` is text.
    end_is_text: bool,
}

enum Kind {
    WordPiece(Box<WordPieceTokenizer>),
    Bpe(Box<BpeTokenizer>),
}

impl Tokenizer {
    /// Over a vocabulary; `origin` (its folder) names it in errors.
    ///
    /// # Errors
    /// A vocabulary that is damaged, or one in which nothing ends a caption.
    pub fn new(vocabulary: &Vocabulary, endings: &Endings, origin: &Path) -> Result<Self, TextError> {
        let kind = match vocabulary {
            Vocabulary::WordPiece { pieces, lower_case } => {
                Kind::WordPiece(Box::new(WordPieceTokenizer::from_bytes(pieces, &origin.join("vocab.txt"), *lower_case)?))
            }
            Vocabulary::Bpe(files) => {
                let bytes = Vocabulary::tokenizer_json(files, origin)?;
                let special: Vec<u32> = endings.eos_token_ids.iter().copied().chain(endings.bos_token_id).collect();
                Kind::Bpe(Box::new(BpeTokenizer::from_bytes(&bytes, &origin.join("tokenizer.json"), &special)?))
            }
        };
        let mut tokenizer = Self { begin: None, ends: vec![], end_is_text: false, kind };
        tokenizer.begin = match &tokenizer.kind {
            Kind::WordPiece(pieces) => endings.bos_token_id.or(pieces.cls_id()),
            Kind::Bpe(_) => endings.bos_token_id,
        };
        let own = match &tokenizer.kind {
            Kind::WordPiece(pieces) => vec![pieces.sep_id()],
            Kind::Bpe(pieces) => endings.eos_token_ids.iter().copied().filter(|&id| pieces.has(id)).collect(),
        };
        let stop = endings.stop_token.as_deref().map(|stop| tokenizer.stop(stop, origin)).transpose()?;
        tokenizer.end_is_text = stop.is_some_and(|(_, is_text)| is_text);
        tokenizer.ends = stop.map(|(id, _)| id).into_iter().collect();
        for id in own {
            if !tokenizer.ends.contains(&id) {
                tokenizer.ends.push(id);
            }
        }
        if tokenizer.ends.is_empty() {
            let problem = "nothing ends a caption: the model's configuration has no eos_token_id that the vocabulary knows; name a token with --stop-token";
            return Err(TextError::Invalid { path: origin.into(), problem: problem.into() });
        }
        Ok(tokenizer)
    }

    /// BERT's WordPiece over a `vocab.txt`, captions ending with `[SEP]`.
    pub fn open(vocab_path: &Path, lower_case: bool) -> Result<Self, TextError> {
        let missing = || TextError::Io { path: vocab_path.into(), source: std::io::ErrorKind::NotFound.into() };
        Self::from_bytes(&files::read(vocab_path)?.ok_or_else(missing)?, vocab_path, lower_case)
    }

    /// BERT's WordPiece over a `vocab.txt`'s bytes, captions ending with `[SEP]`; `origin` names the file in errors.
    pub fn from_bytes(vocab: &[u8], origin: &Path, lower_case: bool) -> Result<Self, TextError> {
        let pieces = Vocabulary::WordPiece { pieces: vocab.to_vec(), lower_case };
        Self::new(&pieces, &Endings::default(), origin.parent().unwrap_or(origin))
    }

    /// The id of a stop token, and whether it is text: a special token by its name, or text that is one piece.
    fn stop(&self, stop: &str, origin: &Path) -> Result<(u32, bool), TextError> {
        let ids = match self.id(stop).filter(|&id| self.is_special(id)) {
            Some(id) => return Ok((id, false)),
            None => self.encode(stop)?,
        };
        match ids[..] {
            [id] if Some(id) != self.unk_id() => Ok((id, true)),
            _ => Err(TextError::Invalid {
                path: origin.into(),
                problem: format!("--stop-token {stop:?} is {} pieces of this vocabulary, and one is needed", ids.len()),
            }),
        }
    }

    /// Ids of a text, without special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        match &self.kind {
            Kind::WordPiece(pieces) => pieces.encode(text),
            Kind::Bpe(pieces) => pieces.encode(text),
        }
    }

    /// Ids of a text that captions go on from: white space at its end belongs to the caption's first piece.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text.trim_end())
    }

    /// Ids of a text that goes on from a prompt: a space stands between them where the prompt ends with one, or with a letter or digit of a
    /// script that has spaces.
    pub fn encode_behind(&self, prompt: Option<&str>, text: &str) -> Result<Vec<u32>, TextError> {
        let spaced = |prompt: &str| prompt.chars().next_back().is_some_and(|c| c.is_whitespace() || is_spaced_word(c));
        match &self.kind {
            Kind::Bpe(pieces) if prompt.is_some_and(spaced) && !text.starts_with(char::is_whitespace) => {
                pieces.encode(&format!(" {text}"))
            }
            _ => self.encode(text),
        }
    }

    /// Readable text of ids; those that stand for no text leave nothing behind.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::WordPiece(pieces) => pieces.decode(ids),
            Kind::Bpe(pieces) => pieces.decode(ids),
        }
    }

    /// The id of a piece, spelled as in the vocabulary.
    pub fn id(&self, piece: &str) -> Option<u32> {
        match &self.kind {
            Kind::WordPiece(pieces) => pieces.id(piece),
            Kind::Bpe(pieces) => pieces.id(piece),
        }
    }

    /// A piece as the vocabulary spells it.
    pub fn piece(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::WordPiece(pieces) => pieces.piece(id).map(str::to_owned),
            Kind::Bpe(pieces) => pieces.piece(id),
        }
    }

    fn is_special(&self, id: u32) -> bool {
        match &self.kind {
            Kind::WordPiece(pieces) => pieces.special_ids().contains(&id),
            Kind::Bpe(pieces) => pieces.is_special(id),
        }
    }

    /// Entries of the vocabulary. A model's own vocabulary may be padded to more.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::WordPiece(pieces) => pieces.vocab_size(),
            Kind::Bpe(pieces) => pieces.vocab_size(),
        }
    }

    /// `bert-wordpiece` or `bpe`.
    pub fn kind(&self) -> &'static str {
        match &self.kind {
            Kind::WordPiece(_) => "bert-wordpiece",
            Kind::Bpe(_) => "bpe",
        }
    }

    /// What stands for text that the vocabulary lacks; a byte-level vocabulary lacks none.
    pub fn unk_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::WordPiece(pieces) => Some(pieces.unk_id()),
            Kind::Bpe(_) => None,
        }
    }

    /// The token that ends a caption: `[SEP]`, an end-of-text token, or a stop token.
    pub fn end_id(&self) -> u32 {
        self.ends[0]
    }

    /// Every token that ends a caption, [`end_id`](Self::end_id) first.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether [`end_id`](Self::end_id) is part of the caption, as a full stop is.
    pub fn end_is_text(&self) -> bool {
        self.end_is_text
    }

    /// A caption's ids as they are learned: with what ends it, once.
    pub fn with_end(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if !(self.end_is_text && ids.last() == Some(&self.end_id())) {
            ids.push(self.end_id());
        }
        ids
    }

    /// The token that begins a text where no prefix stands before it: `[CLS]`, or a beginning-of-text token.
    pub fn begin_id(&self) -> Option<u32> {
        self.begin
    }

    /// WordPiece's `[PAD]`, `[CLS]` and `[MASK]`, where they are.
    pub fn bert_ids(&self) -> [Option<u32>; 3] {
        match &self.kind {
            Kind::WordPiece(pieces) => [pieces.pad_id(), pieces.cls_id(), pieces.mask_id()],
            Kind::Bpe(_) => [None; 3],
        }
    }

    /// Ids below `model_size` that are never to be said: `[UNK]`, and those without an entry.
    pub fn banned_ids(&self, model_size: usize) -> Vec<u32> {
        match &self.kind {
            Kind::WordPiece(pieces) => {
                std::iter::once(pieces.unk_id()).chain(pieces.vocab_size() as u32..model_size as u32).collect()
            }
            Kind::Bpe(pieces) => (0..model_size as u32).filter(|&id| !pieces.has(id)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::golden;

    fn tokenizer(folder: &Path, endings: &Endings) -> Tokenizer {
        let vocabulary = Vocabulary::find::<TextError>(folder, |_| Ok(true)).unwrap().unwrap();
        Tokenizer::new(&vocabulary, endings, folder).unwrap()
    }

    /// Texts end with the vocabulary's last token.
    fn eos(folder: &Path) -> Endings {
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let end = config["eos_token_id"].as_u64().unwrap() as u32;
        Endings { eos_token_ids: vec![end], bos_token_id: Some(end), stop_token: None }
    }

    #[test]
    fn golden_texts_have_the_golden_ids_and_come_back() {
        for root in golden("golden_models") {
            let expected = std::fs::read(root.join("expected.json")).unwrap();
            let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
            let eos = eos(&root.join("gpt2_en"));
            let tokenizers = ["gpt2_en", "qwen2"].map(|name| tokenizer(&root.join(name), &eos));
            for case in expected["bpe"].as_array().unwrap() {
                let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
                let text = case["text"].as_str().unwrap();
                for tokenizer in &tokenizers {
                    assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text}");
                    // Captions are one line, with nothing around it.
                    assert_eq!(tokenizer.decode(&ids), text.trim().replace(['\t', '\n'], " "));
                }
            }
        }
    }

    #[test]
    fn a_stop_token_is_text_or_special() {
        for root in golden("golden_models") {
            let folder = root.join("gpt2_en");
            let eos = eos(&folder);
            let stop = |stop: &str| tokenizer(&folder, &Endings { stop_token: Some(stop.into()), ..eos.clone() });
            let dot = stop(".");
            let end = eos.eos_token_ids[0];
            let [letter, dot_id] = ["A", "."].map(|text| dot.encode(text).unwrap()[0]);
            assert_eq!((dot.ends(), dot.end_is_text(), dot.unk_id()), (&[dot_id, end][..], true, None));
            assert_eq!(
                (dot.with_end(vec![letter, dot_id]), dot.with_end(vec![letter])),
                (vec![letter, dot_id], vec![letter, dot_id])
            );
            let special = stop("<|endoftext|>");
            assert_eq!((special.ends(), special.end_is_text()), (&[end][..], false));
            assert_eq!(special.with_end(vec![letter]), [letter, end]);
            assert_eq!(special.decode(&[letter, dot_id, end, 5000]), "A.");
            assert!(!special.encode("<|endoftext|>").unwrap().contains(&end), "text is never a special token");
            assert_eq!(special.banned_ids(end as usize + 4), [end + 1, end + 2, end + 3]);
            let vocabulary = Vocabulary::find::<TextError>(&folder, |_| Ok(true)).unwrap().unwrap();
            let refused = |endings| Tokenizer::new(&vocabulary, &endings, &folder).err().unwrap().to_string();
            assert!(refused(Endings { stop_token: Some("two words".into()), ..eos.clone() }).contains("one is needed"));
            assert!(refused(Endings::default()).contains("--stop-token"));
        }
    }

    #[test]
    fn word_pieces_may_end_with_text_too() {
        let vocabulary = Vocabulary::WordPiece { pieces: "[UNK]\n[SEP]\n狗\n。\n".as_bytes().to_vec(), lower_case: true };
        let new = |endings| Tokenizer::new(&vocabulary, &endings, Path::new("d"));
        let plain = new(Endings::default()).unwrap();
        assert_eq!((plain.ends(), plain.end_is_text(), plain.banned_ids(6)), (&[1][..], false, vec![0, 4, 5]));
        let stop = new(Endings { stop_token: Some("。".into()), ..Endings::default() }).unwrap();
        assert_eq!((stop.ends(), stop.end_is_text()), (&[3, 1][..], true));
        assert!(new(Endings { stop_token: Some("猫".into()), ..Endings::default() }).is_err(), "[UNK] ends nothing");
    }
}
