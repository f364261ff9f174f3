//! What OpenVINO compiled, kept for the next start in `~/.cache/clipcap/openvino/`: a folder for each graph with its weights and hints, which
//! OpenVINO fills and reads by itself.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::files::{self, Checked, ContentHash, Stat, name_of, paths_in, read_checked_json, write_checked_json};

/// More than this is not kept: what was not used for the longest time goes first.
const MOST_BYTES: u64 = 4 << 30;
/// A folder in the making this old belongs to a process that was killed.
const ABANDONED_SECONDS: u64 = 24 * 60 * 60;
const SUMS: &str = "sums.json";
const PART: &str = ".part-";

/// Where a compiled graph is kept, or is to be.
pub struct Kept {
    /// With all of it.
    whole: PathBuf,
    /// For OpenVINO: the whole folder, or one in the making.
    pub folder: PathBuf,
}

/// What is in a folder.
#[derive(Serialize, Deserialize, PartialEq)]
struct Sums {
    /// Name, bytes, CRC-32C.
    files: Vec<(String, u64, u32)>,
}

impl Kept {
    /// For what all of `subject` and the files of weights make. None without a home, with weights that changed just now, or on a disk that takes
    /// nothing: it is compiled anew then.
    pub fn of(subject: &[&[u8]], weights: &[PathBuf]) -> Option<Self> {
        Self::in_folder(&files::cache_folder()?.join("openvino"), subject, weights, SystemTime::now())
    }

    fn in_folder(all: &Path, subject: &[&[u8]], weights: &[PathBuf], now: SystemTime) -> Option<Self> {
        let mut key: Vec<String> = subject.iter().map(|part| ContentHash::of(part).to_string()).collect();
        for path in weights {
            let stat = Stat::of(&path.metadata().ok()?);
            if !stat.is_settled(now) {
                return None;
            }
            key.push(format!("{} {stat:?}", path.canonicalize().ok()?.display()));
        }
        let whole = all.join(format!("{:.16}", ContentHash::of(key.join("\n"))));
        if is_whole(&whole) {
            return Some(Self { folder: whole.clone(), whole });
        }
        // Another process may be making the same.
        fs::create_dir_all(all).ok()?;
        let folder = tempfile::Builder::new().prefix(&format!("{}{PART}", name_of(&whole))).tempdir_in(all).ok()?.keep();
        Some(Self { whole, folder })
    }

    /// After OpenVINO failed with it.
    pub fn discard(self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// After OpenVINO compiled: what it left is kept under its final name, and what is too much goes.
    pub fn settle(self) {
        if self.folder == self.whole {
            // Used now.
            if let Ok(sums) = File::open(self.whole.join(SUMS)) {
                let _ = sums.set_modified(SystemTime::now());
            }
            return;
        }
        let keep = || {
            let sums = Sums::of(&self.folder)?;
            if sums.files.is_empty() {
                return Err(io::Error::other("nothing was left"));
            }
            write_checked_json(&self.folder.join(SUMS), &sums)?;
            fs::remove_dir_all(&self.whole).or_else(ignore_missing)?;
            fs::rename(&self.folder, &self.whole)
        };
        let all = self.whole.parent().map(Path::to_path_buf);
        if keep().is_err() {
            self.discard();
        }
        if let Some(all) = all {
            let _ = tidy(&all, MOST_BYTES);
        }
    }
}

impl Sums {
    fn of(folder: &Path) -> io::Result<Self> {
        let mut files = vec![];
        for path in paths_in(folder)?.iter().filter(|path| name_of(path) != SUMS) {
            // SAFETY: nobody writes there any more; a file that is cut meanwhile ends this process, as it would OpenVINO's reading of it.
            let map = unsafe { memmap2::Mmap::map(&File::open(path)?)? };
            files.push((name_of(path).to_string(), map.len() as u64, crc32c::crc32c(&map)));
        }
        files.sort();
        Ok(Self { files })
    }
}

/// Whether all files are as they were left.
fn is_whole(folder: &Path) -> bool {
    let Ok(Checked::Whole(sums, true)) = read_checked_json::<Sums>(&folder.join(SUMS)) else { return false };
    Sums::of(folder).is_ok_and(|found| found == sums)
}

/// Removes what killed processes left, and what was not used for the longest time beyond `most` bytes.
fn tidy(all: &Path, most: u64) -> io::Result<()> {
    let age = |path: &Path| path.metadata().and_then(|m| m.modified()).map_or(0, |m| m.elapsed().map_or(0, |age| age.as_secs()));
    let mut kept = vec![];
    for folder in paths_in(all)? {
        if name_of(&folder).contains(PART) {
            if age(&folder) > ABANDONED_SECONDS {
                fs::remove_dir_all(&folder)?;
            }
            continue;
        }
        let bytes: u64 = paths_in(&folder)?.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
        let used = folder.join(SUMS).metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        kept.push((used, bytes, folder));
    }
    kept.sort_by(|a, b| b.cmp(a));
    let mut total = 0;
    for (_, bytes, folder) in kept {
        total += bytes;
        if total > most {
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// One that was made of `subject` over weights that have not changed for long.
    fn made(all: &Path, subject: &str, weights: &Path) -> Kept {
        let later = SystemTime::now() + Duration::from_secs(10);
        Kept::in_folder(all, &[subject.as_bytes()], &[weights.to_path_buf()], later).unwrap()
    }

    #[test]
    fn what_was_compiled_is_found_again_while_all_is_the_same() {
        let place = tempfile::tempdir().unwrap();
        let (all, weights) = (place.path().join("all"), place.path().join("weights"));
        fs::write(&weights, "weights").unwrap();
        let first = made(&all, "graph", &weights);
        assert_ne!(first.folder, first.whole);
        fs::write(first.folder.join("1.blob"), "compiled").unwrap();
        first.settle();
        let again = made(&all, "graph", &weights);
        assert!(again.folder == again.whole && again.whole.join("1.blob").is_file());
        // Another graph; a blob that is damaged; one that was not finished.
        assert_ne!(made(&all, "other", &weights).whole, again.whole);
        fs::write(again.whole.join("1.blob"), "Compiled").unwrap();
        let anew = made(&all, "graph", &weights);
        assert_ne!(anew.folder, anew.whole);
        anew.settle();
        assert!(!is_whole(&again.whole), "nothing was left in it");
        let failed = made(&all, "third", &weights);
        let folder = failed.folder.clone();
        failed.discard();
        assert!(!folder.exists());
        // Weights that changed just now could change again without a trace.
        assert!(Kept::in_folder(&all, &[b"graph"], &[weights], SystemTime::now()).is_none());
    }

    #[test]
    fn what_is_too_much_goes_the_oldest_first() {
        let place = tempfile::tempdir().unwrap();
        let (all, weights) = (&place.path().join("all"), place.path().join("weights"));
        fs::write(&weights, "weights").unwrap();
        let mut folders = vec![];
        for (i, subject) in ["a", "b", "c"].iter().enumerate() {
            let kept = made(all, subject, &weights);
            fs::write(kept.folder.join("1.blob"), [0; 1000]).unwrap();
            let whole = kept.whole.clone();
            kept.settle();
            let sums = File::open(whole.join(SUMS)).unwrap();
            sums.set_modified(SystemTime::now() - Duration::from_secs(100 - i as u64)).unwrap();
            folders.push(whole);
        }
        tidy(all, 2500).unwrap();
        assert_eq!(folders.iter().map(|f| f.is_dir()).collect::<Vec<_>>(), [false, true, true]);
    }
}
