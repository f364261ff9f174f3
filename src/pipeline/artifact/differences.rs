//! What differs between the settings of two runs, as a user would say it: in flags.

use serde_json::Value as Json;

/// Settings that a flag of the same name makes.
const FLAGS: &[&str] = &[
    "temperature",
    "top_k",
    "top_p",
    "num_beams",
    "length_penalty",
    "num_captions",
    "min_new_tokens",
    "max_new_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "distinct",
    "seed",
    "stop_token",
    "prompt",
    "script",
    "replace",
    "punctuation",
    "banned_words",
    "required_words",
    "quote_formulas",
    "bom",
    "max_pixels",
    "max_bytes",
    "full_decode",
    "fail_damaged",
    "device",
    "precision",
    "dtype",
    "format",
    "save_images",
    "fold_width",
    "translation",
    "encoding",
    "language",
    "with_images",
    "near_duplicates",
    "lint",
    "columns",
    "units",
    "lexicon",
    "split",
    "vocab",
];

/// Settings that a flag of another name makes, or that are no flag's; the first that a name ends in says it.
const WORDS: &[(&str, &str)] = &[
    ("model.fingerprint", "another --model"),
    ("model.runtime", "another ONNX Runtime"),
    ("model.operators", "another clipcap, whose captions in 8 bits differ"),
    ("model.cpu", "another type of CPU"),
    ("model.int8", "other 8-bit scales"),
    ("input.embeddings", "other --embeddings"),
    ("inputs.captions", "other content of --captions"),
    ("inputs.images", "other content of --images"),
    ("inputs.split_lists", "other content of --split-list"),
    ("input", "another input"),
    ("embedding_dim", "another size of embeddings"),
];

/// What `new` has otherwise than `old`: `--top-p 0.8 (was 0.9)`.
pub(super) fn differences(old: &Json, new: &Json) -> Vec<String> {
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    // Several parts of one thing are told once.
    let mut texts: Vec<String> = Vec::new();
    for text in found {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

fn compare(name: &str, old: &Json, new: &Json, found: &mut Vec<String>) {
    match (old, new) {
        (Json::Object(a), Json::Object(b)) if name.ends_with("strategy") && a.get("kind") != b.get("kind") => {
            found.push(format!("{} (was {})", strategy(new), strategy(old)));
        }
        (Json::Object(a), Json::Object(b)) => {
            let mut keys: Vec<_> = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).collect();
            keys.sort();
            for key in keys {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                compare(&name, a.get(key).unwrap_or(&Json::Null), b.get(key).unwrap_or(&Json::Null), found);
            }
        }
        (Json::Number(a), Json::Number(b))
            if a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() <= 1e-15 * a.abs()) => {}
        // A number may lose its last digit on the way through a JSON file, in a list too.
        (Json::Array(a), Json::Array(b)) if a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)) => {}
        (a, b) if a == b => {}
        (a, b) => found.push(flag_text(name, a, b)),
    }
}

fn is_same(a: &Json, b: &Json) -> bool {
    let mut found = Vec::new();
    compare("", a, b, &mut found);
    found.is_empty()
}

/// A way to decode, as its flags.
fn strategy(strategy: &Json) -> String {
    let kind = strategy["kind"].as_str().unwrap_or("greedy");
    let pairs = strategy.as_object().into_iter().flatten().filter(|(key, _)| !matches!(key.as_str(), "kind" | "seed"));
    let is_usual = |key: &str, value: &Json| match key {
        "temperature" | "top_p" | "length_penalty" => value.as_f64() == Some(1.0),
        "top_k" => value.as_f64() == Some(0.0),
        _ => *value == Json::Bool(false),
    };
    let flags: Vec<String> =
        pairs.filter(|(key, value)| !is_usual(key, value)).map(|(key, value)| format!("{} {}", flag(key), text(value))).collect();
    match (kind, &flags[..]) {
        ("sample", []) => "sampling".into(),
        ("sample" | "beam", flags) => flags.join(" "),
        (other, _) => other.into(),
    }
}

fn flag_text(name: &str, old: &Json, new: &Json) -> String {
    let is_part = |known: &str| known.contains('.') && name.starts_with(&format!("{known}."));
    if let Some((_, words)) =
        WORDS.iter().find(|(known, _)| name == *known || name.ends_with(&format!(".{known}")) || is_part(known))
    {
        return (*words).into();
    }
    if name.contains("preprocessing.") {
        return "another preprocessing of images (another --model)".into();
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    // Flags that take away what is there without them.
    let negative = match last {
        "loop_guard" => Some("--no-loop-guard"),
        "exif_rotate" => Some("--no-exif-rotate"),
        _ => None,
    };
    if let Some(flag) = negative {
        return switched(flag, new == &Json::Bool(false));
    }
    if last == "normalized" {
        return switched("--normalize", new == &Json::Bool(true));
    }
    // `--quote-formulas` and the like are named in the plural, or in the settings alone.
    let last = if last == "quotes_formulas" { "quote_formulas" } else { last };
    if !FLAGS.contains(&last) {
        return format!("{name}: {} (was {})", text(new), text(old));
    }
    let flag = flag(last);
    match (old, new) {
        (Json::Bool(_) | Json::Null, Json::Bool(true)) => switched(&flag, true),
        (Json::Bool(true), Json::Bool(false) | Json::Null) => switched(&flag, false),
        (old, Json::Null) => format!("no {flag} (was {})", text(old)),
        (old, new) => format!("{flag} {} (was {})", text(new), text(old)),
    }
}

fn switched(flag: &str, on: bool) -> String {
    if on { format!("{flag} (was not given)") } else { format!("no {flag} (was given)") }
}

fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// A value as it stands behind a flag.
fn text(value: &Json) -> String {
    match value {
        Json::Null => "not given".into(),
        Json::String(text) => text.clone(),
        Json::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_told_in_flags() {
        let sample =
            |top_p: f64, seed: u64| json!({"kind": "sample", "temperature": 1.0, "top_k": 0, "top_p": top_p, "seed": seed});
        let old = json!({"model": {"fingerprint": "a", "device": "cuda"}, "lint": true, "near_duplicates": 3,
                         "decoding": {"strategy": sample(0.9, 0), "loop_guard": true, "max_new_tokens": 67}});
        let new = json!({"model": {"fingerprint": "b", "device": "cpu"}, "lint": false, "near_duplicates": null, "bom": true,
                         "decoding": {"strategy": sample(0.8, 1), "loop_guard": false, "max_new_tokens": 20}});
        assert_eq!(
            differences(&old, &new),
            [
                "--bom (was not given)",
                "--no-loop-guard (was not given)",
                "--max-new-tokens 20 (was 67)",
                "--seed 1 (was 0)",
                "--top-p 0.8 (was 0.9)",
                "no --lint (was given)",
                "--device cpu (was cuda)",
                "another --model",
                "no --near-duplicates (was 3)",
            ]
        );
        let greedy = json!({"strategy": {"kind": "greedy"}});
        let sampled = json!({"strategy": sample(0.9, 0)});
        assert_eq!(differences(&sampled, &greedy), ["greedy (was --top-p 0.9)"]);
        let beam = json!({"strategy": {"kind": "beam", "num_beams": 5, "length_penalty": 1.0}});
        assert_eq!(differences(&greedy, &beam), ["--num-beams 5 (was greedy)"]);
        let pixels = |side: u32| json!({"input": {"images": {"preprocessing": {"size": side, "mean": [side]}}}});
        assert_eq!(differences(&pixels(1), &pixels(2)), ["another preprocessing of images (another --model)"]);
        assert_eq!(differences(&json!({"x": {"b": null}}), &json!({"x": {"b": 2}})), ["x.b: 2 (was not given)"]);
        assert!(differences(&json!({"mean": [0.1, 0.3]}), &json!({"mean": [0.1, 0.1 + 0.2]})).is_empty());
        assert_eq!(differences(&json!({"mean": [0.1]}), &json!({"mean": [0.2]})), ["mean: 0.2 (was 0.1)"]);
    }
}
