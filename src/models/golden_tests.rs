//! The models against PyTorch's answers in `../shared/golden`.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

use super::config::{ClipConfig, DecoderConfig};
use super::weights::SafetensorsFile;
use super::*;
use crate::files;
use crate::image::Preprocess;
use crate::runtime::{Device, Precision, Runtime};
use crate::testing::shared;

fn runtime(threads: usize) -> Runtime {
    Runtime::start(Device::Cpu, Precision::Fp32, Some(threads)).unwrap()
}

/// max |a - b| / max |b|
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / largest
}

/// A folder in a bundle's layout with some weight files in it.
fn folder(files: &[(PathBuf, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (source, target) in files {
        files::copy(source, &folder.path().join(target)).unwrap();
    }
    folder
}

#[test]
fn image_embeddings_are_those_of_pytorch() {
    let Some(clip) = shared("golden/clip_hf") else { return };
    let Some(expected) = shared("golden/clip_hf.expected.safetensors") else { return };
    let folder = folder(&[(clip.join("model.safetensors"), graphs::CLIP_WEIGHTS)]);
    let config = ClipConfig::read(&clip.join("config.json")).unwrap();
    let expected = SafetensorsFile::open(expected).unwrap();
    let (pixels, wanted) = (expected.read_f32("pixel_values").unwrap(), expected.read_f32("image_embeds").unwrap());
    let mut encoder = ClipEncoder::load(&runtime(2), folder.path(), &config, 16).unwrap();
    let found = encoder.encode(&pixels, 15).unwrap();
    assert!(difference(&found, &wanted) < 1e-4, "{}", difference(&found, &wanted));
    let one = encoder.encode(&pixels[..pixels.len() / 15], 1).unwrap();
    assert!(difference(&one, &found[..one.len()]) < 1e-5);
}

/// A card gets bytes and makes numbers of them itself: the same numbers, and so the same embeddings to the bit.
#[test]
fn pictures_in_bytes_have_the_embeddings_of_pictures_in_numbers() {
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/clip");
    let folder = folder(&[(clip.join("model.safetensors"), graphs::CLIP_WEIGHTS)]);
    let config = ClipConfig::read(&clip.join("config.json")).unwrap();
    let preprocess = Preprocess::from_file(&clip.join("preprocessor_config.json")).unwrap();
    let packed = preprocess.clone().packed();
    assert_eq!(4 * packed.num_values(), preprocess.num_values());
    let (width, height) = preprocess.output_size();
    let picture =
        |n: u32| RgbImage::from_fn(width, height, |x, y| Rgb([x * 7 + n * 31, y * 5 + n, x * y + 3 * n].map(|v| v as u8)));
    let embeddings = |preprocess: &Preprocess, count: u32| {
        let mut encoder = ClipEncoder::load_for(&runtime(2), folder.path(), &config, preprocess, 5).unwrap();
        let images: Vec<Vec<f32>> = (0..count)
            .map(|n| {
                let mut image = vec![0.0; preprocess.num_values()];
                preprocess.normalize_into(&picture(n), &mut image);
                image
            })
            .collect();
        assert!(encoder.encode_each(&[&images[0][1..]]).is_err());
        encoder.encode_each(&images.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap()
    };
    for count in [5, 2] {
        assert_eq!(embeddings(&packed, count), embeddings(&preprocess, count));
    }
}

/// Spelled for CUDA (attention without cuDNN) a graph computes the same; nothing in it needs a card.
#[test]
fn what_is_spelled_for_cuda_gives_the_embeddings_of_pytorch() {
    use crate::runtime::{Feed, Session};
    let Some(clip) = shared("golden/clip_hf") else { return };
    let Some(expected) = shared("golden/clip_hf.expected.safetensors") else { return };
    let folder = folder(&[(clip.join("model.safetensors"), graphs::CLIP_WEIGHTS)]);
    let config = ClipConfig::read(&clip.join("config.json")).unwrap();
    let expected = SafetensorsFile::open(expected).unwrap();
    let style = layers::Style { fused: true, cuda: true, ..layers::Style::PORTABLE };
    let model = graphs::build(folder.path(), graphs::GraphKind::ImageEncoder(&config), style).unwrap();
    let mut session = Session::new(&runtime(2), "image_encoder", &model.to_bytes(), folder.path(), &[]).unwrap();
    let side = config.vision_config.image_size() as i64;
    let pixels = expected.read_f32("pixel_values").unwrap();
    let outputs = session.run(&[("pixel_values", Feed::F32(&pixels, &[15, 3, side, side]))]).unwrap();
    let (found, wanted) = (outputs.f32("image_embeds").unwrap(), expected.read_f32("image_embeds").unwrap());
    assert!(difference(found, &wanted) < 1e-4, "{}", difference(found, &wanted));
}

/// Feeds token ids one after the other behind a prefix of the first `prefix_len` and compares each step with PyTorch's last logits.
fn check_decoder(
    gpt2: &Path,
    expected: &SafetensorsFile,
    load: impl Fn(&Path, &DecoderConfig, usize, usize, usize) -> Box<dyn Decoder>,
) {
    let folder = folder(&[(gpt2.join("model.safetensors"), graphs::GPT2_WEIGHTS)]);
    let config = DecoderConfig::read(&gpt2.join("config.json")).unwrap();
    let shape = &expected.get("input_ids").unwrap().shape;
    let (rows, tokens) = (shape[0], shape[1]);
    let ids: Vec<u32> = expected.read_f32("input_ids").unwrap().iter().map(|&x| x as u32).collect();
    let wanted = expected.read_f32("logits_last").unwrap();
    let embedding = embedding::TokenEmbedding::open(folder.path(), &config).unwrap();
    for prefix_len in [1, 3, tokens - 1] {
        let room = tokens - prefix_len + 1;
        let mut decoder = load(folder.path(), &config, prefix_len, rows + 1, room);
        let prefixes: Vec<u32> = ids.chunks(tokens).flat_map(|row| row[..prefix_len].to_vec()).collect();
        decoder.prefill(&embedding.rows(&prefixes).unwrap(), rows).unwrap();
        // Rows start in another order and are put right by gathering.
        for prefix in (0..rows).rev().chain([0]) {
            decoder.start_row(prefix).unwrap();
        }
        decoder.gather_rows(&(0..rows).rev().collect::<Vec<_>>()).unwrap();
        let mut logits = vec![];
        for t in prefix_len..tokens {
            let step: Vec<u32> = ids.chunks(tokens).map(|row| row[t]).collect();
            logits = decoder.step(&step).unwrap().to_vec();
        }
        assert!(difference(&logits, &wanted) < 1e-4, "prefix {prefix_len}: {}", difference(&logits, &wanted));
    }
}

#[test]
fn cached_decoding_gives_the_logits_of_pytorch() {
    let Some(gpt2) = shared("golden/gpt2") else { return };
    let Some(expected) = shared("golden/gpt2.expected.safetensors") else { return };
    check_decoder(&gpt2, &SafetensorsFile::open(expected).unwrap(), |folder, config, prefix_len, rows, tokens| {
        Box::new(CachedDecoder::load(&runtime(2), folder, config, prefix_len, rows, tokens).unwrap())
    });
}

#[test]
fn decoding_with_caches_on_the_device_gives_the_logits_of_pytorch() {
    let Some(gpt2) = shared("golden/gpt2") else { return };
    let Some(expected) = shared("golden/gpt2.expected.safetensors") else { return };
    let expected = SafetensorsFile::open(expected).unwrap();
    for shared in [decoders::SharedCache::Scattered, decoders::SharedCache::Grouped] {
        check_decoder(&gpt2, &expected, |folder, config, prefix_len, rows, tokens| {
            let (sizes, picked) = ([prefix_len, rows, tokens], Picked { count: 9, temperature: 0.7 });
            Box::new(ResidentDecoder::load_with(&runtime(2), folder, config, shared, sizes, picked).unwrap())
        });
    }
}

#[test]
fn the_saved_decoder_gives_the_same_logits() {
    let Some(gpt2) = shared("golden/gpt2") else { return };
    let Some(expected) = shared("golden/gpt2.expected.safetensors") else { return };
    use crate::runtime::{Feed, Session};
    let expected = SafetensorsFile::open(expected).unwrap();
    let folder = folder(&[(gpt2.join("model.safetensors"), graphs::GPT2_WEIGHTS)]);
    let config = DecoderConfig::read(&gpt2.join("config.json")).unwrap();
    let model = graphs::build(folder.path(), graphs::GraphKind::Decoder(&config), layers::Style::PORTABLE).unwrap();
    let mut session = Session::new(&runtime(1), "decoder", &model.to_bytes(), folder.path(), &[]).unwrap();
    let shape = &expected.get("input_ids").unwrap().shape;
    let (b, t) = (shape[0] as i64, shape[1] as i64);
    let ids: Vec<u32> = expected.read_f32("input_ids").unwrap().iter().map(|&x| x as u32).collect();
    let embeds = embedding::TokenEmbedding::open(folder.path(), &config).unwrap().rows(&ids).unwrap();
    let positions: Vec<i64> = (0..b).flat_map(|_| 0..t).collect();
    let mask = vec![1i64; (b * t) as usize];
    let sizes = decoders::architecture(&config).sizes();
    let cache_shape = [b, sizes.n_kv_head as i64, 0, sizes.head_dim as i64];
    let names: Vec<String> = (0..sizes.n_layer)
        .flat_map(|layer| ["key", "value"].map(|part| decoders::cache_name("past_key_values", layer, part)))
        .collect();
    let (embeds_shape, ids_shape) = ([b, t, sizes.n_embd as i64], [b, t]);
    let mut feeds = vec![
        ("inputs_embeds", Feed::F32(&embeds, &embeds_shape)),
        ("position_ids", Feed::I64(&positions, &ids_shape)),
        ("attention_mask", Feed::I64(&mask, &ids_shape)),
    ];
    feeds.extend(names.iter().map(|name| (name.as_str(), Feed::F32(&[], &cache_shape))));
    let outputs = session.run(&feeds).unwrap();
    let wanted = expected.read_f32("logits_last").unwrap();
    assert!(difference(outputs.f32("logits").unwrap(), &wanted) < 1e-4);
}
