use std::path::PathBuf;

use anyhow::Context as _;
use clap::ArgAction;

use super::contract::Reads;
use super::original::ModelFlags;
use super::{BadUsage, ComputeArgs, Context, keep_inputs, on_one_card};
use crate::models::Bundle;
use crate::pipeline::Reporter;
use crate::stages::Outcome;
use crate::stages::run::Scope;
use crate::stages::train::{self, BestBy, Recipe, Summary, TrainSettings, Upkeep};
use crate::training::lora::Lora;
use crate::training::objective::Objective;
use crate::training::optimizer::AdamW;
use crate::training::schedule::Decay;

/// What `--help` says below the flags.
const EXAMPLES: &str = "\
Examples:
  clipcap train --dataset dataset --embeddings embeddings -m models/new -o run                    # the mapper alone
  clipcap train --dataset dataset --embeddings embeddings -m models/new -o run --finetune-gpt2    # GPT2 too";

/// Train a mapper, and GPT2 with --finetune-gpt2, on a dataset and its embeddings; or a CLIP or a GPT2 from scratch (--objective).
///
/// The run's folder holds config.toml, artifacts/ (the graphs), checkpoints/step-N/, best/ and last/ (bundles that `clipcap caption`
/// takes), tensorboard/, metrics.parquet, curve.svg, samples.jsonl and index.html (curves, and captions beside what people wrote). Run the same command again to resume from the last checkpoint.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct TrainArgs {
    /// Folder that `clipcap prepare` wrote
    #[arg(long, value_name = "DATASET", aliases = ["data_path", "data"], required_unless_present = "artifacts_only")]
    dataset: Option<PathBuf>,
    /// Folder that `clipcap embed` wrote, with the same model (for captions)
    #[arg(long, value_name = "EMBEDDINGS")]
    embeddings: Option<PathBuf>,
    /// Folders of the dataset's images, where it does not store them (for the contrastive objective)
    #[arg(long, value_name = "DIR", num_args = 1..)]
    images: Vec<PathBuf>,
    /// The bundle to start from; `clipcap model init` makes one with a new mapper
    #[arg(long, value_name = "BUNDLE")]
    model: PathBuf,
    /// The run's folder
    #[arg(long, value_name = "RUN", aliases = ["output_path", "out_dir"])]
    out: PathBuf,
    /// What to train: caption (the mapper, from embeddings), scst (the same, rewarding a trained model's samples by their CIDEr),
    /// contrastive (CLIP, from images and captions) or language-model (GPT2, from captions alone)
    #[arg(long, default_value_t = Objective::Caption)]
    objective: Objective,
    /// Train GPT2 too; without it, only the mapper learns
    #[arg(long, alias = "finetune_gpt2")]
    finetune_gpt2: bool,
    /// Train LoRA adapters of this rank in the decoder, which is frozen. best/ and last/ have them merged into the decoder's weights, and
    /// on their own in adapter/, in PEFT's layout
    #[arg(long, value_name = "R", alias = "lora_rank", help_heading = "Adapters")]
    lora_rank: Option<usize>,
    /// LoRA alpha: adapters are scaled by A / R (default: 2R)
    #[arg(long, value_name = "A", alias = "lora_alpha", requires = "lora_rank", help_heading = "Adapters")]
    lora_alpha: Option<f64>,
    /// Layers that get adapters, by the end of their names, or all-linear (default: c_attn in GPT2; q_proj and v_proj elsewhere)
    #[arg(long, value_name = "NAMES", alias = "lora_targets", requires = "lora_rank", value_delimiter = ',', num_args = 1.., help_heading = "Adapters")]
    lora_targets: Vec<String>,
    /// Gradient checkpointing: keep only the inputs of layers and recompute the rest; less memory, about a fifth more time
    #[arg(long, help_heading = "Recipe")]
    recompute: bool,
    /// Write the graphs and the initial checkpoint to RUN/artifacts and stop
    #[arg(long)]
    artifacts_only: bool,
    /// Start over, even if RUN holds a finished run or one with other settings
    #[arg(long)]
    overwrite: bool,

    /// Passes over the training captions
    #[arg(long, default_value_t = 10, help_heading = "Recipe")]
    epochs: u64,
    /// Stop after this many optimizer steps; the schedule ends there too
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    max_steps: Option<u64>,
    /// Captions per batch
    #[arg(long, default_value_t = 40, aliases = ["bs-train", "bs_train", "bs"], help_heading = "Recipe")]
    batch_size: usize,
    /// Batches per optimizer step; the loss is the mean over the tokens of all of them
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Recipe")]
    gradient_accumulation_steps: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-5, aliases = ["learning-rate", "learning_rate"], help_heading = "Recipe")]
    lr: f64,
    /// Learning rate after the warm-up: linear, constant or cosine
    #[arg(long, default_value_t = Decay::Linear, help_heading = "Recipe")]
    schedule: Decay,
    /// Steps over which the learning rate rises from 0 (default: a tenth of the run, 5000 at most)
    #[arg(long, value_name = "N", alias = "warmup_steps", help_heading = "Recipe")]
    warmup_steps: Option<u64>,
    /// Weight decay of AdamW, on every parameter
    #[arg(long, default_value_t = AdamW::default().weight_decay, help_heading = "Recipe")]
    weight_decay: f64,
    /// Exclude layer norms and biases from weight decay
    #[arg(long, help_heading = "Recipe")]
    no_decay_norm_bias: bool,
    /// AdamW beta1
    #[arg(long, default_value_t = AdamW::default().beta1, help_heading = "Recipe")]
    beta1: f64,
    /// AdamW beta2
    #[arg(long, default_value_t = AdamW::default().beta2, help_heading = "Recipe")]
    beta2: f64,
    /// AdamW epsilon
    #[arg(long, default_value_t = AdamW::default().eps, help_heading = "Recipe")]
    eps: f64,
    /// Clip gradients to this global norm (default: no clipping)
    #[arg(long, value_name = "NORM", help_heading = "Recipe")]
    max_grad_norm: Option<f64>,
    /// Dropout probability everywhere (default: as the models' configurations say; a frozen GPT2 never drops)
    #[arg(long, value_name = "P", help_heading = "Recipe")]
    dropout: Option<f64>,
    /// Label smoothing
    #[arg(long, default_value_t = 0.0, help_heading = "Recipe")]
    label_smoothing: f32,
    /// Scale embeddings to unit length (always done if the model was trained that way)
    #[arg(long, alias = "normalize_prefix", help_heading = "Recipe")]
    normalize_prefix: bool,
    /// Prompt: text after the image's prefix that every caption continues; it is not learned, and the bundles record it (default: the
    /// model's; \"\" for none)
    #[arg(long, value_name = "TEXT", help_heading = "Recipe")]
    prompt: Option<String>,
    /// Maximum sequence length, prefix included; longer captions are cut (default: 100, or what the decoder allows)
    #[arg(long, value_name = "N", alias = "max_len", help_heading = "Recipe")]
    max_len: Option<usize>,
    /// Count padding up to --max-len in the loss, as the original does
    #[arg(long, help_heading = "Recipe")]
    loss_on_padding: bool,
    /// Captions of one image per row, concatenated (language-model objective)
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Recipe")]
    captions_per_row: usize,
    /// Captions to sample per image with --objective scst; a batch has --batch-size of them. The reward is the CIDEr-D (by characters; document
    /// frequencies of the training references) minus the mean of the image's other samples. Dropout is 0 unless --dropout is given
    #[arg(long, default_value_t = train::DEFAULT_SAMPLES, value_name = "K", help_heading = "Recipe")]
    samples: usize,
    /// Seed of shuffling, dropout, sampling and the held-out images
    #[arg(long, default_value_t = 0, help_heading = "Recipe")]
    seed: u64,

    /// Captions to hold out for the dev loss, by whole images, if the dataset has no dev split (default: 1000, or one in twenty)
    #[arg(long, value_name = "N", alias = "dev_size", help_heading = "Evaluation")]
    dev_size: Option<u64>,
    /// Steps between evaluations (default: one after each pass)
    #[arg(long, value_name = "N", aliases = ["eval-step", "eval_step"], help_heading = "Evaluation")]
    eval_steps: Option<u64>,
    /// What decides which evaluation is best: the lowest dev loss, or the highest CIDEr of the captioned dev images (default: loss; cider
    /// with --objective scst)
    #[arg(long, value_name = "loss|cider", alias = "best_by", value_parser = best_by, help_heading = "Evaluation")]
    best_by: Option<BestBy>,
    /// Dev images to caption greedily and score with CIDEr at each evaluation, the first ones (0: none)
    #[arg(long, value_name = "N", alias = "cider_images", default_value_t = train::DEFAULT_CIDER_IMAGES, help_heading = "Evaluation")]
    cider_images: usize,
    /// Stop after this many evaluations without a better one
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    patience: Option<u32>,
    /// Images to caption at each evaluation
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Evaluation")]
    sample_images: usize,

    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 1000, aliases = ["save-step", "save_step"], help_heading = "Checkpoints")]
    save_steps: u64,
    /// Checkpoints to keep
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Checkpoints")]
    keep: usize,

    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    original: OriginalArgs,
}

/// Flags of the original's train.py that say what the bundle says, or nothing any more.
#[derive(clap::Args)]
struct OriginalArgs {
    #[command(flatten)]
    model: ModelFlags,
    #[arg(long = "gpt2_path", hide = true)]
    gpt2_path: Option<PathBuf>,
    #[arg(long = "bert_path", hide = true)]
    bert_path: Option<PathBuf>,
    #[arg(long = "bs_eval", hide = true)]
    bs_eval: Option<usize>,
    #[arg(long = "num_workers", hide = true)]
    num_workers: Option<usize>,
    #[arg(long = "prefix", hide = true)]
    prefix: Option<String>,
    #[arg(long = "save_every", alias = "save-every", hide = true)]
    save_every: Option<u64>,
    #[arg(long = "do_train", hide = true, action = ArgAction::SetTrue)]
    do_train: bool,
}

impl TrainArgs {
    fn recipe(&self) -> Recipe {
        Recipe {
            objective: self.objective,
            finetune_gpt2: self.finetune_gpt2,
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            learning_rate: self.lr,
            schedule: self.schedule,
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay,
            no_decay_norm_bias: self.no_decay_norm_bias,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            max_grad_norm: self.max_grad_norm,
            // What is learned from are the model's own captions, made without dropout.
            dropout: self.dropout.or((self.objective == Objective::Scst).then_some(0.0)),
            label_smoothing: self.label_smoothing,
            normalize_prefix: self.normalize_prefix,
            prompt: self.prompt.clone(),
            max_len: self.max_len,
            loss_on_padding: self.loss_on_padding,
            captions_per_row: self.captions_per_row,
            dev_size: self.dev_size,
            eval_steps: self.eval_steps,
            best_by: self.best_by,
            cider_images: self.cider_images,
            samples: self.samples,
            patience: self.patience,
            seed: self.seed,
            recompute: self.recompute,
            lora: self.lora_rank.map(|rank| Lora {
                rank,
                alpha: self.lora_alpha.unwrap_or(2.0 * rank as f64),
                targets: self.lora_targets.clone(),
            }),
        }
    }
}

impl OriginalArgs {
    /// The bundle says these things; flags that say otherwise are a mistake to be told about.
    fn check(&self, bundle: &Bundle, reporter: &dyn Reporter) -> Result<(), BadUsage> {
        self.model.check(bundle)?;
        let idle = [
            ("--gpt2_path", self.gpt2_path.is_some()),
            ("--bert_path", self.bert_path.is_some()),
            ("--bs_eval", self.bs_eval.is_some()),
            ("--num_workers", self.num_workers.is_some()),
            ("--is_rn", self.model.is_rn),
            ("--prefix", self.prefix.is_some()),
            ("--save_every", self.save_every.is_some()),
        ];
        for (flag, _) in idle.iter().filter(|(_, given)| *given) {
            reporter.note(&format!("{flag} has no meaning here and is ignored (the model is --model's)"));
        }
        Ok(())
    }
}

impl Reads for TrainArgs {
    fn scope(&self, flag: &str) -> Scope {
        // From pictures is learned what a dataset may hold.
        let is_of_captions = flag == "dataset" && self.objective != Objective::Contrastive;
        if is_of_captions { Scope::Captions } else { Scope::Whole }
    }
}

pub fn run(args: TrainArgs, context: &Context) -> anyhow::Result<Outcome> {
    let recipe = args.recipe();
    recipe.validate().map_err(BadUsage)?;
    if args.original.model.only_prefix && args.finetune_gpt2 {
        return Err(
            BadUsage("--only_prefix trains the mapper alone, and --finetune-gpt2 the decoder too: choose one".into()).into()
        );
    }
    keep_inputs(
        [args.out.as_path()],
        [&args.dataset, &args.embeddings].into_iter().flatten().chain([&args.model]).map(PathBuf::as_path),
    )?;
    if args.save_steps == 0 || args.keep == 0 {
        return Err(BadUsage("--save-steps and --keep must be at least 1".into()).into());
    }
    let bundle = Bundle::open(&args.model)?;
    args.original.check(&bundle, &context.terminal)?;
    train::max_len(&recipe, &bundle)?.map_err(BadUsage)?;
    recipe.lora.iter().try_for_each(|lora| lora.validate(bundle.decoder_config())).map_err(BadUsage)?;
    if args.artifacts_only {
        let parameters = train::write_artifacts(&args.model, &args.out, &recipe, args.overwrite)?;
        let folder = args.out.join("artifacts");
        let json = serde_json::json!({"artifacts": folder, "trainable_parameters": parameters});
        context.terminal.summary(&format!("{} ({parameters} trainable parameters)", folder.display()), &json);
        return Ok(Outcome::Complete);
    }
    let Some(dataset) = args.dataset.clone() else { return Err(BadUsage("--dataset is needed".into()).into()) };
    if args.objective.is_of_embeddings() && args.embeddings.is_none() {
        return Err(BadUsage("--embeddings is needed: captions are learned from them".into()).into());
    }
    let settings = TrainSettings {
        dataset,
        embeddings: args.embeddings.clone(),
        images: args.images.clone(),
        model: args.model.clone(),
        out: args.out.clone(),
        recipe,
        upkeep: Upkeep { save_steps: args.save_steps, keep: args.keep, sample_images: args.sample_images },
        overwrite: args.overwrite,
    };
    let runtime = context.runtime(on_one_card(args.compute.device)?, args.compute.precision, args.compute.threads)?;
    context.terminal.note(&format!(
        "training on {} in {} with {} threads",
        runtime.device(),
        runtime.precision(),
        runtime.threads()
    ));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(runtime.threads()).build().context("cannot start threads")?;
    let (outcome, summary) = pool.install(|| train::train(&settings, &runtime, &context.terminal, &context.interrupt))?;
    context.tell_placements(&runtime);
    context.terminal.summary(&text(&settings, &summary), &serde_json::to_value(&summary)?);
    Ok(outcome)
}

fn best_by(text: &str) -> Result<BestBy, String> {
    match text {
        "loss" => Ok(BestBy::Loss),
        "cider" => Ok(BestBy::Cider),
        _ => Err("use loss or cider".into()),
    }
}

/// The closing summary.
fn text(settings: &TrainSettings, summary: &Summary) -> String {
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
    if summary.finished && summary.seconds.steps == 0.0 {
        let (steps, best, at) = (summary.steps, number(summary.best_dev_loss), summary.best_step.unwrap_or(0));
        let model = settings.out.join("best");
        return format!("finished before: {steps} steps, best dev loss {best} at step {at}\nmodel: {}", model.display());
    }
    let seconds = &summary.seconds;
    let total = (seconds.data + seconds.steps + seconds.logging + seconds.evaluation + seconds.saving).max(1e-9);
    let share = |part: f64| format!("{:.1}%", 100.0 * part / total);
    let mut lines = vec![
        format!("{} of {} steps, train loss {}", summary.steps, summary.total_steps, number(summary.train_loss)),
        format!(
            "dev loss {}, best {} at step {}",
            number(summary.dev_loss),
            number(summary.best_dev_loss),
            summary.best_step.unwrap_or(0)
        ),
        match (summary.dev_cider, summary.best_dev_cider) {
            (None, _) => String::new(),
            (last, None) => format!("dev CIDEr {}", number(last)),
            (last, best) => format!("dev CIDEr {}, best {}", number(last), number(best)),
        },
        format!("{:.0} tokens/s, {:.1} samples/s", summary.tokens_per_second, summary.samples_per_second),
        format!(
            "time: steps {}, data {}, logging {}, evaluation {}, checkpoints {}",
            share(seconds.steps),
            share(seconds.data),
            share(seconds.logging),
            share(seconds.evaluation),
            share(seconds.saving)
        ),
    ];
    lines.retain(|line| !line.is_empty());
    if summary.finished {
        lines.push(format!("model: {}", settings.out.join("best").display()));
        lines.push(format!("curves and captions: {}", settings.out.join("index.html").display()));
    }
    lines.join("\n")
}
