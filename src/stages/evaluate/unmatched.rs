//! The errors table of an evaluation: each image that only one side has, or that could be several of the other side, with both sides.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::captions::ImageCaptions;
use super::matching::Matching;
use crate::dataset::naming::{last_part, without_extension};
use crate::pipeline::{ErrorsTable, Failure, Output};

/// An image that is not scored: what it is called, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    pub image_path: String,
    pub failure: Failure,
}

/// Others of the same name that a message names.
const MOST_RIVALS: usize = 3;

/// Which side an image is on, and what the other is called.
struct Side {
    own: &'static str,
    other: &'static str,
    missing: &'static str,
}

/// Everything that found no partner, predictions first.
pub fn unmatched(matching: &Matching, predictions: &[ImageCaptions], references: &[ImageCaptions]) -> Vec<Unmatched> {
    let of_references = Side { own: "reference", other: "prediction", missing: "missing_prediction" };
    let of_predictions = Side { own: "prediction", other: "reference", missing: "missing_reference" };
    let mut found = side(&of_predictions, &matching.unmatched_predictions, predictions, references);
    found.extend(side(&of_references, &matching.unmatched_references, references, predictions));
    found
}

/// An image that the second table lacks.
pub fn not_compared(image: &ImageCaptions) -> Unmatched {
    let message = format!("the second table has no caption of {}", name(image));
    Unmatched { image_path: name(image).into(), failure: Failure { reason: "missing_compared".into(), message } }
}

fn side(side: &Side, left_over: &[usize], images: &[ImageCaptions], others: &[ImageCaptions]) -> Vec<Unmatched> {
    let mut by_name: HashMap<&str, Vec<&str>> = HashMap::new();
    if !left_over.is_empty() {
        others.iter().for_each(|other| by_name.entry(key(other)).or_default().push(name(other)));
    }
    let Side { own, other, missing } = side;
    let tell = |&at: &usize| {
        let image = &images[at];
        let called = name(image);
        let (reason, message) = match by_name.get(key(image)).map(Vec::as_slice) {
            None | Some([]) => (*missing, format!("there is no {other} for {called}")),
            Some(rivals) => {
                let more =
                    if rivals.len() > MOST_RIVALS { format!(" and {} more", rivals.len() - MOST_RIVALS) } else { String::new() };
                let rivals = rivals.iter().take(MOST_RIVALS).copied().collect::<Vec<_>>().join(", ");
                let message = format!(
                    "the {own} {called} is not for certain the same image as the {other} {rivals}{more}: names or folders differ, or others \
                     have the name too; write the same paths on both sides"
                );
                ("image_conflict", message)
            }
        };
        Unmatched { image_path: called.into(), failure: Failure { reason: reason.into(), message } }
    };
    left_over.iter().map(tell).collect()
}

/// The file where one is named, else the id.
fn name(image: &ImageCaptions) -> &str {
    image.alias.as_deref().unwrap_or(&image.id)
}

fn key(image: &ImageCaptions) -> &str {
    last_part(without_extension(name(image)))
}

/// Writes the errors table that lies beside a file of scores, in the schema of all errors tables; without rows there is none.
///
/// # Errors
/// The disk refuses.
pub fn write(rows: &[Unmatched], out: &Path) -> Result<()> {
    let path = Output::file(out).errors();
    if rows.is_empty() {
        let _ = std::fs::remove_file(&path);
    }
    let mut table = ErrorsTable::new(path.clone());
    for row in rows {
        table.add(&row.image_path, &row.failure)?;
    }
    table.finish().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::matching::match_images;
    use super::*;

    #[test]
    fn both_sides_are_told() {
        let image =
            |path: &str| ImageCaptions { id: without_extension(path).into(), alias: Some(path.into()), ..Default::default() };
        let images = |paths: &[&str]| paths.iter().map(|path| image(path)).collect::<Vec<_>>();
        let (predictions, references) = (images(&["a.jpg", "train/1.png", "x.jpg"]), images(&["a.jpg", "val/1.png", "y.jpg"]));
        let found = unmatched(&match_images(&predictions, &references), &predictions, &references);
        let rows: Vec<_> = found.iter().map(|row| (row.image_path.as_str(), row.failure.reason.as_str())).collect();
        let expected = [
            ("train/1.png", "image_conflict"),
            ("x.jpg", "missing_reference"),
            ("val/1.png", "image_conflict"),
            ("y.jpg", "missing_prediction"),
        ];
        assert_eq!(rows, expected);
        let message = &found[0].failure.message;
        assert!(message.contains("train/1.png") && message.contains("val/1.png"), "{message}");
    }
}
