//! Caption files of every layout, for every command: good lines become rows, bad ones say why, and every line is counted.
//!
//! To add a layout: a variant of [`Format`], its mark in `detect`, and a parser that pushes [`batch::Fields`] into a [`Batch`].

mod batch;
mod cells;
mod coco;
mod columns;
mod detect;
mod elements;
mod encoding;
mod json;
mod lines;
mod map;
mod parquet;
mod python;
mod read;
mod reader;
mod rows;
mod source;
mod table;
mod text;
mod webdataset;

use crate::remote;
use std::path::PathBuf;
use std::str::FromStr;

pub use batch::{Bad, Batch, Details, Reason, Row, Span};
pub use encoding::{Encoding, likely_encoding};
pub use parquet::{read_table, tables_of};
pub use read::{BadLine, Captions, FileReport, ReadOptions, read_captions};
pub use rows::CaptionRows;
pub use source::source_names;
pub use table::header_names;

/// How caption files are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `ID#lang#k<SPACE or TAB>segmented words`, with `word:tag` in test files.
    FlickrCn,
    /// `image_id<TAB>caption`.
    Tsv,
    /// `ID#k<TAB>caption`.
    CocoCn,
    /// Karpathy's `dataset_*.json`: images with sentences and splits.
    Karpathy,
    /// COCO's `captions_*.json`: images and annotations.
    Coco,
    /// A table of text with a header.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// JSON that maps an id to a caption or a list of them.
    Map,
    /// A Parquet table.
    Parquet,
    /// Tars of pictures with `.txt` and `.json`.
    #[serde(rename = "webdataset")]
    WebDataset,
}

named!(
    Format,
    "a layout",
    FlickrCn = "flickr-cn",
    Tsv = "tsv",
    CocoCn = "coco-cn",
    Karpathy = "karpathy",
    Coco = "coco",
    Csv = "csv",
    Jsonl = "jsonl",
    Map = "map",
    Parquet = "parquet",
    WebDataset = "webdataset",
);

/// Whether a caption was written (or translated) by a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Translation {
    Human,
    Machine,
    #[default]
    Unknown,
}

impl Translation {
    /// What the language mark of the Flickr8k-CN, Flickr30k-CN and COCO-CN files says: `zhm` translated by hand, `zhc` written by
    /// the crowd, `zhb` and `zhg` by the translators of Baidu and Google.
    fn of_mark(mark: &str) -> Self {
        match mark {
            "zhm" | "zhc" => Self::Human,
            "zhb" | "zhg" => Self::Machine,
            _ => Self::Unknown,
        }
    }
}

named!(Translation, "a kind of translation", Human = "human", Machine = "machine", Unknown = "unknown");

/// `--columns image=A,caption=B[,split=C]`: which columns (or JSON fields) hold what. `caption` may come several times.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Columns {
    pub image: Option<String>,
    pub captions: Vec<String>,
    pub split: Option<String>,
}

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("image", name)) if columns.image.is_none() => columns.image = Some(name.into()),
                Some(("caption", name)) => columns.captions.push(name.into()),
                Some(("split", name)) if columns.split.is_none() => columns.split = Some(name.into()),
                _ => return Err(format!("{part}: write image=A,caption=B, and split=C where there is one")),
            }
        }
        Ok(columns)
    }
}

/// Why a caption file could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum CaptionError {
    #[error("{}: {source}", remote::shown(path))]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", remote::shown(path))]
    Layout { path: PathBuf, message: String },
    #[error(transparent)]
    Table(#[from] crate::table::TableError),
    #[error("{0} is given twice")]
    Twice(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for &format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        assert!("xml".parse::<Format>().unwrap_err().contains("flickr-cn"));
    }

    #[test]
    fn columns_by_name() {
        let columns: Columns = "image=file,caption=zh,caption=zh2,split=s".parse().unwrap();
        assert_eq!((columns.image.as_deref(), columns.captions.len(), columns.split.as_deref()), (Some("file"), 2, Some("s")));
        assert!("image".parse::<Columns>().is_err());
        assert!("picture=a".parse::<Columns>().is_err());
    }
}
