//! `clipcap scenes`: pictures and captions of a small rendered world, laid out like Flickr30k with its Chinese captions.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::Outcome;
use crate::dataset::scenes::{Scene, Split};
use crate::files::{self, AtomicFile};
use crate::pipeline::{Reporter, Tick};

pub struct ScenesSettings {
    pub out: PathBuf,
    pub num_images: u64,
    pub seed: u64,
    pub overwrite: bool,
}

/// Written last; a folder that has it is complete and was made with these settings.
const MANIFEST: &str = "manifest.json";

/// Renders `images/scene-NNNNNN.jpg` and writes `captions/scenes-zh-{train,val,test}.txt`.
pub fn run(settings: &ScenesSettings, reporter: &dyn Reporter) -> anyhow::Result<(Outcome, String, Value)> {
    let out = &settings.out;
    let manifest = json!({"clipcap.format": "scenes/1", "seed": settings.seed, "num_images": settings.num_images});
    let manifest_path = out.join(MANIFEST);
    let there = std::fs::read(&manifest_path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let text = format!("{}: {} pictures, seed {}", out.display(), settings.num_images, settings.seed);
    match there {
        Some(there) if there == manifest && !settings.overwrite => {
            return Ok((Outcome::Complete, format!("{text} (there already)"), manifest));
        }
        Some(_) if !settings.overwrite => {
            anyhow::bail!("{} holds scenes made with other settings: choose another folder, or --overwrite", out.display())
        }
        _ => {}
    }
    let images = out.join("images");
    std::fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
    let numbers: Vec<u64> = (0..settings.num_images).collect();
    for (done, chunk) in numbers.chunks(1000).enumerate() {
        chunk.par_iter().try_for_each(|&number| write_picture(&images, settings.seed, number))?;
        let done = (done as u64 * 1000 + chunk.len() as u64).min(settings.num_images);
        reporter.tick(&Tick { label: "rendering", done, total: settings.num_images, rates: vec![] });
    }
    for split in [Split::Train, Split::Val, Split::Test] {
        let path = out.join(format!("captions/scenes-zh-{}.txt", split.name()));
        write_captions(&path, settings, split).with_context(|| format!("cannot write {}", path.display()))?;
    }
    files::write_json(&manifest_path, &manifest).with_context(|| format!("cannot write {}", manifest_path.display()))?;
    Ok((Outcome::Complete, text, manifest))
}

fn name(number: u64) -> String {
    format!("scene-{number:06}")
}

fn write_picture(folder: &Path, seed: u64, number: u64) -> anyhow::Result<()> {
    let path = folder.join(name(number) + ".jpg");
    let mut bytes = vec![];
    Scene::new(seed, number).render().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 92))?;
    // Not synced one by one: the manifest, written last, says whether the folder is complete.
    std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn write_captions(path: &Path, settings: &ScenesSettings, split: Split) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(path)?;
    for number in 0..settings.num_images {
        let scene = Scene::new(settings.seed, number);
        if scene.split == split {
            for (k, caption) in scene.captions().iter().enumerate() {
                writeln!(file, "{}#zh#{k} {caption}", name(number))?;
            }
        }
    }
    Ok(file.commit()?)
}
