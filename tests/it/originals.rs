//! The original ClipCap and decoders of other families, from published layouts to captions.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::golden::Golden;
use crate::common::{clipcap, columns, run};
use clipcap::pipeline::npy::{FloatType, write_header};

/// Embeddings of the golden captions, as a `.npy` file.
fn embeddings(golden: &Golden, kind: &str, folder: &Path) -> PathBuf {
    let file = golden.tensors(&format!("original_{kind}"));
    let shape = &file.get("clip_embeds").unwrap().shape;
    let mut bytes = vec![];
    write_header(&mut bytes, FloatType::F32, shape[0] as u64, shape[1]).unwrap();
    bytes.extend(file.read_f32("clip_embeds").unwrap().iter().flat_map(|v| v.to_le_bytes()));
    let path = folder.join(format!("{kind}.npy"));
    fs::write(&path, bytes).unwrap();
    path
}

fn import(golden: &Golden, decoder: &str, checkpoint: &str, out: &Path, more: &[&str]) -> Value {
    let mut command = clipcap();
    command.args(["model", "import", "--json"]).arg("--clip").arg(golden.path("clip_text"));
    command.arg("--decoder").arg(golden.path(decoder)).arg("--checkpoint").arg(golden.path(checkpoint)).arg("--out").arg(out);
    serde_json::from_slice(&run(command.args(more), 0).stdout).unwrap()
}

fn captions(embeddings: &Path, model: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let mut command = clipcap();
    command.args(["caption", "--quiet", "--overwrite"]).arg("--embeddings").arg(embeddings).arg("--model").arg(model);
    run(command.arg("--out").arg(out).args(more), 0);
    columns(out, &["caption"]).into_iter().map(|row| row[0].clone()).collect()
}

fn expected(golden: &Golden, key: &str) -> Vec<String> {
    golden.expected(key).as_array().unwrap().iter().map(|caption| caption["text"].as_str().unwrap().to_string()).collect()
}

#[test]
fn the_original_is_imported_captioned_trained_and_exported() {
    Golden::all().iter().for_each(the_original);
}

fn the_original(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    for kind in ["transformer", "mlp"] {
        let (embeddings, bundle) = (embeddings(golden, kind, folder.path()), here(kind));
        let told = import(golden, "gpt2_en", &format!("original_{kind}_trained.pt"), &bundle, &[]);
        assert_eq!((&told["tokenizer"]["stop_token"], &told["decoder_scope"]), (&".".into(), &"gpt.".into()));
        let wanted = expected(golden, &format!("greedy_original_{kind}"));
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
        let told_again = import(golden, "gpt2_en", checkpoint.to_str().unwrap(), &again, &[]);
        assert_eq!(told["fingerprint"], told_again["fingerprint"]);
    }
}

#[test]
fn a_qwen_says_the_expected_captions_in_float_and_int8() {
    Golden::all().iter().for_each(a_qwen);
}

fn a_qwen(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let embeddings = embeddings(golden, "mlp", folder.path());
    let told = import(golden, "qwen2", "qwen2_mapper.pt", &here("qwen"), &[]);
    assert_eq!(told["decoder_scope"], "decoder.");
    let wanted = expected(golden, "greedy_qwen2");
    assert_eq!(captions(&embeddings, &here("qwen"), &here("t.parquet"), &[]), wanted);
    run(clipcap().args(["model", "quantize", "--quiet"]).arg(here("qwen")).arg("--out").arg(here("int8")), 0);
    assert_eq!(captions(&embeddings, &here("int8"), &here("t.parquet"), &["--precision", "int8"]), wanted);
    // What stands behind the prefix is gone on from: here, the beginning of a caption.
    let prompt = wanted[0].split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    let behind = captions(&embeddings, &here("qwen"), &here("t.parquet"), &["--prompt", &prompt]);
    assert_eq!(behind[0], wanted[0][prompt.len()..].trim());
}

#[test]
fn decoders_of_other_kinds_are_refused_by_name() {
    let golden = Golden::own();
    let folder = tempfile::tempdir().unwrap();
    let decoder = folder.path().join("decoder");
    fs::create_dir(&decoder).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(golden.path("qwen2").join(name), decoder.join(name)).unwrap();
    }
    let config: Value = serde_json::from_slice(&fs::read(decoder.join("config.json")).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut config = config.clone();
        change(&mut config);
        fs::write(decoder.join("config.json"), config.to_string()).unwrap();
        let mut command = clipcap();
        command.args(["model", "import", "--clip"]).arg(golden.path("clip_text")).arg("--gpt2").arg(&decoder);
        command.arg("--checkpoint").arg(golden.path("qwen2_mapper.pt")).arg("--out").arg(folder.path().join("out"));
        String::from_utf8(run(&mut command, 1).stderr).unwrap()
    };
    assert!(refused(&|config| config["model_type"] = "mamba".into()).contains("mamba"));
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0});
    assert!(refused(&|config| config["rope_parameters"] = yarn.clone()).contains("yarn"));
    assert!(refused(&|config| config["tie_word_embeddings"] = false.into()).contains("lm_head.weight"));
    assert!(refused(&|config| config["num_hidden_layers"] = 3.into()).contains("model.layers.2"));
}

#[test]
fn captions_are_cleaned_up_where_it_is_asked_for() {
    let golden = Golden::own();
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let embeddings = embeddings(&golden, "mlp", folder.path());
    import(&golden, "qwen2", "qwen2_mapper.pt", &here("qwen"), &[]);
    let table = here("t.parquet");
    let flags = ["--replace", "(?i)^a (.*)=One $1", "--punctuation", "no-end"];
    let cleaned = captions(&embeddings, &here("qwen"), &table, &flags);
    assert_eq!(cleaned[0], "One red circle stands above a blue square");
    let manifest = fs::read_to_string(here(".clipcap/t.manifest.json")).unwrap();
    assert!(manifest.contains("no-end") && manifest.contains("One $1"), "{manifest}");
    let mut command = clipcap();
    command.args(["caption", "--quiet", "--overwrite", "--banned-words", "triangles,isn't", "--model"]).arg(here("qwen"));
    run(command.arg("--embeddings").arg(&embeddings).arg("--out").arg(&table), 3);
    assert_eq!(columns(&table, &["caption"]).len(), 3);
    let failed = columns(&here(".clipcap/t.errors.parquet"), &["image_path", "reason"]);
    assert_eq!(failed, [["1", "filtered"], ["3", "filtered"]]);
}

#[test]
fn adapters_are_trained_merged_and_saved_as_peft_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = crate::common::training::model(folder.path(), "mlp");
    let split = |image: u64| Some(if image.is_multiple_of(10) { "dev" } else { "train" });
    let (dataset, embeddings) = crate::common::training::data(folder.path(), 20, split, crate::common::training::distinct);
    let train = |out: &str, more: &[&str]| {
        let mut command = clipcap();
        command.args(["train", "--quiet", "--batch-size", "8", "--lr", "0.01", "--warmup-steps", "2", "--epochs", "3"]);
        command.args(["--sample-images", "1", "--lora-rank", "2", "--lora-targets", "c_attn,c_fc"]).args(more);
        command.arg("--dataset").arg(&dataset).arg("--embeddings").arg(&embeddings).arg("--model").arg(&model);
        run(command.arg("--out").arg(folder.path().join(out)), 0);
        folder.path().join(out).join("last")
    };
    let plain = train("plain", &[]);
    let open = |path: PathBuf| clipcap::models::weights::SafetensorsFile::open(path).unwrap();
    let adapter = open(plain.join("adapter/adapter_model.safetensors"));
    let name = "base_model.model.transformer.h.1.mlp.c_fc";
    let [a, b] = ["A", "B"].map(|part| adapter.read_f32(&format!("{name}.lora_{part}.weight")).unwrap());
    assert_eq!(adapter.tensors().len(), 2 * 2 * 2);
    let (before, after) = (open(model.join("gpt2/model.safetensors")), open(plain.join("gpt2/model.safetensors")));
    let weight = "transformer.h.1.mlp.c_fc.weight";
    let (before_w, after_w) = (before.read_f32(weight).unwrap(), after.read_f32(weight).unwrap());
    // Conv1D keeps [inputs, outputs]; alpha is twice the rank.
    let (inputs, outputs) = (16, 64);
    let mut moved = 0.0f32;
    for input in 0..inputs {
        for output in 0..outputs {
            let added = 2.0 * (0..2).map(|r| b[output * 2 + r] * a[r * inputs + input]).sum::<f32>();
            let at = input * outputs + output;
            assert!((after_w[at] - before_w[at] - added).abs() < 1e-6);
            moved = moved.max(added.abs());
        }
    }
    assert!(moved > 1e-4, "the adapters learned something");
    let fixed = "transformer.wte.weight";
    assert_eq!(before.read_f32(fixed).unwrap(), after.read_f32(fixed).unwrap());
    let config: Value = serde_json::from_slice(&fs::read(plain.join("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["fan_in_fan_out"], &config["peft_type"]), (&2.into(), &true.into(), &"LORA".into()));
    // What is computed again is the same.
    let again = train("again", &["--recompute"]);
    let other = open(again.join("gpt2/model.safetensors"));
    let differs = after_w.iter().zip(other.read_f32(weight).unwrap()).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(differs < 1e-5, "{differs}");
}
