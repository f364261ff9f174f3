//! The files of a vocabulary, byte for byte.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::TextError;
use crate::files::{ContentHash, open_regular};

/// The largest published tokenizer.json has 33 MB.
const MAX_BYTES: u64 = 64 << 20;

const VOCAB_TXT: &str = "vocab.txt";
const TOKENIZER_JSON: &str = "tokenizer.json";
const VOCAB_JSON: &str = "vocab.json";
const MERGES_TXT: &str = "merges.txt";

/// What text is cut into pieces with: the content of a vocabulary's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vocabulary {
    /// BERT's WordPiece: `vocab.txt`, and whether text is put into lower case first.
    WordPiece { pieces: Vec<u8>, lower_case: bool },
    /// BPE: `tokenizer.json`, or `vocab.json` and `merges.txt` (byte-level, as GPT2's), by name; all of these that there are.
    Bpe(BTreeMap<String, Vec<u8>>),
}

impl Vocabulary {
    /// The vocabulary of a folder: `vocab.txt` where there is one, else `tokenizer.json` or `vocab.json` and `merges.txt`; None without any.
    /// `lower_case` says of a `vocab.txt`'s bytes whether its text is put into lower case.
    pub fn find<E: From<TextError>>(folder: &Path, lower_case: impl FnOnce(&[u8]) -> Result<bool, E>) -> Result<Option<Self>, E> {
        if let Some(pieces) = read(&folder.join(VOCAB_TXT))? {
            let lower_case = lower_case(&pieces)?;
            return Ok(Some(Self::WordPiece { pieces, lower_case }));
        }
        let mut found = BTreeMap::new();
        for name in [TOKENIZER_JSON, VOCAB_JSON, MERGES_TXT] {
            if let Some(bytes) = read(&folder.join(name))? {
                found.insert(name.to_string(), bytes);
            }
        }
        let enough = found.contains_key(TOKENIZER_JSON) || (found.contains_key(VOCAB_JSON) && found.contains_key(MERGES_TXT));
        Ok(enough.then_some(Self::Bpe(found)))
    }

    /// (name, bytes) of each file.
    pub fn files(&self) -> Vec<(&str, &[u8])> {
        match self {
            Self::WordPiece { pieces, .. } => vec![(VOCAB_TXT, pieces)],
            Self::Bpe(files) => files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect(),
        }
    }

    /// SHA-256 over all files.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::WordPiece { pieces, .. } => ContentHash::of(pieces).to_string(),
            Self::Bpe(bytes) => {
                let each: Vec<String> = bytes.iter().map(|(name, bytes)| format!("{name} {}", ContentHash::of(bytes))).collect();
                ContentHash::of(each.join("\n")).to_string()
            }
        }
    }

    /// Whether text is put into lower case before it is cut into pieces.
    pub fn lower_case(&self) -> bool {
        matches!(self, Self::WordPiece { lower_case: true, .. })
    }

    /// The file that decides, of a BPE: `tokenizer.json` as it is, or what it would be for `vocab.json` and `merges.txt`.
    pub(super) fn tokenizer_json(files: &BTreeMap<String, Vec<u8>>, origin: &Path) -> Result<Vec<u8>, TextError> {
        if let Some(bytes) = files.get(TOKENIZER_JSON) {
            return Ok(bytes.clone());
        }
        let invalid = |name: &str, problem: String| TextError::Invalid { path: origin.join(name), problem };
        let get = |name: &str| files.get(name).ok_or_else(|| invalid(name, "it is missing".into()));
        let vocab: serde_json::Value =
            serde_json::from_slice(get(VOCAB_JSON)?).map_err(|error| invalid(VOCAB_JSON, error.to_string()))?;
        let merges = std::str::from_utf8(get(MERGES_TXT)?).map_err(|_| invalid(MERGES_TXT, "not UTF-8 text".into()))?;
        let mut pairs = vec![];
        for (number, line) in merges.lines().enumerate() {
            if line.starts_with("#version") || line.is_empty() {
                continue;
            }
            let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
                return Err(invalid(
                    MERGES_TXT,
                    format!("line {}: two pieces with a space between them are expected", number + 1),
                ));
            };
            pairs.push([left, right]);
        }
        let byte_level =
            serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
        });
        Ok(json.to_string().into_bytes())
    }
}

/// A file's bytes, checked for size before they are held in memory; None where there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    if !path.is_file() {
        return Ok(None);
    }
    let io = |source| TextError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    // One byte more than allowed tells a long file from one that just fits, and bounds what a pipe or device can pour in.
    open_regular(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        let bytes = std::fs::metadata(path).map_err(io)?.len().max(MAX_BYTES + 1);
        return Err(TextError::TooLarge { path: path.into(), bytes, limit: MAX_BYTES });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(folder: &Path) -> Result<Option<Vocabulary>, TextError> {
        Vocabulary::find(folder, |_| Ok(true))
    }

    #[test]
    fn a_folder_has_the_vocabulary_its_files_say() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(find(folder.path()).unwrap(), None);
        write("vocab.json", "{}");
        assert_eq!(find(folder.path()).unwrap(), None, "merges are missing");
        write("merges.txt", "#version: 0.2\n");
        let bpe = find(folder.path()).unwrap().unwrap();
        assert_eq!(bpe.files().iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["merges.txt", "vocab.json"]);
        write("vocab.txt", "[UNK]\n[SEP]\n");
        let pieces = find(folder.path()).unwrap().unwrap();
        assert!(pieces.lower_case() && pieces.fingerprint() != bpe.fingerprint());
    }

    #[test]
    fn too_much_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::File::create(folder.path().join("vocab.txt")).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(find(folder.path()), Err(TextError::TooLarge { bytes, .. }) if bytes == MAX_BYTES + 1));
    }
}
