//! Where the things lie that belong to an output and are no data: in `.clipcap/` beside it, so that a folder of Parquet files holds
//! nothing else and opens as a whole in other tools.
//!
//! ```text
//! DIR/captions.parquet
//! DIR/embeddings/part-00000.parquet
//! DIR/.clipcap/
//!   captions.manifest.json           counts, settings, model
//!   captions.errors.parquet          only where something failed
//!   captions.parquet.stage.json      what `clipcap run` made the output of
//!   embeddings.manifest.json
//!   content-hashes.json              files that `clipcap run` has hashed, in the folder of its outputs
//! ```
//!
//! Versions before this one put them beside the output under the same names, and `manifest.json` and `errors.parquet` into an output
//! that is a folder. [`Bookkeeping::adopt`] moves them; what only looks finds them where they are.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::table;

/// The folder's name. Listings of images never look inside.
pub const FOLDER: &str = ".clipcap";
/// How the manifest's name ends; its whole name in a folder under construction.
pub const MANIFEST: &str = "manifest.json";
/// How the errors table's name ends; its whole name in a folder under construction.
pub const ERRORS: &str = "errors.parquet";
const STAGE_RECORD: &str = "stage.json";
const CONTENT_HASHES: &str = "content-hashes.json";

/// The bookkeeping of one output.
#[derive(Debug, Clone, Copy)]
pub struct Bookkeeping<'a> {
    output: &'a Path,
    is_folder: bool,
}

impl<'a> Bookkeeping<'a> {
    /// Of an output that is (to be) a folder or a file.
    pub fn of(output: &'a Path, is_folder: bool) -> Self {
        Self { output, is_folder }
    }

    /// Where the manifest is written.
    pub fn manifest(&self) -> PathBuf {
        self.place(MANIFEST)
    }

    /// Where the errors table is written; no such file where nothing failed.
    pub fn errors(&self) -> PathBuf {
        self.place(ERRORS)
    }

    /// Where the manifest is read: at its place, or where earlier versions put it.
    pub fn found_manifest(&self) -> PathBuf {
        self.found(MANIFEST)
    }

    /// Where the errors table is read: at its place, or where earlier versions put it.
    pub fn found_errors(&self) -> PathBuf {
        self.found(ERRORS)
    }

    /// Where earlier versions put the manifest and the errors table.
    pub fn old(&self) -> [PathBuf; 2] {
        [MANIFEST, ERRORS].map(|name| self.old_place(name))
    }

    /// Moves what an earlier version left to its place. An errors table without rows goes: there is one only where something failed.
    ///
    /// # Errors
    /// A folder that cannot be made, or a file that cannot be moved.
    pub fn adopt(&self) -> io::Result<()> {
        let [manifest, errors] = self.old();
        if self.manifest().exists() || !is_ours(&manifest) || self.is_another_tables(&manifest) {
            return Ok(());
        }
        if errors.is_file() {
            let is_empty = table::open(&errors, None).is_ok_and(|mut rows| rows.next().is_none());
            if is_empty { fs::remove_file(&errors)? } else { put(&errors, &self.errors())? }
        }
        put(&manifest, &self.manifest())
    }

    fn place(&self, name: &str) -> PathBuf {
        let folder = self.output.with_file_name(FOLDER);
        let whole = self.output.file_name().unwrap_or_default();
        let stem = if self.is_folder { whole } else { self.output.file_stem().unwrap_or_default() };
        let at = |of: &OsStr, name: &str| folder.join(joined(of.into(), name));
        // A table of the same name in another format was here first: its bookkeeping stays its own.
        let is_taken = || self.is_another_tables(&at(stem, MANIFEST));
        if stem != whole && (at(whole, MANIFEST).is_file() || is_taken()) { at(whole, name) } else { at(stem, name) }
    }

    /// Whether a manifest speaks of another table, which is there.
    fn is_another_tables(&self, manifest: &Path) -> bool {
        let value = fs::read(manifest).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        let Some(table) = value.as_ref().and_then(|value| value["table"].as_str()) else { return false };
        !self.is_folder && self.output.file_name() != Some(table.as_ref()) && self.output.with_file_name(table).exists()
    }

    fn old_place(&self, name: &str) -> PathBuf {
        match self.is_folder {
            true => self.output.join(name),
            false => self.output.with_file_name(joined(self.output.file_stem().unwrap_or_default().into(), name)),
        }
    }

    fn found(&self, name: &str) -> PathBuf {
        let (place, old) = (self.place(name), self.old_place(name));
        let manifest = self.old_place(MANIFEST);
        let is_old = !self.manifest().exists() && is_ours(&manifest) && !self.is_another_tables(&manifest);
        if is_old && old.exists() { old } else { place }
    }
}

/// Where `clipcap run` says what it made an output of.
pub fn stage_record(output: &Path) -> PathBuf {
    output.with_file_name(FOLDER).join(joined(output.file_name().unwrap_or_default().into(), STAGE_RECORD))
}

/// Where earlier versions put it.
pub fn old_stage_record(output: &Path) -> PathBuf {
    output.with_file_name(joined(output.file_name().unwrap_or_default().into(), STAGE_RECORD))
}

/// Whether a name is an earlier version's record of a stage.
pub fn is_old_stage_record(name: &str) -> bool {
    name.strip_suffix(STAGE_RECORD).is_some_and(|rest| rest.ends_with('.'))
}

/// Where `clipcap run` remembers hashes: in the folder of its outputs.
pub fn content_hashes(folder: &Path) -> PathBuf {
    folder.join(FOLDER).join(CONTENT_HASHES)
}

/// Where `clipcap run` keeps how long its stages took.
pub fn times(folder: &Path) -> PathBuf {
    folder.join(FOLDER).join("times.json")
}

/// Where earlier versions remembered them.
pub fn old_content_hashes(folder: &Path) -> PathBuf {
    folder.join(CONTENT_HASHES)
}

/// A file that a user names: as given, or in `.clipcap/` where it would have lain beside its output before (`t.errors.parquet`,
/// `embeddings/errors.parquet`).
pub fn resolved(path: &Path) -> PathBuf {
    let Some(name) = path.file_name().filter(|_| !path.exists()) else { return path.into() };
    let beside = path.with_file_name(FOLDER).join(name);
    let folder = path.parent().filter(|folder| folder.file_name().is_some());
    let inside = folder.map(|folder| Bookkeeping::of(folder, true).place(&name.to_string_lossy()));
    [Some(beside), inside].into_iter().flatten().find(|place| place.is_file()).unwrap_or_else(|| path.into())
}

/// Whether a path is that of an errors table which is not there because nothing failed.
pub fn is_absent_errors(path: &Path) -> bool {
    let place = if path.parent().is_some_and(|parent| parent.ends_with(FOLDER)) {
        path.into()
    } else if path.file_name().is_some_and(|name| name == ERRORS) {
        Bookkeeping::of(path.parent().unwrap_or(Path::new("")), true).errors()
    } else {
        path.with_file_name(FOLDER).join(path.file_name().unwrap_or_default())
    };
    let manifest =
        place.to_str().and_then(|text| text.strip_suffix(ERRORS)).map(|text| PathBuf::from(format!("{text}{MANIFEST}")));
    !path.exists() && !place.exists() && manifest.is_some_and(|manifest| manifest.is_file())
}

/// Moves a file, and makes the folder that it goes to.
///
/// # Errors
/// The folder cannot be made, or the file not moved.
pub fn put(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    fs::rename(from, to)
}

fn joined(mut stem: OsString, name: &str) -> OsString {
    stem.push(".");
    stem.push(name);
    stem
}

/// Whether a file is a manifest of this program, and not somebody's of the same name.
fn is_ours(manifest: &Path) -> bool {
    let value = fs::read(manifest).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    value.is_some_and(|value| value.get(table::FORMAT_KEY).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_have_their_places_beside_them() {
        let file = Bookkeeping::of(Path::new("a/t.parquet"), false);
        assert_eq!(file.manifest(), Path::new("a/.clipcap/t.manifest.json"));
        assert_eq!(file.errors(), Path::new("a/.clipcap/t.errors.parquet"));
        let folder = Bookkeeping::of(Path::new("a/b.c/"), true);
        assert_eq!(folder.manifest(), Path::new("a/.clipcap/b.c.manifest.json"));
        assert_eq!(Bookkeeping::of(Path::new("t.csv"), false).errors(), Path::new(".clipcap/t.errors.parquet"));
        assert_eq!(stage_record(Path::new("a/t.parquet")), Path::new("a/.clipcap/t.parquet.stage.json"));
        assert_eq!(content_hashes(Path::new("a")), Path::new("a/.clipcap/content-hashes.json"));
    }

    #[test]
    fn tables_of_one_name_in_two_formats_have_places_of_their_own() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let (parquet, csv) = (at("x.parquet"), at("x.csv"));
        let (first, second) = (Bookkeeping::of(&parquet, false), Bookkeeping::of(&csv, false));
        fs::write(&parquet, "").unwrap();
        put_manifest(&first.manifest(), "x.parquet");
        assert_eq!(first.manifest(), at(".clipcap/x.manifest.json"));
        assert_eq!(second.errors(), at(".clipcap/x.csv.errors.parquet"));
        put_manifest(&second.manifest(), "x.csv");
        // It stays where it is when the first is gone.
        fs::remove_file(&parquet).unwrap();
        assert_eq!(second.manifest(), at(".clipcap/x.csv.manifest.json"));
    }

    fn put_manifest(path: &Path, table: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!(r#"{{"clipcap.format": "captions/1", "table": "{table}"}}"#)).unwrap();
    }

    #[test]
    fn what_earlier_versions_left_is_found_and_moved_and_other_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let output = root.path().join("set");
        fs::create_dir(&output).unwrap();
        let set = Bookkeeping::of(&output, true);
        fs::write(output.join(MANIFEST), r#"{"name": "a web site"}"#).unwrap();
        assert_eq!(set.found_manifest(), set.manifest());
        set.adopt().unwrap();
        assert!(output.join(MANIFEST).exists() && !set.manifest().exists());
        fs::write(output.join(MANIFEST), r#"{"clipcap.format": "dataset/1"}"#).unwrap();
        fs::write(output.join(ERRORS), "rows").unwrap();
        assert_eq!((set.found_manifest(), set.found_errors()), (output.join(MANIFEST), output.join(ERRORS)));
        set.adopt().unwrap();
        assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
        assert!(set.manifest().is_file() && set.errors().is_file());
        assert!(!is_absent_errors(&output.join(ERRORS)));
        assert_eq!(resolved(&output.join(ERRORS)), set.errors());
        assert_eq!(resolved(&root.path().join("set.errors.parquet")), set.errors());
        assert_eq!(resolved(&root.path().join("none.parquet")), root.path().join("none.parquet"));
        fs::remove_file(set.errors()).unwrap();
        for path in [output.join(ERRORS), root.path().join("set.errors.parquet"), set.errors()] {
            assert!(is_absent_errors(&path), "{}", path.display());
        }
        assert!(!is_absent_errors(&root.path().join("other.errors.parquet")) && !is_absent_errors(&set.manifest()));
    }
}
