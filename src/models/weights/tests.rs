//! The published layouts, and files made to do harm.

use super::*;
use crate::testing::shared;

fn open(path: &str) -> Option<WeightSource> {
    Some(WeightSource::open(&shared(&format!("golden/{path}"))?).unwrap())
}

/// Every tensor of `a` is in `b` with the same bits.
fn assert_contained(a: &WeightSource, b: &WeightSource) {
    assert!(a.tensors().len() > 30);
    for (name, tensor) in a.tensors() {
        assert_eq!(tensor.shape, b.get(name).unwrap().shape, "{name}");
        let bits = |source: &WeightSource| source.read_f32(name).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(a) == bits(b), "{name} differs");
    }
}

#[test]
fn a_model_is_the_same_in_every_layout() {
    let Some(clip) = open("clip_hf/model.safetensors") else { return };
    let zip = open("clip_hf/pytorch_model.bin").unwrap();
    assert_eq!((clip.format(), zip.format()), (WeightFormat::Safetensors, WeightFormat::TorchZip));
    assert_contained(&clip, &zip);
    let gpt2 = open("gpt2").unwrap();
    assert!(gpt2.is_single_safetensors() && gpt2.path().ends_with("model.safetensors"));
    assert_contained(&gpt2, &open("gpt2/pytorch_model.bin").unwrap());
    let legacy = open("gpt2_legacy").unwrap();
    assert_eq!(legacy.format(), WeightFormat::TorchLegacy);
    assert_contained(&gpt2, &legacy);
    assert!(legacy.same("lm_head.weight", "transformer.wte.weight").unwrap());
    assert!(!legacy.same("transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias").unwrap());
}

#[test]
fn a_torchscript_archive_names_its_parameters_by_attribute_paths() {
    let Some(clip) = open("openai_vit.pt") else { return };
    assert_eq!(clip.format(), WeightFormat::TorchScript);
    let weight = clip.get("visual.transformer.resblocks.1.attn.in_proj_weight").unwrap();
    assert_eq!((weight.dtype, weight.shape.as_slice()), (Dtype::F16, &[192, 64][..]));
    assert_eq!(clip.get("logit_scale").unwrap().shape, [0usize; 0]);
    assert_eq!(clip.tensors().len(), 50);
    assert!(clip.read_f32("visual.proj").unwrap().iter().all(|x| x.is_finite()));
}

#[test]
fn checkpoints_keep_their_names() {
    for (file, key) in [
        ("clipcap_mlp.pt", "clip_project.model.2.weight"),
        ("clipcap_bert.pt", "clip_project.prefix_const"),
        ("clipcap_mlp_trained.pt", "gpt2.transformer.wte.weight"),
        ("clipcap_bert_trained.pt", "clip_project.bert.encoder.layer.1.output.LayerNorm.bias"),
    ] {
        let Some(checkpoint) = open(file) else { return };
        assert!(checkpoint.read_f32(key).unwrap().iter().any(|&x| x != 0.0), "{file}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_or_reads_only_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["openai_vit.pt", "gpt2_legacy/pytorch_model.bin", "clip_hf/pytorch_model.bin", "clip_hf/model.safetensors"] {
        let Some(path) = shared(&format!("golden/{file}")) else { return };
        let whole = std::fs::read(path).unwrap();
        let cut = folder.path().join("cut.bin");
        let steps = (0..48).map(|i| i * whole.len() / 48).chain([1, 7, 15, 100, 1000, whole.len() - 1]);
        for length in steps {
            std::fs::write(&cut, &whole[..length]).unwrap();
            let error = WeightSource::open(&cut).expect_err(&format!("{file} cut to {length}"));
            assert!(error.to_string().contains("cut.bin"), "{error}");
        }
    }
}

#[test]
fn a_damaged_file_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["openai_vit.pt", "gpt2_legacy/pytorch_model.bin", "clip_hf/pytorch_model.bin", "clip_hf/model.safetensors"] {
        let Some(path) = shared(&format!("golden/{file}")) else { return };
        let whole = std::fs::read(path).unwrap();
        // Where the descriptions are: the front, and a zip file's directory at the end.
        let hot = |random: usize| match random % 3 {
            0 => random / 3 % 1000,
            1 => random / 3 % 12_000,
            _ => whole.len() - 1 - random / 3 % 12_000,
        };
        let damaged = folder.path().join("damaged.bin");
        let mut state = 88_172_645_463_325_252u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random() % 4 {
                bytes[hot(random() >> 8)] = random() as u8;
            }
            std::fs::write(&damaged, &bytes).unwrap();
            if let Ok(source) = WeightSource::open(&damaged) {
                for name in source.tensors().keys().take(20) {
                    if let Ok(values) = source.read_f32(name) {
                        assert_eq!(values.len(), source.get(name).unwrap().numel());
                    }
                }
            }
        }
    }
}

#[test]
fn an_index_names_only_files_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensor: &str| {
        let mut writer = SafetensorsWriter::create(&folder.path().join(name), [(tensor, Dtype::F32, &[2][..])]).unwrap();
        writer.write_f32(tensor, &[1.0, 2.0]).unwrap();
        writer.finish().unwrap();
    };
    shard("model-00001-of-00002.safetensors", "a");
    shard("model-00002-of-00002.safetensors", "b");
    let index = folder.path().join("model.safetensors.index.json");
    let map = |b: &str| format!(r#"{{"metadata": {{}}, "weight_map": {{"a": "model-00001-of-00002.safetensors", "b": "{b}"}}}}"#);
    std::fs::write(&index, map("model-00002-of-00002.safetensors")).unwrap();
    let source = WeightSource::open(folder.path()).unwrap();
    assert_eq!(source.tensors().keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(source.read_f32("b").unwrap(), [1.0, 2.0]);
    assert!(!source.is_single_safetensors());
    for (bad, word) in [("../secret.safetensors", "beside"), ("/etc/passwd", "beside"), ("model-00001-of-00002.safetensors", "b")]
    {
        std::fs::write(&index, map(bad)).unwrap();
        assert!(WeightSource::open(folder.path()).unwrap_err().to_string().contains(word), "{bad}");
    }
}
