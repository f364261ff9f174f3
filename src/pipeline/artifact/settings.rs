//! What results depend on, and a fingerprint of it: equal fingerprints, interchangeable results.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::differences::differences;
use crate::files::ContentHash;

/// The settings of a stage that its results depend on, as JSON. What changes no result (threads, batch size) is not among them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// The command, such as `caption`.
    pub stage: String,
    pub fingerprint: ContentHash,
    pub settings: Json,
}

/// By fingerprint: a number may lose its last digit on the way through a JSON file.
impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.stage == other.stage && self.fingerprint == other.fingerprint
    }
}

impl Settings {
    /// With their fingerprint.
    pub fn new(stage: &str, settings: Json) -> Self {
        let mut canonical = format!("{stage}\n");
        canonicalize(&settings, &mut canonical);
        Self { stage: stage.into(), fingerprint: ContentHash::of(canonical), settings }
    }

    /// What differs between these settings and `new` ones, for people: `--top-p 0.8 (was 0.9)`.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        if self.stage != new.stage {
            return vec![format!("made by clipcap {}", self.stage)];
        }
        let mut found = differences(&self.settings, &new.settings);
        if found.is_empty() && self.fingerprint != new.fingerprint {
            found.push("another version of clipcap".into());
        }
        found
    }
}

/// JSON text with sorted keys, so that the order of writing does not matter.
fn canonicalize(value: &Json, out: &mut String) {
    match value {
        Json::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            out.push('{');
            for key in keys {
                out.push_str(&Json::String(key.clone()).to_string());
                out.push(':');
                canonicalize(&map[key], out);
                out.push(',');
            }
            out.push('}');
        }
        Json::Array(items) => {
            out.push('[');
            for item in items {
                canonicalize(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_keys_does_not_matter_and_values_do() {
        let a = Settings::new("caption", json!({"x": {"a": 1, "b": null}, "y": [1.5, "z"]}));
        let b = Settings::new("caption", json!({"y": [1.5, "z"], "x": {"b": null, "a": 1}}));
        let c = Settings::new("caption", json!({"y": [1.5, "z"], "x": {"b": 2, "a": 1}}));
        assert_eq!(a.fingerprint, b.fingerprint);
        assert_ne!(a.fingerprint, c.fingerprint);
        assert_ne!(a.fingerprint, Settings::new("embed", a.settings.clone()).fingerprint);
        assert_eq!(a.differences(&c), ["x.b: 2 (was not given)"]);
        let back: Settings = serde_json::from_str(&serde_json::to_string(&a).unwrap()).unwrap();
        assert_eq!(back, a);
        assert!(back.differences(&a).is_empty());
    }
}
