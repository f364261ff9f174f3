//! What a run takes its images from: named on the command line, then opened and listed.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{DatasetFiles, Embeddings, Folder, PlannedFiles, StoredImages, known_total};
use crate::dataset::wanted::{LeftOut, Wanted};
use crate::pipeline::artifact::Roots;
use crate::pipeline::engine::{Counter, Entry, Expected};

/// What images are taken from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Folders, image files and tars.
    Paths(Vec<PathBuf>),
    /// A dataset that stores its images.
    Dataset(PathBuf),
    /// Parquet files with a column of images, and the column's name.
    Parquet(Vec<PathBuf>, String),
    /// A dataset's list of images, whose files are under these folders.
    DatasetFiles(PathBuf, Vec<PathBuf>),
    /// An embeddings folder, a Parquet file of one, or a `.npy` file.
    Embeddings(PathBuf),
    /// One shard of a job: its listing, and how many files that holds.
    Planned(PathBuf, u64),
}

impl Source {
    /// Where the images lie, seen from `out`.
    pub fn roots(&self, out: &Path) -> Roots {
        match self {
            Self::Paths(roots) | Self::DatasetFiles(_, roots) => Roots::of_files(roots, out),
            Self::Parquet(files, _) => Roots::of(files.clone(), out),
            Self::Dataset(path) | Self::Embeddings(path) => Roots::of([path.clone()], out),
            // A job's plan says where its images are.
            Self::Planned(..) => Roots::default(),
        }
    }

    /// What a report's `--images` takes.
    pub fn folders(&self) -> Vec<PathBuf> {
        match self {
            Self::Paths(paths) => paths.iter().filter(|path| path.is_dir()).cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// `own` are the run's own outputs, which are not found; `max_bytes` is the most an image in a tar may have.
    ///
    /// # Errors
    /// What is named is not there, or is something else.
    pub fn open(&self, own: &[PathBuf], max_bytes: u64, wanted: &Wanted) -> Result<Listed> {
        Ok(match self {
            Self::Paths(roots) => Listed::Files(Folder::new(roots, own, max_bytes, wanted)?),
            Self::Dataset(path) => Listed::Stored(StoredImages::open(path)?),
            Self::Parquet(files, column) => Listed::Stored(StoredImages::in_files(files, column)?),
            Self::DatasetFiles(path, roots) => Listed::Named(DatasetFiles::open(path, roots, max_bytes)?),
            Self::Embeddings(path) => Listed::Embedded(Embeddings::open(path)?),
            Self::Planned(listing, found) => Listed::Planned(PlannedFiles::open(listing.clone(), max_bytes, wanted)?, *found),
        })
    }
}

/// An opened source.
pub enum Listed {
    Files(Folder),
    Stored(StoredImages),
    Named(DatasetFiles),
    Embedded(Embeddings),
    Planned(PlannedFiles, u64),
}

/// What is listed, in list order.
pub type Entries<'a> = Box<dyn Iterator<Item = Result<Entry>> + Send + 'a>;

impl Listed {
    /// Everything, in list order.
    pub fn entries(&self) -> Entries<'_> {
        fn or_error<'a>(entries: Result<impl Iterator<Item = Result<Entry>> + Send + 'a>) -> Entries<'a> {
            match entries {
                Ok(entries) => Box::new(entries),
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        }
        match self {
            Self::Files(folder) => Box::new(folder.entries()),
            Self::Stored(images) => Box::new(images.entries()),
            Self::Named(files) => or_error(files.entries()),
            Self::Embedded(embeddings) => embeddings.entries(),
            Self::Planned(files, _) => or_error(files.entries()),
        }
    }

    /// How many there are, where that is known.
    fn number(&self) -> Option<u64> {
        match self {
            Self::Files(_) => None,
            Self::Stored(images) => Some(images.num_rows),
            Self::Named(files) => Some(files.num_rows),
            Self::Embedded(embeddings) => Some(embeddings.num_rows),
            Self::Planned(_, found) => Some(*found),
        }
    }

    /// Whether at least so many are to be expected, which is looked at without reading them.
    pub fn has_at_least(&self, least: u64) -> bool {
        match self {
            Self::Files(folder) => folder.has_at_least(least),
            other => other.number().is_none_or(|number| number >= least),
        }
    }

    /// What was not wanted, once all entries were listed.
    pub fn left_out(&self) -> LeftOut {
        match self {
            Self::Files(folder) => folder.left_out(),
            _ => LeftOut::default(),
        }
    }

    /// What can be said of the list before it is worked on.
    pub fn expected(&self) -> Expected<'_> {
        match self {
            Self::Files(folder) => folder.expected(),
            other => Expected::Number(other.number().unwrap_or_default()),
        }
    }

    /// Counts what will be listed beside the work.
    pub fn counter(&self) -> Option<Counter<'_>> {
        match self {
            Self::Files(folder) => folder.counter(),
            other => other.number().and_then(known_total),
        }
    }
}
