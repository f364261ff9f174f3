//! The hidden command that `--device auto` starts once for each of two devices.

use std::path::PathBuf;

use serde_json::json;

use super::caption::open_bundle;
use super::{ComputeArgs, Context};
use crate::stages::Outcome;
use crate::stages::choice::{Timed, answer};

/// Time the image encoder of a bundle: a line of JSON when it is loaded, and one for each line of stdin.
#[derive(clap::Args)]
pub struct TimeDeviceArgs {
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(args: TimeDeviceArgs, _: &Context) -> anyhow::Result<Outcome> {
    let ComputeArgs { device, precision, threads } = args.compute;
    let time = || {
        let bundle = open_bundle(&args.model)?;
        answer(&Timed { bundle: &bundle, device, precision, threads }, std::io::stdin().lock(), std::io::stdout().lock())
    };
    let timed = time();
    if let Err(error) = &timed {
        println!("{}", json!({"error": format!("{error:#}")}));
    }
    timed.map(|()| Outcome::Complete)
}
