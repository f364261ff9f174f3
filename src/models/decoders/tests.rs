//! Every family, decoded with caches token by token, against the saved graph over the whole sequence at once.

use std::path::Path;

use super::*;
use crate::models::config::{Gpt2Config, LlamaConfig};
use crate::models::graphs::{GPT2_WEIGHTS, GraphKind, build};
use crate::models::import::decoder_preset;
use crate::models::layers::Style;
use crate::models::part::Part;
use crate::models::style_for;
use crate::models::{CachedDecoder, Decoder, Picked, ResidentDecoder, TokenEmbedding};
use crate::runtime::{Device, Feed, Precision, Runtime, Session};

fn preset(name: &str) -> DecoderConfig {
    decoder_preset(name.as_ref()).unwrap().0
}

/// Small decoders; head widths that are and are not multiples of 8.
fn decoders() -> Vec<(&'static str, DecoderConfig)> {
    let llama = |name: &str, change: &dyn Fn(&mut LlamaConfig)| match preset(name) {
        DecoderConfig::Llama(mut config) => {
            (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.initializer_range) = (50, 32, 2, 0.3);
            change(&mut config);
            DecoderConfig::Llama(config)
        }
        DecoderConfig::Gpt2(_) => unreachable!("only Llama's kind is asked for"),
    };
    let gpt2 = Gpt2Config { vocab_size: 50, n_embd: 24, n_layer: 2, n_head: 4, initializer_range: 0.3, ..Gpt2Config::default() };
    vec![
        ("gpt2", gpt2.into()),
        ("qwen2", llama("qwen2-tiny", &|_| {})),
        ("qwen3", llama("qwen3-tiny", &|config| config.head_dim = Some(12))),
        ("llama", llama("llama-tiny", &|config| (config.num_key_value_heads, config.attention_bias) = (Some(1), true))),
    ]
}

/// Logits [B, V] behind whole sequences [B, T].
fn whole(folder: &Path, config: &DecoderConfig, ids: &[u32], rows: usize) -> Vec<f32> {
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(1)).unwrap();
    let model = build(folder, GraphKind::Decoder(config), Style::PORTABLE).unwrap();
    let mut session = Session::new(&runtime, "decoder", &model.to_bytes(), folder, &[]).unwrap();
    let sizes = architecture(config).sizes();
    let (b, t) = (rows as i64, (ids.len() / rows) as i64);
    let embeds = TokenEmbedding::open(folder, config).unwrap().rows(ids).unwrap();
    let positions: Vec<i64> = (0..b).flat_map(|_| 0..t).collect();
    let mask = vec![1i64; ids.len()];
    let cache = [b, sizes.n_kv_head as i64, 0, sizes.head_dim as i64];
    let names: Vec<String> =
        (0..sizes.n_layer).flat_map(|layer| ["key", "value"].map(|part| cache_name("past_key_values", layer, part))).collect();
    let (embeds_shape, ids_shape) = ([b, t, sizes.n_embd as i64], [b, t]);
    let mut feeds = vec![
        ("inputs_embeds", Feed::F32(&embeds, &embeds_shape)),
        ("position_ids", Feed::I64(&positions, &ids_shape)),
        ("attention_mask", Feed::I64(&mask, &ids_shape)),
    ];
    feeds.extend(names.iter().map(|name| (name.as_str(), Feed::F32(&[], &cache))));
    session.run(&feeds).unwrap().f32("logits").unwrap().to_vec()
}

#[test]
fn cached_decoding_is_what_the_whole_sequence_gives() {
    let (rows, tokens, prefix) = (3, 9, 4);
    let ids: Vec<u32> = (0..rows * tokens).map(|i| (i * i * 7 + 3 * i) as u32 % 50).collect();
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(1)).unwrap();
    for (name, config) in decoders() {
        let folder = tempfile::tempdir().unwrap();
        Part::random(decoder_tensors(&config), 4).write(&folder.path().join(GPT2_WEIGHTS)).unwrap();
        let wanted = whole(folder.path(), &config, &ids, rows);
        let embedding = TokenEmbedding::open(folder.path(), &config).unwrap();
        let room = tokens - prefix + 1;
        let picked = Picked { count: 5, temperature: 1.0 };
        let resident =
            |shared| ResidentDecoder::load_with(&runtime, folder.path(), &config, shared, [prefix, rows, room], picked);
        let own = Style { own: true, ..style_for(&runtime) };
        let decoders: [Box<dyn Decoder>; 4] = [
            Box::new(CachedDecoder::load_in(&runtime, folder.path(), &config, own, [prefix, rows, room]).unwrap()),
            Box::new(CachedDecoder::load(&runtime, folder.path(), &config, prefix, rows, room).unwrap()),
            Box::new(resident(SharedCache::Scattered).unwrap()),
            Box::new(resident(SharedCache::Grouped).unwrap()),
        ];
        for mut decoder in decoders {
            let prefixes: Vec<u32> = ids.chunks(tokens).flat_map(|row| row[..prefix].to_vec()).collect();
            decoder.prefill(&embedding.rows(&prefixes).unwrap(), rows).unwrap();
            (0..rows).for_each(|row| decoder.start_row(row).unwrap());
            let mut logits = vec![];
            for at in prefix..tokens {
                let step: Vec<u32> = ids.chunks(tokens).map(|row| row[at]).collect();
                logits = decoder.step(&step).unwrap().to_vec();
            }
            let largest = wanted.iter().fold(0f32, |m, x| m.max(x.abs()));
            let worst = logits.iter().zip(&wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
            assert!(worst < 1e-5, "{name}: {worst}");
        }
    }
}

/// Rows that end, start late, and go on several times, before and after a step: a decoder on a device moves places about, and gives what
/// one in the host's memory gives.
#[test]
fn rows_that_move_on_a_device_go_on_as_those_of_the_host() {
    enum Deed {
        Start(&'static [usize]),
        Gather(&'static [usize]),
        Step(&'static [u32]),
    }
    use Deed::{Gather, Start, Step};
    let deeds = [
        Start(&[0, 1, 2, 0]),
        Gather(&[3, 3, 1]),
        Gather(&[1, 2, 2, 0]),
        Step(&[7, 8, 9, 10]),
        Gather(&[1, 0, 0, 3, 1]),
        Gather(&[4, 4, 0, 2]),
        Start(&[2]),
        Gather(&[4, 4, 1, 0, 3, 2]),
        Step(&[1, 2, 3, 4, 5, 6]),
        Gather(&[5]),
        Start(&[1, 0]),
        Step(&[11, 12, 13]),
        Gather(&[2, 1, 0]),
        Step(&[3, 2, 1]),
    ];
    let (prefix, rows, room) = (3, 6, 6);
    let picked = Picked { count: 5, temperature: 1.0 };
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(1)).unwrap();
    let (name, config) = decoders().swap_remove(0);
    let folder = tempfile::tempdir().unwrap();
    Part::random(decoder_tensors(&config), 4).write(&folder.path().join(GPT2_WEIGHTS)).unwrap();
    let embeds = TokenEmbedding::open(folder.path(), &config).unwrap().rows(&[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    let run = |mut decoder: Box<dyn Decoder>| -> Vec<Vec<f32>> {
        decoder.prefill(&embeds, 3).unwrap();
        let mut found = vec![];
        for deed in &deeds {
            match deed {
                Start(prefixes) => prefixes.iter().for_each(|&prefix| decoder.start_row(prefix).unwrap()),
                Gather(sources) => decoder.gather_rows(sources).unwrap(),
                Step(tokens) => found.push(decoder.step(tokens).unwrap().to_vec()),
            }
        }
        assert!(decoder.gather_rows(&[0; 7]).is_err() && decoder.gather_rows(&[3]).is_err());
        assert!(decoder.start_row(3).is_err());
        found
    };
    let wanted = run(Box::new(CachedDecoder::load(&runtime, folder.path(), &config, prefix, rows, room).unwrap()));
    let own = Style { own: true, ..style_for(&runtime) };
    let resident =
        |shared| ResidentDecoder::load_with(&runtime, folder.path(), &config, shared, [prefix, rows, room], picked).unwrap();
    let others: [(&str, Box<dyn Decoder>); 3] = [
        (
            "shared prefixes",
            Box::new(CachedDecoder::load_in(&runtime, folder.path(), &config, own, [prefix, rows, room]).unwrap()),
        ),
        ("scattered", Box::new(resident(SharedCache::Scattered))),
        ("grouped", Box::new(resident(SharedCache::Grouped))),
    ];
    for (kind, decoder) in others {
        for (at, (found, wanted)) in run(decoder).iter().zip(&wanted).enumerate() {
            let worst = found.iter().zip(wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(found.len() == wanted.len() && worst < 1e-4, "{name} {kind}, step {at}: {worst}");
        }
    }
}
