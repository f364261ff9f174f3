//! Memory does not grow with the number of images.

use std::fs;
use std::path::Path;
use std::process::Command;

use clipcap::pipeline::Source;
use clipcap::pipeline::npy::{FloatType, write_header};

use super::fake::{Fake, caption, settings, with};

/// Not a test of its own: captions a `.npy` file of vectors twice, the second time from what is known, and prints its peak memory.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn child() {
    let vectors = std::env::var("MEMORY_VECTORS").unwrap();
    let out = Path::new(&vectors).with_extension("parquet");
    let settings = with(settings(Path::new("unused"), &out), |run| run.source = Source::Embeddings(vectors.clone().into()));
    for _ in 0..2 {
        let fake = Fake::new(64);
        caption(&settings, &fake).unwrap();
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    println!("{peak}");
}

fn peak_kib(folder: &Path, images: u64) -> u64 {
    let path = folder.join(format!("{images}.npy"));
    let mut file = Vec::new();
    write_header(&mut file, FloatType::F32, images, 3).unwrap();
    for i in 0..images {
        file.extend([i as f32, 1.0, 2.0].iter().flat_map(|v| v.to_le_bytes()));
    }
    fs::write(&path, file).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "caption_stage::memory::child", "--ignored", "--nocapture"]).env("MEMORY_VECTORS", &path);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("VmHWM")).unwrap();
    line.split_whitespace().rev().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_thousand_images_need_hardly_more_memory_than_a_thousand() {
    let folder = tempfile::tempdir().unwrap();
    let (few, many) = (peak_kib(folder.path(), 1_000), peak_kib(folder.path(), 100_000));
    eprintln!("peak memory: {few} KiB for 1,000 images, {many} KiB for 100,000");
    assert!(many < few + 60 * 1024, "{few} KiB for 1,000 images, {many} KiB for 100,000");
}
