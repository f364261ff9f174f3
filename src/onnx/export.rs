//! From a finished graph to protobuf: names, attributes, and weights by reference.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use prost::Message;

use super::dim::Dim;
use super::graph::{ExternalTensor, Inner, Node, ParameterMode, Value, ValueSource};
use super::op::{Op, Reduction};
use super::proto::*;
use crate::files;

/// ONNX operator set of every graph: the first with Gelu, and old enough for every provider in use.
const OPSET: i64 = 20;
const IR_VERSION: i64 = 9;

/// A finished graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub(super) proto: ModelProto,
}

impl Model {
    pub(super) fn new(inner: &Inner) -> Self {
        let (alive_nodes, alive_values) = reachable(inner);
        let names = Names::new(inner);
        let nodes: Vec<&Node> = inner.nodes.iter().enumerate().filter(|(i, _)| alive_nodes.contains(i)).map(|(_, n)| n).collect();
        let mut node: Vec<NodeProto> = nodes.iter().map(|n| node_proto(n, &names, &alive_values)).collect();
        for (name, value) in &inner.outputs {
            // An output that is an input, a weight or already another output keeps its own name; a copy carries the output's.
            if names.of(*value) != name {
                node.push(NodeProto {
                    input: vec![names.of(*value).into()],
                    output: vec![name.clone()],
                    name: Some(format!("{name}/Identity")),
                    op_type: Some("Identity".into()),
                    domain: None,
                    attribute: vec![],
                });
            }
        }
        let mut input: Vec<ValueInfoProto> = inner.inputs.iter().map(|&v| value_info(inner, names.of(v), v)).collect();
        let mut initializer = vec![];
        for (value, source) in inner.sources.iter().enumerate() {
            let value = Value(value as u32);
            if let ValueSource::Constant(bytes) = source
                && alive_values.contains(&value)
            {
                let t = &inner.types[value.0 as usize];
                initializer.push(TensorProto {
                    dims: t.shape.iter().filter_map(Dim::as_fixed).collect(),
                    data_type: Some(t.dtype.onnx_code()),
                    name: Some(names.of(value).into()),
                    raw_data: Some(bytes.to_vec()),
                    external_data: vec![],
                    data_location: None,
                });
            }
        }
        for (name, value) in inner.parameters.iter().filter(|(_, v)| alive_values.contains(v)) {
            match ((inner.mode)(name), inner.external.get(name)) {
                (ParameterMode::Reference, Some(tensor)) => initializer.push(reference(name, tensor)),
                _ => input.push(value_info(inner, name, *value)),
            }
        }
        let output = inner.outputs.iter().map(|(name, value)| value_info(inner, name, *value)).collect();
        let domains: BTreeSet<&str> = nodes.iter().map(|n| n.op.name().0).chain([""]).collect();
        let opset_import = domains
            .into_iter()
            .map(|domain| OperatorSetIdProto {
                domain: Some(domain.into()),
                version: Some(if domain.is_empty() { OPSET } else { 1 }),
            })
            .collect();
        let graph = GraphProto { node, name: Some(inner.name.clone()), initializer, input, output };
        Self {
            proto: ModelProto {
                ir_version: Some(IR_VERSION),
                opset_import,
                producer_name: Some("clipcap".into()),
                producer_version: Some(env!("CARGO_PKG_VERSION").into()),
                doc_string: (!inner.doc.is_empty()).then(|| inner.doc.clone()),
                graph: Some(graph),
                metadata_props: vec![],
            },
        }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.proto.encode_to_vec()
    }

    /// Writes the graph file atomically.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        files::write_atomic(path, &self.to_bytes())
    }

    /// Names of the graph's inputs, weights that are inputs included.
    pub fn input_names(&self) -> Vec<&str> {
        self.proto.graph.iter().flat_map(|g| &g.input).filter_map(|v| v.name.as_deref()).collect()
    }

    /// The outputs' names, in order.
    pub fn output_names(&self) -> Vec<&str> {
        self.proto.graph.iter().flat_map(|g| &g.output).filter_map(|v| v.name.as_deref()).collect()
    }
}

/// What the outputs depend on: nodes by number, and values.
fn reachable(inner: &Inner) -> (HashSet<usize>, HashSet<Value>) {
    let (mut nodes, mut values) = (HashSet::new(), HashSet::new());
    let mut open: Vec<Value> = inner.outputs.iter().map(|(_, v)| *v).collect();
    while let Some(value) = open.pop() {
        if !values.insert(value) {
            continue;
        }
        if let ValueSource::Node { node, .. } = inner.sources[value.0 as usize]
            && nodes.insert(node)
        {
            open.extend(inner.nodes[node].inputs.iter().flatten());
        }
    }
    (nodes, values)
}

/// Names of values: a node's value that is an output of the graph bears the output's name.
struct Names(Vec<String>);

impl Names {
    fn new(inner: &Inner) -> Self {
        let mut names = inner.names.clone();
        let mut named = HashSet::new();
        for (name, value) in &inner.outputs {
            if matches!(inner.sources[value.0 as usize], ValueSource::Node { .. }) && named.insert(*value) {
                names[value.0 as usize] = name.clone();
            }
        }
        Self(names)
    }

    fn of(&self, value: Value) -> &str {
        &self.0[value.0 as usize]
    }
}

fn value_info(inner: &Inner, name: &str, value: Value) -> ValueInfoProto {
    let t = &inner.types[value.0 as usize];
    let dim = |d: &Dim| Dimension {
        value: Some(match d.as_fixed() {
            Some(n) => DimensionValue::Value(n),
            None => DimensionValue::Param(d.to_string()),
        }),
    };
    let shape = TensorShapeProto { dim: t.shape.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type: Some(t.dtype.onnx_code()), shape: Some(shape) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

pub(super) fn reference(name: &str, tensor: &ExternalTensor) -> TensorProto {
    let pair = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
    TensorProto {
        dims: tensor.shape.clone(),
        data_type: Some(tensor.dtype.onnx_code()),
        name: Some(name.into()),
        raw_data: None,
        external_data: vec![
            pair("location", tensor.location.clone()),
            pair("offset", tensor.offset.to_string()),
            pair("length", tensor.length.to_string()),
        ],
        data_location: Some(1),
    }
}

fn node_proto(node: &Node, names: &Names, alive: &HashSet<Value>) -> NodeProto {
    let (domain, op_type) = node.op.name();
    let mut input: Vec<String> = node.inputs.iter().map(|v| v.map_or(String::new(), |v| names.of(v).into())).collect();
    while input.last().is_some_and(String::is_empty) {
        input.pop();
    }
    // Providers refuse LayerNormalization's statistics even where nobody reads them. (All parts of a Split must be named.)
    let used = match node.op {
        Op::Split { .. } | Op::TopK { .. } => node.outputs.len(),
        _ => node.outputs.iter().rposition(|v| alive.contains(v)).map_or(0, |last| last + 1),
    };
    NodeProto {
        input,
        output: node.outputs[..used].iter().map(|&v| names.of(v).into()).collect(),
        name: Some(node.name.clone()),
        op_type: Some(op_type.into()),
        domain: (!domain.is_empty()).then(|| domain.into()),
        attribute: attributes(&node.op),
    }
}

fn attributes(op: &Op) -> Vec<AttributeProto> {
    let empty =
        |name: &str, t: AttributeType| AttributeProto { name: Some(name.into()), r#type: Some(t as i32), ..Default::default() };
    let int = |name: &str, i: i64| AttributeProto { i: Some(i), ..empty(name, AttributeType::Int) };
    let float = |name: &str, f: f32| AttributeProto { f: Some(f), ..empty(name, AttributeType::Float) };
    let ints = |name: &str, ints: Vec<i64>| AttributeProto { ints, ..empty(name, AttributeType::Ints) };
    let text = |name: &str, s: &str| AttributeProto { s: Some(s.as_bytes().to_vec()), ..empty(name, AttributeType::String) };
    match op {
        Op::Gelu { tanh } => vec![text("approximate", if *tanh { "tanh" } else { "none" })],
        Op::QuickGelu { alpha } => vec![float("alpha", *alpha)],
        Op::Softmax => vec![int("axis", -1)],
        Op::Cast { to } => vec![int("to", to.onnx_code().into())],
        Op::Gemm { trans_a, trans_b, alpha } => {
            vec![int("transA", (*trans_a).into()), int("transB", (*trans_b).into()), float("alpha", *alpha)]
        }
        Op::FusedMatMul { trans_a, trans_b, alpha } => {
            vec![int("transA", (*trans_a).into()), int("transB", (*trans_b).into()), float("alpha", *alpha)]
        }
        Op::Conv { stride, pad: 0 } => vec![ints("strides", vec![*stride, *stride])],
        Op::Conv { stride, pad } => vec![ints("strides", vec![*stride, *stride]), ints("pads", vec![*pad; 4])],
        Op::AveragePool { size } => vec![ints("kernel_shape", vec![*size, *size]), ints("strides", vec![*size, *size])],
        Op::BatchNormalization { epsilon } => vec![float("epsilon", *epsilon)],
        Op::LayerNormalization { epsilon } => vec![int("axis", -1), float("epsilon", *epsilon)],
        Op::ReduceSum { keep, .. } | Op::ReduceMean { keep, .. } | Op::ReduceMax { keep, .. } => {
            vec![int("keepdims", (*keep).into())]
        }
        Op::Transpose { perm } => vec![ints("perm", perm.iter().map(|&p| p as i64).collect())],
        Op::Concat { axis }
        | Op::QuantizeLinear { axis }
        | Op::Split { axis, .. }
        | Op::Gather { axis }
        | Op::GatherElements { axis }
        | Op::TopK { axis, .. }
        | Op::ScatterElements { axis, reduction: Reduction::None } => vec![int("axis", *axis as i64)],
        Op::ScatterElements { axis, reduction: Reduction::Add } => vec![int("axis", *axis as i64), text("reduction", "add")],
        Op::MultiHeadAttention { num_heads } => vec![int("num_heads", *num_heads)],
        Op::GroupQueryAttention { num_heads, kv_num_heads, scale } | Op::CachedAttention { num_heads, kv_num_heads, scale } => {
            vec![int("num_heads", *num_heads), int("kv_num_heads", *kv_num_heads), float("scale", *scale)]
        }
        Op::Int8Product => vec![int("zero_point", 128), float("scale", 1.0)],
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Max
        | Op::Where
        | Op::Equal
        | Op::Less
        | Op::Greater
        | Op::Neg
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
        | Op::Identity
        | Op::Detach
        | Op::MatMul
        | Op::MatMulIntegerToFloat
        | Op::QuantizeRows
        | Op::ScaleRows
        | Op::Reshape { .. }
        | Op::Expand { .. }
        | Op::Slice { .. }
        | Op::ScatterNd
        | Op::Shape
        | Op::Range { .. } => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DType, Graph};

    #[test]
    fn a_graph_keeps_only_what_its_outputs_need() {
        let g = Graph::new("test");
        let x = g.input("x", DType::F32, &["batch".into(), 4.into()]);
        let _unused = g.exp(x);
        let y = g.reshape(g.add(x, x), &["batch".into(), 2.into(), 2.into()]);
        g.output("y", y);
        let model = g.finish().unwrap();
        let decoded = ModelProto::decode(model.to_bytes().as_slice()).unwrap();
        let graph = decoded.graph.unwrap();
        assert_eq!(graph.node.iter().filter_map(|n| n.op_type.as_deref()).collect::<Vec<_>>(), ["Add", "Reshape"]);
        assert_eq!(graph.node[1].output, ["y"]);
        assert_eq!(decoded.opset_import.len(), 1);
    }

    #[test]
    fn the_first_fault_names_the_scope_and_both_shapes() {
        let g = Graph::new("test");
        let x = g.input("x", DType::F32, &["batch".into(), 4.into()]);
        let bad = g.scope("h.0", || g.scope("attn", || g.add(x, g.floats(&[0.0; 3], &[3]))));
        g.output("y", g.exp(bad));
        let error = g.finish().unwrap_err().to_string();
        assert!(error.contains("h.0.attn") && error.contains("[batch, 4]") && error.contains("[3]"), "{error}");
    }
}
