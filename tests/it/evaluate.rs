//! `clipcap evaluate` from the outside: layouts in, figures, files and exit statuses out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::common::{checkout, shared};

fn clipcap(folder: &Path, args: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_clipcap")).arg("evaluate").args(args).current_dir(folder).output();
    run.expect("the binary that cargo just built starts")
}

/// Runs with `--json`, expects success and returns what stdout says.
fn evaluate(folder: &Path, args: &[&str]) -> Value {
    let output = clipcap(folder, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("--json prints JSON alone")
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Captions and their scores: of the repository, and pycocoevalcap's own beside it.
fn golden() -> Vec<(PathBuf, Value)> {
    let own = checkout().join("tests/answers/metrics.json");
    let paths = [Some(own), shared("golden/metrics.expected.json")].into_iter().flatten();
    paths.map(|path| (path.clone(), serde_json::from_slice(&fs::read(&path).unwrap()).unwrap())).collect()
}

const METRICS: [&str; 6] = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"];

/// Four images, two of which the predictions get right.
fn small(folder: &Path) {
    fs::write(
        folder.join("refs.txt"),
        "a#0\t一只黑狗在草地上跑\na#1\t黑色的狗在跑\nb#0\t两个男人在下棋\nc#0\t一个女孩在看书\nd#0\t猫睡在沙发上\n",
    )
    .unwrap();
    let predictions = json!([
        {"image_id": "a", "caption": "一只黑狗在草地上跑"},
        {"image_id": "b", "caption": "两个人"},
        {"image_id": "c", "caption": "一个女孩在看书"},
        {"image_id": "d", "caption": "狗狗狗狗狗狗狗"},
        {"image_id": "d", "caption": "猫睡在沙发上"},
    ]);
    fs::write(folder.join("pred.json"), predictions.to_string()).unwrap();
}

#[test]
fn golden_scores_come_out_of_the_command() {
    golden().iter().for_each(|(path, golden)| scores_are_the_golden_ones(path, golden));
}

fn scores_are_the_golden_ones(path: &Path, golden: &Value) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("refs.json"), golden["references"].to_string()).unwrap();
    let results: Vec<Value> =
        golden["predictions"].as_object().unwrap().iter().map(|(id, text)| json!({"image_id": id, "caption": text})).collect();
    fs::write(folder.path().join("pred.json"), json!(results).to_string()).unwrap();
    let path = path.to_str().unwrap();
    for args in [["--predictions", "pred.json", "--references", "refs.json"], ["--predictions", path, "--references", path]] {
        let found = evaluate(folder.path(), &[&args[..], &["--out", "scores.json", "--per-image", "images.parquet"]].concat());
        for name in METRICS {
            let (value, expected) = (found["char"][name].as_f64().unwrap(), golden["expected"][name].as_f64().unwrap());
            assert!((value - expected).abs() < 1e-9, "{name}: {value} and not {expected}");
            assert!(found["word"][name].as_f64().unwrap() > 0.0);
        }
        let written: Value = serde_json::from_slice(&fs::read(folder.path().join("scores.json")).unwrap()).unwrap();
        assert_eq!(written, found);
        assert_eq!(found["char"].as_object().unwrap().len(), 6);
    }
    assert_eq!(
        per_image_golden_rows(&folder.path().join("images.parquet"), golden),
        golden["per_image"].as_object().unwrap().len()
    );
}

/// Compares the character rows with the golden ones and counts them.
fn per_image_golden_rows(path: &Path, golden: &Value) -> usize {
    use arrow::array::{Float64Array, StringArray};
    use clipcap::table::{column, open};
    let mut rows = 0;
    for batch in open(path, Some("image_scores/1")).unwrap() {
        let batch = batch.unwrap();
        let text = |name| column::<StringArray>(&batch, name, path).unwrap();
        let float = |name| column::<Float64Array>(&batch, name, path).unwrap();
        for row in (0..batch.num_rows()).filter(|row| text("tokens").value(*row) == "char") {
            let expected = &golden["per_image"][text("image_id").value(row)];
            for name in ["rouge_l", "cider"] {
                assert!((float(name).value(row) - expected[name].as_f64().unwrap()).abs() < 1e-9);
            }
            rows += 1;
        }
    }
    rows
}

#[test]
fn the_oracle_picks_the_better_caption() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let args = ["--predictions", "pred.json", "--references", "refs.txt"];
    let first = evaluate(folder.path(), &args);
    let oracle = evaluate(folder.path(), &[&args[..], &["--candidate", "oracle"]].concat());
    assert!(oracle["char"]["cider"].as_f64() > first["char"]["cider"].as_f64());
    assert_eq!((&first["candidate"], &oracle["candidate"]), (&json!("first"), &json!("oracle")));
    let repeating = |found: &Value| found["captions"]["char"]["repeated_4gram_rate"].as_f64().unwrap();
    assert_eq!((repeating(&first), repeating(&oracle)), (0.25, 0.0));
    let text = clipcap(folder.path(), &[&args[..], &["--candidate", "oracle"]].concat());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("oracle") && text.contains("CIDEr") && text.contains("char") && text.contains("word"), "{text}");
}

#[test]
fn only_one_level_is_scored_where_one_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let args = ["--predictions", "pred.json", "--references", "refs.txt", "--tokens", "char"];
    let found = evaluate(folder.path(), &args);
    assert!(found.get("char").is_some() && found.get("word").is_none());
}

#[test]
fn what_has_no_counterpart_is_counted_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    fs::write(folder.path().join("table.tsv"), "photos/a.jpg\t一只黑狗\nc.jpg\t一个女孩\nz.jpg\t没有\n").unwrap();
    let output = clipcap(folder.path(), &["--predictions", "table.tsv", "--references", "refs.txt", "--json"]);
    assert!(output.status.success());
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let coverage = &found["coverage"];
    assert_eq!(coverage["images"], 2);
    // `c.jpg` and `c` are one id, and `photos/a` is another than `a`.
    assert_eq!(coverage["matched_exactly"], 1);
    assert_eq!(coverage["predictions_without_references"], 1);
    assert_eq!(coverage["references_without_predictions"], 2);
    let said = stderr_of(&output);
    assert!(said.contains("matched by path or name: 1 of 2"), "{said}");
    assert!(
        said.contains("but no reference: 1") && said.contains("but no prediction: 2") && said.contains("images scored: 2"),
        "{said}"
    );
}

#[test]
fn a_comparison_is_paired_seeded_and_independent_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    fs::write(folder.path().join("second.tsv"), "a\t黑狗\nb\t两个男人在下棋\nc\t一个女孩在看书\n").unwrap();
    let args = ["--predictions", "pred.json", "--references", "refs.txt", "--compare", "second.tsv", "--bootstrap", "200"];
    let one = evaluate(folder.path(), &[&args[..], &["--threads", "1"]].concat());
    let three = evaluate(folder.path(), &[&args[..], &["--threads", "3"]].concat());
    assert_eq!(one, three);
    assert_ne!(one, evaluate(folder.path(), &[&args[..], &["--seed", "9"]].concat()));
    assert_eq!((&one["coverage"]["images"], &one["coverage"]["not_in_compared"]), (&json!(3), &json!(1)));
    let cider = &one["comparison"]["char"]["cider"];
    let difference = cider["second"].as_f64().unwrap() - one["char"]["cider"].as_f64().unwrap();
    assert!((cider["difference"].as_f64().unwrap() - difference).abs() < 1e-12);
    assert!((0.0..=1.0).contains(&cider["p_value"].as_f64().unwrap()));
    let bounds = &one["intervals"]["char"]["rouge_l"];
    let rouge = one["char"]["rouge_l"].as_f64().unwrap();
    assert!(bounds[0].as_f64().unwrap() <= rouge && rouge <= bounds[1].as_f64().unwrap());
}

#[test]
fn bad_input_ends_with_one_and_bad_usage_with_two() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    fs::write(folder.path().join("broken.json"), "[{\"image_id\": \"a\"").unwrap();
    fs::write(folder.path().join("other.tsv"), "x\t狗\n").unwrap();
    let run = |predictions: &str| clipcap(folder.path(), &["--predictions", predictions, "--references", "refs.txt"]);
    for (predictions, says) in
        [("broken.json", "broken.json"), ("none.json", "none.json"), ("other.tsv", "no prediction has a reference")]
    {
        let output = run(predictions);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr_of(&output).contains(says), "{}", stderr_of(&output));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(clipcap(folder.path(), &["--predictions", "pred.json"]).status.code(), Some(2));
    let args = ["--predictions", "pred.json", "--references", "refs.txt", "--tokens", "syllable"];
    assert_eq!(clipcap(folder.path(), &args).status.code(), Some(2));
    // Scores do not replace what they were made from.
    let references = fs::read(folder.path().join("refs.txt")).unwrap();
    for output in ["--out", "--per-image"] {
        let args = ["--predictions", "pred.json", "--references", "refs.txt", output, "./refs.txt"];
        assert_eq!(clipcap(folder.path(), &args).status.code(), Some(2));
    }
    assert_eq!(fs::read(folder.path().join("refs.txt")).unwrap(), references);
    let args = ["--predictions", "pred.json", "--references", "refs.txt", "--out", "s.json", "--per-image", "s.json"];
    assert_eq!(clipcap(folder.path(), &args).status.code(), Some(2));
}

#[test]
fn datasets_and_caption_tables_in_parquet_are_read() {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, LargeStringArray, StringArray};
    use arrow::record_batch::RecordBatch;
    use clipcap::table::ParquetSink;

    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut sink = ParquetSink::create(&folder.path().join(name), batch.schema(), "captions/1").unwrap();
        sink.write(&batch).unwrap();
        sink.finish().unwrap();
    };
    let text = |values: &[&str]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let int = |values: &[i32]| -> ArrayRef { Arc::new(Int32Array::from(values.to_vec())) };
    write(
        "dataset/captions.parquet",
        vec![
            ("image_id", text(&["1", "1", "2", "3"])),
            ("caption_id", int(&[0, 1, 0, 0])),
            ("caption", text(&["一只狗在跑", "狗跑步", "两只猫", "一个人"])),
            ("split", text(&["test", "test", "test", "train"])),
        ],
    );
    // Numbered parts, captions out of order, large strings as other writers have them.
    let captions: ArrayRef = Arc::new(LargeStringArray::from(vec!["错", "一只狗在跑"]));
    write(
        "table/part-00000.parquet",
        vec![("image_id", text(&["1", "1"])), ("caption_index", int(&[1, 0])), ("caption", captions)],
    );
    write(
        "table/part-00001.parquet",
        vec![("image_id", text(&["2", "3"])), ("caption_index", int(&[0, 0])), ("caption", text(&["两只猫", "一个人"]))],
    );
    write("table/errors.parquet", vec![("image_path", text(&["x"])), ("reason", text(&["empty"]))]);

    let args = ["--predictions", "table", "--references", "dataset", "--tokens", "char"];
    let all = evaluate(folder.path(), &args);
    assert_eq!((&all["coverage"]["images"], &all["coverage"]["references"]), (&json!(3), &json!(4)));
    assert!((all["char"]["bleu_1"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    let test = evaluate(folder.path(), &[&args[..], &["--split", "test"]].concat());
    assert_eq!((&test["coverage"]["images"], &test["coverage"]["predictions_without_references"]), (&json!(2), &json!(1)));
}
