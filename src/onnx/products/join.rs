//! A product in 8 bits, GELU and rounding to 8 bits again, as one node: the numbers between them are never in memory.

use std::collections::{HashMap, HashSet};

use super::rewrite::{number, whole};
use super::{Rounding, kind};
use crate::onnx::op::OWN;
use crate::onnx::proto::*;

const PRODUCT: &str = "Int8Product";

/// What takes what.
struct Takers<'a> {
    nodes: &'a [NodeProto],
    takers: HashMap<&'a str, Vec<usize>>,
    outputs: &'a HashSet<&'a str>,
}

impl<'a> Takers<'a> {
    /// The only node that takes `name`, where it takes it first.
    fn only(&self, name: &str) -> Option<(usize, &'a NodeProto)> {
        let [taker] = self.takers.get(name)?[..] else { return None };
        let node = &self.nodes[taker];
        (!self.outputs.contains(name) && node.input.first().is_some_and(|first| first == name)).then_some((taker, node))
    }

    /// Goes on from `name` through Reshapes, each the only taker; adds them to `passed`.
    fn through_reshapes(&self, name: &'a str, passed: &mut Vec<usize>) -> &'a str {
        let mut name = name;
        while let Some((number, node)) = self.only(name).filter(|(_, node)| kind(node) == "Reshape")
            && let Some(output) = node.output.first()
        {
            passed.push(number);
            name = output;
        }
        name
    }
}

fn is_product(node: &NodeProto) -> bool {
    node.domain.as_deref() == Some(OWN) && node.op_type.as_deref() == Some(PRODUCT)
}

/// tanh's GELU.
fn is_gelu(node: &NodeProto) -> bool {
    let by_tanh = |a: &AttributeProto| a.name.as_deref() == Some("approximate") && a.s.as_deref() == Some(b"tanh");
    kind(node) == "Gelu" && node.attribute.iter().any(by_tanh)
}

/// The nodes with those chains joined. `roundings` says how a QuantizeLinear of that output rounds.
pub(super) fn join_gelus(
    nodes: Vec<NodeProto>,
    roundings: &HashMap<String, Rounding>,
    outputs: &HashSet<&str>,
) -> Vec<NodeProto> {
    let mut takers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, node) in nodes.iter().enumerate() {
        node.input.iter().for_each(|input| takers.entry(input).or_default().push(number));
    }
    let takers = Takers { nodes: &nodes, takers, outputs };
    let (mut gone, mut joined) = (HashSet::new(), HashMap::new());
    for (place, node) in nodes.iter().enumerate().filter(|(_, node)| is_product(node)) {
        if let Some((passed, product)) = joined_with_gelu(node, &takers, roundings) {
            gone.extend(passed);
            joined.insert(place, product);
        }
    }
    let kept = nodes.into_iter().enumerate().filter(|(place, _)| !gone.contains(place));
    kept.map(|(place, node)| joined.remove(&place).unwrap_or(node)).collect()
}

/// The nodes behind a product that can be part of it, and the product with them.
fn joined_with_gelu<'a>(
    product: &'a NodeProto,
    takers: &Takers<'a>,
    roundings: &HashMap<String, Rounding>,
) -> Option<(Vec<usize>, NodeProto)> {
    let mut passed = vec![];
    let name = takers.through_reshapes(product.output.first()?, &mut passed);
    let (gelu, node) = takers.only(name).filter(|(_, node)| is_gelu(node))?;
    passed.push(gelu);
    let name = takers.through_reshapes(node.output.first()?, &mut passed);
    let (rounding, node) = takers.only(name).filter(|(_, node)| kind(node) == "QuantizeLinear")?;
    passed.push(rounding);
    let output = node.output.first()?;
    let Rounding { scale, zero_point, .. } = *roundings.get(output)?;
    let mut product = product.clone();
    product.op_type = Some("Int8ProductRounded".into());
    product.output = vec![output.clone()];
    product.attribute.extend([whole("gelu", 1), number("to_scale", scale), whole("to_zero_point", i64::from(zero_point))]);
    // The product's rows are flat; what multiplies them again takes them so.
    let is_multiplied = |&number: &usize| is_product(&takers.nodes[number]) && takers.nodes[number].input[0] == *output;
    takers.takers.get(output.as_str())?.iter().all(is_multiplied).then_some((passed, product))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::onnx::{DType, ExternalTensor, Graph, Int8Names, Model, ParameterMode, Rounding, Spelling, Value};

    /// Two products with something between them, spelled in 8 bits: its operators.
    fn operators(between: impl Fn(&Graph, Value) -> Value) -> Vec<String> {
        let tensor =
            |dtype, shape: &[i64]| ExternalTensor { dtype, shape: shape.into(), location: "w".into(), offset: 0, length: 0 };
        let stored = |name: &str, shape: &[i64]| (name.to_string(), tensor(DType::F32, shape));
        let table: HashMap<_, _> = [stored("a", &[4, 6]), stored("a_bias", &[6]), stored("b", &[6, 3])].into();
        let g = Graph::with_parameters("test", table, |_| ParameterMode::Reference);
        let x = g.input("x", DType::F32, &["batch".into(), 2.into(), 4.into()]);
        let flat = g.reshape(x, &[crate::onnx::Dim::from("batch") * 2.into(), 4.into()]);
        let (a, bias) = (g.parameter("a", &[4.into(), 6.into()]), g.parameter("a_bias", &[6.into()]));
        let hidden = g.reshape(g.gemm(flat, a, Some(bias), false, false), &["batch".into(), 2.into(), 6.into()]);
        let hidden = g.reshape(between(&g, hidden), &[crate::onnx::Dim::from("batch") * 2.into(), 6.into()]);
        g.output("y", g.gemm(hidden, g.parameter("b", &[6.into(), 3.into()]), None, false, false));
        let rounding = Rounding { scale: 0.1, zero_point: 128, smoothed: false };
        let mut table = HashMap::new();
        for (weight, shape) in [("a", [4, 6]), ("b", [6, 3])] {
            let names = Int8Names::of(weight);
            table.insert(names.data, tensor(DType::I8, &shape));
            table.insert(names.scales, tensor(DType::F32, &shape[1..]));
            table.insert(names.bias, tensor(DType::I32, &shape[1..]));
        }
        let roundings = ["a", "b"].map(|weight| (weight.to_string(), rounding)).into();
        let model: Model = g.finish().unwrap().in_8_bits(&roundings, &table, Spelling::Own).unwrap();
        assert!(model.proto.opset_import.iter().any(|set| set.domain.as_deref() == Some(super::OWN)));
        model.proto.graph.unwrap().node.into_iter().filter_map(|node| node.op_type).collect()
    }

    #[test]
    fn a_gelu_between_products_is_part_of_the_first() {
        assert_eq!(operators(|g, x| g.gelu(x, true)), ["Reshape", "QuantizeLinear", "Int8ProductRounded", "Int8Product"]);
    }

    #[test]
    fn what_others_take_too_or_is_no_such_gelu_stays() {
        let apart = |gelu: &str| ["Reshape", "QuantizeLinear", "Int8Product", "Reshape", gelu].map(String::from);
        assert_eq!(operators(|g, x| g.gelu(x, false))[..5], apart("Gelu"));
        let seen = |g: &Graph, x| {
            let y = g.gelu(x, true);
            g.output("seen", y);
            y
        };
        assert_eq!(operators(seen)[..4], apart("Gelu")[..4]);
        assert!(operators(|g, x| g.add(g.gelu(x, true), x)).contains(&"Gelu".to_string()));
    }
}
