//! `clipcap run`, driven as a program: what runs, what is skipped, and why.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{clipcap, run, scenes, tiny_bundle};
use clipcap::files::ContentHash;
use serde_json::Value;

/// Rendered pictures with a caption each, a small random model, and a pipeline over them in the folder.
struct World {
    folder: tempfile::TempDir,
    file: PathBuf,
    captions: PathBuf,
    images: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (images, model) = (scenes(root, 6), tiny_bundle(root));
        let mut names: Vec<String> =
            fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let captions = root.join("captions-train.txt");
        let lines: String = names.iter().map(|name| format!("{}#zhb#0 一个 圆\n", name.split('.').next().unwrap())).collect();
        fs::write(&captions, lines).unwrap();
        let file = root.join("pipeline.toml");
        let text = format!(
            "[pipeline]\nout = {out:?}\n[prepare]\nimages = {images:?}\ncaptions = [{captions:?}]\n\
             [embed]\ndataset = \"@prepare\"\nimages = {images:?}\nmodel = {model:?}\ndevice = \"cpu\"\n\
             [stats]\ninput = \"@prepare\"\nunits = \"char\"\n",
            out = root.join("out"),
        );
        fs::write(&file, text).unwrap();
        Self { file, captions, images, folder }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join("out").join(name)
    }

    /// What ran, by stage, and why.
    fn go(&self, flags: &[&str], status: i32) -> Vec<(String, String)> {
        let output = run(clipcap().args(["--json", "run"]).arg(&self.file).args(flags), status);
        // Every stage tells its own result; the pipeline's comes last.
        let text = String::from_utf8(output.stdout).unwrap();
        let told: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let ran = |stage: &Value| stage["ran"] == true || stage["would_run"] == true;
        let stages = told["stages"].as_array().unwrap().iter().filter(|stage| ran(stage));
        let word = |value: &Value| value.as_str().unwrap().to_string();
        stages.map(|stage| (word(&stage["stage"]), word(&stage["reason"]))).collect()
    }

    fn names(&self, flags: &[&str]) -> Vec<String> {
        self.go(flags, 0).into_iter().map(|(name, _)| name).collect()
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn only_what_depends_on_a_change_runs_again() {
    let world = World::new();
    assert_eq!(world.names(&["--dry-run"]), ["prepare", "embed", "stats"]);
    assert!(!world.out("prepare").exists());
    assert_eq!(world.names(&[]), ["prepare", "embed", "stats"]);
    assert!(world.go(&[], 0).is_empty());

    // One caption edited: the embeddings depend on none.
    let part = world.out("embed/part-00000.parquet");
    let embeddings = (fs::read(&part).unwrap(), fs::metadata(&part).unwrap().modified().unwrap());
    edit(&world.captions, "一个 圆", "一个 红色 的 圆");
    let ran = world.go(&[], 0);
    assert_eq!(ran.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["prepare", "stats"], "{ran:?}");
    assert!(ran[0].1.contains("captions-train.txt changed") && ran[1].1.contains("captions.parquet changed"), "{ran:?}");
    assert_eq!((fs::read(&part).unwrap(), fs::metadata(&part).unwrap().modified().unwrap()), embeddings);

    // One picture replaced: its hash is in the dataset's list of images, and no caption changes.
    let mut pictures: Vec<PathBuf> = fs::read_dir(&world.images).unwrap().map(|entry| entry.unwrap().path()).collect();
    pictures.sort();
    fs::copy(&pictures[1], &pictures[0]).unwrap();
    assert_eq!(world.names(&[]), ["prepare", "embed"]);

    // Settings and force.
    assert_eq!(world.names(&["--set", "stats.bins=10"]), ["stats"]);
    assert_eq!(world.names(&["--set", "stats.bins=10", "--set", "embed.threads=1"]), [""; 0]);
    assert_eq!(world.names(&["--set", "stats.bins=10", "--force", "embed", "--until", "embed"]), ["embed"]);

    // Another model under the same name: nothing of what the old one made is kept, and nobody has to say so.
    let embeddings = fs::read(&part).unwrap();
    fs::remove_dir_all(world.folder.path().join("tiny")).unwrap();
    let mut init = clipcap();
    init.args([
        "model",
        "init",
        "--clip",
        "vit-tiny",
        "--gpt2",
        "gpt2-tiny",
        "--mapper",
        "mlp",
        "--seed",
        "4",
        "--quiet",
        "--out",
    ]);
    run(init.arg(world.folder.path().join("tiny")), 0);
    assert_eq!(world.names(&["--until", "embed"]), ["embed"]);
    assert_ne!(fs::read(&part).unwrap(), embeddings);
}

#[test]
fn an_output_that_was_changed_is_found_and_made_again() {
    let world = World::new();
    world.go(&["--until", "prepare"], 0);
    let table = world.out("prepare/captions.parquet");
    let whole = fs::read(&table).unwrap();
    fs::write(&table, &whole[..whole.len() / 2]).unwrap();
    let output = run(clipcap().arg("run").arg(&world.file).arg("--verify"), 1);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("output") && told.contains("changed") && told.contains("has not run"), "{told}");
    let ran = world.go(&["--until", "prepare"], 0);
    assert!(ran[0].1.contains("output was changed"), "{ran:?}");
    assert_eq!(fs::read(&table).unwrap(), whole);
    // A stage that looks for what it can reuse finds nothing in this.
    world.go(&[], 0);
    let (part, manifest) = (world.out("embed/part-00000.parquet"), world.out(".clipcap/embed.manifest.json"));
    let whole = fs::read(&part).unwrap();
    for damage in [&|| fs::write(&part, &whole[..300]).unwrap(), &|| fs::remove_file(&part).unwrap(), &|| {
        fs::write(&manifest, "{").unwrap()
    }] as [&dyn Fn(); 3]
    {
        damage();
        assert_eq!(world.names(&[]), ["embed"]);
        assert_eq!(fs::read(&part).unwrap(), whole);
        run(clipcap().arg("run").arg(&world.file).arg("--verify"), 0);
    }
}

#[test]
fn pictures_behind_links_count_and_outputs_among_them_do_not() {
    let world = World::new();
    let (beside, link) = (world.folder.path().join("beside"), world.images.join("more"));
    fs::create_dir(&beside).unwrap();
    std::os::unix::fs::symlink(&beside, &link).unwrap();
    let out = world.images.join("out");
    edit(&world.file, world.folder.path().join("out").to_str().unwrap(), out.to_str().unwrap());
    edit(&world.file, "dataset = \"@prepare\"\n", "");
    let first = fs::read_dir(&world.images).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_file()).unwrap();
    assert_eq!(world.names(&[]), ["prepare", "embed", "stats"]);
    assert!(world.go(&[], 0).is_empty());
    fs::copy(first, beside.join("new.png")).unwrap();
    let ran = world.go(&[], 0);
    assert!(ran.iter().any(|(name, _)| name == "embed"), "{ran:?}");
}

#[test]
fn a_key_may_have_the_value_that_its_flag_may_have() {
    let world = World::new();
    let flags = ["--until", "prepare", "--set", "prepare.near_duplicates=6", "--set", "prepare.fold_width=letters"];
    assert_eq!(world.names(&flags), ["prepare"]);
    let manifest: Value = serde_json::from_slice(&fs::read(world.out(".clipcap/prepare.manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["settings"]["near_duplicates"], &manifest["settings"]["fold_width"]), (&6.into(), &"letters".into()));
}

#[test]
fn unknown_keys_and_stages_are_refused_before_anything_runs() {
    let world = World::new();
    let says = |flags: &[&str], status: i32, text: &str| {
        let output = run(clipcap().arg("run").arg(&world.file).args(flags), status);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(text), "{said}");
    };
    says(&["--set", "stats.colour=red"], 2, "colour");
    says(&["--until", "train"], 2, "the stages are: prepare, embed, stats");
    assert!(!world.out("prepare").exists());
}

/// What an earlier version recorded of a folder's content.
fn hash_of(folder: &Path) -> String {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let line =
        |path: &PathBuf| format!("{}  {}\n", ContentHash::of_file(path).unwrap(), path.file_name().unwrap().to_str().unwrap());
    ContentHash::of(files.iter().map(line).collect::<String>()).to_string()
}

#[test]
fn outputs_of_an_earlier_version_are_taken_over() {
    let world = World::new();
    let stages = ["prepare", "embed", "stats"];
    world.go(&[], 0);
    let beside = world.out(".clipcap");
    let before: Vec<_> = stages.map(|stage| hash_of(&world.out(stage))).into();
    let made_by_an_earlier_version = || {
        for stage in stages {
            let out = world.out(stage);
            fs::rename(beside.join(format!("{stage}.manifest.json")), out.join("manifest.json")).unwrap();
            let record = fs::read(beside.join(format!("{stage}.stage.json"))).unwrap();
            let mut record: Value = serde_json::from_slice(&record).unwrap();
            record["output"] = hash_of(&out).into();
            fs::write(world.out(&format!("{stage}.stage.json")), record.to_string()).unwrap();
        }
        fs::rename(beside.join("content-hashes.json"), world.out("content-hashes.json")).unwrap();
        fs::remove_dir_all(&beside).unwrap();
    };
    made_by_an_earlier_version();
    assert!(world.names(&["--dry-run"]).is_empty() && !beside.exists());
    assert!(world.go(&[], 0).is_empty());
    assert_eq!(stages.map(|stage| hash_of(&world.out(stage))).to_vec(), before);
    assert!(beside.join("embed.manifest.json").is_file() && beside.join("embed.stage.json").is_file());
    assert!(!world.out("embed.stage.json").exists());
    assert!(world.go(&[], 0).is_empty());
    run(clipcap().arg("run").arg(&world.file).arg("--verify"), 0);
    // What was no longer right of it is made again, and only that.
    made_by_an_earlier_version();
    fs::remove_file(world.out("stats/lengths.parquet")).unwrap();
    assert_eq!(world.names(&["--dry-run"]), ["stats"]);
    assert_eq!(world.names(&[]), ["stats"]);
}
