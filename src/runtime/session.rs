//! A model ready to run on one device, fed by name.

use std::ffi::CString;
use std::path::Path;

use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::session::{SessionInputValue, SessionOutputs};
use ort::value::{PrimitiveTensorElementType, Shape, TensorRef, TensorRefMut};

use super::placement::RECORD;
use super::{Placement, Runtime, RuntimeError};

/// A session and its name in errors.
pub struct Session {
    pub(super) name: String,
    pub(super) inner: ort::session::Session,
}

/// What goes into an input: numbers and their shape, borrowed.
#[derive(Debug, Clone, Copy)]
pub enum Feed<'a> {
    F32(&'a [f32], &'a [i64]),
    I64(&'a [i64], &'a [i64]),
    I32(&'a [i32], &'a [i64]),
}

/// What came out of a run.
pub struct Outputs<'a> {
    name: &'a str,
    inner: SessionOutputs<'a>,
}

/// A tensor that a run reads or writes where it lies.
pub struct InPlace<'a> {
    name: CString,
    tensor: Erased<'a>,
}

enum Erased<'a> {
    F32(TensorRefMut<'a, f32>),
    I64(TensorRefMut<'a, i64>),
    I32(TensorRefMut<'a, i32>),
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
        Self::with_streams(runtime, name, model, folder, dimensions, 1)
    }

    /// A session for `streams` runs at a time, among which OpenVINO shares the threads out.
    pub fn with_streams(
        runtime: &Runtime,
        name: &str,
        model: &[u8],
        folder: &Path,
        dimensions: &[(&str, i64)],
        streams: usize,
    ) -> Result<Self, RuntimeError> {
        let ort = |source| RuntimeError::Ort { model: name.into(), source };
        let mut builder = runtime.session_builder(name, streams)?;
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
            let placement = Placement::read(name, provider, &inner).map_err(ort)?;
            runtime.placements.lock().unwrap_or_else(|e| e.into_inner()).push(placement);
        }
        Ok(Self { name: name.into(), inner })
    }

    /// Writes a graph to `path` as ONNX Runtime computes it after its optimizations.
    pub fn write_optimized(runtime: &Runtime, name: &str, model: &[u8], folder: &Path, path: &Path) -> Result<(), RuntimeError> {
        let ort = |source| RuntimeError::Ort { model: name.into(), source };
        let builder = runtime
            .session_builder(name, 1)?
            .with_config_entry("session.model_external_initializers_file_folder_path", folder.to_string_lossy())
            .map_err(|e| ort(e.into()))?;
        let mut builder = builder.with_optimized_model_path(path).map_err(|e| ort(e.into()))?;
        builder.commit_from_memory(model).map(|_| ()).map_err(ort)
    }

    /// The inputs' names, in order.
    pub fn input_names(&self) -> Vec<&str> {
        self.inner.inputs().iter().map(|i| i.name()).collect()
    }

    /// The outputs' names, in order.
    pub fn output_names(&self) -> Vec<&str> {
        self.inner.outputs().iter().map(|o| o.name()).collect()
    }

    /// The shape of an input as the graph states it, -1 where it is open; empty where there is no such input.
    pub fn input_shape(&self, name: &str) -> Vec<i64> {
        let input = self.inner.inputs().iter().find(|input| input.name() == name);
        input.and_then(|input| input.dtype().tensor_shape()).map_or_else(Vec::new, |shape| shape.to_vec())
    }

    /// Runs with every input fed by name.
    pub fn run(&mut self, feeds: &[(&str, Feed<'_>)]) -> Result<Outputs<'_>, RuntimeError> {
        let name = self.name.clone();
        let ort = |source| RuntimeError::Ort { model: name.clone(), source };
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(feeds.len());
        for (input, feed) in feeds {
            let value = match *feed {
                Feed::F32(data, shape) => view(data, shape).map_err(ort)?,
                Feed::I64(data, shape) => view(data, shape).map_err(ort)?,
                Feed::I32(data, shape) => view(data, shape).map_err(ort)?,
            };
            inputs.push((input, value));
        }
        let inner = self.inner.run(inputs).map_err(ort)?;
        Ok(Outputs { name: &self.name, inner })
    }

    /// Runs with every input and every named output where the caller has them (CPU memory only). An input and an output may be the same
    /// memory where the operator allows that (a key/value cache updated in place).
    pub fn run_in_place(&self, inputs: &[InPlace<'_>], outputs: &mut [InPlace<'_>]) -> Result<(), RuntimeError> {
        let input_names: Vec<_> = inputs.iter().map(|i| i.name.as_ptr()).collect();
        let input_values: Vec<_> = inputs.iter().map(|i| i.tensor.ptr()).collect();
        let output_names: Vec<_> = outputs.iter().map(|o| o.name.as_ptr()).collect();
        let mut output_values: Vec<_> = outputs.iter_mut().map(|o| o.tensor.ptr().cast_mut()).collect();
        // SAFETY: names are NUL-terminated and values alive for the call; the arrays have the stated lengths; outputs that are not null
        // are written where they are and stay owned by the caller; a session may run several times at once.
        let status = unsafe {
            (ort::api().Run)(
                self.inner.ptr().cast_mut(),
                std::ptr::null(),
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
        let value = self.inner.get(output).ok_or_else(missing)?;
        let (_, data) =
            value.try_extract_tensor::<f32>().map_err(|source| RuntimeError::Ort { model: self.name.into(), source })?;
        Ok(data)
    }

    /// An int64 output by name.
    pub fn i64(&self, output: &str) -> Result<&[i64], RuntimeError> {
        let missing = || RuntimeError::Model { model: self.name.into(), message: format!("there is no output {output}") };
        let value = self.inner.get(output).ok_or_else(missing)?;
        let (_, data) =
            value.try_extract_tensor::<i64>().map_err(|source| RuntimeError::Ort { model: self.name.into(), source })?;
        Ok(data)
    }
}

impl<'a> InPlace<'a> {
    /// float32 values, updated in place.
    pub fn f32(name: &str, data: &'a mut [f32], shape: &[i64]) -> Result<Self, RuntimeError> {
        check(name, data.len(), shape)?;
        // SAFETY: the pointer is to as many elements as the shape says, and borrowed for 'a.
        unsafe { Self::raw_f32(name, data.as_mut_ptr(), shape) }
    }

    /// int64 values, updated in place.
    pub fn i64(name: &str, data: &'a mut [i64], shape: &[i64]) -> Result<Self, RuntimeError> {
        check(name, data.len(), shape)?;
        // SAFETY: as above.
        let tensor = unsafe { raw(data.as_mut_ptr(), shape) };
        Self::named(name, tensor.map(Erased::I64))
    }

    /// int32 values, updated in place.
    pub fn i32(name: &str, data: &'a mut [i32], shape: &[i64]) -> Result<Self, RuntimeError> {
        check(name, data.len(), shape)?;
        // SAFETY: as above.
        let tensor = unsafe { raw(data.as_mut_ptr(), shape) };
        Self::named(name, tensor.map(Erased::I32))
    }

    /// A tensor over memory that another [`InPlace`] of the same run may cover too.
    ///
    /// # Safety
    /// `data` points to as many float32 numbers as `shape` says, alive and untouched by others for 'a.
    pub unsafe fn raw_f32(name: &str, data: *mut f32, shape: &[i64]) -> Result<Self, RuntimeError> {
        // SAFETY: promised by the caller.
        let tensor = unsafe { raw(data, shape) };
        Self::named(name, tensor.map(Erased::F32))
    }

    fn named(name: &str, tensor: ort::Result<Erased<'a>>) -> Result<Self, RuntimeError> {
        let tensor = tensor.map_err(|source| RuntimeError::Ort { model: name.into(), source })?;
        let name =
            CString::new(name).map_err(|_| RuntimeError::Model { model: name.into(), message: "a NUL in a name".into() })?;
        Ok(Self { name, tensor })
    }
}

impl Erased<'_> {
    fn ptr(&self) -> *const ort::sys::OrtValue {
        match self {
            Self::F32(t) => t.ptr(),
            Self::I64(t) => t.ptr(),
            Self::I32(t) => t.ptr(),
        }
    }
}

fn check(name: &str, length: usize, shape: &[i64]) -> Result<(), RuntimeError> {
    if shape.iter().product::<i64>() == length as i64 {
        return Ok(());
    }
    Err(RuntimeError::Shape {
        model: "a run in place".into(),
        what: name.into(),
        found: vec![length as i64],
        wanted: shape.into(),
    })
}

/// # Safety
/// `data` points to as many elements as `shape` says, alive for 'a.
unsafe fn raw<'a, T: PrimitiveTensorElementType + std::fmt::Debug>(
    data: *mut T,
    shape: &[i64],
) -> ort::Result<TensorRefMut<'a, T>> {
    let memory = MemoryInfo::new(
        ort::memory::AllocationDevice::CPU,
        0,
        ort::memory::AllocatorType::Device,
        ort::memory::MemoryType::Default,
    )?;
    // SAFETY: promised by the caller; the memory is the CPU's.
    unsafe { TensorRefMut::from_raw(memory, data.cast(), Shape::new(shape.iter().copied())) }
}
