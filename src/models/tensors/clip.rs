use super::{Init, List, TensorSpec};
use crate::models::config::ClipConfig;

/// CLIP's tensors: the image tower and its projection; the text tower, its projection and `logit_scale` where the configuration has one.
pub fn clip_tensors(config: &ClipConfig) -> Vec<TensorSpec> {
    let vision = &config.vision_config;
    let (width, factor) = (vision.hidden_size, vision.initializer_factor);
    let mut list = List::default();
    let embeddings = "vision_model.embeddings";
    list.add(format!("{embeddings}.class_embedding"), &[width], Init::Normal(inverse_root(width) * factor));
    let patch = [width, vision.num_channels, vision.patch_size, vision.patch_size];
    let init = Init::Normal(vision.initializer_range * factor);
    list.add(format!("{embeddings}.patch_embedding.weight"), &patch, init);
    list.add(format!("{embeddings}.position_embedding.weight"), &[vision.num_positions(), width], init);
    list.layer_norm("vision_model.pre_layrnorm", width);
    let tower = Tower { width, inner: vision.intermediate_size, layers: vision.num_hidden_layers, factor };
    tower.add(&mut list, "vision_model.encoder.layers");
    list.layer_norm("vision_model.post_layernorm", width);
    let projection = Init::Normal(inverse_root(width) * config.initializer_factor);
    list.add("visual_projection.weight", &[config.projection_dim, width], projection);

    if let Some(text) = &config.text_config {
        let (width, factor) = (text.hidden_size, text.initializer_factor);
        let embeddings = "text_model.embeddings";
        let init = Init::Normal(factor * 0.02);
        list.add(format!("{embeddings}.token_embedding.weight"), &[text.vocab_size, width], init);
        list.add(format!("{embeddings}.position_embedding.weight"), &[text.max_position_embeddings, width], init);
        let tower = Tower { width, inner: text.intermediate_size, layers: text.num_hidden_layers, factor };
        tower.add(&mut list, "text_model.encoder.layers");
        list.layer_norm("text_model.final_layer_norm", width);
        let projection = Init::Normal(inverse_root(width) * config.initializer_factor);
        list.add("text_projection.weight", &[config.projection_dim, width], projection);
        list.add("logit_scale", &[], Init::Constant(config.logit_scale_init_value as f32));
    }
    list.0
}

/// The layers both towers are made of.
struct Tower {
    width: usize,
    inner: usize,
    layers: usize,
    factor: f64,
}

impl Tower {
    fn add(&self, list: &mut List, scope: &str) {
        let Self { width, inner, layers, factor } = *self;
        let deep = inverse_root(width) * inverse_root(2 * layers) * factor;
        for layer in 0..layers {
            let scope = format!("{scope}.{layer}");
            for name in ["q_proj", "k_proj", "v_proj"] {
                list.linear(&format!("{scope}.self_attn.{name}"), width, width, Init::Normal(deep));
            }
            list.linear(&format!("{scope}.self_attn.out_proj"), width, width, Init::Normal(inverse_root(width) * factor));
            list.layer_norm(&format!("{scope}.layer_norm1"), width);
            list.linear(&format!("{scope}.mlp.fc1"), width, inner, Init::Normal(inverse_root(2 * width) * factor));
            list.linear(&format!("{scope}.mlp.fc2"), inner, width, Init::Normal(deep));
            list.layer_norm(&format!("{scope}.layer_norm2"), width);
        }
    }
}

fn inverse_root(size: usize) -> f64 {
    1.0 / (size as f64).sqrt()
}
