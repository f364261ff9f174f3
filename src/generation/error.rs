//! What can go wrong between a prefix and its captions.

use super::SettingsError;
use crate::runtime::RuntimeError;

/// Why no captions can be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Decoder(#[from] RuntimeError),
    #[error(
        "--num-beams {num_beams} needs {num_beams} rows at a time, and the decoder holds {max_rows}: raise --batch-size or lower --num-beams"
    )]
    TooFewRows { num_beams: usize, max_rows: usize },
    #[error("--max-new-tokens {max_new_tokens} is more than this model has positions for: {limit} at most after the prefix")]
    TooManyTokens { max_new_tokens: usize, limit: usize },
    #[error(
        "token {id} ({what}) is outside the decoder's vocabulary of {vocab_size}: the vocabulary and the decoder's weights do not belong together"
    )]
    UnknownToken { what: &'static str, id: u32, vocab_size: usize },
    #[error("image {index}: its prefix has {found} numbers, and the decoder needs {prefix_len} x {n_embd}")]
    Prefix { index: u64, found: usize, prefix_len: usize, n_embd: usize },
    #[error("the decoder returned {found} logits, and {rows} x {vocab_size} are needed")]
    Logits { found: usize, rows: usize, vocab_size: usize },
    #[error("the decoder's logits are not finite after {num_tokens} tokens")]
    NotFinite { index: u64, num_tokens: usize },
}
