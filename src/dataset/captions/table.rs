//! Tables of text with a header (`csv`, also with `;`, `|` or tabs), their columns named by `--columns` or known by name.

use super::batch::{Bad, Batch, Details, Fields, Reason, Take};
use super::columns::Chosen;
use super::lines::{MAX_LINE_BYTES, lines};
use super::text::checked;
use super::{Columns, Translation, cells};
use crate::dataset::normalize::excerpt;

/// A record may span this many lines; a quote left open for longer makes its line a bad one.
const MAX_RECORD_LINES: usize = 64;

/// Where the columns are, and how the fields are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableLayout {
    pub delimiter: u8,
    names: Vec<String>,
    columns: Chosen,
    pub default_translation: Translation,
    pub take: Take,
}

impl TableLayout {
    /// Understands a header line; `delimiter` is what a line before it says. The error lists the columns there are.
    pub fn from_header(
        line: &str,
        delimiter: Option<u8>,
        columns: &Columns,
        translation: Translation,
        take: Take,
    ) -> Result<Self, String> {
        let line = line.trim_start_matches('\u{feff}');
        let delimiter = delimiter.unwrap_or_else(|| delimiter_of(line));
        let names: Vec<String> =
            record(line.as_bytes(), delimiter).map_err(|bad| bad.message)?.iter().map(|n| n.trim().to_string()).collect();
        let columns = Chosen::of(&names, columns, true, |_| true)?;
        Ok(Self { delimiter, names, columns, default_translation: translation, take })
    }
}

/// The delimiter of Excel's `sep=;`, where the first line is that.
pub fn separator_line(line: &str) -> Option<u8> {
    match line.trim_start_matches('\u{feff}').trim_matches('"').as_bytes() {
        // A tab, which is white space and may be gone.
        [s, e, p, b'='] if [s, e, p].map(u8::to_ascii_lowercase) == *b"sep" => Some(b'\t'),
        [s, e, p, b'=', delimiter] if [s, e, p].map(u8::to_ascii_lowercase) == *b"sep" => Some(*delimiter),
        _ => None,
    }
}

/// The delimiter that occurs most in a header; a comma where none does.
pub fn delimiter_of(header: &str) -> u8 {
    let count = |d: u8| header.bytes().filter(|&b| b == d).count();
    // max_by_key takes the last of equals, so the comma stands last.
    *[b'|', b';', b'\t', b','].iter().max_by_key(|&&d| count(d)).expect("the list is not empty")
}

/// The fields of one complete record.
fn record(bytes: &[u8], delimiter: u8) -> Result<csv::StringRecord, Bad> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .buffer_capacity(bytes.len().max(1))
        .from_reader(bytes);
    let mut record = csv::StringRecord::new();
    match reader.read_record(&mut record) {
        Ok(true) => Ok(record),
        Ok(false) => Err(Bad::new(Reason::BadRecord, "no fields")),
        Err(error) => {
            let reason = if std::str::from_utf8(bytes).is_err() { Reason::InvalidUtf8 } else { Reason::BadRecord };
            Err(Bad::new(reason, format!("{error}: {}", excerpt(bytes, 40))))
        }
    }
}

/// Whether a quoted field is still open at the end of `line`, given whether one was at its start.
fn quote_open(line: &[u8], delimiter: u8, mut open: bool) -> bool {
    let mut field_start = !open;
    let mut bytes = line.iter().peekable();
    while let Some(&byte) = bytes.next() {
        if open {
            if byte == b'"' {
                if bytes.peek() == Some(&&b'"') {
                    bytes.next();
                } else {
                    open = false;
                    field_start = false;
                }
            }
        } else if byte == delimiter {
            field_start = true;
        } else {
            open = field_start && byte == b'"';
            field_start = false;
        }
    }
    open
}

/// Records of a block of whole lines. Lines count; a record over several lines stands at its first, and the others count as its own.
///
/// Gives back how many bytes at the block's end belong to a record that may go on in the next block (0 when `last`).
pub fn parse_block(block: &[u8], layout: &TableLayout, last: bool) -> (Batch, usize) {
    let mut batch = Batch::default();
    batch.reserve(block.len());
    let all: Vec<&[u8]> = lines(block).collect();
    let mut at = 0;
    while at < all.len() {
        let record = match record_lines(&all[at..], layout.delimiter) {
            Extent::Complete(count) => {
                let (start, end) = (offset(block, all[at]), offset(block, all[at + count - 1]) + all[at + count - 1].len());
                Ok((count, &block[start..end]))
            }
            Extent::Open
                if !last && all.len() - at < MAX_RECORD_LINES && block.len() - offset(block, all[at]) <= MAX_LINE_BYTES =>
            {
                return (batch, block.len() - offset(block, all[at]));
            }
            Extent::Open => {
                Err(Bad::new(Reason::BadRecord, format!("a quote opens a field and nothing closes it: {}", excerpt(all[at], 40))))
            }
        };
        let line = batch.lines + 1;
        let (count, parsed) = match record {
            Ok((1, bytes)) if bytes.trim_ascii().is_empty() => {
                batch.lines += 1;
                batch.blank += 1;
                at += 1;
                continue;
            }
            Ok((count, bytes)) => (count, push(&mut batch, line, bytes, layout)),
            Err(bad) => (1, Err(bad)),
        };
        if let Err(bad) = parsed {
            batch.bad.push((line, bad));
        }
        batch.lines += count as u64;
        batch.continued += count as u64 - 1;
        at += count;
    }
    (batch, 0)
}

fn offset(block: &[u8], line: &[u8]) -> usize {
    line.as_ptr() as usize - block.as_ptr() as usize
}

enum Extent {
    /// The record takes this many lines.
    Complete(usize),
    /// A quote is open at the end of what there is, or for too long.
    Open,
}

fn record_lines(all: &[&[u8]], delimiter: u8) -> Extent {
    let mut open = false;
    let mut bytes = 0;
    for (count, line) in all.iter().take(MAX_RECORD_LINES).enumerate() {
        bytes += line.len() + 1;
        open = quote_open(line, delimiter, open);
        if !open {
            return Extent::Complete(count + 1);
        }
        if bytes > MAX_LINE_BYTES {
            break;
        }
    }
    Extent::Open
}

fn push(batch: &mut Batch, line: u64, bytes: &[u8], layout: &TableLayout) -> Result<(), Bad> {
    if bytes.len() > MAX_LINE_BYTES {
        return Err(Bad::new(Reason::LineTooLong, format!("longer than {MAX_LINE_BYTES} bytes: {}", excerpt(bytes, 40))));
    }
    checked(bytes, layout.take)?;
    let mut fields = record(bytes, layout.delimiter)?;
    if memchr::memchr(b'\'', bytes).is_some() {
        fields = fields.iter().map(cells::plain).collect();
    }
    if fields.len() != layout.names.len() {
        let message = format!("{} fields where the header has {}: {}", fields.len(), layout.names.len(), excerpt(bytes, 40));
        return Err(Bad::new(Reason::BadRecord, message));
    }
    let columns = &layout.columns;
    let details = if layout.take.details { Some(details(&fields, layout)?) } else { None };
    let entry = Fields {
        image: columns.image.map_or("", |at| fields[at].trim()),
        file: columns.file.map(|at| fields[at].trim()).filter(|file| !file.is_empty()),
        number: columns.number.and_then(|at| fields[at].trim().parse().ok()).filter(|_| columns.captions.len() == 1),
        split: columns.split.map_or("", |at| fields[at].trim()),
        translation: Some(columns.translation.and_then(|at| fields[at].parse().ok()).unwrap_or(layout.default_translation)),
        details: details.as_ref(),
        ..Fields::default()
    };
    // Ids may be missing where a file is named.
    let entry = if entry.image.is_empty() { Fields { image: entry.file.unwrap_or_default(), ..entry } } else { entry };
    let before = batch.rows.len();
    let mut result = Ok(());
    for &caption in &columns.captions {
        match cells::captions(&fields[caption]) {
            None => result = result.and(batch.push("", line, Fields { raw: &fields[caption], ..entry }, layout.take)),
            Some(list) if list.is_empty() => {
                result = result.and(Err(Bad::new(Reason::EmptyCaption, "its captions are an empty list")));
            }
            Some(list) => {
                for raw in &list {
                    result = result.and(batch.push("", line, Fields { raw, number: None, ..entry }, layout.take));
                }
            }
        }
    }
    if batch.rows.len() > before { Ok(()) } else { result }
}

/// What the further columns of a caption table say.
fn details(fields: &csv::StringRecord, layout: &TableLayout) -> Result<Details, Bad> {
    fn number<T: std::str::FromStr>(fields: &csv::StringRecord, names: &[String], at: Option<usize>) -> Result<Option<T>, Bad> {
        let Some(at) = at.filter(|&at| !fields[at].trim().is_empty()) else { return Ok(None) };
        let bad = |_| Bad::new(Reason::BadRecord, format!("{}: {:?} is not a number", names[at], &fields[at]));
        fields[at].trim().parse().map(Some).map_err(bad)
    }
    let (columns, names) = (&layout.columns, &layout.names);
    let text = |at: Option<usize>| at.map(|at| fields[at].to_string()).filter(|text| !text.is_empty());
    number::<i64>(fields, names, columns.number)?;
    Ok(Details {
        logprob: number(fields, names, columns.logprob)?,
        num_tokens: number(fields, names, columns.num_tokens)?,
        finish_reason: text(columns.finish_reason),
        sha256: text(columns.sha256),
        clip_score: number(fields, names, columns.clip_score)?,
        rank: number(fields, names, columns.rank)?,
        raw: None,
    })
}

/// The names in the first line of a table of text, or in the first object of JSON lines; empty where it is neither.
pub fn header_names(text: &str) -> Vec<String> {
    let mut lines = text.lines().map(|line| line.trim_start_matches('\u{feff}').trim()).filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return Vec::new() };
    if first.starts_with('{') {
        let object: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(first).ok();
        return object.map_or_else(Vec::new, |object| object.keys().cloned().collect());
    }
    let (delimiter, header) = match separator_line(first) {
        Some(delimiter) => (delimiter, lines.next().unwrap_or_default()),
        None => (delimiter_of(first), first),
    };
    let names = header.split(delimiter as char).map(|name| name.trim().trim_matches('"').to_string());
    names.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(header: &str, columns: &Columns) -> TableLayout {
        TableLayout::from_header(header, None, columns, Translation::Unknown, Take::default()).unwrap()
    }

    fn rows(batch: &Batch) -> Vec<(&str, &str, u64)> {
        batch.rows.iter().map(|r| (batch.get(r.image), batch.get(r.caption), r.line)).collect()
    }

    #[test]
    fn columns_known_by_name_and_named() {
        let known = layout("image_path,en_caption,caption_zh,similarity", &Columns::default());
        assert_eq!((known.columns.image, &known.columns.captions[..]), (Some(0), &[2][..]));
        let columns = Columns { image: Some("similarity".into()), captions: vec!["en_caption".into()], split: None };
        let named = layout("image_path,en_caption,caption_zh,similarity", &columns);
        assert_eq!((named.columns.image, &named.columns.captions[..]), (Some(3), &[1][..]));
        let several = layout("image,caption,caption", &Columns::default());
        assert_eq!(several.columns.captions, [1, 2]);
        let columns = Columns { image: Some("image".into()), captions: vec!["c".into()], split: None };
        assert_eq!(layout("image,c,d,c", &columns).columns.captions, [1, 3]);
        assert_eq!(layout("image_name| comment_number| comment", &Columns::default()).delimiter, b'|');
        let error =
            TableLayout::from_header("a,b", None, &Columns::default(), Translation::Unknown, Take::default()).unwrap_err();
        assert!(error.contains("the columns are: a, b"), "{error}");
    }

    #[test]
    fn excel_says_the_separator() {
        let said = ["sep=;", "\u{feff}SEP=,", "\"sep=|\"", "sep=\t", "sep=", "sep=;;", "image,caption"].map(separator_line);
        assert_eq!(said, [Some(b';'), Some(b','), Some(b'|'), Some(b'\t'), Some(b'\t'), None, None]);
    }

    #[test]
    fn quotes_may_span_lines_and_a_lost_quote_costs_one_line() {
        let layout = layout("image,caption", &Columns::default());
        let text = "a.jpg,\"一个人,\n站着\"\n\nb.jpg,狗\n\"c.jpg,猫\nd.jpg,说\"\"好\ne.jpg\nf.jpg,\"\"\n";
        let (batch, rest) = parse_block(text.as_bytes(), &layout, true);
        assert_eq!(rest, 0);
        assert_eq!(rows(&batch), [("a.jpg", "一个人,站着", 1), ("b.jpg", "狗", 4), ("d.jpg", "说\"\"好", 6)]);
        let bad: Vec<_> = batch.bad.iter().map(|(line, bad)| (*line, bad.reason)).collect();
        assert_eq!(bad, [(5, Reason::BadRecord), (7, Reason::BadRecord), (8, Reason::EmptyCaption)]);
        assert_eq!((batch.lines, batch.blank, batch.continued), (8, 1, 1));
    }

    #[test]
    fn an_open_record_waits_for_the_next_block() {
        let layout = layout("image,caption", &Columns::default());
        let (batch, rest) = parse_block("a,狗\nb,\"一\n".as_bytes(), &layout, false);
        assert_eq!((batch.rows.len(), batch.lines, rest), (1, 1, "b,\"一\n".len()));
    }

    proptest! {
        #[test]
        fn every_line_is_accounted_for(text in "[ab,\"\n\r|狗]{0,60}") {
            let layout = layout("image,caption", &Columns::default());
            let (batch, _) = parse_block(text.as_bytes(), &layout, true);
            prop_assert_eq!(batch.lines, lines(text.as_bytes()).count() as u64);
            prop_assert_eq!(batch.rows.len() as u64 + batch.bad.len() as u64 + batch.blank + batch.continued, batch.lines);
        }

        #[test]
        fn what_csv_writes_comes_back(captions in proptest::collection::vec("[a-z,\"\n 狗，]{0,12}", 1..8)) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            for caption in &captions {
                writer.write_record(["x", &format!("{caption}。")]).unwrap();
            }
            let text = writer.into_inner().unwrap();
            let (batch, _) = parse_block(&text, &layout("image,caption", &Columns::default()), true);
            let back: Vec<&str> = batch.rows.iter().map(|r| batch.get(r.raw)).collect();
            let expected: Vec<String> = captions.iter().map(|c| format!("{c}。").trim().to_string()).collect();
            prop_assert_eq!(back, expected);
        }
    }
}
