//! The demo's models, which lie in the repository, against the answers in `tests/golden`: `scripts/make_golden.py` works them out in
//! double precision and without this program.

use std::fs;
use std::path::{Path, PathBuf};

use clipcap::models::Bundle;
use clipcap::models::weights::SafetensorsFile;
use clipcap::runtime::{Device, Precision, Runtime};
use clipcap::training::{Backend, Batch, DropoutKey, HostBackend, Network, Options, Trained};
use serde_json::Value;

use crate::common::{checkout, clipcap, columns, embed, joined, run};

fn golden(path: &str) -> PathBuf {
    checkout().join("tests/golden").join(path)
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(golden("expected.json")).unwrap()).unwrap()
}

fn tensors() -> SafetensorsFile {
    SafetensorsFile::open(golden("expected.safetensors")).unwrap()
}

/// The demo's CLIP and GPT2 with the mapper of `tests/golden`.
fn bundle(folder: &Path) -> PathBuf {
    let (demo, out) = (checkout().join("models/demo"), folder.join("bundle"));
    let mut command = clipcap();
    command.args(["model", "import", "--quiet", "--clip"]).arg(demo.join("clip")).arg("--gpt2").arg(demo.join("gpt2"));
    run(command.arg("--checkpoint").arg(golden("mapper.safetensors")).arg("--out").arg(&out), 0);
    out
}

/// max |a - b| / max |b|
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |most, x| most.max(x.abs()));
    a.iter().zip(b).fold(0f32, |most, (x, y)| most.max((x - y).abs())) / largest
}

#[test]
fn pictures_have_the_expected_embeddings_and_captions() {
    let folder = tempfile::tempdir().unwrap();
    let model = bundle(folder.path());
    let found = embed(&golden("pictures"), &model, folder.path().join("e"), &["--device", "cpu"]);
    let wanted = tensors().read_f32("image_embeds").unwrap();
    for (at, (found, wanted)) in found.iter().zip(wanted.chunks(found[0].len())).enumerate() {
        // The first is as large as the model's pictures; the others are resized, where Pillow rounds otherwise.
        let most = if at == 0 { 1e-4 } else { 5e-3 };
        assert!(difference(found, wanted) < most, "picture {at}: {}", difference(found, wanted));
    }
    let table = folder.path().join("t.parquet");
    let mut command = clipcap();
    command.args(["caption", "--quiet", "--device", "cpu", "--max-new-tokens", "24"]).arg(golden("pictures"));
    run(command.arg("--model").arg(&model).arg("--out").arg(&table), 0);
    let captions: Vec<String> = columns(&table, &["caption"]).iter().map(|row| joined(&row[0])).collect();
    let wanted: Vec<Value> = expected()["captions"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect();
    assert_eq!(captions, wanted);
}

#[test]
fn a_training_step_has_the_expected_loss_and_gradients() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&bundle(folder.path())).unwrap();
    let (expected, tensors) = (expected(), tensors());
    let lengths: Vec<usize> = serde_json::from_value(expected["lengths"].clone()).unwrap();
    let ids = tensors.read_bytes("caption_ids").unwrap();
    let ids: Vec<i64> = ids.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
    let (rows, prefix) = (lengths.len(), bundle.mapper_config().prefix_len);
    let tokens = ids.len() / rows;
    let clip_embeds = tensors.read_f32("image_embeds").unwrap();
    let mut batch = Batch { rows, tokens, caption_ids: ids, clip_embeds, ..Batch::default() };
    for (row, &length) in lengths.iter().enumerate() {
        batch.attention_mask.extend((0..prefix + tokens).map(|at| i64::from(at < prefix + length)));
        batch.label_positions.extend((0..length).map(|token| (row * (prefix + tokens) + prefix + token) as i64 - 1));
        batch.labels.extend(&batch.caption_ids[row * tokens..row * tokens + length]);
    }
    batch.caption_tokens = batch.labels.len();

    let network = Network {
        folder: bundle.path(),
        clip: bundle.clip_config(),
        mapper: bundle.mapper_config(),
        decoder: bundle.decoder_config(),
        scope: bundle.decoder_scope(),
    };
    let trained = Trained { dropout: Some(0.0), ..Trained::captions(true) };
    let options = Options { trained, batch_size: rows, seed: 0 };
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(2)).unwrap();
    let mut backend = HostBackend::new(&runtime, &network, options).unwrap();
    let loss = backend.backward(&batch, DropoutKey { seed: 0, step: 0, micro_batch: 0 }, 1.0).unwrap();
    let wanted = expected["loss"].as_f64().unwrap();
    assert!((loss - wanted).abs() < 1e-4 * wanted, "{loss} for {wanted}");
    // How the loss changes along a direction without pattern, parameter by parameter.
    let direction = |at: usize| ((at + 7) as f64 * 0.618_033_988_75).fract() * 2.0 - 1.0;
    for (name, wanted) in expected["loss_along"].as_object().unwrap() {
        let scope = if name.starts_with("clip_project.") { "" } else { bundle.decoder_scope() };
        let slot = backend.layout().get(&format!("{scope}{name}")).unwrap_or_else(|| panic!("no parameter {name}"));
        let gradient = &backend.gradients()[slot.range()];
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let along: f64 = gradient.iter().enumerate().map(|(at, &g)| f64::from(g) * direction(at)).sum();
        let wanted = wanted.as_f64().unwrap();
        assert!((along - wanted).abs() < 1e-3 * (norm + wanted.abs()), "{name}: {along} for {wanted}");
    }
}
