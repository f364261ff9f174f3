//! Captions of a few images by the model as it stands, to be looked at while it learns.

use anyhow::Result;

use crate::generation::{FinishedImage, Generator, Request, Settings};
use crate::models::{Bundle, CachedDecoder, Mapper, PrefixMapper};
use crate::runtime::Runtime;
use crate::stages::loading::{Prompt, special_tokens};
use crate::training::corpus::Corpus;

/// Tokens a sample caption has at most.
const MAX_NEW_TOKENS: usize = 40;

/// Greedy captions of the images in `rows` of the corpus, in that order. They are made on the CPU, where a few cost little.
pub fn captions(runtime: &Runtime, bundle: &Bundle, corpus: &Corpus, rows: &[usize]) -> Result<Vec<String>> {
    let runtime = runtime.on_cpu();
    let mapper = bundle.mapper_config();
    let tokenizer = bundle.tokenizer()?;
    let embeddings: Vec<f32> = rows.iter().flat_map(|&row| corpus.embedding(row)).collect();
    let prefixes = PrefixMapper::load(&runtime, bundle.path(), mapper, rows.len())?.map(&embeddings, rows.len())?;
    let prompt = Prompt::new(bundle.prompt(), bundle, &tokenizer)?;
    let prefix_len = mapper.prefix_len + prompt.len();
    let max_new_tokens = MAX_NEW_TOKENS.min(bundle.decoder_sizes().n_positions.saturating_sub(prefix_len)).max(1);
    let mut decoder =
        CachedDecoder::load(&runtime, bundle.path(), bundle.decoder_config(), prefix_len, rows.len(), max_new_tokens)?;
    let tokens = special_tokens(bundle, &tokenizer);
    let mut generator = Generator::new(Settings { max_new_tokens, ..Settings::default() }, tokens)?;
    let width = mapper.prefix_len * mapper.n_embd;
    let mut requests = Some(
        (0..rows.len())
            .map(|n| Request {
                index: n as u64,
                sha256: [0; 32],
                prefix_embeds: prompt.behind(&prefixes[n * width..(n + 1) * width]),
            })
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
