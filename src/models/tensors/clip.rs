use super::{Init, List, TensorSpec, inverse_root, mapper};
use crate::models::clip::text_block;
use crate::models::config::{ClipConfig, TextConfig};

/// CLIP's tensors: the image tower and its projection; the text tower, its projection and `logit_scale` where the configuration has one.
pub fn clip_tensors(config: &ClipConfig) -> Vec<TensorSpec> {
    let mut list = List::default();
    config.vision_config.tower().tensors(&mut list, config.projection_dim, config.initializer_factor);
    let Some(text) = &config.text_config else { return list.0 };
    let width = match text {
        TextConfig::Clip(text) => {
            let (width, factor) = (text.hidden_size, text.initializer_factor);
            let embeddings = "text_model.embeddings";
            let init = Init::Normal(factor * 0.02);
            list.add(format!("{embeddings}.token_embedding.weight"), &[text.vocab_size, width], init);
            list.add(format!("{embeddings}.position_embedding.weight"), &[text.max_position_embeddings, width], init);
            text_block(text).tensors(&mut list, "text_model.encoder.layers", text.num_hidden_layers, factor);
            list.layer_norm("text_model.final_layer_norm", width);
            width
        }
        TextConfig::Bert(bert) => {
            mapper::bert_tensors(&mut list, "text_model", bert);
            // Here words are read.
            let words = list.0.iter_mut().filter(|tensor| tensor.name == "text_model.embeddings.word_embeddings.weight");
            words.for_each(|tensor| tensor.optional = false);
            bert.hidden_size
        }
    };
    let projection = Init::Normal(inverse_root(width) * config.initializer_factor);
    list.add("text_projection.weight", &[config.projection_dim, width], projection);
    list.add("logit_scale", &[], Init::Constant(config.logit_scale_init_value as f32));
    list.0
}
