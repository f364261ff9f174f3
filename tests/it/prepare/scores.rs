//! `prepare --scorer`: captions scored against their pictures, and those below a least score in a table of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use serde_json::{Value, json};

use super::{batches, ints, manifest, texts};
use crate::common::golden::Golden;
use crate::common::{clipcap, run, tiny_bundle};

fn scores(table: &Path) -> Vec<Option<f32>> {
    let column = |batch: &arrow::record_batch::RecordBatch| {
        let column = batch.column_by_name("clip_score").unwrap().as_primitive::<Float32Type>().clone();
        (0..column.len()).map(|row| (!column.is_null(row)).then(|| column.value(row))).collect::<Vec<_>>()
    };
    batches(table).iter().flat_map(column).collect()
}

/// Captions of photos, three each, and one of a picture that is not there.
fn captions(folder: &Path) -> PathBuf {
    let golden = Golden::own();
    let (photos, english) = (golden.texts("photos"), golden.texts("english"));
    let mut lines: Vec<String> = vec![];
    for (at, photo) in photos.iter().enumerate() {
        let each = (0..3).map(|more| &english[(at + more) % english.len()]);
        lines.extend(each.map(|caption| json!({"file_name": photo, "caption": caption, "split": "train"}).to_string()));
    }
    lines.push(json!({"file_name": "gone.jpg", "caption": english[0], "split": "train"}).to_string());
    let path = folder.join("captions.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn prepare(captions: &Path, images: &Path, out: &Path) -> Command {
    let mut command = clipcap();
    command.args(["prepare", "--json"]).arg("--captions").arg(captions).arg("--images").arg(images).arg("--out").arg(out);
    command
}

fn told(command: &mut Command, status: i32) -> Value {
    serde_json::from_slice(&run(command, status).stdout).unwrap()
}

fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(folder).unwrap().map(|entry| file(entry.unwrap())).collect()
}

#[test]
fn captions_are_scored_and_the_worst_are_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let captions = captions(folder.path());
    let (photos, clip) = (Golden::own().photos, Golden::own().path("clip_text"));
    let images = here("images");
    fs::create_dir(&images).unwrap();
    for entry in fs::read_dir(&photos).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), images.join(entry.file_name())).unwrap();
    }
    let all = here("all");
    let summary = told(prepare(&captions, &images, &all).arg("--scorer").arg(&clip), 3);
    let table = all.join("captions.parquet");
    let (ids, words, found) = (texts(&table, "image_id"), texts(&table, "caption"), scores(&table));
    assert_eq!(
        (summary["clip_score"]["unscored"].as_u64(), summary["counts"]["below_min_clip_score"].as_u64()),
        (Some(1), Some(0))
    );
    assert_eq!(found.iter().filter(|score| score.is_none()).count(), 1);
    assert!(ids.iter().zip(&found).all(|(id, score)| score.is_none() == (id == "gone")));
    assert!(batches(&all.join("below_min_clip_score.parquet")).iter().all(|batch| batch.num_rows() == 0));
    // The same numbers as `score` has.
    let scored = here("scored.parquet");
    let mut score = clipcap();
    score.args(["score", "--quiet"]).arg(&captions).arg("--images").arg(&images).arg("--scorer").arg(&clip);
    run(score.arg("--out").arg(&scored), 3);
    let by_caption = |names: Vec<String>, words: Vec<String>, scores: Vec<Option<f32>>| -> BTreeMap<(String, String), f32> {
        let id = |name: String| name.trim_end_matches(".jpg").trim_end_matches(".png").to_string();
        names.into_iter().map(id).zip(words).zip(scores).filter_map(|(key, score)| Some((key, score?))).collect()
    };
    let theirs = by_caption(texts(&scored, "image_path"), texts(&scored, "caption"), scores(&scored));
    let ours = by_caption(ids.clone(), words.clone(), found.clone());
    assert_eq!(ours.len(), theirs.len());
    for (key, score) in &ours {
        assert!((score - theirs[key]).abs() < 1e-4, "{key:?}: {score} {}", theirs[key]);
    }
    // Half of them are put aside.
    let mut sorted: Vec<f32> = found.iter().flatten().copied().collect();
    sorted.sort_by(f32::total_cmp);
    let bound = sorted[sorted.len() / 2];
    let some = here("some");
    let flags = ["--min-clip-score", &bound.to_string(), "--lint"];
    let summary = told(prepare(&captions, &images, &some).arg("--scorer").arg(&clip).args(flags), 3);
    let (table, below) = (some.join("captions.parquet"), some.join("below_min_clip_score.parquet"));
    let kept: Vec<(String, String)> = texts(&table, "image_id").into_iter().zip(texts(&table, "caption")).collect();
    let wanted = |is_kept: bool| -> Vec<(String, String)> {
        let rows = ids.iter().cloned().zip(words.iter().cloned()).zip(&found);
        rows.filter(|(_, score)| score.is_none_or(|score| score >= bound) == is_kept).map(|(key, _)| key).collect()
    };
    assert_eq!(kept, wanted(true));
    let aside: Vec<(String, String)> = texts(&below, "image_id").into_iter().zip(texts(&below, "caption")).collect();
    assert_eq!(aside, wanted(false));
    assert!(scores(&below).iter().all(|score| score.unwrap() < bound));
    assert!(texts(&below, "split").iter().all(|split| split == "train"));
    assert_eq!(summary["counts"]["captions"].as_u64(), Some(kept.len() as u64));
    assert_eq!(summary["counts"]["below_min_clip_score"].as_u64(), Some(aside.len() as u64));
    assert_eq!(summary["clip_score"]["below_by_split"]["train"].as_u64(), Some(aside.len() as u64));
    assert_eq!(manifest(&some)["settings"]["scoring"]["min_clip_score"].as_f64().map(|min| min as f32), Some(bound));
    // What stays is numbered from 0, and counted so.
    let images =
        texts(&some.join("images.parquet"), "image_id").into_iter().zip(ints(&some.join("images.parquet"), "num_captions"));
    let counted: BTreeMap<String, i64> = images.collect();
    for (id, count) in &counted {
        let numbers: Vec<i64> =
            kept.iter().zip(ints(&table, "caption_id")).filter(|((name, _), _)| name == id).map(|(_, number)| number).collect();
        assert_eq!(numbers, (0..*count).collect::<Vec<_>>(), "{id}");
    }
    // Again: finished, with the same counts and bytes. Another bound is refused; without a scorer the table goes.
    let before = bytes(&some);
    let again = told(prepare(&captions, &here("images"), &some).arg("--scorer").arg(&clip).args(flags), 3);
    assert_eq!((again["counts"].clone(), bytes(&some)), (summary["counts"].clone(), before));
    let refused = run(prepare(&captions, &here("images"), &some).arg("--scorer").arg(&clip), 1);
    assert!(String::from_utf8_lossy(&refused.stdout).contains("scoring.min_clip_score"), "{refused:?}");
    run(prepare(&captions, &here("images"), &some).arg("--overwrite"), 3);
    assert!(!below.exists() && !here("some.work").exists());
}

#[test]
fn a_killed_run_goes_on_from_its_scores() {
    let clip = Golden::own().path("clip_text");
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let scenes = crate::common::scenes(folder.path(), 400);
    let captions = here("captions.jsonl");
    let names = fs::read_dir(&scenes).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let lines = |name: String| {
        ["red", "blue", "green"].map(|word| json!({"file_name": name, "caption": format!("a {word} one")}).to_string())
    };
    fs::write(&captions, names.flat_map(lines).collect::<Vec<_>>().join("\n")).unwrap();
    let command = |out: &Path| {
        let mut command = clipcap();
        command.args(["prepare", "--min-clip-score", "0", "--threads", "1", "--captions"]).arg(&captions);
        command.arg("--images").arg(&scenes).arg("--scorer").arg(&clip).arg("--out").arg(out);
        command
    };
    run(&mut command(&here("whole")), 0);
    let out = here("killed");
    let mut child = command(&out).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let kept = || -> u64 {
        let Ok(files) = fs::read_dir(here("killed.work")) else { return 0 };
        let files = files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with("clip_scores"));
        files.map(|file| file.metadata().map_or(0, |data| data.len())).sum()
    };
    while kept() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(kept() > 0 && !out.exists(), "it was not killed in the middle");
    let output = run(&mut command(&out), 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("scores are there already"), "{output:?}");
    assert!(bytes(&out) == bytes(&here("whole")));
    assert!(!here("killed.work").exists());
}

#[test]
fn what_cannot_score_is_told_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let captions = folder.path().join("captions.jsonl");
    fs::write(&captions, json!({"file_name": "a.jpg", "caption": "一只狗"}).to_string()).unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    fs::create_dir(&images).unwrap();
    let blind = tiny_bundle(folder.path());
    let refused = run(prepare(&captions, &images, &out).arg("--scorer").arg(blind), 1);
    assert!(String::from_utf8_lossy(&refused.stdout).contains("no text tower"), "{refused:?}");
    run(prepare(&captions, &images, &out).args(["--min-clip-score", "0.2"]), 2);
    assert!(!out.exists());
}
