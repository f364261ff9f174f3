//! Captions of a few images by the model as it stands, to be looked at while it learns.

use anyhow::Result;

use crate::generation::{FinishedImage, Generator, Request, Settings, SpecialTokens};
use crate::models::{Bundle, CachedDecoder, Mapper, PrefixMapper};
use crate::runtime::Runtime;
use crate::text::Tokenizer;
use crate::training::corpus::Corpus;

/// Tokens a sample caption has at most.
const MAX_NEW_TOKENS: usize = 40;

/// Greedy captions of the images in `rows` of the corpus, in that order. They are made on the CPU, where a few cost little.
pub fn captions(runtime: &Runtime, bundle: &Bundle, corpus: &Corpus, rows: &[usize]) -> Result<Vec<String>> {
    let runtime = runtime.on_cpu();
    let (mapper, gpt2) = (bundle.mapper_config(), bundle.gpt2_config());
    let tokenizer = Tokenizer::open(&bundle.vocab_path(), bundle.lower_case())?;
    let embeddings: Vec<f32> = rows.iter().flat_map(|&row| corpus.embedding(row)).collect();
    let prefixes = PrefixMapper::load(&runtime, bundle.path(), mapper, rows.len())?.map(&embeddings, rows.len())?;
    let max_new_tokens = MAX_NEW_TOKENS.min(gpt2.n_positions - mapper.prefix_len);
    let mut decoder = CachedDecoder::load(&runtime, bundle.path(), gpt2, mapper.prefix_len, rows.len(), max_new_tokens)?;
    let tokens = SpecialTokens { sep: tokenizer.sep_id(), banned: vec![tokenizer.unk_id()] };
    let mut generator = Generator::new(Settings { max_new_tokens, ..Settings::default() }, tokens)?;
    let width = mapper.prefix_len * mapper.n_embd;
    let mut requests = Some(
        (0..rows.len())
            .map(|n| Request { index: n as u64, sha256: [0; 32], prefix_embeds: prefixes[n * width..(n + 1) * width].to_vec() })
            .collect::<Vec<_>>(),
    );
    let mut texts = vec![String::new(); rows.len()];
    generator.run::<anyhow::Error>(
        &mut decoder,
        || Ok(requests.take()),
        |FinishedImage { index, captions }| {
            texts[index as usize] = captions.first().map(|caption| tokenizer.decode(&caption.token_ids)).unwrap_or_default();
            Ok(())
        },
    )?;
    Ok(texts)
}
