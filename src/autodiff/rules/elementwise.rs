//! Operators that work element by element. `x`, `a`, `b` are inputs, `y` the output, `d` the gradient of the output.

use std::f32::consts::{FRAC_2_SQRT_PI, SQRT_2};

use crate::onnx::{Graph, Value};

/// y = a / b
pub(super) fn div(g: &Graph, b: Value, y: Value, d: Value) -> Vec<Value> {
    let da = g.div(d, b);
    vec![da, g.neg(g.mul(da, y))]
}

/// Where both are equal the second gets all, so that `max(x, 0)` has slope 0 at 0.
pub(super) fn max(g: &Graph, a: Value, b: Value, d: Value) -> Vec<Value> {
    let (first, zero) = (g.greater(a, b), g.scalar_like(d, 0.0));
    vec![g.select(first, d, zero), g.select(first, zero, d)]
}

pub(super) fn abs(g: &Graph, x: Value, d: Value) -> Value {
    let zero = g.scalar_like(x, 0.0);
    let below = g.select(g.less(x, zero), g.neg(d), zero);
    g.select(g.greater(x, zero), d, below)
}

/// 2 / sqrt(pi) * exp(-x^2)
pub(super) fn erf(g: &Graph, x: Value, d: Value) -> Value {
    g.mul(d, g.scale(g.exp(g.neg(g.mul(x, x))), FRAC_2_SQRT_PI))
}

/// Inside the bounds and on them the gradient passes.
pub(super) fn clip(g: &Graph, x: Value, low: Value, high: Value, d: Value) -> Value {
    let zero = g.scalar_like(d, 0.0);
    g.select(g.less(x, low), zero, g.select(g.greater(x, high), zero, d))
}

const K0: f32 = 0.797_884_6; // sqrt(2 / pi)
const K1: f32 = 0.044_715;

/// gelu_new is x * s with s = sigmoid(2 k0 (x + k1 x^3)), so its slope is s * (1 + (x - y) * (2 k0 + 6 k0 k1 x^2)): no tanh, and y is
/// there already.
pub(super) fn gelu_tanh(g: &Graph, x: Value, y: Value, d: Value) -> Value {
    let number = |n: f32| g.scalar_like(x, n);
    let x2 = g.mul(x, x);
    let inner = g.mul(x, g.add(g.mul(x2, number(2.0 * K0 * K1)), number(2.0 * K0)));
    let ds = g.mul(d, g.sigmoid(inner));
    let slope = g.add(g.mul(x2, number(6.0 * K0 * K1)), number(2.0 * K0));
    g.add(ds, g.mul(ds, g.mul(g.sub(x, y), slope)))
}

/// x * Phi(x) has slope Phi(x) + x * phi(x).
pub(super) fn gelu_exact(g: &Graph, x: Value, d: Value) -> Value {
    let number = |n: f32| g.scalar_like(x, n);
    let phi = g.scale(g.exp(g.scale(g.mul(x, x), -0.5)), FRAC_2_SQRT_PI / (2.0 * SQRT_2));
    let cumulative = g.add(g.scale(g.erf(g.scale(x, 1.0 / SQRT_2)), 0.5), number(0.5));
    g.mul(d, g.add(cumulative, g.mul(x, phi)))
}

/// y = x * s with s = sigmoid(alpha x) has slope s * (1 + alpha (x - y)).
pub(super) fn quick_gelu(g: &Graph, x: Value, y: Value, alpha: f32, d: Value) -> Value {
    let ds = g.mul(d, g.sigmoid(g.scale(x, alpha)));
    g.add(ds, g.mul(ds, g.scale(g.sub(x, y), alpha)))
}
