//! Layouts in JSON: one object a line (`jsonl`), Karpathy's `dataset_*.json` and COCO's `captions_*.json`.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Columns;
use super::batch::{Bad, Batch, Fields, Reason};
use super::elements::{Element, MAX_ELEMENT_BYTES};
use super::lines::lines;
use super::text::checked;
use super::{Format, Translation};
use crate::dataset::normalize::{FoldWidth, excerpt};

/// Field names that mean an image's id, its file and a caption, where `--columns` says nothing. The first that is there counts.
/// A bare `id` may number anything, so it comes last.
pub const ID_NAMES: [&str; 2] = ["image_id", "img_id"];
pub const LAST_ID_NAME: &str = "id";
pub const FILE_NAMES: [&str; 8] = ["image_path", "file_name", "filename", "image_name", "image", "img", "path", "filepath"];
pub const CAPTION_NAMES: [&str; 9] =
    ["caption", "captions", "caption_zh", "text", "sentence", "sentences", "description", "raw", "comment"];

/// What parsing objects needs to know.
#[derive(Debug, Clone, Copy)]
pub struct ObjectLayout<'a> {
    pub columns: &'a Columns,
    pub translation: Translation,
    pub fold: FoldWidth,
}

/// Parses a block of whole lines, an object a line.
pub fn parse_lines(block: &[u8], layout: &ObjectLayout) -> Batch {
    let mut batch = Batch::default();
    for bytes in lines(block) {
        batch.lines += 1;
        let line = batch.lines;
        let parsed = match checked(bytes) {
            Ok(None) => {
                batch.blank += 1;
                continue;
            }
            Ok(Some(text)) => parse(text.as_bytes()).and_then(|object| push_object(&mut batch, line, &object, layout)),
            Err(bad) => Err(bad),
        };
        if let Err(bad) = parsed {
            batch.bad.push((line, bad));
        }
    }
    batch
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, Bad> {
    if bytes.len() > MAX_ELEMENT_BYTES {
        return Err(Bad::new(Reason::LineTooLong, format!("longer than {MAX_ELEMENT_BYTES} bytes: {}", excerpt(bytes, 40))));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Bad::new(Reason::BadJson, format!("not an object: {}", excerpt(bytes, 40)))),
        Err(error) => Err(Bad::new(Reason::BadJson, format!("{error}: {}", excerpt(bytes, 40)))),
    }
}

/// Text of a string or a number (ids are both, in the wild).
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn first<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| object.get(*name)).filter(|value| !value.is_null())
}

fn missing(object: &Map<String, Value>, what: &str) -> Bad {
    let mut have: Vec<&str> = object.keys().map(String::as_str).take(12).collect();
    have.sort_unstable();
    let have = excerpt(have.join(", ").as_bytes(), 80);
    Bad::new(Reason::MissingField, format!("no {what} in it (name it with --columns); it has: {have}"))
}

fn empty() -> Bad {
    Bad::new(Reason::EmptyCaption, "its caption is null, an empty list or no text")
}

/// One object with an image and a caption, or a list of captions.
fn push_object(batch: &mut Batch, line: u64, object: &Map<String, Value>, layout: &ObjectLayout) -> Result<(), Bad> {
    let columns = layout.columns;
    let (id, file) = match &columns.image {
        Some(name) => (object.get(name).and_then(text), None),
        None => (first(object, &ID_NAMES).and_then(text), first(object, &FILE_NAMES).and_then(text)),
    };
    let last = object.get(LAST_ID_NAME).and_then(text).filter(|_| columns.image.is_none());
    let image = id.as_ref().or(file.as_ref()).or(last.as_ref()).ok_or_else(|| missing(object, "image"))?;
    let captions: Vec<String> = match &columns.captions[..] {
        [] => first(object, &CAPTION_NAMES).map(texts).unwrap_or_default(),
        names => names.iter().filter_map(|name| object.get(name)).flat_map(texts).collect(),
    };
    if captions.is_empty() {
        let is_there = match &columns.captions[..] {
            [] => CAPTION_NAMES.iter().any(|name| object.contains_key(*name)),
            names => names.iter().any(|name| object.contains_key(name)),
        };
        return Err(if is_there { empty() } else { missing(object, "caption") });
    }
    let split = object.get(columns.split.as_deref().unwrap_or("split")).and_then(text).unwrap_or_default();
    let translation =
        object.get("translation").and_then(Value::as_str).and_then(|t| t.parse().ok()).unwrap_or(layout.translation);
    push_captions(batch, line, captions.len(), |at, batch| {
        let fields = Fields {
            image,
            file: file.as_deref(),
            raw: &captions[at],
            split: split.trim(),
            translation: Some(translation),
            ..Fields::default()
        };
        batch.push("", line, fields, layout.fold)
    })
}

/// Pushes several captions of one object. Where none of them is good the object is a bad one; else each bad caption is.
fn push_captions(
    batch: &mut Batch,
    line: u64,
    count: usize,
    push: impl Fn(usize, &mut Batch) -> Result<(), Bad>,
) -> Result<(), Bad> {
    let mut bad: Vec<Bad> = (0..count).filter_map(|at| push(at, batch).err()).collect();
    if count > 0 && bad.len() == count {
        return Err(bad.swap_remove(0));
    }
    batch.bad.extend(bad.into_iter().map(|bad| (line, bad)));
    Ok(())
}

/// A caption, a list of captions, or a list of objects that hold one. What is no text in a list is a caption without any.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => {
            values.iter().map(|v| v.as_str().map(str::to_string).or_else(|| sentence(v)).unwrap_or_default()).collect()
        }
        _ => Vec::new(),
    }
}

/// The raw sentence of Karpathy's files, or its tokens where that is all there is.
fn sentence(value: &Value) -> Option<String> {
    let object = value.as_object()?;
    if let Some(raw) = object.get("raw").or_else(|| object.get("caption")).and_then(Value::as_str) {
        return Some(raw.to_string());
    }
    let tokens = object.get("tokens")?.as_array()?;
    Some(tokens.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
}

/// Parses elements of a document's arrays: images with their sentences, or annotations. `batch.lines` counts elements.
pub fn parse_elements(elements: &[Element], format: Format, layout: &ObjectLayout) -> Batch {
    let mut batch = Batch::default();
    for element in elements {
        batch.lines += 1;
        let parsed = parse(&element.bytes).and_then(|object| match format {
            Format::Karpathy => push_karpathy(&mut batch, element.line, &object, layout),
            _ => push_object(&mut batch, element.line, &object, layout),
        });
        if let Err(bad) = parsed {
            batch.bad.push((element.line, bad));
        }
    }
    batch
}

/// An image of Karpathy's with its sentences: the id is the file's name, so that it meets other captions of the same image.
fn push_karpathy(batch: &mut Batch, line: u64, object: &Map<String, Value>, layout: &ObjectLayout) -> Result<(), Bad> {
    let name = object.get("filename").and_then(Value::as_str).ok_or_else(|| missing(object, "filename"))?;
    let file = match object.get("filepath").and_then(Value::as_str) {
        Some(folder) if !folder.is_empty() => format!("{folder}/{name}"),
        _ => name.to_string(),
    };
    let split = object.get("split").and_then(Value::as_str).unwrap_or_default();
    let sentences: Vec<String> = object.get("sentences").map(texts).unwrap_or_default();
    if sentences.is_empty() {
        return Err(if object.contains_key("sentences") { empty() } else { missing(object, "sentences") });
    }
    push_captions(batch, line, sentences.len(), |at, batch| {
        let fields = Fields {
            image: name,
            file: Some(&file),
            raw: &sentences[at],
            number: Some(at as u32),
            split,
            translation: Some(layout.translation),
            ..Fields::default()
        };
        batch.push("", line, fields, layout.fold)
    })
}

/// The `images` of a COCO document: id to (file name, split).
pub fn coco_images(elements: &[Element], files: &mut HashMap<String, (String, String)>) -> Vec<(u64, Bad)> {
    let mut bad = Vec::new();
    for element in elements {
        let entry = parse(&element.bytes).and_then(|object| {
            let id = object.get("id").and_then(text).ok_or_else(|| missing(&object, "id"))?;
            let file = object.get("file_name").and_then(text).ok_or_else(|| missing(&object, "file_name"))?;
            let split = object.get("split").and_then(text).unwrap_or_default();
            Ok((id, (file, split)))
        });
        match entry {
            Ok((id, entry)) => drop(files.insert(id, entry)),
            Err(error) => bad.push((element.line, error)),
        }
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(columns: &Columns) -> ObjectLayout<'_> {
        ObjectLayout { columns, translation: Translation::Unknown, fold: FoldWidth::None }
    }

    #[test]
    fn every_caption_of_a_list_is_accounted_for() {
        let columns = Columns::default();
        let block =
            "{\"file_name\": \"7.jpg\", \"text\": [\"七\", \"\", 3]}\n{\"file_name\": \"8.jpg\", \"text\": [\"\", null]}\n";
        let batch = parse_lines(block.as_bytes(), &layout(&columns));
        let bad: Vec<(u64, Reason)> = batch.bad.iter().map(|(line, bad)| (*line, bad.reason)).collect();
        assert_eq!(
            (batch.rows.len(), bad),
            (1, vec![(1, Reason::EmptyCaption), (1, Reason::EmptyCaption), (2, Reason::EmptyCaption)])
        );
    }

    #[test]
    fn lines_of_objects_good_and_bad() {
        let text = concat!(
            "{\"file_name\": \"a.jpg\", \"text\": \"一 只狗\", \"split\": \"train\"}\n",
            "{\"image_id\": 7, \"captions\": [\"一\", \"二\"]}\n\n",
            "{\"image_id\": 7, \"caption\": \"\\ud800\"}\n",
            "{\"image_id\": 8}\n[1]\n{\"caption\": \"x\"}\n{\"image_id\": 9, \"caption\": 5}\n",
        );
        let batch = parse_lines(text.as_bytes(), &layout(&Columns::default()));
        let rows: Vec<_> = batch.rows.iter().map(|r| (batch.get(r.image), batch.get(r.caption), r.line)).collect();
        assert_eq!(rows, [("a.jpg", "一只狗", 1), ("7", "一", 2), ("7", "二", 2)]);
        assert_eq!(batch.get(batch.rows[0].split), "train");
        let bad: Vec<_> = batch.bad.iter().map(|(line, bad)| (*line, bad.reason)).collect();
        use Reason::*;
        assert_eq!(bad, [(4, BadJson), (5, MissingField), (6, BadJson), (7, MissingField), (8, EmptyCaption)]);
        assert_eq!((batch.lines, batch.blank), (8, 1));
    }

    #[test]
    fn named_columns_win() {
        let columns = Columns { image: Some("pic".into()), captions: vec!["zh".into()], split: None };
        let batch = parse_lines(r#"{"pic": "p/1.jpg", "zh": "狗", "caption": "dog"}"#.as_bytes(), &layout(&columns));
        assert_eq!((batch.get(batch.rows[0].image), batch.get(batch.rows[0].caption)), ("p/1.jpg", "狗"));
    }

    #[test]
    fn karpathy_and_coco_elements() {
        let element = |key: &str, text: &str| Element { key: key.into(), line: 3, bytes: text.as_bytes().to_vec() };
        let columns = Columns::default();
        let karpathy = [
            element(
                "images",
                r#"{"filename": "1.jpg", "split": "restval", "sentences": [{"raw": "一只狗"}, {"tokens": ["a", "dog"]}]}"#,
            ),
            element("images", r#"{"filename": "2.jpg", "sentences": []}"#),
        ];
        let batch = parse_elements(&karpathy, Format::Karpathy, &layout(&columns));
        let rows: Vec<_> = batch.rows.iter().map(|r| (batch.get(r.image), batch.get(r.caption), r.number)).collect();
        assert_eq!(rows, [("1.jpg", "一只狗", Some(0)), ("1.jpg", "a dog", Some(1))]);
        assert_eq!(batch.bad.len(), 1);
        let coco = [element("annotations", r#"{"image_id": 391895, "id": 770337, "caption": "一个人"}"#)];
        let batch = parse_elements(&coco, Format::Coco, &layout(&columns));
        assert_eq!(batch.get(batch.rows[0].image), "391895");
        let mut files = HashMap::new();
        let bad = coco_images(
            &[element("images", r#"{"id": 391895, "file_name": "C_391895.jpg"}"#), element("images", "{}")],
            &mut files,
        );
        assert_eq!((files["391895"].0.as_str(), bad.len()), ("C_391895.jpg", 1));
    }
}
