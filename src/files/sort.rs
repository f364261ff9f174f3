//! Sorting more than memory is to hold: sorted runs in one temporary file that has no name, merged as they are read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What can be put aside on a disk.
pub trait Stored: Ord + Sized {
    /// # Errors
    /// The disk refuses.
    fn put(&self, out: &mut impl Write) -> io::Result<()>;

    /// # Errors
    /// The disk refuses, or this is not what was put.
    fn get(from: &mut impl Read) -> io::Result<Self>;
}

impl Stored for u64 {
    fn put(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.to_le_bytes())
    }

    fn get(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        Ok(Self::from_le_bytes(bytes))
    }
}

/// Takes items in any order. At most `most` of them are in memory.
pub struct Sorter<T> {
    items: Vec<T>,
    most: usize,
    file: Option<BufWriter<File>>,
    runs: Vec<Range<u64>>,
    written: u64,
}

/// All items of a [`Sorter`].
pub enum Sorted<T> {
    /// In order.
    Few(Vec<T>),
    Many(Runs),
}

/// Sorted runs on a disk (in the system's folder for temporary files), where nothing stays of them.
#[derive(Clone)]
pub struct Runs {
    file: Arc<File>,
    runs: Vec<Range<u64>>,
}

impl<T: Stored> Sorter<T> {
    pub fn new(most: usize) -> Self {
        Self { items: Vec::new(), most: most.max(1), file: None, runs: Vec::new(), written: 0 }
    }

    /// # Errors
    /// The disk refuses.
    pub fn add(&mut self, item: T) -> io::Result<()> {
        self.items.push(item);
        if self.items.len() >= self.most { self.put_aside() } else { Ok(()) }
    }

    fn put_aside(&mut self) -> io::Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        self.items.sort_unstable();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::with_capacity(1 << 18, tempfile::tempfile()?)),
        };
        let mut counted = Counted { out: file, bytes: 0 };
        for item in self.items.drain(..) {
            item.put(&mut counted)?;
        }
        let end = self.written + counted.bytes;
        self.runs.push(self.written..end);
        self.written = end;
        Ok(())
    }

    /// # Errors
    /// The disk refuses.
    pub fn finish(mut self) -> io::Result<Sorted<T>> {
        if self.file.is_none() {
            self.items.sort_unstable();
            return Ok(Sorted::Few(self.items));
        }
        self.put_aside()?;
        let file = self.file.take().ok_or_else(|| io::Error::other("a file that is there"))?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Sorted::Many(Runs { file: file.into(), runs: self.runs }))
    }
}

impl<T: Stored> Sorted<T> {
    /// Hands out all items in order.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn each(self, mut take: impl FnMut(T)) -> io::Result<()> {
        match self {
            Self::Few(items) => items.into_iter().for_each(take),
            Self::Many(runs) => runs.merged()?.try_for_each(|item| item.map(&mut take))?,
        }
        Ok(())
    }
}

/// Counts what is written.
struct Counted<'a, W> {
    out: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Runs {
    /// All items in order, from the first on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn merged<T: Stored>(&self) -> io::Result<Merged<T>> {
        let part = |run: &Range<u64>| BufReader::with_capacity(1 << 16, Part { file: self.file.clone(), rest: run.clone() });
        let mut merged = Merged { runs: self.runs.iter().map(part).collect(), next: BinaryHeap::new() };
        for run in 0..merged.runs.len() {
            merged.read(run)?;
        }
        Ok(merged)
    }
}

/// Items of several runs in order.
pub struct Merged<T> {
    runs: Vec<BufReader<Part>>,
    /// The next item of each run.
    next: BinaryHeap<Reverse<(T, usize)>>,
}

impl<T: Stored> Merged<T> {
    fn read(&mut self, run: usize) -> io::Result<()> {
        let from = &mut self.runs[run];
        if !from.fill_buf()?.is_empty() {
            self.next.push(Reverse((T::get(from)?, run)));
        }
        Ok(())
    }
}

impl<T: Stored> Iterator for Merged<T> {
    type Item = io::Result<T>;

    fn next(&mut self) -> Option<io::Result<T>> {
        let Reverse((item, run)) = self.next.pop()?;
        match self.read(run) {
            Ok(()) => Some(Ok(item)),
            Err(error) => {
                self.next.clear();
                Some(Err(error))
            }
        }
    }
}

/// A part of a file that others read too.
struct Part {
    file: Arc<File>,
    rest: Range<u64>,
}

impl Read for Part {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = out.len().min(usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut out[..most], self.rest.start)?;
        self.rest.start += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back_in_order_however_few_are_in_memory() {
        let items: Vec<u64> = (0..1000).map(|number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 700).collect();
        let mut wanted = items.clone();
        wanted.sort_unstable();
        for most in [1, 7, 999, 1000, 1001] {
            let mut sorter = Sorter::new(most);
            items.iter().for_each(|item| sorter.add(*item).unwrap());
            let sorted = sorter.finish().unwrap();
            if let Sorted::Many(runs) = &sorted {
                assert!(runs.merged::<u64>().unwrap().map(Result::unwrap).eq(wanted.iter().copied()));
            }
            let mut found = Vec::new();
            sorted.each(|item| found.push(item)).unwrap();
            assert_eq!(found, wanted, "{most}");
        }
        assert!(matches!(Sorter::<u64>::new(1).finish().unwrap(), Sorted::Few(items) if items.is_empty()));
    }
}
