//! What was there before a run: the results that it goes on from, and those that must not go unasked.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::earlier::{EarlierResults, ResultCheck};
use super::index::Index;
use super::record::{Record, Value};
use super::shard;
use super::stage_run::{Expected, StageParts, StageRun};
use crate::pipeline::artifact::{
    Existing, Failure, Output, WorkFolder, WouldDrop, check_replaceable, check_roots, errors_in, run_of,
};
use crate::table::TableError;

/// Images in a shard of what a finished output held.
const IMPORTED_SHARD_IMAGES: usize = 1024;

/// What earlier runs made.
pub struct Before {
    /// There is a finished output, and it is not to be replaced.
    pub is_finished: bool,
    pub index: Index,
    pub earlier: EarlierResults,
    /// Where only some images are computed: what was computed of them since the output was finished, and what it has failures of.
    pub fresh: Index,
    pub failures: HashMap<String, Failure>,
}

impl StageRun<'_> {
    /// Reads what is there; what a finished output holds is put into shards, so that the stream finds it.
    pub(super) fn before<V, E, M, K, I, R>(&self, work: &mut WorkFolder, parts: &StageParts<E, M, K, I>) -> Result<Before>
    where
        V: Value,
        I: Fn(&Output) -> Result<R>,
        R: Iterator<Item = Result<Record<V>>>,
    {
        let existing = self.existing(work)?;
        let is_finished = matches!(existing, Existing::Finished(_));
        // What is replaced may be anything, and damaged: what cannot be read of it is not counted.
        let is_replaced = self.run.overwrite || work.ledger.overwrite;
        let is_there = is_finished || is_replaced && matches!(self.output.existing(self.format), Ok(Existing::Finished(_)));
        if is_there && !self.run.prune {
            check_roots(&self.output, self.output.path(), self.output.roots().as_ref(), &self.run.roots())?;
        }
        if !work.ledger.imported {
            if is_finished && !work.ledger.overwrite {
                self.import((parts.import)(&self.output)?, work)?;
            }
            work.ledger.imported = true;
            work.save()?;
        }
        let (index, mut known) = self.load(work, || (parts.import)(&self.output), is_finished)?;
        if !index.is_empty() {
            self.reporter.note(&format!("Resuming: {} results are there already", index.len()));
        }
        if is_there {
            known.extend(self.known_by_name(work, parts, is_replaced)?);
        }
        let fresh = |path: &PathBuf| self.only.is_some() && run_of(path) > work.ledger.settled_run;
        let fresh = Index::load(work.shards()?.into_iter().filter(fresh).collect(), |_, _| (), |_, _| ());
        let failures = if self.only.is_some() && is_finished { self.failures()? } else { HashMap::new() };
        Ok(Before { is_finished, index, earlier: EarlierResults::of(known), fresh, failures })
    }

    /// The index of all shards, and what of it counts as earlier results. A shard that a bad disk changed is reported and removed: the output still has
    /// what it held, or it is computed again.
    fn load<V: Value, R: Iterator<Item = Result<Record<V>>>>(
        &self,
        work: &WorkFolder,
        import: impl FnOnce() -> Result<R>,
        is_finished: bool,
    ) -> Result<(Index, Vec<(u64, u64)>)> {
        let settled = work.ledger.settled_run;
        let load = |damaged: &mut Vec<PathBuf>| -> Result<_> {
            let mut known = Vec::new();
            let each = |shard: &Path, key: &shard::Key| {
                let run = run_of(shard);
                if !key.failed && (run > settled || run == 0 && settled == 0) {
                    known.push(EarlierResults::keys(&key.image_path, key.sha256.as_ref()));
                }
            };
            let unreadable = |path: &Path, error: &TableError| {
                self.reporter.warn(&format!("{}: not used, and computed again where need be: {error}", path.display()));
                damaged.push(path.into());
            };
            Ok((Index::load(work.shards()?, each, unreadable), known))
        };
        let mut damaged = Vec::new();
        let loaded = load(&mut damaged)?;
        if damaged.is_empty() {
            return Ok(loaded);
        }
        for shard in &damaged {
            fs::remove_file(shard).with_context(|| format!("cannot remove {}", shard.display()))?;
        }
        if is_finished && !work.ledger.overwrite {
            self.import(import()?, work)?;
        }
        load(&mut Vec::new())
    }

    /// What a finished output holds and the shards do not say: they are older than it, or it is to be replaced, or gives too little to go on
    /// from.
    fn known_by_name<V, E, M, K, I, R>(
        &self,
        work: &WorkFolder,
        parts: &StageParts<E, M, K, I>,
        is_replaced: bool,
    ) -> Result<Vec<(u64, u64)>>
    where
        V: Value,
        I: Fn(&Output) -> Result<R>,
        R: Iterator<Item = Result<Record<V>>>,
    {
        if let Some(names) = parts.names {
            return Ok(names(&self.output)?.iter().map(|name| EarlierResults::keys(name, None)).collect());
        }
        if !is_replaced && work.ledger.settled_run == 0 {
            return Ok(Vec::new());
        }
        let keys = |record: Record<V>| EarlierResults::keys(&record.image_path, record.sha256.as_ref());
        match (parts.import)(&self.output) {
            Ok(records) if is_replaced => Ok(records.map_while(Result::ok).map(keys).collect()),
            Ok(records) => records.map(|record| record.map(keys)).collect(),
            Err(_) if is_replaced => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Refuses a list that leaves out many of the earlier results, before anything is read. What it cannot see yet is seen at the end.
    pub(super) fn look_ahead(&self, before: &Before, expected: Expected) -> Result<()> {
        let earlier = &before.earlier;
        if self.run.prune || earlier.is_empty() {
            return Ok(());
        }
        let mut check = ResultCheck::new(earlier);
        let least = match expected {
            Expected::Number(number) => earlier.len().saturating_sub(number),
            Expected::Names(names) => {
                for name in names {
                    match name {
                        Some(name) if !self.interrupt.is_set() => check.take(&name, None),
                        // What is in a folder that cannot be listed is not gone.
                        _ => return Ok(()),
                    }
                }
                check.at_least_lost()
            }
        };
        if earlier.is_much(least) {
            return Err(self.would_drop(least, before, &check).into());
        }
        Ok(())
    }

    pub(super) fn would_drop(&self, lost: u64, before: &Before, check: &ResultCheck) -> WouldDrop {
        let examples = before.index.names(3, |name| check.is_missing(name));
        let examples = if examples.is_empty() { String::new() } else { format!(" ({}, ...)", examples.join(", ")) };
        WouldDrop(format!(
            "{}: {} images have results, and those of {lost} would be dropped: the images are not here any more, or cannot be \
             used{examples}. Is a disk not mounted, or a list short? Nothing there was changed. Give --prune to let them go, or choose \
             another --out",
            self.output.path().display(),
            before.earlier.len()
        ))
    }

    fn existing(&self, work: &WorkFolder) -> Result<Existing> {
        self.output.check_kind()?;
        if self.run.overwrite || work.ledger.overwrite {
            return Ok(Existing::Nothing);
        }
        let existing = self.output.existing(self.format)?;
        // No manifest: a run of these settings was stopped while it put its output in place.
        let was_being_placed = matches!(existing, Existing::Unknown) && work.ledger.placing;
        // What a choice of images leaves as it is may be of other settings; this run's say so.
        let is_patched = self.only.is_some() && matches!(existing, Existing::Finished(_));
        if !was_being_placed && !is_patched {
            check_replaceable(&self.output, &existing, &self.settings)?;
        }
        Ok(existing)
    }

    /// What the finished output has no results of.
    fn failures(&self) -> Result<HashMap<String, Failure>> {
        let path = self.output.errors();
        if path.exists() { errors_in(&path)?.collect() } else { Ok(HashMap::new()) }
    }

    fn import<V: Value>(&self, records: impl Iterator<Item = Result<Record<V>>>, work: &WorkFolder) -> Result<()> {
        let mut shard = Vec::with_capacity(IMPORTED_SHARD_IMAGES);
        let mut number = 0;
        let mut write = |shard: &mut Vec<Arc<Record<V>>>| -> Result<()> {
            shard::write(&work.imported_shard(number), shard)?;
            number += 1;
            shard.clear();
            Ok(())
        };
        for record in records {
            shard.push(Arc::new(record?));
            if shard.len() == IMPORTED_SHARD_IMAGES {
                write(&mut shard)?;
            }
        }
        if !shard.is_empty() {
            write(&mut shard)?;
        }
        Ok(())
    }
}
