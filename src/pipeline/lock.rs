//! An operating-system lock on a work folder: one run at a time, freed by the system however the holder ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Held while a run owns its work folder.
pub struct WorkLock {
    path: PathBuf,
    /// The lock lives as long as this handle.
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{}: another run is working here ({holder}): wait for it, stop it, or choose another --out", path.display())]
    Held { path: PathBuf, holder: String },
    #[error("{}: cannot lock ({source}): is this a folder you may write to?", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl WorkLock {
    /// Locks `folder/lock` without waiting, making the folder where it is missing.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join("lock");
        let io_error = |source| LockError::Io { path: path.clone(), source };
        // The holder before us may remove the folder between two of our steps: begin again then.
        for _ in 0..100 {
            fs::create_dir_all(folder).map_err(io_error)?;
            let mut file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(io_error)?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = (&file).take(4096).read_to_string(&mut holder);
                    let holder =
                        if holder.trim().is_empty() { "it has not said who it is yet".into() } else { holder.trim().to_string() };
                    return Err(LockError::Held { path, holder });
                }
                Err(TryLockError::Error(source)) => return Err(io_error(source)),
            }
            if !is_still_at(&file, &path) {
                continue;
            }
            let command = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "process {}: {command}", std::process::id())
            };
            write(&mut file).map_err(io_error)?;
            return Ok(Self { path, _file: file });
        }
        Err(io_error(io::Error::other("the folder keeps vanishing")))
    }

    /// Removes the lock file while it is still held, so that nobody can lock a name that is about to go.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Whether the open file is what its path names now: a holder that finished may have removed it.
#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(named)) => ours.ino() == named.ino() && ours.dev() == named.dev(),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_still_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_holder_and_the_first_ones_end_frees_it() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("x.work");
        let first = WorkLock::acquire(&work).unwrap();
        let Err(error) = WorkLock::acquire(&work) else { panic!("locked twice") };
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        let second = WorkLock::acquire(&work).unwrap();
        second.remove().unwrap();
        assert!(!work.join("lock").exists());
        assert!(WorkLock::acquire(&work).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_file_removed_by_its_holder_is_not_taken_for_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let stale = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap();
        assert!(!is_still_at(&stale, &path));
    }
}
