use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::contract::Reads;
use super::work::{ShardArgs, Work};
use super::{BadUsage, ComputeArgs, Context, keep_inputs};
use crate::generation;
use crate::models::Bundle;
use crate::pipeline::job::JobFolder;
use crate::pipeline::sources::{Source, StoredImages};
use crate::pipeline::{Reporter, RunSettings};
use crate::remote;
use crate::runtime::{Device, Runtime};
use crate::stages::Outcome;
use crate::stages::caption::{self, CaptionScorer, CaptionSettings, ClipCap, ModelInfo, Scoring, SplitOf, Style, TableFormat};
use crate::stages::elsewhere::RemoteOutput;
use crate::stages::fleet::Fleet;
use crate::stages::run::Scope;

mod decoding;
mod images;
mod original;
mod pipe;
mod resume;
mod scoring;
mod shared;

pub(super) use decoding::{DecodingArgs, within_positions};
pub(super) use images::{FileArgs, ImageArgs, parquet_source};
use original::OriginalArgs;
pub(super) use resume::{ResumeArgs, share};
use scoring::{Chosen, open_scorer};
pub(super) use scoring::{ScoringArgs, min_score};
pub(super) use shared::{RunFlags, default_batch_size, end, note_runtime, open_bundle};

/// What `--help` says below the flags.
const EXAMPLES: &str = "\
Examples:
  clipcap caption photos/ -m models/clipcap -o captions.parquet
  clipcap caption photos/ -m models/clipcap -o captions.csv --bom                        # for Excel
  clipcap caption photos/ -m models/clipcap -o captions.parquet --num-captions 5 --top-p 0.8
  clipcap caption photos/ -m models/clipcap -o - | jq -r .caption
  clipcap caption 'set-{000..099}.tar' -m models/clipcap -o captions/                    # numbered parts
  clipcap caption --embeddings embeddings -m run/best -o captions.parquet";

/// Write a caption table for every image under some folders.
///
/// Every file is accounted for: it gets a caption or a row in the errors table, or it is not an image. If interrupted or killed, run the same
/// command to resume; the result has the same bytes. Run it again after files were added or changed to compute only those.
///
/// Captions are greedy unless --temperature, --top-k or --top-p selects sampling or --num-beams beam search. Images are JPEG, PNG, GIF,
/// WebP, BMP, TIFF and JPEG XL, detected by content. The table has image_id, image_path, sha256, caption_index, caption, logprob, num_tokens and
/// finish_reason. Under .clipcap/ beside it lie NAME.manifest.json and, where something failed, NAME.errors.parquet.
///
/// With --job, work on a job that `plan` cut into shards: caption the given shards (--shard), or take shards that nobody works on (--next).
/// If killed, run the same command to resume; a finished shard ends it at once with 0. `merge` makes the table. Workers on the same cores share
/// them, each shard anew; --threads gives a worker its own number.
///
/// Exit status: 0 finished, 3 finished and some images failed, 1 could not finish (or no image was found, or more failed than
/// --max-error-rate allows), 2 bad usage, 130 interrupted (state kept).
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("source").args(["paths", "image_path", "urls", "embeddings", "job", "stdin"]).required(true).multiple(true))]
pub struct CaptionArgs {
    /// Folders of images, image files, tars or Parquet files (also as a pattern: set-{000..099}.tar), here or as URLs (s3://BUCKET/PREFIX, gs://, az://, https://), or one dataset made with `prepare --with-images`
    #[arg(value_name = "PATH", conflicts_with = "embeddings")]
    paths: Vec<PathBuf>,
    #[arg(long = "image_path", value_name = "PATH", hide = true, conflicts_with = "embeddings")]
    image_path: Vec<PathBuf>,
    /// A file of URLs, one per line (s3://, gs://, az://, https://), in addition to PATH or instead of it
    #[arg(long, value_name = "FILE", conflicts_with = "embeddings")]
    urls: Option<PathBuf>,
    /// Caption existing embeddings: a folder that `embed` wrote, or a .npy file of vectors
    #[arg(long, value_name = "EMBEDDINGS|FILE.npy")]
    embeddings: Option<PathBuf>,
    /// Model bundle (from `model import`, `model init` or `train`)
    #[arg(long, value_name = "BUNDLE", alias = "model_path", required_unless_present = "job")]
    model: Option<PathBuf>,
    /// Table to write: .parquet, .csv, .jsonl or .tsv (file name and captions only; always rebuilt); a folder gets numbered Parquet parts; -
    /// is stdout. A URL (s3://BUCKET/t.parquet) is uploaded once complete
    #[arg(long, value_name = "TABLE|-", alias = "output_path", required_unless_present_any = ["job", "stdout"])]
    out: Option<PathBuf>,
    /// With --out -: the table's format on stdout (default: jsonl). Rows are written as they are finished; everything else goes to stderr
    #[arg(long, value_enum, value_name = "FORMAT", requires = "out")]
    format: Option<StdoutFormat>,
    /// With --out -: keep results and errors in this folder, so that the same command can resume (the table is written to stdout from the
    /// start again). By default they are kept in a temporary folder and removed at exit
    #[arg(long, value_name = "DIR", requires = "out")]
    work: Option<PathBuf>,
    /// Caption the images of an Arrow stream on stdin (columns id and bytes), batch by batch, for engines that hand over bytes
    #[arg(long, value_name = "arrow", value_parser = ["arrow"], requires = "stdout", conflicts_with_all = ["paths", "image_path", "urls", "embeddings", "job", "out", "dry_run"], help_heading = "Job")]
    stdin: Option<String>,
    /// Write captions, and failures with their reason, as an Arrow stream on stdout
    #[arg(long, value_name = "arrow", value_parser = ["arrow"], requires = "stdin", help_heading = "Job")]
    stdout: Option<String>,
    /// Work on a job that `plan` made, with its settings; --model is needed only if the model is at another path on this machine
    #[arg(long, value_name = "JOB", conflicts_with_all = ["paths", "image_path", "urls", "embeddings", "out", "only", "keep_work", "dry_run"], help_heading = "Job")]
    job: Option<PathBuf>,
    #[command(flatten)]
    shards: ShardArgs,
    /// In a .csv or .tsv, put an apostrophe before cells that a spreadsheet would run as formulas (those that start with = + - @)
    #[arg(long, alias = "quote_formulas")]
    quote_formulas: bool,
    /// Start a .csv or .tsv with a byte order mark, which Excel needs to show Chinese
    #[arg(long)]
    bom: bool,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    scoring: ScoringArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Images to encode at once (default: 32; on CUDA 256 per card); on the CPU up to four times as many captions are decoded at once
    #[arg(long, value_name = "N", alias = "batch_size", help_heading = "Compute", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: Option<u32>,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    resume: ResumeArgs,
    /// Caption only the images in this list again: one image_id or image_path per line, or the list that a report exports (those marked n).
    /// Other images keep their rows; a new table gets the listed images only
    #[arg(long, value_name = "LIST", conflicts_with_all = ["overwrite", "dry_run"], help_heading = "Files")]
    only: Option<PathBuf>,
    /// Caption only the images of this split of --dataset, such as test
    #[arg(long, value_name = "NAME", requires = "dataset", help_heading = "Files")]
    split: Option<String>,
    /// The dataset that --split belongs to
    #[arg(long, value_name = "DATASET", requires = "split", help_heading = "Files")]
    dataset: Option<PathBuf>,
    /// Count files, read image headers, time the model on a few images, and write nothing
    #[arg(long, alias = "dry_run", help_heading = "Running")]
    dry_run: bool,
    #[command(flatten)]
    original: OriginalArgs,
}

/// Tables that can be written while they grow.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StdoutFormat {
    Jsonl,
    Csv,
    /// File name and captions only
    Tsv,
}

impl Reads for CaptionArgs {
    fn scope(&self, flag: &str) -> Scope {
        if matches!(flag, "paths" | "dataset") { Scope::Images } else { Scope::Whole }
    }

    fn keeps(&self) -> bool {
        true
    }
}

pub fn run(args: CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    match (&args.job, &args.model, &args.out) {
        (Some(job), ..) => work_on(job, &args, context),
        (None, Some(model), Some(out)) if out.as_os_str() == "-" => caption_to_stdout(model.clone(), args, context),
        (None, Some(_), Some(_)) if args.work.is_some() || args.format.is_some() => {
            let message =
                "--format and --work are for --out -: a file's name says its format, and its work folder lies beside it";
            Err(BadUsage(message.into()).into())
        }
        (None, Some(model), None) if args.stdin.is_some() => pipe::run(model, &args, context),
        (None, Some(model), Some(out)) => caption_all(model.clone(), out.clone(), args, context),
        _ => Err(BadUsage("--model and --out are needed, or --job".into()).into()),
    }
}

/// One worker of a job.
fn work_on(job: &Path, args: &CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    let job = JobFolder::new(job);
    let Some(mut work) = Work::open(&job, "caption", &args.shards, args.resume.overwrite, context)? else {
        return Ok(Outcome::Complete);
    };
    let bundle = open_bundle(args.model.as_deref().unwrap_or(&work.plan.model))?;
    let runtime = work.runtime(&args.compute)?;
    let batch_size = work.batch_size(args.batch_size, &runtime);
    let worker = work.worker();
    let mut settings = worker.caption_settings(runtime.threads(), batch_size)?;
    let mut model = caption::info(&bundle, &runtime)?;
    let scored = match settings.scoring.take() {
        None if args.scoring.scorer.is_some() => {
            return Err(BadUsage("--scorer: this job's plan scores no captions".into()).into());
        }
        None => None,
        Some(scoring) => {
            let path = args.scoring.scorer.as_deref().or(work.plan.scorer.as_deref());
            let scorer = open_scorer(path, bundle.path())?;
            // Another scorer than was planned is refused with the other settings.
            let identity = scorer.identity.clone();
            Some((scorer, Scoring { scorer: identity, ..scoring }))
        }
    };
    settings.scoring = scored.as_ref().map(|(_, scoring)| scoring.clone());
    scored_too(&mut model, scored.as_ref(), false)?;
    let load = |threads| load(&bundle, &runtime.with_threads(threads), &settings, &model, scored.as_ref(), context);
    let ends = worker.run(&work.shards, &settings, &model, load)?;
    tell_cut(scored.as_ref(), &context.terminal);
    work.end(&ends)
}

/// What kind of table a name asks for.
pub(super) fn table_format(out: &Path) -> Result<TableFormat, BadUsage> {
    TableFormat::of(out).ok_or_else(|| {
        let out = out.display();
        BadUsage(format!("--out {out}: a table ends in .parquet, .csv, .tsv or .jsonl (for a folder of parts: {out}/)"))
    })
}

/// The table on stdout. It is written to a folder as well, which is what a second run goes on from.
fn caption_to_stdout(model: PathBuf, args: CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    context.terminal.take_stdout();
    let temporary = match args.work {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("cannot make a temporary folder (TMPDIR): give --work DIR")?),
    };
    let folder = args.work.clone().or_else(|| Some(temporary.as_ref()?.path().into())).unwrap_or_default();
    let name = match args.format.unwrap_or(StdoutFormat::Jsonl) {
        StdoutFormat::Jsonl => "captions.jsonl",
        StdoutFormat::Csv => "captions.csv",
        StdoutFormat::Tsv => "captions.tsv",
    };
    match caption_all(model, folder.join(name), args, context) {
        // Whoever read has enough (`| head`).
        Err(error) if is_closed_pipe(&error) => Ok(Outcome::Complete),
        result => result,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    error.chain().any(|cause| io(cause) == Some(std::io::ErrorKind::BrokenPipe))
}

fn caption_all(model: PathBuf, out: PathBuf, args: CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    let to_stdout = args.out.as_ref().is_some_and(|out| out.as_os_str() == "-");
    let elsewhere = RemoteOutput::of(&out, table_format(&out)? == TableFormat::Parts)?;
    let out = elsewhere.as_ref().map_or(out, |elsewhere| elsewhere.here().to_path_buf());
    let flags = args.decoding.flags();
    let decoding = generation::Settings::from_flags(&flags).map_err(|error| BadUsage(error.to_string()))?;
    let format = table_format(&out)?;
    if args.bom && !matches!(format, TableFormat::Csv | TableFormat::Tsv) {
        return Err(BadUsage("--bom is for .csv and .tsv tables".into()).into());
    }
    let inputs = args.embeddings.iter().chain(&args.only).chain([&model]).chain(&args.scoring.scorer);
    keep_inputs([out.as_path()], inputs.map(PathBuf::as_path))?;
    let source = source(&args)?;
    let bundle = open_bundle(&model)?;
    args.original.check(&bundle, &context.terminal)?;
    let wording = args.decoding.wording(&bundle)?;
    let decoding = within_positions(decoding, &flags, &bundle, &wording)?;
    let scored = args.scoring.open(&model)?;
    if args.scoring.is_rerank() && decoding.num_captions == 1 {
        context
            .terminal
            .note("--rerank: one caption per image leaves nothing to rank: add --num-captions N with --top-p or --num-beams");
    }
    if !args.dry_run {
        elsewhere.iter().try_for_each(|elsewhere| elsewhere.fetch(&context.terminal))?;
    }
    let flags = RunFlags { files: &args.files, images: &args.images, resume: &args.resume, batch_size: args.batch_size };
    let device = flags.device(&args.compute, &bundle, &source, &caption::place(&out, format), context);
    let ComputeArgs { precision, threads, .. } = args.compute;
    let runtime = context.runtime(device, precision, threads)?;
    let settings = CaptionSettings {
        run: flags.settings(source, out, &runtime)?,
        format,
        style: Style { quotes_formulas: args.quote_formulas, bom: args.bom, to_stdout, ..Style::default() },
        decoding,
        wording,
        scoring: scored.as_ref().map(|(_, scoring)| scoring.clone()),
        only: args.only,
        split: args.dataset.zip(args.split).map(|(dataset, name)| SplitOf { dataset, name }),
    };
    note_runtime(&runtime, &context.terminal);
    if runtime.device() == Device::OpenVino {
        context.terminal.note("the decoder runs on the CPU provider, in fp32");
    }
    let mut model = caption::info(&bundle, &runtime)?;
    scored_too(&mut model, scored.as_ref(), matches!(settings.run.source, Source::Embeddings(_)))?;
    let load = || load(&bundle, &runtime, &settings, &model, scored.as_ref(), context);
    if args.dry_run {
        let (text, json) = caption::dry_run(&settings, &model, load, &context.terminal)?;
        context.terminal.result(&text, &json);
        return Ok(Outcome::Complete);
    }
    let mut report = caption::run(&settings, &model, load, &context.terminal, &context.interrupt)?;
    tell_cut(scored.as_ref(), &context.terminal);
    if to_stdout && args.work.is_none() {
        report.is_temporary = true;
        report.tell_failures(&context.terminal)?;
    }
    let (text, json) = report.summary();
    end(elsewhere.as_ref(), report.report.complete, &text, json, context)?;
    Ok(report.outcome)
}

/// What the model must know of a scorer before both are loaded.
fn scored_too(model: &mut ModelInfo, scored: Option<&Chosen>, takes_embeddings: bool) -> anyhow::Result<()> {
    if let Some((scorer, _)) = scored {
        model.also = caption::second_preprocess(scorer, model, takes_embeddings)?;
    }
    Ok(())
}

/// Loads the model, and the scorer beside it.
fn load(
    bundle: &Bundle,
    runtime: &Runtime,
    settings: &CaptionSettings,
    model: &ModelInfo,
    scored: Option<&Chosen>,
    context: &Context,
) -> anyhow::Result<Fleet<ClipCap>> {
    let takes_embeddings = matches!(settings.run.source, Source::Embeddings(_));
    let on_card = |runtime: &Runtime| {
        let CaptionSettings { decoding, wording, run: RunSettings { batch_size, .. }, .. } = settings;
        let loaded = caption::load(bundle, runtime, decoding, wording, *batch_size, takes_embeddings)?;
        let scorer = |(scorer, scoring): &Chosen| CaptionScorer::load(scorer, scoring, model, runtime, *batch_size);
        anyhow::Ok(loaded.scored(scored.map(scorer).transpose()?))
    };
    let loaded = runtime.on_each_card().iter().map(on_card).collect::<Result<Vec<_>, _>>()?;
    context.tell_placements(runtime);
    Fleet::new(loaded).context("no device to load on")
}

/// Captions that were scored by their beginnings.
fn tell_cut(scored: Option<&Chosen>, reporter: &dyn Reporter) {
    scored.and_then(|(scorer, _)| scorer.cut_note()).iter().for_each(|note| reporter.warn(note));
}

fn source(args: &CaptionArgs) -> anyhow::Result<Source> {
    if let Some(embeddings) = &args.embeddings {
        return Ok(Source::Embeddings(embeddings.clone()));
    }
    let urls = args.urls.as_deref().map(remote::list_of_urls);
    let paths: Vec<PathBuf> = args.paths.iter().chain(&args.image_path).cloned().chain(urls).collect();
    if let Some(parquet) = parquet_source(&paths, &args.images.image_column)? {
        return Ok(Source::Parquet(parquet, args.images.image_column.clone()));
    }
    match &paths[..] {
        [only] if StoredImages::is_dataset(only) => Ok(Source::Dataset(only.clone())),
        several if several.iter().any(|path| StoredImages::is_dataset(path)) => {
            Err(BadUsage("a dataset is captioned by itself: give it alone".into()).into())
        }
        _ => Ok(Source::Paths(paths)),
    }
}

#[cfg(test)]
mod tests;
