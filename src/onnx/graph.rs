//! The graph under construction: values, nodes, scopes, and the first fault met.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::dim::{Dim, Shape, shape_text};
use super::dtype::DType;
use super::export::Model;
use super::infer::infer;
use super::op::Op;

/// A tensor in a graph: a small number that is copied freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(super) u32);

/// Element type and dimensions of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueType {
    pub dtype: DType,
    pub shape: Shape,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueSource {
    /// An input of the graph, fed at every run.
    Input,
    /// A weight, by reference to its file or (see [`ParameterMode`]) an input under its own name.
    Parameter,
    /// Bytes inside the graph file.
    Constant(Rc<[u8]>),
    /// An output of node `node`.
    Node { node: usize, output: usize },
}

/// One operator application.
#[derive(Debug, Clone)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<Option<Value>>,
    pub outputs: Vec<Value>,
    /// Scope and operator, such as `h.0.attn.c_attn/MatMul_7`.
    pub name: String,
}

/// A weight in a file: what an ONNX initializer with external data says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ExternalTensor {
    pub dtype: DType,
    pub shape: Vec<i64>,
    /// Path of the file, relative to the graph file's folder.
    pub location: String,
    /// First byte in the file.
    pub offset: u64,
    pub length: u64,
}

/// Whether weights are part of the saved graph or handed in at every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterMode {
    /// Initializers that point into weight files.
    Reference,
    /// Inputs of the graph, so that training can change them.
    Input,
}

/// The first thing that went wrong while building, with the place.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("graph {graph}: at {place}: {message}")]
pub struct GraphError {
    pub graph: String,
    pub place: String,
    pub message: String,
}

/// Element type, shape and bytes.
type ConstantKey = (DType, Vec<i64>, Rc<[u8]>);

pub(super) struct Inner {
    pub name: String,
    pub doc: String,
    pub types: Vec<ValueType>,
    pub sources: Vec<ValueSource>,
    pub names: Vec<String>,
    pub nodes: Vec<Node>,
    pub inputs: Vec<Value>,
    pub outputs: Vec<(String, Value)>,
    pub parameters: Vec<(String, Value)>,
    pub external: HashMap<String, ExternalTensor>,
    /// Parameters that are inputs though the table could reference them.
    pub mode: Rc<dyn Fn(&str) -> ParameterMode>,
    scope: Vec<String>,
    constants: HashMap<ConstantKey, Value>,
    pub dim_values: HashMap<Dim, Value>,
    pub blocks: Vec<std::ops::Range<usize>>,
    pub numbers: HashMap<&'static str, f32>,
    for_cuda: bool,
    fault: Option<GraphError>,
}

/// A graph under construction. Methods take `&self`, so nested calls read like the formula they stand for; the first fault is kept and
/// comes out of [`finish`](Self::finish).
pub struct Graph {
    pub(super) inner: RefCell<Inner>,
}

impl Graph {
    /// An empty graph without weights.
    pub fn new(name: &str) -> Self {
        Self::with_parameters(name, HashMap::new(), |_| ParameterMode::Reference)
    }

    /// A graph whose [`parameter`](Self::parameter)s are looked up, by full name, in `table`. `mode` says of each name whether it is
    /// referenced or handed in.
    pub fn with_parameters(
        name: &str,
        table: HashMap<String, ExternalTensor>,
        mode: impl Fn(&str) -> ParameterMode + 'static,
    ) -> Self {
        Self {
            inner: RefCell::new(Inner {
                name: name.into(),
                doc: String::new(),
                types: vec![],
                sources: vec![],
                names: vec![],
                nodes: vec![],
                inputs: vec![],
                outputs: vec![],
                parameters: vec![],
                external: table,
                mode: Rc::new(mode),
                scope: vec![],
                constants: HashMap::new(),
                dim_values: HashMap::new(),
                blocks: vec![],
                numbers: HashMap::new(),
                for_cuda: false,
                fault: None,
            }),
        }
    }

    /// Text for people who open the graph in a viewer.
    pub fn doc(&self, text: &str) {
        self.inner.borrow_mut().doc = text.into();
    }

    /// Runs `build` with `name` appended to the scope; scopes spell parameter names (`h.0.attn` + `c_attn.weight`).
    pub fn scope<R>(&self, name: &str, build: impl FnOnce() -> R) -> R {
        self.inner.borrow_mut().scope.push(name.into());
        let result = build();
        self.inner.borrow_mut().scope.pop();
        result
    }

    /// As [`scope`](Self::scope), for one of many layers: what it computes may be computed again in the backward pass, from its inputs.
    pub fn block<R>(&self, name: &str, build: impl FnOnce() -> R) -> R {
        let start = self.inner.borrow().nodes.len();
        let result = if name.is_empty() { build() } else { self.scope(name, build) };
        let mut inner = self.inner.borrow_mut();
        let end = inner.nodes.len();
        inner.blocks.push(start..end);
        result
    }

    /// Nodes of each [`block`](Self::block) so far, in order.
    pub fn blocks(&self) -> Vec<std::ops::Range<usize>> {
        self.inner.borrow().blocks.clone()
    }

    /// A number that layers ask for by name, such as the factor of adapters.
    pub fn set_number(&self, name: &'static str, number: f32) {
        self.inner.borrow_mut().numbers.insert(name, number);
    }

    /// Spells what follows for ONNX Runtime's CUDA provider: nothing that needs cuDNN where there is another word for it, and sums in an order
    /// of their own, so that two runs give the same bytes.
    pub fn spell_for_cuda(&self) {
        self.inner.borrow_mut().for_cuda = true;
    }

    /// See [`spell_for_cuda`](Self::spell_for_cuda).
    pub fn is_for_cuda(&self) -> bool {
        self.inner.borrow().for_cuda
    }

    /// See [`set_number`](Self::set_number).
    pub fn number(&self, name: &str) -> Option<f32> {
        self.inner.borrow().numbers.get(name).copied()
    }

    /// The shape of the weight `SCOPE.name` in the table, where it is there.
    pub fn parameter_shape(&self, name: &str) -> Option<Vec<i64>> {
        let inner = self.inner.borrow();
        inner.external.get(&inner.full_name(name)).map(|tensor| tensor.shape.clone())
    }

    /// An input that is fed at every run.
    pub fn input(&self, name: &str, dtype: DType, shape: &[Dim]) -> Value {
        let mut inner = self.inner.borrow_mut();
        let value = inner.value(ValueType { dtype, shape: shape.to_vec() }, ValueSource::Input, name.into());
        inner.inputs.push(value);
        value
    }

    /// The weight `SCOPE.name`, which must have `shape`. Asked for twice, it is the same value.
    pub fn parameter(&self, name: &str, shape: &[Dim]) -> Value {
        let mut inner = self.inner.borrow_mut();
        let full = inner.full_name(name);
        if let Some((_, value)) = inner.parameters.iter().find(|(n, _)| *n == full) {
            return *value;
        }
        let dtype = match inner.external.get(&full) {
            None => {
                inner.fail(format!("the weight {full} is missing"));
                DType::F32
            }
            Some(tensor) => {
                let found: Shape = tensor.shape.iter().map(|&d| Dim::from(d)).collect();
                let dtype = tensor.dtype;
                if found != shape {
                    inner.fail(format!(
                        "the weight {full} has shape {}, and {} is needed",
                        shape_text(&found),
                        shape_text(shape)
                    ));
                }
                dtype
            }
        };
        let value = inner.value(ValueType { dtype, shape: shape.to_vec() }, ValueSource::Parameter, full.clone());
        inner.parameters.push((full, value));
        value
    }

    /// `SCOPE.name` at the current scope.
    pub fn full_name(&self, name: &str) -> String {
        self.inner.borrow().full_name(name)
    }

    /// Declares an output. A name can be given once.
    pub fn output(&self, name: &str, value: Value) {
        let mut inner = self.inner.borrow_mut();
        if inner.outputs.iter().any(|(n, _)| n == name) {
            inner.fail(format!("the output {name} is declared twice"));
        }
        inner.outputs.push((name.into(), value));
    }

    /// Applies an operator with one output.
    pub fn apply(&self, op: Op, inputs: &[Value]) -> Value {
        self.apply_many(op, &inputs.iter().copied().map(Some).collect::<Vec<_>>())[0]
    }

    /// Applies an operator with any number of outputs; an input may be left out.
    pub fn apply_many(&self, op: Op, inputs: &[Option<Value>]) -> Vec<Value> {
        let is_narrow = |value: &Value| self.dtype(*value) == DType::BF16;
        if op.lacks_bf16() && inputs.iter().flatten().any(is_narrow) {
            let wide = |value: Value| if is_narrow(&value) { self.cast(value, DType::F32) } else { value };
            let inputs: Vec<Option<Value>> = inputs.iter().map(|value| value.map(wide)).collect();
            let outputs = self.apply_many(op, &inputs);
            let narrow = |value| if self.dtype(value) == DType::F32 { self.cast(value, DType::BF16) } else { value };
            return outputs.into_iter().map(narrow).collect();
        }
        let mut inner = self.inner.borrow_mut();
        let types: Vec<Option<ValueType>> = inputs.iter().map(|v| v.map(|v| inner.types[v.0 as usize].clone())).collect();
        let number = inner.nodes.len();
        let name = format!("{}/{}_{number}", inner.scope.join("."), op.name().1);
        let outputs = match infer(&op, &types) {
            Ok(outputs) => outputs,
            Err(message) => {
                let shapes: Vec<String> = types
                    .iter()
                    .map(|t| t.as_ref().map_or("-".into(), |t| format!("{:?}{}", t.dtype, shape_text(&t.shape))))
                    .collect();
                inner.fail(format!("{}({}): {message}", op.name().1, shapes.join(", ")));
                vec![ValueType { dtype: DType::F32, shape: vec![] }; 3]
            }
        };
        let outputs: Vec<Value> = outputs
            .into_iter()
            .enumerate()
            .map(|(output, t)| {
                let text = if output == 0 { name.clone() } else { format!("{name}.{output}") };
                inner.value(t, ValueSource::Node { node: number, output }, text)
            })
            .collect();
        inner.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), name });
        outputs
    }

    /// A tensor inside the graph file; equal small ones are the same value.
    pub fn constant(&self, dtype: DType, shape: &[i64], bytes: Vec<u8>) -> Value {
        let mut inner = self.inner.borrow_mut();
        let bytes: Rc<[u8]> = bytes.into();
        let key = (dtype, shape.to_vec(), bytes.clone());
        if let Some(value) = inner.constants.get(&key) {
            return *value;
        }
        let value_type = ValueType { dtype, shape: shape.iter().map(|&d| Dim::from(d)).collect() };
        let name = format!("constant_{}", inner.constants.len());
        let value = inner.value(value_type, ValueSource::Constant(bytes), name);
        inner.constants.insert(key, value);
        value
    }

    /// A value's shape.
    pub fn shape(&self, value: Value) -> Shape {
        self.inner.borrow().types[value.0 as usize].shape.clone()
    }

    /// A value's element type.
    pub fn dtype(&self, value: Value) -> DType {
        self.inner.borrow().types[value.0 as usize].dtype
    }

    /// Where a value comes from.
    pub fn source(&self, value: Value) -> ValueSource {
        self.inner.borrow().sources[value.0 as usize].clone()
    }

    /// The nodes so far, in the order they were added (which is an order they can run in).
    pub fn nodes(&self) -> Ref<'_, [Node]> {
        Ref::map(self.inner.borrow(), |inner| inner.nodes.as_slice())
    }

    /// The parameters asked for so far, by full name.
    pub fn parameters(&self) -> Vec<(String, Value)> {
        self.inner.borrow().parameters.clone()
    }

    /// Records a fault at the current scope, unless there is one already.
    pub fn fail(&self, message: impl Into<String>) {
        self.inner.borrow_mut().fail(message.into());
    }

    /// True once something went wrong; [`finish`](Self::finish) says what.
    pub fn has_fault(&self) -> bool {
        self.inner.borrow().fault.is_some()
    }

    /// The graph as a file in memory, or the first fault met.
    pub fn finish(&self) -> Result<Model, GraphError> {
        let inner = self.inner.borrow();
        match &inner.fault {
            Some(fault) => Err(fault.clone()),
            None => Ok(Model::new(&inner)),
        }
    }
}

impl Inner {
    fn value(&mut self, value_type: ValueType, source: ValueSource, name: String) -> Value {
        let value = Value(self.types.len() as u32);
        self.types.push(value_type);
        self.sources.push(source);
        self.names.push(name);
        value
    }

    fn full_name(&self, name: &str) -> String {
        self.scope.iter().map(String::as_str).chain([name]).filter(|s| !s.is_empty()).collect::<Vec<_>>().join(".")
    }

    fn fail(&mut self, message: String) {
        if self.fault.is_none() {
            let place = if self.scope.is_empty() { "the top".into() } else { self.scope.join(".") };
            self.fault = Some(GraphError { graph: self.name.clone(), place, message });
        }
    }
}
