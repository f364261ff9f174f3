//! Captions of some dev images by the model as it stands: a few to be looked at beside what people wrote, and CIDEr of more.

use anyhow::Result;

use super::data::Dataset;
use crate::generation::{FinishedImage, Generator, Request, Settings};
use crate::metrics::{Interner, Scorer};
use crate::models::{Bundle, CachedDecoder, Mapper, PrefixMapper};
use crate::runtime::Runtime;
use crate::stages::evaluate::levels::tokenize;
use crate::stages::evaluate::{Letters, Level};
use crate::stages::loading::{Prompt, special_tokens};
use crate::training::corpus::Corpus;

/// Rows that are decoded side by side.
const ROWS: usize = 32;

/// The images that are captioned at each evaluation, the same each time.
pub struct Watched {
    rows: Vec<usize>,
    /// How many of them are shown, and how many are scored: the first ones.
    num_shown: usize,
    num_scored: usize,
    image_ids: Vec<String>,
    references: Vec<Vec<String>>,
}

/// An image's caption, and what people wrote.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sample {
    pub image_id: String,
    pub caption: String,
    pub references: Vec<String>,
}

/// What captions of an evaluation came to.
pub struct Seen {
    pub samples: Vec<Sample>,
    /// As `evaluate` computes it by characters on these images; none where there is no dev split.
    pub cider: Option<f64>,
}

impl Watched {
    /// The first dev images (training images where there are no dev captions, and then none are scored).
    pub fn new(corpus: &Corpus, dataset: &Dataset, num_shown: usize, num_scored: usize) -> Result<Self> {
        let num_scored = if corpus.dev.is_empty() { 0 } else { num_scored };
        let rows = corpus.sample_images(num_shown.max(num_scored));
        let image_ids = corpus.image_ids(&rows)?;
        let references = dataset.captions_of(&image_ids)?;
        Ok(Self { num_shown: num_shown.min(rows.len()), num_scored: num_scored.min(rows.len()), rows, image_ids, references })
    }

    /// Captions them with a bundle.
    pub fn look(&self, runtime: &Runtime, bundle: &Bundle, corpus: &Corpus) -> Result<Seen> {
        if self.rows.is_empty() {
            return Ok(Seen { samples: vec![], cider: None });
        }
        let captions = captions(runtime, bundle, corpus, &self.rows)?;
        let sample = |at: usize| Sample {
            image_id: self.image_ids[at].clone(),
            caption: captions[at].clone(),
            references: self.references[at].clone(),
        };
        Ok(Seen { samples: (0..self.num_shown).map(sample).collect(), cider: self.cider(&captions) })
    }

    fn cider(&self, captions: &[String]) -> Option<f64> {
        let scored: Vec<(&[String], &[String])> = self.references[..self.num_scored]
            .iter()
            .zip(captions)
            .filter(|(references, _)| !references.is_empty())
            .map(|(references, caption)| (references.as_slice(), std::slice::from_ref(caption)))
            .collect();
        let mut interner = Interner::default();
        let (level, letters) = (Level::Char, Letters::default());
        let references = tokenize(level, letters, &scored, |(references, _)| references, &mut interner);
        let candidates = tokenize(level, letters, &scored, |(_, caption)| caption, &mut interner);
        let scorer = Scorer::new(&references);
        let sum: f64 = candidates.iter().enumerate().map(|(image, candidate)| scorer.ciders(image, candidate)[0]).sum();
        (!scored.is_empty()).then(|| sum / scored.len() as f64)
    }
}

/// Greedy captions of the images in `rows` of the corpus, in that order. They are made on the CPU, where a few cost little.
fn captions(runtime: &Runtime, bundle: &Bundle, corpus: &Corpus, rows: &[usize]) -> Result<Vec<String>> {
    let runtime = runtime.on_cpu();
    let mapper = bundle.mapper_config();
    let tokenizer = bundle.tokenizer()?;
    let embeddings: Vec<f32> = rows.iter().flat_map(|&row| corpus.embedding(row)).collect();
    let at_once = rows.len().min(ROWS);
    let prefixes = PrefixMapper::load(&runtime, bundle.path(), mapper, at_once)?.map(&embeddings, rows.len())?;
    let prompt = Prompt::new(bundle.prompt(), bundle, &tokenizer)?;
    let prefix_len = mapper.prefix_len + prompt.len();
    let settings = Settings::default();
    let max_new_tokens = settings.max_new_tokens.min(bundle.decoder_sizes().n_positions.saturating_sub(prefix_len)).max(1);
    let mut decoder = CachedDecoder::load(&runtime, bundle.path(), bundle.decoder_config(), prefix_len, at_once, max_new_tokens)?;
    let tokens = special_tokens(bundle, &tokenizer);
    let mut generator = Generator::new(Settings { max_new_tokens, ..settings }, tokens)?;
    let width = mapper.prefix_len * mapper.n_embd;
    let mut requests = Some(
        (0..rows.len())
            .map(|n| Request {
                index: n as u64,
                sha256: [0; 32].into(),
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
