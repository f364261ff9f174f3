//! Memory that the tensors of several runs lie in: on a card, or pinned on the host so that a card reads and writes it by itself. Where the CPU
//! computes, both are the host's own.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use bytemuck::Pod;
use libloading::os::unix::{Library, RTLD_NOW};

use super::error::LESS_MEMORY;
use super::tensor::InPlace;
use super::{Device, Runtime, RuntimeError};
use crate::onnx::DType;

/// As cards' own: kernels read 16 bytes at once and more.
const ALIGNMENT: usize = 256;

/// Where a block lies, with the card's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Host,
    Pinned(i32),
    Card(i32),
}

/// A piece of memory, zeros at first, that is given back with its last tensor.
pub(super) struct Block {
    data: NonNull<u8>,
    bytes: usize,
    place: Place,
}

// SAFETY: the block owns its memory; who may read and write it when is settled by `DeviceMemory` and `HostMemory`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(place: Place, bytes: usize, what: &str) -> Result<Self, RuntimeError> {
        let bytes = bytes.max(1);
        let data = match place {
            Place::Host => {
                let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| full(what, bytes, "no such size"))?;
                // SAFETY: the size is not zero.
                NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| full(what, bytes, "no memory"))?
            }
            Place::Pinned(card) => cudart()?.take(card, bytes, what, cudart()?.malloc_host)?,
            Place::Card(card) => {
                let cudart = cudart()?;
                let data = cudart.take(card, bytes, what, cudart.malloc)?;
                let block = Self { data, bytes, place };
                // SAFETY: the block was just taken.
                cudart.check(what, unsafe { (cudart.memset)(data.as_ptr().cast(), 0, bytes) })?;
                cudart.settle(what)?;
                return Ok(block);
            }
        };
        if let Place::Pinned(_) = place {
            // SAFETY: the block was just taken, and is the host's to write.
            unsafe { data.as_ptr().write_bytes(0, bytes) };
        }
        Ok(Self { data, bytes, place })
    }

    fn check(&self, at: usize, bytes: usize) -> Result<(), RuntimeError> {
        let message = || format!("{bytes} bytes at {at} of a memory of {}", self.bytes);
        let fits = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if fits { Ok(()) } else { Err(RuntimeError::Model { model: "memory".into(), message: message() }) }
    }

    /// A tensor over a part of a block, which lives as long as the tensor does.
    fn tensor(self: &Arc<Self>, name: &str, at: usize, dtype: DType, shape: &[i64]) -> Result<InPlace<'static>, RuntimeError> {
        let elements = shape.iter().product::<i64>().max(0) as usize;
        self.check(at, elements * dtype.size())?;
        // SAFETY: the part lies within the block, which the tensor keeps.
        unsafe { InPlace::over(name, self.data.as_ptr().add(at).cast(), dtype, shape, self.place, Some(self.clone())) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let data = self.data.as_ptr();
        match self.place {
            // SAFETY: taken with this layout.
            Place::Host => unsafe { dealloc(data, Layout::from_size_align_unchecked(self.bytes, ALIGNMENT)) },
            Place::Pinned(_) | Place::Card(_) => {
                let Ok(cudart) = cudart() else { return };
                let free = if matches!(self.place, Place::Card(_)) { cudart.free } else { cudart.free_host };
                // SAFETY: taken by the function that belongs to it; nothing refers to it any more.
                unsafe { free(data.cast()) };
            }
        }
    }
}

/// Memory where the device computes; the host reaches it by copies alone.
pub struct DeviceMemory(Arc<Block>);

/// Memory of the host, which the device reads and writes by itself.
pub struct HostMemory(Arc<Block>);

impl DeviceMemory {
    /// Zeros. `what` is named where they do not fit.
    pub fn new(runtime: &Runtime, bytes: usize, what: &str) -> Result<Self, RuntimeError> {
        let place = card(runtime).map_or(Place::Host, Place::Card);
        Ok(Self(Arc::new(Block::new(place, bytes, what)?)))
    }

    /// A tensor from byte `at` on. Several may cover the same memory, as inputs and outputs of operators that work in place do.
    pub fn tensor(&self, name: &str, at: usize, dtype: DType, shape: &[i64]) -> Result<InPlace<'static>, RuntimeError> {
        self.0.tensor(name, at, dtype, shape)
    }

    /// Copies to byte `at`, and returns when it is there.
    pub fn write(&mut self, at: usize, from: &[u8]) -> Result<(), RuntimeError> {
        self.0.check(at, from.len())?;
        // SAFETY: the part lies within the block; no run is under way, since runs end before they return.
        unsafe { self.copy(self.0.data.as_ptr().add(at), from.as_ptr(), from.len(), Cudart::TO_CARD) }
    }

    /// Copies from byte `at`.
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), RuntimeError> {
        self.0.check(at, into.len())?;
        // SAFETY: as above.
        unsafe { self.copy(into.as_mut_ptr(), self.0.data.as_ptr().add(at), into.len(), Cudart::TO_HOST) }
    }

    /// # Safety
    /// Both sides have so many bytes, one of them in this block.
    unsafe fn copy(&self, to: *mut u8, from: *const u8, bytes: usize, kind: c_int) -> Result<(), RuntimeError> {
        let Place::Card(card) = self.0.place else {
            // SAFETY: promised by the caller; a block and a slice do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
            return Ok(());
        };
        let cudart = cudart()?;
        cudart.choose(card)?;
        if kind == Cudart::TO_HOST {
            // ONNX Runtime's stream is none that a copy waits for.
            cudart.settle("a copy")?;
        }
        // SAFETY: promised by the caller.
        cudart.check("a copy", unsafe { (cudart.memcpy)(to.cast(), from.cast(), bytes, kind) })?;
        // Of memory that is not pinned a copy may still be on its way, and ONNX Runtime's stream would not wait for it.
        if kind == Cudart::TO_CARD { cudart.settle("a copy") } else { Ok(()) }
    }
}

impl HostMemory {
    /// Zeros. `what` is named where they do not fit.
    pub fn new(runtime: &Runtime, bytes: usize, what: &str) -> Result<Self, RuntimeError> {
        let place = card(runtime).map_or(Place::Host, Place::Pinned);
        Ok(Self(Arc::new(Block::new(place, bytes, what)?)))
    }

    /// See [`DeviceMemory::tensor`].
    pub fn tensor(&self, name: &str, at: usize, dtype: DType, shape: &[i64]) -> Result<InPlace<'static>, RuntimeError> {
        self.0.tensor(name, at, dtype, shape)
    }

    /// How much there is.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// As numbers, from the first byte on.
    pub fn numbers<T: Pod>(&self) -> &[T] {
        // SAFETY: the block is aligned for any number, holds so many, and was initialized; runs, which may write here, have ended.
        unsafe { std::slice::from_raw_parts(self.0.data.as_ptr().cast(), self.0.bytes / size_of::<T>()) }
    }

    /// As numbers, from the first byte on.
    pub fn numbers_mut<T: Pod>(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.data.as_ptr().cast(), self.0.bytes / size_of::<T>()) }
    }
}

/// The number of the card that a runtime computes on.
fn card(runtime: &Runtime) -> Option<i32> {
    match runtime.device() {
        Device::Cuda(number) => i32::try_from(number).ok(),
        _ => None,
    }
}

fn full(what: &str, bytes: usize, why: &str) -> RuntimeError {
    let message = format!(
        "there is not enough memory on the device for {what} ({:.1} MiB; {why}): {LESS_MEMORY}",
        bytes as f64 / f64::from(1 << 20)
    );
    RuntimeError::Model { model: "memory".into(), message }
}

/// What of CUDA's runtime is called here. ONNX Runtime's provider has the same library open.
struct Cudart {
    set_device: unsafe extern "C" fn(c_int) -> c_int,
    malloc: Take,
    malloc_host: Take,
    free: unsafe extern "C" fn(*mut c_void) -> c_int,
    free_host: unsafe extern "C" fn(*mut c_void) -> c_int,
    memcpy: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int) -> c_int,
    memset: unsafe extern "C" fn(*mut c_void, c_int, usize) -> c_int,
    synchronize: unsafe extern "C" fn() -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

type Take = unsafe extern "C" fn(*mut *mut c_void, usize) -> c_int;

/// Found once; it is open before a session is made (`nvidia.rs`).
fn cudart() -> Result<&'static Cudart, RuntimeError> {
    static FOUND: OnceLock<Result<Cudart, String>> = OnceLock::new();
    let message = |message: &String| RuntimeError::Model { model: "CUDA's runtime".into(), message: message.clone() };
    FOUND.get_or_init(Cudart::find).as_ref().map_err(message)
}

impl Cudart {
    const TO_CARD: c_int = 1;
    const TO_HOST: c_int = 2;
    const NO_MEMORY: c_int = 2;

    fn find() -> Result<Self, String> {
        let mut said = String::new();
        for name in ["libcudart.so.13", "libcudart.so.12"] {
            // SAFETY: CUDA's runtime only sets itself up when it is opened, and is open already where all is well.
            match unsafe { Library::open(Some(name), RTLD_NOW) } {
                Ok(library) => return Self::of(library).map_err(|error| error.to_string()),
                Err(error) => said = error.to_string(),
            }
        }
        Err(said)
    }

    fn of(library: Library) -> Result<Self, libloading::Error> {
        // SAFETY: the types are those of CUDA's documentation, the same in every release; the library stays open.
        let found = unsafe {
            Self {
                set_device: *library.get(b"cudaSetDevice")?,
                malloc: *library.get(b"cudaMalloc")?,
                malloc_host: *library.get(b"cudaMallocHost")?,
                free: *library.get(b"cudaFree")?,
                free_host: *library.get(b"cudaFreeHost")?,
                memcpy: *library.get(b"cudaMemcpy")?,
                memset: *library.get(b"cudaMemset")?,
                synchronize: *library.get(b"cudaDeviceSynchronize")?,
                error_string: *library.get(b"cudaGetErrorString")?,
            }
        };
        std::mem::forget(library);
        Ok(found)
    }

    fn choose(&self, card: i32) -> Result<(), RuntimeError> {
        // SAFETY: a plain call.
        self.check("the choice of a card", unsafe { (self.set_device)(card) })
    }

    fn take(&self, card: i32, bytes: usize, what: &str, take: Take) -> Result<NonNull<u8>, RuntimeError> {
        self.choose(card)?;
        let mut data: *mut c_void = std::ptr::null_mut();
        // SAFETY: the pointer is written where the call succeeds.
        match unsafe { take(&mut data, bytes) } {
            Self::NO_MEMORY => Err(full(what, bytes, "CUDA is out of memory")),
            status => {
                self.check(what, status)?;
                NonNull::new(data.cast()).ok_or_else(|| full(what, bytes, "CUDA gave none"))
            }
        }
    }

    fn settle(&self, what: &str) -> Result<(), RuntimeError> {
        // SAFETY: a plain call.
        self.check(what, unsafe { (self.synchronize)() })
    }

    fn check(&self, what: &str, status: c_int) -> Result<(), RuntimeError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: a static NUL-terminated text for any number.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy().into_owned();
        Err(RuntimeError::Model { model: "CUDA's runtime".into(), message: format!("{what}: {text} ({status})") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Precision;

    #[test]
    fn parts_of_a_memory_are_written_read_and_bounded() {
        let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(1)).unwrap();
        let mut memory = DeviceMemory::new(&runtime, 16, "a test").unwrap();
        memory.write(4, &[1, 2, 3, 4]).unwrap();
        let mut found = [9; 8];
        memory.read(2, &mut found).unwrap();
        assert_eq!(found, [0, 0, 1, 2, 3, 4, 0, 0]);
        assert!(memory.write(13, &[0; 4]).is_err() && memory.read(17, &mut []).is_err());
        assert!(memory.tensor("x", 8, DType::F32, &[2]).is_ok() && memory.tensor("x", 8, DType::F32, &[3]).is_err());
        let mut host = HostMemory::new(&runtime, 10, "a test").unwrap();
        host.numbers_mut::<u32>()[1] = 7;
        assert_eq!((host.numbers::<u32>(), host.numbers::<u8>().len()), (&[0, 7][..], 10));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let said = full("the caches of 8 rows", 3 << 20, "no memory").to_string();
        assert!(said.contains("not enough memory on the device for the caches of 8 rows (3.0 MiB"), "{said}");
    }
}
