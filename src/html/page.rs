//! A page of sections, and tables in it.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::base64;

const STYLE: &str = include_str!("page.css");

/// Text as it may stand in HTML, in an attribute too.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // No character reference stands for these either; a reader sees that something is there.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A page under construction. Methods append and give the page back.
pub struct Page {
    title: String,
    body: String,
    style: String,
    script: &'static str,
}

impl Page {
    /// Title and subtitle are text.
    pub fn new(title: &str, subtitle: &str) -> Self {
        let mut body = format!("<h1>{}</h1>\n", escape(title));
        if !subtitle.is_empty() {
            let _ = writeln!(body, "<p class=\"soft\">{}</p>", escape(subtitle));
        }
        Self { title: title.into(), body, style: String::new(), script: "" }
    }

    /// More style rules, from the program and never from data.
    pub fn style(mut self, rules: &str) -> Self {
        self.style.push_str(rules);
        self
    }

    /// The one script that may run in the page, at its end; no other does, whatever stands in the page.
    pub fn script(mut self, script: &'static str) -> Self {
        self.script = script;
        self
    }

    pub fn heading(mut self, text: &str) -> Self {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
        self
    }

    pub fn paragraph(mut self, text: &str) -> Self {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
        self
    }

    /// Numbers with their names, side by side.
    pub fn facts(mut self, facts: &[(&str, String)]) -> Self {
        self.body.push_str("<div class=\"facts\">\n");
        for (name, value) in facts {
            let _ = writeln!(self.body, "<div><b>{}</b><span>{}</span></div>", escape(value), escape(name));
        }
        self.body.push_str("</div>\n");
        self
    }

    /// Panels in as many columns as fit: a title (text) and content (HTML from this module).
    pub fn panels(mut self, panels: &[(String, String)]) -> Self {
        self.body.push_str("<div class=\"grid\">\n");
        for (title, content) in panels {
            let _ = writeln!(self.body, "<section class=\"panel\"><h3>{}</h3>\n{content}</section>", escape(title));
        }
        self.body.push_str("</div>\n");
        self
    }

    pub fn table(mut self, table: &Table) -> Self {
        self.body.push_str(&table.to_html());
        self
    }

    /// HTML made by the caller, who has escaped what is data in it.
    pub fn raw(mut self, html: &str) -> Self {
        self.body.push_str(html);
        self
    }

    /// The whole document.
    pub fn finish(self) -> String {
        let (opening, closing) = self.finish_around();
        opening + &closing
    }

    /// The document in two parts, between which a caller may write more (data for the script, say, that is too long to hold).
    pub fn finish_around(self) -> (String, String) {
        let opening = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <meta name=\"generator\" content=\"clipcap\">\n\
             <title>{}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n<main>\n{}</main>\n",
            self.policy(),
            escape(&self.title),
            self.style,
            self.body
        );
        let script = if self.script.is_empty() { String::new() } else { format!("<script>{}</script>\n", self.script) };
        (opening, format!("{script}</body>\n</html>\n"))
    }

    /// Nothing is loaded from anywhere, and no script runs but the page's own.
    fn policy(&self) -> String {
        let script = match self.script {
            "" => "'none'".to_string(),
            script => format!("'sha256-{}'", base64(&Sha256::digest(script))),
        };
        format!(
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {script}; base-uri 'none'; form-action 'none'"
        )
    }
}

/// A table of text. Columns whose name starts with `#` are numbers, set to the right; the `#` is not shown.
#[derive(Debug, Clone, Default)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|c| c.to_string()).collect(), rows: Vec::new() }
    }

    /// Cells are text; missing ones stay empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn to_html(&self) -> String {
        // What scrolls must be reachable by keys.
        let mut out = String::from("<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>");
        let class = |column: &str| if column.starts_with('#') { " class=\"n\"" } else { "" };
        for column in &self.columns {
            let _ = match column.trim_start_matches('#') {
                "" => write!(out, "<td{}></td>", class(column)),
                name => write!(out, "<th scope=\"col\"{}>{}</th>", class(column), escape(name)),
            };
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (column, cell) in self.columns.iter().zip(row) {
                let _ = write!(out, "<td{}>{}</td>", class(column), escape(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_cannot_become_markup() {
        let hostile = "<script>alert('1')</script>\"&\0";
        assert_eq!(escape(hostile), "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}");
        let mut table = Table::new(&["name", "#count"]);
        table.row(vec![hostile.into(), "1".into()]);
        let html = Page::new(hostile, hostile)
            .heading(hostile)
            .paragraph(hostile)
            .facts(&[(hostile, hostile.into())])
            .panels(&[(hostile.into(), String::new())])
            .table(&table)
            .finish();
        assert!(!html.contains("<script"));
        assert!(html.contains("<td class=\"n\">1</td>"));
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        let html = Page::new("狗", "").finish();
        assert!(html.starts_with("<!doctype html>") && html.contains("prefers-color-scheme: dark"));
        assert!(!html.contains("http:") && !html.contains("https:") && html.contains("script-src 'none'"));
        let (opening, closing) = Page::new("狗", "").script("let a = 1;").finish_around();
        // printf 'let a = 1;' | openssl dgst -sha256 -binary | base64
        assert!(opening.contains("script-src 'sha256-xY6QKfH9PRsQnLz56nj6MBwiK5oHg+im1Jkpdp1x/Ck='"), "{opening}");
        assert!(closing.starts_with("<script>let a = 1;</script>") && closing.ends_with("</html>\n"));
    }
}
