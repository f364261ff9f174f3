//! Generation as a textbook has it: one row at a time, full sorts, no cache, no batch.

use super::toy::{SEP, Toy, UNK};
use crate::generation::{Caption, FinishReason, Sampling, Settings, Strategy};
use crate::random::Draws;

/// None where beams score so alike that rounding decides between them.
pub fn captions(toy: &Toy, settings: &Settings) -> Option<Vec<Caption>> {
    let captions = match &settings.strategy {
        Strategy::Greedy => vec![single(toy, settings, |scores, _| best(scores))],
        Strategy::Sample(sampling) => sampled(toy, settings, sampling),
        Strategy::Beam { num_beams, length_penalty } => return beams(toy, settings, *num_beams, *length_penalty),
    };
    Some(captions)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&l| (l as f64 - max).exp()).sum();
    logits.iter().map(|&l| l as f64 - max - sum.ln()).collect()
}

fn best(scores: &[f64]) -> Option<u32> {
    let mut best = None;
    for (id, &score) in scores.iter().enumerate() {
        if score > best.map_or(f64::NEG_INFINITY, |(_, top)| top) {
            best = Some((id as u32, score));
        }
    }
    best.map(|(id, _)| id)
}

fn constrain(mut scores: Vec<f64>, history: &[u32], settings: &Settings) -> Vec<f64> {
    for (id, score) in scores.iter_mut().enumerate() {
        if history.contains(&(id as u32)) {
            *score *= if *score < 0.0 { settings.repetition_penalty } else { 1.0 / settings.repetition_penalty };
        }
    }
    let n = settings.no_repeat_ngram_size;
    for id in 0..scores.len() as u32 {
        let longer: Vec<u32> = history.iter().copied().chain([id]).collect();
        let repeats = n > 0 && longer.len() > n && longer[..longer.len() - 1].windows(n).any(|seen| longer.ends_with(seen));
        if repeats || id == UNK || (id == SEP && history.len() < settings.min_new_tokens) {
            scores[id as usize] = f64::NEG_INFINITY;
        }
    }
    scores
}

/// The tokens kept and why, if the caption ends with its last token.
fn ending(tokens: &[u32], settings: &Settings) -> Option<(usize, FinishReason)> {
    if tokens.last() == Some(&SEP) {
        return Some((tokens.len(), FinishReason::Eos));
    }
    for unit in 1..=8 {
        if settings.loop_guard && tokens.len() >= 4 * unit {
            let tail = &tokens[tokens.len() - 4 * unit..];
            if tail.chunks(unit).all(|turn| turn == &tail[..unit]) {
                return Some((tokens.len() - 3 * unit, FinishReason::Loop));
            }
        }
    }
    (tokens.len() == settings.max_new_tokens).then_some((tokens.len(), FinishReason::Length))
}

fn caption(tokens: &[u32], kept: usize, finish_reason: FinishReason, toy: &Toy) -> Caption {
    let kept = &tokens[..kept];
    let logprob = (0..kept.len()).map(|i| log_softmax(&toy.logits(&kept[..i]))[kept[i] as usize]).sum();
    let token_ids = kept.iter().copied().filter(|&token| token != SEP).collect();
    Caption { token_ids, logprob, num_tokens: kept.len(), finish_reason }
}

fn single(toy: &Toy, settings: &Settings, mut choose: impl FnMut(&[f64], u32) -> Option<u32>) -> Caption {
    let mut tokens = Vec::new();
    loop {
        let logits = toy.logits(&tokens).into_iter().map(f64::from).collect();
        let scores = constrain(logits, &tokens, settings);
        let Some(token) = choose(&scores, tokens.len() as u32) else {
            return caption(&tokens, tokens.len(), FinishReason::Length, toy);
        };
        tokens.push(token);
        if let Some((kept, reason)) = ending(&tokens, settings) {
            return caption(&tokens, kept, reason, toy);
        }
    }
}

fn sampled(toy: &Toy, settings: &Settings, sampling: &Sampling) -> Vec<Caption> {
    let n = settings.num_captions;
    let one = |draw: usize| {
        let draws = Draws::new(sampling.seed, &toy.request(0).sha256, draw as u32);
        single(toy, settings, |scores, position| pick(scores, sampling, draws.uniform(position)))
    };
    if !sampling.distinct {
        return (0..n).map(one).collect();
    }
    let mut captions: Vec<Caption> = Vec::new();
    for draw in 0..2 * n {
        let new = one(draw);
        if captions.len() < n && captions.iter().all(|known| known.token_ids != new.token_ids) {
            captions.push(new);
        }
    }
    captions
}

fn pick(scores: &[f64], sampling: &Sampling, uniform: f64) -> Option<u32> {
    let mut ranked: Vec<(u32, f64)> = scores.iter().enumerate().map(|(id, &s)| (id as u32, s / sampling.temperature)).collect();
    ranked.retain(|&(_, score)| score > f64::NEG_INFINITY);
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let top = ranked.first()?.1;
    if sampling.top_k > 0 && sampling.top_k < ranked.len() {
        let last = ranked[sampling.top_k - 1].1;
        ranked.retain(|&(_, score)| score >= last);
    }
    let weights: Vec<f64> = ranked.iter().map(|&(_, score)| (score - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < weights.len() && (sampling.top_p == 1.0 || mass < sampling.top_p * total) {
        mass += weights[kept];
        kept += 1;
    }
    let mut sum = 0.0;
    for i in 0..kept {
        sum += weights[i];
        if sum > uniform * mass {
            return Some(ranked[i].0);
        }
    }
    Some(ranked[kept - 1].0)
}

fn beams(toy: &Toy, settings: &Settings, num_beams: usize, length_penalty: f64) -> Option<Vec<Caption>> {
    let alike = |a: f64, b: f64| (a - b).abs() < 1e-6;
    let normalized = |score: f64, length: usize| score / (length as f64).powf(length_penalty);
    let mut running: Vec<(f64, Vec<u32>)> = vec![(0.0, Vec::new())];
    let mut finished: Vec<(f64, Caption)> = Vec::new();
    loop {
        let mut continuations = Vec::new();
        for (score, tokens) in &running {
            let scores = constrain(log_softmax(&toy.logits(tokens)), tokens, settings);
            for (id, more) in scores.iter().enumerate() {
                if more.is_finite() {
                    continuations.push((score + more, tokens.iter().copied().chain([id as u32]).collect::<Vec<u32>>()));
                }
            }
        }
        // A stable sort leaves ties to the lower beam and the lower id.
        continuations.sort_by(|a, b| b.0.total_cmp(&a.0));
        let looked_at = continuations.len().min(2 * num_beams + 1);
        if continuations[..looked_at].windows(2).any(|pair| alike(pair[0].0, pair[1].0)) {
            return None;
        }
        continuations.truncate(2 * num_beams);
        if continuations.is_empty() {
            for (score, tokens) in &running {
                let whole = caption(tokens, tokens.len(), FinishReason::Length, toy);
                finished.push((normalized(*score, tokens.len().max(1)), whole));
            }
        }
        running.clear();
        for (rank, (score, tokens)) in continuations.into_iter().enumerate() {
            match ending(&tokens, settings) {
                Some((kept, reason)) if rank < num_beams => {
                    finished.push((normalized(score, tokens.len()), caption(&tokens, kept, reason, toy)));
                }
                Some(_) => {}
                None if running.len() < num_beams => running.push((score, tokens)),
                None => {}
            }
        }
        finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        if finished.windows(2).any(|pair| alike(pair[0].0, pair[1].0)) {
            return None;
        }
        finished.truncate(num_beams);
        let done = match (running.first(), finished.last()) {
            (None, _) => true,
            (Some((score, tokens)), Some((worst, _))) if finished.len() == num_beams => {
                let best = normalized(*score, tokens.len());
                if alike(best, *worst) {
                    return None;
                }
                best < *worst
            }
            _ => false,
        };
        if done {
            return Some(finished.into_iter().take(settings.num_captions).map(|(_, caption)| caption).collect());
        }
    }
}
