//! The operators this program uses, with their attributes: one enum, so that inference, export and differentiation are exhaustive.

use super::dim::{Dim, Shape};
use super::dtype::DType;

/// What ScatterElements does where an element is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    None,
    Add,
}

/// An operator and its attributes. Shapes that ONNX passes as tensors stand here as dimensions too, for inference and gradients.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    // Element by element, with broadcasting
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Where,
    Equal,
    Less,
    Greater,
    // One input, same shape
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Tanh,
    Sigmoid,
    Relu,
    Erf,
    Cos,
    Sin,
    Round,
    Clip,
    /// `tanh`: the approximation GPT2 calls gelu_new; otherwise exact.
    Gelu {
        tanh: bool,
    },
    /// `x * sigmoid(alpha * x)` (com.microsoft)
    QuickGelu {
        alpha: f32,
    },
    Softmax,
    Identity,
    /// The same numbers, taken as constants by differentiation.
    Detach,
    Cast {
        to: DType,
    },
    // Products
    MatMul,
    Gemm {
        trans_a: bool,
        trans_b: bool,
        alpha: f32,
    },
    /// MatMul with either side transposed in its last two dimensions and a factor (com.microsoft)
    FusedMatMul {
        trans_a: bool,
        trans_b: bool,
        alpha: f32,
    },
    /// 8-bit numbers along `axis`; inputs x, scales [n], zero points [n]
    QuantizeLinear {
        axis: usize,
    },
    /// Inputs a [M, K] uint8, b [K, N] int8, a's scale, b's scales [N], a's zero point (com.microsoft)
    MatMulIntegerToFloat,
    /// `pad` zeros on every side
    Conv {
        stride: i64,
        pad: i64,
    },
    /// Squares of this side, next to each other
    AveragePool {
        size: i64,
    },
    /// With fixed statistics; inputs x, scale, bias, mean, variance
    BatchNormalization {
        epsilon: f32,
    },
    // Normalization; outputs y, mean, inverse deviation
    LayerNormalization {
        epsilon: f32,
    },
    // Reductions over axes
    ReduceSum {
        axes: Vec<usize>,
        keep: bool,
    },
    ReduceMean {
        axes: Vec<usize>,
        keep: bool,
    },
    ReduceMax {
        axes: Vec<usize>,
        keep: bool,
    },
    /// The `k` largest along `axis`, largest first, of equals the first: outputs values, positions (int64)
    TopK {
        axis: usize,
        k: i64,
    },
    // Moving data
    Transpose {
        perm: Vec<usize>,
    },
    Reshape {
        shape: Shape,
    },
    Expand {
        shape: Shape,
    },
    Concat {
        axis: usize,
    },
    Split {
        axis: usize,
        sizes: Vec<i64>,
    },
    Slice {
        axis: usize,
        start: Dim,
        end: Dim,
    },
    Gather {
        axis: usize,
    },
    GatherElements {
        axis: usize,
    },
    ScatterElements {
        axis: usize,
        reduction: Reduction,
    },
    /// Row `indices[i]` of the first dimensions becomes `updates[i]`, in place where output and input are the same memory.
    ScatterNd,
    Shape,
    /// 0, 1, .. up to a length (int64)
    Range {
        length: Dim,
    },
    // Attention with everything inside (com.microsoft)
    /// Inputs query, key, value [B, T, H*D]; not causal.
    MultiHeadAttention {
        num_heads: i64,
    },
    /// Query [B, S, H*D], key and value [B, S, K*D], past_key, past_value [B, K, M, D] updated in place, seqlens_k [B],
    /// total_sequence_length. D must be a multiple of 8; scores are multiplied by `scale`.
    GroupQueryAttention {
        num_heads: i64,
        kv_num_heads: i64,
        scale: f32,
    },
    // This program's own, for sessions on the CPU provider (`runtime::operators`)
    /// x [M, K]; outputs 8-bit numbers around 128 and a scale for each row [M, 1]
    QuantizeRows,
    /// x [M, N], scales [M, 1] and, where there is one, a bias [N]
    ScaleRows,
    /// Rows of 8-bit numbers around 128 [M, K], a weight [K, N], scales [N], nothing, a bias [N] (may be absent), a scale for each row [M, 1]
    Int8Product,
    /// As [`Op::GroupQueryAttention`] with, in place of `total_sequence_length`, key and value [N, 1, P, K*D] of prefixes and the prefix [B] that each
    /// row begins with, -1 for none; key and value may be absent where they are behind the query in one tensor [B, S, (H + 2 K)*D].
    CachedAttention {
        num_heads: i64,
        kv_num_heads: i64,
        scale: f32,
    },
}

/// The domain of this program's own operators.
pub(super) const OWN: &str = "clipcap";

impl Op {
    /// Whether no provider has this operator for bfloat16: it is computed in float32 then.
    pub(super) fn lacks_bf16(&self) -> bool {
        matches!(
            self,
            Self::Log
                | Self::Reciprocal
                | Self::Equal
                | Self::Less
                | Self::Greater
                | Self::Cos
                | Self::Sin
                | Self::Round
                | Self::ReduceMax { .. }
                | Self::TopK { .. }
                | Self::Conv { .. }
                | Self::AveragePool { .. }
                | Self::BatchNormalization { .. }
        )
    }

    /// (domain, operator name)
    pub fn name(&self) -> (&'static str, &'static str) {
        const MS: &str = "com.microsoft";
        match self {
            Self::Add => ("", "Add"),
            Self::Sub => ("", "Sub"),
            Self::Mul => ("", "Mul"),
            Self::Div => ("", "Div"),
            Self::Max => ("", "Max"),
            Self::Where => ("", "Where"),
            Self::Equal => ("", "Equal"),
            Self::Less => ("", "Less"),
            Self::Greater => ("", "Greater"),
            Self::Neg => ("", "Neg"),
            Self::Abs => ("", "Abs"),
            Self::Exp => ("", "Exp"),
            Self::Log => ("", "Log"),
            Self::Sqrt => ("", "Sqrt"),
            Self::Reciprocal => ("", "Reciprocal"),
            Self::Tanh => ("", "Tanh"),
            Self::Sigmoid => ("", "Sigmoid"),
            Self::Relu => ("", "Relu"),
            Self::Erf => ("", "Erf"),
            Self::Cos => ("", "Cos"),
            Self::Sin => ("", "Sin"),
            Self::Round => ("", "Round"),
            Self::Clip => ("", "Clip"),
            Self::Gelu { .. } => ("", "Gelu"),
            Self::QuickGelu { .. } => (MS, "QuickGelu"),
            Self::Softmax => ("", "Softmax"),
            Self::Identity | Self::Detach => ("", "Identity"),
            Self::Cast { .. } => ("", "Cast"),
            Self::MatMul => ("", "MatMul"),
            Self::Gemm { .. } => ("", "Gemm"),
            Self::FusedMatMul { .. } => (MS, "FusedMatMul"),
            Self::QuantizeLinear { .. } => ("", "QuantizeLinear"),
            Self::MatMulIntegerToFloat => (MS, "MatMulIntegerToFloat"),
            Self::Conv { .. } => ("", "Conv"),
            Self::AveragePool { .. } => ("", "AveragePool"),
            Self::BatchNormalization { .. } => ("", "BatchNormalization"),
            Self::LayerNormalization { .. } => ("", "LayerNormalization"),
            Self::ReduceSum { .. } => ("", "ReduceSum"),
            Self::ReduceMean { .. } => ("", "ReduceMean"),
            Self::ReduceMax { .. } => ("", "ReduceMax"),
            Self::TopK { .. } => ("", "TopK"),
            Self::Transpose { .. } => ("", "Transpose"),
            Self::Reshape { .. } => ("", "Reshape"),
            Self::Expand { .. } => ("", "Expand"),
            Self::Concat { .. } => ("", "Concat"),
            Self::Split { .. } => ("", "Split"),
            Self::Slice { .. } => ("", "Slice"),
            Self::Gather { .. } => ("", "Gather"),
            Self::GatherElements { .. } => ("", "GatherElements"),
            Self::ScatterElements { .. } => ("", "ScatterElements"),
            Self::ScatterNd => ("", "ScatterND"),
            Self::Shape => ("", "Shape"),
            Self::Range { .. } => ("", "Range"),
            Self::MultiHeadAttention { .. } => (MS, "MultiHeadAttention"),
            Self::GroupQueryAttention { .. } => (MS, "GroupQueryAttention"),
            Self::QuantizeRows => (OWN, "QuantizeRows"),
            Self::ScaleRows => (OWN, "ScaleRows"),
            Self::Int8Product => (OWN, "Int8Product"),
            Self::CachedAttention { .. } => (OWN, "CachedAttention"),
        }
    }
}
