//! One page of a report: the summary in HTML, the images as data for the page's script.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::json;

use super::data::row;
use super::pages::{Measure, Names, base64_len};
use super::summary;
use super::{LETTERS, ReportData};
use crate::files::AtomicFile;
use crate::html::{Page, base64, escape, script_json};
use crate::stages::evaluate::Level;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(include_str!("marks.js"), include_str!("page.js"));

/// Thumbnails in one script element.
const PICTURES_AT_ONCE: usize = 64;
/// Rows of errors tables on a page.
const MAX_FAILURES: usize = 2000;

/// Which page it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// From 0.
    Number(usize),
    /// The page of the worst repetitions and scores.
    Worst,
}

/// All pages of a report, and the images on each.
pub struct Layout<'a> {
    pub names: &'a Names,
    pub pages: &'a [Vec<usize>],
    pub worst: Option<&'a [usize]>,
    /// Not all images are on the pages.
    pub is_sample: bool,
}

impl Layout<'_> {
    pub fn path(&self, which: Which) -> PathBuf {
        match which {
            Which::Number(number) => self.names.page(number),
            Which::Worst => self.names.worst(),
        }
    }

    /// The first page comes last: it is there when all others are.
    pub fn all(&self) -> impl Iterator<Item = Which> + '_ {
        let worst = self.worst.map(|_| Which::Worst);
        worst.into_iter().chain((0..self.pages.len()).rev().map(Which::Number))
    }

    fn images(&self, which: Which) -> &[usize] {
        match which {
            Which::Number(number) => &self.pages[number],
            Which::Worst => self.worst.unwrap_or_default(),
        }
    }

    /// Links to all pages, or to the ends and the neighbours where there are many. Nothing for a single page.
    fn links(&self, here: Which) -> String {
        const ALL: usize = 12;
        let count = self.pages.len();
        if count == 1 && self.worst.is_none() {
            return String::new();
        }
        let at = if let Which::Number(number) = here { number } else { 0 };
        let mut out = String::from("<nav class=\"pages\" aria-label=\"Pages\">\n");
        let mut link = |which: Which, text: &str| {
            let current = if which == here { " aria-current=\"page\"" } else { "" };
            out += &format!("<a href=\"{}\"{current}>{text}</a>\n", escape(&href(&self.path(which))));
        };
        let mut last = None;
        for number in (0..count).filter(|&n| count <= ALL || n == 0 || n + 1 == count || n.abs_diff(at) <= 2) {
            let gap = last.is_some_and(|last| last + 1 < number);
            link(Which::Number(number), &format!("{}{}", if gap { "… " } else { "" }, number + 1));
            last = Some(number);
        }
        if self.worst.is_some() {
            link(Which::Worst, "the worst of all");
        }
        out + "</nav>\n"
    }

    /// Where the reader is, in a sentence; nothing where everything is on one page.
    fn place(&self, which: Which, data: &ReportData) -> String {
        let total = data.images.len();
        let images = self.images(which);
        match which {
            Which::Worst => {
                let lowest = Measure::of(&data.images).name();
                format!("The {} images with the worst repetitions and the lowest {lowest}, of all {total}.", images.len())
            }
            Which::Number(_) if self.is_sample => {
                let shown: usize = self.pages.iter().map(Vec::len).sum();
                format!("A sample: {shown} of {total} images, evenly spread; {} on this page. Figures are of all.", images.len())
            }
            Which::Number(number) if self.pages.len() > 1 => format!(
                "Page {} of {}: {} of {total} images. Search, sorting and filters work on this page.",
                number + 1,
                self.pages.len(),
                images.len()
            ),
            Which::Number(_) => String::new(),
        }
    }
}

/// The relative address of a page beside this one.
fn href(path: &Path) -> String {
    percent_encode(path.file_name().unwrap_or_default().as_encoded_bytes(), NON_ALPHANUMERIC).to_string()
}

/// Bytes of an image on a page.
pub fn row_bytes(data: &ReportData, image: usize) -> Result<u64> {
    let picture = data.pictures.of(image);
    let jpeg = match picture {
        super::Picture::Here { bytes, .. } => base64_len(bytes),
        _ => 1,
    };
    Ok(row(&data.images[image], picture, &data.words)?.len() as u64 + 2 + jpeg)
}

/// Bytes of what the script must know besides the images, where it is longest.
pub fn facts_bytes(data: &ReportData) -> Result<u64> {
    Ok(facts(Which::Number(0), data)?.len() as u64)
}

/// Writes one page.
pub fn write(layout: &Layout, which: Which, data: &ReportData) -> Result<()> {
    let path = layout.path(which);
    let context = || format!("cannot write {}", path.display());
    let mut file = AtomicFile::create(&path).with_context(context)?;
    let (opening, closing) = head(layout, which, data).finish_around();
    file.write_all(opening.as_bytes()).with_context(context)?;
    let facts = facts(which, data)?;
    writeln!(file, "<script type=\"application/json\" id=\"facts\">{facts}</script>").with_context(context)?;
    let images = layout.images(which);
    file.write_all(b"<script type=\"application/json\" id=\"images\">[\n").with_context(context)?;
    for (number, &image) in images.iter().enumerate() {
        let text = row(&data.images[image], data.pictures.of(image), &data.words)?;
        let end = if number + 1 < images.len() { ",\n" } else { "\n" };
        file.write_all((text + end).as_bytes()).with_context(context)?;
    }
    file.write_all(b"]</script>\n").with_context(context)?;
    for chunk in images.chunks(PICTURES_AT_ONCE) {
        let mut text = String::from("<script type=\"text/plain\" class=\"pictures\">");
        for &image in chunk {
            text += &data.pictures.jpeg(image)?.map_or_else(String::new, |jpeg| base64(&jpeg));
            text.push('\n');
        }
        text += "</script>\n";
        file.write_all(text.as_bytes()).with_context(context)?;
    }
    file.write_all(closing.as_bytes()).with_context(context)?;
    file.commit().with_context(context)
}

fn head(layout: &Layout, which: Which, data: &ReportData) -> Page {
    let labels: Vec<&str> = data.tables.iter().map(|table| table.label.as_str()).collect();
    let title = format!("Captions: {}", labels.join(", "));
    let mut page = Page::new(&title, &layout.place(which, data)).style(STYLE).script(SCRIPT);
    if which == Which::Number(0) {
        page = summary::add(page, data);
    }
    page.raw(&layout.links(which)).raw(
        "<div id=\"report\"></div>\n<noscript><p>This page shows its images with a script of its own, and scripts are turned off.</p></noscript>\n",
    )
}

/// What the script must know besides the images.
fn facts(which: Which, data: &ReportData) -> Result<String> {
    let tables: Vec<&str> = data.tables.iter().map(|table| table.label.as_str()).collect();
    let all = data.tables.iter().enumerate().flat_map(|(at, table)| table.facts.failures.iter().map(move |f| (at, f)));
    let has_failures = matches!(which, Which::Number(0) | Which::Worst);
    let failures: Vec<_> = all
        .filter(|_| has_failures)
        .take(MAX_FAILURES)
        .map(|(at, failure)| json!([at, failure.image_path, failure.reason, failure.message]))
        .collect();
    let num_failures: usize = data.tables.iter().map(|table| table.facts.failures.len()).sum();
    Ok(script_json(&json!({
        "identity": data.identity,
        "tables": tables,
        "letters": LETTERS,
        "unit": match data.measured.level { Level::Char => "characters", Level::Word => "words" },
        "finish_reasons": data.words.finish_reasons,
        "splits": data.words.splits,
        "scored": data.measured.num_scored > 0,
        "pictures": data.has_pictures,
        "pictures_at_once": PICTURES_AT_ONCE,
        "worst": which == Which::Worst,
        "failures": failures,
        "num_failures": if has_failures { num_failures } else { 0 },
    }))?)
}
