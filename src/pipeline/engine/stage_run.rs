//! A stage's run from the lock to the finished output, around the stream that does the work.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::compute::Compute;
use super::earlier::{EarlierResults, ResultCheck};
use super::entry::{Content, Entry, Prepare};
use super::index::Index;
use super::record::{Record, Value};
use super::run_settings::RunSettings;
use super::shard;
use super::sources::Source;
use super::stream::{Chosen, Counter, Only, Options, Stream};
use super::timing::Timings;
use super::writer::Sink;
use crate::bookkeeping;
use crate::files::write_json;
use crate::pipeline::artifact::{
    Counts, ErrorsTable, Existing, Failure, Lost, Output, Settings, WorkFolder, WouldDrop, check_replaceable, check_roots,
    errors_in, manifest, run_of,
};
use crate::pipeline::reporter::{Interrupt, Reporter};
use crate::table::TableError;

/// Images in a shard of what a finished output held.
const IMPORTED_SHARD_IMAGES: usize = 1024;

/// What a run is told, besides what it computes.
pub struct StageRun<'a> {
    pub output: Output,
    /// The manifest's `KIND/MAJOR`, such as `captions/1`.
    pub format: &'static str,
    /// What results depend on.
    pub settings: Settings,
    pub run: &'a RunSettings,
    /// What a successful image is called in the counts, such as `captioned`.
    pub done: &'static str,
    /// What progress is called, such as `captioning`, and the unit of its second rate.
    pub label: &'static str,
    pub unit: Option<&'static str>,
    /// See [`Options`].
    pub shares_cores: bool,
    pub window_images: usize,
    /// Only these images are computed, whether they have a result or not; the others keep what the output has of them, which other settings
    /// may have made.
    pub only: Option<Chosen<'a>>,
    pub reporter: &'a dyn Reporter,
    pub interrupt: &'a Interrupt,
}

/// The parts of a run that differ between stages.
pub struct StageParts<'a, E, M, K, I> {
    /// Images in list order.
    pub entries: E,
    pub counter: Option<Counter<'a>>,
    pub expected: Expected<'a>,
    pub prepare: &'a dyn Prepare,
    /// Loads the model; called when listing and reading have begun.
    pub make_compute: M,
    /// Begins the output in a folder.
    pub make_sink: K,
    /// The results that a finished output holds.
    pub import: I,
    /// The names of the images that it has results of, where it holds too little to go on from.
    pub names: Option<Names<'a>>,
}

/// Gives the image_paths in a finished output.
pub type Names<'a> = &'a dyn Fn(&Output) -> Result<Vec<String>>;

/// What can be said of a list before anything in it is read.
pub enum Expected<'a> {
    /// The image_paths; `None` for a folder that cannot be listed.
    Names(Box<dyn Iterator<Item = Option<String>> + 'a>),
    /// How many there are.
    Number(u64),
}

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    pub counts: Counts,
    /// How many files there are, where they were all counted.
    pub total: Option<u64>,
    /// What the output held before and does not hold now.
    pub lost: Lost,
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
struct OutputAndErrors<'a, K> {
    output: K,
    errors: ErrorsTable,
    check: ResultCheck<'a>,
}

impl<V: Value, K: Sink<V>> Sink<V> for OutputAndErrors<'_, K> {
    fn add(&mut self, entry: &Entry, record: &Record<V>) -> Result<()> {
        if let Content::Kept(Some(failure)) = &entry.content {
            self.errors.add(&record.image_path, failure)?;
        }
        match &record.result {
            Err(failure) => self.errors.add(&record.image_path, failure),
            Ok(_) => {
                self.check.take(&record.image_path, record.sha256.as_ref());
                self.output.add(entry, record)
            }
        }
    }

    fn weight(&self, value: &V) -> u64 {
        self.output.weight(value)
    }
}

impl StageRun<'_> {
    /// Locks the work folder, goes on from what is there, computes what is missing, and puts the output in its place.
    ///
    /// # Errors
    /// Another run holds the lock; the output or the work folder was made with other settings; no image was found; the model or the
    /// disk failed.
    pub fn run<V, C, K, E, I, R>(
        &self,
        parts: StageParts<E, impl FnOnce() -> Result<C>, impl FnOnce(&Path) -> Result<K>, I>,
    ) -> Result<Report>
    where
        V: Value,
        C: Compute<Value = V>,
        K: Build<V>,
        E: Iterator<Item = Result<Entry>> + Send,
        I: Fn(&Output) -> Result<R>,
        R: Iterator<Item = Result<Record<V>>>,
    {
        let mut work = WorkFolder::open(&self.output, &self.settings, &self.run.roots(), self.run.overwrite, self.run.prune)?;
        work.tell(self.reporter);
        self.output.adopt()?;
        match self.run_in(&mut work, parts) {
            Ok(report) if report.complete && self.run.keep_work => work.keep().map(|()| report),
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
        parts: StageParts<E, impl FnOnce() -> Result<C>, impl FnOnce(&Path) -> Result<K>, I>,
    ) -> Result<Report>
    where
        V: Value,
        C: Compute<Value = V>,
        K: Build<V>,
        E: Iterator<Item = Result<Entry>> + Send,
        I: Fn(&Output) -> Result<R>,
        R: Iterator<Item = Result<Record<V>>>,
    {
        let existing = self.existing(work)?;
        let is_finished = matches!(existing, Existing::Finished(_));
        // What is replaced may be anything, and damaged: what cannot be read of it is not counted.
        let is_replaced = self.run.overwrite || work.ledger.overwrite;
        let is_there = is_finished || is_replaced && matches!(self.output.existing(self.format), Ok(Existing::Finished(_)));
        if is_there && !self.run.prune {
            check_roots(&self.output, self.output.path(), self.output.roots().as_ref(), &self.run.roots())?;
        }
        if !work.ledger.imported {
            if is_finished && !work.ledger.overwrite {
                self.import((parts.import)(&self.output)?, work)?;
            }
            work.ledger.imported = true;
            work.save()?;
        }
        let (index, mut known) = self.load(work, || (parts.import)(&self.output), is_finished)?;
        if !index.is_empty() {
            self.reporter.note(&format!("Resuming: {} results are there already", index.len()));
        }
        if is_there {
            known.extend(self.known_by_name(work, &parts, is_replaced)?);
        }
        let earlier = EarlierResults::of(known);
        let fresh = |path: &PathBuf| self.only.is_some() && run_of(path) > work.ledger.settled_run;
        let fresh = Index::load(work.shards()?.into_iter().filter(fresh).collect(), |_, _| (), |_, _| ());
        let failures = if self.only.is_some() && is_finished { self.failures()? } else { HashMap::new() };
        let only = self.only.map(|chosen| Only { chosen, fresh: &fresh, failures: &failures });
        self.look_ahead(&earlier, &index, parts.expected)?;
        let staging = work.staging();
        let errors = ErrorsTable::new(staging.join(bookkeeping::ERRORS));
        let sink = OutputAndErrors { output: (parts.make_sink)(&staging)?, errors, check: ResultCheck::new(&earlier) };
        let readers = self.run.readers.max(self.run.threads);
        let options = Options {
            decoding_threads: self.run.threads,
            reading_threads: readers,
            shares_cores: self.shares_cores,
            prefetch_images: self.run.batch_size * 2 + readers,
            window_images: self.window_images,
            retry_failed: self.run.retry_failed,
            label: self.label,
            unit: self.unit,
            reporter: self.reporter,
            interrupt: self.interrupt,
        };
        let stream = Stream { prepare: parts.prepare, work, index: &index, earlier: &earlier, only, options };
        let finished = stream.run(parts.entries, parts.counter, parts.make_compute, sink)?;
        let (counts, total, timings) = (finished.counts, finished.total, finished.timings);
        let Some(sink) = finished.sink else {
            return Ok(Report { counts, total, lost: Lost::default(), timings, complete: false });
        };
        // Of a job's shard, others have the images.
        let may_be_empty = matches!(self.run.source, Source::Planned(..));
        if counts.succeeded - counts.kept + counts.failed == 0 && !may_be_empty {
            let mut more = match counts.unlisted {
                0 => String::new(),
                folders => format!("; {folders} folders could not be listed: is there permission to read them?"),
            };
            if !earlier.is_empty() {
                more += &format!("; the results of {} images from before stay as they are", earlier.len());
            }
            bail!("no image found ({} files that are not images were skipped{more})", counts.skipped);
        }
        let lost = sink.check.lost();
        if earlier.is_much(lost.dropped) && !self.run.prune {
            return Err(self.would_drop(lost.dropped, &earlier, &index, &sink.check).into());
        }
        let (output, errors, check) = (sink.output, sink.errors, sink.check);
        let staged = output.finish()?;
        errors.finish()?;
        // What has changed nothing says what the last change did, so that the same command leaves the same bytes.
        let is_same = is_finished && counts.computed == 0 && check.is_same();
        let recorded_lost = if is_same { self.output.lost().unwrap_or_default() } else { lost };
        let manifest = manifest(
            self.format,
            &self.settings,
            &self.output,
            self.done,
            &counts,
            recorded_lost,
            &self.run.roots(),
            self.run.recorded(),
        )?;
        write_json(&staging.join(bookkeeping::MANIFEST), &manifest).context("cannot write the manifest")?;
        work.ledger.placing = true;
        work.save()?;
        self.reporter.detail("the output is complete");
        self.output.publish(&staging, &staged, self.reporter)?;
        Ok(Report { counts, total, lost, timings, complete: true })
    }

    /// The index of all shards, and what of it counts as earlier results. A shard that a bad disk changed is reported and removed: the output still has
    /// what it held, or it is computed again.
    fn load<V: Value, R: Iterator<Item = Result<Record<V>>>>(
        &self,
        work: &WorkFolder,
        import: impl FnOnce() -> Result<R>,
        is_finished: bool,
    ) -> Result<(Index, Vec<(u64, u64)>)> {
        let settled = work.ledger.settled_run;
        let load = |damaged: &mut Vec<PathBuf>| -> Result<_> {
            let mut known = Vec::new();
            let each = |shard: &Path, key: &shard::Key| {
                let run = run_of(shard);
                if !key.failed && (run > settled || run == 0 && settled == 0) {
                    known.push(EarlierResults::keys(&key.image_path, key.sha256.as_ref()));
                }
            };
            let unreadable = |path: &Path, error: &TableError| {
                self.reporter.warn(&format!("{}: not used, and computed again where need be: {error}", path.display()));
                damaged.push(path.into());
            };
            Ok((Index::load(work.shards()?, each, unreadable), known))
        };
        let mut damaged = Vec::new();
        let loaded = load(&mut damaged)?;
        if damaged.is_empty() {
            return Ok(loaded);
        }
        for shard in &damaged {
            fs::remove_file(shard).with_context(|| format!("cannot remove {}", shard.display()))?;
        }
        if is_finished && !work.ledger.overwrite {
            self.import(import()?, work)?;
        }
        load(&mut Vec::new())
    }

    /// What a finished output holds and the shards do not say: they are older than it, or it is to be replaced, or gives too little to go on
    /// from.
    fn known_by_name<V, E, M, K, I, R>(
        &self,
        work: &WorkFolder,
        parts: &StageParts<E, M, K, I>,
        is_replaced: bool,
    ) -> Result<Vec<(u64, u64)>>
    where
        V: Value,
        I: Fn(&Output) -> Result<R>,
        R: Iterator<Item = Result<Record<V>>>,
    {
        if let Some(names) = parts.names {
            return Ok(names(&self.output)?.iter().map(|name| EarlierResults::keys(name, None)).collect());
        }
        if !is_replaced && work.ledger.settled_run == 0 {
            return Ok(Vec::new());
        }
        let keys = |record: Record<V>| EarlierResults::keys(&record.image_path, record.sha256.as_ref());
        match (parts.import)(&self.output) {
            Ok(records) if is_replaced => Ok(records.map_while(Result::ok).map(keys).collect()),
            Ok(records) => records.map(|record| record.map(keys)).collect(),
            Err(_) if is_replaced => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Refuses a list that leaves out many of the earlier results, before anything is read. What it cannot see yet is seen at the end.
    fn look_ahead(&self, earlier: &EarlierResults, index: &Index, expected: Expected) -> Result<()> {
        if self.run.prune || earlier.is_empty() {
            return Ok(());
        }
        let mut check = ResultCheck::new(earlier);
        let least = match expected {
            Expected::Number(number) => earlier.len().saturating_sub(number),
            Expected::Names(names) => {
                for name in names {
                    match name {
                        Some(name) if !self.interrupt.is_set() => check.take(&name, None),
                        // What is in a folder that cannot be listed is not gone.
                        _ => return Ok(()),
                    }
                }
                check.at_least_lost()
            }
        };
        if earlier.is_much(least) {
            return Err(self.would_drop(least, earlier, index, &check).into());
        }
        Ok(())
    }

    fn would_drop(&self, lost: u64, earlier: &EarlierResults, index: &Index, check: &ResultCheck) -> WouldDrop {
        let examples = index.names(3, |name| check.is_missing(name));
        let examples = if examples.is_empty() { String::new() } else { format!(" ({}, ...)", examples.join(", ")) };
        WouldDrop(format!(
            "{}: {} images have results, and those of {lost} would be dropped: the images are not here any more, or cannot be \
             used{examples}. Is a disk not mounted, or a list short? Nothing there was changed. Give --prune to let them go, or choose \
             another --out",
            self.output.path().display(),
            earlier.len()
        ))
    }

    fn existing(&self, work: &WorkFolder) -> Result<Existing> {
        self.output.check_kind()?;
        if self.run.overwrite || work.ledger.overwrite {
            return Ok(Existing::Nothing);
        }
        let existing = self.output.existing(self.format)?;
        // No manifest: a run of these settings was stopped while it put its output in place.
        let was_being_placed = matches!(existing, Existing::Unknown) && work.ledger.placing;
        // What a choice of images leaves as it is may be of other settings; this run's say so.
        let is_patched = self.only.is_some() && matches!(existing, Existing::Finished(_));
        if !was_being_placed && !is_patched {
            check_replaceable(&self.output, &existing, &self.settings)?;
        }
        Ok(existing)
    }

    /// What the finished output has no results of.
    fn failures(&self) -> Result<HashMap<String, Failure>> {
        let path = self.output.errors();
        if path.exists() { errors_in(&path)?.collect() } else { Ok(HashMap::new()) }
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
