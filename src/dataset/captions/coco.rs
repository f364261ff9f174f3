//! COCO's documents: images in one array, captions of them in another.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::Columns;
use super::batch::{Bad, Reason};
use super::columns::FILE_NAMES;
use super::elements::Element;
use super::json::{ObjectLayout, missing, placed, whole};
use super::python::text;
use crate::dataset::naming::without_extension;
use crate::dataset::normalize::excerpt;

/// The `images` of a COCO document.
#[derive(Debug, Default)]
pub struct CocoImages {
    /// Id to (file name, split).
    pub files: HashMap<String, (String, String)>,
    /// Ids that several files have, with a second one.
    doubted: HashMap<String, String>,
    /// Ids without a file's name, as files for scores alone have them: the id is all there is.
    bare: HashSet<String>,
    /// There are some, so an id that is none of them names no image.
    listed: bool,
}

impl CocoImages {
    /// Takes elements of the array; gives those that are bad.
    pub fn add(&mut self, elements: &[Element], layout: &ObjectLayout) -> Vec<(u64, Bad)> {
        self.listed |= !elements.is_empty();
        let mut bad = Vec::new();
        for element in elements {
            let entry = whole(element, layout.take).and_then(|object| {
                let id = object.get("id").and_then(text).ok_or_else(|| missing(&object, "id"))?;
                let Some(file) = coco_file(&object, layout.columns) else {
                    let is_file = |value: &Value| value.as_str().is_some_and(|text| without_extension(text) != text);
                    if !object.values().any(is_file) {
                        self.bare.insert(id);
                    }
                    return Err(missing(&object, "file_name"));
                };
                let split = object.get("split").and_then(text).unwrap_or_default();
                Ok((id, (file, split)))
            });
            match entry {
                Ok((id, entry)) => match self.files.get(&id) {
                    Some((file, _)) if *file != entry.0 => drop(self.doubted.insert(id, entry.0)),
                    _ => drop(self.files.insert(id, entry)),
                },
                Err(error) => bad.push((element.line, placed(error, element))),
            }
        }
        bad
    }

    /// Why an annotation with this image_id is of no image: else the id would be taken for a file's name.
    pub fn refusal(&self, id: &str) -> Option<Bad> {
        let shown = |text: &str| excerpt(text.as_bytes(), 60);
        match (self.files.get(id), self.doubted.get(id)) {
            (Some((file, _)), Some(other)) => {
                let message =
                    format!("image_id {} is both {} and {} in this file's images", shown(id), shown(file), shown(other));
                Some(Bad::new(Reason::ImageConflict, message))
            }
            (None, _) if self.listed && !self.bare.contains(id) => {
                Some(Bad::new(Reason::MissingImage, format!("image_id {} is none of this file's images", shown(id))))
            }
            _ => None,
        }
    }
}

/// What a COCO image calls its file, also where a tool has renamed the member.
fn coco_file(object: &Map<String, Value>, columns: &Columns) -> Option<String> {
    let own = columns.image.as_deref();
    let names = own.into_iter().chain(["file_name"]).chain(FILE_NAMES).chain(["coco_url"]);
    names.filter_map(|name| object.get(name).and_then(text)).find(|file| !file.is_empty())
}
