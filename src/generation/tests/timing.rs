//! How long a row takes. Run by hand: `cargo test --release --lib generation::tests::timing -- --ignored --nocapture`.

use std::time::Instant;

use crate::generation::constraints::Rules;
use crate::generation::search::{Scratch, Search};
use crate::generation::{Sampling, Settings, SpecialTokens, Strategy};

const VOCAB_SIZE: usize = 21_128;

/// Roughly normal, by the sum of twelve uniform numbers, times `scale`; a hash, so that no two calls differ.
fn noise(seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..VOCAB_SIZE).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * scale).collect()
}

#[test]
#[ignore = "timing, by hand"]
fn a_row_is_cheap() {
    let flat: Vec<Vec<f32>> = (0..20).map(|seed| noise(seed, 1.0)).collect();
    let uniform: Vec<Vec<f32>> = (0..20).map(|seed| noise(seed, 1e-4)).collect();
    // A trained model's row: most far below, a few dozen near the top.
    let peaked: Vec<Vec<f32>> = (0..20)
        .map(|seed| {
            let mut row = noise(seed, 2.0);
            (0..40).for_each(|i| row[(i * 521 + seed as usize) % VOCAB_SIZE] += 14.0 - i as f32 / 4.0);
            row
        })
        .collect();
    let sample = |top_k, top_p, temperature| Strategy::Sample(Sampling { top_k, top_p, temperature, ..Sampling::default() });
    let strategies = [
        ("greedy", Strategy::Greedy),
        ("top-p 0.8", sample(0, 0.8, 1.0)),
        ("top-p 0.95, temperature 0.9", sample(0, 0.95, 0.9)),
        ("plain sampling", sample(0, 1.0, 1.0)),
        ("top-k 50, top-p 0.9", sample(50, 0.9, 1.0)),
        ("beam 5", Strategy::Beam { num_beams: 5, length_penalty: 1.0 }),
    ];
    for (name, strategy) in strategies {
        for (kind, rows, limit_ms) in [("peaked", &peaked, 0.05), ("flat", &flat, 0.3), ("uniform", &uniform, 0.3)] {
            let settings = Settings { strategy: strategy.clone(), ..Settings::default() };
            let rules = Rules { settings, tokens: SpecialTokens::bert(102, 100) };
            let mut scratch = Scratch::default();
            let searches: Vec<Search> = (0..20).map(|draw| Search::new(&rules, &[3; 32].into(), draw)).collect();
            let mut best = f64::INFINITY;
            for _ in 0..15 {
                let clock = Instant::now();
                for (search, row) in searches.iter().zip(rows) {
                    assert!(search.choose(&rules, 0, row, &mut scratch).is_ok());
                }
                best = best.min(clock.elapsed().as_secs_f64() * 1e3 / 20.0);
            }
            eprintln!("{name:28} {kind:8} {best:.4} ms a row");
            assert!(best < 2.0 * limit_ms, "{name}, {kind}: {best} ms a row");
        }
    }
}
