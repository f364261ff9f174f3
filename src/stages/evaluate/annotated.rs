//! Captions that people wrote, in every layout that `prepare` reads.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::builder::{Builder, Row};
use crate::dataset::captions::{Format, ReadOptions, read_captions};
use crate::pipeline::Reporter;

/// Reads one file through the dataset's own parsers, `format` detected where it is none. Lines that hold no caption are counted in a
/// warning. Text stays as it is in the file, except that segmented words are joined.
pub(super) fn read(
    path: &Path,
    format: Option<Format>,
    split: Option<&str>,
    builder: &mut Builder,
    reporter: &dyn Reporter,
) -> Result<()> {
    let options = ReadOptions { format, ..ReadOptions::default() };
    let found = read_captions(&[PathBuf::from(path)], &options)?;
    if let Some(first) = found.bad.first() {
        let (count, line, message) = (found.bad.len(), first.line, &first.bad.message);
        reporter.warn(&format!("{}: {count} lines hold no caption; the first is line {line} ({message})", path.display()));
    }
    let segmented = found.files.iter().any(|file| file.format == Format::FlickrCn);
    let mut any_split = false;
    for (file, batch) in &found.batches {
        for row in &batch.rows {
            let id = batch.get(row.image);
            let coco = found.coco_files[*file as usize].get(id);
            let row_split = Some(batch.get(row.split)).filter(|split| !split.is_empty());
            let row_split = row_split.or(coco.map(|(_, split)| split.as_str())).unwrap_or_default();
            any_split |= !row_split.is_empty();
            if !builder.wants(Some(row_split), split) {
                continue;
            }
            let alias = row.file.map(|file| batch.get(file)).or(coco.map(|(file, _)| file.as_str()));
            let caption = batch.get(if segmented { row.caption } else { row.raw });
            builder.add(Row {
                id,
                alias,
                split: Some(row_split),
                index: row.number.map(i64::from),
                caption: Some(caption),
                ..Row::default()
            })?;
        }
    }
    if split.is_some() && !any_split {
        bail!("{} does not say which split a caption is of, and --split was given", path.display());
    }
    Ok(())
}
