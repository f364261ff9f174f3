use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::spelling::{check_spelling, keys_of};
use super::{ConfigError, check, read_json};

/// `preprocessor_config.json`: how an image becomes pixel_values [3, S, S].
///
/// Old files write `size` and `crop_size` as numbers, newer ones as objects; both are read, and the newer form is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreprocessorConfig {
    pub do_resize: bool,
    pub size: Resize,
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

/// The size of the resized picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Of the shorter side; the longer one keeps the proportion.
    ShortestEdge(usize),
    /// Of the longer side; what is missing to the crop is black (open_clip's resize_mode `longest`).
    LongestEdge(usize),
    /// Of both sides, whatever the proportion.
    Exact { height: usize, width: usize },
}

impl PreprocessorConfig {
    /// CLIP's own, for square images of this side.
    pub fn for_image_size(side: usize) -> Self {
        Self {
            do_resize: true,
            size: Resize::ShortestEdge(side),
            resample: 3,
            do_center_crop: true,
            crop_size: side,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
            do_convert_rgb: true,
        }
    }

    /// Reads a file of Hugging Face; what it does not say is CLIP's own for 224 pixels.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_over(path, &Self::for_image_size(224))
    }

    /// Reads a file of Hugging Face; what it does not say is as in `usual`, which is the family's.
    pub fn read_over(path: &Path, usual: &Self) -> Result<Self, ConfigError> {
        let said: Value = read_json(path)?;
        check(path, said.is_object(), || "not a preprocessor configuration: an object is expected".into())?;
        check_spelling(path, &said, &keys_of(usual))?;
        let mut merged = json!(usual);
        for (key, value) in merged.as_object_mut().into_iter().flatten() {
            if let Some(said) = said.get(key).filter(|said| !said.is_null()) {
                *value = said.clone();
            }
        }
        let config: Self = serde_json::from_value(merged).map_err(|source| ConfigError::Json { path: path.into(), source })?;
        config.validate(path)?;
        Ok(config)
    }

    /// Side of the square that comes out; 0 where it is not one.
    pub fn side(&self) -> usize {
        match self.size {
            _ if self.do_center_crop => self.crop_size,
            Resize::Exact { height, width } if height == width => height,
            _ => 0,
        }
    }

    /// Refuses what is not a way of preparing an image that is known, so that nothing is prepared wrongly in silence.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        check(path, self.do_resize, || "do_resize must be true".into())?;
        check(path, self.do_rescale && self.do_normalize, || "do_rescale and do_normalize must be true".into())?;
        check(path, (1..=5).contains(&self.resample), || {
            format!(
                "resample is {}; 1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) and 5 (Hamming) are supported",
                self.resample
            )
        })?;
        let sizes = match self.size {
            Resize::ShortestEdge(side) | Resize::LongestEdge(side) => [side, side],
            Resize::Exact { height, width } => [height, width],
        };
        let cropped = match self.size {
            Resize::LongestEdge(_) => self.do_center_crop,
            Resize::ShortestEdge(_) => self.do_center_crop && self.crop_size <= sizes[0],
            Resize::Exact { .. } => !self.do_center_crop || sizes.iter().all(|&side| self.crop_size <= side),
        };
        let bounded = sizes.iter().chain([&self.crop_size]).all(|side| (1..=1 << 14).contains(side));
        check(path, bounded && cropped && self.side() > 0, || {
            let crop = if self.do_center_crop { format!("crop_size {}", self.crop_size) } else { "no crop".into() };
            format!("size {} and {crop} do not make square pictures of one size", json!(self.size))
        })?;
        check(path, self.image_std.iter().all(|&std| std.is_finite() && std > 0.0), || "image_std must be positive".into())?;
        check(path, self.image_mean.iter().all(|mean| mean.is_finite()), || "image_mean must be finite".into())?;
        check(path, self.rescale_factor.is_finite() && self.rescale_factor > 0.0, || "rescale_factor must be positive".into())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Sides {
    Number(usize),
    Names { shortest_edge: Option<usize>, longest_edge: Option<usize>, height: Option<usize>, width: Option<usize> },
}

impl<'de> Deserialize<'de> for Resize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Sides::deserialize(deserializer)? {
            Sides::Number(side) => Ok(Self::ShortestEdge(side)),
            Sides::Names { shortest_edge: Some(side), longest_edge: None, height: None, width: None } => {
                Ok(Self::ShortestEdge(side))
            }
            Sides::Names { longest_edge: Some(side), shortest_edge: None, height: None, width: None } => {
                Ok(Self::LongestEdge(side))
            }
            Sides::Names { height: Some(height), width: Some(width), shortest_edge: None, longest_edge: None } => {
                Ok(Self::Exact { height, width })
            }
            Sides::Names { .. } => Err(serde::de::Error::custom(
                "size must be a number, {\"shortest_edge\": N}, {\"longest_edge\": N} or {\"height\": H, \"width\": W}",
            )),
        }
    }
}

impl Serialize for Resize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ShortestEdge(side) => json!({"shortest_edge": side}),
            Self::LongestEdge(side) => json!({"longest_edge": side}),
            Self::Exact { height, width } => json!({"height": height, "width": width}),
        }
        .serialize(serializer)
    }
}

fn square_side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match Sides::deserialize(deserializer)? {
        Sides::Number(side) | Sides::Names { shortest_edge: Some(side), height: None, width: None, .. } => Ok(side),
        Sides::Names { height: Some(height), width: Some(width), .. } if height == width => Ok(height),
        Sides::Names { height: Some(height), width: Some(width), .. } => {
            Err(serde::de::Error::custom(format!("{height} x {width} is not square, which CLIP's preprocessing needs")))
        }
        Sides::Names { .. } => Err(serde::de::Error::custom("crop_size must be a number or {\"height\": N, \"width\": N}")),
    }
}

fn as_square<S: Serializer>(side: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    json!({"height": side, "width": side}).serialize(serializer)
}
