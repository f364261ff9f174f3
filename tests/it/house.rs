//! The house plan of `src/lib.rs`: a module imports only from floors below its own.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by floor, the ground first. Modules of one floor do not know each other; a module may use its own submodules.
const FLOORS: &[&[&str]] = &[
    &["files", "table"],
    &["onnx", "runtime", "dataset", "image", "text", "metrics", "html"],
    &["autodiff"],
    &["models"],
    &["generation", "training"],
    &["pipeline"],
    &["stages"],
    &["cli", "terminal", "main", "lib", "testing"],
];

/// Uses across a floor or upwards that are agreed, with the reason.
const AGREED: &[(&str, &str, &str)] = &[
    ("files", "table", "the ground floor stands on itself"),
    ("table", "files", "the ground floor stands on itself"),
    ("runtime", "onnx", "the self-test builds its own tiny graph"),
    ("metrics", "text", "characters and words are text's notion"),
    ("training", "generation", "sample captions of a training run"),
    ("cli", "terminal", "one top floor"),
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn floor(module: &str) -> usize {
    FLOORS.iter().position(|floor| floor.contains(&module)).unwrap_or_else(|| panic!("{module} has no floor: see tests/house.rs"))
}

#[test]
fn modules_import_only_from_floors_below() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    rust_files(&source, &mut files);
    let mut faults = vec![];
    for file in &files {
        let relative = file.strip_prefix(&source).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_string();
        let text = fs::read_to_string(file).unwrap();
        // Unit tests may stand on anything.
        let is_test = relative.to_str().unwrap().contains("test");
        let body = text.split("#[cfg(test)]").next().unwrap();
        for used in body.split("crate::").skip(1).filter(|_| !is_test) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if used.is_empty() || used == module || used == "testing" || used.starts_with(char::is_uppercase) {
                continue;
            }
            let agreed = AGREED.iter().any(|(a, b, _)| *a == module && *b == used);
            if !agreed && floor(&used) >= floor(&module) {
                faults.push(format!("{}: uses crate::{used}", relative.display()));
            }
        }
    }
    faults.dedup();
    assert!(files.len() > 20 && faults.is_empty(), "{}", faults.join("\n"));
}
