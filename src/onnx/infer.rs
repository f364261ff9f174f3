//! Output types of every operator; a mismatch is said in words.

use super::dim::{Dim, Shape, shape_text};
use super::dtype::DType;
use super::graph::ValueType;
use super::op::Op;

/// Types of the outputs, or what does not fit.
pub(super) fn infer(op: &Op, inputs: &[Option<ValueType>]) -> Result<Vec<ValueType>, String> {
    let input = |i: usize| inputs.get(i).and_then(Option::as_ref).ok_or_else(|| format!("input {i} is missing"));
    let one = |dtype, shape| Ok(vec![ValueType { dtype, shape }]);
    match op {
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Max => {
            let (a, b) = (input(0)?, input(1)?);
            same_dtype(a, b)?;
            one(a.dtype, broadcast(&a.shape, &b.shape)?)
        }
        Op::Equal | Op::Less | Op::Greater => {
            let (a, b) = (input(0)?, input(1)?);
            same_dtype(a, b)?;
            one(DType::Bool, broadcast(&a.shape, &b.shape)?)
        }
        Op::Where => {
            let (c, a, b) = (input(0)?, input(1)?, input(2)?);
            same_dtype(a, b)?;
            one(a.dtype, broadcast(&c.shape, &broadcast(&a.shape, &b.shape)?)?)
        }
        Op::Neg
        | Op::Abs
        | Op::Exp
        | Op::Log
        | Op::Sqrt
        | Op::Reciprocal
        | Op::Tanh
        | Op::Sigmoid
        | Op::Relu
        | Op::Erf
        | Op::Cos
        | Op::Sin
        | Op::Round
        | Op::Clip
        | Op::Gelu { .. }
        | Op::QuickGelu { .. }
        | Op::Softmax
        | Op::Identity
        | Op::Detach => Ok(vec![input(0)?.clone()]),
        Op::Cast { to } => one(*to, input(0)?.shape.clone()),
        Op::MatMul => {
            let (a, b) = (input(0)?, input(1)?);
            same_dtype(a, b)?;
            one(a.dtype, matmul(&a.shape, &b.shape)?)
        }
        Op::FusedMatMul { trans_a, trans_b, .. } => {
            let (a, b) = (input(0)?, input(1)?);
            same_dtype(a, b)?;
            one(a.dtype, matmul(&swapped(&a.shape, *trans_a)?, &swapped(&b.shape, *trans_b)?)?)
        }
        Op::QuantizeLinear { axis } => {
            let (x, scales) = (input(0)?, input(1)?);
            check_axes(&[*axis], x.shape.len())?;
            if scales.shape != x.shape[*axis..=*axis] {
                return Err(format!("scales {} along {}", shape_text(&scales.shape), x.shape[*axis]));
            }
            one(DType::U8, x.shape.clone())
        }
        Op::MatMulIntegerToFloat => one(DType::F32, matmul(&input(0)?.shape, &input(1)?.shape)?),
        Op::Gemm { trans_a, trans_b, .. } => {
            let (a, b) = (input(0)?, input(1)?);
            same_dtype(a, b)?;
            if a.shape.len() != 2 || b.shape.len() != 2 {
                return Err("Gemm takes matrices".into());
            }
            let shape = matmul(&swapped(&a.shape, *trans_a)?, &swapped(&b.shape, *trans_b)?)?;
            if let Some(Some(c)) = inputs.get(2)
                && broadcast(&shape, &c.shape)? != shape
            {
                return Err(format!("the bias {} does not fit {}", shape_text(&c.shape), shape_text(&shape)));
            }
            one(a.dtype, shape)
        }
        Op::Conv { stride, pad } => {
            let (x, w) = (input(0)?, input(1)?);
            let ([b, c, height, width], [out, c2, kh, kw]) = (x.shape.as_slice(), w.shape.as_slice()) else {
                return Err("Conv takes [B, C, H, W] and [O, C, kH, kW]".into());
            };
            if c != c2 {
                return Err(format!("{c} channels and a kernel for {c2}"));
            }
            let reach = |size: &Dim, kernel: &Dim| match (size.as_fixed(), kernel.as_fixed()) {
                (Some(s), Some(k)) if s + 2 * pad >= k && *stride > 0 => Ok(Dim::from((s + 2 * pad - k) / stride + 1)),
                _ => Err("Conv needs fixed sizes at least as large as the kernel".to_string()),
            };
            one(x.dtype, vec![b.clone(), out.clone(), reach(height, kh)?, reach(width, kw)?])
        }
        Op::AveragePool { size } => {
            let x = input(0)?;
            let [b, c, height, width] = x.shape.as_slice() else { return Err("AveragePool takes [B, C, H, W]".into()) };
            let (Some(height), Some(width)) = (height.as_fixed(), width.as_fixed()) else {
                return Err("AveragePool needs fixed sizes".into());
            };
            if *size < 1 || height < *size || width < *size {
                return Err(format!("squares of {size} in {height} x {width}"));
            }
            one(x.dtype, vec![b.clone(), c.clone(), (height / size).into(), (width / size).into()])
        }
        Op::BatchNormalization { .. } => {
            let x = input(0)?;
            for i in 1..5 {
                if input(i)?.shape.as_slice() != x.shape.get(1..2).unwrap_or_default() {
                    return Err("scale, bias, mean and variance must have the length of the channels".into());
                }
            }
            one(x.dtype, x.shape.clone())
        }
        Op::LayerNormalization { .. } => {
            let (x, w) = (input(0)?, input(1)?);
            if w.shape.len() != 1 || x.shape.last() != w.shape.last() {
                return Err("the weight must have the length of the last dimension".into());
            }
            let mut statistics = x.shape.clone();
            *statistics.last_mut().expect("checked to be there above") = 1.into();
            let statistics = ValueType { dtype: DType::F32, shape: statistics };
            Ok(vec![x.clone(), statistics.clone(), statistics])
        }
        Op::ReduceSum { axes, keep } | Op::ReduceMean { axes, keep } | Op::ReduceMax { axes, keep } => {
            let x = input(0)?;
            check_axes(axes, x.shape.len())?;
            let kept = x.shape.iter().enumerate().filter_map(|(i, d)| match (axes.contains(&i), keep) {
                (false, _) => Some(d.clone()),
                (true, true) => Some(1.into()),
                (true, false) => None,
            });
            one(x.dtype, kept.collect())
        }
        Op::TopK { axis, k } => {
            let x = input(0)?;
            check_axes(&[*axis], x.shape.len())?;
            if x.shape[*axis].as_fixed().is_some_and(|there| there < *k) || *k < 1 {
                return Err(format!("the {k} largest of {}", x.shape[*axis]));
            }
            let mut shape = x.shape.clone();
            shape[*axis] = (*k).into();
            let positions = ValueType { dtype: DType::I64, shape: shape.clone() };
            Ok(vec![ValueType { dtype: x.dtype, shape }, positions])
        }
        Op::Transpose { perm } => {
            let x = input(0)?;
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if sorted != (0..x.shape.len()).collect::<Vec<_>>() {
                return Err(format!("{perm:?} is not a permutation of its dimensions"));
            }
            one(x.dtype, perm.iter().map(|&p| x.shape[p].clone()).collect())
        }
        Op::Reshape { shape } => {
            let x = input(0)?;
            if Dim::product(&x.shape) != Dim::product(shape) {
                return Err(format!("{} elements do not fill {}", Dim::product(&x.shape), shape_text(shape)));
            }
            one(x.dtype, shape.clone())
        }
        Op::Expand { shape } => {
            let x = input(0)?;
            if broadcast(&x.shape, shape)? != *shape {
                return Err(format!("does not expand to {}", shape_text(shape)));
            }
            one(x.dtype, shape.clone())
        }
        Op::Concat { axis } => {
            let first = input(0)?;
            check_axes(&[*axis], first.shape.len())?;
            let mut shape = first.shape.clone();
            for i in 1..inputs.len() {
                let other = input(i)?;
                same_dtype(first, other)?;
                let fits = other.shape.len() == shape.len()
                    && shape.iter().zip(&other.shape).enumerate().all(|(d, (a, b))| d == *axis || a == b);
                if !fits {
                    return Err(format!("{} does not join {} along {axis}", shape_text(&other.shape), shape_text(&shape)));
                }
                shape[*axis] = shape[*axis].clone() + other.shape[*axis].clone();
            }
            one(first.dtype, shape)
        }
        Op::Split { axis, sizes } => {
            let x = input(0)?;
            check_axes(&[*axis], x.shape.len())?;
            if x.shape[*axis].as_fixed() != Some(sizes.iter().sum()) {
                return Err(format!("sizes {sizes:?} do not add up to {}", x.shape[*axis]));
            }
            let part = |size: &i64| {
                let mut shape = x.shape.clone();
                shape[*axis] = (*size).into();
                ValueType { dtype: x.dtype, shape }
            };
            Ok(sizes.iter().map(part).collect())
        }
        Op::Slice { axis, start, end } => {
            let x = input(0)?;
            check_axes(&[*axis], x.shape.len())?;
            let mut shape = x.shape.clone();
            let length = end.clone() - start.clone();
            if let (Some(length), Some(there)) = (length.as_fixed(), shape[*axis].as_fixed())
                && (length < 0 || length > there)
            {
                return Err(format!("a slice of {length} out of {there}"));
            }
            shape[*axis] = length;
            one(x.dtype, shape)
        }
        Op::Gather { axis } => {
            let (x, index) = (input(0)?, input(1)?);
            check_axes(&[*axis], x.shape.len())?;
            let shape = [&x.shape[..*axis], &index.shape, &x.shape[axis + 1..]].concat();
            one(x.dtype, shape)
        }
        Op::GatherElements { .. } => one(input(0)?.dtype, input(1)?.shape.clone()),
        Op::ScatterElements { .. } => {
            let (x, index, updates) = (input(0)?, input(1)?, input(2)?);
            same_dtype(x, updates)?;
            if index.shape != updates.shape {
                return Err("indices and updates differ in shape".into());
            }
            Ok(vec![x.clone()])
        }
        Op::ScatterNd => {
            let (x, index, updates) = (input(0)?, input(1)?, input(2)?);
            same_dtype(x, updates)?;
            let [rows @ .., depth] = &index.shape[..] else { return Err("indices have no last dimension".into()) };
            let depth = depth.as_fixed().and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= x.shape.len());
            let Some(depth) = depth else { return Err("indices name more dimensions than there are".into()) };
            if [rows, &x.shape[depth..]].concat() != updates.shape {
                return Err("indices and updates differ in shape".into());
            }
            Ok(vec![x.clone()])
        }
        Op::Shape => one(DType::I64, vec![input(0)?.shape.len().into()]),
        Op::Range { length } => one(DType::I64, vec![length.clone()]),
        Op::MultiHeadAttention { .. } => {
            let (q, k, v) = (input(0)?, input(1)?, input(2)?);
            same_dtype(q, k)?;
            same_dtype(q, v)?;
            Ok(vec![q.clone()])
        }
        Op::CachedAttention { num_heads, kv_num_heads, .. } => {
            let (query, key, value) = (input(0)?, input(3)?, input(4)?);
            let mut attended = query.clone();
            if inputs[1].is_none()
                && let [.., width] = &mut attended.shape[..]
            {
                let all = width.as_fixed().ok_or("queries, keys and values in one have a fixed width")?;
                *width = (all / (num_heads + 2 * kv_num_heads) * num_heads).into();
            }
            Ok(vec![attended, key.clone(), value.clone()])
        }
        Op::GroupQueryAttention { .. } => {
            let (query, key, value) = (input(0)?, input(3)?, input(4)?);
            same_dtype(query, input(1)?)?;
            same_dtype(query, input(2)?)?;
            Ok(vec![query.clone(), key.clone(), value.clone()])
        }
        Op::QuantizeRows => {
            let x = input(0)?;
            let [rows, _] = x.shape.as_slice() else { return Err("rows are of a matrix".into()) };
            let scales = ValueType { dtype: DType::F32, shape: vec![rows.clone(), 1.into()] };
            Ok(vec![ValueType { dtype: DType::U8, shape: x.shape.clone() }, scales])
        }
        Op::Int8Product => {
            let (x, weight) = (input(0)?, input(1)?);
            one(DType::F32, matmul(&x.shape, &weight.shape)?)
        }
        Op::ScaleRows => {
            let (x, scales) = (input(0)?, input(1)?);
            if broadcast(&x.shape, &scales.shape)? != x.shape {
                return Err(format!("scales {} for {}", shape_text(&scales.shape), shape_text(&x.shape)));
            }
            Ok(vec![x.clone()])
        }
    }
}

fn same_dtype(a: &ValueType, b: &ValueType) -> Result<(), String> {
    if a.dtype == b.dtype { Ok(()) } else { Err(format!("{:?} meets {:?}", a.dtype, b.dtype)) }
}

fn check_axes(axes: &[usize], rank: usize) -> Result<(), String> {
    match axes.iter().find(|&&a| a >= rank) {
        Some(axis) => Err(format!("there is no axis {axis}")),
        None => Ok(()),
    }
}

fn swapped(shape: &[Dim], swap: bool) -> Result<Shape, String> {
    let mut shape = shape.to_vec();
    let n = shape.len();
    if n < 2 {
        return Err("a product needs matrices".into());
    }
    if swap {
        shape.swap(n - 2, n - 1);
    }
    Ok(shape)
}

fn matmul(a: &[Dim], b: &[Dim]) -> Result<Shape, String> {
    let (Some((a_rest, [rows, inner])), Some((b_rest, [inner2, columns]))) =
        (a.split_last_chunk::<2>(), b.split_last_chunk::<2>())
    else {
        return Err("a product needs matrices".into());
    };
    if inner != inner2 {
        return Err(format!("inner dimensions {inner} and {inner2} differ"));
    }
    let mut shape = broadcast(a_rest, b_rest)?;
    shape.extend([rows.clone(), columns.clone()]);
    Ok(shape)
}

/// NumPy's rule; a symbol meets only itself or 1.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Shape, String> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Dim], i: usize| (i + shape.len()).checked_sub(rank).map_or(Dim::from(1), |j| shape[j].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if y.as_fixed() == Some(1) => Ok(x),
            (x, y) if x.as_fixed() == Some(1) => Ok(y),
            _ => Err(format!("{} and {} do not broadcast", shape_text(a), shape_text(b))),
        })
        .collect()
}
