use super::{Init, List, TensorSpec};
use crate::models::config::Gpt2Config;

/// GPT2's tensors as `GPT2LMHeadModel` names them, with `lm_head.weight` where it is not tied. Weights of `Conv1D` are [in, out].
pub fn gpt2_tensors(config: &Gpt2Config) -> Vec<TensorSpec> {
    let (width, inner) = (config.n_embd, config.inner_size());
    let init = Init::Normal(config.initializer_range);
    let residual = Init::Normal(config.initializer_range / (2.0 * config.n_layer as f64).sqrt());
    let mut list = List::default();
    list.add("transformer.wte.weight", &[config.vocab_size, width], init);
    list.add("transformer.wpe.weight", &[config.n_positions, width], init);
    for layer in 0..config.n_layer {
        let scope = format!("transformer.h.{layer}");
        list.layer_norm(&format!("{scope}.ln_1"), width);
        list.dense(&format!("{scope}.attn.c_attn"), [width, 3 * width], 3 * width, init);
        list.dense(&format!("{scope}.attn.c_proj"), [width, width], width, residual);
        list.layer_norm(&format!("{scope}.ln_2"), width);
        list.dense(&format!("{scope}.mlp.c_fc"), [width, inner], inner, init);
        list.dense(&format!("{scope}.mlp.c_proj"), [inner, width], width, residual);
    }
    list.layer_norm("transformer.ln_f", width);
    if !config.tie_word_embeddings {
        list.add("lm_head.weight", &[config.vocab_size, width], init);
    }
    list.0
}
