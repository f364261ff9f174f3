//! Self-contained HTML pages: no network, light and dark by the reader's choice, narrow and wide. Only a page that brings a script runs
//! one.
//!
//! Everything that comes from data goes through [`escape`] or [`script_json`]; [`Page`] and the parts in [`chart`] do so themselves.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub mod chart;
mod page;
pub mod plot;

pub use page::{Page, Table, escape};

/// Bytes as they stand in a `data:` URI.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// JSON as it may stand in a `<script type="application/json">` element: nothing in it ends the element, opens a comment, or is a line end
/// to JavaScript. `JSON.parse` gives the same value.
pub fn script_json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Outside of strings JSON has none of these, so that an escape may always stand for them.
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_cannot_leave_its_script_element() {
        let hostile = "</script><!--<script>alert(1)//-->]]>&amp;\u{2028}\u{2029}\"\\\u{0}";
        let json = script_json(&hostile).unwrap();
        assert!(!json.contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\u{0}']), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
        assert_eq!(script_json(&serde_json::json!({"狗": [1, null]})).unwrap(), "{\"狗\":[1,null]}");
    }
}
