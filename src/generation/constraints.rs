//! What may follow a caption's tokens, and at which price: transformers' logits processors, as changes to single entries of a row.

use super::{Settings, SpecialTokens};

/// Settings and vocabulary: everything a choice depends on beside the logits and the caption so far.
pub(super) struct Rules {
    pub settings: Settings,
    pub tokens: SpecialTokens,
}

/// New scores for single tokens, each named once. -inf: banned.
#[derive(Default)]
pub(super) struct Changes(Vec<(u32, f64)>);

impl Changes {
    pub fn iter(&self) -> impl Iterator<Item = (u32, f64)> {
        self.0.iter().copied()
    }

    fn set(&mut self, token: u32, score: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == token) {
            Some((_, known)) => *known = score,
            None => self.0.push((token, score)),
        }
    }
}

impl Rules {
    /// What changes for the token after `history`, where `score` gives a token's score (a logit, or a log-probability in beam search).
    /// In transformers' order: repetition penalty, repeated n-grams, banned tokens, minimum length; a ban is final.
    pub fn changes(&self, history: &[u32], score: impl Fn(u32) -> f64, changes: &mut Changes) {
        changes.0.clear();
        let settings = &self.settings;
        if settings.repetition_penalty != 1.0 {
            for &token in history {
                // From the score itself, not from the change: a token that occurred twice is penalized once.
                let score = score(token);
                let penalized =
                    if score < 0.0 { score * settings.repetition_penalty } else { score / settings.repetition_penalty };
                changes.set(token, penalized);
            }
        }
        let size = settings.no_repeat_ngram_size;
        if size > 0 && history.len() >= size {
            let begun = &history[history.len() + 1 - size..];
            for ngram in history.windows(size) {
                if ngram[..size - 1] == *begun {
                    changes.set(ngram[size - 1], f64::NEG_INFINITY);
                }
            }
        }
        for &token in &self.tokens.banned {
            changes.set(token, f64::NEG_INFINITY);
        }
        if history.len() < settings.min_new_tokens {
            self.tokens.ends.iter().for_each(|&end| changes.set(end, f64::NEG_INFINITY));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANNED: f64 = f64::NEG_INFINITY;

    fn changes(settings: Settings, history: &[u32], scores: &[f64]) -> Vec<(u32, f64)> {
        let rules = Rules { settings, tokens: SpecialTokens::bert(0, 1) };
        let mut changes = Changes::default();
        rules.changes(history, |token| scores[token as usize], &mut changes);
        let mut sorted: Vec<_> = changes.iter().collect();
        sorted.sort_by_key(|&(token, _)| token);
        sorted
    }

    #[test]
    fn a_used_token_is_penalized_once() {
        let settings = Settings { repetition_penalty: 2.0, ..Settings::default() };
        let scores = [0.0, 0.0, 3.0, -3.0];
        assert_eq!(changes(settings, &[2, 3, 2, 3], &scores), [(1, BANNED), (2, 1.5), (3, -6.0)]);
    }

    #[test]
    fn the_end_of_a_seen_ngram_is_banned() {
        let rule = |size| Settings { no_repeat_ngram_size: size, ..Settings::default() };
        let scores = [0.0; 9];
        assert_eq!(changes(rule(2), &[5, 6, 5, 7, 5], &scores), [(1, BANNED), (6, BANNED), (7, BANNED)]);
        assert_eq!(changes(rule(3), &[5, 6, 7, 5, 6], &scores), [(1, BANNED), (7, BANNED)]);
        assert_eq!(changes(rule(3), &[5, 6], &scores), [(1, BANNED)]);
        assert_eq!(changes(rule(1), &[5, 6], &scores), [(1, BANNED), (5, BANNED), (6, BANNED)]);
        assert_eq!(changes(rule(1), &[], &scores), [(1, BANNED)]);
        assert_eq!(changes(rule(0), &[5, 5, 5], &scores), [(1, BANNED)]);
    }

    #[test]
    fn the_end_is_banned_below_the_minimum() {
        let settings = Settings { min_new_tokens: 2, ..Settings::default() };
        assert_eq!(changes(settings.clone(), &[5], &[0.0; 9]), [(0, BANNED), (1, BANNED)]);
        assert_eq!(changes(settings, &[5, 6], &[0.0; 9]), [(1, BANNED)]);
    }

    #[test]
    fn a_ban_wins_over_a_penalty() {
        let settings = Settings { repetition_penalty: 2.0, no_repeat_ngram_size: 1, ..Settings::default() };
        assert_eq!(changes(settings, &[5], &[4.0; 9]), [(1, BANNED), (5, BANNED)]);
    }
}
