//! Whether a model and its batches fit on a card, before anything is loaded.

use anyhow::{Result, bail};

use crate::models::{Bundle, MOST_PREFIXES};
use crate::runtime::{Precision, Runtime};

/// What a card keeps for itself and for CUDA.
const OWN: u64 = 1 << 30;

/// What a run holds on a card, in bytes: in any case, for each of a batch's images, and for each of those whose prefixes are run together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Need {
    fixed: u64,
    each: u64,
    prefix: u64,
}

impl Need {
    /// Prefixes that are run together at most.
    const PREFIXES: u64 = MOST_PREFIXES as u64;

    fn of(&self, batch: usize) -> u64 {
        let batch = batch as u64;
        self.fixed + self.each * batch + self.prefix * batch.min(Self::PREFIXES)
    }

    /// The greatest batch that fits into so much; None where not even one does.
    fn fitting(&self, memory: u64) -> Option<u64> {
        let left = memory.checked_sub(self.fixed)?;
        let few = left / (self.each + self.prefix).max(1);
        let batch = match few < Self::PREFIXES {
            true => few,
            false => left.saturating_sub(self.prefix * Self::PREFIXES) / self.each.max(1),
        };
        (batch > 0).then_some(batch)
    }
}

/// Refuses a batch whose model, caches and activations do not fit on the smallest of the cards. `positions`: prefix and caption; None where
/// nothing is decoded. Estimated from the sizes, a little high.
///
/// # Errors
/// What would be needed, what is there, and which batch fits.
pub fn check_card(bundle: &Bundle, runtime: &Runtime, batch: usize, positions: Option<usize>) -> Result<()> {
    let Some(card) = runtime.cards().iter().min_by_key(|card| card.memory) else { return Ok(()) };
    let need = need(bundle, runtime.precision(), positions);
    let room = card.memory.saturating_sub(OWN);
    if need.of(batch) <= room {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let advice = match need.fitting(room) {
        Some(batch) => format!("--batch-size {batch} fits"),
        None if runtime.precision() == Precision::Fp32 => "not even the model fits: try --precision fp16".into(),
        None => "the model does not fit on this card".into(),
    };
    bail!(
        "--batch-size {batch} needs about {:.1} GiB on {card}, and {:.1} GiB are free for it: {advice}",
        gib(need.of(batch)),
        gib(room)
    )
}

fn need(bundle: &Bundle, precision: Precision, positions: Option<usize>) -> Need {
    let width = if precision == Precision::Fp32 { 4 } else { 2 };
    let parameters = |part: &str| bundle.manifest().parts.get(part).map_or(0, |record| record.facts.parameters);
    let side = bundle.clip_config().vision_config.image_size() as u64;
    // Pixels as they come, as places in a table and in the model's type, and what an encoder of patches of 16 with 4 times as wide feed-forwards keeps of a layer.
    let pixels = 3 * side * side * (1 + 4 + width);
    let tokens = (side / 16).pow(2) + 1;
    let encoder = pixels + tokens * 1024 * 12 * width + 16 * tokens * tokens * 2 * width;
    let Some(positions) = positions else { return Need { fixed: parameters("clip") * width, each: encoder, prefix: 0 } };
    let sizes = bundle.decoder_sizes();
    let cache = (2 * sizes.n_layer * sizes.n_kv_head * sizes.head_dim * positions) as u64 * width;
    // The caches, which steps write in place; logits as they come, shifted and raised, of steps and of prefixes.
    let decoder = cache + 5 * 4 * sizes.vocab_size as u64;
    // Prefill and step have the decoder's weights each.
    let fixed = (parameters("clip") + parameters("mapper") + 2 * parameters("gpt2")) * width;
    // Prefixes wait for a row, and are there once more while they are copied.
    Need { fixed, each: encoder + decoder, prefix: 2 * cache }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_batch_that_fits_is_named() {
        let need = Need { fixed: 1000, each: 10, prefix: 0 };
        assert_eq!(need.of(5), 1050);
        assert_eq!(need.fitting(1059), Some(5));
        assert_eq!((need.fitting(1009), need.fitting(900)), (None, None));
        let need = Need { prefix: 30, ..need };
        for batch in [1, 127, 128, 129, 1000] {
            let whole = need.of(batch);
            assert_eq!((need.fitting(whole), need.fitting(whole - 1).unwrap_or(0)), (Some(batch as u64), batch as u64 - 1));
        }
    }
}
