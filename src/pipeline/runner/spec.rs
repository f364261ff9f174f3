//! A pipeline as a TOML file: one section a stage, in the order they run.
//!
//! ```toml
//! [pipeline]
//! out = "out/demo"              # stages write to out/demo/SECTION unless they say `out`
//!
//! [prepare]                     # the command is the section's name ...
//! captions = ["data/train.txt"] # keys are the command's flags; `input` is what stands without a flag
//! images = "data/images"
//!
//! [mlp]
//! command = "train"             # ... or is named
//! dataset = "@prepare"          # the output of another stage; "@prepare/captions.parquet" is a file in it
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Value;

use crate::remote;

/// What can be wrong with a pipeline file.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: [{section}]: {message}", path.display())]
    Section { path: PathBuf, section: String, message: String },
    #[error("--set {assignment}: {message}")]
    Override { assignment: String, message: String },
    #[error("there is no stage {name}; the stages are: {}", known.join(", "))]
    NoSuchStage { name: String, known: Vec<String> },
    /// Flags that leave nothing to run.
    #[error("{0}")]
    Range(String),
}

impl SpecError {
    /// Whether the command line is at fault, not the file.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Override { .. } | Self::NoSuchStage { .. } | Self::Range(_))
    }
}

/// A pipeline, resolved: every stage with the words of its command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Where stages write that do not say: `OUT/SECTION`.
    pub out: PathBuf,
    /// In the order of the file, in which they run.
    pub stages: Vec<StageSpec>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageSpec {
    pub name: String,
    /// Words of the command, such as `["model", "init"]`.
    pub command: Vec<String>,
    /// Flags and their values, `out` included; a flag that is a switch has none.
    pub flags: Vec<(String, Vec<String>)>,
    /// What stands without a flag.
    pub positional: Vec<String>,
    pub out: PathBuf,
    /// Stages whose outputs this one reads.
    pub after: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    out: PathBuf,
}

impl Spec {
    /// Reads a file and applies `stage.key=value` overrides (the value in TOML's spelling, or plain text).
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, SpecError> {
        let text = std::fs::read_to_string(path).map_err(|source| SpecError::Io { path: path.into(), source })?;
        let mut table: toml::Table =
            toml::from_str(&text).map_err(|source| SpecError::Toml { path: path.into(), source: Box::new(source) })?;
        for assignment in overrides {
            apply(&mut table, assignment)?;
        }
        let order = section_order(&text, &table);
        let section = |name: &str, message: String| SpecError::Section { path: path.into(), section: name.into(), message };
        let header =
            table.remove("pipeline").ok_or_else(|| section("pipeline", "this section with the key out is missing".into()))?;
        let header: Header = header.try_into().map_err(|e: toml::de::Error| section("pipeline", e.message().into()))?;
        let mut stages: Vec<StageSpec> = vec![];
        for name in order {
            let Some(Value::Table(keys)) = table.remove(&name) else {
                return Err(section(&name, "a stage is a section".into()));
            };
            let stage = stage(&name, keys, &header.out, &stages).map_err(|message| section(&name, message))?;
            if remote::is_url(&stage.out) {
                let out = remote::shown(&stage.out);
                return Err(section(
                    &name,
                    format!("{out}: what a pipeline makes has to be on this machine; its inputs may be URLs"),
                ));
            }
            if let Some(other) = stages.iter().find(|other| other.out == stage.out) {
                let message =
                    format!("it writes to {}, and so does [{}]: give one of them another out", stage.out.display(), other.name);
                return Err(section(&name, message));
            }
            stages.push(stage);
        }
        Ok(Self { out: header.out, stages })
    }

    /// The place of a stage, by name.
    pub fn position(&self, name: &str) -> Result<usize, SpecError> {
        let known = || self.stages.iter().map(|s| s.name.clone()).collect();
        self.stages
            .iter()
            .position(|s| s.name == name)
            .ok_or_else(|| SpecError::NoSuchStage { name: name.into(), known: known() })
    }
}

impl StageSpec {
    /// The words of the command line after `clipcap`.
    pub fn words(&self) -> Vec<String> {
        let flags = self.flags.iter().flat_map(|(flag, values)| std::iter::once(flag.clone()).chain(values.iter().cloned()));
        // Positional words first: a flag that takes several values would swallow them.
        self.command.iter().cloned().chain(self.positional.iter().cloned()).chain(flags).collect()
    }
}

/// toml's table does not keep the order of sections; the text has it. Sections that only `--set` names come last.
fn section_order(text: &str, table: &toml::Table) -> Vec<String> {
    let header = |line: &str| {
        let name = line.trim().strip_prefix('[')?.split_once(']')?.0.trim().trim_matches('"').to_string();
        table.contains_key(&name).then_some(name)
    };
    let mut order: Vec<String> = vec![];
    for name in text.lines().filter_map(header).chain(table.keys().cloned()) {
        if name != "pipeline" && !order.contains(&name) {
            order.push(name);
        }
    }
    order
}

fn apply(table: &mut toml::Table, assignment: &str) -> Result<(), SpecError> {
    let fault = |message: &str| SpecError::Override { assignment: assignment.into(), message: message.into() };
    let (place, text) = assignment.split_once('=').ok_or_else(|| fault("write stage.key=value"))?;
    let (section, key) = place.trim().split_once('.').ok_or_else(|| fault("write stage.key=value"))?;
    let value = toml::from_str::<toml::Table>(&format!("x = {text}")).ok().and_then(|mut t| t.remove("x"));
    let value = value.unwrap_or_else(|| Value::String(text.into()));
    match table.get_mut(section) {
        Some(Value::Table(keys)) => {
            keys.insert(key.into(), value);
            Ok(())
        }
        _ => Err(fault(&format!("there is no section [{section}]"))),
    }
}

fn stage(name: &str, mut keys: toml::Table, base: &Path, before: &[StageSpec]) -> Result<StageSpec, String> {
    let command = match keys.remove("command") {
        None => vec![name.to_string()],
        Some(Value::String(text)) => text.split_whitespace().map(String::from).collect(),
        Some(_) => return Err("command must be text".into()),
    };
    let mut after = vec![];
    let mut resolve = |text: &str| -> Result<String, String> {
        let Some(reference) = text.strip_prefix('@') else { return Ok(text.into()) };
        let (stage, rest) = reference.split_once('/').map_or((reference, None), |(stage, rest)| (stage, Some(rest)));
        let found =
            before.iter().find(|s| s.name == stage).ok_or_else(|| format!("{text}: no earlier stage is called {stage}"))?;
        if !after.contains(&found.name) {
            after.push(found.name.clone());
        }
        Ok(rest.map_or(found.out.clone(), |rest| found.out.join(rest)).to_string_lossy().into_owned())
    };
    let mut words = |key: &str, value: &Value| -> Result<Vec<String>, String> {
        let mut word = |value: &Value| match value {
            Value::String(text) => resolve(text),
            Value::Integer(n) => Ok(n.to_string()),
            Value::Float(x) => Ok(x.to_string()),
            Value::Boolean(b) => Ok(b.to_string()),
            _ => Err(format!("{key} must be text, a number, true, false or a list of these")),
        };
        match value {
            Value::Array(values) => values.iter().map(&mut word).collect(),
            value => Ok(vec![word(value)?]),
        }
    };
    let out = match keys.remove("out") {
        None => base.join(name),
        Some(value) => PathBuf::from(words("out", &value)?.concat()),
    };
    let positional = keys.remove("input").map_or(Ok(vec![]), |value| words("input", &value))?;
    let mut flags = vec![];
    for (key, value) in &keys {
        let flag = format!("--{}", key.replace('_', "-"));
        match value {
            Value::Boolean(true) => flags.push((flag, vec![])),
            Value::Boolean(false) => {}
            value => flags.push((flag, words(key, value)?)),
        }
    }
    flags.sort();
    flags.push(("--out".into(), vec![out.to_string_lossy().into_owned()]));
    Ok(StageSpec { name: name.into(), command, flags, positional, out, after })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[pipeline]
out = "o"
[prepare]
captions = ["a.txt", "b.txt"]
lint = true
[z-train]
command = "train"
dataset = "@prepare"
epochs = 3
[caption]
input = "pics"
model = "@z-train/best"
out = "table.parquet"
"#;

    fn read(text: &str, overrides: &[&str]) -> Result<Spec, SpecError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        std::fs::write(&path, text).unwrap();
        Spec::read(&path, &overrides.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn sections_become_command_lines_in_order() {
        let spec = read(TEXT, &["z-train.epochs=5", "caption.threads=2"]).unwrap();
        let words: Vec<String> = spec.stages.iter().map(|s| s.words().join(" ")).collect();
        assert_eq!(
            words,
            [
                "prepare --captions a.txt b.txt --lint --out o/prepare",
                "train --dataset o/prepare --epochs 5 --out o/z-train",
                "caption pics --model o/z-train/best --threads 2 --out table.parquet",
            ]
        );
        assert_eq!(spec.stages[2].after, ["z-train"]);
        assert_eq!(spec.position("caption").unwrap(), 2);
        assert!(spec.position("nope").unwrap_err().to_string().contains("prepare, z-train, caption"));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        let later = TEXT.replace("@prepare", "@caption");
        assert!(read(&later, &[]).unwrap_err().to_string().contains("[z-train]: @caption: no earlier stage"));
        let same = TEXT.replace("table.parquet", "o/prepare");
        assert!(read(&same, &[]).unwrap_err().to_string().contains("[caption]: it writes to o/prepare, and so does [prepare]"));
        assert!(read(TEXT, &["nope.x=1"]).unwrap_err().to_string().contains("no section [nope]"));
        assert!(read("[prepare]\n", &[]).unwrap_err().to_string().contains("[pipeline]"));
        assert!(read("[pipeline]\nout='o'\nwhat=1\n", &[]).unwrap_err().to_string().contains("what"));
    }
}
