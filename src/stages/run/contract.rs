//! What a pipeline has to know of a command line. The command says it itself; no list of commands or flags is kept here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::output_at;
use crate::files::{between, paths_in};

/// A command line, seen from a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contract {
    /// What it reads.
    pub inputs: Vec<Input>,
    /// Flags that change how a result is computed and not what it is, such as `--threads`.
    pub idle: Vec<String>,
    /// It keeps what is still right of an output that is there, where settings and model are the same; others write theirs anew.
    pub keeps: bool,
    /// It takes `--overwrite`.
    pub overwrites: bool,
}

/// A file or folder that a command line names and its command reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// As it is spelled, such as `--dataset`; `input` where it stands without one.
    pub flag: String,
    pub path: PathBuf,
    pub scope: Scope,
}

/// What of an input decides the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    #[default]
    Whole,
    /// Of a dataset, its captions: an edited caption changes no embedding.
    Captions,
    /// Of a dataset, its images and what is known of them.
    Images,
    /// A table, and the manifest and the errors table that lie beside it.
    WithBookkeeping,
}

impl Contract {
    /// The words of a command line without those that have no effect on the result.
    pub fn effective<'a>(&self, words: &'a [String]) -> Vec<&'a str> {
        let mut kept = vec![];
        let mut is_idle = false;
        for word in words {
            if word.starts_with("--") {
                is_idle = self.idle.contains(word);
            }
            if !is_idle {
                kept.push(word.as_str());
            }
        }
        kept
    }
}

impl Input {
    /// The files and folders whose content decides the result.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let path = &self.path;
        let is_dataset = || path.join("captions.parquet").is_file() && path.join("images.parquet").is_file();
        match self.scope {
            Scope::Captions if is_dataset() => tables(path, "captions"),
            Scope::Images if is_dataset() => tables(path, "images"),
            Scope::WithBookkeeping => {
                let output = output_at(path);
                let beside = [output.bookkeeping().found_errors(), output.bookkeeping().found_manifest()];
                Ok(std::iter::once(path.clone()).chain(beside.into_iter().filter(|path| path.is_file())).collect())
            }
            Scope::Whole | Scope::Captions | Scope::Images => Ok(vec![path.clone()]),
        }
    }
}

/// The Parquet files of a dataset whose names begin so.
fn tables(dataset: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let mut files = paths_in(dataset).with_context(|| format!("cannot list {}", dataset.display()))?;
    files.retain(|file| between(file, name, ".parquet").is_some());
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::write_atomic;

    #[test]
    fn of_an_input_only_what_decides_the_result_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let names = ["captions.parquet", "images.parquet", "images-00000.parquet", "t.parquet"];
        let beside = [".clipcap/t.errors.parquet", ".clipcap/t.manifest.json"];
        for name in names.iter().chain(&beside) {
            write_atomic(&at(name), name.as_bytes()).unwrap();
        }
        let files = |path: &str, scope: Scope| {
            let mut found = Input { flag: "--dataset".into(), path: at(path), scope }.files().unwrap();
            found.sort();
            found
        };
        assert_eq!(files("", Scope::Captions), [at("captions.parquet")]);
        assert_eq!(files("", Scope::Images), [at("images-00000.parquet"), at("images.parquet")]);
        assert_eq!(files("", Scope::Whole), [at("")]);
        assert_eq!(files("t.parquet", Scope::WithBookkeeping), [at(beside[0]), at(beside[1]), at("t.parquet")]);
        assert_eq!(files("t.parquet", Scope::Captions), [at("t.parquet")]);
    }
}
