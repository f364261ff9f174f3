//! A toy language model: its logits are a hash of the prefix and the tokens so far. As a decoder it refuses every misuse of its rows.

use crate::generation::{Request, SpecialTokens};
use crate::models::decoder::{Best, Decoder, Logits, Picked};
use crate::runtime::RuntimeError;

pub const SEP: u32 = 0;
pub const UNK: u32 = 1;
pub const PREFIX_LEN: usize = 2;
pub const N_EMBD: usize = 3;

pub fn special_tokens() -> SpecialTokens {
    SpecialTokens::bert(SEP, UNK)
}

/// The model that one prefix selects.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Toy {
    pub vocab_size: usize,
    pub seed: u16,
    /// Tokens back that matter: few make loops.
    pub memory: u8,
    /// Added to the logit of [SEP].
    pub sep_bias: i8,
}

impl Toy {
    /// Logits of the token after `history`, exact in binary: multiples of 2^-16 in [0, 16), and [SEP]'s moved by its bias.
    pub fn logits(&self, history: &[u32]) -> Vec<f32> {
        let mut hash = 0xcbf2_9ce4_8422_2325 ^ u64::from(self.seed);
        for &token in &history[history.len().saturating_sub(self.memory.into())..] {
            hash = (hash ^ (u64::from(token) + 1)).wrapping_mul(0x0100_0000_01b3);
        }
        (0..self.vocab_size as u64)
            .map(|token| {
                let mut mixed = hash.wrapping_add(token.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed ^= mixed >> 31;
                let logit = (mixed >> 44) as f32 / 65536.0;
                if token == u64::from(SEP) { logit + f32::from(self.sep_bias) } else { logit }
            })
            .collect()
    }

    pub fn request(&self, index: u64) -> Request {
        let prefix = [f32::from(self.seed), f32::from(self.memory), f32::from(self.sep_bias), 0.5, 0.25, 0.125];
        let mut sha256 = [0; 32];
        sha256[..2].copy_from_slice(&self.seed.to_le_bytes());
        Request { index, sha256: sha256.into(), prefix_embeds: prefix.to_vec() }
    }

    fn from_prefix(prefix: &[f32], vocab_size: usize) -> Self {
        assert_eq!(prefix[3..], [0.5, 0.25, 0.125], "a prefix was cut at the wrong place");
        Self { vocab_size, seed: prefix[0] as u16, memory: prefix[1] as u8, sep_bias: prefix[2] as i8 }
    }
}

/// Serves any number of toy models of one vocabulary, each selected by its prefix.
pub struct ToyDecoder {
    vocab_size: usize,
    max_rows: usize,
    max_new_tokens: usize,
    held: Vec<Toy>,
    rows: Vec<(Toy, Vec<u32>)>,
    logits: Vec<f32>,
    /// Steps after which logits turn to NaN.
    pub broken_after: usize,
    pub num_steps: usize,
    pub num_row_steps: usize,
    pub num_prefixes: usize,
    /// Prefixes of each prefill.
    pub prefills: Vec<usize>,
    /// Gives the best logits of each row alone, as a device does.
    pub picked: Option<Picked>,
    /// Of the last run.
    whole: Vec<f32>,
    pub num_whole_rows: usize,
}

impl ToyDecoder {
    pub fn new(vocab_size: usize, max_rows: usize, max_new_tokens: usize) -> Self {
        Self {
            vocab_size,
            max_rows,
            max_new_tokens,
            held: Vec::new(),
            rows: Vec::new(),
            logits: Vec::new(),
            broken_after: usize::MAX,
            num_steps: 0,
            num_row_steps: 0,
            num_prefixes: 0,
            prefills: Vec::new(),
            picked: None,
            whole: Vec::new(),
            num_whole_rows: 0,
        }
    }

    fn best(&mut self, logits: Vec<f32>, picked: Picked) -> Best {
        let count = picked.count.min(self.vocab_size);
        let mut numbers = vec![];
        for row in logits.chunks(self.vocab_size) {
            let mut ids: Vec<usize> = (0..row.len()).collect();
            ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            let log_sum = |factor: f32| row.iter().map(|&l| f64::from(l * factor).exp()).sum::<f64>().ln() as f32;
            numbers.extend(ids[..count].iter().map(|&id| row[id]));
            numbers.extend(ids[..count].iter().map(|&id| id as f32));
            numbers.extend([log_sum(1.0), log_sum((1.0 / picked.temperature) as f32)]);
        }
        self.whole = logits;
        Best { count, numbers }
    }
}

impl Decoder for ToyDecoder {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn prefix_len(&self) -> usize {
        PREFIX_LEN
    }

    fn n_embd(&self) -> usize {
        N_EMBD
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    fn prefill(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Vec<f32>, RuntimeError> {
        assert!(num_prefixes > 0, "a prefill of nothing");
        assert_eq!(prefix_embeds.len(), num_prefixes * PREFIX_LEN * N_EMBD);
        self.num_prefixes += num_prefixes;
        self.prefills.push(num_prefixes);
        let prefixes = prefix_embeds.chunks(PREFIX_LEN * N_EMBD);
        self.held = prefixes.map(|prefix| Toy::from_prefix(prefix, self.vocab_size)).collect();
        Ok(self.held.iter().flat_map(|toy| toy.logits(&[])).collect())
    }

    fn start_row(&mut self, prefix: usize) -> Result<(), RuntimeError> {
        assert!(self.rows.len() < self.max_rows, "more rows than the decoder holds");
        self.rows.push((self.held[prefix], Vec::new()));
        Ok(())
    }

    fn gather_rows(&mut self, sources: &[usize]) -> Result<(), RuntimeError> {
        assert!(sources.len() <= self.max_rows, "more rows than the decoder holds");
        self.rows = sources.iter().map(|&source| self.rows[source].clone()).collect();
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], RuntimeError> {
        assert!(!tokens.is_empty(), "a step without rows");
        assert_eq!(tokens.len(), self.rows.len(), "a token for each row");
        self.num_steps += 1;
        self.num_row_steps += tokens.len();
        self.logits.clear();
        for ((toy, history), &token) in self.rows.iter_mut().zip(tokens) {
            assert!(token != SEP && token != UNK && (token as usize) < self.vocab_size, "token {token} has no business here");
            history.push(token);
            assert!(history.len() <= self.max_new_tokens, "a row is longer than the decoder's cache");
            self.logits.extend(toy.logits(history));
        }
        if self.num_steps > self.broken_after {
            self.logits[0] = f32::NAN;
        }
        Ok(&self.logits)
    }

    fn prefill_best(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Logits<'_>, RuntimeError> {
        let logits = self.prefill(prefix_embeds, num_prefixes)?;
        Ok(match self.picked {
            Some(picked) => Logits::Best(self.best(logits, picked)),
            None => Logits::Whole(logits.into()),
        })
    }

    fn step_best(&mut self, tokens: &[u32]) -> Result<Logits<'_>, RuntimeError> {
        let logits = self.step(tokens)?.to_vec();
        Ok(match self.picked {
            Some(picked) => Logits::Best(self.best(logits, picked)),
            None => Logits::Whole(logits.into()),
        })
    }

    fn whole_rows(&mut self, rows: &[usize]) -> Result<Vec<f32>, RuntimeError> {
        assert!(rows.is_sorted_by(|a, b| a < b), "each row once");
        self.num_whole_rows += rows.len();
        Ok(rows.iter().flat_map(|&row| self.whole[row * self.vocab_size..][..self.vocab_size].to_vec()).collect())
    }
}
