use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct PrepareArgs {}

pub fn run(_args: PrepareArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap prepare is not there yet")
}
