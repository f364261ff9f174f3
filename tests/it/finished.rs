//! What `prepare` and `stats` do where an output is there already: the same is told to be finished, another is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::common::{clipcap, run};

/// Every file's content and the time it was written.
fn snapshot(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let written = entry.metadata().unwrap().modified().unwrap();
            (entry.file_name().into_string().unwrap(), (fs::read(entry.path()).unwrap(), written))
        })
        .collect()
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    fs::write(&path, text).unwrap();
    path
}

/// Runs a command that ends at `out`, and gives what it said on stderr.
fn said(args: &[&str], flags: &[&str], status: i32) -> String {
    let output = run(clipcap().args(args).args(flags), status);
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn a_finished_dataset_stays_and_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let images = root.join("images");
    fs::create_dir(&images).unwrap();
    let picture = |name: &str, shade: u8| {
        image::RgbImage::from_pixel(20, 10, image::Rgb([shade, 0, 0])).save(images.join(name)).unwrap();
    };
    picture("1.png", 10);
    let captions = write(root.join("c.tsv"), "1\t一只狗\n");
    let list = write(root.join("test.txt"), "1\n");
    let out = root.join("set");
    let listed = format!("test={}", list.display());
    let args = ["prepare", "--images", images.to_str().unwrap(), "--captions", captions.to_str().unwrap(), "--with-images"];
    let args = [&args[..], &["--split-list", &listed, "--out", out.to_str().unwrap()]].concat();
    said(&args, &[], 0);
    let first = snapshot(&out);

    // The same again, with more threads: nothing is written.
    let told = said(&args, &["--threads", "3"], 0);
    assert!(told.contains("is finished") && told.contains("1 captions of 1 images"), "{told}");
    assert_eq!(snapshot(&out), first);

    // Other settings, and then each kind of input.
    let told = said(&args, &["--lint"], 1);
    assert!(told.contains("--lint (was not given)") && told.contains("--overwrite"), "{told}");
    write(captions.clone(), "1\t一只猫\n");
    assert!(said(&args, &[], 1).contains("other content of --captions"));
    write(captions.clone(), "1\t一只狗\n");
    picture("1.png", 11);
    assert!(said(&args, &[], 1).contains("other content of --images"));
    picture("1.png", 10);
    write(list.clone(), "2\n");
    assert!(said(&args, &[], 1).contains("other content of --split-list"));
    assert_eq!(snapshot(&out), first);
    assert!(!root.join("set.work").exists());

    said(&args, &["--overwrite"], 0);
    assert_ne!(snapshot(&out)["captions.parquet"], first["captions.parquet"]);
    // A table that went missing is made again without being asked.
    fs::remove_file(out.join("images-00000.parquet")).unwrap();
    said(&args, &[], 0);
    assert!(out.join("images-00000.parquet").is_file());
}

#[test]
fn finished_statistics_stay_and_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = write(folder.path().join("c.tsv"), "1\t一只狗\n1\t两只猫\n");
    let out = folder.path().join("stats");
    let args = ["--json", "stats", input.to_str().unwrap(), "--out", out.to_str().unwrap(), "--units"];
    let args = |units: &'static str| [&args[..], &[units]].concat();
    let json = run(clipcap().args(args("char,word")), 0).stdout;
    let first = snapshot(&out);
    let again = run(clipcap().args(args("char,word")), 0);
    assert_eq!((again.stdout, snapshot(&out)), (json, first.clone()));
    assert!(said(&args("char"), &[], 1).contains("--overwrite"));
    write(input.clone(), "1\t一只狗\n");
    assert!(said(&args("char,word"), &[], 1).contains("another input"));
    assert_eq!(snapshot(&out), first);
    said(&args("char"), &["--overwrite"], 0);
    assert!(out.join("characters.png").is_file() && !out.join("words.png").exists());
    // Files of others are not taken for an output.
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    write(taken.join("mine.txt"), "mine");
    assert!(said(&["stats", input.to_str().unwrap(), "--out", taken.to_str().unwrap()], &[], 1).contains("not made by clipcap"));
}
