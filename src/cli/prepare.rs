use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::ValueEnum;

use super::contract::Reads;
use super::{BadUsage, Context, keep_inputs};
use crate::dataset::captions::{CaptionError, Columns, Encoding, Format, Translation};
use crate::dataset::normalize::FoldWidth;
use crate::dataset::splits::{Ratios, canonical};
use crate::dataset::tar::{called_a_tar, expanded};
use crate::dataset::wanted::Wanted;
use crate::image::Limits;
use crate::pipeline::Reporter;
use crate::remote;
use crate::runtime::{Device, Precision, Runtime};
use crate::stages::Outcome;
use crate::stages::prepare::discover::{Discovery, Question, discover};
use crate::stages::prepare::{self, PrepareSettings, Scoring, Splits};
use crate::stages::score::ScorerModel;

/// What `--help` says below the flags.
const EXAMPLES: &str = "\
Examples:
  clipcap prepare flickr30k --dry-run                   # what is in the folder, and what would be used
  clipcap prepare flickr30k -o dataset
  clipcap prepare --captions train.txt val.txt test.txt --images photos/ -o dataset
  clipcap prepare --captions captions.csv --encoding gbk --images photos/ -o dataset
  clipcap prepare --captions captions.csv --columns image=file,caption=text --splits train=0.9,dev=0.05,test=0.05 -o dataset";

/// Read caption files and a folder of images into a dataset: captions.parquet, images.parquet and duplicates.parquet. Under .clipcap/ beside
/// it lie OUT.manifest.json and, where lines were bad, OUT.errors.parquet.
///
/// Caption files are read in any of these layouts, detected by content: flickr-cn (ID#lang#k words, also with word:tag), tsv
/// (image_id<TAB>caption<TAB>caption...), coco-cn (ID#k<TAB>caption), karpathy and coco JSON, csv with a header, jsonl (also metadata.jsonl), map
/// (JSON from id to captions), parquet. A list in a cell, as JSON or Python writes it, is several captions. If a row has both an id and a file
/// name, the file name decides which image it is. Bad lines go to the errors table with their file, line and reason and never stop the run; so
/// do names without an image file (missing_image) and names that could be several files (image_conflict).
///
/// With --scorer, captions.parquet has the column clip_score, and captions below --min-clip-score are in below_min_clip_score.parquet. An
/// interrupted run resumes from the scores it has.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("source").args(["folder", "captions", "images"]).required(true).multiple(true))]
pub struct PrepareArgs {
    /// A folder with captions and images; its layout is detected and reported (Flickr30k-CN, COCO-CN, Karpathy, COCO, imagefolder, kohya's
    /// sidecars, webdataset's tars, text tables). Without it, give --captions and --images
    #[arg(value_name = "FOLDER", conflicts_with_all = ["captions", "images"])]
    folder: Option<PathBuf>,
    /// Show what is in FOLDER and what would be used; write nothing
    #[arg(long, alias = "dry_run", requires = "folder")]
    dry_run: bool,
    /// Language to use if FOLDER has captions in several: zh, en, ja, ko, or all (default: zh)
    #[arg(long, value_name = "LANGUAGE", requires = "folder")]
    language: Option<String>,
    /// Folders of images, or webdataset's tars (set-{000..099}.tar), which stay packed: image_paths are TAR/MEMBER. Without it, captions are
    /// prepared without images. Reads headers only; damaged pixels are reported later, by `embed` or `caption`
    #[arg(long, value_name = "DIR", num_args = 1..)]
    images: Vec<PathBuf>,
    /// A file of URLs, one per line (s3://, gs://, az://, https://), in addition to --images or instead of it
    #[arg(long, value_name = "FILE")]
    urls: Option<PathBuf>,
    /// Caption files, in any order (default: the .txt and .json in the tars given as --images)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    captions: Vec<PathBuf>,
    /// Layout of the caption files: flickr-cn, tsv, coco-cn, karpathy, coco, csv, jsonl, map, parquet or webdataset (default: detected)
    #[arg(long)]
    format: Option<Format>,
    /// Columns of a csv (or fields of a jsonl) file, if their names are not recognized: image=A,caption=B[,caption=C][,split=D]
    #[arg(long, value_name = "image=A,caption=B")]
    columns: Option<Columns>,
    /// Who wrote the captions: human, machine or unknown (default: as the files and their names say)
    #[arg(long)]
    translation: Option<Translation>,
    /// The encoding of caption files that are not UTF-8: gbk, gb18030, big5, utf-16 and so on
    #[arg(long, value_name = "NAME")]
    encoding: Option<Encoding>,
    /// Fold full-width forms to ASCII: letters (and digits) or all (punctuation too)
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "all", default_value = "none")]
    fold_width: Fold,
    /// Splits by image: shares such as train=0.9,dev=0.05,test=0.05 (by a hash of the image_id, so that adding images moves none), or
    /// none (default: as the files say)
    #[arg(long, value_name = "SHARES|none")]
    splits: Option<String>,
    /// An official list of a split's images, one per line: train=FILE
    #[arg(long, value_name = "NAME=FILE")]
    split_list: Vec<String>,
    /// Seed of the shares
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Store the images' bytes too, in images-00000.parquet ...
    #[arg(long)]
    with_images: bool,
    /// Compare images by a perceptual hash and list pairs that differ in at most N of its 64 bits
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "3",
          value_parser = clap::value_parser!(u32).range(0..=16))]
    near_duplicates: Option<u32>,
    /// Add columns that mark suspicious captions: length, repetition, Latin words, no Chinese, duplicates
    #[arg(long)]
    lint: bool,
    /// Leave out the images in this list, and their captions: one image_id or image_path per line, or the list that a report exports (those marked n)
    #[arg(long, value_name = "LIST")]
    drop: Option<PathBuf>,
    /// Score captions against their images with this bundle or CLIP folder with a text tower: adds the column clip_score
    #[arg(long, value_name = "CLIP|BUNDLE", help_heading = "Scoring")]
    scorer: Option<PathBuf>,
    /// Move captions with a clip_score below X to below_min_clip_score.parquet; captions of missing images stay
    #[arg(long, value_name = "X", requires = "scorer", help_heading = "Scoring", value_parser = super::caption::min_score)]
    min_clip_score: Option<f64>,
    /// Device of the scorer: auto, cpu, openvino, cuda or cuda:N
    #[arg(long, default_value = "auto", help_heading = "Scoring")]
    device: Device,
    #[command(flatten)]
    files: super::caption::FileArgs,
    /// Fail images with more pixels than this
    #[arg(long, default_value_t = Limits::default().max_pixels)]
    max_pixels: u64,
    /// Fail image files with more bytes than this
    #[arg(long, default_value_t = Limits::default().max_bytes)]
    max_bytes: u64,
    /// Exit with status 1 if more than this share of lines and images is bad
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = super::caption::share)]
    max_error_rate: f64,
    /// Overwrite the output, even if other settings made it or the folder holds other files
    #[arg(long)]
    overwrite: bool,
    /// Threads (default: every core)
    #[arg(long, value_parser = super::threads)]
    threads: Option<usize>,
    /// The dataset's folder
    #[arg(long, value_name = "DATASET", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Fold {
    None,
    Letters,
    All,
}

impl Reads for PrepareArgs {
    fn names_files(&self, flag: &str) -> bool {
        flag == "split_list"
    }
}

pub fn run(mut args: PrepareArgs, context: &Context) -> anyhow::Result<Outcome> {
    args.images.extend(args.urls.as_deref().map(remote::list_of_urls));
    let out = args.out.clone().unwrap_or_default();
    let made = ["captions", "images", "errors", "duplicates"].map(|table| out.join(format!("{table}.parquet")));
    if args.out.is_some() {
        keep_inputs(
            made.iter().map(PathBuf::as_path),
            args.captions.iter().chain(&args.drop).chain(&args.scorer).map(PathBuf::as_path),
        )?;
    }
    let wanted = args.files.wanted(args.folder.is_some() || !args.images.is_empty())?;
    let found = match &args.folder {
        Some(folder) => Some(discovered(folder, &out, &args, wanted.clone())?),
        None => None,
    };
    if let Some(found) = found.as_ref().filter(|_| args.dry_run) {
        context.terminal.result(&found.to_text(), &found.to_json());
        return Ok(Outcome::Complete);
    }
    if let Some(found) = &found {
        context.terminal.note(found.to_text().trim_end());
        args.images.clone_from(&found.roots);
        args.captions.clone_from(&found.captions);
        args.columns = Some(found.columns.clone());
        args.encoding = found.encoding;
    }
    let needs_images = if args.with_images { Some("--with-images") } else { args.near_duplicates.map(|_| "--near-duplicates") };
    let needs_images = needs_images.or(args.scorer.as_ref().map(|_| "--scorer"));
    if let Some(flag) = needs_images.filter(|_| args.images.is_empty()) {
        return Err(BadUsage(format!("{flag} needs images: give their folder with --images")).into());
    }
    let mut splits = splits(&args)?;
    splits.lists.extend(found.iter().flat_map(|found| found.split_lists.iter().cloned()));
    let mut scorer = match &args.scorer {
        None => None,
        Some(path) => {
            let model = Arc::new(ScorerModel::open(path)?);
            let runtime = Runtime::start(super::on_one_card(args.device)?, Precision::Fp32, args.threads)?;
            Some(model.load(&runtime, Some(super::caption::default_batch_size(runtime.device())))?)
        }
    };
    let scoring =
        scorer.as_ref().map(|scorer| Scoring { scorer: scorer.model.identity.clone(), min_clip_score: args.min_clip_score });
    let settings = PrepareSettings {
        scoring,
        wanted,
        splits,
        folders: found.as_ref().map(|found| found.folders.clone()).unwrap_or_default(),
        captions: captions(&args)?,
        images: args.images,
        format: args.format,
        columns: args.columns.unwrap_or_default(),
        fold: match args.fold_width {
            Fold::None => FoldWidth::None,
            Fold::Letters => FoldWidth::Letters,
            Fold::All => FoldWidth::All,
        },
        translation: args.translation,
        encoding: args.encoding,
        with_images: args.with_images,
        near_duplicates: args.near_duplicates,
        lint: args.lint,
        drop: args.drop,
        limits: Limits { max_pixels: args.max_pixels, max_bytes: args.max_bytes },
        overwrite: args.overwrite,
        max_error_rate: args.max_error_rate,
        out,
    };
    // Where files are elsewhere, most threads wait.
    let threads = if remote::any(&settings.images) { remote::readers() } else { 0 };
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(threads)).build().context("cannot start threads")?;
    let result = pool.install(|| prepare::run(&settings, scorer.as_mut(), &context.terminal, &context.interrupt));
    let (outcome, summary) = result.map_err(|error| match error.downcast_ref::<CaptionError>() {
        Some(CaptionError::Twice(_)) => BadUsage(error.to_string()).into(),
        _ => error,
    })?;
    if outcome != Outcome::Interrupted {
        context.terminal.summary(&summary.to_text(), &summary.to_json().into());
    }
    Ok(outcome)
}

/// The caption files, with patterns expanded; where none is given, the tars of images hold them.
fn captions(args: &PrepareArgs) -> anyhow::Result<Vec<PathBuf>> {
    let given = if args.captions.is_empty() { &args.images } else { &args.captions };
    let mut files = Vec::new();
    for path in given {
        files.extend(expanded(path).map_err(|error| BadUsage(format!("{}: {error}", remote::shown(path))))?);
    }
    if args.captions.is_empty() {
        files.retain(|path| called_a_tar(path) && !path.is_dir());
        if files.is_empty() {
            return Err(BadUsage("--captions says where the captions are (tars given as --images hold their own)".into()).into());
        }
    }
    Ok(files)
}

/// What lies in the folder.
fn discovered(folder: &Path, out: &Path, args: &PrepareArgs, wanted: Wanted) -> anyhow::Result<Discovery> {
    let question = Question {
        folder: folder.into(),
        out: out.into(),
        language: args.language.clone(),
        format: args.format,
        columns: args.columns.clone().unwrap_or_default(),
        encoding: args.encoding,
        wanted,
    };
    discover(&question)
}

fn splits(args: &PrepareArgs) -> anyhow::Result<Splits> {
    let mut splits = Splits { seed: args.seed, ..Splits::default() };
    match args.splits.as_deref() {
        None => {}
        Some("none") => splits.none = true,
        Some(shares) => splits.ratios = Some(shares.parse::<Ratios>().map_err(|e| BadUsage(format!("--splits: {e}")))?),
    }
    for list in &args.split_list {
        let (name, path) = list
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| BadUsage(format!("--split-list {list}: write NAME=FILE, such as train=train.txt")))?;
        splits.lists.push((canonical(name), path.into()));
    }
    Ok(splits)
}
