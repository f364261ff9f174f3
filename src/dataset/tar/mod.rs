//! Tars, read from front to back: ustar, pax and GNU headers, plain or gzipped. Nothing is written to disk, and no more of a tar is in memory
//! than the member that was asked for.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::remote;

mod header;
mod index;
mod pattern;
mod write;

pub use header::inner_path;
use header::{is_header, name_of, number, padding, until_nul};
pub use index::{Extent, TarIndex};
pub use pattern::expanded;
pub use write::TarWriter;

const BLOCK: usize = 512;

/// Long names and pax records beyond this are nobody's.
const MOST_EXTRA_BYTES: u64 = 1 << 20;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    File,
    Folder,
    /// A hard or symbolic link: it has no content of its own.
    Link,
    /// A file with holes, whose content is not stored as it is.
    Sparse,
    /// A device, a pipe, or a kind that is not known.
    Special,
}

/// A member's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As the tar has it.
    pub name: Vec<u8>,
    pub kind: MemberKind,
    pub bytes: u64,
}

/// Why a tar cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("it ends in the middle of a member")]
    Truncated,
    #[error("its gzip stream ends early")]
    GzipTruncated,
    /// Between two members: no tool leaves a tar so.
    #[error("it lacks the empty blocks that end a tar: it may have been cut here")]
    Unended,
    #[error("{0}")]
    Corrupt(&'static str),
    #[error("{0}")]
    Io(io::Error),
}

impl TarError {
    /// What it means for the rest of the tar.
    pub fn consequence(&self) -> String {
        match self {
            Self::Unended => self.to_string(),
            _ => format!("{self}; what follows in this tar is missing"),
        }
    }
}

/// Whether a file is a tar by its name: `.tar`, `.tar.gz` or `.tgz`.
pub fn called_a_tar(path: &Path) -> bool {
    let shown = PathBuf::from(remote::shown(path));
    let name = shown.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.len() > ending.len() && name.ends_with(ending))
}

fn is_gzipped(file: &mut impl BufRead) -> io::Result<bool> {
    Ok(file.fill_buf()?.starts_with(&[0x1F, 0x8B]))
}

enum Input {
    /// Of a plain file, what is passed over is not read.
    Plain {
        file: BufReader<File>,
        bytes: u64,
        bytes_left: u64,
    },
    Stream {
        stream: Box<dyn Read + Send>,
        is_gzipped: bool,
    },
}

/// An open tar.
pub struct Tar {
    input: Input,
    /// Bytes of the present member that were not read, and those that fill its last block.
    content: u64,
    padding: u64,
    has_ended: bool,
}

/// What pax records say of the next member.
#[derive(Default)]
struct Extra {
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
    is_sparse: bool,
}

impl Tar {
    /// Opens a tar; a gzipped one is told by its first bytes.
    ///
    /// # Errors
    /// The file cannot be opened, or is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        if remote::is_url(path) {
            return Self::streamed(remote::reader(path)?);
        }
        let mut file = BufReader::with_capacity(1 << 18, crate::files::open_regular(path)?);
        if !is_gzipped(&mut file)? {
            // What was looked at is read again.
            return Self::plain(file.into_inner());
        }
        let input = Input::Stream { stream: Box::new(MultiGzDecoder::new(file)), is_gzipped: true };
        Ok(Self { input, content: 0, padding: 0, has_ended: false })
    }

    /// A tar in a file that is not compressed, from its beginning.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn plain(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        let bytes = file.metadata()?.len();
        let input = Input::Plain { file: BufReader::with_capacity(1 << 18, file), bytes, bytes_left: bytes };
        Ok(Self { input, content: 0, padding: 0, has_ended: false })
    }

    /// The bytes of a tar, unpacked.
    ///
    /// # Errors
    /// The file cannot be opened, or is none.
    pub fn bytes(path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let source: Box<dyn Read + Send> = match remote::is_url(path) {
            true => Box::new(remote::reader(path)?),
            false => Box::new(crate::files::open_regular(path)?),
        };
        let mut source = BufReader::with_capacity(1 << 18, source);
        Ok(if is_gzipped(&mut source)? { Box::new(MultiGzDecoder::new(source)) } else { Box::new(source) })
    }

    /// A tar that comes in from elsewhere, gzipped or not.
    ///
    /// # Errors
    /// Its first bytes cannot be read.
    pub fn streamed(stream: impl Read + Send + 'static) -> io::Result<Self> {
        let mut stream = BufReader::with_capacity(1 << 18, stream);
        let input = match is_gzipped(&mut stream)? {
            true => Input::Stream { stream: Box::new(MultiGzDecoder::new(stream)), is_gzipped: true },
            false => Input::Stream { stream: Box::new(stream), is_gzipped: false },
        };
        Ok(Self { input, content: 0, padding: 0, has_ended: false })
    }

    /// Whether its members can be passed over without reading them.
    pub fn is_plain(&self) -> bool {
        matches!(self.input, Input::Plain { .. })
    }

    /// Where the rest of the present member lies. None in a gzipped tar.
    pub fn extent(&self) -> Option<Extent> {
        match self.input {
            Input::Plain { bytes, bytes_left, .. } => Some(Extent { offset: bytes - bytes_left, bytes: self.content }),
            Input::Stream { .. } => None,
        }
    }

    /// The next member; what was not read of the one before is passed over. None at the end.
    ///
    /// # Errors
    /// A tar that is damaged here: nothing behind this place can be read.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut extra = Extra::default();
        loop {
            self.pass_over()?;
            let Some(block) = self.header()? else { return Ok(None) };
            let kind = block[156];
            let bytes = number(&block[124..136]).ok_or(TarError::Corrupt("a member's size is not a number"))?;
            match kind {
                b'L' => extra.name = Some(until_nul(&self.extra(bytes)?).to_vec()),
                b'K' => drop(self.extra(bytes)?),
                b'x' => self.pax(bytes, &mut extra)?,
                // Global records are comments and times in practice; a path or size for all members would make no sense.
                b'g' => drop(self.extra(bytes)?),
                _ => return self.member(&block, kind, bytes, extra).map(Some),
            }
        }
    }

    fn member(&mut self, block: &[u8; BLOCK], kind: u8, bytes: u64, extra: Extra) -> Result<Member, TarError> {
        let name = extra.name.unwrap_or_else(|| name_of(block));
        let kind = match kind {
            b'0' | 0 | b'7' if extra.is_sparse => MemberKind::Sparse,
            0 if name.ends_with(b"/") => MemberKind::Folder,
            b'0' | 0 | b'7' => MemberKind::File,
            b'1' | b'2' => MemberKind::Link,
            b'5' => MemberKind::Folder,
            b'S' => {
                let mut goes_on = block[482] != 0;
                while goes_on {
                    let mut map = [0; BLOCK];
                    self.fill(&mut map)?;
                    goes_on = map[504] != 0;
                }
                MemberKind::Sparse
            }
            _ => MemberKind::Special,
        };
        let bytes = extra.bytes.unwrap_or(bytes);
        // Links and folders store nothing, whatever size they tell.
        self.content = if matches!(kind, MemberKind::Link | MemberKind::Folder) { 0 } else { bytes };
        self.padding = padding(self.content);
        Ok(Member { name, kind, bytes: self.content })
    }

    /// Up to `most` more bytes of the present member.
    ///
    /// # Errors
    /// The tar ends before the member does, or cannot be read.
    pub fn read(&mut self, most: u64) -> Result<Vec<u8>, TarError> {
        let wanted = self.content.min(most);
        let mut content = Vec::with_capacity(wanted.min(1 << 20) as usize);
        self.read_some(wanted, &mut content)?;
        self.content -= wanted;
        Ok(content)
    }

    /// Passes over the rest of the present member.
    ///
    /// # Errors
    /// The tar ends before the member does, or cannot be read.
    pub fn pass_over(&mut self) -> Result<(), TarError> {
        let rest = self.content.checked_add(self.padding).ok_or(TarError::Truncated)?;
        (self.content, self.padding) = (0, 0);
        match &mut self.input {
            Input::Plain { file, bytes_left, .. } => {
                let passed = rest.min(*bytes_left);
                // A plain file is not read for what is passed over.
                file.seek_relative(i64::try_from(passed).map_err(|_| TarError::Truncated)?).map_err(TarError::Io)?;
                *bytes_left -= passed;
                if passed == rest { Ok(()) } else { Err(TarError::Truncated) }
            }
            Input::Stream { stream, is_gzipped } => match io::copy(&mut stream.by_ref().take(rest), &mut io::sink()) {
                Ok(passed) if passed == rest => Ok(()),
                Ok(_) => Err(TarError::Truncated),
                Err(error) => Err(tar_error(error, *is_gzipped)),
            },
        }
    }

    /// Appends so many bytes.
    fn read_some(&mut self, wanted: u64, into: &mut Vec<u8>) -> Result<(), TarError> {
        let read = match &mut self.input {
            Input::Plain { file, bytes_left, .. } => {
                let read = file.by_ref().take(wanted).read_to_end(into).map_err(TarError::Io)? as u64;
                *bytes_left = bytes_left.saturating_sub(read);
                read
            }
            Input::Stream { stream, is_gzipped } => {
                stream.by_ref().take(wanted).read_to_end(into).map_err(|error| tar_error(error, *is_gzipped))? as u64
            }
        };
        if read == wanted { Ok(()) } else { Err(TarError::Truncated) }
    }

    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<(), TarError> {
        let mut read = Vec::with_capacity(BLOCK);
        self.read_some(BLOCK as u64, &mut read)?;
        block.copy_from_slice(&read);
        Ok(())
    }

    /// The next block that is a header. Two empty blocks, or one and the end of the file, end a tar.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        for nth in 0..2 {
            if self.has_ended {
                return Ok(None);
            }
            let mut read = Vec::with_capacity(BLOCK);
            match self.read_some(BLOCK as u64, &mut read) {
                Err(TarError::Truncated) if read.iter().all(|byte| *byte == 0) => {
                    self.has_ended = true;
                    return if nth == 0 && read.is_empty() { Err(TarError::Unended) } else { Ok(None) };
                }
                read => read?,
            }
            let block: [u8; BLOCK] = read.try_into().map_err(|_| TarError::Truncated)?;
            if block.iter().any(|byte| *byte != 0) {
                return if is_header(&block) {
                    Ok(Some(block))
                } else {
                    Err(TarError::Corrupt("a header whose checksum is wrong"))
                };
            }
        }
        self.has_ended = true;
        self.close()?;
        Ok(None)
    }

    /// Reads on to where gzip says whether its content is what was packed. A tar's filling is short; what is longer is another's.
    fn close(&mut self) -> Result<(), TarError> {
        match &mut self.input {
            Input::Stream { stream, is_gzipped: true } => {
                io::copy(&mut stream.by_ref().take(1 << 20), &mut io::sink()).map(drop).map_err(|error| tar_error(error, true))
            }
            _ => Ok(()),
        }
    }

    /// The content of a header that speaks of the next member.
    fn extra(&mut self, bytes: u64) -> Result<Vec<u8>, TarError> {
        if bytes > MOST_EXTRA_BYTES {
            return Err(TarError::Corrupt("a name or a pax record of more than a megabyte"));
        }
        (self.content, self.padding) = (bytes, padding(bytes));
        self.read(bytes)
    }

    /// Records of `LENGTH KEY=VALUE\n`.
    fn pax(&mut self, bytes: u64, extra: &mut Extra) -> Result<(), TarError> {
        const WRONG: TarError = TarError::Corrupt("a pax record that is none");
        let content = self.extra(bytes)?;
        let mut records = &content[..];
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or(WRONG)?;
            let length: usize = std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse().ok()).ok_or(WRONG)?;
            let record = records.get(space + 1..length).ok_or(WRONG)?;
            let record = record.strip_suffix(b"\n").ok_or(WRONG)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(WRONG)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => extra.name = Some(value.to_vec()),
                b"size" => {
                    let text = std::str::from_utf8(value).ok();
                    extra.bytes = Some(text.and_then(|text| text.parse().ok()).ok_or(WRONG)?);
                }
                key if key.starts_with(b"GNU.sparse.") => extra.is_sparse = true,
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }
}

/// An end that comes too early is one, and a stream that is no gzip any more is damaged.
fn tar_error(error: io::Error, is_gzipped: bool) -> TarError {
    match error.kind() {
        _ if !is_gzipped => TarError::Io(error),
        io::ErrorKind::UnexpectedEof => TarError::GzipTruncated,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => TarError::Corrupt("the gzip stream is damaged"),
        _ => TarError::Io(error),
    }
}
