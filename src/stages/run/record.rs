//! What a pipeline records of its stages' outputs, and what earlier versions recorded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Executor, fingerprint, shown_words};
use crate::bookkeeping;
use crate::files::{self, ContentHash};
use crate::pipeline::Output;
use crate::pipeline::runner::ContentHashes;
use crate::pipeline::runner::{Spec, StageSpec};
use crate::table;

/// What is recorded of a stage's output: what made it, out of what, and what came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(rename = "clipcap.format")]
    pub format: String,
    pub stage: String,
    pub version: String,
    pub words: Vec<String>,
    pub fingerprint: String,
    /// Content hash of each input, by path.
    pub inputs: BTreeMap<String, String>,
    /// Content hash of the output.
    pub output: String,
    /// Whether some inputs failed (exit status 3).
    pub some_failed: bool,
}

pub(super) const FORMAT: &str = "stage/1";

/// A path as an output, by what is there.
pub(super) fn output_at(path: &Path) -> Output {
    if path.is_dir() { Output::folder(path) } else { Output::file(path) }
}

/// One hash of all that a stage made.
pub(super) fn output_hash(stage: &StageSpec, hashes: &mut ContentHashes) -> std::io::Result<String> {
    let output = output_at(&stage.out);
    hash_with(&stage.out, &[output.manifest(), output.errors()], hashes)
}

/// One hash of an output and of the files that belong to it, as far as they are there.
fn hash_with(out: &Path, beside: &[PathBuf], hashes: &mut ContentHashes) -> std::io::Result<String> {
    let whole = hashes.of(out)?;
    let beside = beside.iter().filter(|path| path.is_file());
    let beside = beside.map(|path| hashes.of(path)).collect::<std::io::Result<Vec<_>>>()?;
    Ok(if beside.is_empty() { whole } else { ContentHash::of([whole, beside.concat()].concat()).to_string() })
}

/// Stages by name that an earlier version recorded beside their outputs, and whether those are up to date.
pub(super) type Earlier<'a> = BTreeMap<&'a str, (&'a StageSpec, bool)>;

pub(super) fn earlier<'a>(spec: &'a Spec, executor: &dyn Executor, hashes: &mut ContentHashes) -> anyhow::Result<Earlier<'a>> {
    let is_earlier = |stage: &&StageSpec| {
        !bookkeeping::stage_record(&stage.out).exists() && bookkeeping::old_stage_record(&stage.out).is_file()
    };
    let mut holds = |stage: &StageSpec| -> anyhow::Result<bool> {
        let Ok(record) = read_record(stage) else { return Ok(false) };
        let contract = executor.contract(&stage.words())?;
        let mut is_same = |path: &String, hash: &String| hashes.of(Path::new(path)).is_ok_and(|now| now == *hash);
        let holds = record.version == env!("CARGO_PKG_VERSION")
            && contract.effective(&record.words) == contract.effective(&shown_words(stage))
            && record.inputs.iter().all(|(path, hash)| is_same(path, hash))
            && {
                // A folder had everything inside.
                let old = output_at(&stage.out).bookkeeping().old();
                let beside = if stage.out.is_dir() { &[][..] } else { &old[..] };
                hash_with(&stage.out, beside, hashes).is_ok_and(|now| now == record.output)
            };
        Ok(holds)
    };
    spec.stages.iter().filter(is_earlier).map(|stage| Ok((stage.name.as_str(), (stage, holds(stage)?)))).collect()
}

/// Moves what an earlier version left to its place. What was up to date still is, though its manifest now lies elsewhere.
pub(super) fn adopt(earlier: &Earlier, executor: &dyn Executor, hashes: &mut ContentHashes) -> anyhow::Result<()> {
    // All outputs first: they are inputs of others.
    earlier.values().try_for_each(|(stage, _)| output_at(&stage.out).adopt())?;
    for (stage, is_up_to_date) in earlier.values() {
        let (old, place) = (bookkeeping::old_stage_record(&stage.out), bookkeeping::stage_record(&stage.out));
        let context = || format!("cannot move {} to {}", old.display(), place.display());
        if *is_up_to_date {
            let record = read_record(stage)?;
            let (fingerprint, inputs) = fingerprint(stage, &executor.contract(&stage.words())?, hashes)?;
            let output = output_hash(stage, hashes).with_context(context)?;
            files::write_json(&place, &Record { fingerprint, inputs, output, ..record }).with_context(context)?;
            std::fs::remove_file(&old).with_context(context)?;
        } else {
            bookkeeping::put(&old, &place).with_context(context)?;
        }
    }
    Ok(())
}

/// Where a stage's record is, or would be.
pub(super) fn record_path(stage: &StageSpec) -> PathBuf {
    let (place, old) = (bookkeeping::stage_record(&stage.out), bookkeeping::old_stage_record(&stage.out));
    if !place.exists() && old.is_file() { old } else { place }
}

pub(super) fn read_record(stage: &StageSpec) -> anyhow::Result<Record> {
    let path = record_path(stage);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: Value = serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
    let Some(format) = value.get(table::FORMAT_KEY).and_then(Value::as_str) else {
        bail!("{}: {} is missing", path.display(), table::FORMAT_KEY)
    };
    table::check_format(&path, format, FORMAT)?;
    Ok(serde_json::from_value(value)?)
}
