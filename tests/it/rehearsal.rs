//! The pipelines for real data, run as a user runs them: files laid out as README.md says, one command. Models are small and random.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{checkout, clipcap, run};
use serde_json::{Value, json};

/// A working folder with `models/` and `data/` in it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// `models/ViT-B-32.pt`, `models/gpt2-chinese` and `models/clipcap`.
    fn models(&self) {
        let (configs, bundle) = (self.at("configs"), self.at("models/clipcap"));
        let vision = json!({
            "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32, "patch_size": 8,
        });
        let gpt2 = json!({"model_type": "gpt2", "vocab_size": 200, "n_positions": 100, "n_embd": 16, "n_layer": 2, "n_head": 2});
        write(&configs.join("clip/config.json"), &json!({"projection_dim": 24, "vision_config": vision}).to_string());
        write(&configs.join("gpt2/config.json"), &gpt2.to_string());
        fs::copy(checkout().join("models/demo/gpt2/vocab.txt"), configs.join("gpt2/vocab.txt")).unwrap();
        let mut init = clipcap();
        init.args(["model", "init", "--mapper", "mlp", "--random", "--quiet", "--out"]).arg(&bundle);
        run(init.arg("--clip").arg(configs.join("clip")).arg("--gpt2").arg(configs.join("gpt2")), 0);
        let mut export = clipcap();
        run(export.args(["model", "export", "--part", "gpt2", "--out"]).arg(self.at("models/gpt2-chinese")).arg(&bundle), 0);
        fs::copy(crate::common::golden::Golden::own().path("openai_vit.pt"), self.at("models/ViT-B-32.pt")).unwrap();
    }

    /// `data/flickr30k` as Flickr30k-CN lies on disk, with rendered pictures.
    fn flickr30k(&self) {
        run(clipcap().args(["scenes", "--num-images", "24", "--quiet", "--out"]).arg(self.at("scenes")), 0);
        let images = self.at("data/flickr30k/flickr30k-images");
        fs::create_dir_all(&images).unwrap();
        let text =
            ["train", "val", "test"].map(|split| fs::read_to_string(self.at(&format!("scenes/captions/scenes-zh-{split}.txt"))));
        let captions = text.map(Result::unwrap).concat();
        for (split, kind, part) in [("train", "zhb", 0..16), ("val", "zhb", 16..20), ("test", "zhm", 20..24)] {
            let mut lines = String::new();
            for number in part {
                let (scene, id) = (format!("scene-{number:06}"), 1_000_092_795u64 + number);
                fs::copy(self.at(&format!("scenes/images/{scene}.jpg")), images.join(format!("{id}.jpg"))).unwrap();
                for (k, line) in captions.lines().filter(|line| line.starts_with(&format!("{scene}#"))).enumerate() {
                    writeln!(lines, "{id}.jpg#{kind}#{k} {}", line.split_once(' ').unwrap().1).unwrap();
                }
            }
            let name = format!("flickr30k{kind}boson{split}");
            write(&self.at(&format!("data/flickr30k/flickr30k-cn/{name}/TextData/seg.{name}.caption.txt")), &lines);
        }
    }

    /// `clipcap run pipelines/NAME.toml`, twice: the second time there is nothing to do.
    fn pipeline(&self, name: &str, overrides: &[String]) {
        let mut command = clipcap();
        command.current_dir(self.0.path()).args(["run", "--json"]).arg(checkout().join("pipelines").join(name));
        command.args(overrides.iter().flat_map(|assignment| ["--set", assignment.as_ref()]));
        for again in [false, true] {
            let output = run(&mut command, 0);
            // Every stage that ran tells its own summary first.
            let told: Value = serde_json::Deserializer::from_slice(&output.stdout).into_iter().last().unwrap().unwrap();
            for stage in told["stages"].as_array().unwrap() {
                assert_eq!(stage["ran"], !again, "{name}: {told}");
            }
        }
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn both_recipes_on_flickr30k() {
    let home = Home::new();
    home.models();
    home.flickr30k();
    for recipe in ["mlp", "bert"] {
        home.pipeline(&format!("flickr30k-{recipe}.toml"), &["train.max_steps=3".into()]);
        let out = home.at(&format!("out/flickr30k-{recipe}"));
        let bundle = json_file(&out.join("train/best/clipcap.json"));
        assert_eq!((bundle["mapper_kind"].as_str(), bundle["prefix_len"].as_u64()), (Some(recipe), Some(10)));
        let tuned = bundle["parts"]["gpt2"]["source"]["how"] == "trained";
        assert_eq!(tuned, recipe == "mlp");
        let counts = &json_file(&out.join(".clipcap/captions.manifest.json"))["counts"];
        assert_eq!((counts["captioned"].as_u64(), counts["failed"].as_u64()), (Some(4), Some(0)));
        assert!(json_file(&out.join("scores.json"))["char"]["cider"].is_number());
    }
}

#[test]
fn a_caption_table_for_a_folder() {
    let home = Home::new();
    home.models();
    home.flickr30k();
    fs::rename(home.at("data/flickr30k/flickr30k-images"), home.at("data/photos")).unwrap();
    home.pipeline("caption-folder.toml", &[]);
    let counts = &json_file(&home.at("out/caption-folder/.clipcap/captions.manifest.json"))["counts"];
    assert_eq!(counts["captioned"].as_u64(), Some(24));
}
