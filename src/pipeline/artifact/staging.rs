//! A folder that is made as a whole in little time: built in the work folder beside its place, and put there when it is complete.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::lock::WorkLock;
use super::output::{Existing, Output, check_replaceable};
use super::settings::Settings;
use crate::bookkeeping;
use crate::pipeline::reporter::Reporter;

/// A locked work folder in which an output is built. Dropped before [`publish`](Self::publish), it leaves the output as it was: what
/// was stopped is made again in less time than it takes to check. Where publishing fails, it stays for the next run to repair.
pub struct Staging {
    output: Output,
    existing: Existing,
    folder: PathBuf,
    lock: Option<WorkLock>,
}

impl Staging {
    /// Locks the work folder, and looks at what is in the output's place. With `overwrite`, whatever is there may be replaced.
    ///
    /// # Errors
    /// Another run is at work; or what is there is no `format` (the manifest's `KIND/MAJOR`) of ours.
    pub fn open(output: &Output, format: &str, overwrite: bool) -> Result<Self> {
        output.check_kind()?;
        let lock = WorkLock::acquire(&output.work_folder())?;
        let folder = output.work_folder().join("out");
        let mut staging = Self { output: output.clone(), existing: Existing::Nothing, folder, lock: Some(lock) };
        output.adopt()?;
        if !overwrite {
            staging.existing = output.existing(format)?;
        }
        if let Existing::Unknown = staging.existing {
            // The manifest is moved last. Where it is still here, a run was stopped while it put the rest in place.
            if !staging.folder.join(bookkeeping::MANIFEST).is_file() {
                bail!(
                    "{} holds files that were not made by clipcap: choose another --out, or give --overwrite to write into it",
                    output.path().display()
                );
            }
            staging.existing = Existing::Nothing;
        }
        if staging.folder.exists() {
            fs::remove_dir_all(&staging.folder).with_context(|| format!("cannot clear {}", staging.folder.display()))?;
        }
        fs::create_dir_all(&staging.folder).with_context(|| format!("cannot make {}", staging.folder.display()))?;
        Ok(staging)
    }

    /// See [`WorkLock::tell`].
    pub fn tell(&self, reporter: &dyn Reporter) {
        self.lock.iter().for_each(|lock| lock.tell(reporter));
    }

    /// Where the output is built.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A place beside it for what an interrupted run has done; it stays until its files are removed.
    pub fn kept(&self) -> PathBuf {
        self.output.work_folder()
    }

    /// The settings of the output that is there, if one is.
    pub fn existing(&self) -> Option<&Settings> {
        match &self.existing {
            Existing::Finished(settings) => Some(settings),
            _ => None,
        }
    }

    /// Whether what is there is what these settings make, inputs included, so that nothing is left to do. `files` are those it consists
    /// of: one that is missing is a reason to make all of them.
    ///
    /// # Errors
    /// It was made with other settings or from other inputs: it is not replaced unasked.
    pub fn is_finished(&self, settings: &Settings, files: &[PathBuf]) -> Result<bool> {
        check_replaceable(&self.output, &self.existing, settings)?;
        Ok(self.existing().is_some() && files.iter().all(|file| self.output.path().join(file).is_file()))
    }

    /// Puts the finished output in its place: `files`, the errors table where there is one, and the manifest.
    pub fn publish(mut self, files: &[PathBuf], reporter: &dyn Reporter) -> Result<()> {
        if let Err(error) = self.output.publish(&self.folder, files, reporter) {
            // Half of it may be in place. The rest stays, and with it the manifest: the next run sees that, and makes it whole.
            self.lock = None;
            return Err(error);
        }
        self.close().with_context(|| format!("cannot remove {}", self.output.work_folder().display()))
    }

    /// Removes the work folder, unless another run has come in already.
    fn close(&mut self) -> std::io::Result<()> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        lock.remove()?;
        let _ = fs::remove_dir(self.output.work_folder());
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // On the way out of an error, which is the one to tell.
        let _ = self.close();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pipeline::reporter::Silent;

    const FORMAT: &str = "stats/1";

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    fn make(output: &Output, value: u32, overwrite: bool) -> Result<bool> {
        let staging = Staging::open(output, FORMAT, overwrite)?;
        let settings = Settings::new("stats", json!({"value": value}));
        let files = [PathBuf::from("a.txt")];
        if staging.is_finished(&settings, &files)? {
            return Ok(false);
        }
        fs::write(staging.folder().join("a.txt"), value.to_string())?;
        let mut manifest = serde_json::to_value(&settings)?;
        manifest["clipcap.format"] = FORMAT.into();
        crate::files::write_json(&staging.folder().join(bookkeeping::MANIFEST), &manifest)?;
        staging.publish(&files, &Silent)?;
        Ok(true)
    }

    #[test]
    fn what_is_finished_stays_and_what_differs_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let output = Output::folder(&root.path().join("out"));
        let text = || fs::read_to_string(output.path().join("a.txt")).unwrap();
        assert!(make(&output, 1, false).unwrap());
        assert!(!make(&output, 1, false).unwrap());
        let error = format!("{:#}", make(&output, 2, false).unwrap_err());
        assert!(error.contains("value: 2 (was 1)") && error.contains("--overwrite"), "{error}");
        assert_eq!(text(), "1");
        assert!(make(&output, 2, true).unwrap());
        assert_eq!(text(), "2");
        fs::remove_file(output.path().join("a.txt")).unwrap();
        assert!(make(&output, 2, false).unwrap());
        assert_eq!((text().as_str(), names(root.path())), ("2", vec![".clipcap".to_string(), "out".into()]));
    }

    #[test]
    fn a_disk_that_fails_while_the_files_are_put_in_place_is_repaired() {
        let root = tempfile::tempdir().unwrap();
        let output = Output::folder(&root.path().join("out"));
        make(&output, 1, false).unwrap();
        // The second file cannot be put in place: a folder is there.
        fs::create_dir_all(output.errors().join("full")).unwrap();
        let staging = Staging::open(&output, FORMAT, true).unwrap();
        fs::write(staging.folder().join("a.txt"), "2").unwrap();
        fs::write(staging.folder().join(bookkeeping::ERRORS), "errors").unwrap();
        fs::write(staging.folder().join(bookkeeping::MANIFEST), "{}").unwrap();
        assert!(staging.publish(&[PathBuf::from("a.txt")], &Silent).is_err());
        assert!(!output.manifest().exists());
        fs::remove_dir_all(output.errors()).unwrap();
        assert!(make(&output, 2, false).unwrap());
        assert_eq!(names(root.path()), [".clipcap", "out"]);
        assert_eq!(names(&root.path().join(".clipcap")), ["out.manifest.json"]);
    }

    #[test]
    fn an_output_of_an_earlier_version_is_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let output = Output::folder(&root.path().join("out"));
        make(&output, 1, false).unwrap();
        fs::rename(output.manifest(), &output.bookkeeping().old()[0]).unwrap();
        fs::write(&output.bookkeeping().old()[1], "rows").unwrap();
        assert!(!make(&output, 1, false).unwrap());
        assert_eq!(names(output.path()), ["a.txt"]);
        assert_eq!(names(&root.path().join(".clipcap")), ["out.errors.parquet", "out.manifest.json"]);
        // What is made anew has no errors table unless something failed.
        assert!(make(&output, 2, true).unwrap());
        assert_eq!(names(&root.path().join(".clipcap")), ["out.manifest.json"]);
    }

    #[test]
    fn a_run_stopped_while_it_put_its_files_in_place_is_repaired() {
        let root = tempfile::tempdir().unwrap();
        let output = Output::folder(&root.path().join("out"));
        make(&output, 1, false).unwrap();
        // As after kill -9 between the first file and the manifest.
        fs::create_dir_all(output.work_folder().join("out")).unwrap();
        fs::rename(output.manifest(), output.work_folder().join("out").join(bookkeeping::MANIFEST)).unwrap();
        assert!(make(&output, 1, false).unwrap());
        fs::remove_file(output.manifest()).unwrap();
        assert!(format!("{:#}", make(&output, 1, false).unwrap_err()).contains("--overwrite"));
        assert!(!output.work_folder().exists());
    }
}
