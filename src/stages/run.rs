//! `clipcap run`: a pipeline of stages, each skipped while nothing it depends on has changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::Outcome;
use crate::bookkeeping;
use crate::dataset::tar::expanded;
use crate::files::{self, ContentHash};
use crate::pipeline::runner::ContentHashes;
use crate::pipeline::runner::{Spec, SpecError, StageSpec};
use crate::pipeline::{OtherSettings, Output, Reporter, WouldDrop, duration};
use crate::remote;

mod contract;
mod preflight;
mod record;

pub use contract::{Contract, Input, Scope};

use preflight::{Times, missing, needs, space};
use record::{FORMAT, Record, adopt, earlier, output_at, output_hash, read_record, record_path};

/// What of a pipeline is run.
pub struct RunSettings {
    pub file: PathBuf,
    pub overrides: Vec<String>,
    pub from: Option<String>,
    pub until: Option<String>,
    pub force: Vec<String>,
    pub dry_run: bool,
    pub verify: bool,
}

/// Understands command lines, and runs them.
pub trait Executor {
    /// What the words of a command line say of what is read and made.
    ///
    /// # Errors
    /// They are no command line, or one that cannot be a stage.
    fn contract(&self, words: &[String]) -> anyhow::Result<Contract>;

    /// Runs it.
    ///
    /// # Errors
    /// The command's own.
    fn execute(&self, words: &[String]) -> anyhow::Result<Outcome>;
}

pub fn run(settings: &RunSettings, executor: &dyn Executor, reporter: &dyn Reporter) -> anyhow::Result<(Outcome, String, Value)> {
    let spec = Spec::read(&settings.file, &settings.overrides)?;
    for stage in &spec.stages {
        executor.contract(&stage.words()).with_context(|| format!("{}: [{}]", settings.file.display(), stage.name))?;
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
    let earlier = earlier(&spec, executor, &mut hashes)?;
    if !settings.dry_run {
        adopt(&earlier, executor, &mut hashes)?;
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
            _ => reason_to_run(stage, executor, &mut hashes)?,
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
        text += space.as_ref().map_or("", |(_, text)| text.as_str());
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

/// Why a stage has to run, or None where its output is up to date.
fn reason_to_run(stage: &StageSpec, executor: &dyn Executor, hashes: &mut ContentHashes) -> anyhow::Result<Option<String>> {
    let path = record_path(stage);
    if !path.is_file() || !stage.out.exists() {
        return Ok(Some("nothing there yet".into()));
    }
    let Ok(record) = read_record(stage) else { return Ok(Some("its record cannot be read".into())) };
    let contract = executor.contract(&stage.words())?;
    let (fingerprint, inputs) = fingerprint(stage, &contract, hashes)?;
    if record.version != env!("CARGO_PKG_VERSION") {
        return Ok(Some(format!("made by clipcap {}", record.version)));
    }
    if contract.effective(&record.words) != contract.effective(&shown_words(stage)) {
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
    let contract = executor.contract(&stage.words())?;
    let (fingerprint, inputs) = fingerprint(stage, &contract, hashes)?;
    let replaces = record.is_some() && stage.out.exists() && contract.overwrites;
    let reuses = !forced && contract.keeps;
    let words = stage.words();
    // Nobody looks at what a pipeline overwrites: a folder that is half mounted must not take the place of all that was done.
    let overwrite = if contract.keeps { &["--overwrite", "--guarded"][..] } else { &["--overwrite"] };
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
            words: shown_words(stage),
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
fn fingerprint(
    stage: &StageSpec,
    contract: &Contract,
    hashes: &mut ContentHashes,
) -> anyhow::Result<(String, BTreeMap<String, String>)> {
    let mut inputs = BTreeMap::new();
    for input in &contract.inputs {
        let paths = expanded(&input.path).with_context(|| format!("cannot list {}", input.path.display()))?;
        for path in paths.into_iter().filter(|path| remote::is_url(path) || path.exists()) {
            for file in (Input { path, ..input.clone() }).files()? {
                // What is behind a URL's `?` may be a secret.
                let shown = remote::shown(&file);
                let hash = hashes.of(&file).with_context(|| format!("cannot read {shown}"))?;
                inputs.insert(shown, hash);
            }
        }
    }
    let words = shown_words(stage);
    let whole = json!({"words": contract.effective(&words), "version": env!("CARGO_PKG_VERSION"), "inputs": inputs});
    Ok((ContentHash::of(whole.to_string()).to_string(), inputs))
}

/// The words of a stage's command line, without what may be secrets in URLs.
fn shown_words(stage: &StageSpec) -> Vec<String> {
    stage.words().iter().map(|word| remote::shown(Path::new(word))).collect()
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
