//! Caption tables as text: the original's TSV, CSV with a header, JSON lines. Unlike in a dataset, a caption may be empty here.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::builder::{Builder, Row};
use super::captions::{Details, for_each_line};
use super::json::text_of;

/// Names that mean an image's id, best first.
pub(super) const ID_COLUMNS: [&str; 6] = ["image_id", "image_path", "file_name", "filename", "image", "id"];
/// Names that mean a caption, best first.
pub(super) const CAPTION_COLUMNS: [&str; 4] = ["caption", "caption_zh", "text", "sentence"];
/// Names that order the captions of an image.
pub(super) const INDEX_COLUMNS: [&str; 2] = ["caption_index", "caption_id"];

/// The original's `file_name<TAB>caption<TAB>caption...`, a line an image.
pub(super) fn read_tsv(path: &Path, builder: &mut Builder) -> Result<()> {
    for_each_line(path, |_, line| {
        let mut fields = line.split('\t');
        let id = fields.next().unwrap_or_default();
        let mut num_captions = 0;
        for caption in fields {
            builder.add(Row { id, caption: Some(caption), ..Row::default() })?;
            num_captions += 1;
        }
        if num_captions == 0 {
            bail!("no tab: file_name<TAB>caption<TAB>caption... is wanted");
        }
        Ok(())
    })
}

/// Whether a file's first line starts with li-xirong's `ID#k` or `ID#lang#k`.
pub fn is_li_xirong(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.take(1 << 16).read_to_end(&mut head).with_context(|| format!("cannot read {}", path.display()))?;
    let head = String::from_utf8_lossy(&head);
    let first = head.lines().map(|line| line.trim_start_matches('\u{feff}')).find(|line| !line.trim().is_empty());
    Ok(first.is_some_and(has_numbered_key))
}

fn has_numbered_key(line: &str) -> bool {
    let key = line.split(['\t', ' ']).next().unwrap_or_default();
    key.rsplit_once('#')
        .is_some_and(|(id, number)| !id.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// CSV with a header: a caption table of ours, or any with an id and a caption column of a usual name.
pub(super) fn read_csv(path: &Path, builder: &mut Builder) -> Result<()> {
    let open = csv::ReaderBuilder::new().from_path(path).with_context(|| format!("cannot open {}", path.display()));
    let mut reader = open?;
    let header = reader.headers().with_context(|| format!("{}: cannot read the header", path.display()))?.clone();
    let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
    let find = |wanted: &[&str]| wanted.iter().find_map(|wanted| names.iter().position(|name| name == wanted));
    let (Some(id), Some(caption)) = (find(&ID_COLUMNS), find(&CAPTION_COLUMNS)) else {
        return Err(missing_columns(path, &names));
    };
    let index = find(&INDEX_COLUMNS);
    let [path_column, hash, split, logprob, length, reason] =
        ["image_path", "sha256", "split", "logprob", "num_tokens", "finish_reason"].map(|name| find(&[name]));
    for record in reader.records() {
        let record = record.with_context(|| format!("{}: not a CSV table", path.display()))?;
        let at = || format!("{}, line {}", path.display(), record.position().map_or(0, csv::Position::line));
        let row = Row {
            id: &record[id],
            alias: path_column.map(|column| &record[column]),
            sha256: hash.map(|column| &record[column]),
            split: split.map(|column| &record[column]),
            index: number(&record, &names, index).with_context(at)?,
            caption: Some(&record[caption]),
            details: Details {
                logprob: number(&record, &names, logprob).with_context(at)?,
                num_tokens: number(&record, &names, length).with_context(at)?,
                finish_reason: reason.map(|column| record[column].to_string()).filter(|reason| !reason.is_empty()),
            },
        };
        builder.add(row).with_context(at)?;
    }
    Ok(())
}

/// The number in a column, where there is such a column and something in it.
fn number<T: FromStr>(record: &csv::StringRecord, names: &[&str], column: Option<usize>) -> Result<Option<T>> {
    let Some(column) = column.filter(|&column| !record[column].is_empty()) else { return Ok(None) };
    let parsed = record[column].parse().ok();
    parsed.map(Some).with_context(|| format!("{}: {:?} is not a number", names[column], &record[column]))
}

pub(super) fn missing_columns(path: &Path, present: &[&str]) -> anyhow::Error {
    anyhow!(
        "{}: a column for the image ({}) and one for the caption ({}) are wanted; it has: {}",
        path.display(),
        ID_COLUMNS.join(", "),
        CAPTION_COLUMNS.join(", "),
        present.join(", ")
    )
}

/// One JSON object a line, with a `caption` (or `text`), or a list of `captions`.
pub(super) fn read_jsonl(path: &Path, builder: &mut Builder) -> Result<()> {
    for_each_line(path, |_, line| {
        let row: serde_json::Map<String, Value> = serde_json::from_str(line).context("a JSON object is wanted")?;
        let find = |names: &[&str]| names.iter().find_map(|name| row.get(*name).map(|value| (name.to_string(), value)));
        let Some((name, id)) = find(&ID_COLUMNS) else { bail!("none of {} is there", ID_COLUMNS.join(", ")) };
        let id = text_of(id).with_context(|| format!("{name} is neither text nor a whole number"))?;
        let text = |name: &str| row.get(name).and_then(Value::as_str);
        let given = Row { id: &id, alias: text("image_path"), sha256: text("sha256"), split: text("split"), ..Row::default() };
        if let Some(Value::Array(captions)) = row.get("captions") {
            for caption in captions {
                let caption = Some(caption.as_str().context("captions holds something that is not text")?);
                builder.add(Row { caption, ..given.clone() })?;
            }
            return Ok(());
        }
        let index = find(&INDEX_COLUMNS).and_then(|(_, value)| value.as_i64());
        let details = Details {
            logprob: row.get("logprob").and_then(Value::as_f64),
            num_tokens: row.get("num_tokens").and_then(Value::as_i64),
            finish_reason: text("finish_reason").map(Into::into),
        };
        match find(&CAPTION_COLUMNS) {
            Some((_, Value::String(caption))) => builder.add(Row { index, caption: Some(caption), details, ..given }),
            Some((_, Value::Null)) => builder.add(Row { caption: None, ..given }),
            Some((name, _)) => bail!("{name} is not text"),
            None => bail!("none of {} is there", CAPTION_COLUMNS.join(", ")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_keys_are_told_from_file_names() {
        assert!(has_numbered_key("COCO_val2014_000000217153#0\t一个男人") && has_numbered_key("1000092795#zhb#3 两个"));
        assert!(
            !has_numbered_key("a.jpg\t狗#0")
                && !has_numbered_key("#0 狗")
                && !has_numbered_key("a#\t狗")
                && !has_numbered_key("")
        );
    }
}
