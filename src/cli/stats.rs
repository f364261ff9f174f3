use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct StatsArgs {}

pub fn run(_args: StatsArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap stats is not there yet")
}
