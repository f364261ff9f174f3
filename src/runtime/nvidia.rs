//! CUDA's own libraries. ONNX Runtime's provider asks for them by name and knows no place; so they are found and opened here first, and the
//! provider meets them as already loaded.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::library::python_packages;
use crate::files::paths_in;

/// A library of CUDA's and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvidiaLibrary {
    pub file: &'static str,
    /// The package of PyPI that has it.
    pub package: &'static str,
    /// Without it nothing runs.
    pub is_needed: bool,
    pub path: Option<PathBuf>,
}

/// In the order in which they need each other. Convolutions alone need the last one: ResNet image encoders.
const LIBRARIES: [(&str, &str, bool); 5] = [
    ("libcudart.so.13", "nvidia-cuda-runtime", true),
    ("libcublasLt.so.13", "nvidia-cublas", true),
    ("libcublas.so.13", "nvidia-cublas", true),
    ("libcurand.so.10", "nvidia-curand", true),
    ("libcudnn.so.9", "nvidia-cudnn-cu13", false),
];

/// Opens all of them for the ONNX Runtime at `runtime`, to stay open. Looked for, in this order: `nvidia/` beside ONNX Runtime; the Python
/// packages `nvidia/*/lib` beside an `onnxruntime` package or of the environment that this program is installed in; where the system's
/// linker looks (`LD_LIBRARY_PATH`); `CUDA_HOME`, `CUDA_PATH` and /usr/local/cuda.
///
/// # Errors
/// The first needed one that is not found or does not load, and the cure.
pub(super) fn open_all(runtime: &Path) -> Result<Vec<NvidiaLibrary>, String> {
    let folders = folders(runtime);
    let mut opened = vec![];
    for (file, package, is_needed) in LIBRARIES {
        let path = match open(file, &folders) {
            Ok(path) => Some(path),
            Err(_) if !is_needed => None,
            Err(problem) => return Err(missing(file, package, &problem, &folders)),
        };
        opened.push(NvidiaLibrary { file, package, is_needed, path });
    }
    Ok(opened)
}

fn missing(file: &str, package: &str, problem: &str, folders: &[PathBuf]) -> String {
    let looked: String = folders.iter().map(|folder| format!("{}, ", folder.display())).collect();
    format!(
        "{file} {problem}: run scripts/setup.sh --cuda in the checkout, or `pip install {package}` beside onnxruntime-gpu, or install CUDA 13 and \
         name the folder of its libraries in LD_LIBRARY_PATH (looked at: {looked}where the system looks)"
    )
}

fn open(file: &str, folders: &[PathBuf]) -> Result<PathBuf, String> {
    if let Some(path) = folders.iter().map(|folder| folder.join(file)).find(|path| path.is_file()) {
        return keep_open(path.as_os_str()).map(|()| path).map_err(|error| format!("does not load ({error})"));
    }
    match keep_open(OsStr::new(file)) {
        Ok(()) => Ok(loaded_from(file).unwrap_or_else(|| file.into())),
        Err(_) => Err("was not found".into()),
    }
}

/// Opened so that libraries loaded later find its symbols, and never closed.
fn keep_open(name: &OsStr) -> Result<(), libloading::Error> {
    // SAFETY: NVIDIA's libraries only set up themselves when they are opened.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }?;
    std::mem::forget(library);
    Ok(())
}

/// Where a loaded library's file lies.
fn loaded_from(file: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let stem = file.split(".so").next()?;
    let paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    let mut paths = paths.filter(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with(&format!("{stem}.so"))));
    paths.next().map(PathBuf::from)
}

fn folders(runtime: &Path) -> Vec<PathBuf> {
    let mut folders = vec![];
    if let Some(own) = runtime.parent() {
        folders.push(own.join("nvidia"));
        // SITE/onnxruntime/capi/libonnxruntime.so.1.31.1
        if own.ends_with("onnxruntime/capi") {
            folders.extend(own.ancestors().nth(2).map_or_else(Vec::new, in_packages));
        }
    }
    let executable = std::env::current_exe().ok();
    for site in executable.as_deref().map_or_else(Vec::new, python_packages) {
        folders.extend(in_packages(&site));
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        folders.extend(std::env::var_os(name).map(|root| Path::new(&root).join("lib64")));
    }
    folders.extend(["/usr/local/cuda-13/lib64", "/usr/local/cuda/lib64"].map(PathBuf::from));
    folders.retain(|folder| folder.is_dir());
    let mut seen = vec![];
    folders.retain(|folder| {
        !seen.contains(folder) && {
            seen.push(folder.clone());
            true
        }
    });
    folders
}

/// `SITE/nvidia/*/lib`, in order.
fn in_packages(site: &Path) -> Vec<PathBuf> {
    paths_in(&site.join("nvidia")).unwrap_or_default().into_iter().map(|folder| folder.join("lib")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_looked_for_beside_onnx_runtime_and_in_python_packages() {
        let environment = tempfile::tempdir().unwrap();
        let site = environment.path().join("lib/python3.12/site-packages");
        for folder in ["nvidia/cu13/lib", "nvidia/cudnn/lib", "onnxruntime/capi/nvidia"] {
            std::fs::create_dir_all(site.join(folder)).unwrap();
        }
        let found = folders(&site.join("onnxruntime/capi/libonnxruntime.so.1.31.1"));
        let wanted = ["onnxruntime/capi/nvidia", "nvidia/cu13/lib", "nvidia/cudnn/lib"].map(|folder| site.join(folder));
        assert_eq!(found[..3], wanted);
    }

    #[test]
    fn what_is_missing_or_broken_is_named_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("nvidia");
        std::fs::create_dir(&own).unwrap();
        assert_eq!(open("libnosuch.so.13", std::slice::from_ref(&own)), Err("was not found".into()));
        std::fs::write(own.join("libnosuch.so.13"), "half").unwrap();
        let broken = open("libnosuch.so.13", std::slice::from_ref(&own)).unwrap_err();
        assert!(broken.starts_with("does not load"), "{broken}");
        let said = missing("libcublas.so.13", "nvidia-cublas", "was not found", &[own]);
        assert!(said.contains("libcublas.so.13 was not found") && said.contains("setup.sh --cuda"), "{said}");
    }
}
