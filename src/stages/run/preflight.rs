//! What a pipeline needs before it runs: every input that is missing, all at once, and disk space and time as far as earlier runs tell.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{Executor, Input};
use crate::dataset::tar::expanded;
use crate::files::files_under;
use crate::models::import::{clip_preset, decoder_preset, resolve};
use crate::pipeline::duration;
use crate::pipeline::runner::StageSpec;
use crate::remote;

/// Inputs that are not there, each with the stages and flags that want it.
#[derive(Debug, Default, PartialEq)]
pub struct Missing(BTreeMap<PathBuf, Vec<String>>);

/// Looks for the inputs of `stages`. What an earlier stage of `all` makes is not missing.
pub fn missing(stages: &[StageSpec], all: &[StageSpec], executor: &dyn Executor) -> Missing {
    let mut missing = Missing::default();
    for stage in stages {
        for Input { flag, path, .. } in inputs(stage, executor) {
            let is_made =
                all.iter().any(|other| other.name != stage.name && path.starts_with(&other.out) && makes(other, &path, stages));
            if !is_made && !is_there(&path) {
                let wants = format!("[{}] {flag}", stage.name);
                missing.0.entry(path).or_default().push(wants);
            }
        }
    }
    missing
}

/// Whether a stage's output is to be made in this run, or is there.
fn makes(stage: &StageSpec, path: &Path, stages: &[StageSpec]) -> bool {
    stages.iter().any(|other| other.name == stage.name) || path.exists()
}

fn is_there(path: &Path) -> bool {
    // Elsewhere, the first of a pattern stands for all: each costs a request.
    let is_elsewhere =
        |files: &[PathBuf]| files.first().is_some_and(|first| remote::is_url(first) && remote::place(first).is_ok());
    let is_several =
        |path: &Path| expanded(path).is_ok_and(|files| is_elsewhere(&files) || files.iter().all(|file| file.exists()));
    path.exists()
        || clip_preset(path).is_some()
        || decoder_preset(path).is_some()
        || is_several(path)
        // A name of the hub whose model is in its cache.
        || resolve(path).is_ok_and(|folder| folder.exists())
}

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A line an input.
    pub fn to_text(&self) -> String {
        let line = |(path, wants): (&PathBuf, &Vec<String>)| format!("missing  {}   {}\n", remote::shown(path), wants.join(", "));
        self.0.iter().map(line).collect()
    }

    pub fn to_json(&self) -> Json {
        self.0.iter().map(|(path, wants)| json!({"path": remote::shown(path), "wanted_by": wants})).collect()
    }
}

/// How long stages took, and over how many bytes of input: in a file beside their outputs that no result depends on.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Times(BTreeMap<String, Time>);

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Time {
    seconds: f64,
    input_bytes: u64,
    output_bytes: u64,
}

impl Times {
    /// Nothing where there is no file, or one that cannot be understood.
    pub fn read(path: &Path) -> Self {
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Keeps a stage's time. A run that had nearly nothing to do says nothing of one that has.
    pub fn note(&mut self, stage: &StageSpec, executor: &dyn Executor, seconds: f64) {
        let time = Time {
            seconds: (seconds * 10.0).round() / 10.0,
            input_bytes: input_bytes(stage, executor),
            output_bytes: bytes(&stage.out),
        };
        let slower = self.0.get(&stage.name).is_some_and(|old| old.input_bytes == time.input_bytes && old.seconds > time.seconds);
        if !slower {
            self.0.insert(stage.name.clone(), time);
        }
    }

    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        crate::files::write_json(path, self)
    }

    /// What a stage is likely to need: seconds and bytes of disk, by its input's size; None where it never ran.
    pub fn expected(&self, stage: &StageSpec, executor: &dyn Executor) -> Option<(f64, u64)> {
        let old = self.0.get(&stage.name)?;
        let now = input_bytes(stage, executor);
        // Inputs that are still to be made count as they were.
        let ratio = if now == 0 || old.input_bytes == 0 { 1.0 } else { now as f64 / old.input_bytes as f64 };
        Some((old.seconds * ratio, (old.output_bytes as f64 * ratio) as u64))
    }
}

fn inputs(stage: &StageSpec, executor: &dyn Executor) -> Vec<Input> {
    executor.contract(&stage.words()).map_or_else(|_| Vec::new(), |contract| contract.inputs)
}

fn input_bytes(stage: &StageSpec, executor: &dyn Executor) -> u64 {
    inputs(stage, executor).iter().map(|input| bytes(&input.path)).sum()
}

/// The size of a file, or of all files in a folder.
fn bytes(path: &Path) -> u64 {
    files_under(path, &|path, _| !path.is_symlink())
        .into_iter()
        .filter_map(|(_, metadata)| metadata.ok())
        .map(|file| file.len())
        .sum()
}

/// `takes about 12 min and 3.1 GB`, as far as that is known.
pub fn needs(expected: Option<(f64, u64)>) -> String {
    match expected {
        None => "time and disk space unknown (it has not run here yet)".into(),
        Some((seconds, bytes)) => format!("about {} and {}, as it took before", duration(seconds), gigabytes(bytes)),
    }
}

/// Free space where outputs go, and whether it is enough for what is known to come.
pub fn space(out: &Path, needed: u64) -> Option<(u64, String)> {
    let folder = out.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let system = rustix::fs::statvfs(folder).ok()?;
    let free = system.f_bavail * system.f_frsize;
    let warning = if needed > free { format!(": {} are needed", gigabytes(needed)) } else { String::new() };
    Some((free, format!("disk     {} free at {}{warning}\n", gigabytes(free), folder.display())))
}

fn gigabytes(bytes: u64) -> String {
    match bytes {
        b if b < 1_000_000_000 => format!("{:.1} MB", b as f64 / 1e6),
        b => format!("{:.1} GB", b as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Contract, Scope};
    use super::*;
    use crate::stages::Outcome;

    /// Every value behind --in is an input.
    struct Words;

    impl Executor for Words {
        fn execute(&self, _: &[String]) -> anyhow::Result<Outcome> {
            Ok(Outcome::Complete)
        }

        fn contract(&self, words: &[String]) -> anyhow::Result<Contract> {
            let named = words.windows(2).filter(|pair| pair[0] == "--in");
            let input = |pair: &[String]| Input { flag: pair[0].clone(), path: pair[1].clone().into(), scope: Scope::Whole };
            Ok(Contract { inputs: named.map(input).collect(), ..Contract::default() })
        }
    }

    fn stage(name: &str, input: &Path, out: &Path) -> StageSpec {
        StageSpec {
            name: name.into(),
            command: vec!["c".into()],
            flags: vec![("--in".into(), vec![input.to_string_lossy().into_owned()])],
            positional: vec![],
            out: out.into(),
            after: vec![],
        }
    }

    #[test]
    fn what_is_missing_is_told_once_with_all_that_want_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("there"), "x").unwrap();
        let all = [
            stage("a", &at("gone"), &at("o/a")),
            stage("b", &at("o/a"), &at("o/b")),
            stage("c", &at("gone"), &at("o/c")),
            stage("d", &at("there"), &at("o/d")),
            stage("e", Path::new("vit-b-32"), &at("o/e")),
        ];
        let found = missing(&all, &all, &Words);
        assert_eq!(found.to_text(), format!("missing  {}   [a] --in, [c] --in\n", at("gone").display()));
        // Where a does not run, b misses what it makes.
        assert_eq!(missing(&all[1..2], &all, &Words).0.keys().collect::<Vec<_>>(), [&at("o/a")]);
        fs::create_dir_all(at("o/a")).unwrap();
        assert!(missing(&all[1..2], &all, &Words).is_empty());
    }

    #[test]
    fn a_stage_takes_as_long_as_before_in_proportion_to_its_input() {
        let folder = tempfile::tempdir().unwrap();
        let (input, out) = (folder.path().join("in"), folder.path().join("out"));
        fs::write(&input, vec![0; 1000]).unwrap();
        fs::write(&out, vec![0; 100]).unwrap();
        let stage = stage("a", &input, &out);
        let mut times = Times::default();
        assert_eq!(times.expected(&stage, &Words), None);
        times.note(&stage, &Words, 10.0);
        // Nothing was left to do.
        times.note(&stage, &Words, 0.1);
        let path = folder.path().join("t.json");
        times.save(&path).unwrap();
        fs::write(&input, vec![0; 3000]).unwrap();
        assert_eq!(Times::read(&path).expected(&stage, &Words), Some((30.0, 300)));
        assert_eq!(needs(Some((30.0, 300))), "about 30 s and 0.0 MB, as it took before");
        assert!(space(&out, u64::MAX).unwrap().1.contains("are needed"));
    }
}
