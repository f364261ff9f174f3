//! JSON that maps an image's id to its caption or captions.

use serde_json::{Map, Value};

use super::batch::Batch;
use super::json::{ObjectLayout, push_member, push_value};
use super::python::value;

/// A map is held in memory whole.
pub const MAX_MAP_BYTES: usize = 1 << 30;

/// Parses a document: an object from id to captions, perhaps under the key `member` (`references` or `predictions`), where an array of objects may
/// stand too. Members count as lines. The error is that of a document which is no JSON.
pub fn parse(bytes: &[u8], member: &str, layout: &ObjectLayout) -> Result<Batch, serde_json::Error> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let root = value(bytes)?;
    let mut batch = Batch::default();
    // References are what is wanted of a file that does not say what else it has.
    let inner = root.get(member).or_else(|| root.get("references")).filter(|inner| is_table(inner));
    match inner.unwrap_or(&root) {
        Value::Object(object) => members(object, layout, &mut batch),
        Value::Array(rows) => {
            for (row, line) in rows.iter().zip(1..) {
                batch.lines += 1;
                if let Err(bad) = push_value(&mut batch, line, row, layout) {
                    batch.bad.push((line, bad));
                }
            }
        }
        _ => {}
    }
    Ok(batch)
}

/// False for the list of captions of an image that happens to be called `references`.
fn is_table(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(items) => items.first().is_some_and(Value::is_object),
        _ => false,
    }
}

fn members(object: &Map<String, Value>, layout: &ObjectLayout, batch: &mut Batch) {
    for ((id, value), line) in object.iter().zip(1..) {
        batch.lines += 1;
        if let Err(bad) = push_member(batch, line, id, value, layout) {
            batch.bad.push((line, bad));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Take;
    use super::super::{Columns, Translation};
    use super::*;

    #[test]
    fn ids_lead_to_captions() {
        let columns = Columns::default();
        let layout = ObjectLayout { columns: &columns, translation: Translation::Unknown, take: Take::default() };
        let rows = |text: &str| {
            let batch = parse(text.as_bytes(), "predictions", &layout).unwrap();
            let rows: Vec<String> =
                batch.rows.iter().map(|r| format!("{} {}", batch.get(r.image), batch.get(r.caption))).collect();
            (rows, batch.bad.len())
        };
        let wanted = (vec!["a 狗".to_string(), "a 黑狗".into(), "b 猫".into()], 0);
        assert_eq!(rows(r#"{"a": ["狗", {"caption": "黑狗"}], "b": "猫"}"#), wanted);
        assert_eq!(rows(r#"{"predictions": {"a": ["狗", "黑狗"], "b": {"caption": "猫"}}, "references": {"c": "x"}}"#), wanted);
        assert_eq!(
            rows(r#"{"references": [{"image_id": "a", "captions": ["狗", "黑狗"]}, {"image_id": "b", "caption": "猫"}]}"#),
            wanted
        );
        assert_eq!(rows(r#"{"references": ["狗"]}"#), (vec!["references 狗".into()], 0));
        assert_eq!(rows(r#"{"a": 5, "b": null, "c": "狗"}"#), (vec!["c 狗".into()], 2));
        assert!(parse(b"{\"a\": ", "references", &layout).is_err());
    }
}
