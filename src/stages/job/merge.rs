//! From a job's finished shards to one table, with the bytes that a single run would have written.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};

use super::{done_word, ranges};
use crate::bookkeeping;
use crate::files::{ContentHash, write_json};
use crate::pipeline::job::{JobFolder, Record};
use crate::pipeline::npy::FloatType;
use crate::pipeline::sources::{ENCODER_KEY, Embeddings, SETTINGS_KEY, parquet_info};
use crate::pipeline::{
    Build, Content, Counts, EarlierResults, Entry, ErrorsTable, Existing, Interrupt, Lost, Output, Record as ImageRecord,
    Reporter, ResultCheck, Roots, Settings, Staging, Tick, Value, WouldDrop, errors_in, manifest,
};
use crate::stages::Outcome;
use crate::stages::caption::import::{images, names};
use crate::stages::caption::tables::{FORMAT, TableSink};
use crate::stages::caption::{Captions, Scored, Scoring, Style, TableFormat, output_of};
use crate::stages::embed::tables::{EmbeddingSink, FORMAT as EMBEDDINGS_FORMAT};
use crate::stages::embed::{Embedding, Layout};
use crate::stages::summary::errors_line;

mod records;

pub(super) use records::identity_text;
use records::{add, finished, one_identity, verify};

/// What is to be merged.
#[derive(Debug, Clone)]
pub struct MergeSettings {
    /// The job's folder.
    pub job: PathBuf,
    /// A table for captions, a folder for embeddings.
    pub out: PathBuf,
    /// Of captions.
    pub format: TableFormat,
    /// Of embeddings.
    pub layout: Layout,
    /// Leave out the shards that are not finished.
    pub allow_missing: bool,
    /// Put results of several devices, runtimes or CPU types into one table.
    pub allow_mixed: bool,
    /// Replace what is at `out`, whatever made it.
    pub overwrite: bool,
    /// In a `.csv` or `.tsv`, cells that a spreadsheet would run are quoted.
    pub quotes_formulas: bool,
    /// A `.csv` or `.tsv` begins with a byte order mark.
    pub bom: bool,
    /// Rows of images that the job has no captions of may go, however many they are.
    pub prune: bool,
    /// Failed images as a share of all: beyond it the exit status is 1.
    pub max_error_rate: f64,
}

/// How a merge ended.
#[derive(Debug)]
pub struct Merged {
    /// What becomes the exit status.
    pub outcome: Outcome,
    /// The command whose results these are.
    pub stage: String,
    /// Over all shards that were merged.
    pub counts: Counts,
    /// What the table held before and does not hold now.
    pub lost: Lost,
    /// Numbers of shards left out because they are not finished; empty unless that was allowed.
    pub missing: Vec<u64>,
    /// Where the table is.
    pub output: Output,
}

/// Makes one table of all shards' results.
///
/// # Errors
/// Shards that are missing, damaged or of several identities; what was found is not what was captioned, failed or skipped.
pub fn merge(settings: &MergeSettings, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<Merged> {
    let job = JobFolder::new(&settings.job);
    let plan = job.plan()?;
    let (records, missing) = finished(&job, &plan, settings, reporter)?;
    let made_with = one_identity(&records, settings)?;
    let made_with = if settings.quotes_formulas { with(&made_with, "quotes_formulas") } else { made_with };
    let made_with = if settings.bom { with(&made_with, "bom") } else { made_with };
    verify(&job, &records)?;
    let mut counts = Counts::default();
    for record in &records {
        add(&mut counts, record, &plan)?;
    }
    if counts.succeeded + counts.failed == 0 {
        bail!("no image found ({} files that are not images were skipped)", counts.skipped);
    }
    let embeds = plan.settings.stage == "embed";
    let (output, format) = match embeds {
        true => (Output::folder(&settings.out), EMBEDDINGS_FORMAT),
        false => (output_of(&settings.out, settings.format), FORMAT),
    };
    let made_with = if embeds { as_written(&made_with, settings.layout, records[0].npy_fingerprint) } else { made_with };
    let staging = Staging::open(&output, format, settings.overwrite)?;
    // What the same settings made is replaced; what others did is refused.
    staging.is_finished(&made_with, &[])?;
    let earlier = if embeds { earlier_embeddings(&output) } else { earlier(&output, settings) };
    let mut check = ResultCheck::new(&earlier);
    let (reporting, total) = ((reporter, interrupt), counts.found());
    let merging = Merging { job: &job, records: &records, total, folder: staging.folder(), reporting };
    let files = match embeds {
        true => {
            let sink = embedding_sink(&job, &records, &made_with, settings, staging.folder())?;
            merging.run(sink, embeddings_in, &mut check)?
        }
        false => {
            let scoring = plan.settings.settings.get("scoring").cloned().map(serde_json::from_value).transpose();
            let scoring: Option<Scoring> = scoring.context("the plan's scoring cannot be read: plan the job again")?;
            let style =
                Style { quotes_formulas: settings.quotes_formulas, scored: Scored::by(scoring.as_ref()), ..Style::default() };
            let sink = TableSink::create(settings.format, style, staging.folder())?;
            merging.run(sink, captions_in, &mut check)?
        }
    };
    let stage = plan.settings.stage.clone();
    let Some(files) = files else {
        return Ok(Merged { outcome: Outcome::Interrupted, stage, counts, lost: Lost::default(), missing, output });
    };
    let lost = check.lost();
    if earlier.is_much(lost.dropped) && !settings.prune && !settings.overwrite {
        return Err(WouldDrop(format!(
            "{}: {} images have results, and those of {} would be dropped: this job has none of them. Nothing there was changed. Give \
             --prune to let them go, or choose another --out",
            output.path().display(),
            earlier.len(),
            lost.dropped
        ))
        .into());
    }
    let mut recorded = json!({"job": {"num_shards": plan.num_shards}});
    if !missing.is_empty() {
        recorded["job"]["missing_shards"] = json!(missing);
    }
    let done = done_word(&stage);
    let manifest = manifest(format, &made_with, &output, done, &counts, lost, &Roots::default(), recorded)?;
    write_json(&staging.folder().join(bookkeeping::MANIFEST), &manifest).context("cannot write the manifest")?;
    staging.publish(&files, reporter)?;
    let outcome = match counts {
        counts if counts.error_rate() > settings.max_error_rate => Outcome::TooManyFailed,
        counts if counts.failed + counts.unlisted > 0 || !missing.is_empty() => Outcome::SomeFailed,
        _ => Outcome::Complete,
    };
    Ok(Merged { outcome, stage, counts, lost, missing, output })
}

/// The images of the table that is there, as far as it can be read: one of other settings is refused before, or replaced on request.
fn earlier(output: &Output, settings: &MergeSettings) -> EarlierResults {
    if !matches!(output.existing(FORMAT), Ok(Existing::Finished(_))) {
        return EarlierResults::default();
    }
    if settings.format == TableFormat::Tsv {
        return EarlierResults::of(
            names(output, settings.quotes_formulas).unwrap_or_default().iter().map(|name| EarlierResults::keys(name, None)),
        );
    }
    let Ok(images) = images(output.path(), settings.format, settings.quotes_formulas) else { return EarlierResults::default() };
    EarlierResults::of(
        images.map_while(Result::ok).map(|(_, record)| EarlierResults::keys(&record.image_path, record.sha256.as_ref())),
    )
}

/// The same of embeddings.
fn earlier_embeddings(output: &Output) -> EarlierResults {
    if !matches!(output.existing(EMBEDDINGS_FORMAT), Ok(Existing::Finished(_))) {
        return EarlierResults::default();
    }
    let Ok(rows) = embeddings_in(output.path()) else { return EarlierResults::default() };
    EarlierResults::of(
        rows.map_while(Result::ok).map(|(_, record)| EarlierResults::keys(&record.image_path, record.sha256.as_ref())),
    )
}

/// The same settings with quoted cells or a mark, as `caption` records them.
fn with(settings: &Settings, flag: &str) -> Settings {
    let mut styled = settings.settings.clone();
    styled[flag] = true.into();
    Settings::new(&settings.stage, styled)
}

/// Shards on their way into one output.
struct Merging<'a> {
    job: &'a JobFolder,
    records: &'a [Record],
    total: u64,
    folder: &'a Path,
    reporting: (&'a dyn Reporter, &'a Interrupt),
}

type Rows<V> = Box<dyn Iterator<Item = Result<(Entry, ImageRecord<V>)>>>;

impl Merging<'_> {
    /// Appends the rows of all shards, and names the output's files. None where an interrupt came first.
    fn run<V: Value, K: Build<V>>(
        &self,
        mut sink: K,
        rows: impl Fn(&Path) -> Result<Rows<V>>,
        check: &mut ResultCheck<'_>,
    ) -> Result<Option<Vec<PathBuf>>> {
        let (reporter, interrupt) = self.reporting;
        let mut errors = ErrorsTable::new(self.folder.join(bookkeeping::ERRORS));
        let mut done = 0;
        for record in self.records {
            if interrupt.is_set() {
                return Ok(None);
            }
            let (mut succeeded, mut failed) = (0, 0);
            for row in rows(&self.job.result(&record.table.name))? {
                let (entry, image) = row?;
                check.take(&image.image_path, image.sha256.as_ref());
                sink.add(&entry, &image)?;
                succeeded += 1;
            }
            for row in errors_in(&self.job.result(&record.errors.name))? {
                let (image_path, failure) = row?;
                errors.add(&image_path, &failure)?;
                failed += 1;
            }
            let counts = &record.counts;
            ensure!(
                succeeded == counts.succeeded && failed == counts.failed + counts.unlisted,
                "shard {}: {succeeded} images and {failed} errors, and its record says {} and {}: do it again (--shard {0} --overwrite)",
                record.shard,
                counts.succeeded,
                counts.failed + counts.unlisted
            );
            done += record.counts.found();
            reporter.tick(&Tick { label: "merging", done, total: self.total, ..Tick::default() });
        }
        let files = sink.finish()?;
        errors.finish()?;
        Ok(Some(files))
    }
}

fn captions_in(table: &Path) -> Result<Rows<Captions>> {
    Ok(Box::new(images(table, TableFormat::Parquet, false)?.map(|image| {
        let (image_id, image) = image?;
        Ok((Entry { image_path: image.image_path.clone(), image_id, content: Content::Used }, image))
    })))
}

fn embeddings_in(table: &Path) -> Result<Rows<Embedding>> {
    Ok(Box::new(Embeddings::open(table)?.entries().map(|entry| {
        let mut entry = entry?;
        let Content::Embedding { values, sha256, damaged } = std::mem::replace(&mut entry.content, Content::Used) else {
            bail!("{}: no embedding", entry.image_path);
        };
        let result = Ok(Embedding { values, damaged });
        let record = ImageRecord { image_path: entry.image_path.clone(), stat: None, sha256: Some(sha256), result };
        Ok((entry, record))
    })))
}

/// The settings of a single run that writes this layout.
fn as_written(made_with: &Settings, layout: Layout, npy_fingerprint: Option<ContentHash>) -> Settings {
    let mut settings = made_with.settings.clone();
    settings["output"]["format"] = layout.name().into();
    match layout {
        // As it was recorded: a number may lose its last digit on the way through a file.
        Layout::Parquet | Layout::OneFile => made_with.clone(),
        Layout::Npy => {
            let written = Settings::new(&made_with.stage, settings);
            let fingerprint = npy_fingerprint.unwrap_or(written.fingerprint);
            Settings { fingerprint, ..written }
        }
    }
}

/// What the shards' files say of their embeddings is said of all of them.
fn embedding_sink(
    job: &JobFolder,
    records: &[Record],
    made_with: &Settings,
    settings: &MergeSettings,
    folder: &Path,
) -> Result<EmbeddingSink> {
    let first = job.result(&records.first().context("no shard is finished")?.table.name);
    let info = parquet_info(&first, Some(EMBEDDINGS_FORMAT))?;
    let footer = ["normalized", ENCODER_KEY, SETTINGS_KEY];
    let footer = footer.map(|key| (key, info.metadata.get(key).cloned().unwrap_or_default())).to_vec();
    let output = &made_with.settings["output"];
    let context = || format!("{}: it does not say how its embeddings are written", first.display());
    let dtype: FloatType = output["dtype"].as_str().and_then(|name| name.parse().ok()).with_context(context)?;
    let dim = output["embedding_dim"].as_u64().with_context(context)? as usize;
    EmbeddingSink::create(folder, settings.layout, dtype, dim, footer, None)
}

impl Merged {
    /// The closing summary, as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        let Counts { succeeded, failed, skipped, unlisted, .. } = self.counts;
        let (found, done) = (self.counts.found(), done_word(&self.stage));
        let errors = Some(self.output.errors()).filter(|errors| self.outcome != Outcome::Interrupted && errors.is_file());
        let mut text = format!("{found} files: {succeeded} {done}, {failed} failed, {skipped} not images\n");
        if unlisted > 0 {
            text += &format!("{unlisted} folders or tars could not be read to the end: the errors table says why\n");
        }
        if self.counts.damaged > 0 {
            text += &format!("{} of the captioned images are damaged (column damaged)\n", self.counts.damaged);
        }
        if self.lost.dropped > 0 {
            text += &format!("dropped the rows of {} images that this job has no captions of\n", self.lost.dropped);
        }
        if !self.missing.is_empty() {
            text += &format!("{} shards are missing: {}\n", self.missing.len(), ranges(&self.missing));
        }
        text += &match self.outcome {
            Outcome::Interrupted => "interrupted: nothing was written; give the command again\n".into(),
            _ => format!("output   {}\n", self.output.path().display()) + &errors_line(errors.as_deref()),
        };
        let json = json!({
            "command": "merge",
            "exit_status": self.outcome.exit_code(),
            "complete": !matches!(self.outcome, Outcome::Interrupted) && self.missing.is_empty(),
            "counts": {"found": found, done: succeeded, "failed": failed, "skipped": skipped},
            "damaged": self.counts.damaged,
            "dropped": self.lost.dropped,
            "renamed": self.lost.renamed,
            "missing_shards": self.missing,
            "out": self.output.path(),
            "errors": errors,
            "manifest": self.output.manifest(),
        });
        (text, json)
    }
}
