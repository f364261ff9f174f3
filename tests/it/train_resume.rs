//! A run that is stopped in any way and goes on ends with the same bytes as one that was not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::training::{data, distinct, metric, model};
use crate::common::{clipcap, run};

/// Every file of a run that must not depend on interruptions, by its path inside the run.
fn lasting(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    for part in ["checkpoints", "best", "last", "artifacts", "corpus"] {
        walk(run, &run.join(part), &mut found);
    }
    found
}

struct World {
    folder: tempfile::TempDir,
    flags: Vec<String>,
}

impl World {
    /// GPT2 tuned.
    fn new() -> Self {
        Self::with("--finetune-gpt2")
    }

    fn with(more: &str) -> Self {
        Self::of(&format!("--epochs 6 --batch-size 4 --eval-steps 7 --save-steps 3 {more}"))
    }

    /// With flags of its own in place of the usual pace.
    fn of(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path(), "mlp");
        let (dataset, embeddings) = data(folder.path(), 40, |n| Some(if n % 8 == 0 { "dev" } else { "train" }), distinct);
        let mut flags: Vec<String> = "--gradient-accumulation-steps 2 --lr 0.003 --warmup-steps 9 --max-grad-norm 1 --threads 2 \
                                      --sample-images 1"
            .split_whitespace()
            .chain(more.split_whitespace())
            .map(String::from)
            .collect();
        for (flag, path) in [("--model", model), ("--dataset", dataset), ("--embeddings", embeddings)] {
            flags.extend([flag.to_string(), path.to_str().unwrap().to_string()]);
        }
        Self { folder, flags }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, name: &str) -> Command {
        let mut command = clipcap();
        command.arg("train").args(&self.flags).arg("--out").arg(self.out(name));
        command
    }

    fn start(&self, name: &str) -> Child {
        self.train(name).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// Waits for a path to appear, or for the program to end.
fn wait_for(path: &Path, child: &mut Child) {
    let started = Instant::now();
    while !path.exists() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(120), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a run so many milliseconds after each of some checkpoints appears, lets it go to its end, and compares that.
fn kill_and_finish(world: &World, kills: &[(u32, u64)]) {
    let out = world.out("killed");
    for (step, more_ms) in kills {
        let mut child = world.start("killed");
        wait_for(&out.join(format!("checkpoints/step-{step}")), &mut child);
        std::thread::sleep(Duration::from_millis(*more_ms));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(&mut world.train("killed"), 0);
    compare(world, "killed");
}

fn compare(world: &World, name: &str) {
    let (wanted, found) = (lasting(&world.out("whole")), lasting(&world.out(name)));
    assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (path, bytes) in &wanted {
        assert!(found[path] == *bytes, "{} differs", path.display());
    }
    // Logs have a row for each step, whatever happened.
    let steps = |name: &str| metric(&world.out(name), "train_loss");
    assert_eq!(steps("whole"), steps(name));
    assert_eq!(metric(&world.out("whole"), "dev_loss"), metric(&world.out(name), "dev_loss"));
}

#[test]
fn killed_and_interrupted_runs_end_with_the_same_bytes() {
    let world = World::new();
    run(&mut world.train("whole"), 0);
    assert_eq!(metric(&world.out("whole"), "train_loss").len(), 54);
    // Killed the moment a certain checkpoint appears, and at moments in between.
    kill_and_finish(&world, &[(3, 0), (9, 7), (15, 19), (21, 3), (30, 40), (42, 11), (51, 1)]);
    // Interrupted politely: the state of any step is kept, also in the middle of a pass.
    let out = world.out("stopped");
    let mut interrupted = 0;
    for step in [3, 12, 24, 36] {
        let mut child = world.start("stopped");
        wait_for(&out.join(format!("checkpoints/step-{step}")), &mut child);
        let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(signal.success() || child.try_wait().unwrap().is_some());
        interrupted += usize::from(child.wait().unwrap().code() == Some(130));
    }
    assert!(interrupted >= 2, "{interrupted} of 4 runs were interrupted in time");
    run(&mut world.train("stopped"), 0);
    compare(&world, "stopped");
}

/// Kills the run `killed` when some checkpoints appear, and lets it end.
fn kill_and_end(world: &World) {
    for step in [3, 15, 30] {
        let mut child = world.start("killed");
        wait_for(&world.out("killed").join(format!("checkpoints/step-{step}")), &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(&mut world.train("killed"), 0);
}

#[test]
fn adapters_go_on_after_a_kill_and_start_from_the_seed() {
    let world = World::with("--lora-rank 2 --lora-targets c_attn,c_fc --recompute");
    run(&mut world.train("whole"), 0);
    kill_and_end(&world);
    compare(&world, "killed");
    let adapter = |name: &str| fs::read(world.out(name).join("last/adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("killed"));
    // All that a run starts from is the bundle's, but for the adapters.
    let start = |name: &str, seed: &str| {
        run(world.train(name).args(["--max-steps", "1", "--seed", seed]), 0);
        fs::read(world.out(name).join("artifacts/checkpoint/parameters.safetensors")).unwrap()
    };
    let one = start("one", "1");
    assert!(one == start("again", "1") && one != start("two", "2"));
}

#[test]
fn a_prompt_is_trained_with_goes_on_after_a_kill_and_is_recorded() {
    let world = World::with("--finetune-gpt2 --prompt 红黄");
    run(&mut world.train("whole"), 0);
    kill_and_end(&world);
    compare(&world, "killed");
    let losses = metric(&world.out("whole"), "train_loss");
    assert!(losses.last().unwrap().1 < losses[0].1, "{losses:?}");
    // The model was trained on what it is asked: other words before the caption are another loss from the first step on.
    let plain = World::new();
    run(plain.train("plain").args(["--max-steps", "1"]), 0);
    assert_ne!(metric(&plain.out("plain"), "train_loss")[0].1, losses[0].1);
    let manifest = fs::read_to_string(world.out("whole").join("last/clipcap.json")).unwrap();
    assert!(manifest.contains("\"prompt\": \"红黄\""), "{manifest}");
    let captions = |name: &str, flags: &[&str]| {
        let mut command = clipcap();
        command.args(["caption", "--quiet", "--overwrite", "--max-new-tokens", "12", "--no-loop-guard", "--embeddings"]);
        command.arg(world.folder.path().join("embeddings")).arg("--model").arg(world.out("whole").join("last"));
        let table = world.out(name);
        run(command.arg("--out").arg(&table).args(flags), 0);
        crate::common::columns(&table, &["caption"])
    };
    let own = captions("own.parquet", &[]);
    assert_eq!(own, captions("said.parquet", &["--prompt", "红黄"]));
    assert_ne!(own, captions("none.parquet", &["--prompt", ""]));
}

#[test]
fn self_critical_runs_go_on_to_the_same_bytes_too() {
    let world = World::of(
        "--finetune-gpt2 --objective scst --batch-size 10 --samples 5 --epochs 4 --save-steps 2 --eval-steps 3 --cider-images 4",
    );
    run(&mut world.train("whole"), 0);
    let out = world.out("killed");
    kill_and_finish(&world, &[(2, 0), (6, 30), (12, 5)]);
    for name in ["reward", "reward_spread", "dev_cider"] {
        let values = metric(&world.out("whole"), name);
        assert!(!values.is_empty() && values == metric(&out, name), "{name}");
    }
    for file in ["samples.jsonl", "index.html"] {
        assert_eq!(
            fs::read_to_string(world.out("whole").join(file)).unwrap(),
            fs::read_to_string(out.join(file)).unwrap(),
            "{file}"
        );
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let world = World::new();
    let out = world.out("full");
    // A limit on the size of files stands for the disk: the parameters' file does not fit.
    let mut child = world.start("full");
    wait_for(&out.join("checkpoints/step-6"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let before: Vec<_> = fs::read_dir(out.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!before.is_empty());
    let mut shell = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_clipcap");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"", program, "train"]).args(&world.flags);
    shell.env("CLIPCAP_RUNTIME", crate::common::checkout().join("runtime")).arg("--out").arg(&out);
    let output = run(&mut shell, 1);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("the last checkpoint is intact") && message.contains("safetensors"), "{message}");
    // Nothing is left of the attempt, and the run goes on once there is room.
    for entry in fs::read_dir(out.join("checkpoints")).unwrap().chain(fs::read_dir(&out).unwrap()) {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains(".tmp-"), "{name}");
    }
    run(&mut world.train("full"), 0);
    run(&mut world.train("whole"), 0);
    compare(&world, "full");
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let world = World::new();
    run(&mut world.train("whole"), 0);
    let out = world.out("damaged");
    let mut child = world.start("damaged");
    wait_for(&out.join("checkpoints/step-9"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut steps: Vec<u64> = fs::read_dir(out.join("checkpoints"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort();
    let newest = out.join(format!("checkpoints/step-{}/parameters.safetensors", steps.last().unwrap()));
    let whole = fs::read(&newest).unwrap();
    fs::write(&newest, &whole[..whole.len() / 2]).unwrap();
    let output = run(&mut world.train("damaged"), 0);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("the checkpoint before it"), "{message}");
    compare(&world, "damaged");
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_while_the_first_works() {
    let world = World::new();
    let mut child = world.start("run");
    wait_for(&world.out("run").join("checkpoints/step-3"), &mut child);
    let second = world.train("run").output().unwrap();
    if child.try_wait().unwrap().is_none() {
        assert_eq!(second.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&second.stderr).contains("another run"), "{second:?}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
