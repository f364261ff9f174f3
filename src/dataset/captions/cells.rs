//! What cells of text hold: several captions (a list as JSON, Python or numpy writes it), or a text that no spreadsheet is to run.

use serde_json::{Map, Number, Value};

use super::json::sentence;

/// A cell without the apostrophe that keeps a spreadsheet from running it.
pub fn plain(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|text| text.starts_with(['=', '+', '-', '@', '\t', '\r'])).unwrap_or(cell)
}

/// The captions of a cell that is a list of texts, or of objects that hold one; None where it is one caption.
pub fn captions(cell: &str) -> Option<Vec<String>> {
    let cell = without_call(cell.trim());
    let is_list = match (cell.as_bytes().first()?, cell.as_bytes().last()?) {
        (b'[', b']') | (b'(', b')') => cell.len() >= 2,
        _ => false,
    };
    if !is_list {
        return None;
    }
    let inner = &cell[1..cell.len() - 1];
    python(inner).or_else(|| match serde_json::from_str(cell).ok().or_else(|| whole_literal(cell)) {
        Some(Value::Array(values)) if !values.is_empty() && values.iter().all(Value::is_object) => {
            // An object without a text is a caption without any, which is told.
            Some(values.iter().map(|value| sentence(value).unwrap_or_default()).collect())
        }
        Some(Value::Array(values)) => values.iter().map(|value| Some(value.as_str()?.to_string())).collect(),
        _ => None,
    })
}

/// The list in `array(['a', 'b'], dtype=object)`, as numpy's arrays show themselves.
fn without_call(cell: &str) -> &str {
    let Some(inner) = ["array(", "np.array("].iter().find_map(|name| cell.strip_prefix(name)) else { return cell };
    let Some(end) = inner.rfind(']').filter(|_| inner.starts_with('[')) else { return cell };
    let rest = inner[end + 1..].trim_start();
    let is_call = rest == ")" || rest.strip_prefix(',').is_some_and(|rest| rest.trim_start().starts_with("dtype="));
    if is_call && rest.ends_with(')') { &inner[..=end] } else { cell }
}

/// A list or an object as Python writes it, whole.
fn whole_literal(text: &str) -> Option<Value> {
    let (value, rest) = literal(text, 0)?;
    rest.trim_start().is_empty().then_some(value)
}

/// Deeper nesting than that of sentences with their tokens is none of ours.
const MAX_DEPTH: usize = 8;

/// One value as Python writes it, and what follows.
fn literal(text: &str, depth: usize) -> Option<(Value, &str)> {
    let text = text.trim_start();
    let first = text.chars().next().filter(|_| depth < MAX_DEPTH)?;
    match first {
        '\'' | '"' => quoted(&text[1..], first).map(|(text, rest)| (Value::String(text), rest)),
        '[' | '(' => {
            let close = if first == '[' { ']' } else { ')' };
            let mut values = Vec::new();
            let rest = members(&text[1..], close, |text| {
                let (value, rest) = literal(text, depth + 1)?;
                values.push(value);
                Some(rest)
            })?;
            Some((Value::Array(values), rest))
        }
        '{' => {
            let mut object = Map::new();
            let rest = members(&text[1..], '}', |text| {
                let (key, rest) = literal(text, depth + 1)?;
                let (value, rest) = literal(rest.trim_start().strip_prefix(':')?, depth + 1)?;
                object.insert(key.as_str().map_or_else(|| key.to_string(), str::to_string), value);
                Some(rest)
            })?;
            Some((Value::Object(object), rest))
        }
        _ => {
            let end = text.find([',', ']', ')', '}', ':']).unwrap_or(text.len());
            let word = text[..end].trim_end();
            let value = match word {
                "None" | "nan" => Value::Null,
                "True" | "False" => (word == "True").into(),
                _ => Value::Number(word.parse::<Number>().ok()?),
            };
            Some((value, &text[end..]))
        }
    }
}

/// Members between commas up to `close`, and what follows it.
fn members<'a>(text: &'a str, close: char, mut member: impl FnMut(&'a str) -> Option<&'a str>) -> Option<&'a str> {
    let mut rest = text.trim_start();
    loop {
        if let Some(rest) = rest.strip_prefix(close) {
            return Some(rest);
        }
        rest = member(rest)?.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.starts_with(close) => {}
            None => return None,
        }
    }
}

/// The quoted texts of `'a', "b"` or of numpy's `'a' 'b'`; None where anything else stands between them.
fn python(inner: &str) -> Option<Vec<String>> {
    let mut texts = Vec::new();
    let mut rest = inner.trim_start();
    while !rest.is_empty() {
        let unprefixed = rest.strip_prefix(['u', 'U', 'r']).filter(|rest| rest.starts_with(['\'', '"'])).unwrap_or(rest);
        let quote = unprefixed.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (text, after) = quoted(&unprefixed[1..], quote)?;
        texts.push(text);
        let after_space = after.trim_start();
        rest = match after_space.strip_prefix(',') {
            Some(after) => after.trim_start(),
            // numpy leaves the comma out, but not the space.
            None if after_space.is_empty() || after_space.len() < after.len() => after_space,
            None => return None,
        };
    }
    // `()` and `[]` are no captions at all, which is said where the cell is read.
    Some(texts)
}

/// Text up to its closing quote, without escapes, and what follows.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((out, &text[at + c.len_utf8()..])),
            '\\' => {
                let (_, escape) = chars.next()?;
                let mut code = |digits: usize| -> Option<char> {
                    let hex: String = (0..digits).map_while(|_| chars.next()).map(|(_, c)| c).collect();
                    let high = u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == digits)?;
                    if !(0xD800..0xDC00).contains(&high) {
                        return char::from_u32(high);
                    }
                    // JSON's pairs of surrogates.
                    let pair: String = (0..6).map_while(|_| chars.next()).map(|(_, c)| c).collect();
                    let low =
                        u32::from_str_radix(pair.strip_prefix("\\u")?, 16).ok().filter(|low| (0xDC00..0xE000).contains(low))?;
                    char::from_u32(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
                };
                match escape {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    'x' => out.push(code(2)?),
                    'u' => out.push(code(4)?),
                    'U' => out.push(code(8)?),
                    '\'' | '"' | '\\' | '/' => out.push(escape),
                    other => out.extend(['\\', other]),
                }
            }
            _ => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_told_from_captions() {
        for (cell, expected) in [
            ("['一只狗', '狗跑']", &["一只狗", "狗跑"][..]),
            ("[\"一只狗\", \"狗跑\"]", &["一只狗", "狗跑"]),
            ("['一只狗' '狗跑'\n '狗']", &["一只狗", "狗跑", "狗"]),
            (" (u'a', \"it's\") ", &["a", "it's"]),
            ("['don\\'t, he said', 'b\\n\\u72d7\\x41']", &["don't, he said", "b\n狗A"]),
            ("[\"\\ud83d\\ude00\\/\"]", &["😀/"]),
            ("['a', 'b',]", &["a", "b"]),
            ("[]", &[]),
            ("array(['一只狗', '狗跑'], dtype=object)", &["一只狗", "狗跑"]),
            ("array(['一只狗',\n       '狗跑'], dtype='<U5')", &["一只狗", "狗跑"]),
            ("[{'raw': '一只狗', 'sentid': 3, 'tokens': ['一', '只']}, {'raw': \"it's\", 'x': None}]", &["一只狗", "it's"]),
            ("[{\"caption\": \"一只狗\"}, {\"text\": \"狗跑\"}]", &["一只狗", "狗跑"]),
            ("[{'id': 1, 'ok': True}]", &[""]),
        ] {
            assert_eq!(captions(cell).unwrap(), expected, "{cell}");
        }
        for caption in [
            "array",
            "array(['a'] b)",
            "[{狗}]",
            "[{'a'}]",
            "[1, 2]",
            "一只狗",
            "[一只狗]",
            "(一只狗)",
            "['a'b']",
            "[\"a\", 3]",
            "[",
            "['a",
            "a ['b']",
            "",
            "['a';'b']",
        ] {
            assert_eq!(captions(caption), None, "{caption}");
        }
    }
}
