//! What the manifest beside an output says: how it was made, what became of every image, what went.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::output::Output;
use super::roots::Roots;
use super::settings::Settings;
use crate::image::Reason;
use crate::table::FORMAT_KEY;

/// What became of everything listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Images with a result.
    pub succeeded: u64,
    pub failed: u64,
    /// `failed` by reason, in the order of [`Reason::ALL`].
    #[serde(deserialize_with = "by_reason")]
    pub failed_by_reason: [u64; Reason::ALL.len()],
    pub skipped: u64,
    /// Folders whose content cannot be listed; they are not `found`.
    pub unlisted: u64,
    /// Of `succeeded`, those whose file is damaged.
    #[serde(default)]
    pub damaged: u64,
    /// Of `succeeded`, those that cannot be read this time: their results from before are kept.
    pub kept: u64,
    /// Of `succeeded`, those that the model computed in this run; the others were known.
    pub computed: u64,
    /// What `computed` counts for in the second rate, such as captions.
    pub computed_weight: u64,
}

/// What was written when there were fewer reasons has none of the others.
fn by_reason<'de, D: serde::Deserializer<'de>>(from: D) -> Result<[u64; Reason::ALL.len()], D::Error> {
    let found = Vec::<u64>::deserialize(from)?;
    Ok(std::array::from_fn(|at| found.get(at).copied().unwrap_or(0)))
}

impl Counts {
    /// All files, whatever became of them.
    pub fn found(&self) -> u64 {
        self.succeeded + self.failed + self.skipped
    }

    /// Images whose results are from before.
    pub fn reused(&self) -> u64 {
        self.succeeded - self.computed
    }

    /// Failed images of each reason that occurred.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.failed_by_reason).filter(|(_, number)| *number > 0)
    }

    /// Failed images as a share of all images; 0 where there are none.
    pub fn error_rate(&self) -> f64 {
        let images = self.succeeded + self.failed;
        if images == 0 { 0.0 } else { self.failed as f64 / images as f64 }
    }
}

/// What a run leaves out of the earlier results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Lost {
    /// Images whose results are not in the new output, under no name.
    pub dropped: u64,
    /// Images whose results are there under another name.
    pub renamed: u64,
}

/// An output's manifest: `done` is what a successful image is called, and `recorded` is of no influence on results.
///
/// # Errors
/// Settings that are no JSON.
pub fn manifest(
    format: &str,
    settings: &Settings,
    output: &Output,
    done: &str,
    counts: &Counts,
    lost: Lost,
    roots: &Roots,
    recorded: Json,
) -> Result<Json> {
    let mut manifest = manifest_head(format, settings, output)?;
    let mut numbers =
        json!({"found": counts.found(), done: counts.succeeded, "failed": counts.failed, "skipped": counts.skipped});
    let others = [
        ("damaged", counts.damaged),
        ("unlisted_folders", counts.unlisted),
        ("kept", counts.kept),
        ("dropped", lost.dropped),
        ("renamed", lost.renamed),
    ];
    for (name, number) in others.into_iter().filter(|(_, number)| *number > 0) {
        numbers[name] = number.into();
    }
    manifest.insert("counts".into(), numbers);
    manifest.insert("recorded".into(), recorded);
    manifest.insert("roots".into(), serde_json::to_value(roots)?);
    Ok(Json::Object(manifest))
}

/// The first pairs of a manifest, which [`Output::existing`] reads back.
pub fn manifest_head(format: &str, settings: &Settings, output: &Output) -> Result<Map<String, Json>> {
    let mut head = Map::new();
    head.insert(FORMAT_KEY.into(), format.into());
    if let Some(table) = output.table_name() {
        head.insert("table".into(), table.into());
    }
    match serde_json::to_value(settings)? {
        Json::Object(settings) => head.extend(settings),
        other => bail!("settings are an object, not {other}"),
    }
    Ok(head)
}
