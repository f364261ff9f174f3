//! GPT2: learned positions, layer norms, one packed product for queries, keys and values, a head tied to the
//! embedding or of its own.

use super::{Architecture, Attend, Pass, Positions, Product, Rotation, Sizes};
use crate::models::config::Gpt2Config;
use crate::models::layers::{Style, activation, conv1d, layer_norm, parameter};
use crate::models::tensors::{TensorSpec, gpt2_tensors};
use crate::onnx::{Dim, Graph, Value};

impl Architecture for Gpt2Config {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocab_size: self.vocab_size,
            n_positions: self.n_positions,
            n_embd: self.n_embd,
            n_layer: self.n_layer,
            n_head: self.n_head,
            n_kv_head: self.n_head,
            head_dim: self.head_dim(),
        }
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        gpt2_tensors(self)
    }

    fn scope(&self) -> &'static str {
        "transformer"
    }

    fn embedding(&self) -> &'static str {
        "transformer.wte"
    }

    fn head(&self) -> &'static str {
        if self.tie_word_embeddings { self.embedding() } else { "lm_head" }
    }

    fn products(&self, layer: usize) -> Vec<Product> {
        let (width, inner) = (self.n_embd, self.inner_size());
        let product = |name: &str, outputs, inputs| Product {
            name: format!("transformer.h.{layer}.{name}"),
            outputs,
            inputs,
            transposed: true,
        };
        vec![
            product("attn.c_attn", 3 * width, width),
            product("attn.c_proj", width, width),
            product("mlp.c_fc", inner, width),
            product("mlp.c_proj", width, inner),
        ]
    }

    fn adapted(&self) -> &'static [&'static str] {
        &["c_attn"]
    }

    fn attention_dropout(&self) -> f64 {
        self.attn_pdrop
    }

    fn begin(&self, g: &Graph, pass: &Pass<'_>, embeds: Value, positions: Positions<'_>) -> (Value, Rotation) {
        let table = parameter(g, pass.style, "wpe.weight", &[self.n_positions, self.n_embd]);
        let added = match positions {
            Positions::Given(positions) => g.gather(table, positions, 0),
            Positions::FromStart(count) => g.slice(table, 0, 0.into(), count.clone()),
        };
        ((pass.drop)("drop", self.embd_pdrop, g.add(embeds, added)), None)
    }

    fn layer(&self, g: &Graph, pass: &Pass<'_>, layer: usize, x: Value, _: Rotation, attend: Attend<'_>) -> Value {
        let (style, width, epsilon) = (pass.style, self.n_embd, self.layer_norm_epsilon);
        let taken = |x| if layer + 1 == self.n_layer { (pass.pick)(x) } else { x };
        g.scope(&format!("h.{layer}"), || {
            let normed = layer_norm(g, style, "ln_1", x, width, epsilon);
            let attended = g.scope("attn", || {
                let qkv = conv1d(g, style, "c_attn", normed, width, 3 * width);
                let joined = taken(g.reshape(attend(self.heads(g, pass, qkv)), &g.shape(normed)));
                (pass.drop)("resid_dropout", self.resid_pdrop, conv1d(g, style, "c_proj", joined, width, width))
            });
            let x = g.add(taken(x), attended);
            g.add(x, self.feed_forward(g, pass, x))
        })
    }

    fn end(&self, g: &Graph, style: Style, x: Value) -> Value {
        layer_norm(g, style, "ln_f", x, self.n_embd, self.layer_norm_epsilon)
    }
}

impl Gpt2Config {
    fn feed_forward(&self, g: &Graph, pass: &Pass<'_>, x: Value) -> Value {
        let (style, width, inner) = (pass.style, self.n_embd, self.inner_size());
        let normed = layer_norm(g, style, "ln_2", x, width, self.layer_norm_epsilon);
        g.scope("mlp", || {
            let hidden = conv1d(g, style, "c_fc", normed, width, inner);
            let fed = conv1d(g, style, "c_proj", activation(g, style, self.activation_function, hidden), inner, width);
            (pass.drop)("dropout", self.resid_pdrop, fed)
        })
    }

    /// [.., 3 C] -> query, key and value [B, S, H, D].
    fn heads(&self, g: &Graph, pass: &Pass<'_>, qkv: Value) -> [Value; 3] {
        let width = self.n_embd;
        let qkv = g.reshape(qkv, &[pass.batch.clone(), pass.tokens.clone(), (3 * width).into()]);
        let parts = g.split(qkv, 2, &[width as i64; 3]);
        let shape: [Dim; 4] = [pass.batch.clone(), pass.tokens.clone(), self.n_head.into(), self.head_dim().into()];
        [0, 1, 2].map(|i| g.reshape(parts.get(i).copied().unwrap_or(qkv), &shape))
    }
}
