use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct TrainArgs {}

pub fn run(_args: TrainArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap train is not there yet")
}
