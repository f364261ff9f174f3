//! What the stages that run a model share: what results depend on, and sessions for its parts.

use std::thread::ScopedJoinHandle;

use serde_json::{Value as Json, json};

use crate::generation::SpecialTokens;
use crate::image::{Preprocess, PreprocessError};
use crate::models::{Bundle, BundleError, Decoder, Picked, ResidentDecoder, TokenEmbedding};
use crate::models::{CachedDecoder, LoadError};
use crate::runtime::{Device, Precision, Runtime};
use crate::text::Tokenizer;

/// The device, the precision, the runtime's build and the CPU's type, and static scales where there are any: results are the same bytes where
/// these are the same.
pub(super) fn compute_identity(bundle: &Bundle, runtime: &Runtime) -> Json {
    let mut identity = json!({
        "device": match runtime.device() {
            // Which of several devices of a kind computes changes nothing.
            Device::Cuda(_) => "cuda".to_string(),
            device => device.to_string(),
        },
        "precision": runtime.precision().to_string(),
        "runtime": format!("{} ({})", runtime.version(), runtime.build_info()),
        "cpu": cpu_type(),
    });
    if let Some((_, version)) = runtime.openvino() {
        identity["openvino"] = version.into();
    }
    // Another kind of card has other kernels, and so has another CUDA; several cards have other batches.
    if let Some(card) = runtime.cards().first() {
        let (major, minor) = card.capability;
        identity["card"] = format!("{} ({major}.{minor})", card.name).into();
        identity["driver"] = format!("CUDA {}.{}", card.driver.0, card.driver.1).into();
        if runtime.cards().len() > 1 {
            identity["cards"] = runtime.cards().len().into();
        }
    }
    // The same model has other scales where other inputs were looked at.
    let int8 =
        bundle.manifest().int8.as_ref().filter(|int8| runtime.precision() == Precision::Int8 && int8.calibration.is_some());
    if let Some(int8) = int8 {
        identity["int8"] = int8.fingerprint.as_str().into();
    }
    identity
}

/// The processor's name: its kernels are chosen by it.
pub(super) fn cpu_type() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_string()));
    name.unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// What ends a caption, and what is never said.
pub(super) fn special_tokens(bundle: &Bundle, tokenizer: &Tokenizer) -> SpecialTokens {
    // A vocabulary may end before the model's does: what has no entry stands for no text.
    SpecialTokens {
        ends: tokenizer.ends().to_vec(),
        end_is_text: tokenizer.end_is_text(),
        banned: tokenizer.banned_ids(bundle.decoder_sizes().vocab_size),
    }
}

/// Text that captions go on from, as embeddings behind every prefix.
pub(super) struct Prompt {
    ids: Vec<u32>,
    embeds: Vec<f32>,
}

impl Prompt {
    pub fn new(text: Option<&str>, bundle: &Bundle, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let ids = text.map(|text| tokenizer.encode_prompt(text)).transpose()?.unwrap_or_default();
        let embeds = match ids.is_empty() {
            true => vec![],
            false => TokenEmbedding::open(bundle.path(), bundle.decoder_config())?.rows(&ids)?,
        };
        Ok(Self { ids, embeds })
    }

    /// Positions that it takes.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// A prefix [P, C] with the prompt behind it.
    pub fn behind(&self, prefix: &[f32]) -> Vec<f32> {
        [prefix, &self.embeds].concat()
    }
}

/// How a bundle's pictures are prepared. A card is given bytes and does the last step itself.
pub(super) fn preprocess(bundle: &Bundle, runtime: &Runtime) -> Result<Preprocess, PreprocessError> {
    let preprocess = Preprocess::from_file(&bundle.preprocessor_path())?;
    let on_card = matches!(runtime.device(), Device::Cuda(_) | Device::Cards(_));
    Ok(if on_card { preprocess.packed() } else { preprocess })
}

/// The decoder where it runs best: on CUDA with its caches there, else on the CPU provider.
pub(super) fn load_decoder(
    bundle: &Bundle,
    runtime: &Runtime,
    prefix_len: usize,
    rows: usize,
    max_new_tokens: usize,
    picked: Picked,
) -> Result<Box<dyn Decoder>, LoadError> {
    let (folder, config) = (bundle.path(), bundle.decoder_config());
    Ok(match runtime.device() {
        Device::Cuda(_) | Device::Cards(_) => {
            Box::new(ResidentDecoder::load(runtime, folder, config, prefix_len, rows, max_new_tokens, picked)?)
        }
        Device::OpenVino => {
            let cpu = runtime.on_cpu();
            Box::new(CachedDecoder::load(&cpu, folder, config, prefix_len, rows, max_new_tokens)?)
        }
        Device::Cpu | Device::Auto => Box::new(CachedDecoder::load(runtime, folder, config, prefix_len, rows, max_new_tokens)?),
    })
}

/// Compares the weights that are computed with in this precision with their checksums.
pub(super) fn check_weights(bundle: &Bundle, parts: &[&str], precision: Precision) -> Result<(), BundleError> {
    bundle.check_bytes(parts)?;
    if precision == Precision::Int8 {
        bundle.check_int8()?;
    }
    Ok(())
}

/// What a thread came to; its panic goes on here.
pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A precision that the bundle has no weights for is refused before anything is read.
pub(super) fn check_precision(bundle: &Bundle, runtime: &Runtime) -> anyhow::Result<()> {
    if runtime.precision() != Precision::Int8 {
        return Ok(());
    }
    let path = bundle.path().display();
    if bundle.manifest().int8.is_none() {
        anyhow::bail!(
            "{path}: this bundle has no int8 weights; `clipcap model quantize {path} --out BUNDLE` makes a bundle that has them"
        );
    }
    if runtime.device() == Device::OpenVino && lacks_static_scales(bundle) {
        anyhow::bail!(
            "{path}: OpenVINO needs int8 weights with static scales; `clipcap model quantize {path} --calibrate IMAGES --out BUNDLE` makes a \
             bundle that has them"
        );
    }
    Ok(())
}

/// Whether OpenVINO has no use for a bundle's 8-bit image encoder.
pub(super) fn lacks_static_scales(bundle: &Bundle) -> bool {
    let calibration = bundle.manifest().int8.as_ref().and_then(|int8| int8.calibration.as_ref());
    !calibration.is_some_and(|c| c.parts.contains_key("image_encoder"))
}

/// Divides by the Euclidean length; a vector of zeros stays one.
pub(super) fn scale_to_length_1(embedding: &mut [f32]) {
    let length = embedding.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    if length > 0.0 {
        embedding.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_become_1() {
        let mut embedding = [3.0, 0.0, -4.0];
        scale_to_length_1(&mut embedding);
        assert_eq!(embedding, [0.6, 0.0, -0.8]);
        let mut zeros = [0.0; 2];
        scale_to_length_1(&mut zeros);
        assert_eq!(zeros, [0.0; 2]);
    }
}
