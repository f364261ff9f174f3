//! A walk that goes on where an earlier one stopped.

use std::cmp::Ordering;
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

use super::{Entry, Kind, relative_path};
use crate::dataset::wanted::LeftOut;

/// Where a walk stands: behind an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The last entry's image_path; a folder's that cannot be listed ends with `/`.
    pub last: String,
    /// What was not wanted up to there.
    pub left_out: LeftOut,
}

impl Position {
    /// Behind an entry.
    pub fn behind(last: &Entry, left_out: LeftOut) -> Self {
        Self { last: last.image_path.clone(), left_out }
    }
}

/// Where something is, seen from an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Before,
    /// A folder that the entry is in.
    Above,
    Same,
    Behind,
}

/// What was listed already.
pub(super) struct Listed {
    last: Vec<u8>,
    is_folder: bool,
}

impl Listed {
    pub fn up_to(position: &Position) -> Self {
        let is_folder = position.last.ends_with('/');
        let path = relative_path(position.last.trim_end_matches('/'));
        Self { last: path.as_os_str().as_bytes().to_vec(), is_folder }
    }

    /// Where a relative path is.
    pub fn standing(&self, relative: &[u8]) -> Standing {
        let parts = |path: &[u8]| path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
        let (here, last): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (parts(relative), parts(&self.last));
        match here.cmp(&last) {
            Ordering::Equal => Standing::Same,
            Ordering::Less if last.starts_with(&here) => Standing::Above,
            Ordering::Less => Standing::Before,
            Ordering::Greater => Standing::Behind,
        }
    }

    /// Whether what stands there was listed.
    pub fn has(&self, standing: Standing, kind: Option<Kind>) -> bool {
        match (standing, kind) {
            (Standing::Before, _) => true,
            // A bucket has keys that are files and folders: the file comes first.
            (Standing::Above | Standing::Same, Some(_)) => true,
            (Standing::Same, None) => self.is_folder,
            (Standing::Above, None) | (Standing::Behind, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_listed_is_told_by_the_parts_of_its_path() {
        let position = |last: &str| Position { last: last.into(), left_out: LeftOut::default() };
        let listed = Listed::up_to(&position("b/a!/y%25.jpg"));
        let cases = [
            ("", Standing::Above),
            ("b", Standing::Above),
            ("b/a!", Standing::Above),
            ("b/a!/y%.jpg", Standing::Same),
            ("b/a", Standing::Before),
            ("b/a.jpg", Standing::Behind),
            ("b/a!/z", Standing::Behind),
            ("a/z", Standing::Before),
            ("c", Standing::Behind),
        ];
        for (path, standing) in cases {
            assert_eq!(listed.standing(path.as_bytes()), standing, "{path}");
        }
        assert!(listed.has(Standing::Same, Some(Kind::File)) && listed.has(Standing::Above, Some(Kind::File)));
        assert!(!listed.has(Standing::Same, None) && !listed.has(Standing::Above, None));
        assert!(Listed::up_to(&position("b/")).has(Standing::Same, None));
    }
}
