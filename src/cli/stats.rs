use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;

use super::contract::Reads;
use super::{BadUsage, Context, keep_inputs};
use crate::dataset::captions::Encoding;
use crate::models::Bundle;
use crate::stages::Outcome;
use crate::stages::run::Scope;
use crate::stages::stats::{self, StatsSettings, TokenizerSource, Unit};

/// How long captions are (in characters, words and a model's tokens), by split and source, and what they are made of.
///
/// Writes Parquet tables (lengths, words with their frequencies, repeated captions, and what the splits share: captions, and images if
/// `prepare` compared them), words.csv for spreadsheets, table.tex for a paper (booktabs), stats.json, histograms as PNG and SVG, and
/// index.html, which needs nothing else.
#[derive(clap::Args)]
pub struct StatsArgs {
    /// A dataset folder, a Parquet table with a caption column, or a caption file
    #[arg(value_name = "DATASET|TABLE")]
    input: PathBuf,
    /// What to count: char, word, token (default: char and word, and token where a model or vocabulary is given)
    #[arg(long, value_enum, value_delimiter = ',')]
    units: Vec<UnitArg>,
    /// The encoding of a caption file that is not UTF-8: gbk, gb18030, big5, utf-16 and so on
    #[arg(long, value_name = "NAME")]
    encoding: Option<Encoding>,
    /// Count tokens as this bundle's tokenizer makes them
    #[arg(long, value_name = "BUNDLE", conflicts_with = "vocab")]
    model: Option<PathBuf>,
    /// Count tokens as WordPiece makes them with this vocab.txt (lower case)
    #[arg(long, value_name = "FILE")]
    vocab: Option<PathBuf>,
    /// Count the captions that would be cut at these lengths, [SEP] included
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "20,32,40,64,100")]
    max_len: Vec<u64>,
    /// Maximum number of histogram bins; each covers equally many whole numbers
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    bins: u32,
    /// Length of the lists of most frequent entries
    #[arg(long, default_value_t = 50)]
    top: usize,
    /// Overwrite the output, even if other settings made it or the folder holds other files
    #[arg(long)]
    overwrite: bool,
    /// Threads (default: every core)
    #[arg(long, value_parser = super::threads)]
    threads: Option<usize>,
    /// The folder for tables, pictures and page
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum UnitArg {
    Char,
    Word,
    Token,
}

impl Reads for StatsArgs {
    fn scope(&self, flag: &str) -> Scope {
        if flag == "input" { Scope::Captions } else { Scope::Whole }
    }
}

pub fn run(args: StatsArgs, context: &Context) -> anyhow::Result<Outcome> {
    keep_inputs([args.out.as_path()], [args.input.as_path()])?;
    let tokenizer = match (&args.model, &args.vocab) {
        (Some(model), _) => {
            let bundle = Bundle::open(model)?;
            Some(TokenizerSource::Model(Box::new(bundle)))
        }
        (None, Some(vocabulary)) => Some(TokenizerSource::Pieces(vocabulary.clone())),
        (None, None) => None,
    };
    let mut units: Vec<Unit> = match &args.units[..] {
        [] => vec![Unit::Char, Unit::Word],
        given => given
            .iter()
            .map(|unit| match unit {
                UnitArg::Char => Unit::Char,
                UnitArg::Word => Unit::Word,
                UnitArg::Token => Unit::Token,
            })
            .collect(),
    };
    if units.contains(&Unit::Token) && tokenizer.is_none() {
        return Err(BadUsage("--units token needs --model BUNDLE or --vocab FILE".into()).into());
    }
    if tokenizer.is_some() {
        units.push(Unit::Token);
    }
    units.sort();
    units.dedup();
    let settings = StatsSettings {
        input: args.input,
        units,
        encoding: args.encoding,
        tokenizer,
        max_lengths: args.max_len,
        bins: args.bins as usize,
        top: args.top,
        overwrite: args.overwrite,
        out: args.out,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0)).build().context("cannot start threads")?;
    let (outcome, summary) = pool.install(|| stats::run(&settings, &context.terminal))?;
    context.terminal.summary(&summary.text, &summary.json);
    Ok(outcome)
}
