//! Images that are there twice, by content or nearly.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use image_hasher::{HashAlg, HasherConfig};
use rayon::prelude::*;

use super::images::Found;
use super::{PrepareSettings, decoders};
use crate::dataset::assemble::Assembled;
use crate::dataset::duplicates::{Pair, exact, near};
use crate::dataset::tables::{DuplicateRow, ImageRow};
use crate::image::load_bytes;
use crate::pipeline::{Interrupt, Reporter, Tick};

/// Pairs of equal content, then pairs that look alike where that was asked for.
pub fn find<'a>(
    rows: &[ImageRow<'a>],
    set: &Assembled,
    folder: &[Found],
    settings: &PrepareSettings,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<Vec<DuplicateRow<'a>>> {
    let equal = exact(rows.iter().map(|row| row.sha256));
    let mut found: Vec<DuplicateRow<'a>> = equal.iter().map(|pair| row_of("exact", rows, pair)).collect();
    if let Some(distance) = settings.near_duplicates {
        let hashes = hashes(rows, set, folder, settings, reporter, interrupt);
        let alike = near(&hashes, distance);
        // Equal content looks alike; it is told above already.
        let new = alike.iter().filter(|pair| rows[pair.first].sha256 != rows[pair.second].sha256);
        found.extend(new.map(|pair| row_of("near", rows, pair)));
    }
    Ok(found)
}

fn row_of<'a>(kind: &'static str, rows: &[ImageRow<'a>], pair: &Pair) -> DuplicateRow<'a> {
    let (first, second) = (&rows[pair.first], &rows[pair.second]);
    DuplicateRow {
        kind,
        image_id: first.image_id,
        other_image_id: second.image_id,
        split: first.split,
        other_split: second.split,
        distance: pair.distance as i32,
    }
}

/// A perceptual hash of 64 bits (gradients of the image shrunk to 9x8) of every good image.
fn hashes(
    rows: &[ImageRow],
    set: &Assembled,
    folder: &[Found],
    settings: &PrepareSettings,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Vec<Option<u64>> {
    let total = rows.len() as u64;
    let (done, decoders) = (AtomicU64::new(0), decoders());
    rows.par_iter()
        .zip(&set.images)
        .map(|(row, image)| {
            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
            if count.is_multiple_of(64) || count == total {
                reporter.tick(&Tick { label: "comparing images", done: count, total, ..Tick::default() });
            }
            if row.status != "ok" || interrupt.is_set() {
                return None;
            }
            let bytes = folder[image.listed?].place.read(&settings.limits).ok()?;
            let _turn = decoders.take();
            let loaded = load_bytes(&bytes, &settings.limits, true).ok()?;
            let hasher = HasherConfig::with_bytes_type::<[u8; 8]>().hash_alg(HashAlg::Gradient).hash_size(8, 8).to_hasher();
            Some(u64::from_le_bytes(hasher.hash_image(&loaded.pixels).into_inner()))
        })
        .collect()
}
