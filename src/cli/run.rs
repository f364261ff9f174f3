use std::path::PathBuf;

use anyhow::anyhow;

use super::contract::contract;
use super::{BadUsage, Cli, Context, dispatch};
use crate::pipeline::runner::SpecError;
use crate::stages::Outcome;
use crate::stages::run::{self, Contract, Executor, RunSettings};

/// Stages are the sections of the file, in order; a section's keys are the flags of its command.
#[derive(clap::Args)]
pub struct RunArgs {
    /// The pipeline, such as pipelines/flickr30k.toml
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// Override a key: stage.key=value (repeatable)
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    overrides: Vec<String>,
    /// Start with this stage
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// End after this stage
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Run this stage even if nothing changed (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Show what would run and why, missing inputs, and the time and disk space needed; exit with status 1 if inputs are missing
    #[arg(long)]
    dry_run: bool,
    /// Hash all inputs and outputs again and report what no longer matches
    #[arg(long, conflicts_with_all = ["dry_run", "force", "from", "until"])]
    verify: bool,
}

/// Runs a stage through the same command line a user would type.
struct CommandLine<'a>(&'a Context);

impl CommandLine<'_> {
    fn parse(words: &[String]) -> anyhow::Result<Cli> {
        let words = std::iter::once("clipcap").chain(words.iter().map(String::as_str));
        Cli::of(words).map_err(|error| anyhow!(bad(&error)))
    }
}

fn bad(error: &clap::Error) -> BadUsage {
    BadUsage(error.to_string().trim_end().to_string())
}

impl Executor for CommandLine<'_> {
    fn contract(&self, words: &[String]) -> anyhow::Result<Contract> {
        match Self::parse(words)?.command {
            super::Command::Run(_) => Err(anyhow!(BadUsage("a pipeline cannot be a stage of a pipeline".into()))),
            command => contract(words, command.reads()).map_err(|error| anyhow!(bad(&error))),
        }
    }

    fn execute(&self, words: &[String]) -> anyhow::Result<Outcome> {
        dispatch(Self::parse(words)?.command, self.0)
    }
}

pub fn run(args: RunArgs, context: &Context) -> anyhow::Result<Outcome> {
    let RunArgs { file, overrides, from, until, force, dry_run, verify } = args;
    let settings = RunSettings { file, overrides, from, until, force, dry_run, verify };
    let ran = run::run(&settings, &CommandLine(context), &context.terminal);
    let (outcome, text, json) = ran.map_err(|error| match error.downcast_ref::<SpecError>() {
        Some(fault) if fault.is_usage() => BadUsage(fault.to_string()).into(),
        _ => error,
    })?;
    match settings.dry_run || settings.verify {
        true => context.terminal.result(&text, &json),
        false => context.terminal.summary(&text, &json),
    }
    Ok(outcome)
}
