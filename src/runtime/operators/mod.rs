//! Operators of our own for sessions on the CPU provider: what ONNX Runtime has only as chains of operators that each go through memory, in one
//! pass. Graphs that are saved have none of them.
//!
//! | operator | inputs | outputs |
//! | --- | --- | --- |
//! | `QuantizeRows` | x [M, K] | 8-bit numbers around 128 [M, K], a scale for each row [M, 1] |
//! | `ScaleRows` | x [M, N], scales [M, 1], bias [N] (may be absent) | x times its row's scale, and the bias [M, N] |
//! | `Int8Product` | 8-bit x [.., K], weight [K, N], scales [N], steps [N], bias [N], a scale for each row [M] (these three may be absent) | x times the weight, maybe GELU of it [.., N] |
//! | `Int8ProductRounded` | the same | the same in 8 bits |
//! | `CachedAttention` | query [B, S, H D], key and value [B, S, G D] (absent where all are one behind the other in the first), caches [B, 1, M, G D] updated in place, last position of each row in its cache [B], keys and values of prefixes [N, 1, P, G D], the prefix that each row begins with or -1 [B] | attended [B, S, H D], the caches |
//!
//! A row's result depends on that row alone, and on no order of work: the same bytes from any batch and any number of threads.

mod attention;
mod int8;
mod rows;

use std::sync::{Arc, Mutex};

use ort::environment::Environment;
use ort::operator::{ComputeContext, OperatorDomain};
use ort::session::Session;
use ort::value::{ValueRef, ValueRefMut};

use crate::onnx::{DType, Graph};

/// Goes up when an operator's numbers change, and with them captions in 8 bits: what an earlier one computed is not mixed with this one's.
pub const REVISION: u32 = 3;

/// Whether `Int8Product` is there: it wants AVX-512 with VNNI.
pub fn has_int8_products() -> bool {
    int8::is_there()
}

/// Their domain in a graph.
const DOMAIN: &str = "clipcap";

/// All of them, to be registered with a session.
pub(super) fn domain() -> ort::Result<Arc<OperatorDomain>> {
    let domain = OperatorDomain::new(DOMAIN)?;
    let domain = domain.add(rows::QuantizeRows)?.add(rows::ScaleRows)?.add(attention::CachedAttention)?;
    Ok(domain.add(int8::Int8Product)?.add(int8::Int8ProductRounded)?.into())
}

/// Makes ONNX Runtime know the domain, once in a process and before any other session is made: it keeps domains in a table without a lock, and
/// two sessions that bring the same one at the same moment are refused.
pub(super) fn announce(environment: &Environment) -> ort::Result<()> {
    static IS_KNOWN: Mutex<bool> = Mutex::new(false);
    let mut is_known = IS_KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    if !*is_known {
        let g = Graph::new("operators");
        g.output("y", g.scale(g.input("x", DType::F32, &[1.into()]), 2.0));
        let model = g.finish().map_err(|e| ort::Error::new(e.to_string()))?;
        let builder = Session::builder(environment)?.with_intra_threads(1)?;
        builder.with_operators(domain()?)?.commit_from_memory(&model.to_bytes())?;
        *is_known = true;
    }
    Ok(())
}

/// An input that the operator cannot do without.
fn input(context: &ComputeContext, number: usize) -> ort::Result<ValueRef<'_>> {
    context.input(number)?.ok_or_else(|| ort::Error::new(format!("input {number} is missing")))
}

/// An input that may be left out.
fn optional(context: &ComputeContext, number: usize) -> ort::Result<Option<ValueRef<'_>>> {
    if context.num_inputs()? > number { context.input(number) } else { Ok(None) }
}

/// An output, of this shape.
fn output<'a, const N: usize>(context: &'a ComputeContext, number: usize, shape: [usize; N]) -> ort::Result<ValueRefMut<'a>> {
    context.output(number, shape)?.ok_or_else(|| ort::Error::new(format!("output {number} is missing")))
}

/// A shape's dimensions.
fn sizes(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect()
}

/// Memory that threads write to in places that do not overlap.
struct Shared<T>(*mut T);

// SAFETY: a pointer alone; who writes through it says why nobody else is there.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Elements `start..start + length`.
    ///
    /// # Safety
    /// They lie within the memory, and nobody else has any of them while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }

    /// The same to read.
    ///
    /// # Safety
    /// They lie within the memory, and nobody writes any of them while the slice lives.
    unsafe fn seen(&self, start: usize, length: usize) -> &[T] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts(self.0.add(start), length) }
    }
}

#[cfg(test)]
mod tests;
