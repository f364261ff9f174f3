//! The stream that stages share: list, read and decode, compute, write, each step a bounded channel away from the next, order kept.
//!
//! ```text
//! lister (1 thread) -> readers (n threads) -> the model (the caller's thread) -> writer (1 thread)
//! ```

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::compute::Compute;
use super::earlier::EarlierResults;
use super::entry::{Content, Entry, Prepare, Prepared};
use super::gate::{Gate, Turns};
use super::index::{Index, ShardReader};
use super::progress::Progress;
use super::record::{Record, Value};
use super::timing::{Stopwatches, Timings};
use super::window::{FinishedWindow, Step, WINDOWS_UNDERWAY, Windows};
use super::writer::{Sink, Writer};
use crate::budget::{Budget, Share};
use crate::dataset::naming::image_id;
use crate::image::Reason;
use crate::pipeline::artifact::{Counts, Failure, WorkFolder};
use crate::pipeline::reporter::{Interrupt, Reporter};

/// How a stream runs.
pub struct Options<'a> {
    /// Threads that read, and how many of them decode at once.
    pub reading_threads: usize,
    pub decoding_threads: usize,
    /// The model computes on the cores that decode images.
    pub shares_cores: bool,
    /// Prepared images that may wait for the model.
    pub prefetch_images: usize,
    /// Images computed between two commits; at most [`MOST_WINDOW_IMAGES`](super::window::MOST_WINDOW_IMAGES).
    pub window_images: usize,
    /// Images that failed before are tried again even where their files are unchanged.
    pub retry_failed: bool,
    /// What progress is called, such as `captioning`, and the unit of its second rate, such as `captions/s`.
    pub label: &'static str,
    pub unit: Option<&'static str>,
    pub reporter: &'a dyn Reporter,
    pub interrupt: &'a Interrupt,
}

/// What a stream runs on.
pub struct Stream<'a> {
    pub prepare: &'a dyn Prepare,
    pub work: &'a WorkFolder,
    pub index: &'a Index,
    /// Images whose results stay where they cannot be read this time.
    pub earlier: &'a EarlierResults,
    /// Where only some images are computed.
    pub only: Option<Only<'a>>,
    pub options: Options<'a>,
}

/// A choice of images: they are computed anew, and the others stay as they are, unread.
pub struct Only<'a> {
    pub chosen: Chosen<'a>,
    /// What was computed since: an interrupted run goes on from it.
    pub fresh: &'a Index,
    /// What failed before, by image_path.
    pub failures: &'a HashMap<String, Failure>,
}

/// Says whether an image is chosen.
pub type Chosen<'a> = &'a (dyn Fn(&Entry) -> bool + Sync);

/// What is known of an entry before it is looked at.
enum Lookup<V> {
    Nothing,
    Record(Arc<Record<V>>),
    /// Not chosen, and without a result: left for another time.
    LeftOut,
}

/// Counts what will be listed while the work has begun: adds to the total until done or told to stop.
pub type Counter<'a> = Box<dyn FnOnce(&AtomicU64, &AtomicBool) + Send + 'a>;

/// How a stream ended.
pub struct Finished<S> {
    pub counts: Counts,
    /// The first folder or tar whose content cannot be listed, and why.
    pub missing: Option<String>,
    /// How many files there are, where they were all counted.
    pub total: Option<u64>,
    pub timings: Timings,
    /// The output, complete but for its end; absent where the run was interrupted.
    pub sink: Option<S>,
}

/// A file whose reading and hashing took longer came from slow storage.
const QUICK_READ: Duration = Duration::from_millis(10);

/// Bytes of images that were listed with their content and wait for a reader.
const BYTES_LISTED: u64 = 256 << 20;

struct ReadTask<'a, V> {
    entry: Entry,
    /// Of [`BYTES_LISTED`].
    share: Option<Share<'a>>,
    reply: Sender<Result<(Entry, Step<V>)>>,
}

/// The next image in list order: its result is known, or a reader has it.
enum Upcoming<V> {
    Known(Entry, Arc<Record<V>>),
    Reading(Receiver<Result<(Entry, Step<V>)>>),
    Failed(anyhow::Error),
}

impl Stream<'_> {
    /// Runs to the end, to an interrupt or to the first error that is not an image's own.
    ///
    /// `make_compute` is called on this thread when listing and reading have begun; `entries` is listed on another.
    pub fn run<C, S, E>(
        &self,
        entries: E,
        counter: Option<Counter>,
        make_compute: impl FnOnce() -> Result<C>,
        sink: S,
    ) -> Result<Finished<S>>
    where
        C: Compute,
        S: Sink<C::Value>,
        E: Iterator<Item = Result<Entry>> + Send,
    {
        let start = Instant::now();
        let watches = Stopwatches::default();
        let gate = Gate::new(self.options.shares_cores);
        let (total, listed) = (AtomicU64::new(0), AtomicU64::new(0));
        let (counted, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let threads = self.options.reading_threads.max(1);
        let (budget, turns) = (Budget::new(BYTES_LISTED), Turns::new(self.options.decoding_threads));
        let (counts, missing, sink) = thread::scope(|scope| {
            let (tasks_in, tasks) = bounded::<ReadTask<C::Value>>(threads);
            let (upcoming_in, upcoming) = bounded::<Upcoming<C::Value>>(self.options.prefetch_images.max(threads));
            let (windows_in, windows) = bounded::<FinishedWindow<C::Value>>(WINDOWS_UNDERWAY - 3);
            let (watches, gate, listed, total, counted, stop) = (&watches, &gate, &listed, &total, &counted, &stop);
            let (budget, turns) = (&budget, &turns);
            spawn(scope, "list", move || self.list(entries, budget, &tasks_in, &upcoming_in, listed))?;
            for _ in 0..threads {
                let tasks = tasks.clone();
                spawn(scope, "read", move || self.read(tasks, gate, turns, watches))?;
            }
            if let Some(counter) = counter {
                spawn(scope, "count", move || {
                    counter(total, stop);
                    counted.store(!stop.load(Ordering::SeqCst), Ordering::SeqCst);
                })?;
            }
            let options = &self.options;
            let known = self.index.len() as u64;
            let progress = Progress::new(options.label, options.unit, options.reporter, total, counted, known);
            let writer = Writer::new(sink, progress, watches);
            let writer = spawn(scope, "write", move || writer.run(windows))?;
            let computed = self.compute(upcoming, windows_in, make_compute, gate, watches);
            stop.store(true, Ordering::SeqCst);
            let written = writer.join().unwrap_or_else(|_| Err(anyhow!("the writer ended unexpectedly")));
            // Where the writer failed, the model's thread only met a closed channel: the writer's error is the one to tell.
            let (counts, missing, sink) = written?;
            let complete = computed?;
            anyhow::Ok((counts, missing, complete.then_some(sink)))
        })?;
        let listed = listed.load(Ordering::SeqCst);
        if sink.is_some() && counts.found() + counts.unlisted != listed {
            bail!(
                "{listed} entries were listed, and these are accounted for: {counts:?}; a fault of clipcap, and nothing was written"
            );
        }
        let total = counted.load(Ordering::SeqCst).then(|| total.load(Ordering::SeqCst));
        Ok(Finished { counts, missing, total, timings: Timings::of(&watches, start.elapsed(), threads), sink })
    }

    fn list<'a, V: Value>(
        &self,
        entries: impl Iterator<Item = Result<Entry>>,
        budget: &'a Budget,
        tasks: &Sender<ReadTask<'a, V>>,
        upcoming: &Sender<Upcoming<V>>,
        listed: &AtomicU64,
    ) {
        let mut reader = ShardReader::default();
        let send = |next| {
            listed.fetch_add(1, Ordering::SeqCst);
            upcoming.send(next).is_ok()
        };
        for entry in entries {
            let mut kept = Vec::new();
            let standing = entry.and_then(|mut entry| {
                kept = self.kept_under(&mut entry, &mut reader)?;
                Ok((self.known(&entry, &mut reader)?, entry))
            });
            let next = match standing {
                Ok((Lookup::LeftOut, _)) => continue,
                Ok((Lookup::Record(record), entry)) => Upcoming::Known(entry, record),
                Ok((Lookup::Nothing, entry)) => {
                    let (reply, coming) = bounded(1);
                    let share = entry.content.bytes_held().map(|bytes| budget.take(bytes));
                    if tasks.send(ReadTask { entry, share, reply }).is_err() {
                        return;
                    }
                    Upcoming::Reading(coming)
                }
                Err(error) => {
                    // The receiver may be gone already, and with it the interest in why.
                    let _ = upcoming.send(Upcoming::Failed(error));
                    return;
                }
            };
            if !send(next) || !kept.into_iter().all(|(entry, record)| send(Upcoming::Known(entry, record))) {
                return;
            }
        }
    }

    fn known<V: Value>(&self, entry: &Entry, reader: &mut ShardReader<V>) -> Result<Lookup<V>> {
        let record = |record: Option<_>| record.map_or(Lookup::Nothing, Lookup::Record);
        let Some(only) = &self.only else {
            return Ok(record(self.index.standing(entry, self.options.retry_failed, reader)?));
        };
        if matches!(entry.content, Content::Unlisted(_)) {
            return Ok(Lookup::Nothing);
        }
        if (only.chosen)(entry) {
            return Ok(record(only.fresh.standing(entry, self.options.retry_failed, reader)?));
        }
        if let Some(record) = self.index.by_path(&entry.image_path, reader)?.filter(|record| record.result.is_ok()) {
            return Ok(Lookup::Record(record));
        }
        Ok(only.failures.get(&entry.image_path).map_or(Lookup::LeftOut, |failure| {
            let (image_path, result) = (entry.image_path.clone(), Err(failure.clone()));
            Lookup::Record(Arc::new(Record { image_path, stat: None, sha256: None, result }))
        }))
    }

    /// The results of what is in a folder that cannot be listed this time: they stay, and the folder's failure says so.
    fn kept_under<V: Value>(&self, entry: &mut Entry, reader: &mut ShardReader<V>) -> Result<Vec<(Entry, Arc<Record<V>>)>> {
        let Content::Unlisted(failure) = &mut entry.content else { return Ok(Vec::new()) };
        if self.earlier.is_empty() {
            return Ok(Vec::new());
        }
        let records = self.index.under(&entry.image_path, |path| self.earlier.contains(path), reader)?;
        if !records.is_empty() {
            failure.message += &format!("; the results of {} images in it are kept from before", records.len());
        }
        let kept = records.into_iter().map(|record| {
            let image_path = record.image_path.clone();
            let image_id = image_id(&image_path).to_string();
            (Entry { image_path, image_id, content: Content::Kept(None) }, record)
        });
        Ok(kept.collect())
    }

    /// The result of a file that cannot be read this time: it stays, and the failure says so.
    fn kept<V: Value>(
        &self,
        entry: &mut Entry,
        prepared: &Prepared,
        reader: &mut ShardReader<V>,
    ) -> Result<Option<Arc<Record<V>>>> {
        let Prepared::Failed { sha256: None, failure } = prepared else { return Ok(None) };
        let may_pass = [Reason::PermissionDenied, Reason::Unreadable, Reason::Unreachable]
            .iter()
            .any(|reason| reason.as_str() == failure.reason);
        if !may_pass || !self.earlier.contains(&entry.image_path) {
            return Ok(None);
        }
        let record = self.index.by_path(&entry.image_path, reader)?.filter(|record| record.result.is_ok());
        if record.is_some() {
            let message = format!("{}; its result is kept from before", failure.message);
            entry.content = Content::Kept(Some(Failure { message, ..failure.clone() }));
        }
        Ok(record)
    }

    fn read<V: Value>(&self, tasks: Receiver<ReadTask<'_, V>>, gate: &Gate, turns: &Turns, watches: &Stopwatches) {
        let mut reader = ShardReader::default();
        for ReadTask { mut entry, share, reply } in tasks {
            let start = Instant::now();
            let mut waited = Duration::ZERO;
            let mut turn = None;
            // Where storage is what takes time, the model's time is used for it and for what comes after it.
            let mut take_turn = || {
                if start.elapsed() < QUICK_READ {
                    waited += gate.wait();
                }
                let asked = Instant::now();
                turn = Some(turns.take());
                waited += asked.elapsed();
            };
            let step = self.prepare(&mut entry, &mut reader, &mut take_turn);
            drop(turn);
            watches.reading.add(start.elapsed().saturating_sub(waited));
            entry.content.release();
            drop(share);
            // Nobody waits any more where the run is ending early.
            let _ = reply.send(step.map(|step| (entry, step)));
        }
    }

    /// `take_turn` is called between reading and decoding.
    fn prepare<V: Value>(&self, entry: &mut Entry, reader: &mut ShardReader<V>, take_turn: &mut dyn FnMut()) -> Result<Step<V>> {
        match &entry.content {
            Content::Failed(failure) | Content::Unlisted(failure) => {
                return Ok(Step::Prepared(Prepared::Failed { sha256: None, failure: failure.clone() }));
            }
            Content::Other => return Ok(Step::Prepared(Prepared::Skipped)),
            _ => {}
        }
        let mut found = Ok(None);
        let index = self.only.as_ref().map_or(self.index, |only| only.fresh);
        let mut is_known = |sha256: &_| {
            found = index.by_content(sha256, reader).map(|record| record.map(|record| (*sha256, record)));
            let is_known = matches!(found, Ok(Some(_)));
            if !is_known {
                take_turn();
            }
            is_known
        };
        // A decoder that panics on a hostile file has failed on one image.
        let prepared = catch_unwind(AssertUnwindSafe(|| self.prepare.prepare(entry, &mut is_known)));
        let prepared = prepared.unwrap_or_else(|_| Prepared::Failed {
            sha256: None,
            failure: Failure { reason: "corrupt".into(), message: "the decoder gave up unexpectedly".into() },
        });
        match (prepared, found?) {
            (Prepared::Known, Some((sha256, record))) => Ok(Step::KnownContent { sha256, record }),
            (prepared, _) => Ok(match self.kept(entry, &prepared, reader)? {
                Some(record) => Step::Known(record),
                None => Step::Prepared(prepared),
            }),
        }
    }

    /// True where everything was computed, false where an interrupt came first.
    fn compute<C: Compute>(
        &self,
        upcoming: Receiver<Upcoming<C::Value>>,
        finished: Sender<FinishedWindow<C::Value>>,
        make_compute: impl FnOnce() -> Result<C>,
        gate: &Gate,
        watches: &Stopwatches,
    ) -> Result<bool> {
        let mut compute = make_compute()?;
        let mut windows = Windows::new(&mut compute, self.work, gate, watches, self.options.window_images);
        let send = |window| watches.waiting_for_output.time(|| finished.send(window)).context("the writer has stopped");
        loop {
            if self.options.interrupt.is_set() && windows.is_at_rest() {
                windows.end()?.map(send).transpose()?;
                return Ok(false);
            }
            let (entry, step) = match watches.waiting_for_input.time(|| upcoming.recv()) {
                Ok(Upcoming::Known(entry, record)) => (entry, Step::Known(record)),
                Ok(Upcoming::Reading(coming)) => {
                    watches.waiting_for_input.time(|| coming.recv()).context("a reading thread has stopped")??
                }
                Ok(Upcoming::Failed(error)) => return Err(error),
                Err(_) => break,
            };
            windows.add(entry, step)?.map(send).transpose()?;
        }
        windows.end()?.map(send).transpose()?;
        Ok(true)
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new()
        .name(name.into())
        .spawn_scoped(scope, work)
        .with_context(|| format!("cannot start the thread that is to {name}"))
}
