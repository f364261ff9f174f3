//! Generation on ONNX Runtime: the trained golden models' known captions, and rows that do not feel each other.

use std::path::Path;

use crate::generation::{Caption, GenerationError, Generator, Request, Sampling, Settings, SpecialTokens, Strategy};
use crate::models::config::{DecoderConfig, MapperConfig};
use crate::models::decoders::{SharedCache, architecture};
use crate::models::import::CheckpointSource;
use crate::models::weights::SafetensorsFile;
use crate::models::{CachedDecoder, Decoder, Mapper, Picked, PrefixMapper, ResidentDecoder, graphs};
use crate::runtime::{Device, Precision, Runtime};
use crate::testing::golden;

/// The trained MLP checkpoint's GPT2 on disk, and the prefixes of some embeddings.
struct Golden {
    folder: tempfile::TempDir,
    runtime: Runtime,
    decoder: DecoderConfig,
    prefix_len: usize,
    tokens: SpecialTokens,
    /// [images, P, C]
    prefixes: Vec<f32>,
    /// Greedy ids, [SEP] included.
    expected: Vec<Vec<u32>>,
    /// What is known of their log-probabilities: all are above it.
    least_logprob: f64,
}

fn all_golden() -> impl Iterator<Item = Golden> {
    golden("golden").into_iter().map(|root| open(&root))
}

fn open(root: &Path) -> Golden {
    let decoder = DecoderConfig::read(&root.join("gpt2/config.json")).unwrap();
    let checkpoint = CheckpointSource::open(&root.join("clipcap_mlp_trained.pt")).unwrap();
    let embeds = SafetensorsFile::open(root.join("clipcap_mlp.expected.safetensors")).unwrap();
    let clip_size = embeds.get("clip_embeds").unwrap().shape[1];
    let mut embeds = embeds.read_f32("clip_embeds").unwrap();
    let expected = std::fs::read_to_string(root.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    // Of these embeddings, or by the name of the picture that each is of.
    let (captions, least_logprob): (Vec<&serde_json::Value>, f64) = match &expected["greedy_mlp_trained"] {
        serde_json::Value::Array(captions) => (captions.iter().collect(), -1.0),
        _ => (expected["greedy_mlp_trained_photos"].as_object().unwrap().values().collect(), -2.2),
    };
    let expected: Vec<Vec<u32>> =
        captions.iter().map(|caption| serde_json::from_value(caption["ids"].clone()).unwrap()).collect();
    embeds.truncate(expected.len() * clip_size);
    let vocabulary = std::fs::read_to_string(root.join("gpt2/vocab.txt")).unwrap();
    let id = |piece: &str| vocabulary.lines().position(|line| line == piece).unwrap() as u32;
    let tokens = SpecialTokens::bert(id("[SEP]"), id("[UNK]"));

    let folder = tempfile::tempdir().unwrap();
    let mapper: MapperConfig = checkpoint.mapper_config(clip_size, architecture(&decoder).sizes().n_embd, None).unwrap();
    for (part, path) in
        [(checkpoint.mapper_part(&mapper), graphs::MAPPER_WEIGHTS), (checkpoint.decoder_part(&decoder), graphs::GPT2_WEIGHTS)]
    {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        part.unwrap().write(&path).unwrap();
    }
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(2)).unwrap();
    let mut prefix_mapper = PrefixMapper::load(&runtime, folder.path(), &mapper, expected.len()).unwrap();
    let prefixes = prefix_mapper.map(&embeds, expected.len()).unwrap();
    Golden { folder, runtime, decoder, prefix_len: mapper.prefix_len, tokens, prefixes, expected, least_logprob }
}

type Load = fn(&Runtime, &Path, &DecoderConfig, usize, usize, usize) -> Box<dyn Decoder>;

const DECODERS: [Load; 3] = [
    |runtime, folder, config, prefix_len, rows, tokens| {
        Box::new(CachedDecoder::load(runtime, folder, config, prefix_len, rows, tokens).unwrap())
    },
    |runtime, folder, config, prefix_len, rows, tokens| {
        let (shared, picked) = (SharedCache::Scattered, Picked { count: 8, temperature: 1.0 });
        Box::new(ResidentDecoder::load_with(runtime, folder, config, shared, [prefix_len, rows, tokens], picked).unwrap())
    },
    |runtime, folder, config, prefix_len, rows, tokens| {
        let (shared, picked) = (SharedCache::Grouped, Picked { count: 8, temperature: 1.0 });
        Box::new(ResidentDecoder::load_with(runtime, folder, config, shared, [prefix_len, rows, tokens], picked).unwrap())
    },
];

impl Golden {
    fn captions(&self, settings: &Settings, load: Load, max_rows: usize) -> Vec<Vec<Caption>> {
        let tokens = settings.max_new_tokens;
        let mut decoder = load(&self.runtime, self.folder.path(), &self.decoder, self.prefix_len, max_rows, tokens);
        let prefixes = self.prefixes.chunks(self.prefix_len * architecture(&self.decoder).sizes().n_embd).enumerate();
        let mut requests: Vec<Request> = prefixes
            .map(|(i, prefix)| Request { index: i as u64, sha256: [i as u8; 32].into(), prefix_embeds: prefix.to_vec() })
            .collect();
        // More images than rows, and each twice: the second time its neighbours are others.
        let count = requests.len() as u64;
        let again: Vec<Request> =
            requests.iter().map(|request| Request { index: request.index + count, ..request.clone() }).collect();
        requests.extend(again);
        let mut generator = Generator::new(settings.clone(), self.tokens.clone()).unwrap();
        let mut captions = vec![Vec::new(); requests.len()];
        let mut requests = Some(requests);
        let done = |image: crate::generation::FinishedImage| {
            captions[image.index as usize] = image.captions;
            Ok(())
        };
        generator.run(&mut *decoder, || Ok::<_, GenerationError>(requests.take()), done).unwrap();
        captions
    }
}

#[test]
fn greedy_captions_are_the_golden_ones() {
    for golden in all_golden() {
        let settings = Settings { max_new_tokens: 40, ..Settings::default() };
        for load in DECODERS {
            for max_rows in [1, 4, 64] {
                let captions = golden.captions(&settings, load, max_rows);
                for (found, expected) in captions.iter().zip(golden.expected.iter().cycle()) {
                    let [caption] = found.as_slice() else { panic!("greedy has one caption") };
                    assert_eq!(caption.token_ids, expected[..expected.len() - 1], "{max_rows} rows");
                    assert_eq!(caption.num_tokens, expected.len());
                    let logprob = caption.logprob;
                    assert!(logprob < 0.0 && logprob > golden.least_logprob, "a memorized caption is likely: {logprob}");
                }
            }
        }
    }
}

#[test]
fn rows_do_not_feel_each_other() {
    for golden in all_golden() {
        // Few enough tokens to choose from that no draw falls next to a boundary.
        let sampling = Sampling { temperature: 3.0, top_k: 30, top_p: 0.8, seed: 3, ..Sampling::default() };
        let strategies =
            [(Strategy::Sample(sampling), 3), (Strategy::Beam { num_beams: 4, length_penalty: 1.0 }, 4), (Strategy::Greedy, 1)];
        for (strategy, num_captions) in strategies {
            let settings =
                Settings { strategy, num_captions, max_new_tokens: 24, repetition_penalty: 1.3, ..Settings::default() };
            let alone = golden.captions(&settings, DECODERS[0], settings.rows_per_search());
            for (load, max_rows) in [(DECODERS[0], 9), (DECODERS[0], 30), (DECODERS[1], 10)] {
                let together = golden.captions(&settings, load, max_rows);
                assert!(together.iter().all(|image| image.len() == num_captions));
                for (alone, together) in alone.iter().flatten().zip(together.iter().flatten()) {
                    assert_eq!(alone.token_ids, together.token_ids, "{:?}, {max_rows} rows", settings.strategy);
                    assert_eq!(alone.finish_reason, together.finish_reason);
                    assert!((alone.logprob - together.logprob).abs() < 1e-3 && alone.num_tokens == together.num_tokens);
                }
            }
            let (first, second) = alone.split_at(golden.expected.len());
            assert_eq!(first, second, "the same image has the same captions");
        }
    }
}
