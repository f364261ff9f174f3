//! `caption` and `embed` from the outside: Ctrl-C, locks, looks before a run, embeddings in place of images.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{clipcap, run, scenes, tiny_bundle};
use serde_json::Value;

fn caption(images: &Path, bundle: &Path, out: &Path) -> Command {
    let mut command = clipcap();
    command.arg("caption").arg(images).arg("--model").arg(bundle).arg("--out").arg(out);
    command
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn ctrl_c_leaves_with_130_and_the_same_command_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 300));
    let flags = ["--num-captions", "3", "--top-p", "0.9", "--max-new-tokens", "24", "--no-loop-guard", "--json"];
    let whole = folder.path().join("whole/out.parquet");
    run(caption(&images, &bundle, &whole).args(flags), 0);
    let out = folder.path().join("parts/out.parquet");
    let child = caption(&images, &bundle, &out).args(flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let shards = folder.path().join("parts/out.parquet.work/shards");
    let start = Instant::now();
    while fs::read_dir(&shards).map_or(0, |shards| shards.count()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "no shard after a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A second run meets the lock and names the holder.
    let refused = run(caption(&images, &bundle, &out).args(flags), 1);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains(&format!("process {}", child.id())), "{message}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(130), "{}", String::from_utf8_lossy(&stopped.stderr));
    let summary = json(&stopped);
    let computed = summary["computed"].as_u64().unwrap();
    assert!(!out.exists() && computed > 0 && computed < 300 && computed.is_multiple_of(64), "{summary}");
    // A look at what is left, which changes nothing.
    let look = json(&run(caption(&images, &bundle, &out).args(flags).arg("--dry-run"), 0));
    assert!(look["counts"]["known"].as_u64().unwrap() + look["counts"]["images"].as_u64().unwrap() == 300, "{look}");
    let rest = json(&run(caption(&images, &bundle, &out).args(flags), 0));
    assert_eq!(rest["computed"].as_u64().unwrap(), 300 - computed);
    for name in ["out.parquet", ".clipcap/out.manifest.json"] {
        assert!(fs::read(out.with_file_name(name)).unwrap() == fs::read(whole.with_file_name(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_dry_run_counts_finds_bad_headers_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 5));
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    fs::write(images.join("notes.txt"), "notes").unwrap();
    let look = json(&run(caption(&images, &bundle, &folder.path().join("t.parquet")).args(["--dry-run", "--json"]), 0));
    let counts = &look["counts"];
    assert_eq!((counts["found"].as_u64(), counts["images"].as_u64(), counts["skipped"].as_u64()), (Some(7), Some(5), Some(1)));
    assert_eq!(look["failed_by_reason"]["unsupported_format"], 1);
    assert!(look["estimated_seconds"].as_f64().unwrap() > 0.0);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with("t.")), "{names:?}");
}

#[test]
fn embeddings_are_captioned_as_their_images_are() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 70));
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    let sampled = ["--num-captions", "2", "--top-k", "20", "--seed", "9", "--quiet"];
    let (direct, through) = (folder.path().join("direct.csv"), folder.path().join("through.csv"));
    run(caption(&images, &bundle, &direct).args(sampled), 3);
    for format in ["parquet", "npy"] {
        let embeddings = folder.path().join(format);
        let mut command = clipcap();
        command.arg("embed").arg("--images").arg(&images).arg("--model").arg(&bundle).arg("--out").arg(&embeddings);
        run(command.args(["--quiet", "--format", format]), 3);
        let mut command = clipcap();
        command.arg("caption").arg("--embeddings").arg(&embeddings).arg("--model").arg(&bundle).arg("--out").arg(&through);
        run(command.args(sampled).arg("--overwrite"), 0);
        assert_eq!(fs::read_to_string(&through).unwrap(), fs::read_to_string(&direct).unwrap());
    }
    // Embeddings scaled to length 1 are not what this mapper was trained on.
    let mut command = clipcap();
    let normalized = folder.path().join("normalized");
    command.arg("embed").arg("--images").arg(&images).arg("--model").arg(&bundle).arg("--out").arg(&normalized);
    run(command.args(["--quiet", "--normalize"]), 3);
    let mut command = clipcap();
    command.arg("caption").arg("--embeddings").arg(&normalized).arg("--model").arg(&bundle).arg("--out").arg(&through);
    let refused = run(command.args(sampled).arg("--overwrite"), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("normalized"));
    // Nor are those of another image encoder, though as long.
    let other = folder.path().join("other");
    let mut command = clipcap();
    command.args(["model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--seed", "4", "--quiet"]);
    run(command.arg("--out").arg(&other), 0);
    let mut command = clipcap();
    let embeddings = folder.path().join("parquet");
    command.arg("caption").arg("--embeddings").arg(&embeddings).arg("--model").arg(&other).arg("--out").arg(&through);
    let refused = run(command.args(sampled).arg("--overwrite"), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another image encoder"));
}

#[test]
fn what_cannot_be_meant_is_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 1));
    let out = folder.path().join("t.parquet");
    let usage = |mut command: Command, words: &str| {
        let output = run(&mut command, 2);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(words), "{message}");
    };
    let with = |flags: &[&str]| {
        let mut command = caption(&images, &bundle, &out);
        command.args(flags);
        command
    };
    usage(caption(&images, &bundle, &folder.path().join("t.xlsx")), ".parquet, .csv, .tsv or .jsonl");
    usage(caption(&images, Path::new("checkpoint.pt"), &out), "clipcap model import");
    usage(with(&["--prefix_len", "77"]), "--prefix_len 77");
    usage(with(&["--mapping_type", "bert"]), "has mlp");
    usage(with(&["--normalize_prefix"]), "--normalize_prefix");
    usage(with(&["--max-new-tokens", "100000"]), "--max-new-tokens 100000");
    let mut command = clipcap();
    command.arg("embed").arg("--dataset").arg(&images).arg("--model").arg(&bundle).arg("--out").arg(folder.path().join("e"));
    usage(command, "not a dataset");
    assert!(!out.exists());
}
