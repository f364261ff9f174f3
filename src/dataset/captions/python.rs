//! JSON as Python writes it, and as people number their images.

use std::borrow::Cow;

use serde_json::Value;

/// JSON as Python writes it: NaN and Infinity are nulls, and whole numbers beyond 64 bits are texts, so that no digit is lost.
pub fn value(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(&repaired(bytes))
}

/// As many digits as a whole number of 64 bits always has room for.
const SAFE_DIGITS: usize = 18;

fn repaired(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Vec<u8> = Vec::new();
    let (mut kept, mut at) = (0, 0);
    while let Some(step) = bytes[at..].iter().position(|b| matches!(b, b'"' | b'N' | b'I' | b'-' | b'0'..=b'9')) {
        at += step;
        if bytes[at] == b'"' {
            at = end_of_string(bytes, at + 1);
            continue;
        }
        let is_word = |&b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.');
        let word = &bytes[at..at + bytes[at..].iter().take_while(|b| is_word(b)).count().max(1)];
        let digits = word.strip_prefix(b"-").unwrap_or(word);
        let whole = digits.split(|&b| b == b'.').next().unwrap_or_default();
        let zeros = digits[whole.len()..].iter().skip(1).all(|&b| b == b'0');
        let replaced: Option<Vec<u8>> = match word {
            b"NaN" | b"Infinity" | b"-Infinity" => Some(b"null".to_vec()),
            _ if whole.len() > SAFE_DIGITS && whole.iter().all(u8::is_ascii_digit) && zeros => {
                let sign = &word[..word.len() - digits.len()];
                Some([b"\"", sign, whole, b"\""].concat())
            }
            _ => None,
        };
        if let Some(replaced) = replaced {
            out.extend_from_slice(&bytes[kept..at]);
            out.extend(replaced);
            kept = at + word.len();
        }
        at += word.len();
    }
    if kept == 0 {
        return bytes.into();
    }
    out.extend_from_slice(&bytes[kept..]);
    out.into()
}

/// Behind the closing quote of the string that `from` is in.
fn end_of_string(bytes: &[u8], mut from: usize) -> usize {
    while let Some(step) = memchr::memchr2(b'"', b'\\', &bytes[from..]) {
        from += step + 1;
        if bytes[from - 1] == b'"' {
            return from;
        }
        from = (from + 1).min(bytes.len());
    }
    bytes.len()
}

/// Text of a string or a whole number (ids are both, in the wild).
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 2f64.powi(53))?;
            Some(format!("{number:.0}"))
        }
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_as_python_writes_it() {
        let shown = |json: &str| value(json.as_bytes()).map(|value| value.to_string()).unwrap_or_default();
        assert_eq!(shown(r#"[NaN, -Infinity, Infinity, "NaN \" 1", 5]"#), r#"[null,null,null,"NaN \" 1",5]"#);
        assert_eq!(
            shown("{\"a\": 123456789012345678901, \"b\": -123456789012345678902.0}"),
            r#"{"a":"123456789012345678901","b":"-123456789012345678902"}"#
        );
        assert_eq!(shown("[1234567890123456789, 0.5, 1e3]"), r#"["1234567890123456789",0.5,1000.0]"#);
        assert_eq!((shown("[NaNa]"), shown("[\"a")), (String::new(), String::new()));
        let ids: Vec<Option<String>> =
            ["391895.0", "1e1", "42", "1.5", "\"x\""].iter().map(|id| text(&value(id.as_bytes()).unwrap())).collect();
        assert_eq!(ids, [Some("391895".into()), Some("10".into()), Some("42".into()), None, Some("x".into())]);
    }
}
