//! The elements of a big JSON document's arrays, one by one and as they are written: one bad element spoils no other.

/// One element of an array: `key` names the array among the document's members, and is empty where the document is an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: String,
    /// Its place in the array, from 1.
    pub number: u64,
    /// The line its first byte is on, from 1.
    pub line: u64,
    /// The element's bytes; more than [`MAX_ELEMENT_BYTES`] where it is too long (and then not all of it).
    pub bytes: Vec<u8>,
}

/// A longer element is a bad one.
pub const MAX_ELEMENT_BYTES: usize = super::lines::MAX_LINE_BYTES;

/// Longest member name that is told from others.
const MAX_KEY_BYTES: usize = 64;

/// Fed a document block by block, gives the elements of the arrays at its top.
#[derive(Debug, Default)]
pub struct Scanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
    line: u64,
    /// The last string at depth 1, which names the member that follows.
    key: Vec<u8>,
    /// Depth at which elements of the current array lie; 0 outside of one.
    array: usize,
    element: Option<Element>,
    /// Elements of the current array so far.
    count: u64,
    /// The outermost value has begun; at depth 0 again it is over.
    begun: bool,
}

impl Scanner {
    pub fn new() -> Self {
        Self { line: 1, ..Self::default() }
    }

    /// The document's brackets are all closed, and something was in them.
    pub fn is_complete(&self) -> bool {
        self.begun && self.depth == 0 && !self.in_string
    }

    /// The line reached, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Reads on; `found` is called with each element that ends in this block.
    pub fn feed(&mut self, block: &[u8], mut found: impl FnMut(Element)) {
        for &byte in block {
            if byte == b'\n' {
                self.line += 1;
            }
            if self.in_string {
                self.string_byte(byte);
                continue;
            }
            match byte {
                b'"' => self.open_string(),
                b'{' | b'[' => self.open(byte),
                b'}' | b']' => self.close(byte, &mut found),
                b',' if self.array > 0 && self.depth == self.array => self.end_element(&mut found),
                b' ' | b'\t' | b'\r' | b'\n' => self.keep(byte),
                _ => self.begin_or_keep(byte),
            }
        }
    }

    fn string_byte(&mut self, byte: u8) {
        self.keep(byte);
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.in_string = false;
            return;
        }
        if self.depth == 1 && self.array == 0 && self.key.len() < MAX_KEY_BYTES {
            self.key.push(byte);
        }
    }

    fn open_string(&mut self) {
        if self.depth == 1 && self.array == 0 {
            self.key.clear();
        }
        self.begin_or_keep(b'"');
        self.in_string = true;
        self.begun = true;
    }

    fn open(&mut self, byte: u8) {
        self.begin_or_keep(byte);
        self.begun = true;
        self.depth += 1;
        // An array at the very top, or the array of a member of the object at the top.
        let top = self.depth == 1 || self.depth == 2 && self.array == 0;
        if byte == b'[' && top && self.element.is_none() {
            (self.array, self.count) = (self.depth, 0);
            if self.depth == 1 {
                self.key.clear();
            }
        }
    }

    fn close(&mut self, byte: u8, found: &mut impl FnMut(Element)) {
        if self.array > 0 && self.depth == self.array {
            self.end_element(found);
            self.array = 0;
        }
        self.depth = self.depth.saturating_sub(1);
        self.keep(byte);
    }

    /// A byte that is not white space begins an element where one may begin.
    fn begin_or_keep(&mut self, byte: u8) {
        if self.element.is_none() && self.array > 0 && self.depth == self.array {
            let key = String::from_utf8_lossy(&self.key).into_owned();
            self.count += 1;
            self.element = Some(Element { key, number: self.count, line: self.line, bytes: Vec::new() });
        }
        self.keep(byte);
    }

    fn keep(&mut self, byte: u8) {
        if let Some(element) = &mut self.element
            && element.bytes.len() <= MAX_ELEMENT_BYTES
        {
            element.bytes.push(byte);
        }
    }

    fn end_element(&mut self, found: &mut impl FnMut(Element)) {
        if let Some(mut element) = self.element.take() {
            let end = element.bytes.trim_ascii_end().len();
            element.bytes.truncate(end);
            found(element);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(text: &[u8], step: usize) -> (Vec<(String, u64, String)>, bool) {
        let mut scanner = Scanner::new();
        let mut out = Vec::new();
        for block in text.chunks(step) {
            scanner.feed(block, |e| out.push((e.key, e.line, String::from_utf8_lossy(&e.bytes).into_owned())));
        }
        (out, scanner.is_complete())
    }

    #[test]
    fn elements_of_the_top_arrays_whatever_the_blocks() {
        let text = br#"{"info": {"x": [1, 2]}, "n": 3, "images": [{"a": "]\"}", "b": [1]},
 7 , "s"],
"empty": [], "annotations": [{"c": {}}]}"#;
        for step in [1, 3, 1000] {
            let (found, complete) = scan(text, step);
            assert!(complete);
            let found: Vec<_> = found.iter().map(|(k, l, t)| (k.as_str(), *l, t.as_str())).collect();
            assert_eq!(
                found,
                [
                    ("images", 1, r#"{"a": "]\"}", "b": [1]}"#),
                    ("images", 2, "7"),
                    ("images", 2, r#""s""#),
                    ("annotations", 3, r#"{"c": {}}"#),
                ]
            );
        }
        assert_eq!(scan(b"[{\"a\":1},{\"b\":2}]", 2).0.len(), 2);
        let mut numbers = Vec::new();
        Scanner::new().feed(b"{\"a\": [1, 2], \"b\": [{}, 4, 5]}", |element| numbers.push(element.number));
        assert_eq!(numbers, [1, 2, 1, 2, 3]);
    }

    #[test]
    fn a_document_cut_short_is_not_complete() {
        let mut scanner = Scanner::new();
        let mut count = 0;
        scanner.feed(b"{\"images\": [{\"a\": 1}, {\"b\": ", |_| count += 1);
        assert_eq!((count, scanner.is_complete()), (1, false));
    }

    #[test]
    fn an_endless_element_takes_bounded_memory() {
        let mut scanner = Scanner::new();
        let mut longest = 0;
        scanner.feed(b"[\"", |_| {});
        for _ in 0..100 {
            scanner.feed(&[b'x'; 10_000], |_| {});
        }
        scanner.feed(b"\", 2]", |e| longest = longest.max(e.bytes.len()));
        assert_eq!(longest, MAX_ELEMENT_BYTES + 1);
        assert!(scanner.is_complete());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(prop_oneof![
            Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b'\\'), Just(b','), any::<u8>()], 0..80), step in 1usize..9) {
            prop_assert_eq!(scan(&text, step), scan(&text, 1000));
        }

        #[test]
        fn arrays_come_apart_as_serde_reads_them(values in proptest::collection::vec("\\PC{0,6}", 0..6)) {
            let text = serde_json::to_vec_pretty(&serde_json::json!({"x": 1, "images": &values})).unwrap();
            let back: Vec<String> = scan(&text, 5).0.iter().map(|(_, _, t)| serde_json::from_str(t).unwrap()).collect();
            prop_assert_eq!(back, values);
        }
    }
}
