//! Decoders: causal language models that go on from a prefix. A family says what its own is ([`Architecture`]); generation and training are
//! written once over that ([`graphs`](self::graphs)). How to add a family: `docs/adding-a-decoder.md`.
//!
//! B rows, S positions of this run, C width of a state, H query heads, K key-value heads, D width of a head, V entries of the vocabulary.

mod gpt2;
mod graphs;
mod llama;

pub use graphs::{
    SharedCache, cache_name, decoder, in_place_decoder, in_place_layout, move_rows, pick_logits, shared_step, states,
    static_prefill,
};

use super::config::DecoderConfig;
use super::layers::{Drop, Style};
use super::tensors::TensorSpec;
use crate::onnx::{Dim, Graph, Value};

/// Sizes that caches, batches and the head are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub vocab_size: usize,
    /// Positions, prefix included.
    pub n_positions: usize,
    /// Width of a state.
    pub n_embd: usize,
    pub n_layer: usize,
    /// Heads of queries.
    pub n_head: usize,
    /// Heads of keys and values; `n_head` is a multiple of it.
    pub n_kv_head: usize,
    pub head_dim: usize,
}

/// A weight that is multiplied with: `NAME.weight`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    pub name: String,
    pub outputs: usize,
    pub inputs: usize,
    /// [inputs, outputs] as GPT2's Conv1D has it, not [outputs, inputs].
    pub transposed: bool,
}

/// Where positions of a run stand.
#[derive(Clone, Copy)]
pub enum Positions<'a> {
    /// int64 [B, S].
    Given(Value),
    /// 0, 1, .. S - 1 in every row.
    FromStart(&'a Dim),
}

/// A run of layers: what holds for all of them.
pub struct Pass<'a> {
    pub style: Style,
    /// B and S.
    pub batch: Dim,
    pub tokens: Dim,
    pub drop: Drop<'a>,
    /// Takes the rows that go on behind the last attention.
    pub pick: &'a dyn Fn(Value) -> Value,
}

/// What a position does to queries and keys: cosine and sine, [B or 1, S, 1, D].
pub type Rotation = Option<[Value; 2]>;

/// Attention of a layer, left open: query [B, S, H, D], key and value [B, S, K, D] -> [B, S, H * D].
pub type Attend<'a> = &'a mut dyn FnMut([Value; 3]) -> Value;

/// What a family of decoders says of itself.
pub trait Architecture {
    fn sizes(&self) -> Sizes;

    /// Every weight, as Hugging Face's `*ForCausalLM` names it; a tied head is none.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// What names of layers begin with, such as `transformer`.
    fn scope(&self) -> &'static str;

    /// The token embedding [V, C] is `NAME.weight`.
    fn embedding(&self) -> &'static str;

    /// The head [V, C] is `NAME.weight`: the embedding where it is tied.
    fn head(&self) -> &'static str;

    /// The products of layer `layer`, which 8-bit weights and adapters may stand for.
    fn products(&self, layer: usize) -> Vec<Product>;

    /// The last parts of the names of products that an adapter is put on where nothing else is asked for.
    fn adapted(&self) -> &'static [&'static str];

    /// Probability with which an attention's weights are dropped in training.
    fn attention_dropout(&self) -> f64;

    /// Embeddings [.., C] of positions -> the first layer's input of the same shape, and what positions do to every layer. In the family's scope.
    fn begin(&self, g: &Graph, pass: &Pass<'_>, embeds: Value, positions: Positions<'_>) -> (Value, Rotation);

    /// One layer, in the family's scope: `x` is [B, S, C] or flat [B * S, C]. The last layer's rows go through [`Pass::pick`] behind its attention.
    fn layer(&self, g: &Graph, pass: &Pass<'_>, layer: usize, x: Value, rotation: Rotation, attend: Attend<'_>) -> Value;

    /// The norm behind the last layer, in the family's scope.
    fn end(&self, g: &Graph, style: Style, x: Value) -> Value;
}

/// The family of a configuration.
pub fn architecture(config: &DecoderConfig) -> &dyn Architecture {
    match config {
        DecoderConfig::Gpt2(config) => config,
        DecoderConfig::Llama(config) => config,
    }
}

/// A decoder's weights.
pub fn decoder_tensors(config: &DecoderConfig) -> Vec<TensorSpec> {
    architecture(config).tensors()
}

#[cfg(test)]
mod tests;
