//! What a user meets at the prompt: the summary of the morning, tables on stdout, short flags, quiet, Excel.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::common::{clipcap, run, scenes, tiny_bundle};

fn caption(images: &Path, bundle: &Path, out: &str) -> Command {
    let mut command = clipcap();
    command.arg("caption").arg(images).arg("-m").arg(bundle).arg("-o").arg(out).args(["--max-new-tokens", "6"]);
    command
}

fn text(output: &Output) -> (String, String) {
    (String::from_utf8(output.stdout.clone()).unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

#[test]
fn the_summary_says_what_happened_and_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 12));
    fs::write(images.join("bad one.jpg"), "bad").unwrap();
    fs::write(images.join("notes.txt"), "notes").unwrap();
    let out = folder.path().join("t.parquet");
    let (told, _) = text(&run(&mut caption(&images, &bundle, out.to_str().unwrap()), 3));
    assert!(told.starts_with("14 files: 12 captioned, 1 failed (1 unsupported format), 1 not an image\n"), "{told}");
    assert!(told.contains("per token)"), "{told}");
    // Each command that is named does what it says.
    let next: Vec<&str> = told.lines().filter_map(|line| line.get(9..)?.strip_prefix("clipcap ")).collect();
    assert_eq!(next.len(), 2, "{told}");
    for line in next {
        let shown = line.starts_with("show");
        let output = run(clipcap().args(line.split(' ')), 0);
        assert!(!shown || text(&output).0.contains("unsupported_format"));
    }
    assert!(folder.path().join("t.html").is_file());
    // Again, as JSON.
    let json = run(caption(&images, &bundle, out.to_str().unwrap()).arg("--json"), 3);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json["reused"].as_u64(), json["computed"].as_u64(), json["captions"].as_u64()), (Some(12), Some(0), Some(12)));
    assert!(json["worst"].as_array().is_some_and(|worst| worst.len() == 3) && json["next"].as_array().is_some());
    // Quiet is quiet, and an error is not.
    let (told, said) = text(&run(caption(&images, &bundle, out.to_str().unwrap()).arg("--quiet"), 3));
    assert_eq!((told.as_str(), said.as_str()), ("", ""));
    let (_, said) = text(&run(caption(Path::new("gone"), &bundle, out.to_str().unwrap()).arg("--quiet"), 1));
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_table_on_stdout_is_the_table_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 30));
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    for format in ["jsonl", "csv", "tsv"] {
        let file = folder.path().join(format!("{format}/t.{format}"));
        run(&mut caption(&images, &bundle, file.to_str().unwrap()), 3);
        let mut command = caption(&images, &bundle, "-");
        // jsonl is what comes unasked.
        if format != "jsonl" {
            command.args(["--format", format]);
        }
        let (table, said) = text(&run(&mut command, 3));
        assert_eq!(table, fs::read_to_string(&file).unwrap());
        assert!(said.contains("31 files: 30 captioned, 1 failed") && said.contains("bad.jpg: unsupported_format"), "{said}");
        assert!(said.contains("--work DIR"), "{said}");
    }
    // With a folder of its own, a second run has nothing left to compute and tells the same.
    let work = folder.path().join("work");
    let first = run(caption(&images, &bundle, "-").arg("--work").arg(&work), 3);
    let second = run(caption(&images, &bundle, "-").arg("--work").arg(&work).arg("--json"), 3);
    assert_eq!(first.stdout, second.stdout);
    let json: Value = serde_json::from_str(text(&second).1.lines().last().unwrap()).unwrap();
    assert_eq!((json["computed"].as_u64(), json["reused"].as_u64()), (Some(0), Some(30)));
    assert!(run(caption(&images, &bundle, "t.csv").args(["--format", "csv"]), 2).stdout.is_empty());
}

#[test]
fn whoever_reads_stdout_may_have_enough() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 200));
    let mut child = caption(&images, &bundle, "-").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(0) && !said.contains("error"), "{said}");
}

#[test]
fn excel_gets_its_mark_and_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 3));
    let at = |name: &str| folder.path().join(name);
    let out = at("t.csv");
    run(caption(&images, &bundle, out.to_str().unwrap()).args(["--bom"]), 0);
    let table = fs::read(&out).unwrap();
    assert!(table.starts_with(b"\xef\xbb\xbfimage_id,image_path,"));
    run(&mut caption(&images, &bundle, at("plain.csv").to_str().unwrap()), 0);
    assert_eq!(table[3..], fs::read(at("plain.csv")).unwrap());
    // What it holds is known to the next run, and other commands read it.
    let again = run(caption(&images, &bundle, out.to_str().unwrap()).args(["--bom", "--json"]), 0);
    let json: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(json["reused"], 3);
    let (_, said) = text(&run(&mut caption(&images, &bundle, out.to_str().unwrap()), 1));
    assert!(said.contains("no --bom (was given)"), "{said}");
    let (shown, _) = text(&run(clipcap().arg("show").arg(&out), 0));
    assert!(shown.starts_with("caption") && shown.contains("3 shown of 3 rows"), "{shown}");
    run(caption(&images, &bundle, at("t.parquet").to_str().unwrap()).arg("--bom"), 2);
}

#[test]
fn one_name_in_several_formats_is_several_tables() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 4));
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..2 {
        for name in ["x.parquet", "x.csv", "x.jsonl", "x.tsv"] {
            let (told, _) = text(&run(&mut caption(&images, &bundle, folder.path().join(name).to_str().unwrap()), 3));
            let errors = told.lines().find_map(|line| line.strip_prefix("errors   clipcap show ")).unwrap();
            let errors = errors.split(' ').next().unwrap().to_string();
            assert!(Path::new(&errors).is_file(), "{told}");
            places.insert(errors);
        }
    }
    assert_eq!(places.len(), 4, "{places:?}");
}

#[test]
fn help_has_examples_and_short_flags() {
    for command in ["caption", "embed", "prepare", "train", "show"] {
        let (help, _) = text(&run(clipcap().args([command, "--help"]), 0));
        assert!(help.contains("Examples:\n  clipcap "), "{command}: {help}");
        assert!(command == "show" || help.contains("-o, --out"), "{command}");
        assert!(matches!(command, "show" | "prepare") || help.contains("-m, --model"), "{command}");
    }
}
