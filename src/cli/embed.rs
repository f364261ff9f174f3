use std::path::PathBuf;

use super::caption::{FileArgs, ImageArgs, ResumeArgs, default_batch_size, open_bundle, parquet_source, told};
use super::{BadUsage, ComputeArgs, Context, keep_inputs};
use crate::image::Limits;
use crate::pipeline::Reporter;
use crate::pipeline::sources::StoredImages;
use crate::stages::Outcome;
use crate::stages::embed::{self, Dtype, EmbedSettings, Layout, Source};

/// Write CLIP's embedding of every image in a dataset or under some folders.
///
/// Embeddings are projected and, unless --normalize is given, as long as CLIP makes them. Killed or interrupted, the same command goes on
/// from where it was; given again after files were added or changed, it computes only those. Each distinct content is encoded once.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("source").args(["dataset", "images"]).required(true).multiple(true))]
pub struct EmbedArgs {
    /// Dataset from `prepare`; where it does not store its images (--with-images), give their folder with --images too
    #[arg(long, value_name = "DATASET")]
    dataset: Option<PathBuf>,
    /// Folders of images, image files, tars or Parquet files (also as a pattern: set-{000..099}.tar)
    #[arg(long, value_name = "DIR", num_args = 1.., alias = "image_path")]
    images: Vec<PathBuf>,
    /// Model bundle (from `model import`, `model init` or `train`)
    #[arg(long, value_name = "BUNDLE", alias = "model_path")]
    model: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "EMBEDDINGS", alias = "output_path")]
    out: PathBuf,
    /// parquet (part-00000.parquet ...) or npy (clip-retrieval's img_emb/ and metadata/)
    #[arg(long, default_value = "parquet", help_heading = "Embeddings")]
    format: Layout,
    /// Element type: float32 or float16
    #[arg(long, default_value = "float32", help_heading = "Embeddings")]
    dtype: Dtype,
    /// Scale embeddings to length 1, for a mapper that was trained on such ones
    #[arg(long, alias = "normalize_prefix", help_heading = "Embeddings")]
    normalize: bool,
    /// Store the image files' bytes beside, in images-00000.parquet ... (Hugging Face's Image)
    #[arg(long, alias = "save_images", help_heading = "Embeddings")]
    save_images: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Images encoded together (default: 32; on CUDA 64)
    #[arg(long, value_name = "N", alias = "batch_size", help_heading = "Compute", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: Option<u32>,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    resume: ResumeArgs,
    #[arg(long = "clip_model_path", hide = true)]
    clip_model_path: Option<PathBuf>,
    #[arg(long = "caption_path", hide = true)]
    caption_path: Option<PathBuf>,
}

pub fn run(args: EmbedArgs, context: &Context) -> anyhow::Result<Outcome> {
    keep_inputs([args.out.as_path()], args.dataset.iter().chain([&args.model]).map(PathBuf::as_path))?;
    let source = source(&args)?;
    if args.save_images && matches!(source, Source::Dataset(_)) {
        return Err(BadUsage("--save-images: the dataset stores its images already".into()).into());
    }
    if args.out.is_file() || args.out.extension().is_some_and(|extension| extension == "parquet") {
        return Err(BadUsage(format!("--out {}: embeddings are a folder of parts", args.out.display())).into());
    }
    let bundle = open_bundle(&args.model)?;
    if args.normalize != bundle.normalized() {
        let (these, wants) =
            if args.normalize { ("normalized", "ones that are not") } else { ("not normalized", "normalized ones") };
        context.terminal.warn(&format!("these embeddings are {these}, and this bundle's mapper takes {wants}"));
    }
    for (name, _) in
        [("clip_model_path", &args.clip_model_path), ("caption_path", &args.caption_path)].iter().filter(|(_, p)| p.is_some())
    {
        context.terminal.note(&format!("--{name} is not needed: the bundle holds CLIP, and captions stay in the dataset"));
    }
    let ComputeArgs { device, precision, threads } = args.compute;
    let runtime = context.runtime(device, precision, threads)?;
    let wanted = args.files.wanted(matches!(source, Source::Images(_)))?;
    let settings = EmbedSettings {
        source,
        wanted,
        out: args.out,
        layout: args.format,
        dtype: args.dtype,
        normalize: args.normalize,
        save_images: args.save_images,
        limits: Limits { max_pixels: args.image.max_pixels, max_bytes: args.image.max_bytes },
        exif_rotate: !args.image.no_exif_rotate,
        full_decode: args.image.full_decode,
        fail_damaged: args.image.fail_damaged,
        threads: runtime.threads(),
        batch_size: args.batch_size.map_or(default_batch_size(runtime.device()), |n| n as usize),
        overwrite: args.resume.overwrite,
        keep_work: args.resume.keep_work,
        retry_failed: args.resume.retry_failed,
        prune: args.resume.may_drop(),
        max_error_rate: args.resume.max_error_rate,
    };
    told(&runtime, &context.terminal);
    let model = embed::info(&bundle, &runtime)?;
    let load = || {
        let loaded = embed::load(&bundle, &runtime, settings.batch_size);
        context.tell_placements(&runtime);
        loaded
    };
    let report = embed::run(&settings, &model, load, &context.terminal, &context.interrupt)?;
    let (text, json) = report.summary();
    context.terminal.result(&text, &json);
    Ok(report.outcome)
}

fn source(args: &EmbedArgs) -> anyhow::Result<Source> {
    match (&args.dataset, &args.images[..]) {
        (None, images) => Ok(match parquet_source(images, &args.image.image_column)? {
            Some(files) => Source::Parquet(files, args.image.image_column.clone()),
            None => Source::Images(images.to_vec()),
        }),
        (Some(dataset), []) if StoredImages::is_dataset(dataset) || dataset.join("captions.parquet").is_file() => {
            Ok(Source::Dataset(dataset.clone()))
        }
        (Some(dataset), []) => {
            Err(BadUsage(format!("--dataset {}: not a dataset that `prepare` made", dataset.display())).into())
        }
        (Some(dataset), images) => Ok(Source::DatasetFiles(dataset.clone(), images.to_vec())),
    }
}
