//! Choices from the best logits of a row alone, as a device picks them: the same choices as from the whole row, or none where the rest of the
//! row might have a say.

use super::constraints::Rules;
use super::search::{Choice, NotFinite, Scratch};
use super::{Sampling, Strategy};

/// The best logits of a row, best first, and the logarithm of the sum of all the row's exponentials.
#[derive(Clone, Copy)]
pub(super) struct BestRow<'a> {
    pub values: &'a [f32],
    /// Tokens, as numbers that float32 holds exactly.
    pub ids: &'a [f32],
    pub log_sum: f32,
    /// The same sum of the logits divided by the temperature.
    pub warm_log_sum: f32,
    pub vocab_size: usize,
}

/// How far a sum that a device made in float32 may be from the exact one, as a share of it.
const SLACK: f64 = 1e-4;

/// A token and its logit after the rules.
type Scored = (u32, f64);

impl BestRow<'_> {
    /// # Errors
    /// Numbers that are none.
    pub fn check(&self) -> Result<(), NotFinite> {
        let is_sound = self.log_sum.is_finite() && self.warm_log_sum.is_finite() && !self.values.iter().any(|v| v.is_nan());
        if is_sound { Ok(()) } else { Err(NotFinite) }
    }

    /// Every other logit of the row is at most this.
    fn last(&self) -> f64 {
        match self.values.last() {
            Some(&last) if self.values.len() < self.vocab_size => f64::from(last),
            _ => f64::NEG_INFINITY,
        }
    }

    fn place(&self, token: u32) -> Option<usize> {
        self.ids.iter().position(|&id| id == token as f32)
    }

    fn logit(&self, token: u32) -> Option<f64> {
        self.place(token).map(|place| f64::from(self.values[place]))
    }

    /// The best after the rules, best first (of equals the lower token), and how many tokens outside have changed; None where one of those may
    /// have risen. `offset` is taken from each logit first.
    fn after(&self, rules: &Rules, history: &[u32], offset: f64, scratch: &mut Scratch) -> Option<(Vec<Scored>, usize)> {
        let score = |token: u32| self.logit(token).map_or(f64::NAN, |logit| logit - offset);
        rules.changes(history, score, &mut scratch.changes);
        let mut kept: Vec<Option<Scored>> =
            self.ids.iter().zip(self.values).map(|(&id, &value)| Some((id as u32, f64::from(value) - offset))).collect();
        let mut outside = 0;
        for (token, score) in scratch.changes.iter() {
            match self.place(token) {
                // Logits are float32 wherever whole rows are looked at.
                Some(place) if offset == 0.0 => kept[place] = Some((token, f64::from(score as f32))),
                Some(place) => kept[place] = Some((token, score)),
                // A penalty below 1 is a reward, of a token whose logit is not known.
                None if score.is_nan() && rules.settings.repetition_penalty < 1.0 => return None,
                None => outside += 1,
            }
        }
        let mut kept: Vec<Scored> = kept.into_iter().flatten().filter(|&(_, score)| score > f64::NEG_INFINITY).collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Some((kept, outside))
    }

    /// The likeliest token.
    pub fn greedy(&self, rules: &Rules, history: &[u32], scratch: &mut Scratch) -> Option<Choice> {
        let (kept, _) = self.after(rules, history, 0.0, scratch)?;
        match kept.first() {
            Some(&(token, score)) if score > self.last() => self.token(token),
            None if self.last() == f64::NEG_INFINITY => Some(Choice::Nothing),
            _ => None,
        }
    }

    /// The best `n`, scored by log-probability: (token, score, log-probability of the model).
    pub fn ranked(&self, rules: &Rules, history: &[u32], n: usize, scratch: &mut Scratch) -> Option<Vec<(u32, f64, f64)>> {
        let log_sum = f64::from(self.log_sum);
        let (mut kept, _) = self.after(rules, history, log_sum, scratch)?;
        kept.truncate(n);
        let reaches = kept.len() == n && kept.last().is_none_or(|&(_, score)| score > self.last() - log_sum);
        if !reaches && self.last() > f64::NEG_INFINITY {
            return None;
        }
        let all = kept.into_iter().map(|(token, score)| Some((token, score, self.logit(token)? - log_sum)));
        all.collect()
    }

    /// The token that `uniform` names.
    pub fn draw(
        &self,
        rules: &Rules,
        sampling: &Sampling,
        history: &[u32],
        uniform: f64,
        scratch: &mut Scratch,
    ) -> Option<Choice> {
        let (mut kept, outside) = self.after(rules, history, 0.0, scratch)?;
        let Some(&(_, greatest)) = kept.first() else {
            return (self.last() == f64::NEG_INFINITY).then_some(Choice::Nothing);
        };
        if greatest <= self.last() {
            return None;
        }
        let weight = |score: f64| ((score - greatest) / sampling.temperature).exp();
        let is_cut = sampling.top_k > 0 && sampling.top_k < self.vocab_size;
        let (least, most) = if is_cut {
            // Equals of the last one stay, so all of them must be here.
            let floor = kept.get(sampling.top_k - 1).map(|&(_, score)| score);
            let floor =
                floor.filter(|&floor| floor > self.last()).or((self.last() == f64::NEG_INFINITY).then_some(f64::NEG_INFINITY))?;
            kept.retain(|&(_, score)| score >= floor);
            let total = kept.iter().map(|&(_, score)| weight(score)).sum::<f64>();
            (total, total)
        } else {
            // Of the whole row, less what it was, plus what it is; what changed outside lies between nothing and the last one.
            let all = (f64::from(self.warm_log_sum) - greatest / sampling.temperature).exp();
            let before: f64 = self.values.iter().map(|&value| weight(f64::from(value))).sum();
            let now: f64 = kept.iter().map(|&(_, score)| weight(score)).sum();
            let rest = if self.last() > f64::NEG_INFINITY { all - before } else { 0.0 };
            let slack = all * SLACK;
            let lost = outside as f64 * weight(self.last());
            (now + (rest - slack - lost).max(0.0), now + (rest + slack).max(0.0))
        };
        let drawn = |total: f64| -> Option<usize> {
            let kept_at = |target: f64, above: bool| {
                let mut sum = 0.0;
                kept.iter().position(|&(_, score)| {
                    sum += weight(score);
                    if above { sum > target } else { sum >= target }
                })
            };
            if sampling.top_p >= 1.0 {
                return kept_at(uniform * total, true);
            }
            let last = kept_at(sampling.top_p * total, false)?;
            let mass: f64 = kept[..=last].iter().map(|&(_, score)| weight(score)).sum();
            kept_at(uniform * mass, true).map(|place| place.min(last))
        };
        match (drawn(least), drawn(most)) {
            (Some(place), Some(other)) if place == other => self.token(kept[place].0),
            _ => None,
        }
    }

    fn token(&self, token: u32) -> Option<Choice> {
        Some(Choice::Token { token, logprob: self.logit(token)? - f64::from(self.log_sum) })
    }
}

/// How many of the best logits of a row a device should pick for these rules, and what they are divided by where they are drawn.
pub(super) fn wanted(rules: &Rules) -> (usize, f64) {
    match &rules.settings.strategy {
        Strategy::Greedy => (8, 1.0),
        Strategy::Beam { num_beams, .. } => (super::beam::candidates(rules, *num_beams) + 8, 1.0),
        Strategy::Sample(sampling) => (sampling.top_k.clamp(120, 1000) + 8, sampling.temperature),
    }
}
