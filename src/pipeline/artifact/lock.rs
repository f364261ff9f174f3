//! An operating-system lock on a work folder: one run at a time, freed by the system however the holder ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::files::paths_in;
use crate::pipeline::reporter::Reporter;

/// Held while a run owns its work folder.
pub struct WorkLock {
    path: PathBuf,
    file: File,
    /// The file system has no locks: other computers cannot be kept away.
    is_weak: bool,
}

/// Why a work folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{}: another run is working here ({holder}): wait for it, stop it, or choose another --out", path.display())]
    Held { path: PathBuf, holder: String },
    #[error("cannot write to {}: {}", folder.display(), in_words(error))]
    Io { folder: PathBuf, error: io::Error },
}

/// A fault of the file system, and what to do about it.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied: choose an --out in a folder that you may write to".into(),
        io::ErrorKind::ReadOnlyFilesystem => "it is mounted read-only: choose an --out elsewhere".into(),
        io::ErrorKind::StorageFull => "the disk is full: make room, or choose an --out elsewhere".into(),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "it is a file: choose an --out in a folder".into(),
        _ => format!("{error}"),
    }
}

impl WorkLock {
    /// Locks `folder/lock` without waiting, making the folder where it is missing.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join("lock");
        // The folder that the user named, not the one we make in it.
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let io_error = |error| LockError::Io { folder: parent.into(), error };
        // The holder before us may remove the folder between two of our steps: begin again then.
        for _ in 0..100 {
            match fs::create_dir_all(folder) {
                // It was there, and is not any more.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !is_another_file(folder) => continue,
                made => made.map_err(io_error)?,
            }
            let mut file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(io_error)?,
            };
            let held = |holder: String| LockError::Held { path: path.clone(), holder };
            let is_weak = match file.try_lock() {
                Ok(()) => false,
                Err(TryLockError::WouldBlock) => {
                    let holder = holder(&file);
                    return Err(held(if holder.is_empty() { "it has not said who it is yet".into() } else { holder }));
                }
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    let holder = holder(&file);
                    if is_at_work(&holder) {
                        return Err(held(holder));
                    }
                    true
                }
                Err(TryLockError::Error(error)) => return Err(io_error(error)),
            };
            if !is_weak && !is_still_at(&file, &path) {
                continue;
            }
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "process {}: {}", std::process::id(), one_line(&command()))
            };
            write(&mut file).map_err(io_error)?;
            return Ok(Self { path, file, is_weak });
        }
        Err(io_error(io::Error::other("the folder keeps vanishing")))
    }

    /// Warns where the lock keeps only this computer's runs away.
    pub fn tell(&self, reporter: &dyn Reporter) {
        if self.is_weak {
            let folder = self.path.parent().unwrap_or(&self.path).display();
            reporter.warn(&format!(
                "{folder}: this file system has no locks: run nothing else with the same output on another computer"
            ));
        }
    }

    /// Removes the lock file while it is still held, so that nobody can lock a name that is about to go.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Removes the folder with all that is in it. What lies beside the lock goes while it is held; from then on the folder is somebody else's if
    /// they come in, and stays.
    pub fn remove_with_folder(self) -> io::Result<()> {
        let folder = self.path.with_file_name("");
        for path in paths_in(&folder)?.iter().filter(|path| **path != self.path) {
            if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        self.remove()?;
        let _ = fs::remove_dir(&folder);
        Ok(())
    }
}

impl Drop for WorkLock {
    /// Closing the file would leave the lock to a process that is being started at this moment and has not closed its copy yet.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// Whether a path names what no folder can be made of.
fn is_another_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir())
}

/// What the last holder wrote of itself.
fn holder(file: &File) -> String {
    let mut holder = String::new();
    let _ = file.take(1 << 16).read_to_string(&mut holder);
    holder.trim().to_owned()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// This process's command line.
fn command() -> String {
    std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// NFS without a lock manager, some mounts of Lustre, FSx and FUSE.
fn has_no_locks(error: &io::Error) -> bool {
    const ENOLCK: i32 = 37;
    const ENOSYS: i32 = 38;
    const EOPNOTSUPP: i32 = 95;
    matches!(error.raw_os_error(), Some(ENOLCK | ENOSYS | EOPNOTSUPP)) || error.kind() == io::ErrorKind::Unsupported
}

/// Whether the holder, as it described itself, is another process of this computer that runs still.
fn is_at_work(holder: &str) -> bool {
    let Some((process, command)) = holder.strip_prefix("process ").and_then(|rest| rest.split_once(": ")) else { return false };
    if process == std::process::id().to_string() || !process.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let running = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let arguments: Vec<_> = running.strip_suffix(&[0]).unwrap_or(&running).split(|&byte| byte == 0).collect();
    let running: Vec<_> = arguments.into_iter().map(String::from_utf8_lossy).collect();
    one_line(&running.join(" ")) == command
}

/// Whether the open file is what its path names now: a holder that finished may have removed it.
pub(in crate::pipeline) fn is_still_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(named)) => ours.ino() == named.ino() && ours.dev() == named.dev(),
        _ => false,
    }
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

    #[test]
    fn a_folder_that_its_holder_removes_is_whole_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("shard");
        let round = || {
            let lock = loop {
                match WorkLock::acquire(&work) {
                    Err(LockError::Held { .. }) => std::thread::yield_now(),
                    locked => break locked.unwrap(),
                }
            };
            // Nobody's things lie here, and ours stay until we remove them.
            let (file, within) = (work.join("table"), work.join("table.work"));
            File::create_new(&file).unwrap();
            fs::create_dir(&within).unwrap();
            std::thread::yield_now();
            assert!(file.exists() && within.exists());
            lock.remove_with_folder().unwrap();
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| (0..200).for_each(|_| round())))));
        assert!(!work.exists());
    }

    #[test]
    fn without_locks_a_process_that_runs_is_known_by_its_command() {
        let other = std::process::Command::new("sleep").arg("60").spawn();
        let mut other = other.unwrap();
        let command = || fs::read(format!("/proc/{}/cmdline", other.id())).unwrap();
        // The child is a copy of this process until it has begun.
        while !command().starts_with(b"sleep") {
            std::thread::yield_now();
        }
        assert!(is_at_work(&format!("process {}: sleep 60", other.id())));
        assert!(!is_at_work(&format!("process {}: clipcap caption", other.id())));
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!is_at_work(&format!("process {}: sleep 60", other.id())));
        assert!(!is_at_work("") && !is_at_work("process x: y"));
        for code in [37, 38, 95] {
            assert!(has_no_locks(&io::Error::from_raw_os_error(code)));
        }
        assert!(!has_no_locks(&io::Error::from_raw_os_error(13)));
    }

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
