//! Bytes of a pickle, read with every length checked.

use std::io::{BufRead, Read};

use super::PickleError;

/// The longest text or bytes object: names and keys are short.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Reads from the front of a stream and never past `limit`, so that what follows a pickle stays where it is.
pub(in crate::models::weights) struct PickleReader<R> {
    inner: R,
    position: u64,
    limit: u64,
}

impl<R: BufRead> PickleReader<R> {
    /// `limit` bytes at most are read in all.
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, position: 0, limit }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn malformed(&self, problem: impl Into<String>) -> PickleError {
        PickleError::Malformed { at: self.position, problem: problem.into() }
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), PickleError> {
        self.position += buffer.len() as u64;
        if self.position > self.limit {
            return Err(PickleError::TooLong(self.limit));
        }
        self.inner.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => PickleError::CutShort,
            _ => PickleError::Io(error),
        })
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn u8(&mut self) -> Result<u8, PickleError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u32(&mut self) -> Result<u32, PickleError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, PickleError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Memory is taken only as bytes arrive: a claimed length alone allocates nothing.
    pub fn bytes(&mut self, length: u64) -> Result<Vec<u8>, PickleError> {
        if length > MAX_TEXT_BYTES {
            return Err(self.malformed(format!("a text or bytes object of {length} bytes")));
        }
        let mut bytes = Vec::new();
        let read = self.inner.by_ref().take(length).read_to_end(&mut bytes)?;
        self.position += read as u64;
        if (read as u64) < length {
            return Err(PickleError::CutShort);
        }
        if self.position > self.limit {
            return Err(PickleError::TooLong(self.limit));
        }
        Ok(bytes)
    }

    pub fn text(&mut self, length: u64) -> Result<String, PickleError> {
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map_err(|_| self.malformed("text that is not UTF-8"))
    }

    /// Up to a line feed, which is taken and left out.
    pub fn line(&mut self) -> Result<String, PickleError> {
        let mut bytes = Vec::new();
        let read = self.inner.by_ref().take(MAX_TEXT_BYTES).read_until(b'\n', &mut bytes)?;
        self.position += read as u64;
        if bytes.pop() != Some(b'\n') {
            return Err(PickleError::CutShort);
        }
        String::from_utf8(bytes).map_err(|_| self.malformed("text that is not UTF-8"))
    }

    pub fn into_inner(self) -> R {
        self.inner
    }
}
