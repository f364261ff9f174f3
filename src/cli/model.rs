use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct ModelArgs {}

pub fn run(_args: ModelArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap model is not there yet")
}
