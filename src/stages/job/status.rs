//! How far a job is: its shards, who works on them, and how long the rest will take.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::merge::identity_text;
use super::{done_word, ranges};
use crate::pipeline::job::{ClaimRecord, JobFolder, Plan, Record};

/// What is known of a shard.
#[derive(Debug, Clone)]
pub enum ShardState {
    /// Its results are there, and its record says which.
    Finished(Box<Record>),
    /// A worker renews its claim.
    Working(ClaimRecord),
    /// A worker began it and is heard no more.
    LeftBehind(ClaimRecord),
    /// Nobody has begun it.
    Waiting,
}

/// A job's state at one moment.
#[derive(Debug)]
pub struct Status {
    /// What was planned.
    pub plan: Plan,
    /// By number, one for each shard of the plan.
    pub shards: Vec<ShardState>,
}

/// Looks at a job without changing anything.
///
/// # Errors
/// No job is there, or its files cannot be read.
pub fn status(job: &Path) -> Result<Status> {
    let folder = JobFolder::new(job);
    let plan = folder.plan()?;
    let claimed: BTreeMap<u64, ClaimRecord> = folder.claimed()?.into_iter().map(|claimed| (claimed.shard, claimed)).collect();
    let mut shards = Vec::with_capacity(plan.shards.len());
    for shard in 0..plan.num_shards {
        shards.push(match (folder.record(&plan, shard)?, claimed.get(&shard)) {
            (Some(record), _) => ShardState::Finished(Box::new(record)),
            (None, Some(claimed)) if claimed.is_dead() => ShardState::LeftBehind(claimed.clone()),
            (None, Some(claimed)) => ShardState::Working(claimed.clone()),
            (None, None) => ShardState::Waiting,
        });
    }
    Ok(Status { plan, shards })
}

/// A shard that takes this many times as long as the middle one is a straggler.
const STRAGGLES: f64 = 2.0;

impl Status {
    fn finished(&self) -> impl Iterator<Item = &Record> {
        self.shards.iter().filter_map(|shard| match shard {
            ShardState::Finished(record) => Some(&**record),
            _ => None,
        })
    }

    fn working(&self) -> impl Iterator<Item = &ClaimRecord> {
        self.shards.iter().filter_map(|shard| match shard {
            ShardState::Working(claimed) => Some(claimed),
            _ => None,
        })
    }

    fn numbers(&self, is_wanted: impl Fn(&ShardState) -> bool) -> Vec<u64> {
        (0..).zip(&self.shards).filter(|(_, shard)| is_wanted(shard)).map(|(number, _)| number).collect()
    }

    /// Seconds of the middle one of the finished shards.
    fn median_seconds(&self) -> Option<f64> {
        let mut seconds: Vec<f64> = self.finished().map(|record| record.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied()
    }

    /// Shards under way for much longer than others took.
    fn stragglers(&self) -> Vec<u64> {
        let Some(median) = self.median_seconds() else { return Vec::new() };
        self.working()
            .filter(|claimed| claimed.age() as f64 > STRAGGLES * median.max(30.0))
            .map(|claimed| claimed.shard)
            .collect()
    }

    fn files_done(&self) -> u64 {
        self.finished().map(|record| record.counts.found()).sum::<u64>() + self.working().map(|claimed| claimed.done).sum::<u64>()
    }

    /// Files that are known of, and tars elsewhere of which it is not known what they hold: that is seen when one is read.
    fn files_known(&self) -> (u64, u64) {
        let (mut known, mut uncounted) = (0, 0);
        for (planned, shard) in self.plan.shards.iter().zip(&self.shards) {
            known += match shard {
                ShardState::Finished(record) => record.counts.found().max(planned.found),
                ShardState::Working(claimed) => claimed.done.max(planned.found),
                ShardState::LeftBehind(_) | ShardState::Waiting => planned.found,
            };
            uncounted += u64::from(planned.is_uncounted && !matches!(shard, ShardState::Finished(_)));
        }
        (known, uncounted)
    }

    /// Files a second of one worker, over the finished shards.
    fn files_per_second(&self) -> Option<f64> {
        let (files, seconds) = self
            .finished()
            .fold((0.0, 0.0), |(files, seconds), record| (files + record.counts.found() as f64, seconds + record.seconds));
        (seconds > 0.0 && files > 0.0).then(|| files / seconds)
    }

    /// Seconds that the rest takes with the workers there are now.
    fn estimate(&self) -> Option<f64> {
        let workers = self.working().count();
        let (known, uncounted) = self.files_known();
        // A tar that nobody has read yet may hold what a finished shard holds.
        let usual =
            (self.finished().map(|record| record.counts.found()).sum::<u64>()).checked_div(self.finished().count() as u64);
        let rest = known.saturating_sub(self.files_done()) + uncounted * usual.unwrap_or(self.plan.shard_size);
        self.files_per_second().filter(|_| workers > 0).map(|rate| rest as f64 / (rate * workers as f64))
    }

    /// The state as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        let (num_finished, num_working) = (self.finished().count(), self.working().count());
        let left_behind = self.numbers(|shard| matches!(shard, ShardState::LeftBehind(_)));
        let unfinished = self.numbers(|shard| !matches!(shard, ShardState::Finished(_)));
        let stragglers = self.stragglers();
        let (known, uncounted) = self.files_known();
        let (done, estimate) = (self.files_done(), self.estimate());
        let done_word = done_word(&self.plan.settings.stage);
        let (mut succeeded, mut failed, mut skipped) = (0, 0, 0);
        let mut kinds: BTreeMap<String, (u64, u64, f64)> = BTreeMap::new();
        for record in self.finished() {
            succeeded += record.counts.succeeded;
            failed += record.counts.failed;
            skipped += record.counts.skipped;
            let kind = kinds.entry(identity_text(&record.identity)).or_default();
            *kind = (kind.0 + 1, kind.1 + record.counts.found(), kind.2 + record.seconds);
        }
        let more = match uncounted {
            0 => String::new(),
            1 => " and of what 1 tar holds".into(),
            tars => format!(" and of what {tars} tars hold"),
        };
        let bar = if uncounted == 0 { bar(done, known) } else { bar(num_finished as u64, self.plan.num_shards) };
        let mut text = format!("{bar} {num_finished} of {} shards, {done} of {known} files{more}\n", self.plan.num_shards);
        text += &format!("finished   {succeeded} {done_word}, {failed} failed, {skipped} not images\n");
        for (kind, (shards, files, seconds)) in &kinds {
            text += &format!(
                "           {shards} shards on {kind}: {:.1} files/s for each worker\n",
                *files as f64 / seconds.max(1e-3)
            );
        }
        for claimed in self.working() {
            let mark = if stragglers.contains(&claimed.shard) { "  a straggler" } else { "" };
            let planned = &self.plan.shards[claimed.shard as usize];
            let of = if planned.is_uncounted { String::new() } else { format!(" of {}", planned.found) };
            text += &format!(
                "shard {:<5} {}{of} files on {} (process {}) for {}{mark}\n",
                claimed.shard,
                claimed.done,
                claimed.host,
                claimed.process,
                duration(claimed.age() as f64)
            );
        }
        if !left_behind.is_empty() {
            text += &format!("left       {} by workers that are heard no more; --next takes them up\n", ranges(&left_behind));
        }
        let waiting = self.numbers(|shard| matches!(shard, ShardState::Waiting));
        if !waiting.is_empty() {
            text += &format!("waiting    {}\n", ranges(&waiting));
        }
        if let Some(seconds) = estimate {
            text += &format!("estimate   {} with {num_working} workers\n", duration(seconds));
        }
        if unfinished.is_empty() {
            text += "all shards are finished: clipcap merge makes the table\n";
        }
        let working: Vec<Json> = self
            .working()
            .map(|claimed| {
                json!({"shard": claimed.shard, "host": claimed.host, "process": claimed.process, "done": claimed.done,
                       "seconds": claimed.age(), "silent_seconds": claimed.silent})
            })
            .collect();
        let json = json!({
            "command": "job status",
            "complete": unfinished.is_empty(),
            "num_shards": self.plan.num_shards,
            "finished": num_finished,
            "unfinished": unfinished,
            "working": working,
            "left_behind": left_behind,
            "stragglers": stragglers,
            "planned": self.plan.counts,
            "counts": {done_word: succeeded, "failed": failed, "skipped": skipped},
            "files_done": done,
            "files_known": known,
            "uncounted_tars": uncounted,
            "files_per_second_of_a_worker": self.files_per_second(),
            "estimated_seconds": estimate,
            "machines": kinds.keys().collect::<Vec<_>>(),
        });
        (text, json)
    }
}

/// `[#####-----]`
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 30;
    let full = (done * WIDTH).checked_div(total).unwrap_or(WIDTH).min(WIDTH);
    format!("[{}{}]", "#".repeat(full as usize), "-".repeat((WIDTH - full) as usize))
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
