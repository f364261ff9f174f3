//! Little to work with: few open files, little memory. A command does its work or says what it needs, and leaves nothing half-made.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::common::run;
use crate::faults::{World, bytes};

/// The command under a shell's `ulimit`. One that waits for ever fails here and not where the patience of a whole test run ends.
fn limited(world: &World, limit: &str, words: &[&str], place: &Path) -> Output {
    let plain = world.command(words, place);
    let mut shell = std::process::Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("ulimit {limit} && exec timeout --signal=KILL 120 \"$0\" \"$@\""))
        .arg(plain.get_program())
        .args(plain.get_args());
    shell.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(place);
    // Printing a backtrace takes memory too.
    let output = shell.env("RUST_BACKTRACE", "1").output().unwrap();
    assert!(output.status.code() != Some(137), "{words:?} under {limit} had not ended after two minutes");
    output
}

/// A world with a table, a dataset and a finished job, and commands that read them; those that need a model are in front.
fn commands(world: &World) -> Vec<(&'static str, Vec<&'static str>)> {
    world.with_embeddings();
    let caption = ["caption", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--out", "table.parquet"];
    run(&mut world.command(&caption, world.folder.path()), 0);
    let plan =
        ["plan", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--shard-size", "3", "--job", "JOB"];
    run(&mut world.command(&plan, world.folder.path()), 0);
    run(&mut world.command(&["caption", "--job", "JOB", "--next=all"], world.folder.path()), 0);
    let evaluate = ["evaluate", "--predictions", "TABLE", "--references", "CAPTIONS", "--tokens", "char", "--out", "scores.json"];
    vec![
        (
            "caption",
            vec!["caption", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--out", "out.parquet"],
        ),
        ("embed", vec!["embed", "--images", "IMAGES", "--model", "MODEL", "--device", "cpu", "--out", "out"]),
        ("prepare", vec!["prepare", "--captions", "CAPTIONS", "--images", "IMAGES", "--with-images", "--out", "out"]),
        ("stats", vec!["stats", "DATASET", "--units", "char", "--out", "out"]),
        ("evaluate", evaluate.to_vec()),
        ("report", vec!["report", "TABLE", "--references", "CAPTIONS", "--images", "IMAGES", "--out", "out.html"]),
        ("show", vec!["show", "TABLE"]),
        ("merge", vec!["merge", "JOB", "--out", "out.parquet"]),
        ("export", vec!["export", "TABLE", "--images", "IMAGES", "--to", "webdataset", "--out", "out"]),
    ]
}

#[test]
fn twenty_open_files_are_enough() {
    let world = World::new();
    for (name, words) in commands(&world) {
        let (free, few) = (world.folder.path().join(format!("{name}-free")), world.folder.path().join(format!("{name}-few")));
        fs::create_dir(&free).unwrap();
        fs::create_dir(&few).unwrap();
        run(&mut world.command(&words, &free), 0);
        let output = limited(&world, "-n 20", &words, &few);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(bytes(&free, &[]) == bytes(&few, &[]), "{name}: other bytes");
    }
}

/// With next to none a plain error says what is missing, nothing is left half-made, and the same command ends well later.
#[test]
fn with_too_few_open_files_the_error_is_plain() {
    let world = World::new();
    for (name, words) in commands(&world) {
        for files in [4, 6, 8] {
            let place = world.folder.path().join(format!("{name}-{files}"));
            fs::create_dir(&place).unwrap();
            let output = limited(&world, &format!("-n {files}"), &words, &place);
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(!told.contains("panicked") && output.status.code().is_some_and(|code| code <= 3), "{name}, {files}: {told}");
            run(&mut world.command(&words, &place), 0);
        }
    }
}

/// 600 MB of addresses are enough for what needs no model.
#[test]
fn little_memory_is_enough_without_a_model() {
    let world = World::new();
    for (name, words) in commands(&world).into_iter().skip(2) {
        let place = world.folder.path().join(name);
        fs::create_dir(&place).unwrap();
        let output = limited(&world, "-v 614400", &words, &place);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// With too little memory a command may not get through; then it says so, by its own exit status. Below what the C library and others need
/// for themselves (some 200 MB of addresses) they end the program as they like, and all the same nothing is half-made: the same command ends
/// with the same bytes.
#[test]
fn without_memory_nothing_is_half_made() {
    let world = World::new();
    for (name, words) in commands(&world) {
        let free = world.folder.path().join(format!("{name}-free"));
        fs::create_dir(&free).unwrap();
        run(&mut world.command(&words, &free), 0);
        let wanted = bytes(&free, &[]);
        for kib in [120_000, 160_000, 300_000] {
            let place = world.folder.path().join(format!("{name}-{kib}"));
            fs::create_dir(&place).unwrap();
            let output = limited(&world, &format!("-v {kib}"), &words, &place);
            let told = String::from_utf8_lossy(&output.stderr);
            let ended = output.status.code();
            let is_plain = ended.is_some_and(|code| code <= 3) && !told.contains("panicked");
            assert!(is_plain || kib < 200_000, "{name}, {kib}: {ended:?}: {told}");
            run(&mut world.command(&words, &place), 0);
            let mut found = bytes(&place, &[]);
            // As after a kill, nobody was there to remove it.
            found.retain(|name, _| !name.contains(".tmp-"));
            let other: Vec<_> = wanted.keys().chain(found.keys()).filter(|n| wanted.get(*n) != found.get(*n)).collect();
            assert!(other.is_empty(), "{name}, {kib}: other bytes in {other:?}");
        }
    }
}
