use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;

use super::caption::default_batch_size;
use super::contract::Reads;
use super::{BadUsage, Context, keep_inputs};
use crate::dataset::captions::Encoding;
use crate::runtime::{Device, Precision, Runtime};
use crate::stages::Outcome;
use crate::stages::evaluate::clip::ClipScorer;
use crate::stages::evaluate::{self, Candidate, Letters, Level, Settings};
use crate::stages::run::Scope;
use crate::stages::score::Source;

/// What `--help` says below the flags.
const MORE_HELP: &str = "\
Scores are BLEU-1..4, ROUGE-L and CIDEr as pycocoevalcap computes them, raw (1.0 is 100%).

Scores count one token per Chinese character, kana or hangul and one per run of other letters and digits, full-width forms as ASCII (NFKC), \
or words as jieba cuts them; punctuation is ignored. On text of Chinese characters and ASCII these are pycocoevalcap's numbers; \
--strict-tokens drops all other letters too.

Inputs are caption tables, datasets, and every layout that prepare reads: a caption file scores as its dataset does. Images are \
matched by file name, then by id, then without image extension and leading folders if that is unique; a file name decides over an id. Images \
that only one side has are counted, left out, and listed in the errors table beside --out; CIDEr's document frequencies are those of the images scored.

With --scorer, CLIPScore is 2.5 times the cosine of caption and image (negative: 0), and RefCLIPScore the harmonic mean of that and the highest \
cosine of the caption and a reference. A blank caption scores 0; images without a picture or an embedding are counted and left out of both.

  clipcap evaluate --predictions captions.parquet --references dataset --split test
  clipcap evaluate --predictions a.parquet --compare b.parquet --references dataset";

#[derive(clap::Args)]
#[command(after_long_help = MORE_HELP, group = clap::ArgGroup::new("source").args(["images", "embeddings"]).requires("scorer"))]
pub struct EvaluateArgs {
    /// Captions to score: a caption table, or COCO results
    #[arg(long, value_name = "TABLE|JSON")]
    predictions: PathBuf,
    /// References: a dataset, a table, or COCO annotations
    #[arg(long, value_name = "DATASET|TABLE|JSON")]
    references: PathBuf,
    /// Count Han characters and Latin words, or words as jieba cuts them
    #[arg(long, value_enum, default_value = "both")]
    tokens: Tokens,
    /// The encoding of caption files that are not UTF-8: gbk, gb18030, big5, utf-16 and so on
    #[arg(long, value_name = "NAME")]
    encoding: Option<Encoding>,
    /// Count Chinese characters and runs of ASCII letters and digits only (default: letters and digits of every script; on Chinese and ASCII text
    /// both are pycocoevalcap's scores)
    #[arg(long)]
    strict_tokens: bool,
    /// Which of several captions per image to score: the first by caption_index (by rank, where `caption --rerank` made the table), or the
    /// best by CIDEr (an upper bound, not a score)
    #[arg(long, value_enum, default_value = "first")]
    candidate: CandidateArg,
    /// Only references of this split of a dataset
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// A second table: both are scored on the images they share, with a paired permutation test
    #[arg(long, value_name = "TABLE|JSON")]
    compare: Option<PathBuf>,
    /// Resample the images N times for 95% intervals (default with --compare: 1000)
    #[arg(long, value_name = "N", default_value_t = 0)]
    bootstrap: usize,
    /// Seed of the resampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Add CLIPScore and RefCLIPScore (Hessel et al.), as this bundle or CLIP folder with a text tower sees them; needs --images or --embeddings
    #[arg(long, value_name = "CLIP|BUNDLE", requires = "source", help_heading = "CLIPScore")]
    scorer: Option<PathBuf>,
    /// Folders of the images
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "CLIPScore")]
    images: Vec<PathBuf>,
    /// Embeddings that `embed` made with a bundle of the same CLIP, instead of the images
    #[arg(long, value_name = "EMBEDDINGS", help_heading = "CLIPScore")]
    embeddings: Option<PathBuf>,
    /// Text to put before every caption and reference; the paper uses \"A photo depicts \"
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, help_heading = "CLIPScore")]
    clip_prefix: String,
    /// Device of the scorer: auto, cpu, openvino, cuda or cuda:N
    #[arg(long, default_value = "auto", help_heading = "CLIPScore")]
    device: Device,
    /// Threads (default: every core)
    #[arg(long, value_parser = super::threads)]
    threads: Option<usize>,
    /// Write the scores as JSON; images that only one side has, or that could be several, go to .clipcap/FILE.errors.parquet beside them
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Write every image's scores as a Parquet table
    #[arg(long, value_name = "FILE.parquet")]
    per_image: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Tokens {
    Char,
    Word,
    Both,
}

#[derive(Clone, Copy, ValueEnum)]
enum CandidateArg {
    First,
    Oracle,
}

impl Reads for EvaluateArgs {
    fn scope(&self, flag: &str) -> Scope {
        if flag == "references" { Scope::Captions } else { Scope::Whole }
    }
}

pub fn run(args: EvaluateArgs, context: &Context) -> anyhow::Result<Outcome> {
    let settings = Settings {
        predictions: args.predictions,
        references: args.references,
        levels: match args.tokens {
            Tokens::Char => vec![Level::Char],
            Tokens::Word => vec![Level::Word],
            Tokens::Both => vec![Level::Char, Level::Word],
        },
        candidate: match args.candidate {
            CandidateArg::First => Candidate::First,
            CandidateArg::Oracle => Candidate::Oracle,
        },
        compare: args.compare,
        split: args.split,
        encoding: args.encoding,
        letters: if args.strict_tokens { Letters::Strict } else { Letters::Every },
        out: args.out,
        per_image: args.per_image,
        bootstrap: args.bootstrap,
        seed: args.seed,
    };
    let outputs = || [&settings.out, &settings.per_image].into_iter().flatten().map(PathBuf::as_path);
    let more = [settings.compare.as_ref(), args.embeddings.as_ref(), args.scorer.as_ref()];
    let inputs = [Some(&settings.predictions), Some(&settings.references)].into_iter().chain(more);
    keep_inputs(outputs(), inputs.flatten().map(PathBuf::as_path))?;
    if settings.out.is_some() && settings.out == settings.per_image {
        return Err(BadUsage("--out and --per-image are one file".into()).into());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0)).build().context("cannot start threads")?;
    let mut judge = match &args.scorer {
        None => None,
        Some(scorer) => {
            let runtime = Runtime::start(super::on_one_card(args.device)?, Precision::Fp32, args.threads)?;
            let source = match args.embeddings {
                Some(path) => Source::Embeddings(path),
                None => Source::Images(args.images),
            };
            let batch_size = default_batch_size(runtime.device());
            Some(ClipScorer::open(scorer, &source, args.clip_prefix, &runtime, batch_size)?)
        }
    };
    let evaluation = pool.install(|| evaluate::run(&settings, judge.as_mut(), &context.terminal))?;
    context.terminal.result(&evaluation.to_text(), &evaluation.to_json());
    Ok(Outcome::Complete)
}
