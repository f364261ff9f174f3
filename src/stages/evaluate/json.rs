//! JSON: COCO results, COCO annotations, and maps from an id to captions.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::builder::{Builder, Row};
use super::captions::{Role, refuse_split};

/// What a JSON file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Its captions are in the builder.
    Captions,
    /// Karpathy's layout, which the dataset's parsers read.
    Karpathy,
}

/// An array is COCO results (`[{"image_id", "caption"}]`); an object with `annotations` is COCO annotations, one with `images` alone
/// Karpathy's; any other object maps an id to a caption or a list of captions (texts, or objects with `caption`). An object with a key
/// `predictions` or `references` that holds one of these is looked into.
pub(super) fn read(bytes: &[u8], path: &Path, role: Role, split: Option<&str>, builder: &mut Builder) -> Result<Found> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let root: Value = serde_json::from_slice(bytes).with_context(|| format!("{}: not JSON", path.display()))?;
    let objects = |key: &str| root.get(key).and_then(Value::as_array).is_some_and(|items| items.iter().all(Value::is_object));
    if objects("images") && !objects("annotations") {
        return Ok(Found::Karpathy);
    }
    refuse_split(split, path)?;
    read_value(&root, role, builder).with_context(|| path.display().to_string())?;
    Ok(Found::Captions)
}

fn read_value(root: &Value, role: Role, builder: &mut Builder) -> Result<()> {
    match root {
        Value::Array(rows) => read_rows(rows, &HashMap::new(), builder),
        Value::Object(object) => match (object.get("annotations"), object.get(role.name())) {
            (Some(Value::Array(rows)), _) if rows.iter().all(Value::is_object) => read_rows(rows, &file_names(object), builder),
            (_, Some(inner @ (Value::Object(_) | Value::Array(_)))) if !is_captions(inner) => read_value(inner, role, builder),
            _ => read_map(object, builder),
        },
        _ => bail!("an array of {{image_id, caption}}, COCO annotations, or an object from id to captions is wanted"),
    }
}

/// True for the list of captions of an image that happens to be called `references`.
fn is_captions(value: &Value) -> bool {
    matches!(value, Value::Array(items) if items.first().is_some_and(Value::is_string))
}

/// COCO's `images`: id to file name.
fn file_names(object: &Map<String, Value>) -> HashMap<String, String> {
    let images = object.get("images").and_then(Value::as_array).into_iter().flatten();
    images.filter_map(|image| Some((text_of(image.get("id")?)?, image.get("file_name")?.as_str()?.to_string()))).collect()
}

fn read_rows(rows: &[Value], file_names: &HashMap<String, String>, builder: &mut Builder) -> Result<()> {
    for (number, row) in rows.iter().enumerate() {
        let at = || format!("entry {number}");
        let id = row.get("image_id").and_then(text_of);
        let id = id.with_context(|| format!("{}: image_id is missing, or neither text nor a whole number", at()))?;
        let caption = match row.get("caption") {
            Some(Value::String(caption)) => Some(caption.as_str()),
            Some(Value::Null) => None,
            _ => bail!("{}: caption is missing or not text", at()),
        };
        let alias = file_names.get(&id).map(String::as_str);
        builder.add(Row { id: &id, alias, caption, ..Row::default() }).with_context(at)?;
    }
    Ok(())
}

fn read_map(object: &Map<String, Value>, builder: &mut Builder) -> Result<()> {
    for (id, value) in object {
        let captions = match value {
            Value::Array(captions) => captions.as_slice(),
            other => std::slice::from_ref(other),
        };
        for caption in captions {
            let text = caption.as_str().or_else(|| caption.get("caption")?.as_str());
            let text = text.with_context(|| format!("{id}: a caption or a list of captions is wanted"))?;
            builder.add(Row { id, caption: Some(text), ..Row::default() })?;
        }
    }
    Ok(())
}

/// An id as text: a string as it is, a whole number in decimal.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}
