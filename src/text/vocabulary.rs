//! Reads `vocab.txt`: one piece a line, its id the line's number from 0.

use std::collections::HashMap;
use std::path::Path;

use super::TextError;

const MAX_ENTRIES: usize = 1 << 20;
const MAX_PIECE_BYTES: usize = 1024;

pub(super) const UNK: &str = "[UNK]";
pub(super) const SEP: &str = "[SEP]";
pub(super) const PAD: &str = "[PAD]";
pub(super) const CLS: &str = "[CLS]";
pub(super) const MASK: &str = "[MASK]";

/// A piece that stands for no text: BERT's five special tokens and the reserved `[unusedN]`.
pub(super) fn is_special(piece: &str) -> bool {
    matches!(piece, UNK | SEP | PAD | CLS | MASK)
        || piece
            .strip_prefix("[unused")
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Lines to pieces. A byte order mark and `\r` before `\n` are dropped; everything else counts, empty lines too, as each holds an id.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<String>, TextError> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut pieces = Vec::new();
    let mut first_lines: HashMap<String, usize> = HashMap::new();
    for (index, raw) in bytes.split(|&b| b == b'\n').enumerate() {
        let line = index + 1;
        let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
        if raw.len() > MAX_PIECE_BYTES {
            return Err(TextError::LineTooLong { path: path.into(), line, bytes: raw.len(), limit: MAX_PIECE_BYTES });
        }
        if index >= MAX_ENTRIES {
            return Err(TextError::TooManyEntries { path: path.into(), limit: MAX_ENTRIES });
        }
        let piece = std::str::from_utf8(raw).map_err(|_| TextError::NotUtf8 { path: path.into(), line })?;
        if is_special(piece)
            && let Some(first_line) = first_lines.insert(piece.into(), line)
        {
            return Err(TextError::DuplicateSpecial { path: path.into(), line, first_line, piece: piece.into() });
        }
        pieces.push(piece.to_string());
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<String>, TextError> {
        parse(text.as_bytes(), Path::new("vocab.txt"))
    }

    #[test]
    fn lines_are_ids_whatever_ends_them() {
        assert_eq!(parse_text("[PAD]\na\n\nb\n").unwrap(), ["[PAD]", "a", "", "b"]);
        assert_eq!(parse_text("\u{feff}[PAD]\r\na\r\nb").unwrap(), ["[PAD]", "a", "b"]);
        // A line separator of Unicode is a piece of bert-base-chinese, not the end of a line.
        assert_eq!(parse_text("a\n\u{2028}\nb").unwrap(), ["a", "\u{2028}", "b"]);
    }

    #[test]
    fn faults_name_file_and_line() {
        let message = parse(b"a\nb\n\xff\n", Path::new("d/vocab.txt")).unwrap_err().to_string();
        assert!(message.contains("d/vocab.txt, line 3") && message.contains("UTF-8"), "{message}");
        let message = parse_text("[SEP]\na\n[SEP]\n").unwrap_err().to_string();
        assert!(message.contains("line 3") && message.contains("line 1") && message.contains("[SEP]"), "{message}");
        let message = parse_text(&format!("a\n{}\n", "x".repeat(2000))).unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("2000"), "{message}");
    }

    #[test]
    fn too_much_is_refused() {
        let lines = "\n".repeat(MAX_ENTRIES + 2);
        assert!(matches!(parse_text(&lines), Err(TextError::TooManyEntries { .. })));
    }

    #[test]
    fn special_pieces_are_known_by_their_name() {
        assert!(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "[unused99]"].iter().all(|p| is_special(p)));
        assert!(!["[", "[unused]", "[unusedx]", "[unk]", "<S>", "狗", ""].iter().any(|p| is_special(p)));
    }
}
