//! Image towers: from pixels to embeddings. A family is one file here: its configuration, its tensors' names and shapes, its graph, and which
//! of its products have 8-bit weights.
//!
//! To add one: a file with a configuration that implements [`ImageTower`], an arm of [`VisionConfig`], and a reader (an arm of
//! [`ClipConfig::read`](super::config::ClipConfig::read), or a file in `import/` where the layout is not Hugging Face's).

use std::path::Path;

use serde::Serialize;

use super::block::{Attention, Product};
use super::config::{ConfigError, PreprocessorConfig, check, check_sizes};
use super::layers::Style;
use super::tensors::List;
use crate::onnx::{Graph, Value};

mod resnet;
mod siglip;
mod vit;

pub use resnet::ResNetConfig;
pub use siglip::SiglipVisionConfig;
pub use vit::ClipVisionConfig;

/// What the rest of the program needs to know of an image tower.
pub trait ImageTower {
    /// The family in a few words, for `model inspect`.
    fn family(&self) -> &'static str;

    /// Its layers in a few words.
    fn layers(&self) -> String;

    /// Side of the square image, in pixels.
    fn image_size(&self) -> usize;

    /// Length of an embedding where the tower alone decides it.
    fn own_projection_dim(&self) -> usize;

    /// Pixels [B, 3, S, S] to embeddings [B, D], not normalized.
    fn embeds(&self, g: &Graph, style: Style, pixels: Value, projection_dim: usize, attention: Attention) -> Value;

    /// Every tensor of the tower, its projection included.
    fn tensors(&self, list: &mut List, projection_dim: usize, factor: f64);

    /// What is multiplied in 8 bits where the style says so.
    fn products(&self) -> Vec<Product>;

    /// Checks that sizes are positive, bounded and fit each other. `path` names the file in the error.
    ///
    /// # Errors
    /// Names the key that does not fit.
    fn validate(&self, path: &Path) -> Result<(), ConfigError>;

    /// How images are prepared where no file says it.
    fn preprocessor(&self) -> PreprocessorConfig {
        PreprocessorConfig::for_image_size(self.image_size())
    }
}

/// Checks that images of `image_size` can be cut into patches.
fn check_patches(path: &Path, channels: usize, image_size: usize, patch_size: usize) -> Result<(), ConfigError> {
    check_sizes(path, &[("vision_config.image_size", image_size), ("vision_config.patch_size", patch_size)])?;
    check(path, channels == 3, || format!("num_channels is {channels}; images have 3"))?;
    check(path, patch_size <= image_size && image_size <= 1 << 14, || {
        format!("image_size {image_size} and patch_size {patch_size} do not fit")
    })
}

/// An image tower of any family.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum VisionConfig {
    Vit(ClipVisionConfig),
    ResNet(ResNetConfig),
    Siglip(SiglipVisionConfig),
}

impl VisionConfig {
    /// What the families have in common.
    pub fn tower(&self) -> &dyn ImageTower {
        match self {
            Self::Vit(config) => config,
            Self::ResNet(config) => config,
            Self::Siglip(config) => config,
        }
    }

    /// Side of the square image, in pixels.
    pub fn image_size(&self) -> usize {
        self.tower().image_size()
    }
}

impl From<ClipVisionConfig> for VisionConfig {
    fn from(config: ClipVisionConfig) -> Self {
        Self::Vit(config)
    }
}

impl From<ResNetConfig> for VisionConfig {
    fn from(config: ResNetConfig) -> Self {
        Self::ResNet(config)
    }
}

impl From<SiglipVisionConfig> for VisionConfig {
    fn from(config: SiglipVisionConfig) -> Self {
        Self::Siglip(config)
    }
}
