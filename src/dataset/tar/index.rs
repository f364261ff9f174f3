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

/// The files in a tar that is not compressed: 24 bytes each.
#[derive(Debug)]
pub struct TarIndex {
    path: PathBuf,
    /// A hash of each path in the tar, in its order; of equal paths the first comes first.
    members: Vec<(u64, Extent)>,
}

impl TarIndex {
    /// Goes through a tar's headers.
    ///
    /// # Errors
    /// A tar that is gzipped or elsewhere ([`io::ErrorKind::Unsupported`]) or cannot be read. Of one that is damaged, what is in front of the damage is known.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut tar = Tar::open(path)?;
        let mut members = Vec::new();
        if !tar.is_plain() {
            let message =
                "a tar that is gzipped or elsewhere is only read from front to back: unpack it (gunzip FILE.tar.gz), or fetch it";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        loop {
            match tar.next_member() {
                Ok(Some(member)) if member.kind == MemberKind::File => {
                    if let (Some(extent), Some(inner)) = (tar.extent(), inner_path(&member.name)) {
                        members.push((key(&inner), extent));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(TarError::Truncated | TarError::GzipTruncated | TarError::Corrupt(_)) => break,
                Err(TarError::Io(error)) => return Err(error),
            }
        }
        members.sort_by_key(|(key, _)| *key);
        Ok(Self { path: path.into(), members })
    }

    /// The tar itself.
    pub fn path(&self) -> &Path {
        &self.path
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
        // A tar that was cut since.
        let third = index.find(b"3.png").unwrap();
        bytes.truncate(third.offset as usize + 2);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(third.read(&path).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(TarIndex::open(&path).unwrap().find(b"a/1.png").is_some());
    }
}
