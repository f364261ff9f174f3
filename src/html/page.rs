//! A page of sections, and tables in it.

use std::fmt::Write;

/// Colours are variables, so that one block turns the page dark.
const STYLE: &str = "\
:root{color-scheme:light dark;--ground:#fcfcfb;--panel:#ffffff;--ink:#1d2126;--soft:#5c6570;--line:#dfe3e8;--fill:#3f6f9f;--accent:#b4552d}\
@media(prefers-color-scheme:dark){:root{--ground:#14171b;--panel:#1b1f25;--ink:#e6e9ec;--soft:#9aa4af;--line:#323942;--fill:#6fa3d6;--accent:#e08a5f}}\
*{box-sizing:border-box}\
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',\
'PingFang SC','Microsoft YaHei','Noto Sans CJK SC','Source Han Sans SC',sans-serif}\
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}\
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem}\
h2{font-size:1.15rem;margin:2.25rem 0 .5rem}\
p{margin:.25rem 0 .75rem;max-width:46rem}\
.soft{color:var(--soft)}\
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));align-items:start}\
.panel{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.75rem 1rem;min-width:0}\
.panel h3{font-size:.95rem;margin:0 0 .5rem}\
.facts{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));margin:1rem 0}\
.facts div{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.5rem .75rem;min-width:0}\
.facts b{display:block;font-size:1.3rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}\
.facts span{color:var(--soft);font-size:.85rem}\
.scroll{overflow-x:auto}\
table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--soft);font-weight:600;white-space:nowrap}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
svg{display:block;width:100%;height:auto}\
svg text{fill:var(--soft);font-family:inherit}\
svg .bar{fill:var(--fill)}\
svg .axis{stroke:var(--line);stroke-width:1}\
svg .mark{stroke:var(--accent);stroke-width:1.5;stroke-dasharray:4 3}\
svg text.mark-label{fill:var(--accent);stroke:none}\
.bars{display:grid;grid-template-columns:max-content minmax(3rem,1fr) max-content;gap:.2rem .6rem;align-items:center;font-size:.9rem}\
.bars .name{overflow-wrap:anywhere;max-width:12rem}\
.bars i{display:block;height:.8rem;background:var(--fill);border-radius:2px;min-width:1px}\
.bars .n{text-align:right;color:var(--soft);font-variant-numeric:tabular-nums}\
img{max-width:100%;height:auto}";

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
}

impl Page {
    /// Title and subtitle are text.
    pub fn new(title: &str, subtitle: &str) -> Self {
        let mut body = format!("<h1>{}</h1>\n", escape(title));
        if !subtitle.is_empty() {
            let _ = writeln!(body, "<p class=\"soft\">{}</p>", escape(subtitle));
        }
        Self { title: title.into(), body, style: String::new() }
    }

    /// More style rules, from the program and never from data.
    pub fn style(mut self, rules: &str) -> Self {
        self.style.push_str(rules);
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
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <title>{}</title>\n<style>{STYLE}{}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
            escape(&self.title),
            self.style,
            self.body
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
        let mut out = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
        let class = |column: &str| if column.starts_with('#') { " class=\"n\"" } else { "" };
        for column in &self.columns {
            let _ = write!(out, "<th{}>{}</th>", class(column), escape(column.trim_start_matches('#')));
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
        assert!(html.starts_with("<!doctype html>") && html.contains("prefers-color-scheme:dark"));
        assert!(!html.contains("http"));
    }
}
