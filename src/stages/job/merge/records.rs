//! The records of a job's shards: which there are, whether they may be put together, and whether their files are whole.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::{Value as Json, json};

use super::MergeSettings;
use crate::files::ContentHash;
use crate::pipeline::job::{JobFolder, Plan, PlannedShard, Record, ResultFile};
use crate::pipeline::{Counts, Reporter, Settings};
use crate::stages::job::{done_word, ranges};

/// The records there are, in order, and the shards that have none.
pub(super) fn finished(
    job: &JobFolder,
    plan: &Plan,
    settings: &MergeSettings,
    reporter: &dyn Reporter,
) -> Result<(Vec<Record>, Vec<u64>)> {
    let (mut records, mut missing) = (Vec::new(), Vec::new());
    for shard in 0..plan.num_shards {
        match job.record(plan, shard)? {
            Some(record) => records.push(record),
            None => missing.push(shard),
        }
    }
    if !missing.is_empty() {
        let (are, at) = (ranges(&missing), settings.job.display());
        let message = format!("{} of {} shards are not finished: {are}", missing.len(), plan.num_shards);
        if !settings.allow_missing || records.is_empty() {
            bail!(
                "{message}; `clipcap {} --job {at} --next=all` finishes them (--allow-missing leaves them out)",
                plan.settings.stage
            );
        }
        reporter.warn(&format!("{message}; they are left out"));
    }
    Ok((records, missing))
}

/// What the whole table was made with.
pub(super) fn one_identity(records: &[Record], settings: &MergeSettings) -> Result<Settings> {
    let mut kinds: BTreeMap<ContentHash, (&Record, Vec<u64>)> = BTreeMap::new();
    for record in records {
        kinds.entry(record.settings.fingerprint).or_insert((record, Vec::new())).1.push(record.shard);
    }
    let first = &records.first().context("no shard is finished")?.settings;
    if kinds.len() == 1 {
        return Ok(first.clone());
    }
    let text = |(record, shards): &(&Record, Vec<u64>)| format!("shards {}: {}", ranges(shards), identity_text(&record.identity));
    if !settings.allow_mixed {
        let texts: Vec<String> = kinds.values().map(text).collect();
        bail!(
            "the shards were made on machines of several kinds, and a table of them is not what any one of these would have written \
             ({}); do some again (--shard K --overwrite), or give --allow-mixed",
            texts.join("; ")
        );
    }
    // Made by none of them: a later run must not go on from it as if it were its own.
    let mut mixed = first.settings.clone();
    mixed["model"] = json!({
        "fingerprint": first.settings["model"]["fingerprint"],
        "mixed": kinds.values().map(|(record, _)| &record.identity).collect::<Vec<_>>(),
    });
    Ok(Settings::new(&first.stage, mixed))
}

/// A device for people.
pub(in crate::stages::job) fn identity_text(identity: &Json) -> String {
    let part = |name: &str| identity[name].as_str().unwrap_or("?");
    // The build's options are long; the version says enough here.
    let runtime = part("runtime").split(" (").next().unwrap_or_default();
    format!("{} {}, ONNX Runtime {runtime}, {}", part("device"), part("precision"), part("cpu"))
}

/// Finds files that are not what their workers recorded.
pub(super) fn verify(job: &JobFolder, records: &[Record]) -> Result<()> {
    let is_whole = |file: &ResultFile| ContentHash::of_file(&job.result(&file.name)).is_ok_and(|sha256| sha256 == file.sha256);
    let damaged: Vec<u64> = records
        .par_iter()
        .filter(|record| !is_whole(&record.table) || !is_whole(&record.errors))
        .map(|record| record.shard)
        .collect();
    match &damaged[..] {
        [] => Ok(()),
        [first, ..] => bail!(
            "the results of shards {} are damaged or gone: their bytes are not those that their workers recorded; do them again: \
             clipcap {} --job {} --shard {first} --overwrite",
            ranges(&damaged),
            records[0].settings.stage,
            job.root().display()
        ),
    }
}

/// Adds a shard's counts, which must be what was planned.
pub(super) fn add(counts: &mut Counts, record: &Record, plan: &Plan) -> Result<()> {
    let Counts { succeeded, failed, skipped, unlisted, .. } = record.counts;
    let PlannedShard { found: planned, is_uncounted, .. } = plan.shards[record.shard as usize];
    if succeeded + failed + skipped != planned && !is_uncounted {
        bail!(
            "shard {}: {planned} files were found, and {succeeded} {}, {failed} failed and {skipped} skipped: do it again \
             (--shard {0} --overwrite)",
            record.shard,
            done_word(&plan.settings.stage)
        );
    }
    counts.succeeded += succeeded;
    counts.failed += failed;
    counts.skipped += skipped;
    counts.unlisted += unlisted;
    counts.damaged += record.counts.damaged;
    Ok(())
}
