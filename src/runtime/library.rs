//! Where ONNX Runtime's library is found, and the one environment a process has.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

use super::{Device, RuntimeError};

const FILE_NAME: &str = "libonnxruntime.so";

/// The library for a device, in this order: `ORT_DYLIB_PATH`; `CLIPCAP_RUNTIME/KIND/`; `runtime/KIND/` beside the executable or up to three
/// folders above it (a checkout's `target/release`, and `target/release/deps` of its tests); the user's data folder; the system's. Never the working directory.
pub fn find(device: Device) -> Result<PathBuf, RuntimeError> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let kinds: &[&str] = match device {
        Device::Auto => &["cuda", "cpu"],
        Device::Cpu => &["cpu", "openvino", "cuda"],
        Device::OpenVino => &["openvino"],
        Device::Cuda(_) => &["cuda"],
    };
    let mut roots: Vec<PathBuf> = vec![];
    roots.extend(std::env::var_os("CLIPCAP_RUNTIME").map(PathBuf::from).filter(|p| p.is_absolute()));
    if let Ok(executable) = std::env::current_exe() {
        roots.extend(executable.ancestors().skip(1).take(4).map(|folder| folder.join("runtime")));
    }
    // Unit tests run from wherever the target folder is.
    #[cfg(test)]
    roots.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime"));
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let data = data.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
    roots.extend(data.map(|data| data.join("clipcap/runtime")));
    let mut tried = vec!["ORT_DYLIB_PATH".to_string()];
    for kind in kinds.iter().filter(|kind| **kind != "cuda" || device != Device::Auto || cuda_driver_is_there()) {
        for root in &roots {
            let path = root.join(kind).join(FILE_NAME);
            if path.is_file() {
                return Ok(path);
            }
            tried.push(path.display().to_string());
        }
    }
    if matches!(device, Device::Auto | Device::Cpu) {
        for folder in ["/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"] {
            let path = Path::new(folder).join(FILE_NAME);
            if path.is_file() {
                return Ok(path);
            }
            tried.push(path.display().to_string());
        }
    }
    Err(RuntimeError::LibraryNotFound { device, tried })
}

/// An NVIDIA driver leaves this file wherever a device can be used.
fn cuda_driver_is_there() -> bool {
    Path::new("/proc/driver/nvidia/version").exists()
}

/// The library a process has loaded; there can be only one.
struct Loaded {
    path: PathBuf,
    version: String,
    environment: Environment,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// Loads the library once and hands out the environment and the library's version.
pub fn load(path: &Path) -> Result<(Environment, String), RuntimeError> {
    let unusable = |message: String| RuntimeError::LibraryUnusable { path: path.into(), message };
    let mut loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(loaded) = loaded.as_ref() {
        return if loaded.path == path {
            Ok((loaded.environment.clone(), loaded.version.clone()))
        } else {
            Err(unusable(format!("this process already uses {}", loaded.path.display())))
        };
    }
    let builder = ort::environment::init_from(path).map_err(|e| unusable(e.to_string()))?;
    let environment = builder.with_name("clipcap").with_telemetry(false).build().map_err(|e| unusable(e.to_string()))?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    let version = version(path).map_err(|e| unusable(e.to_string()))?;
    *loaded = Some(Loaded { path: path.into(), version: version.clone(), environment: environment.clone() });
    Ok((environment, version))
}

/// The version of a library that is loaded already, from its own base API.
fn version(path: &Path) -> Result<String, libloading::Error> {
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: the library is ONNX Runtime's and loaded, so this only finds it again; the symbol's type is its documented one, and the
    // version is a static NUL-terminated string.
    unsafe {
        let library = libloading::Library::new(path)?;
        let base = library.get::<GetApiBase>(b"OrtGetApiBase")?();
        Ok(std::ffi::CStr::from_ptr(((*base).GetVersionString)()).to_string_lossy().into_owned())
    }
}
