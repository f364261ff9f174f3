//! The house plan of `src/lib.rs`: a module imports only from floors below its own.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by floor, the ground first. Modules of one floor do not know each other; a module may use its own submodules.
const FLOORS: &[&[&str]] = &[
    &["files", "remote", "table", "bookkeeping", "budget", "random", "vector", "names"],
    &["onnx", "runtime", "dataset", "image", "text", "metrics", "html"],
    &["autodiff"],
    &["models"],
    &["generation", "training"],
    &["pipeline"],
    &["stages"],
    &["cli", "terminal", "main", "lib", "testing"],
];

/// The rooms of `pipeline/` by floor, likewise: a room imports from those before it, and by their names, not by way of `pipeline` itself.
const PIPELINE: &[&[&str]] = &[&["reporter", "npy"], &["artifact"], &["job", "runner"], &["engine"]];

/// Uses across a floor or upwards that are agreed, with the reason.
const AGREED: &[(&str, &str, &str)] = &[
    ("files", "table", "the ground floor stands on itself"),
    ("table", "files", "the ground floor stands on itself"),
    ("bookkeeping", "table", "the ground floor stands on itself"),
    ("table", "remote", "the ground floor stands on itself"),
    ("remote", "budget", "the ground floor stands on itself"),
    ("random", "files", "the ground floor stands on itself"),
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

fn floor(floors: &[&[&str]], module: &str) -> Option<usize> {
    floors.iter().position(|floor| floor.contains(&module))
}

/// The code of a file without its unit tests: what is behind `#[cfg(test)]` up to the end of the item, wherever it stands.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        kept.push_str(before);
        let ends = after.find(['{', ';']).unwrap_or(after.len());
        let mut depth = 0;
        let mut end = after.len();
        for (at, letter) in after[ends..].char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                end = ends + at + 1;
                break;
            }
        }
        rest = after.get(end..).unwrap_or("");
    }
    kept + rest
}

/// What a file names after `crate::` (or `crate::pipeline::`), in grouped imports (`use crate::{a::B, c}`) too.
fn used_modules(code: &str, after: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut used = vec![];
    for rest in code.split(after).skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            used.push(name(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    used.push(name(group[start..at].trim_start()));
                    start = at + 1;
                    if letter == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

/// Whether a file is compiled for tests alone: its parent says so, or `testing` itself.
fn is_test_module(file: &Path, source: &Path) -> bool {
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let folder = file.parent().unwrap();
    if folder != source && folder.join("mod.rs").is_file() && stem == "mod" {
        return is_declared_for_tests(folder.parent().unwrap(), folder.file_name().unwrap().to_str().unwrap());
    }
    let enclosing = folder != source
        && folder
            .ancestors()
            .take_while(|f| *f != source)
            .any(|f| is_declared_for_tests(f.parent().unwrap(), f.file_name().unwrap().to_str().unwrap()));
    enclosing || is_declared_for_tests(folder, stem)
}

/// Whether the module file of `folder` (mod.rs, lib.rs or `folder.rs`) declares `module` behind `#[cfg(test)]`.
fn is_declared_for_tests(folder: &Path, module: &str) -> bool {
    let parents = [folder.join("mod.rs"), folder.join("lib.rs"), folder.with_extension("rs")];
    parents.iter().filter_map(|parent| fs::read_to_string(parent).ok()).any(|text| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.windows(2).any(|pair| {
            let declares = ["mod", "pub mod", "pub(crate) mod"].iter().any(|word| pair[1] == format!("{word} {module};"));
            pair[0] == "#[cfg(test)]" && declares
        })
    })
}

#[test]
fn the_plan_sees_grouped_imports_and_code_behind_tests() {
    let code = without_tests(
        "use crate::{a::{B, C}, d};\n#[cfg(test)]\nmod tests { use crate::e; }\n#[cfg(test)]\nmod more;\nfn f() { crate::g::h() }",
    );
    assert_eq!(used_modules(&code, "crate::"), ["a", "d", "g"]);
    assert_eq!(used_modules("use crate::pipeline::{Entry, job::{A, B}};", "crate::pipeline::"), ["Entry", "job"]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert!(is_test_module(&source.join("testing.rs"), &source));
    assert!(is_test_module(&source.join("generation/tests/toy.rs"), &source));
    assert!(!is_test_module(&source.join("generation/search.rs"), &source));
}

/// Uses in the files under `folder` of `src/` that go across a floor or upwards, or that name what has no floor.
fn faults(folder: &str, floors: &[&[&str]], agreed: &[(&str, &str, &str)]) -> Vec<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let within = source.join(folder);
    let path = if folder.is_empty() { "crate::".to_string() } else { format!("crate::{folder}::") };
    let mut files = vec![];
    rust_files(&within, &mut files);
    assert!(files.len() > 20);
    let mut faults = vec![];
    for file in &files {
        let relative = file.strip_prefix(&within).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_string();
        // Unit tests may stand on anything, and the folder's own file says what others see of it.
        if is_test_module(file, &source) || module == "mod" {
            continue;
        }
        let code = without_tests(&fs::read_to_string(file).unwrap());
        let own = floor(floors, &module).unwrap_or_else(|| panic!("{module} has no floor: see tests/it/house.rs"));
        let out = ["super::"].repeat(relative.components().count() - usize::from(relative.ends_with("mod.rs"))).concat();
        if !folder.is_empty() && code.contains(&out) {
            faults.push(format!("{}: leaves its room by {out}", relative.display()));
        }
        for used in used_modules(&code, &path).iter().filter(|used| **used != module) {
            let is_agreed = agreed.iter().any(|(a, b, _)| *a == module && b == used);
            // What `main` has of the crate's own.
            let is_item = folder.is_empty() && used.starts_with(char::is_uppercase);
            if !is_agreed && !is_item && floor(floors, used).is_none_or(|floor| floor >= own) {
                faults.push(format!("{}: uses {path}{used}", relative.display()));
            }
        }
    }
    faults.dedup();
    faults
}

#[test]
fn modules_import_only_from_floors_below() {
    let found = [faults("", FLOORS, AGREED), faults("pipeline", PIPELINE, &[])].concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
