//! A finished caption, the tokens of one under way, and the loop guard.

use serde::Serialize;

/// One caption of an image, as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Caption {
    /// Without [SEP]; with a stop token that is text.
    pub token_ids: Vec<u32>,
    /// Sum of the unmodified model's log-probabilities of `num_tokens` tokens, rounded to 4 decimals.
    pub logprob: f64,
    /// Tokens that `logprob` counts: `token_ids`, and [SEP] where the caption ended with it.
    pub num_tokens: usize,
    pub finish_reason: FinishReason,
}

/// Why a caption ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model said [SEP] or what else ends a caption.
    Eos,
    /// `max_new_tokens` were reached, or no token was left that may follow.
    Length,
    /// The model went round in circles; the caption was cut after the circle's first turn.
    Loop,
}

impl FinishReason {
    /// As the caption table spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Length => "length",
            Self::Loop => "loop",
        }
    }
}

/// A caption under way: its tokens and the unmodified model's log-probability of each.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    /// Never holds [SEP]: that one ends the caption.
    pub tokens: Vec<u32>,
    logprobs: Vec<f64>,
}

impl Draft {
    pub fn push(&mut self, token: u32, logprob: f64) {
        self.tokens.push(token);
        self.logprobs.push(logprob);
    }

    /// Ended by [SEP], whose log-probability counts.
    pub fn end(self, sep_logprob: f64) -> Caption {
        let num_tokens = self.tokens.len() + 1;
        let logprob = self.logprobs.iter().sum::<f64>() + sep_logprob;
        self.caption(logprob, num_tokens, FinishReason::Eos)
    }

    /// Ended by its last token, which belongs to it.
    pub fn close(self) -> Caption {
        let num_tokens = self.tokens.len();
        let logprob = self.logprobs.iter().sum();
        self.caption(logprob, num_tokens, FinishReason::Eos)
    }

    /// Ended without [SEP].
    pub fn stop(self) -> Caption {
        let num_tokens = self.tokens.len();
        let logprob = self.logprobs.iter().sum();
        self.caption(logprob, num_tokens, FinishReason::Length)
    }

    /// Ended by the loop guard, with the first `kept` tokens and their log-probabilities.
    pub fn cut(mut self, kept: usize) -> Caption {
        self.tokens.truncate(kept);
        let logprob = self.logprobs[..kept].iter().sum();
        self.caption(logprob, kept, FinishReason::Loop)
    }

    fn caption(self, logprob: f64, num_tokens: usize, finish_reason: FinishReason) -> Caption {
        // Adding zero turns a rounded -0 into 0.
        let logprob = (logprob * 1e4).round() / 1e4 + 0.0;
        Caption { token_ids: self.tokens, logprob, num_tokens, finish_reason }
    }
}

/// Where `tokens` end with the same 1 to 8 tokens four times in a row: how many tokens there are up to the end of the first turn.
pub(super) fn loop_start(tokens: &[u32]) -> Option<usize> {
    const LONGEST: usize = 8;
    const TURNS: usize = 4;
    (1..=LONGEST).find_map(|unit| {
        let start = tokens.len().checked_sub(TURNS * unit)?;
        let repeats = tokens[start + unit..] == tokens[start..tokens.len() - unit];
        repeats.then_some(start + unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_four_turns_of_one_to_eight_tokens() {
        assert_eq!(loop_start(&[5, 7, 7, 7]), None);
        assert_eq!(loop_start(&[5, 7, 7, 7, 7]), Some(2));
        assert_eq!(loop_start(&[9, 1, 2, 1, 2, 1, 2, 1]), None);
        assert_eq!(loop_start(&[9, 1, 2, 1, 2, 1, 2, 1, 2]), Some(3));
        let turn = |length: u32| (0..length).collect::<Vec<_>>();
        assert_eq!(loop_start(&turn(8).repeat(4)), Some(8));
        assert_eq!(loop_start(&turn(9).repeat(4)), None);
        assert_eq!(loop_start(&[]), None);
    }

    #[test]
    fn what_is_counted_is_what_is_kept() {
        let mut draft = Draft::default();
        for token in [4, 6, 6, 6, 6] {
            draft.push(token, -0.25);
        }
        let cut = draft.clone().cut(2);
        assert_eq!((cut.token_ids, cut.logprob, cut.num_tokens), (vec![4, 6], -0.5, 2));
        assert_eq!(draft.clone().stop().logprob, -1.25);
        let ended = draft.end(-1.0);
        assert_eq!((ended.logprob, ended.num_tokens, ended.finish_reason.as_str()), (-2.25, 6, "eos"));
    }

    #[test]
    fn rounding_leaves_no_negative_zero() {
        let caption = Draft::default().end(-1e-9);
        assert!(caption.logprob == 0.0 && caption.logprob.is_sign_positive());
        assert_eq!((caption.token_ids.len(), caption.num_tokens), (0, 1));
    }
}
