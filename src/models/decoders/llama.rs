//! Llama and what is shaped like it (Mistral, Qwen2, Qwen3): RMS norms, positions as rotations of queries and keys, fewer heads of keys and
//! values than of queries, a gated feed-forward, a head of its own or tied.

use super::{Architecture, Attend, Pass, Positions, Product, Rotation, Sizes};
use crate::models::config::LlamaConfig;
use crate::models::layers::{Style, activation, linear, parameter};
use crate::models::tensors::{TensorSpec, llama_tensors};
use crate::onnx::{DType, Dim, Graph, Value};

impl Architecture for LlamaConfig {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocab_size: self.vocab_size,
            n_positions: self.positions(),
            n_embd: self.hidden_size,
            n_layer: self.num_hidden_layers,
            n_head: self.num_attention_heads,
            n_kv_head: self.kv_heads(),
            head_dim: self.head_dim(),
        }
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        llama_tensors(self)
    }

    fn scope(&self) -> &'static str {
        "model"
    }

    fn embedding(&self) -> &'static str {
        "model.embed_tokens"
    }

    fn head(&self) -> &'static str {
        if self.tie_word_embeddings { self.embedding() } else { "lm_head" }
    }

    fn products(&self, layer: usize) -> Vec<Product> {
        let (width, inner, head_dim) = (self.hidden_size, self.intermediate_size, self.head_dim());
        let (q, kv) = (self.num_attention_heads * head_dim, self.kv_heads() * head_dim);
        let product = |name: &str, outputs, inputs| Product {
            name: format!("model.layers.{layer}.{name}"),
            outputs,
            inputs,
            transposed: false,
        };
        vec![
            product("self_attn.q_proj", q, width),
            product("self_attn.k_proj", kv, width),
            product("self_attn.v_proj", kv, width),
            product("self_attn.o_proj", width, q),
            product("mlp.gate_proj", inner, width),
            product("mlp.up_proj", inner, width),
            product("mlp.down_proj", width, inner),
        ]
    }

    fn adapted(&self) -> &'static [&'static str] {
        &["q_proj", "v_proj"]
    }

    fn attention_dropout(&self) -> f64 {
        self.attention_dropout
    }

    fn begin(&self, g: &Graph, pass: &Pass<'_>, embeds: Value, positions: Positions<'_>) -> (Value, Rotation) {
        let (positions, batch, tokens) = match positions {
            Positions::Given(positions) => (positions, pass.batch.clone(), pass.tokens.clone()),
            Positions::FromStart(count) => (g.range(count), 1.into(), count.clone()),
        };
        let frequencies = self.frequencies();
        let half = frequencies.len();
        let positions = g.reshape(g.cast(positions, DType::F32), &[batch.clone(), tokens.clone(), 1.into(), 1.into()]);
        let angles = g.mul(positions, g.floats(&frequencies, &[1, 1, 1, half as i64])); // [B, S, 1, D / 2]
        let angles = g.concat(&[angles, angles], 3);
        (embeds, Some([g.cos(angles), g.sin(angles)].map(|x| g.cast(x, pass.style.dtype))))
    }

    fn layer(&self, g: &Graph, pass: &Pass<'_>, layer: usize, x: Value, rotation: Rotation, attend: Attend<'_>) -> Value {
        let (style, width, inner) = (pass.style, self.hidden_size, self.intermediate_size);
        let (head_dim, heads, kv_heads) = (self.head_dim(), self.num_attention_heads, self.kv_heads());
        let taken = |x| if layer + 1 == self.num_hidden_layers { (pass.pick)(x) } else { x };
        g.scope(&format!("layers.{layer}"), || {
            let normed = self.rms_norm(g, style, "input_layernorm", x, width);
            let attended = g.scope("self_attn", || {
                let project = |name: &str, heads: usize| {
                    let y = linear(g, style, name, normed, width, heads * head_dim, self.qkv_bias());
                    g.reshape(y, &[pass.batch.clone(), pass.tokens.clone(), heads.into(), head_dim.into()])
                };
                let placed = |name: &str, x: Value| {
                    let x = if self.qk_norm() { self.rms_norm(g, style, name, x, head_dim) } else { x };
                    rotation.map_or(x, |rotation| rotate(g, x, rotation))
                };
                let query = placed("q_norm", project("q_proj", heads));
                let key = placed("k_norm", project("k_proj", kv_heads));
                let value = project("v_proj", kv_heads);
                let mut joined_shape = g.shape(normed);
                if let Some(last) = joined_shape.last_mut() {
                    *last = (heads * head_dim).into();
                }
                let joined = taken(g.reshape(attend([query, key, value]), &joined_shape));
                linear(g, style, "o_proj", joined, heads * head_dim, width, self.output_bias())
            });
            let x = g.add(taken(x), attended);
            let normed = self.rms_norm(g, style, "post_attention_layernorm", x, width);
            let fed = g.scope("mlp", || {
                let gate = linear(g, style, "gate_proj", normed, width, inner, self.mlp_bias);
                let up = linear(g, style, "up_proj", normed, width, inner, self.mlp_bias);
                let hidden = g.mul(activation(g, style, self.hidden_act, gate), up);
                linear(g, style, "down_proj", hidden, inner, width, self.mlp_bias)
            });
            g.add(x, fed)
        })
    }

    fn end(&self, g: &Graph, style: Style, x: Value) -> Value {
        self.rms_norm(g, style, "norm", x, self.hidden_size)
    }
}

impl LlamaConfig {
    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, in float32 whatever the type of `x`.
    fn rms_norm(&self, g: &Graph, style: Style, name: &str, x: Value, width: usize) -> Value {
        g.scope(name, || {
            let weight = parameter(g, style, "weight", &[width]);
            let wide = g.cast(x, DType::F32);
            let mean = g.reduce_mean(g.mul(wide, wide), &[g.shape(x).len() - 1], true);
            let inverse = g.reciprocal(g.sqrt(g.add(mean, g.scalar_like(mean, self.rms_norm_eps as f32))));
            g.mul(g.cast(g.mul(wide, inverse), style.dtype), weight)
        })
    }
}

/// [B, S, heads, D] turned by its positions: `x * cos + (-x2, x1) * sin`, with x1 and x2 the halves of D.
fn rotate(g: &Graph, x: Value, [cos, sin]: [Value; 2]) -> Value {
    let width = g.shape(x).last().and_then(Dim::as_fixed).unwrap_or(0);
    let halves = g.split(x, 3, &[width / 2; 2]);
    let [first, second] = [0, 1].map(|i| halves.get(i).copied().unwrap_or(x));
    let turned = g.concat(&[g.neg(second), first], 3);
    g.add(g.mul(x, cos), g.mul(turned, sin))
}
