//! Beam search over one image, as transformers does it with `early_stopping=False`.
//!
//! Each step ranks the continuations of all beams and looks at the best `2 * num_beams`. Those that end ([SEP], a loop, the greatest
//! length) and are among the first `num_beams` become finished hypotheses; the first `num_beams` of the others run on. Ties go to the
//! lower beam, then to the lower id, and among finished hypotheses to the older one. Where fewer continuations are possible than
//! asked for, fewer beams run and fewer captions come out.

use super::Strategy;
use super::best::BestRow;
use super::caption::{Caption, Draft, loop_start};
use super::constraints::Rules;
use super::search::{Choice, Progress, Scratch, best_scores};

/// A possible next token of one beam.
pub(super) struct Candidate {
    token: u32,
    /// Log-probability after the rules: what beams are ranked by.
    score: f64,
    /// Log-probability by the unmodified model: what is reported.
    logprob: f64,
}

pub(super) struct BeamSearch {
    /// Best first.
    running: Vec<Beam>,
    /// Best first, `num_beams` at most.
    finished: Vec<(f64, Caption)>,
}

#[derive(Clone)]
struct Beam {
    draft: Draft,
    score: f64,
}

impl BeamSearch {
    pub fn new() -> Self {
        Self { running: vec![Beam { draft: Draft::default(), score: 0.0 }], finished: Vec::new() }
    }

    pub fn tokens(&self, beam: usize) -> &[u32] {
        &self.running[beam].draft.tokens
    }

    /// The best `n` next tokens of `beam`; `log_sum` is the logits' log-sum-exp.
    pub fn choose(&self, rules: &Rules, beam: usize, logits: &[f32], log_sum: f64, n: usize, scratch: &mut Scratch) -> Choice {
        let logprob = |token: u32| f64::from(logits[token as usize]) - log_sum;
        rules.changes(self.tokens(beam), logprob, &mut scratch.changes);
        let best = best_scores(logits, log_sum, n, scratch);
        Choice::Candidates(best.into_iter().map(|(token, score)| Candidate { token, score, logprob: logprob(token) }).collect())
    }

    /// As [`choose`](Self::choose), from the best logits alone.
    pub fn choose_best(&self, rules: &Rules, beam: usize, best: BestRow, n: usize, scratch: &mut Scratch) -> Option<Choice> {
        let ranked = best.ranked(rules, self.tokens(beam), n, scratch)?;
        let candidate = |(token, score, logprob)| Candidate { token, score, logprob };
        Some(Choice::Candidates(ranked.into_iter().map(candidate).collect()))
    }

    /// One token further with the candidates of each running beam.
    pub fn advance(&mut self, rules: &Rules, choices: Vec<Choice>) -> Progress {
        let Strategy::Beam { num_beams, length_penalty } = rules.settings.strategy else {
            unreachable!("beams are made for the beam strategy only")
        };
        let mut ranked: Vec<(f64, usize, Candidate)> = Vec::new();
        for (beam, choice) in choices.into_iter().enumerate() {
            let Choice::Candidates(candidates) = choice else { continue };
            let score = self.running[beam].score;
            ranked.extend(candidates.into_iter().map(|candidate| (score + candidate.score, beam, candidate)));
        }
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.token.cmp(&b.2.token)));
        ranked.truncate(candidates(rules, num_beams));

        let previous = std::mem::take(&mut self.running);
        if ranked.is_empty() {
            // Every token is banned: what runs is as complete as it will be.
            let rank = |beam: Beam| (normalized(beam.score, beam.draft.tokens.len(), length_penalty), beam.draft.stop());
            self.finished.extend(previous.into_iter().map(rank));
            return self.finish(rules, num_beams);
        }
        let num_tokens = previous[0].draft.tokens.len() + 1;
        let mut parents = Vec::with_capacity(num_beams);
        for (rank, (score, parent, candidate)) in ranked.into_iter().enumerate() {
            let mut draft = previous[parent].draft.clone();
            match self::step(rules, &mut draft, &candidate) {
                Some(end) => {
                    if rank < num_beams {
                        self.finished.push((normalized(score, num_tokens, length_penalty), end.caption(draft, &candidate)));
                    }
                }
                None => {
                    if parents.len() < num_beams {
                        self.running.push(Beam { draft, score });
                        parents.push(parent);
                    }
                }
            }
        }
        self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.finished.truncate(num_beams);

        let Some(best) = self.running.first() else {
            return self.finish(rules, num_beams);
        };
        let improvable = match self.finished.last() {
            Some((worst, _)) if self.finished.len() == num_beams => normalized(best.score, num_tokens, length_penalty) > *worst,
            _ => true,
        };
        if improvable { Progress::Rows(parents) } else { self.finish(rules, num_beams) }
    }

    fn finish(&mut self, rules: &Rules, num_beams: usize) -> Progress {
        self.running.clear();
        let mut finished = std::mem::take(&mut self.finished);
        finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        finished.truncate(num_beams.min(rules.settings.num_captions));
        Progress::Finished(finished.into_iter().map(|(_, caption)| caption).collect())
    }
}

/// Continuations that are looked at in a step: as many as leave `num_beams` to run on whichever of them end, as transformers counts.
pub(super) fn candidates(rules: &Rules, num_beams: usize) -> usize {
    (1 + rules.tokens.ends.len()).max(2) * num_beams
}

/// How a continuation ended its caption.
enum End {
    Sep,
    Stop,
    Loop(usize),
    Length,
}

impl End {
    fn caption(self, draft: Draft, candidate: &Candidate) -> Caption {
        match self {
            Self::Sep => draft.end(candidate.logprob),
            Self::Stop => draft.close(),
            Self::Loop(kept) => draft.cut(kept),
            Self::Length => draft.stop(),
        }
    }
}

/// Adds the candidate to `draft` (unless it is [SEP]) and says whether the caption ends with it.
fn step(rules: &Rules, draft: &mut Draft, candidate: &Candidate) -> Option<End> {
    let ending = rules.tokens.ending(candidate.token);
    if ending == Some(false) {
        return Some(End::Sep);
    }
    draft.push(candidate.token, candidate.logprob);
    if ending.is_some() {
        return Some(End::Stop);
    }
    let kept = if rules.settings.loop_guard { loop_start(&draft.tokens) } else { None };
    match kept {
        Some(kept) => Some(End::Loop(kept)),
        None if draft.tokens.len() == rules.settings.max_new_tokens => Some(End::Length),
        None => None,
    }
}

fn normalized(score: f64, num_tokens: usize, length_penalty: f64) -> f64 {
    score / (num_tokens.max(1) as f64).powf(length_penalty)
}
