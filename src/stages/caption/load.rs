//! A bundle on a runtime, as this stage needs it.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::json;

use super::model::ClipCap;
use super::{ModelInfo, Wording};
use crate::generation::{Generator, Settings, Strategy};
use crate::models::{Bundle, ClipEncoder, ImageEncoder, LoadError, PrefixMapper};
use crate::runtime::{Device, OPERATORS_REVISION, Precision, Runtime};
use crate::stages::loading::{
    Prompt, check_precision, check_weights, compute_identity, joined, load_decoder, preprocess, special_tokens,
};
use crate::stages::memory::check_card;
use crate::text::clean::Cleaner;

/// What results depend on, without loading a weight.
pub fn info(bundle: &Bundle, runtime: &Runtime) -> Result<ModelInfo> {
    check_precision(bundle, runtime)?;
    let mut identity = compute_identity(bundle, runtime);
    identity["fingerprint"] = bundle.fingerprint().into();
    identity["decoder"] = json!(if runtime.device() == Device::OpenVino { "cpu" } else { "same device" });
    if runtime.precision() == Precision::Int8 {
        identity["operators"] = OPERATORS_REVISION.into();
    }
    Ok(ModelInfo {
        identity,
        preprocess: preprocess(bundle, runtime)?,
        embedding_dim: bundle.clip_config().projection_dim,
        encoder: bundle.embedding_fingerprint().into(),
        normalize: bundle.normalized(),
        shares_cores: runtime.device().is_cpu(),
        also: None,
    })
}

/// Loads the parts. `takes_embeddings`: no image will be encoded.
pub fn load(
    bundle: &Bundle,
    runtime: &Runtime,
    decoding: &Settings,
    wording: &Wording,
    batch_size: usize,
    takes_embeddings: bool,
) -> Result<ClipCap> {
    let parts = if takes_embeddings { &["gpt2", "mapper"][..] } else { &["clip", "gpt2", "mapper"] };
    let tokenizer = Arc::new(bundle.tokenizer_ending(wording.stop_token.as_deref())?);
    let prompt = Prompt::new(wording.prompt.as_deref(), bundle, &tokenizer)?;
    let cleaner = Cleaner::new(&wording.cleaning).map_err(anyhow::Error::msg)?;
    let limit = max_new_tokens(bundle, wording)?;
    if decoding.max_new_tokens > limit {
        bail!("--max-new-tokens {}: this decoder has positions for {limit} after the prefix", decoding.max_new_tokens);
    }
    let prefix_len = bundle.mapper_config().prefix_len + prompt.len();
    check_card(bundle, runtime, batch_size, Some(prefix_len + decoding.max_new_tokens))?;
    let tokens = special_tokens(bundle, &tokenizer);
    let texts = tokenizer.clone();
    let generator = Generator::new(decoding.clone(), tokens)?.comparing(move |ids| texts.decode(ids));
    let beams = match decoding.strategy {
        Strategy::Beam { num_beams, .. } => num_beams,
        _ => 1,
    };
    let rows = rows_together(bundle, runtime, batch_size, prefix_len + decoding.max_new_tokens).max(beams);
    let preprocess = preprocess(bundle, runtime)?;
    let encoder = || -> Result<_, LoadError> {
        let load = || ClipEncoder::load_for(runtime, bundle.path(), bundle.clip_config(), &preprocess, batch_size);
        (!takes_embeddings).then(load).transpose()
    };
    let picked = generator.picked();
    let mapper = || PrefixMapper::load(runtime, bundle.path(), bundle.mapper_config(), batch_size);
    let decoder = || load_decoder(bundle, runtime, prefix_len, rows, decoding.max_new_tokens, picked);
    let check = || check_weights(bundle, parts, runtime.precision());
    let (encoder, mapper, decoder) = if runtime.device().is_cpu() {
        // ONNX Runtime prepares a model on one thread: on the host's cores all are prepared at once, and the weights are checked beside that.
        // Nothing is computed with them before the check has ended, and damage is what is told, whatever else came of it.
        std::thread::scope(|scope| -> Result<_> {
            let (check, encoder, mapper) = (scope.spawn(check), scope.spawn(encoder), scope.spawn(mapper));
            let decoder = decoder();
            joined(check)?;
            Ok((joined(encoder)?, joined(mapper)?, decoder?))
        })?
    } else {
        // A card's memory is taken in one order.
        check()?;
        (encoder()?, mapper()?, decoder()?)
    };
    let encoder = encoder.map(|encoder| Box::new(encoder) as Box<dyn ImageEncoder>);
    Ok(ClipCap {
        encoder,
        mapper: Box::new(mapper),
        decoder,
        generator,
        tokenizer,
        prompt,
        cleaner,
        normalize: bundle.normalized(),
        batch_size,
        scorer: None,
    })
}

/// Tokens a caption can have at most: the last one is never fed, so it needs no position.
pub fn max_new_tokens(bundle: &Bundle, wording: &Wording) -> Result<usize> {
    let prompt = wording.prompt.as_deref().map(|prompt| bundle.tokenizer()?.encode_prompt(prompt).map_err(anyhow::Error::from));
    let taken = bundle.mapper_config().prefix_len + prompt.transpose()?.map_or(0, |ids| ids.len());
    Ok((bundle.decoder_sizes().n_positions + 1).saturating_sub(taken))
}

/// Captions that are decoded together. On the host's cores a step mostly waits for the weights, so that eight rows for each image of a batch
/// pay, as long as their caches of so many positions stay within half a GiB; a card gets its batch.
fn rows_together(bundle: &Bundle, runtime: &Runtime, batch_size: usize, positions: usize) -> usize {
    const CACHES: usize = 512 << 20;
    if !runtime.device().is_cpu() {
        return batch_size;
    }
    let sizes = bundle.decoder_sizes();
    let row = 2 * sizes.n_layer * sizes.n_kv_head * sizes.head_dim * positions * size_of::<f32>();
    (8 * batch_size).min(CACHES / row.max(1)).max(batch_size)
}
