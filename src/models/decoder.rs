//! What generation needs of a decoder: prefill prefixes, start rows from them, step all rows by one token.

use crate::runtime::RuntimeError;

/// A causal language model with a key/value cache for a bounded number of rows.
///
/// Rows are always `0..n` without holes; which caption lives in which row is the caller's business. A row's logits do not depend on the
/// other rows (up to rounding).
pub trait Decoder {
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
}

/// Images to embeddings.
pub trait ImageEncoder {
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
pub trait Mapper {
    /// `embeddings` [num_images, D] -> prefix_embeds [num_images, P, C].
    fn map(&mut self, embeddings: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError>;
}
