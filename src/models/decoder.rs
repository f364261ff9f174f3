//! What generation needs of a decoder: prefill prefixes, start rows from them, step all rows by one token.

use std::borrow::Cow;

use crate::runtime::RuntimeError;

/// A causal language model with a key/value cache for a bounded number of rows.
///
/// Rows are always `0..n` without holes; which caption lives in which row is the caller's business. A row's logits do not depend on the
/// other rows (up to rounding).
pub trait Decoder: Send {
    /// Entries of the vocabulary, V.
    fn vocab_size(&self) -> usize;
    /// Positions of a prefix, P.
    fn prefix_len(&self) -> usize;
    /// Width of a state, C.
    fn n_embd(&self) -> usize;
    /// Rows that decode together at most.
    fn max_rows(&self) -> usize;
    /// Caption tokens a row can hold after its prefix (bounded by n_positions and by the cache's size).
    fn max_new_tokens(&self) -> usize;

    /// Runs `num_prefixes` prefixes, `prefix_embeds` [num_prefixes, P, C], and holds their caches until the next call.
    /// Returns the logits [num_prefixes, V] of the first caption token.
    fn prefill(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Vec<f32>, RuntimeError>;

    /// Appends a row that continues held prefix `prefix`; its index is the number of rows there were.
    fn start_row(&mut self, prefix: usize) -> Result<(), RuntimeError>;

    /// New row `i` is old row `sources[i]`; there are `sources.len()` rows afterwards. Serves rows that finished and beams that moved;
    /// a source may be named several times. Rows with `sources[i] == i` cost nothing.
    fn gather_rows(&mut self, sources: &[usize]) -> Result<(), RuntimeError>;

    /// Feeds `tokens[i]` to row `i` (one for each row) and returns the logits [rows, V] of what follows.
    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], RuntimeError>;

    /// Prefixes that are run together at most.
    fn max_prefixes(&self) -> usize {
        16
    }

    /// As [`prefill`](Self::prefill), with the best logits of each row alone where the device picks them.
    fn prefill_best(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Logits<'_>, RuntimeError> {
        Ok(Logits::Whole(Cow::Owned(self.prefill(prefix_embeds, num_prefixes)?)))
    }

    /// As [`step`](Self::step), with the best logits of each row alone where the device picks them.
    fn step_best(&mut self, tokens: &[u32]) -> Result<Logits<'_>, RuntimeError> {
        Ok(Logits::Whole(Cow::Borrowed(self.step(tokens)?)))
    }

    /// The whole logits [rows.len(), V] of some rows of the last run, where that gave the best alone.
    fn whole_rows(&mut self, rows: &[usize]) -> Result<Vec<f32>, RuntimeError> {
        let message = format!("rows {rows:?} of logits were given as a whole");
        Err(RuntimeError::Model { model: "decoder".into(), message })
    }
}

/// What a run says of the next token.
pub enum Logits<'a> {
    /// [rows, V]
    Whole(Cow<'a, [f32]>),
    Best(Best),
}

/// The best logits of each row, as a device picked them.
#[derive(Debug, Clone, Default)]
pub struct Best {
    /// How many of each row, K.
    pub count: usize,
    /// [rows, 2 K + 2]: the best logits, best first; their tokens; the logarithm of the sum of all exponentials; the same of the logits divided
    /// by the temperature.
    pub numbers: Vec<f32>,
}

/// Which [`Best`] a decoder should pick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Picked {
    /// How many of each row at most.
    pub count: usize,
    pub temperature: f64,
}

/// Images to embeddings.
pub trait ImageEncoder: Send {
    /// Length of an embedding, D.
    fn embedding_dim(&self) -> usize;
    /// Images that are encoded together at most; the caller may hand over fewer.
    fn max_batch(&self) -> usize;
    /// `pixel_values` [num_images, 3, S, S] normalized -> embeddings [num_images, D], projected and not normalized.
    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError>;
    /// The same for images that do not lie one behind the other, [3, S, S] each.
    fn encode_each(&mut self, images: &[&[f32]]) -> Result<Vec<f32>, RuntimeError> {
        self.encode(&images.concat(), images.len())
    }
}

/// One encoder may serve several runs, one after the other.
impl<E: ImageEncoder + ?Sized> ImageEncoder for &mut E {
    fn embedding_dim(&self) -> usize {
        (**self).embedding_dim()
    }

    fn max_batch(&self) -> usize {
        (**self).max_batch()
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError> {
        (**self).encode(pixel_values, num_images)
    }

    fn encode_each(&mut self, images: &[&[f32]]) -> Result<Vec<f32>, RuntimeError> {
        (**self).encode_each(images)
    }
}

/// Embeddings to prefixes.
pub trait Mapper: Send {
    /// `embeddings` [num_images, D] -> prefix_embeds [num_images, P, C].
    fn map(&mut self, embeddings: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError>;
}
