//! OpenVINO by its own C API: it compiles a graph as a whole for this processor and runs it. ONNX Runtime's provider for OpenVINO is not used:
//! it takes longer to start, computes slower, and cannot read what it compiled before.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::Mutex;

use openvino_sys as ov;

use super::error::OPENVINO;
use super::{RuntimeError, complete};

mod compiled;
mod graph;
mod kept;

pub(super) use compiled::{Compiled, Hints, Place};

/// The library that was loaded, which is whole and has all that is called here.
#[derive(Debug, Clone)]
pub struct OpenVino {
    pub(super) library: PathBuf,
    /// Such as `2026.4.1-22982-e213a147257-releases/2026/4`.
    pub(super) version: String,
}

/// What a process loads once.
struct Loaded {
    openvino: OpenVino,
    core: Core,
}

/// OpenVINO's own state: its plugins. Never freed, since threads may still be in it when the process ends.
#[derive(Clone, Copy)]
struct Core(*mut ov::ov_core_t);

// SAFETY: OpenVINO's core may be used by several threads at once.
unsafe impl Send for Core {}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

impl OpenVino {
    /// Loads the library, once in a process, and asks it for the CPU.
    ///
    /// # Errors
    /// A library that is cut off, too old, or another one than this process uses.
    pub fn load(library: &Path) -> Result<Self, RuntimeError> {
        let unusable = |message: String| RuntimeError::LibraryUnusable { library: OPENVINO, path: library.into(), message };
        let mut loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(loaded) = loaded.as_ref() {
            let in_use = &loaded.openvino.library;
            return match in_use == library {
                true => Ok(loaded.openvino.clone()),
                false => Err(unusable(format!("this process already uses {}", in_use.display()))),
            };
        }
        complete::check(library).map_err(unusable)?;
        has_all(library).map_err(unusable)?;
        ov::library::load_from(library).map_err(unusable)?;
        let mut core = null_mut();
        // SAFETY: the library is loaded; the pointer is written where that succeeds.
        checked(unsafe { ov::ov_core_create(&raw mut core) }).map_err(unusable)?;
        let core = Core(core);
        core.name_of_cpu().map_err(unusable)?;
        let openvino = Self { library: library.into(), version: version().map_err(unusable)? };
        *loaded = Some(Loaded { openvino: openvino.clone(), core });
        Ok(openvino)
    }

    fn core(&self) -> Core {
        let loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
        // Whoever has an `OpenVino` loaded it.
        loaded.as_ref().map_or(Core(null_mut()), |loaded| loaded.core)
    }
}

impl Core {
    /// The processor's name as the CPU plugin says it, which is loaded for that.
    fn name_of_cpu(self) -> Result<String, String> {
        let mut name = null_mut();
        // SAFETY: the core is alive; the texts end in NUL; the pointer is written where that succeeds, and is ours to free then.
        unsafe {
            checked(ov::ov_core_get_property(self.0, c"CPU".as_ptr(), c"FULL_DEVICE_NAME".as_ptr(), &raw mut name))?;
            let text = CStr::from_ptr(name).to_string_lossy().into_owned();
            ov::ov_free(name);
            Ok(text)
        }
    }
}

/// The functions that came last.
fn has_all(library: &Path) -> Result<(), String> {
    // SAFETY: the library is OpenVINO's; what runs when it is loaded runs later anyway. The symbol is only looked for.
    unsafe {
        let opened = libloading::Library::new(library).map_err(|e| e.to_string())?;
        let found = opened.get::<unsafe extern "C" fn()>(b"ov_core_compile_model_props").is_ok();
        if found { Ok(()) } else { Err("it is too old: OpenVINO 2026.4 or a newer one is needed".into()) }
    }
}

fn version() -> Result<String, String> {
    let mut version = ov::ov_version_t { buildNumber: null(), description: null() };
    // SAFETY: the version is written where that succeeds, its texts end in NUL, and are freed after they were copied.
    unsafe {
        checked(ov::ov_get_openvino_version(&raw mut version))?;
        let text = CStr::from_ptr(version.buildNumber).to_string_lossy().into_owned();
        ov::ov_version_free(&raw mut version);
        Ok(text)
    }
}

/// OpenVINO's own words where a call failed.
fn checked(status: ov::ov_status_e) -> Result<(), String> {
    if status == ov::ov_status_e::OK {
        return Ok(());
    }
    // SAFETY: the last message of this thread, NUL-terminated or null, ours to free.
    let message = unsafe {
        let message = ov::ov_get_last_err_msg();
        let text = text(message);
        if !message.is_null() {
            ov::ov_free(message);
        }
        text
    };
    Err(if message.trim().is_empty() { format!("{status:?}") } else { message.trim().into() })
}

/// # Safety
/// `pointer` is null or to a text that ends in NUL.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// A text as C takes it.
pub(super) fn c_text(text: impl Into<Vec<u8>>) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a NUL in a name".into())
}
