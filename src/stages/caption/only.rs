//! A table of which only some rows are made again.

use anyhow::{Result, bail};
use serde_json::{Value as Json, json};

use super::tables::{FORMAT, TableFormat};
use crate::files::ContentHash;
use crate::pipeline::{Existing, Output, Settings, WorkFolder};

/// Under this name the settings of such a table say which settings made its rows.
const KEY: &str = "rows";

/// The settings of a table whose chosen rows are made by `new`. Where those that stay were made by others, these are named by their
/// fingerprints, so that the table is not taken for one that `new` made.
pub(super) fn beside_others(output: &Output, format: TableFormat, new: Settings) -> Result<Settings> {
    let old = match output.existing(FORMAT)? {
        Existing::Nothing => return Ok(new),
        // No manifest: perhaps a run was stopped while it put its output in place. Its work folder knows.
        Existing::Unknown => return Ok(WorkFolder::settings_in(&output.work_folder())?.unwrap_or(new)),
        Existing::Finished(old) => old,
    };
    if format == TableFormat::Tsv {
        bail!(
            "{}: a .tsv holds too little to keep the rows of the other images: choose another --out, such as a .parquet",
            output.path().display()
        );
    }
    let rows = &old.settings[KEY];
    let hash = |json: &Json| json.as_str()?.parse::<ContentHash>().ok();
    let made_by = hash(&rows["made_by"]).unwrap_or(old.fingerprint);
    let before = rows["others"].as_array().into_iter().flatten().filter_map(hash);
    let mut others: Vec<ContentHash> = before.chain([made_by]).filter(|other| *other != new.fingerprint).collect();
    others.sort_unstable();
    others.dedup();
    if others.is_empty() {
        return Ok(new);
    }
    let mut settings = new.settings;
    settings[KEY] = json!({"made_by": new.fingerprint, "others": others});
    Ok(Settings::new(&new.stage, settings))
}
