//! Decoders and image towers of every family against what transformers computes: `scripts/make_family_answers.py`. Weights are formulas of their
//! names, there and here.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::config::{ClipConfig, DecoderConfig};
use super::decoders::decoder_tensors;
use super::tensors::{TensorSpec, clip_tensors};
use super::weights::{DType, SafetensorsWriter};
use super::*;
use crate::runtime::{Device, Precision, Runtime};

fn answers() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/answers/families.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// CRC-32 as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step =
        |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()));
    !bytes.iter().fold(!0, step)
}

/// Numbers in -1 .. 1 that look random: a hash of the position and of the name.
fn numbers(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = crc32(name.as_bytes());
    (0..count as u32).map(move |at| {
        let x = at.wrapping_mul(2_654_435_761).wrapping_add(seed);
        let x = (x ^ (x >> 15)).wrapping_mul(2_246_822_519);
        let x = (x ^ (x >> 13)).wrapping_mul(3_266_489_917);
        f64::from(x ^ (x >> 16)) / 2f64.powi(31) - 1.0
    })
}

fn write(specs: &[TensorSpec], path: &Path) {
    let list = specs.iter().map(|spec| (spec.name.as_str(), DType::F32, spec.shape.as_slice()));
    let mut writer = SafetensorsWriter::create(path, list).unwrap();
    for spec in specs {
        let is_norm = spec.shape.len() == 1 && spec.name.ends_with("weight");
        let value = |number: f64| if is_norm { 1.0 + 0.2 * number } else { 0.3 * number };
        let values: Vec<f32> = numbers(&spec.name, spec.numel()).map(|number| value(number) as f32).collect();
        writer.write_f32(&spec.name, &values).unwrap();
    }
    writer.finish().unwrap();
}

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn check(name: &str, found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    let largest = wanted.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < 2e-4 * largest, "{name}: {found} and not {wanted}");
    }
}

fn runtime() -> Runtime {
    Runtime::start(Device::Cpu, Precision::Fp32, Some(1)).unwrap()
}

#[test]
fn decoders_of_every_family_compute_what_transformers_does() {
    let answers = answers();
    for name in ["gpt2", "qwen2", "qwen3", "llama", "llama_biases", "mistral"] {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        fs::write(&config, answers[name]["config"].to_string()).unwrap();
        let config = DecoderConfig::read(&config).unwrap();
        write(&decoder_tensors(&config), &folder.path().join(graphs::GPT2_WEIGHTS));
        let ids: Vec<u32> = serde_json::from_value(answers[name]["input_ids"].clone()).unwrap();
        let wanted = floats(&answers[name]["logits"]);
        let embedding = embedding::TokenEmbedding::open(folder.path(), &config).unwrap();
        for prefix_len in [1, 5] {
            let mut decoder = CachedDecoder::load(&runtime(), folder.path(), &config, prefix_len, 1, ids.len()).unwrap();
            decoder.prefill(&embedding.rows(&ids[..prefix_len]).unwrap(), 1).unwrap();
            decoder.start_row(0).unwrap();
            let mut logits = vec![];
            for id in &ids[prefix_len..] {
                logits = decoder.step(&[*id]).unwrap().to_vec();
            }
            check(name, &logits, &wanted);
        }
    }
}

#[test]
fn image_towers_compute_what_transformers_does() {
    let answers = answers();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    fs::write(&config, answers["siglip2"]["config"].to_string()).unwrap();
    let config = ClipConfig::read(&config).unwrap();
    let specs = clip_tensors(&config);
    let mut names: Vec<&str> = specs.iter().filter(|spec| !spec.optional).map(|spec| spec.name.as_str()).collect();
    names.sort_unstable();
    let theirs: Vec<String> = serde_json::from_value(answers["siglip2"]["tensors"].clone()).unwrap();
    assert_eq!(names, theirs);
    write(&specs, &folder.path().join(graphs::CLIP_WEIGHTS));
    let pixels: Vec<f32> = numbers("pixel_values", 3 * 16 * 16).map(|number| number as f32).collect();
    let found = ClipEncoder::load(&runtime(), folder.path(), &config, 1).unwrap().encode(&pixels, 1).unwrap();
    check("siglip2", &found, &floats(&answers["siglip2"]["embeds"]));
}
