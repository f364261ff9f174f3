//! Whether a file is still the one it was.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

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
