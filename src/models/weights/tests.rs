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
    assert_eq!((weight.dtype, weight.shape.as_slice()), (DType::F16, &[192, 64][..]));
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
        let mut writer = SafetensorsWriter::create(&folder.path().join(name), [(tensor, DType::F32, &[2][..])]).unwrap();
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

/// A zip file of stored entries, as `torch.save` lays it out.
fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A state_dict (or a dictionary of them under `outer` names) with `w`, two float32 of storage 0. `tail` follows the tensor's hooks.
fn pickle_of(outer: &[&str], tail: &[u8]) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        b"K\x02tQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)R".to_vec(),
        tail.to_vec(),
        b"tR".to_vec(),
    ];
    let state = [b"}".to_vec(), text("w"), tensor.concat(), b"s".to_vec()].concat();
    if outer.is_empty() {
        return [b"\x80\x02".to_vec(), state, b".".to_vec()].concat();
    }
    let items: Vec<u8> = outer.iter().flat_map(|name| [text(name), state.clone(), b"s".to_vec()].concat()).collect();
    [b"\x80\x02}".to_vec(), items, b".".to_vec()].concat()
}

#[test]
fn a_zip_file_that_could_mean_two_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let opened = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        WeightSource::open(&path).map(|source| source.read_f32("w").unwrap()).map_err(|error| error.to_string())
    };
    let (plain, numbers, others) = (pickle_of(&[], b""), [0, 0, 128, 63, 0, 0, 0, 64], [0; 8]);
    let one = zip_of(&[("m/data.pkl", &plain), ("m/data/0", &numbers)]);
    assert_eq!(opened(&one), Ok(vec![1.0, 2.0]));
    assert_eq!(opened(&zip_of(&[("m/data.pkl", &pickle_of(&["model"], b"")), ("m/data/0", &numbers)])), Ok(vec![1.0, 2.0]));
    let other = zip_of(&[("m/data.pkl", &plain), ("m/data/0", &others)]);
    // Two roots, two state_dicts, two archives in a row, an archive and something more.
    let roots = zip_of(&[("m/data.pkl", &plain), ("m/data/0", &numbers), ("n/data.pkl", &plain), ("n/data/0", &others)]);
    assert!(opened(&roots).unwrap_err().contains("m/data.pkl, n/data.pkl"));
    let dictionaries = zip_of(&[("m/data.pkl", &pickle_of(&["model", "state_dict"], b"")), ("m/data/0", &numbers)]);
    assert!(opened(&dictionaries).unwrap_err().contains("both \"state_dict\" and \"model\""));
    assert!(opened(&[&one[..], &other].concat()).unwrap_err().contains("two files in one"));
    assert!(opened(&[&one[..], b"more"].concat()).is_err());
    // Two entries of one name: the second, of a name as long, is renamed in its header and in the directory.
    let mut twice = zip_of(&[("m/data.pkl", &plain), ("m/data/0", &numbers), ("m/data/1", &others)]);
    for at in 0..twice.len() - 8 {
        if twice[at..].starts_with(b"m/data/1") {
            twice[at + 7] = b'0';
        }
    }
    assert!(opened(&twice).unwrap_err().contains("same name"));
    // One bit of the numbers, or of the pickle.
    for name in ["m/data.pkl", "m/data/0"] {
        let mut bent = one.clone();
        let at = bent.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
        bent[at + name.len() + 5] ^= 1;
        assert!(opened(&bent).is_err(), "{name}");
    }
}

#[test]
fn a_tensor_whose_numbers_are_not_yet_themselves_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let opened = |tail: &[u8]| {
        std::fs::write(&path, zip_of(&[("m/data.pkl", &pickle_of(&[], tail)), ("m/data/0", &[0; 8])])).unwrap();
        WeightSource::open(&path).map(drop).map_err(|error| error.to_string())
    };
    assert!(opened(b"}X\x03\x00\x00\x00neg\x88s").unwrap_err().contains("resolve_neg"));
    assert!(opened(b"}X\x04\x00\x00\x00conj\x88s").unwrap_err().contains("resolve_conj"));
    assert_eq!(opened(b"}X\x03\x00\x00\x00neg\x89s"), Ok(()));
    assert_eq!(opened(b"N"), Ok(()));
}

#[test]
fn a_legacy_file_ends_with_its_last_storage() {
    let Some(path) = shared("golden/gpt2_legacy/pytorch_model.bin") else { return };
    let whole = std::fs::read(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let twice = folder.path().join("twice.bin");
    std::fs::write(&twice, [whole.clone(), whole].concat()).unwrap();
    assert!(WeightSource::open(&twice).unwrap_err().to_string().contains("two files in one"));
}

#[test]
fn a_safetensors_header_names_a_tensor_once() {
    let entry = |dtype: &str| format!(r#""w":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}"#);
    let header = format!("{{{},{}}}", entry("F32"), entry("I32"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
    assert!(WeightSource::open(&path).unwrap_err().to_string().contains("names w twice"));
}

#[test]
fn a_tensor_in_two_shards_is_the_one_that_the_index_names() {
    let folder = tempfile::tempdir().unwrap();
    for (shard, value) in [("a.safetensors", 1.0), ("b.safetensors", 2.0)] {
        let list = [("only", DType::F32, &[1][..]), ("both", DType::F32, &[1][..])];
        let list = list.into_iter().filter(|(name, ..)| *name == "both" || value == 2.0);
        let mut writer = SafetensorsWriter::create(&folder.path().join(shard), list.clone()).unwrap();
        for (name, ..) in list {
            writer.write_f32(name, &[value]).unwrap();
        }
        writer.finish().unwrap();
    }
    let index = r#"{"weight_map": {"both": "a.safetensors", "only": "b.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let source = WeightSource::open(folder.path()).unwrap();
    assert_eq!((source.read_f32("both").unwrap(), source.read_f32("only").unwrap()), (vec![1.0], vec![2.0]));
}
