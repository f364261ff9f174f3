//! BPE as `tokenizers` has it, from a `tokenizer.json`.

use std::collections::BTreeSet;
use std::path::Path;

use super::TextError;

/// A BPE vocabulary. Text never encodes to a special token: `<|endoftext|>` in a caption is thirteen ordinary characters.
pub(super) struct BpeTokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeSet<u32>,
    entries: usize,
}

impl BpeTokenizer {
    /// From a tokenizer.json's bytes; `origin` names it in errors. `special` ids stand for no text, beside those the file says so of.
    pub fn from_bytes(bytes: &[u8], origin: &Path, special: &[u32]) -> Result<Self, TextError> {
        let invalid = |problem: String| TextError::Invalid { path: origin.into(), problem };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| invalid(format!("not a tokenizer: {error}")))?;
        if !matches!(inner.get_model(), tokenizers::ModelWrapper::BPE(_)) {
            return Err(invalid("its model is not BPE, which is what is supported here".into()));
        }
        inner.set_encode_special_tokens(true);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        let added = inner.get_added_tokens_decoder();
        let mut special: BTreeSet<u32> =
            special.iter().copied().chain(added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id)).collect();
        // vocab.json does not say which of its entries stand for no text.
        special.extend(["<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>"].iter().filter_map(|piece| inner.token_to_id(piece)));
        let entries = inner.get_vocab_size(true);
        Ok(Self { inner, special, entries })
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|source| TextError::Encode { bytes: text.len(), source })?.get_ids().to_vec())
    }

    /// One line of text: white space that would break a line is a space, and nothing stands around it.
    pub fn decode(&self, ids: &[u32]) -> String {
        let known: Vec<u32> =
            ids.iter().copied().filter(|id| !self.special.contains(id) && self.inner.id_to_token(*id).is_some()).collect();
        let text = self.inner.decode(&known, false).unwrap_or_default();
        let mut line = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '\n' | '\r' | '\t' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => line.push(' '),
                c if c.is_control() => {}
                c => line.push(c),
            }
        }
        // A caption that was cut may end inside a character.
        line.trim_end_matches('\u{fffd}').trim().to_string()
    }

    pub fn id(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    pub fn has(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    pub fn vocab_size(&self) -> usize {
        self.entries
    }
}
