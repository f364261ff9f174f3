//! Keys that no path can name: with an empty part (`a//b`), `.` or `..` as one, or a control character. The library gives up a page of a listing for one
//! of them, so that they are renamed in the servers' answers: what else is there is listed, and these are told one by one, or by their folder.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;

use object_store::client::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService};

/// What a part is called that cannot be named.
const UNNAMEABLE: &str = "(cannot be named: ";

/// Whether a key has a part that was renamed here. Nothing is to be asked for under it.
pub(super) fn is_renamed(key: &str) -> bool {
    key.split('/').any(|part| part.starts_with(UNNAMEABLE))
}

/// A client whose answers to listings have keys that paths can hold.
#[derive(Debug)]
pub(super) struct Nameable(pub HttpClient);

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Nameable {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let lists = request.method() == http::Method::GET
            && request
                .uri()
                .query()
                .is_some_and(|query| query.split('&').any(|pair| matches!(pair, "list-type=2" | "comp=list")));
        Box::pin(async move {
            let answer = self.0.execute(request).await?;
            if !lists || !answer.status().is_success() {
                return Ok(answer);
            }
            let (head, body) = answer.into_parts();
            let bytes = body.bytes().await?;
            let text = std::str::from_utf8(&bytes).map_err(|error| HttpError::new(HttpErrorKind::Decode, error))?;
            let body = match nameable(text) {
                Cow::Borrowed(_) => bytes.into(),
                Cow::Owned(text) => text.into(),
            };
            Ok(HttpResponse::from_parts(head, body))
        })
    }
}

/// An answer to a listing in which every key and prefix has parts that paths can hold.
fn nameable(answer: &str) -> Cow<'_, str> {
    let mut renamed = String::new();
    let mut copied = 0;
    for (start, end) in values(answer) {
        if let Some(key) = nameable_key(&answer[start..end]) {
            renamed += &answer[copied..start];
            renamed += &key;
            copied = end;
        }
    }
    if copied == 0 { Cow::Borrowed(answer) } else { Cow::Owned(renamed + &answer[copied..]) }
}

/// Where the texts are that name objects (`Key`, Azure's `Name`) or folders (`Prefix`).
fn values(answer: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let open = at + answer[at..].find('<')?;
            let close = open + answer[open..].find('>')?;
            at = close + 1;
            if matches!(&answer[open + 1..close], "Key" | "Name" | "Prefix") {
                let end = at + answer[at..].find('<')?;
                return Some((at, end));
            }
        }
    })
}

/// Another name for a key, as it is written in XML, of which a part cannot be named.
fn nameable_key(key: &str) -> Option<String> {
    // A slash at the end says that it is a folder, and is no empty part.
    let (parts, end) = key.strip_suffix('/').map_or((key, ""), |parts| (parts, "/"));
    if key.is_empty() || parts.split('/').all(|part| !is_unnameable(part)) {
        return None;
    }
    let renamed = |part| match part {
        "" => format!("{UNNAMEABLE}empty)"),
        part if is_unnameable(part) => {
            format!("{UNNAMEABLE}{})", part.replace(['&', ';'], "").replace(|c: char| c.is_ascii_control(), "?"))
        }
        part => part.to_string(),
    };
    Some(parts.split('/').map(renamed).collect::<Vec<_>>().join("/") + end)
}

fn is_unnameable(part: &str) -> bool {
    matches!(part, "" | "." | "..")
        || part.contains(|c: char| c.is_ascii_control())
        || references(part).any(|code| code < 32 || code == 127)
}

/// Characters that XML writes as numbers.
fn references(part: &str) -> impl Iterator<Item = u32> {
    part.split("&#").skip(1).filter_map(|rest| {
        let number = rest.split(';').next()?;
        match number.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => number.parse().ok(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_no_path_can_name_are_renamed_and_others_left() {
        let plain =
            "<R><Name>bucket</Name><Prefix></Prefix><Prefix>a/</Prefix><Contents><Key>a/b &amp; c&#233;.jpg</Key></Contents></R>";
        assert!(matches!(nameable(plain), Cow::Borrowed(_)));
        for (key, wanted) in [
            ("a//", Some("a/(cannot be named: empty)/")),
            ("/", Some("(cannot be named: empty)/")),
            ("a//b", Some("a/(cannot be named: empty)/b")),
            ("a/./b.jpg", Some("a/(cannot be named: .)/b.jpg")),
            ("..", Some("(cannot be named: ..)")),
            ("a/x&#10;y.jpg", Some("a/(cannot be named: x#10y.jpg)")),
            ("a/x&#x7f;", Some("a/(cannot be named: x#x7f)")),
            ("a/b/", None),
            ("a/.hidden", None),
            ("a/x&#x20;y", None),
        ] {
            assert_eq!(nameable_key(key).as_deref(), wanted, "{key}");
            let answer = |key: &str| {
                format!("<R><Contents><Key>{key}</Key></Contents><CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes></R>")
            };
            assert_eq!(nameable(&answer(key)), answer(wanted.unwrap_or(key)));
            assert_eq!(wanted.is_some(), wanted.is_some_and(is_renamed));
        }
    }
}
