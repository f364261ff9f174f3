//! The table's other forms, and inputs that are no files.

use std::fs;
use std::path::Path;

use clipcap::pipeline::Source;
use clipcap::pipeline::npy::{FloatType, write_header};
use clipcap::stages::Outcome;
use clipcap::stages::caption::TableFormat;

use super::fake::{Fake, bytes, caption, errors, picture, pictures, rows, settings, with};

#[test]
fn csv_tsv_json_lines_and_parts_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 70);
    picture(&images.join("a,\"b\".png"), 1000);
    let run = |name: &str| {
        let out = folder.path().join(name);
        let fake = Fake::new(4);
        caption(&settings(&images, &out), &fake).unwrap();
        (out, fake.num_captioned())
    };
    let (parquet, _) = run("t/out.parquet");
    let table = rows(&parquet);
    let (csv, _) = run("c/out.csv");
    let mut reader = csv::Reader::from_path(&csv).unwrap();
    assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>()[..4], ["image_id", "image_path", "sha256", "caption_index"]);
    let records: Vec<Vec<String>> = reader.records().map(|r| r.unwrap().iter().map(String::from).collect()).collect();
    let with_numbers = |rows: Vec<Vec<String>>| {
        let number = |cell: &String| cell.parse::<f64>().unwrap();
        rows.into_iter().map(|row| (row[..5].to_vec(), number(&row[5]), row[6..].to_vec())).collect::<Vec<_>>()
    };
    assert!(with_numbers(records) == with_numbers(table.iter().map(|row| row.to_vec()).collect()));
    let (jsonl, _) = run("j/out.jsonl");
    let text = fs::read_to_string(&jsonl).unwrap();
    for (line, row) in text.lines().zip(&table) {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((json["image_path"].as_str(), json["caption"].as_str()), (Some(row[1].as_str()), Some(row[4].as_str())));
        assert_eq!((json["caption_index"].to_string(), json["logprob"].as_f64()), (row[3].clone(), row[5].parse().ok()));
    }
    assert_eq!(text.lines().count(), 142);
    let (tsv, _) = run("v/out.tsv");
    let lines = fs::read_to_string(&tsv).unwrap();
    let wanted: Vec<String> = table.chunks(2).map(|two| format!("{}\t{}\t{}", two[0][1], two[0][4], two[1][4])).collect();
    assert_eq!(lines.lines().collect::<Vec<_>>(), wanted);
    let (parts, _) = run("parts/");
    assert!(rows(&parts) == table);
    assert_eq!(bytes(&parts).into_keys().collect::<Vec<_>>(), ["part-00000.parquet"]);
    // Every form but the original's holds enough to go on from.
    for (name, known) in
        [("t/out.parquet", true), ("c/out.csv", true), ("j/out.jsonl", true), ("v/out.tsv", false), ("parts/", true)]
    {
        let before = bytes(folder.path());
        assert_eq!(run(name).1, if known { 0 } else { 71 }, "{name}");
        assert!(bytes(folder.path()) == before);
    }
}

#[test]
fn names_say_the_format() {
    for (name, format) in [
        ("a.parquet", Some(TableFormat::Parquet)),
        ("a.b/c.CSV", Some(TableFormat::Csv)),
        ("a.tsv", Some(TableFormat::Tsv)),
        ("a.jsonl", Some(TableFormat::JsonLines)),
        ("folder", Some(TableFormat::Parts)),
        ("v1.0/", Some(TableFormat::Parts)),
        ("a.xlsx", None),
        ("a.json", None),
    ] {
        assert_eq!(TableFormat::of(Path::new(name)), format, "{name}");
    }
}

/// [rows, 3] float32, the second row not finite.
fn npy(path: &Path, rows: u64) {
    let mut file = Vec::new();
    write_header(&mut file, FloatType::F32, rows, 3).unwrap();
    for row in 0..rows {
        let values = [row as f32, 0.5, if row == 1 { f32::NAN } else { -1.0 }];
        file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    fs::write(path, file).unwrap();
}

#[test]
fn embeddings_from_npy_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let (vectors, out) = (folder.path().join("v.npy"), folder.path().join("out.parquet"));
    npy(&vectors, 120);
    let settings = with(settings(folder.path(), &out), |run| run.source = Source::Embeddings(vectors.clone()));
    let fake = Fake::new(4);
    let report = caption(&settings, &fake).unwrap();
    assert_eq!((report.outcome, fake.num_captioned()), (Outcome::SomeFailed, 119));
    assert!(fake.encoded.lock().unwrap().is_empty(), "no image was encoded");
    assert_eq!(errors(&folder.path().join(".clipcap/out.errors.parquet"))["1"], "corrupt");
    let table = rows(&out);
    let order: Vec<_> = table.iter().step_by(2).map(|row| row[1].parse::<u32>().unwrap()).collect();
    assert_eq!(order, (0..120).filter(|&row| row != 1).collect::<Vec<_>>());
    let third: Vec<u8> = [3f32, 0.5, -1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(table[4][2], clipcap::files::ContentHash::of(&third).to_string());
    assert!(table[4][4].starts_with("颜色3.00"));
    npy(&vectors, 121);
    let fake = Fake::new(4);
    caption(&settings, &fake).unwrap();
    assert_eq!(fake.num_captioned(), 1);
    fs::write(&vectors, b"not numpy").unwrap();
    assert!(format!("{:#}", caption(&settings, &fake).unwrap_err()).contains("v.npy"));
}

#[test]
fn images_that_a_dataset_stores_are_read_in_place_of_files() {
    use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, StructArray};
    use std::sync::Arc;
    let folder = tempfile::tempdir().unwrap();
    let (images, dataset) = (folder.path().join("images"), folder.path().join("dataset"));
    pictures(&images, 40);
    fs::create_dir(&dataset).unwrap();
    caption(&settings(&images, &folder.path().join("files.parquet")), &Fake::new(4)).unwrap();
    let wanted = rows(&folder.path().join("files.parquet"));
    let paths: Vec<&str> = wanted.iter().step_by(2).map(|row| row[1].as_str()).collect();
    for (number, paths) in paths.chunks(25).enumerate() {
        let contents: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(images.join(path)).unwrap()).collect();
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(&contents));
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(paths));
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(paths.iter().map(|path| format!("id of {path}"))));
        let field = |name: &str, array: &ArrayRef| Arc::new(arrow::datatypes::Field::new(name, array.data_type().clone(), true));
        let image = StructArray::from(vec![(field("bytes", &bytes), bytes), (field("path", &names), names.clone())]);
        let columns: Vec<(&str, ArrayRef)> = vec![("image_id", ids), ("image_path", names), ("image", Arc::new(image))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let path = dataset.join(format!("images-{number:05}.parquet"));
        let mut sink = clipcap::table::ParquetSink::create(&path, batch.schema(), "dataset/1").unwrap();
        sink.write(&batch).unwrap();
        sink.finish().unwrap();
    }
    let out = folder.path().join("out.parquet");
    let stored = with(settings(&images, &out), |run| run.source = Source::Dataset(dataset));
    caption(&stored, &Fake::new(4)).unwrap();
    let table = rows(&out);
    assert_eq!(table.iter().map(|row| &row[1..]).collect::<Vec<_>>(), wanted.iter().map(|row| &row[1..]).collect::<Vec<_>>());
    assert_eq!(table[0][0], format!("id of {}", table[0][1]));
}
