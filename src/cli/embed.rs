use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct EmbedArgs {}

pub fn run(_args: EmbedArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap embed is not there yet")
}
