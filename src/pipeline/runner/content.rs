//! Hashes of files and folders for a pipeline's fingerprints, remembered so that unchanged files are not read again.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::bookkeeping;
use crate::files::{self, Checked, ContentHash, Identity, Stat, files_under};
use crate::remote;

/// What a file looked like when it was hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seen {
    #[serde(flatten)]
    stat: Stat,
    sha256: ContentHash,
    /// It had not changed for a while when it was hashed: what looks the same now is the same. Others are hashed again in the next run.
    #[serde(skip_serializing, default = "settled")]
    is_settled: bool,
}

/// Only what is settled is written.
fn settled() -> bool {
    true
}

const FORMAT: &str = "content-hashes/2";

/// The file.
#[derive(Serialize, Deserialize)]
struct Memory {
    #[serde(rename = "clipcap.format")]
    format: String,
    files: BTreeMap<String, Seen>,
}

/// File hashes by path, kept in one small file between runs.
pub struct ContentHashes {
    path: PathBuf,
    /// Where an earlier version kept it.
    old: PathBuf,
    /// By path, as text.
    known: BTreeMap<String, Seen>,
    /// Read everything again (`--verify`).
    fresh: bool,
    /// What the pipeline makes itself: no part of a folder that it lies in.
    own: Vec<PathBuf>,
}

impl ContentHashes {
    /// Opens the memory of the pipeline whose outputs are in `folder`; one that cannot be read is begun anew, and one that is damaged too,
    /// which `damaged` is told.
    pub fn open(folder: &Path, fresh: bool, own: Vec<PathBuf>, damaged: impl FnOnce(&str)) -> Self {
        let (path, old) = (bookkeeping::content_hashes(folder), bookkeeping::old_content_hashes(folder));
        let there = if path.exists() { &path } else { &old };
        let known = match files::read_checked_json::<Memory>(there) {
            Ok(Checked::Whole(memory, true)) if memory.format == FORMAT => memory.files,
            Ok(Checked::Damaged) => {
                damaged(&format!("{}: damaged (a bad disk or a power cut): all files are read again", there.display()));
                BTreeMap::new()
            }
            // Older ones have no checksum.
            _ => BTreeMap::new(),
        };
        Self { path, old, known, fresh, own }
    }

    /// One hash for a file, or for everything under a folder: names and contents, in the order of names. Work folders, locks, temporary
    /// files, a stage's own records and outputs are left out. What cannot be read counts as that: the stage will say so.
    /// Of what is elsewhere, versions take the place of contents.
    pub fn of(&mut self, path: &Path) -> std::io::Result<String> {
        if remote::is_url(path) {
            return elsewhere(path);
        }
        path.metadata()?;
        let own: Vec<Identity> = self.own.iter().filter_map(|own| Some(Identity::of(&own.metadata().ok()?))).collect();
        let files = files_under(path, &|path, metadata| {
            !is_ours(path) && (metadata.is_dir() || metadata.is_file()) && !own.contains(&Identity::of(metadata))
        });
        let (known, fresh) = (&self.known, self.fresh);
        let seen: Vec<(PathBuf, Option<Seen>)> = files
            .into_par_iter()
            .map(|(file, _)| {
                let seen = see(&file, known.get(&text_of(&file)).filter(|_| !fresh)).ok();
                (file, seen)
            })
            .collect();
        let mut text = String::new();
        for (file, seen) in seen {
            let name = text_of(file.strip_prefix(path).unwrap_or(&file));
            text += &format!("{}  {name}\n", seen.as_ref().map_or_else(|| "unreadable".into(), |seen| seen.sha256.to_string()));
            if let Some(seen) = seen {
                self.known.insert(text_of(&file), seen);
            }
        }
        Ok(ContentHash::of(text).to_string())
    }

    /// Writes what is known; where an earlier version kept it, nothing stays.
    pub fn save(&self) -> std::io::Result<()> {
        let settled = self.known.iter().filter(|(_, seen)| seen.is_settled);
        let files = settled.map(|(path, seen)| (path.clone(), seen.clone())).collect();
        files::write_checked_json(&self.path, &Memory { format: FORMAT.into(), files })?;
        let _ = std::fs::remove_file(&self.old);
        Ok(())
    }
}

/// One hash for an object or for everything under a prefix: names and versions, in the order of names.
fn elsewhere(url: &Path) -> std::io::Result<String> {
    let line = |name: &Path, version: remote::Version| format!("{:x?}  {}\n", version.to_bytes(), name.display());
    if remote::place(url)? == remote::Place::Object {
        return Ok(ContentHash::of(line(Path::new(""), remote::version(url)?)).to_string());
    }
    let (mut lines, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for name in remote::names(&url.join(&folder))? {
            let within = folder.join(&name.name);
            match name.version {
                Some(version) => lines.push(line(&within, version)),
                None => folders.push(within),
            }
        }
    }
    lines.sort_unstable_by(|a, b| a.split_once("  ").cmp(&b.split_once("  ")));
    Ok(ContentHash::of(lines.concat()).to_string())
}

/// A path as text; bytes that are not UTF-8 are percent-encoded, and with them the others beyond ASCII.
fn text_of(path: &Path) -> String {
    let encode = || percent_encoding::percent_encode(path.as_os_str().as_bytes(), percent_encoding::CONTROLS).to_string();
    path.to_str().map_or_else(encode, str::to_string)
}

/// Hashes a file, or takes the hash of one that looks as it did.
fn see(file: &Path, known: Option<&Seen>) -> std::io::Result<Seen> {
    let stat = Stat::of(&file.metadata()?);
    match known {
        Some(known) if known.stat == stat => Ok(known.clone()),
        _ => Ok(Seen { stat, is_settled: stat.is_settled(SystemTime::now()), sha256: ContentHash::of_file(file)? }),
    }
}

/// Work folders, temporary files and what lies beside outputs.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == bookkeeping::FOLDER || name.ends_with(".work") || name.contains(".tmp-") || bookkeeping::is_old_stage_record(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_damage(message: &str) {
        panic!("{message}");
    }

    #[test]
    fn a_damaged_memory_is_told_and_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("a"), bookkeeping::content_hashes(folder.path()));
        std::fs::write(&file, "1").unwrap();
        let mut hashes = ContentHashes::open(folder.path(), false, vec![], no_damage);
        hashes.of(&file).unwrap();
        hashes.save().unwrap();
        // Written a moment ago, it could change once more without looking otherwise.
        assert!(!std::fs::read_to_string(&memory).unwrap().contains("sha256"));
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let mut hashes = ContentHashes::open(folder.path(), false, vec![], no_damage);
        let right = hashes.of(&file).unwrap();
        hashes.save().unwrap();
        // Another digit of the hash: with the file as it was, nothing else would tell.
        let text = std::fs::read_to_string(&memory).unwrap();
        let at = text.find("sha256").unwrap() + 20;
        let mut bytes = text.into_bytes();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        std::fs::write(&memory, bytes).unwrap();
        let mut warnings = 0;
        assert_eq!(ContentHashes::open(folder.path(), false, vec![], |_| warnings += 1).of(&file).unwrap(), right);
        assert_eq!(warnings, 1);
    }

    #[test]
    fn a_folder_has_one_hash_that_follows_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir_all(data.join("sub")).unwrap();
        std::fs::write(data.join("sub/a"), "1").unwrap();
        let memory = folder.path();
        let mut hashes = ContentHashes::open(memory, false, vec![], no_damage);
        let first = hashes.of(&data).unwrap();
        hashes.save().unwrap();
        assert_eq!(ContentHashes::open(memory, false, vec![], no_damage).of(&data).unwrap(), first);
        std::fs::write(data.join("x.stage.json"), "record").unwrap();
        files::write_atomic(&data.join(".clipcap/x.manifest.json"), b"manifest").unwrap();
        assert_eq!(ContentHashes::open(memory, true, vec![], no_damage).of(&data).unwrap(), first);
        std::fs::write(data.join("sub/a"), "22").unwrap();
        assert_ne!(ContentHashes::open(memory, false, vec![], no_damage).of(&data).unwrap(), first);
    }

    #[test]
    fn links_are_followed_once_own_outputs_left_out_and_what_cannot_be_read_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (data, beside) = (folder.path().join("data"), folder.path().join("beside"));
        std::fs::create_dir_all(data.join("out")).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::os::unix::fs::symlink("../beside", data.join("link")).unwrap();
        std::os::unix::fs::symlink(".", data.join("loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", data.join("broken")).unwrap();
        let hash = || ContentHashes::open(folder.path(), false, vec![data.join("out")], no_damage).of(&data).unwrap();
        std::fs::write(data.join(std::ffi::OsStr::from_bytes(b"odd\xff")), "bytes").unwrap();
        let first = hash();
        std::fs::write(data.join("out/table"), "made").unwrap();
        assert_eq!(hash(), first);
        std::fs::write(beside.join("a"), "1").unwrap();
        assert_ne!(hash(), first);
        let mut hashes = ContentHashes::open(folder.path(), false, vec![], no_damage);
        assert!(hashes.of(&data.join("nowhere")).is_err());
        hashes.of(&data).unwrap();
        hashes.save().unwrap();
    }

    #[test]
    fn a_change_with_its_time_set_back_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("a"), folder.path());
        std::fs::write(&file, "1").unwrap();
        let mut hashes = ContentHashes::open(memory, false, vec![], no_damage);
        let first = hashes.of(&file).unwrap();
        hashes.save().unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        std::fs::write(&file, "2").unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert_ne!(ContentHashes::open(memory, false, vec![], no_damage).of(&file).unwrap(), first);
    }
}
