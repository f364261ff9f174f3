//! The words in which models are written: one short method an operator.

use super::dim::{Dim, Shape};
use super::dtype::DType;
use super::graph::{Graph, Value, ValueSource};
use super::op::{Op, Reduction};

macro_rules! unary {
    ($($method:ident $op:ident),*) => {
        $(/// The operator of this name, element by element.
        pub fn $method(&self, x: Value) -> Value {
            self.apply(Op::$op, &[x])
        })*
    };
}

macro_rules! binary {
    ($($method:ident $op:ident),*) => {
        $(/// The operator of this name, element by element, with broadcasting.
        pub fn $method(&self, a: Value, b: Value) -> Value {
            self.apply(Op::$op, &[a, b])
        })*
    };
}

impl Graph {
    binary! { add Add, sub Sub, mul Mul, div Div, max Max, equal Equal, less Less, greater Greater, matmul MatMul }
    unary! { neg Neg, abs Abs, exp Exp, log Log, sqrt Sqrt, reciprocal Reciprocal, tanh Tanh, sigmoid Sigmoid, relu Relu, erf Erf, cos Cos, sin Sin, round Round, identity Identity, detach Detach }

    /// Where `condition` holds `a`, elsewhere `b`.
    pub fn select(&self, condition: Value, a: Value, b: Value) -> Value {
        self.apply(Op::Where, &[condition, a, b])
    }

    /// Between two scalars.
    pub fn clip(&self, x: Value, low: Value, high: Value) -> Value {
        self.apply(Op::Clip, &[x, low, high])
    }

    /// GELU, by `tanh` or exactly.
    pub fn gelu(&self, x: Value, tanh: bool) -> Value {
        self.apply(Op::Gelu { tanh }, &[x])
    }

    /// Over the last dimension.
    pub fn softmax(&self, x: Value) -> Value {
        self.apply(Op::Softmax, &[x])
    }

    /// The same numbers in another element type.
    pub fn cast(&self, x: Value, to: DType) -> Value {
        if self.dtype(x) == to { x } else { self.apply(Op::Cast { to }, &[x]) }
    }

    /// `alpha * a' b' + c` on matrices, either side transposed.
    pub fn gemm(&self, a: Value, b: Value, c: Option<Value>, trans_a: bool, trans_b: bool) -> Value {
        self.apply_many(Op::Gemm { trans_a, trans_b, alpha: 1.0 }, &[Some(a), Some(b), c])[0]
    }

    /// `alpha` times the product of matrices, each transposed where asked.
    pub fn fused_matmul(&self, a: Value, b: Value, trans_a: bool, trans_b: bool, alpha: f32) -> Value {
        self.apply(Op::FusedMatMul { trans_a, trans_b, alpha }, &[a, b])
    }

    /// `x * sigmoid(alpha * x)`.
    pub fn quick_gelu(&self, x: Value, alpha: f32) -> Value {
        self.apply(Op::QuickGelu { alpha }, &[x])
    }

    /// `x` [M, K] times 8-bit `weight` [K, N] with a scale [N] for each column. Each row of `x` is rounded to 8 bits with a scale of its own,
    /// so rows do not influence each other.
    pub fn int8_product(&self, x: Value, weight: Value, scales: Value) -> Value {
        let rows = self.shape(x)[0].clone();
        let largest = self.reduce_max(self.abs(x), &[1], true); // [M, 1]
        let row_scales = self.scale(self.max(largest, self.scalar_like(largest, 1e-12)), 1.0 / 127.0);
        let middle = self.constant(DType::U8, &[1], vec![128]);
        let inputs = [x, self.reshape(row_scales, std::slice::from_ref(&rows)), self.expand(middle, &[rows])];
        let rounded = self.apply(Op::QuantizeLinear { axis: 0 }, &inputs);
        let one = self.floats(&[1.0], &[]);
        let middle = self.constant(DType::U8, &[], vec![128]);
        let product =
            self.apply_many(Op::MatMulIntegerToFloat, &[Some(rounded), Some(weight), Some(one), Some(scales), Some(middle)])[0];
        self.mul(product, row_scales)
    }

    /// The same in this program's own operators, with a bias [N] added where there is one; `dots`: the processor has its dot products.
    pub fn int8_product_in_own(&self, x: Value, weight: Value, scales: Value, bias: Option<Value>, dots: bool) -> Value {
        let rounded = self.apply_many(Op::QuantizeRows, &[Some(x)]);
        if dots {
            let inputs = [Some(rounded[0]), Some(weight), Some(scales), None, bias, Some(rounded[1])];
            return self.apply_many(Op::Int8Product, &inputs)[0];
        }
        let one = self.floats(&[1.0], &[]);
        let middle = self.constant(DType::U8, &[], vec![128]);
        let inputs = [rounded[0], weight, one, scales, middle];
        let product = self.apply(Op::MatMulIntegerToFloat, &inputs);
        self.apply_many(Op::ScaleRows, &[Some(product), Some(rounded[1]), bias])[0]
    }

    /// Not causal; `q`, `k`, `v` [B, T, C] -> [B, T, C].
    pub fn multi_head_attention(&self, q: Value, k: Value, v: Value, num_heads: i64) -> Value {
        self.apply(Op::MultiHeadAttention { num_heads }, &[q, k, v])
    }

    /// Causal, over a cache updated in place: `inputs` are those of [`Op::GroupQueryAttention`]. Returns (attended, key cache, value cache).
    pub fn group_query_attention(
        &self,
        [query, key, value]: [Value; 3],
        cache: [Value; 2],
        lengths: [Value; 2],
        [num_heads, kv_num_heads]: [i64; 2],
        scale: f32,
    ) -> Vec<Value> {
        let inputs = [query, key, value, cache[0], cache[1], lengths[0], lengths[1]].map(Some);
        self.apply_many(Op::GroupQueryAttention { num_heads, kv_num_heads, scale }, &inputs)
    }

    /// The same in this program's own operator over rows that begin with a prefix: `inputs` are those of [`Op::CachedAttention`].
    pub fn cached_attention(
        &self,
        qkv: [Value; 3],
        cache: [Value; 2],
        lengths: Value,
        prefix: [Value; 2],
        owners: Value,
        [num_heads, kv_num_heads]: [i64; 2],
        scale: f32,
    ) -> Vec<Value> {
        // Where the three were one, they are read there.
        let [query, key, value] = match self.before_split(qkv) {
            Some(all) => [Some(all), None, None],
            None => qkv.map(Some),
        };
        let rest = [cache[0], cache[1], lengths, prefix[0], prefix[1], owners].map(Some);
        let inputs: Vec<Option<Value>> = [query, key, value].into_iter().chain(rest).collect();
        self.apply_many(Op::CachedAttention { num_heads, kv_num_heads, scale }, &inputs)
    }

    /// The value [B, S, N] that `parts` [B, S, ..] were split out of, in order and along its last dimension, whatever they were reshaped to between.
    fn before_split(&self, parts: [Value; 3]) -> Option<Value> {
        let nodes = self.nodes();
        let mut whole = None;
        for (number, part) in parts.into_iter().enumerate() {
            let mut value = part;
            let (split, output) = loop {
                let ValueSource::Node { node, output } = self.source(value) else { return None };
                match &nodes[node].op {
                    Op::Reshape { .. } => value = nodes[node].inputs.first().copied().flatten()?,
                    Op::Split { axis: 2, sizes } if sizes.len() == parts.len() => break (node, output),
                    _ => return None,
                }
            };
            let from = nodes[split].inputs.first().copied().flatten()?;
            let (shape, own) = (self.shape(value), self.shape(part));
            let is_same = output == number && whole.is_none_or(|whole| whole == from) && shape == own;
            whole = is_same.then_some(from);
            whole?;
        }
        whole
    }

    /// Convolution of [B, C, H, W] with [O, C, K, K].
    pub fn conv(&self, x: Value, kernel: Value, bias: Option<Value>, stride: i64) -> Value {
        self.conv_padded(x, kernel, bias, stride, 0)
    }

    /// With `pad` zeros on every side.
    pub fn conv_padded(&self, x: Value, kernel: Value, bias: Option<Value>, stride: i64, pad: i64) -> Value {
        self.apply_many(Op::Conv { stride, pad }, &[Some(x), Some(kernel), bias])[0]
    }

    /// The mean of each square of this side, [B, C, H, W] -> [B, C, H / size, W / size].
    pub fn average_pool(&self, x: Value, size: i64) -> Value {
        self.apply(Op::AveragePool { size }, &[x])
    }

    /// By channel, with fixed statistics: scale, bias, mean, variance.
    pub fn batch_normalization(&self, x: Value, [scale, bias, mean, variance]: [Value; 4], epsilon: f32) -> Value {
        self.apply(Op::BatchNormalization { epsilon }, &[x, scale, bias, mean, variance])
    }

    /// Over the last dimension: (y, mean, inverse deviation).
    pub fn layer_normalization(&self, x: Value, weight: Value, bias: Value, epsilon: f32) -> (Value, Value, Value) {
        let outputs = self.apply_many(Op::LayerNormalization { epsilon }, &[Some(x), Some(weight), Some(bias)]);
        (outputs[0], outputs[1], outputs[2])
    }

    fn with_axes(&self, op: Op, x: Value, axes: &[usize]) -> Value {
        let axes = self.ints(&axes.iter().map(|&a| a as i64).collect::<Vec<_>>());
        self.apply(op, &[x, axes])
    }

    /// Sums over `axes`, which stay as 1 where `keep` says so.
    pub fn reduce_sum(&self, x: Value, axes: &[usize], keep: bool) -> Value {
        self.with_axes(Op::ReduceSum { axes: axes.to_vec(), keep }, x, axes)
    }

    /// Means over `axes`, which stay as 1 where `keep` says so.
    pub fn reduce_mean(&self, x: Value, axes: &[usize], keep: bool) -> Value {
        if self.is_for_cuda() {
            let count = Dim::product(&axes.iter().map(|&axis| self.shape(x)[axis].clone()).collect::<Vec<_>>());
            let sum = self.reduce_sum(x, axes, keep);
            return match count.as_fixed() {
                Some(count) => self.scale(sum, 1.0 / count as f32),
                None => self.div(sum, self.cast(self.reshape(self.dim(&count), &[]), self.dtype(x))),
            };
        }
        self.with_axes(Op::ReduceMean { axes: axes.to_vec(), keep }, x, axes)
    }

    /// Maxima over `axes`, which stay as 1 where `keep` says so.
    pub fn reduce_max(&self, x: Value, axes: &[usize], keep: bool) -> Value {
        if let (true, &[axis]) = (self.is_for_cuda(), axes) {
            let (largest, _) = self.top_k(x, axis, 1);
            let kept = |(i, dim): (usize, Dim)| if i == axis && !keep { None } else { Some(dim) };
            let shape: Vec<Dim> = self.shape(largest).into_iter().enumerate().filter_map(kept).collect();
            return self.reshape(largest, &shape);
        }
        self.with_axes(Op::ReduceMax { axes: axes.to_vec(), keep }, x, axes)
    }

    /// The `k` largest along an axis, largest first, and their positions (int64).
    pub fn top_k(&self, x: Value, axis: usize, k: i64) -> (Value, Value) {
        let outputs = self.apply_many(Op::TopK { axis, k }, &[Some(x), Some(self.ints(&[k]))]);
        (outputs[0], outputs[1])
    }

    /// Dimensions in another order.
    pub fn transpose(&self, x: Value, perm: &[usize]) -> Value {
        self.apply(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    /// The same elements in another shape.
    pub fn reshape(&self, x: Value, shape: &[Dim]) -> Value {
        let from = self.shape(x);
        if from == shape {
            return x;
        }
        let target = self.reshape_target(&from, shape);
        self.apply(Op::Reshape { shape: shape.to_vec() }, &[x, target])
    }

    /// A constant where ONNX can say it with 0 (as it was) and one -1 (what is left); computed otherwise.
    fn reshape_target(&self, from: &[Dim], to: &[Dim]) -> Value {
        let copied = |i: usize| from.get(i) == Some(&to[i]);
        let open: Vec<usize> = (0..to.len()).filter(|&i| to[i].as_fixed().is_none() && !copied(i)).collect();
        if open.len() > 1 {
            return self.dims(to);
        }
        let numbers = (0..to.len()).map(|i| match to[i].as_fixed() {
            Some(n) => n,
            None if copied(i) => 0,
            None => -1,
        });
        self.ints(&numbers.collect::<Vec<_>>())
    }

    /// Repeated to a shape that it broadcasts to.
    pub fn expand(&self, x: Value, shape: &[Dim]) -> Value {
        if self.shape(x) == shape {
            return x;
        }
        let target = self.dims(shape);
        self.apply(Op::Expand { shape: shape.to_vec() }, &[x, target])
    }

    /// One behind the other along `axis`.
    pub fn concat(&self, parts: &[Value], axis: usize) -> Value {
        self.apply(Op::Concat { axis }, parts)
    }

    /// Pieces of `sizes` along `axis`.
    pub fn split(&self, x: Value, axis: usize, sizes: &[i64]) -> Vec<Value> {
        let lengths = self.ints(sizes);
        self.apply_many(Op::Split { axis, sizes: sizes.to_vec() }, &[Some(x), Some(lengths)])
    }

    /// Elements `start..end` along `axis`.
    pub fn slice(&self, x: Value, axis: usize, start: Dim, end: Dim) -> Value {
        let inputs = [x, self.dim(&start), self.dim(&end), self.ints(&[axis as i64])];
        self.apply(Op::Slice { axis, start, end }, &inputs)
    }

    /// Slices along `axis` by number.
    pub fn gather(&self, x: Value, indices: Value, axis: usize) -> Value {
        self.apply(Op::Gather { axis }, &[x, indices])
    }

    /// Elements along `axis` by number, one for each of `indices`.
    pub fn gather_elements(&self, x: Value, indices: Value, axis: usize) -> Value {
        self.apply(Op::GatherElements { axis }, &[x, indices])
    }

    /// `x` with `updates` written over or added to the elements that `indices` name along `axis`.
    pub fn scatter_elements(&self, x: Value, indices: Value, updates: Value, axis: usize, reduction: Reduction) -> Value {
        self.apply(Op::ScatterElements { axis, reduction }, &[x, indices, updates])
    }

    /// `x` with `updates` [.., rest] at the places that `indices` [.., n] name in its first n dimensions, each place once.
    pub fn scatter_nd(&self, x: Value, indices: Value, updates: Value) -> Value {
        self.apply(Op::ScatterNd, &[x, indices, updates])
    }

    /// A number with the element type of `like`.
    pub fn scalar_like(&self, like: Value, number: f32) -> Value {
        let bytes = match self.dtype(like) {
            DType::F16 => half::f16::from_f32(number).to_le_bytes().to_vec(),
            DType::BF16 => half::bf16::from_f32(number).to_le_bytes().to_vec(),
            DType::F64 => f64::from(number).to_le_bytes().to_vec(),
            DType::I64 => (number as i64).to_le_bytes().to_vec(),
            DType::I32 => (number as i32).to_le_bytes().to_vec(),
            DType::I16 => (number as i16).to_le_bytes().to_vec(),
            DType::I8 => (number as i8).to_le_bytes().to_vec(),
            DType::U8 | DType::Bool => vec![number as u8],
            DType::F32 => number.to_le_bytes().to_vec(),
        };
        self.constant(self.dtype(like), &[], bytes)
    }

    /// Times a number.
    pub fn scale(&self, x: Value, factor: f32) -> Value {
        if factor == 1.0 { x } else { self.mul(x, self.scalar_like(x, factor)) }
    }

    /// Whole numbers [len].
    pub fn ints(&self, values: &[i64]) -> Value {
        self.constant(DType::I64, &[values.len() as i64], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// float32 numbers of any shape.
    pub fn floats(&self, values: &[f32], shape: &[i64]) -> Value {
        self.constant(DType::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Dimensions as int64 [len]: a constant where all are fixed, read off the inputs' shapes otherwise.
    pub fn dims(&self, dims: &[Dim]) -> Value {
        let fixed: Option<Vec<i64>> = dims.iter().map(Dim::as_fixed).collect();
        match fixed {
            Some(numbers) => self.ints(&numbers),
            None if dims.len() == 1 => self.dim(&dims[0]),
            None => self.concat(&dims.iter().map(|d| self.dim(d)).collect::<Vec<_>>(), 0),
        }
    }

    /// One dimension as int64 [1].
    pub fn dim(&self, dim: &Dim) -> Value {
        if let Some(number) = dim.as_fixed() {
            return self.ints(&[number]);
        }
        if let Some(value) = self.inner.borrow().dim_values.get(dim) {
            return *value;
        }
        let value = match dim.as_symbol() {
            Some(symbol) => self.read_symbol(symbol),
            None => {
                let terms: Vec<(Vec<String>, i64)> = dim.terms().map(|(s, f)| (s.to_vec(), f)).collect();
                let term = |(symbols, factor): &(Vec<String>, i64)| {
                    symbols
                        .iter()
                        .fold(self.ints(&[*factor]), |product, symbol| self.mul(product, self.dim(&Dim::from(symbol.as_str()))))
                };
                let first = term(&terms[0]);
                terms[1..].iter().fold(first, |sum, t| self.add(sum, term(t)))
            }
        };
        self.inner.borrow_mut().dim_values.insert(dim.clone(), value);
        value
    }

    /// A symbol's value, from the shape of the first input that has it as a dimension.
    fn read_symbol(&self, symbol: &str) -> Value {
        let place = {
            let inner = self.inner.borrow();
            inner.inputs.iter().find_map(|&value| {
                let axis = inner.types[value.0 as usize].shape.iter().position(|d| d.as_symbol() == Some(symbol))?;
                Some((value, axis))
            })
        };
        match place {
            Some((value, axis)) => {
                let shape = self.apply(Op::Shape, &[value]);
                self.gather(shape, self.ints(&[axis as i64]), 0)
            }
            None => {
                self.fail(format!("no input has the dimension {symbol}"));
                self.ints(&[0])
            }
        }
    }

    /// 0, 1, .., length - 1 as int64 [length].
    pub fn range(&self, length: &Dim) -> Value {
        let scalar = |n: i64| self.constant(DType::I64, &[], n.to_le_bytes().to_vec());
        let limit = self.reshape(self.dim(length), &[]);
        self.apply(Op::Range { length: length.clone() }, &[scalar(0), limit, scalar(1)])
    }

    /// Zeros of any shape.
    pub fn zeros(&self, dtype: DType, shape: &Shape) -> Value {
        self.expand(self.constant(dtype, &vec![1; shape.len()], vec![0; dtype.size()]), shape)
    }
}
