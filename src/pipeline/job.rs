//! A stage's run from the lock to the finished output, around the stream that does the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};

use super::compute::Compute;
use super::entry::{Entry, Prepare};
use super::errors::ErrorsTable;
use super::index::Index;
use super::output::{Existing, Output, check_replaceable, manifest_head};
use super::record::{Record, Value};
use super::reporter::{Interrupt, Reporter};
use super::settings::Settings;
use super::shard;
use super::stream::{Counter, Options, Stream};
use super::timing::Timings;
use super::workfolder::WorkFolder;
use super::writer::{Counts, Sink};
use crate::files::write_json;

/// Images in a shard of what a finished output held.
const IMPORTED_SHARD_IMAGES: usize = 1024;

/// What a run is told, besides what it computes.
pub struct Job<'a> {
    pub output: Output,
    /// The manifest's `KIND/MAJOR`, such as `captions/1`.
    pub format: &'static str,
    pub settings: Settings,
    /// Recorded in the manifest, and of no influence on results: batch size, threads.
    pub recorded: Json,
    /// What a successful image is called in the counts, such as `captioned`.
    pub done: &'static str,
    /// What progress is called, such as `captioning`, and the unit of its second rate.
    pub label: &'static str,
    pub unit: Option<&'static str>,
    pub reading_threads: usize,
    /// See [`Options`].
    pub shares_cores: bool,
    pub prefetch_images: usize,
    pub window_images: usize,
    pub overwrite: bool,
    pub keep_work: bool,
    pub retry_failed: bool,
    /// Nothing but skipped files is no error: others have the images.
    pub may_be_empty: bool,
    pub reporter: &'a dyn Reporter,
    pub interrupt: &'a Interrupt,
}

/// The parts of a run that differ between stages.
pub struct Parts<'a, E, M, K, I> {
    /// Images in list order.
    pub entries: E,
    pub counter: Option<Counter<'a>>,
    pub prepare: &'a dyn Prepare,
    /// Loads the model; called when listing and reading have begun.
    pub make_compute: M,
    /// Begins the output in a folder.
    pub make_sink: K,
    /// The results that a finished output holds.
    pub import: I,
}

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    pub counts: Counts,
    pub timings: Timings,
    /// False where an interrupt came first: the state is kept, and the same command goes on.
    pub complete: bool,
}

/// An output under construction.
pub trait Build<V>: Sink<V> {
    /// Ends the output and names its files, relative to the folder it was begun in.
    fn finish(self) -> Result<Vec<PathBuf>>;
}

/// The stage's output, and the errors table beside it.
struct Both<K> {
    output: K,
    errors: ErrorsTable,
}

impl<V: Value, K: Sink<V>> Sink<V> for Both<K> {
    fn add(&mut self, entry: &Entry, record: &Record<V>) -> Result<()> {
        match &record.result {
            Err(failure) => self.errors.add(&record.image_path, failure),
            Ok(_) => self.output.add(entry, record),
        }
    }

    fn weight(&self, value: &V) -> u64 {
        self.output.weight(value)
    }
}

impl Job<'_> {
    /// Locks the work folder, goes on from what is there, computes what is missing, and puts the output in its place.
    ///
    /// # Errors
    /// Another run holds the lock; the output or the work folder was made with other settings; no image was found; the model or the
    /// disk failed.
    pub fn run<V, C, K, E, I, R>(
        &self,
        parts: Parts<E, impl FnOnce() -> Result<C>, impl FnOnce(&Path) -> Result<K>, I>,
    ) -> Result<Report>
    where
        V: Value,
        C: Compute<Value = V>,
        K: Build<V>,
        E: Iterator<Item = Result<Entry>> + Send,
        I: FnOnce(&Output) -> Result<R>,
        R: Iterator<Item = Result<Record<V>>>,
    {
        let mut work = WorkFolder::open(&self.output.work_folder(), &self.settings, self.overwrite)?;
        work.tell(self.reporter);
        match self.run_in(&mut work, parts) {
            Ok(report) if report.complete && self.keep_work => work.keep().map(|()| report),
            Ok(report) if report.complete => work.remove().map(|()| report),
            Ok(report) => Ok(report),
            // Nothing was computed that would be worth going on from.
            Err(error) if !work.is_needed()? => work.remove().and(Err(error)),
            Err(error) => Err(error),
        }
    }

    fn run_in<V, C, K, E, I, R>(
        &self,
        work: &mut WorkFolder,
        parts: Parts<E, impl FnOnce() -> Result<C>, impl FnOnce(&Path) -> Result<K>, I>,
    ) -> Result<Report>
    where
        V: Value,
        C: Compute<Value = V>,
        K: Build<V>,
        E: Iterator<Item = Result<Entry>> + Send,
        I: FnOnce(&Output) -> Result<R>,
        R: Iterator<Item = Result<Record<V>>>,
    {
        let existing = self.existing(work)?;
        if !work.ledger.imported {
            if matches!(existing, Existing::Finished(_)) && !work.ledger.overwrite {
                self.import((parts.import)(&self.output)?, work)?;
            }
            work.ledger.imported = true;
            work.save()?;
        }
        let index = Index::load(work.shards()?, |path, error| {
            self.reporter.warn(&format!("{}: ignored, and computed again: {error}", path.display()));
        });
        if !index.is_empty() {
            self.reporter.note(&format!("Resuming: {} results are there already", index.len()));
        }
        let staging = work.staging();
        let sink = Both { output: (parts.make_sink)(&staging)?, errors: ErrorsTable::create(&staging.join("errors.parquet"))? };
        let options = Options {
            reading_threads: self.reading_threads,
            shares_cores: self.shares_cores,
            prefetch_images: self.prefetch_images,
            window_images: self.window_images,
            retry_failed: self.retry_failed,
            label: self.label,
            unit: self.unit,
            reporter: self.reporter,
            interrupt: self.interrupt,
        };
        let stream = Stream { prepare: parts.prepare, work, index: &index, options };
        let finished = stream.run(parts.entries, parts.counter, parts.make_compute, sink)?;
        let (counts, timings) = (finished.counts, finished.timings);
        let Some(sink) = finished.sink else {
            return Ok(Report { counts, timings, complete: false });
        };
        if counts.succeeded + counts.failed == 0 && !self.may_be_empty {
            let unlisted = match counts.unlisted {
                0 => String::new(),
                folders => format!("; {folders} folders could not be listed: is there permission to read them?"),
            };
            bail!("no image found ({} files that are not images were skipped{unlisted})", counts.skipped);
        }
        let staged = sink.output.finish()?;
        sink.errors.finish()?;
        let manifest = manifest(self.format, &self.settings, &self.output, self.done, &counts, self.recorded.clone())?;
        write_json(&staging.join("manifest.json"), &manifest).context("cannot write the manifest")?;
        work.ledger.placing = true;
        work.save()?;
        self.reporter.detail("the output is complete");
        self.output.publish(&staging, &staged, self.reporter)?;
        Ok(Report { counts, timings, complete: true })
    }

    fn existing(&self, work: &WorkFolder) -> Result<Existing> {
        self.output.check_kind()?;
        if self.overwrite || work.ledger.overwrite {
            return Ok(Existing::Nothing);
        }
        let existing = self.output.existing(self.format)?;
        // No manifest: a run of these settings was stopped while it put its output in place.
        let was_being_placed = matches!(existing, Existing::Unknown) && work.ledger.placing;
        if !was_being_placed {
            check_replaceable(&self.output, &existing, &self.settings)?;
        }
        Ok(existing)
    }

    fn import<V: Value>(&self, records: impl Iterator<Item = Result<Record<V>>>, work: &WorkFolder) -> Result<()> {
        let mut shard = Vec::with_capacity(IMPORTED_SHARD_IMAGES);
        let mut number = 0;
        let mut write = |shard: &mut Vec<Arc<Record<V>>>| -> Result<()> {
            shard::write(&work.imported_shard(number), shard)?;
            number += 1;
            shard.clear();
            Ok(())
        };
        for record in records {
            shard.push(Arc::new(record?));
            if shard.len() == IMPORTED_SHARD_IMAGES {
                write(&mut shard)?;
            }
        }
        if !shard.is_empty() {
            write(&mut shard)?;
        }
        Ok(())
    }
}

/// An output's manifest: `done` is what a successful image is called, and `recorded` is of no influence on results.
///
/// # Errors
/// Settings that are no JSON.
pub fn manifest(format: &str, settings: &Settings, output: &Output, done: &str, counts: &Counts, recorded: Json) -> Result<Json> {
    let mut manifest = manifest_head(format, settings, output)?;
    let mut numbers =
        json!({"found": counts.found(), done: counts.succeeded, "failed": counts.failed, "skipped": counts.skipped});
    if counts.unlisted > 0 {
        numbers["unlisted_folders"] = counts.unlisted.into();
    }
    manifest.insert("counts".into(), numbers);
    manifest.insert("recorded".into(), recorded);
    Ok(Json::Object(manifest))
}
