use std::path::PathBuf;

use super::{ComputeArgs, Context};
use crate::stages::Outcome;
use crate::stages::doctor::{self, DoctorSettings};

#[derive(clap::Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    compute: ComputeArgs,
    /// Also read every weight of this bundle and compare it with the fingerprints; with --device auto and OpenVINO installed, measure which device is the faster
    #[arg(long, value_name = "BUNDLE")]
    model: Option<PathBuf>,
}

pub fn run(args: DoctorArgs, context: &Context) -> anyhow::Result<Outcome> {
    let ComputeArgs { device, precision, threads } = args.compute;
    let settings = DoctorSettings { device, precision, threads, model: args.model };
    let (outcome, text, json) = doctor::run(&settings, &context.terminal)?;
    context.terminal.result(&text, &json);
    Ok(outcome)
}
