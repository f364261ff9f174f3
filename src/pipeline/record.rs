//! What is known of one image: where it was, what its content hashes to, and what was made of it or why nothing was.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

/// SHA-256 of an image's content.
pub type ContentHash = [u8; 32];

/// What the file system says of a file. Unchanged, the file needs no second reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    pub size_bytes: u64,
    pub mtime_ns: i64,
    /// Change time: moves even where a tool sets the modification time back.
    pub ctime_ns: i64,
    pub inode: u64,
}

impl Stat {
    /// What a file's metadata say.
    pub fn of(metadata: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size_bytes: metadata.size(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// False where the file changed so recently that another change could leave the same times behind: such a file is read again.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        const MARGIN: Duration = Duration::from_secs(2);
        let limit = since_epoch_ns(now).saturating_sub(MARGIN.as_nanos() as i64);
        self.mtime_ns < limit && self.ctime_ns < limit
    }
}

fn since_epoch_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
    }
}

/// Why an image has no result: a word from the fixed list, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

/// One image's result, as shards keep it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<V> {
    /// Relative, percent-encoded, `/` between parts: the image's name in every table.
    pub image_path: String,
    /// Absent where the file must be read again to know whether it changed.
    pub stat: Option<Stat>,
    /// Absent where the content could not be read.
    pub sha256: Option<ContentHash>,
    pub result: Result<V, Failure>,
}

/// What a stage makes of an image, and how a column of a shard holds it.
pub trait Value: Clone + Send + Sync + 'static {
    /// The shard column's name.
    const COLUMN: &'static str;

    /// The column's type.
    fn data_type() -> DataType;

    /// One element for each value; null for `None` (an image that failed).
    fn to_column(values: &[Option<&Self>]) -> ArrayRef;

    /// Whether the image's file is damaged, and its result of what there is of it.
    fn is_damaged(&self) -> bool {
        false
    }

    /// The column's elements, or `None` where it does not look as [`to_column`](Self::to_column) writes it.
    fn from_column(column: &dyn Array) -> Option<Vec<Option<Self>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_just_written_is_not_settled_and_becomes_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"1").unwrap();
        let stat = Stat::of(&std::fs::metadata(&path).unwrap());
        let now = SystemTime::now();
        assert!(!stat.is_settled(now));
        assert!(stat.is_settled(now + Duration::from_secs(10)));
        assert_eq!(stat.size_bytes, 1);
    }
}
