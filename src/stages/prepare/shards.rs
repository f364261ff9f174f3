//! `images-00000.parquet`: the bytes of the images, as Hugging Face's `Image` stores them.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::images::Found;
use crate::dataset::assemble::Assembled;
use crate::dataset::tables::{ImageRow, ImageShard, write_image_shard};
use crate::files::ContentHash;
use crate::image::Limits;
use crate::pipeline::sources::Place;
use crate::pipeline::{Interrupt, Reporter, Tick};
use crate::remote;

/// A shard ends when its images hold this many bytes.
const SHARD_BYTES: i64 = 512 << 20;

/// A shard: its name, and how many of the good images it holds.
pub struct Shard {
    pub name: String,
    images: usize,
}

/// The shards that the good images of a dataset make.
pub fn plan(rows: &[ImageRow]) -> Vec<Shard> {
    let mut shards: Vec<Shard> = Vec::new();
    let mut bytes = SHARD_BYTES;
    for row in rows.iter().filter(|row| row.status == "ok") {
        if bytes >= SHARD_BYTES {
            shards.push(Shard { name: format!("images-{:05}.parquet", shards.len()), images: 0 });
            bytes = 0;
        }
        bytes += row.bytes.unwrap_or(0);
        shards.last_mut().expect("the first image begins a shard").images += 1;
    }
    shards
}

/// Writes the good images, in order of their ids. Files are read again, and one that has changed since it was hashed ends the run.
pub fn write(
    staging: &Path,
    set: &Assembled,
    rows: &[ImageRow],
    folder: &[Found],
    limits: &Limits,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<()> {
    let good: Vec<(&ImageRow, &Place)> = rows
        .iter()
        .zip(&set.images)
        .filter(|(row, _)| row.status == "ok")
        .filter_map(|(row, image)| Some((row, &folder[image.listed?].place)))
        .collect();
    let total = good.len() as u64;
    let mut rest = &good[..];
    for Shard { name, images } in plan(rows) {
        if interrupt.is_set() {
            return Ok(());
        }
        let (shard, after) = rest.split_at(images);
        let rows: Vec<&ImageRow<'_>> = shard.iter().map(|(row, _)| *row).collect();
        let content = |at: usize| read_again(shard[at].0, shard[at].1, limits).map_err(std::io::Error::other);
        let file = write_image_shard(&staging.join(&name), &ImageShard { rows: &rows, content: &content })?;
        file.commit().with_context(|| format!("cannot write {name} in {}", staging.display()))?;
        rest = after;
        reporter.tick(&Tick { label: "storing images", done: total - rest.len() as u64, total, ..Tick::default() });
    }
    Ok(())
}

fn read_again(row: &ImageRow, place: &Place, limits: &Limits) -> Result<Vec<u8>> {
    let path = place.path();
    let bytes = match place.read(limits) {
        Ok(bytes) => bytes.into_bytes(),
        Err(failure) => bail!("{}: {} since it was listed: run prepare again", remote::shown(path), failure.reason.as_str()),
    };
    if row.sha256 != Some(ContentHash::of(&bytes)) {
        bail!("{}: changed since it was listed: run prepare again", remote::shown(path));
    }
    Ok(bytes)
}
