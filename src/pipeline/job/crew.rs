//! Workers of jobs that run on the same cores share them. Each has a locked file in the folder for temporary files that says which cores it
//! may run on; one that nobody has locked is a dead worker's.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::files::{name_of, paths_if_there};
use crate::pipeline::artifact::is_still_at;
use serde::{Deserialize, Serialize};

/// This worker among those that run on the same cores.
pub struct Crew {
    cores: usize,
    me: Announced,
    /// Where all announce themselves; absent where there is no such place, and this worker is alone.
    folder: Option<PathBuf>,
    file: Option<(String, File)>,
    /// What was told last.
    told: Mutex<Option<Part>>,
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Announced {
    /// Which cores it may run on, in the system's own words.
    on: String,
    /// The threads that it was told to have, whatever others do.
    threads: Option<usize>,
}

/// A worker's part of the cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub threads: usize,
    pub workers: usize,
    pub cores: usize,
}

impl Crew {
    /// Joins the workers of this machine. `threads`: as many, and no share.
    pub fn join(threads: Option<usize>) -> Self {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        Self::join_in(shared_folder(), cores, &cores_here(cores), threads)
    }

    /// Where no file can be made or locked, this worker counts as the only one.
    fn join_in(folder: Option<PathBuf>, cores: usize, on: &str, threads: Option<usize>) -> Self {
        let me = Announced { on: on.into(), threads };
        let file = folder.as_deref().and_then(|folder| announce(folder, &me));
        Self { cores, me, folder, file, told: Mutex::default() }
    }

    /// Says of a part what is new since the last one; nothing to a worker that has a number of its own, or that was alone all the time.
    pub fn news(&self, part: Part) -> Option<String> {
        let before = self.told.lock().unwrap_or_else(PoisonError::into_inner).replace(part);
        let Part { threads, workers, cores } = part;
        let is_new = before.map_or(workers > 1, |before| before != part);
        let each = if threads == 1 { "1 thread".to_string() } else { format!("{threads} threads") };
        let says = match workers {
            1 => format!("no other worker is on these {cores} cores: {each} from now on"),
            _ => format!("{workers} workers share {cores} cores: {each} for this one (--threads N sets another number)"),
        };
        (is_new && self.me.threads.is_none()).then_some(says)
    }

    /// This worker's part now: what is left by those that have a number of their own is cut into equal parts.
    pub fn part(&self) -> Part {
        let mut workers = vec![];
        if let (Some(folder), Some((name, _))) = (&self.folder, &self.file) {
            workers = at_work(folder);
            workers.retain(|(of, announced)| of != name && announced.on == self.me.on);
            workers.push((name.clone(), self.me.clone()));
            workers.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        let (cores, all) = (self.cores, workers.len().max(1));
        if let Some(threads) = self.me.threads {
            return Part { threads, workers: all, cores };
        }
        let taken: usize = workers.iter().filter_map(|(_, announced)| announced.threads).sum();
        let sharing: Vec<&String> =
            workers.iter().filter(|(_, announced)| announced.threads.is_none()).map(|(name, _)| name).collect();
        let rank = self.file.as_ref().and_then(|(name, _)| sharing.iter().position(|of| *of == name)).unwrap_or(0);
        let (left, parts) = (cores.saturating_sub(taken), sharing.len().max(1));
        let threads = left / parts + usize::from(rank < left % parts);
        Part { threads: threads.max(1), workers: all, cores }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if let (Some(folder), Some((name, _))) = (&self.folder, &self.file) {
            let _ = fs::remove_file(folder.join(name));
            // The last one leaves nothing behind.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A folder of this user's own among the temporary files; None where somebody else has made it.
fn shared_folder() -> Option<PathBuf> {
    let user = fs::metadata("/proc/self").ok()?.uid();
    let folder = std::env::temp_dir().join(format!("clipcap-workers-{user}"));
    match fs::symlink_metadata(&folder) {
        Ok(found) => (found.is_dir() && found.uid() == user).then_some(folder),
        Err(_) => Some(folder),
    }
}

/// What workers with the same cores have in common: the cores that they may run on, or the control group that limits their number.
fn cores_here(cores: usize) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap_or_default().trim();
    let allowed: u32 = mask.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum();
    if allowed as usize == cores { mask.into() } else { fs::read_to_string("/proc/self/cgroup").unwrap_or_default() }
}

/// Makes this worker's file and locks it. Between the two it looks like a dead worker's, and somebody may remove it: then again.
fn announce(folder: &Path, me: &Announced) -> Option<(String, File)> {
    let text = serde_json::to_vec(me).ok()?;
    for number in 0..100 {
        let name = format!("{:010}-{number}", std::process::id());
        let path = folder.join(&name);
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Where another worker is a moment earlier it is there; where the last one leaves it is gone again.
                let _ = DirBuilder::new().mode(0o700).create(folder);
                continue;
            }
            made => made.ok()?,
        };
        if file.lock().is_err() || file.write_all(&text).is_err() {
            let _ = fs::remove_file(&path);
            return None;
        }
        if is_still_at(&file, &path) {
            return Some((name, file));
        }
    }
    None
}

/// Who is at work; the files of the dead go.
fn at_work(folder: &Path) -> Vec<(String, Announced)> {
    let paths = paths_if_there(folder).unwrap_or_default();
    paths.into_iter().map(|path| (name_of(&path).to_string(), path)).filter_map(found).collect()
}

fn found((name, path): (String, PathBuf)) -> Option<(String, Announced)> {
    let file = File::open(&path).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        _ => {
            let _ = fs::remove_file(&path);
            return None;
        }
    }
    Some((name, serde_json::from_slice(&fs::read(&path).ok()?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(folder: &Path, on: &str, threads: Option<usize>) -> Crew {
        Crew::join_in(Some(folder.into()), 8, on, threads)
    }

    fn threads(crews: &[&Crew]) -> Vec<usize> {
        crews.iter().map(|crew| crew.part().threads).collect()
    }

    #[test]
    fn workers_on_the_same_cores_share_them_and_the_dead_have_no_part() {
        let folder = tempfile::tempdir().unwrap();
        let here = |threads| join(folder.path(), "ff", threads);
        let first = here(None);
        assert_eq!((first.part(), first.news(first.part())), (Part { threads: 8, workers: 1, cores: 8 }, None));
        let (second, third) = (here(None), here(None));
        assert_eq!(threads(&[&first, &second, &third]), [3, 3, 2]);
        assert!(first.news(first.part()).unwrap().starts_with("3 workers share 8 cores: 3 threads"));
        assert_eq!(first.news(first.part()), None, "told once");
        // On other cores.
        let apart = join(folder.path(), "ff00", None);
        assert_eq!(threads(&[&apart, &first]), [8, 3]);
        // Who has a number keeps it, and the others share the rest; nobody has none.
        let fixed = here(Some(5));
        assert_eq!(threads(&[&fixed, &first, &second, &third]), [5, 1, 1, 1]);
        assert_eq!(fixed.news(fixed.part()), None);
        drop((fixed, third));
        assert_eq!(threads(&[&first, &second]), [4, 4]);
        // A killed worker leaves its file, which nobody has locked.
        let dead = folder.path().join("0000000001-0");
        fs::write(&dead, r#"{"on": "ff", "threads": null}"#).unwrap();
        drop(second);
        assert_eq!(first.news(first.part()).unwrap(), "no other worker is on these 8 cores: 8 threads from now on");
        assert!(!dead.exists());
        drop((first, apart));
        assert!(!folder.path().exists(), "the last one leaves nothing behind");
    }

    #[test]
    fn without_a_folder_a_worker_has_all_cores() {
        for folder in [None, Some(PathBuf::from("/nowhere/at/all"))] {
            assert_eq!(Crew::join_in(folder, 4, "f", None).part(), Part { threads: 4, workers: 1, cores: 4 });
        }
    }
}
