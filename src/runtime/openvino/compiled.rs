//! A compiled graph and its runs.

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::Mutex;

use openvino_sys as ov;

use super::graph::Graph;
use super::kept::Kept;
use super::{OpenVino, c_text, checked};
use crate::onnx::DType;
use crate::runtime::Precision;

/// How a graph is compiled.
#[derive(Debug, Clone, Copy)]
pub struct Hints {
    pub precision: Precision,
    pub threads: usize,
    /// Runs at a time, which share the threads out. With one, all threads are on it; with more, each run waits for no other.
    pub streams: usize,
    /// What is compiled is kept on the disk for the next start.
    pub keep: bool,
}

/// A tensor of a run: where it lies and what it is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub name: &'a CString,
    pub data: *mut c_void,
    pub dtype: DType,
    pub shape: &'a [i64],
}

/// A compiled graph. Runs may be made by several threads at once.
pub struct Compiled {
    model: *mut ov::ov_compiled_model_t,
    /// What it was made from, whose weights it may still read.
    graph: Graph,
    /// Of runs that ended.
    idle: Mutex<Vec<Request>>,
}

/// What one run at a time goes through.
struct Request(*mut ov::ov_infer_request_t);

/// A tensor over memory of somebody else's.
struct Tensor(*mut ov::ov_tensor_t);

// SAFETY: a compiled model is not changed after it was made; requests are made from it under its own lock.
unsafe impl Send for Compiled {}
// SAFETY: as above.
unsafe impl Sync for Compiled {}
// SAFETY: a request belongs to the thread that took it out of the idle ones.
unsafe impl Send for Request {}

impl Hints {
    /// OpenVINO's names and values.
    fn properties(self) -> Vec<(&'static str, String)> {
        let precision = match self.precision {
            Precision::Bf16 => "bf16",
            // What is not in 8 bits: in bf16 where the processor has it.
            Precision::Int8 if std::is_x86_feature_detected!("avx512bf16") => "bf16",
            _ => "f32",
        };
        let hint = if self.streams == 1 { "LATENCY" } else { "THROUGHPUT" };
        vec![
            ("INFERENCE_PRECISION_HINT", precision.into()),
            ("INFERENCE_NUM_THREADS", self.threads.to_string()),
            ("PERFORMANCE_HINT", hint.into()),
            ("NUM_STREAMS", self.streams.to_string()),
        ]
    }
}

impl Compiled {
    /// Compiles `model` (ONNX), whose weights lie under `folder`, with the dimensions of these names fixed.
    ///
    /// # Errors
    /// What OpenVINO cannot read or compile, in its words.
    pub fn new(
        openvino: &OpenVino,
        model: &[u8],
        folder: &Path,
        dimensions: &[(&str, i64)],
        hints: Hints,
    ) -> Result<Self, String> {
        let graph = Graph::new(model, folder, dimensions)?;
        let mut properties = hints.properties();
        let weights: Vec<PathBuf> = graph.weights.keys().map(|name| folder.join(name)).collect();
        let subject = format!("{} {properties:?} {dimensions:?}", openvino.version);
        let kept = hints.keep.then(|| Kept::of(&[subject.as_bytes(), model], &weights)).flatten();
        if let Some(kept) = &kept {
            properties.push(("CACHE_DIR", kept.folder.to_string_lossy().into_owned()));
        }
        let model = match (compile(openvino, &graph.bytes, &properties), kept) {
            (Ok(model), kept) => {
                kept.into_iter().for_each(Kept::settle);
                model
            }
            // A full disk is no reason to compute nothing.
            (Err(_), Some(kept)) => {
                kept.discard();
                properties.pop();
                compile(openvino, &graph.bytes, &properties)?
            }
            (Err(message), None) => return Err(message),
        };
        Ok(Self { model, graph: Graph { bytes: vec![], ..graph }, idle: Mutex::default() })
    }

    /// Nodes of the graph, all of which OpenVINO computes.
    pub fn num_nodes(&self) -> usize {
        self.graph.num_nodes
    }

    /// The shape of an input, -1 where it is open; empty where there is no such input.
    pub fn input_shape(&self, name: &str) -> Vec<i64> {
        self.graph.inputs.iter().find(|(input, _)| input == name).map_or_else(Vec::new, |(_, shape)| shape.clone())
    }

    /// Runs with every input and every output where the caller has it.
    ///
    /// # Safety
    /// Each place holds as many elements as its shape says, alive until this returns; outputs are written by nobody else meanwhile.
    pub unsafe fn run(&self, inputs: &[Place<'_>], outputs: &[Place<'_>]) -> Result<(), String> {
        // A request keeps the addresses of its last run: all are replaced.
        let are_all = inputs.len() == self.graph.inputs.len() && outputs.len() == self.graph.outputs.len();
        if !are_all {
            let given = [inputs.len(), outputs.len()];
            return Err(format!("{given:?} inputs and outputs of {:?}", [self.graph.inputs.len(), self.graph.outputs.len()]));
        }
        let idle = self.idle.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let request = idle.map_or_else(|| Request::of(self), Ok)?;
        for place in inputs.iter().chain(outputs) {
            // SAFETY: promised by the caller.
            unsafe { request.set(*place)? };
        }
        request.run()?;
        self.idle.lock().unwrap_or_else(|e| e.into_inner()).push(request);
        Ok(())
    }

    /// Runs with every input where the caller has it, and gives the float32 outputs by name.
    ///
    /// # Safety
    /// As of [`run`](Self::run).
    pub unsafe fn run_to_vectors(&self, inputs: &[Place<'_>]) -> Result<Vec<(String, Vec<f32>)>, String> {
        if inputs.len() != self.graph.inputs.len() {
            return Err(format!("{} inputs of {}", inputs.len(), self.graph.inputs.len()));
        }
        let request = Request::of(self)?;
        for place in inputs {
            // SAFETY: promised by the caller.
            unsafe { request.set(*place)? };
        }
        request.run()?;
        let values = self.graph.outputs.iter().map(|name| Ok(request.floats(name)?.map(|values| (name.clone(), values))));
        values.filter_map(Result::transpose).collect()
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        self.idle.lock().unwrap_or_else(|e| e.into_inner()).clear();
        // SAFETY: ours, and its requests are gone.
        unsafe { ov::ov_compiled_model_free(self.model) };
    }
}

fn compile(openvino: &OpenVino, graph: &[u8], properties: &[(&str, String)]) -> Result<*mut ov::ov_compiled_model_t, String> {
    let core = openvino.core();
    let properties = properties.iter().map(|(key, value)| Ok((c_text(*key)?, c_text(value.as_str())?)));
    let properties: Vec<(CString, CString)> = properties.collect::<Result<_, String>>()?;
    let properties: Vec<ov::ov_property_t> =
        properties.iter().map(|(key, value)| ov::ov_property_t { key: key.as_ptr(), value: value.as_ptr().cast() }).collect();
    let (mut read, mut model) = (null_mut(), null_mut());
    // SAFETY: the core is alive; the graph and the texts live through the calls, and the graph's weights as long as what is made; that is
    // freed here or handed on.
    unsafe {
        checked(ov::ov_core_read_model_from_memory_buffer(core.0, graph.as_ptr().cast(), graph.len(), null(), &raw mut read))?;
        let compiled = checked(ov::ov_core_compile_model_props(
            core.0,
            read,
            c"CPU".as_ptr(),
            properties.len(),
            properties.as_ptr(),
            &raw mut model,
        ));
        ov::ov_model_free(read);
        compiled?;
    }
    Ok(model)
}

impl Request {
    fn of(compiled: &Compiled) -> Result<Self, String> {
        let mut request = null_mut();
        // SAFETY: the model is alive; the pointer is written where that succeeds.
        checked(unsafe { ov::ov_compiled_model_create_infer_request(compiled.model, &raw mut request) })?;
        Ok(Self(request))
    }

    /// # Safety
    /// The place holds as many elements as its shape says, until the next run of this request is over or it is set again.
    unsafe fn set(&self, place: Place<'_>) -> Result<(), String> {
        let tensor = Tensor::over(place)?;
        // SAFETY: both are alive; the request keeps the tensor's memory, which the caller promises.
        checked(unsafe { ov::ov_infer_request_set_tensor(self.0, place.name.as_ptr(), tensor.0) })
    }

    fn run(&self) -> Result<(), String> {
        // SAFETY: the request is alive and this thread's alone.
        checked(unsafe { ov::ov_infer_request_infer(self.0) })
    }

    /// An output's numbers, where it is float32.
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        let (name, mut pointer) = (c_text(name)?, null_mut());
        // SAFETY: the request is alive; the pointer is written where that succeeds.
        checked(unsafe { ov::ov_infer_request_get_tensor(self.0, name.as_ptr(), &raw mut pointer) })?;
        let tensor = Tensor(pointer);
        let (mut element, mut length, mut data) = (ov::ov_element_type_e::DYNAMIC, 0, null_mut());
        // SAFETY: the tensor is alive, has `length` elements of that type at `data`, and nothing writes there now.
        unsafe {
            checked(ov::ov_tensor_get_element_type(tensor.0, &raw mut element))?;
            checked(ov::ov_tensor_get_size(tensor.0, &raw mut length))?;
            checked(ov::ov_tensor_data(tensor.0, &raw mut data))?;
            let is_float = element == ov::ov_element_type_e::F32;
            Ok(is_float.then(|| std::slice::from_raw_parts(data.cast::<f32>(), length).to_vec()))
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: ours, and not running.
        unsafe { ov::ov_infer_request_free(self.0) };
    }
}

impl Tensor {
    fn over(place: Place<'_>) -> Result<Self, String> {
        let mut dimensions = place.shape.to_vec();
        let shape = ov::ov_shape_t { rank: dimensions.len() as i64, dims: dimensions.as_mut_ptr() };
        let mut tensor = null_mut();
        // SAFETY: the shape is read during the call alone; the memory is the caller's.
        checked(unsafe { ov::ov_tensor_create_from_host_ptr(element_type(place.dtype), shape, place.data, &raw mut tensor) })?;
        Ok(Self(tensor))
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: our handle; what it is of stays with those who use it.
        unsafe { ov::ov_tensor_free(self.0) };
    }
}

fn element_type(dtype: DType) -> ov::ov_element_type_e {
    use ov::ov_element_type_e as Element;
    match dtype {
        DType::F32 => Element::F32,
        DType::F64 => Element::F64,
        DType::F16 => Element::F16,
        DType::BF16 => Element::BF16,
        DType::I64 => Element::I64,
        DType::I32 => Element::I32,
        DType::I16 => Element::I16,
        DType::I8 => Element::I8,
        DType::U8 => Element::U8,
        DType::Bool => Element::OV_BOOLEAN,
    }
}
