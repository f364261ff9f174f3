//! Causal attention over caches that grow in place.
//!
//! B rows, S positions of this run, H query heads, G key-value heads, D width of a head, M positions of a cache.

use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::{Float32, Int32};

use super::{Shared, input, output, sizes};

/// Rows from which on each is one task; of fewer, each group of heads is one.
const MANY_ROWS: usize = 8;

/// What ONNX Runtime's GroupQueryAttention computes, which on a CPU takes each head through two products that are too small for their
/// preparations to pay. A position's keys of all heads lie side by side here, so that a row's cache is read from front to back.
pub struct CachedAttention;

impl Operator for CachedAttention {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "CachedAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [Float32, Float32, Float32, Float32, Float32, Int32].map(OperatorInput::required)
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

fn attend(context: &ComputeContext, [heads, groups]: [usize; 2], scale: f32) -> ort::Result<()> {
    let inputs = (0..6).map(|number| input(context, number)).collect::<ort::Result<Vec<_>>>()?;
    let (shape, query) = inputs[0].try_extract_tensor::<f32>()?;
    let (_, key) = inputs[1].try_extract_tensor::<f32>()?;
    let (_, value) = inputs[2].try_extract_tensor::<f32>()?;
    let (cache_shape, past_key) = inputs[3].try_extract_tensor::<f32>()?;
    let (_, past_value) = inputs[4].try_extract_tensor::<f32>()?;
    let (_, last) = inputs[5].try_extract_tensor::<i32>()?;
    let (&[rows, sequence, width], &[_, _, length, _]) = (&sizes(shape)[..], &sizes(cache_shape)[..]) else {
        return Err(ort::Error::new("the query is [B, S, H D] and a cache [B, 1, M, G D]"));
    };
    let head = width / heads;
    let cached = groups * head;
    let fits = width == heads * head
        && sizes(cache_shape) == [rows, 1, length, cached]
        && [key.len(), value.len()] == [rows * sequence * cached; 2]
        && past_value.len() == past_key.len()
        && last.len() == rows
        && last.iter().all(|&last| usize::try_from(last).is_ok_and(|last| last < length && last + 1 >= sequence));
    if !fits {
        return Err(ort::Error::new(format!(
            "a query {shape:?}, keys of {}, values of {}, caches {cache_shape:?} and last positions {last:?} do not fit {heads} heads over {groups}",
            key.len(),
            value.len()
        )));
    }
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
    // Before anybody reads: the tasks of a row share what is new of it.
    for (row, &last) in last.iter().enumerate() {
        let first = last as usize + 1 - sequence;
        let (from, count) = (row * sequence * cached, sequence * cached);
        for (new, cache) in [(key, &keys), (value, &values)] {
            // SAFETY: these positions lie within the row's cache, as checked above, and nobody else is at work yet.
            unsafe { cache.part((row * length + first) * cached, count) }.copy_from_slice(&new[from..from + count]);
        }
    }
    let tasks = if rows < MANY_ROWS { groups } else { 1 };
    let (own_heads, own_groups) = (heads / tasks, groups / tasks);
    context.par_for(rows * tasks, 0, |unit| {
        let (row, task) = (unit / tasks, unit % tasks);
        let total = last[row] as usize + 1;
        // SAFETY: the row's part of each cache; from here on they are only read.
        let [keys, values] = [&keys, &values].map(|cache| unsafe { cache.seen(row * length * cached, total * cached) });
        let mut scores = vec![0.0; own_heads * total];
        for position in 0..sequence {
            let seen = total - sequence + position + 1;
            let at = (row * sequence + position) * width + task * own_heads * head;
            // SAFETY: the output has these heads of this position, and this task alone writes them.
            let attended = unsafe { attended.part(at, own_heads * head) };
            let query = &query[at..at + own_heads * head];
            let place = [head, heads / groups, task * own_groups * head, cached];
            let (keys, values) = (&keys[..seen * cached], &values[..seen * cached]);
            passes::attend_row(query, keys, values, place, scale, &mut scores[..own_heads * seen], attended);
        }
    })
}

mod passes {
    use super::bodies;
    use crate::vector::for_processor;

    for_processor!(attend_row(
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        place: [usize; 4],
        scale: f32,
        scores: &mut [f32],
        attended: &mut [f32],
    ));
}

mod bodies {
    use crate::vector::{exp, multiply_add};

    /// Sums of a product side by side.
    const LANES: usize = 8;

    /// Heads of one position over the positions it sees. `query` and `attended` are [heads, D]; a position's keys and values are `width` numbers, of
    /// which those of these heads begin at `start`, and `share` heads have one and the same.
    #[inline(always)]
    pub fn attend_row<const FMA: bool>(
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        [head, share, start, width]: [usize; 4],
        scale: f32,
        scores: &mut [f32],
        attended: &mut [f32],
    ) {
        let seen = keys.len() / width;
        for (position, key) in keys.chunks_exact(width).enumerate() {
            for (number, query) in query.chunks_exact(head).enumerate() {
                let key = &key[start + number / share * head..][..head];
                scores[number * seen + position] = dot::<FMA>(query, key) * scale;
            }
        }
        for (scores, attended) in scores.chunks_exact_mut(seen).zip(attended.chunks_exact_mut(head)) {
            let greatest = scores.iter().fold(f32::NEG_INFINITY, |most, &score| if score > most { score } else { most });
            for score in scores.iter_mut() {
                *score = exp::<FMA>(*score - greatest);
            }
            let sum: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|score| *score /= sum);
            attended.fill(0.0);
        }
        for (position, value) in values.chunks_exact(width).enumerate() {
            for (number, attended) in attended.chunks_exact_mut(head).enumerate() {
                let weight = scores[number * seen + position];
                let value = &value[start + number / share * head..][..head];
                for (attended, value) in attended.iter_mut().zip(value) {
                    *attended = multiply_add::<FMA>(weight, *value, *attended);
                }
            }
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
