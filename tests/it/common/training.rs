//! A tiny model and a tiny dataset, for tests that train.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float32Type, Schema};
use clipcap::table::ParquetSink;
use serde_json::json;

use crate::common::{clipcap, run};

/// Length of an embedding.
pub const DIM: usize = 12;

const CHARACTERS: &str = "一二三四五六七八九十红黄蓝绿白黑大小上下左右中人狗猫鸟鱼山水";

/// A bundle with random weights: GPT2 of 2 layers of 16.
pub fn model(folder: &Path, mapper: &str) -> PathBuf {
    let (clip, gpt2, out) = (folder.join("clip"), folder.join("gpt2"), folder.join(format!("model-{mapper}")));
    fs::create_dir_all(&clip).unwrap();
    fs::create_dir_all(&gpt2).unwrap();
    let vision = json!({
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8, "projection_dim": DIM,
    });
    let config = json!({"model_type": "clip", "projection_dim": DIM, "vision_config": vision});
    fs::write(clip.join("config.json"), config.to_string()).unwrap();
    let preprocessor = json!({"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}});
    fs::write(clip.join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
    let mut pieces: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from).into();
    pieces.extend(CHARACTERS.chars().map(String::from));
    let config = json!({
        "model_type": "gpt2", "vocab_size": pieces.len() + 3, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2,
    });
    fs::write(gpt2.join("config.json"), config.to_string()).unwrap();
    fs::write(gpt2.join("vocab.txt"), pieces.join("\n") + "\n").unwrap();
    let mut init = clipcap();
    init.args(["model", "init", "--mapper", mapper, "--prefix-len", "3", "--seed", "5", "--random", "--quiet", "--overwrite"]);
    run(init.arg("--clip").arg(clip).arg("--gpt2").arg(gpt2).arg("--out").arg(&out), 0);
    out
}

/// A whole number below `bound` that follows from `n`.
fn draw(n: u64, bound: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9) % bound
}

/// `DATASET` and `EMBEDDINGS` with two captions an image; `split` names an image's split, `embedding` gives its numbers.
pub fn data(
    folder: &Path,
    images: u64,
    split: impl Fn(u64) -> Option<&'static str>,
    embedding: impl Fn(u64, u64) -> f32,
) -> (PathBuf, PathBuf) {
    let (dataset, embeddings) = (folder.join("dataset"), folder.join("embeddings"));
    let alphabet: Vec<char> = CHARACTERS.chars().collect();
    let caption =
        |n: u64| -> String { (0..2 + draw(n, 9)).map(|i| alphabet[draw(n * 31 + i, alphabet.len() as u64) as usize]).collect() };
    let rows: Vec<(u64, i32)> = (0..images).flat_map(|image| [(image, 0), (image, 1)]).collect();
    let text = |name: &str, null: bool| Field::new(name, DataType::Utf8, null);
    let schema = Schema::new(vec![
        text("image_id", false),
        Field::new("caption_id", DataType::Int32, false),
        text("caption", false),
        text("split", true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|(image, _)| Some(image_id(*image))).collect::<StringArray>()),
        Arc::new(rows.iter().map(|(_, caption)| Some(*caption)).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|(image, number)| Some(caption(image * 2 + *number as u64))).collect::<StringArray>()),
        Arc::new(rows.iter().map(|(image, _)| split(*image)).collect::<StringArray>()),
    ];
    write(&dataset.join("captions.parquet"), schema, columns, "captions/1", &[]);
    write_embeddings(&embeddings, images, embedding, &[]);
    (dataset, embeddings)
}

/// `EMBEDDINGS` of the images, with more pairs for the footer.
pub fn write_embeddings(folder: &Path, images: u64, embedding: impl Fn(u64, u64) -> f32, footer: &[(&str, String)]) {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let schema = Schema::new(vec![
        Field::new("image_id", DataType::Utf8, false),
        Field::new("embedding", DataType::FixedSizeList(item.clone(), DIM as i32), false),
    ]);
    let values = (0..images).map(|image| Some((0..DIM as u64).map(|i| Some(embedding(image, i))).collect::<Vec<_>>()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new((0..images).map(|image| Some(image_id(image))).collect::<StringArray>()),
        Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(values, DIM as i32)),
    ];
    write(&folder.join("part-00000.parquet"), schema, columns, "embeddings/1", footer);
}

/// Distinct numbers for every image.
pub fn distinct(image: u64, i: u64) -> f32 {
    draw(image * DIM as u64 + i + 1, 2000) as f32 / 1000.0 - 1.0
}

fn image_id(image: u64) -> String {
    format!("image-{image:04}")
}

fn write(path: &Path, schema: Schema, columns: Vec<ArrayRef>, format: &str, footer: &[(&str, String)]) {
    let schema = Arc::new(schema);
    let mut sink = ParquetSink::create_with(path, schema.clone(), format, footer).unwrap();
    sink.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    sink.finish().unwrap();
}

/// A column of a run's `metrics.parquet` that is a number in every row that has one, with its step.
pub fn metric(run: &Path, name: &str) -> Vec<(i64, f64)> {
    use arrow::array::{Array, Float64Array, Int64Array};
    let path = run.join("metrics.parquet");
    let mut found = vec![];
    for batch in clipcap::table::open(&path, Some("metrics/1")).unwrap() {
        let batch = batch.unwrap();
        let steps = clipcap::table::column::<Int64Array>(&batch, "step", &path).unwrap();
        let values = clipcap::table::column::<Float64Array>(&batch, name, &path).unwrap();
        found.extend((0..batch.num_rows()).filter(|&row| values.is_valid(row)).map(|row| (steps.value(row), values.value(row))));
    }
    found
}
