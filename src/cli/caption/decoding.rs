//! Flags of decoding and of putting captions in order.

use crate::cli::BadUsage;
use crate::generation;
use crate::models::Bundle;
use crate::stages::caption::{self, Wording};
use crate::text::clean::{Cleaner, Cleaning, Punctuation, Script};

/// How captions are chosen.
#[derive(clap::Args)]
pub(in crate::cli) struct DecodingArgs {
    /// Captions per image; needs sampling or --num-beams (default: 1)
    #[arg(long, value_name = "N", aliases = ["num_captions", "num_generate", "num-generate"], help_heading = "Decoding")]
    num_captions: Option<usize>,
    /// Sampling temperature: below 1 safer, above 1 more varied (default when sampling: 1)
    #[arg(long, value_name = "T", help_heading = "Decoding")]
    temperature: Option<f64>,
    /// Sample from the K likeliest tokens (default: 0, all)
    #[arg(long, value_name = "K", aliases = ["top_k", "topk"], help_heading = "Decoding")]
    top_k: Option<usize>,
    /// Sample from the likeliest tokens that together have this probability (default: 1, all)
    #[arg(long, value_name = "P", aliases = ["top_p", "topp"], help_heading = "Decoding")]
    top_p: Option<f64>,
    /// Beam search with this many beams, at most 1000 (default: no beam search)
    #[arg(long, value_name = "N", alias = "num_beams", help_heading = "Decoding")]
    num_beams: Option<usize>,
    /// Length penalty of beam search: score / length^X (default: 1)
    #[arg(long, value_name = "X", alias = "length_penalty", help_heading = "Decoding")]
    length_penalty: Option<f64>,
    /// Minimum tokens per caption, not counting [SEP] (default: 0)
    #[arg(long, value_name = "N", alias = "min_new_tokens", help_heading = "Decoding")]
    min_new_tokens: Option<usize>,
    /// Maximum tokens per caption, counting [SEP] (default: 67, or what the model has positions for)
    #[arg(long, value_name = "N", aliases = ["max_new_tokens", "max_len", "max-len"], help_heading = "Decoding")]
    max_new_tokens: Option<usize>,
    /// Repetition penalty: above 1 makes tokens that the caption already has less likely (default: 1)
    #[arg(long, value_name = "X", alias = "repetition_penalty", help_heading = "Decoding")]
    repetition_penalty: Option<f64>,
    /// Never repeat N tokens in a row within a caption (default: 0, allowed)
    #[arg(long, value_name = "N", alias = "no_repeat_ngram_size", help_heading = "Decoding")]
    no_repeat_ngram_size: Option<usize>,
    /// Do not stop looping captions (default: stop when 1-8 tokens repeat four times)
    #[arg(long, alias = "no_loop_guard", help_heading = "Decoding")]
    no_loop_guard: bool,
    /// Distinct captions per image; resample up to N times, then write fewer
    #[arg(long, help_heading = "Decoding")]
    distinct: bool,
    /// Stop token: text, which stays in the caption, or the name of a special token (default: the bundle's)
    #[arg(long, value_name = "TOKEN", alias = "stop_token", help_heading = "Decoding")]
    stop_token: Option<String>,
    /// Prompt: text after the image's prefix that captions continue (default: the bundle's; \"\" for none)
    #[arg(long, value_name = "TEXT", help_heading = "Decoding")]
    prompt: Option<String>,
    /// Convert captions to simplified or traditional characters (default: leave them)
    #[arg(long, value_enum, value_name = "SCRIPT", help_heading = "Clean-up")]
    script: Option<ScriptArg>,
    /// Replace what a regular expression matches: 'PATTERN=TEXT', with $1 for a group (repeatable)
    #[arg(long, value_name = "PATTERN=TEXT", help_heading = "Clean-up")]
    replace: Vec<String>,
    /// Punctuation: none (removed), no-end (removed at the end), wide (Chinese marks) or ascii (default: leave it)
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Clean-up")]
    punctuation: Option<PunctuationArg>,
    /// Drop captions with any of these words; an image left without captions fails as `filtered`
    #[arg(long, value_name = "WORDS", alias = "banned_words", value_delimiter = ',', help_heading = "Clean-up")]
    banned_words: Vec<String>,
    /// Drop captions with none of these words; an image left without captions fails as `filtered`
    #[arg(long, value_name = "WORDS", alias = "required_words", value_delimiter = ',', help_heading = "Clean-up")]
    required_words: Vec<String>,
    /// Seed of sampling; the same image and seed give the same captions in any folder
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Decoding")]
    seed: u64,
}

/// Chinese characters of one script.
#[derive(Clone, Copy, clap::ValueEnum)]
enum ScriptArg {
    Simplified,
    Traditional,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PunctuationArg {
    None,
    NoEnd,
    Wide,
    Ascii,
}

impl DecodingArgs {
    /// What is done to captions that are made.
    fn cleaning(&self) -> Result<Cleaning, String> {
        let pair = |text: &String| {
            let (pattern, with) = text.split_once('=').ok_or_else(|| format!("--replace {text}: PATTERN=TEXT is expected"))?;
            Ok((pattern.to_string(), with.to_string()))
        };
        let words = |words: &[String]| words.iter().filter(|word| !word.trim().is_empty()).cloned().collect();
        let cleaning = Cleaning {
            script: self.script.map(|script| match script {
                ScriptArg::Simplified => Script::Simplified,
                ScriptArg::Traditional => Script::Traditional,
            }),
            replace: self.replace.iter().map(pair).collect::<Result<_, String>>()?,
            punctuation: self.punctuation.map(|how| match how {
                PunctuationArg::None => Punctuation::None,
                PunctuationArg::NoEnd => Punctuation::NoEnd,
                PunctuationArg::Wide => Punctuation::Wide,
                PunctuationArg::Ascii => Punctuation::Ascii,
            }),
            banned: words(&self.banned_words),
            required: words(&self.required_words),
        };
        Cleaner::new(&cleaning).map(|_| cleaning)
    }

    /// How captions begin and end.
    pub(in crate::cli) fn wording(&self, bundle: &Bundle) -> anyhow::Result<Wording> {
        let mut wording = Wording::new(bundle, self.stop_token.clone(), self.prompt.clone());
        wording.cleaning = self.cleaning().map_err(BadUsage)?;
        if let Some(stop_token) = &wording.stop_token {
            bundle.tokenizer_ending(Some(stop_token)).map_err(|error| BadUsage(error.to_string()))?;
        }
        Ok(wording)
    }

    pub(in crate::cli) fn flags(&self) -> generation::Flags {
        generation::Flags {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            num_beams: self.num_beams,
            length_penalty: self.length_penalty,
            num_captions: self.num_captions,
            min_new_tokens: self.min_new_tokens,
            max_new_tokens: self.max_new_tokens,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            no_loop_guard: self.no_loop_guard,
            distinct: self.distinct,
            seed: self.seed,
        }
    }
}

/// The default length gives way to what the model can; a length that was asked for does not.
pub(in crate::cli) fn within_positions(
    mut decoding: generation::Settings,
    flags: &generation::Flags,
    bundle: &Bundle,
    wording: &Wording,
) -> anyhow::Result<generation::Settings> {
    let limit = caption::max_new_tokens(bundle, wording)?;
    if flags.max_new_tokens.is_none() {
        decoding.max_new_tokens = decoding.max_new_tokens.min(limit);
        decoding.validate().map_err(|error| BadUsage(error.to_string()))?;
    }
    if decoding.max_new_tokens > limit {
        let asked = decoding.max_new_tokens;
        return Err(BadUsage(format!("--max-new-tokens {asked}: this decoder has positions for {limit} after the prefix")).into());
    }
    Ok(decoding)
}
