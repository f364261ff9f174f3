//! OpenAI's ModifiedResNet (RN50, RN50x4 ...) under OpenAI's own names: three convolutions in front, anti-aliased bottlenecks, and a pool
//! by attention at the end.
//!
//! B images, S side of an image, G = S / 32 side of the last grid, C = 32 times the width, D length of an embedding.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ImageTower;
use crate::models::block::{Attention, Product, attend};
use crate::models::config::{ConfigError, check, check_heads, check_sizes};
use crate::models::layers::{Style, linear, parameter};
use crate::models::tensors::{Init, List, inverse_root};
use crate::onnx::{Dim, Graph, Value};

/// What a ModifiedResNet's shapes say of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResNetConfig {
    /// Bottlenecks of each of the four stages.
    pub stages: [usize; 4],
    /// Channels of the first stage's inner convolutions.
    pub width: usize,
    /// Heads of the pool at the end.
    pub heads: usize,
    /// Side of the square image, in pixels: a multiple of 32.
    pub image_size: usize,
    /// Length of an embedding; `ClipConfig::projection_dim` is the one that counts.
    pub projection_dim: usize,
}

/// PyTorch's, which the checkpoints were trained with.
const NORM_EPSILON: f32 = 1e-5;

/// A bottleneck makes so many times its inner channels.
const EXPANSION: usize = 4;

/// One bottleneck: where it is, what goes in, its inner channels, and by how much it shrinks the picture.
struct Bottleneck {
    name: String,
    inputs: usize,
    planes: usize,
    stride: usize,
}

impl Bottleneck {
    fn outputs(&self) -> usize {
        EXPANSION * self.planes
    }

    /// Whether what goes around it must be brought to another size.
    fn is_projected(&self) -> bool {
        self.stride > 1 || self.inputs != self.outputs()
    }
}

impl ResNetConfig {
    /// Channels of the last stage, C.
    fn channels(&self) -> usize {
        32 * self.width
    }

    fn positions(&self) -> usize {
        (self.image_size / 32).pow(2) + 1
    }

    fn bottlenecks(&self) -> Vec<Bottleneck> {
        let mut inputs = self.width;
        let mut list = vec![];
        for (stage, &count) in self.stages.iter().enumerate() {
            let planes = self.width << stage;
            for number in 0..count {
                let stride = if stage > 0 && number == 0 { 2 } else { 1 };
                list.push(Bottleneck { name: format!("layer{}.{number}", stage + 1), inputs, planes, stride });
                inputs = EXPANSION * planes;
            }
        }
        list
    }

    /// The three convolutions in front: (number, inputs, outputs, stride).
    fn stem(&self) -> [(usize, usize, usize, i64); 3] {
        [(1, 3, self.width / 2, 2), (2, self.width / 2, self.width / 2, 1), (3, self.width / 2, self.width, 1)]
    }
}

/// A convolution without bias and the normalization behind it.
#[allow(clippy::too_many_arguments)]
fn convolution(
    g: &Graph,
    style: Style,
    [conv, norm]: [&str; 2],
    x: Value,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: i64,
) -> Value {
    let weight = parameter(g, style, &format!("{conv}.weight"), &[outputs, inputs, kernel, kernel]);
    let x = g.conv_padded(x, weight, None, stride, (kernel / 2) as i64);
    let [weight, bias, mean, var] =
        ["weight", "bias", "running_mean", "running_var"].map(|name| parameter(g, style, &format!("{norm}.{name}"), &[outputs]));
    g.batch_normalization(x, [weight, bias, mean, var], NORM_EPSILON)
}

fn bottleneck(g: &Graph, style: Style, block: &Bottleneck, x: Value) -> Value {
    let (planes, outputs) = (block.planes, block.outputs());
    let shrink = |x: Value| if block.stride > 1 { g.average_pool(x, block.stride as i64) } else { x };
    let inner = g.relu(convolution(g, style, ["conv1", "bn1"], x, block.inputs, planes, 1, 1));
    let inner = g.relu(convolution(g, style, ["conv2", "bn2"], inner, planes, planes, 3, 1));
    let inner = convolution(g, style, ["conv3", "bn3"], shrink(inner), planes, outputs, 1, 1);
    let around = match block.is_projected() {
        true => convolution(g, style, ["downsample.0", "downsample.1"], shrink(x), block.inputs, outputs, 1, 1),
        false => x,
    };
    g.relu(g.add(inner, around))
}

impl ImageTower for ResNetConfig {
    fn family(&self) -> &'static str {
        "CLIP, ResNet"
    }

    fn layers(&self) -> String {
        let [a, b, c, d] = self.stages;
        format!("stages of {a}, {b}, {c} and {d} bottlenecks, {} channels", self.channels())
    }

    fn image_size(&self) -> usize {
        self.image_size
    }

    fn own_projection_dim(&self) -> usize {
        self.projection_dim
    }

    fn embeds(&self, g: &Graph, style: Style, pixels: Value, projection_dim: usize, _attention: Attention) -> Value {
        let (channels, positions, batch) = (self.channels(), self.positions(), g.shape(pixels)[0].clone());
        g.scope("visual", || {
            let mut x = pixels;
            for (number, inputs, outputs, stride) in self.stem() {
                let (conv, norm) = (format!("conv{number}"), format!("bn{number}"));
                x = g.relu(convolution(g, style, [&conv, &norm], x, inputs, outputs, 3, stride));
            }
            x = g.average_pool(x, 2);
            for block in self.bottlenecks() {
                x = g.scope(&block.name, || bottleneck(g, style, &block, x));
            }
            g.scope("attnpool", || {
                let grid: Dim = (positions - 1).into();
                let x = g.transpose(g.reshape(x, &[batch.clone(), channels.into(), grid]), &[0, 2, 1]);
                let x = g.concat(&[g.reduce_mean(x, &[1], true), x], 1);
                let x = g.add(x, parameter(g, style, "positional_embedding", &[positions, channels]));
                let mean = g.slice(x, 1, 0.into(), 1.into());
                let project = |name: &str, x: Value| linear(g, style, name, x, channels, channels, true);
                let qkv = [project("q_proj", mean), project("k_proj", x), project("v_proj", x)];
                let pooled = attend(g, style, qkv, self.heads, Attention::Open(None));
                let pooled = g.reshape(pooled, &[batch, channels.into()]);
                linear(g, Style { int8: false, ..style }, "c_proj", pooled, channels, projection_dim, true)
            })
        })
    }

    fn tensors(&self, list: &mut List, projection_dim: usize, factor: f64) {
        let channels = self.channels();
        let mut convolution = |conv: String, norm: String, inputs: usize, outputs: usize, kernel: usize| {
            let spread = Init::Normal(inverse_root(inputs * kernel * kernel) * factor);
            list.add(format!("{conv}.weight"), &[outputs, inputs, kernel, kernel], spread);
            for (name, value) in [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)] {
                list.add(format!("{norm}.{name}"), &[outputs], Init::Constant(value));
            }
        };
        for (number, inputs, outputs, _) in self.stem() {
            convolution(format!("visual.conv{number}"), format!("visual.bn{number}"), inputs, outputs, 3);
        }
        for block in self.bottlenecks() {
            let scope = format!("visual.{}", block.name);
            let (inputs, planes, outputs) = (block.inputs, block.planes, block.outputs());
            convolution(format!("{scope}.conv1"), format!("{scope}.bn1"), inputs, planes, 1);
            convolution(format!("{scope}.conv2"), format!("{scope}.bn2"), planes, planes, 3);
            convolution(format!("{scope}.conv3"), format!("{scope}.bn3"), planes, outputs, 1);
            if block.is_projected() {
                convolution(format!("{scope}.downsample.0"), format!("{scope}.downsample.1"), inputs, outputs, 1);
            }
        }
        let (pool, normal) = ("visual.attnpool", Init::Normal(inverse_root(channels) * factor));
        list.add(format!("{pool}.positional_embedding"), &[self.positions(), channels], normal);
        for name in ["q_proj", "k_proj", "v_proj"] {
            list.linear(&format!("{pool}.{name}"), channels, channels, normal);
        }
        list.linear(&format!("{pool}.c_proj"), channels, projection_dim, normal);
    }

    /// The pool's; convolutions stay float32.
    fn products(&self) -> Vec<Product> {
        let channels = self.channels();
        ["q_proj", "k_proj", "v_proj"]
            .map(|name| Product { name: format!("visual.attnpool.{name}.weight"), outputs: channels, inputs: channels })
            .into()
    }

    fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let [a, b, c, d] = self.stages;
        let sizes =
            [("stage 1", a), ("stage 2", b), ("stage 3", c), ("stage 4", d), ("width", self.width), ("heads", self.heads)];
        check_sizes(path, &sizes)?;
        check(path, self.stages.iter().all(|&count| count <= 1000), || "a stage of more than 1000 bottlenecks".into())?;
        check(path, self.width.is_multiple_of(2) && self.width <= 1 << 14, || {
            format!("a width of {}; it must be even and at most 16384", self.width)
        })?;
        check_heads(path, ("32 times the width", self.channels()), ("heads", self.heads))?;
        check(path, self.image_size.is_multiple_of(32) && (32..=1 << 14).contains(&self.image_size), || {
            format!("an image_size of {}; a ResNet's is a multiple of 32", self.image_size)
        })
    }
}
