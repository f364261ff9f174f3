//! SHA-256: one type wherever a hash is kept, 64 hex digits wherever one is written.

use std::fmt::{self, Write};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The SHA-256 of a content: a file's, an image's, or what stands for one. Its text is lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

/// A text that is no hash.
#[derive(Debug, thiserror::Error)]
#[error("not 64 hex digits")]
pub struct NoHash;

impl ContentHash {
    /// Of some bytes.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Sha256::new_with_prefix(bytes).into()
    }

    /// Of a file's content, read in pieces.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Self::of_reader(&mut File::open(path)?)
    }

    /// Of all that comes from a reader.
    ///
    /// # Errors
    /// The reader's.
    pub fn of_reader(reader: &mut impl Read) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(hasher.into()),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for ContentHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<Sha256> for ContentHash {
    fn from(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NoHash);
        }
        let digit = |at: usize| char::from(digits[at]).to_digit(16).unwrap_or_default() as u8;
        Ok(Self(std::array::from_fn(|at| digit(2 * at) << 4 | digit(2 * at + 1))))
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Lower-case hex digits of some bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_file_is_the_hash_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, b"abc").unwrap();
        let hash = ContentHash::of_file(&path).unwrap();
        assert_eq!(hash, ContentHash::of(b"abc"));
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_hash_comes_back_from_its_text_and_nothing_else_is_one() {
        let hash = ContentHash::of(b"abc");
        let text = hash.to_string();
        assert_eq!([text.parse().unwrap(), text.to_uppercase().parse::<ContentHash>().unwrap()], [hash; 2]);
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!((json.as_str(), serde_json::from_str(&json).unwrap()), (format!("\"{text}\"").as_str(), hash));
        for wrong in ["", "ab", &text[1..], &format!("{text}0"), &text.replace('b', "g"), &format!("+{}", &text[1..])] {
            assert!(wrong.parse::<ContentHash>().is_err(), "{wrong}");
        }
    }
}
