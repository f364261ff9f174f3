use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{BadUsage, Context, keep_inputs};
use crate::models::Bundle;
use crate::models::config::MapperKind;
use crate::models::weights::DType;
use crate::stages::Outcome;
use crate::stages::get::{self, GetSettings};
use crate::stages::model::{self, ImportSettings, InitSettings};
use crate::stages::quantize::{self, QuantizeSettings};

#[derive(Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Subcommand)]
enum ModelCommand {
    /// Make a bundle from published weights: a CLIP, a decoder (GPT2, Qwen, Llama) and a ClipCap checkpoint
    Import(ImportArgs),
    /// Make a bundle with a new mapper, for training
    Init(InitArgs),
    /// Show what a bundle holds and where it came from
    Inspect(InspectArgs),
    /// Write a bundle's CLIP or decoder as a Hugging Face folder, its mapper as a folder, or mapper and decoder as one checkpoint
    Export(ExportArgs),
    /// Fetch a published CLIP or decoder from Hugging Face's hub (or a mirror)
    Get(GetArgs),
    /// Add 8-bit weights for `--precision int8`; the float weights stay
    Quantize(QuantizeArgs),
}

/// What `model get --help` says below the flags.
const GET_HELP: &str = "\
Examples:
  clipcap model get clip-b32+gpt2-chinese                          # an image encoder and a Chinese decoder, into the hub's cache
  clipcap model get Qwen/Qwen2.5-0.5B --out models/qwen            # any ORG/NAME, into a folder
  HF_ENDPOINT=https://hf-mirror.com clipcap model get clip-b32     # from a mirror
  clipcap model init --clip openai/clip-vit-base-patch32 --gpt2 uer/gpt2-chinese-cluecorpussmall --mapper mlp -o models/new

HF_ENDPOINT (a mirror), HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HTTPS_PROXY and SSL_CERT_FILE are respected.";

#[derive(Args)]
#[command(after_long_help = GET_HELP)]
struct GetArgs {
    /// ORG/NAME on the hub, or a short name from --list; join several with +
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<String>,
    /// List the short names and what they stand for
    #[arg(long, conflicts_with = "name")]
    list: bool,
    /// A branch, a tag or a commit (a commit always gives the same bytes)
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
    /// Folder for the files (default: Hugging Face's cache, where transformers and --clip ORG/NAME find them)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Show files, sizes and license without fetching
    #[arg(long, alias = "dry_run")]
    dry_run: bool,
}

#[derive(Args)]
struct ImportArgs {
    /// OpenAI's .pt file (ViT or ResNet), or a folder of Hugging Face (clip, chinese_clip, siglip; its cache's models--ORG--NAME too) or of
    /// open_clip
    #[arg(long, value_name = "PATH")]
    clip: PathBuf,
    /// Folder of the decoder the checkpoint was trained with (GPT2, Qwen2, Qwen3, Llama, Mistral): config.json and vocab.txt, tokenizer.json, or
    /// vocab.json and merges.txt
    #[arg(long, value_name = "DIR", aliases = ["gpt2_path", "decoder"])]
    gpt2: PathBuf,
    /// ClipCap-Chinese's or the original ClipCap's checkpoint (.pt)
    #[arg(long, value_name = "FILE.pt", alias = "model_path")]
    checkpoint: PathBuf,
    /// config.json of a BERT mapper's BERT; ignored if the checkpoint holds another mapper
    #[arg(long, value_name = "FILE", alias = "bert_config")]
    bert_config: Option<PathBuf>,
    /// The mapper was trained on embeddings of unit length
    #[arg(long, alias = "normalize_prefix")]
    normalize_prefix: bool,
    #[command(flatten)]
    words: WordsArgs,
    /// Folder to write
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,
    /// Replace an existing bundle
    #[arg(long)]
    overwrite: bool,
}

/// What a bundle records of its captions.
#[derive(Args)]
struct WordsArgs {
    /// Stop token: text, which stays in the caption, or the name of a special token (default: `.` for the original ClipCap, else [SEP] or
    /// the decoder's end of text)
    #[arg(long, value_name = "TOKEN", alias = "stop_token")]
    stop_token: Option<String>,
    /// Prompt: text after the image's prefix that every caption continues
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MapperArg {
    Mlp,
    Bert,
    /// The original ClipCap's
    #[value(alias = "transformer_encoder")]
    Transformer,
}

#[derive(Args)]
struct InitArgs {
    /// vit-b-32 or vit-tiny (random), OpenAI's .pt file (ViT or ResNet), or a folder of Hugging Face (clip, chinese_clip, siglip; its cache's
    /// models--ORG--NAME too) or of open_clip
    #[arg(long, value_name = "PATH|PRESET")]
    clip: PathBuf,
    /// The decoder: gpt2-base-zh, gpt2-tiny, gpt2-tiny-en, qwen2-tiny, qwen3-tiny or llama-tiny (random, with a vocabulary), or a folder with
    /// config.json, weights and vocabulary
    #[arg(long, value_name = "DIR|PRESET", aliases = ["gpt2_path", "decoder"])]
    gpt2: PathBuf,
    /// The new mapper: an MLP, a BERT over constant positions, or the original ClipCap's transformer over them
    #[arg(long, value_enum, alias = "mapping_type")]
    mapper: MapperArg,
    /// Positions of the prefix that stands for the image
    #[arg(long, default_value_t = 10, value_name = "N", aliases = ["prefix_len", "prefix-length", "prefix_length"])]
    prefix_len: usize,
    /// Positions that a transformer mapper turns the embedding into (default: as many as --prefix-len)
    #[arg(long, value_name = "N", aliases = ["clip_length", "prefix-length-clip", "prefix_length_clip"])]
    clip_length: Option<usize>,
    /// Layers of a transformer mapper
    #[arg(long, default_value_t = 8, value_name = "N", alias = "num_layers")]
    num_layers: usize,
    /// config.json of the mapper's BERT (default: like bert-base, as wide as GPT2 and as deep, 12 layers at most)
    #[arg(long, value_name = "FILE", alias = "bert_config")]
    bert_config: Option<PathBuf>,
    /// The mapper will be trained on embeddings of unit length
    #[arg(long, alias = "normalize_prefix")]
    normalize_prefix: bool,
    #[command(flatten)]
    words: WordsArgs,
    /// Make random weights if a folder holds a configuration and no weights
    #[arg(long)]
    random: bool,
    /// Seed of random weights: the same seed makes the same bytes on every machine
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Folder to write
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,
    /// Replace an existing bundle
    #[arg(long)]
    overwrite: bool,
}

#[derive(Args)]
struct InspectArgs {
    /// The bundle
    bundle: PathBuf,
    /// Read every weight and compare with its fingerprint
    #[arg(long)]
    verify: bool,
}

#[derive(Args)]
struct QuantizeArgs {
    /// The bundle
    bundle: PathBuf,
    /// Calibrate static scales on images, a dataset that stores its images, or embeddings (512 at most): faster, and needed by OpenVINO;
    /// embeddings calibrate the mapper and GPT2 only. Without it, each row of the activations gets its scale at run time
    #[arg(long, value_name = "IMAGES|DATASET|EMBEDDINGS")]
    calibrate: Option<PathBuf>,
    /// Threads (default: every core)
    #[arg(long, value_name = "N", value_parser = super::threads)]
    threads: Option<usize>,
    /// Folder to write; it keeps the float weights
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,
    /// Replace an existing bundle
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PartArg {
    Clip,
    /// The decoder, of whatever family
    #[value(alias = "decoder")]
    Gpt2,
    Mapper,
    /// Mapper and decoder in one file, under the names they were trained with
    Checkpoint,
}

#[derive(Args)]
struct ExportArgs {
    /// The bundle
    bundle: PathBuf,
    /// Part to write; --clip and --gpt2 of `model init` and `model import` take such folders, --checkpoint the file of a checkpoint
    #[arg(long, value_enum)]
    part: PartArg,
    /// Store float16 instead of float32
    #[arg(long)]
    half: bool,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: ModelArgs, context: &Context) -> anyhow::Result<Outcome> {
    match args.command {
        ModelCommand::Import(args) => {
            let settings = ImportSettings {
                clip: args.clip,
                decoder: args.gpt2,
                checkpoint: args.checkpoint,
                bert_config: args.bert_config,
                normalized: args.normalize_prefix,
                stop_token: args.words.stop_token,
                prompt: args.words.prompt,
                out: args.out,
                overwrite: args.overwrite,
            };
            show(&model::import(&settings, &context.terminal)?, context)
        }
        ModelCommand::Init(args) => {
            let settings = InitSettings {
                clip: args.clip,
                decoder: args.gpt2,
                mapper: match args.mapper {
                    MapperArg::Mlp => MapperKind::Mlp,
                    MapperArg::Bert => MapperKind::Bert,
                    MapperArg::Transformer => MapperKind::Transformer,
                },
                prefix_len: args.prefix_len,
                bert_config: args.bert_config,
                clip_length: args.clip_length,
                num_layers: args.num_layers,
                normalized: args.normalize_prefix,
                stop_token: args.words.stop_token,
                prompt: args.words.prompt,
                random: args.random,
                seed: args.seed,
                out: args.out,
                overwrite: args.overwrite,
            };
            show(&model::init(&settings, &context.terminal)?, context)
        }
        ModelCommand::Get(args) => get_model(args, context),
        ModelCommand::Inspect(args) => {
            let (text, json) = model::inspect(&args.bundle, args.verify)?;
            context.terminal.result(&text, &json);
            Ok(Outcome::Complete)
        }
        ModelCommand::Export(args) => {
            let part = match args.part {
                PartArg::Clip => "clip",
                PartArg::Gpt2 => "gpt2",
                PartArg::Mapper => "mapper",
                PartArg::Checkpoint => "checkpoint",
            };
            let dtype = if args.half { DType::F16 } else { DType::F32 };
            let bundle = Bundle::open(&args.bundle)?;
            match args.part {
                PartArg::Checkpoint => bundle.export_checkpoint(dtype, &args.out)?,
                _ => bundle.export(part, dtype, &args.out)?,
            }
            let json = serde_json::json!({"part": part, "out": args.out});
            context.terminal.summary(&format!("{}: {part} of {}", args.out.display(), args.bundle.display()), &json);
            Ok(Outcome::Complete)
        }
        ModelCommand::Quantize(args) => {
            keep_inputs([args.out.as_path()], args.calibrate.as_deref())?;
            let settings = QuantizeSettings {
                bundle: args.bundle,
                calibrate: args.calibrate,
                out: args.out,
                overwrite: args.overwrite,
                threads: args.threads,
            };
            let (bundle, report) = quantize::quantize(&settings, &context.terminal)?;
            let report = report.unwrap_or_default();
            context
                .terminal
                .summary(&format!("{}{report}", model::describe(&bundle, false)), &serde_json::to_value(bundle.manifest())?);
            Ok(Outcome::Complete)
        }
    }
}

fn get_model(args: GetArgs, context: &Context) -> anyhow::Result<Outcome> {
    let Some(name) = args.name else {
        let line = |entry: &get::Entry| format!("{:<20} {:<40} {}", entry.name, entry.repository, entry.about);
        let text: Vec<String> = get::CATALOG.iter().map(line).collect();
        let json: Vec<_> =
            get::CATALOG.iter().map(|entry| serde_json::json!({"name": entry.name, "repository": entry.repository})).collect();
        context.terminal.result(&text.join("\n"), &serde_json::json!(json));
        return Ok(Outcome::Complete);
    };
    get::names(&name).map_err(|error| BadUsage(error.to_string()))?;
    let settings = GetSettings { revision: args.revision, out: args.out, dry_run: args.dry_run, ..GetSettings::new(name) };
    let (outcome, text, json) = get::run(&settings, &context.terminal, &context.interrupt)?;
    match settings.dry_run {
        true => context.terminal.result(&text, &json),
        false => context.terminal.summary(&text, &json),
    }
    Ok(outcome)
}

/// What was made, in the words of `model inspect`.
fn show(bundle: &Bundle, context: &Context) -> anyhow::Result<Outcome> {
    context.terminal.summary(&model::describe(bundle, false), &serde_json::to_value(bundle.manifest())?);
    Ok(Outcome::Complete)
}
