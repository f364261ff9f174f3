//! CLIP under OpenAI's names: OpenAI's own archives, which carry no configuration, and what open_clip shares with them.

use std::path::Path;

use super::{Catalog, ImportError};
use crate::models::config::{Activation, ClipConfig, ClipTextConfig, ClipVisionConfig, ResNetConfig, VisionConfig};
use crate::models::part::Content;
use crate::models::weights::{WeightFormat, WeightSource};

/// Facts about the model that OpenAI's archives keep among the parameters.
const FACTS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

/// True for OpenAI's own files: activation and head width are known of no others.
pub fn is_openais_own(weights: &WeightSource) -> bool {
    weights.format() == WeightFormat::TorchScript || weights.tensors().contains_key(FACTS[0])
}

/// What the shapes of tensors under OpenAI's names say.
pub struct Shapes<'a> {
    path: &'a Path,
    weights: &'a WeightSource,
    /// What stands in front of every name.
    prefix: &'a str,
}

impl<'a> Shapes<'a> {
    pub fn new(path: &'a Path, weights: &'a WeightSource, prefix: &'a str) -> Self {
        Self { path, weights, prefix }
    }

    fn unusable(&self, problem: impl Into<String>) -> ImportError {
        ImportError::unusable(self.path, problem)
    }

    pub fn has(&self, name: &str) -> bool {
        self.weights.tensors().contains_key(&format!("{}{name}", self.prefix))
    }

    fn of(&self, name: &str) -> Result<&[usize], ImportError> {
        Ok(&self.weights.get(&format!("{}{name}", self.prefix))?.shape)
    }

    /// Whether anything of a text tower is there.
    pub fn holds_text(&self) -> bool {
        let names = ["token_embedding.", "positional_embedding", "transformer.resblocks.", "ln_final.", "text_projection"];
        let mut ours = self.weights.tensors().keys().filter_map(|name| name.strip_prefix(self.prefix));
        ours.any(|name| names.iter().any(|begin| name.starts_with(begin)))
    }

    /// Blocks under `scope`N.
    fn blocks(&self, scope: &str) -> usize {
        let scope = format!("{}{scope}", self.prefix);
        let numbers =
            self.weights.tensors().keys().filter_map(|name| name.strip_prefix(&scope)?.split('.').next()?.parse::<usize>().ok());
        numbers.max().map_or(0, |last| last.saturating_add(1))
    }

    fn inner(&self, scope: &str) -> Result<usize, ImportError> {
        Ok(self.of(&format!("{scope}0.mlp.c_fc.weight"))?.first().copied().unwrap_or(0))
    }

    /// Side of a square grid of positions behind the first one.
    fn grid(&self, name: &str) -> Result<usize, ImportError> {
        let &[positions, _] = self.of(name)? else { return Err(self.unusable(format!("{name} is not a matrix"))) };
        let grid = positions.saturating_sub(1).isqrt();
        match grid > 0 && grid * grid + 1 == positions {
            true => Ok(grid),
            false => Err(self.unusable(format!("{name} has not a square number of rows plus one"))),
        }
    }

    /// The ResNet the shapes describe: heads are 64 wide.
    pub fn resnet(&self) -> Result<ResNetConfig, ImportError> {
        let width = self.of("visual.layer1.0.conv1.weight")?.first().copied().unwrap_or(0);
        let &[projection_dim, _] = self.of("visual.attnpool.c_proj.weight")? else {
            return Err(self.unusable("visual.attnpool.c_proj.weight is not a matrix"));
        };
        Ok(ResNetConfig {
            stages: [1, 2, 3, 4].map(|stage| self.blocks(&format!("visual.layer{stage}."))),
            width,
            heads: width.saturating_mul(32) / 64,
            image_size: self.grid("visual.attnpool.positional_embedding")?.saturating_mul(32),
            projection_dim,
        })
    }

    /// The vision transformer the shapes describe, with QuickGELU and heads 64 wide.
    pub fn vit(&self) -> Result<ClipVisionConfig, ImportError> {
        let &[width, 3, patch_size, _] = self.of("visual.conv1.weight")? else {
            return Err(self.unusable("visual.conv1.weight is not of shape [width, 3, patch, patch]"));
        };
        let &[_, projection_dim] = self.of("visual.proj")? else { return Err(self.unusable("visual.proj is not a matrix")) };
        Ok(ClipVisionConfig {
            hidden_size: width,
            intermediate_size: self.inner("visual.transformer.resblocks.")?,
            num_hidden_layers: self.blocks("visual.transformer.resblocks."),
            num_attention_heads: self.heads(width)?,
            image_size: self.grid("visual.positional_embedding")?.saturating_mul(patch_size),
            patch_size,
            projection_dim,
            hidden_act: Activation::QuickGelu,
            ..ClipVisionConfig::default()
        })
    }

    /// The text tower the shapes describe, with QuickGELU and heads 64 wide; None where there is none.
    fn text(&self, projection_dim: usize) -> Result<Option<ClipTextConfig>, ImportError> {
        if !self.holds_text() {
            return Ok(None);
        }
        let &[vocab_size, width] = self.of("token_embedding.weight")? else {
            return Err(self.unusable("token_embedding.weight is not a matrix"));
        };
        Ok(Some(ClipTextConfig {
            intermediate_size: self.inner("transformer.resblocks.")?,
            num_hidden_layers: self.blocks("transformer.resblocks."),
            num_attention_heads: self.heads(width)?,
            max_position_embeddings: self.of("positional_embedding")?.first().copied().unwrap_or(0),
            ..text_of(vocab_size, width, projection_dim)
        }))
    }

    fn heads(&self, width: usize) -> Result<usize, ImportError> {
        match width % 64 {
            0 if width > 0 => Ok(width / 64),
            _ => Err(self.unusable(format!("a width of {width}; OpenAI's are multiples of 64 (one for each head)"))),
        }
    }
}

/// A text tower over a vocabulary whose last two entries begin and end a caption.
pub fn text_of(vocab_size: usize, hidden_size: usize, projection_dim: usize) -> ClipTextConfig {
    let last_id = u32::try_from(vocab_size).unwrap_or(u32::MAX).saturating_sub(1);
    ClipTextConfig {
        vocab_size,
        hidden_size,
        projection_dim,
        bos_token_id: Some(last_id.saturating_sub(1)),
        eos_token_id: Some(last_id),
        ..ClipTextConfig::default()
    }
}

/// The configuration of one of OpenAI's own files.
pub fn config(path: &Path, weights: &WeightSource) -> Result<ClipConfig, ImportError> {
    let shapes = Shapes::new(path, weights, "");
    let vision: VisionConfig = match shapes.has("visual.layer1.0.conv1.weight") {
        true => shapes.resnet()?.into(),
        false => shapes.vit()?.into(),
    };
    let mut config = ClipConfig::vision_only(vision);
    config.text_config = shapes.text(config.projection_dim)?.map(Into::into);
    config.validate(path)?;
    Ok(config)
}

/// Tensors under OpenAI's names, under the names a bundle has for them: for transformers Hugging Face's, with the fused q, k, v cut apart and
/// projections transposed; a ResNet's are kept. `prefix` stands in front of every name.
pub fn catalog<'a>(source: &'a WeightSource, prefix: &str, resnet: bool, has_text: bool) -> Catalog<'a> {
    let mut catalog = Catalog::new();
    for (stored_name, tensor) in source.tensors() {
        let Some(name) = stored_name.strip_prefix(prefix) else { continue };
        let stored = || Content::Stored { source, name: stored_name.clone() };
        let transposed = || Content::Transposed { source, name: stored_name.clone() };
        let (tower, rest, text) = match name.strip_prefix("visual.") {
            Some(rest) => ("vision_model", rest, false),
            None => ("text_model", name, true),
        };
        if FACTS.contains(&name) || (text && (!has_text || name == "logit_bias" || name == "attn_mask")) {
            continue;
        }
        if resnet && !text {
            // How many batches the statistics were taken from.
            if !name.ends_with(".num_batches_tracked") {
                catalog.insert(name.to_owned(), stored());
            }
            continue;
        }
        if let Some(block) = rest.strip_prefix("transformer.resblocks.")
            && let Some((number, rest)) = block.split_once('.')
        {
            let layer = format!("{tower}.encoder.layers.{number}");
            if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
                let rows = tensor.shape.first().map_or(0, |rows| rows / 3);
                for (index, part) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                    let content = Content::Rows { source, name: stored_name.clone(), first: index * rows, rows };
                    catalog.insert(format!("{layer}.self_attn.{part}.{kind}"), content);
                }
                continue;
            }
            let renamed = [
                ("attn.out_proj.", "self_attn.out_proj."),
                ("ln_1.", "layer_norm1."),
                ("ln_2.", "layer_norm2."),
                ("mlp.c_fc.", "mlp.fc1."),
                ("mlp.c_proj.", "mlp.fc2."),
            ]
            .iter()
            .find_map(|(theirs, ours)| Some(format!("{layer}.{ours}{}", rest.strip_prefix(theirs)?)));
            catalog.insert(renamed.unwrap_or_else(|| name.to_owned()), stored());
            continue;
        }
        let (renamed, content) = match (text, rest) {
            (false, "class_embedding") => ("vision_model.embeddings.class_embedding", stored()),
            (false, "positional_embedding") => ("vision_model.embeddings.position_embedding.weight", stored()),
            (false, "conv1.weight") => ("vision_model.embeddings.patch_embedding.weight", stored()),
            (false, "ln_pre.weight") => ("vision_model.pre_layrnorm.weight", stored()),
            (false, "ln_pre.bias") => ("vision_model.pre_layrnorm.bias", stored()),
            (false, "ln_post.weight") => ("vision_model.post_layernorm.weight", stored()),
            (false, "ln_post.bias") => ("vision_model.post_layernorm.bias", stored()),
            (false, "proj") => ("visual_projection.weight", transposed()),
            (true, "token_embedding.weight") => ("text_model.embeddings.token_embedding.weight", stored()),
            (true, "positional_embedding") => ("text_model.embeddings.position_embedding.weight", stored()),
            (true, "ln_final.weight") => ("text_model.final_layer_norm.weight", stored()),
            (true, "ln_final.bias") => ("text_model.final_layer_norm.bias", stored()),
            (true, "text_projection") => ("text_projection.weight", transposed()),
            // logit_scale, and whatever does not belong: it is listed as unexpected under its own name.
            _ => (name, stored()),
        };
        catalog.insert(renamed.to_owned(), content);
    }
    catalog
}
