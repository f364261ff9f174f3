use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::caption::{FileArgs, ImageArgs, ResumeArgs, RunFlags, end, note_runtime, open_bundle, parquet_source};
use super::contract::Reads;
use super::work::{ShardArgs, Work};
use super::{BadUsage, ComputeArgs, Context, keep_inputs};
use crate::models::{Bundle, ClipEncoder};
use crate::pipeline::Reporter;
use crate::pipeline::job::JobFolder;
use crate::pipeline::npy::FloatType;
use crate::pipeline::sources::{Source, StoredImages};
use crate::remote;
use crate::runtime::Runtime;
use crate::stages::Outcome;
use crate::stages::elsewhere::RemoteOutput;
use crate::stages::embed::{self, EmbedSettings, Layout};
use crate::stages::fleet::Fleet;
use crate::stages::run::Scope;

/// What `--help` says below the flags.
const EXAMPLES: &str = "\
Examples:
  clipcap embed --images photos/ -m models/clipcap -o embeddings
  clipcap embed --dataset dataset --images photos/ -m models/clipcap -o embeddings
  clipcap embed --images photos/ -m models/clipcap -o embeddings --format npy --dtype float16   # clip-retrieval's layout";

/// Write CLIP's embedding of every image in a dataset or under some folders.
///
/// Embeddings are projected and, without --normalize, not scaled. If interrupted or killed, run the same command to resume. Run it again
/// after files were added or changed to compute only those. Each distinct content is encoded once.
///
/// With --job, work on a job that `plan --embeddings` cut into shards (--shard, --next); `merge` makes the embeddings' folder.
/// Workers on the same cores share them, each shard anew; --threads gives a worker its own number.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("source").args(["dataset", "images", "urls", "job"]).required(true).multiple(true))]
pub struct EmbedArgs {
    /// Dataset from `prepare`; unless it stores its images (--with-images), give their folder with --images too
    #[arg(long, value_name = "DATASET")]
    dataset: Option<PathBuf>,
    /// Folders of images, image files, tars or Parquet files (also as a pattern: set-{000..099}.tar), here or as URLs (s3://BUCKET/PREFIX, gs://, az://, https://)
    #[arg(long, value_name = "DIR", num_args = 1.., alias = "image_path")]
    images: Vec<PathBuf>,
    /// A file of URLs, one per line (s3://, gs://, az://, https://), in addition to --images or instead of it
    #[arg(long, value_name = "FILE", conflicts_with = "dataset")]
    urls: Option<PathBuf>,
    /// Model bundle (from `model import`, `model init` or `train`)
    #[arg(long, value_name = "BUNDLE", alias = "model_path", required_unless_present = "job")]
    model: Option<PathBuf>,
    /// Folder to write; a URL (s3://BUCKET/FOLDER) is uploaded once complete
    #[arg(long, value_name = "EMBEDDINGS", alias = "output_path", required_unless_present = "job")]
    out: Option<PathBuf>,
    /// Work on a job that `plan --embeddings` made, with its settings; --model is needed only if the model is at another path on this machine
    #[arg(long, value_name = "JOB", conflicts_with_all = ["dataset", "images", "urls", "out", "format", "dtype", "normalize", "save_images", "keep_work"], help_heading = "Job")]
    job: Option<PathBuf>,
    #[command(flatten)]
    shards: ShardArgs,
    /// parquet (part-00000.parquet ...) or npy (clip-retrieval's img_emb/ and metadata/)
    #[arg(long, default_value = "parquet", help_heading = "Embeddings")]
    format: Layout,
    /// Element type: float32 or float16
    #[arg(long, default_value = "float32", help_heading = "Embeddings")]
    dtype: FloatType,
    /// Scale embeddings to length 1, for a mapper that was trained on unit-length embeddings
    #[arg(long, alias = "normalize_prefix", help_heading = "Embeddings")]
    normalize: bool,
    /// Store the image files' bytes too, in images-00000.parquet ... (Hugging Face's Image)
    #[arg(long, alias = "save_images", help_heading = "Embeddings")]
    save_images: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Images to encode at once (default: 32; on CUDA 256 per card)
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

impl Reads for EmbedArgs {
    fn scope(&self, flag: &str) -> Scope {
        if flag == "dataset" { Scope::Images } else { Scope::Whole }
    }

    fn keeps(&self) -> bool {
        true
    }
}

pub fn run(args: EmbedArgs, context: &Context) -> anyhow::Result<Outcome> {
    match (&args.job, &args.model, &args.out) {
        (Some(job), ..) => work_on(job, &args, context),
        (None, Some(model), Some(out)) => embed_all(model.clone(), out.clone(), args, context),
        _ => Err(BadUsage("--model and --out are needed, or --job".into()).into()),
    }
}

/// One worker of a job.
fn work_on(job: &Path, args: &EmbedArgs, context: &Context) -> anyhow::Result<Outcome> {
    let job = JobFolder::new(job);
    let Some(mut work) = Work::open(&job, "embed", &args.shards, args.resume.overwrite, context)? else {
        return Ok(Outcome::Complete);
    };
    let bundle = open_bundle(args.model.as_deref().unwrap_or(&work.plan.model))?;
    let runtime = work.runtime(&args.compute)?;
    let batch_size = work.batch_size(args.batch_size, &runtime);
    let worker = work.worker();
    let settings = worker.embed_settings(runtime.threads(), batch_size)?;
    let model = embed::info(&bundle, &runtime)?;
    let load = |threads| load(&bundle, &runtime.with_threads(threads), settings.run.batch_size, context);
    work.end(&worker.embed(&work.shards, &settings, &model, load)?)
}

/// Loads the encoder, on each card where there are several.
fn load(bundle: &Bundle, runtime: &Runtime, batch_size: usize, context: &Context) -> anyhow::Result<Fleet<ClipEncoder>> {
    let cards = runtime.on_each_card();
    let loaded = cards.iter().map(|card| embed::load(bundle, card, batch_size)).collect::<Result<Vec<_>, _>>()?;
    context.tell_placements(runtime);
    Fleet::new(loaded).context("no device to load on")
}

fn embed_all(model: PathBuf, out: PathBuf, args: EmbedArgs, context: &Context) -> anyhow::Result<Outcome> {
    let elsewhere = RemoteOutput::of(&out, true)?;
    let out = elsewhere.as_ref().map_or(out, |elsewhere| elsewhere.here().to_path_buf());
    keep_inputs([out.as_path()], args.dataset.iter().chain([&model]).map(PathBuf::as_path))?;
    let source = source(&args)?;
    if args.save_images && matches!(source, Source::Dataset(_)) {
        return Err(BadUsage("--save-images: the dataset stores its images already".into()).into());
    }
    if out.is_file() || out.extension().is_some_and(|extension| extension == "parquet") {
        return Err(BadUsage(format!("--out {}: embeddings are a folder of parts", out.display())).into());
    }
    let bundle = open_bundle(&model)?;
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
    elsewhere.iter().try_for_each(|elsewhere| elsewhere.fetch(&context.terminal))?;
    let flags = RunFlags { files: &args.files, images: &args.image, resume: &args.resume, batch_size: args.batch_size };
    let device = flags.device(&args.compute, &bundle, &source, &embed::place(&out), context);
    let ComputeArgs { precision, threads, .. } = args.compute;
    let runtime = context.runtime(device, precision, threads)?;
    let settings = EmbedSettings {
        run: flags.settings(source, out, &runtime)?,
        layout: args.format,
        dtype: args.dtype,
        normalize: args.normalize,
        save_images: args.save_images,
    };
    note_runtime(&runtime, &context.terminal);
    let model = embed::info(&bundle, &runtime)?;
    let load = || load(&bundle, &runtime, settings.run.batch_size, context);
    let report = embed::run(&settings, &model, load, &context.terminal, &context.interrupt)?;
    let (text, json) = report.summary();
    end(elsewhere.as_ref(), report.report.complete, &text, json, context)?;
    Ok(report.outcome)
}

fn source(args: &EmbedArgs) -> anyhow::Result<Source> {
    let images: Vec<PathBuf> = args.images.iter().cloned().chain(args.urls.as_deref().map(remote::list_of_urls)).collect();
    match (&args.dataset, &images[..]) {
        (None, images) => Ok(match parquet_source(images, &args.image.image_column)? {
            Some(files) => Source::Parquet(files, args.image.image_column.clone()),
            None => Source::Paths(images.to_vec()),
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
