//! One search for captions from a prefix: a single row, greedy or sampled, or a group of beams.
//!
//! A search is asked row by row for a choice, which is a pure function of its state and the row's logits (so rows are asked in
//! parallel), and then takes all its choices at once to go one token further.

use super::beam::{BeamSearch, Candidate, candidates};
use super::best::BestRow;
use super::caption::{Caption, Draft, loop_start};
use super::constraints::{Changes, Rules};
use super::ranking::id;
use super::sampling::{self, Buffers};
use super::softmax::{chunk_max, log_sum_exp, max};
use super::{Sampling, Strategy};
use crate::files::ContentHash;
use crate::random::Draws;

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// A row's logits with the changes made.
    pub changed: Vec<f32>,
    pub changes: Changes,
    pub buffers: Buffers,
}

/// What a row's logits say.
pub(super) enum Choice {
    Token {
        token: u32,
        logprob: f64,
    },
    Candidates(Vec<Candidate>),
    /// Every token is banned.
    Nothing,
}

/// Logits with NaN or infinity among them, or nothing else than -inf.
pub(super) struct NotFinite;

/// How a search goes on.
pub(super) enum Progress {
    /// Row `i` goes on from what was row `parents[i]`; at least one.
    Rows(Vec<usize>),
    Finished(Vec<Caption>),
}

pub(super) enum Search {
    Row(Row),
    Beams(BeamSearch),
}

/// A caption that keeps one row.
pub(super) struct Row {
    draft: Draft,
    draws: Option<Draws>,
}

impl Search {
    /// A search that is yet to see its prefix's logits. `draw` numbers an image's samples.
    pub fn new(rules: &Rules, image: &ContentHash, draw: u32) -> Self {
        match &rules.settings.strategy {
            Strategy::Greedy => Self::Row(Row { draft: Draft::default(), draws: None }),
            Strategy::Sample(sampling) => {
                Self::Row(Row { draft: Draft::default(), draws: Some(Draws::new(sampling.seed, image, draw)) })
            }
            Strategy::Beam { .. } => Self::Beams(BeamSearch::new()),
        }
    }

    /// The tokens of row `row` so far.
    pub fn tokens(&self, row: usize) -> &[u32] {
        match self {
            Self::Row(search) => &search.draft.tokens,
            Self::Beams(search) => search.tokens(row),
        }
    }

    /// What row `row` would do after `logits` [V].
    pub fn choose(&self, rules: &Rules, row: usize, logits: &[f32], scratch: &mut Scratch) -> Result<Choice, NotFinite> {
        let log_sum = log_sum_exp(logits);
        if !log_sum.is_finite() {
            return Err(NotFinite);
        }
        match (self, &rules.settings.strategy) {
            (Self::Beams(search), Strategy::Beam { num_beams, .. }) => {
                Ok(search.choose(rules, row, logits, log_sum, candidates(rules, *num_beams), scratch))
            }
            (Self::Row(search), Strategy::Sample(sampling)) => Ok(search.choose(rules, Some(sampling), logits, log_sum, scratch)),
            (Self::Row(search), _) => Ok(search.choose(rules, None, logits, log_sum, scratch)),
            (Self::Beams(_), _) => unreachable!("beams are made for the beam strategy only"),
        }
    }

    /// As [`choose`](Self::choose), from the best logits alone. None: the rest of the row might have a say.
    pub fn choose_best(
        &self,
        rules: &Rules,
        row: usize,
        best: BestRow,
        scratch: &mut Scratch,
    ) -> Result<Option<Choice>, NotFinite> {
        best.check()?;
        Ok(match (self, &rules.settings.strategy) {
            (Self::Beams(search), Strategy::Beam { num_beams, .. }) => {
                search.choose_best(rules, row, best, candidates(rules, *num_beams), scratch)
            }
            (Self::Row(search), Strategy::Sample(sampling)) => {
                let history = &search.draft.tokens;
                let uniform = search.draws.as_ref().map(|draws| draws.uniform(history.len() as u32));
                uniform.and_then(|uniform| best.draw(rules, sampling, history, uniform, scratch))
            }
            (Self::Row(search), _) => best.greedy(rules, &search.draft.tokens, scratch),
            (Self::Beams(_), _) => unreachable!("beams are made for the beam strategy only"),
        })
    }

    /// Goes one token further; `choices` are those of all its rows, in order.
    pub fn advance(&mut self, rules: &Rules, choices: Vec<Choice>) -> Progress {
        match self {
            Self::Row(search) => search.advance(rules, choices),
            Self::Beams(search) => search.advance(rules, choices),
        }
    }
}

impl Row {
    fn choose(&self, rules: &Rules, sampling: Option<&Sampling>, logits: &[f32], log_sum: f64, scratch: &mut Scratch) -> Choice {
        let history = &self.draft.tokens;
        rules.changes(history, |token| f64::from(logits[token as usize]), &mut scratch.changes);
        scratch.changed.clear();
        scratch.changed.extend_from_slice(logits);
        for (token, score) in scratch.changes.iter() {
            scratch.changed[token as usize] = score as f32;
        }
        let token = match (sampling, &self.draws) {
            (Some(sampling), Some(draws)) => {
                let uniform = draws.uniform(history.len() as u32);
                sampling::draw(&mut scratch.changed, sampling, uniform, &mut scratch.buffers)
            }
            _ => likeliest(&scratch.changed),
        };
        match token {
            Some(token) => Choice::Token { token: token as u32, logprob: f64::from(logits[token]) - log_sum },
            None => Choice::Nothing,
        }
    }

    fn advance(&mut self, rules: &Rules, choices: Vec<Choice>) -> Progress {
        let Some(Choice::Token { token, logprob }) = choices.into_iter().next() else {
            return Progress::Finished(vec![self.take().stop()]);
        };
        match rules.tokens.ending(token) {
            Some(true) => {
                self.draft.push(token, logprob);
                return Progress::Finished(vec![self.take().close()]);
            }
            Some(false) => return Progress::Finished(vec![self.take().end(logprob)]),
            None => self.draft.push(token, logprob),
        }
        if rules.settings.loop_guard
            && let Some(kept) = loop_start(&self.draft.tokens)
        {
            return Progress::Finished(vec![self.take().cut(kept)]);
        }
        if self.draft.tokens.len() == rules.settings.max_new_tokens {
            return Progress::Finished(vec![self.take().stop()]);
        }
        Progress::Rows(vec![0])
    }

    fn take(&mut self) -> Draft {
        std::mem::take(&mut self.draft)
    }
}

/// The largest logit's id; of equals, the lowest. None where all are -inf.
fn likeliest(logits: &[f32]) -> Option<usize> {
    let max = max(logits);
    if max == f32::NEG_INFINITY { None } else { logits.iter().position(|&logit| logit == max) }
}

/// The best `n` tokens of a row after `changes`, which are in the same unit as `logit - log_sum`: (token, score), best first.
pub(super) fn best_scores(logits: &[f32], log_sum: f64, n: usize, scratch: &mut Scratch) -> Vec<(u32, f64)> {
    let Scratch { changed, changes, buffers } = scratch;
    // Changed tokens leave the row and are ranked beside it: their new scores need not survive a turn into logits and back.
    changed.clear();
    changed.extend_from_slice(logits);
    for (token, _) in changes.iter() {
        changed[token as usize] = f32::NEG_INFINITY;
    }
    chunk_max(changed, &mut buffers.maxima);
    super::ranking::top_n(changed, &buffers.maxima, n, &mut buffers.keys, &mut buffers.spare);
    let unchanged = buffers.keys.iter().map(|&key| (id(key) as u32, f64::from(changed[id(key)]) - log_sum));
    let mut best: Vec<(u32, f64)> = unchanged.chain(changes.iter()).filter(|&(_, score)| score > f64::NEG_INFINITY).collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    best.truncate(n);
    best
}
