use super::Context;
use crate::stages::Outcome;

#[derive(clap::Args)]
pub struct DoctorArgs {}

pub fn run(_args: DoctorArgs, _context: &Context) -> anyhow::Result<Outcome> {
    anyhow::bail!("clipcap doctor is not there yet")
}
