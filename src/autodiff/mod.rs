//! Reverse-mode differentiation: the gradient of a scalar, written into the graph that computes it.
//!
//! A table says of each operator how a gradient passes through it ([`rules`]); a short walk from the loss backwards adds up what
//! arrives at each value. Un-broadcasting happens once, here. Rows that `Gather` read stay apart until the end, so that a token
//! embedding gets one scatter for all its uses, or none at all ([`gradients_in_parts`]).

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::onnx::{DType, Dim, Graph, Node, Op, Reduction, Value, ValueSource};
use rules::{Contribution, NotDifferentiable};

/// A gradient in two parts, which add up to it. Either may be absent.
#[derive(Debug, Clone, Default)]
pub struct Gradient {
    /// Of the value's own shape.
    pub dense: Option<Value>,
    /// To be added to the rows they name.
    pub rows: Option<Rows>,
}

/// How gradients are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// Read the mean and deviation that LayerNormalization leaves as further outputs.
    Statistics,
    /// Compute them again: some providers have LayerNormalization with one output only.
    Recomputed,
}

/// Summands for rows along the first dimension. A row may be named any number of times.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// int64 [R], not negative.
    pub indices: Value,
    /// [R, ..]
    pub updates: Value,
}

/// Each of its value's shape and type; zeros where the loss does not depend on it.
#[cfg(test)]
pub fn gradients(g: &Graph, loss: Value, wrt: &[Value]) -> Vec<Value> {
    let parts = gradients_in_parts(g, loss, wrt, Spelling::Statistics);
    parts.into_iter().zip(wrt).map(|(gradient, &of)| gradient.whole(g, of)).collect()
}

/// Of a graph whose blocks are not computed again.
#[cfg(test)]
pub fn gradients_in_parts(g: &Graph, loss: Value, wrt: &[Value], spelling: Spelling) -> Vec<Gradient> {
    gradients_recomputing(g, loss, wrt, spelling, &[])
}

/// The gradient of `loss` (one number) with respect to each of `wrt`; rows are left for the caller to add. A path through an operator that
/// has no gradient is a fault of the graph, unless it goes through [`Graph::detach`].
///
/// What `blocks` (ranges of nodes) computed is computed again once a gradient has arrived behind them, so that of each block only its
/// inputs are kept from the forward pass.
pub fn gradients_recomputing(
    g: &Graph,
    loss: Value,
    wrt: &[Value],
    spelling: Spelling,
    blocks: &[Range<usize>],
) -> Vec<Gradient> {
    let nodes: Vec<Node> = g.nodes().to_vec();
    let mut again: Option<(usize, HashMap<Value, Value>)> = None;
    let mut awaited_before: HashSet<Value> = HashSet::new();
    let dependent = dependents(g, &nodes, wrt);
    let mut sums: HashMap<Value, Sum> = HashMap::new();
    let shape = g.shape(loss);
    if Dim::product(&shape).as_fixed() != Some(1) {
        g.fail("only a single number has gradients here");
    }
    let one = g.expand(g.scalar_like(loss, 1.0), &shape);
    sums.entry(loss).or_default().add(g, Contribution::Dense(one));
    for (number, node) in nodes.iter().enumerate().rev() {
        // After a fault shapes mean nothing any more; `finish` will tell.
        if g.has_fault() {
            break;
        }
        if !node.inputs.iter().flatten().any(|input| dependent.contains(input)) {
            continue;
        }
        let upstream: Vec<Option<Value>> =
            node.outputs.iter().map(|output| sums.get(output).map(|sum| sum.gradient(g).whole(g, *output))).collect();
        if upstream.iter().all(Option::is_none) {
            continue;
        }
        let block = blocks.iter().position(|block| block.contains(&number));
        if let Some(block) = block
            && again.as_ref().is_none_or(|(made, _)| *made != block)
            && let Some(arrived) = upstream.iter().flatten().next()
        {
            // Gradients of weights behind this block are finished first: a runtime that left them for the end would keep all that was computed again.
            let done = |of: &&Value| !awaited_before.contains(*of) && sums.get(*of).is_some_and(|sum| sum.dense.is_some());
            let finished: Vec<Value> = wrt.iter().filter(done).copied().collect();
            let mut awaited = vec![*arrived];
            awaited.extend(finished.iter().filter_map(|of| sums.get(of)?.dense));
            awaited_before.extend(finished);
            again = Some((block, recompute(g, &nodes[blocks[block].clone()], &dependent, &awaited)));
        }
        let seen = match &again {
            Some((made, values)) if Some(*made) == block => with_values(node, values),
            _ => node.clone(),
        };
        let scope = node.name.split('/').next().unwrap_or_default();
        g.scope("backward", || {
            g.scope(scope, || match rules::apply(g, &seen, &upstream, spelling) {
                Ok(parts) => {
                    for (input, contribution) in node.inputs.iter().zip(parts) {
                        if let (Some(input), Some(contribution)) = (*input, contribution)
                            && dependent.contains(&input)
                        {
                            let contribution = contribution.fitted(g, input);
                            sums.entry(input).or_default().add(g, contribution);
                        }
                    }
                }
                Err(NotDifferentiable) => g.fail(format!("{} has no gradient", node.name)),
            })
        });
    }
    wrt.iter().map(|value| sums.get(value).map(|sum| sum.gradient(g)).unwrap_or_default()).collect()
}

impl Gradient {
    /// Both parts in one, of the shape and type of `of`.
    pub fn whole(&self, g: &Graph, of: Value) -> Value {
        let base = self.dense.unwrap_or_else(|| g.zeros(g.dtype(of), &g.shape(of)));
        let Some(Rows { indices, updates }) = self.rows else { return base };
        let shape = g.shape(updates);
        if g.is_for_cuda() {
            return g.add(base, sum_of_rows(g, &g.shape(of), indices, updates));
        }
        let mut column = vec![Dim::from(1); shape.len()];
        column[0] = shape[0].clone();
        let indices = g.expand(g.reshape(indices, &column), &shape);
        // Not ScatterND: on the CPU it loses summands where two threads meet at a row.
        g.scatter_elements(base, indices, updates, 0, Reduction::Add)
    }
}

/// `updates` [N, C] added up by the row of `shape` [V, C] that `indices` [N] name: a product with 1 where a row belongs, which adds in one order
/// every time, where CUDA's ScatterElements adds in any.
fn sum_of_rows(g: &Graph, shape: &[Dim], indices: Value, updates: Value) -> Value {
    let (count, rows) = (g.shape(indices)[0].clone(), shape[0].clone());
    let names = g.reshape(g.range(&rows), &[1.into(), rows]);
    let belongs = g.cast(g.equal(g.reshape(indices, &[count.clone(), 1.into()]), names), g.dtype(updates)); // [N, V]
    let width = Dim::product(&shape[1..]);
    let sums = g.gemm(belongs, g.reshape(updates, &[count, width]), None, true, false);
    g.reshape(sums, shape)
}

/// Adds the nodes of a block a second time and returns what stands for each of its values. Values that come from before the block go in through
/// an addition of zero that waits for what is `awaited`: without it, a runtime would find both computations to be one, or make them at once.
fn recompute(g: &Graph, nodes: &[Node], dependent: &HashSet<Value>, awaited: &[Value]) -> HashMap<Value, Value> {
    let own: HashSet<Value> = nodes.iter().flat_map(|node| node.outputs.iter().copied()).collect();
    let mut values: HashMap<Value, Value> = HashMap::new();
    g.scope("recomputed", || {
        let mut zero: Option<Value> = None;
        for &value in awaited {
            // One element for all of them, where a dimension is known to have one.
            let rank = g.shape(value).len();
            let first = (0..rank).fold(value, |x, axis| match g.shape(x)[axis].as_fixed() {
                Some(2..) => g.slice(x, axis, 0.into(), 1.into()),
                _ => x,
            });
            let first = g.cast(first, DType::F32);
            let axes: Vec<usize> = (0..rank).collect();
            let nothing = g.scale(if axes.is_empty() { first } else { g.reduce_sum(first, &axes, false) }, 0.0);
            zero = Some(zero.map_or(nothing, |zero| g.add(zero, nothing)));
        }
        let Some(zero) = zero else { return };
        for node in nodes {
            let mut depends = false;
            for input in node.inputs.iter().flatten().copied() {
                let outside =
                    dependent.contains(&input) && !own.contains(&input) && matches!(g.source(input), ValueSource::Node { .. });
                if outside && !values.contains_key(&input) {
                    let waiting = g.add(input, g.cast(zero, g.dtype(input)));
                    values.insert(input, waiting);
                }
                depends |= values.contains_key(&input);
            }
            if depends {
                let inputs: Vec<Option<Value>> =
                    node.inputs.iter().map(|input| input.map(|input| values.get(&input).copied().unwrap_or(input))).collect();
                let outputs = g.apply_many(node.op.clone(), &inputs);
                values.extend(node.outputs.iter().copied().zip(outputs));
            }
        }
    });
    values
}

/// A node over other values, where there are any for its own.
fn with_values(node: &Node, values: &HashMap<Value, Value>) -> Node {
    let other = |value: &Value| values.get(value).copied().unwrap_or(*value);
    Node {
        inputs: node.inputs.iter().map(|input| input.as_ref().map(other)).collect(),
        outputs: node.outputs.iter().map(other).collect(),
        ..node.clone()
    }
}

/// What has arrived at a value so far.
#[derive(Default)]
struct Sum {
    dense: Option<Value>,
    rows: Vec<Rows>,
}

impl Sum {
    fn add(&mut self, g: &Graph, contribution: Contribution) {
        match contribution {
            Contribution::Dense(value) => self.dense = Some(self.dense.map_or(value, |sum| g.add(sum, value))),
            Contribution::Rows(rows) => self.rows.push(rows),
        }
    }

    fn gradient(&self, g: &Graph) -> Gradient {
        let joined = |pick: fn(&Rows) -> Value| match self.rows.as_slice() {
            [one] => pick(one),
            all => g.concat(&all.iter().map(pick).collect::<Vec<_>>(), 0),
        };
        let rows =
            (!self.rows.is_empty()).then(|| Rows { indices: joined(|rows| rows.indices), updates: joined(|rows| rows.updates) });
        Gradient { dense: self.dense, rows }
    }
}

impl Contribution {
    /// Summed over the dimensions along which `input` was broadcast.
    fn fitted(self, g: &Graph, input: Value) -> Contribution {
        let Contribution::Dense(gradient) = self else { return self };
        let (from, to) = (g.shape(gradient), g.shape(input));
        if from == to {
            return self;
        }
        let lead = from.len().saturating_sub(to.len());
        let one = Dim::from(1);
        let axes: Vec<usize> = (0..from.len()).filter(|&i| i < lead || (to[i - lead] == one && from[i] != one)).collect();
        let summed = if axes.is_empty() { gradient } else { g.reduce_sum(gradient, &axes, true) };
        Contribution::Dense(g.reshape(summed, &to))
    }
}

/// Values through which the loss may depend on `wrt`.
fn dependents(g: &Graph, nodes: &[Node], wrt: &[Value]) -> HashSet<Value> {
    let mut dependent: HashSet<Value> = wrt.iter().copied().collect();
    for node in nodes {
        if node.op != Op::Detach && node.inputs.iter().flatten().any(|input| dependent.contains(input)) {
            dependent.extend(node.outputs.iter().filter(|&&output| g.dtype(output).is_float()));
        }
    }
    dependent
}
