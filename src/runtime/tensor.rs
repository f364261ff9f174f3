//! Tensors that a run reads and writes where they lie.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValueRefMut, Shape, TensorRefMut};

use super::memory::{Block, Place};
use super::{RuntimeError, openvino};
use crate::onnx::DType;

/// A tensor that a run reads or writes where it lies.
pub struct InPlace<'a> {
    pub(super) name: CString,
    pub(super) tensor: DynValueRefMut<'a>,
    data: Address,
    dtype: DType,
    shape: Vec<i64>,
    /// What it lies in, where that is to live as long.
    _memory: Option<Arc<Block>>,
}

/// Where a tensor lies.
struct Address(*mut c_void);

// SAFETY: what lies there is borrowed or kept by the tensor, and may be reached from any thread.
unsafe impl Send for Address {}

impl<'a> InPlace<'a> {
    /// float32 values, updated in place.
    pub fn f32(name: &str, data: &'a mut [f32], shape: &[i64]) -> Result<Self, RuntimeError> {
        check(name, data.len(), shape)?;
        // SAFETY: the pointer is to as many elements as the shape says, and borrowed for 'a.
        unsafe { Self::over(name, data.as_mut_ptr().cast(), DType::F32, shape, Place::Host, None) }
    }

    /// int64 values, updated in place.
    pub fn i64(name: &str, data: &'a mut [i64], shape: &[i64]) -> Result<Self, RuntimeError> {
        check(name, data.len(), shape)?;
        // SAFETY: as above.
        unsafe { Self::over(name, data.as_mut_ptr().cast(), DType::I64, shape, Place::Host, None) }
    }

    /// int32 values, updated in place.
    pub fn i32(name: &str, data: &'a mut [i32], shape: &[i64]) -> Result<Self, RuntimeError> {
        check(name, data.len(), shape)?;
        // SAFETY: as above.
        unsafe { Self::over(name, data.as_mut_ptr().cast(), DType::I32, shape, Place::Host, None) }
    }

    /// A tensor over memory that another [`InPlace`] of the same run may cover too.
    ///
    /// # Safety
    /// `data` points to as many float32 numbers as `shape` says, alive and untouched by others for 'a.
    pub unsafe fn raw_f32(name: &str, data: *mut f32, shape: &[i64]) -> Result<Self, RuntimeError> {
        // SAFETY: promised by the caller.
        unsafe { Self::over(name, data.cast(), DType::F32, shape, Place::Host, None) }
    }

    /// # Safety
    /// `data` points to as many elements as `shape` says at that place, alive for 'a, or as long as `memory` is.
    pub(super) unsafe fn over(
        name: &str,
        data: *mut std::ffi::c_void,
        dtype: DType,
        shape: &[i64],
        place: Place,
        memory: Option<Arc<Block>>,
    ) -> Result<Self, RuntimeError> {
        // SAFETY: promised by the caller.
        let tensor = unsafe { raw(data, dtype, shape, place) };
        let tensor = tensor.map_err(|source| RuntimeError::Ort { model: name.into(), source })?;
        let name =
            CString::new(name).map_err(|_| RuntimeError::Model { model: name.into(), message: "a NUL in a name".into() })?;
        Ok(Self { name, tensor, data: Address(data), dtype, shape: shape.into(), _memory: memory })
    }

    /// The same for OpenVINO.
    pub(super) fn place(&self) -> openvino::Place<'_> {
        openvino::Place { name: &self.name, data: self.data.0, dtype: self.dtype, shape: &self.shape }
    }
}

/// Whether there are as many elements as the shape says.
pub(super) fn check(name: &str, length: usize, shape: &[i64]) -> Result<(), RuntimeError> {
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
/// `data` points to as many elements as `shape` says at that place, alive for 'a.
unsafe fn raw<'a>(data: *mut std::ffi::c_void, dtype: DType, shape: &[i64], place: Place) -> ort::Result<DynValueRefMut<'a>> {
    let (device, number, kind) = match place {
        // Pinned memory is the host's to ONNX Runtime, which copies an output that is called pinned onto itself; CUDA knows it by its address.
        Place::Host | Place::Pinned(_) => (AllocationDevice::CPU, 0, MemoryType::Default),
        Place::Card(card) => (AllocationDevice::CUDA, card, MemoryType::Default),
    };
    let memory = MemoryInfo::new(device, number, AllocatorType::Device, kind)?;
    let shape = Shape::new(shape.iter().copied());
    // SAFETY: promised by the caller.
    unsafe {
        Ok(match dtype {
            DType::F32 => TensorRefMut::<f32>::from_raw(memory, data, shape)?.into_dyn(),
            DType::F64 => TensorRefMut::<f64>::from_raw(memory, data, shape)?.into_dyn(),
            DType::F16 => TensorRefMut::<half::f16>::from_raw(memory, data, shape)?.into_dyn(),
            DType::BF16 => TensorRefMut::<half::bf16>::from_raw(memory, data, shape)?.into_dyn(),
            DType::I64 => TensorRefMut::<i64>::from_raw(memory, data, shape)?.into_dyn(),
            DType::I32 => TensorRefMut::<i32>::from_raw(memory, data, shape)?.into_dyn(),
            DType::I16 => TensorRefMut::<i16>::from_raw(memory, data, shape)?.into_dyn(),
            DType::I8 => TensorRefMut::<i8>::from_raw(memory, data, shape)?.into_dyn(),
            DType::U8 => TensorRefMut::<u8>::from_raw(memory, data, shape)?.into_dyn(),
            DType::Bool => TensorRefMut::<bool>::from_raw(memory, data, shape)?.into_dyn(),
        })
    }
}
