//! What transformers generates from the same toy language models (hugging_face.json, written by hugging_face.py).

use serde::Deserialize;

use super::toy::{SEP, Toy, ToyDecoder, UNK, special_tokens};
use crate::generation::sampling::{Buffers, draw};
use crate::generation::{FinishReason, GenerationError, Generator, Sampling, Settings, Strategy};

#[derive(Deserialize)]
struct Cases {
    searches: Vec<SearchCase>,
    samples: Vec<SampleCase>,
}

#[derive(Deserialize)]
#[serde(remote = "Toy")]
struct ToyFields {
    vocab_size: usize,
    seed: u16,
    memory: u8,
    sep_bias: i8,
}

#[derive(Deserialize)]
struct SearchCase {
    #[serde(with = "ToyFields")]
    toy: Toy,
    /// 0: greedy.
    num_beams: usize,
    num_captions: usize,
    length_penalty: f64,
    repetition_penalty: f64,
    no_repeat_ngram_size: usize,
    min_new_tokens: usize,
    max_new_tokens: usize,
    /// Token ids of each caption, [SEP] included.
    expected: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct SampleCase {
    #[serde(with = "ToyFields")]
    toy: Toy,
    temperature: f64,
    top_k: usize,
    top_p: f64,
    /// Tokens that may be drawn and their probabilities, likeliest first.
    expected: Vec<(u32, f64)>,
}

fn cases() -> Cases {
    serde_json::from_str(include_str!("hugging_face.json")).expect("the file is in the repository")
}

#[test]
fn greedy_and_beam_search_find_what_transformers_finds() {
    for case in cases().searches {
        let strategy = match case.num_beams {
            0 => Strategy::Greedy,
            num_beams => Strategy::Beam { num_beams, length_penalty: case.length_penalty },
        };
        let settings = Settings {
            strategy,
            num_captions: case.num_captions,
            min_new_tokens: case.min_new_tokens,
            max_new_tokens: case.max_new_tokens,
            repetition_penalty: case.repetition_penalty,
            no_repeat_ngram_size: case.no_repeat_ngram_size,
            loop_guard: false,
        };
        let mut generator = Generator::new(settings.clone(), special_tokens()).expect("valid settings");
        let mut decoder = ToyDecoder::new(case.toy.vocab_size, 7, case.max_new_tokens);
        let mut requests = Some(vec![case.toy.request(0)]);
        let mut found = Vec::new();
        let next = || Ok::<_, GenerationError>(requests.take());
        let done = |image: crate::generation::FinishedImage| {
            found.extend(image.captions);
            Ok(())
        };
        generator.run(&mut decoder, next, done).expect("a toy decoder has no reason to fail");
        let found: Vec<Vec<u32>> = found
            .into_iter()
            .map(|caption| {
                let end = (caption.finish_reason == FinishReason::Eos).then_some(SEP);
                caption.token_ids.into_iter().chain(end).collect()
            })
            .collect();
        assert_eq!(found, case.expected, "{:?} of {:?}", settings, case.toy);
    }
}

#[test]
fn sampling_draws_from_the_distribution_of_transformers() {
    let mut buffers = Buffers::default();
    for case in cases().samples {
        let sampling = Sampling { temperature: case.temperature, top_k: case.top_k, top_p: case.top_p, ..Sampling::default() };
        let mut logits = case.toy.logits(&[]);
        logits[UNK as usize] = f32::NEG_INFINITY;
        let mut sum = 0.0;
        for (token, probability) in case.expected {
            // Both ends of the token's share, so that a neighbour's boundary that lies elsewhere shows.
            for place in [0.01, 0.99] {
                let uniform = sum + place * probability;
                if probability > 1e-4 {
                    let drawn = draw(&mut logits.clone(), &sampling, uniform, &mut buffers);
                    assert_eq!(drawn, Some(token as usize), "{sampling:?} of {:?} at {uniform}", case.toy);
                }
            }
            sum += probability;
        }
        assert!((sum - 1.0).abs() < 1e-4, "the file holds whole distributions");
    }
}
