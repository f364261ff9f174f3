//! Which files under a folder are wanted: hidden ones or not, and those that patterns name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ignore::Match;
use ignore::overrides::{Override, OverrideBuilder};
use serde::{Deserialize, Serialize};

use crate::bookkeeping;

/// What a user asked for. By default everything that is not hidden.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Hidden files and folders too.
    pub hidden: bool,
    /// Patterns as in .gitignore; where there are any, a file must match one.
    pub include: Vec<String>,
    /// Patterns of files and folders that are left out, included or not.
    pub exclude: Vec<String>,
}

/// A pattern that is not one of .gitignore's.
#[derive(Debug, thiserror::Error)]
#[error("the pattern {pattern:?} is not understood ({message}): write it as in .gitignore, such as '*.jpg' or 'raw/**'")]
pub struct PatternError {
    pattern: String,
    message: String,
}

/// [`Wanted`], ready to be asked.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    hidden: bool,
    patterns: Option<Override>,
}

/// Why an entry of a folder is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Hidden,
    ByPattern,
    /// A line that names what an earlier one does.
    Repeated,
    /// What lies beside this program's own outputs. It is not counted.
    Ours,
}

/// How many files and folders were left out. What a folder holds is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Their names begin with a dot, or they are a system's own (`Thumbs.db`).
    pub hidden: u64,
    /// `--include` or `--exclude` says so.
    pub by_pattern: u64,
    /// Lines of a list of URLs whose image an earlier line names.
    #[serde(default)]
    pub repeated: u64,
}

impl LeftOut {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            hidden: self.hidden + other.hidden,
            by_pattern: self.by_pattern + other.by_pattern,
            repeated: self.repeated + other.repeated,
        }
    }

    pub(super) fn add(&mut self, left: Left) {
        match left {
            Left::Hidden => self.hidden += 1,
            Left::ByPattern => self.by_pattern += 1,
            Left::Repeated => self.repeated += 1,
            Left::Ours => {}
        }
    }

    /// One sentence, where anything was left out.
    pub fn note(&self) -> Option<String> {
        let hidden = (self.hidden > 0).then(|| format!("{} hidden (--hidden takes them)", self.hidden));
        let by_pattern = (self.by_pattern > 0).then(|| format!("{} by --include and --exclude", self.by_pattern));
        let repeated = (self.repeated > 0).then(|| format!("{} lines of URLs that are there twice", self.repeated));
        let parts: Vec<String> = hidden.into_iter().chain(by_pattern).chain(repeated).collect();
        (!parts.is_empty()).then(|| format!("files and folders left out: {}", parts.join(", ")))
    }
}

impl Wanted {
    /// What is asked for otherwise in `new`, in the words of the flags.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        let text = |patterns: &[String]| if patterns.is_empty() { "none".to_owned() } else { patterns.join(" ") };
        let hidden = |hidden: bool| if hidden { "given" } else { "not given" }.to_owned();
        let pairs = [
            ("--include", text(&self.include), text(&new.include)),
            ("--exclude", text(&self.exclude), text(&new.exclude)),
            ("--hidden", hidden(self.hidden), hidden(new.hidden)),
        ];
        let differing = pairs.into_iter().filter(|(_, there, now)| there != now);
        differing.map(|(flag, there, now)| format!("{flag} {now} (was {there})")).collect()
    }

    /// # Errors
    /// A pattern that is none.
    pub(super) fn filter(&self) -> Result<Filter, PatternError> {
        if self.include.is_empty() && self.exclude.is_empty() {
            return Ok(Filter { hidden: self.hidden, patterns: None });
        }
        let mut builder = OverrideBuilder::new("");
        // The last pattern that matches counts.
        for (pattern, sign) in self.include.iter().map(|p| (p, "")).chain(self.exclude.iter().map(|p| (p, "!"))) {
            let failed = |message: String| PatternError { pattern: pattern.clone(), message };
            if pattern.is_empty() || pattern.starts_with('!') {
                return Err(failed("no pattern".to_owned()));
            }
            builder.add(&format!("{sign}{pattern}")).map_err(|error| failed(error.to_string()))?;
        }
        let built = builder.build();
        let patterns = built.map_err(|error| PatternError { pattern: String::new(), message: error.to_string() })?;
        Ok(Filter { hidden: self.hidden, patterns: Some(patterns) })
    }

    /// The same for the members of tars.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn of_members(&self) -> Result<MemberFilter, PatternError> {
        Ok(MemberFilter { filter: Arc::new(self.filter()?), left_out: Arc::default() })
    }

    /// Refuses patterns that are none.
    ///
    /// # Errors
    /// The first such pattern.
    pub fn check(&self) -> Result<(), PatternError> {
        self.filter().map(drop)
    }
}

/// Which members of tars are wanted: as the files of the folder they would be unpacked to. Counts what it leaves out; a clone counts with it.
#[derive(Debug, Clone)]
pub struct MemberFilter {
    filter: Arc<Filter>,
    left_out: Arc<Mutex<LeftOut>>,
}

impl MemberFilter {
    /// The same with a count of its own.
    pub fn apart(&self) -> Self {
        Self { filter: self.filter.clone(), left_out: Arc::default() }
    }

    /// What was left out so far.
    pub fn left_out(&self) -> LeftOut {
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a member is left out, or a folder on the way to it. `inner` is its path in the tar, without `.` and `..`.
    pub fn leaves(&self, inner: &[u8]) -> bool {
        let inner = Path::new(OsStr::from_bytes(inner));
        let mut within = PathBuf::new();
        let left = inner.iter().find_map(|part| {
            within.push(part);
            self.filter.leaves(part, &within, || within != inner)
        });
        if let Some(left) = left {
            self.left_out.lock().unwrap_or_else(PoisonError::into_inner).add(left);
        }
        left.is_some()
    }
}

/// Names that begin with a dot (`._photo.jpg` of macOS among them), and the folder that Synology's stations fill with thumbnails.
fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().first() == Some(&b'.') || name == "@eaDir"
}

impl Filter {
    /// Whether an entry is left out: its name, and its path below the folder that is listed.
    pub fn leaves(&self, name: &OsStr, within: &Path, is_folder: impl FnOnce() -> bool) -> Option<Left> {
        if name == bookkeeping::FOLDER {
            return Some(Left::Ours);
        }
        if !self.hidden && is_hidden(name) {
            return Some(Left::Hidden);
        }
        self.leaves_named(within, is_folder)
    }

    /// Whether something that was asked for by its name is left out by a pattern.
    pub fn leaves_named(&self, path: &Path, is_folder: impl FnOnce() -> bool) -> Option<Left> {
        match self.patterns.as_ref()?.matched(path, is_folder()) {
            Match::Ignore(_) => Some(Left::ByPattern),
            Match::None | Match::Whitelist(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(wanted: &Wanted, path: &str, is_folder: bool) -> Option<Left> {
        let path = Path::new(path);
        wanted.filter().unwrap().leaves(path.file_name().unwrap(), path, || is_folder)
    }

    #[test]
    fn hidden_names_are_left_out_unless_asked_for() {
        let usual = Wanted::default();
        for (path, is_folder) in [("a/._x.jpg", false), (".git", true), ("b/@eaDir", true), (".DS_Store", false)] {
            assert_eq!(leaves(&usual, path, is_folder), Some(Left::Hidden), "{path}");
            assert_eq!(leaves(&Wanted { hidden: true, ..Wanted::default() }, path, is_folder), None, "{path}");
        }
        assert_eq!(leaves(&usual, "a.b/x.jpg", false), None);
    }

    #[test]
    fn what_lies_beside_outputs_is_never_looked_at() {
        for hidden in [false, true] {
            assert_eq!(leaves(&Wanted { hidden, ..Wanted::default() }, "a/.clipcap", true), Some(Left::Ours));
        }
        let mut left = LeftOut::default();
        left.add(Left::Ours);
        assert_eq!(left.note(), None);
    }

    #[test]
    fn patterns_choose() {
        let wanted = |include: &[&str], exclude: &[&str]| Wanted {
            include: include.iter().map(|s| s.to_string()).collect(),
            exclude: exclude.iter().map(|s| s.to_string()).collect(),
            hidden: false,
        };
        let some = wanted(&["*.jpg", "*.PNG"], &["raw/", "*_thumb.*"]);
        assert_eq!(leaves(&some, "a/b.jpg", false), None);
        assert_eq!(leaves(&some, "a/b.png", false), Some(Left::ByPattern));
        assert_eq!(leaves(&some, "a/b_thumb.jpg", false), Some(Left::ByPattern));
        assert_eq!(leaves(&some, "a/raw", true), Some(Left::ByPattern));
        assert_eq!(leaves(&some, "a", true), None);
        let anchored = wanted(&[], &["/2019/**"]);
        assert_eq!(leaves(&anchored, "2019/x.jpg", false), Some(Left::ByPattern));
        assert_eq!(leaves(&anchored, "old/2019/x.jpg", false), None);
        assert!(wanted(&["a[b"], &[]).check().unwrap_err().to_string().contains("a[b"));
        assert!(wanted(&[""], &[]).check().is_err());
    }

    #[test]
    fn members_of_tars_are_chosen_like_files() {
        let patterns = Wanted { include: vec!["*.jpg".into()], exclude: vec!["raw/".into()], hidden: false };
        let filter = patterns.of_members().unwrap();
        let left: Vec<bool> = ["a/b.jpg", "a/._b.jpg", ".git/x.jpg", "@eaDir/x.jpg", "a/raw/x.jpg", "a/b.json"]
            .iter()
            .map(|inner| filter.clone().leaves(inner.as_bytes()))
            .collect();
        assert_eq!(left, [false, true, true, true, true, true]);
        assert_eq!(filter.left_out(), LeftOut { hidden: 3, by_pattern: 2, repeated: 0 });
        assert_eq!(filter.apart().left_out(), LeftOut::default());
        assert!(!Wanted { hidden: true, ..Wanted::default() }.of_members().unwrap().leaves(b"a/._b.jpg"));
    }

    #[test]
    fn what_is_asked_for_otherwise_is_told() {
        let usual = Wanted::default();
        let other = Wanted { hidden: true, exclude: vec!["*.gif".into(), "raw/".into()], ..Wanted::default() };
        assert!(other.differences(&other.clone()).is_empty());
        assert_eq!(usual.differences(&other), ["--exclude *.gif raw/ (was none)", "--hidden given (was not given)"]);
    }

    #[test]
    fn what_was_left_out_is_told() {
        assert_eq!(LeftOut::default().note(), None);
        let text = LeftOut { hidden: 3, by_pattern: 2, repeated: 0 }.note().unwrap();
        assert_eq!(text, "files and folders left out: 3 hidden (--hidden takes them), 2 by --include and --exclude");
    }
}
