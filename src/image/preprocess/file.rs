//! `preprocessor_config.json` as the releases of transformers write it.

use serde::Deserialize;
use serde_json::Value;

use super::PreprocessError;

/// The configuration as it is written.
#[derive(Deserialize)]
pub struct File {
    pub do_resize: Option<bool>,
    pub size: Option<Sides>,
    pub resample: Option<Value>,
    pub do_center_crop: Option<bool>,
    pub crop_size: Option<Sides>,
    pub do_rescale: Option<bool>,
    pub rescale_factor: Option<f64>,
    pub do_normalize: Option<bool>,
    pub image_mean: Option<Vec<f32>>,
    pub image_std: Option<Vec<f32>>,
}

/// A size as any release writes it; a bare number is a short side.
#[derive(Debug, Deserialize)]
#[serde(from = "SidesForm")]
pub struct Sides {
    pub shortest_edge: Option<u32>,
    pub longest_edge: Option<u32>,
    pub height: Option<u32>,
    pub width: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SidesForm {
    Number(u32),
    Names { shortest_edge: Option<u32>, longest_edge: Option<u32>, height: Option<u32>, width: Option<u32> },
}

impl From<SidesForm> for Sides {
    fn from(form: SidesForm) -> Self {
        match form {
            SidesForm::Number(edge) => Self { shortest_edge: Some(edge), longest_edge: None, height: None, width: None },
            SidesForm::Names { shortest_edge, longest_edge, height, width } => {
                Self { shortest_edge, longest_edge, height, width }
            }
        }
    }
}

impl Sides {
    pub fn unknown(&self, key: &'static str) -> PreprocessError {
        let expected = "a number, {\"shortest_edge\": N} or {\"height\": H, \"width\": W}";
        PreprocessError::Value { key, found: format!("{self:?}"), expected }
    }
}
