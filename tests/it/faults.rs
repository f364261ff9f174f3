//! A disk that fails, fills up or goes away at any write of any command: an error that says so, and the same command again ends with the
//! bytes it would have had.
//!
//! A small library that is loaded before the program makes its n-th call on the output fail (`tests/fixtures/faults.c`). Here some calls of
//! each command fail; with CLIPCAP_FAULTS=all (`scripts/faults.sh`) every one of them does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{checkout, clipcap, run, scenes, tiny_bundle};

/// What goes wrong: a name, FAULT_ERRNO, and whether it stays wrong.
const FAULTS: [(&str, i32, bool); 4] =
    [("a full disk", 28, true), ("a bad sector", 5, false), ("half a write", 0, false), ("a kill", -1, false)];

struct World {
    folder: tempfile::TempDir,
    library: PathBuf,
    images: PathBuf,
    model: PathBuf,
    captions: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("faults.so");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(checkout().join("tests/fixtures/faults.c"))
            .arg("-ldl");
        run(&mut compiler, 0);
        let (images, model) = (scenes(folder.path(), 6), tiny_bundle(folder.path()));
        let mut names: Vec<String> =
            fs::read_dir(&images).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let captions = folder.path().join("captions.jsonl");
        let lines: String =
            names.iter().map(|name| format!("{{\"file_name\": \"{name}\", \"caption\": \"一个红色的圆\"}}\n")).collect();
        fs::write(&captions, lines).unwrap();
        Self { folder, library, images, model, captions }
    }

    /// The command in a folder of its own.
    fn command(&self, words: &[&str], place: &Path) -> Command {
        let mut command = clipcap();
        for word in words {
            match *word {
                "IMAGES" => command.arg(&self.images),
                "MODEL" => command.arg(&self.model),
                "CAPTIONS" => command.arg(&self.captions),
                "DATASET" => command.arg(self.folder.path().join("dataset")),
                "EMBEDDINGS" => command.arg(self.folder.path().join("embeddings")),
                "TABLE" => command.arg(self.folder.path().join("table.parquet")),
                word => command.arg(word),
            };
        }
        command.current_dir(place);
        command
    }

    /// Fails at call after call until the command gets through, and gives the same command again after each.
    fn sweep(&self, name: &str, words: &[&str], differs: &[&str]) {
        let place = |name: String| {
            let place = self.folder.path().join(name);
            fs::create_dir(&place).unwrap();
            place
        };
        let whole = place(format!("{name}-whole"));
        run(&mut self.command(words, &whole), 0);
        let wanted = bytes(&whole, differs);
        let everywhere = std::env::var_os("CLIPCAP_FAULTS").is_some();
        for (at_fault, (fault, errno, stays)) in FAULTS.iter().enumerate() {
            // All calls; or ever fewer, other ones for each fault.
            let mut at = if everywhere { 1 } else { 1 + at_fault as u64 };
            loop {
                let here = place(format!("{name}-{errno}-{at}"));
                let hit = here.with_extension("hit");
                let mut command = self.command(words, &here);
                command.env("LD_PRELOAD", &self.library).env("FAULT_UNDER", &here).env("FAULT_AT", at.to_string());
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
                if !hit.exists() {
                    break;
                }
                fs::remove_file(&hit).unwrap();
                at = if everywhere { at + 1 } else { at * 3 };
            }
        }
    }
}

/// Every file under a folder, by name, but those that are not to be the same (times).
fn bytes(folder: &Path, differs: &[&str]) -> BTreeMap<String, Vec<u8>> {
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
#[ignore = "hundreds of writes each: scripts/faults.sh runs it"]
fn models_and_runs() {
    let world = World::new();
    run(
        &mut world.command(&["prepare", "--captions", "CAPTIONS", "--images", "IMAGES", "--out", "dataset"], world.folder.path()),
        0,
    );
    let embed = ["embed", "--images", "IMAGES", "--model", "MODEL", "--device", "cpu", "--out", "embeddings"];
    run(&mut world.command(&embed, world.folder.path()), 0);
    // A bundle that is there is not made again: a fault behind the end is no fault.
    let init = ["model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--overwrite", "--out", "out"];
    world.sweep("init", &init, &[]);
    world.sweep("quantize", &["model", "quantize", "MODEL", "--overwrite", "--out", "out"], &[]);
    let train =
        ["train", "--dataset", "DATASET", "--embeddings", "EMBEDDINGS", "--model", "MODEL", "--device", "cpu", "--out", "out"];
    let short =
        ["--epochs", "3", "--batch-size", "2", "--save-steps", "2", "--dev-size", "1", "--sample-images", "0", "--dropout", "0"];
    // Times are written there, and what a run that was stopped has written stays.
    world.sweep("train", &[&train[..], &short].concat(), &["tensorboard", "metrics.parquet", "lock"]);
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
