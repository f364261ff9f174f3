//! `clipcap stats`: how long captions are, what they are made of, and what a model's tokenizer makes of them.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Outcome;
use crate::dataset::caption_table::{CaptionRows, captions_path, read_caption_rows};
use crate::dataset::captions::{ReadOptions, read_captions};
use crate::files::{sha256_file, write_json};
use crate::pipeline::{Existing, Output, Reporter, Settings, WorkLock};
use crate::text::Tokenizer;

mod lengths;
mod page;
mod phrases;
mod pictures;
mod tables;
mod vocabulary;

pub use lengths::{Group, Unit};

const FORMAT: &str = "stats/1";

/// What to count.
#[derive(Debug, Clone)]
pub struct StatsSettings {
    /// A dataset folder, a Parquet table with captions, or a caption file of any layout.
    pub input: PathBuf,
    /// Characters, words, tokens. Words cost jieba's dictionary, tokens a tokenizer.
    pub units: Vec<Unit>,
    pub tokenizer: Option<TokenizerSource>,
    /// Longest token sequences (with [SEP]) a model would take.
    pub max_lengths: Vec<u64>,
    /// Bins of the histograms.
    pub bins: usize,
    /// Entries of each list of the most frequent.
    pub top: usize,
    pub overwrite: bool,
    pub out: PathBuf,
}

/// Where the tokenizer comes from.
#[derive(Debug, Clone)]
pub struct TokenizerSource {
    pub vocabulary: PathBuf,
    pub lower_case: bool,
}

/// Everything that was counted.
pub struct Statistics {
    pub name: String,
    pub lengths: lengths::Lengths,
    pub phrases: phrases::Phrases,
    pub vocabulary: vocabulary::Vocabulary,
    pub max_lengths: Vec<u64>,
    pub bins: usize,
}

/// Counts and writes tables, pictures and a page to `out`.
pub fn run(settings: &StatsSettings, reporter: &dyn Reporter) -> Result<(Outcome, Statistics)> {
    let output = Output::folder(&settings.out);
    if let Existing::Unknown = output.existing(FORMAT)?
        && !settings.overwrite
    {
        bail!(
            "{} holds files and no statistics: choose another --out, or give --overwrite to write into it",
            output.path().display()
        );
    }
    let lock = WorkLock::acquire(&output.work_folder())?;
    let result = count_and_write(settings, &output, reporter);
    let cleared = lock.remove().and_then(|()| std::fs::remove_dir_all(output.work_folder()));
    let statistics = result?;
    cleared.with_context(|| format!("cannot remove {}", output.work_folder().display()))?;
    Ok((Outcome::Complete, statistics))
}

fn count_and_write(settings: &StatsSettings, output: &Output, reporter: &dyn Reporter) -> Result<Statistics> {
    let path = captions_path(&settings.input);
    let rows = read(&path)?;
    let total: usize = rows.iter().map(CaptionRows::len).sum();
    if total == 0 {
        bail!("{}: no captions in it", path.display());
    }
    let tokenizer = match &settings.tokenizer {
        Some(source) => Some(Tokenizer::open(&source.vocabulary, source.lower_case)?),
        None => None,
    };
    let name = settings.input.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let statistics = count(&rows, settings, tokenizer.as_ref(), name)?;
    write(settings, &statistics, output, &path, reporter)?;
    Ok(statistics)
}

fn read(path: &std::path::Path) -> Result<Vec<CaptionRows>> {
    let is_parquet = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
    if is_parquet {
        return Ok(read_caption_rows(path)?);
    }
    let captions = read_captions(&[path.to_path_buf()], &ReadOptions::default())?;
    let source = &captions.files[0].source;
    Ok(captions
        .batches
        .iter()
        .map(|(_, batch)| {
            CaptionRows::from_iter(batch.rows.iter().map(|row| (batch.get(row.image), batch.get(row.caption), source.as_str())))
        })
        .collect())
}

fn count(rows: &[CaptionRows], settings: &StatsSettings, tokenizer: Option<&Tokenizer>, name: String) -> Result<Statistics> {
    let words = settings.units.contains(&Unit::Word).then(|| phrases::segment(rows));
    let lengths = lengths::count(rows, words.as_deref(), tokenizer)?;
    let phrases = phrases::count(rows, words.as_deref(), settings.top);
    let vocabulary = vocabulary::count(rows, words.as_deref(), tokenizer)?;
    let mut max_lengths = settings.max_lengths.clone();
    max_lengths.sort_unstable();
    max_lengths.dedup();
    Ok(Statistics { name, lengths, phrases, vocabulary, max_lengths, bins: settings.bins })
}

/// Everything into `out`, the manifest last: without it, the folder is not finished.
fn write(
    settings: &StatsSettings,
    statistics: &Statistics,
    output: &Output,
    input: &std::path::Path,
    reporter: &dyn Reporter,
) -> Result<()> {
    let out = output.path();
    match std::fs::remove_file(output.manifest()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", output.manifest().display()));
        }
        _ => {}
    }
    let drawn = pictures::draw(statistics)?;
    let mut files: Vec<(String, Vec<u8>)> = vec![("index.html".into(), page::render(statistics).into_bytes())];
    let mut json = serde_json::to_vec_pretty(&tables::to_json(statistics))?;
    json.push(b'\n');
    files.push(("stats.json".into(), json));
    files.extend(drawn);
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    tables::write(out, statistics)?;
    write_all(out, &files)?;
    for name in pictures::NAMES.iter().flat_map(|name| [format!("{name}.png"), format!("{name}.svg")]) {
        // A picture of an earlier run that this one has not drawn would be taken for its own.
        if !files.iter().any(|(written, _)| *written == name) {
            let _ = std::fs::remove_file(out.join(name));
        }
    }
    let recorded = Settings::new(
        "stats",
        json!({
            "input": sha256_file(input).with_context(|| format!("cannot read {}", input.display()))?,
            "units": settings.units,
            "vocabulary": settings.tokenizer.as_ref().map(|t| sha256_file(&t.vocabulary)).transpose().context("cannot read the vocabulary")?,
            "lower_case": settings.tokenizer.as_ref().map(|t| t.lower_case),
            "max_lengths": statistics.max_lengths,
            "bins": settings.bins,
            "top": settings.top,
        }),
    );
    let manifest = json!({
        "clipcap.format": FORMAT,
        "clipcap.version": env!("CARGO_PKG_VERSION"),
        "stage": recorded.stage,
        "fingerprint": recorded.fingerprint,
        "settings": recorded.settings,
        "counts": {"captions": statistics.lengths.captions, "images": statistics.lengths.images},
    });
    write_json(&output.manifest(), &manifest).with_context(|| format!("cannot write {}", output.manifest().display()))?;
    reporter.note(&format!("wrote {}", out.join("index.html").display()));
    Ok(())
}

/// Writes files side by side: each waits for the disk, and the waits overlap.
fn write_all(out: &std::path::Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    std::thread::scope(|scope| {
        let writes: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                scope.spawn(move || {
                    crate::files::write_atomic(&out.join(name), bytes).with_context(|| format!("cannot write {name}"))
                })
            })
            .collect();
        writes.into_iter().try_for_each(|write| write.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
