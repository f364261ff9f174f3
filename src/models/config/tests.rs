use super::*;
use crate::testing::shared;

fn vit(clip: &ClipConfig) -> &ClipVisionConfig {
    match &clip.vision_config {
        VisionConfig::Vit(vision) => vision,
        other => panic!("{other:?}"),
    }
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn the_golden_configurations_say_what_their_readme_says() {
    let Some(golden) = shared("golden") else { return };
    let clip = ClipConfig::read(&golden.join("clip_hf/config.json")).unwrap();
    assert_eq!((clip.projection_dim, vit(&clip).image_size, vit(&clip).patch_size), (48, 96, 16));
    assert_eq!(vit(&clip).num_positions(), 37);
    assert_eq!(clip.clip_text().unwrap().vocab_size, 99);
    let preprocessor = PreprocessorConfig::read(&golden.join("clip_hf/preprocessor_config.json")).unwrap();
    assert_eq!((preprocessor.size, preprocessor.crop_size), (Resize::ShortestEdge(96), 96));
    let gpt2 = Gpt2Config::read(&golden.join("gpt2/config.json")).unwrap();
    assert_eq!((gpt2.n_embd, gpt2.head_dim(), gpt2.inner_size(), gpt2.eos_token_id), (48, 12, 192, Some(102)));
    let bert = BertConfig::read(&golden.join("bert/config.json")).unwrap();
    assert_eq!((bert.hidden_size, bert.hidden_act), (48, Activation::Gelu));
}

#[test]
fn defaults_are_those_of_transformers() {
    let (_folder, path) = written(r#"{"vision_config": {}, "text_config": null}"#);
    let clip = ClipConfig::read(&path).unwrap();
    assert_eq!((clip.projection_dim, vit(&clip).hidden_size, vit(&clip).image_size), (512, 768, 224));
    let (_folder, path) = written("{}");
    let gpt2 = Gpt2Config::read(&path).unwrap();
    assert_eq!((gpt2.vocab_size, gpt2.n_positions, gpt2.inner_size()), (50257, 1024, 3072));
    assert!(ClipConfig::read(&path).unwrap_err().to_string().contains("vision_config"));
}

#[test]
fn an_image_tower_alone_is_read_and_so_is_an_old_gpt2() {
    let (_folder, path) =
        written(r#"{"model_type": "clip_vision_model", "hidden_size": 64, "num_attention_heads": 4, "projection_dim": 48}"#);
    let clip = ClipConfig::read(&path).unwrap();
    assert_eq!((clip.projection_dim, vit(&clip).hidden_size, clip.text_config.as_ref()), (48, 64, None));
    let (_folder, path) = written(r#"{"n_ctx": 300, "activation_function": "gelu_fast"}"#);
    let gpt2 = Gpt2Config::read(&path).unwrap();
    assert_eq!((gpt2.n_positions, gpt2.activation_function), (300, Activation::GeluNew));
}

#[test]
fn old_preprocessor_files_have_plain_numbers() {
    let (_folder, path) = written(r#"{"size": 224, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}"#);
    let old = PreprocessorConfig::read(&path).unwrap();
    assert_eq!(old, PreprocessorConfig::for_image_size(224));
    let (_folder, path) = written(&serde_json::to_string(&old).unwrap());
    assert_eq!(PreprocessorConfig::read(&path).unwrap(), old);
    let (_folder, path) = written(r#"{"crop_size": {"height": 224, "width": 200}}"#);
    assert!(PreprocessorConfig::read(&path).unwrap_err().to_string().contains("not square"));
    let (_folder, path) = written(r#"{"size": {"height": 224, "width": 224}, "do_center_crop": false}"#);
    let squashed = PreprocessorConfig::read(&path).unwrap();
    assert_eq!((squashed.size, squashed.side()), (Resize::Exact { height: 224, width: 224 }, 224));
    for (text, word) in [
        (r#"{"size": {"height": 224, "width": 200}, "do_center_crop": false}"#, "square"),
        (r#"{"do_center_crop": false}"#, "no crop"),
        (r#"{"size": {"shortest_edge": 224, "longest_edge": 300}}"#, "size must be"),
        (r#"{"resample": 0}"#, "resample is 0"),
    ] {
        let (_folder, path) = written(text);
        let message = PreprocessorConfig::read(&path).unwrap_err().to_string();
        assert!(message.contains(word), "{text}: {message}");
    }
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    for (text, word) in [
        (r#"{"n_embd": 50, "n_head": 12}"#, "multiple"),
        (r#"{"n_layer": 0}"#, "n_layer"),
        (r#"{"vocab_size": 99999999999}"#, "vocab_size"),
        (r#"{"scale_attn_weights": false}"#, "scale_attn_weights"),
        (r#"{"add_cross_attention": true}"#, "add_cross_attention"),
        (r#"{"activation_function": "mish"}"#, "mish"),
        (r#"{"model_type": "bert"}"#, "bert"),
        (r#"{"attn_pdrop": 1.5}"#, "attn_pdrop"),
        ("[]", "object"),
        ("{", "EOF"),
    ] {
        let (_folder, path) = written(text);
        let message = Gpt2Config::read(&path).unwrap_err().to_string();
        assert!(message.contains(word) && message.contains("config.json"), "{text}: {message}");
    }
}

#[test]
fn a_mapper_configuration_fits_together_or_is_refused() {
    let path = Path::new("mapper/config.json");
    let mlp = MapperConfig::mlp(512, 768, 10);
    assert_eq!(mlp.layer_sizes, [512, 3840, 7680]);
    mlp.validate(path).unwrap();
    let back: MapperConfig = serde_json::from_str(&serde_json::to_string(&mlp).unwrap()).unwrap();
    assert_eq!(back, mlp);
    MapperConfig::bert(512, 768, 10, BertConfig::default()).validate(path).unwrap();
    assert!(MapperConfig::bert(512, 760, 10, BertConfig::default()).validate(path).is_err());
    assert!(MapperConfig::bert(512, 768, 300, BertConfig::default()).validate(path).is_err());
    assert!(MapperConfig { layer_sizes: vec![512, 7680, 1], ..mlp }.validate(path).is_err());
}
