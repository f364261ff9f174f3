//! Who works on which shard. A claim is renewed while its worker lives; one that is not is anybody's to take over.
//!
//! Claims spare double work and say how far it is. Nothing depends on them: two workers at one shard end with one result.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::{JobFolder, host};
use crate::files::{json_text, paths_if_there, put_if_absent, write_json};

/// How often a claim is renewed, and when its worker is taken for dead.
const RENEWED: Duration = Duration::from_secs(15);
const DEAD: Duration = Duration::from_secs(600);

/// What a claim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    pub shard: u64,
    pub host: String,
    pub process: u32,
    /// Seconds since 1970.
    pub started: u64,
    /// Files that are done.
    pub done: u64,
    /// Seconds since the claim was renewed.
    #[serde(skip)]
    pub silent: u64,
    /// Which claim of this shard it is, from 1.
    #[serde(skip)]
    generation: u32,
}

impl ClaimRecord {
    /// Whether nobody is behind it any more.
    pub fn is_dead(&self) -> bool {
        let is_gone = self.host == host() && !Path::new("/proc").join(self.process.to_string()).exists();
        is_gone || self.silent > DEAD.as_secs()
    }

    /// Seconds since it was taken.
    pub fn age(&self) -> u64 {
        now().saturating_sub(self.started)
    }
}

/// A claim of this process's, renewed until it is dropped, which takes it back.
pub struct Claim {
    path: PathBuf,
    /// Files that are done.
    done: Arc<AtomicU64>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    renewing: Option<JoinHandle<()>>,
}

impl Claim {
    /// Files that are done, for others to see.
    pub fn set_done(&self, files: u64) {
        self.done.store(files, Ordering::Relaxed);
    }

    fn hold(path: PathBuf, mut claimed: ClaimRecord) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = bounded(0);
        let (seen, target) = (done.clone(), path.clone());
        let renewing = thread::spawn(move || {
            while matches!(stopped.recv_timeout(RENEWED), Err(RecvTimeoutError::Timeout)) {
                claimed.done = seen.load(Ordering::Relaxed);
                // Where it cannot be renewed, another worker may come: that costs work and nothing else.
                let _ = write_json(&target, &claimed);
            }
        });
        Self { path, done, stop: Some(stop), renewing: Some(renewing) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.renewing.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

impl JobFolder {
    fn claims(&self) -> PathBuf {
        self.root().join("claims")
    }

    /// The latest claim of each shard that has one.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn claimed(&self) -> Result<Vec<ClaimRecord>> {
        let paths = paths_if_there(&self.claims()).with_context(|| format!("cannot list {}", self.claims().display()))?;
        let mut found: Vec<ClaimRecord> = Vec::new();
        for path in paths {
            let Some((shard, generation)) = numbers(&path) else { continue };
            // One that vanishes while it is read was taken back; one that is half written is young.
            let Ok(metadata) = path.metadata() else { continue };
            let silent = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
            let read = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<ClaimRecord>(&text).ok());
            let unread = ClaimRecord { shard, host: String::new(), process: 0, started: now(), done: 0, silent: 0, generation };
            found.push(ClaimRecord { shard, silent: silent.as_secs(), generation, ..read.unwrap_or(unread) });
        }
        found.sort_by_key(|claimed| (claimed.shard, claimed.generation));
        found.reverse();
        found.dedup_by_key(|claimed| claimed.shard);
        found.reverse();
        Ok(found)
    }

    /// Says that this process works on a shard, whoever else does.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn claim(&self, shard: u64) -> Result<Claim> {
        loop {
            let latest = self.claimed()?.into_iter().find(|claimed| claimed.shard == shard);
            if let Some(claim) = self.put_claim(shard, latest.map_or(1, |claimed| claimed.generation + 1))? {
                return Ok(claim);
            }
        }
    }

    /// Takes a shard that is not finished and on which nobody works: first those never begun, then those whose workers died.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn claim_next(&self, num_shards: u64) -> Result<Option<(u64, Claim)>> {
        let claimed = self.claimed()?;
        let claim_of = |shard: u64| claimed.binary_search_by_key(&shard, |claimed| claimed.shard).ok().map(|at| &claimed[at]);
        let never_begun = (0..num_shards).filter(|shard| claim_of(*shard).is_none()).map(|shard| (shard, 1));
        let left_behind = claimed.iter().filter(|claimed| claimed.shard < num_shards && claimed.is_dead());
        for (shard, generation) in never_begun.chain(left_behind.map(|claimed| (claimed.shard, claimed.generation + 1))) {
            if self.is_done(shard) {
                continue;
            }
            let Some(claim) = self.put_claim(shard, generation)? else { continue };
            // Its worker may have finished it between the two looks.
            if !self.is_done(shard) {
                return Ok(Some((shard, claim)));
            }
        }
        Ok(None)
    }

    /// Removes the claims of a finished shard that dead workers left.
    pub fn clear_claims(&self, shard: u64) {
        let paths = paths_if_there(&self.claims()).unwrap_or_default();
        for path in paths.iter().filter(|path| numbers(path).is_some_and(|(of, _)| of == shard)) {
            let _ = fs::remove_file(path);
        }
    }

    fn put_claim(&self, shard: u64, generation: u32) -> Result<Option<Claim>> {
        let path = self.claims().join(format!("{shard:05}-{generation:04}.json"));
        let process = std::process::id();
        let claimed = ClaimRecord { shard, host: host(), process, started: now(), done: 0, silent: 0, generation };
        let put = json_text(&claimed).and_then(|text| put_if_absent(&path, &text));
        let put = put.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(put.then(|| Claim::hold(path, claimed)))
    }
}

/// Shard and generation of a claim, from its name.
fn numbers(path: &Path) -> Option<(u64, u32)> {
    let (shard, generation) = path.file_name()?.to_str()?.strip_suffix(".json")?.split_once('-')?;
    Some((shard.parse().ok()?, generation.parse().ok()?))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_is_taken_once_and_those_of_the_dead_again() {
        let folder = tempfile::tempdir().unwrap();
        let job = JobFolder::new(folder.path());
        let (first, second) = (job.claim_next(3).unwrap().unwrap(), job.claim_next(3).unwrap().unwrap());
        assert_eq!((first.0, second.0), (0, 1));
        fs::create_dir_all(folder.path().join("done")).unwrap();
        fs::write(folder.path().join("done/00002.json"), "{}").unwrap();
        assert!(job.claim_next(3).unwrap().is_none(), "two are taken and one is finished");
        // Taken back by an interrupt.
        drop(second);
        assert_eq!(job.claim_next(3).unwrap().unwrap().0, 1);
        // A worker of this machine that was killed: its process is gone.
        let mut left = job.claimed().unwrap().remove(0);
        left.process = u32::MAX;
        write_json(&first.1.path, &left).unwrap();
        let (again, claim) = job.claim_next(1).unwrap().unwrap();
        assert_eq!((again, job.claimed().unwrap()[0].generation), (0, 2));
        claim.set_done(5);
        job.clear_claims(0);
        assert!(job.claimed().unwrap().iter().all(|claimed| claimed.shard != 0));
        // A worker of another machine is dead after a long silence alone.
        left.host = "elsewhere".into();
        assert!(!left.is_dead());
        left.silent = 601;
        assert!(left.is_dead());
    }
}
