//! One caption file while it is parsed: its bytes as UTF-8, cut into blocks that are parsed side by side.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Mutex;

use rayon::prelude::*;

use super::batch::{Bad, Batch, Row, Take};
use super::coco::CocoImages;
use super::elements::{Element, Scanner};
use super::encoding::{self, Decoded, Encoding};
use super::json::{self, ObjectLayout};
use super::lines::{Blocks, Hashed, lines};
use super::map;
use super::table::{self, TableLayout};
use super::{CaptionError, Columns, Format, Reason, Translation};
use crate::files::ContentHash;

/// Blocks (or runs of elements) parsed before more are read: what bounds the memory of a file on its way.
const BLOCKS_IN_FLIGHT: usize = 32;
const ELEMENTS_A_RUN: usize = 2048;

/// A file whose first bytes have been looked at.
type Seen = std::io::Chain<Cursor<Vec<u8>>, File>;

/// A caption file as UTF-8, and the hash of its bytes.
pub enum Input {
    Plain(Hashed<File>),
    Decoded(Box<Decoded<Hashed<Seen>>>),
}

/// Bytes that tell UTF-8 from the encoding given.
const HEAD_BYTES: u64 = 1 << 20;

impl Input {
    /// Also says whether the encoding is the caller's.
    pub fn new(mut file: File, encoding: Option<Encoding>) -> std::io::Result<(Self, bool)> {
        let Some(encoding) = encoding else { return Ok((Self::Plain(Hashed::new(file)), false)) };
        let mut head = Vec::new();
        (&mut file).take(HEAD_BYTES).read_to_end(&mut head)?;
        // Beside a file in another encoding there may be one that is plainly UTF-8.
        let encoding = if encoding::is_surely_utf8(&head, encoding) { Encoding::UTF_8 } else { encoding };
        let whole = Hashed::new(Cursor::new(head).chain(file));
        Ok((Self::Decoded(Box::new(Decoded::new(whole, encoding))), true))
    }

    pub fn sha256(self) -> ContentHash {
        match self {
            Self::Plain(hashed) => hashed.sha256(),
            Self::Decoded(decoded) => decoded.into_inner().sha256(),
        }
    }
}

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(out),
            Self::Decoded(reader) => reader.read(out),
        }
    }
}

/// A caption file while it is parsed.
pub struct FileReader<'a> {
    pub blocks: Blocks<Input>,
    /// A block that was looked at and is not yet parsed.
    pub next: Option<Vec<u8>>,
    pub path: &'a Path,
    pub batches: Vec<Batch>,
}

impl FileReader<'_> {
    pub fn head(&self) -> &[u8] {
        self.next.as_deref().unwrap_or_default()
    }

    fn next_block(&mut self) -> Result<Option<Vec<u8>>, CaptionError> {
        match self.next.take() {
            Some(block) => Ok(Some(block)),
            None => self.blocks.next_block().map_err(|source| CaptionError::Io { path: self.path.into(), source }),
        }
    }

    /// Parses independent blocks side by side, kept in order.
    pub fn parse_blocks(&mut self, parse: impl Fn(Vec<u8>) -> Batch + Sync) -> Result<(), CaptionError> {
        self.parse_runs(|reader| reader.next_block(), parse)
    }

    fn parse_runs<T: Send>(
        &mut self,
        mut next: impl FnMut(&mut Self) -> Result<Option<T>, CaptionError> + Send,
        parse: impl Fn(T) -> Batch + Sync,
    ) -> Result<(), CaptionError>
    where
        Self: Send,
    {
        loop {
            let done = Mutex::new(Vec::new());
            let mut count = 0;
            let result: Result<(), CaptionError> = rayon::scope(|scope| {
                while count < BLOCKS_IN_FLIGHT {
                    let Some(run) = next(self)? else { break };
                    let (done, parse, at) = (&done, &parse, count);
                    scope.spawn(move |_| {
                        let batch = parse(run);
                        done.lock().unwrap_or_else(|e| e.into_inner()).push((at, batch));
                    });
                    count += 1;
                }
                Ok(())
            });
            result?;
            let mut batches = done.into_inner().unwrap_or_else(|e| e.into_inner());
            batches.sort_by_key(|(at, _)| *at);
            self.batches.extend(batches.into_iter().map(|(_, batch)| batch));
            if count < BLOCKS_IN_FLIGHT {
                return Ok(());
            }
        }
    }

    /// A record may reach over a block's end, so tables are read block after block. Gives the lines before the first record.
    pub fn parse_table(&mut self, columns: &Columns, translation: Translation, take: Take) -> Result<u64, CaptionError> {
        let error = |path: &Path, message: String| CaptionError::Layout { path: path.into(), message };
        let first = self.next_block()?.unwrap_or_default();
        let line = |from: usize| -> Result<(&str, usize), CaptionError> {
            let bytes = lines(&first[from..]).next().unwrap_or_default();
            let after = first[from..].iter().position(|&b| b == b'\n').map_or(first.len(), |at| from + at + 1);
            let text = std::str::from_utf8(bytes);
            Ok((text.map_err(|_| error(self.path, format!("the header is not UTF-8 ({})", encoding::cure(bytes))))?, after))
        };
        let (mut text, mut after) = line(0)?;
        let delimiter = table::separator_line(text.trim());
        if delimiter.is_some() {
            (text, after) = line(after)?;
        }
        let layout = TableLayout::from_header(text, delimiter, columns, translation, take).map_err(|m| error(self.path, m))?;
        let header = 1 + u64::from(delimiter.is_some());
        let mut block = first[after..].to_vec();
        loop {
            let next = self.next_block()?;
            let (batch, rest) = table::parse_block(&block, &layout, next.is_none());
            self.batches.push(batch);
            let Some(next) = next else { return Ok(header) };
            block.drain(..block.len() - rest);
            block.extend_from_slice(&next);
        }
    }

    /// A map has no parts that could be read one by one.
    pub fn parse_map(&mut self, member: &str, layout: &ObjectLayout) -> Result<(), CaptionError> {
        let error = |message: String| CaptionError::Layout { path: self.path.into(), message };
        let mut whole = Vec::new();
        while let Some(block) = self.next_block()? {
            whole.extend(block);
            if whole.len() > map::MAX_MAP_BYTES {
                return Err(CaptionError::Layout {
                    path: self.path.into(),
                    message: "this JSON is too large to be read whole: write JSON lines".into(),
                });
            }
        }
        if let Err(bad) = std::str::from_utf8(&whole) {
            let around = &whole[bad.valid_up_to()..][..(whole.len() - bad.valid_up_to()).min(200)];
            return Err(error(format!("not UTF-8 at byte {} ({})", bad.valid_up_to() + 1, encoding::cure(around))));
        }
        let batch = map::parse(&whole, member, layout).map_err(|bad| error(format!("not JSON: {bad}")))?;
        self.batches.push(batch);
        Ok(())
    }

    /// Elements are found one after another and parsed in runs side by side.
    pub fn parse_document(
        &mut self,
        format: Format,
        layout: &ObjectLayout,
        coco_files: &mut HashMap<String, (String, String)>,
    ) -> Result<(), CaptionError> {
        let mut scanner = Scanner::new();
        let mut pending: Vec<Element> = Vec::new();
        let mut images: Vec<Element> = Vec::new();
        let mut coco = CocoImages::default();
        let mut image_bad = Batch::default();
        let mut ended = false;
        self.parse_runs(
            |reader| {
                while pending.len() < ELEMENTS_A_RUN && !ended {
                    let Some(block) = reader.next_block()? else {
                        ended = true;
                        break;
                    };
                    scanner.feed(&block, |element| match (format, element.key.as_str()) {
                        (Format::Karpathy, "images") | (Format::Coco, "annotations" | "") => pending.push(element),
                        (Format::Coco, "images") => images.push(element),
                        _ => {}
                    });
                    if images.len() >= ELEMENTS_A_RUN {
                        image_bad.bad.extend(coco.add(&std::mem::take(&mut images), layout));
                    }
                }
                let rest = pending.split_off(pending.len().min(ELEMENTS_A_RUN));
                let run = std::mem::replace(&mut pending, rest);
                Ok((!run.is_empty()).then_some(run))
            },
            |run| json::parse_elements(&run, format, layout),
        )?;
        image_bad.bad.extend(coco.add(&images, layout));
        if layout.columns.image.is_none() {
            let refusal = |batch: &Batch, row: &Row| row.file.is_none().then(|| coco.refusal(batch.get(row.image)))?;
            self.batches.par_iter_mut().for_each(|batch| batch.reject_rows(refusal));
        }
        *coco_files = coco.files;
        if !scanner.is_complete() {
            let message = "the JSON document ends before it is complete: what stands here is lost";
            image_bad.bad.push((scanner.line(), Bad::new(Reason::BadJson, message)));
        }
        image_bad.lines = image_bad.bad.len() as u64;
        self.batches.push(image_bad);
        Ok(())
    }

    /// The Flickr30k-CN distribution by its shape: tagged words and test files are a person's, the others a machine's.
    pub fn settle_translation(&mut self, tagged: bool, split: Option<&str>) {
        let implied = match (tagged, split) {
            (true, _) | (false, Some("test")) => Translation::Human,
            (false, Some(_)) => Translation::Machine,
            (false, None) => return,
        };
        for row in self.batches.iter_mut().flat_map(|batch| &mut batch.rows) {
            if row.translation == Translation::Unknown {
                row.translation = implied;
            }
        }
    }
}
