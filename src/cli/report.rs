use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::json;

use super::contract::Reads;
use super::{BadUsage, Context, keep_inputs};
use crate::dataset::captions::Encoding;
use crate::stages::Outcome;
use crate::stages::evaluate::{Letters, Level};
use crate::stages::report::{self, ReportSettings};
use crate::stages::run::Scope;

/// What `--help` says below the flags.
const MORE_HELP: &str = "\
The page needs no network and no other file: pictures are embedded as small JPEGs. Search, filter and sort in the page, with the \
keyboard too (press ?). If one page would be larger than --page-mb, FILE.2.html ... and FILE.worst.html are written beside FILE.html.

Inputs are caption tables (a folder, .parquet, .csv, .tsv, .jsonl) and what evaluate reads; failures and settings come from the errors \
table and the manifest beside a table. Images are searched in the folders of --images; a missing or broken image gets a placeholder, and \
the exit status is 3.

  clipcap report captions.parquet --images photos --out report.html
  clipcap report before.parquet after.parquet --labels before,after --references dataset --images photos --out report.html

The worst come first: empty captions, loops, then the lowest score (CIDEr where there are references, else the log-probability per token). A \
caption that many images share is shown at the top. The keys y and n mark captions as good or bad; the browser keeps the marks, and \
\"Export marks\" writes them as a list:

  clipcap caption photos --model better --only report.marks.tsv --out again.parquet
  clipcap prepare ... --drop report.marks.tsv";

#[derive(clap::Args)]
#[command(after_long_help = MORE_HELP)]
pub struct ReportArgs {
    /// A caption table, or several (8 at most) to be shown side by side
    #[arg(value_name = "TABLE", required = true, num_args = 1..=report::MOST_TABLES)]
    tables: Vec<PathBuf>,
    /// References to show and score with: a dataset, a table, or COCO annotations
    #[arg(long, value_name = "DATASET|TABLE|JSON")]
    references: Option<PathBuf>,
    /// Where the images are: folders, or one dataset that stores them (default: the references, where they store images)
    #[arg(long, value_name = "DIR|DATASET", num_args = 1..)]
    images: Vec<PathBuf>,
    /// Names of the tables in the page (default: their file names)
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    labels: Vec<String>,
    /// Score and count by Han characters and Latin words, or by words as jieba cuts them
    #[arg(long, value_enum, default_value = "char")]
    tokens: Tokens,
    /// The encoding of caption files that are not UTF-8: gbk, gb18030, big5, utf-16 and so on
    #[arg(long, value_name = "NAME")]
    encoding: Option<Encoding>,
    /// Count Chinese characters and runs of ASCII letters and digits only (default: letters and digits of every script; on Chinese and ASCII text
    /// both are pycocoevalcap's scores)
    #[arg(long)]
    strict_tokens: bool,
    /// Pixels of a thumbnail's longer edge (default: as many of 256, 192, 160 and 128 as fit into one page)
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    edge: Option<u32>,
    /// JPEG quality of the thumbnails
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Maximum size of a page in megabytes
    #[arg(long, value_name = "MB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=2048))]
    page_mb: u64,
    /// Show N images, evenly spread over the table, and the worst ones (default: all)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_images: Option<u64>,
    /// Replace an existing file even if it is not a report
    #[arg(long)]
    overwrite: bool,
    /// Threads (default: every core)
    #[arg(long, value_parser = super::threads)]
    threads: Option<usize>,
    /// The page to write
    #[arg(long, value_name = "FILE.html")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Tokens {
    Char,
    Word,
}

impl Reads for ReportArgs {
    fn scope(&self, flag: &str) -> Scope {
        if flag == "tables" { Scope::WithBookkeeping } else { Scope::Whole }
    }
}

pub fn run(args: ReportArgs, context: &Context) -> anyhow::Result<Outcome> {
    keep_inputs([args.out.as_path()], args.tables.iter().chain(&args.references).map(PathBuf::as_path))?;
    if args.out.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("html")) {
        return Err(BadUsage(format!("--out {}: the name of a page ends in .html", args.out.display())).into());
    }
    if !args.labels.is_empty() && args.labels.len() != args.tables.len() {
        let (labels, tables) = (args.labels.len(), args.tables.len());
        return Err(BadUsage(format!("--labels has {labels} names, and there are {tables} tables")).into());
    }
    let settings = ReportSettings {
        tables: args.tables,
        labels: args.labels,
        references: args.references,
        images: args.images,
        level: match args.tokens {
            Tokens::Char => Level::Char,
            Tokens::Word => Level::Word,
        },
        letters: if args.strict_tokens { Letters::Strict } else { Letters::Every },
        encoding: args.encoding,
        edge: args.edge,
        quality: args.quality,
        page_bytes: args.page_mb << 20,
        max_images: args.max_images.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        overwrite: args.overwrite,
        out: args.out,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0)).build().context("cannot start threads")?;
    let Some(report) = pool.install(|| report::run(&settings, &context.terminal, &context.interrupt))? else {
        let outcome = Outcome::Interrupted;
        let json = json!({"command": "report", "exit_status": outcome.exit_code(), "complete": false});
        context.terminal.summary("interrupted: nothing was written", &json);
        return Ok(outcome);
    };
    context.terminal.summary(&report.to_text(), &report.to_json());
    Ok(report.outcome)
}
