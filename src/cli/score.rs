use std::path::PathBuf;

use super::caption::{FileArgs, ImageArgs, default_batch_size, note_runtime};
use super::{BadUsage, ComputeArgs, Context, keep_inputs, on_one_card};
use crate::dataset::captions::{Columns, Format};
use crate::stages::Outcome;
use crate::stages::score::{self, PairOptions, ScoreSettings, Source};

/// Score how well captions fit their images, with a CLIP that reads text.
///
/// Adds the column clip_score: the cosine between a caption's and its image's embedding (float32). The scorer is a bundle or a published CLIP
/// with its text tower and tokenizer: Hugging Face's CLIP and Chinese-CLIP folders, or open_clip's with vocab.json and merges.txt beside. A row
/// whose image is missing or cannot be read gets no score and is listed in .clipcap/OUT.errors.parquet; a blank caption gets none either. Captions
/// longer than the text tower reads are counted and scored by their beginnings, as CLIP's own tokenizer cuts them.
///
///   clipcap score captions.parquet --images photos --scorer chinese-clip-vit-base-patch16 --out scored.parquet
#[derive(clap::Args)]
#[command(verbatim_doc_comment, group = clap::ArgGroup::new("source").args(["images", "embeddings"]).required(true))]
pub struct ScoreArgs {
    /// A caption table, a dataset, or a caption file that `prepare` reads (.jsonl, .csv, .tsv ...)
    #[arg(value_name = "TABLE|DATASET")]
    table: PathBuf,
    /// Folders of the images (or image files)
    #[arg(long, value_name = "DIR", num_args = 1..)]
    images: Vec<PathBuf>,
    /// Embeddings that `embed` made with a bundle of the same CLIP, instead of the images
    #[arg(long, value_name = "EMBEDDINGS")]
    embeddings: Option<PathBuf>,
    /// Scorer: a bundle or a CLIP folder with a text tower
    #[arg(long, value_name = "CLIP|BUNDLE")]
    scorer: PathBuf,
    /// Table to write: .parquet, .csv or .jsonl
    #[arg(long, value_name = "TABLE")]
    out: PathBuf,
    /// Start a .csv with a byte order mark, which Excel needs to show Chinese
    #[arg(long)]
    bom: bool,
    /// Replace an existing table
    #[arg(long)]
    overwrite: bool,
    /// Layout of a caption file (default: detected)
    #[arg(long, value_name = "FORMAT", help_heading = "Captions")]
    format: Option<Format>,
    /// Columns of a caption file: image=A,caption=B
    #[arg(long, value_name = "image=A,caption=B", help_heading = "Captions")]
    columns: Option<Columns>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Images to encode at once (default: 32; on CUDA 256 per card)
    #[arg(long, value_name = "N", help_heading = "Compute", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: Option<u32>,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    files: FileArgs,
}

pub fn run(args: ScoreArgs, context: &Context) -> anyhow::Result<Outcome> {
    let inputs = [&args.table, &args.scorer];
    keep_inputs([args.out.as_path()], args.embeddings.iter().chain(inputs).map(PathBuf::as_path))?;
    if !score::is_known(&args.out) {
        return Err(BadUsage(format!("--out {}: a name that ends in .parquet, .csv or .jsonl", args.out.display())).into());
    }
    let ComputeArgs { device, precision, threads } = args.compute;
    let runtime = context.runtime(on_one_card(device)?, precision, threads)?;
    note_runtime(&runtime, &context.terminal);
    let wanted = args.files.wanted(args.embeddings.is_none())?;
    let source = match args.embeddings {
        Some(path) => Source::Embeddings(path),
        None => Source::Images(args.images),
    };
    let settings = ScoreSettings {
        table: args.table,
        pairs: PairOptions { format: args.format, columns: args.columns.unwrap_or_default() },
        source,
        scorer: args.scorer,
        out: args.out,
        bom: args.bom,
        wanted,
        reading: args.image.reading(),
        batch_size: args.batch_size.map_or(default_batch_size(runtime.device()), |n| n as usize),
        overwrite: args.overwrite,
    };
    let report = score::run(&settings, &runtime, &context.terminal, &context.interrupt)?;
    context.tell_placements(&runtime);
    let (text, json) = report.summary();
    context.terminal.summary(&text, &json);
    Ok(report.outcome)
}
