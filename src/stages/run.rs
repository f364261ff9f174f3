//! `clipcap run`: a pipeline of stages, each skipped while nothing it depends on has changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Outcome;
use crate::bookkeeping;
use crate::files;
use crate::pipeline::content::ContentHashes;
use crate::pipeline::spec::{Spec, SpecError, StageSpec};
use crate::pipeline::{OtherSettings, Output, Reporter, WouldDrop, duration};
use crate::table;

mod preflight;

use preflight::{Times, missing, needs, space};

pub struct RunSettings {
    pub file: PathBuf,
    pub overrides: Vec<String>,
    pub from: Option<String>,
    pub until: Option<String>,
    pub force: Vec<String>,
    pub dry_run: bool,
    pub verify: bool,
}

/// What is recorded of a stage's output: what made it, out of what, and what came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    #[serde(rename = "clipcap.format")]
    format: String,
    stage: String,
    version: String,
    words: Vec<String>,
    fingerprint: String,
    /// Content hash of each input, by path.
    inputs: BTreeMap<String, String>,
    /// Content hash of the output.
    output: String,
    /// Whether some inputs failed (exit status 3).
    some_failed: bool,
}

const FORMAT: &str = "stage/1";

/// Flags that change how a result is computed and not what it is.
const WITHOUT_EFFECT: &[&str] = &["--threads", "--quiet", "--json", "--prune"];

/// The stages that keep what is still right of an existing output by themselves, where settings and model are the same; the others write
/// theirs anew. Their batch size is of no effect either: in training it decides the result.
const REUSING: &[&str] = &["caption", "embed"];

/// The tables of a dataset that a stage reads, by command and flag (none: what stands without one): an edited caption changes no embedding.
const READS: &[(&str, &str, &str)] = &[
    ("embed", "--dataset", "images"),
    ("caption", "", "images"),
    ("caption", "--dataset", "images"),
    ("train", "--dataset", "captions"),
    ("stats", "", "captions"),
    ("evaluate", "--references", "captions"),
];

/// Checks the words of a command line (`check`), and runs them.
pub trait Executor {
    fn check(&self, words: &[String]) -> anyhow::Result<()>;
    fn accepts(&self, command: &[String], flag: &str) -> bool;
    fn execute(&self, words: &[String]) -> anyhow::Result<Outcome>;
    /// The files and folders that a command line reads, each with the flag that names it.
    fn inputs(&self, words: &[String]) -> Vec<(String, PathBuf)>;
}

pub fn run(settings: &RunSettings, executor: &dyn Executor, reporter: &dyn Reporter) -> anyhow::Result<(Outcome, String, Value)> {
    let spec = Spec::read(&settings.file, &settings.overrides)?;
    for stage in &spec.stages {
        executor.check(&stage.words()).with_context(|| format!("{}: [{}]", settings.file.display(), stage.name))?;
    }
    let first = settings.from.as_deref().map_or(Ok(0), |name| spec.position(name))?;
    let last = settings.until.as_deref().map_or(Ok(spec.stages.len().saturating_sub(1)), |name| spec.position(name))?;
    let is_reached = |name: &String| Ok::<_, SpecError>((first..=last).contains(&spec.position(name)?));
    for name in &settings.force {
        if !is_reached(name)? {
            return Err(SpecError::Range(format!("--force {name}: it lies outside --from and --until")).into());
        }
    }
    if first > last {
        let [from, until] = [first, last].map(|at| &spec.stages[at].name);
        return Err(SpecError::Range(format!("--from {from} comes after --until {until}: nothing would run")).into());
    }
    let own = spec.stages.iter().flat_map(outputs).chain([spec.out.clone()]).collect();
    let mut hashes = ContentHashes::open(&spec.out, settings.verify, own, |m| reporter.warn(m));
    let earlier = earlier(&spec, &mut hashes);
    if !settings.dry_run {
        adopt(&earlier, &mut hashes)?;
    }
    if settings.verify {
        let verdict = verify(&spec, &mut hashes)?;
        if spec.out.is_dir() {
            hashes.save().with_context(|| format!("cannot write into {}", spec.out.display()))?;
        }
        return Ok(verdict);
    }
    let reached: Vec<StageSpec> = spec.stages.iter().take(last + 1).skip(first).cloned().collect();
    let missing = missing(&reached, &spec.stages, executor);
    if !missing.is_empty() && !settings.dry_run {
        bail!("inputs are missing, and nothing was begun:\n{}", missing.to_text().trim_end());
    }
    let times_path = bookkeeping::times(&spec.out);
    let mut times = Times::read(&times_path);
    let (mut text, mut stages, mut outcome) = (String::new(), vec![], Outcome::Complete);
    let mut would_run: Vec<&str> = vec![];
    let (mut seconds, mut bytes) = (Some(0.0), 0);
    for stage in spec.stages.iter().take(last + 1).skip(first) {
        let upstream = stage.after.iter().find(|name| would_run.contains(&name.as_str()));
        let forced = settings.force.contains(&stage.name);
        let reason = match (forced, upstream) {
            (true, _) => Some("forced".to_string()),
            (false, Some(name)) if settings.dry_run => Some(format!("if {name}'s output changes")),
            _ if settings.dry_run && earlier.contains_key(stage.name.as_str()) => {
                (!earlier[stage.name.as_str()].1).then(|| "its inputs, settings or output changed".into())
            }
            _ => reason_to_run(stage, &mut hashes)?,
        };
        let Some(reason) = reason else {
            let record = read_record(stage)?;
            if record.some_failed && !settings.dry_run {
                outcome = Outcome::SomeFailed;
            }
            reporter.note(&format!("{}: unchanged, skipped", stage.name));
            text += &format!("{:<12}  skipped (unchanged)\n", stage.name);
            stages.push(json!({"stage": stage.name, "ran": false}));
            continue;
        };
        would_run.push(&stage.name);
        if settings.dry_run {
            let depends = upstream.is_some() && !forced;
            let verb = if depends { "runs" } else { "would run:" };
            let expected = times.expected(stage, executor);
            seconds = seconds.zip(expected).map(|(sum, (seconds, _))| sum + seconds);
            bytes += expected.map_or(0, |(_, bytes)| bytes);
            text += &format!("{:<12}  {verb} {reason}: clipcap {}\n", stage.name, stage.words().join(" "));
            text += &format!("{:<12}  {}\n", "", needs(expected));
            stages.push(json!({"stage": stage.name, "would_run": true, "depends": depends, "reason": reason,
                               "expected_seconds": expected.map(|(seconds, _)| seconds), "expected_bytes": expected.map(|(_, bytes)| bytes)}));
            continue;
        }
        reporter.note(&format!("{}: {reason}", stage.name));
        let start = Instant::now();
        let result = execute(stage, forced, executor, &mut hashes)?;
        times.note(stage, executor, start.elapsed().as_secs_f64());
        // Whoever cannot keep it has less to say before the next run.
        let _ = times.save(&times_path);
        hashes.save().with_context(|| format!("cannot write into {}", spec.out.display()))?;
        text += &format!("{:<12}  ran ({reason})\n", stage.name);
        stages.push(json!({"stage": stage.name, "ran": true, "reason": reason}));
        match result {
            Outcome::Complete => {}
            Outcome::SomeFailed => outcome = Outcome::SomeFailed,
            Outcome::TooManyFailed | Outcome::Interrupted => {
                outcome = result;
                break;
            }
        }
    }
    let mut json = json!({"stages": stages});
    if settings.dry_run {
        let space = space(&spec.out, bytes);
        text += space.as_ref().map_or("", |(_, told)| told.as_str());
        if !would_run.is_empty() {
            text += &format!("time     {}\n", seconds.map_or("unknown".into(), |seconds| format!("about {}", duration(seconds))));
        }
        text += &missing.to_text();
        json["missing"] = missing.to_json();
        json["free_bytes"] = json!(space.map(|(free, _)| free));
        if !missing.is_empty() {
            outcome = Outcome::TooManyFailed;
        }
    }
    Ok((outcome, text, json))
}

/// What a stage makes: a folder, or a file and what lies beside it.
fn outputs(stage: &StageSpec) -> Vec<PathBuf> {
    if stage.out.is_dir() { vec![stage.out.clone()] } else { Output::file(&stage.out).own_paths() }
}

/// A path as an output, by what is there.
fn output_at(path: &Path) -> Output {
    if path.is_dir() { Output::folder(path) } else { Output::file(path) }
}

/// One hash of all that a stage made.
fn output_hash(stage: &StageSpec, hashes: &mut ContentHashes) -> std::io::Result<String> {
    let output = output_at(&stage.out);
    hash_with(&stage.out, &[output.manifest(), output.errors()], hashes)
}

/// One hash of an output and of the files that belong to it, as far as they are there.
fn hash_with(out: &Path, beside: &[PathBuf], hashes: &mut ContentHashes) -> std::io::Result<String> {
    let whole = hashes.of(out)?;
    let beside = beside.iter().filter(|path| path.is_file());
    let beside = beside.map(|path| hashes.of(path)).collect::<std::io::Result<Vec<_>>>()?;
    Ok(if beside.is_empty() { whole } else { files::sha256_hex([whole, beside.concat()].concat().as_bytes()) })
}

/// Stages by name that an earlier version recorded beside their outputs, and whether those are up to date.
type Earlier<'a> = BTreeMap<&'a str, (&'a StageSpec, bool)>;

fn earlier<'a>(spec: &'a Spec, hashes: &mut ContentHashes) -> Earlier<'a> {
    let is_earlier = |stage: &&StageSpec| {
        !bookkeeping::stage_record(&stage.out).exists() && bookkeeping::old_stage_record(&stage.out).is_file()
    };
    let mut holds = |stage: &StageSpec| {
        let Ok(record) = read_record(stage) else { return false };
        let mut is_same = |path: &String, hash: &String| hashes.of(Path::new(path)).is_ok_and(|now| now == *hash);
        record.version == env!("CARGO_PKG_VERSION")
            && effective(&record.words) == effective(&stage.words())
            && record.inputs.iter().all(|(path, hash)| is_same(path, hash))
            && {
                // A folder had everything inside.
                let old = output_at(&stage.out).bookkeeping().old();
                let beside = if stage.out.is_dir() { &[][..] } else { &old[..] };
                hash_with(&stage.out, beside, hashes).is_ok_and(|now| now == record.output)
            }
    };
    spec.stages.iter().filter(is_earlier).map(|stage| (stage.name.as_str(), (stage, holds(stage)))).collect()
}

/// Moves what an earlier version left to its place. What was up to date still is, though its manifest now lies elsewhere.
fn adopt(earlier: &Earlier, hashes: &mut ContentHashes) -> anyhow::Result<()> {
    // All outputs first: they are inputs of others.
    earlier.values().try_for_each(|(stage, _)| output_at(&stage.out).adopt())?;
    for (stage, is_up_to_date) in earlier.values() {
        let (old, place) = (bookkeeping::old_stage_record(&stage.out), bookkeeping::stage_record(&stage.out));
        let context = || format!("cannot move {} to {}", old.display(), place.display());
        if *is_up_to_date {
            let record = read_record(stage)?;
            let (fingerprint, inputs) = fingerprint(stage, hashes)?;
            let output = output_hash(stage, hashes).with_context(context)?;
            files::write_json(&place, &Record { fingerprint, inputs, output, ..record }).with_context(context)?;
            std::fs::remove_file(&old).with_context(context)?;
        } else {
            bookkeeping::put(&old, &place).with_context(context)?;
        }
    }
    Ok(())
}

/// Why a stage has to run, or None where its output is up to date.
fn reason_to_run(stage: &StageSpec, hashes: &mut ContentHashes) -> anyhow::Result<Option<String>> {
    let path = record_path(stage);
    if !path.is_file() || !stage.out.exists() {
        return Ok(Some("nothing there yet".into()));
    }
    let Ok(record) = read_record(stage) else { return Ok(Some("its record cannot be read".into())) };
    let (fingerprint, inputs) = fingerprint(stage, hashes)?;
    if record.version != env!("CARGO_PKG_VERSION") {
        return Ok(Some(format!("made by clipcap {}", record.version)));
    }
    if effective(&record.words) != effective(&stage.words()) {
        return Ok(Some("settings changed".into()));
    }
    if let Some((input, _)) = inputs.iter().find(|(input, hash)| record.inputs.get(*input) != Some(hash)) {
        return Ok(Some(format!("{input} changed")));
    }
    if record.fingerprint != fingerprint {
        return Ok(Some("inputs changed".into()));
    }
    let output = output_hash(stage, hashes).with_context(|| format!("cannot read {}", stage.out.display()))?;
    Ok((output != record.output).then(|| "its output was changed or is incomplete".into()))
}

fn execute(stage: &StageSpec, forced: bool, executor: &dyn Executor, hashes: &mut ContentHashes) -> anyhow::Result<Outcome> {
    // Only what this pipeline made is replaced; anything else under the name is for the stage to refuse.
    let record = read_record(stage).ok();
    let (fingerprint, inputs) = fingerprint(stage, hashes)?;
    let replaces = record.is_some() && stage.out.exists() && executor.accepts(&stage.command, "overwrite");
    let may_reuse = stage.command.first().is_some_and(|command| REUSING.contains(&command.as_str()));
    let reuses = !forced && may_reuse;
    let words = stage.words();
    // Nobody looks at what a pipeline overwrites: a folder that is half mounted must not take the place of all that was done.
    let overwrite = if may_reuse { &["--overwrite", "--guarded"][..] } else { &["--overwrite"] };
    let anew: Vec<String> = words.iter().cloned().chain(overwrite.iter().map(|word| word.to_string())).collect();
    let is_damaged = replaces && reuses && record.is_some_and(|record| output_hash(stage, hashes).ok() != Some(record.output));
    let outcome = match executor.execute(if replaces && !reuses { &anew } else { &words }) {
        // It looked for what is still right of its old output: that was made with other settings or by another model, or is damaged.
        Err(error)
            if replaces
                && reuses
                && !error.chain().any(|cause| cause.is::<WouldDrop>())
                && (is_damaged || error.chain().any(|cause| cause.is::<OtherSettings>())) =>
        {
            executor.execute(&anew)
        }
        outcome => outcome,
    };
    let outcome = outcome.with_context(|| format!("stage {}", stage.name))?;
    if matches!(outcome, Outcome::Complete | Outcome::SomeFailed) {
        let record = Record {
            format: FORMAT.into(),
            stage: stage.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            words: stage.words(),
            fingerprint,
            inputs,
            output: output_hash(stage, hashes)
                .with_context(|| format!("stage {} left no {}", stage.name, stage.out.display()))?,
            some_failed: outcome == Outcome::SomeFailed,
        };
        let path = bookkeeping::stage_record(&stage.out);
        files::write_json(&path, &record).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(outcome)
}

/// Everything a stage's result depends on, in one hash, and the content of each input by path.
fn fingerprint(stage: &StageSpec, hashes: &mut ContentHashes) -> anyhow::Result<(String, BTreeMap<String, String>)> {
    let out = stage.out.to_string_lossy();
    let flagged = stage.flags.iter().flat_map(|(flag, values)| values.iter().map(move |value| (flag.as_str(), value)));
    let values = flagged.chain(stage.positional.iter().map(|value| ("", value)));
    let mut inputs = BTreeMap::new();
    // A value that names something on disk is an input, alone or behind `name=`.
    for (flag, value) in values.filter(|(_, value)| **value != out) {
        for path in [value.as_str(), value.split_once('=').map_or("", |(_, path)| path)] {
            if path.is_empty() || !Path::new(path).exists() {
                continue;
            }
            for part in parts_read(stage, flag, Path::new(path))? {
                let hash = hashes.of(&part).with_context(|| format!("cannot read {}", part.display()))?;
                inputs.insert(part.to_string_lossy().into_owned(), hash);
            }
        }
    }
    let whole = json!({"words": effective(&stage.words()), "version": env!("CARGO_PKG_VERSION"), "inputs": inputs});
    Ok((files::sha256_hex(whole.to_string().as_bytes()), inputs))
}

/// What of an input a stage reads: all of it, or some tables of a dataset; of a table that is reported, what lies beside it too.
fn parts_read(stage: &StageSpec, flag: &str, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let command = stage.command.first().map_or("", String::as_str);
    if (command, flag) == ("report", "") {
        let output = output_at(path);
        let beside = [output.bookkeeping().found_errors(), output.bookkeeping().found_manifest()];
        let beside = beside.into_iter().filter(|path| path.is_file());
        return Ok(std::iter::once(path.into()).chain(beside).collect());
    }
    if stage.flags.iter().any(|(flag, values)| flag == "--objective" && values == &["contrastive"]) {
        // It learns from the pictures, which a dataset may hold.
        return Ok(vec![path.into()]);
    }
    let read = READS.iter().find(|(c, f, _)| (*c, *f) == (command, flag));
    let is_dataset = path.join("captions.parquet").is_file() && path.join("images.parquet").is_file();
    let Some((_, _, tables)) = read.filter(|_| is_dataset) else { return Ok(vec![path.into()]) };
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let is_read = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(tables) && name.ends_with(".parquet")
    };
    Ok(files.into_iter().filter(is_read).collect())
}

/// The words without those that have no effect on the result.
fn effective(words: &[String]) -> Vec<String> {
    let mut kept = vec![];
    let mut skipping = false;
    let is_reusing = words.first().is_some_and(|command| REUSING.contains(&command.as_str()));
    for word in words {
        if word.starts_with("--") {
            skipping = WITHOUT_EFFECT.contains(&word.as_str()) || is_reusing && word == "--batch-size";
        }
        if !skipping {
            kept.push(word.clone());
        }
    }
    kept
}

/// Hashes every input and output again and says what no longer matches.
fn verify(spec: &Spec, hashes: &mut ContentHashes) -> anyhow::Result<(Outcome, String, Value)> {
    let (mut text, mut faults) = (String::new(), vec![]);
    for stage in &spec.stages {
        let found = match read_record(stage) {
            Err(_) => vec!["has not run".to_string()],
            Ok(record) => {
                let now = |hashes: &mut ContentHashes, path: &str| hashes.of(Path::new(path)).unwrap_or_else(|e| e.to_string());
                let changed =
                    |(path, hash): (&String, &String)| (now(hashes, path) != *hash).then(|| format!("input {path} changed"));
                let mut found: Vec<String> = record.inputs.iter().filter_map(changed).collect();
                if output_hash(stage, hashes).ok().as_ref() != Some(&record.output) {
                    found.push(format!("output {} changed", stage.out.display()));
                }
                found
            }
        };
        let verdict = if found.is_empty() { "matches".to_string() } else { found.join("; ") };
        text += &format!("{:<12}  {verdict}\n", stage.name);
        faults.extend(found.into_iter().map(|fault| json!({"stage": stage.name, "fault": fault})));
    }
    let outcome = if faults.is_empty() { Outcome::Complete } else { Outcome::TooManyFailed };
    Ok((outcome, text, json!({"verified": faults.is_empty(), "faults": faults})))
}

/// Where a stage's record is, or would be.
fn record_path(stage: &StageSpec) -> PathBuf {
    let (place, old) = (bookkeeping::stage_record(&stage.out), bookkeeping::old_stage_record(&stage.out));
    if !place.exists() && old.is_file() { old } else { place }
}

fn read_record(stage: &StageSpec) -> anyhow::Result<Record> {
    let path = record_path(stage);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: Value = serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
    let Some(format) = value.get(table::FORMAT_KEY).and_then(Value::as_str) else {
        bail!("{}: {} is missing", path.display(), table::FORMAT_KEY)
    };
    table::check_format(&path, format, FORMAT)?;
    Ok(serde_json::from_value(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    #[test]
    fn a_batch_size_decides_what_is_learned_and_not_what_is_captioned() {
        assert_eq!(effective(&words("caption a --batch-size 4 --threads 2 --seed 1")), words("caption a --seed 1"));
        assert_eq!(effective(&words("train --batch-size 4 --threads 2")), words("train --batch-size 4"));
    }

    #[test]
    fn a_stage_reads_what_its_command_looks_at() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in [
            "captions.parquet",
            "images.parquet",
            "images-00000.parquet",
            "t.parquet",
            ".clipcap/t.errors.parquet",
            ".clipcap/t.manifest.json",
        ] {
            files::write_atomic(&at(name), name.as_bytes()).unwrap();
        }
        let stage = |command: &str, flags: &[(&str, &str)]| StageSpec {
            name: "s".into(),
            command: vec![command.into()],
            flags: flags.iter().map(|(flag, value)| (flag.to_string(), vec![value.to_string()])).collect(),
            positional: vec![],
            out: at("out"),
            after: vec![],
        };
        let read = |stage: StageSpec, flag: &str, path: &str| {
            let mut found = parts_read(&stage, flag, &at(path)).unwrap();
            found.sort();
            found
        };
        assert_eq!(read(stage("train", &[]), "--dataset", ""), [at("captions.parquet")]);
        let contrastive = stage("train", &[("--objective", "contrastive")]);
        assert_eq!(read(contrastive, "--dataset", ""), [at("")]);
        assert_eq!(
            read(stage("report", &[]), "", "t.parquet"),
            [at(".clipcap/t.errors.parquet"), at(".clipcap/t.manifest.json"), at("t.parquet")]
        );
    }
}
