//! Models by name, for a start without any files, and the vocabulary that goes with them.

use std::path::Path;

use std::collections::BTreeMap;

use crate::models::config::{Activation, ClipConfig, ClipTextConfig, ClipVisionConfig, DecoderConfig, Gpt2Config, LlamaConfig};
use crate::text::Vocabulary;

/// `vit-b-32`: OpenAI's ViT-B/32, whole. `vit-tiny`: an image tower of 64 pixels, for demonstrations. None for any other name.
pub fn clip_preset(name: &Path) -> Option<ClipConfig> {
    match name.to_str()? {
        "vit-b-32" => Some(ClipConfig {
            text_config: Some(ClipTextConfig::default().into()),
            ..ClipConfig::vision_only(ClipVisionConfig::default())
        }),
        "vit-tiny" => Some(ClipConfig::vision_only(ClipVisionConfig {
            hidden_size: 128,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            image_size: 64,
            patch_size: 8,
            projection_dim: 128,
            ..ClipVisionConfig::default()
        })),
        _ => None,
    }
}

/// Decoders, with their vocabulary. None for any other name.
///
/// `gpt2-base-zh`: 12 layers of 768, 21,128 entries. `gpt2-tiny`: 4 layers of 128, the same vocabulary. `gpt2-tiny-en`: the same layers over
/// bytes. `qwen2-tiny`, `qwen3-tiny` and `llama-tiny`: 4 layers of 128 of these families, GPT2's vocabularies (Llama's: bytes).
pub fn decoder_preset(name: &Path) -> Option<(DecoderConfig, Vocabulary)> {
    let base = Gpt2Config { vocab_size: 21128, bos_token_id: Some(101), eos_token_id: Some(102), ..Gpt2Config::default() };
    let tiny = Gpt2Config { n_positions: 128, n_embd: 128, n_layer: 4, n_head: 4, ..base.clone() };
    let pieces = |entries: usize| Vocabulary::WordPiece { pieces: made_vocabulary(entries).into_bytes(), lower_case: true };
    Some(match name.to_str()? {
        "gpt2-base-zh" => (base.into(), pieces(21128)),
        "gpt2-tiny" => (tiny.into(), pieces(21128)),
        "gpt2-tiny-en" => {
            let end = Some(BYTES_END);
            let config = Gpt2Config { vocab_size: BYTES_END as usize + 1, bos_token_id: end, eos_token_id: end, ..tiny };
            (config.into(), bytes_vocabulary())
        }
        "qwen2-tiny" => (tiny_llama("qwen2", 21128).into(), pieces(21128)),
        "qwen3-tiny" => (LlamaConfig { head_dim: Some(48), ..tiny_llama("qwen3", 21128) }.into(), pieces(21128)),
        "llama-tiny" => {
            let config = LlamaConfig { tie_word_embeddings: false, ..tiny_llama("llama", BYTES_END as usize + 1) };
            (config.into(), bytes_vocabulary())
        }
        _ => return None,
    })
}

fn tiny_llama(model_type: &str, vocab_size: usize) -> LlamaConfig {
    LlamaConfig {
        model_type: model_type.into(),
        vocab_size,
        hidden_size: 128,
        intermediate_size: 384,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        head_dim: None,
        max_position_embeddings: 128,
        hidden_act: Activation::Silu,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: None,
        attention_bias: false,
        mlp_bias: false,
        attention_dropout: 0.0,
        tie_word_embeddings: true,
        initializer_range: 0.02,
        sliding_window: None,
        use_sliding_window: None,
        eos_token_id: (vocab_size == BYTES_END as usize + 1).then_some(BYTES_END),
    }
}

/// `<|endoftext|>` of [`bytes_vocabulary`].
const BYTES_END: u32 = 256;

/// GPT2's way to write any byte as a character, as a vocabulary without merges: each byte is an entry.
fn bytes_vocabulary() -> Vocabulary {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let characters = (0..256).filter(|&b| printable(b)).chain((256..).take((0..256).filter(|&b| !printable(b)).count()));
    let mut entries: serde_json::Map<String, serde_json::Value> = characters
        .filter_map(char::from_u32)
        .zip(0..)
        .map(|(character, id): (char, u32)| (character.to_string(), id.into()))
        .collect();
    entries.insert("<|endoftext|>".into(), BYTES_END.into());
    let vocab = serde_json::Value::Object(entries).to_string().into_bytes();
    Vocabulary::Bpe(BTreeMap::from([("vocab.json".into(), vocab), ("merges.txt".into(), b"#version: 0.2\n".to_vec())]))
}

/// Punctuation that Chinese text uses beyond ASCII.
const WIDE_PUNCTUATION: &str = "。，、！？：；“”‘’（）《》〈〉【】「」『』〔〕…—～·￥％";

/// A `vocab.txt` of `entries` lines: BERT's special tokens where bert-base-chinese has them, ASCII, punctuation and Latin pieces (each
/// also as `##` piece), then Chinese characters in the order of their code points.
///
/// Below 1,000 entries the unused lines between `[PAD]` and `[UNK]` are left out.
pub fn made_vocabulary(entries: usize) -> String {
    let unused = if entries < 1000 { 0 } else { 99 };
    let special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from);
    let ascii = || ('!'..='~').filter(|c| !c.is_ascii_uppercase());
    let letters = || ascii().filter(char::is_ascii_alphanumeric);
    let pairs = || ('a'..='z').flat_map(|a| "aeioulnrst".chars().map(move |b| format!("{a}{b}")));
    let digits = || (10..100).map(|number: u32| number.to_string());
    std::iter::once("[PAD]".to_string())
        .chain((1..=unused).map(|number| format!("[unused{number}]")))
        .chain(special)
        .chain(ascii().map(String::from))
        .chain(WIDE_PUNCTUATION.chars().map(String::from))
        .chain(letters().map(|c| format!("##{c}")))
        .chain(pairs())
        .chain(pairs().map(|pair| format!("##{pair}")))
        .chain(digits())
        .chain(digits().map(|number| format!("##{number}")))
        .chain(('\u{4e00}'..='\u{9fff}').map(String::from))
        .chain((1..).map(|number| format!("[unused{}]", unused + number)))
        .take(entries)
        .map(|piece| piece + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Tokenizer;

    #[test]
    fn the_made_vocabulary_has_the_special_tokens_in_their_places() {
        let text = made_vocabulary(21128);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 21128);
        assert_eq!((lines[0], &lines[100..104]), ("[PAD]", &["[UNK]", "[CLS]", "[SEP]", "[MASK]"][..]));
        let mut distinct = lines.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), lines.len(), "every piece stands there once");
        let tokenizer = Tokenizer::from_bytes(text.as_bytes(), Path::new("vocab.txt"), true).unwrap();
        let ids = tokenizer.encode("一只狗 wearing a T恤, 17!").unwrap();
        assert!(!ids.contains(&tokenizer.unk_id().unwrap()));
        assert_eq!(tokenizer.end_id(), 102);
    }

    #[test]
    fn small_vocabularies_begin_with_the_special_tokens() {
        let text = made_vocabulary(300);
        assert_eq!(text.lines().take(5).collect::<Vec<_>>(), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]);
        assert_eq!(text.lines().count(), 300);
        assert_eq!(made_vocabulary(40_000).lines().count(), 40_000);
    }

    #[test]
    fn presets_are_valid() {
        for name in ["vit-b-32", "vit-tiny"] {
            clip_preset(Path::new(name)).unwrap().validate(Path::new(name)).unwrap();
        }
        for name in ["gpt2-base-zh", "gpt2-tiny", "gpt2-tiny-en", "qwen2-tiny", "qwen3-tiny", "llama-tiny"] {
            decoder_preset(Path::new(name)).unwrap().0.validate(Path::new(name)).unwrap();
        }
        assert!(clip_preset(Path::new("vit")).is_none() && decoder_preset(Path::new("gpt2")).is_none());
    }
}
