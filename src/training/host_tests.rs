//! The host's backend against answers worked out elsewhere: golden models, and PyTorch's ten steps of both recipes.

use std::path::Path;

use super::artifacts::{Network, Trained};
use super::batches::Batch;
use super::dropout::DropoutKey;
use super::host::{HostBackend, Options};
use super::objective::Objective;
use super::optimizer::AdamW;
use super::optimizer_graph::{OptimizerOptions, optimizer_graph};
use super::resident::ResidentBackend;
use super::schedule::{Decay, Schedule};
use super::trainer::{self, Backend, Recipe, TrainingError, Update};
use crate::models::Bundle;
use crate::models::weights::SafetensorsFile;
use crate::onnx::DType;
use crate::pipeline::Silent;
use crate::runtime::{Device, InPlace, Precision, Runtime, Session};
use crate::stages::model::{ImportSettings, import};
use crate::testing;

/// A golden model as a bundle, and its six captions with their embeddings.
struct Golden {
    _folder: tempfile::TempDir,
    bundle: Bundle,
    runtime: Runtime,
    clip_embeds: Vec<f32>,
    caption_ids: Vec<i64>,
    attention_mask: Vec<i64>,
    expected: SafetensorsFile,
}

fn integers(file: &SafetensorsFile, name: &str) -> Vec<i64> {
    file.read_bytes(name).unwrap().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

impl Golden {
    fn all(kind: &str) -> impl Iterator<Item = Self> + use<> {
        let kind = kind.to_owned();
        testing::golden("golden").into_iter().map(move |root| Self::open(&root, &kind))
    }

    fn open(golden: &Path, kind: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = ImportSettings {
            clip: golden.join("clip_hf"),
            decoder: golden.join("gpt2"),
            checkpoint: golden.join(format!("clipcap_{kind}.pt")),
            bert_config: Some(golden.join("bert/config.json")),
            out: folder.path().join("bundle"),
            ..ImportSettings::default()
        };
        let bundle = import(&settings, &Silent).unwrap();
        let expected = SafetensorsFile::open(golden.join(format!("clipcap_{kind}.expected.safetensors"))).unwrap();
        Self {
            _folder: folder,
            bundle,
            runtime: Runtime::start(Device::Cpu, Precision::Fp32, Some(2)).unwrap(),
            clip_embeds: expected.read_f32("clip_embeds").unwrap(),
            caption_ids: integers(&expected, "caption_ids"),
            attention_mask: integers(&expected, "attention_mask"),
            expected,
        }
    }

    fn backend(&self, finetune_gpt2: bool, dropout: Option<f64>) -> HostBackend {
        self.backend_of(Objective::Caption, finetune_gpt2, dropout)
    }

    fn backend_of(&self, objective: Objective, finetune_gpt2: bool, dropout: Option<f64>) -> HostBackend {
        let network = Network {
            folder: self.bundle.path(),
            clip: self.bundle.clip_config(),
            mapper: self.bundle.mapper_config(),
            decoder: self.bundle.decoder_config(),
            scope: self.bundle.decoder_scope(),
        };
        let trained = Trained { objective, dropout, ..Trained::captions(finetune_gpt2) };
        let options = Options { trained, batch_size: 3, seed: 0 };
        HostBackend::new(&self.runtime, &network, options).unwrap()
    }

    /// Captions `rows` of the six, padded as they are stored.
    fn batch(&self, rows: std::ops::Range<usize>) -> Batch {
        let (prefix_len, dim) = (self.bundle.mapper_config().prefix_len, self.bundle.mapper_config().clip_size);
        let positions = self.attention_mask.len() / 6;
        let tokens = positions - prefix_len;
        let mut batch = Batch { rows: rows.len(), tokens, ..Batch::default() };
        batch.clip_embeds = self.clip_embeds[rows.start * dim..rows.end * dim].to_vec();
        batch.caption_ids = self.caption_ids[rows.start * tokens..rows.end * tokens].to_vec();
        batch.attention_mask = self.attention_mask[rows.start * positions..rows.end * positions].to_vec();
        for row in 0..batch.rows {
            for token in (0..tokens).filter(|token| batch.attention_mask[row * positions + prefix_len + token] == 1) {
                batch.label_positions.push((row * positions + prefix_len + token) as i64 - 1);
                batch.labels.push(batch.caption_ids[row * tokens + token]);
            }
        }
        batch.caption_tokens = batch.labels.len();
        batch
    }
}

fn recipe() -> Recipe {
    Recipe {
        adamw: AdamW::default(),
        no_decay_norm_bias: false,
        max_grad_norm: None,
        schedule: Schedule { peak: 2e-3, warmup_steps: 3, total_steps: 10, decay: Decay::Linear },
        seed: 0,
    }
}

/// Losses before each of ten steps and after the last, from PyTorch 2.15 (torch.optim.AdamW, the settings of the golden README).
const MLP: [f64; 11] = [12.20858, 11.78567, 11.68584, 10.5696, 9.82088, 9.33969, 8.98403, 8.77487, 8.52143, 8.44456, 8.33953];
const BERT: [f64; 11] =
    [12.28374, 11.80937, 12.2405, 11.71747, 12.031, 11.58601, 11.88915, 11.52992, 11.82437, 11.50684, 11.64112];

fn ten_steps(kind: &str, finetune_gpt2: bool, wanted: [f64; 11]) {
    let Some(root) = testing::shared("golden") else { return };
    let golden = Golden::open(&root, kind);
    let mut backend = golden.backend(finetune_gpt2, Some(0.0));
    let mut found = vec![];
    for step in 0..10 {
        let rows = if step % 2 == 0 { 0..3 } else { 3..6 };
        found.push(trainer::step(&mut backend, &recipe(), step, &[golden.batch(rows)]).unwrap().loss);
    }
    found.push(trainer::evaluate(&mut backend, [golden.batch(0..6)].into_iter()).unwrap().unwrap());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-3, "{found} {wanted}");
    }
}

#[test]
fn ten_steps_of_mapper_and_gpt2_are_those_of_pytorch() {
    ten_steps("mlp", true, MLP);
}

#[test]
fn ten_steps_of_the_bert_mapper_over_a_frozen_gpt2_are_those_of_pytorch() {
    ten_steps("bert", false, BERT);
}

#[test]
fn gradients_and_the_dev_loss_are_pytorchs_and_batches_may_be_cut() {
    for golden in Golden::all("mlp") {
        let wanted = f64::from(golden.expected.read_f32("loss_captions_only").unwrap()[0]);
        let mut backend = golden.backend(true, Some(0.0));
        let key = DropoutKey { seed: 0, step: 0, micro_batch: 0 };
        let check = |backend: &HostBackend, what: &str| {
            for slot in backend.layout().slots() {
                let wanted = golden.expected.read_f32(&format!("grad.{}", slot.name)).unwrap();
                let found = &backend.gradients()[slot.range()];
                let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
                let difference = norm(&mut found.iter().zip(&wanted).map(|(a, b)| f64::from(*a) - f64::from(*b)));
                let size = norm(&mut wanted.iter().map(|v| f64::from(*v)));
                assert!(difference <= 1e-4 * size + 1e-7, "{what}: {} {difference:e} of {size:e}", slot.name);
            }
        };
        let loss = backend.backward(&golden.batch(0..6), key, 1.0).unwrap();
        assert!((loss - wanted).abs() < 1e-5 * wanted, "{loss} {wanted}");
        check(&backend, "whole");
        let norm = backend.update(&update(0.0, None)).unwrap();
        // The same captions in three batches, weighted by their labels.
        let batches = [golden.batch(0..1), golden.batch(1..4), golden.batch(4..6)];
        let labels: usize = batches.iter().map(|b| b.labels.len()).sum();
        for batch in &batches {
            backend.backward(batch, key, batch.labels.len() as f32 / labels as f32).unwrap();
        }
        check(&backend, "in three");
        assert!((backend.update(&update(0.0, None)).unwrap() - norm).abs() < 1e-4 * norm);
        let (sum, count) = batches.iter().map(|b| backend.evaluate(b).unwrap()).fold((0.0, 0), |(s, c), (l, n)| (s + l, c + n));
        assert_eq!(count as usize, labels);
        assert!((sum / count as f64 - wanted).abs() < 1e-5 * wanted);
    }
}

fn update(learning_rate: f64, max_grad_norm: Option<f64>) -> Update {
    // No decay, so that a learning rate of 0 leaves the parameters as they are.
    Update { adamw: AdamW::default(), no_decay_norm_bias: true, max_grad_norm, learning_rate, step: 1 }
}

#[test]
fn dropout_follows_seed_and_step_and_leaves_evaluation_alone() {
    for golden in Golden::all("mlp") {
        let mut backend = golden.backend(true, None);
        let batch = golden.batch(0..3);
        let mut loss = |seed, step| backend.backward(&batch, DropoutKey { seed, step, micro_batch: 0 }, 1.0).unwrap();
        let first = loss(1, 0);
        assert_eq!(first.to_bits(), loss(1, 0).to_bits());
        assert_ne!(first, loss(1, 1));
        assert_ne!(first, loss(2, 0));
        let mut plain = golden.backend(true, Some(0.0));
        assert_ne!(first, plain.backward(&batch, DropoutKey { seed: 1, step: 0, micro_batch: 0 }, 1.0).unwrap());
        assert_eq!(backend.evaluate(&batch).unwrap(), plain.evaluate(&batch).unwrap());
    }
}

#[test]
fn a_loss_that_is_no_number_changes_nothing() {
    for golden in Golden::all("mlp") {
        let mut backend = golden.backend(true, Some(0.0));
        let before = backend.numbers().unwrap().map(<[f32]>::to_vec);
        let mut batch = golden.batch(0..3);
        batch.clip_embeds[5] = f32::NAN;
        let error = trainer::step(&mut backend, &recipe(), 4, &[batch]).unwrap_err();
        assert!(matches!(error, TrainingError::NotFinite { step: 5, .. }), "{error}");
        assert_eq!(backend.numbers().unwrap().map(<[f32]>::to_vec), before);
    }
}

#[test]
fn the_optimizer_graph_and_the_native_one_agree() {
    for golden in Golden::all("mlp") {
        let mut backend = golden.backend(true, Some(0.0));
        let layout = backend.layout().clone();
        let options = OptimizerOptions { adamw: AdamW::default(), no_decay_norm_bias: true, max_grad_norm: Some(0.7) };
        let parameters: Vec<_> = layout
            .slots()
            .iter()
            .map(|slot| super::artifacts::Parameter { name: slot.name.clone(), shape: slot.shape.clone() })
            .collect();
        let model = optimizer_graph(&parameters, &options).unwrap();
        let session = Session::new(&golden.runtime, "optimizer", &model.to_bytes(), Path::new("."), &[]).unwrap();
        let mut theirs = backend.numbers().unwrap().map(<[f32]>::to_vec);
        for step in 1..=5 {
            let learning_rate = 1e-3 * step as f64;
            backend.backward(&golden.batch(0..3), DropoutKey { seed: 0, step, micro_batch: 0 }, 1.0).unwrap();
            let mut gradients = backend.gradients().to_vec();
            let update = Update {
                adamw: options.adamw,
                no_decay_norm_bias: true,
                max_grad_norm: options.max_grad_norm,
                learning_rate,
                step,
            };
            let norm = backend.update(&update).unwrap();
            let (mut rate, mut number, mut their_norm) = ([learning_rate as f32], [step as i64], [0.0f32]);
            let mut updated = theirs.clone();
            let mut inputs =
                vec![InPlace::f32("learning_rate", &mut rate, &[]).unwrap(), InPlace::i64("step", &mut number, &[]).unwrap()];
            let mut outputs = vec![InPlace::f32("grad_norm", &mut their_norm, &[]).unwrap()];
            let suffixes = ["", ".exp_avg", ".exp_avg_sq"];
            let shapes: Vec<Vec<i64>> =
                layout.slots().iter().map(|slot| slot.shape.iter().map(|&d| d as i64).collect()).collect();
            for (values, suffix) in theirs.iter_mut().chain([&mut gradients]).zip(suffixes.into_iter().chain([".grad"])) {
                for ((slot, shape), part) in layout.slots().iter().zip(&shapes).zip(layout.split(values)) {
                    inputs.push(InPlace::f32(&format!("{}{suffix}", slot.name), part, shape).unwrap());
                }
            }
            for (values, suffix) in updated.iter_mut().zip(suffixes) {
                for ((slot, shape), part) in layout.slots().iter().zip(&shapes).zip(layout.split(values)) {
                    outputs.push(InPlace::f32(&format!("{}{suffix}.updated", slot.name), part, shape).unwrap());
                }
            }
            session.run_in_place(&inputs, &mut outputs).unwrap();
            drop((inputs, outputs));
            theirs = updated;
            assert!((f64::from(their_norm[0]) - norm).abs() < 1e-4 * norm, "{} {norm}", their_norm[0]);
            assert!(norm > 0.7, "clipping is part of the test");
            for (ours, theirs) in backend.numbers().unwrap().iter().zip(&theirs) {
                let greatest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                assert!(greatest < 2e-6, "step {step}: {greatest:e}");
            }
        }
    }
}

#[test]
fn numbers_that_stay_on_the_device_are_those_of_the_host() {
    // The device is the CPU here; what crosses over and what stays is the same as on a GPU.
    for (kind, finetune_gpt2) in [("mlp", true), ("bert", false)] {
        for golden in Golden::all(kind) {
            let mut host = golden.backend(finetune_gpt2, None);
            let network = Network {
                folder: golden.bundle.path(),
                clip: golden.bundle.clip_config(),
                mapper: golden.bundle.mapper_config(),
                decoder: golden.bundle.decoder_config(),
                scope: golden.bundle.decoder_scope(),
            };
            let options = Options { trained: Trained::captions(finetune_gpt2), batch_size: 3, seed: 0 };
            let mut device = ResidentBackend::new(&golden.runtime, &network, &options, DType::F32).unwrap();
            assert_eq!(device.layout(), host.layout());
            let recipe = Recipe { max_grad_norm: Some(1.0), no_decay_norm_bias: true, ..recipe() };
            for step in 0..4 {
                // Steps of one, two and three batches.
                let batches: Vec<Batch> = (0..=step % 3).map(|n| golden.batch(n..n + 3)).collect();
                let step = step as u64;
                let (theirs, ours) = (
                    trainer::step(&mut device, &recipe, step, &batches).unwrap(),
                    trainer::step(&mut host, &recipe, step, &batches).unwrap(),
                );
                assert!(
                    (theirs.loss - ours.loss).abs() < 1e-4 && (theirs.grad_norm - ours.grad_norm).abs() < 1e-3 * ours.grad_norm
                );
            }
            let batch = golden.batch(0..6);
            let (theirs, ours) = (device.evaluate(&batch).unwrap(), host.evaluate(&batch).unwrap());
            assert!((theirs.0 - ours.0).abs() < 1e-4 * ours.0 && theirs.1 == ours.1, "{theirs:?} {ours:?}");
            let kept = device.numbers().unwrap().map(<[f32]>::to_vec);
            for (theirs, ours) in kept.iter().zip(host.numbers().unwrap()) {
                let greatest = theirs.iter().zip(ours).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                assert!(greatest < 2e-4, "{greatest:e}");
            }
            // A step that is no number leaves the device's numbers alone, and what was kept can be put back.
            let mut broken = golden.batch(0..3);
            broken.clip_embeds[0] = f32::NAN;
            assert!(trainer::step(&mut device, &recipe, 5, &[broken]).is_err());
            device
                .restore(&mut |buffers| {
                    for (buffer, values) in buffers.into_iter().zip(&kept) {
                        buffer.copy_from_slice(values);
                    }
                    Ok(())
                })
                .unwrap();
            assert_eq!(device.numbers().unwrap().map(<[f32]>::to_vec), kept);
        }
    }
}

#[test]
fn a_policys_gradient_is_that_of_its_weighted_captions() {
    for golden in Golden::all("mlp") {
        let key = DropoutKey { seed: 0, step: 0, micro_batch: 0 };
        let advantages = [1.25f32, -0.5, 0.0, 2.0, -1.75, 0.25];
        let positions = golden.attention_mask.len() / 6;
        let weighted = |mut batch: Batch, advantages: &[f32]| {
            batch.label_weights = batch.label_positions.iter().map(|&at| advantages[at as usize / positions]).collect();
            batch
        };
        let mut policy = golden.backend_of(Objective::Scst, true, Some(0.0));
        let batch = weighted(golden.batch(0..6), &advantages);
        let loss = policy.backward(&batch, key, 1.0).unwrap();
        let found: Vec<f64> = policy.gradients().iter().map(|&g| f64::from(g)).collect();
        let labels = batch.labels.len() as f64;

        // The same from the gradients of each caption alone, which are PyTorch's.
        let mut plain = golden.backend(true, Some(0.0));
        let (mut wanted, mut wanted_loss) = (vec![0.0; found.len()], 0.0);
        for (row, &advantage) in advantages.iter().enumerate() {
            let one = golden.batch(row..row + 1);
            let share = f64::from(advantage) * one.labels.len() as f64 / labels;
            wanted_loss += share * plain.backward(&one, key, 1.0).unwrap();
            plain.gradients().iter().zip(&mut wanted).for_each(|(g, sum)| *sum += share * f64::from(*g));
            plain.update(&update(0.0, None)).unwrap();
        }
        assert!((loss - wanted_loss).abs() < 1e-5 * wanted_loss.abs().max(1.0), "{loss} {wanted_loss}");
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let (difference, size) = (norm(&mut found.iter().zip(&wanted).map(|(a, b)| a - b)), norm(&mut wanted.iter().copied()));
        assert!(difference < 1e-4 * size && size > 0.1, "{difference:e} of {size:e}");

        // And from the loss itself, a step along the gradient of each of some tensors to either side.
        let parameters: Vec<f32> = policy.numbers().unwrap()[0].to_vec();
        let slots: Vec<_> = policy.layout().slots().iter().step_by(5).cloned().collect();
        for slot in slots {
            let gradient = &found[slot.range()];
            let length = norm(&mut gradient.iter().copied());
            if length < 1e-3 {
                continue;
            }
            let mut at = |side: f64| {
                let mut moved = parameters.clone();
                for (value, g) in moved[slot.range()].iter_mut().zip(gradient) {
                    *value = (f64::from(*value) + side * 2e-3 * g / length) as f32;
                }
                policy
                    .restore(&mut |[values, _, _]| {
                        values.copy_from_slice(&moved);
                        Ok(())
                    })
                    .unwrap();
                let loss = policy.backward(&batch, key, 1.0).unwrap();
                policy.update(&update(0.0, None)).unwrap();
                loss
            };
            let slope = (at(1.0) - at(-1.0)) / 4e-3;
            assert!((slope - length).abs() < 0.02 * length + 2e-3, "{}: {slope} along a gradient of {length}", slot.name);
        }
        // Evaluation is of captions that all count alike.
        assert_eq!(policy.evaluate(&golden.batch(0..6)).unwrap().1 as f64, labels);
    }
}
