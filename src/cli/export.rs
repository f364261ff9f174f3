use std::path::PathBuf;

use super::{BadUsage, Context, keep_inputs};
use crate::image::Limits;
use crate::stages::Outcome;
use crate::stages::export::{self, ExportSettings, Target};

/// What `--help` says below the flags.
const MORE_HELP: &str = "\
  clipcap export captions.parquet --images photos --to sidecar                       # photos/a.txt beside photos/a.jpg
  clipcap export captions.parquet --images photos --to webdataset --out shards/
  clipcap export dataset --images images --to imagefolder --out hf/                  # load_dataset(\"imagefolder\", data_dir=\"hf\")
  clipcap export captions.parquet --to coco --out results.json";

/// Write captions and their pictures in the layout of another tool.
///
/// webdataset: tars of a picture, .txt and .json for each key. imagefolder: pictures and metadata.jsonl, a folder for each split. parquet: picture
/// and captions in a row. sidecar: .txt (and --xmp) beside each picture. coco: a list of image_id and caption. kohya: pictures with .txt, and
/// a dataset.toml for sd-scripts. If a layout has one caption per picture, the first is written. A picture that is gone or that changed since it
/// was captioned is left out and listed in .clipcap/OUT.errors.parquet (exit status 3).
///
/// `prepare` reads webdataset, imagefolder and parquet back exactly: image_ids, captions, what they were before they were normalized, and splits.
/// sidecar and kohya keep captions (kohya the first) and no splits.
#[derive(clap::Args)]
#[command(after_long_help = MORE_HELP)]
pub struct ExportArgs {
    /// Caption table, or a dataset from `prepare`
    #[arg(value_name = "TABLE|DATASET")]
    input: PathBuf,
    /// Folders (or tars) of the pictures, as they were captioned or prepared
    #[arg(long, value_name = "DIR", num_args = 1..)]
    images: Vec<PathBuf>,
    /// webdataset, imagefolder, parquet, sidecar, coco or kohya
    #[arg(long, value_name = "LAYOUT")]
    to: Target,
    /// Folder to write (coco: a file; sidecar: beside the pictures where it is not given)
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// Pictures per tar or Parquet file
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    shard_images: u64,
    /// sidecar: write .xmp files too, with the caption as dc:description
    #[arg(long)]
    xmp: bool,
    /// Replace an existing export; of its files, those that this export does not have are removed
    #[arg(long)]
    overwrite: bool,
}

/// Exports, and says what came of it.
///
/// # Errors
/// Bad usage; see [`export::run`].
pub fn run(args: ExportArgs, context: &Context) -> anyhow::Result<Outcome> {
    let usage = |message: &str| -> anyhow::Error { BadUsage(message.into()).into() };
    if args.out.is_none() && args.to != Target::Sidecar {
        return Err(usage("--out is missing"));
    }
    if args.images.is_empty() && args.to != Target::Coco {
        return Err(usage("--images says where the pictures are"));
    }
    if args.xmp && args.to != Target::Sidecar {
        return Err(usage("--xmp goes with --to sidecar"));
    }
    keep_inputs(args.out.as_deref(), [args.input.as_path()])?;
    let settings = ExportSettings {
        input: args.input,
        images: args.images,
        target: args.to,
        out: args.out,
        shard_images: args.shard_images,
        xmp: args.xmp,
        overwrite: args.overwrite,
        limits: Limits::default(),
    };
    let exported = export::run(&settings, &context.terminal, &context.interrupt)?;
    let (text, json) = exported.summary();
    context.terminal.summary(&text, &json);
    Ok(exported.outcome)
}
