//! The original ClipCap and decoders of other families, from published layouts to captions.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{clipcap, columns, run, shared};

/// Embeddings of the six golden captions, as a `.npy` file.
fn embeddings(golden: &Path, kind: &str, folder: &Path) -> PathBuf {
    let file =
        clipcap::models::weights::SafetensorsFile::open(golden.join(format!("original_{kind}.expected.safetensors"))).unwrap();
    let (rows, width) = {
        let shape = &file.get("clip_embeds").unwrap().shape;
        (shape[0], shape[1])
    };
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(file.read_f32("clip_embeds").unwrap().iter().flat_map(|v| v.to_le_bytes()));
    let path = folder.join(format!("{kind}.npy"));
    fs::write(&path, bytes).unwrap();
    path
}

fn import(golden: &Path, decoder: &str, checkpoint: &str, out: &Path, more: &[&str]) -> Value {
    let mut command = clipcap();
    command.args(["model", "import", "--json"]).arg("--clip").arg(golden.join("clip_text"));
    command.arg("--decoder").arg(golden.join(decoder)).arg("--checkpoint").arg(golden.join(checkpoint)).arg("--out").arg(out);
    serde_json::from_slice(&run(command.args(more), 0).stdout).unwrap()
}

fn captions(embeddings: &Path, model: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let mut command = clipcap();
    command.args(["caption", "--quiet", "--overwrite"]).arg("--embeddings").arg(embeddings).arg("--model").arg(model);
    run(command.arg("--out").arg(out).args(more), 0);
    columns(out, &["caption"]).into_iter().map(|row| row[0].clone()).collect()
}

fn expected(golden: &Path, key: &str) -> Vec<String> {
    let json: Value = serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
    json[key].as_array().unwrap().iter().map(|caption| caption["text"].as_str().unwrap().to_string()).collect()
}

#[test]
fn the_original_is_imported_captioned_trained_and_exported() {
    let Some(golden) = shared("golden_models") else { return };
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    for kind in ["transformer", "mlp"] {
        let (embeddings, bundle) = (embeddings(&golden, kind, folder.path()), here(kind));
        let told = import(&golden, "gpt2_en", &format!("original_{kind}_trained.pt"), &bundle, &[]);
        assert_eq!((&told["tokenizer"]["stop_token"], &told["decoder_scope"]), (&".".into(), &"gpt.".into()));
        let wanted = expected(&golden, &format!("greedy_original_{kind}"));
        let table = here("t.parquet");
        assert_eq!(captions(&embeddings, &bundle, &table, &[]), wanted);
        assert_eq!(captions(&embeddings, &bundle, &table, &["--num-beams", "3"]), wanted);
        // With an end of text that the model never learned to say, captions run on.
        let on = captions(&embeddings, &bundle, &table, &["--stop-token", "<|endoftext|>", "--max-new-tokens", "30"]);
        assert!(on.iter().zip(&wanted).all(|(on, wanted)| on.starts_with(wanted.as_str())), "{on:?}");
        let artifacts = here(&format!("run-{kind}"));
        let mut train = clipcap();
        train.args(["train", "--artifacts-only", "--finetune-gpt2", "--dropout", "0", "--quiet", "--model"]);
        run(train.arg(&bundle).arg("--out").arg(&artifacts), 0);
        let parameters = artifacts.join("artifacts/checkpoint/parameters.safetensors");
        let names = clipcap::models::weights::SafetensorsFile::open(&parameters).unwrap();
        let scopes = ["clip_project.", "gpt.transformer."];
        assert!(names.tensors().keys().all(|name| scopes.iter().any(|scope| name.starts_with(scope))));
        // As one checkpoint it is what it was.
        let out = here(&format!("checkpoint-{kind}"));
        run(clipcap().args(["model", "export", "--quiet", "--part", "checkpoint"]).arg(&bundle).arg("--out").arg(&out), 0);
        let checkpoint = out.join("model.safetensors");
        let again = here(&format!("again-{kind}"));
        let told_again = import(&golden, "gpt2_en", checkpoint.to_str().unwrap(), &again, &[]);
        assert_eq!(told["fingerprint"], told_again["fingerprint"]);
    }
}

#[test]
fn a_qwen_says_the_expected_captions_in_float_and_int8() {
    let Some(golden) = shared("golden_models") else { return };
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let embeddings = embeddings(&golden, "mlp", folder.path());
    let told = import(&golden, "qwen2", "qwen2_mapper.pt", &here("qwen"), &[]);
    assert_eq!(told["decoder_scope"], "decoder.");
    let wanted = expected(&golden, "greedy_qwen2");
    assert_eq!(captions(&embeddings, &here("qwen"), &here("t.parquet"), &[]), wanted);
    run(clipcap().args(["model", "quantize", "--quiet"]).arg(here("qwen")).arg("--out").arg(here("int8")), 0);
    assert_eq!(captions(&embeddings, &here("int8"), &here("t.parquet"), &["--precision", "int8"]), wanted);
    // What stands behind the prefix is gone on from: here, the beginning of a caption.
    let behind = captions(&embeddings, &here("qwen"), &here("t.parquet"), &["--prompt", "A man in a red shirt"]);
    assert_eq!(behind[0], "rides a bicycle down the street.");
}

#[test]
fn decoders_of_other_kinds_are_refused_by_name() {
    let Some(golden) = shared("golden_models") else { return };
    let folder = tempfile::tempdir().unwrap();
    let decoder = folder.path().join("decoder");
    fs::create_dir(&decoder).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(golden.join("qwen2").join(name), decoder.join(name)).unwrap();
    }
    let config: Value = serde_json::from_slice(&fs::read(decoder.join("config.json")).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut config = config.clone();
        change(&mut config);
        fs::write(decoder.join("config.json"), config.to_string()).unwrap();
        let mut command = clipcap();
        command.args(["model", "import", "--clip"]).arg(golden.join("clip_text")).arg("--gpt2").arg(&decoder);
        command.arg("--checkpoint").arg(golden.join("qwen2_mapper.pt")).arg("--out").arg(folder.path().join("out"));
        String::from_utf8(run(&mut command, 1).stderr).unwrap()
    };
    assert!(refused(&|config| config["model_type"] = "mamba".into()).contains("mamba"));
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0});
    assert!(refused(&|config| config["rope_parameters"] = yarn.clone()).contains("yarn"));
    assert!(refused(&|config| config["tie_word_embeddings"] = false.into()).contains("lm_head.weight"));
    assert!(refused(&|config| config["num_hidden_layers"] = 3.into()).contains("model.layers.2"));
}
