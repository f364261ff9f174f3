//! Where a stage's output is, what may be there already, and how a new one takes its place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::manifest::Lost;
use super::roots::Roots;
use super::settings::Settings;
use super::workfolder::WorkFolder;
use crate::bookkeeping::{self, Bookkeeping};
use crate::files::{check_name, if_there, name_of, paths_if_there};
use crate::pipeline::reporter::Reporter;
use crate::table::check_format;

/// An output: a table file, or a folder of data; what belongs to it otherwise lies under `.clipcap/` beside it.
#[derive(Debug, Clone)]
pub struct Output {
    path: PathBuf,
    is_folder: bool,
}

/// What is where the output is to be.
#[derive(Debug)]
pub enum Existing {
    Nothing,
    /// A finished output and the settings it was made with.
    Finished(Settings),
    /// A table (or files in the folder) that no manifest speaks of.
    Unknown,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "clipcap.format")]
    format: String,
    #[serde(flatten)]
    settings: Settings,
    table: Option<String>,
    #[serde(default)]
    roots: Option<Roots>,
    #[serde(default)]
    counts: Lost,
}

/// File names (in any subfolder) that a folder output may hold and a newer one may no longer need.
fn is_numbered_part(name: &str) -> bool {
    const PATTERNS: [(&str, &str); 4] =
        [("part-", ".parquet"), ("images-", ".parquet"), ("img_emb_", ".npy"), ("metadata_", ".parquet")];
    PATTERNS.iter().any(|(prefix, suffix)| {
        let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// A path without links, as far as it exists.
pub(super) fn resolved(path: &Path) -> PathBuf {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(path), ..) => path,
        (Err(_), Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            resolved(parent).join(name)
        }
        _ => path.components().collect(),
    }
}

impl Output {
    /// A table file.
    pub fn file(path: &Path) -> Self {
        Self { path: path.into(), is_folder: false }
    }

    /// A folder. A symbolic link to one is followed, so that the work folder lies on the same file system.
    pub fn folder(path: &Path) -> Self {
        Self { path: resolved(path), is_folder: true }
    }

    /// A table or a folder at a URL: names alone.
    pub fn elsewhere(url: &Path, is_folder: bool) -> Self {
        Self { path: url.into(), is_folder }
    }

    /// The file or the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a folder of parts.
    pub fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// The table's name as the manifest gives it; folders have none.
    pub fn table_name(&self) -> Option<String> {
        let name = self.path.file_name().filter(|_| !self.is_folder)?;
        Some(name.to_string_lossy().into_owned())
    }

    /// Where its manifest is written; [`bookkeeping`](Self::bookkeeping) knows where one is read.
    pub fn manifest(&self) -> PathBuf {
        self.bookkeeping().manifest()
    }

    /// Where its errors table is written; there is none where nothing failed.
    pub fn errors(&self) -> PathBuf {
        self.bookkeeping().errors()
    }

    /// What lies beside it.
    pub fn bookkeeping(&self) -> Bookkeeping<'_> {
        Bookkeeping::of(&self.path, self.is_folder)
    }

    /// Moves what an earlier version of this program left to its place under `.clipcap/`.
    ///
    /// # Errors
    /// A full disk, or a folder that may not be written.
    pub fn adopt(&self) -> Result<()> {
        let context = || format!("cannot move the manifest of {} to {}", self.path.display(), self.manifest().display());
        self.bookkeeping().adopt().with_context(context)
    }

    /// The work folder beside it.
    pub fn work_folder(&self) -> PathBuf {
        WorkFolder::path_for(&self.path)
    }

    /// Everything a run writes beside `.clipcap/`, in which no listing looks: it must not be found. Among them is what an earlier version
    /// of this program wrote.
    pub fn own_paths(&self) -> Vec<PathBuf> {
        [self.path.clone(), self.work_folder()].into_iter().chain(self.bookkeeping().old()).collect()
    }

    /// Refuses a folder where a file is to be, a file where a folder is, and names that are too long with what is written beside.
    pub fn check_kind(&self) -> Result<()> {
        self.own_paths().iter().try_for_each(|path| check_name(path)).map_err(anyhow::Error::msg)?;
        let (is_other, is, wanted) = match self.is_folder {
            true => (self.path.is_file(), "a file", "a folder"),
            false => (self.path.is_dir(), "a folder", "a file"),
        };
        if is_other {
            bail!("{} is {is}, and the output is to be {wanted}: choose another --out", self.path.display());
        }
        Ok(())
    }

    /// Looks at what is there. `format` is the manifest's `KIND/MAJOR`.
    pub fn existing(&self, format: &str) -> Result<Existing> {
        self.check_kind()?;
        let path = self.bookkeeping().found_manifest();
        let manifest = if_there(fs::read_to_string(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        let is_there = if self.is_folder { folder_holds_files(&self.path)? } else { fs::symlink_metadata(&self.path).is_ok() };
        let Some(manifest) = manifest else {
            return Ok(if is_there { Existing::Unknown } else { Existing::Nothing });
        };
        let manifest: Manifest = match serde_json::from_str(&manifest) {
            Ok(manifest) => manifest,
            Err(_) if !is_there => return Ok(Existing::Nothing),
            Err(error) => bail!("{}: not a manifest of ours ({error}): move it away, or choose another --out", path.display()),
        };
        check_format(&path, &manifest.format, format)?;
        if manifest.table != self.table_name() {
            // A folder has the manifest that a file of its name with an extension has.
            let theirs =
                manifest.table.as_ref().map_or_else(|| self.path.with_extension(""), |name| self.path.with_file_name(name));
            if theirs.exists() {
                let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let (ours, theirs) = (name(&self.path), name(&theirs));
                bail!("{} belongs to {theirs}, and {ours} would need the same name: choose another --out", path.display());
            }
            if manifest.table.is_some() == self.is_folder {
                return Ok(if is_there { Existing::Unknown } else { Existing::Nothing });
            }
        }
        Ok(if is_there { Existing::Finished(manifest.settings) } else { Existing::Nothing })
    }

    /// Where the images of the output that is there came from, as far as its manifest says so.
    pub fn roots(&self) -> Option<Roots> {
        self.read_manifest()?.roots
    }

    /// What the run that made the output left out of what was there before, as far as its manifest says so.
    pub fn lost(&self) -> Option<Lost> {
        Some(self.read_manifest()?.counts)
    }

    fn read_manifest(&self) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(self.bookkeeping().found_manifest()).ok()?).ok()
    }

    /// Moves a finished output from the work folder to its place. `staged` holds file names relative to `staging`: the table or the
    /// parts; `manifest.json` is there beside them, and `errors.parquet` where something failed.
    ///
    /// The old manifest goes first and the new one comes last, so that a manifest never speaks of another table than the one beside
    /// it. A run that is killed in between is repaired by the next, which finds everything in the work folder.
    pub fn publish(&self, staging: &Path, staged: &[PathBuf], reporter: &dyn Reporter) -> Result<()> {
        let put = |from: &Path, to: &Path| {
            bookkeeping::put(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
            reporter.detail(&format!("wrote {}", to.display()));
            anyhow::Ok(())
        };
        // Both places, before the manifest goes that says whose they are.
        let (manifest, errors_place) = (self.manifest(), self.errors());
        let remove = |path: &Path| if_there(fs::remove_file(path)).with_context(|| format!("cannot replace {}", path.display()));
        remove(&manifest)?;
        reporter.detail("replacing the output");
        if self.is_folder {
            self.remove_surplus(&self.path, staged)?;
        }
        for name in staged {
            let target = if self.is_folder { self.path.join(name) } else { self.path.clone() };
            put(&staging.join(name), &target)?;
        }
        let errors = staging.join(bookkeeping::ERRORS);
        if errors.exists() {
            put(&errors, &errors_place)?;
        } else {
            remove(&errors_place)?;
        }
        put(&staging.join(bookkeeping::MANIFEST), &manifest)
    }

    /// Parts of an earlier, larger output.
    fn remove_surplus(&self, folder: &Path, staged: &[PathBuf]) -> Result<()> {
        let context = || format!("cannot tidy {}", folder.display());
        for path in paths_if_there(folder).with_context(context)? {
            let (name, inside) = (name_of(&path), path.strip_prefix(&self.path).unwrap_or(&path));
            if matches!(name, "img_emb" | "metadata") && path.is_dir() {
                self.remove_surplus(&path, staged)?;
            } else if is_numbered_part(name) && !staged.iter().any(|staged| staged == inside) {
                fs::remove_file(&path).with_context(context)?;
            }
        }
        Ok(())
    }
}

fn folder_holds_files(folder: &Path) -> Result<bool> {
    match fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        entries => Ok(entries.with_context(|| format!("cannot list {}", folder.display()))?.next().is_some()),
    }
}

/// What is there was made with other settings, or nobody knows how: it is replaced only when asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OtherSettings(pub String);

/// A run would leave out much of what was done before, or takes its images from elsewhere: it does so only when asked to.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WouldDrop(pub String);

/// Refuses to go on from results whose images came from folders that this run does not look at.
///
/// # Errors
/// [`WouldDrop`].
pub fn check_roots(output: &Output, what: &Path, old: Option<&Roots>, new: &Roots) -> Result<(), WouldDrop> {
    let missing = old.map_or_else(Vec::new, |old| old.missing_in(new, output.path()));
    if missing.is_empty() {
        return Ok(());
    }
    Err(WouldDrop(format!(
        "{} was made from other images (in {}, seen from its folder), and their results would be dropped: choose another --out, give \
         those folders too, or give --prune to let the results of images go that are not found here",
        what.display(),
        missing.join(", ")
    )))
}

/// Checks an existing output against the settings of this run: what other settings made is not replaced unasked.
///
/// # Errors
/// [`OtherSettings`].
pub fn check_replaceable(output: &Output, existing: &Existing, settings: &Settings) -> Result<()> {
    let name = output.path().display();
    match existing {
        Existing::Nothing => Ok(()),
        Existing::Finished(old) if old.fingerprint == settings.fingerprint => Ok(()),
        Existing::Finished(old) => Err(OtherSettings(format!(
            "{name} was made with other settings; this command has: {}. Give the settings of before, choose another --out, or give \
             --overwrite to replace it",
            old.differences(settings).join(", ")
        ))
        .into()),
        Existing::Unknown => Err(OtherSettings(format!(
            "{name} exists and was not made by clipcap: choose another --out, or give --overwrite to replace it"
        ))
        .into()),
    }
}
