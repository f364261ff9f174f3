//! A bundle on a runtime, as this stage needs it.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::json;

use super::ModelInfo;
use super::model::ClipCap;
use crate::generation::{Generator, Settings, SpecialTokens, Strategy};
use crate::image::Preprocess;
use crate::models::{Bundle, ClipEncoder, ImageEncoder, PrefixMapper};
use crate::runtime::{Device, Precision, Runtime};
use crate::stages::loading::{check_precision, compute_identity, load_decoder};
use crate::text::Tokenizer;

/// What results depend on, without loading a weight.
pub fn info(bundle: &Bundle, runtime: &Runtime) -> Result<ModelInfo> {
    check_precision(bundle, runtime)?;
    let mut identity = compute_identity(bundle, runtime);
    identity["fingerprint"] = bundle.fingerprint().into();
    identity["decoder"] = json!(if runtime.device() == Device::OpenVino { "cpu" } else { "same device" });
    Ok(ModelInfo {
        identity,
        preprocess: Preprocess::from_file(&bundle.preprocessor_path())?,
        embedding_dim: bundle.clip_config().projection_dim,
        encoder: bundle.embedding_fingerprint().into(),
        normalize: bundle.normalized(),
        shares_cores: runtime.device().is_cpu(),
    })
}

/// Loads the parts. `takes_embeddings`: no image will be encoded.
pub fn load(
    bundle: &Bundle,
    runtime: &Runtime,
    decoding: &Settings,
    batch_size: usize,
    takes_embeddings: bool,
) -> Result<ClipCap> {
    let parts = if takes_embeddings { &["gpt2", "mapper"][..] } else { &["clip", "gpt2", "mapper"] };
    bundle.check_bytes(parts)?;
    if runtime.precision() == Precision::Int8 {
        bundle.check_int8()?;
    }
    let tokenizer = Arc::new(Tokenizer::open(&bundle.vocab_path(), bundle.lower_case())?);
    let limit = max_new_tokens(bundle);
    if decoding.max_new_tokens > limit {
        bail!("--max-new-tokens {}: this GPT2 has positions for {limit} after the prefix", decoding.max_new_tokens);
    }
    // A vocabulary may end before the model's does: what has no entry stands for no text.
    let without_entry = tokenizer.vocab_size() as u32..bundle.gpt2_config().vocab_size as u32;
    let banned = std::iter::once(tokenizer.unk_id()).chain(without_entry).collect();
    let tokens = SpecialTokens { sep: tokenizer.sep_id(), banned };
    let texts = tokenizer.clone();
    let generator = Generator::new(decoding.clone(), tokens)?.comparing(move |ids| texts.decode(ids));
    let encoder = match takes_embeddings {
        true => None,
        false => {
            Some(Box::new(ClipEncoder::load(runtime, bundle.path(), bundle.clip_config(), batch_size)?) as Box<dyn ImageEncoder>)
        }
    };
    let mapper = Box::new(PrefixMapper::load(runtime, bundle.path(), bundle.mapper_config(), batch_size)?);
    let beams = match decoding.strategy {
        Strategy::Beam { num_beams, .. } => num_beams,
        _ => 1,
    };
    let decoder = load_decoder(bundle, runtime, batch_size.max(beams), decoding.max_new_tokens)?;
    Ok(ClipCap { encoder, mapper, decoder, generator, tokenizer, normalize: bundle.normalized(), batch_size })
}

/// Tokens a caption can have at most: the last one is never fed, so it needs no position.
pub fn max_new_tokens(bundle: &Bundle) -> usize {
    (bundle.gpt2_config().n_positions + 1).saturating_sub(bundle.mapper_config().prefix_len)
}
