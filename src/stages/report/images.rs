//! The images of one caption table or of several, with the references that belong to them.

use anyhow::{Result, bail};

use crate::stages::evaluate::captions::{CaptionSet, Details, ImageCaptions};
use crate::stages::evaluate::matching::match_images;

/// An image and everything that is known of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    pub id: String,
    /// The image_path; the id where the tables give none.
    pub path: String,
    /// Hash of the content that was captioned.
    pub sha256: Option<String>,
    pub split: Option<String>,
    /// One for each table, without captions where the table lacks the image.
    pub tables: Vec<TableCaptions>,
    pub references: Vec<String>,
}

/// One table's captions of an image; the three lists have one entry a caption.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableCaptions {
    pub captions: Vec<String>,
    pub details: Vec<Details>,
    /// Empty until they are measured.
    pub figures: Vec<Figures>,
}

/// What is measured of a caption.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Characters or words.
    pub length: usize,
    /// Share of 4-grams that stood in the caption before.
    pub repetition: f64,
    /// CIDEr and ROUGE-L, where the image is scored.
    pub scores: Option<[f64; 2]>,
}

/// What had no counterpart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unmatched {
    /// Images without a reference, though references were given.
    pub images: usize,
    /// Images with references and no caption.
    pub references: usize,
    /// Images that not every table has.
    pub in_one_table: usize,
}

impl Image {
    /// Whether every table has a caption and there is a reference to compare with.
    pub fn is_scored(&self) -> bool {
        !self.references.is_empty() && self.tables.iter().all(|table| !table.captions.is_empty())
    }

    /// The first caption's figures, the first table's where there are several.
    pub fn first_figures(&self) -> Option<&Figures> {
        self.tables.iter().find_map(|table| table.figures.first())
    }

    /// The worst repetition of all captions.
    pub fn repetition(&self) -> f64 {
        self.tables.iter().flat_map(|table| &table.figures).map(|figures| figures.repetition).fold(0.0, f64::max)
    }
}

/// Puts tables and references together, image by image, sorted by id. Ids are matched as `evaluate` does.
pub fn gather(tables: Vec<CaptionSet>, references: Option<CaptionSet>) -> Result<(Vec<Image>, Unmatched)> {
    let num_tables = tables.len();
    let (mut keys, mut images): (Vec<ImageCaptions>, Vec<Image>) = (Vec::new(), Vec::new());
    for (number, table) in tables.into_iter().enumerate() {
        let pairs = match_images(&table.images, &keys).pairs;
        let mut places = vec![None; table.images.len()];
        for (theirs, ours) in pairs {
            places[theirs] = Some(ours);
        }
        for (found, place) in table.images.into_iter().zip(places) {
            let place = place.unwrap_or_else(|| {
                keys.push(ImageCaptions { id: found.id.clone(), alias: found.alias.clone(), ..Default::default() });
                images.push(Image { tables: vec![TableCaptions::default(); num_tables], ..Image::default() });
                images.len() - 1
            });
            add(&mut images[place], number, found);
        }
    }
    let mut unmatched = Unmatched {
        in_one_table: images.iter().filter(|image| image.tables.iter().any(|table| table.captions.is_empty())).count(),
        ..Unmatched::default()
    };
    if let Some(references) = references.filter(|_| !images.is_empty()) {
        let matching = match_images(&keys, &references.images);
        if matching.pairs.is_empty() {
            bail!(
                "no image has a reference: the tables have ids such as {}, the references such as {}",
                example(&keys),
                example(&references.images)
            );
        }
        unmatched.images = matching.unmatched_predictions.len();
        unmatched.references = matching.unmatched_references.len();
        let mut found: Vec<Option<ImageCaptions>> = references.images.into_iter().map(Some).collect();
        for (ours, theirs) in matching.pairs {
            let Some(reference) = found[theirs].take() else { continue };
            images[ours].references = reference.captions;
            images[ours].split = images[ours].split.take().or(reference.split);
        }
    }
    images.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((images, unmatched))
}

fn add(image: &mut Image, table: usize, found: ImageCaptions) {
    if image.id.is_empty() {
        image.path = found.path.or(found.alias).unwrap_or_else(|| found.id.clone());
        image.id = found.id;
    }
    image.sha256 = image.sha256.take().or(found.sha256);
    image.split = image.split.take().or(found.split);
    image.tables[table] = TableCaptions { captions: found.captions, details: found.details, figures: Vec::new() };
}

fn example(images: &[ImageCaptions]) -> String {
    images.iter().take(3).map(|image| image.id.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(images: &[(&str, Option<&str>, &[&str])]) -> CaptionSet {
        let image = |(id, alias, captions): &(&str, Option<&str>, &[&str])| ImageCaptions {
            id: (*id).into(),
            alias: alias.map(Into::into),
            captions: captions.iter().map(|c| c.to_string()).collect(),
            details: vec![Details::default(); captions.len()],
            ..Default::default()
        };
        CaptionSet::new(images.iter().map(image).collect())
    }

    #[test]
    fn tables_and_references_meet_by_name() {
        let first = set(&[("b", Some("x/b.jpg"), &["一", "二"]), ("c", Some("c.png"), &["三"])]);
        let second = set(&[("a.jpg", None, &["四"]), ("x/b.jpg", None, &["五"])]);
        let references = set(&[("b", None, &["六", "七"]), ("z", None, &["八"])]);
        let (images, unmatched) = gather(vec![first, second], Some(references)).unwrap();
        let lines: Vec<String> = images
            .iter()
            .map(|i| {
                let tables: Vec<String> = i.tables.iter().map(|t| t.captions.join(",")).collect();
                format!("{} {} {} {} {}", i.id, i.path, tables.join("|"), i.references.join(","), i.is_scored())
            })
            .collect();
        assert_eq!(lines, ["a.jpg a.jpg |四  false", "b x/b.jpg 一,二|五 六,七 true", "c c.png 三|  false"]);
        assert_eq!(unmatched, Unmatched { images: 2, references: 1, in_one_table: 2 });
    }

    #[test]
    fn references_of_something_else_are_refused() {
        let error = gather(vec![set(&[("a", None, &["一"])])], Some(set(&[("q", None, &["二"])]))).unwrap_err().to_string();
        assert!(error.contains(" a,") && error.contains(" q"), "{error}");
    }
}
