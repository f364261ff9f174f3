//! What lies beside a caption table: its manifest (counts, model, settings) and its errors table.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::files::if_there;
use crate::pipeline::{Output, errors_in};

/// Everything empty where a table has no manifest.
#[derive(Debug, Default)]
pub struct TableFacts {
    /// `counts` of the manifest, such as found, captioned, failed, skipped.
    pub counts: Vec<(String, u64)>,
    /// The other values of the manifest with their dotted names, in its order.
    pub settings: Vec<(String, String)>,
    pub failures: Vec<Failure>,
}

/// A row of the errors table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub image_path: String,
    pub reason: String,
    pub message: String,
}

impl TableFacts {
    /// Reads what is beside a table file, or inside a folder of parts.
    ///
    /// # Errors
    /// A file that is there and cannot be read as what its name says.
    pub fn read(table: &Path) -> Result<Self> {
        let output = if table.is_dir() { Output::folder(table) } else { Output::file(table) };
        let path = output.bookkeeping().found_manifest();
        let text = if_there(fs::read_to_string(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        let Some(text) = text else { return Ok(Self::default()) };
        let manifest: Value = serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))?;
        let belongs_to = manifest.get("table").and_then(Value::as_str);
        if belongs_to.is_some() && belongs_to != output.table_name().as_deref() {
            return Ok(Self::default());
        }
        let counts = manifest.get("counts").and_then(Value::as_object).into_iter().flatten();
        let mut settings = Vec::new();
        for (key, value) in
            manifest.as_object().into_iter().flatten().filter(|(key, _)| !["counts", "table"].contains(&key.as_str()))
        {
            flatten(key, value, &mut settings);
        }
        Ok(Self {
            counts: counts.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect(),
            settings,
            failures: failures(&output.bookkeeping().found_errors())?,
        })
    }

    /// A count by its name.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.counts.iter().find(|(found, _)| found == name).map(|(_, count)| *count)
    }
}

fn flatten(name: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                flatten(&format!("{name}.{key}"), value, out);
            }
        }
        Value::String(text) => out.push((name.into(), text.clone())),
        Value::Null => {}
        other => out.push((name.into(), other.to_string())),
    }
}

fn failures(path: &Path) -> Result<Vec<Failure>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let row = |row: Result<(String, crate::pipeline::Failure)>| {
        row.map(|(image_path, failure)| Failure { image_path, reason: failure.reason, message: failure.message })
    };
    errors_in(path)?.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_of_another_table_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("t.csv");
        let read = |manifest: &str| {
            crate::files::write_atomic(&folder.path().join(".clipcap/t.manifest.json"), manifest.as_bytes()).unwrap();
            TableFacts::read(&table)
        };
        assert!(TableFacts::read(&table).unwrap().counts.is_empty());
        let found = read(
            r#"{"table":"t.csv","settings":{"model":{"fingerprint":"ab"},"x":[1],"none":null},"counts":{"found":3,"failed":0}}"#,
        );
        let found = found.unwrap();
        assert_eq!((found.count("found"), found.count("failed"), found.count("skipped")), (Some(3), Some(0), None));
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        assert_eq!(found.settings, [pair("settings.model.fingerprint", "ab"), pair("settings.x", "[1]")]);
        assert!(read(r#"{"table":"t.parquet","counts":{"found":3}}"#).unwrap().counts.is_empty());
        assert!(format!("{:#}", read("{").unwrap_err()).contains("t.manifest.json"));
    }
}
