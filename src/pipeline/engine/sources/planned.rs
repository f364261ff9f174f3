//! Files that a job's plan listed for one of its shards.

use std::path::PathBuf;

use anyhow::Result;

use super::folder;
use crate::dataset::wanted::{MemberFilter, PatternError, Wanted};
use crate::pipeline::engine::Entry;
use crate::pipeline::job::listed_in;

/// One shard of a job: what was found when the job was planned, looked at again when its turn comes.
pub struct PlannedFiles {
    listing: PathBuf,
    max_bytes: u64,
    members: MemberFilter,
}

impl PlannedFiles {
    /// `listing` is the shard's file in the job folder; `max_bytes` is the most an image in a tar may have.
    /// `wanted` is the plan's, which tells members of tars.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn open(listing: PathBuf, max_bytes: u64, wanted: &Wanted) -> Result<Self, PatternError> {
        Ok(Self { listing, max_bytes, members: wanted.of_members()? })
    }

    /// The shard's files, in the order of the whole listing.
    ///
    /// # Errors
    /// A listing that cannot be read.
    pub fn entries(&self) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
        let (max_bytes, members) = (self.max_bytes, self.members.clone());
        Ok(listed_in(&self.listing)?.flat_map(move |found| -> Box<dyn Iterator<Item = Result<Entry>> + Send> {
            match found {
                Ok(found) => folder::entries(found, max_bytes, &members),
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        }))
    }
}
