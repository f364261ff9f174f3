//! Flags of which files are images and how they are read.

use std::path::PathBuf;

use crate::cli::BadUsage;
use crate::dataset::tar::expanded;
use crate::dataset::wanted::Wanted;
use crate::image::Limits;
use crate::pipeline::ImageReading;
use crate::remote;

/// How image files are read.
#[derive(clap::Args)]
pub(in crate::cli) struct ImageArgs {
    /// Column with the image bytes in Parquet inputs (bytes, or Hugging Face's struct<bytes, path>)
    #[arg(long, value_name = "COLUMN", alias = "image_column", default_value = "image", help_heading = "Images")]
    pub image_column: String,
    /// Ignore EXIF orientation
    #[arg(long, alias = "no_exif_rotate", help_heading = "Images")]
    pub no_exif_rotate: bool,
    /// Decode large JPEGs in full. By default they are decoded at 1/2, 1/4 or 1/8 size if that is at least twice the model's input size
    /// (full decoding is slower; embeddings differ in the fourth decimal)
    #[arg(long, alias = "full_decode", help_heading = "Images")]
    pub full_decode: bool,
    /// Fail damaged images that can be decoded in part (default: use them and mark them in the column "damaged")
    #[arg(long, alias = "fail_damaged", help_heading = "Images")]
    pub fail_damaged: bool,
    /// Fail images with more pixels than this
    #[arg(long, value_name = "N", alias = "max_pixels", default_value_t = Limits::default().max_pixels, help_heading = "Images")]
    pub max_pixels: u64,
    /// Fail image files with more bytes than this
    #[arg(long, value_name = "N", alias = "max_bytes", default_value_t = Limits::default().max_bytes, help_heading = "Images")]
    pub max_bytes: u64,
}

impl ImageArgs {
    pub fn reading(&self) -> ImageReading {
        ImageReading {
            limits: Limits { max_pixels: self.max_pixels, max_bytes: self.max_bytes },
            exif_rotate: !self.no_exif_rotate,
            full_decode: self.full_decode,
            fail_damaged: self.fail_damaged,
        }
    }
}

/// Which files of a folder are looked at.
#[derive(clap::Args)]
pub(in crate::cli) struct FileArgs {
    /// Include hidden files and folders (names that start with a dot, and @eaDir)
    #[arg(long, help_heading = "Files")]
    pub hidden: bool,
    /// Include only files that match this .gitignore-style pattern, such as '*.jpg' (repeatable)
    #[arg(long, value_name = "GLOB", help_heading = "Files")]
    pub include: Vec<String>,
    /// Exclude files and folders that match this pattern, such as 'thumbs/' or '*_small.*' (repeatable)
    #[arg(long, value_name = "GLOB", help_heading = "Files")]
    pub exclude: Vec<String>,
}

impl FileArgs {
    /// `of_folders`: whether files of folders are looked at; for other sources nothing can be chosen.
    pub fn wanted(&self, of_folders: bool) -> Result<Wanted, BadUsage> {
        let wanted = Wanted { hidden: self.hidden, include: self.include.clone(), exclude: self.exclude.clone() };
        if !of_folders && wanted != Wanted::default() {
            return Err(BadUsage(
                "--hidden, --include and --exclude choose among the files of folders, and none is given".into(),
            ));
        }
        wanted.check().map(|()| wanted).map_err(|error| BadUsage(error.to_string()))
    }
}

/// Parquet files that hold images, with patterns expanded; None where the paths are no such files.
pub(in crate::cli) fn parquet_source(paths: &[PathBuf], column: &str) -> anyhow::Result<Option<Vec<PathBuf>>> {
    let is_parquet = |path: &PathBuf| {
        let shown = PathBuf::from(remote::shown(path));
        shown.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
    };
    if !paths.iter().any(is_parquet) {
        return Ok(None);
    }
    if let Some(other) = paths.iter().find(|path| !is_parquet(path)) {
        let message =
            format!("{}: Parquet files (with a column {column} of images) are read by themselves", remote::shown(other));
        return Err(BadUsage(message).into());
    }
    let mut files = Vec::new();
    for path in paths {
        files.extend(expanded(path).map_err(|error| BadUsage(format!("{}: {error}", remote::shown(path))))?);
    }
    Ok(Some(files))
}
