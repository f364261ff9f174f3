//! Folders of this machine that are read before their turn: on network file systems most of the time is waiting.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::Type;

/// Folders that are read ahead.
const AHEAD: usize = 16;
const THREADS: usize = 4;

/// Names that are read ahead of a folder at most; one that holds more is read when its turn comes.
const MOST_NAMES: usize = 1 << 18;

/// What a folder holds, in no order. None where it is too much.
type Names = Option<Vec<(OsString, Option<Type>)>>;

/// A folder to read, and where what it holds is waited for.
type Task = (PathBuf, Sender<io::Result<Names>>);

/// Reads folders on threads of its own: whoever walks may be one of a pool's, and all of those may wait.
#[derive(Default)]
pub(super) struct Ahead {
    tasks: Option<Sender<Task>>,
    coming: HashMap<PathBuf, Receiver<io::Result<Names>>>,
}

impl Ahead {
    /// Begins with these, as far as there is room.
    pub fn ask(&mut self, folders: impl Iterator<Item = PathBuf>) {
        for folder in folders.take(AHEAD) {
            if self.coming.len() >= AHEAD {
                return;
            }
            if self.coming.contains_key(&folder) {
                continue;
            }
            let (reply, coming) = bounded(1);
            // Without a thread it is read when its turn comes.
            if self.tasks.get_or_insert_with(threads).try_send((folder.clone(), reply)).is_ok() {
                self.coming.insert(folder, coming);
            }
        }
    }

    /// Hands out what a folder holds.
    ///
    /// # Errors
    /// It cannot be listed; what `each` says.
    pub fn each(&mut self, folder: &Path, mut each: impl FnMut(OsString, Option<Type>) -> io::Result<()>) -> io::Result<()> {
        if let Some(Ok(names)) = self.coming.remove(folder).map(|coming| coming.recv())
            && let Some(names) = names?
        {
            return names.into_iter().try_for_each(|(name, kind)| each(name, kind));
        }
        for item in fs::read_dir(folder)? {
            let (name, kind) = read(&item?);
            each(name, kind)?;
        }
        Ok(())
    }
}

/// Threads that end when nobody asks any more.
fn threads() -> Sender<Task> {
    let (send, tasks) = bounded::<Task>(AHEAD);
    for _ in 0..THREADS {
        let tasks = tasks.clone();
        // Where one cannot be started, the others do its work, or the one that walks.
        let _ = thread::Builder::new().name("list ahead".into()).spawn(move || {
            for (folder, reply) in tasks {
                let _ = reply.send(names(&folder));
            }
        });
    }
    send
}

fn read(item: &fs::DirEntry) -> (OsString, Option<Type>) {
    (item.file_name(), item.file_type().ok().map(Type::of))
}

fn names(folder: &Path) -> io::Result<Names> {
    let mut names = Vec::new();
    for item in fs::read_dir(folder)? {
        if names.len() == MOST_NAMES {
            return Ok(None);
        }
        names.push(read(&item?));
    }
    Ok(Some(names))
}
