//! What earlier runs found out, looked up by path and by content: a few bytes an image in memory, the records themselves on disk.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::entry::Entry;
use super::record::{Record, Value};
use super::shard;
use crate::files::ContentHash;
use crate::table::TableError;

/// Where a record is: a shard's number in the index, and a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Location {
    shard: u32,
    row: u32,
}

/// Keys sorted for binary search. A key is 8 bytes of a hash: who finds one checks the record itself.
#[derive(Default)]
struct Keys(Vec<(u64, Location)>);

impl Keys {
    fn add(&mut self, key: u64, location: Location) {
        self.0.push((key, location));
    }

    fn sort(&mut self) {
        self.0.sort_unstable();
        self.0.shrink_to_fit();
    }

    /// The locations under a key, latest first: what a later run wrote replaces what an earlier one did.
    fn find(&self, key: u64) -> impl Iterator<Item = Location> + '_ {
        let from = self.0.partition_point(|(k, _)| *k < key);
        let to = from + self.0[from..].partition_point(|(k, _)| *k == key);
        self.0[from..to].iter().rev().map(|(_, location)| *location)
    }
}

/// The records of earlier runs. Made once at the start; memory is 32 bytes an image.
pub struct Index {
    shards: Vec<PathBuf>,
    by_path: Keys,
    by_content: Keys,
}

impl Index {
    /// Reads the keys of `shards`, which go from the oldest to the newest, and shows them to `each`. `unreadable` is told of shards that do
    /// not open; what they held is computed again.
    pub fn load(
        shards: Vec<PathBuf>,
        mut each: impl FnMut(&Path, &shard::Key),
        mut unreadable: impl FnMut(&Path, &TableError),
    ) -> Self {
        let mut index = Self { shards: Vec::new(), by_path: Keys::default(), by_content: Keys::default() };
        for path in shards {
            match shard::read_keys(&path) {
                Ok(keys) => {
                    let shard = index.shards.len() as u32;
                    for (row, key) in keys.into_iter().enumerate() {
                        let location = Location { shard, row: row as u32 };
                        each(&path, &key);
                        index.by_path.add(path_key(&key.image_path), location);
                        if let Some(hash) = key.sha256.filter(|_| !key.failed) {
                            index.by_content.add(content_key(&hash), location);
                        }
                    }
                    index.shards.push(path);
                }
                Err(error) => unreadable(&path, &error),
            }
        }
        index.by_path.sort();
        index.by_content.sort();
        index
    }

    /// Records there are, replaced ones included.
    pub fn len(&self) -> usize {
        self.by_path.0.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The latest record of a path.
    pub fn by_path<V: Value>(&self, image_path: &str, reader: &mut ShardReader<V>) -> Result<Option<Arc<Record<V>>>, TableError> {
        for location in self.by_path.find(path_key(image_path)) {
            let record = reader.take(&self.shards[location.shard as usize], location.row)?;
            if let Some(record) = record.filter(|r| r.image_path == image_path) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The latest good record of every image under a folder (`a/b/`) that `is_wanted`, in list order.
    pub fn under<V: Value>(
        &self,
        folder: &str,
        is_wanted: impl Fn(&str) -> bool,
        reader: &mut ShardReader<V>,
    ) -> Result<Vec<Arc<Record<V>>>, TableError> {
        // `./` is the only root, whose images have no folder in front.
        let prefix = if folder == "./" { "" } else { folder };
        let mut found: BTreeMap<Vec<u8>, (usize, u32)> = BTreeMap::new();
        for (shard, path) in self.shards.iter().enumerate() {
            for (row, key) in shard::read_keys(path)?.into_iter().enumerate() {
                if !key.failed && key.image_path.starts_with(prefix) && is_wanted(&key.image_path) {
                    found.insert(list_order(&key.image_path), (shard, row as u32));
                }
            }
        }
        let mut records = Vec::with_capacity(found.len());
        for (shard, row) in found.into_values() {
            records.extend(reader.take(&self.shards[shard], row)?);
        }
        Ok(records)
    }

    /// The names of some images that `is_wanted`.
    pub fn names(&self, most: usize, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let keys = self.shards.iter().filter_map(|shard| shard::read_keys(shard).ok()).flatten();
        let names = keys.filter(|key| !key.failed).map(|key| key.image_path);
        let mut found: Vec<String> = Vec::new();
        for name in names.filter(|name| is_wanted(name)) {
            if found.len() == most {
                break;
            }
            if !found.contains(&name) {
                found.push(name);
            }
        }
        found
    }

    /// The entry's own record of an earlier run, where it still stands without a look into the file.
    pub fn standing<V: Value>(
        &self,
        entry: &Entry,
        retry_failed: bool,
        reader: &mut ShardReader<V>,
    ) -> Result<Option<Arc<Record<V>>>, TableError> {
        let stat = entry.content.stat();
        if stat.is_none() || self.is_empty() {
            return Ok(None);
        }
        let record = self.by_path(&entry.image_path, reader)?;
        Ok(record.filter(|record| stat == record.stat && (record.result.is_ok() || !retry_failed)))
    }

    /// A record with a result for this content.
    pub fn by_content<V: Value>(
        &self,
        hash: &ContentHash,
        reader: &mut ShardReader<V>,
    ) -> Result<Option<Arc<Record<V>>>, TableError> {
        for location in self.by_content.find(content_key(hash)) {
            let record = reader.take(&self.shards[location.shard as usize], location.row)?;
            if let Some(record) = record.filter(|r| r.sha256.as_ref() == Some(hash) && r.result.is_ok()) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }
}

/// Contents that this run has finished: where to find the result when the same content comes again under another name.
#[derive(Default)]
pub struct Seen {
    shards: Vec<PathBuf>,
    by_content: HashMap<u64, Location>,
}

impl Seen {
    /// Takes in the records of a shard that is (or is about to be) at `path`, in its order.
    pub fn add<V: Value>(&mut self, path: PathBuf, records: &[Arc<Record<V>>]) {
        let shard = self.shards.len() as u32;
        for (row, record) in records.iter().enumerate() {
            if let (Some(hash), Ok(_)) = (&record.sha256, &record.result) {
                self.by_content.entry(content_key(hash)).or_insert(Location { shard, row: row as u32 });
            }
        }
        self.shards.push(path);
    }

    /// The shard and row that hold this content's result, most likely: the caller checks the record.
    pub fn find(&self, hash: &ContentHash) -> Option<(&Path, u32)> {
        let location = self.by_content.get(&content_key(hash))?;
        Some((&self.shards[location.shard as usize], location.row))
    }
}

/// Reads records from shards and keeps the last shard open: look-ups mostly walk along the list.
pub struct ShardReader<V> {
    open: Option<(PathBuf, Vec<Arc<Record<V>>>)>,
    _value: PhantomData<V>,
}

impl<V> Default for ShardReader<V> {
    fn default() -> Self {
        Self { open: None, _value: PhantomData }
    }
}

impl<V: Value> ShardReader<V> {
    /// The record in a row of a shard; `None` past its end.
    pub fn take(&mut self, path: &Path, row: u32) -> Result<Option<Arc<Record<V>>>, TableError> {
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            let records = shard::read(path)?.into_iter().map(Arc::new).collect();
            self.open = Some((path.into(), records));
        }
        Ok(self.open.as_ref().and_then(|(_, records)| records.get(row as usize).cloned()))
    }
}

/// Paths sort by this as a listing has them: by bytes, part by part.
fn list_order(image_path: &str) -> Vec<u8> {
    let mut raw: Vec<u8> = percent_encoding::percent_decode_str(image_path).collect();
    raw.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = 0);
    raw
}

pub(super) fn path_key(image_path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    image_path.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn content_key(hash: &ContentHash) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.bytes()[..8]);
    u64::from_le_bytes(bytes)
}
