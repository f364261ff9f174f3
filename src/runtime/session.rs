//! A model ready to run on one device, fed by name.

use std::path::Path;

use ort::AsPointer;
use ort::session::{SessionInputValue, SessionOutputs};
use ort::value::{PrimitiveTensorElementType, TensorRef};

use super::openvino::{self, Compiled, Hints};
use super::placement::RECORD;
use super::tensor::{InPlace, check};
use super::{Placement, Precision, Runtime, RuntimeError};
use crate::onnx::DType;

/// A session and its name in errors.
pub struct Session {
    name: String,
    inner: Inner,
}

/// What computes it.
enum Inner {
    Ort(ort::session::Session),
    OpenVino(Compiled),
}

/// What goes into an input: numbers and their shape, borrowed.
#[derive(Debug, Clone, Copy)]
pub enum Feed<'a> {
    /// float32 elements, and the length of each dimension.
    F32(&'a [f32], &'a [i64]),
    /// int64 elements, and the length of each dimension.
    I64(&'a [i64], &'a [i64]),
}

/// What came out of a run.
pub struct Outputs<'a> {
    name: &'a str,
    inner: Values<'a>,
}

enum Values<'a> {
    Ort(SessionOutputs<'a>),
    /// The float32 ones, by name.
    Copied(Vec<(String, Vec<f32>)>),
}

/// What a session is to be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// Runs at a time, among which OpenVINO shares the threads out; of no concern to others.
    pub streams: usize,
    /// Runs are recorded once and played back from then on (CUDA).
    pub recorded: bool,
    /// OpenVINO keeps what it compiled for the next start.
    pub keep: bool,
}

impl Kind {
    pub const PLAIN: Self = Self { streams: 1, recorded: false, keep: false };
}

impl Session {
    /// Loads a graph from memory; the weights it names lie under `folder`. `dimensions` fixes symbolic dimensions.
    pub fn new(
        runtime: &Runtime,
        name: &str,
        model: &[u8],
        folder: &Path,
        dimensions: &[(&str, i64)],
    ) -> Result<Self, RuntimeError> {
        Self::of_kind(runtime, name, model, folder, dimensions, Kind::PLAIN)
    }

    /// A session that takes long to compile with OpenVINO, which keeps it for the next start.
    pub fn kept(runtime: &Runtime, name: &str, model: &[u8], folder: &Path) -> Result<Self, RuntimeError> {
        Self::of_kind(runtime, name, model, folder, &[], Kind { keep: true, ..Kind::PLAIN })
    }

    /// A session for `streams` runs at a time, among which OpenVINO shares the threads out; in 8 bits, which takes it twice as long, it keeps what it
    /// compiled.
    pub fn with_streams(
        runtime: &Runtime,
        name: &str,
        model: &[u8],
        folder: &Path,
        dimensions: &[(&str, i64)],
        streams: usize,
    ) -> Result<Self, RuntimeError> {
        Self::of_kind(
            runtime,
            name,
            model,
            folder,
            dimensions,
            Kind { streams, recorded: false, keep: runtime.precision == Precision::Int8 },
        )
    }

    /// A session whose runs a card records once and plays back from then on, in place of hundreds of launches. All its shapes are fixed, and
    /// every run has the same tensors in the device's memory: what is in them is all that changes. The CPU just runs it.
    pub fn recorded(runtime: &Runtime, name: &str, model: &[u8], folder: &Path) -> Result<Self, RuntimeError> {
        Self::of_kind(runtime, name, model, folder, &[], Kind { recorded: true, ..Kind::PLAIN })
    }

    fn of_kind(
        runtime: &Runtime,
        name: &str,
        model: &[u8],
        folder: &Path,
        dimensions: &[(&str, i64)],
        kind: Kind,
    ) -> Result<Self, RuntimeError> {
        if let Some(openvino) = &runtime.openvino {
            let Kind { streams, keep, .. } = kind;
            let hints = Hints { precision: runtime.precision, threads: runtime.threads, streams, keep };
            let failed = |message| RuntimeError::OpenVino { model: name.into(), message };
            let compiled = Compiled::new(openvino, model, folder, dimensions, hints).map_err(failed)?;
            runtime.note(Placement::whole(name, "OpenVINO", compiled.num_nodes()));
            return Ok(Self { name: name.into(), inner: Inner::OpenVino(compiled) });
        }
        let ort = |source| RuntimeError::Ort { model: name.into(), source };
        let mut builder = runtime.session_builder(name, kind)?;
        if kind.recorded {
            // A plan of all memory in one piece is made after the first run, and would be allocated while a later one is recorded.
            builder = builder.with_memory_pattern(false).map_err(|e| ort(e.into()))?;
        }
        builder = builder
            .with_config_entry("session.model_external_initializers_file_folder_path", folder.to_string_lossy())
            .map_err(|e| ort(e.into()))?;
        for (dimension, size) in dimensions {
            builder = builder.with_dimension_override(dimension, *size).map_err(|e| ort(e.into()))?;
        }
        if runtime.provider().is_some() {
            builder = builder.with_config_entry(RECORD, "1").map_err(|e| ort(e.into()))?;
        }
        let inner = builder.commit_from_memory(model).map_err(ort)?;
        if let Some(provider) = runtime.provider() {
            runtime.note(Placement::read(name, provider, &inner).map_err(ort)?);
        }
        Ok(Self { name: name.into(), inner: Inner::Ort(inner) })
    }

    /// Writes a graph to `path` as ONNX Runtime computes it after its optimizations.
    pub fn write_optimized(runtime: &Runtime, name: &str, model: &[u8], folder: &Path, path: &Path) -> Result<(), RuntimeError> {
        let ort = |source| RuntimeError::Ort { model: name.into(), source };
        let builder = runtime
            .session_builder(name, Kind::PLAIN)?
            .with_config_entry("session.model_external_initializers_file_folder_path", folder.to_string_lossy())
            .map_err(|e| ort(e.into()))?;
        let mut builder = builder.with_optimized_model_path(path).map_err(|e| ort(e.into()))?;
        builder.commit_from_memory(model).map(|_| ()).map_err(ort)
    }

    /// The shape of an input as the graph states it, -1 where it is open; empty where there is no such input.
    pub fn input_shape(&self, name: &str) -> Vec<i64> {
        let inner = match &self.inner {
            Inner::Ort(inner) => inner,
            Inner::OpenVino(compiled) => return compiled.input_shape(name),
        };
        let input = inner.inputs().iter().find(|input| input.name() == name);
        input.and_then(|input| input.dtype().tensor_shape()).map_or_else(Vec::new, |shape| shape.to_vec())
    }

    /// Runs with every input fed by name.
    pub fn run(&mut self, feeds: &[(&str, Feed<'_>)]) -> Result<Outputs<'_>, RuntimeError> {
        let session = match &mut self.inner {
            Inner::Ort(inner) => inner,
            Inner::OpenVino(compiled) => {
                let values = Values::Copied(run_copying(&self.name, compiled, feeds)?);
                return Ok(Outputs { name: &self.name, inner: values });
            }
        };
        let ort = |source| RuntimeError::Ort { model: self.name.clone(), source };
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(feeds.len());
        for (input, feed) in feeds {
            let value = match *feed {
                Feed::F32(data, shape) => view(data, shape).map_err(ort)?,
                Feed::I64(data, shape) => view(data, shape).map_err(ort)?,
            };
            inputs.push((input, value));
        }
        let inner = Values::Ort(session.run(inputs).map_err(ort)?);
        Ok(Outputs { name: &self.name, inner })
    }

    /// Runs with every input and every named output where the caller has them, on the host or on the device. An input and an output may be the
    /// same memory where the operator allows that (a key/value cache updated in place). What the device has left to do is done on return.
    pub fn run_in_place(&self, inputs: &[InPlace<'_>], outputs: &mut [InPlace<'_>]) -> Result<(), RuntimeError> {
        // SAFETY: no options are as good as any.
        unsafe { self.run_with(std::ptr::null(), inputs, outputs) }
    }

    /// The same without recording it, of a session that records.
    pub fn run_unrecorded(&self, inputs: &[InPlace<'_>], outputs: &mut [InPlace<'_>]) -> Result<(), RuntimeError> {
        let ort = |source| RuntimeError::Ort { model: self.name.clone(), source };
        let mut options = ort::session::RunOptions::new().map_err(ort)?;
        options.set("gpu_graph_id", "-1").map_err(ort)?;
        // SAFETY: the options live for the call.
        unsafe { self.run_with(options.ptr(), inputs, outputs) }
    }

    /// # Safety
    /// `options` are null or alive.
    unsafe fn run_with(
        &self,
        options: *const ort::sys::OrtRunOptions,
        inputs: &[InPlace<'_>],
        outputs: &mut [InPlace<'_>],
    ) -> Result<(), RuntimeError> {
        let session = match &self.inner {
            Inner::Ort(inner) => inner,
            Inner::OpenVino(compiled) => {
                let inputs: Vec<_> = inputs.iter().map(InPlace::place).collect();
                let outputs: Vec<_> = outputs.iter().map(InPlace::place).collect();
                // SAFETY: tensors are over memory that is borrowed for as long as they live.
                let ran = unsafe { compiled.run(&inputs, &outputs) };
                return ran.map_err(|message| RuntimeError::OpenVino { model: self.name.clone(), message });
            }
        };
        let input_names: Vec<_> = inputs.iter().map(|i| i.name.as_ptr()).collect();
        let input_values: Vec<_> = inputs.iter().map(|i| i.tensor.ptr()).collect();
        let output_names: Vec<_> = outputs.iter().map(|o| o.name.as_ptr()).collect();
        let mut output_values: Vec<_> = outputs.iter_mut().map(|o| o.tensor.ptr().cast_mut()).collect();
        // SAFETY: names are NUL-terminated and values alive for the call; the arrays have the stated lengths; outputs that are not null
        // are written where they are and stay owned by the caller; a session may run several times at once.
        let status = unsafe {
            (ort::api().Run)(
                session.ptr().cast_mut(),
                options,
                input_names.as_ptr(),
                input_values.as_ptr(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                output_values.as_mut_ptr(),
            )
        };
        // SAFETY: the status comes from the call above and is released there.
        unsafe { ort::Error::result_from_status(status) }.map_err(|source| RuntimeError::Ort { model: self.name.clone(), source })
    }
}

fn view<'a, T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
    data: &'a [T],
    shape: &[i64],
) -> ort::Result<SessionInputValue<'a>> {
    Ok(TensorRef::from_array_view((shape.to_vec(), data))?.into())
}

impl Outputs<'_> {
    /// A float32 output by name.
    pub fn f32(&self, output: &str) -> Result<&[f32], RuntimeError> {
        let missing = || RuntimeError::Model { model: self.name.into(), message: format!("there is no output {output}") };
        let inner = match &self.inner {
            Values::Ort(inner) => inner,
            Values::Copied(values) => {
                let found = values.iter().find(|(name, _)| name == output);
                return found.map(|(_, values)| values.as_slice()).ok_or_else(missing);
            }
        };
        let value = inner.get(output).ok_or_else(missing)?;
        let (_, data) =
            value.try_extract_tensor::<f32>().map_err(|source| RuntimeError::Ort { model: self.name.into(), source })?;
        Ok(data)
    }

    /// An int64 output by name.
    #[cfg(test)]
    pub fn i64(&self, output: &str) -> Result<&[i64], RuntimeError> {
        let missing = || RuntimeError::Model { model: self.name.into(), message: format!("there is no output {output}") };
        let Values::Ort(inner) = &self.inner else { return Err(missing()) };
        let value = inner.get(output).ok_or_else(missing)?;
        let (_, data) =
            value.try_extract_tensor::<i64>().map_err(|source| RuntimeError::Ort { model: self.name.into(), source })?;
        Ok(data)
    }
}

/// Runs with every input fed by name; the float32 outputs.
fn run_copying(model: &str, compiled: &Compiled, feeds: &[(&str, Feed<'_>)]) -> Result<Vec<(String, Vec<f32>)>, RuntimeError> {
    let failed = |message| RuntimeError::OpenVino { model: model.into(), message };
    let names = feeds.iter().map(|(name, _)| openvino::c_text(*name)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let places = names.iter().zip(feeds).map(|(name, (input, feed))| {
        let (data, length, dtype, shape) = match *feed {
            Feed::F32(data, shape) => (data.as_ptr().cast_mut().cast(), data.len(), DType::F32, shape),
            Feed::I64(data, shape) => (data.as_ptr().cast_mut().cast(), data.len(), DType::I64, shape),
        };
        check(input, length, shape)?;
        Ok(openvino::Place { name, data, dtype, shape })
    });
    let places = places.collect::<Result<Vec<_>, RuntimeError>>()?;
    // SAFETY: the feeds are borrowed through the call, as long as their shapes say, and inputs are only read.
    unsafe { compiled.run_to_vectors(&places) }.map_err(failed)
}
