//! A graph on its way to OpenVINO: it is read from a file, and the weights it names from files beside that one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use prost::Message;
use tempfile::TempDir;

use crate::onnx::proto::{Dimension, DimensionValue, ModelProto, TensorProto, ValueInfoProto};

/// A graph whose dimensions are fixed as far as they were given.
pub struct Graph {
    proto: ModelProto,
    /// What the weights are in: the names in the graph, and the files.
    weights: BTreeMap<String, PathBuf>,
}

impl Graph {
    /// `model` is ONNX; the weights it names lie under `folder`.
    ///
    /// # Errors
    /// What is no graph, or names a file elsewhere.
    pub fn new(model: &[u8], folder: &Path, dimensions: &[(&str, i64)]) -> Result<Self, String> {
        let mut proto = ModelProto::decode(model).map_err(|e| format!("not a graph: {e}"))?;
        let mut weights = BTreeMap::new();
        if let Some(graph) = &mut proto.graph {
            graph.input.iter_mut().chain(&mut graph.output).for_each(|value| fix(value, dimensions));
            for location in graph.initializer.iter().filter_map(location) {
                let path = Path::new(location);
                if !path.components().all(|part| matches!(part, Component::Normal(_))) {
                    return Err(format!("weights in {location:?}, which is not in the model's folder"));
                }
                if !weights.contains_key(location) {
                    let whole = folder.join(path);
                    let whole = whole.canonicalize().map_err(|e| format!("{}: {e}", whole.display()))?;
                    weights.insert(location.to_string(), whole);
                }
            }
        }
        Ok(Self { proto, weights })
    }

    /// As a file in a folder of its own, with links to the weights beside it.
    pub fn written(&self) -> Result<(TempDir, PathBuf), String> {
        let write = || {
            let folder = tempfile::Builder::new().prefix("clipcap-graph-").tempdir()?;
            for (name, whole) in &self.weights {
                let link = folder.path().join(name);
                fs::create_dir_all(link.parent().unwrap_or(folder.path()))?;
                symlink(whole, link)?;
            }
            let path = folder.path().join("graph.onnx");
            fs::write(&path, self.bytes())?;
            Ok((folder, path))
        };
        write().map_err(|e: std::io::Error| format!("cannot write the graph for OpenVINO to {}: {e}", std::env::temp_dir().display()))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.proto.encode_to_vec()
    }

    /// The files that hold the weights.
    pub fn weights(&self) -> impl Iterator<Item = &Path> {
        self.weights.values().map(PathBuf::as_path)
    }

    pub fn num_nodes(&self) -> usize {
        self.proto.graph.as_ref().map_or(0, |graph| graph.node.len())
    }

    /// What goes in: names and shapes, -1 where a dimension is open.
    pub fn inputs(&self) -> Vec<(String, Vec<i64>)> {
        self.proto.graph.as_ref().map_or_else(Vec::new, |graph| graph.input.iter().map(named_shape).collect())
    }

    /// Names of what comes out.
    pub fn outputs(&self) -> Vec<String> {
        self.proto.graph.as_ref().map_or_else(Vec::new, |graph| graph.output.iter().map(|o| named_shape(o).0).collect())
    }
}

/// The file of a tensor that is not in the graph itself.
fn location(tensor: &TensorProto) -> Option<&str> {
    let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some("location"))?;
    entry.value.as_deref()
}

fn fix(value: &mut ValueInfoProto, dimensions: &[(&str, i64)]) {
    let shape = value.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).and_then(|t| t.shape.as_mut());
    for dimension in shape.into_iter().flat_map(|shape| &mut shape.dim) {
        let Some(DimensionValue::Param(name)) = &dimension.value else { continue };
        if let Some((_, size)) = dimensions.iter().find(|(known, _)| known == name) {
            dimension.value = Some(DimensionValue::Value(*size));
        }
    }
}

fn named_shape(value: &ValueInfoProto) -> (String, Vec<i64>) {
    let shape = value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).and_then(|t| t.shape.as_ref());
    let size = |dimension: &Dimension| match dimension.value {
        Some(DimensionValue::Value(size)) => size,
        _ => -1,
    };
    let shape = shape.map_or_else(Vec::new, |shape| shape.dim.iter().map(size).collect());
    (value.name.clone().unwrap_or_default(), shape)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::onnx::{DType, Dim, ExternalTensor, Graph as Builder, ParameterMode};

    /// `y = x w`, with `w` in a file of that name.
    fn model(location: &str) -> Vec<u8> {
        let weight = ExternalTensor { dtype: DType::F32, shape: vec![3, 2], location: location.into(), offset: 0, length: 24 };
        let g = Builder::with_parameters("g", HashMap::from([("w".to_string(), weight)]), |_| ParameterMode::Reference);
        let x = g.input("x", DType::F32, &[Dim::from("batch"), 3.into()]);
        g.output("y", g.matmul(x, g.parameter("w", &[3.into(), 2.into()])));
        g.finish().unwrap().to_bytes()
    }

    #[test]
    fn dimensions_are_fixed_and_weights_lie_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("part")).unwrap();
        fs::write(folder.path().join("part/weights"), [7; 24]).unwrap();
        let graph = Graph::new(&model("part/weights"), folder.path(), &[("batch", 4)]).unwrap();
        assert_eq!(graph.inputs(), [("x".to_string(), vec![4, 3])]);
        assert_eq!(graph.outputs(), ["y"]);
        let (written, path) = graph.written().unwrap();
        assert_eq!(fs::read(path).unwrap(), graph.bytes());
        assert_eq!(fs::read(written.path().join("part/weights")).unwrap(), [7; 24]);
    }

    #[test]
    fn weights_elsewhere_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for location in ["../weights", "/etc/passwd", "a/../../b"] {
            let refusal = Graph::new(&model(location), folder.path(), &[]).err().unwrap();
            assert!(refusal.contains(location), "{refusal}");
        }
        assert!(Graph::new(&model("missing"), folder.path(), &[]).err().unwrap().contains("missing"));
    }
}
