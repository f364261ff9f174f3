//! A stage's run from the lock to the finished output, around the stream that does the work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::before::Before;
use super::compute::Compute;
use super::earlier::ResultCheck;
use super::entry::{Content, Entry, Prepare};
use super::record::{Record, Value};
use super::run_settings::RunSettings;
use super::sources::Source;
use super::stream::{Chosen, Counter, Finished, Only, Options, Stream};
use super::timing::Timings;
use super::writer::Sink;
use crate::bookkeeping;
use crate::files::write_json;
use crate::pipeline::artifact::{Counts, ErrorsTable, Lost, Output, Settings, WorkFolder, manifest};
use crate::pipeline::reporter::{Interrupt, Reporter};

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
        let ended = self.before(&mut work, &parts).and_then(|before| {
            self.look_ahead(&before, parts.expected)?;
            let staging = work.staging();
            let errors = ErrorsTable::new(staging.join(bookkeeping::ERRORS));
            let check = ResultCheck::new(&before.earlier);
            let sink = OutputAndErrors { output: (parts.make_sink)(&staging)?, errors, check };
            let stream = self.stream(parts.prepare, &work, &before);
            let finished = stream.run(parts.entries, parts.counter, parts.make_compute, sink)?;
            self.place(&mut work, &before, finished)
        });
        match ended {
            Ok(report) if report.complete && self.run.keep_work => work.keep().map(|()| report),
            Ok(report) if report.complete => work.remove().map(|()| report),
            Ok(report) => Ok(report),
            // Nothing was computed that would be worth going on from.
            Err(error) if !work.is_needed()? => work.remove().and(Err(error)),
            Err(error) => Err(error),
        }
    }

    fn stream<'a>(&'a self, prepare: &'a dyn Prepare, work: &'a WorkFolder, before: &'a Before) -> Stream<'a> {
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
        let only = self.only.map(|chosen| Only { chosen, fresh: &before.fresh, failures: &before.failures });
        Stream { prepare, work, index: &before.index, earlier: &before.earlier, only, options }
    }

    /// Ends the output and puts it in its place, unless an interrupt came first.
    fn place<V: Value, K: Build<V>>(
        &self,
        work: &mut WorkFolder,
        before: &Before,
        finished: Finished<OutputAndErrors<K>>,
    ) -> Result<Report> {
        let Finished { counts, missing, total, timings, sink } = finished;
        let Some(OutputAndErrors { output, errors, check }) = sink else {
            return Ok(Report { counts, total, lost: Lost::default(), timings, complete: false });
        };
        let earlier = &before.earlier;
        // Of a job's shard, others have the images.
        let may_be_empty = matches!(self.run.source, Source::Planned(..));
        if counts.succeeded - counts.kept + counts.failed == 0 && !may_be_empty {
            let mut more = match missing {
                None => String::new(),
                Some(first) => format!("; {} folders or tars could not be read: {first}", counts.unlisted),
            };
            if !earlier.is_empty() {
                more += &format!("; the results of {} images from before stay as they are", earlier.len());
            }
            bail!("no image found ({} files that are not images were skipped{more})", counts.skipped);
        }
        let lost = check.lost();
        if earlier.is_much(lost.dropped) && !self.run.prune {
            return Err(self.would_drop(lost.dropped, before, &check).into());
        }
        let staged = output.finish()?;
        errors.finish()?;
        // What has changed nothing says what the last change did, so that the same command leaves the same bytes.
        let is_same = before.is_finished && counts.computed == 0 && check.is_same();
        let recorded_lost = if is_same { self.output.lost().unwrap_or_default() } else { lost };
        let (roots, recorded) = (self.run.roots(), self.run.recorded());
        let manifest = manifest(self.format, &self.settings, &self.output, self.done, &counts, recorded_lost, &roots, recorded)?;
        let staging = work.staging();
        write_json(&staging.join(bookkeeping::MANIFEST), &manifest).context("cannot write the manifest")?;
        work.ledger.placing = true;
        work.save()?;
        self.reporter.detail("the output is complete");
        self.output.publish(&staging, &staged, self.reporter)?;
        Ok(Report { counts, total, lost, timings, complete: true })
    }
}
