//! Keys that are one slip away from a key that means something.
//!
//! Unknown keys are ignored and absent ones have defaults, so `num_attention_heaxs` would be another model without a word.

use std::path::Path;

use serde_json::Value;

use super::{ConfigError, check};

/// Keys of other models that look like one of ours.
const OTHERS: [&str; 6] =
    ["pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id", "decoder_start_token_id"];

/// Keys every configuration may have.
const COMMON: [&str; 2] = ["model_type", "architectures"];

/// The keys of a configuration with all its defaults.
pub fn keys_of(defaults: &impl serde::Serialize) -> Vec<String> {
    let value = serde_json::json!(defaults);
    value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
}

/// Refuses an object with an unknown key that nearly is a known one which the object lacks.
///
/// # Errors
/// Names both keys.
pub fn check_spelling(path: &Path, value: &Value, known: &[impl AsRef<str>]) -> Result<(), ConfigError> {
    let Some(object) = value.as_object() else { return Ok(()) };
    let known: Vec<&str> = known.iter().map(AsRef::as_ref).chain(COMMON).collect();
    for key in object.keys().map(String::as_str).filter(|key| !known.contains(key) && !OTHERS.contains(key)) {
        let meant = known.iter().find(|known| !object.contains_key(**known) && is_slip(key, known));
        check(path, meant.is_none(), || {
            format!("it says {key:?} and not {}: is that misspelt, or the file damaged? Correct it", meant.unwrap_or(&""))
        })?;
    }
    Ok(())
}

/// At most two letters changed, left out or added in a long key; one in a short one.
fn is_slip(written: &str, known: &str) -> bool {
    let most = if known.len() < 8 { 1 } else { 2 };
    written.len().abs_diff(known.len()) <= most && distance(written.as_bytes(), known.as_bytes()) <= most
}

/// The edit distance of two short texts.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Gpt2Config;
    use super::*;

    #[test]
    fn a_slip_is_refused_and_what_others_write_is_not() {
        let known = keys_of(&Gpt2Config::default());
        let path = Path::new("config.json");
        for slip in ["n_heads", "n_head\u{1}", "activation_functioo", "layer_norm_epsilom", "mpdel_type", "Vocab_size"] {
            let message = check_spelling(path, &json!({slip: 1}), &known).unwrap_err().to_string();
            assert!(message.contains("config.json") && message.contains(&format!("{slip:?}")), "{message}");
        }
        for other in ["cls_token_id", "use_cache", "n_ctx", "summary_type", "hidden_size", "id2label", "dtype"] {
            check_spelling(path, &json!({other: 1}), &known).unwrap();
        }
        // Beside the right one it is somebody's extra.
        check_spelling(path, &json!({"n_heads": 1, "n_head": 1}), &known).unwrap();
    }
}
