//! The embed stage with an encoder that can be foretold: layouts, element types, reuse, stored images.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float16Type, Float32Type};
use clipcap::files::ContentHash;
use clipcap::image::Preprocess;
use clipcap::models::ImageEncoder;
use clipcap::pipeline::npy::FloatType;
use clipcap::pipeline::{Content, Embeddings, Interrupt, RunSettings, Silent, Source, StoredImages};
use clipcap::runtime::RuntimeError;
use clipcap::stages::Outcome;
use clipcap::stages::embed::{EmbedReport, EmbedSettings, EncoderInfo, Layout, run};
use clipcap::table;
use serde_json::json;

use crate::common::beside;

/// D = 4: the channels' means, and 1.
#[derive(Clone, Default)]
struct Fake {
    encoded: Arc<Mutex<usize>>,
}

impl ImageEncoder for Fake {
    fn embedding_dim(&self) -> usize {
        4
    }
    fn max_batch(&self) -> usize {
        7
    }
    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError> {
        assert_eq!(pixel_values.len(), num_images * 3 * 8 * 8);
        *self.encoded.lock().unwrap() += num_images;
        let means = |image: &[f32]| image.chunks_exact(64).map(|plane| plane.iter().sum::<f32>() / 64.0).collect::<Vec<_>>();
        // An all-white image overflows.
        let last = |means: &[f32]| if means.iter().all(|&mean| mean > 1.9) { f32::NAN } else { 1.0 };
        let embedding = |image| {
            let mut embedding = means(image);
            embedding.push(last(&embedding));
            embedding
        };
        Ok(pixel_values.chunks_exact(192).flat_map(embedding).collect())
    }
}

fn settings(images: &Path, out: &Path) -> EmbedSettings {
    EmbedSettings {
        run: RunSettings::new(Source::Paths(vec![images.into()]), out, 2, 7),
        layout: Layout::Parquet,
        dtype: FloatType::F32,
        normalize: false,
        save_images: false,
    }
}

fn from(source: Source, out: &Path) -> EmbedSettings {
    let settings = settings(Path::new("unused"), out);
    EmbedSettings { run: RunSettings { source, ..settings.run }, ..settings }
}

fn embed(settings: &EmbedSettings) -> (EmbedReport, usize) {
    let model = EncoderInfo {
        identity: json!({"fingerprint": "fake"}),
        preprocess: Preprocess::from_json(r#"{"size": 8, "crop_size": 8}"#).unwrap(),
        embedding_dim: 4,
        shares_cores: true,
    };
    let fake = Fake::default();
    let report = run(settings, &model, || Ok(fake.clone()), &Silent, &Interrupt::default()).unwrap();
    let encoded = *fake.encoded.lock().unwrap();
    (report, encoded)
}

fn pictures(folder: &Path, number: u8) {
    fs::create_dir_all(folder).unwrap();
    for i in 0..number {
        image::RgbImage::from_pixel(9, 9, image::Rgb([i, 2, 200])).save(folder.join(format!("{i:03}.png"))).unwrap();
    }
    fs::copy(folder.join("005.png"), folder.join("copy.png")).unwrap();
    fs::write(folder.join("bad.png"), "bad").unwrap();
}

fn batches(path: &Path) -> Vec<RecordBatch> {
    table::open(path, Some("embeddings/1")).unwrap().map(|batch| batch.unwrap()).collect()
}

#[test]
fn parts_hold_every_embedding_and_each_content_is_encoded_once() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    pictures(&images, 100);
    let (report, encoded) = embed(&settings(&images, &out));
    assert_eq!((report.outcome, encoded), (Outcome::SomeFailed, 100));
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(beside(&out, "manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["counts"], json!({"found": 102, "embedded": 101, "failed": 1, "skipped": 0}));
    let all = batches(&out.join("part-00000.parquet"));
    assert_eq!(all.iter().map(RecordBatch::num_rows).sum::<usize>(), 101);
    let schema = all[0].schema();
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["image_id", "image_path", "sha256", "embedding", "damaged"]);
    let DataType::FixedSizeList(item, 4) = schema.field(3).data_type() else { panic!("{schema:?}") };
    assert_eq!(item.data_type(), &DataType::Float32);
    let list = all[0].column(3).as_fixed_size_list();
    let (one, copy) = (list.value(5), list.value(100));
    assert_eq!(one.as_primitive::<Float32Type>().values(), copy.as_primitive::<Float32Type>().values());
    assert_eq!(all[0].column(2).as_string::<i32>().value(5), ContentHash::of_file(&images.join("005.png")).unwrap().to_string());
    assert_eq!(one.as_primitive::<Float32Type>().value(3), 1.0);
    let embeddings = Embeddings::open(&out).unwrap();
    assert_eq!((embeddings.num_rows, embeddings.embedding_dim, embeddings.normalized), (101, 4, Some(false)));
    // Again: nothing to do. One changed: one to do.
    let before = fs::read(out.join("part-00000.parquet")).unwrap();
    assert_eq!(embed(&settings(&images, &out)).1, 0);
    assert_eq!(fs::read(out.join("part-00000.parquet")).unwrap(), before);
    image::RgbImage::from_pixel(9, 9, image::Rgb([7, 7, 7])).save(images.join("050.png")).unwrap();
    assert_eq!(embed(&settings(&images, &out)).1, 1);
}

#[test]
fn an_embedding_that_is_not_finite_fails_its_image_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    pictures(&images, 8);
    image::RgbImage::from_pixel(9, 9, image::Rgb([255, 255, 255])).save(images.join("white.png")).unwrap();
    let (report, encoded) = embed(&settings(&images, &out));
    let counts = report.report.counts;
    assert_eq!((report.outcome, encoded, counts.succeeded, counts.failed), (Outcome::SomeFailed, 9, 9, 2));
    let errors = table::open(&beside(&out, "errors.parquet"), None).unwrap().next().unwrap().unwrap();
    let (paths, messages) = (errors.column(0).as_string::<i32>(), errors.column(2).as_string::<i32>());
    let told: Vec<_> = (0..errors.num_rows()).map(|row| (paths.value(row), messages.value(row))).collect();
    assert!(told.iter().any(|(path, message)| *path == "white.png" && message.contains("not finite")), "{told:?}");
}

#[test]
fn a_datasets_path_that_leads_out_of_its_folder_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (images, dataset, out) = (folder.path().join("images"), folder.path().join("set"), folder.path().join("out"));
    pictures(&images, 8);
    fs::copy(images.join("001.png"), folder.path().join("secret.png")).unwrap();
    let text = |values: [&str; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let paths = text(["001.png", "../secret.png", "/etc/passwd"]);
    let rows = RecordBatch::try_from_iter([("image_id", text(["a", "b", "c"])), ("image_path", paths)]).unwrap();
    let mut sink = table::ParquetSink::create(&dataset.join("images.parquet"), rows.schema(), "images/1").unwrap();
    sink.write(&rows).unwrap();
    sink.finish().unwrap();
    let one = from(Source::DatasetFiles(dataset.clone(), vec![images.clone()]), &out);
    let (report, encoded) = embed(&one);
    assert_eq!((encoded, report.report.counts.failed, report.report.counts.skipped), (1, 2, 0));
    let errors = table::open(&beside(&out, "errors.parquet"), None).unwrap().next().unwrap().unwrap();
    let column = |at: usize| errors.column(at).as_string::<i32>().clone();
    assert_eq!((column(0).value(0), column(0).value(1)), ("../secret.png", "/etc/passwd"));
    assert_eq!((column(1).value(0), column(1).value(1)), ("unreadable", "unreadable"));
}

#[test]
fn float16_and_normalized_are_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    pictures(&images, 8);
    let half = EmbedSettings { dtype: FloatType::F16, normalize: true, ..settings(&images, &out) };
    embed(&half);
    let all = batches(&out.join("part-00000.parquet"));
    let first = all[0].column(3).as_fixed_size_list().value(0);
    let values: Vec<f32> = first.as_primitive::<Float16Type>().values().iter().map(|v| v.to_f32()).collect();
    let length: f32 = values.iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 2e-3, "{length}");
    assert_eq!(Embeddings::open(&out).unwrap().normalized, Some(true));
    let before = fs::read(out.join("part-00000.parquet")).unwrap();
    assert_eq!(embed(&half).1, 0, "what was rounded to float16 is good enough to go on from");
    assert_eq!(fs::read(out.join("part-00000.parquet")).unwrap(), before);
}

#[test]
fn clip_retrievals_layout_holds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (images, parts, npy) = (folder.path().join("images"), folder.path().join("parts"), folder.path().join("npy"));
    pictures(&images, 70);
    embed(&settings(&images, &parts));
    let npy_settings = EmbedSettings { layout: Layout::Npy, ..settings(&images, &npy) };
    embed(&npy_settings);
    let entries = |path: &Path| {
        let content = |content| match content {
            Content::Embedding { values, sha256, damaged: false } => (values, sha256),
            other => panic!("{other:?}"),
        };
        let entries = Embeddings::open(path).unwrap().entries();
        entries.map(|e| e.unwrap()).map(|e| (e.image_id, e.image_path, content(e.content))).collect::<Vec<_>>()
    };
    assert_eq!(entries(&npy), entries(&parts));
    let bytes = fs::read(npy.join("img_emb/img_emb_0.npy")).unwrap();
    assert_eq!(bytes.len(), 128 + 71 * 4 * 4);
    assert!(String::from_utf8_lossy(&bytes[10..128]).contains("'shape': (71, 4)"));
    assert_eq!(embed(&npy_settings).1, 0);
    assert_eq!(fs::read(npy.join("img_emb/img_emb_0.npy")).unwrap(), bytes);
}

#[test]
fn saved_images_can_be_read_in_place_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out, again) = (folder.path().join("images"), folder.path().join("out"), folder.path().join("again"));
    pictures(&images, 20);
    embed(&EmbedSettings { save_images: true, ..settings(&images, &out) });
    let stored = StoredImages::open(&out).unwrap();
    assert_eq!(stored.num_rows, 21);
    for entry in stored.entries() {
        let entry = entry.unwrap();
        let Content::Bytes(bytes) = entry.content else { panic!("no bytes") };
        assert_eq!(&bytes[..], fs::read(images.join(&entry.image_path)).unwrap());
    }
    embed(&from(Source::Dataset(out.clone()), &again));
    assert_eq!(fs::read(out.join("part-00000.parquet")).unwrap(), fs::read(again.join("part-00000.parquet")).unwrap());
}

#[test]
fn a_datasets_list_finds_its_files() {
    use arrow::array::StringArray;
    let folder = tempfile::tempdir().unwrap();
    let (images, dataset) = (folder.path().join("images"), folder.path().join("dataset"));
    pictures(&images, 6);
    fs::create_dir(&dataset).unwrap();
    let ids: Arc<dyn Array> = Arc::new(StringArray::from(vec!["one", "none", "two", "evil"]));
    let paths: Arc<dyn Array> =
        Arc::new(StringArray::from(vec![Some("000.png"), None, Some("001.png"), Some("../images/002.png")]));
    let batch = RecordBatch::try_from_iter_with_nullable([("image_id", ids, false), ("image_path", paths, true)]).unwrap();
    let mut sink = table::ParquetSink::create(&dataset.join("images.parquet"), batch.schema(), "images/1").unwrap();
    sink.write(&batch).unwrap();
    sink.finish().unwrap();
    let out = folder.path().join("out");
    let source = Source::DatasetFiles(dataset, vec![images.clone()]);
    let (report, encoded) = embed(&from(source, &out));
    let counts = report.report.counts;
    assert_eq!((encoded, counts.failed, counts.skipped), (2, 1, 0), "a path that climbs out of the folder is not followed");
    let all = batches(&out.join("part-00000.parquet"));
    assert_eq!(all[0].column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["one", "two"]);
}
