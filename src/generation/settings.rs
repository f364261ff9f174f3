//! How captions are made: flags as a user gives them, and the settings they become once they are known to make sense together.

use serde::{Deserialize, Serialize};

/// How captions are made. [`Settings::from_flags`] makes valid ones; they serialize into manifests and fingerprints, and hold nothing
/// that does not change a caption (a seed only where something is drawn).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Greedy, sampling or beam search, with its own numbers.
    pub strategy: Strategy,
    /// Captions an image.
    pub num_captions: usize,
    /// [SEP] is banned until a caption has this many tokens (transformers' meaning; the loop guard may still cut below it).
    pub min_new_tokens: usize,
    /// Tokens a caption has at most, [SEP] included.
    pub max_new_tokens: usize,
    /// Transformers' repetition penalty over a caption's own tokens: a token that was used has its score divided by this where it is
    /// positive and multiplied where it is negative. 1: none.
    pub repetition_penalty: f64,
    /// No n tokens in a row occur twice in a caption. 0: no such rule.
    pub no_repeat_ngram_size: usize,
    /// The same 1 to 8 tokens four times in a row end the caption at their first turn.
    pub loop_guard: bool,
}

/// How the next tokens are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Strategy {
    /// The likeliest token each time; of equals, the lowest id.
    Greedy,
    /// The next token is drawn, from the seed, the image and the caption's number.
    Sample(Sampling),
    /// Transformers' beam search with `early_stopping=False`. A hypothesis scores its sum of processed log-probabilities divided by
    /// `length^length_penalty`, and an image is done once the best running beam, at its present length, scores no better than the
    /// worst of `num_beams` finished ones.
    Beam {
        /// Hypotheses that are kept at a time, 2 to 1000.
        num_beams: usize,
        /// Above 0 longer captions score better, below 0 shorter ones; 1 is the mean.
        length_penalty: f64,
    },
}

/// Temperature, then top-k, then top-p, as transformers orders them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Logits are divided by it. Above 0; 1: the model's own distribution.
    pub temperature: f64,
    /// Keep the k likeliest tokens (and those equal to the last of them). 0: all.
    pub top_k: usize,
    /// Keep the smallest set of likeliest tokens whose probabilities add up to this. 1: all.
    pub top_p: f64,
    /// No caption twice for an image: at most `num_captions` more are drawn, and then there are fewer.
    pub distinct: bool,
    /// One for the run; each caption's own seed comes from it, the image's hash and the caption's number.
    pub seed: u64,
}

/// Ids of the vocabulary that decoding must know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpecialTokens {
    /// Each ends a caption; [SEP] or an end-of-text token, or a stop token before these.
    pub ends: Vec<u32>,
    /// The first of `ends` belongs to the caption, as a full stop does.
    pub end_is_text: bool,
    /// Never generated: [UNK].
    pub banned: Vec<u32>,
}

impl SpecialTokens {
    /// `[SEP]` ends a caption and `[UNK]` is banned.
    #[cfg(test)]
    pub fn bert(sep: u32, unk: u32) -> Self {
        Self { ends: vec![sep], end_is_text: false, banned: vec![unk] }
    }

    /// Whether `token` ends a caption and, then, belongs to it.
    pub(super) fn ending(&self, token: u32) -> Option<bool> {
        self.ends.iter().position(|&end| end == token).map(|place| place == 0 && self.end_is_text)
    }
}

/// The decoding flags as given; None where a flag was not.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub temperature: Option<f64>,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub num_beams: Option<usize>,
    pub length_penalty: Option<f64>,
    pub num_captions: Option<usize>,
    pub min_new_tokens: Option<usize>,
    pub max_new_tokens: Option<usize>,
    pub repetition_penalty: Option<f64>,
    pub no_repeat_ngram_size: Option<usize>,
    pub no_loop_guard: bool,
    pub distinct: bool,
    pub seed: u64,
}

/// Decoding flags that make no sense, alone or together: bad usage.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl Default for Settings {
    /// Greedy, one caption of at most 67 tokens, the loop guard and no other rule.
    fn default() -> Self {
        Self {
            strategy: Strategy::Greedy,
            num_captions: 1,
            min_new_tokens: 0,
            max_new_tokens: 67,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            loop_guard: true,
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, distinct: false, seed: 0 }
    }
}

impl Settings {
    /// Any of temperature, top-k and top-p selects sampling, more than one beam selects beam search, else it is greedy.
    ///
    /// # Errors
    /// Flags that exclude each other, or a value outside its range; the message names the flag.
    pub fn from_flags(flags: &Flags) -> Result<Self, SettingsError> {
        let sampling = flags.temperature.is_some() || flags.top_k.is_some() || flags.top_p.is_some();
        let strategy = match (sampling, flags.num_beams) {
            (true, Some(_)) => {
                return bad("--num-beams and sampling (--temperature, --top-k, --top-p) exclude each other: choose one");
            }
            (true, None) => Strategy::Sample(Sampling {
                temperature: flags.temperature.unwrap_or(1.0),
                top_k: flags.top_k.unwrap_or(0),
                top_p: flags.top_p.unwrap_or(1.0),
                distinct: flags.distinct,
                seed: flags.seed,
            }),
            (false, Some(num_beams)) if num_beams != 1 => {
                Strategy::Beam { num_beams, length_penalty: flags.length_penalty.unwrap_or(1.0) }
            }
            (false, _) => Strategy::Greedy,
        };
        if flags.length_penalty.is_some() && !matches!(strategy, Strategy::Beam { .. }) {
            return bad("--length-penalty is for beam search: add --num-beams (2 or more)");
        }
        if flags.distinct && !sampling {
            return bad("--distinct is for sampling: add --temperature, --top-k or --top-p");
        }
        let default = Self::default();
        let settings = Self {
            strategy,
            num_captions: flags.num_captions.unwrap_or(default.num_captions),
            min_new_tokens: flags.min_new_tokens.unwrap_or(default.min_new_tokens),
            max_new_tokens: flags.max_new_tokens.unwrap_or(default.max_new_tokens),
            repetition_penalty: flags.repetition_penalty.unwrap_or(default.repetition_penalty),
            no_repeat_ngram_size: flags.no_repeat_ngram_size.unwrap_or(default.no_repeat_ngram_size),
            loop_guard: !flags.no_loop_guard,
        };
        settings.validate()?;
        Ok(settings)
    }

    /// Whether the settings make sense, whoever made them.
    ///
    /// # Errors
    /// The message names the flag, what it is and what it may be.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        // Sampling seeds and beam candidates are counted with u32; no image needs more.
        const MOST: usize = 100_000;
        // Each beam has a row of the decoder.
        const MOST_BEAMS: usize = 1000;
        if self.num_captions == 0 || self.num_captions > MOST {
            return bad(format!("--num-captions is {}, and may be 1 to {MOST}", self.num_captions));
        }
        if self.max_new_tokens == 0 {
            return bad("--max-new-tokens is 0, and a caption needs 1 at least");
        }
        if self.min_new_tokens > self.max_new_tokens {
            return bad(format!(
                "--min-new-tokens {} is more than --max-new-tokens {}",
                self.min_new_tokens, self.max_new_tokens
            ));
        }
        if !positive(self.repetition_penalty) {
            return bad(format!("--repetition-penalty is {}, and must be above 0 (1: none)", self.repetition_penalty));
        }
        match &self.strategy {
            Strategy::Greedy if self.num_captions > 1 => bad(format!(
                "greedy decoding gives one caption per image, and --num-captions is {}: add --top-p 0.9 (or another sampling flag) or --num-beams",
                self.num_captions
            )),
            Strategy::Greedy => Ok(()),
            Strategy::Sample(sampling) => {
                if !positive(sampling.temperature) {
                    return bad(format!("--temperature is {}, and must be above 0 (greedy: leave it out)", sampling.temperature));
                }
                if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
                    return bad(format!("--top-p is {}, and must be above 0 and at most 1 (1: all tokens)", sampling.top_p));
                }
                Ok(())
            }
            Strategy::Beam { num_beams, length_penalty } => {
                if *num_beams == 0 || *num_beams > MOST_BEAMS {
                    return bad(format!("--num-beams is {num_beams}, and may be 1 to {MOST_BEAMS}"));
                }
                if self.num_captions > *num_beams {
                    return bad(format!(
                        "--num-captions {} is more than --num-beams {num_beams}: beam search has one caption a beam at most",
                        self.num_captions
                    ));
                }
                if !length_penalty.is_finite() {
                    return bad(format!("--length-penalty is {length_penalty}, and must be a finite number"));
                }
                Ok(())
            }
        }
    }

    /// Rows that one search occupies.
    pub(super) fn rows_per_search(&self) -> usize {
        match self.strategy {
            Strategy::Beam { num_beams, .. } => num_beams,
            _ => 1,
        }
    }

    /// Searches that an image starts with: a beam search gives all its captions at once.
    pub(super) fn searches_per_image(&self) -> usize {
        match self.strategy {
            Strategy::Beam { .. } => 1,
            _ => self.num_captions,
        }
    }
}

fn bad<T>(message: impl Into<String>) -> Result<T, SettingsError> {
    Err(SettingsError(message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(flags: Flags) -> String {
        Settings::from_flags(&flags).expect_err("these flags make no sense").to_string()
    }

    #[test]
    fn no_flags_are_greedy() {
        assert_eq!(Settings::from_flags(&Flags::default()), Ok(Settings::default()));
        let one_beam = Flags { num_beams: Some(1), ..Flags::default() };
        assert_eq!(Settings::from_flags(&one_beam), Ok(Settings::default()));
    }

    #[test]
    fn any_sampling_flag_selects_sampling() {
        let flags = Flags { top_k: Some(0), seed: 7, num_captions: Some(5), ..Flags::default() };
        let settings = Settings::from_flags(&flags).expect("valid");
        assert_eq!(settings.strategy, Strategy::Sample(Sampling { seed: 7, ..Sampling::default() }));
    }

    #[test]
    fn a_seed_does_not_change_greedy_settings() {
        let settings = |seed| Settings::from_flags(&Flags { seed, ..Flags::default() }).expect("valid");
        assert_eq!(settings(1), settings(2));
    }

    #[test]
    fn senseless_flags_are_refused_by_name() {
        let none = Flags::default;
        let cases = [
            (Flags { num_beams: Some(3), top_p: Some(0.9), ..none() }, "exclude each other"),
            (Flags { num_captions: Some(2), ..none() }, "greedy decoding gives one caption"),
            (Flags { num_captions: Some(4), num_beams: Some(3), ..none() }, "more than --num-beams 3"),
            (Flags { num_captions: Some(0), ..none() }, "--num-captions is 0"),
            (Flags { num_beams: Some(0), ..none() }, "--num-beams is 0"),
            (Flags { temperature: Some(0.0), ..none() }, "--temperature is 0"),
            (Flags { temperature: Some(f64::NAN), ..none() }, "--temperature is NaN"),
            (Flags { top_p: Some(0.0), ..none() }, "--top-p is 0"),
            (Flags { top_p: Some(1.1), ..none() }, "--top-p is 1.1"),
            (Flags { repetition_penalty: Some(-1.0), ..none() }, "--repetition-penalty is -1"),
            (Flags { length_penalty: Some(0.6), ..none() }, "--length-penalty is for beam search"),
            (Flags { num_beams: Some(2), length_penalty: Some(f64::INFINITY), ..none() }, "--length-penalty is inf"),
            (Flags { distinct: true, ..none() }, "--distinct is for sampling"),
            (Flags { max_new_tokens: Some(0), ..none() }, "--max-new-tokens is 0"),
            (Flags { min_new_tokens: Some(68), ..none() }, "--min-new-tokens 68 is more than --max-new-tokens 67"),
        ];
        for (flags, wanted) in cases {
            let message = refused(flags);
            assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
        }
    }

    #[test]
    fn settings_serialize_by_name() {
        let flags = Flags { num_beams: Some(4), length_penalty: Some(0.6), ..Flags::default() };
        let json = serde_json::to_value(Settings::from_flags(&flags).expect("valid")).expect("serializes");
        assert_eq!(json["strategy"], serde_json::json!({"kind": "beam", "num_beams": 4, "length_penalty": 0.6}));
        let sampled = serde_json::to_value(Strategy::Sample(Sampling::default())).expect("serializes");
        assert_eq!(sampled["kind"], "sample");
        assert_eq!(sampled["top_p"], 1.0);
    }

    /// A job's workers and a run that goes on compare settings with those they read.
    #[test]
    fn numbers_come_back_from_a_plan_to_the_last_digit() {
        let fractions = (1..2000).map(|n| (f64::from(n) * 0.618_033_988_749_894_9).fract());
        for temperature in fractions.chain([0.123_456_789_012_345_67, 1.0000000000000002]) {
            let written = Strategy::Sample(Sampling { temperature, top_p: temperature.min(1.0), ..Sampling::default() });
            let plan = serde_json::to_vec_pretty(&written).expect("serializes");
            assert_eq!(serde_json::from_slice::<Strategy>(&plan).expect("its own"), written);
        }
    }
}
