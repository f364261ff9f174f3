//! The model's side of a stream: windows of images in list order, each computed as a whole and handed to the writer as a whole.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::compute::{Compute, Input};
use super::entry::{Entry, Prepared};
use super::gate::Gate;
use super::index::{Seen, ShardReader};
use super::record::Record;
use super::timing::Stopwatches;
use crate::files::ContentHash;
use crate::pipeline::artifact::{Failure, WorkFolder};

/// Images computed in one window, and so in one shard, where the model is on the host's cores.
pub const WINDOW_IMAGES: usize = 64;

/// Images computed in one window at most: where the model is on a card, which is the faster the more it gets at once.
pub const MOST_WINDOW_IMAGES: usize = WINDOW_POSITIONS as usize;

/// A window also ends at every so many list positions, so that what waits for it in list order stays bounded. The ends are list
/// positions and counts of computed images, both the same when an interrupted run goes on: it meets the same windows. A job's shards of
/// any number of thousands begin at such ends, and so they meet them too.
const WINDOW_POSITIONS: u64 = 1000;

/// Windows that may be on their way to the disk; their results are looked up here.
pub const WINDOWS_UNDERWAY: usize = 4;

/// What is known of a listed thing when its turn comes.
pub enum Step<V> {
    /// Its own record of an earlier run still stands.
    Known(Arc<Record<V>>),
    /// An earlier run has a result for this content.
    KnownContent {
        sha256: ContentHash,
        record: Arc<Record<V>>,
    },
    Prepared(Prepared),
}

/// Records that are (or are about to be) in the shard at this path, in its order.
pub type Shard<V> = (PathBuf, Vec<Arc<Record<V>>>);

/// A finished window.
pub struct FinishedWindow<V> {
    /// In list order.
    pub items: Vec<Item<V>>,
    /// New results, by shard. A shard holds a window's records at most.
    pub shards: Vec<Shard<V>>,
}

/// One listed thing and what became of it.
pub enum Item<V> {
    Skipped,
    Image {
        entry: Entry,
        record: Arc<Record<V>>,
        /// How the result came about.
        origin: Origin,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The model ran, or the image failed, in this run.
    Computed,
    /// An earlier run's result, or that of another image with the same content.
    Reused,
}

/// A place in the window: settled, or waiting for the window's result number so-and-so.
enum Slot<V> {
    Settled(Item<V>),
    Computed {
        entry: Entry,
        sha256: ContentHash,
        number: usize,
    },
    /// The same content as result `number`.
    Same {
        entry: Entry,
        sha256: ContentHash,
        number: usize,
    },
}

/// Builds windows from a stream of prepared images.
pub struct Windows<'a, C: Compute> {
    compute: &'a mut C,
    work: &'a WorkFolder,
    gate: &'a Gate,
    watches: &'a Stopwatches,
    window_images: usize,
    slots: Vec<Slot<C::Value>>,
    batch: Vec<Input>,
    num_computed: usize,
    /// Content to result number, within the window.
    pending: HashMap<ContentHash, usize>,
    /// New records that needed no model: failures and contents met before.
    cheap: Vec<Arc<Record<C::Value>>>,
    position: u64,
    next_shard: u32,
    seen: Seen,
    recent: VecDeque<Vec<Shard<C::Value>>>,
    reader: ShardReader<C::Value>,
}

impl<'a, C: Compute> Windows<'a, C> {
    pub fn new(compute: &'a mut C, work: &'a WorkFolder, gate: &'a Gate, watches: &'a Stopwatches, window_images: usize) -> Self {
        Self {
            compute,
            work,
            gate,
            watches,
            window_images: window_images.clamp(1, MOST_WINDOW_IMAGES),
            slots: Vec::new(),
            batch: Vec::new(),
            num_computed: 0,
            pending: HashMap::new(),
            cheap: Vec::new(),
            position: 0,
            next_shard: 0,
            seen: Seen::default(),
            recent: VecDeque::new(),
            reader: ShardReader::default(),
        }
    }

    /// True where stopping now loses nothing that was computed.
    pub fn is_at_rest(&self) -> bool {
        self.num_computed == 0
    }

    /// Takes in the next listed thing. Returns the window where this ends one.
    pub fn add(&mut self, entry: Entry, step: Step<C::Value>) -> Result<Option<FinishedWindow<C::Value>>> {
        match step {
            Step::Known(record) => self.settle(entry, record, Origin::Reused),
            Step::KnownContent { sha256, record } => self.reuse(entry, sha256, &record),
            Step::Prepared(Prepared::Skipped) => self.slots.push(Slot::Settled(Item::Skipped)),
            Step::Prepared(Prepared::Failed { sha256, failure }) => {
                let record = new_record(&entry, sha256, Err(failure));
                // Without times and content nothing could tell later that this failure still stands.
                if record.stat.is_some() && sha256.is_some() {
                    self.cheap.push(record.clone());
                }
                self.settle(entry, record, Origin::Computed);
            }
            Step::Prepared(Prepared::Input { sha256, data, damaged }) => {
                self.add_content(entry, Input { sha256, data, damaged })?
            }
            Step::Prepared(Prepared::Known) => bail!("{}: said to be known, and is not", entry.image_path),
        }
        self.advance()
    }

    /// Ends the last window.
    pub fn end(&mut self) -> Result<Option<FinishedWindow<C::Value>>> {
        if self.slots.is_empty() { Ok(None) } else { self.close().map(Some) }
    }

    fn add_content(&mut self, entry: Entry, input: Input) -> Result<()> {
        let sha256 = input.sha256;
        if let Some(&number) = self.pending.get(&sha256) {
            self.slots.push(Slot::Same { entry, sha256, number });
            return Ok(());
        }
        if let Some(found) = self.find(&sha256)? {
            self.reuse(entry, sha256, &found);
            return Ok(());
        }
        self.pending.insert(sha256, self.num_computed);
        self.slots.push(Slot::Computed { entry, sha256, number: self.num_computed });
        self.num_computed += 1;
        self.batch.push(input);
        if self.batch.len() >= self.compute.batch_size().max(1) {
            self.encode()?;
        }
        Ok(())
    }

    /// The result of another image with the same content.
    fn reuse(&mut self, entry: Entry, sha256: ContentHash, found: &Record<C::Value>) {
        let record = new_record(&entry, Some(sha256), found.result.clone());
        self.cheap.push(record.clone());
        self.settle(entry, record, Origin::Reused);
    }

    fn settle(&mut self, entry: Entry, record: Arc<Record<C::Value>>, origin: Origin) {
        self.slots.push(Slot::Settled(Item::Image { entry, record, origin }));
    }

    /// A result for this content from an earlier window of this run.
    fn find(&mut self, sha256: &ContentHash) -> Result<Option<Arc<Record<C::Value>>>> {
        let Some((path, row)) = self.seen.find(sha256) else {
            return Ok(None);
        };
        let underway = self.recent.iter().flatten().find(|(shard, _)| shard == path);
        let record = match underway {
            Some((_, records)) => records.get(row as usize).cloned(),
            None => self.reader.take(path, row)?,
        };
        Ok(record.filter(|r| r.sha256.as_ref() == Some(sha256) && r.result.is_ok()))
    }

    fn encode(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.watches.encoding.time(|| self.gate.closed(|| self.compute.encode(batch)))
    }

    fn advance(&mut self) -> Result<Option<FinishedWindow<C::Value>>> {
        self.position += 1;
        // Known images pass at once where nothing before them is being computed, in handfuls.
        let passing = self.num_computed == 0 && self.cheap.is_empty() && self.slots.len() >= WINDOW_IMAGES;
        if self.num_computed >= self.window_images || self.position.is_multiple_of(WINDOW_POSITIONS) || passing {
            return self.close().map(Some);
        }
        Ok(None)
    }

    fn close(&mut self) -> Result<FinishedWindow<C::Value>> {
        if !self.batch.is_empty() {
            self.encode()?;
        }
        let values = match self.num_computed {
            0 => Vec::new(),
            _ => self.watches.decoding.time(|| self.gate.closed(|| self.compute.finish()))?,
        };
        if values.len() != self.num_computed {
            bail!("the model returned {} results for {} images", values.len(), self.num_computed);
        }
        let mut computed = Vec::with_capacity(self.num_computed);
        let mut items = Vec::with_capacity(self.slots.len());
        for slot in self.slots.drain(..) {
            let (entry, sha256, number, origin) = match slot {
                Slot::Settled(item) => {
                    items.push(item);
                    continue;
                }
                Slot::Computed { entry, sha256, number } => (entry, sha256, number, Origin::Computed),
                Slot::Same { entry, sha256, number } => (entry, sha256, number, Origin::Reused),
            };
            let record = new_record(&entry, Some(sha256), values[number].clone());
            match origin {
                Origin::Computed => computed.push(record.clone()),
                Origin::Reused => self.cheap.push(record.clone()),
            }
            items.push(Item::Image { entry, record, origin });
        }
        self.num_computed = 0;
        self.pending.clear();
        // All that the model computed is in one shard, which is there whole or not at all: a run that goes on never computes part of
        // a window.
        let mut shards = Vec::new();
        for records in [computed, std::mem::take(&mut self.cheap)] {
            for records in records.chunks(self.window_images.max(WINDOW_IMAGES)) {
                let path = self.work.shard(self.next_shard);
                self.next_shard = self.next_shard.checked_add(1).context("too many shards")?;
                self.seen.add(path.clone(), records);
                shards.push((path, records.to_vec()));
            }
        }
        if !shards.is_empty() {
            self.recent.push_back(shards.clone());
            if self.recent.len() > WINDOWS_UNDERWAY {
                self.recent.pop_front();
            }
        }
        Ok(FinishedWindow { items, shards })
    }
}

fn new_record<V>(entry: &Entry, sha256: Option<ContentHash>, result: Result<V, Failure>) -> Arc<Record<V>> {
    Arc::new(Record { image_path: entry.image_path.clone(), stat: entry.content.stat(), sha256, result })
}

/// For messages: a shard's file name.
pub fn shard_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
