//! The 8-bit spelling of a graph's products.

use std::collections::{HashMap, HashSet};

use super::join::join_gelus;
use super::{FLOAT, INT8, INT32, Int8Names, Product, Rounding, Spelling, UINT8, Walk, kind, smoothed_name};
use crate::onnx::export::reference;
use crate::onnx::graph::{ExternalTensor, GraphError};
use crate::onnx::op::OWN;
use crate::onnx::proto::*;

/// A graph on its way to its 8-bit spelling.
pub(super) struct Rewrite<'a> {
    graph: &'a GraphProto,
    roundings: &'a HashMap<String, Rounding>,
    table: &'a HashMap<String, ExternalTensor>,
    spelling: Spelling,
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
    made: HashSet<String>,
    /// How the outputs of QuantizeLinear were rounded.
    roundings_of: HashMap<String, Rounding>,
}

impl<'a> Rewrite<'a> {
    pub fn new(
        graph: &'a GraphProto,
        roundings: &'a HashMap<String, Rounding>,
        table: &'a HashMap<String, ExternalTensor>,
        spelling: Spelling,
    ) -> Self {
        Self {
            graph,
            roundings,
            table,
            spelling,
            nodes: vec![],
            tensors: vec![],
            made: HashSet::new(),
            roundings_of: HashMap::new(),
        }
    }

    pub fn run(mut self) -> Result<GraphProto, GraphError> {
        let walk = Walk::new(self.graph);
        let products: HashMap<String, Product> = walk.products().into_iter().map(|p| (p.weight.clone(), p)).collect();
        let smoothed: HashSet<&String> = products
            .values()
            .filter(|p| self.roundings.get(&p.weight).is_some_and(|r| r.smoothed))
            .flat_map(|p| p.norm.iter().flatten())
            .collect();
        for node in &self.graph.node {
            let mut node = node.clone();
            let product = node.input.get(1).and_then(|weight| products.get(weight)).filter(|_| walk.product(&node).is_some());
            if let Some((product, &rounding)) = product.and_then(|p| Some((p, self.roundings.get(&p.weight)?))) {
                self.spell(&mut node, product, rounding)?;
            } else if kind(&node) == "LayerNormalization" {
                for input in node.input.iter_mut().skip(1).filter(|input| smoothed.contains(*input)) {
                    *input = self.stored(&smoothed_name(input))?;
                }
            }
            self.nodes.push(node);
        }
        if self.spelling == Spelling::Own {
            let outputs: HashSet<&str> = self.graph.output.iter().filter_map(|output| output.name.as_deref()).collect();
            self.nodes = join_gelus(self.nodes, &self.roundings_of, &outputs);
        }
        // What nothing takes any more goes; what is computed for nobody (a second Reshape) costs nothing: runtimes drop it.
        let used: HashSet<&String> = self.nodes.iter().flat_map(|node| &node.input).collect();
        let stays = |tensor: &&TensorProto| tensor.name.as_ref().is_some_and(|name| used.contains(name));
        let initializer = self.graph.initializer.iter().filter(stays).cloned().chain(self.tensors).collect();
        Ok(GraphProto { node: self.nodes, initializer, ..self.graph.clone() })
    }

    /// Puts 8-bit numbers around a product.
    fn spell(&mut self, node: &mut NodeProto, product: &Product, rounding: Rounding) -> Result<(), GraphError> {
        if self.spelling == Spelling::Own {
            return self.spell_in_own(node, product, rounding);
        }
        let names = Int8Names::of(&product.weight);
        node.input[0] = self.rounded(&product.activation, rounding);
        let [data, scales] = [self.stored(&names.data)?, self.stored(&names.scales)?];
        node.input[1] = self.dequantized([data, scales], INT8, product.outputs, 1);
        node.attribute.retain(|attribute| attribute.name.as_deref() != Some("transB"));
        if product.bias.is_some() {
            let [data, scales] = [self.stored(&names.bias)?, self.stored(&names.bias_scales)?];
            node.input[2] = self.dequantized([data, scales], INT32, product.outputs, 0);
        }
        Ok(())
    }

    /// Makes a product one node of 8-bit numbers and a weight.
    fn spell_in_own(&mut self, node: &mut NodeProto, product: &Product, rounding: Rounding) -> Result<(), GraphError> {
        let names = Int8Names::of(&product.weight);
        let [x, _] = self.rounded_names(&product.activation);
        self.round(&product.activation, rounding);
        self.roundings_of.insert(x.clone(), rounding);
        node.input = vec![x, self.stored(&names.data)?, self.stored(&names.scales)?];
        if product.bias.is_some() {
            node.input.push(self.stored(&names.bias)?);
        }
        node.op_type = Some("Int8Product".into());
        node.domain = Some(OWN.into());
        node.attribute = vec![whole("zero_point", i64::from(rounding.zero_point)), number("scale", rounding.scale)];
        Ok(())
    }

    /// What an activation is called after QuantizeLinear, and after DequantizeLinear.
    fn rounded_names(&self, activation: &str) -> [String; 2] {
        ["QuantizeLinear", "DequantizeLinear"].map(|what| format!("{activation}/{what}"))
    }

    /// The activation after QuantizeLinear and DequantizeLinear.
    fn rounded(&mut self, activation: &str, rounding: Rounding) -> String {
        let [rounded, back] = self.rounded_names(activation);
        if !self.made.contains(&back) {
            let [scale, zero] = self.round(activation, rounding);
            self.made.insert(back.clone());
            self.node("DequantizeLinear", vec![rounded, scale, zero], &back, None);
        }
        back
    }

    /// The activation through QuantizeLinear; what its scale and zero point are called.
    fn round(&mut self, activation: &str, Rounding { scale, zero_point, .. }: Rounding) -> [String; 2] {
        let [rounded, _] = self.rounded_names(activation);
        let [scale_name, zero_name] = ["scale", "zero_point"].map(|what| format!("{activation}/{what}"));
        if self.made.insert(rounded.clone()) {
            let (zero, dtype) = match (zero_point, self.spelling) {
                (128, Spelling::Signed) => (0, INT8),
                (zero, _) => (zero, UINT8),
            };
            self.constant(&scale_name, FLOAT, &[], scale.to_le_bytes().to_vec());
            self.constant(&zero_name, dtype, &[], vec![zero]);
            self.node("QuantizeLinear", vec![activation.into(), scale_name.clone(), zero_name.clone()], &rounded, None);
        }
        [scale_name, zero_name]
    }

    /// Stored integers as the numbers they stand for, a scale for each place along `axis`.
    fn dequantized(&mut self, [data, scales]: [String; 2], dtype: i32, length: usize, axis: i64) -> String {
        let back = format!("{data}/DequantizeLinear");
        if self.made.insert(back.clone()) {
            let zeros = format!("zeros_{length}_{dtype}");
            let width = if dtype == INT32 { 4 } else { 1 };
            self.constant(&zeros, dtype, &[length as i64], vec![0; length * width]);
            self.node("DequantizeLinear", vec![data, scales, zeros], &back, Some(axis));
        }
        back
    }

    fn stored(&mut self, name: &str) -> Result<String, GraphError> {
        let tensor = self.table.get(name).ok_or_else(|| GraphError {
            graph: self.graph.name.clone().unwrap_or_default(),
            place: name.into(),
            message: "its 8-bit numbers are missing: make them again with `clipcap model quantize`".into(),
        })?;
        if self.made.insert(name.into()) {
            self.tensors.push(reference(name, tensor));
        }
        Ok(name.into())
    }

    fn constant(&mut self, name: &str, dtype: i32, dims: &[i64], bytes: Vec<u8>) {
        if self.made.insert(name.into()) {
            self.tensors.push(TensorProto {
                dims: dims.into(),
                data_type: Some(dtype),
                name: Some(name.into()),
                raw_data: Some(bytes),
                external_data: vec![],
                data_location: None,
            });
        }
    }

    fn node(&mut self, operator: &str, input: Vec<String>, output: &str, axis: Option<i64>) {
        let attribute = axis.map(|axis| whole("axis", axis));
        self.nodes.push(NodeProto {
            input,
            output: vec![output.into()],
            name: Some(output.into()),
            op_type: Some(operator.into()),
            domain: None,
            attribute: attribute.into_iter().collect(),
        });
    }
}

pub(super) fn whole(name: &str, number: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(AttributeType::Int as i32), i: Some(number), ..Default::default() }
}

pub(super) fn number(name: &str, number: f32) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(AttributeType::Float as i32), f: Some(number), ..Default::default() }
}
