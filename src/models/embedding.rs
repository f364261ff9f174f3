//! Token embeddings, read row by row from the weight file.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use super::config::DecoderConfig;
use super::decoders::architecture;
use super::graphs::{BuildError, GPT2_WEIGHTS};
use super::weights::{DType, SafetensorsFile, WeightsError};
use crate::runtime::RuntimeError;

/// A decoder's token embedding [V, C], float32, mapped and not loaded.
pub struct TokenEmbedding {
    map: Mmap,
    offset: usize,
    vocab_size: usize,
    n_embd: usize,
}

impl TokenEmbedding {
    /// Opens the embedding in a bundle's weights.
    pub fn open(folder: &Path, config: &DecoderConfig) -> Result<Self, BuildError> {
        let path = folder.join(GPT2_WEIGHTS);
        let weights = SafetensorsFile::open(&path)?;
        let sizes = architecture(config).sizes();
        let name = format!("{}.weight", architecture(config).embedding());
        let entry = weights.get(&name)?;
        if entry.dtype != DType::F32 || entry.shape != [sizes.vocab_size, sizes.n_embd] {
            let problem = format!("{name} must be float32 {:?}", [sizes.vocab_size, sizes.n_embd]);
            return Err(WeightsError::Invalid { path, problem }.into());
        }
        let offset = entry.offset as usize;
        let file = File::open(&path).map_err(|source| BuildError::Io { path: path.clone(), source })?;
        // SAFETY: weight files of a bundle are replaced by rename and never edited, so the mapped bytes do not change.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| BuildError::Io { path, source })?;
        Ok(Self { map, offset, vocab_size: sizes.vocab_size, n_embd: sizes.n_embd })
    }

    /// The embeddings [tokens, C].
    pub fn rows(&self, tokens: &[u32]) -> Result<Vec<f32>, RuntimeError> {
        let width = self.n_embd * 4;
        let mut out = Vec::with_capacity(tokens.len() * self.n_embd);
        for &token in tokens {
            let start = self.offset + token as usize * width;
            let row = self.map.get(start..start + width).filter(|_| (token as usize) < self.vocab_size).ok_or_else(|| {
                RuntimeError::Model {
                    model: "decoder".into(),
                    message: format!("token {token} is not in the vocabulary of {}", self.vocab_size),
                }
            })?;
            out.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        Ok(out)
    }
}
