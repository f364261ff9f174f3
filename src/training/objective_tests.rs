//! The contrastive objective and the language model's against PyTorch, on golden models.

use std::path::Path;

use super::artifacts::{Network, Trained};
use super::batches::Batch;
use super::dropout::DropoutKey;
use super::host::{HostBackend, Options};
use super::objective::Objective;
use super::trainer::Backend;
use crate::models::config::{ClipConfig, DecoderConfig, MapperConfig};
use crate::models::decoders::architecture;
use crate::models::graphs::{CLIP_WEIGHTS, GPT2_WEIGHTS};
use crate::models::import::{ClipSource, DecoderSource};
use crate::models::weights::SafetensorsFile;
use crate::runtime::{Device, Precision, Runtime};

struct Golden {
    folder: tempfile::TempDir,
    clip: ClipConfig,
    mapper: MapperConfig,
    decoder: DecoderConfig,
}

impl Golden {
    fn open(root: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clip, decoder) =
            (ClipSource::open(&root.join("clip_hf")).unwrap(), DecoderSource::open(&root.join("gpt2"), false).unwrap());
        clip.part(0).unwrap().write(&folder.path().join(CLIP_WEIGHTS)).unwrap();
        decoder.part(0).unwrap().write(&folder.path().join(GPT2_WEIGHTS)).unwrap();
        let mapper = MapperConfig::mlp(clip.config.projection_dim, architecture(&decoder.config).sizes().n_embd, 2);
        Self { folder, clip: clip.config.clone(), mapper, decoder: decoder.config.clone() }
    }

    fn backend(&self, objective: Objective) -> HostBackend {
        let network = Network {
            folder: self.folder.path(),
            clip: &self.clip,
            mapper: &self.mapper,
            decoder: &self.decoder,
            scope: "gpt2.",
        };
        let trained = Trained { objective, dropout: Some(0.0), ..Trained::captions(false) };
        let options = Options { trained, batch_size: 3, seed: 0 };
        HostBackend::new(&Runtime::start(Device::Cpu, Precision::Fp32, Some(2)).unwrap(), &network, options).unwrap()
    }
}

const KEY: DropoutKey = DropoutKey { seed: 0, step: 0, micro_batch: 0 };

/// A caption that begins with `first` where there is one: ids below `bound`.
fn ids(row: i64, count: i64, bound: i64) -> Vec<i64> {
    (0..count).map(|i| (row * 31 + i * i * 7 + 3 * i) % bound).collect()
}

/// Rows padded with zeros: (ids, tokens of a row).
fn padded(rows: &[Vec<i64>]) -> (Vec<i64>, usize) {
    let tokens = rows.iter().map(Vec::len).max().unwrap();
    (rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, tokens - row.len()))).collect(), tokens)
}

/// Norm and product with a direction without pattern, of some gradients: transformers' `CLIPModel(return_loss=True)` in double precision.
const GRADIENTS: [(&str, f64, f64); 6] = [
    ("logit_scale", 3.853594e-3, 1.339217e-3),
    ("text_model.embeddings.token_embedding.weight", 5.828940e-3, 2.639171e-3),
    ("text_model.encoder.layers.0.self_attn.q_proj.weight", 4.862595e-3, -7.423353e-4),
    ("vision_model.embeddings.patch_embedding.weight", 1.362576e-2, -2.186878e-3),
    ("vision_model.encoder.layers.0.mlp.fc1.bias", 9.097800e-4, 2.942990e-5),
    ("text_projection.weight", 4.169675e-2, 3.710485e-2),
];

#[test]
fn a_clip_gets_the_loss_and_the_gradients_of_pytorch() {
    let Some(root) = crate::testing::shared("golden") else { return };
    let golden = Golden::open(&root);
    let pixel_values =
        SafetensorsFile::open(root.join("clip_hf.expected.safetensors")).unwrap().read_f32("pixel_values").unwrap();
    let captions: Vec<Vec<i64>> = (0..15).map(|row| [vec![97], ids(row, 3 + 2 * row, 97), vec![98]].concat()).collect();
    let (caption_ids, tokens) = padded(&captions);
    let ends = captions.iter().enumerate().map(|(row, caption)| (row * tokens + caption.len()) as i64 - 1).collect();
    let batch = Batch {
        rows: 15,
        tokens,
        pixel_values,
        caption_ids,
        label_positions: ends,
        labels: (0..15).collect(),
        ..Batch::default()
    };
    let mut backend = golden.backend(Objective::Contrastive);
    let loss = backend.backward(&batch, KEY, 1.0).unwrap();
    assert!((loss - 2.703_612_908).abs() < 1e-5, "{loss}");
    let (sum, pairs) = backend.evaluate(&batch).unwrap();
    assert!(pairs == 15 && (sum / 15.0 - loss).abs() < 1e-6, "{sum} over {pairs}");
    let direction = |i: usize| ((i + 7) as f64 * 0.618_033_988_75).fract() * 2.0 - 1.0;
    for (name, norm, along) in GRADIENTS {
        let gradient: Vec<f64> =
            backend.gradients()[backend.layout().get(name).unwrap().range()].iter().map(|&g| f64::from(g)).collect();
        let found_norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let found_along: f64 = gradient.iter().enumerate().map(|(i, g)| g * direction(i)).sum();
        assert!((found_norm / norm - 1.0).abs() < 1e-4, "{name}: norm {found_norm} for {norm}");
        assert!((found_along - along).abs() < 1e-4 * norm * (gradient.len() as f64).sqrt(), "{name}: {found_along} for {along}");
    }
    let all = backend.gradients().iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    assert!((all / 0.120_596_664 - 1.0).abs() < 1e-4, "{all}");
    assert!(backend.layout().slots().iter().all(|slot| !slot.name.contains("gpt2") && !slot.name.contains("clip_project")));
}

#[test]
fn a_language_model_gets_the_loss_of_pytorch_and_trains_gpt2_alone() {
    let Some(root) = crate::testing::shared("golden") else { return };
    let golden = Golden::open(&root);
    let rows: Vec<Vec<i64>> = [5, 9, 3].iter().zip(0..).map(|(&count, row)| ids(row, count, 21128)).collect();
    let (caption_ids, tokens) = padded(&rows);
    let mut batch = Batch { rows: 3, tokens, caption_ids, ..Batch::default() };
    for (row, ids) in rows.iter().enumerate() {
        batch.attention_mask.extend((0..tokens).map(|token| i64::from(token < ids.len())));
        batch.label_positions.extend((1..ids.len()).map(|token| (row * tokens + token) as i64 - 1));
        batch.labels.extend(&ids[1..]);
    }
    let mut backend = golden.backend(Objective::LanguageModel);
    let loss = backend.backward(&batch, KEY, 1.0).unwrap();
    // GPT2LMHeadModel(input_ids, labels).
    assert!((loss - 11.065_447).abs() < 1e-4, "{loss}");
    assert!(backend.layout().slots().iter().all(|slot| slot.name.starts_with("gpt2.")));
    let (sum, labels) = backend.evaluate(&batch).unwrap();
    assert!(labels == 14 && (sum / 14.0 - loss).abs() < 1e-5, "{sum} over {labels}");
}
