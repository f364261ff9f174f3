//! Weights that a session is handed at every run instead of reading them from a bundle's files: a model that is being trained can be run as it
//! stands.

use std::collections::HashSet;
use std::ops::Range;

use crate::onnx::{DType, Dim, Graph};
use crate::runtime::{InPlace, RuntimeError};

/// The numbers of one graph, float32. They are copied in; until then they are zeros.
#[derive(Debug, Clone, Default)]
pub struct FedWeights {
    tensors: Vec<Tensor>,
    values: Vec<f32>,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    shape: Vec<i64>,
    range: Range<usize>,
    /// The graph takes it; another is looked up alone.
    is_input: bool,
}

impl FedWeights {
    /// Room for the parameters of a graph that are inputs: those of these names.
    pub(super) fn of(g: &Graph, names: &HashSet<String>) -> Self {
        let mut fed = Self::default();
        for (name, value) in g.parameters().into_iter().filter(|(name, _)| names.contains(name)) {
            let shape = g.shape(value).iter().filter_map(Dim::as_fixed).collect();
            debug_assert!(g.dtype(value) == DType::F32);
            fed.add(&name, shape, true);
        }
        fed
    }

    /// Room for a tensor that is looked up and not fed, unless it is here already.
    pub(super) fn also(&mut self, name: &str, shape: Vec<i64>) {
        if self.get(name).is_none() {
            self.add(name, shape, false);
        }
    }

    fn add(&mut self, name: &str, shape: Vec<i64>, is_input: bool) {
        let start = self.values.len();
        let numel = shape.iter().product::<i64>().max(0) as usize;
        self.values.resize(start + numel, 0.0);
        self.tensors.push(Tensor { name: name.into(), shape, range: start..start + numel, is_input });
    }

    /// Copies every tensor anew: `value_of` gives one by its name in the graph.
    ///
    /// # Errors
    /// A tensor that is not given, or has another size.
    pub fn set<'a>(&mut self, value_of: impl Fn(&str) -> Option<&'a [f32]>) -> Result<(), RuntimeError> {
        for tensor in &self.tensors {
            let Some(values) = value_of(&tensor.name).filter(|values| values.len() == tensor.range.len()) else {
                let message = format!("no weights of the right size for {}", tensor.name);
                return Err(RuntimeError::Model { model: "a model in training".into(), message });
            };
            self.values[tensor.range.clone()].copy_from_slice(values);
        }
        Ok(())
    }

    /// Whether no weight is fed at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The numbers of a tensor.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name)?;
        Some(&self.values[tensor.range.clone()])
    }

    /// What the graph's session is to be fed with beside its own inputs.
    pub(super) fn inputs(&mut self) -> Result<Vec<InPlace<'_>>, RuntimeError> {
        let mut inputs = vec![];
        let mut rest = self.values.as_mut_slice();
        for tensor in &self.tensors {
            let (values, after) = rest.split_at_mut(tensor.range.len());
            if tensor.is_input {
                inputs.push(InPlace::f32(&tensor.name, values, &tensor.shape)?);
            }
            rest = after;
        }
        Ok(inputs)
    }
}
