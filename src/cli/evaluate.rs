use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct EvaluateArgs {}

pub fn run(_args: EvaluateArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap evaluate is not there yet")
}
