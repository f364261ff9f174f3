use std::path::PathBuf;

use super::Context;
use crate::stages::Outcome;
use crate::stages::scenes::{self, ScenesSettings};

#[derive(clap::Args)]
pub struct ScenesArgs {
    /// Folder to make: images/ and captions/
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Pictures to render
    #[arg(long, default_value_t = 2000, value_name = "N")]
    num_images: u64,
    /// The same seed renders the same pictures
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Replace scenes made with other settings
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: ScenesArgs, context: &Context) -> anyhow::Result<Outcome> {
    let settings = ScenesSettings { out: args.out, num_images: args.num_images, seed: args.seed, overwrite: args.overwrite };
    let (outcome, text, json) = scenes::run(&settings, &context.terminal)?;
    context.terminal.result(&text, &json);
    Ok(outcome)
}
