use std::path::PathBuf;

use super::{BadUsage, Context};
use crate::stages::Outcome;
use crate::stages::show::pictures::{self, Protocol};
use crate::stages::show::{self, Filter, ShowSettings};

/// What `--help` says below the flags.
const MORE_HELP: &str = "\
Examples:
  clipcap show captions.parquet --where caption~狗 --rows 5
  clipcap show captions.errors.parquet --count reason
  clipcap show captions.parquet --sort logprob --columns image_path,caption,logprob
  clipcap show captions.parquet --sort logprob --rows 5 --pictures --images photos/
  clipcap show dataset --where split=test --json";

/// Print, filter, sort or count the rows of a table.
#[derive(clap::Args)]
#[command(after_long_help = MORE_HELP)]
pub struct ShowArgs {
    /// A table (.parquet, .csv, .tsv, .jsonl), or a folder with one: a dataset (its captions), embeddings, numbered parts, a job, a
    /// training run
    #[arg(value_name = "TABLE")]
    input: PathBuf,
    /// Only these columns, in this order
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    columns: Vec<String>,
    /// Only rows where COLUMN=VALUE; also != < > and ~ (contains); repeat to combine
    #[arg(long = "where", value_name = "CONDITION")]
    filters: Vec<Filter>,
    /// Count the rows per value of this column, most frequent first
    #[arg(long, value_name = "COLUMN", conflicts_with_all = ["columns", "sort"])]
    count: Option<String>,
    /// Sort by this column, ascending
    #[arg(long, value_name = "COLUMN")]
    sort: Option<String>,
    /// Sort descending
    #[arg(long, requires = "sort")]
    descending: bool,
    /// Maximum number of rows to print
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
    /// Do not cut long cells (default: cut at the terminal's width; never when piped)
    #[arg(long)]
    full: bool,
    /// Show each row's picture in a terminal that supports it (kitty, ghostty, iTerm2, WezTerm, Konsole, foot and others); a name forces the protocol
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "auto", conflicts_with = "count")]
    pictures: Option<How>,
    /// Folders of the pictures (default: the table's own)
    #[arg(long, value_name = "DIR", num_args = 1.., requires = "pictures")]
    images: Vec<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum How {
    Auto,
    Kitty,
    Iterm,
    Sixel,
}

impl How {
    fn protocol(self, is_terminal: bool) -> Result<Protocol, BadUsage> {
        let known = || Protocol::of_terminal(&|name| std::env::var(name).ok()).filter(|_| is_terminal);
        match self {
            Self::Kitty => Ok(Protocol::Kitty),
            Self::Iterm => Ok(Protocol::Iterm),
            Self::Sixel => Ok(Protocol::Sixel),
            Self::Auto => known().ok_or_else(|| {
                let why = if is_terminal { "this terminal is not known to show pictures" } else { "stdout is not a terminal" };
                BadUsage(format!(
                    "{why}: --pictures=kitty, iterm or sixel writes them all the same (or look at them with `clipcap report`)"
                ))
            }),
        }
    }
}

pub fn run(args: ShowArgs, context: &Context) -> anyhow::Result<Outcome> {
    let protocol = args.pictures.map(|how| how.protocol(context.terminal.width().is_some())).transpose()?;
    let folders = pictures::folders(&args.images, &args.input);
    let view = show::run(&ShowSettings {
        input: args.input,
        columns: args.columns,
        filters: args.filters,
        count: args.count,
        sort: args.sort,
        descending: args.descending,
        rows: args.rows,
    })?;
    if let Some(protocol) = protocol.filter(|_| !context.terminal.json()) {
        context.terminal.pictures(&view.to_pictures(protocol, &folders)?);
        return Ok(Outcome::Complete);
    }
    let width = context.terminal.width().filter(|_| !args.full);
    context.terminal.result(&view.to_text(width), &view.to_json());
    Ok(Outcome::Complete)
}
