use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, check, read_json};

/// `preprocessor_config.json`: how an image becomes pixel_values [3, S, S].
///
/// Old files write `size` and `crop_size` as numbers, newer ones as objects; both are read, and the newer form is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreprocessorConfig {
    pub do_resize: bool,
    /// Length of the shorter side after the resize, in pixels.
    #[serde(deserialize_with = "shorter_side", serialize_with = "as_shortest_edge")]
    pub size: usize,
    /// Pillow's number of the filter; 3 is bicubic.
    pub resample: u32,
    pub do_center_crop: bool,
    /// Side of the square that is cut out, in pixels.
    #[serde(deserialize_with = "square_side", serialize_with = "as_square")]
    pub crop_size: usize,
    pub do_rescale: bool,
    /// What a byte is multiplied by.
    pub rescale_factor: f64,
    pub do_normalize: bool,
    /// Subtracted from each channel (R, G, B) after rescaling.
    pub image_mean: [f64; 3],
    /// Each channel is divided by it.
    pub image_std: [f64; 3],
    pub do_convert_rgb: bool,
}

impl Default for PreprocessorConfig {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: 224,
            resample: 3,
            do_center_crop: true,
            crop_size: 224,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
            do_convert_rgb: true,
        }
    }
}

impl PreprocessorConfig {
    /// CLIP's own, for square images of this side.
    pub fn for_image_size(side: usize) -> Self {
        Self { size: side, crop_size: side, ..Self::default() }
    }

    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = read_json(path)?;
        config.validate(path)?;
        Ok(config)
    }

    /// Refuses what is not CLIP's way of preparing an image, so that nothing is prepared wrongly in silence.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        check(path, self.do_resize && self.do_center_crop, || "do_resize and do_center_crop must be true".into())?;
        check(path, self.do_rescale && self.do_normalize, || "do_rescale and do_normalize must be true".into())?;
        check(path, self.resample == 3, || format!("resample is {}; CLIP's is 3 (bicubic)", self.resample))?;
        check(path, (1..=1 << 14).contains(&self.size) && (1..=self.size).contains(&self.crop_size), || {
            format!("size {} and crop_size {} do not fit", self.size, self.crop_size)
        })?;
        check(path, self.image_std.iter().all(|&std| std.is_finite() && std > 0.0), || "image_std must be positive".into())?;
        check(path, self.image_mean.iter().all(|mean| mean.is_finite()), || "image_mean must be finite".into())?;
        check(path, self.rescale_factor.is_finite() && self.rescale_factor > 0.0, || "rescale_factor must be positive".into())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Side {
    Number(usize),
    ShortestEdge { shortest_edge: usize },
    Box { height: usize, width: usize },
}

fn shorter_side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match Side::deserialize(deserializer)? {
        Side::Number(side) | Side::ShortestEdge { shortest_edge: side } => Ok(side),
        Side::Box { .. } => {
            Err(serde::de::Error::custom("size with height and width changes an image's proportions; CLIP's is shortest_edge"))
        }
    }
}

fn square_side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match Side::deserialize(deserializer)? {
        Side::Number(side) | Side::ShortestEdge { shortest_edge: side } => Ok(side),
        Side::Box { height, width } if height == width => Ok(height),
        Side::Box { height, width } => {
            Err(serde::de::Error::custom(format!("{height} x {width} is not square, which CLIP's preprocessing needs")))
        }
    }
}

fn as_shortest_edge<S: serde::Serializer>(side: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    serde_json::json!({"shortest_edge": side}).serialize(serializer)
}

fn as_square<S: serde::Serializer>(side: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    serde_json::json!({"height": side, "width": side}).serialize(serializer)
}
