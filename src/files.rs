//! Files that are either complete or not there: atomic writes, copies, content hashes, portable path text.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

mod checked;
mod folders;
mod hash;
pub(crate) mod sort;
mod stat;

pub(crate) use checked::{Checked, read_checked_json, write_checked_json};
pub(crate) use folders::{Identity, between, files_under, name_of, numbered_in, paths_if_there, paths_in};
pub use hash::ContentHash;
pub(crate) use hash::hex;
pub(crate) use stat::Stat;

/// A file under construction: written under a temporary name beside its target and renamed to it by [`commit`](Self::commit).
///
/// Dropped without `commit`, the temporary file is removed and the target stays as it was.
pub struct AtomicFile {
    temporary: PathBuf,
    target: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Opens a temporary file in the target's folder, which is created where it is missing.
    pub fn create(target: impl Into<PathBuf>) -> io::Result<Self> {
        let target = target.into();
        if let Some(parent) = target.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        let temporary = temporary_beside(&target);
        let writer = BufWriter::with_capacity(1 << 18, File::create(&temporary)?);
        Ok(Self { temporary, target, writer: Some(writer) })
    }

    /// Sends what was written so far to the disk, so that [`commit`](Self::commit) has less to wait for.
    pub fn sync_written(&self) -> io::Result<()> {
        self.writer.as_ref().map_or(Ok(()), |writer| writer.get_ref().sync_data())
    }

    /// Flushes to the disk and gives the file its final name.
    pub fn commit(mut self) -> io::Result<()> {
        let writer = self.writer.take().expect("commit consumes the file, so it runs once");
        let file = writer.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&self.temporary, &self.target)?;
        sync_parent(&self.target);
        Ok(())
    }

    fn writer(&mut self) -> &mut BufWriter<File> {
        self.writer.as_mut().expect("present until commit")
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.writer.take().is_some() || self.temporary.exists() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// `NAME.tmp-PID-N` beside `target`: unique among processes and within one. Of a name that is nearly too long only the beginning is taken.
pub fn temporary_beside(target: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    const LONGEST: usize = 220;
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    if name.len() > LONGEST {
        let text = name.to_string_lossy();
        let end = (0..=LONGEST).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        name = text[..end].into();
    }
    name.push(format!(".tmp-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    target.with_file_name(name)
}

/// Where the program keeps what it can make again: `XDG_CACHE_HOME/clipcap` or `~/.cache/clipcap`. None without a home.
pub fn cache_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Some(cache?.join("clipcap"))
}

/// Refuses a path whose name the file system does not take because it is too long, before any work is done for it.
///
/// # Errors
/// What is wrong, with the path.
pub fn check_name(path: &Path) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => Err(format!(
            "a name that is too long for the file system ({} bytes): {}: choose a shorter --out",
            name.len(),
            name.display()
        )),
        _ => Ok(()),
    }
}

/// Makes a rename durable; a file system that cannot sync a folder loses nothing else.
fn sync_parent(path: &Path) {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(parent) {
        let _ = folder.sync_all();
    }
}

/// What a call gives; None where it says that nothing is there.
///
/// # Errors
/// The call's others.
pub fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Removes a file, or a folder with all that is in it; where nothing is, nothing is done.
///
/// # Errors
/// It is there and stays.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    let Some(metadata) = if_there(fs::symlink_metadata(path))? else { return Ok(()) };
    if_there(if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }).map(|_| ())
}

/// Writes a whole file atomically.
pub fn write_atomic(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(target)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Writes a whole file where none of that name is there. False: somebody else's is there, and it stays as it is.
///
/// Of several that try at once, on one machine or on several that share the folder, one succeeds, and nobody sees half a file.
pub fn put_if_absent(target: &Path, bytes: &[u8]) -> io::Result<bool> {
    if let Some(parent) = target.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    let temporary = temporary_beside(target);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    // A second name fails where the name is taken, which a rename would not.
    let put = match written.and_then(|()| fs::hard_link(&temporary, target)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // A file system without second names: the name is taken first, and the content follows.
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
            match File::create_new(target) {
                Ok(mut file) => file.write_all(bytes).and_then(|()| file.sync_all()).map(|()| true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    let _ = fs::remove_file(&temporary);
    if matches!(put, Ok(true)) {
        sync_parent(target);
    }
    put
}

/// Pretty-printed JSON with a final newline.
pub fn json_text(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

/// Writes pretty-printed JSON with a final newline, atomically.
pub fn write_json(target: &Path, value: &impl serde::Serialize) -> io::Result<()> {
    write_atomic(target, &json_text(value)?)
}

/// Opens a file without waiting for the other end of a pipe that may stand in its place.
pub fn open_without_waiting(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        const O_NONBLOCK: i32 = 0o4000;
        options.custom_flags(O_NONBLOCK);
    }
    options.open(path)
}

/// Opens a regular file; pipes, devices and folders are refused, and nothing is waited for.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = open_without_waiting(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// Copies `source` to `target`, which is whole or not there. Replaces an existing target.
///
/// Weights are never hard-linked: ONNX's own library refuses external data that has several names, and a source that its owner overwrites
/// in place would change under the bundle. File systems that can share blocks (btrfs, XFS) do so here.
pub fn copy(source: &Path, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = temporary_beside(target);
    let copied = fs::copy(source, &temporary)
        .and_then(|_| File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, target));
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    copied
}

/// Copies a folder and the folders in it, without the files whose name `is_wanted` refuses.
pub fn copy_folder(from: &Path, to: &Path, is_wanted: &dyn Fn(&str) -> bool) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target, is_wanted)?;
        } else if is_wanted(&entry.file_name().to_string_lossy()) {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// The CRC-32C of a file's content: it finds what a bad disk changed, at the speed of reading. On every core.
pub fn crc32c_file(path: &Path) -> io::Result<u32> {
    use rayon::prelude::*;
    use std::os::unix::fs::FileExt;
    const PIECE: u64 = 16 << 20;
    // Small enough to stay in a core's cache, and filled again and again: fresh memory takes longer than the sum.
    const BUFFER: usize = 256 << 10;
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let piece = |buffer: &mut Vec<u8>, number: u64| {
        let (start, end) = (number * PIECE, length.min((number + 1) * PIECE));
        let (mut sum, mut at) = (0, start);
        while at < end {
            let bytes = &mut buffer[..BUFFER.min((end - at) as usize)];
            file.read_exact_at(bytes, at)?;
            sum = crc32c::crc32c_append(sum, bytes);
            at += bytes.len() as u64;
        }
        Ok((sum, (end - start) as usize))
    };
    let combine = |(a, n): (u32, usize), (b, m): (u32, usize)| Ok::<_, io::Error>((crc32c::crc32c_combine(a, b, m), n + m));
    let pieces = (0..length.div_ceil(PIECE)).into_par_iter().map_init(|| vec![0; BUFFER], piece);
    Ok(pieces.try_reduce(|| (0, 0), combine)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncommitted_file_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("sub/a.txt");
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path().join("sub")).unwrap().count(), 0);
        write_atomic(&target, b"whole").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path().join("sub")).unwrap().count(), 1);
    }

    #[test]
    fn of_many_that_put_a_file_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("sub/record");
        let puts: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8u8)
                .map(|i| {
                    let target = &target;
                    scope.spawn(move || put_if_absent(target, &[i; 1000]).unwrap())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(puts.iter().filter(|put| **put).count(), 1);
        let winner = puts.iter().position(|put| *put).unwrap() as u8;
        assert_eq!(fs::read(&target).unwrap(), vec![winner; 1000]);
        assert!(!put_if_absent(&target, b"late").unwrap());
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_checksum_in_pieces_is_that_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for length in [0, 1, (256 << 10) + 1, 16 << 20, (16 << 20) + 1, (36 << 20) + 5] {
            let bytes: Vec<u8> = (0..length).map(|i: usize| ((i * i) >> 7) as u8).collect();
            fs::write(&path, &bytes).unwrap();
            assert_eq!(crc32c_file(&path).unwrap(), crc32c::crc32c(&bytes), "{length}");
        }
    }

    #[test]
    fn a_copied_folder_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write_atomic(&a.join("in/x"), b"x").unwrap();
        write_atomic(&a.join("in/y"), b"y").unwrap();
        copy_folder(&a, &b, &|name| name != "y").unwrap();
        copy_folder(&a, &b, &|name| name != "y").unwrap();
        fs::write(a.join("in/x"), b"changed").unwrap();
        assert_eq!(fs::read(b.join("in/x")).unwrap(), b"x");
        assert_eq!(fs::read_dir(b.join("in")).unwrap().count(), 1);
    }
}
