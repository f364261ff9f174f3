//! The training graphs against PyTorch's answers in `../shared/golden`.

use std::collections::BTreeMap;
use std::path::Path;

use super::artifacts::*;
use crate::models::config::{BertConfig, Gpt2Config, MapperConfig};
use crate::models::graphs::{GPT2_WEIGHTS, MAPPER_WEIGHTS};
use crate::models::import::CheckpointSource;
use crate::models::weights::SafetensorsFile;
use crate::runtime::{Device, Feed, Precision, Runtime, Session};
use crate::testing::shared;

type Tensors = BTreeMap<String, Vec<f32>>;

/// A golden checkpoint laid out as a bundle, with what PyTorch computed.
struct Golden {
    folder: tempfile::TempDir,
    mapper: MapperConfig,
    gpt2: Gpt2Config,
    checkpoint: CheckpointSource,
    expected: SafetensorsFile,
}

impl Golden {
    fn open(name: &str) -> Option<Self> {
        let root = shared("golden")?;
        let gpt2 = Gpt2Config::read(&root.join("gpt2/config.json")).unwrap();
        let bert = BertConfig::read(&root.join("bert/config.json")).unwrap();
        let checkpoint = CheckpointSource::open(&root.join(format!("{name}.pt"))).unwrap();
        let expected = SafetensorsFile::open(root.join(format!("{name}.expected.safetensors"))).unwrap();
        let clip_size = expected.get("clip_embeds").unwrap().shape[1];
        let mapper = checkpoint.mapper_config(clip_size, gpt2.n_embd, Some(&bert)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        checkpoint.mapper_part(&mapper).unwrap().write(&folder.path().join(MAPPER_WEIGHTS)).unwrap();
        checkpoint.gpt2_part(&gpt2).unwrap().write(&folder.path().join(GPT2_WEIGHTS)).unwrap();
        Some(Self { folder, mapper, gpt2, checkpoint, expected })
    }

    fn network(&self) -> Network<'_> {
        Network { folder: self.folder.path(), mapper: &self.mapper, gpt2: &self.gpt2 }
    }

    fn parameters(&self, graph: &TrainingGraph) -> Tensors {
        graph.parameters.iter().map(|p| (p.name.clone(), self.checkpoint.weights().read_f32(&p.name).unwrap())).collect()
    }

    /// All six captions, labels at real tokens or at every caption position.
    fn batch(&self, padding_too: bool) -> Batch {
        let ints = |name: &str| {
            let bytes = self.expected.read_bytes(name).unwrap();
            bytes.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
        };
        let rows = self.expected.get("caption_ids").unwrap().shape[0];
        Batch::new(
            self.mapper.prefix_len,
            rows,
            self.expected.read_f32("clip_embeds").unwrap(),
            ints("caption_ids"),
            ints("attention_mask"),
            padding_too,
        )
    }
}

struct Batch {
    rows: usize,
    tokens: usize,
    clip_embeds: Vec<f32>,
    caption_ids: Vec<i64>,
    attention_mask: Vec<i64>,
    label_positions: Vec<i64>,
    labels: Vec<i64>,
}

impl Batch {
    fn new(
        prefix: usize,
        rows: usize,
        clip_embeds: Vec<f32>,
        caption_ids: Vec<i64>,
        attention_mask: Vec<i64>,
        padding_too: bool,
    ) -> Self {
        let tokens = caption_ids.len() / rows;
        let (mut label_positions, mut labels) = (vec![], vec![]);
        for row in 0..rows {
            for token in 0..tokens {
                let position = row * (prefix + tokens) + prefix + token;
                if padding_too || attention_mask[position] == 1 {
                    label_positions.push(position as i64 - 1);
                    labels.push(caption_ids[row * tokens + token]);
                }
            }
        }
        Self { rows, tokens, clip_embeds, caption_ids, attention_mask, label_positions, labels }
    }

    /// The same with a label for every position, negative where none is wanted.
    fn spread(&self, prefix: usize) -> Vec<i64> {
        let mut spread = vec![-100; self.rows * self.tokens];
        for (&position, &label) in self.label_positions.iter().zip(&self.labels) {
            let (row, column) = (position as usize / (prefix + self.tokens), position as usize % (prefix + self.tokens));
            spread[row * self.tokens + column + 1 - prefix] = label;
        }
        spread
    }
}

fn runtime(device: Device) -> Runtime {
    Runtime::start(device, Precision::Fp32, Some(2)).unwrap()
}

/// Runs a training graph; gradients in one piece, with their rows added.
fn step(
    graph: &TrainingGraph,
    folder: &Path,
    variant: Variant,
    prefix: usize,
    batch: &Batch,
    parameters: &Tensors,
) -> (f32, Tensors) {
    let mut session = Session::new(&runtime(Device::Cpu), "training", &graph.model.to_bytes(), folder, &[]).unwrap();
    let spread = batch.spread(prefix);
    let labels = if variant == Variant::OpenVino { &spread } else { &batch.labels };
    let (b, t, m) = (batch.rows as i64, batch.tokens as i64, labels.len() as i64);
    let shapes = [[b, batch.clip_embeds.len() as i64 / b], [b, t], [b, prefix as i64 + t]];
    let shape_of: BTreeMap<&str, Vec<i64>> =
        graph.parameters.iter().map(|p| (p.name.as_str(), p.shape.iter().map(|&d| d as i64).collect())).collect();
    let labels_shape = [m];
    let mut feeds = vec![
        ("clip_embeds", Feed::F32(&batch.clip_embeds, &shapes[0])),
        ("caption_ids", Feed::I64(&batch.caption_ids, &shapes[1])),
        ("attention_mask", Feed::I64(&batch.attention_mask, &shapes[2])),
        ("labels", Feed::I64(labels, &labels_shape)),
    ];
    if variant != Variant::OpenVino {
        feeds.push(("label_positions", Feed::I64(&batch.label_positions, &labels_shape)));
    }
    let ones: Vec<(Vec<f32>, Vec<i64>)> = graph
        .dropout
        .iter()
        .map(|site| {
            let shape: Vec<i64> = site.shape.iter().map(|d| d.with("batch", b).with("tokens", t).as_fixed().unwrap()).collect();
            (vec![1.0; shape.iter().product::<i64>() as usize], shape)
        })
        .collect();
    for (site, (mask, shape)) in graph.dropout.iter().zip(&ones) {
        feeds.push((&site.input, Feed::F32(mask, shape)));
    }
    for (name, values) in parameters {
        feeds.push((name, Feed::F32(values, &shape_of[name.as_str()])));
    }
    let outputs = session.run(&feeds).unwrap();
    let mut gradients: Tensors =
        graph.parameters.iter().map(|p| (p.name.clone(), outputs.f32(&p.gradient_name()).unwrap().to_vec())).collect();
    if let Some(rows) = &graph.rows {
        let (updates, ids) = (outputs.f32(&rows.rows).unwrap(), outputs.i64(&rows.row_ids).unwrap());
        let width = updates.len() / ids.len();
        let whole = gradients.get_mut(&rows.parameter).unwrap();
        for (row, &id) in updates.chunks(width).zip(ids) {
            whole[id as usize * width..][..width].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
    (outputs.f32("loss").unwrap()[0], gradients)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// |a - b| / |b|
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(x, y)| x - y)) / norm(b.iter().copied())
}

fn options(finetune_gpt2: bool, variant: Variant) -> GraphOptions {
    GraphOptions { dropout: Some(0.0), variant, ..GraphOptions::portable(finetune_gpt2) }
}

fn check(name: &str, finetune_gpt2: bool, variant: Variant, sizes: Option<(usize, usize)>) {
    let Some(golden) = Golden::open(name) else { return };
    let mut options = options(finetune_gpt2, variant);
    if let Some((batch, tokens)) = sizes {
        options.sizes = Sizes::fixed(batch, tokens);
    }
    let graph = training_graph(&golden.network(), &options).unwrap();
    let parameters = golden.parameters(&graph);
    for (padding_too, wanted) in [(false, "loss_captions_only"), (true, "loss_with_padding")] {
        let batch = golden.batch(padding_too);
        let (loss, gradients) = step(&graph, golden.folder.path(), variant, golden.mapper.prefix_len, &batch, &parameters);
        let wanted = golden.expected.read_f32(wanted).unwrap()[0];
        assert!((loss / wanted - 1.0).abs() < 1e-5, "{loss} for {wanted}");
        if padding_too {
            continue;
        }
        let expected: Vec<&String> = golden.expected.tensors().keys().filter(|k| k.starts_with("grad.")).collect();
        assert_eq!(expected.len(), gradients.len(), "every gradient PyTorch has, and no other");
        let mut worst = (0.0, String::new());
        for (name, gradient) in &gradients {
            let wanted = golden.expected.read_f32(&format!("grad.{name}")).unwrap();
            // Softmax does not see what a key's bias adds: that gradient is 0, and rounding here and there.
            if name.ends_with("key.bias") {
                assert!(norm(gradient.iter().copied()).max(norm(wanted.iter().copied())) < 1e-7, "{name}");
                continue;
            }
            let found = difference(gradient, &wanted);
            if found > worst.0 {
                worst = (found, name.clone());
            }
        }
        eprintln!("{name} {variant:?}: loss {loss} for {wanted}; worst gradient {worst:?}");
        assert!(worst.0 < 1e-4, "{worst:?}");
    }
}

#[test]
fn an_mlp_and_gpt2_get_the_gradients_of_pytorch() {
    check("clipcap_mlp", true, Variant::Portable, None);
    check("clipcap_mlp", true, Variant::Portable, Some((6, 36)));
    check("clipcap_mlp", true, Variant::Cpu, Some((6, 36)));
    check("clipcap_mlp", true, Variant::OpenVino, Some((6, 36)));
}

#[test]
fn a_bert_mapper_before_a_frozen_gpt2_gets_the_gradients_of_pytorch() {
    check("clipcap_bert", false, Variant::Portable, None);
    check("clipcap_bert", false, Variant::Cpu, Some((6, 36)));
    check("clipcap_bert", false, Variant::OpenVino, Some((6, 36)));
}
