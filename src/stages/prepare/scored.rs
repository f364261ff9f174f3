//! Scores that an interrupted run has computed, so that the same command goes on from there.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::files::{ContentHash, name_of, paths_in};
use crate::pipeline::Reporter;

/// What the files' names begin with.
const NAME: &str = "clip_scores-";

/// Of a picture's content and a caption.
type Key = [u8; 16];

/// A key, a score (not a number where there is none), and a checksum of both.
const RECORD: usize = 24;

/// Scores that are written before they are flushed.
const FLUSH_AFTER: usize = 256;

/// Scores by picture and caption, in memory and in a file of the work folder.
#[derive(Default)]
pub struct Known {
    path: PathBuf,
    scores: HashMap<Key, f32>,
    /// None where nothing is to be kept.
    file: Option<BufWriter<File>>,
    unflushed: usize,
}

impl Known {
    /// What `folder` holds of this scorer. What is damaged, and all behind it, is computed again.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn open(folder: &Path, scorer: &str) -> Result<Self> {
        let path = folder.join(format!("{NAME}{}.bin", &scorer[..scorer.len().min(16)]));
        let context = || format!("cannot use {}", path.display());
        let bytes = if path.exists() { fs::read(&path).with_context(context)? } else { vec![] };
        let mut scores = HashMap::new();
        let mut good = 0;
        for record in bytes.chunks_exact(RECORD) {
            let (data, sum) = record.split_at(RECORD - 4);
            let (Ok(key), Ok(score), Ok(sum)) = (data[..16].try_into(), data[16..].try_into(), sum.try_into()) else { break };
            if u32::from_le_bytes(sum) != crc32c::crc32c(data) {
                break;
            }
            scores.insert(key, f32::from_le_bytes(score));
            good += RECORD;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(context)?;
        file.set_len(good as u64).with_context(context)?;
        Ok(Self { scores, file: Some(BufWriter::new(file)), unflushed: 0, path })
    }

    /// In memory alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// Says where there is something to go on from.
    pub fn tell(&self, reporter: &dyn Reporter) {
        if !self.scores.is_empty() {
            reporter.note(&format!("Resuming: {} scores are there already", self.scores.len()));
        }
    }

    pub fn len(&self) -> usize {
        self.scores.len()
    }

    /// None where it was not computed; Some(None) where it was and there is no score.
    pub fn get(&self, sha256: ContentHash, caption: &str) -> Option<Option<f32>> {
        self.scores.get(&key(sha256, caption)).map(|score| Some(*score).filter(|score| score.is_finite()))
    }

    /// Remembers a score.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn put(&mut self, sha256: ContentHash, caption: &str, score: Option<f32>) -> Result<()> {
        let (key, score) = (key(sha256, caption), score.unwrap_or(f32::NAN));
        let mut record = [0; RECORD];
        record[..16].copy_from_slice(&key);
        record[16..20].copy_from_slice(&score.to_le_bytes());
        let sum = crc32c::crc32c(&record[..20]);
        record[20..].copy_from_slice(&sum.to_le_bytes());
        self.scores.insert(key, score);
        self.unflushed += 1;
        if let Some(file) = &mut self.file {
            file.write_all(&record).with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        if self.unflushed >= FLUSH_AFTER { self.flush() } else { Ok(()) }
    }

    /// Hands all scores over to the system.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn flush(&mut self) -> Result<()> {
        self.unflushed = 0;
        match &mut self.file {
            Some(file) => file.flush().with_context(|| format!("cannot write {}", self.path.display())),
            None => Ok(()),
        }
    }

    /// Removes what is kept of any scorer: the output has all that counts.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn remove(self) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let context = || format!("cannot tidy {}", folder.display());
        let mut kept = paths_in(folder).with_context(context)?;
        kept.retain(|path| name_of(path).starts_with(NAME));
        kept.iter().try_for_each(fs::remove_file).with_context(context)
    }
}

fn key(sha256: ContentHash, caption: &str) -> Key {
    let hash = Sha256::new().chain_update(sha256.to_string()).chain_update("\n").chain_update(caption).finalize();
    std::array::from_fn(|at| hash[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> ContentHash {
        ContentHash::of("picture")
    }

    #[test]
    fn what_was_scored_is_known_again_up_to_the_first_damage() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = Known::open(folder.path(), "scorer").unwrap();
        for number in 0..10 {
            let score = (number != 3).then_some(number as f32 / 10.0);
            known.put(picture(), &format!("第{number}句"), score).unwrap();
        }
        let path = known.path.clone();
        drop(known);
        let known = Known::open(folder.path(), "scorer").unwrap();
        assert_eq!(known.len(), 10);
        assert_eq!(known.get(picture(), "第2句"), Some(Some(0.2)));
        assert_eq!(known.get(picture(), "第3句"), Some(None));
        assert_eq!((known.get(ContentHash::of("another"), "第2句"), known.get(picture(), "")), (None, None));
        assert_eq!(Known::open(folder.path(), "other").unwrap().len(), 0);
        drop(known);
        // Killed in the middle of a record; a record that the disk changed.
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(8 * RECORD + 5);
        bytes[6 * RECORD + 17] ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut known = Known::open(folder.path(), "scorer").unwrap();
        assert_eq!((known.len(), fs::metadata(&path).unwrap().len()), (6, 6 * RECORD as u64));
        known.put(picture(), "新", Some(0.5)).unwrap();
        drop(known);
        let known = Known::open(folder.path(), "scorer").unwrap();
        assert_eq!((known.len(), known.get(picture(), "新")), (7, Some(Some(0.5))));
        known.remove().unwrap();
        assert!(!path.exists());
    }
}
