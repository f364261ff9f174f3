//! Whatever the batch: the captions are those of one row at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::naive;
use super::toy::{SEP, Toy, ToyDecoder, special_tokens};
use crate::generation::{
    Caption, DecodeStats, FinishReason, FinishedImage, GenerationError, Generator, Sampling, Settings, Strategy as Decoding,
};
use crate::models::Picked;

/// Runs `toys` through a generator, `split` images at a time.
fn run(toys: &[Toy], settings: &Settings, decoder: &mut ToyDecoder, split: usize) -> (Vec<FinishedImage>, DecodeStats) {
    let mut generator = Generator::new(settings.clone(), special_tokens()).expect("valid settings");
    let mut batches = toys.iter().enumerate().map(|(i, toy)| toy.request(i as u64)).collect::<Vec<_>>();
    let mut ended = false;
    let mut finished = Vec::new();
    let next = || {
        assert!(!ended, "asked again after the end");
        ended = batches.is_empty();
        let batch = batches.drain(..split.min(batches.len())).collect();
        Ok::<_, GenerationError>(if ended { None } else { Some(batch) })
    };
    let done = |image| {
        finished.push(image);
        Ok(())
    };
    let stats = generator.run(decoder, next, done).expect("a toy decoder has no reason to fail");
    (finished, stats)
}

fn by_index(finished: Vec<FinishedImage>) -> BTreeMap<u64, Vec<Caption>> {
    let count = finished.len();
    let map: BTreeMap<u64, Vec<Caption>> = finished.into_iter().map(|image| (image.index, image.captions)).collect();
    assert_eq!(map.len(), count, "an image was reported twice");
    map
}

fn agree(found: &[Caption], wanted: &[Caption]) {
    let outline = |captions: &[Caption]| -> Vec<(Vec<u32>, usize, FinishReason)> {
        captions.iter().map(|c| (c.token_ids.clone(), c.num_tokens, c.finish_reason)).collect()
    };
    assert_eq!(outline(found), outline(wanted));
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found.logprob - wanted.logprob).abs() < 1e-4, "{} for {}", found.logprob, wanted.logprob);
    }
}

fn toys(vocab_size: usize) -> impl Strategy<Value = Vec<Toy>> {
    let toy = (any::<u16>(), prop_oneof![Just(1u8), Just(2), Just(100)], -4i8..8).prop_map(move |(seed, memory, sep_bias)| Toy {
        vocab_size,
        seed,
        memory,
        sep_bias,
    });
    prop::collection::vec(toy, 0..14)
}

fn settings() -> impl Strategy<Value = Settings> {
    let sampling = (0.5f64..2.0, prop_oneof![Just(0usize), 1usize..9], prop_oneof![Just(1.0), 0.3f64..0.99], any::<bool>())
        .prop_map(|(temperature, top_k, top_p, distinct)| Sampling { temperature, top_k, top_p, distinct, seed: 5 });
    let strategy = prop_oneof![
        Just((Decoding::Greedy, 1)),
        (sampling, 1usize..6).prop_map(|(sampling, n)| (Decoding::Sample(sampling), n)),
        (1usize..6, 1usize..6, -1.0f64..2.0)
            .prop_map(|(beams, n, length_penalty)| (Decoding::Beam { num_beams: beams, length_penalty }, n.min(beams))),
    ];
    let rules = (0usize..6, 1usize..30, prop_oneof![Just(1.0), 0.7f64..2.0], 0usize..4, any::<bool>());
    (strategy, rules).prop_map(|((strategy, num_captions), (min, max, repetition_penalty, no_repeat_ngram_size, loop_guard))| {
        Settings {
            strategy,
            num_captions,
            min_new_tokens: min.min(max),
            max_new_tokens: max,
            repetition_penalty,
            no_repeat_ngram_size,
            loop_guard,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn captions_do_not_depend_on_the_batch(
        (vocab_size, toys) in prop_oneof![3usize..7, 7usize..200].prop_flat_map(|v| (Just(v), toys(v))),
        settings in settings(),
        spare_rows in 0usize..12,
        split in 1usize..6,
        picked in prop_oneof![Just(None), (1usize..40).prop_map(Some)],
    ) {
        let max_rows = settings.rows_per_search() + spare_rows;
        let mut decoder = ToyDecoder::new(vocab_size, max_rows, settings.max_new_tokens);
        // Whether a device picks the best logits of each row, and how many, changes nothing.
        let temperature = match &settings.strategy {
            Decoding::Sample(sampling) => sampling.temperature,
            _ => 1.0,
        };
        decoder.picked = picked.map(|count| Picked { count, temperature });
        let (finished, stats) = run(&toys, &settings, &mut decoder, split);
        prop_assert_eq!(stats.num_images, toys.len() as u64);
        prop_assert_eq!(stats.num_row_steps, decoder.num_row_steps as u64);
        let finished = by_index(finished);
        prop_assert_eq!(finished.len(), toys.len());
        for (index, toy) in toys.iter().enumerate() {
            let captions = &finished[&(index as u64)];
            prop_assert!(!captions.is_empty());
            if let Some(wanted) = naive::captions(toy, &settings) {
                agree(captions, &wanted);
            }
        }
    }
}

fn endless(count: u16) -> Vec<Toy> {
    (0..count).map(|seed| Toy { vocab_size: 50, seed, memory: 100, sep_bias: -100 }).collect()
}

#[test]
fn the_best_logits_are_mostly_enough() {
    let sampling = Sampling { top_p: 0.2, seed: 3, ..Sampling::default() };
    for strategy in [Decoding::Greedy, Decoding::Sample(sampling), Decoding::Beam { num_beams: 3, length_penalty: 1.0 }] {
        let settings = Settings { strategy, max_new_tokens: 10, loop_guard: false, ..Settings::default() };
        let mut decoder = ToyDecoder::new(5000, 8, 10);
        decoder.picked = Some(Picked { count: 128, temperature: 1.0 });
        let toys: Vec<Toy> = (0..20).map(|seed| Toy { vocab_size: 5000, seed, memory: 100, sep_bias: -100 }).collect();
        run(&toys, &settings, &mut decoder, 3);
        let share = decoder.num_whole_rows as f64 / (decoder.num_row_steps + decoder.num_prefixes) as f64;
        // A draw next to a boundary is left to the whole row, and in a flat distribution there are many boundaries.
        let most = if matches!(settings.strategy, Decoding::Sample(_)) { 0.1 } else { 0.05 };
        assert!(share < most, "{:?}: {share}", settings.strategy);
    }
}

#[test]
fn rows_stay_full_while_images_last() {
    // Every caption has exactly 10 tokens: 9 steps after its prefill's.
    let settings = Settings { max_new_tokens: 10, loop_guard: false, ..Settings::default() };
    let mut decoder = ToyDecoder::new(50, 8, 10);
    let (finished, stats) = run(&endless(64), &settings, &mut decoder, 3);
    assert_eq!(finished.len(), 64);
    assert_eq!((stats.num_steps, stats.num_row_steps), (9 * 8, 9 * 64));
    assert_eq!(decoder.prefills, [8; 8]);
    assert_eq!(stats.num_tokens, 640);
}

#[test]
fn finished_rows_give_way_at_once() {
    // Captions of very different lengths still leave no row empty until the images run out.
    let toys: Vec<Toy> = (0..200).map(|seed| Toy { vocab_size: 60, seed, memory: 100, sep_bias: 3 }).collect();
    let settings = Settings { max_new_tokens: 40, ..Settings::default() };
    let mut decoder = ToyDecoder::new(60, 8, 40);
    let (_, stats) = run(&toys, &settings, &mut decoder, 200);
    let tail = 8 * 40;
    assert!(stats.num_steps * 8 <= stats.num_row_steps + tail, "{stats:?}");
    // A hole is filled by one row, not by moving all that follow it.
    assert!(stats.num_moved_rows <= 200, "{stats:?}");
}

#[test]
fn one_prefill_serves_all_captions_of_an_image() {
    let sampling = Sampling { seed: 1, ..Sampling::default() };
    let settings = Settings { strategy: Decoding::Sample(sampling), num_captions: 5, max_new_tokens: 6, ..Settings::default() };
    let mut decoder = ToyDecoder::new(50, 7, 6);
    let (finished, _) = run(&endless(20), &settings, &mut decoder, 4);
    assert_eq!(decoder.num_prefixes, 20);
    assert!(finished.iter().all(|image| image.captions.len() == 5));
}

#[test]
fn how_images_are_handed_over_changes_no_batch() {
    let toys: Vec<Toy> = (0..40).map(|seed| Toy { vocab_size: 60, seed, memory: 100, sep_bias: 3 }).collect();
    let settings = Settings { max_new_tokens: 20, ..Settings::default() };
    let mut decoders: Vec<ToyDecoder> = (0..4).map(|_| ToyDecoder::new(60, 8, 20)).collect();
    let mut finished: Vec<_> =
        decoders.iter_mut().zip([1, 3, 16, 40]).map(|(decoder, split)| run(&toys, &settings, decoder, split).0).collect();
    let first = finished.remove(0);
    assert!(finished.iter().all(|other| *other == first));
    assert!(decoders.iter().all(|decoder| decoder.prefills == decoders[0].prefills));
    assert!(decoders.iter().all(|decoder| decoder.num_steps == decoders[0].num_steps));
}

#[test]
fn an_immediate_end_is_an_empty_caption() {
    let toy = Toy { vocab_size: 20, seed: 3, memory: 100, sep_bias: 100 };
    let mut decoder = ToyDecoder::new(20, 2, 67);
    let (finished, _) = run(&[toy; 5], &Settings::default(), &mut decoder, 5);
    assert_eq!(decoder.num_steps, 0, "an empty caption needs no row");
    for image in finished {
        let [caption] = image.captions.as_slice() else { panic!("one caption an image") };
        assert_eq!((caption.token_ids.len(), caption.num_tokens), (0, 1));
        assert_eq!((caption.finish_reason, caption.logprob), (FinishReason::Eos, 0.0));
    }
}

#[test]
fn no_images_are_no_work() {
    let mut decoder = ToyDecoder::new(20, 2, 67);
    let (finished, stats) = run(&[], &Settings::default(), &mut decoder, 1);
    assert!(finished.is_empty());
    assert_eq!((stats.num_steps, stats.num_prefills), (0, 0));
}

#[test]
fn distinct_compares_what_a_reader_sees() {
    // Texts are the lengths of captions: many captions, few texts.
    let toys: Vec<Toy> = (0..10).map(|seed| Toy { vocab_size: 40, seed, memory: 100, sep_bias: 9 }).collect();
    let sampling = Sampling { temperature: 2.0, distinct: true, ..Sampling::default() };
    let settings = Settings { strategy: Decoding::Sample(sampling), num_captions: 6, max_new_tokens: 8, ..Settings::default() };
    let generator = Generator::new(settings, special_tokens()).expect("valid settings");
    let mut generator = generator.comparing(|tokens| tokens.len().to_string());
    let mut requests = Some(toys.iter().enumerate().map(|(i, toy)| toy.request(i as u64)).collect::<Vec<_>>());
    let mut counts = Vec::new();
    let mut decoder = ToyDecoder::new(40, 4, 8);
    let next = || Ok::<_, GenerationError>(requests.take());
    let done = |image: FinishedImage| {
        let mut lengths: Vec<usize> = image.captions.iter().map(|caption| caption.token_ids.len()).collect();
        counts.push(lengths.len());
        lengths.sort_unstable();
        lengths.dedup();
        assert_eq!(lengths.len(), image.captions.len(), "a text came twice");
        Ok(())
    };
    generator.run(&mut decoder, next, done).expect("a toy decoder has no reason to fail");
    assert_eq!(counts.len(), 10);
    assert!(counts.iter().all(|&count| (1..=6).contains(&count)) && counts.iter().any(|&count| count < 6), "{counts:?}");
}

#[test]
fn beam_search_over_a_tiny_vocabulary_finds_what_trying_everything_finds() {
    // With as many beams as there are hypotheses of any length, nothing is pruned: the search must find the best of all.
    let settings = Settings {
        strategy: Decoding::Beam { num_beams: 200, length_penalty: 0.0 },
        num_captions: 5,
        max_new_tokens: 4,
        loop_guard: false,
        ..Settings::default()
    };
    for seed in 0..20 {
        let toy = Toy { vocab_size: 5, seed, memory: 100, sep_bias: 2 };
        let mut all: Vec<(f64, Vec<u32>)> = Vec::new();
        let mut open: Vec<(f64, Vec<u32>)> = vec![(0.0, Vec::new())];
        while let Some((score, tokens)) = open.pop() {
            let logits = toy.logits(&tokens);
            let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            for id in [0u32, 2, 3, 4] {
                let score = score + f64::from(logits[id as usize]) - sum.ln();
                let mut longer = tokens.clone();
                if id != SEP {
                    longer.push(id);
                }
                if id == SEP || longer.len() == 4 { all.push((score, longer)) } else { open.push((score, longer)) }
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (finished, _) = run(&[toy], &settings, &mut ToyDecoder::new(5, 200, 4), 1);
        for (caption, (score, tokens)) in finished[0].captions.iter().zip(&all) {
            assert_eq!(&caption.token_ids, tokens, "seed {seed}");
            assert!((caption.logprob - score).abs() < 1e-4);
        }
        assert_eq!(finished[0].captions.len(), 5);
    }
}

#[test]
fn samples_follow_the_models_distribution() {
    const CAPTIONS: usize = 20_000;
    let toy = Toy { vocab_size: 12, seed: 77, memory: 100, sep_bias: 0 };
    let sampling = Sampling { temperature: 8.0, top_k: 8, top_p: 0.9, seed: 11, ..Sampling::default() };
    let settings =
        Settings { strategy: Decoding::Sample(sampling), num_captions: CAPTIONS, max_new_tokens: 1, ..Settings::default() };
    let (finished, _) = run(&[toy], &settings, &mut ToyDecoder::new(12, 4, 1), 1);
    let mut counts = [0usize; 12];
    for caption in &finished[0].captions {
        counts[caption.token_ids.first().copied().unwrap_or(SEP) as usize] += 1;
    }
    let mut ranked: Vec<(usize, f64)> = toy.logits(&[]).iter().map(|&l| (f64::from(l) / 8.0).exp()).enumerate().collect();
    ranked.remove(1);
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(8);
    let total: f64 = ranked.iter().map(|r| r.1).sum();
    let mut kept = 0.0;
    ranked.retain(|r| {
        let keep = kept < 0.9 * total;
        kept += if keep { r.1 } else { 0.0 };
        keep
    });
    let chi2: f64 = ranked
        .iter()
        .map(|&(id, w)| (counts[id] as f64 - CAPTIONS as f64 * w / kept).powi(2) / (CAPTIONS as f64 * w / kept))
        .sum();
    assert_eq!(ranked.iter().map(|&(id, _)| counts[id]).sum::<usize>(), CAPTIONS, "a token outside the kept set was drawn");
    assert!(ranked.len() >= 4, "the test wants several tokens to choose from");
    // At most 7 degrees of freedom: 0.999 quantile 24.3.
    assert!(chi2 < 24.3, "chi-square {chi2}");
}
