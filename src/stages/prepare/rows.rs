//! The rows of a dataset's tables, and the tables themselves.

use std::path::Path;

use anyhow::{Context, Result};

use super::images::Found;
use crate::bookkeeping;
use crate::dataset::assemble::Assembled;
use crate::dataset::captions::BadLine;
use crate::dataset::lint::{Lint, lint};
use crate::dataset::tables::{self, ErrorRow, ImageRow};
use crate::files::{AtomicFile, write_atomic, write_json};
use crate::pipeline::Settings;
use crate::table::{self, TableError};

/// Writes the tables and the manifest. Small ones are on their way to the disk while the captions are compressed.
pub fn write_tables(
    folder: &Path,
    set: &Assembled,
    rows: &[ImageRow],
    marks: Option<&[Lint]>,
    scores: Option<&[Option<f32>]>,
    twins: &[tables::DuplicateRow],
    with_images: bool,
    manifest: &Manifest,
) -> Result<()> {
    let errors = error_rows(set);
    let configs = [
        ("captions", "captions.parquet"),
        ("images", "images.parquet"),
        ("duplicates", "duplicates.parquet"),
        ("pictures", "images-*.parquet"),
    ];
    let configs = &configs[..if with_images { 4 } else { 3 }];
    let at = |name: &str| folder.join(name);
    std::thread::scope(|scope| -> Result<()> {
        let commit = |file: AtomicFile| scope.spawn(move || file.commit());
        let (captions, others) = rayon::join(
            || -> Result<_> { Ok(tables::write_captions(&at("captions.parquet"), set, marks, scores)?.commit()?) },
            || -> Result<_, TableError> {
                let mut commits = vec![
                    commit(tables::write_images(&at("images.parquet"), rows)?),
                    commit(tables::write_duplicates(&at("duplicates.parquet"), twins)?),
                    scope.spawn(|| write_json(&at(bookkeeping::MANIFEST), manifest)),
                    scope.spawn(|| write_atomic(&at(table::CONFIGS), table::configs(configs).as_bytes())),
                ];
                if !errors.is_empty() {
                    commits.push(commit(tables::write_errors(&at(bookkeeping::ERRORS), &errors)?));
                }
                Ok(commits)
            },
        );
        captions?;
        Ok(others?.into_iter().try_for_each(|commit| commit.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))?)
    })
    .with_context(|| format!("cannot write to {}", folder.display()))
}

#[derive(serde::Serialize)]
pub struct Manifest {
    #[serde(rename = "clipcap.format")]
    pub format: &'static str,
    #[serde(rename = "clipcap.version")]
    pub version: &'static str,
    #[serde(flatten)]
    pub settings: Settings,
    #[serde(flatten)]
    pub found: serde_json::Map<String, serde_json::Value>,
}

pub fn image_rows<'a>(set: &'a Assembled, folder: Option<&'a [Found]>) -> Vec<ImageRow<'a>> {
    set.images
        .iter()
        .map(|image| {
            let known = image.listed.and_then(|at| folder.map(|f| &f[at]));
            let mut row = ImageRow {
                image_id: &image.id,
                status: if folder.is_some() { "missing" } else { "unchecked" },
                split: image.split.as_deref(),
                num_captions: image.captions as i32,
                file_name: image.reference.as_deref(),
                ..ImageRow::default()
            };
            if let Some(found) = known {
                row.image_path = Some(&found.image_path);
                row.status = if found.failure.is_some() { "failed" } else { "ok" };
                row.reason = found.failure.as_ref().map(|failure| failure.reason.as_str());
                row.sha256 = found.content.as_ref().map(|content| content.sha256);
                row.bytes = found.content.as_ref().map(|content| content.bytes as i64);
                row.width = found.size.map(|(width, _)| width as i32);
                row.height = found.size.map(|(_, height)| height as i32);
            }
            row
        })
        .collect()
}

pub fn lint_all(set: &Assembled) -> Vec<Lint> {
    let texts: Vec<&str> = (0..set.places.len()).map(|at| set.caption(at)).collect();
    lint(&texts, |at| set.places[at].image == set.places[at - 1].image)
}

fn error_rows(set: &Assembled) -> Vec<ErrorRow<'_>> {
    let mut lines: Vec<&BadLine> = set.captions.bad.iter().chain(&set.unplaced).collect();
    lines.sort_by_key(|line| (line.file, line.line));
    lines
        .into_iter()
        .map(|line| ErrorRow {
            file: &set.captions.files[line.file as usize].source,
            line: line.line as i64,
            reason: line.bad.reason.name(),
            message: &line.bad.message,
        })
        .collect()
}
