//! Line by line: the original's TSV, li-xirong's `ID#k caption`, CSV with a header, JSON lines.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::captions::{Builder, for_each_line};
use super::json::text_of;
use crate::text::han::is_wide;

/// Names that mean an image's id, best first.
pub(super) const ID_COLUMNS: [&str; 6] = ["image_id", "image_path", "file_name", "filename", "image", "id"];
/// Names that mean a caption, best first.
pub(super) const CAPTION_COLUMNS: [&str; 3] = ["caption", "text", "sentence"];
/// Names that order the captions of an image.
pub(super) const INDEX_COLUMNS: [&str; 2] = ["caption_index", "caption_id"];

/// `file_name<TAB>caption<TAB>caption...`, or li-xirong's `ID#k<TAB or SPACE>caption` and `ID#lang#k segmented words`, told apart line by
/// line by the `#k` that ends the first field.
pub(super) fn read_tsv(path: &Path, builder: &mut Builder) -> Result<()> {
    for_each_line(path, |_, line| {
        if let Some((id, number, caption)) = li_xirong(line) {
            return builder.add(id, None, Some(number), Some(&caption));
        }
        let mut fields = line.split('\t');
        let id = fields.next().unwrap_or_default();
        let mut num_captions = 0;
        for caption in fields {
            builder.add(id, None, None, Some(caption))?;
            num_captions += 1;
        }
        if num_captions == 0 {
            bail!("no tab: file_name<TAB>caption or ID#k<TAB>caption is wanted");
        }
        Ok(())
    })
}

/// The parts of `ID#k caption` or `ID#lang#k caption`, the caption's words joined.
fn li_xirong(line: &str) -> Option<(&str, i64, String)> {
    let (key, caption) = line.split_once(['\t', ' '])?;
    let (id, number) = key.rsplit_once('#')?;
    let number = number.parse().ok().filter(|n| *n >= 0)?;
    let id = match id.rsplit_once('#') {
        Some((id, language)) if !id.is_empty() && language.starts_with(|c: char| c.is_ascii_lowercase()) => id,
        _ => id,
    };
    (!id.is_empty()).then(|| (id, number, join_words(caption)))
}

/// Segmented words back to text: tags (`word:TAG`, when every word has one) go, and so do spaces next to Chinese characters.
fn join_words(caption: &str) -> String {
    let untag = |word| match str::rsplit_once(word, ':') {
        Some((word, tag)) if !word.is_empty() && !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_alphabetic()) => Some(word),
        _ => None,
    };
    let words: Vec<&str> = caption.split_whitespace().collect();
    let words = words.iter().map(|word| untag(word)).collect::<Option<Vec<_>>>().unwrap_or(words);
    let mut text = String::with_capacity(caption.len());
    for word in words {
        let wide_meets = text.chars().next_back().is_some_and(is_wide) || word.chars().next().is_some_and(is_wide);
        if !text.is_empty() && !wide_meets {
            text.push(' ');
        }
        text.push_str(word);
    }
    text
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
    let alias = names.iter().position(|name| *name == "image_path");
    for record in reader.records() {
        let record = record.with_context(|| format!("{}: not a CSV table", path.display()))?;
        let at = || format!("{}, line {}", path.display(), record.position().map_or(0, csv::Position::line));
        let number = index.map(|index| record[index].parse::<i64>()).transpose();
        let number = number.with_context(|| format!("{}: {} is not a number", at(), names[index.unwrap_or_default()]))?;
        builder.add(&record[id], alias.map(|alias| &record[alias]), number, Some(&record[caption])).with_context(at)?;
    }
    Ok(())
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
        let alias = row.get("image_path").and_then(Value::as_str);
        let index = find(&INDEX_COLUMNS).and_then(|(_, value)| value.as_i64());
        if let Some(Value::Array(captions)) = row.get("captions") {
            for caption in captions {
                builder.add(&id, alias, None, Some(caption.as_str().context("captions holds something that is not text")?))?;
            }
            return Ok(());
        }
        match find(&CAPTION_COLUMNS) {
            Some((_, Value::String(caption))) => builder.add(&id, alias, index, Some(caption)),
            Some((_, Value::Null)) => builder.add(&id, alias, index, None),
            Some((name, _)) => bail!("{name} is not text"),
            None => bail!("none of {} is there", CAPTION_COLUMNS.join(", ")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn li_xirong_lines_come_apart() {
        let parts = |line| li_xirong(line).map(|(id, k, caption)| format!("{id} {k} {caption}"));
        assert_eq!(parts("COCO_val2014_000000217153#0\t一个男人"), Some("COCO_val2014_000000217153 0 一个男人".into()));
        assert_eq!(parts("1000092795#zhb#3 两个 iphone 15 手机"), Some("1000092795 3 两个iphone 15手机".into()));
        assert_eq!(parts("a#b#0 狗"), Some("a 0 狗".into()));
        assert_eq!(parts("#0 狗"), None);
        assert_eq!(parts("a.jpg\t狗#0 猫"), None);
        assert_eq!(parts("a#-1 狗"), None);
    }

    #[test]
    fn tags_go_only_where_every_word_has_one() {
        assert_eq!(join_words("一:CD 只:M 狗:NN 。:PU"), "一只狗。");
        assert_eq!(join_words("时间 10:30 到"), "时间10:30到");
        assert_eq!(join_words("看 a:b 狗"), "看a:b狗");
        assert_eq!(join_words("  "), "");
    }
}
