use super::{Init, List, TensorSpec};
use crate::models::config::{BertConfig, MapperConfig, MapperKind, TransformerConfig};

/// A mapper's tensors, as ClipCap checkpoints name them.
pub fn mapper_tensors(config: &MapperConfig) -> Vec<TensorSpec> {
    let mut list = List::default();
    match (config.kind, &config.bert, &config.transformer) {
        (MapperKind::Mlp, ..) => {
            for (layer, sizes) in config.layer_sizes.windows(2).enumerate() {
                // A tanh without parameters stands between two layers.
                torch_linear(&mut list, &format!("clip_project.model.{}", 2 * layer), sizes[0], sizes[1]);
            }
        }
        (MapperKind::Bert, Some(bert), _) => {
            list.add("clip_project.prefix_const", &[config.constant_len, config.n_embd], Init::Normal(1.0));
            bert_tensors(&mut list, "clip_project.bert", bert);
            torch_linear(&mut list, "clip_project.linear", config.clip_size, config.prefix_len * config.n_embd);
        }
        (MapperKind::Transformer, _, Some(transformer)) => {
            list.add("clip_project.prefix_const", &[config.constant_len, config.n_embd], Init::Normal(1.0));
            transformer_tensors(&mut list, config.n_embd, transformer);
            torch_linear(&mut list, "clip_project.linear", config.clip_size, transformer.clip_length * config.n_embd);
        }
        (MapperKind::Bert | MapperKind::Transformer, ..) => {}
    }
    list.0
}

/// PyTorch's own start of a Linear: weight and bias uniform in one over the root of the inputs.
fn torch_linear(list: &mut List, name: &str, inputs: usize, outputs: usize) {
    let init = Init::Uniform(1.0 / (inputs as f64).sqrt());
    list.add(format!("{name}.weight"), &[outputs, inputs], init);
    list.add(format!("{name}.bias"), &[outputs], init);
}

fn transformer_tensors(list: &mut List, width: usize, config: &TransformerConfig) {
    for layer in 0..config.num_layers {
        let scope = format!("clip_project.transformer.layers.{layer}");
        list.layer_norm(&format!("{scope}.norm1"), width);
        for (name, outputs) in [("to_queries", width), ("to_keys_values", 2 * width)] {
            torch_linear(list, &format!("{scope}.attn.{name}"), width, outputs);
            if !config.qkv_bias {
                list.0.pop();
            }
        }
        torch_linear(list, &format!("{scope}.attn.project"), width, width);
        list.layer_norm(&format!("{scope}.norm2"), width);
        torch_linear(list, &format!("{scope}.mlp.fc1"), width, config.inner_size);
        torch_linear(list, &format!("{scope}.mlp.fc2"), config.inner_size, width);
    }
}

pub(super) fn bert_tensors(list: &mut List, scope: &str, bert: &BertConfig) {
    let (width, inner) = (bert.hidden_size, bert.intermediate_size);
    let init = Init::Normal(bert.initializer_range);
    let embeddings = format!("{scope}.embeddings");
    // The mapper hands BERT vectors, not words, and takes its states, not the pooled one.
    list.add(
        format!("{embeddings}.word_embeddings.weight"),
        &[bert.vocab_size, width],
        Init::NormalButFirst(bert.initializer_range, width),
    );
    let unused = |list: &mut List, count: usize| list.0.iter_mut().rev().take(count).for_each(|tensor| tensor.optional = true);
    unused(list, 1);
    list.add(format!("{embeddings}.position_embeddings.weight"), &[bert.max_position_embeddings, width], init);
    list.add(format!("{embeddings}.token_type_embeddings.weight"), &[bert.type_vocab_size, width], init);
    list.layer_norm(&format!("{embeddings}.LayerNorm"), width);
    for layer in 0..bert.num_hidden_layers {
        let scope = format!("{scope}.encoder.layer.{layer}");
        for name in ["query", "key", "value"] {
            list.linear(&format!("{scope}.attention.self.{name}"), width, width, init);
        }
        list.linear(&format!("{scope}.attention.output.dense"), width, width, init);
        list.layer_norm(&format!("{scope}.attention.output.LayerNorm"), width);
        list.linear(&format!("{scope}.intermediate.dense"), width, inner, init);
        list.linear(&format!("{scope}.output.dense"), inner, width, init);
        list.layer_norm(&format!("{scope}.output.LayerNorm"), width);
    }
    list.linear(&format!("{scope}.pooler.dense"), width, width, init);
    unused(list, 2);
}
