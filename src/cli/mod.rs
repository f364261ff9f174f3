//! The command line: flags become settings here, and a stage's outcome becomes an exit status.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use contract::{Plain, Reads};

use crate::dataset::listing::ListingError;
use crate::files::check_name;
use crate::pipeline::{Interrupt, Reporter};
use crate::runtime::{Device, Precision, Runtime, RuntimeError, cards};
use crate::stages::Outcome;
use crate::terminal::{Terminal, harmless};

mod caption;
mod contract;
mod doctor;
mod embed;
mod evaluate;
mod export;
mod job;
mod manual;
mod model;
mod original;
mod prepare;
mod report;
mod run;
mod scenes;
mod score;
mod show;
mod stats;
mod time_device;
mod train;
mod work;

/// Image-caption datasets, CLIP embeddings, ClipCap training and caption tables, on ONNX Runtime.
#[derive(Parser)]
#[command(name = "clipcap", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Parses a command line, the program's name first.
    fn of(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

/// The program's commands and flags.
fn command() -> clap::Command {
    with_planned_settings(with_negative_numbers(with_short_flags(Cli::command())))
}

/// `-o` and `-m` wherever there is an --out or a --model.
fn with_short_flags(command: clap::Command) -> clap::Command {
    let short = |argument: clap::Arg| match argument.get_long() {
        Some("out") => argument.short('o'),
        Some("model") => argument.short('m'),
        _ => argument,
    };
    command.mut_args(short).mut_subcommands(with_short_flags)
}

/// A negative number behind a flag is its value, so that the message is about what the flag takes.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let has_value = |argument: &clap::Arg| argument.get_long().is_some() && argument.get_action().takes_values();
    let allow = |argument: clap::Arg| if has_value(&argument) { argument.allow_negative_numbers(true) } else { argument };
    command.mut_args(allow).mut_subcommands(with_negative_numbers)
}

/// A job's settings are its plan's: its workers take none.
fn with_planned_settings(command: clap::Command) -> clap::Command {
    let is_planned = |argument: &clap::Arg| match argument.get_help_heading() {
        // A scorer may lie elsewhere on a worker's machine, as the model may.
        Some("Scoring") => argument.get_id() != "scorer",
        Some("Decoding" | "Clean-up" | "Images" | "Files") => true,
        _ => argument.get_id() == "precision",
    };
    let settle = |argument: clap::Arg| if is_planned(&argument) { argument.conflicts_with("job") } else { argument };
    ["caption", "embed"].into_iter().fold(command, |command, name| command.mut_subcommand(name, |worker| worker.mut_args(settle)))
}

/// Flags that every command takes.
#[derive(Args)]
struct Global {
    /// Print errors only
    #[arg(long, global = true, help_heading = "Output")]
    quiet: bool,
    /// Print a machine-readable summary on stdout (for an error: {"error", "exit_status"})
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// Print more, such as which nodes run on which provider
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
}

/// Where models run. Flattened into the commands that run one.
#[derive(Args, Clone)]
pub struct ComputeArgs {
    /// Device: auto, cpu, openvino, cuda, cuda:N or cuda:N,M (auto: CUDA if usable, else CPU; in caption and embed OpenVINO where a measurement found it faster; several cards: caption and embed only)
    #[arg(long, default_value = "auto", help_heading = "Compute")]
    pub device: Device,
    /// Precision of the models: fp32, bf16, fp16 or int8; refused if the device lacks it
    #[arg(long, default_value = "fp32", help_heading = "Compute")]
    pub precision: Precision,
    /// Threads (default: every core; a job's workers on the same cores share them)
    #[arg(long, help_heading = "Compute", value_parser = threads)]
    pub threads: Option<usize>,
}

/// The value of `--threads`: at most a few for each core, since many more only wait for each other.
fn threads(text: &str) -> Result<usize, String> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let most = (8 * cores).max(64);
    let given = text.parse().ok().filter(|threads| (1..=most).contains(threads));
    given.ok_or_else(|| format!("1 to {most} threads, and this machine has {cores} cores"))
}

#[derive(Subcommand)]
enum Command {
    /// Import, make, inspect or quantize a model bundle
    Model(model::ModelArgs),
    /// Check the ONNX Runtime installation and run a self-test
    Doctor(doctor::DoctorArgs),
    /// Read captions and images into a dataset of Parquet tables
    Prepare(prepare::PrepareArgs),
    /// Embed images with CLIP
    Embed(embed::EmbedArgs),
    /// Caption length and vocabulary statistics
    Stats(stats::StatsArgs),
    /// Train a mapper (and GPT2) on a dataset
    Train(Box<train::TrainArgs>),
    /// Write a caption table for every image under a folder
    Caption(Box<caption::CaptionArgs>),
    /// Cut the files under folders into shards for many workers
    Plan(Box<job::PlanArgs>),
    /// Make one caption table from a job's finished shards
    Merge(job::MergeArgs),
    /// Show the progress of a job of many workers
    Job(job::JobArgs),
    /// Export captions and pictures as webdataset, imagefolder, Parquet, sidecar files, COCO results or for kohya
    Export(export::ExportArgs),
    /// Score captions against references
    Evaluate(evaluate::EvaluateArgs),
    /// Score how well captions fit their images, with a CLIP that reads text
    Score(Box<score::ScoreArgs>),
    /// Show a caption table, or two side by side, as one HTML page
    Report(Box<report::ReportArgs>),
    /// Print, filter, sort or count the rows of a table
    Show(show::ShowArgs),
    /// Render a small world of captioned scenes to try everything on
    Scenes(scenes::ScenesArgs),
    /// Run a pipeline of stages from a TOML file
    Run(run::RunArgs),
    /// Print a completion script for a shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write one per command into a folder
    Man(manual::ManArgs),
    /// Time the image encoder on one device
    #[command(hide = true)]
    TimeDevice(time_device::TimeDeviceArgs),
}

impl Command {
    /// What the command says of its inputs to a pipeline.
    fn reads(&self) -> &dyn Reads {
        match self {
            Self::Prepare(args) => args,
            Self::Embed(args) => args,
            Self::Stats(args) => args,
            Self::Train(args) => &**args,
            Self::Caption(args) => &**args,
            Self::Evaluate(args) => args,
            Self::Report(args) => &**args,
            _ => &Plain,
        }
    }
}

/// What a command needs besides its own arguments.
pub(crate) struct Context {
    /// Owner of stdout and stderr; also what tells of progress.
    pub terminal: Terminal,
    /// Set by Ctrl-C and SIGTERM.
    pub interrupt: Interrupt,
}

impl Context {
    /// Starts the runtime that the flags ask for. Where `auto` leaves a card unused it says why: aloud where there is a driver, else with -v.
    fn runtime(&self, device: Device, precision: Precision, threads: Option<usize>) -> Result<Runtime, RuntimeError> {
        let runtime = Runtime::start(device, precision, threads)?;
        if let Some(why) = runtime.why_not_cuda() {
            let note = format!("CUDA is not used: {why}");
            if cards().is_ok() && precision != Precision::Int8 { self.terminal.note(&note) } else { self.terminal.detail(&note) }
        }
        for card in runtime.cards() {
            self.terminal.detail(&format!("computing on {card}"));
        }
        Ok(runtime)
    }

    /// Says with -v where the nodes of the sessions made so far compute.
    fn tell_placements(&self, runtime: &Runtime) {
        runtime.take_placements().iter().for_each(|placement| self.terminal.detail(&placement.to_string()));
    }
}

/// Parses the command line, runs the command and returns the program's exit status.
pub fn main() -> ExitCode {
    let cli = match Cli::of(std::env::args_os()) {
        Ok(cli) => cli,
        // A file's name among the arguments must not command the terminal either.
        Err(error) if std::env::args_os().any(|arg| arg.to_string_lossy().contains(char::is_control)) => {
            eprintln!("{}", harmless(error.render().to_string().trim_end()));
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(error) => error.exit(),
    };
    let context = Context {
        terminal: Terminal::new(cli.global.quiet, cli.global.json, cli.global.verbose),
        interrupt: Interrupt::default(),
    };
    let interrupt = context.interrupt.clone();
    // The second Ctrl-C ends the program at once: state on disk is safe at any moment.
    let handler = ctrlc::set_handler(move || {
        if interrupt.is_set() {
            std::process::exit(130);
        }
        interrupt.set();
    });
    if let Err(error) = handler {
        context.terminal.error(&anyhow::anyhow!(error).context("cannot listen for Ctrl-C"));
    }
    match dispatch(cli.command, &context) {
        Ok(_) if context.terminal.is_result_lost() => ExitCode::FAILURE,
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            // Bad usage that clap cannot see (flags that exclude each other by value) is exit 2, like clap's own.
            let is_usage = error.is::<BadUsage>()
                || matches!(error.downcast_ref(), Some(ListingError::SameName { .. } | ListingError::Pattern(_)));
            let status = if is_usage { 2 } else { 1 };
            context.terminal.failed(&error, status);
            ExitCode::from(status)
        }
    }
}

/// Refuses several cards where one model is one model.
fn on_one_card(device: Device) -> Result<Device, BadUsage> {
    match device {
        Device::Cards(_) => Err(BadUsage(format!("--device {device}: several cards are for caption and embed; name one"))),
        device => Ok(device),
    }
}

/// Refuses outputs that would destroy an input: one that is there and is an input, or a file in a folder that is one.
fn keep_inputs<'a>(
    outputs: impl IntoIterator<Item = &'a Path>,
    inputs: impl IntoIterator<Item = &'a Path> + Clone,
) -> Result<(), BadUsage> {
    for output in outputs {
        check_name(output).map_err(BadUsage)?;
        let Ok(real) = output.canonicalize() else { continue };
        let is_lost = |input: PathBuf| real == input || real.is_file() && real.starts_with(&input);
        if inputs.clone().into_iter().filter_map(|input| input.canonicalize().ok()).any(is_lost) {
            return Err(BadUsage(format!("{} is an input: choose another output", output.display())));
        }
    }
    Ok(())
}

/// An error in how the command was called: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadUsage(pub String);

fn dispatch(command: Command, context: &Context) -> anyhow::Result<Outcome> {
    match command {
        Command::Model(args) => model::run(args, context),
        Command::Doctor(args) => doctor::run(args, context),
        Command::Prepare(args) => prepare::run(args, context),
        Command::Embed(args) => embed::run(args, context),
        Command::Stats(args) => stats::run(args, context),
        Command::Train(args) => train::run(*args, context),
        Command::Caption(args) => caption::run(*args, context),
        Command::Plan(args) => job::plan(*args, context),
        Command::Merge(args) => job::merge(args, context),
        Command::Job(args) => job::run(args, context),
        Command::Export(args) => export::run(args, context),
        Command::Evaluate(args) => evaluate::run(args, context),
        Command::Score(args) => score::run(*args, context),
        Command::Report(args) => report::run(*args, context),
        Command::Show(args) => show::run(args, context),
        Command::Scenes(args) => scenes::run(args, context),
        Command::Run(args) => run::run(args, context),
        Command::Completions(args) => manual::completions(args, context),
        Command::Man(args) => manual::man(args, context),
        Command::TimeDevice(args) => time_device::run(args, context),
    }
}
