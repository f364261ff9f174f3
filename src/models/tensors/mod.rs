//! Which tensors a model has: names as Hugging Face spells them, shapes from the configuration, and how a new one starts.
//!
//! One table serves the importers (what must be there), `Bundle::open` (what is there) and `model init` (what to make).

mod clip;
mod gpt2;
mod llama;
mod mapper;
mod random;

pub use clip::clip_tensors;
pub use gpt2::gpt2_tensors;
pub use llama::llama_tensors;
pub use mapper::mapper_tensors;
pub use random::random_values;

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
    /// Kept where the source has it; nothing that is computed here needs it.
    pub optional: bool,
}

impl TensorSpec {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How a new tensor starts, as transformers and PyTorch start it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Constant(f32),
    /// Mean 0 and this standard deviation.
    Normal(f64),
    /// As `Normal`, and the first row of this many elements is 0 (the padding token's).
    NormalButFirst(f64, usize),
    /// Between minus and plus this.
    Uniform(f64),
}

/// A list of tensors under construction, with scopes like Hugging Face's.
#[derive(Default)]
pub struct List(Vec<TensorSpec>);

impl List {
    /// A tensor.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], init: Init) {
        self.0.push(TensorSpec { name: name.into(), shape: shape.to_vec(), init, optional: false });
    }

    /// `NAME.weight` of ones and `NAME.bias` of zeros.
    pub fn layer_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width], Init::Constant(1.0));
        self.add(format!("{name}.bias"), &[width], Init::Constant(0.0));
    }

    /// `NAME.weight` of this shape, and `NAME.bias` of zeros as wide as the output.
    pub fn dense(&mut self, name: &str, shape: [usize; 2], outputs: usize, init: Init) {
        self.add(format!("{name}.weight"), &shape, init);
        self.add(format!("{name}.bias"), &[outputs], Init::Constant(0.0));
    }

    /// PyTorch's Linear, [out, in].
    pub fn linear(&mut self, name: &str, inputs: usize, outputs: usize, init: Init) {
        self.dense(name, [outputs, inputs], outputs, init);
    }
}

/// One over the root of a size.
pub fn inverse_root(size: usize) -> f64 {
    1.0 / (size as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::config::{BertConfig, ClipConfig, ClipTextConfig, ClipVisionConfig, Gpt2Config, MapperConfig};

    fn parameters(tensors: &[TensorSpec]) -> usize {
        tensors.iter().map(TensorSpec::numel).sum()
    }

    #[test]
    fn published_models_have_the_published_number_of_parameters() {
        let mut clip = ClipConfig::vision_only(ClipVisionConfig::default());
        assert_eq!(parameters(&clip_tensors(&clip)), 87_849_216);
        clip.text_config = Some(ClipTextConfig::default().into());
        assert_eq!(parameters(&clip_tensors(&clip)), 151_277_313, "OpenAI's ViT-B/32, whole");
        assert_eq!(parameters(&gpt2_tensors(&Gpt2Config::default())), 124_439_808, "GPT2 small");
        let bert = BertConfig { vocab_size: 21128, ..BertConfig::default() };
        let mapper = mapper_tensors(&MapperConfig::bert(512, 768, 10, bert));
        assert_eq!(parameters(&mapper), 102_267_648 + (512 + 1) * 7680 + 7680, "bert-base-chinese, linear and constant");
        assert_eq!(parameters(&mapper_tensors(&MapperConfig::mlp(512, 768, 10))), 512 * 3840 + 3840 + 3840 * 7680 + 7680);
    }
}
