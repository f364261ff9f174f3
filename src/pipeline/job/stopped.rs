//! How far a listing is that is being made, so that a plan that was stopped goes on.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{JobFolder, PlannedCounts, PlannedShard, read_if_there};
use crate::dataset::listing::Position;
use crate::files::{remove_if_there, write_json};

/// A listing under way: its first shards are there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stopped {
    /// All that decides the listing and how it is cut.
    pub what: Json,
    pub shards: Vec<PlannedShard>,
    pub counts: PlannedCounts,
    /// Behind the last of them.
    pub position: Position,
}

impl JobFolder {
    fn stopped_path(&self) -> PathBuf {
        self.root.join("listing").join("stopped.json")
    }

    /// The listing that was stopped, if there is one that can be gone on with.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn stopped(&self) -> Result<Option<Stopped>> {
        let Some(text) = read_if_there(&self.stopped_path())? else { return Ok(None) };
        let stopped = serde_json::from_slice::<Stopped>(&text).ok();
        Ok(stopped.filter(|stopped| (0..stopped.shards.len() as u64).all(|shard| self.listing(shard).is_file())))
    }

    /// Notes how far a listing is.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_stopped(&self, stopped: &Stopped) -> Result<()> {
        let path = self.stopped_path();
        write_json(&path, stopped).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Lets go of such a note.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn forget_stopped(&self) -> Result<()> {
        let path = self.stopped_path();
        remove_if_there(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}
