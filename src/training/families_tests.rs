//! Training graphs of the original ClipCap against PyTorch, and of every family of decoders against differences of their own losses.

use super::artifacts::*;
use super::artifacts_tests::{Batch, Tensors, check_slope, difference, norm, runtime, step};
use super::lora::{Lora, is_adapter};
use crate::models::config::{
    ClipConfig, ClipVisionConfig, DecoderConfig, Gpt2Config, LlamaConfig, MapperConfig, RopeScaling, TransformerConfig,
};
use crate::models::decoders::{architecture, decoder_tensors};
use crate::models::graphs::{GPT2_WEIGHTS, MAPPER_WEIGHTS};
use crate::models::import::{CheckpointSource, decoder_preset};
use crate::models::part::Part;
use crate::models::tensors::{mapper_tensors, random_values};
use crate::models::weights::SafetensorsFile;
use crate::models::{Mapper, PrefixMapper};
use crate::runtime::Device;
use crate::testing::shared;

/// A model's weights in a bundle's places.
struct World {
    folder: tempfile::TempDir,
    clip: ClipConfig,
    mapper: MapperConfig,
    decoder: DecoderConfig,
    scope: &'static str,
}

impl World {
    fn network(&self) -> Network<'_> {
        Network { folder: self.folder.path(), clip: &self.clip, mapper: &self.mapper, decoder: &self.decoder, scope: self.scope }
    }

    /// Random weights, larger than those a training starts from, so that no gradient is next to nothing.
    fn random(decoder: DecoderConfig, mapper: impl FnOnce(usize) -> MapperConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mapper = mapper(architecture(&decoder).sizes().n_embd);
        Part::random(mapper_tensors(&mapper), 3).write(&folder.path().join(MAPPER_WEIGHTS)).unwrap();
        Part::random(decoder_tensors(&decoder), 4).write(&folder.path().join(GPT2_WEIGHTS)).unwrap();
        Self { folder, clip: ClipConfig::vision_only(ClipVisionConfig::default()), mapper, decoder, scope: "decoder." }
    }

    fn parameters(&self, graph: &TrainingGraph) -> Tensors {
        let open = |file: &str| SafetensorsFile::open(self.folder.path().join(file)).unwrap();
        let (mapper, decoder) = (open(MAPPER_WEIGHTS), open(GPT2_WEIGHTS));
        let read = |name: &str| match name.strip_prefix(self.scope) {
            _ if is_adapter(name) => vec![0.0; graph.parameters.iter().find(|p| p.name == name).unwrap().shape.iter().product()],
            Some(name) => decoder.read_f32(name).unwrap(),
            None => mapper.read_f32(name).unwrap(),
        };
        graph.parameters.iter().map(|p| (p.name.clone(), read(&p.name))).collect()
    }
}

/// A golden checkpoint of the original, untrained, and what PyTorch computed.
fn original(kind: &str) -> Option<(World, SafetensorsFile)> {
    let root = shared("golden_models")?;
    let decoder = DecoderConfig::read(&root.join("gpt2_en/config.json")).unwrap();
    let checkpoint = CheckpointSource::open(&root.join(format!("original_{kind}.pt"))).unwrap();
    let expected = SafetensorsFile::open(root.join(format!("original_{kind}.expected.safetensors"))).unwrap();
    let clip_size = expected.get("clip_embeds").unwrap().shape[1];
    let mapper = checkpoint.mapper_config(clip_size, architecture(&decoder).sizes().n_embd, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    checkpoint.mapper_part(&mapper).unwrap().write(&folder.path().join(MAPPER_WEIGHTS)).unwrap();
    checkpoint.decoder_part(&decoder).unwrap().write(&folder.path().join(GPT2_WEIGHTS)).unwrap();
    let clip = ClipConfig::vision_only(ClipVisionConfig::default());
    Some((World { folder, clip, mapper, decoder, scope: checkpoint.decoder_scope().unwrap() }, expected))
}

fn integers(file: &SafetensorsFile, name: &str) -> Vec<i64> {
    file.read_bytes(name).unwrap().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

const VARIANTS: [Variant; 4] = [Variant::Portable, Variant::Cpu, Variant::OpenVino, Variant::Cuda];

fn options(finetune_gpt2: bool, variant: Variant, (rows, tokens): (usize, usize)) -> GraphOptions {
    let sizes = if variant == Variant::OpenVino { Sizes::fixed(rows, tokens) } else { Sizes::symbolic() };
    let trained = Trained { dropout: Some(0.0), ..Trained::captions(finetune_gpt2) };
    GraphOptions { variant, sizes, ..GraphOptions::portable(trained) }
}

#[test]
fn the_originals_get_the_prefixes_losses_and_gradients_of_pytorch() {
    for kind in ["transformer", "mlp"] {
        let Some((world, expected)) = original(kind) else { return };
        let embeds = expected.read_f32("clip_embeds").unwrap();
        let shape = &expected.get("caption_ids").unwrap().shape;
        let (rows, tokens) = (shape[0], shape[1]);
        let mut mapper = PrefixMapper::load(&runtime(Device::Cpu), world.folder.path(), &world.mapper, 4).unwrap();
        let prefixes = mapper.map(&embeds, rows).unwrap();
        assert!(difference(&prefixes, &expected.read_f32("prefix_embeds").unwrap()) < 1e-5, "{kind}");
        for variant in VARIANTS {
            for finetune_gpt2 in [true, false] {
                let (ids, mask) = (integers(&expected, "caption_ids"), integers(&expected, "attention_mask"));
                let batch = Batch::new(world.mapper.prefix_len, rows, embeds.clone(), ids, mask, false);
                let graph = training_graph(&world.network(), &options(finetune_gpt2, variant, (rows, tokens))).unwrap();
                let parameters = world.parameters(&graph);
                let (loss, gradients) = step(&graph, world.folder.path(), variant, world.mapper.prefix_len, &batch, &parameters);
                let wanted = expected.read_f32("loss").unwrap()[0];
                assert!((loss / wanted - 1.0).abs() < 1e-5, "{kind}: {loss} for {wanted}");
                let wanted: Vec<&str> = expected.tensors().keys().filter_map(|name| name.strip_prefix("grad.")).collect();
                let own = |name: &&&str| finetune_gpt2 || name.starts_with("clip_project.");
                assert_eq!(wanted.iter().filter(own).count(), gradients.len(), "every gradient PyTorch has, and no other");
                for (name, gradient) in &gradients {
                    let found = difference(gradient, &expected.read_f32(&format!("grad.{name}")).unwrap());
                    assert!(found < 1e-4, "{kind} {variant:?}: {name} {found}");
                }
            }
        }
    }
}

/// Small decoders of every family, between them with everything that a family may have.
pub(super) fn families() -> Vec<(&'static str, DecoderConfig)> {
    let preset = |name: &str| decoder_preset(name.as_ref()).unwrap().0;
    let small = |name: &str, change: &dyn Fn(&mut LlamaConfig)| match preset(name) {
        DecoderConfig::Llama(mut config) => {
            (config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers) = (40, 24, 40, 2);
            config.head_dim = Some(6);
            config.initializer_range = 0.3;
            change(&mut config);
            DecoderConfig::Llama(config)
        }
        DecoderConfig::Gpt2(_) => unreachable!("only Llama's kind is asked for"),
    };
    let stretched = RopeScaling {
        rope_type: "llama3".into(),
        factor: Some(4.0),
        low_freq_factor: Some(1.0),
        high_freq_factor: Some(4.0),
        original_max_position_embeddings: Some(32.0),
    };
    let gpt2 = Gpt2Config {
        vocab_size: 40,
        n_positions: 32,
        n_embd: 24,
        n_layer: 2,
        n_head: 4,
        initializer_range: 0.3,
        tie_word_embeddings: false,
        ..Gpt2Config::default()
    };
    vec![
        ("qwen2", small("qwen2-tiny", &|_| {})),
        ("qwen3", small("qwen3-tiny", &|config| config.head_dim = Some(8))),
        ("qwen3 untied", small("qwen3-tiny", &|config| config.tie_word_embeddings = false)),
        ("llama", small("llama-tiny", &|config| config.rope_scaling = Some(stretched.clone()))),
        (
            "llama with biases",
            small("llama-tiny", &|config| {
                (config.attention_bias, config.mlp_bias, config.num_key_value_heads) = (true, true, Some(1));
            }),
        ),
        ("gpt2 untied", DecoderConfig::Gpt2(gpt2)),
    ]
}

#[test]
fn layers_that_are_computed_again_and_adapters_have_their_gradients() {
    for (name, decoder) in families().into_iter().step_by(2) {
        let lora = Lora { rank: 2, alpha: 3.0, targets: vec!["all-linear".into()] };
        let world = World::random(decoder, |width| {
            let transformer = TransformerConfig { clip_length: 2, num_layers: 2, num_heads: 4, inner_size: 32, qkv_bias: false };
            MapperConfig::transformer(10, width, 3, transformer)
        });
        let batch = batch(3);
        for variant in VARIANTS {
            for (finetune_gpt2, lora) in [(true, None), (false, Some(lora.clone()))] {
                let mut plain = options(finetune_gpt2, variant, (3, 7));
                plain.trained.lora = lora;
                let mut again = plain.clone();
                again.trained.recompute = true;
                let graphs = [&plain, &again].map(|options| training_graph(&world.network(), options).unwrap());
                let mut parameters = world.parameters(&graphs[0]);
                // Adapters that say something.
                for (name, values) in &mut parameters {
                    if is_adapter(name) {
                        values.iter_mut().zip(0..).for_each(|(v, i): (_, u32)| *v = ((i * 37 % 19) as f32 - 9.0) / 40.0);
                    }
                }
                check_slope(&world.network(), &graphs[1], variant, &batch, &parameters, 5e-4);
                let [(a, plain), (b, again)] =
                    graphs.each_ref().map(|graph| step(graph, world.folder.path(), variant, 3, &batch, &parameters));
                assert_eq!(a, b);
                for (tensor, gradient) in &plain {
                    assert!(difference(&again[tensor], gradient) < 1e-6, "{name} {variant:?} {tensor}");
                }
            }
        }
    }
}

fn batch(prefix: usize) -> Batch {
    let (lengths, tokens) = ([5usize, 3, 7], 7);
    let embeds = random_values(
        &crate::models::tensors::TensorSpec {
            name: "embeds".into(),
            shape: vec![3 * 10],
            init: crate::models::tensors::Init::Normal(1.0),
            optional: false,
        },
        9,
    );
    let ids =
        |row: usize| (0..tokens).map(move |at| if at < lengths[row] { ((row * 13 + at * at * 5 + 3) % 40) as i64 } else { 0 });
    let mask = |row: usize| (0..prefix + tokens).map(move |at| i64::from(at < prefix + lengths[row]));
    Batch::new(prefix, 3, embeds, (0..3).flat_map(ids).collect(), (0..3).flat_map(mask).collect(), false)
}

#[test]
fn every_family_has_the_gradients_that_its_loss_has() {
    for (name, decoder) in families() {
        let world = World::random(decoder, |width| {
            let transformer = TransformerConfig { clip_length: 2, num_layers: 1, num_heads: 4, inner_size: 32, qkv_bias: true };
            MapperConfig::transformer(10, width, 3, transformer)
        });
        let mut losses = vec![];
        for variant in VARIANTS {
            for finetune_gpt2 in [true, false] {
                let batch = batch(world.mapper.prefix_len);
                let graph = training_graph(&world.network(), &options(finetune_gpt2, variant, (3, 7))).unwrap();
                let parameters = world.parameters(&graph);
                eprintln!("{name} {variant:?} {finetune_gpt2}");
                check_slope(&world.network(), &graph, variant, &batch, &parameters, 5e-4);
                let (loss, gradients) = step(&graph, world.folder.path(), variant, 3, &batch, &parameters);
                assert!(gradients.values().all(|gradient| norm(gradient.iter().copied()) > 0.0));
                losses.push(loss);
            }
        }
        assert!(losses.iter().all(|loss| (loss / losses[0] - 1.0).abs() < 1e-5), "{name}: {losses:?}");
    }
}
