//! `clipcap model` from the outside: every published layout in, the same model out; what does not fit is refused by name.

mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clipcap::models::Bundle;
use clipcap::models::weights::{DType, SafetensorsFile, SafetensorsWriter, WeightSource};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::golden::Golden;

fn clipcap(args: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_clipcap")).arg("model").args(args).output();
    run.expect("the binary that cargo just built starts")
}

/// Runs with `--json`, expects success and returns what stdout says.
fn made(args: &[&str]) -> Value {
    let output = clipcap(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("--json prints JSON alone")
}

/// Expects exit 1 and returns what stderr says.
fn refused(args: &[&str]) -> String {
    let output = clipcap(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn fingerprint<'a>(json: &'a Value, part: &str) -> &'a str {
    json["parts"][part]["fingerprint"].as_str().unwrap()
}

/// A tensor's new name; None leaves it out.
type Rename = fn(&str) -> Option<String>;

/// The golden models and a folder to work in.
struct Setup {
    golden: Golden,
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self::with(Golden::own())
    }

    fn with(golden: Golden) -> Self {
        Self { golden, folder: tempfile::tempdir().unwrap() }
    }

    fn golden(&self, path: &str) -> String {
        self.golden.path(path).to_str().unwrap().to_owned()
    }

    fn here(&self, path: &str) -> String {
        self.folder.path().join(path).to_str().unwrap().to_owned()
    }

    /// `model import` of these, BERT's configuration always given.
    fn import(&self, clip: &str, gpt2: &str, checkpoint: &str, out: &str) -> Vec<String> {
        let bert = self.golden("bert/config.json");
        let args = ["import", "--clip", clip, "--gpt2", gpt2, "--checkpoint", checkpoint, "--bert-config", &bert, "--out", out];
        args.map(String::from).into()
    }

    /// A ClipCap checkpoint like `file`, as safetensors, with other names (None leaves a tensor out).
    fn renamed(&self, file: &str, out: &str, rename: impl Fn(&str) -> Option<String>) -> String {
        let source = WeightSource::open(&self.golden.path(file)).unwrap();
        let tensors: BTreeMap<String, String> =
            source.tensors().keys().filter_map(|name| Some((rename(name)?, name.clone()))).collect();
        let list = tensors.iter().map(|(new, old)| (new.as_str(), DType::F32, source.get(old).unwrap().shape.as_slice()));
        let path = self.here(out);
        let mut writer = SafetensorsWriter::create(Path::new(&path), list).unwrap();
        for (new, old) in &tensors {
            writer.write_f32(new, &source.read_f32(old).unwrap()).unwrap();
        }
        writer.finish().unwrap();
        path
    }
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Every file under a folder with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn every_golden_layout_imports_and_says_what_it_is() {
    Golden::all().into_iter().for_each(|golden| every_layout(&Setup::with(golden)));
}

fn every_layout(setup: &Setup) {
    let vocabulary = fs::read_to_string(setup.golden("gpt2/vocab.txt")).unwrap();
    let end = vocabulary.lines().position(|piece| piece == "[SEP]").unwrap();
    let config: Value = serde_json::from_slice(&fs::read(setup.golden("clip_hf/config.json")).unwrap()).unwrap();
    let side = config["vision_config"]["image_size"].as_u64().unwrap() as usize;
    let gpt2 = SafetensorsFile::open(setup.golden("gpt2/model.safetensors")).unwrap();
    let parameters: usize = gpt2.tensors().values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let parameters = format!(",{:03}", parameters % 1000);
    for clip in ["clip_hf", "openai_vit.pt"] {
        for (checkpoint, kind) in
            [("clipcap_mlp", "mlp"), ("clipcap_bert", "bert"), ("clipcap_mlp_trained", "mlp"), ("clipcap_bert_trained", "bert")]
        {
            let out = setup.here(&format!("{checkpoint}-{clip}"));
            let checkpoint = setup.golden(&format!("{checkpoint}.pt"));
            let json = made(&strs(&setup.import(&setup.golden(clip), &setup.golden("gpt2"), &checkpoint, &out)));
            assert_eq!((&json["mapper_kind"], &json["prefix_len"]), (&kind.into(), &4.into()));
            assert_eq!(json["clipcap.format"], "bundle/1");
            assert_eq!(json["tokenizer"]["sep_token_id"], end);
            assert_eq!(json["parts"]["gpt2"]["source"]["file"], Path::new(&checkpoint).file_name().unwrap().to_str().unwrap());
            let inspected = made(&["inspect", &out, "--verify"]);
            assert_eq!((&inspected["fingerprint"], &inspected["verified"]), (&json["fingerprint"], &true.into()));
            let text = clipcap(&["inspect", &out]);
            let text = String::from_utf8_lossy(&text.stdout).into_owned();
            assert!(text.contains(&format!("mapper   {kind}, prefix of 4")) && text.contains(&parameters), "{text}");
            let bundle = Bundle::open(Path::new(&out)).unwrap();
            assert_eq!((bundle.clip_config().vision_config.image_size(), bundle.preprocessor().crop_size), (side, side));
            for graph in [bundle.image_encoder_path(), bundle.mapper_path(), bundle.decoder_path()] {
                assert!(graph.is_file());
            }
            for (file, bytes) in contents(Path::new(&out)) {
                let folder = setup.folder.path().to_str().unwrap().as_bytes();
                assert!(!bytes.windows(folder.len()).any(|window| window == folder), "{} holds a path", file.display());
            }
        }
    }
}

#[test]
fn a_bundle_is_the_same_bytes_wherever_and_however_often_it_is_made() {
    let setup = Setup::new();
    let make = |out: &str| {
        let args = setup.import(
            &setup.golden("openai_vit.pt"),
            &setup.golden("gpt2"),
            &setup.golden("clipcap_bert.pt"),
            &setup.here(out),
        );
        made(&strs(&args));
        contents(&setup.folder.path().join(out))
    };
    assert_eq!(make("a"), make("somewhere/else/b"));
}

#[test]
fn tensors_are_those_of_the_source() {
    let setup = Setup::new();
    let out = setup.here("bundle");
    let checkpoint = setup.golden("clipcap_bert_trained.pt");
    made(&strs(&setup.import(&setup.golden("openai_vit.pt"), &setup.golden("gpt2"), &checkpoint, &out)));
    let bundle = Bundle::open(Path::new(&out)).unwrap();
    let part = |name: &str| SafetensorsFile::open(bundle.weights_path(name)).unwrap();
    let checkpoint = WeightSource::open(Path::new(&checkpoint)).unwrap();
    let (mapper, gpt2) = (part("mapper"), part("gpt2"));
    for name in checkpoint.tensors().keys().filter(|name| *name != "gpt2.lm_head.weight") {
        let stored = match name.strip_prefix("gpt2.") {
            Some(name) if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") => continue,
            Some(name) => gpt2.read_f32(name).unwrap(),
            None => mapper.read_f32(name).unwrap(),
        };
        assert!(stored == checkpoint.read_f32(name).unwrap(), "{name}");
    }
    assert!(gpt2.tensors().keys().all(|name| name.starts_with("transformer.")));
    // OpenAI's fused projection is q, k, v in this order, and its last one is multiplied from the right.
    let (clip, openai) = (part("clip"), WeightSource::open(&setup.golden.path("openai_vit.pt")).unwrap());
    let fused = openai.read_f32("visual.transformer.resblocks.1.attn.in_proj_weight").unwrap();
    for (index, name) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
        let part = clip.read_f32(&format!("vision_model.encoder.layers.1.self_attn.{name}.weight")).unwrap();
        assert_eq!(part, fused[index * fused.len() / 3..(index + 1) * fused.len() / 3], "{name}");
    }
    let (ours, theirs) = (clip.read_f32("visual_projection.weight").unwrap(), openai.read_f32("visual.proj").unwrap());
    let &[rows, columns] = &clip.get("visual_projection.weight").unwrap().shape[..] else { panic!("not a matrix") };
    assert!(rows != columns && ours.len() == rows * columns);
    assert!((0..rows).all(|row| (0..columns).all(|column| ours[row * columns + column] == theirs[column * rows + row])));
    assert!(clip.tensors().contains_key("text_model.encoder.layers.0.mlp.fc1.weight"));
}

#[test]
fn the_layout_does_not_change_the_fingerprint() {
    let setup = Setup::new();
    // A folder with the .bin alone, and one with the safetensors alone.
    let copy = |from: &str, files: &[&str], to: &str| {
        fs::create_dir(setup.here(to)).unwrap();
        for file in files {
            fs::copy(setup.golden(&format!("{from}/{file}")), setup.folder.path().join(to).join(file)).unwrap();
        }
        setup.here(to)
    };
    let bin = copy("clip_hf", &["config.json", "preprocessor_config.json", "pytorch_model.bin"], "clip_bin");
    let zip = copy("gpt2", &["config.json", "vocab.txt", "pytorch_model.bin"], "gpt2_zip");
    let init = |clip: &str, gpt2: &str, out: &str| {
        made(&["init", "--clip", clip, "--gpt2", gpt2, "--mapper", "mlp", "--prefix-len", "4", "--out", &setup.here(out)])
    };
    let first = init(&setup.golden("clip_hf"), &setup.golden("gpt2"), "first");
    let second = init(&bin, &zip, "second");
    let third = init(&setup.golden("clip_hf/pytorch_model.bin"), &setup.golden("gpt2_legacy"), "third");
    assert_eq!(first["fingerprint"], second["fingerprint"]);
    assert_eq!(first["fingerprint"], third["fingerprint"]);
    assert_eq!(third["parts"]["gpt2"]["source"]["format"], "PyTorch legacy pickle");
    // What already was in the right layout is the same file, not a copy.
    let linked = fs::read(setup.here("first/clip/model.safetensors")).unwrap();
    assert!(linked == fs::read(setup.golden("clip_hf/model.safetensors")).unwrap());
}

#[test]
fn other_spellings_of_a_checkpoint_are_the_same_model() {
    let setup = Setup::new();
    let import = |checkpoint: &str, out: &str| {
        made(&strs(&setup.import(&setup.golden("clip_hf"), &setup.golden("gpt2"), checkpoint, &setup.here(out))))
    };
    let original = import(&setup.golden("clipcap_mlp_trained.pt"), "original");
    let spellings: [(&str, Rename); 4] = [
        ("gpt", |name| Some(name.replacen("gpt2.", "gpt.", 1))),
        ("module", |name| Some(format!("module.{name}"))),
        ("framework", |name| Some(format!("model._orig_mod.{name}"))),
        ("headless", |name| (!name.contains("lm_head")).then(|| name.to_owned())),
    ];
    for (word, rename) in spellings {
        let checkpoint = setup.renamed("clipcap_mlp_trained.pt", &format!("{word}.safetensors"), rename);
        assert_eq!(import(&checkpoint, word)["fingerprint"], original["fingerprint"], "{word}");
    }
    // A checkpoint of the mapper alone takes the folder's GPT2.
    let mapper = setup.renamed("clipcap_mlp_trained.pt", "mapper.safetensors", |name| {
        name.starts_with("clip_project.").then(|| name.to_owned())
    });
    let mapper = import(&mapper, "mapper");
    assert_eq!(fingerprint(&mapper, "mapper"), fingerprint(&original, "mapper"));
    assert_ne!(fingerprint(&mapper, "gpt2"), fingerprint(&original, "gpt2"));
    assert_eq!(mapper["parts"]["gpt2"]["source"]["file"], "gpt2/model.safetensors");
}

#[test]
fn a_new_model_depends_on_its_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let init = |seed: &str, out: &str| {
        let args = ["init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "bert", "--seed", seed, "--out", &here(out)];
        made(&args);
        contents(&folder.path().join(out))
    };
    let first = init("7", "first");
    assert_eq!(first, init("7", "again"));
    assert_ne!(first[Path::new("mapper/model.safetensors")], init("8", "other")[Path::new("mapper/model.safetensors")]);
    let vocabulary = String::from_utf8(first[Path::new("gpt2/vocab.txt")].clone()).unwrap();
    assert_eq!((vocabulary.lines().count(), vocabulary.lines().nth(102)), (21128, Some("[SEP]")));
    let bundle = Bundle::open(&folder.path().join("first")).unwrap();
    assert_eq!((bundle.mapper_config().prefix_len, bundle.mapper_config().bert.as_ref().unwrap().hidden_size), (10, 128));
    bundle.verify().unwrap();
}

#[test]
fn init_keeps_weights_where_there_are_any_and_makes_them_from_a_bare_configuration() {
    let setup = Setup::new();
    let bare = setup.here("bare");
    fs::create_dir(&bare).unwrap();
    fs::copy(setup.golden("gpt2/config.json"), Path::new(&bare).join("config.json")).unwrap();
    let clip = setup.golden("openai_vit.pt");
    let init =
        |gpt2: &str, out: &str| made(&["init", "--clip", &clip, "--gpt2", gpt2, "--mapper", "mlp", "--out", &setup.here(out)]);
    let kept = init(&setup.golden("gpt2"), "kept");
    let args = ["init", "--clip", &clip, "--gpt2", &bare, "--mapper", "mlp", "--out", &setup.here("random")];
    assert!(refused(&args).contains("--random makes random ones"));
    let random = made(&[&args[..], &["--random"]].concat());
    assert_eq!(kept["parts"]["gpt2"]["source"]["how"], "imported");
    assert_eq!(random["parts"]["gpt2"]["source"]["how"], "random");
    assert_eq!(fingerprint(&kept, "clip"), fingerprint(&random, "clip"));
    assert_eq!(kept["parts"]["gpt2"]["parameters"], random["parts"]["gpt2"]["parameters"]);
    let stored = SafetensorsFile::open(setup.here("kept/gpt2/model.safetensors")).unwrap();
    let source = SafetensorsFile::open(setup.golden("gpt2/model.safetensors")).unwrap();
    assert_eq!(stored.read_f32("transformer.wpe.weight").unwrap(), source.read_f32("transformer.wpe.weight").unwrap());
}

#[test]
fn what_is_there_stays_unless_it_is_a_bundle_to_overwrite() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let out = here("bundle");
    let args =
        |seed| ["init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--seed", seed, "--out", out.as_str()];
    let first = made(&args("1"));
    assert!(refused(&args("2")).contains("--overwrite"));
    assert_eq!(made(&["inspect", &out, "--verify"])["fingerprint"], first["fingerprint"]);
    let second = made(&[&args("2")[..], &["--overwrite"]].concat());
    assert_ne!(first["fingerprint"], second["fingerprint"]);
    assert_eq!(made(&["inspect", &out, "--verify"])["fingerprint"], second["fingerprint"]);
    let other = here("photos");
    fs::create_dir(&other).unwrap();
    fs::write(Path::new(&other).join("cat.jpg"), b"x").unwrap();
    let message =
        refused(&["init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--out", &other, "--overwrite"]);
    assert!(message.contains("left alone"), "{message}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary folder stays");
    assert!(refused(&["inspect", &other]).contains("not a model bundle"));
    // Damage is seen.
    let weights = Path::new(&out).join("mapper/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert!(refused(&["inspect", &out, "--verify"]).contains("mapper/model.safetensors"));
    let record = Path::new(&out).join("clipcap.json");
    fs::write(&record, fs::read_to_string(&record).unwrap().replace("bundle/1", "bundle/2")).unwrap();
    let message = refused(&["inspect", &out]);
    assert!(message.contains("bundle/2") && message.contains("bundle/1"), "{message}");
}
