//! Rows in columns: whole where they go to a file or pipe, and as wide as the terminal where they go to one.

use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::View;

/// Between two columns.
const GAP: usize = 2;

/// Digits of a hash that are shown.
const HASH_DIGITS: usize = 8;

/// Captions and other text columns are not made narrower than this while there are columns that may go.
const COMFORTABLE: (usize, usize) = (40, 20);

/// Nor ever narrower than this; where that is not enough, the last columns are left out.
const NARROWEST: (usize, usize) = (20, 12);

/// What a column's cells are, for how they are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Caption,
    /// What is at its end tells it apart.
    Path,
    Text,
}

struct Column {
    name: String,
    kind: Kind,
    cells: Vec<String>,
    width: usize,
}

impl View {
    /// The rows in columns, and below them how many there are. With `width` hashes are folded and long cells are cut, so that lines are no
    /// wider.
    pub fn to_text(&self, width: Option<usize>) -> String {
        let mut columns: Vec<Column> = (0..self.columns.len()).map(|at| self.column(at, width.is_some())).collect();
        let hidden = width.map_or_else(Vec::new, |width| fit(&mut columns, width));
        let mut out = String::new();
        let heads: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        line(&columns, &heads, &mut out);
        for row in 0..self.rows.len() {
            let cells: Vec<&str> = columns.iter().map(|column| column.cells[row].as_str()).collect();
            line(&columns, &cells, &mut out);
        }
        out + &self.footer(&hidden)
    }

    fn column(&self, at: usize, folds: bool) -> Column {
        let name = self.columns[at].clone();
        let values = || self.rows.iter().map(|row| &row[at]);
        let is_number = !self.rows.is_empty() && values().all(|value| value.is_number() || value.is_null());
        let kind = match name.as_str() {
            _ if is_number => Kind::Number,
            name if name.contains("caption") => Kind::Caption,
            name if name.contains("path") || name.contains("file") => Kind::Path,
            _ => Kind::Text,
        };
        let cells: Vec<String> = values().map(|value| if folds { folded(&text(value)) } else { text(value) }).collect();
        let width = cells.iter().map(|cell| cell.width()).chain([name.width()]).max().unwrap_or(0);
        Column { name, kind, cells, width }
    }

    /// How many rows there are, and what is not shown.
    pub(super) fn footer(&self, hidden: &[String]) -> String {
        let filtered = if self.matched < self.total { format!(" that match, of {}", self.total) } else { String::new() };
        let rows = format!("{} rows{filtered}", self.matched);
        let mut out = match self.values {
            Some(values) => format!("\n{} shown of {values} values in {rows}", self.rows.len()),
            None => format!("\n{} shown of {rows}", self.rows.len()),
        };
        if !self.left_out.is_empty() {
            out.push_str(&format!("; columns that are neither text nor numbers: {}", self.left_out.join(", ")));
        }
        if !hidden.is_empty() {
            out.push_str(&format!("; no room for {} (--full, or --columns)", hidden.join(", ")));
        }
        out
    }
}

fn line(columns: &[Column], cells: &[&str], out: &mut String) {
    let cells = columns.iter().zip(cells).map(|(column, cell)| {
        let space = " ".repeat(column.width.saturating_sub(cell.width()));
        if column.kind == Kind::Number { format!("{space}{cell}") } else { format!("{cell}{space}") }
    });
    out.push_str(cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end());
    out.push('\n');
}

/// Makes columns narrower, the widest first and captions last, until a line has room. Where captions would suffer, columns go that say the
/// least: those with one value in all rows, hashes, ids beside paths. Gives the names of columns that have no room.
fn fit(columns: &mut Vec<Column>, width: usize) -> Vec<String> {
    let mut hidden = Vec::new();
    if !shrink(columns, width, COMFORTABLE) {
        let has_path = columns.iter().any(|column| column.kind == Kind::Path);
        let is_constant = |column: &Column| column.cells.len() > 1 && column.cells.iter().all(|cell| *cell == column.cells[0]);
        let is_hash = |column: &Column| column.cells.iter().any(|cell| cell.ends_with('…')) && column.kind == Kind::Text;
        let little: [&dyn Fn(&Column) -> bool; 3] = [&is_constant, &is_hash, &|column| has_path && column.name == "image_id"];
        for says_little in little {
            let mut at = columns.len();
            while at > 1 && total(columns) > width {
                at -= 1;
                if columns[at].kind != Kind::Caption && says_little(&columns[at]) {
                    hidden.push(columns.remove(at).name);
                }
            }
        }
        shrink(columns, width, COMFORTABLE);
    }
    while !shrink(columns, width, NARROWEST) && columns.len() > 1 {
        hidden.extend(columns.pop().map(|column| column.name));
    }
    for column in columns.iter_mut() {
        let (kind, width) = (column.kind, column.width);
        column.name = cut(&column.name, width, Kind::Text);
        column.cells.iter_mut().for_each(|cell| *cell = cut(cell, width, kind));
    }
    hidden
}

fn total(columns: &[Column]) -> usize {
    columns.iter().map(|column| column.width + GAP).sum::<usize>().saturating_sub(GAP)
}

/// Whether a line has room once columns are made narrower, but not below `least` (of captions and of others).
fn shrink(columns: &mut [Column], width: usize, least: (usize, usize)) -> bool {
    while total(columns) > width {
        // A caption gives way where it is three times as wide as the widest other column.
        let weight = |column: &Column| column.width * if column.kind == Kind::Caption { 1 } else { 3 };
        let narrowest = |column: &Column| if column.kind == Kind::Caption { least.0 } else { least.1 };
        let places =
            (0..columns.len()).filter(|at| columns[*at].kind != Kind::Number && columns[*at].width > narrowest(&columns[*at]));
        match places.max_by_key(|at| weight(&columns[*at])) {
            Some(at) => columns[at].width -= 1,
            None => return false,
        }
    }
    true
}

/// The beginning (of a path the end) of a text, where all of it has no room.
fn cut(text: &str, width: usize, kind: Kind) -> String {
    if text.width() <= width {
        return text.into();
    }
    let mut room = width.saturating_sub(1);
    let mut fits = |c: &char| {
        let wide = c.width().unwrap_or(0);
        let has_room = wide <= room;
        room = room.saturating_sub(wide);
        has_room
    };
    if kind == Kind::Path {
        let end: Vec<char> = text.chars().rev().take_while(&mut fits).collect();
        return "…".to_string() + &end.into_iter().rev().collect::<String>();
    }
    text.chars().take_while(&mut fits).collect::<String>() + "…"
}

/// A hash's first digits; other text as it is.
fn folded(text: &str) -> String {
    let is_hash = text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { format!("{}…", &text[..HASH_DIGITS]) } else { text.into() }
}

/// A cell as the terminal may have it: nothing that moves its cursor.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => {
            text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(rows: Vec<Vec<Value>>, columns: &[&str]) -> View {
        let total = rows.len() as u64;
        let columns = columns.iter().map(|name| name.to_string()).collect();
        View { columns, rows, total, matched: total, values: None, left_out: vec![] }
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        assert_eq!(text(&json!("a\u{1b}[2Jb\n")), "a\\u{1b}[2Jb\\n");
    }

    #[test]
    fn a_line_is_as_wide_as_the_terminal_and_whole_in_a_pipe() {
        let path = "a/very/long/folder/of/pictures/somewhere/1234567.jpg";
        let (caption, hash) = ("狗".repeat(60), "0123456789abcdef".repeat(4));
        let rows = vec![vec![json!(caption), json!(path), json!(-1.5), json!(hash)]];
        let view = view(rows, &["caption", "image_path", "logprob", "sha256"]);
        for width in [60, 80, 120] {
            let text = view.to_text(Some(width));
            let lines: Vec<&str> = text.lines().take(2).collect();
            assert!(lines.iter().all(|line| line.width() <= width), "{text}");
            assert!(lines[1].contains("234567.jpg") && lines[1].contains("…"), "{text}");
            assert!(lines[1].starts_with("狗狗狗狗狗狗狗"), "{text}");
        }
        assert!(view.to_text(Some(120)).contains("01234567…"));
        let whole = view.to_text(None);
        assert!(whole.contains(&caption) && whole.contains(path) && whole.contains(&hash), "{whole}");
        let narrow = view.to_text(Some(40));
        assert!(narrow.contains("no room for") && narrow.contains("sha256"), "{narrow}");
    }
}
