//! Blocks of whole lines from any reader, in memory that does not depend on how long a line is.

use std::io::{self, Read};
use std::ops::Range;

use crate::files::ContentHash;
use memchr::{memchr, memchr_iter, memrchr};
use sha2::{Digest, Sha256};

/// A longer line (in bytes) is a bad line.
pub const MAX_LINE_BYTES: usize = 1 << 18;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Hashes what is read through it.
pub struct Hashed<R> {
    reader: R,
    hasher: Sha256,
}

impl<R: Read> Hashed<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, hasher: Sha256::new() }
    }

    /// The hash of all that was read.
    pub fn sha256(self) -> ContentHash {
        self.hasher.into()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(out)?;
        self.hasher.update(&out[..read]);
        Ok(read)
    }
}

/// Cuts a stream into blocks that end at a line's end.
pub struct Blocks<R> {
    reader: R,
    carry: Vec<u8>,
    /// In a line that is too long already: drop what comes up to its end.
    skipping: bool,
    ended: bool,
}

impl<R: Read> Blocks<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, carry: Vec::new(), skipping: false, ended: false }
    }

    /// The next block of whole lines, the last without its newline perhaps; None at the end.
    ///
    /// Of a line longer than [`MAX_LINE_BYTES`] at least one byte more than that is kept, so that its length still tells.
    pub fn next_block(&mut self) -> io::Result<Option<Vec<u8>>> {
        while !self.ended {
            let mut block = std::mem::take(&mut self.carry);
            let kept = block.len();
            block.reserve_exact(BLOCK_BYTES);
            let read = (&mut self.reader).take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
            self.ended = read < BLOCK_BYTES;
            if self.skipping {
                // `kept` bytes are the head of the long line; its end is looked for behind them.
                match memchr(b'\n', &block[kept..]) {
                    Some(at) => {
                        block.drain(kept..kept + at);
                        self.skipping = false;
                    }
                    None => block.truncate(kept),
                }
            }
            if self.ended {
                return Ok((!block.is_empty()).then_some(block));
            }
            match memrchr(b'\n', &block) {
                Some(at) => {
                    self.carry = block[at + 1..].to_vec();
                    block.truncate(at + 1);
                    self.shorten_carry();
                    return Ok(Some(block));
                }
                None => {
                    self.carry = block;
                    self.shorten_carry();
                }
            }
        }
        Ok(None)
    }

    fn shorten_carry(&mut self) {
        if self.carry.len() > MAX_LINE_BYTES + 1 {
            self.carry.truncate(MAX_LINE_BYTES + 1);
            self.skipping = true;
        }
    }

    /// What was read from.
    pub fn into_inner(self) -> R {
        self.reader
    }
}

/// The lines of a block, without their ends (`\n`, `\r\n`).
pub fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    spans(block).map(|span| &block[span])
}

/// Where the lines of a block are, their ends left out. They are cut at ASCII characters, so those of a text are texts.
pub fn spans(block: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let body = block.strip_suffix(b"\n").unwrap_or(block);
    let ends = memchr_iter(b'\n', body).chain((!block.is_empty()).then_some(body.len()));
    let mut start = 0;
    ends.map(move |end| {
        let line = start..end - usize::from(end > start && body[end - 1] == b'\r');
        start = end + 1;
        line
    })
}

/// The text that some bytes are; the bytes where they are none.
pub fn text_of(bytes: Vec<u8>) -> Result<String, Vec<u8>> {
    match simdutf8::basic::from_utf8(&bytes) {
        // SAFETY: just checked.
        Ok(_) => Ok(unsafe { String::from_utf8_unchecked(bytes) }),
        Err(_) => Err(bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_lines(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut blocks = Blocks::new(Hashed::new(bytes));
        let mut out = Vec::new();
        while let Some(block) = blocks.next_block().unwrap() {
            out.extend(lines(&block).map(<[u8]>::to_vec));
        }
        assert_eq!(blocks.into_inner().sha256(), ContentHash::of(bytes));
        out
    }

    #[test]
    fn lines_come_whole_whatever_the_blocks() {
        let mut text = Vec::new();
        for i in 0..200_000 {
            text.extend_from_slice(format!("line {i}\r\n").as_bytes());
        }
        text.extend_from_slice(b"last, without an end");
        let lines = all_lines(&text);
        assert_eq!(lines.len(), 200_001);
        assert_eq!(lines[123_456], b"line 123456");
        assert_eq!(lines[200_000], b"last, without an end");
    }

    #[test]
    fn a_line_without_end_is_cut_and_the_next_one_is_whole() {
        for long in [MAX_LINE_BYTES + 1, BLOCK_BYTES - 3, BLOCK_BYTES, 3 * BLOCK_BYTES + 17] {
            let mut text = b"first\n".to_vec();
            text.resize(text.len() + long, b'x');
            text.extend_from_slice(b"\nnext\n");
            let lines = all_lines(&text);
            assert_eq!(lines.len(), 3, "{long}");
            assert!(lines[1].len() > MAX_LINE_BYTES && lines[1].len() <= BLOCK_BYTES + MAX_LINE_BYTES + 1);
            assert_eq!(lines[2], b"next");
        }
    }

    proptest! {
        #[test]
        fn as_std_counts_them(text in "([a\r\n]{0,30}\n)?") {
            let expected: Vec<Vec<u8>> = text.lines().map(|l| l.as_bytes().to_vec()).collect();
            prop_assert_eq!(all_lines(text.as_bytes()), expected);
        }
    }
}
