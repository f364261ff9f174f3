//! What an objective reads beside captions: embeddings, images, or nothing.

use anyhow::{Context, Result, bail};

use super::pixels::Pixels;
use super::settings::{Recipe, TrainSettings};
use crate::models::Bundle;
use crate::pipeline::sources::Embeddings;
use crate::pipeline::{Content, Entry, Reporter};
use crate::training::batches::Images;
use crate::training::corpus::{Framing, JoinReport, Tokenized};
use crate::training::objective::Objective;

pub enum ImageInputs {
    Embeddings(Embeddings),
    Pixels(Pixels),
    Nothing,
}

impl ImageInputs {
    /// Opens what the objective needs and checks that it fits the model.
    pub fn open(settings: &TrainSettings, bundle: &Bundle) -> Result<Self> {
        match settings.recipe.objective {
            Objective::LanguageModel => Ok(Self::Nothing),
            Objective::Contrastive => {
                check_text_tower(bundle)?;
                Ok(Self::Pixels(Pixels::open(&settings.dataset, &settings.images, bundle)?))
            }
            Objective::Caption | Objective::Scst => {
                let path =
                    settings.embeddings.as_deref().context("captions are learned from embeddings: --embeddings is needed")?;
                let embeddings = Embeddings::open(path)?;
                check_embeddings(&embeddings, bundle, &settings.recipe)?;
                Ok(Self::Embeddings(embeddings))
            }
        }
    }

    /// A hash of its content; empty for nothing.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            Self::Embeddings(embeddings) => embeddings.fingerprint(),
            Self::Pixels(pixels) => pixels.fingerprint(),
            Self::Nothing => Ok(String::new()),
        }
    }

    /// How batches take it.
    pub fn images(&self) -> Images {
        match self {
            Self::Embeddings(_) => Images::Embeddings,
            Self::Pixels(pixels) => Images::Pixels(pixels.preprocess.clone()),
            Self::Nothing => Images::None,
        }
    }

    /// Writes the corpus of these captions and of what stands beside them.
    pub fn join(
        &self,
        tokenized: Tokenized,
        recipe: &Recipe,
        folder: &std::path::Path,
        fingerprint: &str,
        reporter: &dyn Reporter,
    ) -> Result<JoinReport> {
        match self {
            Self::Embeddings(embeddings) => {
                let (dim, normalize) = (embeddings.embedding_dim, recipe.normalize_prefix);
                let rows = embeddings.entries().filter_map(|entry| match entry {
                    Ok(Entry { image_id, content: Content::Embedding { values, .. }, .. }) => Some(Ok((image_id, values))),
                    Ok(_) => None,
                    Err(error) => Some(Err(error)),
                });
                tokenized.join_embeddings(rows, dim, normalize, folder, fingerprint)
            }
            Self::Pixels(pixels) => {
                pixels.with_rows(reporter, |rows| tokenized.join(rows, pixels.row_bytes(), folder, fingerprint))
            }
            Self::Nothing => Ok(tokenized.without_images(folder, fingerprint)?),
        }
    }
}

/// What stands around captions for an objective.
pub fn framing(recipe: &Recipe, bundle: &Bundle) -> Framing {
    Framing {
        prompt: recipe.prompt.clone().filter(|_| recipe.objective.is_of_embeddings()),
        max_tokens: recipe.max_tokens(bundle),
        cls: !recipe.objective.is_of_embeddings(),
        always_sep: recipe.objective == Objective::Contrastive,
        captions_per_row: recipe.captions_per_row,
    }
}

fn check_embeddings(embeddings: &Embeddings, bundle: &Bundle, recipe: &Recipe) -> Result<()> {
    let mapper = bundle.mapper_config();
    if embeddings.embedding_dim != mapper.clip_size {
        bail!(
            "the embeddings have {} numbers and the model's mapper takes {}: embed with `clipcap embed --model {}`",
            embeddings.embedding_dim,
            mapper.clip_size,
            bundle.path().display()
        );
    }
    if embeddings.encoder.as_deref().is_some_and(|encoder| encoder != bundle.embedding_fingerprint()) {
        bail!(
            "these embeddings were made by another image encoder than that of {bundle}: embed again with `clipcap embed --model {bundle}`",
            bundle = bundle.path().display()
        );
    }
    if embeddings.normalized == Some(true) && !recipe.normalize_prefix {
        bail!("these embeddings are of unit length: train with --normalize-prefix, or embed again without --normalize");
    }
    Ok(())
}

/// The text tower must read the ids of the bundle's own vocabulary, and find a caption's end by `[SEP]`.
fn check_text_tower(bundle: &Bundle) -> Result<()> {
    let config = bundle.path().join("clip/config.json");
    let Some(text) = bundle.clip_config().clip_text() else {
        bail!("{}: there is no text tower (text_config), and the contrastive objective trains one", config.display());
    };
    let tokenizer = bundle.tokenizer()?;
    let fits = text.vocab_size >= tokenizer.vocab_size() && text.eos_token_id == Some(tokenizer.end_id());
    if !fits {
        bail!(
            "{}: the text tower reads {} entries and ends at {}; the bundle's vocabulary has {} and [SEP] is {}. Make the bundle with a CLIP \
             whose text_config has that vocab_size and eos_token_id",
            config.display(),
            text.vocab_size,
            text.eos_token_id.map_or("none of them".into(), |id| id.to_string()),
            tokenizer.vocab_size(),
            tokenizer.end_id()
        );
    }
    Ok(())
}
