//! An image as the page's script reads it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::images::{Image, TableCaptions};
use super::pictures::Picture;
use crate::html::script_json;

/// Texts that stand in many rows, which name them by number.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words {
    pub finish_reasons: Vec<String>,
    pub splits: Vec<String>,
}

impl Words {
    pub fn of(images: &[Image]) -> Self {
        let details = || images.iter().flat_map(|image| &image.tables).flat_map(|table| &table.details);
        let reasons: BTreeSet<&String> = details().filter_map(|details| details.finish_reason.as_ref()).collect();
        let splits: BTreeSet<&String> = images.iter().filter_map(|image| image.split.as_ref()).collect();
        Self { finish_reasons: reasons.into_iter().cloned().collect(), splits: splits.into_iter().cloned().collect() }
    }

    fn finish_reason(&self, reason: Option<&String>) -> Option<usize> {
        self.finish_reasons.binary_search(reason?).ok()
    }
}

/// One image as JSON for a script element: `path`; `id` where it is not the path without its extension; `split`; `missing` (why there is no
/// picture); `changed`; `tables`, a list of captions each; `references`. A caption is a list: text, logprob, num_tokens, finish reason,
/// length, repetition, CIDEr, ROUGE-L, clip_score, with null for what is not known and nothing behind the last that is.
pub fn row(image: &Image, picture: Picture, words: &Words) -> serde_json::Result<String> {
    let mut row = Map::new();
    row.insert("path".into(), json!(image.path));
    if !image.path.strip_prefix(&image.id).is_some_and(|rest| rest.is_empty() || (rest.starts_with('.') && !rest.contains('/'))) {
        row.insert("id".into(), json!(image.id));
    }
    if let Some(split) = image.split.as_ref().and_then(|split| words.splits.binary_search(split).ok()) {
        row.insert("split".into(), json!(split));
    }
    match picture {
        Picture::Missing(reason) => {
            row.insert("missing".into(), json!(reason.as_str()));
        }
        Picture::Here { changed: true, .. } => {
            row.insert("changed".into(), json!(true));
        }
        Picture::Here { .. } | Picture::None => {}
    }
    let tables: Vec<Vec<Value>> = image.tables.iter().map(|table| captions(table, words)).collect();
    row.insert("tables".into(), json!(tables));
    if !image.references.is_empty() {
        row.insert("references".into(), json!(image.references));
    }
    script_json(&row)
}

fn captions(table: &TableCaptions, words: &Words) -> Vec<Value> {
    let each = table.captions.iter().zip(&table.details).zip(&table.figures);
    each.map(|((text, details), figures)| {
        let [cider, rouge_l] = figures.scores.map_or([None; 2], |scores| scores.map(Some));
        let mut values = vec![
            json!(text),
            rounded(details.logprob),
            json!(details.num_tokens),
            json!(words.finish_reason(details.finish_reason.as_ref())),
            json!(figures.length),
            rounded(Some(figures.repetition)),
            rounded(cider),
            rounded(rouge_l),
            rounded(details.clip_score),
        ];
        while values.last() == Some(&Value::Null) {
            values.pop();
        }
        Value::Array(values)
    })
    .collect()
}

/// Four decimals; whole numbers without a fraction, since a row is written a hundred thousand times.
fn rounded(value: Option<f64>) -> Value {
    let Some(value) = value.filter(|value| value.is_finite()) else { return Value::Null };
    let value = (value * 1e4).round() / 1e4;
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Reason;
    use crate::stages::evaluate::captions::Details;
    use crate::stages::report::images::Figures;

    #[test]
    fn a_row_holds_what_is_known_and_no_markup() {
        let hostile = "</script><img src=x onerror=alert(1)>\u{2028}<!--";
        let details = Details {
            logprob: Some(-12.34567),
            num_tokens: Some(9),
            finish_reason: Some(hostile.into()),
            sha256: None,
            clip_score: Some(0.31249),
            rank: None,
            raw: None,
        };
        let figures = Figures { length: 8, repetition: 0.0, scores: Some([1.23456, 1.0]) };
        let image = Image {
            id: "a".into(),
            path: hostile.into(),
            split: Some(hostile.into()),
            tables: vec![
                TableCaptions { captions: vec![hostile.into()], details: vec![details], figures: vec![figures] },
                TableCaptions::default(),
            ],
            references: vec![hostile.into()],
            ..Image::default()
        };
        let words = Words::of(std::slice::from_ref(&image));
        let text = row(&image, Picture::Missing(Reason::Corrupt), &words).unwrap();
        assert!(!text.contains(['<', '>', '\u{2028}']), "{text}");
        let back: Value = serde_json::from_str(&text).unwrap();
        let wanted = json!({
            "path": hostile, "id": "a", "split": 0, "missing": "corrupt",
            "tables": [[[hostile, -12.3457, 9, 0, 8, 0, 1.2346, 1, 0.3125]], []],
            "references": [hostile],
        });
        assert_eq!(back, wanted);
    }

    #[test]
    fn what_is_not_known_is_not_written() {
        let figures = Figures { length: 1, repetition: 0.25, scores: None };
        let table = TableCaptions { captions: vec!["狗".into()], details: vec![Details::default()], figures: vec![figures] };
        let image = Image { id: "x/a".into(), path: "x/a.jpg".into(), tables: vec![table], ..Image::default() };
        let text = row(&image, Picture::Here { offset: 0, bytes: 3, changed: false }, &Words::default()).unwrap();
        assert_eq!(text, r#"{"path":"x/a.jpg","tables":[[["狗",null,null,null,1,0.25]]]}"#);
    }
}
