use std::path::{Path, PathBuf};

use super::work::{ShardArgs, Work};
use super::{BadUsage, ComputeArgs, Context, keep_inputs};
use crate::dataset::tar::expanded;
use crate::dataset::wanted::Wanted;
use crate::generation;
use crate::image::Limits;
use crate::models::Bundle;
use crate::models::config::MapperKind;
use crate::pipeline::Reporter;
use crate::pipeline::jobfolder::JobFolder;
use crate::pipeline::sources::StoredImages;
use crate::runtime::{Device, Runtime};
use crate::stages::Outcome;
use crate::stages::caption::{self, CaptionScorer, CaptionSettings, ClipCap, ModelInfo, Scoring, Source, TableFormat, Wording};
use crate::text::clean::{Cleaner, Cleaning, Punctuation, Script};

mod scoring;

pub(super) use scoring::ScoringArgs;
use scoring::{Chosen, open_scorer};

/// Write a caption table for every image under some folders.
///
/// Every file is accounted for: it has a caption, a row in the errors table, or is no image. Killed or interrupted, the same command goes
/// on from where it was and ends with the same bytes; given again after files were added or changed, it computes only those.
///
/// Captions are greedy unless --temperature, --top-k or --top-p asks for samples or --num-beams for a beam search. Images are JPEG, PNG, GIF,
/// WebP, BMP and TIFF, whatever they are called. The table has image_id, image_path, sha256, caption_index, caption, logprob, num_tokens and
/// finish_reason; beside it lie NAME.errors.parquet and NAME.manifest.json.
///
/// With --job it is one worker of a job that `plan` cut into shards: it captions the shards it is told (--shard), or takes what nobody works
/// on (--next). Killed, the same command goes on; a finished shard ends it at once with 0. `merge` makes the table.
///
/// Exit status: 0 finished, 3 finished and some images failed, 1 could not finish (or no image was found, or more failed than
/// --max-error-rate allows), 2 bad usage, 130 interrupted (state kept).
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("source").args(["paths", "image_path", "embeddings", "job"]).required(true).multiple(true))]
pub struct CaptionArgs {
    /// Folders of images, image files, tars or Parquet files (also as a pattern: set-{000..099}.tar), or one dataset made with `prepare --with-images`
    #[arg(value_name = "PATH", conflicts_with = "embeddings")]
    paths: Vec<PathBuf>,
    #[arg(long = "image_path", value_name = "PATH", hide = true, conflicts_with = "embeddings")]
    image_path: Vec<PathBuf>,
    /// Caption embeddings made before: a folder that `embed` wrote, or a .npy file of vectors
    #[arg(long, value_name = "EMBEDDINGS|FILE.npy")]
    embeddings: Option<PathBuf>,
    /// Model bundle (from `model import`, `model init` or `train`)
    #[arg(long, value_name = "BUNDLE", alias = "model_path", required_unless_present = "job")]
    model: Option<PathBuf>,
    /// Table to write: .parquet, .csv, .jsonl or .tsv (file name and captions only; always rebuilt); a folder gets numbered Parquet parts
    #[arg(long, value_name = "TABLE", alias = "output_path", required_unless_present = "job")]
    out: Option<PathBuf>,
    /// Work on a job that `plan` made, with its settings; --model says where its model lies on this machine, if not where it was planned
    #[arg(long, value_name = "JOB", conflicts_with_all = ["paths", "image_path", "embeddings", "out", "only", "keep_work", "dry_run"], help_heading = "Job")]
    job: Option<PathBuf>,
    #[command(flatten)]
    shards: ShardArgs,
    /// In a .csv or .tsv, quote cells that a spreadsheet would run (those that begin with = + - @) with an apostrophe
    #[arg(long, alias = "quote_formulas")]
    quote_formulas: bool,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    scoring: ScoringArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Images encoded together, and captions decoded together (default: 32; on CUDA 64)
    #[arg(long, value_name = "N", alias = "batch_size", help_heading = "Compute", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: Option<u32>,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    resume: ResumeArgs,
    /// Caption only the images in this list, anew: an image_id or image_path a line, or what a report exports (those marked n). The other
    /// images keep the rows that the table has; a new table has the listed images alone
    #[arg(long, value_name = "LIST", conflicts_with_all = ["overwrite", "dry_run"], help_heading = "Files")]
    only: Option<PathBuf>,
    /// Count files, read image headers, time the model on a few images, and write nothing
    #[arg(long, alias = "dry_run", help_heading = "Running")]
    dry_run: bool,
    #[command(flatten)]
    original: OriginalArgs,
}

/// How captions are chosen.
#[derive(clap::Args)]
pub(super) struct DecodingArgs {
    /// Captions per image; needs sampling or --num-beams (default: 1)
    #[arg(long, value_name = "N", aliases = ["num_captions", "num_generate", "num-generate"], help_heading = "Decoding")]
    num_captions: Option<usize>,
    /// Sampling temperature: below 1 safer, above 1 more varied (default when sampling: 1)
    #[arg(long, value_name = "T", help_heading = "Decoding")]
    temperature: Option<f64>,
    /// Sample from the K likeliest tokens (default: 0, all)
    #[arg(long, value_name = "K", aliases = ["top_k", "topk"], help_heading = "Decoding")]
    top_k: Option<usize>,
    /// Sample from the likeliest tokens that together have this probability (default: 1, all)
    #[arg(long, value_name = "P", aliases = ["top_p", "topp"], help_heading = "Decoding")]
    top_p: Option<f64>,
    /// Beam search with this many beams, at most 1000 (default: no beam search)
    #[arg(long, value_name = "N", alias = "num_beams", help_heading = "Decoding")]
    num_beams: Option<usize>,
    /// Length penalty of beam search: score / length^X (default: 1)
    #[arg(long, value_name = "X", alias = "length_penalty", help_heading = "Decoding")]
    length_penalty: Option<f64>,
    /// Minimum tokens per caption, not counting [SEP] (default: 0)
    #[arg(long, value_name = "N", alias = "min_new_tokens", help_heading = "Decoding")]
    min_new_tokens: Option<usize>,
    /// Maximum tokens per caption, counting [SEP] (default: 67, or what the model has positions for)
    #[arg(long, value_name = "N", aliases = ["max_new_tokens", "max_len", "max-len"], help_heading = "Decoding")]
    max_new_tokens: Option<usize>,
    /// Make tokens that the caption already has less likely (default: 1, no change)
    #[arg(long, value_name = "X", alias = "repetition_penalty", help_heading = "Decoding")]
    repetition_penalty: Option<f64>,
    /// Never repeat N tokens in a row within a caption (default: 0, allowed)
    #[arg(long, value_name = "N", alias = "no_repeat_ngram_size", help_heading = "Decoding")]
    no_repeat_ngram_size: Option<usize>,
    /// Do not stop looping captions (default: stop when 1-8 tokens repeat four times)
    #[arg(long, alias = "no_loop_guard", help_heading = "Decoding")]
    no_loop_guard: bool,
    /// Distinct captions per image; resample up to N times, then write fewer
    #[arg(long, help_heading = "Decoding")]
    distinct: bool,
    /// End captions with this token: text, which stays in them, or a special token by name (default: as the bundle records)
    #[arg(long, value_name = "TOKEN", alias = "stop_token", help_heading = "Decoding")]
    stop_token: Option<String>,
    /// Text behind the image's prefix that captions go on from (default: the bundle's; \"\" for none)
    #[arg(long, value_name = "TEXT", help_heading = "Decoding")]
    prompt: Option<String>,
    /// Write captions in simplified or traditional characters (default: as the model says them)
    #[arg(long, value_enum, value_name = "SCRIPT", help_heading = "Clean-up")]
    script: Option<ScriptArg>,
    /// Replace what a regular expression matches: 'PATTERN=TEXT', with $1 for a group; may be given several times
    #[arg(long, value_name = "PATTERN=TEXT", help_heading = "Clean-up")]
    replace: Vec<String>,
    /// Punctuation: none (removed), no-end (removed at the end), wide (Chinese marks) or ascii (default: as the model says it)
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Clean-up")]
    punctuation: Option<PunctuationArg>,
    /// Leave out captions with any of these words; an image that keeps none fails as `filtered`
    #[arg(long, value_name = "WORDS", alias = "banned_words", value_delimiter = ',', help_heading = "Clean-up")]
    banned_words: Vec<String>,
    /// Leave out captions with none of these words; an image that keeps none fails as `filtered`
    #[arg(long, value_name = "WORDS", alias = "required_words", value_delimiter = ',', help_heading = "Clean-up")]
    required_words: Vec<String>,
    /// Seed of sampling; the same image and seed give the same captions in any folder
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Decoding")]
    seed: u64,
}

/// How image files are read.
#[derive(clap::Args)]
pub(super) struct ImageArgs {
    /// Column of the images' bytes, where the inputs are Parquet files (bytes, or Hugging Face's struct<bytes, path>)
    #[arg(long, value_name = "COLUMN", alias = "image_column", default_value = "image", help_heading = "Images")]
    pub image_column: String,
    /// Ignore EXIF orientation
    #[arg(long, alias = "no_exif_rotate", help_heading = "Images")]
    pub no_exif_rotate: bool,
    /// Decode every pixel of large JPEGs, which are otherwise read at a half, quarter or eighth of their size where that is at least
    /// twice what the model sees (slower; numbers differ in the fourth decimal)
    #[arg(long, alias = "full_decode", help_heading = "Images")]
    pub full_decode: bool,
    /// Fail damaged images too, of which a part of the picture is left (otherwise marked in the column "damaged")
    #[arg(long, alias = "fail_damaged", help_heading = "Images")]
    pub fail_damaged: bool,
    /// Images above this many pixels fail
    #[arg(long, value_name = "N", alias = "max_pixels", default_value_t = Limits::default().max_pixels, help_heading = "Images")]
    pub max_pixels: u64,
    /// Image files above this many bytes fail
    #[arg(long, value_name = "N", alias = "max_bytes", default_value_t = Limits::default().max_bytes, help_heading = "Images")]
    pub max_bytes: u64,
}

/// Which files of a folder are looked at.
#[derive(clap::Args)]
pub(super) struct FileArgs {
    /// Take hidden files and folders too (names that begin with a dot, and @eaDir)
    #[arg(long, help_heading = "Files")]
    pub hidden: bool,
    /// Take only files that match this pattern, written as in .gitignore, such as '*.jpg' (may be given several times)
    #[arg(long, value_name = "GLOB", help_heading = "Files")]
    pub include: Vec<String>,
    /// Leave out files and folders that match this pattern, such as 'thumbs/' or '*_small.*' (may be given several times)
    #[arg(long, value_name = "GLOB", help_heading = "Files")]
    pub exclude: Vec<String>,
}

impl FileArgs {
    /// `of_folders`: whether files of folders are looked at; for other sources nothing can be chosen.
    pub fn wanted(&self, of_folders: bool) -> Result<Wanted, BadUsage> {
        let wanted = Wanted { hidden: self.hidden, include: self.include.clone(), exclude: self.exclude.clone() };
        if !of_folders && wanted != Wanted::default() {
            return Err(BadUsage(
                "--hidden, --include and --exclude choose among the files of folders, and none is given".into(),
            ));
        }
        wanted.check().map(|()| wanted).map_err(|error| BadUsage(error.to_string()))
    }
}

/// Parquet files that hold images, with patterns expanded; None where the paths are no such files.
pub(super) fn parquet_source(paths: &[PathBuf], column: &str) -> anyhow::Result<Option<Vec<PathBuf>>> {
    let is_parquet = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
    if !paths.iter().any(is_parquet) {
        return Ok(None);
    }
    if let Some(other) = paths.iter().find(|path| !is_parquet(path)) {
        let message = format!("{}: Parquet files (with a column {column} of images) are read by themselves", other.display());
        return Err(BadUsage(message).into());
    }
    let mut files = Vec::new();
    for path in paths {
        files.extend(expanded(path).map_err(|error| BadUsage(format!("{}: {error}", path.display())))?);
    }
    Ok(Some(files))
}

/// What happens to earlier work and to failures.
#[derive(clap::Args)]
pub(super) struct ResumeArgs {
    /// Overwrite the output and start over (if interrupted, the same command resumes)
    #[arg(long, help_heading = "Running")]
    pub overwrite: bool,
    /// Keep the work folder after success, so that a rerun need not read unchanged files
    #[arg(long, alias = "keep_work", help_heading = "Running")]
    pub keep_work: bool,
    /// Let the results of images go that are not found any more. Without this, a run is refused that takes its images from other folders
    /// than the output did, or that would drop more than a tenth of what is there
    #[arg(long, help_heading = "Running")]
    pub prune: bool,
    /// With --overwrite: refuse what --prune is for (a pipeline overwrites by itself)
    #[arg(long, hide = true, requires = "overwrite")]
    pub guarded: bool,
    /// Retry images that failed before an interruption (a finished run's failures are always retried)
    #[arg(long, alias = "retry_failed", help_heading = "Running")]
    pub retry_failed: bool,
    /// Exit with status 1 if more than this share of the images failed
    #[arg(long, value_name = "SHARE", alias = "max_error_rate", default_value_t = 1.0, value_parser = share, help_heading = "Running")]
    pub max_error_rate: f64,
}

impl ResumeArgs {
    /// Whoever overwrites says that what is there may go.
    pub(super) fn may_drop(&self) -> bool {
        self.prune || self.overwrite && !self.guarded
    }
}

/// Flags of the original's predict.py that a bundle answers by itself; they are compared with it.
#[derive(clap::Args)]
struct OriginalArgs {
    #[arg(long = "gpt2_model_path", hide = true)]
    gpt2_model_path: Option<PathBuf>,
    #[arg(long = "bert_model_path", hide = true)]
    bert_model_path: Option<PathBuf>,
    #[arg(long = "clip_model_path", hide = true)]
    clip_model_path: Option<PathBuf>,
    #[arg(long = "prefix_len", aliases = ["prefix_length", "prefix-length"], hide = true)]
    prefix_len: Option<usize>,
    #[arg(long = "prefix_length_clip", aliases = ["prefix-length-clip", "clip-length", "clip_length"], hide = true)]
    prefix_length_clip: Option<usize>,
    #[arg(long = "num_layers", alias = "num-layers", hide = true)]
    num_layers: Option<usize>,
    #[arg(long = "only_prefix", alias = "only-prefix", hide = true)]
    only_prefix: bool,
    #[arg(long = "is_rn", alias = "is-rn", hide = true)]
    is_rn: bool,
    #[arg(long = "constant_len", hide = true)]
    constant_len: Option<usize>,
    #[arg(long = "clip_size", hide = true)]
    clip_size: Option<usize>,
    #[arg(long = "finetune_gpt2", hide = true)]
    finetune_gpt2: bool,
    #[arg(long = "mapping_type", hide = true)]
    mapping_type: Option<String>,
    #[arg(long = "normalize_prefix", hide = true)]
    normalize_prefix: bool,
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| format!("{text:?} is no share: use 0 to 1"))
}

/// Images that are encoded together where nothing else is asked for.
pub(super) fn default_batch_size(device: Device) -> usize {
    if device.is_cpu() { 32 } else { 256 }
}

pub fn run(args: CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    match (&args.job, &args.model, &args.out) {
        (Some(job), ..) => work_on(job, &args, context),
        (None, Some(model), Some(out)) => caption_all(model.clone(), out.clone(), args, context),
        _ => Err(BadUsage("--model and --out are needed, or --job".into()).into()),
    }
}

/// One worker of a job.
fn work_on(job: &Path, args: &CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    let job = JobFolder::new(job);
    let Some(work) = Work::open(&job, "caption", &args.shards, args.resume.overwrite, context)? else {
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
    let load = || load(&bundle, &runtime, &settings, &model, scored.as_ref(), context);
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

fn caption_all(model: PathBuf, out: PathBuf, args: CaptionArgs, context: &Context) -> anyhow::Result<Outcome> {
    let flags = args.decoding.flags();
    let decoding = generation::Settings::from_flags(&flags).map_err(|error| BadUsage(error.to_string()))?;
    let format = table_format(&out)?;
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
    let ComputeArgs { device, precision, threads } = args.compute;
    let runtime = context.runtime(device, precision, threads)?;
    let wanted = args.files.wanted(matches!(source, Source::Paths(_)))?;
    let settings = CaptionSettings {
        source,
        wanted,
        out,
        format,
        quotes_formulas: args.quote_formulas,
        decoding,
        wording,
        scoring: scored.as_ref().map(|(_, scoring)| scoring.clone()),
        limits: Limits { max_pixels: args.images.max_pixels, max_bytes: args.images.max_bytes },
        exif_rotate: !args.images.no_exif_rotate,
        full_decode: args.images.full_decode,
        fail_damaged: args.images.fail_damaged,
        threads: runtime.threads(),
        batch_size: args.batch_size.map_or(default_batch_size(runtime.device()), |n| n as usize),
        overwrite: args.resume.overwrite,
        keep_work: args.resume.keep_work,
        retry_failed: args.resume.retry_failed,
        prune: args.resume.may_drop(),
        only: args.only,
        max_error_rate: args.resume.max_error_rate,
    };
    told(&runtime, &context.terminal);
    if runtime.device() == Device::OpenVino {
        context.terminal.note("the decoder runs on the CPU provider, in fp32");
    }
    let mut model = caption::info(&bundle, &runtime)?;
    scored_too(&mut model, scored.as_ref(), matches!(settings.source, Source::Embeddings(_)))?;
    let load = || load(&bundle, &runtime, &settings, &model, scored.as_ref(), context);
    if args.dry_run {
        let (text, json) = caption::dry_run(&settings, &model, load, &context.terminal)?;
        context.terminal.result(&text, &json);
        return Ok(Outcome::Complete);
    }
    let report = caption::run(&settings, &model, load, &context.terminal, &context.interrupt)?;
    tell_cut(scored.as_ref(), &context.terminal);
    let (text, json) = report.summary();
    context.terminal.result(&text, &json);
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
) -> anyhow::Result<ClipCap> {
    let takes_embeddings = matches!(settings.source, Source::Embeddings(_));
    let loaded = caption::load(bundle, runtime, &settings.decoding, &settings.wording, settings.batch_size, takes_embeddings)?;
    let scorer = |(scorer, scoring): &Chosen| CaptionScorer::load(scorer, scoring, model, runtime, settings.batch_size);
    let loaded = loaded.scored(scored.map(scorer).transpose()?);
    context.tell_placements(runtime);
    Ok(loaded)
}

/// Captions that were scored by their beginnings.
fn tell_cut(scored: Option<&Chosen>, reporter: &dyn Reporter) {
    scored.and_then(|(scorer, _)| scorer.told_cut()).iter().for_each(|told| reporter.warn(told));
}

/// Which device and precision were chosen.
pub(super) fn told(runtime: &Runtime, reporter: &dyn Reporter) {
    reporter.note(&format!(
        "ONNX Runtime {} on {}, {}, {} threads",
        runtime.version(),
        runtime.device(),
        runtime.precision(),
        runtime.threads()
    ));
}

/// Opens a bundle; a checkpoint in its place is told how to become one.
pub(super) fn open_bundle(path: &Path) -> anyhow::Result<Bundle> {
    if path.extension().is_some_and(|extension| extension == "pt") && !path.is_dir() {
        let path = path.display();
        return Err(BadUsage(format!(
            "--model {path} is a checkpoint; make a bundle of it once:\n  clipcap model import --clip ViT-B-32.pt --gpt2 DIR \
             --checkpoint {path} --out BUNDLE"
        ))
        .into());
    }
    Ok(Bundle::open(path)?)
}

fn source(args: &CaptionArgs) -> anyhow::Result<Source> {
    if let Some(embeddings) = &args.embeddings {
        return Ok(Source::Embeddings(embeddings.clone()));
    }
    let paths: Vec<PathBuf> = args.paths.iter().chain(&args.image_path).cloned().collect();
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

/// The default length gives way to what the model can; a length that was asked for does not.
pub(super) fn within_positions(
    mut decoding: generation::Settings,
    flags: &generation::Flags,
    bundle: &Bundle,
    wording: &Wording,
) -> anyhow::Result<generation::Settings> {
    let limit = caption::max_new_tokens(bundle, wording)?;
    if flags.max_new_tokens.is_none() {
        decoding.max_new_tokens = decoding.max_new_tokens.min(limit);
        decoding.validate().map_err(|error| BadUsage(error.to_string()))?;
    }
    if decoding.max_new_tokens > limit {
        let asked = decoding.max_new_tokens;
        return Err(BadUsage(format!("--max-new-tokens {asked}: this decoder has positions for {limit} after the prefix")).into());
    }
    Ok(decoding)
}

/// Chinese characters of one script.
#[derive(Clone, Copy, clap::ValueEnum)]
enum ScriptArg {
    Simplified,
    Traditional,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PunctuationArg {
    None,
    NoEnd,
    Wide,
    Ascii,
}

impl DecodingArgs {
    /// What is done to captions that are made.
    fn cleaning(&self) -> Result<Cleaning, String> {
        let pair = |text: &String| {
            let (pattern, with) = text.split_once('=').ok_or_else(|| format!("--replace {text}: PATTERN=TEXT is expected"))?;
            Ok((pattern.to_string(), with.to_string()))
        };
        let words = |words: &[String]| words.iter().filter(|word| !word.trim().is_empty()).cloned().collect();
        let cleaning = Cleaning {
            script: self.script.map(|script| match script {
                ScriptArg::Simplified => Script::Simplified,
                ScriptArg::Traditional => Script::Traditional,
            }),
            replace: self.replace.iter().map(pair).collect::<Result<_, String>>()?,
            punctuation: self.punctuation.map(|how| match how {
                PunctuationArg::None => Punctuation::None,
                PunctuationArg::NoEnd => Punctuation::NoEnd,
                PunctuationArg::Wide => Punctuation::Wide,
                PunctuationArg::Ascii => Punctuation::Ascii,
            }),
            banned: words(&self.banned_words),
            required: words(&self.required_words),
        };
        Cleaner::new(&cleaning).map(|_| cleaning)
    }

    /// How captions begin and end.
    pub(super) fn wording(&self, bundle: &Bundle) -> anyhow::Result<Wording> {
        let mut wording = Wording::new(bundle, self.stop_token.clone(), self.prompt.clone());
        wording.cleaning = self.cleaning().map_err(BadUsage)?;
        if let Some(stop_token) = &wording.stop_token {
            bundle.tokenizer_ending(Some(stop_token)).map_err(|error| BadUsage(error.to_string()))?;
        }
        Ok(wording)
    }

    pub(super) fn flags(&self) -> generation::Flags {
        generation::Flags {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            num_beams: self.num_beams,
            length_penalty: self.length_penalty,
            num_captions: self.num_captions,
            min_new_tokens: self.min_new_tokens,
            max_new_tokens: self.max_new_tokens,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            no_loop_guard: self.no_loop_guard,
            distinct: self.distinct,
            seed: self.seed,
        }
    }
}

impl OriginalArgs {
    /// What was said of the model must be true of the bundle.
    fn check(&self, bundle: &Bundle, reporter: &dyn Reporter) -> anyhow::Result<()> {
        let mapper = bundle.mapper_config();
        let numbers = [
            ("prefix_len", self.prefix_len, mapper.prefix_len),
            // The MLP has no constants; the original asks for their number all the same.
            ("constant_len", self.constant_len.filter(|_| mapper.kind != MapperKind::Mlp), mapper.constant_len),
            ("clip_size", self.clip_size, mapper.clip_size),
            ("prefix_length_clip", self.prefix_length_clip, mapper.transformer.map_or(0, |t| t.clip_length)),
            ("num_layers", self.num_layers, mapper.transformer.map_or(0, |t| t.num_layers)),
        ];
        for (name, said, is) in numbers {
            if said.is_some_and(|said| said != is) {
                return Err(BadUsage(format!("--{name} {}: this bundle's is {is}", said.unwrap_or_default())).into());
            }
        }
        if let Some(said) = self
            .mapping_type
            .as_ref()
            .filter(|said| said.replace("transformer_encoder", "transformer") != mapper.kind.to_string())
        {
            return Err(BadUsage(format!("--mapping_type {said}: this bundle's mapper is {}", mapper.kind)).into());
        }
        if self.normalize_prefix && !bundle.normalized() {
            return Err(
                BadUsage("--normalize_prefix: this bundle's mapper was trained on embeddings as CLIP makes them".into()).into()
            );
        }
        let paths = [
            ("gpt2_model_path", self.gpt2_model_path.is_some()),
            ("bert_model_path", self.bert_model_path.is_some()),
            ("clip_model_path", self.clip_model_path.is_some()),
            ("finetune_gpt2", self.finetune_gpt2),
            ("only_prefix", self.only_prefix),
            ("is_rn", self.is_rn),
        ];
        for (name, _) in paths.iter().filter(|(_, given)| *given) {
            reporter.note(&format!("--{name} is not needed: the bundle holds the whole model"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
