//! What a command line reads and what of it decides the result. A value that is typed as a path is an input, unless it is written to; the
//! rest a command says of its own flags ([`Reads`]).

use std::path::PathBuf;

use clap::ArgMatches;

use super::command;
use crate::stages::run::{Contract, Input, Scope};

/// Arguments that name what is written.
const WRITTEN: [&str; 4] = ["out", "work", "job", "per_image"];

/// What a command says of its flags, by their names in the code.
pub(super) trait Reads {
    /// What of the input that a flag names decides the result.
    fn scope(&self, _flag: &str) -> Scope {
        Scope::Whole
    }

    /// Whether a flag's values are `NAME=FILE`.
    fn names_files(&self, _flag: &str) -> bool {
        false
    }

    /// Whether an output that is there is gone on from.
    fn keeps(&self) -> bool {
        false
    }
}

/// A command that has nothing to say.
pub(super) struct Plain;

impl Reads for Plain {}

/// The contract of a command line, given without the program's name, and what its command says of its flags.
///
/// # Errors
/// Words that are none.
pub(super) fn contract(words: &[String], reads: &dyn Reads) -> Result<Contract, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(std::iter::once("clipcap").chain(words.iter().map(String::as_str)))?;
    let (mut command, mut matches) = (&command, &matches);
    while let Some((name, of_subcommand)) = matches.subcommand() {
        let Some(subcommand) = command.find_subcommand(name) else { break };
        (command, matches) = (subcommand, of_subcommand);
    }
    let mut contract = Contract { keeps: reads.keeps(), ..Contract::default() };
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let flag = argument.get_long().map_or_else(|| "input".into(), |long| format!("--{long}"));
        contract.overwrites |= flag == "--overwrite";
        if is_idle(argument, contract.keeps) {
            contract.idle.push(flag.clone());
        }
        // What the original's flags name, which are hidden, is not needed here.
        if !WRITTEN.contains(&id) && !argument.is_hide_set() {
            let input = |path| Input { flag: flag.clone(), path, scope: reads.scope(id) };
            contract.inputs.extend(paths(matches, id, reads.names_files(id)).into_iter().map(input));
        }
    }
    Ok(contract)
}

/// How a result is computed, not what it is. A batch size is of no effect where an output is gone on from; in training it decides the result.
fn is_idle(argument: &clap::Arg, keeps: bool) -> bool {
    let id = argument.get_id().as_str();
    matches!(argument.get_help_heading(), Some("Running" | "Output")) || id == "threads" || keeps && id == "batch_size"
}

/// The paths behind an argument, alone or as `NAME=FILE`.
fn paths(matches: &ArgMatches, id: &str, named: bool) -> Vec<PathBuf> {
    if named {
        let texts = matches.try_get_many::<String>(id).ok().flatten().into_iter().flatten();
        return texts.filter_map(|text| Some(PathBuf::from(text.split_once('=')?.1))).collect();
    }
    matches.try_get_many::<PathBuf>(id).ok().flatten().into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;

    fn of(line: &str) -> Contract {
        let words: Vec<String> = line.split(' ').map(String::from).collect();
        let parsed = Cli::of(std::iter::once("clipcap").chain(line.split(' '))).unwrap();
        contract(&words, parsed.command.reads()).unwrap()
    }

    fn inputs(line: &str) -> Vec<(String, String, Scope)> {
        let text = |path: PathBuf| path.to_str().unwrap().to_string();
        let mut inputs: Vec<_> = of(line).inputs.into_iter().map(|input| (input.flag, text(input.path), input.scope)).collect();
        inputs.sort_by(|a, b| a.1.cmp(&b.1));
        inputs
    }

    fn effective(line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(String::from).collect();
        of(line).effective(&words).join(" ")
    }

    #[test]
    fn a_batch_size_decides_what_is_learned_and_not_what_is_captioned() {
        let caption = "caption a --model m --out t.csv --batch-size 4 --threads 2 --seed 1 --prune";
        assert_eq!(effective(caption), "caption a --model m --out t.csv --seed 1");
        let train = "train --dataset d --embeddings e --model m --out r --batch-size 4 --threads 2";
        assert_eq!(effective(train), "train --dataset d --embeddings e --model m --out r --batch-size 4");
        assert!(of(caption).keeps && of(caption).overwrites && !of(train).keeps && of(train).overwrites);
    }

    #[test]
    fn every_path_that_is_not_written_is_an_input() {
        let flag = |flag: &str, path: &str, scope: Scope| (flag.to_string(), path.to_string(), scope);
        let train = "train --dataset a --embeddings b --model c --out r";
        let whole = |name: &str, path: &str| flag(name, path, Scope::Whole);
        assert_eq!(inputs(train), [flag("--dataset", "a", Scope::Captions), whole("--embeddings", "b"), whole("--model", "c")]);
        let contrastive = "train --dataset a --images i --model m --objective contrastive --out r";
        assert_eq!(inputs(contrastive)[0], whole("--dataset", "a"));
        assert_eq!(inputs("embed --dataset a --model m --out e"), [flag("--dataset", "a", Scope::Images), whole("--model", "m")]);
        assert_eq!(inputs("caption a --model m --out t.csv"), [flag("input", "a", Scope::Images), whole("--model", "m")]);
        assert_eq!(inputs("report a b --out r.html")[1], flag("input", "b", Scope::WithBookkeeping));
        let prepare = "prepare --captions a b --images c --split-list test=Cargo.toml --out d";
        let wanted =
            [whole("--split-list", "Cargo.toml"), whole("--captions", "a"), whole("--captions", "b"), whole("--images", "c")];
        assert_eq!(inputs(prepare), wanted);
        let import = "model import --clip a --gpt2 b --checkpoint c --out d";
        assert_eq!(inputs(import).len(), 3);
    }
}
