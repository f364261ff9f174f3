//! File systems as they are elsewhere: one inode number for all folders, no locks, names that are too long, names with commands to terminals.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output};

use clipcap::pipeline::Output as Table;
use image::RgbImage;

use crate::common::cases;

fn clipcap() -> Command {
    Command::new(env!("CARGO_BIN_EXE_clipcap"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two folders with a picture each, and a caption for each picture.
fn two_folders(root: &Path) {
    for name in ["one", "two"] {
        fs::create_dir_all(root.join("photos").join(name)).unwrap();
        RgbImage::new(3, 2).save(root.join("photos").join(name).join(format!("{name}.png"))).unwrap();
    }
    fs::write(root.join("captions.tsv"), "one.png\t一只猫\ntwo.png\t一只狗\n").unwrap();
}

fn prepare(root: &Path, out: &str) -> Command {
    let mut command = clipcap();
    command.arg("prepare").arg("--images").arg(root.join("photos")).arg("--captions").arg(root.join("captions.tsv"));
    command.arg("--json").arg("--out").arg(root.join(out));
    command
}

/// Builds the shims that stand for such file systems; none where there is no C compiler.
fn shims(folder: &Path) -> Option<std::path::PathBuf> {
    let source = cases("shims.c");
    let library = folder.join("shims.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    built.is_ok_and(|status| status.success()).then_some(library)
}

#[test]
fn folders_that_share_an_inode_number_are_all_read() {
    let root = tempfile::tempdir().unwrap();
    two_folders(root.path());
    let Some(shims) = shims(root.path()) else { return };
    let run = prepare(root.path(), "dataset").env("LD_PRELOAD", shims).env("SHIM_INODE", "1").output().unwrap();
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let summary: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(summary["counts"]["images_by_status"]["ok"], 2, "{summary}");
}

#[test]
fn a_file_system_without_locks_works_with_a_warning() {
    let root = tempfile::tempdir().unwrap();
    two_folders(root.path());
    let Some(shims) = shims(root.path()) else { return };
    let run = prepare(root.path(), "dataset").env("LD_PRELOAD", shims).env("SHIM_NOLOCK", "1").output().unwrap();
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert!(stderr(&run).contains("no locks"), "{}", stderr(&run));
}

#[test]
fn a_name_that_is_too_long_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let check = |length: usize| {
        let name = format!("{}.parquet", "x".repeat(length - 8));
        Table::file(&folder.path().join(name)).check_kind()
    };
    assert!(check(200).is_ok());
    // 241 bytes are a name, and those of the errors table beside it are 256.
    for length in [249, 250, 260] {
        let error = check(length).unwrap_err().to_string();
        assert!(error.contains("too long") && error.contains("bytes"), "{length}: {error}");
    }
    two_folders(folder.path());
    let run = prepare(folder.path(), &"d".repeat(252)).output().unwrap();
    assert_ne!(run.status.code(), Some(0));
    assert!(stderr(&run).contains("too long"), "{}", stderr(&run));
}

/// A file name or a caption that would clear the screen or write a title is printed as text.
#[test]
fn nothing_commands_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"a\x1b[2J\x1b]0;x\x07\xC2\x9b31m.parquet");
    for arguments in [vec!["show".as_ref(), name], vec!["stats".as_ref(), name, "--out".as_ref(), "o".as_ref()], vec![name]] {
        let run = clipcap().current_dir(&folder).args(arguments).output().unwrap();
        assert_ne!(run.status.code(), Some(0));
        let text = stderr(&run) + &String::from_utf8_lossy(&run.stdout);
        assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
    // Where a caption is quoted: a bad line of a captions file.
    two_folders(folder.path());
    fs::write(folder.path().join("captions.tsv"), "one.png\t\x1b[31m红\x1b[0m\nno tab \x1b]0;x\x07\n").unwrap();
    let run = prepare(folder.path(), "dataset").output().unwrap();
    assert!(!stderr(&run).chars().any(|c| c.is_control() && c != '\n'), "{:?}", stderr(&run));
    let table = folder.path().join("dataset/captions.parquet");
    for flags in [&["--json"][..], &[]] {
        let run = clipcap().arg("show").arg(&table).args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}
