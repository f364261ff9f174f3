//! CLIP as Hugging Face and as OpenAI publish it.

use std::path::{Path, PathBuf};

use super::{Catalog, ImportError, catalog, match_part, presets};
use crate::models::config::{Activation, ClipConfig, ClipTextConfig, ClipVisionConfig, PreprocessorConfig};
use crate::models::part::{Content, Part};
use crate::models::tensors::clip_tensors;
use crate::models::weights::WeightSource;

/// A CLIP to take over: its configuration, and its weights where there are any.
pub struct ClipSource {
    path: PathBuf,
    pub config: ClipConfig,
    pub preprocessor: PreprocessorConfig,
    pub weights: Option<WeightSource>,
    /// Files of the source to keep as they are: tokenizer, and configurations that need no change.
    pub kept_files: Vec<PathBuf>,
    /// What the reader should know.
    pub notes: Vec<String>,
    openai: bool,
}

/// Tokenizer files that a Hugging Face CLIP folder has beside its weights.
const TOKENIZER_FILES: [&str; 5] =
    ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

impl ClipSource {
    /// A preset's name, a weight file (a TorchScript archive or state_dict with OpenAI's names, or a file inside a Hugging Face
    /// folder), or a Hugging Face folder with or without weights.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        if let Some(config) = presets::clip_preset(path) {
            let preprocessor = PreprocessorConfig::for_image_size(config.vision_config.image_size);
            return Ok(Self::new(path, config, preprocessor, None));
        }
        if path.is_dir() {
            return Self::open_folder(path, WeightSource::find_in(path).as_deref());
        }
        let weights = WeightSource::open(path)?;
        if weights.tensors().contains_key("visual.conv1.weight") || weights.tensors().contains_key("visual.layer1.0.conv1.weight")
        {
            return Self::openai(path, weights);
        }
        match path.parent() {
            Some(folder) if folder.join("config.json").is_file() => Self::open_folder(folder, Some(path)),
            _ => Err(ImportError::unusable(
                path,
                "neither an OpenAI checkpoint (visual.conv1.weight is missing) nor a file with a config.json beside it",
            )),
        }
    }

    fn new(path: &Path, config: ClipConfig, preprocessor: PreprocessorConfig, weights: Option<WeightSource>) -> Self {
        Self { path: path.into(), config, preprocessor, weights, kept_files: vec![], notes: vec![], openai: false }
    }

    fn open_folder(folder: &Path, weights: Option<&Path>) -> Result<Self, ImportError> {
        let config_path = folder.join("config.json");
        let mut config = ClipConfig::read(&config_path)?;
        let mut kept_files: Vec<PathBuf> = TOKENIZER_FILES.iter().map(|name| folder.join(name)).filter(|p| p.is_file()).collect();
        let mut notes = vec![];
        let side = config.vision_config.image_size;
        let preprocessor_path = folder.join("preprocessor_config.json");
        let preprocessor = if preprocessor_path.is_file() {
            let preprocessor = PreprocessorConfig::read(&preprocessor_path)?;
            if preprocessor.crop_size != side {
                let problem = format!("crop_size is {} and the model's image_size {side}", preprocessor.crop_size);
                return Err(ImportError::unusable(preprocessor_path, problem));
            }
            kept_files.push(preprocessor_path);
            preprocessor
        } else {
            notes.push(format!("{}: no preprocessor_config.json; CLIP's own preprocessing is assumed", folder.display()));
            PreprocessorConfig::for_image_size(side)
        };
        let weights = weights.map(WeightSource::open).transpose()?;
        let text_stored = weights.as_ref().map(|weights| weights.tensors().keys().any(|name| name.starts_with("text_model.")));
        match (config.text_config.is_some(), text_stored) {
            (true, Some(false)) => {
                config.text_config = None;
                notes.push(format!("{}: the weights hold no text tower; the image tower is kept", folder.display()));
            }
            (false, Some(true)) => {
                notes.push(format!("{}: the configuration has no text tower; the stored one is left out", folder.display()));
            }
            // Nothing of the configuration changes, so the file stays as it is, with whatever else it says.
            _ => kept_files.push(config_path),
        }
        Ok(Self { kept_files, notes, ..Self::new(folder, config, preprocessor, weights) })
    }

    fn openai(path: &Path, weights: WeightSource) -> Result<Self, ImportError> {
        let config = openai_config(path, &weights)?;
        let preprocessor = PreprocessorConfig::for_image_size(config.vision_config.image_size);
        Ok(Self { openai: true, ..Self::new(path, config, preprocessor, Some(weights)) })
    }

    /// The part to write, with every tensor matched against the configuration. Without weights: new ones.
    pub fn part(&self, seed: u64) -> Result<Part<'_>, ImportError> {
        let specs = clip_tensors(&self.config);
        let Some(weights) = &self.weights else { return Ok(Part::random(specs, seed)) };
        let has_text = self.config.text_config.is_some();
        let catalog = if self.openai {
            openai_catalog(weights, has_text)
        } else {
            catalog(weights, |name| {
                let text = ["text_model.", "text_projection.", "logit_scale"].iter().any(|prefix| name.starts_with(prefix));
                // Older releases stored the row numbers of the position embeddings.
                let buffer = name.ends_with(".embeddings.position_ids");
                (!buffer && (has_text || !text)).then(|| name.to_owned())
            })
        };
        match_part("this CLIP", weights.path().into(), &specs, catalog)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// OpenAI's checkpoints carry no configuration: everything follows from shapes, and heads are 64 wide.
fn openai_config(path: &Path, weights: &WeightSource) -> Result<ClipConfig, ImportError> {
    let unusable = |problem: &str| ImportError::unusable(path, problem);
    if weights.tensors().contains_key("visual.layer1.0.conv1.weight") {
        return Err(unusable("this is a CLIP with a ResNet image tower; vision transformers (ViT) are supported"));
    }
    let shape = |name: &str| weights.get(name).map(|tensor| tensor.shape.clone());
    let blocks = |scope: &str| {
        let numbers =
            weights.tensors().keys().filter_map(|name| name.strip_prefix(scope)?.split('.').next()?.parse::<usize>().ok());
        numbers.max().map_or(0, |last| last + 1)
    };
    let heads = |width: usize| match width % 64 {
        0 if width > 0 => Ok(width / 64),
        _ => Err(ImportError::unusable(path, format!("a width of {width}; OpenAI's are multiples of 64 (one for each head)"))),
    };
    let [width, 3, patch_size, _] = shape("visual.conv1.weight")?[..] else {
        return Err(unusable("visual.conv1.weight is not of shape [width, 3, patch, patch]"));
    };
    let [positions, _] = shape("visual.positional_embedding")?[..] else {
        return Err(unusable("visual.positional_embedding is not a matrix"));
    };
    let grid = positions.saturating_sub(1).isqrt();
    if grid == 0 || grid * grid + 1 != positions {
        return Err(unusable("visual.positional_embedding has not a square number of rows plus one"));
    }
    let [_, projection_dim] = shape("visual.proj")?[..] else { return Err(unusable("visual.proj is not a matrix")) };
    let inner = |scope: &str| shape(&format!("{scope}0.mlp.c_fc.weight")).map(|shape| shape.first().copied().unwrap_or(0));
    let vision_config = ClipVisionConfig {
        hidden_size: width,
        intermediate_size: inner("visual.transformer.resblocks.")?,
        num_hidden_layers: blocks("visual.transformer.resblocks."),
        num_attention_heads: heads(width)?,
        image_size: grid.saturating_mul(patch_size),
        patch_size,
        projection_dim,
        hidden_act: Activation::QuickGelu,
        ..ClipVisionConfig::default()
    };
    let mut config = ClipConfig::vision_only(vision_config);
    if weights.tensors().contains_key("token_embedding.weight") {
        let [vocab_size, width] = shape("token_embedding.weight")?[..] else {
            return Err(unusable("token_embedding.weight is not a matrix"));
        };
        let last_id = u32::try_from(vocab_size).unwrap_or(u32::MAX).saturating_sub(1);
        config.text_config = Some(ClipTextConfig {
            vocab_size,
            hidden_size: width,
            intermediate_size: inner("transformer.resblocks.")?,
            num_hidden_layers: blocks("transformer.resblocks."),
            num_attention_heads: heads(width)?,
            max_position_embeddings: shape("positional_embedding")?.first().copied().unwrap_or(0),
            projection_dim,
            bos_token_id: Some(last_id.saturating_sub(1)),
            eos_token_id: Some(last_id),
            ..ClipTextConfig::default()
        });
    }
    config.validate(path)?;
    Ok(config)
}

/// OpenAI's tensors under Hugging Face's names: the fused q, k, v are cut apart, projections are transposed.
fn openai_catalog(source: &WeightSource, has_text: bool) -> Catalog<'_> {
    let mut catalog = Catalog::new();
    for (name, tensor) in source.tensors() {
        // Facts about the model that the archive keeps among its parameters.
        if matches!(name.as_str(), "input_resolution" | "context_length" | "vocab_size") {
            continue;
        }
        let stored = || Content::Stored { source, name: name.clone() };
        let transposed = || Content::Transposed { source, name: name.clone() };
        let (tower, rest, text) = match name.strip_prefix("visual.") {
            Some(rest) => ("vision_model", rest, false),
            None => ("text_model", name.as_str(), true),
        };
        if text && !has_text {
            continue;
        }
        if let Some(block) = rest.strip_prefix("transformer.resblocks.")
            && let Some((number, rest)) = block.split_once('.')
        {
            let layer = format!("{tower}.encoder.layers.{number}");
            if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
                let rows = tensor.shape.first().map_or(0, |rows| rows / 3);
                for (index, part) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                    let content = Content::Rows { source, name: name.clone(), first: index * rows, rows };
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
            catalog.insert(renamed.unwrap_or_else(|| name.clone()), stored());
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
            _ => (name.as_str(), stored()),
        };
        catalog.insert(renamed.to_owned(), content);
    }
    catalog
}
