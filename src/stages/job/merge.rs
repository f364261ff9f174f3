//! From a job's finished shards to one table, with the bytes that a single run would have written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde_json::{Value as Json, json};

use super::ranges;
use crate::files::{sha256_file, write_json};
use crate::pipeline::jobfolder::{JobFolder, Plan, Record, ResultFile};
use crate::pipeline::{
    Build, Content, Counts, Entry, ErrorsTable, Existing, Held, Interrupt, Lost, Output, Reporter, Roll, Roots, Settings, Sink,
    Staging, Tick, WouldDrop, errors_in, manifest,
};
use crate::stages::Outcome;
use crate::stages::caption::import::{images, names};
use crate::stages::caption::tables::{FORMAT, TableSink};
use crate::stages::caption::{Scored, Scoring, TableFormat, output_of};

/// What is to be merged.
#[derive(Debug, Clone)]
pub struct MergeSettings {
    pub job: PathBuf,
    pub out: PathBuf,
    pub format: TableFormat,
    /// Leave out the shards that are not finished.
    pub allow_missing: bool,
    /// Put results of several devices, runtimes or CPU types into one table.
    pub allow_mixed: bool,
    pub overwrite: bool,
    /// In a `.csv` or `.tsv`, cells that a spreadsheet would run are quoted.
    pub quotes_formulas: bool,
    /// Rows of images that the job has no captions of may go, however many they are.
    pub prune: bool,
    /// Failed images as a share of all: beyond it the exit status is 1.
    pub max_error_rate: f64,
}

/// How a merge ended.
#[derive(Debug)]
pub struct Merged {
    pub outcome: Outcome,
    pub counts: Counts,
    /// What the table held before and does not hold now.
    pub lost: Lost,
    pub missing: Vec<u64>,
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
    let made_with = if settings.quotes_formulas { quoting(&made_with) } else { made_with };
    verify(&job, &records)?;
    let mut counts = Counts::default();
    for record in &records {
        add(&mut counts, record, &plan)?;
    }
    if counts.succeeded + counts.failed == 0 {
        bail!("no image found ({} files that are not images were skipped)", counts.skipped);
    }
    let output = output_of(&settings.out, settings.format);
    let staging = Staging::open(&output, FORMAT, settings.overwrite)?;
    // What the same settings made is replaced; what others did is refused.
    staging.is_finished(&made_with, &[])?;
    let scoring = plan.settings.settings.get("scoring").cloned().map(serde_json::from_value).transpose();
    let scoring: Option<Scoring> = scoring.context("the plan's scoring cannot be read: plan the job again")?;
    let held = held(&output, settings);
    let mut roll = Roll::new(&held);
    let scored = Scored::by(scoring.as_ref());
    let mut table = TableSink::create(settings.format, settings.quotes_formulas, scored, staging.folder())?;
    let mut errors = ErrorsTable::create(&staging.folder().join("errors.parquet"))?;
    let mut done = 0;
    for record in &records {
        if interrupt.is_set() {
            return Ok(Merged { outcome: Outcome::Interrupted, counts, lost: Lost::default(), missing, output });
        }
        append(&job, record, &mut table, &mut errors, &mut roll)?;
        done += record.counts.found();
        reporter.tick(&Tick { label: "merging", done, total: counts.found(), rates: vec![] });
    }
    let lost = roll.lost();
    if held.is_much(lost.dropped) && !settings.prune && !settings.overwrite {
        return Err(WouldDrop(format!(
            "{}: {} images have captions, and those of {} would be dropped: this job has none of them. Nothing there was changed. Give \
             --prune to let them go, or choose another --out",
            output.path().display(),
            held.len(),
            lost.dropped
        ))
        .into());
    }
    let files = table.finish()?;
    errors.finish()?;
    let mut recorded = json!({"job": {"num_shards": plan.num_shards}});
    if !missing.is_empty() {
        recorded["job"]["missing_shards"] = json!(missing);
    }
    let manifest = manifest(FORMAT, &made_with, &output, "captioned", &counts, lost, &Roots::default(), recorded)?;
    write_json(&staging.folder().join("manifest.json"), &manifest).context("cannot write the manifest")?;
    staging.publish(&files, reporter)?;
    let outcome = match counts {
        counts if counts.error_rate() > settings.max_error_rate => Outcome::TooManyFailed,
        counts if counts.failed + counts.unlisted > 0 || !missing.is_empty() => Outcome::SomeFailed,
        _ => Outcome::Complete,
    };
    Ok(Merged { outcome, counts, lost, missing, output })
}

/// The images of the table that is there, as far as it can be read: one of other settings is refused before, or replaced on request.
fn held(output: &Output, settings: &MergeSettings) -> Held {
    if !matches!(output.existing(FORMAT), Ok(Existing::Finished(_))) {
        return Held::default();
    }
    if settings.format == TableFormat::Tsv {
        return Held::of(names(output).unwrap_or_default().iter().map(|name| Held::keys(name, None)));
    }
    let Ok(images) = images(output.path(), settings.format) else { return Held::default() };
    Held::of(images.map_while(Result::ok).map(|(_, record)| Held::keys(&record.image_path, record.sha256.as_ref())))
}

/// The same settings with quoted cells, as `caption` records them.
fn quoting(settings: &Settings) -> Settings {
    let mut quoting = settings.settings.clone();
    quoting["quotes_formulas"] = true.into();
    Settings::new(&settings.stage, quoting)
}

/// The records there are, in order, and the shards that have none.
fn finished(job: &JobFolder, plan: &Plan, settings: &MergeSettings, reporter: &dyn Reporter) -> Result<(Vec<Record>, Vec<u64>)> {
    let (mut records, mut missing) = (Vec::new(), Vec::new());
    for shard in 0..plan.num_shards {
        match job.record(plan, shard)? {
            Some(record) => records.push(record),
            None => missing.push(shard),
        }
    }
    if !missing.is_empty() {
        let (are, at) = (ranges(&missing), settings.job.display());
        let message = format!("{} of {} shards are not finished: {are}", missing.len(), plan.num_shards);
        if !settings.allow_missing || records.is_empty() {
            bail!("{message}; `clipcap caption --job {at} --next=all` finishes them (--allow-missing leaves them out)");
        }
        reporter.warn(&format!("{message}; they are left out"));
    }
    Ok((records, missing))
}

/// What the whole table was made with.
fn one_identity(records: &[Record], settings: &MergeSettings) -> Result<Settings> {
    let mut kinds: BTreeMap<&str, (&Record, Vec<u64>)> = BTreeMap::new();
    for record in records {
        kinds.entry(&record.settings.fingerprint).or_insert((record, Vec::new())).1.push(record.shard);
    }
    let first = &records.first().context("no shard is finished")?.settings;
    if kinds.len() == 1 {
        return Ok(first.clone());
    }
    let told = |(record, shards): &(&Record, Vec<u64>)| format!("shards {}: {}", ranges(shards), identity_text(&record.identity));
    if !settings.allow_mixed {
        let told: Vec<String> = kinds.values().map(told).collect();
        bail!(
            "the shards were made on machines of several kinds, and a table of them is not what any one of these would have written \
             ({}); caption some again (--shard K --overwrite), or give --allow-mixed",
            told.join("; ")
        );
    }
    // Made by none of them: a later run must not go on from it as if it were its own.
    let mut mixed = first.settings.clone();
    mixed["model"] = json!({
        "fingerprint": first.settings["model"]["fingerprint"],
        "mixed": kinds.values().map(|(record, _)| &record.identity).collect::<Vec<_>>(),
    });
    Ok(Settings::new(&first.stage, mixed))
}

/// A device for people.
pub(super) fn identity_text(identity: &Json) -> String {
    let part = |name: &str| identity[name].as_str().unwrap_or("?");
    // The build's options are long; the version says enough here.
    let runtime = part("runtime").split(" (").next().unwrap_or_default();
    format!("{} {}, ONNX Runtime {runtime}, {}", part("device"), part("precision"), part("cpu"))
}

/// Finds files that are not what their workers recorded.
fn verify(job: &JobFolder, records: &[Record]) -> Result<()> {
    let is_whole = |file: &ResultFile| sha256_file(&job.result(&file.name)).is_ok_and(|sha256| sha256 == file.sha256);
    let damaged: Vec<u64> = records
        .par_iter()
        .filter(|record| !is_whole(&record.captions) || !is_whole(&record.errors))
        .map(|record| record.shard)
        .collect();
    match &damaged[..] {
        [] => Ok(()),
        [first, ..] => bail!(
            "the results of shards {} are damaged or gone: their bytes are not those that their workers recorded; caption them again: \
             clipcap caption --job {} --shard {first} --overwrite",
            ranges(&damaged),
            job.root().display()
        ),
    }
}

/// Adds a shard's counts, which must be what was planned.
fn add(counts: &mut Counts, record: &Record, plan: &Plan) -> Result<()> {
    let Counts { succeeded, failed, skipped, unlisted, .. } = record.counts;
    let planned = plan.shards[record.shard as usize].found;
    if succeeded + failed + skipped != planned {
        bail!(
            "shard {}: {planned} files were found, and {succeeded} captioned, {failed} failed and {skipped} skipped: caption it again \
             (--shard {0} --overwrite)",
            record.shard
        );
    }
    counts.succeeded += succeeded;
    counts.failed += failed;
    counts.skipped += skipped;
    counts.unlisted += unlisted;
    counts.damaged += record.counts.damaged;
    Ok(())
}

/// Appends a shard's rows to the tables.
fn append(job: &JobFolder, record: &Record, table: &mut TableSink, errors: &mut ErrorsTable, roll: &mut Roll<'_>) -> Result<()> {
    let (mut captioned, mut failed) = (0, 0);
    for image in images(&job.result(&record.captions.name), TableFormat::Parquet)? {
        let (image_id, image) = image?;
        let entry = Entry { image_path: image.image_path.clone(), image_id, content: Content::Used };
        roll.take(&image.image_path, image.sha256.as_ref());
        table.add(&entry, &image)?;
        captioned += 1;
    }
    for row in errors_in(&job.result(&record.errors.name))? {
        let (image_path, failure) = row?;
        errors.add(&image_path, &failure)?;
        failed += 1;
    }
    let counts = &record.counts;
    ensure!(
        captioned == counts.succeeded && failed == counts.failed + counts.unlisted,
        "shard {}: {captioned} images and {failed} errors, and its record says {} and {}: caption it again (--shard {0} --overwrite)",
        record.shard,
        counts.succeeded,
        counts.failed + counts.unlisted
    );
    Ok(())
}

impl Merged {
    /// The closing summary, as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        let Counts { succeeded, failed, skipped, unlisted, .. } = self.counts;
        let found = self.counts.found();
        let mut text = format!("{found} files: {succeeded} captioned, {failed} failed, {skipped} not images\n");
        if unlisted > 0 {
            text += &format!("{unlisted} folders could not be listed: what they hold is missing\n");
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
            _ => format!("output   {}\nerrors   {}\n", self.output.path().display(), self.output.errors().display()),
        };
        let json = json!({
            "command": "merge",
            "exit_status": self.outcome.exit_code(),
            "complete": !matches!(self.outcome, Outcome::Interrupted) && self.missing.is_empty(),
            "counts": {"found": found, "captioned": succeeded, "failed": failed, "skipped": skipped},
            "damaged": self.counts.damaged,
            "dropped": self.lost.dropped,
            "renamed": self.lost.renamed,
            "missing_shards": self.missing,
            "out": self.output.path(),
            "errors": self.output.errors(),
            "manifest": self.output.manifest(),
        });
        (text, json)
    }
}
