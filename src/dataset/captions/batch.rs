//! Rows as parsers leave them: spans in one text a batch, so that a caption costs no allocation of its own.

use super::Translation;
use crate::dataset::normalize::{FoldWidth, normalize_caption};

/// Why a line is no caption. The names are those of the errors table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    InvalidUtf8,
    ControlCharacter,
    LineTooLong,
    NoSeparator,
    BadId,
    EmptyCaption,
    /// A null in a caption's place.
    NullCaption,
    BadJson,
    BadRecord,
    MissingField,
    DuplicateId,
    /// Names an image that another name or file may be as well.
    ImageConflict,
    /// Names an image that no file is.
    MissingImage,
}

impl Reason {
    /// The word in the errors table.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidUtf8 => "invalid_utf8",
            Self::ControlCharacter => "control_character",
            Self::LineTooLong => "line_too_long",
            Self::NoSeparator => "no_separator",
            Self::BadId => "bad_id",
            Self::EmptyCaption | Self::NullCaption => "empty_caption",
            Self::BadJson => "bad_json",
            Self::BadRecord => "bad_record",
            Self::MissingField => "missing_field",
            Self::DuplicateId => "duplicate_id",
            Self::ImageConflict => "image_conflict",
            Self::MissingImage => "missing_image",
        }
    }
}

/// A line that is no caption: why, in one word and in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    pub reason: Reason,
    pub message: String,
}

impl Bad {
    /// With a sentence for people.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A piece of a batch's text: offset and length in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// With [`IN_SOURCE`], an offset into the block itself.
    start: u32,
    len: u32,
}

impl Span {
    /// Length of the text that it spans.
    pub fn num_bytes(self) -> usize {
        self.len as usize
    }
}

/// Marks spans of the block that was parsed; the others lie in the text made from it. Both are a few MB at most.
const IN_SOURCE: u32 = 1 << 31;

/// One caption: where its parts lie in the batch's text, and where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub image: Span,
    /// Where the image's file is named apart from its id.
    pub file: Option<Span>,
    pub caption: Span,
    pub raw: Span,
    /// Counted from 1 in the file (a record's first line).
    pub line: u64,
    /// The caption's number within its image as the file states it.
    pub number: Option<u32>,
    /// The language mark of `ID#lang#k`: numbers are told apart by it.
    pub mark: Span,
    pub translation: Translation,
    pub split: Span,
}

/// What a caption line says, before it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fields<'a> {
    pub image: &'a str,
    pub file: Option<&'a str>,
    pub raw: &'a str,
    /// What is normalized in place of `raw` (segmented words without their tags).
    pub text: Option<&'a str>,
    pub number: Option<u32>,
    pub mark: &'a str,
    pub translation: Option<Translation>,
    pub split: &'a str,
    pub details: Option<&'a Details>,
}

/// What a caption table says of a caption besides its text; nothing where it has no such column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// Log-probability.
    pub logprob: Option<f64>,
    /// Tokens, the end's included.
    pub num_tokens: Option<i64>,
    /// Why the caption ended.
    pub finish_reason: Option<String>,
    /// The hash of the image file's content, in lower-case hex.
    pub sha256: Option<String>,
    /// How well the caption fits its image, as `score` says.
    pub clip_score: Option<f64>,
    /// Its place among the image's captions, from 1, where they were ranked.
    pub rank: Option<i64>,
    /// The caption before it was normalized.
    pub raw: Option<String>,
}

/// What is taken for a caption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Take {
    /// Full-width forms to be folded.
    pub fold: FoldWidth,
    /// An empty caption is one (a model's may be).
    pub empty: bool,
    /// [`Details`] are read too.
    pub details: bool,
    /// The caller named the encoding, so it is not doubted.
    pub trusted: bool,
}

/// Everything found in a run of lines of one file.
#[derive(Debug, Default)]
pub struct Batch {
    /// The block itself, where its pieces are used as they stand.
    source: String,
    text: String,
    pub rows: Vec<Row>,
    /// One for each of the rows, where they were asked for.
    pub details: Vec<Details>,
    pub bad: Vec<(u64, Bad)>,
    /// Lines seen; elements in a JSON document.
    pub lines: u64,
    pub blank: u64,
    /// Further lines of a record that spans several.
    pub continued: u64,
}

/// Longest id, in bytes.
const MAX_ID_BYTES: usize = 1024;

impl Batch {
    /// The text of a span.
    pub fn get(&self, span: Span) -> &str {
        self.piece(&self.source, span)
    }

    fn piece<'a>(&'a self, source: &'a str, span: Span) -> &'a str {
        let (text, start) =
            if span.start & IN_SOURCE != 0 { (source, span.start ^ IN_SOURCE) } else { (&self.text[..], span.start) };
        &text[start as usize..start as usize + span.len as usize]
    }

    /// Room for the captions of `bytes` of input, so that nothing is moved while it fills.
    pub fn reserve(&mut self, bytes: usize) {
        self.text.reserve(bytes);
        self.rows.reserve(bytes / 64);
    }

    /// Takes the block whose pieces were pushed, so that they stay.
    pub fn keep_source(&mut self, source: String) {
        self.source = source;
    }

    /// A piece of the source stays where it is; other text is copied.
    fn put(&mut self, source: &str, text: &str) -> Span {
        let offset = (text.as_ptr() as usize).wrapping_sub(source.as_ptr() as usize);
        if offset <= source.len() && offset + text.len() <= source.len() {
            return Span { start: offset as u32 | IN_SOURCE, len: text.len() as u32 };
        }
        let start = self.text.len();
        self.text.push_str(text);
        self.span_from(start)
    }

    fn span_from(&self, start: usize) -> Span {
        Span { start: start as u32, len: (self.text.len() - start) as u32 }
    }

    /// Checks, normalizes and keeps a caption. Fields that are pieces of `source` are not copied; see [`keep_source`](Self::keep_source).
    pub fn push(&mut self, source: &str, line: u64, fields: Fields, take: Take) -> Result<(), Bad> {
        // Captions of an image come in a row: its id is checked and stored once for them.
        let previous = self.rows.last().copied();
        let id = fields.image.trim();
        let known = previous.map(|p| p.image).filter(|&span| self.piece(source, span) == id);
        if known.is_none() && (id.is_empty() || id.len() > MAX_ID_BYTES || id.chars().any(char::is_control)) {
            let shown = crate::dataset::normalize::excerpt(id.as_bytes(), 40);
            return Err(Bad::new(
                Reason::BadId,
                format!(
                    "the image's id must be 1 to {MAX_ID_BYTES} bytes without control characters (as an image_path has them: %0A): {shown}"
                ),
            ));
        }
        if memchr::memchr(0, fields.raw.as_bytes()).is_some() {
            return Err(Bad::new(Reason::ControlCharacter, "the caption holds a NUL character"));
        }
        let raw = fields.raw.trim();
        let before = self.text.len();
        normalize_caption(fields.text.unwrap_or(raw), take.fold, &mut self.text);
        let caption = self.span_from(before);
        if take.trusted && (raw.contains('\u{fffd}') || id.contains('\u{fffd}')) {
            self.text.truncate(before);
            return Err(Bad::new(Reason::InvalidUtf8, "some bytes are not valid in the given encoding"));
        }
        if caption.len == 0 && !take.empty {
            return Err(Bad::new(Reason::EmptyCaption, "no caption behind the image's id"));
        }
        let raw = if self.text[before..] == *raw { caption } else { self.put(source, raw) };
        let image = known.unwrap_or_else(|| self.put(source, id));
        let mark = self.put_again(source, previous.map(|p| p.mark), fields.mark);
        let split = self.put_again(source, previous.map(|p| p.split), fields.split);
        let file = fields.file.map(|file| self.put_again(source, previous.and_then(|p| p.file), file));
        let translation = fields.translation.unwrap_or(Translation::Unknown);
        if take.details {
            self.details.push(fields.details.cloned().unwrap_or_default());
        }
        self.rows.push(Row { image, file, caption, raw, line, number: fields.number, mark, translation, split });
        Ok(())
    }

    /// Makes bad lines of the rows whose text is none.
    pub fn reject(&mut self, why: impl Fn(&str) -> Option<Bad>) {
        self.reject_rows(|batch, row| why(batch.get(row.raw)));
    }

    /// Rows that are no captions after all, by whatever stands in them.
    pub fn reject_rows(&mut self, why: impl Fn(&Self, &Row) -> Option<Bad>) {
        let found: Vec<Option<Bad>> = self.rows.iter().map(|row| why(self, row)).collect();
        if found.iter().all(Option::is_none) {
            return;
        }
        let mut kept = found.iter().map(Option::is_none);
        self.details.retain(|_| kept.next().unwrap_or(true));
        let lines: Vec<u64> = self.rows.iter().map(|row| row.line).collect();
        let mut kept = found.iter().map(Option::is_none);
        self.rows.retain(|_| kept.next().unwrap_or(true));
        self.bad.extend(lines.into_iter().zip(found).filter_map(|(line, bad)| Some((line, bad?))));
        self.bad.sort_by_key(|(line, _)| *line);
    }

    /// Names of files are relative to this folder: it is put before them.
    pub fn place_in(&mut self, folder: &str) {
        for at in 0..self.rows.len() {
            let row = self.rows[at];
            let name = self.get(row.file.unwrap_or(row.image)).to_string();
            let is_named_by_it = self.get(row.image) == name;
            let start = self.text.len();
            self.text.push_str(folder);
            self.text.push('/');
            self.text.push_str(&name);
            let span = self.span_from(start);
            let row = &mut self.rows[at];
            row.file = row.file.map(|_| span);
            if is_named_by_it {
                row.image = span;
            }
        }
    }

    /// Takes back the rows from `from` on.
    pub fn drop_rows(&mut self, from: usize) {
        self.rows.truncate(from);
        self.details.truncate(from);
    }

    fn put_again(&mut self, source: &str, previous: Option<Span>, text: &str) -> Span {
        match previous {
            // Asked first: comparing nothing takes a processor with masked loads a hundred cycles where the text has no address.
            _ if text.is_empty() => Span::default(),
            Some(span) if self.piece(source, span) == text => span,
            _ => self.put(source, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<'a>(image: &'a str, raw: &'a str) -> Fields<'a> {
        Fields { image, raw, ..Fields::default() }
    }

    #[test]
    fn rows_share_what_repeats_and_keep_the_raw_text() {
        let mut batch = Batch::default();
        batch.push("", 1, fields("7", "一 只 狗"), Take::default()).unwrap();
        batch.push("", 2, fields("7", "一只猫"), Take::default()).unwrap();
        let (a, b) = (batch.rows[0], batch.rows[1]);
        assert_eq!((batch.get(a.caption), batch.get(a.raw)), ("一只狗", "一 只 狗"));
        assert_eq!(a.image, b.image);
        assert_eq!(b.caption, b.raw);
    }

    #[test]
    fn pieces_of_the_source_are_not_copied() {
        let source = String::from("7\t一 只 狗");
        let mut batch = Batch::default();
        let (image, raw) = source.split_once('\t').unwrap();
        batch.push(&source, 1, fields(image, raw), Take::default()).unwrap();
        batch.keep_source(source);
        assert_eq!((batch.get(batch.rows[0].image), batch.get(batch.rows[0].raw)), ("7", "一 只 狗"));
        assert_eq!(batch.text, "一只狗");
    }

    #[test]
    fn what_is_no_caption_says_why() {
        let mut batch = Batch::default();
        let reason = |batch: &mut Batch, image, raw| batch.push("", 1, fields(image, raw), Take::default()).unwrap_err().reason;
        assert_eq!(reason(&mut batch, " ", "狗"), Reason::BadId);
        assert_eq!(reason(&mut batch, "a\0", "狗"), Reason::BadId);
        assert_eq!(reason(&mut batch, "a", "狗\0"), Reason::ControlCharacter);
        assert_eq!(reason(&mut batch, "a", " \u{3000}\u{200b}"), Reason::EmptyCaption);
        assert_eq!((batch.rows.len(), batch.text.len()), (0, 0));
    }
}
