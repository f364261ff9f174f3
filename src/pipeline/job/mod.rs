//! A job folder: what many workers share. Files are the whole protocol, so that any engine may start the workers.
//!
//! ```text
//! JOB/
//!   plan.json                 what is to be done: settings, inputs, and how many shards; written last by `plan`
//!   listing/00000.parquet     what was found, cut into shards
//!   listing/stopped.json      how far `plan` is, while it lists
//!   claims/00000-0001.json    who is at work on a shard, and how far; renewed while they are
//!   work/00000.HOST/          a shard under way on a host; safe to delete, the price is time
//!   results/00000-HASH.*      a finished shard's tables, named by their content
//!   done/00000.json           a finished shard's record, put there last and only once
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::dataset::wanted::Wanted;
use crate::files::{ContentHash, if_there, json_text, numbered_in, put_if_absent, remove_if_there, write_json};
use crate::pipeline::artifact::{Counts, Settings};
use crate::remote;
use crate::table::check_format;

mod claims;
mod crew;
mod listing;
mod stopped;

pub use claims::{Claim, ClaimRecord};
pub use crew::Crew;
pub use listing::{listed_in, write_listing};
pub use stopped::Stopped;

const PLAN_FORMAT: &str = "job/1";
const RECORD_FORMAT: &str = "job-shard/1";

/// Where a job's files are.
#[derive(Debug, Clone)]
pub struct JobFolder {
    root: PathBuf,
}

/// What is to be done, and into how many shards it is cut.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// `job/MAJOR`.
    #[serde(rename = "clipcap.format")]
    pub format: String,
    /// Of the settings and of everything listed: records of another plan are not mistaken for this one's.
    pub id: String,
    /// Shards are numbered from 0.
    pub num_shards: u64,
    /// Files of a shard; the last one may have fewer.
    pub shard_size: u64,
    /// What was found in all.
    pub counts: PlannedCounts,
    /// What results depend on, but for what only a worker knows: its device, runtime and CPU type.
    #[serde(flatten)]
    pub settings: Settings,
    /// As they were given, made absolute.
    pub inputs: Vec<String>,
    /// Which files of those folders.
    #[serde(default)]
    pub wanted: Wanted,
    /// A bundle, by the path that workers find it at.
    pub model: PathBuf,
    /// What scores captions, where that is another than the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorer: Option<PathBuf>,
    /// What workers use that are not told otherwise.
    pub device: String,
    /// As `--precision` spells it; the same for all workers.
    pub precision: String,
    /// Images per batch; None: each worker's default.
    pub batch_size: Option<usize>,
    /// By number.
    pub shards: Vec<PlannedShard>,
}

/// How much was found when the job was planned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCounts {
    pub found: u64,
    /// Folders whose content could not be listed.
    pub unlisted_folders: u64,
}

/// One shard of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedShard {
    pub found: u64,
    /// A tar elsewhere: what it holds is seen when its turn comes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_uncounted: bool,
    /// Of the shard's listing.
    pub sha256: ContentHash,
}

/// A finished shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    #[serde(rename = "clipcap.format")]
    pub format: String,
    /// The plan's id.
    pub plan: String,
    pub shard: u64,
    pub counts: Counts,
    /// Of captions or of embeddings.
    pub table: ResultFile,
    pub errors: ResultFile,
    /// All that the results depend on.
    #[serde(flatten)]
    pub settings: Settings,
    /// Of embeddings: the fingerprint of a single run that writes `.npy`. Numbers of the settings may lose their last digit in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npy_fingerprint: Option<ContentHash>,
    /// Device, precision, runtime and CPU type: the part of the settings in which workers may differ.
    pub identity: Json,
    pub seconds: f64,
    pub host: String,
}

/// A file of a finished shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultFile {
    /// In the job's folder of results.
    pub name: String,
    pub bytes: u64,
    pub sha256: ContentHash,
}

impl JobFolder {
    /// A folder that is or will be a job's.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A shard's listing.
    pub fn listing(&self, shard: u64) -> PathBuf {
        self.root.join("listing").join(format!("{shard:05}.parquet"))
    }

    /// Where this host works on a shard.
    pub fn attempt(&self, shard: u64) -> PathBuf {
        self.root.join("work").join(format!("{shard:05}.{}", host()))
    }

    /// Shards that this host has a folder of.
    pub fn attempts(&self) -> Vec<u64> {
        let attempts = numbered_in(&self.root.join("work"), "", &format!(".{}", host())).unwrap_or_default();
        attempts.into_iter().map(|(shard, _)| shard).collect()
    }

    /// A file of a finished shard.
    pub fn result(&self, name: &str) -> PathBuf {
        self.root.join("results").join(name)
    }

    fn record_path(&self, shard: u64) -> PathBuf {
        self.root.join("done").join(format!("{shard:05}.json"))
    }

    fn plan_path(&self) -> PathBuf {
        self.root.join("plan.json")
    }

    /// Refuses a URL: claims and shards under way are files with locks and times, which buckets have not.
    ///
    /// # Errors
    /// A URL.
    pub fn check_place(&self) -> Result<()> {
        if remote::is_url(&self.root) {
            bail!(
                "{}: a job folder has to be a folder that all workers see, not a URL (inputs and the merged table may be URLs)",
                remote::shown(&self.root)
            );
        }
        Ok(())
    }

    /// The plan, or None where there is none yet.
    ///
    /// # Errors
    /// A plan that cannot be read, or another version's.
    pub fn find_plan(&self) -> Result<Option<Plan>> {
        self.check_place()?;
        let path = self.plan_path();
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        let plan: Plan = serde_json::from_slice(&text).with_context(|| format!("{}: not a job's plan", path.display()))?;
        check_format(&path, &plan.format, PLAN_FORMAT)?;
        if plan.shards.len() as u64 != plan.num_shards {
            bail!(
                "{}: {} shards, and {} of them are described: plan the job again",
                path.display(),
                plan.num_shards,
                plan.shards.len()
            );
        }
        Ok(Some(plan))
    }

    /// The plan of a job that was planned.
    ///
    /// # Errors
    /// No plan, or one that cannot be read.
    pub fn plan(&self) -> Result<Plan> {
        self.find_plan()?
            .with_context(|| format!("{}: no job is planned here: `clipcap plan INPUT... --job {0}`", self.root.display()))
    }

    /// Writes the plan; from then on the job is there.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_plan(&self, plan: &Plan) -> Result<()> {
        let path = self.plan_path();
        write_json(&path, plan).with_context(|| format!("cannot write {}", path.display()))?;
        self.forget_stopped()
    }

    /// Removes whatever a job was here: the plan first, so that nothing is begun any more.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn clear(&self) -> Result<()> {
        let context = || format!("cannot clear {}", self.root.display());
        let rest = ["done", "claims", "work", "results", "listing"].map(|name| self.root.join(name));
        [self.plan_path()].iter().chain(&rest).try_for_each(|path| remove_if_there(path)).with_context(context)
    }

    /// The record of a finished shard; None where it is not finished.
    ///
    /// # Errors
    /// A record that cannot be read, or another plan's.
    pub fn record(&self, plan: &Plan, shard: u64) -> Result<Option<Record>> {
        let path = self.record_path(shard);
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        let context = || format!("{}: not the record of a shard: remove it, and run the shard again", path.display());
        let record: Record = serde_json::from_slice(&text).with_context(context)?;
        check_format(&path, &record.format, RECORD_FORMAT)?;
        if record.plan != plan.id || record.shard != shard {
            bail!("{}: a record of another plan: remove it, and run the shard again", path.display());
        }
        Ok(Some(record))
    }

    /// Whether a shard has a record, without reading it.
    pub fn is_done(&self, shard: u64) -> bool {
        self.record_path(shard).exists()
    }

    /// Puts a finished shard's record there, unless one is: the first stands. `replace` puts it there in any case.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn put_record(&self, record: &Record, replace: bool) -> Result<bool> {
        let path = self.record_path(record.shard);
        let context = || format!("cannot write {}", path.display());
        if replace {
            return write_json(&path, record).map(|()| true).with_context(context);
        }
        json_text(record).and_then(|text| put_if_absent(&path, &text)).with_context(context)
    }

    /// Moves a file of a finished shard to where all may read it, under a name that its content decides.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn keep_result(&self, shard: u64, file: &Path, ending: &str) -> Result<ResultFile> {
        let context = || format!("cannot move {} into {}", file.display(), self.root.display());
        let sha256 = ContentHash::of_file(file).with_context(context)?;
        let bytes = file.metadata().with_context(context)?.len();
        let name = format!("{shard:05}-{sha256:.16}.{ending}");
        let target = self.result(&name);
        fs::create_dir_all(self.root.join("results")).with_context(context)?;
        fs::rename(file, target).with_context(context)?;
        Ok(ResultFile { name, bytes, sha256 })
    }
}

impl Plan {
    /// Fills in what all plans have.
    pub fn format() -> String {
        PLAN_FORMAT.into()
    }
}

impl Record {
    /// Fills in what all records have.
    pub fn format() -> String {
        RECORD_FORMAT.into()
    }
}

/// This machine's name, as far as a file name can hold it.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    if name.is_empty() { "host".into() } else { name }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    if_there(fs::read(path)).with_context(|| format!("cannot read {}", path.display()))
}
