//! `clipcap export`: captions with their pictures in the layouts that other tools read.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};

use crate::bookkeeping;
use crate::files::{ContentHash, json_text, remove_if_there, write_atomic, write_json};
use crate::image::{Failure as ImageFailure, Limits, Reason};
use crate::pipeline::sources::Located;
use crate::pipeline::{ErrorsTable, Failure, Interrupt, Output, Reporter, Settings, Staging, Tick, manifest_head};
use crate::stages::Outcome;
use crate::stages::evaluate::captions::{self, ImageCaptions, Reading, Role};
use crate::table::{self, FORMAT_KEY};

mod layouts;
mod sidecar;

use layouts::Layout;

const FORMAT: &str = "export/1";

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Tar shards: a picture, `.txt` and `.json` under one key.
    WebDataset,
    /// Hugging Face's imagefolder: pictures and `metadata.jsonl`, a folder for each split.
    ImageFolder,
    /// Parquet files with picture and captions in a row.
    Parquet,
    /// `.txt` (and `.xmp`) beside each picture.
    Sidecar,
    /// COCO's results: a list of image_id and caption.
    Coco,
    /// Pictures with `.txt` beside them, and a dataset.toml for kohya's sd-scripts.
    Kohya,
}

named!(
    Target,
    "a layout",
    WebDataset = "webdataset",
    ImageFolder = "imagefolder",
    Parquet = "parquet",
    Sidecar = "sidecar",
    Coco = "coco",
    Kohya = "kohya",
);

/// What is exported, and how.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// A caption table or a dataset.
    pub input: PathBuf,
    /// Folders of the pictures.
    pub images: Vec<PathBuf>,
    pub target: Target,
    /// None (sidecar only): beside the pictures.
    pub out: Option<PathBuf>,
    /// Pictures of a tar or of a Parquet file.
    pub shard_images: u64,
    /// Sidecar: XMP files beside the `.txt`.
    pub xmp: bool,
    pub overwrite: bool,
    pub limits: Limits,
}

/// How an export ended.
#[derive(Debug)]
pub struct Exported {
    pub outcome: Outcome,
    pub exported: u64,
    pub failed: u64,
    /// `.txt` and `.xmp` files that were there and stayed.
    pub kept: u64,
    pub out: Option<PathBuf>,
}

/// A picture's captions and where it is.
struct Item {
    image_id: String,
    image_path: String,
    split: Option<String>,
    sha256: Option<String>,
    captions: Vec<String>,
    /// What they were before they were normalized, in step; empty where that is the same or not known.
    raws: Vec<String>,
}

impl Item {
    /// Its file's bytes, which must be those that were captioned.
    fn read(&self, located: &Located, limits: &Limits) -> Result<Vec<u8>, Failure> {
        let as_stage_failure =
            |failure: ImageFailure| Failure { reason: failure.reason.as_str().into(), message: failure.message };
        let place = located.find(&self.image_path).map_err(as_stage_failure)?;
        let bytes = place.read(limits).map_err(as_stage_failure)?;
        match &self.sha256 {
            Some(sha256) if *sha256 != ContentHash::of(&*bytes).to_string() => Err(as_stage_failure(ImageFailure::new(
                Reason::Vanished,
                "the file was changed since it was captioned: caption it again",
            ))),
            _ => Ok(bytes.into_bytes()),
        }
    }

    /// The first caption, which layouts with one place take.
    fn first(&self) -> &str {
        self.captions.first().map_or("", String::as_str)
    }
}

/// Exports every picture that has a caption.
///
/// # Errors
/// No captions; no folder of pictures where the layout needs one; an output that may not be replaced; a full disk.
pub fn run(settings: &ExportSettings, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<Exported> {
    let items = items(&settings.input, reporter)?;
    if settings.target == Target::Sidecar {
        return sidecar::write(settings, &items, reporter, interrupt);
    }
    let out = settings.out.as_deref().context("--out is missing")?;
    if settings.target == Target::Coco {
        return coco(out, &items, settings.overwrite);
    }
    let located = Located::new(&settings.images)?;
    let output = Output::folder(out);
    let staging = Staging::open(&output, FORMAT, settings.overwrite)?;
    let recorded = Settings::new("export", recorded(settings, &items));
    let mut layout = Layout::create(settings, staging.folder())?;
    let mut errors = ErrorsTable::new(staging.folder().join(bookkeeping::ERRORS));
    let mut failed = 0;
    for (done, item) in (1..).zip(&items) {
        if interrupt.is_set() {
            return Ok(Exported { outcome: Outcome::Interrupted, exported: 0, failed: 0, kept: 0, out: settings.out.clone() });
        }
        match item.read(&located, &settings.limits) {
            Ok(bytes) => layout.add(item, bytes)?,
            Err(failure) => {
                failed += 1;
                errors.add(&item.image_path, &failure)?;
            }
        }
        reporter.tick(&Tick { label: "exporting", done, total: items.len() as u64, ..Tick::default() });
    }
    let exported = items.len() as u64 - failed;
    if exported == 0 {
        bail!("not one of {failed} pictures could be read: are --images the folders that were captioned?");
    }
    let files = layout.finish()?;
    errors.finish()?;
    if staging.is_finished(&recorded, &files)? && !settings.overwrite {
        reporter.note(&format!("{} is finished: the same settings and inputs made it", out.display()));
    } else {
        let mut manifest = manifest_head(FORMAT, &recorded, &output)?;
        manifest.insert("counts".into(), json!({"exported": exported, "failed": failed}));
        manifest.insert("files".into(), json!(files));
        write_json(&staging.folder().join(bookkeeping::MANIFEST), &manifest).context("cannot write the manifest")?;
        remove_surplus(&output, &files)?;
        staging.publish(&files, reporter)?;
    }
    let outcome = if failed > 0 { Outcome::SomeFailed } else { Outcome::Complete };
    Ok(Exported { outcome, exported, failed, kept: 0, out: settings.out.clone() })
}

/// Removes what an earlier export put here and this one does not have: files that its manifest names, and folders that are empty then.
fn remove_surplus(output: &Output, files: &[PathBuf]) -> Result<()> {
    let read = |text: Vec<u8>| serde_json::from_slice::<Json>(&text).ok();
    let Some(before) = fs::read(output.manifest()).ok().and_then(read) else { return Ok(()) };
    if before[FORMAT_KEY] != FORMAT {
        return Ok(());
    }
    let kept: HashSet<&Path> = files.iter().map(PathBuf::as_path).collect();
    let stays_inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    let named = before["files"].as_array().into_iter().flatten().filter_map(Json::as_str).map(Path::new);
    for surplus in named.filter(|path| !kept.contains(path) && stays_inside(path)) {
        let path = output.path().join(surplus);
        remove_if_there(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        for folder in surplus.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            // One that holds something else stays.
            if fs::remove_dir(output.path().join(folder)).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// What an export depends on, contents included.
fn recorded(settings: &ExportSettings, items: &[Item]) -> Json {
    let mut text = String::new();
    for item in items {
        text += &format!("{}\n{:?}\n{:?}\n{:?}\n", item.image_path, item.sha256, item.split, item.captions);
        if !item.raws.is_empty() {
            text += &format!("{:?}\n", item.raws);
        }
    }
    json!({"to": format!("{:?}", settings.target), "shard_images": settings.shard_images, "captions": ContentHash::of(text)})
}

/// The captions by image; a dataset's images say where the files are.
fn items(input: &Path, reporter: &dyn Reporter) -> Result<Vec<Item>> {
    let set = captions::read(input, Reading::of(Role::References), reporter)?;
    let paths = dataset_paths(input)?;
    let of = |image: ImageCaptions| {
        let known = paths.as_ref().map(|paths| paths.get(&image.id).cloned());
        let image_path = match known {
            Some(known) => known.unwrap_or_else(|| image.id.clone()),
            None => image.alias.unwrap_or_else(|| image.id.clone()),
        };
        let raws: Option<Vec<String>> = image.details.into_iter().map(|details| details.raw).collect();
        let raws = raws.filter(|raws| *raws != image.captions).unwrap_or_default();
        Item { image_id: image.id, image_path, split: image.split, sha256: image.sha256, captions: image.captions, raws }
    };
    let mut items: Vec<Item> = set.images.into_iter().map(of).collect();
    items.retain(|item| !item.captions.is_empty());
    items.sort_by(|a, b| a.image_path.split('/').cmp(b.image_path.split('/')));
    Ok(items)
}

/// image_id to image_path, where the input is a dataset.
fn dataset_paths(input: &Path) -> Result<Option<HashMap<String, String>>> {
    let images = input.join("images.parquet");
    if !images.is_file() {
        return Ok(None);
    }
    let rows = table::texts(&images, None, ["image_id", "image_path"])?;
    let paths = rows.filter_map(|row| row.map(|[id, path]| Some((id?, path?))).transpose());
    paths.collect::<Result<_>>().map(Some)
}

/// COCO's results: ids that are whole numbers are numbers, as its tools want them.
fn coco(out: &Path, items: &[Item], overwrite: bool) -> Result<Exported> {
    let number = |id: &str| -> Json {
        match id.parse::<u64>() {
            Ok(number) if number.to_string() == id => number.into(),
            _ => id.into(),
        }
    };
    let results: Vec<Json> =
        items.iter().map(|item| json!({"image_id": number(&item.image_id), "caption": item.first()})).collect();
    let text = json_text(&results)?;
    let is_other = || fs::read(out).map_or(true, |there| there != text);
    // What this made before is left as it is.
    if !overwrite && fs::symlink_metadata(out).is_ok() && is_other() {
        bail!("{} exists: choose another --out, or give --overwrite to replace it", out.display());
    }
    write_atomic(out, &text).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(Exported { outcome: Outcome::Complete, exported: items.len() as u64, failed: 0, kept: 0, out: Some(out.into()) })
}

impl Exported {
    /// The closing summary, as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        let mut text = format!("{} pictures exported, {} failed\n", self.exported, self.failed);
        if self.kept > 0 {
            text += &format!("{} files were there and stay as they are (--overwrite replaces them)\n", self.kept);
        }
        if let Some(out) = &self.out {
            text += &format!("output   {}\n", out.display());
        }
        let json = json!({
            "command": "export",
            "exit_status": self.outcome.exit_code(),
            "counts": {"exported": self.exported, "failed": self.failed, "kept": self.kept},
            "out": self.out,
        });
        (text, json)
    }
}
