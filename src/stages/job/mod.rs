//! A job over many workers: `plan` cuts what is found into shards, workers caption (or embed) them in any order, `merge` makes one table of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};
use sha2::Digest;

use crate::dataset::listing::Listing;
use crate::dataset::wanted::Wanted;
use crate::files::ContentHash;
use crate::pipeline::job::{JobFolder, Plan, PlannedCounts};
use crate::pipeline::sources::{Source, StoredImages};
use crate::pipeline::{ImageReading, Interrupt, OtherSettings, Reporter, RunSettings, Settings, WorkLock};
use crate::remote;
use crate::stages::caption::{Scoring, Wording, captioning};
use crate::{generation, stages::Outcome};

mod captioning;
mod cut;
mod embedding;
mod merge;
mod status;
mod worker;

use cut::{Cut, Cutting, NOTED_EVERY, tables};
pub(crate) use embedding::embedding_settings_of;
pub use merge::{MergeSettings, Merged, merge};
pub use status::{ShardState, Status, status};
pub use worker::{ShardEnd, Shards, Worker};

/// What is to be planned.
#[derive(Debug, Clone)]
pub struct PlanSettings {
    /// Folders, images, tars, lists of URLs, or Parquet files.
    pub inputs: Vec<PathBuf>,
    /// The inputs are Parquet files, and this is their column of images.
    pub column: Option<String>,
    /// Of those folders, which files.
    pub wanted: Wanted,
    /// The folder the job is planned in, which all workers see.
    pub job: PathBuf,
    /// Files per shard; with a multiple of 1000 the merged bytes are a single run's.
    pub shard_size: u64,
    /// A bundle, by the path that workers find it at.
    pub model: PathBuf,
    /// What scores captions, where that is another than the model.
    pub scorer: Option<PathBuf>,
    /// All that results depend on and that is known without a device.
    pub settings: Settings,
    /// Of workers that are not given another, as `--device` spells it.
    pub device: String,
    /// As `--precision` spells it; the same for all workers.
    pub precision: String,
    /// Images per batch, of workers that are not given another; None: each one's default.
    pub batch_size: Option<usize>,
    /// Discard the job that is there.
    pub overwrite: bool,
}

/// How planning ended.
#[derive(Debug)]
pub struct Planned {
    /// What becomes the exit status.
    pub outcome: Outcome,
    /// None after an interrupt.
    pub plan: Option<Plan>,
    /// The job's folder.
    pub job: PathBuf,
    /// After an interrupt: files that the same command will not list again.
    pub listed: u64,
}

/// What a job's results depend on, but for the device, its runtime and the CPU's type.
pub fn settings_of(
    fingerprint: &Json,
    precision: &str,
    decoding: &generation::Settings,
    wording: &Wording,
    scoring: Option<&Scoring>,
    images: Json,
) -> Settings {
    let model = json!({"fingerprint": fingerprint, "precision": precision});
    captioning(&model, decoding, wording, scoring, json!({"images": images}))
}

/// What a job's results are called in counts, by its stage.
fn done_word(stage: &str) -> &'static str {
    if stage == "embed" { "embedded" } else { "captioned" }
}

impl Worker<'_> {
    /// What is said where the plan's settings are of another version.
    fn unreadable(&self) -> String {
        format!("{}: the plan's settings cannot be read: plan the job again", self.job.root().display())
    }

    /// What a run of this plan is told, but for its source and its place. `threads` and `batch_size` change no result.
    fn run_settings(&self, threads: usize, batch_size: usize) -> Result<RunSettings> {
        let images = &self.plan.settings.settings["input"]["images"];
        Ok(RunSettings {
            // Of files the plan has chosen; members of tars are chosen when they are read.
            wanted: self.plan.wanted.clone(),
            reading: ImageReading::from_settings(images).with_context(|| self.unreadable())?,
            prune: true,
            readers: if remote::any(&self.plan.inputs) { remote::readers() } else { 0 },
            ..RunSettings::new(Source::Planned(PathBuf::new(), 0), PathBuf::new(), threads, batch_size)
        })
    }

    /// Refuses settings, the model's among them, that are not the plan's.
    fn check(&self, ours: &Settings) -> Result<()> {
        if *ours != self.plan.settings {
            bail!(
                "{}: this worker's results would be other ones than were planned ({}): use the model and the clipcap that the job was planned \
                 with, or plan it again",
                self.job.root().display(),
                self.plan.settings.differences(ours).join("; ")
            );
        }
        Ok(())
    }
}

/// Lists the inputs and cuts what is found into shards.
///
/// A shard of files is in memory at a time, and the names of the folders on the way down.
///
/// # Errors
/// Nothing to list; or a job with other settings is there.
pub fn plan(settings: &PlanSettings, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<Planned> {
    let job = JobFolder::new(&settings.job);
    job.check_place()?;
    let planned = |outcome, plan| Planned { outcome, plan, job: settings.job.clone(), listed: 0 };
    let lock = WorkLock::acquire(&settings.job)?;
    lock.tell(reporter);
    let inputs = settings.inputs.iter().map(|input| absolute(input)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = inputs.iter().map(|input| remote::shown(input)).collect();
    if let Some(there) = job.find_plan()?.filter(|_| !settings.overwrite) {
        let mut differences = there.settings.differences(&settings.settings);
        if there.shard_size != settings.shard_size {
            differences.push(format!("--shard-size {} (was {})", settings.shard_size, there.shard_size));
        }
        if there.inputs != names {
            differences.push(format!("inputs {} (were {})", names.join(" "), there.inputs.join(" ")));
        }
        differences.extend(there.wanted.differences(&settings.wanted));
        if !differences.is_empty() {
            let job = settings.job.display();
            let message = format!(
                "{job}: another job is planned here ({}): choose another --job, or give --overwrite to discard it with its results",
                differences.join("; ")
            );
            return Err(OtherSettings(message).into());
        }
        lock.remove()?;
        reporter.note("this job was planned before: its listing stands (--overwrite lists again)");
        return Ok(planned(Outcome::Complete, Some(there)));
    }
    let members = settings.wanted.of_members()?;
    let (shard_size, noted_every) = (settings.shard_size, NOTED_EVERY);
    let cutting = Cutting { job: &job, reporter, interrupt, members: &members, shard_size, noted_every };
    let cut = match &settings.column {
        Some(column) => {
            job.clear()?;
            let images = StoredImages::in_files(&inputs, column)?;
            cutting.all(tables(images.shards(), column))?
        }
        None => {
            let listing = Listing::new(&inputs, std::slice::from_ref(&settings.job), &settings.wanted)?;
            let what = what_is_listed(settings, &names);
            let cut = cutting.folders(&listing, what, settings.overwrite)?;
            if let Cut::Whole(_) = cut {
                listing.left_out().plus(members.left_out()).note().iter().for_each(|note| reporter.note(note));
            }
            cut
        }
    };
    let cut = match cut {
        Cut::Whole(cut) => cut,
        Cut::Interrupted(listed) => return Ok(Planned { listed, ..planned(Outcome::Interrupted, None) }),
    };
    if cut.counts.found == 0 && !cut.shards.iter().any(|shard| shard.is_uncounted) {
        let folders = cut.counts.unlisted_folders;
        job.clear()?;
        lock.remove()?;
        let _ = std::fs::remove_dir(&settings.job);
        match folders {
            0 => bail!("no file found in {}", names.join(" ")),
            _ => bail!(
                "no file found in {}; {folders} folders could not be listed: is there permission to read them?",
                names.join(" ")
            ),
        }
    }
    let mut id = cut.id();
    id.update(settings.settings.fingerprint.to_string());
    let plan = Plan {
        format: Plan::format(),
        id: ContentHash::from(id).to_string(),
        num_shards: cut.shards.len() as u64,
        shard_size: settings.shard_size,
        counts: cut.counts,
        settings: settings.settings.clone(),
        inputs: names,
        wanted: settings.wanted.clone(),
        model: absolute(&settings.model)?,
        scorer: settings.scorer.as_deref().map(absolute).transpose()?,
        device: settings.device.clone(),
        precision: settings.precision.clone(),
        batch_size: settings.batch_size,
        shards: cut.shards,
    };
    job.save_plan(&plan)?;
    lock.remove()?;
    Ok(planned(Outcome::Complete, Some(plan)))
}

/// All that decides a listing and how it is cut.
fn what_is_listed(settings: &PlanSettings, names: &[String]) -> Json {
    json!({"inputs": names, "wanted": settings.wanted, "shard_size": settings.shard_size})
}

/// A path that means the same in every worker's folder.
fn absolute(path: &Path) -> Result<PathBuf> {
    if remote::is_url(path) {
        return Ok(path.into());
    }
    if let Some(list) = remote::listed_urls(path) {
        return Ok(remote::list_of_urls(&absolute(list)?));
    }
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

impl Planned {
    /// The closing summary, as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        let job = self.job.display();
        let Some(plan) = &self.plan else {
            let listed = self.listed;
            let told = match listed {
                0 => "interrupted: nothing is planned; give the command again\n".into(),
                _ => format!("interrupted: {listed} files are listed; give the command again to go on\n"),
            };
            return (told, json!({"command": "plan", "complete": false, "listed": listed}));
        };
        let PlannedCounts { found, unlisted_folders } = plan.counts;
        let last = plan.num_shards.saturating_sub(1);
        let mut text = format!("{found} files in {} shards of up to {}\n", plan.num_shards, plan.shard_size);
        let uncounted = plan.shards.iter().filter(|shard| shard.is_uncounted).count();
        if uncounted > 0 {
            text += &format!("{uncounted} tars are elsewhere: what they hold is counted when it is read\n");
        }
        if unlisted_folders > 0 {
            text += &format!("{unlisted_folders} folders could not be listed: what they hold is missing\n");
        }
        let (command, out) = match plan.settings.stage.as_str() {
            "embed" => ("embed", "embeddings"),
            _ => ("caption", "captions.parquet"),
        };
        text += &format!(
            "{command:<8} clipcap {command} --job {job} --shard K   for K from 0 to {last}, anywhere, in any order; or --next\n\
             merge    clipcap merge {job} --out {out}\n"
        );
        let json = json!({
            "command": "plan",
            "exit_status": self.outcome.exit_code(),
            "complete": true,
            "job": self.job,
            "num_shards": plan.num_shards,
            "counts": plan.counts,
            "fingerprint": plan.settings.fingerprint,
            "id": plan.id,
        });
        (text, json)
    }
}

/// Shard numbers for people: `0, 3, 7-9`, and how many more there are.
fn ranges(shards: &[u64]) -> String {
    const MOST: usize = 12;
    let mut found: Vec<(u64, u64)> = Vec::new();
    for &shard in shards {
        match found.last_mut() {
            Some((_, to)) if *to + 1 == shard => *to = shard,
            _ => found.push((shard, shard)),
        }
    }
    let more = found.len().saturating_sub(MOST);
    let parts = found.iter().take(MOST).map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") });
    let mut text = parts.collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += " and more";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_in_a_row_are_told_as_one() {
        assert_eq!(ranges(&[0, 3, 7, 8, 9]), "0, 3, 7-9");
        assert_eq!(ranges(&[]), "");
        let every_other: Vec<u64> = (0..40).map(|i| 2 * i).collect();
        assert!(ranges(&every_other).ends_with("22 and more"));
    }
}
