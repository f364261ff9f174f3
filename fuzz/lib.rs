//! What the targets share.

use std::path::Path;

/// Puts bytes into a file of this name in memory, for readers that take files.
pub fn on_disk(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory for a file");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("memory for a file");
    read(&path);
}
