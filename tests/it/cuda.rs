//! CUDA without a card: the real provider of onnxruntime-gpu over a stand-in for CUDA's libraries (`tests/standin`), which copies, counts and computes
//! nothing. Run by `scripts/measure.sh cuda-paper`: the provider is a download of 256 MB.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{clipcap, run};
use serde_json::Value;
use tempfile::TempDir;

const WHY: &str = "scripts/measure.sh cuda-paper";

/// A machine with cards, for one test.
struct Machine {
    folder: TempDir,
    settings: Vec<(&'static str, String)>,
}

/// A bundle, pictures, a dataset and embeddings, made on the CPU.
struct World {
    machine: Machine,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Machine {
    fn new() -> Self {
        let provider = root().join("runtime/cuda");
        assert!(provider.join("libonnxruntime_providers_cuda.so").is_file(), "scripts/setup.sh --cuda-only first ({WHY})");
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new(root().join("tests/standin/build.sh")).arg(folder.path().join("standin")).status().unwrap();
        assert!(status.success(), "the stand-in does not compile");
        let cuda = folder.path().join("runtime/cuda");
        fs::create_dir_all(&cuda).unwrap();
        for entry in
            fs::read_dir(&provider).unwrap().map(Result::unwrap).filter(|e| e.file_name().to_string_lossy().contains(".so"))
        {
            std::os::unix::fs::symlink(entry.path(), cuda.join(entry.file_name())).unwrap();
        }
        std::os::unix::fs::symlink(folder.path().join("standin/lib"), cuda.join("nvidia")).unwrap();
        std::os::unix::fs::symlink(root().join("runtime/cpu"), folder.path().join("runtime/cpu")).unwrap();
        Self { folder, settings: vec![] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn with(&mut self, name: &'static str, value: impl ToString) {
        self.settings.retain(|(known, _)| *known != name);
        self.settings.push((name, value.to_string()));
    }

    fn command(&self) -> Command {
        let mut command = clipcap();
        command.env("CLIPCAP_RUNTIME", self.path("runtime")).env("LD_LIBRARY_PATH", self.path("standin/driver"));
        command.env("STANDIN_REPORT", self.path("report.json")).env_remove("ORT_DYLIB_PATH");
        command.envs(self.settings.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    /// Runs words, `$` before a name being the folder, and gives what was said.
    fn says(&self, line: &str, status: i32) -> String {
        let words: Vec<String> = line.split_whitespace().map(|word| self.filled(word)).collect();
        let output: Output = run(self.command().args(words), status);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn filled(&self, word: &str) -> String {
        match word.strip_prefix('$') {
            Some(name) => self.path(name).display().to_string(),
            None => word.into(),
        }
    }

    /// What the cards saw of the last run.
    fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("report.json")).unwrap()).unwrap()
    }
}

impl World {
    fn new() -> Self {
        let machine = Machine::new();
        let demo = root().join("models/demo").display().to_string();
        for mapper in ["mlp", "bert"] {
            machine.says(
                &format!(
                    "model init --clip {demo}/clip --gpt2 {demo}/gpt2 --mapper {mapper} --prefix-len 4 --out ${mapper} --quiet"
                ),
                0,
            );
        }
        machine.says("scenes --out $scenes --num-images 80 --quiet", 0);
        let captions = fs::read_dir(machine.path("scenes/captions")).unwrap().map(|entry| entry.unwrap().path());
        let captions: Vec<String> =
            captions.filter(|path| path.extension().is_some_and(|e| e == "txt")).map(|path| path.display().to_string()).collect();
        machine.says(&format!("prepare --images $scenes/images --captions {} --out $dataset --quiet", captions.join(" ")), 0);
        machine.says("embed --dataset $dataset --images $scenes/images --model $mlp --device cpu --out $embeddings --quiet", 0);
        Self { machine }
    }
}

/// Operators that may compute on the CPU: arithmetic of shapes, a few numbers each, whose results are wanted there.
const SHAPE_ARITHMETIC: [&str; 10] = ["Add", "Cast", "Concat", "Div", "Gather", "Mul", "Reshape", "Slice", "Sub", "Squeeze"];

/// Every placement line of a run: at least one session, and nothing on the CPU but shapes.
fn check_placements(said: &str, what: &str) {
    assert!(said.contains(" nodes on CUDAExecutionProvider"), "{what}: {said}");
    for line in said.lines().filter_map(|line| line.trim().strip_prefix("on CPUExecutionProvider: ")) {
        let operator = line.split(' ').nth(1).unwrap();
        assert!(SHAPE_ARITHMETIC.contains(&operator), "{what}: {line}");
        let count: usize = line.split(' ').next().unwrap().parse().unwrap();
        assert!(count <= 16, "{what}: {line}");
    }
}

#[test]
#[ignore = "needs onnxruntime-gpu (256 MB): scripts/measure.sh cuda-paper"]
fn every_graph_in_every_precision_loads_runs_and_stays_on_the_card_without_cudnn() {
    let World { machine } = World::new();
    for precision in ["fp32", "fp16", "bf16"] {
        for mapper in ["mlp", "bert"] {
            for how in ["", "--num-beams 3", "--top-p 0.8 --num-captions 3", "--top-k 5 --temperature 0.7"] {
                let line = format!(
                    "caption $scenes/images --model ${mapper} --device cuda --precision {precision} --max-new-tokens 6 {how} --out $t.jsonl \
                     --overwrite -v"
                );
                check_placements(&machine.says(&line, 0), &line);
            }
        }
        let line = format!(
            "embed --images $scenes/images --model $mlp --device cuda --precision {precision} --out $vectors --overwrite -v"
        );
        check_placements(&machine.says(&line, 0), &line);
    }
    for precision in ["fp32", "bf16"] {
        for what in [
            "--embeddings $embeddings --model $mlp --finetune-gpt2 --max-grad-norm 1 --label-smoothing 0.1",
            "--embeddings $embeddings --model $bert --gradient-accumulation-steps 2 --recompute",
            "--embeddings $embeddings --model $mlp --lora-rank 4",
            "--objective contrastive --images $scenes/images --model $mlp --batch-size 16",
            "--objective language-model --model $mlp",
        ] {
            let line = format!(
                "train --dataset $dataset {what} --max-steps 3 --sample-images 0 --device cuda --precision {precision} --out $run --overwrite -v"
            );
            check_placements(&machine.says(&line, 0), &line);
        }
    }
}

/// Bytes up and down of a line.
fn crossed(machine: &Machine, line: &str) -> [f64; 2] {
    machine.says(line, 0);
    let report = machine.report();
    ["up", "down"].map(|way| report[way]["bytes"].as_f64().unwrap())
}

#[test]
#[ignore = "needs onnxruntime-gpu (256 MB): scripts/measure.sh cuda-paper"]
fn what_crosses_the_bus_is_within_its_budgets() {
    let World { machine } = World::new();
    machine.says("scenes --out $few --num-images 40 --quiet", 0);
    // Differences of two runs: what is loaded crosses in both.
    let mut told = vec![];
    let mut check = |what: &str, [up, down]: [f64; 2], most: [f64; 2]| {
        told.push(format!("{what}: {up:.0} bytes up of {}, {down:.0} down of {}", most[0], most[1]));
        assert!(up <= most[0] && down <= most[1], "{told:#?}");
    };
    let per = |more: [f64; 2], less: [f64; 2], count: f64| [0, 1].map(|i| (more[i] - less[i]) / count);
    // A picture of 96 x 96 in bytes, and an embedding of 128.
    let embed = |images: &str| {
        crossed(
            &machine,
            &format!("embed --images ${images}/images --model $mlp --device cuda --out $vectors --overwrite --quiet"),
        )
    };
    check("a picture", per(embed("scenes"), embed("few"), 40.0), [3.0 * 96.0 * 96.0 + 64.0, 128.0 * 4.0 + 64.0]);
    // A token: its number and place up; the best 8 of its logits and two sums down. Nothing is computed here, so all logits are equal, and the
    // whole row of 200 is asked for too: the worst case.
    let caption = |tokens: usize, how: &str| {
        let line = format!(
            "caption $few/images --model $mlp --device cuda --batch-size 40 --max-new-tokens {tokens} --min-new-tokens {tokens} --no-loop-guard \
             {how} --out $t.jsonl --overwrite --quiet"
        );
        crossed(&machine, &line)
    };
    check("a token, greedy", per(caption(24, ""), caption(8, ""), 40.0 * 16.0), [26.0, 72.0 + 200.0 * 4.0]);
    let sampled = "--top-p 0.9";
    check("a token, sampled", per(caption(24, sampled), caption(8, sampled), 40.0 * 16.0), [26.0, 1032.0 + 200.0 * 4.0]);
    // A step: three parameters of the optimizer, a batch of ids and embeddings, a byte of each mask's; nothing of the size of the parameters
    // (835,328 of GPT2). Down come the loss and the gradients' norm.
    let train = |steps: usize, dropout: f64| {
        let line = format!(
            "train --dataset $dataset --embeddings $embeddings --model $mlp --finetune-gpt2 --dropout {dropout} --batch-size 8 --dev-size 0 --max-steps {steps} \
             --save-steps 1000 --sample-images 0 --device cuda --out $run --overwrite --quiet"
        );
        crossed(&machine, &line)
    };
    check("a training step", per(train(24, 0.0), train(8, 0.0), 16.0), [12_000.0, 8.0]);
    check("a training step with dropout", per(train(24, 0.1), train(8, 0.1), 16.0), [300_000.0, 8.0]);
    println!("{}", told.join("\n"));
}

/// A number of the last report.
fn counted(machine: &Machine, path: &str) -> f64 {
    machine.report().pointer(path).and_then(Value::as_f64).unwrap()
}

/// What 16 tokens more of 40 images cost, in the worst case of the stand-in, where all logits are equal and every step asks for whole rows: steps
/// played back, bytes copied inside the card, launches and products.
fn of_16_tokens(machine: &Machine, precision: &str, how: &str) -> [f64; 3] {
    let run = |tokens: usize| {
        let line = format!(
            "caption $few/images --model $mlp --device cuda --precision {precision} --batch-size 40 --max-new-tokens {tokens} \
             --min-new-tokens {tokens} --no-loop-guard {how} --out $t.jsonl --overwrite --quiet"
        );
        machine.says(&line, 0);
        // Played back, a copy would send what lies there by then; and what cannot be recorded was not tried.
        for what in ["/captured/up", "/captured/down", "/captured/refused"] {
            assert_eq!(counted(machine, what), 0.0, "{what}: {line}");
        }
        let launches = counted(machine, "/launches") + counted(machine, "/products");
        [counted(machine, "/replays"), counted(machine, "/inside/bytes"), launches]
    };
    let (more, less) = (run(24), run(8));
    [0, 1, 2].map(|i| more[i] - less[i])
}

#[test]
#[ignore = "needs onnxruntime-gpu (256 MB): scripts/measure.sh cuda-paper"]
fn steps_are_recorded_and_copy_no_caches_and_the_optimizer_has_few_operations() {
    let World { mut machine } = World::new();
    machine.says("scenes --out $few --num-images 40 --quiet", 0);
    let mut told = vec![];
    for precision in ["fp32", "fp16", "bf16"] {
        for how in ["", "--num-beams 3"] {
            let [steps, inside, launches] = of_16_tokens(&machine, precision, how);
            assert_eq!(counted(&machine, "/captures"), 1.0, "{precision} {how}");
            let table = fs::read(machine.path("t.jsonl")).unwrap();
            told.push(format!(
                "{precision} {how}: {steps} steps played back of 16 tokens, {inside} bytes inside, {launches} launches beside"
            ));
            assert!(if how.is_empty() { steps == 16.0 } else { steps >= 16.0 }, "every step further is played back: {told:#?}");
            // Rows of logits that are asked for, and beams that part.
            assert!(inside == 0.0 && launches <= 3.0 * steps, "{told:#?}");
            // What is in the recording: states of a row, never its caches, which are 28 times as much and more.
            machine.with("CLIPCAP_NO_CUDA_GRAPH", 1);
            let [none, inside, launches] = of_16_tokens(&machine, precision, how);
            machine.with("CLIPCAP_NO_CUDA_GRAPH", "");
            let [inside, launches] = [inside, launches].map(|number| number / steps);
            told.push(format!("{precision} {how}: a step that is not recorded: {inside} bytes inside, {launches} launches"));
            let (states, most) = if precision == "fp32" { (9.0 * 4.0, 120.0) } else { (2.0, 100.0) };
            assert!(none == 0.0 && inside <= states * 40.0 * 128.0 && launches <= most, "{told:#?}");
            assert!(table == fs::read(machine.path("t.jsonl")).unwrap(), "recorded and not: {precision} {how}");
        }
        // A card that takes no recording.
        machine.with("STANDIN_UNRECORDED", 1);
        let [none, _, launches] = of_16_tokens(&machine, precision, "");
        machine.with("STANDIN_UNRECORDED", 0);
        assert!(none == 0.0 && launches >= 16.0 * 50.0, "{precision}: {launches} launches");
    }
    for (precision, most) in LAUNCHES_OF_A_STEP {
        let train = |steps: usize| {
            let line = format!(
                "train --dataset $dataset --embeddings $embeddings --model $mlp --finetune-gpt2 --dropout 0.1 --batch-size 8 --dev-size 0 --max-steps \
                 {steps} --save-steps 1000 --sample-images 0 --max-grad-norm 1 --device cuda --precision {precision} --out $run --overwrite --quiet"
            );
            machine.says(&line, 0);
            ["/launches", "/inside/bytes", "/up/bytes", "/pageable_bytes"].map(|path| counted(&machine, path))
        };
        let (more, less) = (train(24), train(8));
        let [launches, inside, up, pageable] = [0, 1, 2, 3].map(|i| (more[i] - less[i]) / 16.0);
        told.push(format!(
            "training in {precision}: {launches} launches, {inside} bytes inside, {up} up, {pageable} of them pageable a step"
        ));
        assert!(launches <= most, "{told:#?}");
        // Masks are made where the card fetches them by itself.
        assert!(pageable < 12_000.0 && up > 100_000.0, "{told:#?}");
    }
    println!("{}", told.join("\n"));
}

/// Of forward, backward and optimizer, of the demo's model.
const LAUNCHES_OF_A_STEP: [(&str, f64); 2] = [("fp32", 470.0), ("bf16", 640.0)];

#[test]
#[ignore = "needs onnxruntime-gpu (256 MB): scripts/measure.sh cuda-paper"]
fn two_cards_share_the_work_and_the_output_is_in_order() {
    let World { mut machine } = World::new();
    machine.with("STANDIN_CARDS", 2);
    for line in [
        "caption $scenes/images --model $mlp --device cuda:0,1 --max-new-tokens 6 --out $t.jsonl --overwrite --quiet",
        "embed --images $scenes/images --model $mlp --device cuda:0,1 --out $vectors --overwrite --quiet",
    ] {
        machine.says(line, 0);
        let cards =
            machine.report()["cards"].as_array().unwrap().iter().map(|c| c["launches"].as_u64().unwrap()).collect::<Vec<_>>();
        assert!(cards.len() == 2 && cards[0] > 0 && cards[0].abs_diff(cards[1]) * 10 <= cards[0], "{line}: {cards:?}");
    }
    let table = fs::read_to_string(machine.path("t.jsonl")).unwrap();
    let names: Vec<String> = table
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["image_path"].as_str().unwrap().to_string())
        .collect();
    assert!(names.len() == 80 && names.is_sorted(), "{names:?}");
    let said = machine.says("train --dataset $dataset --embeddings $embeddings --model $mlp --device cuda:0,1 --out $run", 2);
    assert!(said.contains("caption and embed"), "{said}");
    assert!(machine.says("doctor --device cuda:1,2", 1).contains("no card 2"));
}

#[test]
#[ignore = "needs onnxruntime-gpu (256 MB): scripts/measure.sh cuda-paper"]
fn memory_that_does_not_suffice_is_told_before_and_during_the_work() {
    let World { mut machine } = World::new();
    machine.with("STANDIN_MEMORY", 3u64 << 30);
    let line =
        "caption $scenes/images --model $mlp --device cuda --batch-size 4096 --max-new-tokens 100 --out $t.jsonl --overwrite";
    let said = machine.says(line, 1);
    assert!(said.contains("--batch-size 4096 needs about") && said.contains(" fits"), "{said}");
    // So little that the estimate is beside the point: the driver says one thing, the runtime another.
    machine.with("STANDIN_MEMORY", (1u64 << 30) + (48 << 20));
    machine.with("STANDIN_TAKEN", (1u64 << 30) + (45 << 20));
    let said =
        machine.says("embed --images $scenes/images --model $mlp --device cuda --batch-size 8 --out $vectors --overwrite", 1);
    // Told once, in plain words before the runtime's.
    assert_eq!(said.matches("not enough memory on the device").count(), 1, "{said}");
    assert_eq!(said.matches("Failed to allocate memory").count(), 1, "{said}");
    let line =
        "train --dataset $dataset --embeddings $embeddings --model $mlp --finetune-gpt2 --device cuda --max-steps 3 --out $run";
    let said = machine.says(line, 1);
    assert!(said.contains("not enough memory on the device for parameters (3."), "{said}");
}

#[test]
#[ignore = "needs onnxruntime-gpu (256 MB): scripts/measure.sh cuda-paper"]
fn the_doctor_names_cards_libraries_and_reasons() {
    let mut machine = Machine::new();
    // Kernels compute nothing, so the self-tests fail; what is around them is told.
    let said = machine.says("doctor", 1);
    for part in [
        "device        cuda:0",
        "H100",
        "compute capability 9.0",
        "runtime/cuda/nvidia/libcublasLt.so.13",
        "libcudnn.so.9      not found",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for precision in ["fp32", "fp16", "bf16"] {
        assert!(said.contains(&format!("self-test     {precision} FAILED")), "{said}");
    }
    machine.with("STANDIN_NAME", "Tesla V100-SXM2-16GB");
    machine.with("STANDIN_CAPABILITY", "7.0");
    let said = machine.says("doctor --device cuda", 1);
    assert!(said.contains("Tesla V100-SXM2-16GB has compute capability 7.0"), "{said}");
    let said = machine.says("doctor", 0);
    assert!(said.contains("device        cpu") && said.contains("CUDA          not used: Tesla V100"), "{said}");
    machine.with("STANDIN_CAPABILITY", "7.5");
    assert!(machine.says("doctor --device cuda --precision bf16", 1).contains("bf16 needs 8.0"));
    fs::remove_file(machine.path("standin/lib/libcublas.so.13")).unwrap();
    let said = machine.says("doctor --device cuda", 1);
    assert!(said.contains("libcublas.so.13 was not found") && said.contains("setup.sh --cuda"), "{said}");
    machine.with("STANDIN_CARDS", 0);
    let said = machine.says("doctor", 0);
    assert!(said.contains("sees no card"), "{said}");
}
