//! `clipcap stats`: how long captions are, what they are made of, and what a model's tokenizer makes of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Outcome;
use crate::bookkeeping;
use crate::dataset::captions::{CaptionRows, Columns, Encoding, ReadOptions, Row, read_captions, read_table, tables_of};
use crate::files::{ContentHash, write_json};
use crate::models::Bundle;
use crate::pipeline::{Output, Reporter, Settings, Staging};
use crate::table;
use crate::text::Tokenizer;

mod latex;
mod lengths;
mod page;
mod phrases;
mod pictures;
mod repeats;
mod tables;
mod vocabulary;

pub use lengths::Unit;

const FORMAT: &str = "stats/1";

/// What to count.
#[derive(Debug, Clone)]
pub struct StatsSettings {
    /// A dataset folder, a Parquet table with captions, or a caption file of any layout.
    pub input: PathBuf,
    /// Characters, words, tokens. Words cost jieba's dictionary, tokens a tokenizer.
    pub units: Vec<Unit>,
    /// Of a text file that is not UTF-8.
    pub encoding: Option<Encoding>,
    pub tokenizer: Option<TokenizerSource>,
    /// Longest token sequences (with [SEP]) a model would take.
    pub max_lengths: Vec<u64>,
    /// Bins of the histograms, at most.
    pub bins: usize,
    /// Length of the lists of most frequent entries.
    pub top: usize,
    pub overwrite: bool,
    pub out: PathBuf,
}

/// Where the tokenizer comes from.
#[derive(Debug, Clone)]
pub enum TokenizerSource {
    /// A bundle's own.
    Model(Box<Bundle>),
    /// WordPiece over a vocab.txt, in lower case.
    Pieces(PathBuf),
}

/// Everything that was counted.
pub struct Statistics {
    pub name: String,
    pub lengths: lengths::Lengths,
    pub phrases: phrases::Phrases,
    pub vocabulary: vocabulary::Vocabulary,
    pub repeats: repeats::Repeats,
    pub max_lengths: Vec<u64>,
    pub bins: usize,
}

/// What is told at the end, as text and as JSON.
pub struct Summary {
    pub text: String,
    pub json: serde_json::Value,
}

/// Counts and writes tables, pictures and a page to `out`. Finished statistics stay as they are: those that these settings and this input
/// made are told to be finished, and others are refused.
pub fn run(settings: &StatsSettings, reporter: &dyn Reporter) -> Result<(Outcome, Summary)> {
    let output = Output::folder(&settings.out);
    let inputs = inputs(&settings.input)?;
    let recorded = recorded(settings, &inputs)?;
    let staging = Staging::open(&output, FORMAT, settings.overwrite)?;
    staging.tell(reporter);
    if staging.is_finished(&recorded, &["index.html", "stats.json", "lengths.parquet"].map(PathBuf::from))? {
        let path = output.path().join("stats.json");
        let json = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let json = serde_json::from_slice(&json).with_context(|| format!("cannot read {}", path.display()))?;
        let text = format!("{} is finished: the same settings and input made it", output.path().display());
        return Ok((Outcome::Complete, Summary { text, json }));
    }
    let statistics = count_inputs(settings, &inputs, reporter)?;
    let files = write(staging.folder(), &statistics, recorded)?;
    remove_pictures(&output, &files);
    staging.publish(&files, reporter)?;
    reporter.note(&format!("wrote {}", output.path().join("index.html").display()));
    Ok((Outcome::Complete, Summary { text: statistics.to_text(), json: statistics.to_json() }))
}

/// Everything that the statistics depend on.
fn recorded(settings: &StatsSettings, inputs: &[PathBuf]) -> Result<Settings> {
    let hash = |path: &Path| {
        let hash = ContentHash::of_file(path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(hash.to_string())
    };
    let (vocabulary, lower_case) = match &settings.tokenizer {
        Some(TokenizerSource::Model(bundle)) => (Some(bundle.vocabulary()?.fingerprint()), Some(bundle.lower_case())),
        Some(TokenizerSource::Pieces(path)) => (Some(hash(path)?), Some(true)),
        None => (None, None),
    };
    let mut recorded = json!({
        "input": inputs.iter().map(|input| hash(input)).collect::<Result<Vec<_>>>()?,
        "name": name_of(&settings.input),
        "units": settings.units,
        "encoding": settings.encoding.map(Encoding::name),
        "vocabulary": vocabulary,
        "lower_case": lower_case,
        "max_lengths": sorted(&settings.max_lengths),
        "bins": settings.bins,
        "top": settings.top,
    });
    if let Some(path) = pictures_of(&settings.input) {
        recorded["pictures"] = hash(&path)?.into();
    }
    Ok(Settings::new("stats", recorded))
}

fn sorted(lengths: &[u64]) -> Vec<u64> {
    let mut lengths = lengths.to_vec();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// What the page calls the input.
fn name_of(input: &Path) -> String {
    input.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where a dataset says which of its pictures are the same.
fn pictures_of(input: &Path) -> Option<PathBuf> {
    let path = input.join("duplicates.parquet");
    (input.is_dir() && path.is_file()).then_some(path)
}

/// A dataset's captions, the parts of a caption table, or the file itself.
fn inputs(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() { Ok(tables_of(path)?) } else { Ok(vec![path.into()]) }
}

fn count_inputs(settings: &StatsSettings, inputs: &[PathBuf], reporter: &dyn Reporter) -> Result<Statistics> {
    let mut rows = Vec::new();
    for input in inputs {
        rows.extend(read(input, settings.encoding, reporter)?);
    }
    let total: usize = rows.iter().map(CaptionRows::len).sum();
    if total == 0 {
        bail!("{}: no captions in it", settings.input.display());
    }
    let tokenizer = match &settings.tokenizer {
        Some(TokenizerSource::Model(bundle)) => Some(bundle.tokenizer()?),
        Some(TokenizerSource::Pieces(path)) => Some(Tokenizer::open(path, true)?),
        None => None,
    };
    count(&rows, settings, tokenizer.as_ref(), name_of(&settings.input))
}

fn read(path: &Path, encoding: Option<Encoding>, reporter: &dyn Reporter) -> Result<Vec<CaptionRows>> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) {
        return Ok(read_table(path, &Columns::default(), false)?.rows);
    }
    let captions = read_captions(&[path.to_path_buf()], &ReadOptions { encoding, ..ReadOptions::default() })?;
    if let Some(first) = captions.bad.first() {
        let (count, line, message) = (captions.bad.len(), first.line, &first.bad.message);
        reporter.warn(&format!("{}: {count} lines hold no caption; the first is line {line} ({message})", path.display()));
    }
    let source = &captions.files[0].source;
    Ok(captions
        .batches
        .iter()
        .map(|(_, batch)| {
            // A file is one image; ids of a folder's images may be shared by two.
            let image = |row: &Row| batch.get(row.file.unwrap_or(row.image));
            CaptionRows::from_iter(batch.rows.iter().map(|row| (image(row), batch.get(row.caption), source.as_str())))
        })
        .collect())
}

fn count(rows: &[CaptionRows], settings: &StatsSettings, tokenizer: Option<&Tokenizer>, name: String) -> Result<Statistics> {
    let words = settings.units.contains(&Unit::Word).then(|| phrases::segment(rows));
    let lengths = lengths::count(rows, words.as_deref(), tokenizer)?;
    let phrases = phrases::count(rows, words.as_deref(), settings.top);
    let vocabulary = vocabulary::count(rows, words.as_deref(), tokenizer)?;
    let repeats = repeats::count(rows, pictures_of(&settings.input).as_deref())?;
    Ok(Statistics {
        name,
        lengths,
        phrases,
        vocabulary,
        repeats,
        max_lengths: sorted(&settings.max_lengths),
        bins: settings.bins,
    })
}

/// Everything into `folder`, and the names of what is there besides the manifest.
fn write(folder: &Path, statistics: &Statistics, recorded: Settings) -> Result<Vec<PathBuf>> {
    let drawn = pictures::draw(statistics)?;
    let mut files: Vec<(String, Vec<u8>)> = vec![("index.html".into(), page::render(statistics).into_bytes())];
    let mut json = serde_json::to_vec_pretty(&tables::to_json(statistics))?;
    json.push(b'\n');
    files.push(("stats.json".into(), json));
    files.push(("words.csv".into(), tables::words_csv(statistics)?));
    files.push(("table.tex".into(), latex::render(statistics).into_bytes()));
    files.extend(drawn);
    let named: Vec<(&str, String)> = tables::NAMES.iter().map(|name| (*name, format!("{name}.parquet"))).collect();
    let named: Vec<(&str, &str)> = named.iter().map(|(name, file)| (*name, file.as_str())).collect();
    files.push((table::CONFIGS.into(), table::configs(&named).into_bytes()));
    tables::write(folder, statistics)?;
    write_all(folder, &files)?;
    let manifest = json!({
        "clipcap.format": FORMAT,
        "clipcap.version": env!("CARGO_PKG_VERSION"),
        "stage": recorded.stage,
        "fingerprint": recorded.fingerprint,
        "settings": recorded.settings,
        "counts": {"captions": statistics.lengths.captions, "images": statistics.lengths.images},
    });
    write_json(&folder.join(bookkeeping::MANIFEST), &manifest).context("cannot write the manifest")?;
    let tables = tables::NAMES.iter().map(|name| format!("{name}.parquet"));
    Ok(files.into_iter().map(|(name, _)| name).chain(tables).map(PathBuf::from).collect())
}

/// Pictures of earlier statistics that these have not: they would be taken for their own.
fn remove_pictures(output: &Output, files: &[PathBuf]) {
    for name in pictures::NAMES.iter().flat_map(|name| [format!("{name}.png"), format!("{name}.svg")]).map(PathBuf::from) {
        if !files.contains(&name) {
            let _ = std::fs::remove_file(output.path().join(name));
        }
    }
}

/// Writes files side by side: each waits for the disk, and the waits overlap.
fn write_all(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    std::thread::scope(|scope| {
        let writes: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                scope.spawn(move || {
                    crate::files::write_atomic(&folder.join(name), bytes).with_context(|| format!("cannot write {name}"))
                })
            })
            .collect();
        writes.into_iter().try_for_each(|write| write.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
