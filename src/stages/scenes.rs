//! `clipcap scenes`: pictures and captions of a small rendered world, laid out like Flickr30k with its Chinese captions.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::Outcome;
use super::evaluate::captions::{self, Reading, Role};
use crate::dataset::scenes::{Scene, Split, Verdict};
use crate::files::{self, AtomicFile, between, paths_if_there};
use crate::pipeline::{Reporter, Tick};

pub struct ScenesSettings {
    pub out: PathBuf,
    pub num_images: u64,
    pub seed: u64,
    pub overwrite: bool,
}

/// Written last; a folder that has it is complete and was made with these settings.
const MANIFEST: &str = "manifest.json";
const IMAGES: &str = "images";
const HELD_OUT: &str = "held-out";

/// Renders `images/scene-NNNNNN.jpg` and writes `captions/scenes-zh-{train,val,test}.txt`; `held-out/` has the pictures of the test split once
/// more.
pub fn run(settings: &ScenesSettings, reporter: &dyn Reporter) -> anyhow::Result<(Outcome, String, Value)> {
    let out = &settings.out;
    let manifest = json!({"clipcap.format": "scenes/2", "seed": settings.seed, "num_images": settings.num_images});
    let manifest_path = out.join(MANIFEST);
    let there = std::fs::read(&manifest_path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let text = format!("{}: {} pictures, seed {}", out.display(), settings.num_images, settings.seed);
    let there_is_another = there.is_some();
    match there {
        Some(there) if there == manifest && !settings.overwrite => {
            return Ok((Outcome::Complete, format!("{text} (there already)"), manifest));
        }
        Some(_) if !settings.overwrite => {
            anyhow::bail!("{} holds scenes made with other settings: choose another folder, or --overwrite", out.display())
        }
        _ => {}
    }
    let folders = [IMAGES, HELD_OUT].map(|name| out.join(name));
    let old = [scenes_in(&folders[0])?, scenes_in(&folders[1])?].concat();
    if there_is_another {
        // What comes now is another world, and incomplete until it is there.
        std::fs::remove_file(&manifest_path).with_context(|| format!("cannot remove {}", manifest_path.display()))?;
    }
    // Pictures of another world, or of a run that was killed, would stay beside the new ones.
    old.iter().try_for_each(|path| std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display())))?;
    for folder in &folders {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let numbers: Vec<u64> = (0..settings.num_images).collect();
    for (done, chunk) in numbers.chunks(1000).enumerate() {
        chunk.par_iter().try_for_each(|&number| write_picture(out, settings.seed, number))?;
        let done = (done as u64 * 1000 + chunk.len() as u64).min(settings.num_images);
        reporter.tick(&Tick { label: "rendering", done, total: settings.num_images, ..Tick::default() });
    }
    for split in [Split::Train, Split::Val, Split::Test] {
        let path = out.join(format!("captions/scenes-zh-{}.txt", split.name()));
        write_captions(&path, settings, split).with_context(|| format!("cannot write {}", path.display()))?;
    }
    files::write_json(&manifest_path, &manifest).with_context(|| format!("cannot write {}", manifest_path.display()))?;
    Ok((Outcome::Complete, text, manifest))
}

/// The pictures in a folder, which may be missing; a folder that holds anything else is somebody's.
fn scenes_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let paths = paths_if_there(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let is_scene = |path: &PathBuf| between(path, "scene-", ".jpg").is_some() && path.is_file();
    if let Some(other) = paths.iter().find(|path| !is_scene(path)) {
        anyhow::bail!("{} is not a scene: choose another folder", other.display());
    }
    Ok(paths)
}

fn name(number: u64) -> String {
    format!("scene-{number:06}")
}

fn write_picture(out: &Path, seed: u64, number: u64) -> anyhow::Result<()> {
    let file = name(number) + ".jpg";
    let scene = Scene::new(seed, number);
    let mut bytes = vec![];
    scene.render().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 92))?;
    let folders = if scene.split == Split::Test { &[IMAGES, HELD_OUT][..] } else { &[IMAGES] };
    // Not synced one by one: the manifest, written last, says whether the folder is complete.
    folders
        .iter()
        .map(|folder| out.join(folder).join(&file))
        .try_for_each(|path| std::fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display())))
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

/// What to compare with the scenes that captions are of.
pub struct CheckSettings {
    /// Captions by image, in any form `evaluate` takes; ids are the scenes' names.
    pub captions: PathBuf,
    pub seed: u64,
    /// Only scenes of this split.
    pub split: Option<String>,
    /// JSON summary.
    pub out: Option<PathBuf>,
}

/// Says how many captions name the attributes of their scene right: of each image the first caption.
pub fn check(settings: &CheckSettings, reporter: &dyn Reporter) -> anyhow::Result<(String, Value)> {
    let set = captions::read(&settings.captions, Reading::of(Role::Predictions), reporter)?;
    let mut verdicts: Vec<Verdict> = vec![];
    for image in &set.images {
        let Some(number) = number(&image.id) else {
            anyhow::bail!("{}: {} is not the name of a scene, such as {}", settings.captions.display(), image.id, name(0));
        };
        let scene = Scene::new(settings.seed, number);
        let wanted = settings.split.as_deref().is_none_or(|split| split == scene.split.name());
        if let (true, Some(caption)) = (wanted, image.captions.first()) {
            verdicts.push(scene.judge(caption));
        }
    }
    if verdicts.is_empty() {
        anyhow::bail!("{}: no caption of a scene of that split", settings.captions.display());
    }
    let share = |count: usize| count as f64 / verdicts.len() as f64;
    let right = share(verdicts.iter().filter(|verdict| verdict.is_right()).count());
    let mut text = format!("{} scenes\ncolour, shape and position right: {:.1}%\n", verdicts.len(), 100.0 * right);
    let mut json = json!({"scenes": verdicts.len(), "colour_shape_position_right": right});
    for (attribute, name) in Verdict::ATTRIBUTES.into_iter().enumerate() {
        let count = |said: Option<bool>| share(verdicts.iter().filter(|verdict| verdict.0[attribute] == said).count());
        let (right, wrong) = (count(Some(true)), count(Some(false)));
        text += &format!(
            "{name:<12}right {:5.1}%   wrong {:5.1}%   not named {:5.1}%\n",
            100.0 * right,
            100.0 * wrong,
            100.0 * count(None)
        );
        json[name] = json!({"right": right, "wrong": wrong});
    }
    if let Some(path) = &settings.out {
        files::write_json(path, &json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok((text, json))
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix("scene-")?.parse().ok()
}
