//! The names in one folder, in their order. A folder of millions of files is sorted on the disk.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{Type, image_path};
use crate::dataset::naming::{FolderIds, keys};
use crate::files::sort::{Merged, Runs, Sorted, Sorter, Stored};
use crate::remote::Version;

/// A name in a folder, and what its listing says of it.
#[derive(Debug)]
pub(super) struct Found {
    pub name: OsString,
    pub kind: Option<Type>,
    /// Of an object elsewhere.
    pub version: Option<Box<Version>>,
}

/// Names that are in memory at once; of more, each part of this many is sorted in a temporary file.
pub(super) const MOST_NAMES: usize = 1 << 20;

/// Names that come in no order.
pub(super) struct Gathered(Sorter<Found>);

/// Names in their order.
pub(super) enum Names {
    /// Last first.
    Few(Vec<Found>),
    Many {
        merged: Box<Merged<Found>>,
        before: Option<(OsString, Option<Type>)>,
    },
}

impl Gathered {
    pub fn new(most: usize) -> Self {
        Self(Sorter::new(most))
    }

    /// # Errors
    /// A full disk.
    pub fn add(&mut self, found: Found) -> io::Result<()> {
        self.0.add(found)
    }

    /// The names, and the ids of the files among them.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(self) -> io::Result<(Names, FolderIds)> {
        match self.0.finish()? {
            Sorted::Few(mut names) => {
                names.dedup_by(|a, b| a.is_same(b));
                let texts: Vec<Cow<str>> = names.iter().filter(|found| found.is_file()).map(|found| text(&found.name)).collect();
                let ids = FolderIds::new(texts.iter().map(|text| &**text));
                drop(texts);
                names.reverse();
                Ok((Names::Few(names), ids))
            }
            Sorted::Many(runs) => {
                let ids = ids_of(&runs)?;
                Ok((Names::Many { merged: Box::new(runs.merged()?), before: None }, ids))
            }
        }
    }
}

impl Names {
    /// The next name.
    ///
    /// # Errors
    /// The disk refuses: the rest is lost.
    pub fn pop(&mut self) -> io::Result<Option<Found>> {
        let (merged, before) = match self {
            Self::Few(names) => return Ok(names.pop()),
            Self::Many { merged, before } => (merged, before),
        };
        for found in merged {
            let found = found?;
            let this = Some((found.name.clone(), found.kind));
            if *before != this {
                *before = this;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Names of folders that come next, as far as that is known.
    pub fn next_folders(&self) -> impl Iterator<Item = &OsStr> {
        let names = match self {
            Self::Few(names) => &names[..],
            Self::Many { .. } => &[],
        };
        names.iter().rev().filter(|found| found.kind == Some(Type::Folder)).map(|found| &*found.name)
    }
}

/// A name as the last part of an image_path.
fn text(name: &OsStr) -> Cow<'_, str> {
    match name.to_str() {
        Some(text) if !text.contains(|c: char| c.is_control() || matches!(c, '\\' | '%')) => text.into(),
        _ => image_path(name.as_bytes()).into(),
    }
}

/// The ids of many files. Only those that share a part of their names with others decide: the rest have what their names give them.
fn ids_of(runs: &Runs) -> io::Result<FolderIds> {
    let hash = |key: &str| BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    let mut hashes = Sorter::new(8 * MOST_NAMES);
    for found in runs.merged::<Found>()? {
        let found = found?;
        if found.is_file() {
            keys(&text(&found.name)).iter().try_for_each(|key| hashes.add(hash(key)))?;
        }
    }
    let mut shared = HashSet::new();
    let mut last = None;
    hashes.finish()?.each(|hash| {
        if last == Some(hash) {
            shared.insert(hash);
        }
        last = Some(hash);
    })?;
    let mut texts: Vec<String> = Vec::new();
    for found in runs.merged::<Found>()? {
        let found = found?;
        let name = text(&found.name);
        if found.is_file() && keys(&name).iter().any(|key| shared.contains(&hash(key))) && texts.last().is_none_or(|t| *t != name)
        {
            texts.push(name.into_owned());
        }
    }
    Ok(FolderIds::new(texts.iter().map(String::as_str)))
}

impl Found {
    fn is_file(&self) -> bool {
        self.kind != Some(Type::Folder)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.kind == other.kind
    }
}

impl Ord for Found {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name.as_bytes().cmp(other.name.as_bytes()).then_with(|| self.kind.cmp(&other.kind))
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Found {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Found {}

const TYPES: [Option<Type>; 5] = [None, Some(Type::File), Some(Type::Folder), Some(Type::Link), Some(Type::Other)];

impl Stored for Found {
    fn put(&self, out: &mut impl Write) -> io::Result<()> {
        let name = self.name.as_bytes();
        let kind = TYPES.iter().position(|kind| *kind == self.kind).unwrap_or_default() as u8;
        let (length, has_version) = ((name.len() as u32).to_le_bytes(), u8::from(self.version.is_some()));
        out.write_all(&[length[0], length[1], length[2], length[3], kind, has_version])?;
        out.write_all(name)?;
        match &self.version {
            Some(version) => out.write_all(&version.to_bytes()),
            None => Ok(()),
        }
    }

    fn get(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 6];
        from.read_exact(&mut head)?;
        let mut name = vec![0; u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize];
        from.read_exact(&mut name)?;
        let version = if head[5] == 1 {
            let mut bytes = [0; Version::BYTES];
            from.read_exact(&mut bytes)?;
            Some(Box::new(Version::from_bytes(&bytes)))
        } else {
            None
        };
        Ok(Self { name: OsString::from_vec(name), kind: TYPES[head[4] as usize % TYPES.len()], version })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn all(names: &[(Vec<u8>, usize)], most: usize) -> (Vec<(OsString, Option<Type>)>, Vec<String>) {
        let mut gathered = Gathered::new(most);
        for (name, kind) in names {
            let found = Found { name: OsString::from_vec(name.clone()), kind: TYPES[kind % TYPES.len()], version: None };
            gathered.add(found).unwrap();
        }
        let (mut names, ids) = gathered.finish().unwrap();
        assert_eq!(matches!(names, Names::Many { .. }), most <= 3);
        let found: Vec<_> = std::iter::from_fn(|| names.pop().unwrap()).collect();
        let files = found.iter().filter(|found| found.is_file());
        let ids = files.map(|found| ids.of(&format!("在/{}", text(&found.name)))).collect();
        (found.into_iter().map(|found| (found.name, found.kind)).collect(), ids)
    }

    proptest! {
        #[test]
        fn many_names_are_what_few_are(
            names in prop::collection::vec((prop::collection::vec(prop::sample::select(b"ab.jpgtx\xC3\xA9\xCC\x81e%".to_vec()), 1..7), 0..5_usize), 3..40),
            stems in prop::collection::vec(("[ab]{1,2}(\\.jpg|\\.txt|\\.jpg\\.png|\\.b)?", 0..2_usize), 0..12),
        ) {
            // A folder has a name once.
            let names: BTreeMap<_, _> = names.into_iter().chain(stems.into_iter().map(|(name, kind)| (name.into_bytes(), kind))).collect();
            let names: Vec<_> = names.into_iter().collect();
            prop_assume!(names.len() > 3);
            prop_assert_eq!(all(&names, 3), all(&names, 1000));
        }
    }

    #[test]
    fn versions_come_back() {
        let version = Version { bytes: 7, modified_ns: -5, tag: Some(9) };
        let found = Found { name: "一".into(), kind: Some(Type::File), version: Some(Box::new(version)) };
        let mut bytes = Vec::new();
        found.put(&mut bytes).unwrap();
        assert_eq!(Found::get(&mut &bytes[..]).unwrap().version, Some(Box::new(version)));
        assert!(Found::get(&mut &bytes[..bytes.len() - 1]).is_err());
    }
}
