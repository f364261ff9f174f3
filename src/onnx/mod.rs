//! A builder for ONNX graphs: types and symbolic dimensions are inferred while a node is added, weights are named by reference into
//! safetensors files, and the result is written as protobuf.

mod build;
mod dim;
mod dtype;
mod export;
mod graph;
mod infer;
mod op;
mod products;
pub(crate) mod proto;

pub use dim::{Dim, Shape};
pub use dtype::DType;
pub use export::Model;
pub use graph::{ExternalTensor, Graph, GraphError, Node, ParameterMode, Value, ValueSource};
pub use op::{Op, Reduction};
pub use products::{Int8Names, Product, Rounding, Spelling, smoothed_name};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_is_written_in_a_few_lines() {
        let g = Graph::new("twice");
        let x = g.input("x", DType::F32, &["batch".into(), 3.into()]);
        g.output("y", g.add(x, x));
        let model = g.finish().unwrap();
        assert!(!model.to_bytes().is_empty());
    }
}
