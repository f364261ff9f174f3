//! `images-00000.parquet`: the bytes of the images, as Hugging Face's `Image` stores them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::images::Found;
use crate::dataset::assemble::Assembled;
use crate::dataset::tables::{ImageRow, ImageShard, write_image_shard};
use crate::files::sha256_hex;
use crate::image::{Limits, read};
use crate::pipeline::{Interrupt, Reporter, Tick};

/// A shard ends when its images hold this many bytes.
const SHARD_BYTES: i64 = 512 << 20;

/// Writes the good images, in order of their ids, and gives the names of the shards. Files are read again, and one that has changed
/// since it was hashed ends the run.
pub fn write(
    staging: &Path,
    set: &Assembled,
    rows: &[ImageRow],
    folder: &[Found],
    limits: &Limits,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<Vec<PathBuf>> {
    let good: Vec<(&ImageRow, &Path)> = rows
        .iter()
        .zip(&set.images)
        .filter(|(row, _)| row.status == "ok")
        .filter_map(|(row, image)| Some((row, folder[image.listed?].path.as_path())))
        .collect();
    let total = good.len() as u64;
    let mut done = 0;
    let mut names = Vec::new();
    let mut rest = &good[..];
    while !rest.is_empty() && !interrupt.is_set() {
        let mut bytes = 0;
        let end = rest
            .iter()
            .position(|(row, _)| {
                bytes += row.bytes.unwrap_or(0);
                bytes >= SHARD_BYTES
            })
            .map_or(rest.len(), |at| at + 1);
        let (shard, after) = rest.split_at(end);
        let name = format!("images-{:05}.parquet", names.len());
        let rows: Vec<&ImageRow<'_>> = shard.iter().map(|(row, _)| *row).collect();
        let content = |at: usize| read_again(shard[at].0, shard[at].1, limits).map_err(std::io::Error::other);
        let file = write_image_shard(&staging.join(&name), &ImageShard { rows: &rows, content: &content })?;
        file.commit().with_context(|| format!("cannot write {name} in {}", staging.display()))?;
        names.push(PathBuf::from(name));
        done += shard.len() as u64;
        reporter.tick(&Tick { label: "storing images", done, total, rates: Vec::new() });
        rest = after;
    }
    Ok(names)
}

fn read_again(row: &ImageRow, path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let bytes = match read(path, limits) {
        Ok(bytes) => bytes,
        Err(failure) => bail!("{}: {} since it was listed: run prepare again", path.display(), failure.reason.as_str()),
    };
    if row.sha256 != Some(sha256_hex(&bytes).as_str()) {
        bail!("{}: changed since it was listed: run prepare again", path.display());
    }
    Ok(bytes)
}
