//! What a run learns.

use serde::{Deserialize, Serialize};

use crate::models::config::MapperConfig;

/// An objective decides which part of a bundle is trained, on what, and what a row of a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Captions from embeddings: the mapper, and GPT2 where it is tuned.
    #[default]
    Caption,
    /// Images and their captions side by side: CLIP, both towers. A row is an image with one of its captions.
    Contrastive,
    /// As `Caption`, by what captions are worth: the model's own samples count by how much better their CIDEr is than that of the image's other
    /// samples (self-critical sequence training).
    Scst,
    /// Captions from nothing: GPT2. A row is `[CLS]` and one or more captions of an image.
    LanguageModel,
}

impl Objective {
    /// Positions before a row's first token.
    pub fn prefix_len(self, mapper: &MapperConfig) -> usize {
        if self.is_of_embeddings() { mapper.prefix_len } else { 0 }
    }

    /// Whether captions are learned from images' embeddings, behind a prefix.
    pub fn is_of_embeddings(self) -> bool {
        matches!(self, Self::Caption | Self::Scst)
    }
}

named!(
    Objective,
    "an objective",
    Caption = "caption",
    Scst = "scst",
    Contrastive = "contrastive",
    LanguageModel = "language-model",
);
