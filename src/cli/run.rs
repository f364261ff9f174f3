use std::path::PathBuf;

use anyhow::anyhow;
use clap::CommandFactory;

use super::{BadUsage, Cli, Context, command, dispatch};
use crate::pipeline::spec::SpecError;
use crate::stages::Outcome;
use crate::stages::run::{self, Executor, RunSettings};

/// Stages are sections of the file, in their order; a section's keys are the flags of its command.
#[derive(clap::Args)]
pub struct RunArgs {
    /// The pipeline, such as pipelines/flickr30k.toml
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// Override a key: stage.key=value (repeatable)
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    overrides: Vec<String>,
    /// Begin with this stage
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// End after this stage
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Run this stage even if nothing changed (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Say what would run and why, every input that is missing, and the time and disk space that it needs; exit status 1 where inputs are missing
    #[arg(long)]
    dry_run: bool,
    /// Hash every input and output again and report what no longer matches
    #[arg(long, conflicts_with_all = ["dry_run", "force", "from", "until"])]
    verify: bool,
}

/// Arguments that name what is written.
const WRITTEN: [&str; 4] = ["out", "work", "job", "per_image"];

/// What the original's flags name is not needed here.
fn is_read(argument: &clap::Arg) -> bool {
    !WRITTEN.contains(&argument.get_id().as_str()) && !argument.is_hide_set()
}

/// Runs a stage through the same command line a user would type.
struct CommandLine<'a>(&'a Context);

impl CommandLine<'_> {
    fn parse(words: &[String]) -> anyhow::Result<Cli> {
        let words = std::iter::once("clipcap").chain(words.iter().map(String::as_str));
        Cli::of(words).map_err(|e| anyhow!(BadUsage(e.to_string().trim_end().to_string())))
    }
}

impl Executor for CommandLine<'_> {
    fn check(&self, words: &[String]) -> anyhow::Result<()> {
        match Self::parse(words)?.command {
            super::Command::Run(_) => Err(anyhow!(BadUsage("a pipeline cannot be a stage of a pipeline".into()))),
            _ => Ok(()),
        }
    }

    fn accepts(&self, command: &[String], flag: &str) -> bool {
        let mut found = Cli::command();
        for word in command {
            match found.find_subcommand(word).cloned() {
                Some(subcommand) => found = subcommand,
                None => return false,
            }
        }
        found.get_arguments().any(|argument| argument.get_long() == Some(flag))
    }

    fn execute(&self, words: &[String]) -> anyhow::Result<Outcome> {
        dispatch(Self::parse(words)?.command, self.0)
    }

    fn inputs(&self, words: &[String]) -> Vec<(String, PathBuf)> {
        let mut command = command();
        let Ok(matches) = command.try_get_matches_from_mut(std::iter::once("clipcap").chain(words.iter().map(String::as_str)))
        else {
            return Vec::new();
        };
        let (mut command, mut matches) = (&command, &matches);
        while let Some((name, of_subcommand)) = matches.subcommand() {
            let Some(subcommand) = command.find_subcommand(name) else { return Vec::new() };
            (command, matches) = (subcommand, of_subcommand);
        }
        let mut inputs = Vec::new();
        for argument in command.get_arguments().filter(|argument| is_read(argument)) {
            let id = argument.get_id().as_str();
            let flag = argument.get_long().map_or_else(|| "input".into(), |long| format!("--{long}"));
            let paths = matches.try_get_many::<PathBuf>(id).ok().flatten().into_iter().flatten().cloned();
            inputs.extend(paths.map(|path| (flag.clone(), path)));
            // NAME=FILE
            if id == "split_list" {
                let lists = matches.try_get_many::<String>(id).ok().flatten().into_iter().flatten();
                inputs.extend(lists.filter_map(|list| Some((flag.clone(), list.split_once('=')?.1.into()))));
            }
        }
        inputs
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
