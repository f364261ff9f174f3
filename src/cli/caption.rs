use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct CaptionArgs {}

pub fn run(_args: CaptionArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap caption is not there yet")
}
