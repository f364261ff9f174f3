use std::path::PathBuf;

use super::Context;
use crate::stages::Outcome;
use crate::stages::show::{self, Filter, ShowSettings};

/// What `--help` says below the flags.
const MORE_HELP: &str = "\
  clipcap show captions.parquet --where caption~狗 --rows 5
  clipcap show captions.errors.parquet --count reason
  clipcap show captions.parquet --sort logprob --columns image_path,caption,logprob
  clipcap show dataset --where split=test --json";

/// Print, filter, sort or count the rows of a table.
#[derive(clap::Args)]
#[command(after_long_help = MORE_HELP)]
pub struct ShowArgs {
    /// A Parquet file, a dataset (its captions), or a folder of numbered parts
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
}

pub fn run(args: ShowArgs, context: &Context) -> anyhow::Result<Outcome> {
    let view = show::run(&ShowSettings {
        input: args.input,
        columns: args.columns,
        filters: args.filters,
        count: args.count,
        sort: args.sort,
        descending: args.descending,
        rows: args.rows,
    })?;
    context.terminal.result(&view.to_text(), &view.to_json());
    Ok(Outcome::Complete)
}
