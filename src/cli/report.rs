use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct ReportArgs {}

pub fn run(_args: ReportArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap report is not there yet")
}
