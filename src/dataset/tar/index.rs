//! Where the members of a tar lie, so that one of them is read without those in front of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{MemberKind, Tar, TarError, inner_path};

/// A member's content within its tar, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    pub offset: u64,
    pub bytes: u64,
}

impl Extent {
    /// Reads it, or what there is of it.
    ///
    /// # Errors
    /// The tar cannot be read, or is shorter now.
    pub fn read(self, tar: &Path) -> io::Result<Vec<u8>> {
        let file = crate::files::open_regular(tar)?;
        self.read_from(&file)
    }

    fn read_from(self, file: &File) -> io::Result<Vec<u8>> {
        if file.metadata()?.len() < self.offset.saturating_add(self.bytes) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar is shorter than when it was looked at"));
        }
        let mut content = vec![0; self.bytes as usize];
        file.read_exact_at(&mut content, self.offset)?;
        Ok(content)
    }
}

/// The files in a tar: 24 bytes each.
#[derive(Debug)]
pub struct TarIndex {
    path: PathBuf,
    /// What a tar that is gzipped or elsewhere unpacks to, in the system's folder for temporary files; it has no name and goes with this.
    unpacked: Option<File>,
    /// A hash of each path in the tar, in its order; of equal paths the first comes first.
    members: Vec<(u64, Extent)>,
}

impl TarIndex {
    /// Goes through a tar's headers. One that can only be read from front to back is unpacked for it.
    ///
    /// # Errors
    /// A tar that cannot be read, or a full disk. Of one that is damaged, what is in front of the damage is known.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut tar = Tar::open(path)?;
        let mut unpacked = None;
        if !tar.is_plain() {
            let mut copy = tempfile::tempfile()?;
            match io::copy(&mut Tar::bytes(path)?, &mut copy) {
                // A gzip stream that ends early or is damaged: what came of it is there.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
                    ) => {}
                copied => drop(copied?),
            }
            tar = Tar::plain(copy.try_clone()?)?;
            unpacked = Some(copy);
        }
        let mut members = Vec::new();
        loop {
            match tar.next_member() {
                Ok(Some(member)) if member.kind == MemberKind::File => {
                    if let (Some(extent), Some(inner)) = (tar.extent(), inner_path(&member.name)) {
                        members.push((key(&inner), extent));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(TarError::Truncated | TarError::GzipTruncated | TarError::Unended | TarError::Corrupt(_)) => break,
                Err(TarError::Io(error)) => return Err(error),
            }
        }
        members.sort_by_key(|(key, _)| *key);
        Ok(Self { path: path.into(), unpacked, members })
    }

    /// The tar itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a member.
    ///
    /// # Errors
    /// As [`Extent::read`].
    pub fn read(&self, extent: Extent) -> io::Result<Vec<u8>> {
        self.unpacked.as_ref().map_or_else(|| extent.read(&self.path), |file| extent.read_from(file))
    }

    /// Where the member with this path ([`inner_path`]) lies.
    pub fn find(&self, inner: &[u8]) -> Option<Extent> {
        let key = key(inner);
        let at = self.members.partition_point(|(other, _)| *other < key);
        self.members.get(at).filter(|(other, _)| *other == key).map(|(_, extent)| *extent)
    }
}

fn key(inner: &[u8]) -> u64 {
    let digest = Sha256::digest(inner);
    digest[..8].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::TarWriter;
    use super::*;

    #[test]
    fn members_are_found_by_their_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let mut writer = TarWriter::new(Vec::new());
        let long = vec![b'n'; 300];
        let members: [(&[u8], &[u8]); 5] =
            [(b"a/1.png", b"first"), (b"2.png", b""), (&long, b"long"), (b"./3.png", b"third"), (b"a/1.png", b"again")];
        for (name, content) in members {
            writer.add(name, content).unwrap();
        }
        let mut bytes = writer.finish().unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let index = TarIndex::open(&path).unwrap();
        let read = |inner: &[u8]| index.find(inner).map(|extent| extent.read(index.path()).unwrap());
        assert_eq!(read(b"a/1.png").unwrap(), b"first");
        assert_eq!((read(b"2.png").unwrap().len(), read(&long).unwrap()), (0, b"long".to_vec()));
        assert_eq!(read(b"3.png").unwrap(), b"third");
        assert!(read(b"4.png").is_none());
        // The same, gzipped, and cut.
        let gzipped = folder.path().join("a.tar.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        let compressed = encoder.finish().unwrap();
        for end in [compressed.len(), compressed.len() - 9] {
            std::fs::write(&gzipped, &compressed[..end]).unwrap();
            let index = TarIndex::open(&gzipped).unwrap();
            assert!(index.unpacked.is_some() && index.find(b"4.png").is_none());
            assert_eq!(index.read(index.find(b"a/1.png").unwrap()).unwrap(), b"first");
        }
        // A tar that was cut since.
        let third = index.find(b"3.png").unwrap();
        bytes.truncate(third.offset as usize + 2);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(third.read(&path).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(TarIndex::open(&path).unwrap().find(b"a/1.png").is_some());
    }
}
