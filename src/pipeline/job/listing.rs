//! A job's listing: what was found, in order, cut into shards. Each shard's part is a small Parquet file.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, BinaryArray, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;

use crate::dataset::listing::{Entry, Kind};
use crate::files::{ContentHash, write_atomic};
use crate::table::{self, TableError};

const FORMAT: &str = "listing/1";

/// Writes what was found as one shard's listing, and says what the file's hash is.
///
/// # Errors
/// The disk refuses.
pub fn write_listing(path: &Path, found: &[Entry]) -> Result<ContentHash, TableError> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("path", DataType::Binary, false),
        Field::new("image_path", DataType::Utf8, false),
        Field::new("image_id", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, false),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(BinaryArray::from_iter_values(found.iter().map(|entry| entry.path.as_os_str().as_bytes()))),
        Arc::new(StringArray::from_iter_values(found.iter().map(|entry| &entry.image_path))),
        Arc::new(StringArray::from_iter_values(found.iter().map(|entry| &entry.image_id))),
        Arc::new(StringArray::from_iter_values(found.iter().map(|entry| kind_name(entry.kind)))),
    ];
    let batch =
        RecordBatch::try_new(schema.clone(), columns).map_err(|source| TableError::Arrow { path: path.into(), source })?;
    let bytes = table::to_bytes(path, &batch, FORMAT)?;
    write_atomic(path, &bytes).map_err(|source| TableError::Io { path: path.into(), source })?;
    Ok(ContentHash::of(&bytes))
}

/// What a shard's listing holds, in order.
///
/// # Errors
/// A file that is no listing.
pub fn listed_in(path: &Path) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
    Ok(table::rows(path, Some(FORMAT), entries_of)?)
}

fn entries_of(batch: &RecordBatch, path: &Path) -> Result<Vec<Entry>> {
    let paths: &BinaryArray = table::column(batch, "path", path)?;
    let image_paths: &StringArray = table::column(batch, "image_path", path)?;
    let ids: &StringArray = table::column(batch, "image_id", path)?;
    let kinds: &StringArray = table::column(batch, "kind", path)?;
    (0..batch.num_rows())
        .map(|row| {
            let kind = kind_of(kinds.value(row))
                .with_context(|| format!("{}: {:?} is not a kind of file", path.display(), kinds.value(row)))?;
            let file = PathBuf::from(OsString::from_vec(paths.value(row).to_vec()));
            let (image_path, image_id) = (image_paths.value(row).into(), ids.value(row).into());
            Ok(Entry { path: file, image_path, image_id, kind, version: None })
        })
        .collect()
}

const KINDS: [(&str, Kind); 9] = [
    ("file", Kind::File),
    ("special", Kind::Special),
    ("broken_link", Kind::BrokenLink),
    ("tar", Kind::Tar),
    ("parquet", Kind::Parquet { by_file: false }),
    ("parquet_by_file", Kind::Parquet { by_file: true }),
    ("forbidden_folder", Kind::UnreadableFolder(io::ErrorKind::PermissionDenied)),
    ("unreachable_folder", Kind::UnreadableFolder(io::ErrorKind::HostUnreachable)),
    ("unreadable_folder", Kind::UnreadableFolder(io::ErrorKind::Other)),
];

fn kind_name(kind: Kind) -> &'static str {
    // A folder that cannot be listed for another reason than permission is told the same way whatever that is.
    KINDS.iter().find(|(_, known)| *known == kind).map_or("unreadable_folder", |(name, _)| name)
}

fn kind_of(name: &str) -> Option<Kind> {
    KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_comes_back_with_names_that_are_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000.parquet");
        let named = |name: &[u8], kind| Entry {
            path: Path::new("/photos").join(std::ffi::OsStr::from_bytes(name)),
            image_path: crate::dataset::listing::image_path(name),
            image_id: format!("{kind:?}"),
            kind,
            version: None,
        };
        let found = [
            named(b"\xFF\xFE.jpg", Kind::File),
            named("猫/a\n.png".as_bytes(), Kind::BrokenLink),
            named(b"pipe.jpg", Kind::Special),
            named(b"set-0.tar", Kind::Tar),
            named(b"closed", Kind::UnreadableFolder(io::ErrorKind::PermissionDenied)),
        ];
        write_listing(&path, &found).unwrap();
        let back: Vec<Entry> = listed_in(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(back, found);
        write_listing(&path, &[named(b"a", Kind::UnreadableFolder(io::ErrorKind::TimedOut))]).unwrap();
        let back = listed_in(&path).unwrap().next().unwrap().unwrap();
        assert_eq!(back.kind, Kind::UnreadableFolder(io::ErrorKind::Other));
        write_listing(&path, &[]).unwrap();
        assert_eq!(listed_in(&path).unwrap().count(), 0);
    }
}
