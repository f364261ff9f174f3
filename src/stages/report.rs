//! `clipcap report`: one HTML page (or several, where one would be too large) that shows what a caption table says of which image, or what
//! several say.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Outcome;
use super::evaluate::captions::{self, CaptionSet, Reading, Role};
use super::evaluate::levels::warn_of_dropped;
use super::evaluate::{Letters, Level};
use crate::dataset::captions::Encoding;
use crate::files::ContentHash;
use crate::image::Thumbnail;
use crate::metrics::METRIC_NAMES;
use crate::pipeline::{Interrupt, Reporter};

mod data;
mod images;
mod measure;
mod page;
mod pages;
mod pictures;
mod summary;
mod table_facts;
mod triage;

use data::Words;
use images::{Image, Unmatched};
use measure::Measured;
use page::Layout;
use pages::Names;
use pictures::{Picture, PictureSource, Pictures};
use table_facts::TableFacts;
use triage::Findings;

/// What to show, and how.
#[derive(Debug, Clone)]
pub struct ReportSettings {
    /// One caption table, or several to be shown side by side, [`MOST_TABLES`] at most.
    pub tables: Vec<PathBuf>,
    /// What the tables are called; empty for their file names.
    pub labels: Vec<String>,
    pub references: Option<PathBuf>,
    /// Folders of image files, or one dataset that stores its images; empty for no pictures (or those that the references store).
    pub images: Vec<PathBuf>,
    pub level: Level,
    /// Which letters make tokens.
    pub letters: Letters,
    /// Of text files that are not UTF-8.
    pub encoding: Option<Encoding>,
    /// Pixels of a thumbnail's longer edge; none for what fits into a page.
    pub edge: Option<u32>,
    /// JPEG quality of thumbnails, 1 to 100.
    pub quality: u8,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Show so many images, evenly spread.
    pub max_images: Option<usize>,
    pub overwrite: bool,
    pub out: PathBuf,
}

/// What a report was made of, and where it is.
#[derive(Debug)]
pub struct Report {
    pub outcome: Outcome,
    /// The first is the one to open.
    pub pages: Vec<PathBuf>,
    pub page_bytes: u64,
    pub num_images: usize,
    pub num_captions: usize,
    pub num_failures: usize,
    pub num_scored: usize,
    pub num_shown: usize,
    pub num_pictures: usize,
    /// Images that have no picture, though pictures were asked for.
    pub num_missing: usize,
    /// Scores of each table's first captions.
    pub scores: Vec<Option<[f64; 6]>>,
}

/// A table and what lies beside it.
struct Table {
    label: String,
    facts: TableFacts,
}

/// Everything the pages show.
struct ReportData {
    tables: Vec<Table>,
    images: Vec<Image>,
    unmatched: Unmatched,
    measured: Measured,
    /// One for each table.
    findings: Vec<Findings>,
    words: Words,
    pictures: Pictures,
    has_pictures: bool,
    /// What marks are kept under.
    identity: String,
}

/// Tables that fit beside each other.
pub const MOST_TABLES: usize = 8;

/// What tables are called in short where there are several.
const LETTERS: [&str; MOST_TABLES] = ["A", "B", "C", "D", "E", "F", "G", "H"];

impl ReportData {
    /// A table's letter; none where it is alone.
    fn letter(&self, table: usize) -> Option<&'static str> {
        if self.tables.len() > 1 { LETTERS.get(table).copied() } else { None }
    }
}

/// Room on a page for style, script and summary.
const HEAD_BYTES: u64 = 256 << 10;

/// Reads, measures and draws everything; writes the pages. None where it was interrupted: then nothing was written.
///
/// # Errors
/// A table or reference file that cannot be read, references of other images, a folder of images that is not there, an output that is no
/// report of ours. A picture that is missing or broken is none.
pub fn run(settings: &ReportSettings, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<Option<Report>> {
    let names = Names::new(&settings.out);
    if !settings.overwrite {
        names.check(&[names.page(0)])?;
    }
    let source = PictureSource::open(&settings.images, settings.references.as_deref())?;
    let sets =
        settings.tables.iter().map(|table| read(table, Role::Predictions, settings, reporter)).collect::<Result<Vec<_>>>()?;
    let references = settings.references.as_ref().map(|path| read(path, Role::References, settings, reporter)).transpose()?;
    let (mut images, unmatched) = images::gather(sets, references)?;
    let measured = measure::measure(&mut images, settings.tables.len(), settings.level, settings.letters);
    let tables = tables(settings)?;
    if images.is_empty() && tables.iter().all(|table| table.facts.failures.is_empty()) {
        bail!("neither captions nor failures to show");
    }
    let words = Words::of(&images);

    let shown = pages::spread(images.len(), settings.max_images.unwrap_or(usize::MAX));
    let is_sample = shown.len() < images.len();
    let worst = pages::worst(&images, pages::WORST);
    let mut wanted = if is_sample { [&shown[..], &worst].concat() } else { shown.clone() };
    wanted.sort_unstable();
    wanted.dedup();
    let has_pictures = !matches!(source, PictureSource::Nothing);
    if !has_pictures {
        reporter.note("no pictures: give the folder of the images with --images");
    }
    let thumbnail = thumbnail(settings, &images, &shown, &words)?;
    let folder = settings.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let made = Pictures::make(&source, &images, &wanted, thumbnail, folder, reporter, interrupt)?;
    let Some(pictures) = made else { return Ok(None) };
    let findings = (0..tables.len()).map(|table| Findings::of(&images, table)).collect();
    let identity = identity(&tables, &images);
    let data = ReportData { tables, images, unmatched, measured, findings, words, pictures, has_pictures, identity };
    write(settings, &names, &data, &shown, reporter).map(Some)
}

fn read(path: &Path, role: Role, settings: &ReportSettings, reporter: &dyn Reporter) -> Result<CaptionSet> {
    let read = if role == Role::Predictions { captions::read_all } else { captions::read };
    let reading = Reading { encoding: settings.encoding, ..Reading::of(role) };
    let set = read(path, reading, reporter).with_context(|| format!("cannot read the {}", role.name()))?;
    warn_of_dropped(role.name(), set.images.iter().flat_map(|image| &image.captions), settings.letters, reporter);
    if set.num_missing > 0 {
        reporter.warn(&format!("{}: left out {} rows without a caption", path.display(), set.num_missing));
    }
    Ok(set)
}

fn tables(settings: &ReportSettings) -> Result<Vec<Table>> {
    let labels = if settings.labels.is_empty() { labels(&settings.tables) } else { settings.labels.clone() };
    let table = |(path, label): (&PathBuf, String)| Ok(Table { label, facts: TableFacts::read(path)? });
    settings.tables.iter().zip(labels).map(table).collect()
}

/// What tells this report from others and stays when it is made again: the tables' names and what made them; where no manifest says that,
/// their images.
fn identity(tables: &[Table], images: &[Image]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    for table in tables {
        add(&table.label);
        match table.facts.settings.iter().find(|(name, _)| name == "fingerprint") {
            Some((_, fingerprint)) => add(fingerprint),
            None => images.iter().for_each(|image| add(&image.path)),
        }
    }
    format!("{:.32}", ContentHash::from(hash))
}

/// File names, with as many folders before them as tell them apart.
fn labels(paths: &[PathBuf]) -> Vec<String> {
    let last_parts = |path: &PathBuf, count: usize| {
        let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        parts[parts.len().saturating_sub(count)..].join("/")
    };
    let most = paths.iter().map(|path| path.components().count()).max().unwrap_or(1);
    let with = |count: usize| paths.iter().map(|path| last_parts(path, count)).collect::<Vec<_>>();
    let differ = |labels: &Vec<String>| labels.iter().enumerate().all(|(at, label)| !labels[..at].contains(label));
    (1..=most).map(with).find(differ).unwrap_or_else(|| with(1))
}

fn thumbnail(settings: &ReportSettings, images: &[Image], shown: &[usize], words: &Words) -> Result<Thumbnail> {
    let text_bytes = shown.par_iter().map(|&image| Ok(data::row(&images[image], Picture::None, words)?.len() as u64 + 2));
    let text_bytes: u64 = text_bytes.collect::<Result<Vec<u64>>>()?.iter().sum();
    let edge = settings
        .edge
        .unwrap_or_else(|| pages::edge_for(shown.len(), text_bytes + HEAD_BYTES, settings.page_bytes, settings.quality));
    Ok(Thumbnail { edge, quality: settings.quality, max_bytes: pages::usual_bytes(edge, settings.quality) * 2 })
}

fn write(
    settings: &ReportSettings,
    names: &Names,
    data: &ReportData,
    shown: &[usize],
    reporter: &dyn Reporter,
) -> Result<Report> {
    let bytes = |image: &usize| page::row_bytes(data, *image);
    let sizes: Vec<u64> = shown.par_iter().map(bytes).collect::<Result<_>>()?;
    let limit = settings.page_bytes.saturating_sub(HEAD_BYTES + page::facts_bytes(data)?);
    let pages = pages::split(shown, &sizes, limit);
    let is_sample = shown.len() < data.images.len();
    // The page of the worst keeps to the limit too.
    let largest = sizes.iter().copied().max().unwrap_or(1);
    let worst = pages::worst(&data.images, (limit / (2 * largest)).clamp(1, pages::WORST as u64) as usize);
    let layout = Layout { names, pages: &pages, worst: (is_sample || pages.len() > 1).then_some(&worst), is_sample };
    let paths: Vec<PathBuf> = layout.all().map(|which| layout.path(which)).collect();
    if !settings.overwrite {
        names.check(&paths)?;
    }
    for which in layout.all() {
        page::write(&layout, which, data)?;
        reporter.detail(&format!("wrote {}", layout.path(which).display()));
    }
    names.remove_surplus(&paths)?;
    let mut paths = paths;
    paths.reverse();
    let of = |test: fn(Picture) -> bool| shown.iter().filter(|&&image| test(data.pictures.of(image))).count();
    let num_missing = of(|picture| matches!(picture, Picture::Missing(_)));
    let page_bytes = paths.iter().map(|path| Ok(path.metadata()?.len())).sum::<std::io::Result<u64>>();
    Ok(Report {
        outcome: if num_missing > 0 && !settings.images.is_empty() { Outcome::SomeFailed } else { Outcome::Complete },
        page_bytes: page_bytes.context("cannot look at what was written")?,
        pages: paths,
        num_images: data.images.len(),
        num_captions: data.measured.tables.iter().map(|table| table.num_captions).sum(),
        num_failures: data.tables.iter().map(|table| table.facts.failures.len()).sum(),
        num_scored: data.measured.num_scored,
        num_shown: shown.len(),
        num_pictures: of(|picture| matches!(picture, Picture::Here { .. })),
        num_missing,
        scores: data.measured.tables.iter().map(|table| Some(table.summary.as_ref()?.values())).collect(),
    })
}

impl Report {
    /// The summary for the terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!("{} images with {} captions", self.num_images, self.num_captions);
        if self.num_shown < self.num_images {
            text += &format!(", {} of them shown", self.num_shown);
        }
        text += &format!(", {} pictures", self.num_pictures);
        if self.num_missing > 0 {
            text += &format!(" ({} missing or broken)", self.num_missing);
        }
        if self.num_failures > 0 {
            text += &format!(", {} failures", self.num_failures);
        }
        if self.num_scored > 0 {
            text += &format!("; {} images scored", self.num_scored);
        }
        text += &format!("\n{:.1} MB", self.page_bytes as f64 / 1e6);
        match self.pages.len() {
            1 => text += ":",
            pages => text += &format!(" in {pages} pages, the first being"),
        }
        text += &format!(" {}\n", self.pages[0].display());
        text
    }

    /// The same for programs.
    pub fn to_json(&self) -> Value {
        let scores =
            |values: &[f64; 6]| Value::Object(METRIC_NAMES.iter().map(|n| n.to_string()).zip(values.map(Value::from)).collect());
        json!({
            "command": "report",
            "exit_status": self.outcome.exit_code(),
            "complete": true,
            "counts": {
                "images": self.num_images,
                "captions": self.num_captions,
                "failures": self.num_failures,
                "scored": self.num_scored,
                "shown": self.num_shown,
                "pictures": self.num_pictures,
                "pictures_missing": self.num_missing,
            },
            "scores": self.scores.iter().map(|values| values.as_ref().map(scores)).collect::<Vec<_>>(),
            "pages": self.pages,
            "bytes": self.page_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_tables_apart() {
        let labels = |paths: &[&str]| super::labels(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(labels(&["out/a.parquet"]), ["a.parquet"]);
        assert_eq!(labels(&["out/a.parquet", "out/b.csv"]), ["a.parquet", "b.csv"]);
        assert_eq!(
            labels(&["/runs/1/captions.parquet", "/runs/2/captions.parquet"]),
            ["1/captions.parquet", "2/captions.parquet"]
        );
        assert_eq!(labels(&["a", "a"]), ["a", "a"]);
    }
}
