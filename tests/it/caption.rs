//! `clipcap caption` from the outside: golden captions from photos, every file accounted for, and runs that are killed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::golden::Golden;
use crate::common::{clipcap, columns, golden_bundle, joined, run, scenes, tiny_bundle};
use clipcap::pipeline::npy::{FloatType, write_header};
use serde_json::Value;

#[test]
fn photos_get_the_golden_captions_whatever_the_batch_and_threads() {
    Golden::all().iter().for_each(captions_are_the_golden_ones);
}

fn captions_are_the_golden_ones(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["mlp", "bert"] {
        let bundle = golden_bundle(golden, kind, folder.path());
        let wanted = golden.expected(&format!("greedy_{kind}_trained_photos"));
        let wanted = wanted.as_object().unwrap();
        let mut tables = vec![];
        for (batch, threads) in [("1", "1"), ("4", "2"), ("64", "2")] {
            let table = folder.path().join(format!("{kind}-{batch}-{threads}.parquet"));
            let mut command = clipcap();
            command.arg("caption").arg(&golden.photos).arg("--model").arg(&bundle).arg("--out").arg(&table);
            run(command.args(["--batch-size", batch, "--threads", threads, "--max-new-tokens", "40", "--quiet"]), 0);
            tables.push(columns(&table, &["image_path", "caption"]));
        }
        assert_eq!(tables[0].len(), wanted.len());
        let mut sure = 0;
        for row in &tables[0] {
            let answer = &wanted[&row[0]];
            if answer["smallest_margin"].as_f64().unwrap() > 0.1 {
                assert_eq!(joined(&row[1]), answer["text"].as_str().unwrap(), "{kind} {}", row[0]);
                sure += 1;
            }
        }
        assert!(sure > 0);
        // Where the model is sure, batch and threads change nothing.
        for other in &tables[1..] {
            for (a, b) in tables[0].iter().zip(other) {
                if wanted[&a[0]]["smallest_margin"].as_f64().unwrap() > 1e-3 {
                    assert_eq!(a, b, "{kind}");
                }
            }
        }
    }
}

#[test]
fn int8_says_the_same_wherever_the_model_is_sure() {
    Golden::all().iter().for_each(captions_in_int8);
}

fn captions_in_int8(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["mlp", "bert"] {
        let bundle = golden_bundle(golden, kind, folder.path());
        let small = folder.path().join(format!("{kind}-int8"));
        run(clipcap().args(["model", "quantize", "--quiet"]).arg(&bundle).arg("--out").arg(&small), 0);
        let table = folder.path().join(format!("{kind}.parquet"));
        let mut command = clipcap();
        command.arg("caption").arg(&golden.photos).arg("--model").arg(&small).arg("--out").arg(&table);
        run(command.args(["--precision", "int8", "--device", "cpu", "--max-new-tokens", "40", "--quiet"]), 0);
        let wanted = golden.expected(&format!("greedy_{kind}_trained_photos"));
        for row in columns(&table, &["image_path", "caption"]) {
            let answer = &wanted[&row[0]];
            if answer["smallest_margin"].as_f64().unwrap() > 0.5 {
                assert_eq!(joined(&row[1]), answer["text"].as_str().unwrap(), "{kind} {}", row[0]);
            }
        }
        // A bundle without 8-bit weights says which command makes them.
        let mut command = clipcap();
        command.arg("caption").arg(&golden.photos).arg("--model").arg(&bundle).arg("--out").arg(folder.path().join("no.parquet"));
        let output = run(command.args(["--precision", "int8", "--device", "cpu"]), 1);
        assert!(String::from_utf8_lossy(&output.stderr).contains("model quantize"));
    }
}

/// Good pictures and everything that can be wrong with a file.
fn bad_folder(folder: &Path, images: &Path) -> BTreeMap<String, &'static str> {
    let root = folder.join("mixed");
    fs::create_dir_all(root.join("x.jpg")).unwrap();
    let good = fs::read(images.join("scene-000000.jpg")).unwrap();
    let mut reasons = BTreeMap::new();
    for name in ["plain.jpg", "with space.jpg", "中文 名字.jpg", "line\nbreak.jpg", "x.jpg/inside.JPEG", "no_extension"] {
        fs::write(root.join(name), &good).unwrap();
    }
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"invalid-\xff-utf8.jpg")), &good).unwrap();
    let mut fail = |name: &str, bytes: &[u8], reason: &'static str| {
        fs::write(root.join(name), bytes).unwrap();
        reasons.insert(name.to_string(), reason);
    };
    fail("zero.jpg", b"", "empty");
    fail("text.jpg", b"this is not a picture", "unsupported_format");
    for (i, at) in [good.len() / 4, good.len() / 2, good.len() * 9 / 10].into_iter().enumerate() {
        fail(&format!("cut-{i}.jpg"), &good[..at], "truncated");
    }
    let mut huge = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    huge.extend(60_000u32.to_be_bytes().iter().chain(&60_000u32.to_be_bytes()).chain(&[8, 2, 0, 0, 0]));
    huge.extend([0u8; 64]);
    fail("huge.png", &huge, "too_large");
    symlink("nowhere.jpg", root.join("broken.jpg")).unwrap();
    reasons.insert("broken.jpg".into(), "vanished");
    std::process::Command::new("mkfifo").arg(root.join("y.jpg")).status().unwrap();
    reasons.insert("y.jpg".into(), "unreadable");
    // A loop, and a file that is no image and is not called one.
    symlink(".", root.join("loop")).unwrap();
    fs::write(root.join("notes.txt"), "no picture").unwrap();
    let locked = root.join("locked.jpg");
    fs::write(&locked, &good).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&locked).is_err() {
        reasons.insert("locked.jpg".into(), "permission_denied");
    }
    reasons
}

#[test]
fn every_file_is_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 1));
    let reasons = bad_folder(folder.path(), &images);
    let table = folder.path().join("out/t.parquet");
    let mut command = clipcap();
    command.arg("caption").arg(folder.path().join("mixed")).arg("--model").arg(&bundle).arg("--out").arg(&table);
    run(command.args(["--max-new-tokens", "5"]), 3);
    let manifest: Value = serde_json::from_slice(&fs::read(table.with_file_name(".clipcap/t.manifest.json")).unwrap()).unwrap();
    let counts = |name: &str| manifest["counts"][name].as_u64().unwrap();
    assert_eq!(counts("found"), counts("captioned") + counts("failed") + counts("skipped"), "{manifest}");
    assert_eq!(counts("failed"), reasons.len() as u64);
    assert_eq!(counts("skipped"), 1);
    let errors: BTreeMap<String, String> = columns(&table.with_file_name(".clipcap/t.errors.parquet"), &["image_path", "reason"])
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let wanted: BTreeMap<String, String> = reasons.iter().map(|(k, v)| (k.clone(), v.to_string())).collect();
    assert_eq!(errors, wanted);
    let rows = columns(&table, &["image_path", "image_id"]);
    let paths: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert!(
        paths.contains(&"line%0Abreak.jpg") && paths.contains(&"invalid-%FF-utf8.jpg") && paths.contains(&"x.jpg/inside.JPEG")
    );
    assert!(rows.iter().any(|row| row[0] == "x.jpg/inside.JPEG" && row[1] == "x.jpg/inside"));
    let mut sorted = paths.clone();
    sorted.sort_by(|a, b| a.split('/').map(str::as_bytes).cmp(b.split('/').map(str::as_bytes)));
    assert_eq!(paths, sorted);
    // More failures than allowed is another exit status, and no image at all is an error.
    let mut command = clipcap();
    command.arg("caption").arg(folder.path().join("mixed")).arg("--model").arg(&bundle).arg("--out").arg(&table);
    run(command.args(["--max-new-tokens", "5", "--max-error-rate", "0.01"]), 1);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let mut command = clipcap();
    command.arg("caption").arg(&empty).arg("--model").arg(&bundle).arg("--out").arg(folder.path().join("e.parquet"));
    run(&mut command, 1);
}

#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 300));
    let command = |table: &Path| {
        let mut command = clipcap();
        command.arg("caption").arg(&images).arg("--model").arg(&bundle).arg("--out").arg(table);
        command.args(["--top-p", "0.9", "--num-captions", "3", "--max-new-tokens", "8", "--seed", "5"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let whole = folder.path().join("whole/t.parquet");
    let start = std::time::Instant::now();
    run(&mut command(&whole), 0);
    // A slow first run must not make twenty long ones.
    let time = start.elapsed().min(Duration::from_secs(2));
    let killed = folder.path().join("killed/t.parquet");
    let mut kills = 0;
    for attempt in 1..=20u32 {
        let mut child = command(&killed).spawn().unwrap();
        std::thread::sleep(time.mul_f64(f64::from(attempt % 7 + 1) / 10.0).max(Duration::from_millis(30)));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    run(&mut command(&killed), 0);
    assert!(kills > 0, "the run was too quick to be killed");
    for name in ["t.parquet", ".clipcap/t.manifest.json"] {
        let [a, b] = ["whole", "killed"].map(|run| fs::read(folder.path().join(run).join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
    assert!(!folder.path().join("killed/t.parquet.work").exists());
}

#[test]
fn flags_that_exclude_each_other_are_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 1));
    for flags in [
        &["--num-beams", "3", "--top-p", "0.9"][..],
        &["--num-captions", "2"],
        &["--temperature", "0"],
        &["--device", "nowhere"],
        &["--num-beams", "2", "--num-captions", "3"],
    ] {
        let mut command = clipcap();
        command.arg("caption").arg(&images).arg("--model").arg(&bundle).arg("--out").arg(folder.path().join("t.parquet"));
        run(command.args(flags), 2);
    }
    // A device that is not there is refused, and nothing is written.
    let mut command = clipcap();
    command.arg("caption").arg(&images).arg("--model").arg(&bundle).arg("--out").arg(folder.path().join("t.parquet"));
    let output = run(command.args(["--device", "cuda"]), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cuda"));
    assert!(!folder.path().join("t.parquet").exists());
}

#[test]
fn embeddings_made_in_another_way_are_captioned_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 3));
    let (embeddings, table) = (folder.path().join("embeddings"), folder.path().join("t.parquet"));
    let embed = |flags: &[&str]| {
        let mut command = clipcap();
        command.args(["embed", "--overwrite"]).args(flags).arg("--images").arg(&images);
        run(command.arg("--model").arg(&bundle).arg("--out").arg(&embeddings), 0);
    };
    let caption = |flags: &[&str], status: i32| {
        let mut command = clipcap();
        command.args(["caption", "--json"]).args(flags).arg("--embeddings").arg(&embeddings).arg("--model").arg(&bundle);
        run(command.arg("--out").arg(&table), status)
    };
    let computed = |output: &std::process::Output| -> u64 {
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["computed"].as_u64().unwrap()
    };
    embed(&[]);
    assert_eq!(computed(&caption(&[], 0)), 3);
    embed(&["--save-images"]);
    assert_eq!(computed(&caption(&[], 0)), 0, "the numbers are the same");
    embed(&["--dtype", "float16"]);
    let refused = caption(&[], 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("other settings"));
    assert_eq!(computed(&caption(&["--overwrite"], 0)), 3);
}

#[test]
fn an_embedding_beyond_all_numbers_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, vectors, table) = (folder.path().join("bert"), folder.path().join("v.npy"), folder.path().join("t.jsonl"));
    let mut init = clipcap();
    init.args(["model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "bert", "--seed", "3", "--quiet"]);
    run(init.arg("--out").arg(&bundle), 0);
    let width = clipcap::models::Bundle::open(&bundle).unwrap().clip_config().projection_dim;
    let caption = |rows: &[f32], status: i32| {
        let mut file = Vec::new();
        write_header(&mut file, FloatType::F32, rows.len() as u64, width).unwrap();
        for (row, value) in rows.iter().enumerate() {
            // No row like another: equal ones would be captioned once.
            file.extend((0..width).flat_map(|column| (value * (1.0 - (row + column) as f32 / 1e4)).to_le_bytes()));
        }
        fs::write(&vectors, file).unwrap();
        let mut command = clipcap();
        command.args(["caption", "--overwrite", "--device", "cpu", "--max-new-tokens", "4"]).arg("--embeddings").arg(&vectors);
        let output = run(command.arg("--model").arg(&bundle).arg("--out").arg(&table), status);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    caption(&[0.1, 0.2, 3e38, 0.3], 3);
    let lines = fs::read_to_string(&table).unwrap();
    let named = |row: u32| lines.contains(&format!("\"image_path\":\"{row}\""));
    assert_eq!([0, 1, 2, 3].map(named), [true, true, false, true], "{lines}");
    let errors = folder.path().join(".clipcap/t.errors.parquet");
    assert_eq!(columns(&errors, &["image_path", "reason"]), [["2", "corrupt"]]);
    assert!(caption(&[3e38, 2e38], 1).contains("not one of 2 images can be captioned"));
}

#[test]
fn pipes_in_the_place_of_files_are_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.npy");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let bundle = tiny_bundle(folder.path());
    let mut commands = [clipcap(), clipcap()];
    commands[0].args(["caption", "--embeddings"]).arg(&pipe).arg("--model").arg(&bundle);
    commands[1].args(["model", "import", "--checkpoint"]).arg(&pipe).arg("--clip").arg(bundle.join("clip"));
    commands[1].arg("--gpt2").arg(bundle.join("gpt2"));
    for (mut command, out) in commands.into_iter().zip(["t.csv", "b"]) {
        let output = run(command.arg("--out").arg(folder.path().join(out)), 1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("pipe.npy") && said.contains("not a regular file"), "{said}");
    }
}

#[test]
fn the_originals_flags_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 2));
    let mut command = clipcap();
    command.arg("caption").arg("--image_path").arg(&images).arg("--model").arg(&bundle);
    command.args(["--topp", "0.8", "--topk", "50", "--temperature", "0.9", "--num_generate", "2", "--max_len", "6"]);
    run(command.arg("--output_path").arg(folder.path().join("t.tsv")), 0);
    let text = fs::read_to_string(folder.path().join("t.tsv")).unwrap();
    assert!(text.lines().all(|line| line.split('\t').count() == 3) && text.lines().count() == 2, "{text}");
}
