//! Files that a job's plan listed for one of its shards.

use std::path::PathBuf;

use anyhow::Result;

use super::folder;
use crate::pipeline::Entry;
use crate::pipeline::jobfolder::listed_in;

/// One shard of a job: what was found when the job was planned, looked at again when its turn comes.
pub struct PlannedFiles {
    listing: PathBuf,
}

impl PlannedFiles {
    /// `listing` is the shard's file in the job folder.
    pub fn open(listing: PathBuf) -> Self {
        Self { listing }
    }

    /// The shard's files, in the order of the whole listing.
    ///
    /// # Errors
    /// A listing that cannot be read.
    pub fn entries(&self) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
        Ok(listed_in(&self.listing)?.map(|found| Ok(folder::entry(found?))))
    }
}
