//! A disk that fails, fills up or goes away at any write of any command: an error that says so, and the same command again ends with the
//! bytes it would have had.
//!
//! A small library that is loaded before the program makes its n-th call on the output fail (`tests/fixtures/faults.c`). Here some calls of
//! each command fail, spread over the whole run; with CLIPCAP_FAULTS=all (`scripts/faults.sh`) every one of them does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::golden::Golden;
use crate::common::{checkout, clipcap, run, scenes, tiny_bundle};

/// What goes wrong: a name, FAULT_ERRNO, and whether it stays wrong.
const FAULTS: [(&str, i32, bool); 4] =
    [("a full disk", 28, true), ("a bad sector", 5, false), ("half a write", 0, false), ("a kill", -1, false)];

/// Calls of each command that fail in each way, and one more.
const SAMPLES: u64 = 3;

/// Pictures, captions and a model, and a folder for what commands make of them.
pub struct World {
    pub folder: tempfile::TempDir,
    images: PathBuf,
    model: PathBuf,
    captions: PathBuf,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (images, model) = (scenes(folder.path(), 6), tiny_bundle(folder.path()));
        let mut names: Vec<String> =
            fs::read_dir(&images).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let captions = folder.path().join("captions.jsonl");
        let lines: String =
            names.iter().map(|name| format!("{{\"file_name\": \"{name}\", \"caption\": \"一个红色的圆\"}}\n")).collect();
        fs::write(&captions, lines).unwrap();
        Self { folder, images, model, captions }
    }

    /// A library of `tests/fixtures`, compiled.
    pub fn compiled(&self, name: &str) -> PathBuf {
        let library = self.folder.path().join(format!("{name}.so"));
        if !library.exists() {
            let mut compiler = Command::new("cc");
            compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library);
            run(compiler.arg(checkout().join(format!("tests/fixtures/{name}.c"))).arg("-ldl"), 0);
        }
        library
    }

    /// A training run of a few steps.
    pub const TRAIN: [&'static str; 21] = [
        "train",
        "--dataset",
        "DATASET",
        "--embeddings",
        "EMBEDDINGS",
        "--model",
        "MODEL",
        "--device",
        "cpu",
        "--epochs",
        "3",
        "--batch-size",
        "2",
        "--save-steps",
        "2",
        "--dev-size",
        "1",
        "--sample-images",
        "0",
        "--out",
        "out",
    ];

    /// Times are written there, and what a run that was stopped has written stays.
    pub const OF_TRAINING: [&'static str; 3] = ["tensorboard", "metrics.parquet", "lock"];

    /// Makes what [`TRAIN`](Self::TRAIN) reads.
    pub fn with_embeddings(&self) {
        let prepare = ["prepare", "--captions", "CAPTIONS", "--images", "IMAGES", "--out", "dataset"];
        run(&mut self.command(&prepare, self.folder.path()), 0);
        let embed = ["embed", "--images", "IMAGES", "--model", "MODEL", "--device", "cpu", "--out", "embeddings"];
        run(&mut self.command(&embed, self.folder.path()), 0);
    }

    /// The command in a folder of its own.
    pub fn command(&self, words: &[&str], place: &Path) -> Command {
        let mut command = clipcap();
        for word in words {
            match *word {
                "IMAGES" => command.arg(&self.images),
                "MODEL" => command.arg(&self.model),
                "CAPTIONS" => command.arg(&self.captions),
                "DATASET" => command.arg(self.folder.path().join("dataset")),
                "EMBEDDINGS" => command.arg(self.folder.path().join("embeddings")),
                "JOB" => command.arg(self.folder.path().join("job")),
                "TABLE" => command.arg(self.folder.path().join("table.parquet")),
                word => command.arg(word),
            };
        }
        command.current_dir(place);
        command
    }

    /// Fails at call after call until the command gets through, and gives the same command again after each. `differs` are parts of names of
    /// files that are not to be the same (times).
    fn sweep(&self, name: &str, words: &[&str], differs: &[&str]) {
        self.sweep_from(name, words, differs, |_| ());
    }

    /// As [`sweep`](Self::sweep), from what `prepare` puts into the folder.
    fn sweep_from(&self, name: &str, words: &[&str], differs: &[&str], prepare: impl Fn(&Path)) {
        let place = |name: String| {
            let place = self.folder.path().join(name);
            fs::create_dir(&place).unwrap();
            prepare(&place);
            place
        };
        let whole = place(format!("{name}-whole"));
        let library = self.compiled("faults");
        // Counted: no call has that number.
        let count = whole.with_extension("count");
        let mut command = self.command(words, &whole);
        command.env("LD_PRELOAD", &library).env("FAULT_UNDER", &whole).env("FAULT_AT", i64::MAX.to_string());
        run(command.env("FAULT_COUNT", &count), 0);
        let calls: u64 = fs::read_to_string(&count).unwrap().lines().map(|line| line.parse::<u64>().unwrap()).max().unwrap();
        assert!(calls > 3, "{name}: {calls} calls");
        let wanted = bytes(&whole, differs);
        let everywhere = std::env::var_os("CLIPCAP_FAULTS").is_some();
        for (at_fault, (fault, errno, stays)) in FAULTS.iter().enumerate() {
            // All calls and one behind the last; or some, other ones for each fault: one of the first, one of the last, and between them.
            let turn = at_fault as u64;
            let some = (1..SAMPLES).map(|i| (calls * i + turn * calls / 4) / SAMPLES);
            let numbers: BTreeSet<u64> = match everywhere {
                true => (1..=calls + 1).collect(),
                false => some.chain([1 + turn, calls.saturating_sub(turn)]).collect(),
            };
            for at in numbers {
                let here = place(format!("{name}-{errno}-{at}"));
                let hit = here.with_extension("hit");
                let mut command = self.command(words, &here);
                command.env("LD_PRELOAD", &library).env("FAULT_UNDER", &here).env("FAULT_AT", at.to_string());
                command.env("FAULT_ERRNO", errno.to_string()).env("FAULT_HIT", &hit);
                if *stays {
                    command.env("FAULT_STAYS", "1");
                }
                let output = command.output().unwrap();
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                let what = format!("{name}: {fault} at call {at}");
                assert!(!told.contains("panicked"), "{what}: {told}");
                let was_killed = *errno == -1 && output.status.code().is_none();
                let refused = output.status.code() == Some(1) && told.contains("rror");
                assert!(output.status.success() || was_killed || refused, "{what}: {:?}: {told}", output.status);
                if *errno == 0 || !hit.exists() {
                    assert!(output.status.success(), "{what}: {told}");
                }
                let again = self.command(words, &here).output().unwrap();
                let told_again = String::from_utf8_lossy(&again.stderr);
                assert!(again.status.success(), "{what}, and again: {told_again}\nbefore: {told}");
                // What nobody could remove stays under its temporary name.
                let mut found = bytes(&here, differs);
                if *errno == -1 || *errno == 5 {
                    found.retain(|name, _| !name.contains(".tmp-"));
                }
                let names: Vec<_> = wanted.keys().chain(found.keys()).filter(|n| wanted.get(*n) != found.get(*n)).collect();
                assert!(names.is_empty(), "{what}: other bytes in {names:?}\nbefore: {told}\nthen: {told_again}");
                fs::remove_dir_all(&here).unwrap();
                let _ = fs::remove_file(&hit);
            }
        }
    }
}

/// Every file under a folder, by name, but those that are not to be the same (times).
pub fn bytes(folder: &Path, differs: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if differs.iter().any(|differs| name.contains(differs)) {
            continue;
        }
        if path.is_dir() {
            files.extend(bytes(&path, differs).into_iter().map(|(inner, content)| (format!("{name}/{inner}"), content)));
            files.insert(name + "/", Vec::new());
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

#[test]
fn tables_of_captions() {
    let world = World::new();
    let words = ["caption", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--out"];
    world.sweep("table", &[&words[..], &["out.parquet"]].concat(), &[]);
    world.sweep("csv", &[&words[..], &["out.csv"]].concat(), &[]);
    world.sweep("parts", &[&words[..], &["out/"]].concat(), &[]);
}

#[test]
fn datasets_embeddings_and_statistics() {
    let world = World::new();
    let prepare = ["prepare", "--captions", "CAPTIONS", "--images", "IMAGES", "--out"];
    world.sweep("prepare", &[&prepare[..], &["out", "--with-images"]].concat(), &[]);
    let embed = ["embed", "--images", "IMAGES", "--model", "MODEL", "--device", "cpu", "--out", "out", "--format"];
    world.sweep("embed", &[&embed[..], &["parquet"]].concat(), &[]);
    world.sweep("npy", &[&embed[..], &["npy"]].concat(), &[]);
    world.sweep("stats", &["stats", "CAPTIONS", "--units", "char", "--out", "out"], &[]);
}

#[test]
fn models() {
    let world = World::new();
    // A bundle that is there is not made again: a fault behind the end is no fault.
    let init = ["model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--overwrite", "--out", "out"];
    world.sweep("init", &init, &[]);
    world.sweep("quantize", &["model", "quantize", "MODEL", "--overwrite", "--out", "out"], &[]);
}

#[test]
fn training() {
    let world = World::new();
    world.with_embeddings();
    world.sweep("train", &World::TRAIN, &World::OF_TRAINING);
}

#[test]
fn reports_and_scores() {
    let world = World::new();
    let caption = ["caption", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--out", "table.parquet"];
    run(&mut world.command(&caption, world.folder.path()), 0);
    world.sweep("report", &["report", "TABLE", "--images", "IMAGES", "--out", "out.html"], &[]);
    let evaluate = ["evaluate", "--predictions", "TABLE", "--references", "CAPTIONS", "--tokens", "char", "--out", "scores.json"];
    world.sweep("evaluate", &evaluate, &[]);
    world.sweep("scenes", &["scenes", "--num-images", "4", "--out", "out", "--overwrite"], &[]);
}

#[test]
fn exports_and_clip_scores() {
    let world = World::new();
    let caption = ["caption", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--out", "table.parquet"];
    run(&mut world.command(&caption, world.folder.path()), 0);
    for to in ["webdataset", "imagefolder", "parquet", "sidecar", "coco"] {
        world.sweep(to, &["export", "TABLE", "--images", "IMAGES", "--to", to, "--out", "out"], &[]);
    }
    let scorer = Golden::own().path("clip_text");
    let score = ["score", "TABLE", "--images", "IMAGES", "--device", "cpu", "--overwrite", "--out", "out.parquet", "--scorer"];
    world.sweep("score", &[&score[..], &[scorer.to_str().unwrap()]].concat(), &[]);
}

/// A plan, its shards one after another, and the table of them, each as one command.
#[test]
fn jobs() {
    let world = World::new();
    // Times and the host are recorded there; what nobody could remove of a claim stays until it is old.
    let differs = ["done", "claims", "lock", "plan.json"];
    let plan =
        ["plan", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--shard-size", "3", "--job", "job"];
    world.sweep("plan", &plan, &differs);
    let planned = |place: &Path| drop(run(&mut world.command(&plan, place), 0));
    world.sweep_from("worker", &["caption", "--job", "job", "--shard", "0-1"], &differs, planned);
    let captioned = |place: &Path| {
        planned(place);
        run(&mut world.command(&["caption", "--job", "job", "--shard", "0-1"], place), 0);
    };
    world.sweep_from("merge", &["merge", "job", "--out", "out.parquet"], &differs, captioned);
}
