use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct RunArgs {}

pub fn run(_args: RunArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap run is not there yet")
}
