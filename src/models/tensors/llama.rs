use super::{Init, List, TensorSpec};
use crate::models::config::LlamaConfig;

/// The tensors of Llama and its like as `LlamaForCausalLM` names them, without a tied `lm_head.weight`.
pub fn llama_tensors(config: &LlamaConfig) -> Vec<TensorSpec> {
    let (width, inner, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim());
    let (q, kv) = (config.num_attention_heads * head_dim, config.kv_heads() * head_dim);
    let init = Init::Normal(config.initializer_range);
    let mut list = List::default();
    let norm = |list: &mut List, name: String, width: usize| list.add(format!("{name}.weight"), &[width], Init::Constant(1.0));
    let product = |list: &mut List, name: String, inputs: usize, outputs: usize, bias: bool| {
        list.add(format!("{name}.weight"), &[outputs, inputs], init);
        if bias {
            list.add(format!("{name}.bias"), &[outputs], Init::Constant(0.0));
        }
    };
    list.add("model.embed_tokens.weight", &[config.vocab_size, width], init);
    for layer in 0..config.num_hidden_layers {
        let scope = format!("model.layers.{layer}");
        norm(&mut list, format!("{scope}.input_layernorm"), width);
        for (name, outputs) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            product(&mut list, format!("{scope}.self_attn.{name}"), width, outputs, config.qkv_bias());
        }
        product(&mut list, format!("{scope}.self_attn.o_proj"), q, width, config.output_bias());
        if config.qk_norm() {
            norm(&mut list, format!("{scope}.self_attn.q_norm"), head_dim);
            norm(&mut list, format!("{scope}.self_attn.k_norm"), head_dim);
        }
        norm(&mut list, format!("{scope}.post_attention_layernorm"), width);
        for (name, inputs, outputs) in [("gate_proj", width, inner), ("up_proj", width, inner), ("down_proj", inner, width)] {
            product(&mut list, format!("{scope}.mlp.{name}"), inputs, outputs, config.mlp_bias);
        }
    }
    norm(&mut list, "model.norm".into(), width);
    if !config.tie_word_embeddings {
        list.add("lm_head.weight", &[config.vocab_size, width], init);
    }
    list.0
}
