//! Products with stored weights in a finished graph, whatever model it is of: found, observed, and spelled in 8 bits with scales that never
//! change.
//!
//! The 8-bit spelling is ONNX's own: what is multiplied goes through QuantizeLinear and DequantizeLinear, the weight and the bias through
//! DequantizeLinear. Providers join these with the product and compute in integers. Every scale is a constant, so rows of a batch do not
//! influence each other.

use std::collections::{HashMap, HashSet};

use super::export::Model;
use super::graph::{ExternalTensor, GraphError};
use super::op;
use super::proto::*;

mod join;
mod rewrite;

use rewrite::Rewrite;

/// A Gemm or MatMul of something computed with a stored float32 matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// The weight's name.
    pub weight: String,
    pub inputs: usize,
    pub outputs: usize,
    /// The weight is stored as [outputs, inputs].
    pub transposed: bool,
    /// The name of the stored bias [outputs] that is added.
    pub bias: Option<String>,
    /// What is multiplied, `[.., inputs]`; products of the same tensor name the same one.
    pub activation: String,
    /// Weight and bias of the layer normalization whose output the activation is, where nothing but products takes it.
    pub norm: Option<[String; 2]>,
    /// The result leaves the graph without anything else done to it.
    pub is_last: bool,
}

/// How the activation of a product becomes 8-bit numbers: `number = round(x / scale) + zero_point` in 0..=255.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounding {
    pub scale: f32,
    pub zero_point: u8,
    /// The layer normalization before it takes its stored weight and bias with factors worked in.
    pub smoothed: bool,
}

/// Names of what stands for a weight in 8 bits.
pub struct Int8Names {
    /// [inputs, outputs], int8
    pub data: String,
    /// [outputs], float32
    pub scales: String,
    /// [outputs], int32: the bias in steps of activation scale times weight scale
    pub bias: String,
    /// [outputs], float32: those steps
    pub bias_scales: String,
    /// [2], float32: scale and zero point of the activation
    pub rounding: String,
}

impl Int8Names {
    /// The names for a weight of this name.
    pub fn of(weight: &str) -> Self {
        let name = |what: &str| format!("{weight}_{what}");
        Self {
            data: name("int8"),
            scales: name("scales"),
            bias: name("bias_int32"),
            bias_scales: name("bias_scales"),
            rounding: name("rounding"),
        }
    }
}

/// The name of a layer normalization's weight or bias with smoothing factors worked in.
pub fn smoothed_name(parameter: &str) -> String {
    format!("{parameter}_smoothed")
}

const FLOAT: i32 = 1;
const UINT8: i32 = 2;
const INT8: i32 = 3;
const INT32: i32 = 6;

/// How products in 8 bits are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// In ONNX's operators, centred activations around 128 (ONNX Runtime's own kernels).
    Unsigned,
    /// The same, around 0 (OpenVINO).
    Signed,
    /// In this program's own operator.
    Own,
}

impl Model {
    /// The products with stored weights, in the order they run.
    pub fn products(&self) -> Vec<Product> {
        self.proto.graph.as_ref().map_or_else(Vec::new, |graph| Walk::new(graph).products())
    }

    /// The same graph with each product's activation as one more output.
    pub fn observed(&self) -> Self {
        let mut model = self.clone();
        let mut seen = HashSet::new();
        let names: Vec<String> =
            self.products().into_iter().map(|p| p.activation).filter(|name| seen.insert(name.clone())).collect();
        if let Some(graph) = &mut model.proto.graph {
            graph.output.extend(names.into_iter().map(|name| ValueInfoProto {
                name: Some(name),
                r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type: Some(FLOAT), shape: None }) }),
            }));
        }
        model
    }

    /// The same graph with the products named in `roundings` (by weight) in 8 bits; `table` holds what stands for them, by [`Int8Names`].
    ///
    /// # Errors
    /// Where `table` lacks one of them.
    pub fn in_8_bits(
        &self,
        roundings: &HashMap<String, Rounding>,
        table: &HashMap<String, ExternalTensor>,
        spelling: Spelling,
    ) -> Result<Self, GraphError> {
        let mut model = self.clone();
        let Some(graph) = &mut model.proto.graph else { return Ok(model) };
        let rewritten = Rewrite::new(graph, roundings, table, spelling).run()?;
        *graph = rewritten;
        if spelling == Spelling::Own && !model.proto.opset_import.iter().any(|set| set.domain.as_deref() == Some(op::OWN)) {
            model.proto.opset_import.push(OperatorSetIdProto { domain: Some(op::OWN.into()), version: Some(1) });
        }
        Ok(model)
    }
}

/// What is where in a graph.
struct Walk<'g> {
    graph: &'g GraphProto,
    weights: HashMap<&'g str, &'g TensorProto>,
    makers: HashMap<&'g str, &'g NodeProto>,
    takers: HashMap<&'g str, Vec<(&'g NodeProto, usize)>>,
    /// Reshapes of the same tensor to the same shape: their outputs, and that of the first.
    same: HashMap<&'g str, &'g str>,
}

impl<'g> Walk<'g> {
    fn new(graph: &'g GraphProto) -> Self {
        let weights = graph.initializer.iter().filter_map(|tensor| Some((tensor.name.as_deref()?, tensor))).collect();
        let (mut makers, mut takers) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        let (mut same, mut first) = (HashMap::new(), HashMap::new());
        for node in &graph.node {
            node.output.iter().for_each(|output| {
                makers.insert(output.as_str(), node);
            });
            node.input.iter().enumerate().for_each(|(i, input)| takers.entry(input.as_str()).or_default().push((node, i)));
            if let ("Reshape", [output]) = (kind(node), &node.output[..]) {
                let first = *first.entry(&node.input).or_insert(output.as_str());
                same.insert(output.as_str(), first);
            }
        }
        Self { graph, weights, makers, takers, same }
    }

    fn products(&self) -> Vec<Product> {
        self.graph.node.iter().filter_map(|node| self.product(node)).collect()
    }

    fn product(&self, node: &NodeProto) -> Option<Product> {
        let (gemm, [x, weight, ..]) = (kind(node) == "Gemm", &node.input[..]) else { return None };
        let is_product = gemm && plain_gemm(node) || kind(node) == "MatMul";
        let stored = self.weights.get(weight.as_str()).filter(|w| w.data_type == Some(FLOAT) && w.data_location == Some(1))?;
        let [rows, columns] = stored.dims[..] else { return None };
        if !is_product || self.weights.contains_key(x.as_str()) {
            return None;
        }
        let transposed = gemm && attribute(node, "transB") == Some(1);
        let (inputs, outputs) = if transposed { (columns, rows) } else { (rows, columns) };
        let bias = match node.input.get(2).filter(|bias| gemm && !bias.is_empty()) {
            None => None,
            // Only a stored vector can be worked in.
            Some(bias) => {
                self.weights.get(bias.as_str()).filter(|b| b.data_location == Some(1) && b.dims == [outputs])?;
                Some(bias.clone())
            }
        };
        let activation = self.same.get(x.as_str()).copied().unwrap_or(x.as_str());
        let [inputs, outputs] = [inputs, outputs].map(|n| usize::try_from(n).unwrap_or(0));
        Some(Product {
            weight: weight.clone(),
            inputs,
            outputs,
            transposed,
            bias,
            activation: activation.into(),
            norm: self.norm_of(activation, inputs),
            is_last: node.output.first().is_some_and(|output| self.leaves(output)),
        })
    }

    /// The layer normalization an activation comes from, where products alone take what it makes.
    fn norm_of(&self, activation: &str, width: usize) -> Option<[String; 2]> {
        let mut name = activation;
        while let Some(node) = self.makers.get(name).filter(|node| kind(node) == "Reshape") {
            name = node.input.first()?;
        }
        let node = *self.makers.get(name).filter(|node| kind(node) == "LayerNormalization")?;
        let stored = |name: &String| {
            self.weights.get(name.as_str()).is_some_and(|w| w.data_location == Some(1) && w.dims == [width as i64])
        };
        let [_, weight, bias] = &node.input[..] else { return None };
        (stored(weight) && stored(bias) && self.feeds_products_of(name, activation)).then(|| [weight.clone(), bias.clone()])
    }

    /// Whether `name` goes nowhere but, as `activation`, into products.
    fn feeds_products_of(&self, name: &str, activation: &str) -> bool {
        let is_output = self.graph.output.iter().any(|output| output.name.as_deref() == Some(name));
        !is_output
            && self.takers.get(name).is_some_and(|takers| {
                takers.iter().all(|(node, input)| match kind(node) {
                    "Reshape" if *input == 0 => {
                        node.output.first().is_some_and(|output| self.feeds_products_of(output, activation))
                    }
                    "Gemm" | "MatMul" if *input == 0 => {
                        self.same.get(name).copied().unwrap_or(name) == activation
                            && node.input.get(1).is_some_and(|weight| self.weights.contains_key(weight.as_str()))
                    }
                    _ => false,
                })
            })
    }

    fn leaves(&self, name: &str) -> bool {
        if self.graph.output.iter().any(|output| output.name.as_deref() == Some(name)) {
            return true;
        }
        let moved = |node: &NodeProto| matches!(kind(node), "Reshape" | "Cast" | "Identity");
        self.takers.get(name).is_some_and(|takers| {
            takers
                .iter()
                .any(|(node, input)| *input == 0 && moved(node) && node.output.first().is_some_and(|output| self.leaves(output)))
        })
    }
}

/// The operator, of ONNX's own; nothing for others.
fn kind(node: &NodeProto) -> &str {
    match node.domain.as_deref() {
        None | Some("") => node.op_type.as_deref().unwrap_or(""),
        Some(_) => "",
    }
}

fn attribute(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some(name))?.i
}

/// `a b + c` with nothing else done to a.
fn plain_gemm(node: &NodeProto) -> bool {
    let factor = |name: &str| node.attribute.iter().find(|a| a.name.as_deref() == Some(name)).is_none_or(|a| a.f == Some(1.0));
    attribute(node, "transA").unwrap_or(0) == 0 && factor("alpha") && factor("beta")
}

/// How a runtime computes the products with stored weights of a graph it has optimized: the weights' names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Computed {
    pub in_integers: Vec<String>,
    pub in_float: Vec<String>,
}

impl Model {
    /// Reads a graph that ONNX Runtime wrote after its optimizations.
    ///
    /// # Errors
    /// Where the file cannot be read or holds no graph.
    pub fn computed(path: &std::path::Path) -> std::io::Result<Computed> {
        let proto: ModelProto = prost::Message::decode(std::fs::read(path)?.as_slice()).map_err(std::io::Error::other)?;
        let graph = proto.graph.unwrap_or_default();
        let mut computed = Computed::default();
        let stored: HashSet<&str> = graph.initializer.iter().filter_map(|tensor| tensor.name.as_deref()).collect();
        // A weight that is still turned into float before its product was not joined with it.
        let mut turned = HashMap::new();
        for node in graph.node.iter().filter(|node| node.op_type.as_deref() == Some("DequantizeLinear")) {
            if let ([data, ..], [output, ..]) = (&node.input[..], &node.output[..]) {
                turned.insert(output.as_str(), data.as_str());
            }
        }
        for node in &graph.node {
            let (weight, list) = match node.op_type.as_deref() {
                Some("QGemm" | "QLinearMatMul") => (3, &mut computed.in_integers),
                Some(
                    "MatMulIntegerToFloat" | "MatMulInteger" | "DynamicQuantizeMatMul" | "Int8Product" | "Int8ProductRounded",
                ) => (1, &mut computed.in_integers),
                Some("Gemm" | "MatMul" | "FusedMatMul" | "FusedGemm") => (1, &mut computed.in_float),
                _ => continue,
            };
            let Some(name) = node.input.get(weight).map(String::as_str) else { continue };
            let name = turned.get(name).copied().unwrap_or(name);
            if stored.contains(name) {
                list.push(name.into());
            }
        }
        Ok(computed)
    }
}
