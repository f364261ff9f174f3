//! A graph on its way to OpenVINO: its weights stay in their files, mapped into memory, and the graph says where they lie there.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path};

use memmap2::Mmap;
use prost::Message;

use crate::onnx::proto::{
    Dimension, DimensionValue, GraphProto, ModelProto, StringStringEntryProto, TensorProto, ValueInfoProto,
};

/// What OpenVINO takes for a weight's file where the offset is an address in this process.
const IN_MEMORY: &str = "*/_ORT_MEM_ADDR_/*";

/// A graph whose dimensions are fixed as far as they were given.
pub struct Graph {
    /// ONNX, good for this process while `weights` live.
    pub bytes: Vec<u8>,
    /// What the weights are in, by the names in the graph.
    pub weights: BTreeMap<String, Mmap>,
    /// What goes in: names and shapes, -1 where a dimension is open.
    pub inputs: Vec<(String, Vec<i64>)>,
    /// Names of what comes out.
    pub outputs: Vec<String>,
    pub num_nodes: usize,
}

impl Graph {
    /// `model` is ONNX; the weights it names lie under `folder`.
    ///
    /// # Errors
    /// What is no graph, or names bytes that are not in a file there.
    pub fn new(model: &[u8], folder: &Path, dimensions: &[(&str, i64)]) -> Result<Self, String> {
        let mut proto = ModelProto::decode(model).map_err(|e| format!("not a graph: {e}"))?;
        let mut weights = BTreeMap::new();
        let graph = proto.graph.get_or_insert_with(GraphProto::default);
        graph.input.iter_mut().chain(&mut graph.output).for_each(|value| fix(value, dimensions));
        for tensor in &mut graph.initializer {
            refer(tensor, folder, &mut weights)?;
        }
        let (inputs, num_nodes) = (graph.input.iter().map(named_shape).collect(), graph.node.len());
        let outputs = graph.output.iter().map(|output| named_shape(output).0).collect();
        Ok(Self { bytes: proto.encode_to_vec(), weights, inputs, outputs, num_nodes })
    }
}

/// Says of a tensor in another file where it lies in memory.
fn refer(tensor: &mut TensorProto, folder: &Path, weights: &mut BTreeMap<String, Mmap>) -> Result<(), String> {
    let entry = |key: &str| {
        let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key))?;
        entry.value.clone()
    };
    let Some(location) = entry("location") else { return Ok(()) };
    let name = tensor.name.as_deref().unwrap_or_default();
    let path = Path::new(&location);
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("the weight {name} is in {location:?}, which is not in the model's folder"));
    }
    if !weights.contains_key(&location) {
        let path = folder.join(path);
        let map = || {
            // SAFETY: a model's files are not written in place by this program, and were compared with their checksums; whoever changes
            // one meanwhile changes what is computed, as with a file that is read.
            unsafe { Mmap::map(&File::open(&path)?) }
        };
        let map = map().map_err(|e| format!("{}: {e}", path.display()))?;
        weights.insert(location.clone(), map);
    }
    let file = &weights[&location];
    let number = |key: &str| entry(key).and_then(|value| value.parse::<usize>().ok());
    let (offset, length) = (number("offset").unwrap_or(0), number("length").unwrap_or(file.len()));
    let bytes = offset.checked_add(length).and_then(|end| file.get(offset..end));
    let bytes = bytes.ok_or_else(|| format!("the weight {name} goes beyond the end of {location}"))?;
    let address = (bytes.as_ptr() as usize).to_string();
    tensor.external_data = [("location", IN_MEMORY), ("offset", &address), ("length", &length.to_string())]
        .map(|(key, value)| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) })
        .to_vec();
    Ok(())
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
        let weight = ExternalTensor { dtype: DType::F32, shape: vec![3, 2], location: location.into(), offset: 8, length: 24 };
        let g = Builder::with_parameters("g", HashMap::from([("w".to_string(), weight)]), |_| ParameterMode::Reference);
        let x = g.input("x", DType::F32, &[Dim::from("batch"), 3.into()]);
        g.output("y", g.matmul(x, g.parameter("w", &[3.into(), 2.into()])));
        g.finish().unwrap().to_bytes()
    }

    #[test]
    fn dimensions_are_fixed_and_weights_are_mapped() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("part")).unwrap();
        std::fs::write(folder.path().join("part/weights"), [7; 32]).unwrap();
        let graph = Graph::new(&model("part/weights"), folder.path(), &[("batch", 4)]).unwrap();
        assert_eq!((graph.inputs, graph.outputs, graph.num_nodes), (vec![("x".into(), vec![4, 3])], vec!["y".into()], 1));
        let address = (graph.weights["part/weights"][8..].as_ptr() as usize).to_string();
        let proto = ModelProto::decode(graph.bytes.as_slice()).unwrap();
        let said: Vec<_> = proto.graph.unwrap().initializer[0].external_data.iter().map(|e| e.value.clone().unwrap()).collect();
        assert_eq!(said, [IN_MEMORY, &address, "24"]);
    }

    #[test]
    fn weights_that_are_not_in_the_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("short"), [7; 31]).unwrap();
        let refused = |location| Graph::new(&model(location), folder.path(), &[]).err().unwrap();
        for location in ["../weights", "/etc/passwd", "a/../../b", "missing"] {
            assert!(refused(location).contains(location), "{location}");
        }
        assert!(refused("short").contains("beyond the end"));
    }
}
