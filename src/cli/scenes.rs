use std::path::PathBuf;

use super::{BadUsage, Context};
use crate::stages::Outcome;
use crate::stages::scenes::{self, CheckSettings, ScenesSettings};

/// Render a small set of captioned scenes to try everything on; or, with --check, count how many captions of scenes are right.
#[derive(clap::Args)]
pub struct ScenesArgs {
    /// Folder to write: images/ and captions/ (with --check: an optional JSON file)
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// Pictures to render
    #[arg(long, default_value_t = 2000, value_name = "N")]
    num_images: u64,
    /// The same seed renders the same pictures
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Replace scenes made with other settings
    #[arg(long)]
    overwrite: bool,
    /// Compare the captions of this table with the scenes they are of: colour, shape, position, size, background, count
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["num_images"])]
    check: Option<PathBuf>,
    /// Check only scenes of this split: train, val or test (combinations that the training split does not have)
    #[arg(long, value_name = "S", requires = "check")]
    split: Option<String>,
}

pub fn run(args: ScenesArgs, context: &Context) -> anyhow::Result<Outcome> {
    if let Some(captions) = args.check {
        let settings = CheckSettings { captions, seed: args.seed, split: args.split, out: args.out };
        let (text, json) = scenes::check(&settings, &context.terminal)?;
        context.terminal.result(&text, &json);
        return Ok(Outcome::Complete);
    }
    let Some(out) = args.out else { return Err(BadUsage("--out is needed".into()).into()) };
    let settings = ScenesSettings { out, num_images: args.num_images, seed: args.seed, overwrite: args.overwrite };
    let (outcome, text, json) = scenes::run(&settings, &context.terminal)?;
    context.terminal.summary(&text, &json);
    Ok(outcome)
}
