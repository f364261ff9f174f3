//! `plan`, `merge` and `job`: a job over many workers.

use std::path::PathBuf;

use super::caption::{
    DecodingArgs, FileArgs, ImageArgs, ScoringArgs, end, open_bundle, parquet_source, share, table_format, within_positions,
};
use super::{BadUsage, Context, keep_inputs};
use crate::generation;
use crate::image::Preprocess;
use crate::pipeline::job::JobFolder;
use crate::pipeline::npy::FloatType;
use crate::pipeline::sources::StoredImages;
use crate::remote;
use crate::runtime::{Device, Precision};
use crate::stages::Outcome;
use crate::stages::caption::TableFormat;
use crate::stages::elsewhere::RemoteOutput;
use crate::stages::embed::Layout;
use crate::stages::job::{self, MergeSettings, PlanSettings, embedding_settings_of, settings_of};

/// What `--help` of `plan` says below the flags.
const PLAN_HELP: &str = "\
  clipcap plan photos/ --model models/clipcap --job /shared/job
  clipcap caption --job /shared/job --shard 3         # on any machine, in any order; run it again if it was killed
  clipcap caption --job /shared/job --next=all        # or: until no shard is left
  clipcap job status /shared/job
  clipcap merge /shared/job --out captions.parquet

Embeddings likewise: clipcap plan photos/ --model models/clipcap --embeddings --job J; clipcap embed --job J --next=all; clipcap merge J --out E

A Slurm array (SLURM_ARRAY_TASK_ID) or a Kubernetes indexed Job (JOB_COMPLETION_INDEX) needs no --shard. docs/engines.md has launchers.";

/// Cut the files under folders into shards for many workers.
///
/// The job folder must be one that all workers see, and so must the inputs and the model under the paths given here. Whatever the number
/// of workers, their order and how often they were killed, `merge` writes the bytes that one `caption` over everything would have written.
#[derive(clap::Args)]
#[command(after_long_help = PLAN_HELP)]
pub struct PlanArgs {
    /// Folders of images, image files, or tars (also as a pattern: set-{000..099}.tar), each of which is a shard; or Parquet files with a column of images, or one dataset that stores its images; here or as URLs (s3://BUCKET/PREFIX, gs://, az://, https://)
    #[arg(value_name = "PATH", required_unless_present = "urls")]
    inputs: Vec<PathBuf>,
    /// A file of URLs, one per line (s3://, gs://, az://, https://), in addition to PATH or instead of it
    #[arg(long, value_name = "FILE")]
    urls: Option<PathBuf>,
    /// Model bundle (from `model import`, `model init` or `train`)
    #[arg(long, value_name = "BUNDLE")]
    model: PathBuf,
    /// Folder of the job, shared by all workers
    #[arg(long, value_name = "JOB")]
    job: PathBuf,
    /// Plan for `embed` instead of `caption`; decoding flags do not apply
    #[arg(long, help_heading = "Embeddings")]
    embeddings: bool,
    /// Element type: float32 or float16
    #[arg(long, default_value = "float32", requires = "embeddings", help_heading = "Embeddings")]
    dtype: FloatType,
    /// Scale embeddings to length 1, for a mapper that was trained on unit-length embeddings
    #[arg(long, alias = "normalize_prefix", requires = "embeddings", help_heading = "Embeddings")]
    normalize: bool,
    /// Files per shard; a multiple of 1000 keeps the batches of a single run
    #[arg(long, value_name = "N", alias = "shard_size", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    shard_size: u64,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    scoring: ScoringArgs,
    /// Device of workers that are not given --device: auto, cpu, openvino, cuda or cuda:N
    #[arg(long, default_value = "auto", help_heading = "Compute")]
    device: Device,
    /// Precision of the models: fp32, bf16, fp16 or int8
    #[arg(long, default_value = "fp32", help_heading = "Compute")]
    precision: Precision,
    /// Images to encode at once, for workers that are not given --batch-size
    #[arg(long, value_name = "N", alias = "batch_size", help_heading = "Compute", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: Option<u32>,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    files: FileArgs,
    /// Discard an existing job with all its results
    #[arg(long)]
    overwrite: bool,
}

/// The inputs as they are listed; of Parquet files (a dataset's, too) their column of images.
fn inputs(args: &PlanArgs) -> anyhow::Result<(Vec<PathBuf>, Option<String>)> {
    if let [only] = &args.inputs[..]
        && StoredImages::is_dataset(only)
    {
        let shards = StoredImages::open(only)?.shards().iter().map(|rows| rows.path.clone()).collect();
        return Ok((shards, Some("image".into())));
    }
    if let Some(dataset) = args.inputs.iter().find(|path| StoredImages::is_dataset(path)) {
        return Err(BadUsage(format!("{}: a dataset is planned by itself: give it alone", dataset.display())).into());
    }
    let column = &args.images.image_column;
    Ok(match parquet_source(&args.inputs, column)? {
        Some(files) => (files, Some(column.clone())),
        None => (args.inputs.clone(), None),
    })
}

/// Lists the inputs and writes the plan.
///
/// # Errors
/// Bad usage, or a folder that cannot be listed or written.
pub fn plan(mut args: PlanArgs, context: &Context) -> anyhow::Result<Outcome> {
    args.inputs.extend(args.urls.as_deref().map(remote::list_of_urls));
    let (inputs, column) = inputs(&args)?;
    let read = args.inputs.iter().chain([&args.model]).chain(&args.scoring.scorer);
    keep_inputs([args.job.as_path()], read.map(PathBuf::as_path))?;
    let bundle = open_bundle(&args.model)?;
    let scored = args.scoring.open(&args.model)?;
    let scoring = scored.as_ref().map(|(_, scoring)| scoring);
    let preprocess = Preprocess::from_file(&bundle.preprocessor_path())?;
    let images = args.images.reading().settings(&preprocess);
    let precision = args.precision.to_string();
    let settings = match args.embeddings {
        true => {
            let (fingerprint, dim) = (bundle.embedding_fingerprint().into(), bundle.clip_config().projection_dim);
            embedding_settings_of(&fingerprint, &precision, images, args.dtype, args.normalize, dim)
        }
        false => {
            let flags = args.decoding.flags();
            let decoding = generation::Settings::from_flags(&flags).map_err(|error| BadUsage(error.to_string()))?;
            let wording = args.decoding.wording(&bundle)?;
            let decoding = within_positions(decoding, &flags, &bundle, &wording)?;
            settings_of(&bundle.fingerprint().into(), &precision, &decoding, &wording, scoring, images)
        }
    };
    let wanted = args.files.wanted(column.is_none())?;
    let planned = job::plan(
        &PlanSettings {
            inputs,
            column,
            wanted,
            job: args.job,
            shard_size: args.shard_size,
            model: args.model,
            scorer: args.scoring.scorer.clone(),
            settings,
            device: args.device.to_string(),
            precision,
            batch_size: args.batch_size.map(|n| n as usize),
            overwrite: args.overwrite,
        },
        &context.terminal,
        &context.interrupt,
    )?;
    let (text, json) = planned.summary();
    context.terminal.summary(&text, &json);
    Ok(planned.outcome)
}

/// Make one caption table (or one folder of embeddings) from a job's finished shards.
///
/// The table and its errors have the bytes that one `caption` (or `embed`) over everything would have written. Every shard's files are compared with what
/// its worker recorded, and found = captioned + failed + skipped is checked shard by shard.
///
/// Exit status: 0 all good, 3 some images failed or shards were left out, 1 could not finish (or more failed than --max-error-rate allows).
#[derive(clap::Args)]
pub struct MergeArgs {
    /// Folder of the job
    #[arg(value_name = "JOB")]
    job: PathBuf,
    /// Table to write: .parquet, .csv, .jsonl or .tsv; a folder gets numbered Parquet parts. Embeddings go to a folder. A URL (s3://BUCKET/t.parquet) is uploaded once complete
    #[arg(long, value_name = "TABLE|EMBEDDINGS")]
    out: PathBuf,
    /// For embeddings: parquet (part-00000.parquet ...) or npy (clip-retrieval's img_emb/ and metadata/)
    #[arg(long, default_value = "parquet")]
    format: Layout,
    /// Leave out shards that are not finished
    #[arg(long, alias = "allow_missing")]
    allow_missing: bool,
    /// Merge results of different devices, ONNX Runtime versions or CPU types
    #[arg(long, alias = "allow_mixed")]
    allow_mixed: bool,
    /// Overwrite the output, whatever made it
    #[arg(long)]
    overwrite: bool,
    /// Drop the rows of images that this job has no captions of. Without this flag, a merge that would drop more than a tenth of the existing
    /// rows is refused
    #[arg(long)]
    prune: bool,
    /// In a .csv or .tsv, put an apostrophe before cells that a spreadsheet would run as formulas (those that start with =, +, -, @, a tab or a return)
    #[arg(long, alias = "quote_formulas")]
    quote_formulas: bool,
    /// Start a .csv or .tsv with a byte order mark, which Excel needs to show Chinese
    #[arg(long)]
    bom: bool,
    /// Exit with status 1 if more than this share of the images failed
    #[arg(long, value_name = "SHARE", alias = "max_error_rate", default_value_t = 1.0, value_parser = share)]
    max_error_rate: f64,
}

/// Merges, and says what came of it.
///
/// # Errors
/// See [`job::merge`].
pub fn merge(args: MergeArgs, context: &Context) -> anyhow::Result<Outcome> {
    let stage = JobFolder::new(&args.job).plan()?.settings.stage;
    let format = if stage == "embed" { TableFormat::Parts } else { table_format(&args.out)? };
    let elsewhere = RemoteOutput::of(&args.out, format == TableFormat::Parts)?;
    elsewhere.iter().try_for_each(|elsewhere| elsewhere.fetch(&context.terminal))?;
    let out = elsewhere.as_ref().map_or(args.out, |elsewhere| elsewhere.here().to_path_buf());
    let merged = job::merge(
        &MergeSettings {
            job: args.job,
            out,
            format,
            layout: args.format,
            allow_missing: args.allow_missing,
            allow_mixed: args.allow_mixed,
            overwrite: args.overwrite,
            quotes_formulas: args.quote_formulas,
            bom: args.bom && matches!(format, TableFormat::Csv | TableFormat::Tsv),
            prune: args.prune,
            max_error_rate: args.max_error_rate,
        },
        &context.terminal,
        &context.interrupt,
    )?;
    let (text, json) = merged.summary();
    end(elsewhere.as_ref(), merged.outcome != Outcome::Interrupted, &text, json, context)?;
    Ok(merged.outcome)
}

#[derive(clap::Args)]
pub struct JobArgs {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(clap::Subcommand)]
enum JobCommand {
    /// Show a job's progress, its workers, and the time left
    Status {
        /// Folder of the job
        #[arg(value_name = "JOB")]
        job: PathBuf,
    },
}

/// Looks at a job.
///
/// # Errors
/// No job is there.
pub fn run(args: JobArgs, context: &Context) -> anyhow::Result<Outcome> {
    let JobCommand::Status { job } = args.command;
    let (text, json) = job::status(&job)?.summary();
    context.terminal.result(&text, &json);
    Ok(Outcome::Complete)
}
