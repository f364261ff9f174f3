//! A worker: computes one shard of a job, or several, and puts their results where `merge` finds them.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};

use super::done_word;
use crate::files::{ContentHash, remove_if_there};
use crate::pipeline::job::{Claim, JobFolder, Plan, Record, ResultFile, host};
use crate::pipeline::sources::Source;
use crate::pipeline::{Counts, Crew, ErrorsTable, Interrupt, LockError, Output, Reporter, Settings, Tick, WorkLock};

/// Which shards a worker takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shards {
    /// From the first to the last, both included.
    Range(u64, u64),
    /// One that nobody has begun, or whose worker died.
    Next,
    /// Such ones until there are none.
    AllNext,
}

impl FromStr for Shards {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a shard: use a number from 0, or a range such as 0-9");
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
        if from <= to { Ok(Self::Range(from, to)) } else { Err(wrong()) }
    }
}

/// How a worker's shard ended.
#[derive(Debug)]
pub enum ShardEnd {
    /// It was finished before.
    WasDone(u64),
    /// It is finished; boxed, since it is large.
    Done(Box<Record>),
    /// Ctrl-C: what is done is kept.
    Interrupted(u64),
}

impl ShardEnd {
    /// For people.
    pub fn text(&self) -> String {
        match self {
            Self::WasDone(shard) => format!("shard {shard}: finished before"),
            Self::Interrupted(shard) => {
                format!("shard {shard}: interrupted; results are kept: run the same command to resume")
            }
            Self::Done(record) => {
                let Counts { succeeded, failed, skipped, .. } = record.counts;
                let done = done_word(&record.settings.stage);
                format!("shard {}: {succeeded} {done}, {failed} failed, {skipped} not images", record.shard)
            }
        }
    }

    /// For the summary.
    pub fn json(&self) -> Json {
        match self {
            Self::WasDone(shard) => json!({"shard": shard, "state": "was_finished"}),
            Self::Interrupted(shard) => json!({"shard": shard, "state": "interrupted"}),
            Self::Done(record) => json!({
                "shard": record.shard,
                "state": "finished",
                "counts": record.counts,
                "seconds": record.seconds,
            }),
        }
    }
}

/// What a worker does with a shard.
pub(super) trait Task {
    /// Computes what a shard's listing holds, and leaves the results in `folder`. None where an interrupt came first. `threads`: where they are
    /// other than the settings'.
    fn shard(
        &mut self,
        source: Source,
        folder: &Path,
        threads: Option<usize>,
        reporter: &dyn Reporter,
        interrupt: &Interrupt,
    ) -> Result<Option<Computed>>;
}

/// A model that is loaded when the first shard wants it, and once.
///
/// Again where it computes on the host's cores and is to have more or fewer of them.
pub(super) struct LazyModel<T, L> {
    load: L,
    /// With so many threads.
    loaded: Option<(usize, T)>,
    shares_cores: bool,
}

impl<T, L: FnMut(usize) -> Result<T>> LazyModel<T, L> {
    pub fn new(load: L, shares_cores: bool) -> Self {
        Self { load, loaded: None, shares_cores }
    }

    pub fn get(&mut self, threads: usize) -> Result<&mut T> {
        // Two models at once may be more than there is memory for.
        self.loaded.take_if(|(with, _)| self.shares_cores && *with != threads);
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => (threads, (self.load)(threads)?),
        };
        Ok(&mut self.loaded.insert(loaded).1)
    }
}

/// A shard's results before they are moved to where all may read them.
pub(super) struct Computed {
    pub counts: Counts,
    pub output: Output,
    pub table: PathBuf,
    /// Of the table's name among the results.
    pub ending: &'static str,
    /// See [`Record::npy_fingerprint`].
    pub npy_fingerprint: Option<ContentHash>,
}

/// A job, as one worker sees it.
pub struct Worker<'a> {
    /// The job's folder.
    pub job: &'a JobFolder,
    /// As it was read from there.
    pub plan: &'a Plan,
    /// Do finished shards again.
    pub again: bool,
    /// The workers that share this machine's cores; what each has is settled when it begins with a shard.
    pub crew: Option<&'a Crew>,
    /// Who is told of progress.
    pub reporter: &'a dyn Reporter,
    /// Once set, the shard under way is kept as it is and the worker stops.
    pub interrupt: &'a Interrupt,
}

/// How often a shard is looked at on which another worker of this machine is at work.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl Worker<'_> {
    /// The shards of `wanted` that are not finished, without a look at claims; all of them with `again`.
    pub fn open_shards(&self, wanted: &Shards) -> Vec<u64> {
        let (from, to) = match wanted {
            Shards::Range(from, to) => (*from, (*to).min(self.plan.num_shards.saturating_sub(1))),
            Shards::Next | Shards::AllNext => (0, self.plan.num_shards.saturating_sub(1)),
        };
        (from..=to).filter(|shard| self.again || !self.job.is_done(*shard)).collect()
    }

    /// Works on the shards, one after the other.
    ///
    /// # Errors
    /// What the task met. What was finished before stays finished.
    pub(super) fn work(&self, shards: &Shards, task: &mut dyn Task) -> Result<Vec<ShardEnd>> {
        let mut ends = Vec::new();
        let mut take = |shard: u64, claim: Claim| -> Result<bool> {
            let end = self.shard(shard, claim, task)?;
            let goes_on = !matches!(end, ShardEnd::Interrupted(_));
            ends.push(end);
            Ok(goes_on)
        };
        match shards {
            Shards::Range(..) => {
                for shard in self.open_shards(shards) {
                    if !take(shard, self.job.claim(shard)?)? {
                        break;
                    }
                }
            }
            Shards::Next => {
                if let Some((shard, claim)) = self.job.claim_next(self.plan.num_shards)? {
                    take(shard, claim)?;
                }
            }
            Shards::AllNext => {
                while let Some((shard, claim)) = self.job.claim_next(self.plan.num_shards)? {
                    if !take(shard, claim)? {
                        break;
                    }
                }
            }
        }
        Ok(ends)
    }

    /// Removes what this machine's workers left of shards that are finished: they were stopped between the record and the end.
    pub fn tidy(&self) {
        for shard in self.job.attempts().into_iter().filter(|shard| *shard < self.plan.num_shards && self.job.is_done(*shard)) {
            let attempt = self.job.attempt(shard);
            // Somebody may be at it again.
            if let Ok(lock) = WorkLock::acquire(&attempt) {
                let _ = lock.remove_with_folder();
            }
        }
    }

    fn shard(&self, shard: u64, claim: Claim, task: &mut dyn Task) -> Result<ShardEnd> {
        let attempt = self.job.attempt(shard);
        let Some(lock) = self.lock(shard, &attempt)? else { return Ok(ShardEnd::Interrupted(shard)) };
        // Another worker may have finished it while this one waited.
        if !self.again && self.job.record(self.plan, shard)?.is_some() {
            let _ = lock.remove_with_folder();
            return Ok(ShardEnd::WasDone(shard));
        }
        let listing = self.job.listing(shard);
        let planned = &self.plan.shards[shard as usize];
        let hash = ContentHash::of_file(&listing).with_context(|| format!("cannot read {}", listing.display()))?;
        if hash != planned.sha256 {
            bail!(
                "{}: not what was planned: it is damaged, or another plan's; plan the job again (--overwrite)",
                listing.display()
            );
        }
        let start = Instant::now();
        let watching = Watching { reporter: self.reporter, claim: &claim };
        let threads = self.crew.map(|crew| {
            let part = crew.part();
            crew.news(part).iter().for_each(|news| self.reporter.note(&format!("shard {shard}: {news}")));
            part.threads
        });
        let source = Source::Planned(listing, planned.found);
        let Some(computed) = task.shard(source, &attempt, threads, &watching, self.interrupt)? else {
            return Ok(ShardEnd::Interrupted(shard));
        };
        let record = self.record(shard, &computed, start.elapsed())?;
        let end = self.put(record)?;
        drop(claim);
        self.job.clear_claims(shard);
        // What cannot be removed now is when the job is tidied.
        let _ = lock.remove_with_folder();
        Ok(end)
    }

    /// Locks this machine's folder of the shard; waits for another worker that has it, and takes over where that one is killed.
    /// None after an interrupt.
    fn lock(&self, shard: u64, attempt: &Path) -> Result<Option<WorkLock>> {
        let mut has_told = false;
        loop {
            match WorkLock::acquire(attempt) {
                Err(LockError::Held { holder, .. }) => {
                    if !has_told {
                        self.reporter.note(&format!("shard {shard}: another worker is at it ({holder}): waiting for it"));
                        has_told = true;
                    }
                }
                locked => return Ok(Some(locked?)),
            }
            if self.interrupt.is_set() {
                return Ok(None);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Moves the finished tables among the results, and says what they are.
    fn record(&self, shard: u64, computed: &Computed, time: Duration) -> Result<Record> {
        let Computed { counts, output, table, ending, npy_fingerprint } = computed;
        let manifest = output.manifest();
        let text = fs::read(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        let settings: Settings = serde_json::from_slice(&text).with_context(|| format!("cannot read {}", manifest.display()))?;
        let identity = settings.settings["model"].clone();
        let errors = output.errors();
        if !errors.is_file() {
            ErrorsTable::write_empty(&errors)?;
        }
        Ok(Record {
            format: Record::format(),
            plan: self.plan.id.clone(),
            shard,
            counts: *counts,
            table: self.job.keep_result(shard, table, ending)?,
            errors: self.job.keep_result(shard, &errors, "errors.parquet")?,
            settings,
            npy_fingerprint: *npy_fingerprint,
            identity,
            seconds: (time.as_secs_f64() * 1000.0).round() / 1000.0,
            host: host(),
        })
    }

    /// Puts the record there. Where another worker was first, that one's stands.
    fn put(&self, record: Record) -> Result<ShardEnd> {
        let shard = record.shard;
        let before = self.job.record(self.plan, shard)?;
        let is_ours = self.job.put_record(&record, self.again)?;
        let stands = if is_ours { record.clone() } else { self.job.record(self.plan, shard)?.context("a record is there")? };
        let others = if is_ours { before } else { Some(record.clone()) };
        for file in others.iter().flat_map(|other| [&other.table, &other.errors]) {
            self.drop_result(file, &stands)?;
        }
        if is_ours {
            return Ok(ShardEnd::Done(Box::new(stands)));
        }
        if stands.table != record.table || stands.errors != record.errors {
            self.reporter.warn(&format!(
                "shard {shard}: {} finished it first, with other bytes than this worker's: is that machine of another type?",
                stands.host
            ));
        }
        Ok(ShardEnd::WasDone(shard))
    }

    /// Removes a file of results that no record speaks of.
    fn drop_result(&self, file: &ResultFile, stands: &Record) -> Result<()> {
        if file.name != stands.table.name && file.name != stands.errors.name {
            let path = self.job.result(&file.name);
            remove_if_there(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

/// Tells the claim how far the shard is.
struct Watching<'a> {
    reporter: &'a dyn Reporter,
    claim: &'a Claim,
}

impl Reporter for Watching<'_> {
    fn note(&self, message: &str) {
        self.reporter.note(message);
    }

    fn warn(&self, message: &str) {
        self.reporter.warn(message);
    }

    fn detail(&self, message: &str) {
        self.reporter.detail(message);
    }

    fn tick(&self, tick: &Tick) {
        self.claim.set_done(tick.done);
        self.reporter.tick(tick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_or_a_range_is_understood() {
        assert_eq!("7".parse(), Ok(Shards::Range(7, 7)));
        assert_eq!("0-9".parse(), Ok(Shards::Range(0, 9)));
        for wrong in ["", "-1", "3-1", "a", "1-", "0,1"] {
            assert!(wrong.parse::<Shards>().is_err(), "{wrong}");
        }
    }
}
