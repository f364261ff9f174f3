//! The training graphs against answers worked out elsewhere: in double precision by the script of `tests/golden/models`, by PyTorch in
//! `../shared/golden`.

use std::collections::BTreeMap;
use std::path::Path;

use super::artifacts::*;
use super::optimizer_graph::OptimizerOptions;
use crate::models::config::{BertConfig, ClipConfig, ClipVisionConfig, DecoderConfig, MapperConfig};
use crate::models::decoders::architecture;
use crate::models::graphs::{GPT2_WEIGHTS, MAPPER_WEIGHTS};
use crate::models::import::CheckpointSource;
use crate::models::weights::SafetensorsFile;
use crate::models::{Mapper, PrefixMapper};
use crate::runtime::{Device, Feed, Precision, Runtime, Session};
use crate::testing;

pub(super) type Tensors = BTreeMap<String, Vec<f32>>;

/// A golden checkpoint laid out as a bundle, with what it computes.
struct Golden {
    folder: tempfile::TempDir,
    clip: ClipConfig,
    mapper: MapperConfig,
    decoder: DecoderConfig,
    checkpoint: CheckpointSource,
    expected: SafetensorsFile,
}

impl Golden {
    fn all(name: &str) -> impl Iterator<Item = Self> + use<> {
        let name = name.to_owned();
        testing::golden("golden").into_iter().map(move |root| Self::open(&root, &name))
    }

    fn open(root: &Path, name: &str) -> Self {
        let decoder = DecoderConfig::read(&root.join("gpt2/config.json")).unwrap();
        let bert = BertConfig::read(&root.join("bert/config.json")).unwrap();
        let checkpoint = CheckpointSource::open(&root.join(format!("{name}.pt"))).unwrap();
        let expected = SafetensorsFile::open(root.join(format!("{name}.expected.safetensors"))).unwrap();
        let clip_size = expected.get("clip_embeds").unwrap().shape[1];
        let mapper = checkpoint.mapper_config(clip_size, architecture(&decoder).sizes().n_embd, Some(&bert)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        checkpoint.mapper_part(&mapper).unwrap().write(&folder.path().join(MAPPER_WEIGHTS)).unwrap();
        checkpoint.decoder_part(&decoder).unwrap().write(&folder.path().join(GPT2_WEIGHTS)).unwrap();
        let clip = ClipConfig::vision_only(ClipVisionConfig::default());
        Self { folder, clip, mapper, decoder, checkpoint, expected }
    }

    fn network(&self) -> Network<'_> {
        Network { folder: self.folder.path(), clip: &self.clip, mapper: &self.mapper, decoder: &self.decoder, scope: "gpt2." }
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

pub(super) struct Batch {
    rows: usize,
    tokens: usize,
    clip_embeds: Vec<f32>,
    caption_ids: Vec<i64>,
    attention_mask: Vec<i64>,
    label_positions: Vec<i64>,
    labels: Vec<i64>,
}

impl Batch {
    pub(super) fn new(
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

pub(super) fn runtime(device: Device) -> Runtime {
    Runtime::start(device, Precision::Fp32, Some(2)).unwrap()
}

/// Runs a training graph; gradients in one piece, with their rows added.
pub(super) fn step(
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
    for rows in &graph.rows {
        let (updates, ids) = (outputs.f32(&rows.rows).unwrap(), outputs.i64(&rows.row_ids).unwrap());
        let width = updates.len() / ids.len();
        let whole = gradients.get_mut(&rows.parameter).unwrap();
        for (row, &id) in updates.chunks(width).zip(ids) {
            whole[id as usize * width..][..width].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
    (outputs.f32("loss").unwrap()[0], gradients)
}

pub(super) fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// |a - b| / |b|
pub(super) fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(x, y)| x - y)) / norm(b.iter().copied())
}

fn options(finetune_gpt2: bool, variant: Variant) -> GraphOptions {
    let trained = Trained { dropout: Some(0.0), ..Trained::captions(finetune_gpt2) };
    GraphOptions { variant, ..GraphOptions::portable(trained) }
}

/// `is_fixed`: with the sizes of the batch in the graph.
fn check(name: &str, finetune_gpt2: bool, variant: Variant, is_fixed: bool) {
    for golden in Golden::all(name) {
        let mut options = options(finetune_gpt2, variant);
        if is_fixed {
            let batch = golden.batch(false);
            options.sizes = Sizes::fixed(batch.rows, batch.tokens);
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
            assert_eq!(expected.len(), gradients.len(), "every gradient there is, and no other");
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
}

#[test]
fn an_mlp_and_gpt2_get_the_gradients_of_pytorch() {
    check("clipcap_mlp", true, Variant::Portable, false);
    check("clipcap_mlp", true, Variant::Portable, true);
    check("clipcap_mlp", true, Variant::Cpu, true);
    check("clipcap_mlp", true, Variant::OpenVino, true);
    check("clipcap_mlp", true, Variant::Cuda, false);
}

#[test]
fn a_bert_mapper_before_a_frozen_gpt2_gets_the_gradients_of_pytorch() {
    check("clipcap_bert", false, Variant::Portable, false);
    check("clipcap_bert", false, Variant::Cpu, true);
    check("clipcap_bert", false, Variant::OpenVino, true);
    check("clipcap_bert", false, Variant::Cuda, false);
}

/// Numbers between -1 and 1 without pattern.
fn direction(count: usize, offset: usize) -> impl Iterator<Item = f32> {
    (offset..offset + count).map(|i| ((i as f64 * 0.618_033_988_75).fract() * 2.0 - 1.0) as f32)
}

/// The gradient along some direction of all parameters, against the difference of two losses.
fn check_direction(name: &str, options: &GraphOptions, sites: &dyn Fn(&Golden) -> usize) {
    for golden in Golden::all(name) {
        let graph = training_graph(&golden.network(), options).unwrap();
        assert_eq!(graph.dropout.len(), sites(&golden), "{:?}", graph.dropout);
        check_slope(&golden.network(), &graph, options.variant, &golden.batch(false), &golden.parameters(&graph), 0.0);
    }
}

/// `noise`: what rounding of two losses may make of their difference over the step between them.
pub(super) fn check_slope(
    network: &Network<'_>,
    graph: &TrainingGraph,
    variant: Variant,
    batch: &Batch,
    parameters: &Tensors,
    noise: f64,
) {
    let run = |parameters: &Tensors| step(graph, network.folder, variant, network.mapper.prefix_len, batch, parameters);
    let (loss, gradients) = run(parameters);
    let (again, _) = run(parameters);
    assert_eq!(loss, again, "what is dropped is what the masks say");
    let along: f64 = gradients
        .values()
        .map(|gradient| gradient.iter().zip(direction(gradient.len(), 7)).map(|(&g, d)| f64::from(g) * f64::from(d)).sum::<f64>())
        .sum();
    let moved = |by: f32| {
        let moved = parameters.iter().map(|(name, values)| {
            (name.clone(), values.iter().zip(direction(values.len(), 7)).map(|(v, d)| v + by * d).collect())
        });
        f64::from(run(&moved.collect()).0)
    };
    let slope = (moved(5e-4) - moved(-5e-4)) / 1e-3;
    assert!((along - slope).abs() < 0.02 * slope.abs() + noise, "{along} for {slope}");
}

#[test]
fn dropout_masks_and_label_smoothing_have_their_gradients() {
    let dropped = GraphOptions::portable(Trained::captions(true));
    // One behind the embeddings, three per layer.
    let of_gpt2 = |golden: &Golden| 1 + 3 * architecture(&golden.decoder).sizes().n_layer;
    check_direction("clipcap_mlp", &dropped, &of_gpt2);
    check_direction("clipcap_bert", &dropped, &|golden| (1 + 3 * 2) + of_gpt2(golden));
    // A frozen GPT2 does not drop.
    check_direction("clipcap_bert", &GraphOptions::portable(Trained::captions(false)), &|_| 1 + 3 * 2);
    let mut smoothed = options(true, Variant::Cpu);
    smoothed.trained.label_smoothing = 0.1;
    check_direction("clipcap_mlp", &smoothed, &|_| 0);
}

#[test]
fn dropout_sites_say_where_how_much_and_what_shape() {
    for golden in Golden::all("clipcap_mlp") {
        let graph = training_graph(&golden.network(), &GraphOptions::portable(Trained::captions(true))).unwrap();
        let site = graph.dropout.iter().find(|site| site.site == "gpt2.transformer.h.1.attn.attn_dropout").unwrap();
        assert_eq!(site.input, "dropout_mask.gpt2.transformer.h.1.attn.attn_dropout");
        assert_eq!(site.rate, architecture(&golden.decoder).attention_dropout() as f32);
        let shape: Vec<_> = site.shape.iter().map(|d| d.with("batch", 2).with("tokens", 5).as_fixed().unwrap()).collect();
        // The last position predicts nothing and is left out.
        let positions = golden.mapper.prefix_len as i64 + 5 - 1;
        assert_eq!(shape, [2, architecture(&golden.decoder).sizes().n_head as i64, positions, positions]);
        let inputs = graph.model.input_names();
        assert!(graph.dropout.iter().all(|site| inputs.contains(&site.input.as_str())));
        let none = training_graph(&golden.network(), &options(true, Variant::Portable)).unwrap();
        assert!(none.dropout.is_empty() && !none.model.input_names().iter().any(|name| name.starts_with("dropout")));
    }
}

#[test]
fn right_padding_changes_neither_loss_nor_gradients() {
    for golden in Golden::all("clipcap_mlp") {
        let graph = training_graph(&golden.network(), &options(true, Variant::Cpu)).unwrap();
        let (prefix, long, parameters) = (golden.mapper.prefix_len, golden.batch(false), golden.parameters(&graph));
        let tokens =
            long.attention_mask.chunks(prefix + long.tokens).map(|row| row.iter().sum::<i64>() as usize - prefix).max().unwrap();
        assert!(tokens < long.tokens);
        let cut = |values: &[i64], width: usize, keep: usize| values.chunks(width).flat_map(|row| row[..keep].to_vec()).collect();
        let short = Batch::new(
            prefix,
            long.rows,
            long.clip_embeds.clone(),
            cut(&long.caption_ids, long.tokens, tokens),
            cut(&long.attention_mask, prefix + long.tokens, prefix + tokens),
            false,
        );
        assert_eq!(short.labels, long.labels, "nothing but padding was cut");
        let run = |batch: &Batch| step(&graph, golden.folder.path(), Variant::Cpu, prefix, batch, &parameters);
        let ((a, short), (b, long)) = (run(&short), run(&long));
        assert!((a / b - 1.0).abs() < 1e-6);
        for (name, gradient) in &short {
            assert!(difference(gradient, &long[name]) < 1e-5, "{name}");
        }
    }
}

#[test]
fn prefixes_are_those_of_pytorch() {
    for name in ["clipcap_mlp", "clipcap_bert"] {
        for golden in Golden::all(name) {
            let (embeds, wanted) =
                (golden.expected.read_f32("clip_embeds").unwrap(), golden.expected.read_f32("prefix_embeds").unwrap());
            let mut mapper = PrefixMapper::load(&runtime(Device::Cpu), golden.folder.path(), &golden.mapper, 4).unwrap();
            let found = mapper.map(&embeds, embeds.len() / golden.mapper.clip_size).unwrap();
            assert!(difference(&found, &wanted) < 1e-5, "{name}");
        }
    }
}

#[test]
fn an_evaluation_gives_the_sum_and_the_count() {
    for golden in Golden::all("clipcap_bert") {
        let model = evaluation_graph(
            &golden.network(),
            &GraphOptions::portable(Trained { label_smoothing: 0.3, ..Trained::captions(false) }),
        )
        .unwrap();
        let mut session = Session::new(&runtime(Device::Cpu), "eval", &model.to_bytes(), golden.folder.path(), &[]).unwrap();
        let batch = golden.batch(false);
        let (b, t, m) = (batch.rows as i64, batch.tokens as i64, batch.labels.len() as i64);
        let shapes = [[b, golden.mapper.clip_size as i64], [b, t], [b, golden.mapper.prefix_len as i64 + t]];
        let names: Vec<String> = model.input_names().iter().map(|name| name.to_string()).collect();
        let parameters: Vec<(Vec<f32>, Vec<i64>)> = names
            .iter()
            .map(|name| match golden.checkpoint.weights().get(name) {
                Ok(tensor) => {
                    (golden.checkpoint.weights().read_f32(name).unwrap(), tensor.shape.iter().map(|&d| d as i64).collect())
                }
                Err(_) => (vec![], vec![]),
            })
            .collect();
        let label_shape = [m];
        let feeds: Vec<(&str, Feed<'_>)> = names
            .iter()
            .zip(&parameters)
            .map(|(name, (values, shape))| {
                let feed = match name.as_str() {
                    "clip_embeds" => Feed::F32(&batch.clip_embeds, &shapes[0]),
                    "caption_ids" => Feed::I64(&batch.caption_ids, &shapes[1]),
                    "attention_mask" => Feed::I64(&batch.attention_mask, &shapes[2]),
                    "label_positions" => Feed::I64(&batch.label_positions, &label_shape),
                    "labels" => Feed::I64(&batch.labels, &label_shape),
                    _ => Feed::F32(values, shape),
                };
                (name.as_str(), feed)
            })
            .collect();
        let outputs = session.run(&feeds).unwrap();
        let wanted = golden.expected.read_f32("loss_captions_only").unwrap()[0];
        assert_eq!(outputs.i64("num_tokens").unwrap(), [m]);
        assert!((outputs.f32("loss_sum").unwrap()[0] / m as f32 / wanted - 1.0).abs() < 1e-5);
    }
}

#[test]
fn an_artifacts_folder_stands_on_its_own_and_uses_standard_operators() {
    for (name, finetune_gpt2) in [("clipcap_mlp", true), ("clipcap_bert", false), ("clipcap_bert", true)] {
        for golden in Golden::all(name) {
            let folder = tempfile::tempdir().unwrap();
            let written = write(
                folder.path(),
                &golden.network(),
                options(finetune_gpt2, Variant::Cpu).trained,
                &OptimizerOptions::default(),
            )
            .unwrap();
            assert_eq!(folder.path().join("weights/gpt2.safetensors").exists(), !finetune_gpt2);
            let (prefix, batch, parameters) = (golden.mapper.prefix_len, golden.batch(false), golden.parameters(&written));
            let wanted = golden.expected.read_f32("loss_captions_only").unwrap()[0];
            drop(golden);
            for file in [TRAINING_MODEL, EVAL_MODEL, OPTIMIZER_MODEL] {
                let bytes = std::fs::read(folder.path().join(file)).unwrap();
                assert!(!bytes.windows(13).any(|text| text == b"com.microsoft"), "{file}");
                Session::new(&runtime(Device::Cpu), file, &bytes, folder.path(), &[]).unwrap();
            }
            let (loss, gradients) = step(&written, folder.path(), Variant::Portable, prefix, &batch, &parameters);
            assert!((loss / wanted - 1.0).abs() < 1e-5);
            assert_eq!(gradients.keys().any(|name| name.starts_with("gpt2.")), finetune_gpt2);
        }
    }
}
