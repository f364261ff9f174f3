//! `clipcap train --objective contrastive` and `language-model` from the outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::training::metric;
use crate::common::{clipcap, run};
use serde_json::{Value, json};

/// Rendered scenes as a dataset, and an untrained bundle with a text tower.
struct World {
    folder: tempfile::TempDir,
}

/// The vocabulary of the demo's models, which has every character of the scenes.
fn demo(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo").join(file)
}

impl World {
    fn new(images: u64) -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        let (scenes, dataset) = (world.at("scenes"), world.at("dataset"));
        run(clipcap().args(["scenes", "--quiet", "--num-images", &images.to_string(), "--out"]).arg(&scenes), 0);
        let mut prepare = clipcap();
        prepare.args(["prepare", "--quiet"]).arg("--images").arg(scenes.join("images")).arg("--captions");
        prepare.arg(scenes.join("captions/scenes-zh-train.txt"));
        run(prepare.arg("--out").arg(&dataset), 0);
        world.bundle("bundle", Some(json!({"vocab_size": 200, "eos_token_id": 3})));
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A bundle whose CLIP has a text tower with these facts, or none.
    fn bundle(&self, name: &str, text: Option<Value>) -> PathBuf {
        let (clip, gpt2, out) = (self.at("clip"), self.at("gpt2"), self.at(name));
        [&clip, &gpt2].iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
        let tower = json!({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2});
        let with = |mut tower: Value, more: Value| {
            tower.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            tower
        };
        let mut config = json!({"model_type": "clip", "projection_dim": 24});
        config["vision_config"] = with(tower.clone(), json!({"image_size": 32, "patch_size": 8}));
        if let Some(text) = text {
            config["text_config"] = with(with(tower, json!({"max_position_embeddings": 40})), text);
        }
        fs::write(clip.join("config.json"), config.to_string()).unwrap();
        let preprocessor = json!({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}});
        fs::write(clip.join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
        let config =
            json!({"model_type": "gpt2", "vocab_size": 200, "n_positions": 100, "n_embd": 16, "n_layer": 1, "n_head": 2});
        fs::write(gpt2.join("config.json"), config.to_string()).unwrap();
        fs::copy(demo("gpt2/vocab.txt"), gpt2.join("vocab.txt")).unwrap();
        let mut init = clipcap();
        init.args(["model", "init", "--mapper", "mlp", "--prefix-len", "2", "--random", "--quiet", "--overwrite"]);
        run(init.arg("--clip").arg(clip).arg("--gpt2").arg(gpt2).arg("--out").arg(&out), 0);
        out
    }

    fn train(&self, objective: &str, out: &str, flags: &[&str]) -> Command {
        let mut command = clipcap();
        command.args(["train", "--json", "--objective", objective, "--warmup-steps", "2", "--lr", "0.003"]).args(flags);
        command.arg("--dataset").arg(self.at("dataset")).arg("--model").arg(self.at("bundle"));
        command.arg("--out").arg(self.at(out));
        command
    }

    fn contrastive(&self, out: &str, flags: &[&str]) -> Command {
        let mut command = self.train("contrastive", out, flags);
        command.arg("--images").arg(self.at("scenes/images"));
        command
    }

    fn weights(&self, bundle: &str, part: &str) -> Vec<u8> {
        fs::read(self.at(bundle).join(part).join("model.safetensors")).unwrap()
    }
}

/// Mean training loss of the first and of the last steps.
fn first_and_last(run: &Path) -> (f64, f64) {
    let losses: Vec<f64> = metric(run, "train_loss").into_iter().map(|(_, loss)| loss).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    (mean(&losses[..6]), mean(&losses[losses.len() - 6..]))
}

#[test]
fn a_clip_learns_which_caption_is_whose_and_embeds() {
    let world = World::new(160);
    let flags = ["--batch-size", "16", "--epochs", "8", "--max-grad-norm", "1", "--save-steps", "7"];
    let told = run(&mut world.contrastive("run", &flags), 0);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let (first, last) = first_and_last(&world.at("run"));
    assert!(last < 0.95 * first, "{first} {last}");
    // A pass is over images, not captions.
    let images = told["train_captions"].as_u64().unwrap() / 5;
    assert_eq!(told["steps"].as_u64(), Some(8 * images.div_ceil(16)));
    assert_ne!(world.weights("run/best", "clip"), world.weights("bundle", "clip"));
    for part in ["gpt2", "mapper"] {
        assert_eq!(world.weights("run/best", part), world.weights("bundle", part));
    }
    run(clipcap().args(["model", "inspect", "--verify"]).arg(world.at("run/best")), 0);
    let mut embed = clipcap();
    embed.args(["embed", "--quiet", "--images"]).arg(world.at("scenes/images")).arg("--model").arg(world.at("run/best"));
    run(embed.arg("--out").arg(world.at("embeddings")), 0);

    // Stopped after some steps and gone on with, it ends with the same bytes.
    let mut child = world.contrastive("again", &flags).stdout(std::process::Stdio::null()).spawn().unwrap();
    let checkpoint = world.at("again/checkpoints/step-7");
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    run(&mut world.contrastive("again", &flags), 0);
    assert_eq!(world.weights("run/last", "clip"), world.weights("again/last", "clip"));
}

#[test]
fn a_gpt2_learns_captions_alone_and_several_to_a_row() {
    let world = World::new(80);
    for (out, per_row) in [("one", "1"), ("three", "3")] {
        let flags = ["--batch-size", "8", "--epochs", "3", "--dropout", "0", "--captions-per-row", per_row];
        run(&mut world.train("language-model", out, &flags), 0);
        let (first, last) = first_and_last(&world.at(out));
        assert!(last < 0.9 * first, "{first} {last}");
        let best = format!("{out}/best");
        assert_ne!(world.weights(&best, "gpt2"), world.weights("bundle", "gpt2"));
        assert_eq!(world.weights(&best, "clip"), world.weights("bundle", "clip"));
    }
    let rows = |out: &str| metric(&world.at(out), "train_loss").len();
    assert!(rows("one") > 2 * rows("three"), "three captions share a row");
}

#[test]
fn what_does_not_fit_is_told() {
    let world = World::new(20);
    let told = |mut command: Command, status: i32, words: &[&str]| {
        let output = run(&mut command, status);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.iter().all(|word| stderr.contains(word)), "{words:?} in {stderr}");
    };
    told(world.train("caption", "run", &[]), 2, &["--embeddings"]);
    told(world.train("contrastive", "run", &[]), 1, &["--with-images"]);
    told(world.contrastive("run", &["--batch-size", "1"]), 2, &["--batch-size"]);
    told(world.contrastive("run", &["--label-smoothing", "0.1"]), 2, &["--label-smoothing"]);
    told(world.contrastive("run", &["--captions-per-row", "2"]), 2, &["--captions-per-row"]);
    told(world.contrastive("run", &["--max-len", "41"]), 2, &["text tower", "40"]);
    told(world.train("poetry", "run", &[]), 2, &["language-model"]);
    world.bundle("bundle", None);
    told(world.contrastive("run", &[]), 1, &["clip/config.json", "text_config"]);
    world.bundle("bundle", Some(json!({"vocab_size": 100, "eos_token_id": 3})));
    told(world.contrastive("run", &[]), 1, &["vocab_size", "[SEP] is 3"]);
}

#[test]
fn a_part_is_exported_in_half_precision_and_taken_again() {
    let world = World::new(10);
    for part in ["clip", "gpt2"] {
        let mut export = clipcap();
        export.args(["model", "export", "--part", part, "--half"]).arg(world.at("bundle"));
        run(export.arg("--out").arg(world.at(&format!("half-{part}"))), 0);
        let (half, whole) = (world.weights(&format!("half-{part}"), ""), world.weights("bundle", part));
        assert!(half.len() < whole.len() * 6 / 10, "{} {}", half.len(), whole.len());
    }
    let mut init = clipcap();
    init.args(["model", "init", "--mapper", "bert", "--json"]).arg("--clip").arg(world.at("half-clip"));
    let made = run(init.arg("--gpt2").arg(world.at("half-gpt2")).arg("--out").arg(world.at("again")), 0);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["parts"]["gpt2"]["source"]["how"], "imported", "{made}");
    assert_eq!(made["parts"]["clip"]["dtype"], "float32");
}
