//! Small JSON files with a checksum over themselves: what a bad disk changed is found before it is believed.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{json_text, write_atomic};

/// The pair stands in front of the closing brace; its digits count as zeros in the checksum.
const KEY: &[u8] = b"\"crc32c\": \"";
const NO_DIGITS: &[u8] = b"00000000";

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Checked<T> {
    /// What was written; and whether a checksum says so, which files of older versions lack.
    Whole(T, bool),
    /// Not the bytes that were written, or no such file at all.
    Damaged,
}

/// Writes pretty-printed JSON with a checksum, atomically. `value` is an object with at least one pair.
pub fn write_checked_json(target: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = json_text(value)?;
    let end = text.iter().rposition(|byte| *byte == b'}').ok_or_else(|| io::Error::other("a checksum needs an object"))?;
    // In front of the brace is the end of the line before it.
    text.truncate(end);
    while text.last().is_some_and(u8::is_ascii_whitespace) {
        text.pop();
    }
    text.extend_from_slice(b",\n  ");
    text.extend_from_slice(KEY);
    let at = text.len();
    text.extend_from_slice(NO_DIGITS);
    text.extend_from_slice(b"\"\n}\n");
    let digits = format!("{:08x}", crc32c::crc32c(&text));
    text[at..at + 8].copy_from_slice(digits.as_bytes());
    write_atomic(target, &text)
}

/// Reads such a file.
///
/// # Errors
/// The file is not there, or cannot be read.
pub fn read_checked_json<T: DeserializeOwned>(path: &Path) -> io::Result<Checked<T>> {
    let mut text = std::fs::read(path)?;
    let place = text.windows(KEY.len()).rposition(|window| window == KEY).map(|at| at + KEY.len());
    if let Some(at) = place.filter(|at| at + 8 <= text.len()) {
        let digits: Vec<u8> = text[at..at + 8].to_vec();
        text[at..at + 8].copy_from_slice(NO_DIGITS);
        if format!("{:08x}", crc32c::crc32c(&text)).as_bytes() != digits {
            return Ok(Checked::Damaged);
        }
    }
    Ok(serde_json::from_slice(&text).map_or(Checked::Damaged, |value| Checked::Whole(value, place.is_some())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn any_flipped_bit_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_checked_json(&path, &json!({"a": {"crc32c": "x"}, "b": 0.1})).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let Checked::Whole(value, true) = read_checked_json::<Value>(&path).unwrap() else { panic!("damaged") };
        assert_eq!((&value["a"]["crc32c"], &value["b"]), (&json!("x"), &json!(0.1)));
        for at in 0..8 * whole.len() {
            let mut bent = whole.clone();
            bent[at / 8] ^= 1 << (at % 8);
            std::fs::write(&path, &bent).unwrap();
            // Where the key itself is hit there is no checksum left: the format that goes with it tells those files.
            if let Checked::Whole(_, has_checksum) = read_checked_json::<Value>(&path).unwrap() {
                assert!(!has_checksum, "bit {at}");
            }
        }
        std::fs::write(&path, "{\"a\": 1}").unwrap();
        assert_eq!(read_checked_json::<Value>(&path).unwrap(), Checked::Whole(json!({"a": 1}), false));
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(read_checked_json::<Value>(&path).unwrap(), Checked::Damaged);
    }
}
