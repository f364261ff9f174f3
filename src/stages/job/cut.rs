//! What is listed, cut into shards. A plan that was stopped goes on where its listing stood.

use std::time::{Duration, Instant};

use anyhow::Result;
use rayon::prelude::*;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::dataset::listing::{Entry, Kind, Listing, Position, Walk};
use crate::dataset::wanted::MemberFilter;
use crate::pipeline::job::{JobFolder, PlannedCounts, PlannedShard, Stopped, write_listing};
use crate::pipeline::sources::{TableRows, count_in};
use crate::pipeline::{Interrupt, Reporter, Tick};

/// Tars that are counted at once, on every core.
const COUNTED_AT_ONCE: usize = 64;

/// Between two notes of how far a listing is.
pub(super) const NOTED_EVERY: Duration = Duration::from_secs(2);

/// Parquet files as a listing has them.
pub(super) fn tables<'a>(files: &'a [TableRows], column: &'a str) -> impl Iterator<Item = Entry> + 'a {
    files.iter().cloned().map(move |TableRows { path, name, by_file }| {
        let kind = Kind::Parquet { by_file };
        Entry { path, image_path: name, image_id: column.into(), kind, version: None }
    })
}

/// How a listing is cut.
pub(super) struct Cutting<'a> {
    pub job: &'a JobFolder,
    pub reporter: &'a dyn Reporter,
    pub interrupt: &'a Interrupt,
    pub members: &'a MemberFilter,
    pub shard_size: u64,
    pub noted_every: Duration,
}

/// How cutting ended.
pub(super) enum Cut {
    Whole(Shards),
    /// So many files need not be listed again.
    Interrupted(u64),
}

/// Shards, in order.
#[derive(Default)]
pub(super) struct Shards {
    pub shards: Vec<PlannedShard>,
    pub counts: PlannedCounts,
}

impl Shards {
    /// The beginning of a plan's id.
    pub fn id(&self) -> Sha256 {
        let mut id = Sha256::new();
        self.shards.iter().for_each(|shard| id.update(shard.sha256.to_string()));
        id
    }
}

impl Cutting<'_> {
    /// Cuts what is found in folders. `what` is all that decides the listing: one that was stopped goes on where it is the same.
    pub fn folders(&self, listing: &Listing, what: Json, anew: bool) -> Result<Cut> {
        if let Some(stopped) = self.job.stopped()?.filter(|stopped| !anew && stopped.what == what) {
            let found = stopped.counts.found;
            self.reporter.note(&format!("the listing goes on behind its first {found} files (--overwrite lists again)"));
            let Stopped { shards, counts, position, .. } = stopped;
            let mut underway = UnderWay::new(self, Shards { shards, counts });
            if let Some(cut) = underway.walk(&mut listing.iter_from(&position), &what, true)? {
                return Ok(cut);
            }
            self.reporter.note("folders that are links were found: everything is listed again");
        }
        self.job.clear()?;
        let mut walk = listing.iter();
        let cut = match listing.is_ordered() {
            true => UnderWay::new(self, Shards::default()).walk(&mut walk, &what, false)?,
            false => Some(self.all(walk)?),
        };
        Ok(cut.unwrap_or(Cut::Interrupted(0)))
    }

    /// Cuts everything that is listed.
    pub fn all(&self, entries: impl Iterator<Item = Entry>) -> Result<Cut> {
        let mut underway = UnderWay::new(self, Shards::default());
        for entry in entries {
            if self.interrupt.is_set() {
                return Ok(Cut::Interrupted(0));
            }
            underway.take(entry)?;
        }
        underway.end()
    }
}

/// Shards that are being cut.
struct UnderWay<'a> {
    cutting: &'a Cutting<'a>,
    done: Shards,
    /// Of the shard that is not full.
    shard: Vec<Entry>,
    /// Tars and tables that are not counted yet.
    whole: Vec<Entry>,
    /// What a note was last made of.
    noted: u64,
}

impl<'a> UnderWay<'a> {
    fn new(cutting: &'a Cutting<'a>, done: Shards) -> Self {
        let noted = done.counts.found;
        Self { cutting, done, shard: Vec::new(), whole: Vec::new(), noted }
    }

    /// Cuts what a walk finds, and notes now and then where it stands. None where the walk began in the middle and should not have.
    fn walk(&mut self, walk: &mut Walk, what: &Json, is_resumed: bool) -> Result<Option<Cut>> {
        let mut last_note = Instant::now();
        while let Some(entry) = walk.next() {
            if walk.has_links() {
                if is_resumed {
                    return Ok(None);
                }
                if self.noted > 0 {
                    self.cutting.job.forget_stopped()?;
                    self.noted = 0;
                }
            }
            if self.cutting.interrupt.is_set() {
                return Ok(Some(Cut::Interrupted(self.noted)));
            }
            let mut position = Position::behind(&entry, walk.left_out());
            self.take(entry)?;
            position.left_out = position.left_out.plus(self.cutting.members.left_out());
            let is_at_an_end = self.shard.is_empty() && self.whole.is_empty();
            if is_at_an_end && !walk.has_links() && last_note.elapsed() >= self.cutting.noted_every {
                self.note(what, position)?;
                last_note = Instant::now();
            }
        }
        self.end().map(Some)
    }

    fn note(&mut self, what: &Json, position: Position) -> Result<()> {
        let (shards, counts) = (self.done.shards.clone(), self.done.counts);
        self.cutting.job.save_stopped(&Stopped { what: what.clone(), shards, counts, position })?;
        self.noted = counts.found;
        Ok(())
    }

    fn take(&mut self, entry: Entry) -> Result<()> {
        // Each tar is a shard, and so is each table: they are read from front to back.
        if entry.kind.is_many() {
            self.cut()?;
            self.whole.push(entry);
            return if self.whole.len() == COUNTED_AT_ONCE { self.count() } else { Ok(()) };
        }
        self.count()?;
        self.shard.push(entry);
        if self.shard.len() as u64 == self.cutting.shard_size { self.cut() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<Cut> {
        self.count()?;
        self.cut()?;
        Ok(Cut::Whole(std::mem::take(&mut self.done)))
    }

    /// Makes a shard of each tar and table.
    fn count(&mut self) -> Result<()> {
        let members = self.cutting.members;
        let counts: Vec<Option<u64>> = self.whole.par_iter().map(|entry| count_in(entry, members)).collect::<Result<_, _>>()?;
        for (entry, found) in std::mem::take(&mut self.whole).into_iter().zip(counts) {
            self.put(&[entry], found.unwrap_or_default(), found.is_none())?;
        }
        Ok(())
    }

    /// Makes a shard of the files that are waiting.
    fn cut(&mut self) -> Result<()> {
        if self.shard.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.shard);
        let found = entries.iter().filter(|entry| entry.kind.is_found()).count();
        self.done.counts.unlisted_folders += (entries.len() - found) as u64;
        self.put(&entries, found as u64, false)
    }

    fn put(&mut self, entries: &[Entry], found: u64, is_uncounted: bool) -> Result<()> {
        let path = self.cutting.job.listing(self.done.shards.len() as u64);
        let sha256 = write_listing(&path, entries)?;
        self.done.counts.found += found;
        self.done.shards.push(PlannedShard { found, is_uncounted, sha256 });
        self.cutting.reporter.tick(&Tick { label: "listing", done: self.done.counts.found, ..Tick::default() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};

    use serde_json::json;

    use super::*;
    use crate::dataset::wanted::Wanted;

    /// Interrupts at a shard.
    struct Stop<'a> {
        interrupt: &'a Interrupt,
        after: u64,
        ticks: AtomicU64,
    }

    impl Reporter for Stop<'_> {
        fn note(&self, _: &str) {}

        fn warn(&self, _: &str) {}

        fn detail(&self, _: &str) {}

        fn tick(&self, _: &Tick) {
            if self.ticks.fetch_add(1, Ordering::SeqCst) + 1 == self.after {
                self.interrupt.set();
            }
        }
    }

    #[test]
    fn a_listing_that_was_stopped_anywhere_ends_as_if_it_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let photos = folder.path().join("photos");
        for number in 0..23 {
            let path = photos.join(format!("{}/{}.jpg", ["a", "a!", "b/c", "d"][number % 4], number));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::write(photos.join("a/.hidden"), "x").unwrap();
        let cut = |job: &JobFolder, after: u64, what: u64| {
            let wanted = Wanted::default();
            let (interrupt, members) = (Interrupt::default(), wanted.of_members().unwrap());
            let reporter = Stop { interrupt: &interrupt, after, ticks: AtomicU64::new(0) };
            let (shard_size, noted_every) = (4, Duration::ZERO);
            let cutting = Cutting { job, reporter: &reporter, interrupt: &interrupt, members: &members, shard_size, noted_every };
            let listing = Listing::new(std::slice::from_ref(&photos), &[], &wanted).unwrap();
            let cut = cutting.folders(&listing, json!(what), false).unwrap();
            (cut, listing.left_out().hidden, reporter.ticks.load(Ordering::SeqCst))
        };
        let job = |name: &str| JobFolder::new(&folder.path().join(name));
        let (Cut::Whole(whole), 1, 6) = cut(&job("whole"), 0, 0) else { panic!("no whole listing") };
        for after in 1..6 {
            let job = job(&format!("stopped-{after}"));
            let (Cut::Interrupted(listed), ..) = cut(&job, after, 0) else { panic!("no interrupt") };
            assert_eq!(listed, after * 4);
            // A shard is there that no note tells of, as after a kill.
            fs::write(job.listing(after), "half a shard").unwrap();
            let (Cut::Whole(rest), 1, ticks) = cut(&job, 0, 0) else { panic!("not gone on from") };
            assert_eq!((rest.shards, rest.counts, ticks), (whole.shards.clone(), whole.counts, 6 - after));
        }
        // Something else is listed from the beginning.
        let job = job("other");
        cut(&job, 3, 0);
        assert_eq!(cut(&job, 0, 1).2, 6);
        // So is everything where a link may lead to what was listed.
        cut(&job, 3, 0);
        std::os::unix::fs::symlink("../a", photos.join("d/link")).unwrap();
        assert_eq!(cut(&job, 0, 0).2, 6 + 3 - 1);
    }
}
