//! The writer's side of a stream: shards first, so that nothing computed is lost, then the output's rows in list order.

use std::sync::Arc;

use anyhow::Result;
use crossbeam_channel::Receiver;

use super::entry::{Content, Entry};
use super::progress::Progress;
use super::record::{Record, Value};
use super::shard;
use super::timing::Stopwatches;
use super::window::{FinishedWindow, Item, Origin, shard_name};
use crate::image::Reason;
use crate::pipeline::artifact::Counts;

/// Receives results in list order and makes an output of them.
pub trait Sink<V>: Send {
    /// Takes an image's record, failed or not.
    fn add(&mut self, entry: &Entry, record: &Record<V>) -> Result<()>;

    /// What a result counts for in the second rate of the progress line, such as the captions of an image.
    fn weight(&self, value: &V) -> u64;
}

/// Writes windows until there are no more.
pub struct Writer<'a, S> {
    sink: S,
    progress: Progress<'a>,
    watches: &'a Stopwatches,
    counts: Counts,
    /// Images whose result came about in this run, failed ones among them.
    worked: u64,
    /// The first folder or tar whose content cannot be listed, and why.
    missing: Option<String>,
}

impl<'a, S> Writer<'a, S> {
    pub fn new(sink: S, progress: Progress<'a>, watches: &'a Stopwatches) -> Self {
        Self { sink, progress, watches, counts: Counts::default(), worked: 0, missing: None }
    }

    pub fn run<V: Value>(mut self, windows: Receiver<FinishedWindow<V>>) -> Result<(Counts, Option<String>, S)>
    where
        S: Sink<V>,
    {
        for window in windows {
            let watches = self.watches;
            watches.writing.time(|| self.write(window))?;
            self.progress.tell(&self.counts, self.worked);
        }
        Ok((self.counts, self.missing, self.sink))
    }

    fn write<V: Value>(&mut self, window: FinishedWindow<V>) -> Result<()>
    where
        S: Sink<V>,
    {
        for (path, records) in &window.shards {
            shard::write(path, records)?;
            self.progress.reporter().detail(&format!("{}: {} images", shard_name(path), records.len()));
        }
        for item in &window.items {
            self.take(item)?;
        }
        Ok(())
    }

    fn take<V: Value>(&mut self, item: &Item<V>) -> Result<()>
    where
        S: Sink<V>,
    {
        let Item::Image { entry, record, origin } = item else {
            self.counts.skipped += 1;
            return Ok(());
        };
        let record: &Arc<Record<V>> = record;
        self.worked += u64::from(*origin == Origin::Computed);
        match &record.result {
            Ok(value) => {
                self.counts.succeeded += 1;
                self.counts.damaged += u64::from(value.is_damaged());
                self.counts.kept += u64::from(matches!(entry.content, Content::Kept(_)));
                if *origin == Origin::Computed {
                    self.counts.computed += 1;
                    self.counts.computed_weight += self.sink.weight(value);
                }
            }
            Err(failure) if matches!(entry.content, Content::Unlisted(_)) => {
                self.counts.unlisted += 1;
                self.missing.get_or_insert_with(|| format!("{}: {}", entry.image_path, failure.message));
            }
            Err(failure) => {
                self.counts.failed += 1;
                let known = failure.reason.parse::<Reason>().ok();
                if let Some(at) = known.and_then(|known| Reason::ALL.iter().position(|reason| *reason == known)) {
                    self.counts.failed_by_reason[at] += 1;
                }
            }
        }
        self.sink.add(entry, record)
    }
}
