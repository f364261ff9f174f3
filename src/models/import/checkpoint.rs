//! ClipCap checkpoints: a mapper, and the GPT2 it was trained with.

use std::collections::BTreeSet;
use std::path::Path;

use super::decoder::{decoder_part, with_head};
use super::{Catalog, ImportError, catalog, match_part};
use crate::models::config::{BertConfig, DecoderConfig, MapperConfig, MapperKind, TransformerConfig};
use crate::models::part::Part;
use crate::models::tensors::mapper_tensors;
use crate::models::weights::WeightSource;

/// What stands before the decoder's names: ClipCap-Chinese's, the original's, and this program's for other decoders than GPT2.
pub const DECODER_SCOPES: [&str; 3] = ["gpt2.", "gpt.", "decoder."];

/// Heads of the original's transformer mapper, always.
pub const ORIGINAL_HEADS: usize = 8;

/// A checkpoint of ClipCap-Chinese (`clip_project.*`, `gpt2.*`) or of the original ClipCap (`gpt.*`), with or without what
/// a training framework puts in front.
pub struct CheckpointSource {
    weights: WeightSource,
    prefix: String,
}

impl CheckpointSource {
    /// Opens a checkpoint and finds which one it is by its keys.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let weights = WeightSource::open(path)?;
        // What training frameworks put in front of every name: `module.`, `model.`, `_orig_mod.`.
        let before = |name: &str| name.find("clip_project.").map(|at| name[..at].to_string());
        let prefixes: BTreeSet<String> = weights.tensors().keys().filter_map(|name| before(name)).collect();
        let Some(prefix) = prefixes.first().cloned() else {
            let some: Vec<&str> = weights.tensors().keys().take(5).map(String::as_str).collect();
            let holds = if some.is_empty() { "no tensors at all".into() } else { format!("{} ...", some.join(", ")) };
            return Err(ImportError::unusable(
                path,
                format!("no clip_project.* tensors, so this is not a ClipCap checkpoint; it holds {holds}"),
            ));
        };
        // Plain names count before copies of them (averaged weights, for instance).
        if !prefix.is_empty() && prefixes.len() > 1 {
            let all: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix}clip_project.*")).collect();
            return Err(ImportError::unusable(path, format!("it holds several models: {}", all.join(", "))));
        }
        Ok(Self { weights, prefix })
    }

    /// All of its tensors.
    pub fn weights(&self) -> &WeightSource {
        &self.weights
    }

    /// The name of a stored tensor inside `scope`, scope left out.
    fn within<'n>(&self, name: &'n str, scopes: &[&str]) -> Option<&'n str> {
        let name = name.strip_prefix(&self.prefix)?;
        scopes.iter().find_map(|scope| name.strip_prefix(scope))
    }

    fn has(&self, name: &str) -> bool {
        self.weights.tensors().contains_key(&format!("{}{name}", self.prefix))
    }

    fn shape(&self, name: &str) -> Result<&[usize], ImportError> {
        Ok(&self.weights.get(&format!("{}{name}", self.prefix))?.shape)
    }

    fn unusable(&self, problem: impl Into<String>) -> ImportError {
        ImportError::unusable(self.weights.path(), problem)
    }

    /// What stands before the decoder's names where the checkpoint holds a decoder too; it wins over the folder's.
    pub fn decoder_scope(&self) -> Option<&'static str> {
        let holds = |scope: &str| self.weights.tensors().keys().any(|name| self.within(name, &[scope]).is_some());
        DECODER_SCOPES.into_iter().find(|scope| holds(scope))
    }

    /// The kind of mapper, by its tensors. (What the original calls "mlp" may hold a BERT: its command line always built one.)
    pub fn mapper_kind(&self) -> Result<MapperKind, ImportError> {
        let inside = |scope: &str| self.weights.tensors().keys().any(|name| self.within(name, &[scope]).is_some());
        if inside("clip_project.transformer.") {
            return Ok(MapperKind::Transformer);
        }
        if inside("clip_project.bert.") {
            Ok(MapperKind::Bert)
        } else if inside("clip_project.model.") {
            Ok(MapperKind::Mlp)
        } else {
            Err(self.unusable(
                "its clip_project.* is neither an MLP (clip_project.model.0.weight), nor a BERT (clip_project.bert.*) or transformer mapper \
                 (clip_project.transformer.*)",
            ))
        }
    }

    /// The mapper's configuration, from the shapes of its tensors (and `--bert-config` for what shapes do not say).
    pub fn mapper_config(&self, clip_size: usize, n_embd: usize, bert: Option<&BertConfig>) -> Result<MapperConfig, ImportError> {
        let path = self.weights.path();
        let config = match self.mapper_kind()? {
            MapperKind::Mlp => {
                let layer_sizes = self.mlp_sizes()?;
                let out = layer_sizes.last().copied().unwrap_or(0);
                let prefix_len = self.prefix_len(out, n_embd)?;
                MapperConfig { layer_sizes, ..MapperConfig::mlp(clip_size, n_embd, prefix_len) }
            }
            MapperKind::Transformer => {
                let first = |name: &str| -> Result<usize, ImportError> { Ok(self.shape(name)?.first().copied().unwrap_or(0)) };
                let layer = "clip_project.transformer.layers";
                let transformer = TransformerConfig {
                    clip_length: self.prefix_len(first("clip_project.linear.weight")?, n_embd)?,
                    num_layers: (0..).take_while(|n| self.has(&format!("{layer}.{n}.norm1.weight"))).count(),
                    num_heads: ORIGINAL_HEADS,
                    inner_size: first(&format!("{layer}.0.mlp.fc1.weight"))?,
                    qkv_bias: self.has(&format!("{layer}.0.attn.to_queries.bias")),
                };
                MapperConfig::transformer(clip_size, n_embd, first("clip_project.prefix_const")?, transformer)
            }
            MapperKind::Bert => {
                let bert = bert.ok_or_else(|| {
                    self.unusable("its mapper is a BERT: give its config.json with --bert-config (shapes do not say the heads)")
                })?;
                let prefix_len =
                    self.prefix_len(self.shape("clip_project.linear.weight")?.first().copied().unwrap_or(0), n_embd)?;
                let constant_len = self.shape("clip_project.prefix_const")?.first().copied().unwrap_or(0);
                MapperConfig { constant_len, ..MapperConfig::bert(clip_size, n_embd, prefix_len, bert.clone()) }
            }
        };
        config.validate(path)?;
        Ok(config)
    }

    fn prefix_len(&self, out: usize, n_embd: usize) -> Result<usize, ImportError> {
        if out == 0 || !out.is_multiple_of(n_embd) {
            let problem = format!(
                "its mapper's output of {out} is not a multiple of the decoder's width, {n_embd}: another decoder was meant"
            );
            return Err(self.unusable(problem));
        }
        Ok(out / n_embd)
    }

    /// Widths of the MLP's layers: `clip_project.model.0`, `.2`, ... (a tanh between each two).
    fn mlp_sizes(&self) -> Result<Vec<usize>, ImportError> {
        let mut sizes = vec![];
        for layer in (0..).step_by(2) {
            let name = format!("clip_project.model.{layer}.weight");
            if !self.has(&name) {
                break;
            }
            let &[out, inputs] = self.shape(&name)? else {
                return Err(self.unusable(format!("{name} is not a matrix")));
            };
            match sizes.last() {
                None => sizes.push(inputs),
                Some(&width) if width == inputs => {}
                Some(width) => return Err(self.unusable(format!("{name} takes {inputs} values and is given {width}"))),
            }
            sizes.push(out);
        }
        if sizes.is_empty() {
            return Err(self.unusable("clip_project.model.0.weight is missing"));
        }
        Ok(sizes)
    }

    /// The mapper's part. `config` must be this checkpoint's own.
    pub fn mapper_part(&self, config: &MapperConfig) -> Result<Part<'_>, ImportError> {
        let catalog = catalog(&self.weights, |name| {
            // Whatever is neither the mapper's nor GPT2's is listed as unexpected here.
            if self.within(name, &DECODER_SCOPES).is_some() {
                return None;
            }
            let own = name.strip_prefix(&self.prefix).unwrap_or(name);
            let buffer = own.ends_with(".embeddings.position_ids") || own.ends_with(".embeddings.token_type_ids");
            (!buffer).then(|| own.to_owned())
        });
        match_part(&format!("this {} mapper", config.kind), self.weights.path().into(), &mapper_tensors(config), catalog)
    }

    /// The configuration of the decoder inside the checkpoint, which may have a head of its own where `config` has none.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn decoder_config(&self, config: &DecoderConfig) -> Result<DecoderConfig, ImportError> {
        let catalog: Catalog = catalog(&self.weights, |name| self.within(name, &DECODER_SCOPES).map(str::to_owned));
        with_head(config, &self.weights, &catalog)
    }

    /// The part of the decoder inside the checkpoint.
    pub fn decoder_part(&self, config: &DecoderConfig) -> Result<Part<'_>, ImportError> {
        let catalog: Catalog = catalog(&self.weights, |name| self.within(name, &DECODER_SCOPES).map(str::to_owned));
        decoder_part(config, &self.weights, catalog)
    }
}
