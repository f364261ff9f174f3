//! Causal attention over caches that grow in place.
//!
//! B rows, S positions of this run, H query heads, G key-value heads, D width of a head, M positions of a row's own cache; N prefixes of P
//! positions, which several rows may see.

use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::{Float32, Int32};
use ort::value::ValueRef;

use super::{Shared, input, optional, output, sizes};

/// Rows from which on each is one task; of fewer, each group of heads is one.
const MANY_ROWS: usize = 8;

/// What ONNX Runtime's GroupQueryAttention computes, which on a CPU takes each head through two products that are too small for their
/// preparations to pay. A position's keys of all heads lie side by side here, so that a row's cache is read from front to back. What rows have
/// in common is in a prefix, once for all of them.
pub struct CachedAttention;

impl Operator for CachedAttention {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "CachedAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let [needed, apart] = [OperatorInput::required, OperatorInput::optional];
        let queries = [needed(Float32), apart(Float32), apart(Float32)];
        let caches = [needed(Float32), needed(Float32), needed(Int32), needed(Float32), needed(Float32), needed(Int32)];
        queries.into_iter().chain(caches)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [Float32, Float32, Float32].map(OperatorOutput::required)
    }

    fn create_kernel<'attr>(&self, kernel: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let number = |name: &str| kernel.get::<i64>(name).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        let (Some(heads), Some(groups), Some(scale)) = (number("num_heads"), number("kv_num_heads"), kernel.get::<f32>("scale"))
        else {
            return Err(ort::Error::new("num_heads, kv_num_heads and scale must be there"));
        };
        if !heads.is_multiple_of(groups) {
            return Err(ort::Error::new(format!("{heads} heads do not share {groups} evenly")));
        }
        Ok(Box::new(move |context: &ComputeContext| attend(context, [heads, groups], scale)))
    }
}

/// Where a tensor [B, S, ..] has the numbers of a row and position.
struct Part<'a> {
    all: &'a [f32],
    /// Numbers of a position, of which these are some.
    stride: usize,
    start: usize,
    count: usize,
}

impl<'a> Part<'a> {
    /// All of a tensor where there is one, else some of another.
    fn of(x: &'a Option<ValueRef<'_>>, other: Self) -> ort::Result<Self> {
        Ok(match x {
            Some(x) => Self { all: x.try_extract_tensor::<f32>()?.1, stride: other.count, start: 0, ..other },
            None => other,
        })
    }

    /// Those of position `number`, of all rows' one after the other.
    fn at(&self, number: usize) -> &'a [f32] {
        &self.all[number * self.stride + self.start..][..self.count]
    }
}

fn attend(context: &ComputeContext, [heads, groups]: [usize; 2], scale: f32) -> ort::Result<()> {
    let query = input(context, 0)?;
    let (shape, query) = query.try_extract_tensor::<f32>()?;
    let [key, value] = [optional(context, 1)?, optional(context, 2)?];
    let floats = (3..5).chain(6..8).map(|number| input(context, number)).collect::<ort::Result<Vec<_>>>()?;
    let floats = floats.iter().map(|x| x.try_extract_tensor::<f32>()).collect::<ort::Result<Vec<_>>>()?;
    let [(cache_shape, past_key), (_, past_value), (prefix_shape, prefix_key), (_, prefix_value)] = floats[..] else {
        return Err(ort::Error::new("caches and prefixes are missing"));
    };
    let [last, owner] = [input(context, 5)?, input(context, 8)?];
    let [(_, last), (_, owner)] = [last.try_extract_tensor::<i32>()?, owner.try_extract_tensor::<i32>()?];
    let (&[rows, sequence, all], &[_, _, length, _], &[prefixes, _, prefix_len, _]) =
        (&sizes(shape)[..], &sizes(cache_shape)[..], &sizes(prefix_shape)[..])
    else {
        return Err(ort::Error::new("the query is [B, S, H D], a cache [B, 1, M, G D] and a prefix [N, 1, P, G D]"));
    };
    let in_one = key.is_none();
    let head = all / if in_one { heads + 2 * groups } else { heads };
    let (width, cached) = (heads * head, groups * head);
    let apart = |x: &Option<ValueRef<'_>>| -> ort::Result<usize> {
        x.as_ref().map_or(Ok(rows * sequence * cached), |x| Ok(x.try_extract_tensor::<f32>()?.1.len()))
    };
    let fits = all == if in_one { width + 2 * cached } else { width }
        && in_one == value.is_none()
        && sizes(cache_shape) == [rows, 1, length, cached]
        && sizes(prefix_shape) == [prefixes, 1, prefix_len, cached]
        && [apart(&key)?, apart(&value)?] == [rows * sequence * cached; 2]
        && past_value.len() == past_key.len()
        && prefix_value.len() == prefix_key.len()
        && [last.len(), owner.len()] == [rows; 2]
        && last.iter().all(|&last| usize::try_from(last).is_ok_and(|last| last < length && last + 1 >= sequence))
        && owner.iter().all(|&owner| owner < 0 || (owner as usize) < prefixes);
    if !fits {
        return Err(ort::Error::new(format!(
            "queries {shape:?}, caches {cache_shape:?}, prefixes {prefix_shape:?}, last positions {last:?} and owners {owner:?} do not fit \
             {heads} heads over {groups}"
        )));
    }
    let queries = Part { all: query, stride: all, start: 0, count: width };
    let new_keys = Part::of(&key, Part { start: width, count: cached, ..queries })?;
    let new_values = Part::of(&value, Part { start: width + cached, count: cached, ..queries })?;
    let places = [past_key.as_ptr(), past_value.as_ptr()];
    let mut attended = output(context, 0, [rows, sequence, width])?;
    let mut keys = output(context, 1, [rows, 1, length, cached])?;
    let mut values = output(context, 2, [rows, 1, length, cached])?;
    let attended = Shared(attended.try_extract_tensor_mut::<f32>()?.1.as_mut_ptr());
    let caches = [&mut keys, &mut values].map(|cache| Ok(cache.try_extract_tensor_mut::<f32>()?.1.as_mut_ptr()));
    let [keys, values]: [ort::Result<*mut f32>; 2] = caches;
    let (keys, values) = (Shared(keys?), Shared(values?));
    if [keys.0.cast_const(), values.0.cast_const()] != places {
        return Err(ort::Error::new("the caches are to be updated where they are"));
    }
    // What is new of a row, into its caches.
    let append = |row: usize| {
        let first = last[row] as usize + 1 - sequence;
        for (new, cache) in [(&new_keys, &keys), (&new_values, &values)] {
            for position in 0..sequence {
                // SAFETY: these positions lie within the row's cache, as checked above, and nobody else is at work on them.
                let place = unsafe { cache.part((row * length + first + position) * cached, cached) };
                place.copy_from_slice(new.at(row * sequence + position));
            }
        }
    };
    let tasks = if rows < MANY_ROWS { groups } else { 1 };
    if tasks > 1 {
        // Before anybody reads: the tasks of a row share what is new of it.
        (0..rows).for_each(append);
    }
    let (own_heads, own_groups) = (heads / tasks, groups / tasks);
    context.par_for(rows * tasks, 0, |unit| {
        let (row, task) = (unit / tasks, unit % tasks);
        if tasks == 1 {
            append(row);
        }
        let total = last[row] as usize + 1;
        // SAFETY: the row's part of each cache; from here on they are only read.
        let [keys, values] = [&keys, &values].map(|cache| unsafe { cache.seen(row * length * cached, total * cached) });
        let [before_keys, before_values] = [prefix_key, prefix_value].map(|prefix| match usize::try_from(owner[row]) {
            Ok(owner) => &prefix[owner * prefix_len * cached..][..prefix_len * cached],
            Err(_) => &[],
        });
        let before = before_keys.len() / cached.max(1);
        let lanes = own_heads.next_multiple_of(LANES);
        let mut scores = vec![0.0; (before + total + 2) * lanes];
        for position in 0..sequence {
            let seen = total - sequence + position + 1;
            let number = row * sequence + position;
            // SAFETY: the output has these heads of this position, and this task alone writes them.
            let attended = unsafe { attended.part(number * width + task * own_heads * head, own_heads * head) };
            let query = &queries.at(number)[task * own_heads * head..][..own_heads * head];
            let place = [head, heads / groups, task * own_groups * head, cached];
            let (keys, values) = ([before_keys, &keys[..seen * cached]], [before_values, &values[..seen * cached]]);
            passes::attend_row(query, keys, values, place, scale, &mut scores[..(before + seen + 2) * lanes], attended);
        }
    })
}

/// Sums of a product side by side.
const LANES: usize = 8;

mod passes {
    use super::bodies;
    use crate::vector::for_processor;

    for_processor!(attend_row(
        query: &[f32],
        keys: [&[f32]; 2],
        values: [&[f32]; 2],
        place: [usize; 4],
        scale: f32,
        scores: &mut [f32],
        attended: &mut [f32],
    ));
}

mod bodies {
    use super::LANES;
    use crate::vector::{exp, multiply_add};

    /// Heads of one position over the positions it sees: those of `keys[0]`, then those of `keys[1]`. `query` and `attended` are [heads, D]; a
    /// position's keys and values are `width` numbers, of which those of these heads begin at `start`, and `share` heads have one and the same.
    /// `scores` is room for [2 + positions, heads], as many heads as fill whole lanes.
    #[inline(always)]
    pub fn attend_row<const FMA: bool>(
        query: &[f32],
        keys: [&[f32]; 2],
        values: [&[f32]; 2],
        [head, share, start, width]: [usize; 4],
        scale: f32,
        scores: &mut [f32],
        attended: &mut [f32],
    ) {
        let lanes = (query.len() / head).next_multiple_of(LANES);
        let (greatest, scores) = scores.split_at_mut(lanes);
        let (sums, scores) = scores.split_at_mut(lanes);
        let mut places = scores.chunks_exact_mut(lanes);
        for keys in keys {
            for (key, scores) in keys.chunks_exact(width).zip(&mut places) {
                for (number, query) in query.chunks_exact(head).enumerate() {
                    let key = &key[start + number / share * head..][..head];
                    scores[number] = dot::<FMA>(query, key) * scale;
                }
            }
        }
        greatest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        for scores in scores.chunks_exact(lanes) {
            for (greatest, &score) in greatest.iter_mut().zip(scores) {
                *greatest = if score > *greatest { score } else { *greatest };
            }
        }
        for scores in scores.chunks_exact_mut(lanes) {
            for ((score, sum), &greatest) in scores.iter_mut().zip(sums.iter_mut()).zip(greatest.iter()) {
                *score = exp::<FMA>(*score - greatest);
                *sum += *score;
            }
        }
        attended.fill(0.0);
        let mut weights = scores.chunks_exact(lanes);
        for values in values {
            for (value, weights) in values.chunks_exact(width).zip(&mut weights) {
                for ((number, attended), &weight) in attended.chunks_exact_mut(head).enumerate().zip(weights) {
                    let value = &value[start + number / share * head..][..head];
                    for (attended, value) in attended.iter_mut().zip(value) {
                        *attended = multiply_add::<FMA>(weight, *value, *attended);
                    }
                }
            }
        }
        for (attended, &sum) in attended.chunks_exact_mut(head).zip(sums.iter()) {
            let factor = 1.0 / sum;
            attended.iter_mut().for_each(|attended| *attended *= factor);
        }
    }

    #[inline(always)]
    fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0f32; LANES];
        let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
        for (a, b) in a.zip(b) {
            for lane in 0..LANES {
                sums[lane] = multiply_add::<FMA>(a[lane], b[lane], sums[lane]);
            }
        }
        let [a, b, c, d, e, f, g, h] = sums;
        (((a + e) + (c + g)) + ((b + f) + (d + h))) + rest
    }
}
