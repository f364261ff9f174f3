//! The work folder beside an output: what an unfinished run has done so far, so that the same command goes on from there.
//!
//! ```text
//! OUT.work/
//!   lock                          who works here; an operating-system lock
//!   ledger.json                   what the results in the shards depend on, and how far preparations got
//!   shards/RRRRRR-NNNNNNNN.parquet   run R's shard N; run 0 is what a finished output held
//!   out/                          the output under construction; moved to its place at the end
//! ```
//!
//! Nothing here is needed once the output is in place, and nothing is lost but time when it is deleted.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::lock::WorkLock;
use super::output::{OtherSettings, Output, check_roots};
use super::roots::Roots;
use super::settings::Settings;
use crate::files::{Checked, if_there, paths_in, read_checked_json, remove_if_there, write_checked_json};
use crate::pipeline::reporter::Reporter;
use crate::table::check_format;

const FORMAT: &str = "ledger/2";

/// The format before there were checksums.
const WITHOUT_CHECKSUM: &str = "ledger/1";

/// What a work folder says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ledger {
    #[serde(rename = "clipcap.format")]
    format: String,
    #[serde(flatten)]
    pub settings: Settings,
    /// Begun with `--overwrite`: what the output held before is not to be used.
    pub overwrite: bool,
    /// What the output held before is in run 0's shards, as far as it can be used.
    pub imported: bool,
    /// The output is complete, and is being put in its place: what is there may be half of it.
    pub placing: bool,
    /// The output is in place, and the folder was kept on request.
    pub finished: bool,
    /// The last run whose results the finished output beside a kept folder speaks for; 0 where there is none.
    #[serde(default)]
    pub settled_run: u32,
    /// Where the images come from.
    #[serde(default)]
    pub roots: Option<Roots>,
}

/// An open, locked work folder.
pub struct WorkFolder {
    root: PathBuf,
    lock: WorkLock,
    pub ledger: Ledger,
    run: u32,
    /// The ledger that was here was not what was written: nobody knows whose results the shards were, and they are gone.
    was_damaged: bool,
}

impl WorkFolder {
    /// `OUT.work`, whatever OUT is.
    pub fn path_for(out: &Path) -> PathBuf {
        let mut name = out.file_name().unwrap_or_default().to_os_string();
        name.push(".work");
        out.with_file_name(name)
    }

    /// The shards of a run with these settings, oldest first, without locking or changing anything; none where there is no such run.
    pub fn peek(root: &Path, settings: &Settings) -> Result<Vec<PathBuf>> {
        match read_ledger(&root.join("ledger.json"))?.0 {
            Some(ledger) if ledger.settings == *settings => shards_in(&root.join("shards")),
            _ => Ok(Vec::new()),
        }
    }

    /// The settings of the work that is in a folder, without locking or changing anything; none where there is no such work.
    pub fn settings_in(root: &Path) -> Result<Option<Settings>> {
        Ok(read_ledger(&root.join("ledger.json"))?.0.map(|ledger| ledger.settings))
    }

    /// Locks the work folder of `output` and reads its ledger. Work that other settings did is refused, unless `overwrite` discards it;
    /// work on images from elsewhere too, unless `prune` lets it go.
    pub fn open(output: &Output, settings: &Settings, roots: &Roots, overwrite: bool, prune: bool) -> Result<Self> {
        let root = &output.work_folder();
        let lock = WorkLock::acquire(root)?;
        let path = root.join("ledger.json");
        let (old, was_damaged) = read_ledger(&path)?;
        let goes_on = match &old {
            None => false,
            // The same command, interrupted and given again: its work so far began after the decision to overwrite.
            Some(old) if overwrite => old.overwrite && !old.finished && old.settings == *settings,
            Some(old) if old.settings == *settings => true,
            // A run that failed before it computed anything is no loss.
            Some(old) if !old.placing && !has_results(&root.join("shards"))? => false,
            Some(old) => {
                let what = if old.finished { "kept" } else { "unfinished" };
                let differences = old.settings.differences(settings).join(", ");
                return Err(OtherSettings(format!(
                    "{}: {what} work with other settings is here; this command has: {differences}. Give the settings of before to go on, \
                     choose another --out, or give --overwrite to discard it",
                    root.display(),
                ))
                .into());
            }
        };
        if goes_on && !prune && has_results(&root.join("shards"))? {
            check_roots(output, root, old.as_ref().and_then(|old| old.roots.as_ref()), roots)?;
        }
        remove(&root.join("out"))?;
        let ledger = match old.filter(|_| goes_on) {
            Some(old) => Ledger { format: FORMAT.into(), finished: false, roots: Some(roots.clone()), ..old },
            None => {
                remove(&root.join("shards"))?;
                Ledger {
                    format: FORMAT.into(),
                    settings: settings.clone(),
                    overwrite,
                    imported: false,
                    placing: false,
                    finished: false,
                    settled_run: 0,
                    roots: Some(roots.clone()),
                }
            }
        };
        fs::create_dir_all(root.join("shards")).with_context(|| format!("cannot make {}", root.join("shards").display()))?;
        let mut folder = Self { root: root.into(), lock, ledger, run: 1, was_damaged };
        folder.save()?;
        folder.clean()?;
        folder.run = folder.shards()?.last().and_then(|path| numbers(path)).map_or(0, |(run, _)| run) + 1;
        Ok(folder)
    }

    /// See [`WorkLock::tell`]; and what of the folder could not be used.
    pub fn tell(&self, reporter: &dyn Reporter) {
        self.lock.tell(reporter);
        if self.was_damaged {
            reporter.warn(&format!(
                "{}: damaged (a bad disk or a power cut), so it is not known what the unfinished results beside it were made with: they \
                 are not used, and computed again",
                self.root.join("ledger.json").display()
            ));
        }
    }

    /// Writes the ledger; what it says is true from then on.
    pub fn save(&self) -> Result<()> {
        let path = self.root.join("ledger.json");
        write_checked_json(&path, &self.ledger).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Where the shard `number` of this run goes.
    pub fn shard(&self, number: u32) -> PathBuf {
        self.shard_of(self.run, number)
    }

    /// Where the shard `number` of what the output held goes.
    pub fn imported_shard(&self, number: u32) -> PathBuf {
        self.shard_of(0, number)
    }

    fn shard_of(&self, run: u32, number: u32) -> PathBuf {
        self.root.join("shards").join(format!("{run:06}-{number:08}.parquet"))
    }

    /// Every shard, from the oldest to the newest.
    pub fn shards(&self) -> Result<Vec<PathBuf>> {
        shards_in(&self.root.join("shards"))
    }

    /// Whether anything that a run computed is here, or what is needed to repair the output.
    pub fn is_needed(&self) -> Result<bool> {
        Ok(self.ledger.placing || has_results(&self.root.join("shards"))?)
    }

    /// Where the output is built.
    pub fn staging(&self) -> PathBuf {
        self.root.join("out")
    }

    /// Removes the folder: the output is in place.
    pub fn remove(self) -> Result<()> {
        let context = || format!("cannot remove {}", self.root.display());
        // The ledger goes first: shards without it are never used.
        remove(&self.root.join("ledger.json")).with_context(context)?;
        self.lock.remove_with_folder().with_context(context)
    }

    /// Keeps the folder after success, so that a later run need not read unchanged files.
    pub fn keep(mut self) -> Result<()> {
        self.ledger.finished = true;
        self.ledger.settled_run = self.run;
        self.ledger.placing = false;
        self.ledger.overwrite = false;
        self.save()?;
        remove(&self.staging())?;
        Ok(())
    }

    /// Removes what a killed run left half-written.
    fn clean(&self) -> Result<()> {
        for folder in [self.root.clone(), self.root.join("shards")] {
            for path in entries(&folder)? {
                if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".tmp-")) {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// The ledger at `path`, and whether what is there is damaged; `None` where there is none or where it is of no use, nor are its shards then.
fn read_ledger(path: &Path) -> Result<(Option<Ledger>, bool)> {
    let read = if_there(read_checked_json::<Ledger>(path)).with_context(|| format!("cannot read {}", path.display()))?;
    let Some(checked) = read else { return Ok((None, false)) };
    match checked {
        Checked::Whole(ledger, has_checksum) if has_checksum || ledger.format == WITHOUT_CHECKSUM => {
            check_format(path, &ledger.format, FORMAT)?;
            Ok((Some(ledger), false))
        }
        _ => Ok((None, true)),
    }
}

/// Every shard in a folder, from the oldest to the newest; none where there is no folder.
fn shards_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let found = entries(folder)?.into_iter().filter_map(|path| numbers(&path).map(|(run, number)| (run, number, path)));
    let mut shards: Vec<(u32, u32, PathBuf)> = found.collect();
    shards.sort();
    Ok(shards.into_iter().map(|(_, _, path)| path).collect())
}

/// Whether a folder has shards other than those of run 0, which the output holds too.
fn has_results(folder: &Path) -> Result<bool> {
    Ok(shards_in(folder)?.last().and_then(|path| numbers(path)).is_some_and(|(run, _)| run > 0))
}

/// The run that wrote a shard.
pub fn run_of(shard: &Path) -> u32 {
    numbers(shard).map_or(0, |(run, _)| run)
}

/// Run and number of a shard, from its name.
fn numbers(path: &Path) -> Option<(u32, u32)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".parquet")?;
    let (run, number) = name.split_once('-')?;
    Some((run.parse().ok()?, number.parse().ok()?))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    paths_in(folder).with_context(|| format!("cannot list {}", folder.display()))
}

fn remove(path: &Path) -> Result<()> {
    remove_if_there(path).with_context(|| format!("cannot remove {}", path.display()))
}
