//! `clipcap score`: cosines as transformers has them, whatever the table and wherever the images are.

use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use serde_json::{Value, json};

use crate::common::golden::Golden;
use crate::common::{clipcap, columns, run, tiny_bundle};

/// The scores of a table, row by row.
fn scores(table: &Path) -> Vec<Option<f32>> {
    let mut rows = vec![];
    for batch in clipcap::table::open(table, None).unwrap() {
        let batch = batch.unwrap();
        let column = batch.column_by_name("clip_score").unwrap().as_primitive::<Float32Type>().clone();
        rows.extend((0..column.len()).map(|row| (!column.is_null(row)).then(|| column.value(row))));
    }
    rows
}

fn unit(values: &[f32], width: usize) -> Vec<Vec<f64>> {
    let scaled = |row: &[f32]| {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        row.iter().map(|x| f64::from(*x) / length).collect()
    };
    values.chunks(width).map(scaled).collect()
}

/// A photo and a caption, each with each.
type Pairs = Vec<(String, String)>;

/// Every photo with every caption, and the golden cosines in that order.
fn pairs(golden: &Golden, family: &str, language: &str) -> (Pairs, Vec<f64>) {
    let (photos, captions) = (golden.texts("photos"), golden.texts(language));
    let file = golden.tensors(family);
    let read = |name: &str| unit(&file.read_f32(name).unwrap(), file.get(name).unwrap().shape[1]);
    let (images, written) = (read("image_embeds"), read("text_embeds_normalized"));
    let (mut rows, mut cosines) = (vec![], vec![]);
    for (photo, image) in photos.iter().zip(&images) {
        for (caption, text) in captions.iter().zip(&written) {
            rows.push((photo.clone(), caption.clone()));
            cosines.push(image.iter().zip(text).map(|(a, b)| a * b).sum());
        }
    }
    (rows, cosines)
}

fn score(table: &Path, scorer: &Path, out: &Path) -> std::process::Command {
    let mut command = clipcap();
    command.args(["score", "--overwrite"]).arg(table).arg("--scorer").arg(scorer).arg("--out").arg(out);
    command
}

/// The pairs as JSON lines.
fn lines(folder: &Path, key: &str, rows: &[(String, String)]) -> PathBuf {
    let path = folder.join(format!("{key}.jsonl"));
    let lines: Vec<String> = rows.iter().map(|(image, caption)| json!({key: image, "caption": caption}).to_string()).collect();
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

#[test]
fn scores_are_the_cosines_of_transformers() {
    Golden::all().iter().for_each(cosines_are_the_golden_ones);
}

fn cosines_are_the_golden_ones(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("scored.parquet");
    for (family, language) in [("chinese_clip", "chinese"), ("clip_text", "english")] {
        let (rows, wanted) = pairs(golden, family, language);
        let scorer = golden.path(family);
        for key in ["image", "file_name"] {
            let table = lines(folder.path(), key, &rows);
            run(score(&table, &scorer, &out).arg("--images").arg(&golden.photos), 0);
            let found = scores(&out);
            assert_eq!(found.len(), wanted.len());
            for (row, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                assert!((f64::from(found.unwrap()) - wanted).abs() < 2e-3, "{family}, row {row}: {found:?}, not {wanted}");
            }
            assert_eq!(columns(&out, &["caption"])[0], [rows[0].1.clone()]);
        }
        // A bundle of the same CLIP scores the same, and embeddings made with it stand in for the images.
        let (bundle, embeddings) = (folder.path().join(family), folder.path().join(format!("{family}-e")));
        let mut init = clipcap();
        init.args(["model", "init", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--quiet", "--clip"]).arg(&scorer);
        run(init.arg("--out").arg(&bundle), 0);
        let mut embed = clipcap();
        embed.args(["embed", "--quiet", "--images"]).arg(&golden.photos);
        run(embed.arg("--model").arg(&bundle).arg("--out").arg(&embeddings), 0);
        let (table, again) = (lines(folder.path(), "image", &rows), folder.path().join("again.parquet"));
        for with in [&bundle, &scorer] {
            run(score(&table, with, &again).arg("--embeddings").arg(&embeddings), 0);
            assert!(scores(&again).iter().zip(scores(&out)).all(|(a, b)| (a.unwrap() - b.unwrap()).abs() < 1e-4));
        }
        let other = golden.path(if family == "clip_text" { "chinese_clip" } else { "clip_text" });
        let refused = run(score(&table, &other, &again).arg("--embeddings").arg(&embeddings), 1);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("another image encoder"));
    }
}

#[test]
fn a_row_without_its_image_has_no_score_and_is_told() {
    let golden = Golden::own();
    let ((mut rows, _), scorer) = (pairs(&golden, "chinese_clip", "chinese"), golden.path("chinese_clip"));
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir_all(&photos).unwrap();
    let only = rows[0].0.clone();
    rows.retain(|row| row.0 == only);
    fs::copy(golden.photos.join(&rows[0].0), photos.join(&rows[0].0)).unwrap();
    fs::write(photos.join("broken.jpg"), b"\xff\xd8\xff").unwrap();
    rows[1].0 = "gone.jpg".into();
    rows[2].0 = "broken.jpg".into();
    let table = lines(folder.path(), "image", &rows);
    for name in ["out.parquet", "out.csv", "out.jsonl"] {
        let out = folder.path().join(name);
        run(score(&table, &scorer, &out).arg("--images").arg(&photos), 3);
        let errors = columns(&folder.path().join(".clipcap/out.errors.parquet"), &["image_path", "reason"]);
        assert_eq!(errors, [["broken.jpg", "truncated"], ["gone.jpg", "vanished"]]);
        let told: Vec<bool> = match name {
            "out.parquet" => scores(&out).iter().map(Option::is_some).collect(),
            "out.csv" => fs::read_to_string(&out).unwrap().lines().skip(1).map(|line| !line.ends_with(',')).collect(),
            _ => fs::read_to_string(&out)
                .unwrap()
                .lines()
                .map(|line| !serde_json::from_str::<Value>(line).unwrap()["clip_score"].is_null())
                .collect(),
        };
        assert_eq!(told, [true, false, false, true, true], "{name}");
    }
}

#[test]
fn what_cannot_score_is_told() {
    let golden = Golden::own();
    let (rows, _) = pairs(&golden, "chinese_clip", "chinese");
    let folder = tempfile::tempdir().unwrap();
    let (table, out) = (lines(folder.path(), "image", &rows), folder.path().join("out.parquet"));
    for (scorer, word) in [
        (golden.path("siglip"), "no text tower"),
        (golden.path("openai_resnet.pt"), "vocab.json and merges.txt"),
        (tiny_bundle(folder.path()), "no text tower"),
    ] {
        let refused = run(score(&table, &scorer, &out).arg("--images").arg(&golden.photos), 1);
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(message.contains(word), "{message}");
        assert!(!out.exists());
    }
}

#[test]
fn long_captions_are_scored_by_their_beginnings_and_blank_ones_not_at_all() {
    let golden = Golden::own();
    let folder = tempfile::tempdir().unwrap();
    for (family, language, word) in [("clip_text", "english", "dog "), ("chinese_clip", "chinese", "狗")] {
        let ((rows, _), scorer) = (pairs(&golden, family, language), golden.path(family));
        let photo = rows[0].0.clone();
        let captions = [word.repeat(700), word.repeat(900), rows[0].1.clone(), String::new(), "  ".into()];
        let rows: Vec<(String, String)> = captions.into_iter().map(|caption| (photo.clone(), caption)).collect();
        // In a table, where blank captions stand too.
        let table = folder.path().join("long.csv");
        let mut csv = csv::Writer::from_path(&table).unwrap();
        csv.write_record(["image", "caption"]).unwrap();
        rows[..3].iter().for_each(|(image, caption)| csv.write_record([image, caption]).unwrap());
        csv.flush().unwrap();
        let out = folder.path().join("scored.parquet");
        let mut command = score(&table, &scorer, &out);
        let output = run(command.arg("--images").arg(&golden.photos), 0);
        let found = scores(&out);
        assert!(found[0].is_some() && found[0] == found[1] && found[0] != found[2], "{family}: {found:?}");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("2 captions are longer"), "{family}: {message}");
        // The same rows with blank captions, as Parquet.
        let text = |column: usize| -> arrow::array::ArrayRef {
            let values = rows.iter().map(|row| if column == 0 { &row.0 } else { &row.1 });
            std::sync::Arc::new(arrow::array::StringArray::from_iter_values(values))
        };
        let batch = arrow::array::RecordBatch::try_from_iter([("image_path", text(0)), ("caption", text(1))]).unwrap();
        let table = folder.path().join("blank.parquet");
        let mut sink = clipcap::table::ParquetSink::create(&table, batch.schema(), "captions/1").unwrap();
        sink.write(&batch).unwrap();
        sink.finish().unwrap();
        run(score(&table, &scorer, &out).arg("--images").arg(&golden.photos), 0);
        let again = scores(&out);
        assert_eq!((&again[..3], &again[3..]), (&found[..], &[None, None][..]), "{family}");
    }
}
