//! Layouts in JSON: one object a line (`jsonl`), Karpathy's `dataset_*.json` and COCO's `captions_*.json`.

use serde_json::{Map, Value};

use super::batch::{Bad, Batch, Details, Fields, Reason, Take};
use super::columns::{CAPTION_NAMES, FILE_NAMES, ID_NAMES, LAST_ID_NAME, NUMBER_NAMES, RAW_NAMES};
use super::elements::{Element, MAX_ELEMENT_BYTES};
use super::lines::lines;
use super::python::{text, value};
use super::text::checked;
use super::{Columns, Format, Translation, cells};
use crate::dataset::normalize::excerpt;

/// What parsing objects needs to know.
#[derive(Debug, Clone, Copy)]
pub struct ObjectLayout<'a> {
    pub columns: &'a Columns,
    pub translation: Translation,
    pub take: Take,
}

/// Parses a block of whole lines, an object a line.
pub fn parse_lines(block: &[u8], layout: &ObjectLayout) -> Batch {
    let mut batch = Batch::default();
    for bytes in lines(block) {
        batch.lines += 1;
        let line = batch.lines;
        let parsed = match checked(bytes, layout.take) {
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
    match value(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Bad::new(Reason::BadJson, format!("not an object: {}", excerpt(bytes, 40)))),
        Err(error) => Err(Bad::new(Reason::BadJson, format!("{error}: {}", excerpt(bytes, 40)))),
    }
}

/// The text of the first of `names` that is there and not null.
fn id(object: &Map<String, Value>, names: &[&str]) -> Result<Option<String>, Bad> {
    let found = names.iter().find_map(|name| Some((name, object.get(*name).filter(|value| !value.is_null())?)));
    let Some((name, value)) = found else { return Ok(None) };
    match text(value) {
        Some(text) => Ok(Some(text)),
        // Hugging Face's Image: its bytes are not read here.
        None if value.is_object() => Ok(value.get("path").and_then(Value::as_str).map(str::to_string)),
        None => Err(Bad::new(
            Reason::BadId,
            format!("{name} is neither text nor a whole number: {}", excerpt(value.to_string().as_bytes(), 40)),
        )),
    }
}

fn first<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| object.get(*name)).filter(|value| !value.is_null())
}

pub(super) fn missing(object: &Map<String, Value>, what: &str) -> Bad {
    let mut have: Vec<&str> = object.keys().map(String::as_str).take(12).collect();
    have.sort_unstable();
    let have = excerpt(have.join(", ").as_bytes(), 80);
    Bad::new(Reason::MissingField, format!("no {what} in it (name it with --columns); it has: {have}"))
}

fn empty(value: &Value) -> Bad {
    let reason = if value.is_null() { Reason::NullCaption } else { Reason::EmptyCaption };
    Bad::new(reason, "its caption is null, an empty list or no text")
}

/// One object with an image and a caption, or a list of captions.
fn push_object(batch: &mut Batch, line: u64, object: &Map<String, Value>, layout: &ObjectLayout) -> Result<(), Bad> {
    let columns = layout.columns;
    let (own, file, last) = match &columns.image {
        Some(name) => (id(object, &[name])?, None, None),
        None => (id(object, &ID_NAMES)?, id(object, &FILE_NAMES)?, object.get(LAST_ID_NAME).and_then(text)),
    };
    let file = file.filter(|file| !file.is_empty());
    let image = own.as_ref().or(file.as_ref()).or(last.as_ref()).ok_or_else(|| missing(object, "image"))?;
    let captions: Vec<String> = match &columns.captions[..] {
        [] => first(object, &CAPTION_NAMES).map(texts).unwrap_or_default(),
        names => names.iter().filter_map(|name| object.get(name)).flat_map(texts).collect(),
    };
    if captions.is_empty() {
        let there = |name: &str| object.get(name);
        let found = match &columns.captions[..] {
            [] => CAPTION_NAMES.iter().find_map(|name| there(name)),
            names => names.iter().find_map(|name| there(name)),
        };
        return Err(found.map_or_else(|| missing(object, "caption"), empty));
    }
    let split = object.get(columns.split.as_deref().unwrap_or("split")).and_then(text).unwrap_or_default();
    let translation =
        object.get("translation").and_then(Value::as_str).and_then(|t| t.parse().ok()).unwrap_or(layout.translation);
    let number = first(object, &NUMBER_NAMES).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    let details = layout.take.details.then(|| details(object));
    let raws = raws(object, captions.len());
    push_captions(batch, line, captions.len(), |at, batch| {
        let details = details.as_ref().map(|known| Details { raw: raws.get(at).map(|raw| raw.to_string()), ..known.clone() });
        let fields = Fields {
            image,
            file: file.as_deref(),
            raw: raws.get(at).filter(|_| !layout.take.details).copied().unwrap_or(&captions[at]),
            text: raws.get(at).map(|_| &*captions[at]),
            number: number.filter(|_| captions.len() == 1),
            split: split.trim(),
            translation: Some(translation),
            details: details.as_ref(),
            ..Fields::default()
        };
        batch.push("", line, fields, layout.take)
    })
}

/// What `export` says captions were before they were normalized.
fn raws(object: &Map<String, Value>, count: usize) -> Vec<&str> {
    let list = object.get(RAW_NAMES[0]).and_then(Value::as_array);
    let raws: Option<Vec<&str>> = list.and_then(|list| list.iter().map(Value::as_str).collect());
    raws.filter(|raws| raws.len() == count).unwrap_or_default()
}

/// The same of a value, which may be no object.
pub fn push_value(batch: &mut Batch, line: u64, value: &Value, layout: &ObjectLayout) -> Result<(), Bad> {
    match value.as_object() {
        Some(object) => push_object(batch, line, object, layout),
        None => Err(Bad::new(Reason::BadJson, format!("not an object: {}", excerpt(value.to_string().as_bytes(), 40)))),
    }
}

/// What the further fields of a caption table say.
fn details(object: &Map<String, Value>) -> Details {
    let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_string);
    Details {
        logprob: object.get("logprob").and_then(Value::as_f64),
        num_tokens: object.get("num_tokens").and_then(Value::as_i64),
        finish_reason: text("finish_reason"),
        sha256: text("sha256"),
        clip_score: object.get("clip_score").and_then(Value::as_f64),
        // Anything may be called so; beside a score it is the score's.
        rank: object.get("clip_score").and(object.get("rank")).and_then(Value::as_i64),
        raw: None,
    }
}

/// An id with its caption, a list of them or objects that hold one: a member of a map.
pub fn push_member(batch: &mut Batch, line: u64, id: &str, value: &Value, layout: &ObjectLayout) -> Result<(), Bad> {
    let captions = match value {
        Value::Object(_) => texts(&Value::Array(vec![value.clone()])),
        other => texts(other),
    };
    if captions.is_empty() || captions.iter().all(String::is_empty) && !layout.take.empty {
        let is_text = matches!(value, Value::Null | Value::String(_) | Value::Array(_));
        let message = format!("{id}: expected a caption or a list of captions");
        return Err(if is_text { empty(value) } else { Bad::new(Reason::BadRecord, message) });
    }
    push_captions(batch, line, captions.len(), |at, batch| {
        let fields = Fields { image: id, raw: &captions[at], translation: Some(layout.translation), ..Fields::default() };
        batch.push("", line, fields, layout.take)
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
        Value::String(text) => cells::captions(text).unwrap_or_else(|| vec![text.clone()]),
        Value::Array(values) => {
            values.iter().map(|v| v.as_str().map(str::to_string).or_else(|| sentence(v)).unwrap_or_default()).collect()
        }
        _ => Vec::new(),
    }
}

/// What an object in a list of captions calls its text.
const SENTENCE_NAMES: [&str; 4] = ["raw", "caption", "text", "sentence"];

/// The raw sentence of Karpathy's files, or its tokens where that is all there is.
pub fn sentence(value: &Value) -> Option<String> {
    let object = value.as_object()?;
    if let Some(raw) = first(object, &SENTENCE_NAMES).and_then(Value::as_str) {
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
        let parsed = whole(element, layout.take).and_then(|object| match format {
            Format::Karpathy => push_karpathy(&mut batch, element.line, &object, layout),
            _ => push_object(&mut batch, element.line, &object, layout),
        });
        if let Err(bad) = parsed {
            batch.bad.push((element.line, placed(bad, element)));
        }
    }
    batch
}

pub(super) fn whole(element: &Element, take: Take) -> Result<Map<String, Value>, Bad> {
    checked(&element.bytes, take)?;
    parse(&element.bytes)
}

/// With the element's number, since whole documents may stand in one line.
pub(super) fn placed(bad: Bad, element: &Element) -> Bad {
    let array = if element.key.is_empty() { String::new() } else { format!(" of {}", excerpt(element.key.as_bytes(), 20)) };
    Bad::new(bad.reason, format!("element {}{array}: {}", element.number, bad.message))
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
        return Err(object.get("sentences").map_or_else(|| missing(object, "sentences"), empty));
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
        batch.push("", line, fields, layout.take)
    })
}

#[cfg(test)]
mod tests {
    use super::super::coco::CocoImages;
    use super::*;

    fn layout(columns: &Columns) -> ObjectLayout<'_> {
        ObjectLayout { columns, translation: Translation::Unknown, take: Take::default() }
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
        let element = |key: &str, text: &str| Element { key: key.into(), number: 7, line: 3, bytes: text.as_bytes().to_vec() };
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
        let mut images = CocoImages::default();
        assert!(images.refusal("391895").is_none());
        let elements = [r#"{"id": 391895, "file_name": "C_391895.jpg"}"#, "{}", r#"{"id": 1, "coco_url": "http://x/1.jpg"}"#];
        let bad = images.add(&elements.map(|text| element("images", text)), &layout(&columns));
        assert_eq!((images.files["391895"].0.as_str(), images.files["1"].0.as_str()), ("C_391895.jpg", "http://x/1.jpg"));
        assert!(bad.len() == 1 && bad[0].1.message.starts_with("element 7 of images: "), "{bad:?}");
        images.add(&[element("images", r#"{"id": 1, "path": "2.jpg"}"#)], &layout(&columns));
        assert_eq!(images.refusal("1").map(|bad| bad.reason), Some(Reason::ImageConflict));
        images.add(
            &[element("images", r#"{"id": 3, "width": 7}"#), element("images", r#"{"id": 4, "uri": "x/1.jpg"}"#)],
            &layout(&columns),
        );
        let refused = |id: &str| images.refusal(id).map(|bad| bad.reason);
        assert_eq!([refused("2"), refused("3"), refused("4")], [Some(Reason::MissingImage), None, Some(Reason::MissingImage)]);
        assert!(images.refusal("391895").is_none());
    }
}
