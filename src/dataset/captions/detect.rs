//! Which layout a file has, from its first bytes.

use super::Format;
use super::batch::Take;
use super::columns::{CAPTION_NAMES, FILE_NAMES, ID_NAMES, LAST_ID_NAME};
use super::lines::lines;
use super::table::{delimiter_of, separator_line};
use super::text::{checked, layout_of};
use super::{encoding, python, text};
use crate::dataset::normalize::split_tag;

/// Lines looked at.
const MAX_LINES: usize = 2000;

/// The layout that most of a file's first lines have. The error says what was looked for.
///
/// `name` breaks the tie where the bytes could be several things; `columns_named` says that `--columns` was given.
pub fn detect(head: &[u8], name: &str, columns_named: bool) -> Result<Format, String> {
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Err("this is UTF-16: give --encoding utf-16".into());
    }
    if head.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    let texts: Vec<&str> =
        lines(head).take(MAX_LINES).filter_map(|line| checked(line, Take::default()).ok().flatten()).map(str::trim).collect();
    let extension = name.rsplit_once('.').map(|(_, e)| e.to_lowercase()).unwrap_or_default();
    // Nothing in it, so nothing is wrong with it: a file of no captions beside others.
    if texts.is_empty() && head.trim_ascii().is_empty() {
        return Ok(if extension == "jsonl" { Format::Jsonl } else { Format::Tsv });
    }
    let first = head.strip_prefix("\u{feff}".as_bytes()).unwrap_or(head).trim_ascii_start().first().copied();
    let objects = texts.iter().filter(|t| t.starts_with('{') && t.ends_with('}')).count();
    if matches!(first, Some(b'{' | b'[')) || objects * 2 > texts.len() {
        return Ok(of_json(head, &texts, objects, &extension));
    }
    // Excel may say the separator before the header.
    let has_separator = texts.first().is_some_and(|text| separator_line(text).is_some());
    if let Some(header) = texts.get(usize::from(has_separator))
        && (has_separator || is_header(header) || columns_named && (extension == "csv" || header.contains(',')))
    {
        return Ok(Format::Csv);
    }
    let count = |format: Format| texts.iter().filter(|t| layout_of(t) == Some(format)).count();
    let best = [Format::Tsv, Format::CocoCn, Format::FlickrCn].into_iter().max_by_key(|&f| count(f)).filter(|&f| count(f) > 0);
    let named = match extension.as_str() {
        "csv" => Some(Format::Csv),
        "tsv" => Some(Format::Tsv),
        _ => None,
    };
    best.or(named).ok_or_else(|| {
        // A character may be cut where the head ends.
        if std::str::from_utf8(head).is_err_and(|error| error.error_len().is_some()) {
            return format!("this is not UTF-8 text ({})", encoding::cure(head));
        }
        if let Some(chinese) = lines(head).find_map(|line| encoding::by_chance(std::str::from_utf8(line).ok()?)) {
            return text::chance(&chinese).message;
        }
        "the layout of this file is not known (looked for ID#lang#k, ID#k<TAB>, id<TAB>caption, JSON, .parquet, and a header with an image and \
         a caption column): name it with --format, and columns with --columns image=A,caption=B"
            .into()
    })
}

fn of_json(head: &[u8], texts: &[&str], objects: usize, extension: &str) -> Format {
    let has = |key: &str| find(head, format!("\"{key}\"").as_bytes());
    let of_images = has("images") && (has("sentences") || has("annotations") || has("file_name") || has("filename"));
    let is_lines = matches!(extension, "jsonl" | "ndjson");
    if of_images || has("annotations") && has("image_id") && !is_lines {
        // Karpathy's images hold their sentences; COCO's are named by an id, whatever else a tool calls their files.
        let holds_sentences = has("sentences") || has("sentids") || has("filename") && !has("annotations") && !has("id");
        return if holds_sentences { Format::Karpathy } else { Format::Coco };
    }
    let starts_array = texts.first().is_some_and(|text| text.starts_with('['));
    if is_lines || texts.iter().take(20).any(|text| is_row(text)) {
        return Format::Jsonl;
    }
    match (starts_array, objects > 1 && objects * 2 > texts.len()) {
        (true, _) => Format::Coco,
        (false, true) => Format::Jsonl,
        (false, false) => Format::Map,
    }
}

/// An object that names an image and has a caption.
fn is_row(line: &str) -> bool {
    let Ok(serde_json::Value::Object(object)) = python::value(line.as_bytes()) else { return false };
    let any = |names: &[&str]| names.iter().any(|name| object.contains_key(*name));
    (any(&ID_NAMES) || any(&FILE_NAMES) || any(&[LAST_ID_NAME])) && any(&CAPTION_NAMES)
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// A header names an image and a caption.
fn is_header(line: &str) -> bool {
    let delimiter = delimiter_of(line) as char;
    let names: Vec<String> = line.split(delimiter).map(|n| n.trim().trim_matches('"').to_lowercase()).collect();
    let any = |wanted: &[&str]| names.iter().any(|n| wanted.contains(&n.as_str()));
    names.len() > 1 && (any(&ID_NAMES) || any(&FILE_NAMES) || any(&[LAST_ID_NAME])) && any(&CAPTION_NAMES)
}

/// Whether the words of a segmented file carry tags: nine tokens of ten do in its first lines.
pub fn is_tagged(head: &[u8]) -> bool {
    let mut tokens = 0usize;
    let mut tagged = 0usize;
    for text in lines(head).take(MAX_LINES).filter_map(|line| checked(line, Take::default()).ok().flatten()) {
        for token in text.split_whitespace().skip(1) {
            tokens += 1;
            tagged += usize::from(split_tag(token).is_some());
        }
    }
    tokens > 0 && tagged * 10 >= tokens * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Format {
        detect(text.as_bytes(), "captions", false).unwrap()
    }

    #[test]
    fn each_layout_is_known_by_its_first_bytes() {
        assert_eq!(of("1#zhb#0 两 个\n2#zhb#1\t狗\n"), Format::FlickrCn);
        assert_eq!(of("1.jpg#0\t狗\n1.jpg#1\t狗\n"), Format::CocoCn);
        assert_eq!(of("junk\n1\t狗\n2\t猫\n"), Format::Tsv);
        assert_eq!(of("\u{feff}image_path,en_caption,caption_zh\na.jpg,dog,狗\n"), Format::Csv);
        assert_eq!(of("image_name| comment_number| comment\n1.jpg| 0| 狗\n"), Format::Csv);
        assert_eq!(of("image_id\tcaption\n1\t狗\n"), Format::Csv);
        assert_eq!(of("{\"file_name\": \"a\", \"text\": \"狗\"}\n{\"file_name\": \"b\", \"text\": \"狗\"}\n"), Format::Jsonl);
        assert_eq!(of("{bad\n{\"image_id\": 1, \"caption\": \"狗\"}\n{\"image_id\": 2, \"caption\": \"狗\"}\n"), Format::Jsonl);
        assert_eq!(of(r#"{"images": [{"sentids": [0], "filename": "1.jpg", "sentences": [{"raw": "a"}]}]}"#), Format::Karpathy);
        assert_eq!(of(r#"{"info": {}, "images": [{"file_name": "a", "id": 1}], "annotations": []}"#), Format::Coco);
        assert_eq!(of(r#"{"images": [{"filename": "a", "id": 1}], "annotations": []}"#), Format::Coco);
        assert_eq!(of("[\n {\"image_id\": 1,\n \"caption\": \"a\"}]"), Format::Coco);
    }

    #[test]
    fn what_is_nothing_says_so() {
        assert!(detect(b"\xff\xfea\0", "x", false).unwrap_err().contains("UTF-16"));
        assert!(detect("只有一行".as_bytes(), "x", false).unwrap_err().contains("--format"));
        assert!(detect(b"1\t\xb9\xb7\n", "x", false).unwrap_err().contains("--encoding gbk"));
        assert_eq!(detect(b" \n", "x", false), Ok(Format::Tsv));
        assert_eq!(detect("pic,words\na,b\n".as_bytes(), "x.csv", true), Ok(Format::Csv));
    }

    #[test]
    fn tags_are_seen() {
        assert!(is_tagged("1#zhm#0 一架:m 飞机:n\n".as_bytes()));
        assert!(!is_tagged("1#zhb#0 一架 飞机 10:30\n".as_bytes()));
    }
}
