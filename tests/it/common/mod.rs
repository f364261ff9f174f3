//! What the tests that drive the binary share.

pub mod golden;
#[cfg(feature = "remote")]
pub mod proxy;
pub mod report;
#[cfg(feature = "remote")]
pub mod s3;
pub mod training;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::Float32Type;

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The built program, set to find the checkout's ONNX Runtime wherever the target folder is.
pub fn clipcap() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipcap"));
    command.env("CLIPCAP_RUNTIME", checkout().join("runtime")).env_remove("ORT_DYLIB_PATH");
    // What the program keeps for later runs is not to be the user's.
    command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command
}

/// Runs to the end and returns what was printed, with a panic that shows it where the exit status is another one.
pub fn run(command: &mut Command, status: i32) -> Output {
    let output = command.output().expect("the program starts");
    assert_eq!(
        output.status.code(),
        Some(status),
        "{command:?}\n--- stdout\n{}\n--- stderr\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// This process's peak memory.
pub fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// `../shared/PATH` beside the checkout. Absent, the test that asked skips loudly; with CLIPCAP_NO_SKIP that is a failure.
pub fn shared(path: &str) -> Option<PathBuf> {
    let full = checkout().join("../shared").join(path);
    if full.exists() {
        return Some(full);
    }
    assert!(
        std::env::var_os("CLIPCAP_NO_SKIP").is_none(),
        "{} is absent, and CLIPCAP_NO_SKIP makes that a failure",
        full.display()
    );
    eprintln!("SKIPPED: {} is absent", full.display());
    None
}

/// `tests/fixtures/cases/PATH`: small inputs after public reports of other people's troubles, made anew, and what is right for them.
pub fn cases(path: &str) -> PathBuf {
    checkout().join("tests/fixtures/cases").join(path)
}

/// The files of a folder, by name, with their bytes.
pub fn files_in(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let file = |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    let mut files: Vec<_> = entries.map(file).collect();
    files.sort();
    files
}

/// What belongs to an output and is no data, such as its `errors.parquet` or `manifest.json`.
pub fn beside(output: &Path, what: &str) -> PathBuf {
    let name = if output.is_dir() { output.file_name() } else { output.file_stem() };
    output.with_file_name(".clipcap").join(format!("{}.{what}", name.unwrap().to_str().unwrap()))
}

/// A small random bundle that needs no golden files.
pub fn tiny_bundle(folder: &Path) -> PathBuf {
    let bundle = folder.join("tiny");
    let mut command = clipcap();
    command.args(["model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--seed", "3", "--quiet"]);
    run(command.arg("--out").arg(&bundle), 0);
    bundle
}

/// A folder of rendered pictures.
pub fn scenes(folder: &Path, count: u32) -> PathBuf {
    let out = folder.join("scenes");
    run(clipcap().args(["scenes", "--quiet", "--num-images", &count.to_string(), "--out"]).arg(&out), 0);
    out.join("images")
}

/// A bundle of one of the trained golden checkpoints.
pub fn golden_bundle(golden: &golden::Golden, kind: &str, folder: &Path) -> PathBuf {
    let bundle = folder.join(kind);
    let mut command = clipcap();
    command.args(["model", "import", "--quiet"]);
    command.arg("--clip").arg(golden.path("clip_hf")).arg("--gpt2").arg(golden.path("gpt2"));
    command.arg("--checkpoint").arg(golden.path(&format!("clipcap_{kind}_trained.pt")));
    command.arg("--bert-config").arg(golden.path("bert/config.json")).arg("--out").arg(&bundle);
    run(&mut command, 0);
    bundle
}

/// Text columns of a Parquet table, by row.
pub fn columns(table: &Path, names: &[&str]) -> Vec<Vec<String>> {
    let mut rows = vec![];
    for batch in clipcap::table::open(table, None).unwrap() {
        let batch = batch.unwrap();
        let arrays: Vec<&StringArray> =
            names.iter().map(|n| batch.column_by_name(n).unwrap().as_any().downcast_ref().unwrap()).collect();
        rows.extend((0..batch.num_rows()).map(|i| arrays.iter().map(|a| a.value(i).to_string()).collect::<Vec<_>>()));
    }
    rows
}

/// Pieces of a caption without the spaces between Latin words, as the golden texts are written.
pub fn joined(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Whether `scripts/setup.sh --openvino` was run; loud where it was not, and a failure with CLIPCAP_NO_SKIP.
pub fn openvino() -> bool {
    let there = checkout().join("runtime/openvino/libopenvino_c.so").is_file();
    if !there {
        assert!(
            std::env::var_os("CLIPCAP_NO_SKIP").is_none(),
            "runtime/openvino is absent, and CLIPCAP_NO_SKIP makes that a failure"
        );
        eprintln!("SKIPPED: runtime/openvino is absent (scripts/setup.sh --openvino)");
    }
    there
}

/// Embeds `images` into `out` with more `flags`; the embeddings in the order of the files.
pub fn embed(images: &Path, model: &Path, out: PathBuf, flags: &[&str]) -> Vec<Vec<f32>> {
    let mut command = clipcap();
    command.arg("embed").arg("--images").arg(images).arg("--model").arg(model).arg("--out").arg(&out);
    run(command.arg("--quiet").args(flags), 0);
    let mut rows = vec![];
    for batch in clipcap::table::open(&out.join("part-00000.parquet"), None).unwrap() {
        let batch = batch.unwrap();
        let lists = batch.column_by_name("embedding").unwrap().as_fixed_size_list();
        rows.extend((0..lists.len()).map(|i| lists.value(i).as_primitive::<Float32Type>().values().to_vec()));
    }
    rows
}
