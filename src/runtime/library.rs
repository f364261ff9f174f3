//! Where the libraries of ONNX Runtime and OpenVINO are found, and the one environment a process has.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

use super::error::{ONNX_RUNTIME, OPENVINO};
use super::{Device, RuntimeError};
use crate::files::{name_of, paths_in};

const FILE_NAME: &str = "libonnxruntime.so";

/// OpenVINO's; its C API.
const OPENVINO_FILE_NAME: &str = "libopenvino_c.so";

/// ONNX Runtime's library for a device, in this order: `ORT_DYLIB_PATH`; `CLIPCAP_RUNTIME/KIND/`; `runtime/KIND/` beside the executable or up to
/// three folders above it (a checkout's `target/release`, and `target/release/deps` of its tests); the Python packages beside an executable
/// that pip installed; the user's data folder; the system's. Never the working directory.
///
/// # Errors
/// [`RuntimeError::LibraryNotFound`] with every place that was looked at.
pub fn find(device: Device) -> Result<PathBuf, RuntimeError> {
    if let Some(path) = chosen() {
        return Ok(path);
    }
    // Beside OpenVINO, the CPU's: models that OpenVINO does not compute are computed there.
    let kinds: &[&str] = match device {
        Device::Auto | Device::Cpu | Device::OpenVino => &["cpu", "cuda"],
        Device::Cuda(_) | Device::Cards(_) => &["cuda"],
    };
    let mut tried = vec!["ORT_DYLIB_PATH".to_string()];
    for kind in kinds {
        let in_package = |site: &Path| in_package(&site.join("onnxruntime/capi"), kind);
        if let Some(found) = first_of(kind, FILE_NAME, in_package, &mut tried) {
            return Ok(found);
        }
    }
    if !matches!(device, Device::Cuda(_) | Device::Cards(_)) {
        for folder in ["/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"] {
            let path = Path::new(folder).join(FILE_NAME);
            if path.is_file() {
                return Ok(path);
            }
            tried.push(path.display().to_string());
        }
    }
    Err(RuntimeError::LibraryNotFound { library: ONNX_RUNTIME, device, tried })
}

/// OpenVINO's library, in the same places, the system's excepted.
///
/// # Errors
/// [`RuntimeError::LibraryNotFound`] with every place that was looked at.
pub fn find_openvino() -> Result<PathBuf, RuntimeError> {
    let mut tried = vec![];
    let in_package = |site: &Path| {
        let folder = site.join("openvino/libs");
        Candidate { path: versioned(&folder, OPENVINO_FILE_NAME), usable: true }
    };
    let found = first_of("openvino", OPENVINO_FILE_NAME, in_package, &mut tried);
    found.ok_or(RuntimeError::LibraryNotFound { library: OPENVINO, device: Device::OpenVino, tried })
}

/// The first place that has the file, of the folders of this kind and what `in_package` makes of a Python's packages; the others are tried in
/// vain.
fn first_of(kind: &str, file: &str, in_package: impl Fn(&Path) -> Candidate, tried: &mut Vec<String>) -> Option<PathBuf> {
    let executable = std::env::current_exe().ok();
    let mut roots: Vec<PathBuf> = vec![];
    roots.extend(std::env::var_os("CLIPCAP_RUNTIME").map(PathBuf::from).filter(|p| p.is_absolute()));
    if let Some(executable) = &executable {
        roots.extend(executable.ancestors().skip(1).take(4).map(|folder| folder.join("runtime")));
    }
    // Unit tests run from wherever the target folder is.
    #[cfg(test)]
    roots.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime"));
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let data = data.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
    let data = data.map(|data| data.join("clipcap/runtime"));
    let packages = executable.as_deref().map_or_else(Vec::new, python_packages);
    let in_folder = |root: PathBuf| Candidate { path: root.join(kind).join(file), usable: true };
    let in_packages = packages.iter().map(|site| in_package(site)).filter(|c| c.path.parent().is_some_and(Path::is_dir));
    for candidate in roots.into_iter().map(in_folder).chain(in_packages).chain(data.into_iter().map(in_folder)) {
        if candidate.usable && candidate.path.is_file() {
            return Some(candidate.path);
        }
        tried.push(candidate.path.display().to_string());
    }
    None
}

fn chosen() -> Option<PathBuf> {
    std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Whether the user named a library, which may be of any build.
pub(super) fn is_chosen() -> bool {
    chosen().is_some()
}

/// A place where the library may lie.
struct Candidate {
    path: PathBuf,
    usable: bool,
}

/// The packages of the Python that pip installed the executable for: `ENV/bin/clipcap` looks at
/// `ENV/lib/python3.N/{site,dist}-packages`.
pub(super) fn python_packages(executable: &Path) -> Vec<PathBuf> {
    let Some(prefix) = executable.parent().filter(|bin| bin.ends_with("bin")).and_then(Path::parent) else { return vec![] };
    let mut found = vec![];
    for library in ["lib", "lib64"] {
        let folders = paths_in(&prefix.join(library)).unwrap_or_default();
        for python in folders.iter().filter(|path| name_of(path).starts_with("python3")) {
            found.extend(["site-packages", "dist-packages"].map(|packages| python.join(packages)));
        }
    }
    found.retain(|folder| folder.is_dir());
    found.sort();
    found
}

/// The library of a Python package. Both packages (`onnxruntime`, `onnxruntime-gpu`) unpack into the same folder and are told apart by the
/// providers beside it.
fn in_package(folder: &Path, kind: &str) -> Candidate {
    let usable = kind == "cpu" || folder.join(format!("libonnxruntime_providers_{kind}.so")).is_file();
    Candidate { path: versioned(folder, FILE_NAME), usable }
}

/// A library whose name may carry its version.
fn versioned(folder: &Path, file: &str) -> PathBuf {
    let mut names = paths_in(folder).unwrap_or_default();
    names.retain(|path| name_of(path).starts_with(file));
    names.pop().unwrap_or_else(|| folder.join(file))
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
    let unusable = |message: String| RuntimeError::LibraryUnusable { library: ONNX_RUNTIME, path: path.into(), message };
    let mut loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(loaded) = loaded.as_ref() {
        return if loaded.path == path {
            Ok((loaded.environment.clone(), loaded.version.clone()))
        } else {
            Err(unusable(format!("this process already uses {}", loaded.path.display())))
        };
    }
    super::complete::check(path).map_err(unusable)?;
    let builder = ort::environment::init_from(path).map_err(|e| unusable(e.to_string()))?;
    let environment = builder.with_name("clipcap").with_telemetry(false).build().map_err(|e| unusable(e.to_string()))?;
    // What it logs as an error it gives back as one too, which is told in our words or mended.
    environment.set_log_level(ort::logging::LogLevel::Fatal);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_pip_installed_finds_the_package_beside_it() {
        let environment = tempfile::tempdir().unwrap();
        let executable = environment.path().join("bin/clipcap");
        assert!(python_packages(&executable).is_empty());
        let capi = environment.path().join("lib/python3.12/site-packages/onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        std::fs::write(capi.join("libonnxruntime.so.1.31.1"), "").unwrap();
        std::fs::write(capi.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(python_packages(&executable), [environment.path().join("lib/python3.12/site-packages")]);
        for (kind, usable) in [("cpu", true), ("shared", true), ("cuda", false)] {
            let candidate = in_package(&capi, kind);
            assert_eq!((candidate.usable, candidate.path), (usable, capi.join("libonnxruntime.so.1.31.1")), "{kind}");
        }
    }
}
