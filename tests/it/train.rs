//! `clipcap train` from the outside: what it learns, what it leaves, what it refuses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::training::{DIM, data, distinct, metric, model, write_embeddings};
use crate::common::{clipcap, run};

struct World {
    folder: tempfile::TempDir,
    model: PathBuf,
    dataset: PathBuf,
    embeddings: PathBuf,
}

impl World {
    fn new(mapper: &str, images: u64) -> Self {
        Self::with(mapper, images, |image| Some(if image % 10 == 0 { "dev" } else { "train" }), distinct)
    }

    fn with(mapper: &str, images: u64, split: fn(u64) -> Option<&'static str>, embedding: fn(u64, u64) -> f32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path(), mapper);
        let (dataset, embeddings) = data(folder.path(), images, split, embedding);
        Self { folder, model, dataset, embeddings }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, name: &str, flags: &[&str]) -> Command {
        let mut command = clipcap();
        command.args(["train", "--json"]).args(flags);
        for (flag, value) in [("--batch-size", "8"), ("--lr", "0.01"), ("--warmup-steps", "5")] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.arg("--dataset").arg(&self.dataset).arg("--embeddings").arg(&self.embeddings);
        command.arg("--model").arg(&self.model).arg("--out").arg(self.out(name));
        command
    }
}

fn summary(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("--json prints JSON alone")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn both_recipes_learn_and_leave_bundles() {
    for (mapper, flags) in [("mlp", &["--finetune-gpt2"][..]), ("bert", &[])] {
        let world = World::new(mapper, 40);
        let flags = [flags, &["--epochs", "12", "--dropout", "0", "--eval-steps", "30"]].concat();
        let output = run(&mut world.train("run", &flags), 0);
        let told = summary(&output);
        let out = world.out("run");
        assert_eq!((told["steps"].as_u64(), told["finished"].as_bool()), (Some(108), Some(true)), "{told}");
        assert_eq!((told["train_captions"].as_u64(), told["dev_captions"].as_u64()), (Some(72), Some(8)));
        let losses = metric(&out, "train_loss");
        assert_eq!(losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=108).collect::<Vec<_>>());
        let mean = |part: &[(i64, f64)]| part.iter().map(|(_, loss)| loss).sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..9]), mean(&losses[99..]));
        // The frozen random GPT2 can only be steered.
        let wanted = if mapper == "mlp" { 0.8 } else { 0.995 };
        assert!(last < wanted * first, "{mapper}: {first} {last}");
        let dev: Vec<i64> = metric(&out, "dev_loss").iter().map(|(step, _)| *step).collect();
        assert_eq!(dev, [30, 60, 90, 108]);
        let best = metric(&out, "dev_loss").into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert_eq!(told["best_step"].as_i64(), Some(best.0));
        for bundle in ["best", "last"] {
            run(clipcap().args(["model", "inspect"]).arg(out.join(bundle)), 0);
        }
        let weights = |bundle: &Path, part: &str| fs::read(bundle.join(part).join("model.safetensors")).unwrap();
        assert_ne!(weights(&out.join("last"), "mapper"), weights(&world.model, "mapper"));
        assert_eq!(weights(&out.join("last"), "gpt2") == weights(&world.model, "gpt2"), mapper == "bert");
        assert_eq!(weights(&out.join("last"), "clip"), weights(&world.model, "clip"));
        assert!(fs::metadata(out.join("tensorboard/events.out.tfevents.0.clipcap")).unwrap().len() > 108 * 100);
        assert!(stderr(&output).contains("image-0000: "), "captions of dev images are told");
    }
}

#[test]
fn what_the_settings_will_do_is_told_before_they_do_it() {
    let world = World::new("mlp", 20);
    // 36 captions, 5 batches a pass.
    let told = |name: &str, flags: &[&str]| {
        let mut command = clipcap();
        command.args(["train", "--batch-size", "8", "--sample-images", "0", "--dropout", "0"]).args(flags);
        command.arg("--dataset").arg(&world.dataset).arg("--embeddings").arg(&world.embeddings);
        stderr(&run(command.arg("--model").arg(&world.model).arg("--out").arg(world.out(name)), 0))
    };
    let defaults = told("defaults", &["--epochs", "6"]);
    assert!(
        defaults.contains("30 steps: 6 passes of 5 steps; the learning rate rises to 0.00002 within 3 steps (10%"),
        "{defaults}"
    );
    assert!(!defaults.contains("warning"), "{defaults}");
    let rate = |name: &str| metric(&world.out(name), "learning_rate").iter().map(|(_, rate)| *rate).collect::<Vec<_>>();
    let rates = rate("defaults");
    assert!(rates[0] == 0.0 && (rates[3] - 2e-5).abs() < 1e-9 && rates[29] < rates[3], "{rates:?}");
    let config = fs::read_to_string(world.out("defaults/config.toml")).unwrap();
    assert!(!config.contains("warmup_steps"), "{config}");
    let odd = told("odd", &["--epochs", "1", "--warmup-steps", "100", "--max-len", "4"]);
    assert!(odd.contains("--warmup-steps 100: the run ends after 5 steps"), "{odd}");
    assert!(odd.contains("--max-len 4: 100% of the captions (36) are longer than 1 tokens"), "{odd}");
    assert!(odd.contains("so is the median caption"), "{odd}");
    let still = told("still", &["--epochs", "1", "--lr", "0"]);
    assert!(still.contains("--lr 0: nothing will be learned"), "{still}");
    let rising = told("rising", &["--epochs", "2", "--warmup-steps", "4"]);
    assert!(rising.contains("still rising for 40% of the run"), "{rising}");
}

#[test]
fn artifacts_alone_need_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = model(folder.path(), "bert");
    let out = folder.path().join("run");
    run(clipcap().args(["train", "--artifacts-only", "--dropout", "0", "--model"]).arg(&bundle).arg("--out").arg(&out), 0);
    let artifacts = out.join("artifacts");
    for name in ["training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint/parameters.safetensors"] {
        assert!(artifacts.join(name).is_file(), "{name}");
    }
    let weights = artifacts.join("weights/gpt2.safetensors");
    assert_eq!(fs::read(&weights).unwrap(), fs::read(bundle.join("gpt2/model.safetensors")).unwrap());
    assert_eq!(fs::metadata(&weights).unwrap().nlink(), 1, "ONNX's checker refuses files of several names");
}

#[test]
fn a_run_goes_on_only_with_its_own_settings() {
    let world = World::new("mlp", 20);
    let flags = ["--epochs", "2", "--sample-images", "0"];
    run(&mut world.train("run", &flags), 0);
    let again = run(&mut world.train("run", &flags), 0);
    assert!(stderr(&again).contains("finished"), "{}", stderr(&again));
    let other = run(&mut world.train("run", &["--epochs", "3", "--sample-images", "0"]), 1);
    assert!(stderr(&other).contains("recipe.epochs: 3 now, 2 then"), "{}", stderr(&other));
    let anew = ["--epochs", "3", "--sample-images", "0", "--overwrite"];
    for _ in 0..2 {
        let output = run(&mut world.train("run", &anew), 0);
        assert_eq!(summary(&output)["steps"].as_u64(), Some(15));
        assert!(summary(&output)["train_loss"].is_number(), "it was trained anew");
    }
    // A folder of other things is left alone.
    fs::create_dir(world.out("mine")).unwrap();
    fs::write(world.out("mine").join("thesis.txt"), "x").unwrap();
    run(&mut world.train("mine", &["--overwrite"]), 1);
    assert_eq!(fs::read_dir(world.out("mine")).unwrap().count(), 1);
}

#[test]
fn no_image_straddles_and_splits_that_are_not_asked_for_stay_out() {
    let world = World::with("mlp", 60, |_| None, distinct);
    let out = run(&mut world.train("run", &["--max-steps", "2", "--dev-size", "9", "--sample-images", "0"]), 0);
    // Whole images of two captions each, until nine are together.
    assert_eq!((summary(&out)["train_captions"].as_u64(), summary(&out)["dev_captions"].as_u64()), (Some(110), Some(10)));
    let path = world.out("run").join("corpus/captions.parquet");
    let mut splits = std::collections::BTreeMap::<String, std::collections::BTreeSet<String>>::new();
    for batch in clipcap::table::open(&path, None).unwrap() {
        let batch = batch.unwrap();
        let text = |name| clipcap::table::column::<arrow::array::StringArray>(&batch, name, &path).unwrap();
        for row in 0..batch.num_rows() {
            splits.entry(text("image_id").value(row).into()).or_default().insert(text("split").value(row).into());
        }
    }
    assert_eq!(splits.len(), 60);
    assert!(splits.values().all(|splits| splits.len() == 1));
    let tested = World::with("mlp", 60, |image| Some(["train", "dev", "test"][(image % 3) as usize]), distinct);
    let out = run(&mut tested.train("run", &["--max-steps", "1", "--sample-images", "0"]), 0);
    assert_eq!((summary(&out)["train_captions"].as_u64(), summary(&out)["dev_captions"].as_u64()), (Some(40), Some(40)));
}

#[test]
fn a_loss_that_explodes_stops_the_run_and_names_the_captions() {
    let world = World::new("mlp", 20);
    let flags =
        ["--finetune-gpt2", "--epochs", "9", "--lr", "1e30", "--warmup-steps", "0", "--save-steps", "1", "--dropout", "0"];
    let output = run(&mut world.train("run", &flags), 1);
    let message = stderr(&output);
    assert!(message.contains("of step 2 is NaN") || message.contains("of step 2 is inf"), "{message}");
    // A batch of eight captions (or the last, of four) by image and number.
    let named: Vec<&str> = message.split("image-").skip(1).filter_map(|rest| rest.get(..6)).collect();
    assert!(matches!(named.len(), 4 | 8), "{message}");
    assert!(named.iter().all(|name| name.ends_with("#0") || name.ends_with("#1")), "{message}");
    assert!(message.contains("the checkpoint of step 1 is kept"), "{message}");
    assert!(world.out("run/checkpoints/step-1/parameters.safetensors").is_file());
    assert!(!world.out("run/checkpoints/step-2").exists());
}

#[test]
fn numbers_that_went_wrong_are_neither_saved_nor_called_the_best() {
    let world = World::new("mlp", 20);
    // The only step makes them so; its loss was still one.
    let flags = ["--finetune-gpt2", "--lr", "1e30", "--warmup-steps", "0", "--max-steps", "1", "--dropout", "0"];
    let output = run(&mut world.train("run", &flags), 1);
    assert!(stderr(&output).contains("of step 1 is") && stderr(&output).contains("image-"), "{}", stderr(&output));
    assert!(!world.out("run/best").exists() && !world.out("run/last").exists());
    // The first step's rate is 0, and the second's too high: only the first is worth keeping.
    let flags = ["--lr", "1e39", "--warmup-steps", "1", "--keep", "1", "--save-steps", "1", "--dropout", "0"];
    let output = run(&mut world.train("kept", &flags), 1);
    assert!(stderr(&output).contains("the checkpoint of step 1 is kept"), "{}", stderr(&output));
    assert!(world.out("kept/checkpoints/step-1").is_dir() && !world.out("kept/checkpoints/step-2").exists());
}

#[test]
fn artifacts_are_those_of_the_run() {
    let world = World::new("mlp", 20);
    let artifacts_only = |flags: &[&str], status: i32| {
        let mut command = clipcap();
        command.args(["train", "--artifacts-only"]).args(flags).arg("--model").arg(&world.model);
        run(command.arg("--out").arg(world.out("run")), status)
    };
    let checkpoint = || fs::metadata(world.out("run/artifacts/checkpoint/parameters.safetensors")).unwrap().len();
    artifacts_only(&[], 0);
    let of_the_mapper = checkpoint();
    assert!(world.out("run/artifacts/weights").is_dir());
    run(&mut world.train("run", &["--finetune-gpt2", "--max-steps", "1", "--sample-images", "0"]), 0);
    assert!(checkpoint() > of_the_mapper && !world.out("run/artifacts/weights").exists());
    let output = artifacts_only(&[], 1);
    assert!(stderr(&output).contains("holds a training run"), "{}", stderr(&output));
    assert!(world.out("run/best").is_dir());
    artifacts_only(&["--overwrite"], 0);
    assert_eq!((checkpoint(), world.out("run/best").exists()), (of_the_mapper, false));
}

#[test]
fn embeddings_of_another_encoder_are_refused() {
    let world = World::new("mlp", 20);
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(world.model.join("clipcap.json")).unwrap()).unwrap();
    let ours = manifest["embedding_fingerprint"].as_str().unwrap().to_string();
    let flags = ["--max-steps", "1", "--sample-images", "0", "--quiet"];
    for (encoder, status) in [(ours, 0), ("0".repeat(64), 1)] {
        write_embeddings(&world.embeddings, 20, distinct, &[("embedding_fingerprint", encoder)]);
        let output = run(&mut world.train("run", &flags), status);
        let message = stderr(&output);
        let told = message.contains("another image encoder") && message.contains("clipcap embed --model");
        assert_eq!(told, status == 1, "{message}");
    }
}

#[test]
fn patience_ends_a_run_that_no_longer_learns() {
    let world = World::new("mlp", 20);
    let flags = ["--epochs", "50", "--lr", "0", "--patience", "3", "--sample-images", "0"];
    let told = summary(&run(&mut world.train("run", &flags), 0));
    // The first evaluation is the best; three more are not better.
    assert_eq!((told["steps"].as_u64(), told["best_step"].as_u64(), told["finished"].as_bool()), (Some(20), Some(5), Some(true)));
}

#[test]
fn accumulated_batches_are_one_batch() {
    let world = World::new("mlp", 24);
    let flags = ["--finetune-gpt2", "--max-steps", "4", "--dropout", "0", "--sample-images", "0", "--lr", "0.001"];
    run(&mut world.train("one", &flags), 0);
    // Captions are grouped by length in windows of batches, so only a batch size that divides leaves the same groups.
    let two = [&flags[..], &["--batch-size", "4", "--gradient-accumulation-steps", "2"]].concat();
    run(&mut world.train("two", &two), 0);
    let steps = |name: &str| metric(&world.out(name), "train_loss").len();
    assert_eq!((steps("one"), steps("two")), (4, 4));
    let samples = metric(&world.out("two"), "samples_per_second");
    assert!(samples.iter().all(|(_, rate)| *rate > 0.0));
}

#[test]
fn bad_usage_is_told() {
    let world = World::new("mlp", 4);
    for (flags, word) in [
        (&["--label-smoothing", "1.5"][..], "label-smoothing"),
        (&["--batch-size", "0"], "batch-size"),
        (&["--mapping_type", "bert"], "mlp"),
        (&["--prefix_len", "10"], "prefix_len"),
        (&["--schedule", "square"], "square"),
    ] {
        let output = run(&mut world.train("run", flags), 2);
        assert!(stderr(&output).contains(word), "{flags:?}: {}", stderr(&output));
    }
    for (flags, word) in [(&["--max-len", "3"][..], "max-len"), (&["--max-len", "41"], "decoder's 40")] {
        let output = run(&mut world.train("run", flags), 2);
        assert!(stderr(&output).contains(word), "{flags:?}: {}", stderr(&output));
    }
    assert_eq!(DIM, 12);
    // The original's flags, as it spells them.
    let theirs =
        ["--bs_train", "4", "--warmup_steps", "2", "--dev_size", "1", "--save_step", "5", "--eval_step", "2", "--max_len", "30"];
    let rest = [
        "--mapping_type",
        "mlp",
        "--prefix_len",
        "3",
        "--clip_size",
        "12",
        "--constant_len",
        "10",
        "--finetune_gpt2",
        "--epochs",
        "1",
    ];
    let mut command = clipcap();
    command.arg("train").args(theirs).args(rest).args(["--lr", "1e-3", "--normalize_prefix", "--data_path"]).arg(&world.dataset);
    command
        .arg("--embeddings")
        .arg(&world.embeddings)
        .arg("--model")
        .arg(&world.model)
        .arg("--output_path")
        .arg(world.out("theirs"));
    run(&mut command, 0);
    let told = fs::read_to_string(world.out("theirs/best/clipcap.json")).unwrap();
    assert!(told.contains(r#""normalized": true"#), "{told}");
}

#[test]
fn self_critical_training_raises_the_reward_and_is_told() {
    let world = World::new("mlp", 40);
    run(&mut world.train("first", &["--finetune-gpt2", "--epochs", "10", "--dropout", "0", "--cider-images", "3"]), 0);
    assert_eq!(metric(&world.out("first"), "dev_cider").len(), 10);
    let best = world.out("first/best");
    let scst = |name: &str, flags: &[&str]| {
        let mut command = clipcap();
        command.args(["train", "--json", "--objective", "scst", "--finetune-gpt2", "--lr", "0.003", "--warmup-steps", "5"]);
        command.args(["--batch-size", "40", "--samples", "10", "--epochs", "10", "--eval-steps", "30"]).args(flags);
        command.arg("--dataset").arg(&world.dataset).arg("--embeddings").arg(&world.embeddings);
        command.arg("--model").arg(&best).arg("--out").arg(world.out(name));
        command
    };
    let output = run(&mut scst("scst", &[]), 0);
    let (told, said, out) = (summary(&output), stderr(&output), world.out("scst"));
    // 36 images, 4 to a batch.
    assert_eq!(told["steps"], 90);
    let rewards: Vec<f64> = metric(&out, "reward").iter().map(|(_, reward)| *reward).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(rewards.len() == 90 && mean(&rewards[81..]) > 1.2 * mean(&rewards[..9]), "{rewards:?}");
    assert!(metric(&out, "reward_spread").iter().all(|(_, spread)| *spread >= 0.0));
    // The best is that of the highest CIDEr here, not of the lowest loss.
    let ciders = metric(&out, "dev_cider");
    let most = ciders.iter().map(|(_, cider)| *cider).fold(0.0, f64::max);
    assert!((told["best_dev_cider"].as_f64().unwrap() - most).abs() < 1e-5, "{told}");
    let first = ciders.iter().find(|(_, cider)| (*cider - most).abs() < 1e-6).unwrap().0;
    assert_eq!(told["best_step"].as_i64(), Some(first));
    for text in [
        "10 sampled captions of each of 4 images",
        "3 evaluations to come; best/ is what has the best dev CIDEr",
        "s a step: about",
        "step 30 of 90, epoch 3.33: dev loss",
        "CIDEr",
        "people: ",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(
        page.contains("Reward: CIDEr of sampled captions") && page.contains("what people wrote") && page.contains("image-0000")
    );
    assert_eq!(fs::read_to_string(out.join("samples.jsonl")).unwrap().lines().count(), 3);
    // A frozen decoder: the mapper alone is moved.
    let mut frozen = clipcap();
    frozen.args([
        "train",
        "--objective",
        "scst",
        "--max-steps",
        "3",
        "--batch-size",
        "6",
        "--samples",
        "3",
        "--quiet",
        "--best-by",
        "loss",
    ]);
    frozen.arg("--dataset").arg(&world.dataset).arg("--embeddings").arg(&world.embeddings);
    run(frozen.arg("--model").arg(&best).arg("--out").arg(world.out("frozen")), 0);
    let weights = |bundle: &Path, part: &str| fs::read(bundle.join(part).join("model.safetensors")).unwrap();
    assert_eq!(weights(&world.out("frozen/last"), "gpt2"), weights(&best, "gpt2"));
    assert_ne!(weights(&world.out("frozen/last"), "mapper"), weights(&best, "mapper"));
    let mut odd = clipcap();
    odd.args(["train", "--objective", "scst", "--batch-size", "40", "--samples", "7"]);
    odd.arg("--dataset").arg(&world.dataset).arg("--embeddings").arg(&world.embeddings);
    let odd = run(odd.arg("--model").arg(&best).arg("--out").arg(world.out("refused")), 2);
    assert!(stderr(&odd).contains("--batch-size a multiple of it"), "{}", stderr(&odd));
    for (flags, text) in
        [(&["--label-smoothing", "0.1"][..], "have no meaning with --objective scst"), (&["--lora-rank", "2"], "--lora-rank")]
    {
        assert!(stderr(&run(&mut scst("refused", flags), 2)).contains(text), "{text}");
    }
}

#[test]
fn the_best_may_be_that_of_the_highest_cider() {
    let world = World::new("mlp", 40);
    let flags = ["--finetune-gpt2", "--epochs", "8", "--dropout", "0", "--best-by", "cider", "--cider-images", "2"];
    let told = summary(&run(&mut world.train("run", &flags), 0));
    let ciders = metric(&world.out("run"), "dev_cider");
    let best = ciders.iter().fold((0, -1.0), |best, found| if found.1 as f32 > best.1 as f32 { *found } else { best });
    assert_eq!(told["best_step"].as_i64(), Some(best.0), "{ciders:?}");
    let none = ["--best-by", "cider", "--cider-images", "0"];
    assert!(stderr(&run(&mut world.train("none", &none), 2)).contains("--cider-images above 0"));
    // The same images by evaluate.
    let captions = world.out("captions.parquet");
    let mut caption = clipcap();
    caption.args(["caption", "--quiet", "--embeddings"]).arg(&world.embeddings).arg("--model").arg(world.out("run/last"));
    run(caption.arg("--out").arg(&captions), 0);
    let only = world.out("two.txt");
    let text: String = fs::read_to_string(world.out("run/samples.jsonl")).unwrap().lines().last().unwrap().into();
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let lines: String = shown["samples"]
        .as_array()
        .unwrap()
        .iter()
        .take(2)
        .map(|sample| format!("{}\t{}\n", sample["image_id"].as_str().unwrap(), sample["caption"].as_str().unwrap()))
        .collect();
    fs::write(&only, lines).unwrap();
    let mut evaluate = clipcap();
    evaluate.args(["evaluate", "--json", "--tokens", "char", "--predictions"]).arg(&only).arg("--references").arg(&world.dataset);
    let scores: serde_json::Value = serde_json::from_slice(&run(&mut evaluate, 0).stdout).unwrap();
    let last = ciders.last().unwrap().1;
    assert!((scores["char"]["cider"].as_f64().unwrap() - last).abs() < 1e-9, "{last}: {scores}");
}
