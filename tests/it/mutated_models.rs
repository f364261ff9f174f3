//! Damaged model files, many of them: no crash, no hang, nothing read outside, and never success with other weights.
//!
//! By hand, with more of them: `CLIPCAP_MUTATIONS=10000 cargo test --release --test it mutated_models -- --nocapture`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::golden::Golden;
use crate::common::{clipcap, run};
use clipcap::pipeline::npy::{FloatType, write_header};
use serde_json::Value;

/// A file's bytes, bent: bits flipped, bytes replaced, a piece cut out, doubled or moved, the end cut off.
fn bend(whole: &[u8], random: &mut impl FnMut() -> usize) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    // Most faults where descriptions are: the front, and a zip file's directory at the end.
    let place = |random: &mut dyn FnMut() -> usize, len: usize| match random() % 4 {
        0 => random() % len,
        1 => random() % len.min(256),
        2 => random() % len.min(12_000),
        _ => len - 1 - random() % len.min(12_000),
    };
    match random() % 8 {
        0 => bytes.truncate(place(random, bytes.len())),
        1 => {
            let (from, count) = (place(random, bytes.len()), 1 + random() % 64);
            let to = (from + count).min(bytes.len());
            bytes.drain(from..to);
        }
        2 => {
            let (from, count) = (place(random, bytes.len()), 1 + random() % 64);
            let piece = bytes[from..(from + count).min(bytes.len())].to_vec();
            let at = place(random, bytes.len());
            bytes.splice(at..at, piece);
        }
        3 => {
            let at = place(random, bytes.len());
            let word =
                [&b"\xff\xff\xff\xff\xff\xff\xff\x7f"[..], b"99999999999999", b"-1", b"../../../../etc/passwd", b"\0\0\0\0"]
                    [random() % 5];
            let end = (at + word.len()).min(bytes.len());
            bytes.splice(at..end, word.iter().copied());
        }
        _ => {
            for _ in 0..1 + random() % 3 {
                let at = place(random, bytes.len());
                bytes[at] ^= 1 << (random() % 8);
            }
        }
    }
    bytes
}

/// Runs to the end within 20 seconds of a processor's time (a busy machine gives it little); the exit status, which is one of the program's own.
fn status(command: &mut Command, what: &str) -> i32 {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let waited = start.elapsed().as_secs();
        if waited > 20 && processor_seconds(child.id()) > 20 || waited > 300 {
            child.kill().unwrap();
            panic!("{what}: no end after {waited} s");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(!said.contains("panicked"), "{what}: {said}");
    let code = status.code().unwrap_or_else(|| panic!("{what}: ended by a signal: {said}"));
    assert!(matches!(code, 0..=3), "{what}: {code}: {said}");
    code
}

/// What a process has computed so far, in all its threads.
fn processor_seconds(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime, in hundredths.
    let ticks = behind_name.split_whitespace().skip(11).take(2).map(|text| text.parse::<u64>().unwrap());
    ticks.sum::<u64>() / 100
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Fingerprints of a bundle's weights.
fn weights(bundle: &Path) -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.join("clipcap.json")).unwrap()).unwrap();
    ["clip", "gpt2", "mapper"].map(|part| manifest["parts"][part]["fingerprint"].clone()).into()
}

/// What a configuration says and weights cannot contradict. Bent into another valid value it is another model, and nobody can know: these
/// keys alone may differ where an import succeeds.
const FREE: [&str; 33] = [
    // Of layers.
    "hidden_act",
    "activation_function",
    "num_attention_heads",
    "n_head",
    "layer_norm_eps",
    "layer_norm_epsilon",
    // Of pictures.
    "image_mean",
    "image_std",
    "rescale_factor",
    "resample",
    "shortest_edge",
    // Of training from here on, and of new weights.
    "attention_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "initializer_factor",
    "initializer_range",
    "logit_scale_init_value",
    // Of texts.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    // Said twice, and taken from elsewhere.
    "projection_dim",
    "tie_word_embeddings",
    // Known to change nothing here.
    "architectures",
    "dtype",
    "model_type",
    "transformers_version",
    "image_processor_type",
    "do_convert_rgb",
    "tokenizer_class",
    "use_cache",
    "reorder_and_upcast_attn",
    "summary",
];

/// Every plain value of a JSON file, by the names on the way to it.
fn values(json: &Value, name: &str, found: &mut BTreeMap<String, Value>) {
    match json {
        Value::Object(object) => object.iter().for_each(|(key, value)| values(value, &format!("{name}/{key}"), found)),
        Value::Array(items) => items.iter().enumerate().for_each(|(at, item)| values(item, &format!("{name}/{at}"), found)),
        plain => drop(found.insert(name.into(), plain.clone())),
    }
}

/// The keys of the original that say something else in the bent file. What it lacks has the default, which weights may contradict.
fn changed(whole: &[u8], bent: &[u8]) -> BTreeSet<String> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    values(&serde_json::from_slice(whole).unwrap(), "", &mut before);
    values(&serde_json::from_slice(bent).unwrap(), "", &mut after);
    let key = |name: &str| {
        let key = name.split('/').rfind(|part| part.parse::<usize>().is_err()).unwrap_or_default();
        if key.starts_with("summary_") { "summary".to_owned() } else { key.to_owned() }
    };
    before.iter().filter(|(name, value)| after.get(*name).is_some_and(|now| now != *value)).map(|(name, _)| key(name)).collect()
}

/// A bundle's fingerprint over weights, configurations and vocabulary.
fn model(bundle: &Path) -> Value {
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.join("clipcap.json")).unwrap()).unwrap();
    manifest["fingerprint"].clone()
}

fn mutations(usual: usize) -> usize {
    std::env::var("CLIPCAP_MUTATIONS").map_or(usual, |number| number.parse().unwrap())
}

fn numbers() -> impl FnMut() -> usize {
    let mut state = 88_172_645_463_325_252u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize
    }
}

#[test]
fn damaged_files_are_refused_where_they_are_imported() {
    let golden = Golden::own();
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("inputs");
    for name in ["clip_hf", "gpt2", "gpt2_legacy", "bert"] {
        copy_folder(&golden.path(name), &inputs.join(name));
    }
    for name in ["openai_vit.pt", "clipcap_mlp.pt"] {
        fs::copy(golden.path(name), inputs.join(name)).unwrap();
    }
    // Which file is bent, whether its numbers have a checksum, and which inputs are imported.
    let cases = [
        ("clipcap_mlp.pt", true, "clip_hf", "gpt2"),
        ("openai_vit.pt", true, "openai_vit.pt", "gpt2"),
        ("gpt2_legacy/pytorch_model.bin", false, "clip_hf", "gpt2_legacy"),
        ("gpt2/model.safetensors", false, "clip_hf", "gpt2"),
        ("clip_hf/model.safetensors", false, "clip_hf", "gpt2"),
        ("clip_hf/config.json", true, "clip_hf", "gpt2"),
        ("clip_hf/preprocessor_config.json", true, "clip_hf", "gpt2"),
        ("gpt2/config.json", true, "clip_hf", "gpt2"),
        ("gpt2/vocab.txt", true, "clip_hf", "gpt2"),
    ];
    let import = |clip: &str, gpt2: &str, out: &Path| {
        let mut command = clipcap();
        command.args(["model", "import", "--quiet", "--overwrite"]);
        command.arg("--clip").arg(inputs.join(clip)).arg("--gpt2").arg(inputs.join(gpt2));
        command.arg("--checkpoint").arg(inputs.join("clipcap_mlp.pt")).arg("--out").arg(out);
        command
    };
    let mut random = numbers();
    let out = folder.path().join("out");
    let (mut refused, mut total, mut slowest) = (0, 0, Duration::ZERO);
    let mut free: BTreeMap<String, usize> = BTreeMap::new();
    let each = mutations(90).div_ceil(cases.len());
    for (file, summed, clip, gpt2) in cases {
        let path = inputs.join(file);
        let whole = fs::read(&path).unwrap();
        run(&mut import(clip, gpt2, &out), 0);
        let right = (weights(&out), model(&out));
        for round in 0..each {
            let bent = bend(&whole, &mut random);
            fs::write(&path, &bent).unwrap();
            let what = format!("{file}, round {round}");
            let start = Instant::now();
            let code = status(&mut import(clip, gpt2, &out), &what);
            slowest = slowest.max(start.elapsed());
            total += 1;
            if code == 0 {
                assert!(!summed || weights(&out) == right.0, "{what}: imported with other weights");
                if file.ends_with(".json") && model(&out) != right.1 {
                    let keys = changed(&whole, &bent);
                    assert!(keys.iter().all(|key| FREE.contains(&key.as_str())), "{what}: another model, by {keys:?}");
                    keys.into_iter().for_each(|key| *free.entry(key).or_insert(0) += 1);
                }
            } else {
                refused += 1;
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    println!("taken with another value that weights cannot contradict: {free:?}");
    println!("{refused} of {total} damaged files were refused, the slowest after {:.2} s", slowest.as_secs_f64());
    assert!(refused * 2 > total, "{refused} of {total}");
}

#[test]
fn damaged_bundles_never_give_other_captions() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = crate::common::tiny_bundle(folder.path());
    let vectors = folder.path().join("v.npy");
    let mut file = Vec::new();
    write_header(&mut file, FloatType::F32, 2, 128).unwrap();
    file.extend((0..256).flat_map(|i| ((i as f32 * 0.37).sin()).to_le_bytes()));
    fs::write(&vectors, file).unwrap();
    let out: PathBuf = folder.path().join("t.csv");
    let caption = || {
        let mut command = clipcap();
        command.args(["caption", "--quiet", "--overwrite", "--max-new-tokens", "4", "--threads", "1"]);
        command.arg("--embeddings").arg(&vectors).arg("--model").arg(&bundle).arg("--out").arg(&out);
        command
    };
    run(&mut caption(), 0);
    let right = fs::read(&out).unwrap();
    let files = ["clipcap.json", "decoder.onnx", "mapper.onnx", "mapper/config.json", "gpt2/config.json", "gpt2/vocab.txt"];
    let mut random = numbers();
    let (mut refused, mut total) = (0, 0);
    for file in files {
        let path = bundle.join(file);
        let whole = fs::read(&path).unwrap();
        for round in 0..mutations(60).div_ceil(files.len()) {
            fs::write(&path, bend(&whole, &mut random)).unwrap();
            let what = format!("{file}, round {round}");
            total += 1;
            if status(&mut caption(), &what) == 0 {
                assert_eq!(fs::read(&out).unwrap(), right, "{what}: other captions");
            } else {
                refused += 1;
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    println!("{refused} of {total} damaged bundles were refused");
    assert!(refused * 2 > total, "{refused} of {total}");
}
