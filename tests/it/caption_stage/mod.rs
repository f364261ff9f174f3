//! The caption stage with a captioner that can be foretold: every file accounted for, every result kept, the same bytes always.

mod crash;
mod fake;
mod formats;
mod jobs;
mod keep;
mod memory;
mod only;
mod reuse;
mod tars;

use std::fs::{self, File};

use self::fake::{Fake, bytes, caption, errors, manifest, picture, pictures, rows, settings, with};
use crate::common::beside;
use clipcap::dataset::{LeftOut, Wanted};
use clipcap::pipeline::{Interrupt, WorkLock};
use clipcap::stages::Outcome;
use serde_json::json;

#[test]
fn every_file_is_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("图片"), folder.path().join("out.parquet"));
    pictures(&images, 7);
    picture(&images.join("a b/一只 猫.png"), 100);
    picture(&images.join("line\nbreak.png"), 101);
    // An image under another name, and things that are none.
    fs::rename(images.join("a/0004.png"), images.join("a/really.dat")).unwrap();
    fs::write(images.join("notes.txt"), "no image").unwrap();
    fs::write(images.join("empty"), "").unwrap();
    // Called images, and unreadable.
    fs::write(images.join("empty.jpg"), "").unwrap();
    fs::write(images.join("text.jpg"), "this is text").unwrap();
    let whole = fs::read(images.join("b/0006.png")).unwrap();
    fs::write(images.join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    fs::create_dir(images.join("folder.jpg")).unwrap();
    std::os::unix::fs::symlink("nowhere", images.join("broken.jpg")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(images.join("pipe.jpg")).status().unwrap().success());
    let mut huge = whole.clone();
    huge[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    let crc = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    fs::write(images.join("huge.png"), &huge).unwrap();

    let report = caption(&settings(&images, &out), &Fake::new(4)).unwrap();
    assert_eq!(report.outcome, Outcome::SomeFailed);
    let reasons = [
        ("broken.jpg", "vanished"),
        ("cut.png", "truncated"),
        ("empty.jpg", "empty"),
        ("huge.png", "too_large"),
        ("pipe.jpg", "unreadable"),
        ("text.jpg", "unsupported_format"),
    ];
    let reasons = reasons.map(|(path, reason)| (path.to_string(), reason.to_string()));
    assert_eq!(errors(&folder.path().join(".clipcap/out.errors.parquet")), reasons.into_iter().collect());
    let manifest = manifest(&folder.path().join(".clipcap/out.manifest.json"));
    assert_eq!(manifest["counts"], json!({"found": 17, "captioned": 9, "failed": 6, "skipped": 2}));
    assert_eq!(manifest["clipcap.format"], "captions/1");
    let rows = rows(&out);
    assert_eq!(rows.len(), 18);
    let paths: Vec<_> = rows.iter().step_by(2).map(|row| row[1].as_str()).collect();
    let mut wanted = ["a/0001.png", "a/really.dat", "a b/一只 猫.png", "b/0000.png", "b/0003.png", "b/0006.png"].to_vec();
    wanted.extend(["c/d/0002.png", "c/d/0005.png", "line%0Abreak.png"]);
    assert_eq!(paths, wanted);
    assert_eq!(rows[4][0], "a b/一只 猫");
    assert_eq!((rows[2][0].as_str(), rows[2][3].as_str(), rows[3][3].as_str()), ("a/really", "0", "1"));
    assert_eq!(rows[2][2], clipcap::files::ContentHash::of_file(&images.join("a/really.dat")).unwrap().to_string());
    assert!(!folder.path().join("out.parquet.work").exists());
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".clipcap", "out.parquet", "图片"]);
}

/// CRC-32 as PNG has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

#[test]
fn batch_size_threads_and_place_change_no_byte_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 150);
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    let moved = folder.path().join("elsewhere/deep");
    fs::create_dir_all(moved.parent().unwrap()).unwrap();
    let mut first = None;
    for (batch_size, threads, root) in [(1, 1, &images), (4, 2, &images), (64, 3, &images), (7, 8, &moved)] {
        if root == &moved {
            fs::rename(&images, &moved).unwrap();
        }
        let out = folder.path().join(format!("{batch_size}/out.parquet"));
        let settings = with(settings(root, &out), |run| {
            run.batch_size = batch_size;
            run.threads = threads;
        });
        let fake = Fake::new(batch_size);
        assert_eq!(caption(&settings, &fake).unwrap().outcome, Outcome::SomeFailed);
        assert!(fake.encoded.lock().unwrap().iter().all(|&size| size <= batch_size));
        let mut files = bytes(out.parent().unwrap());
        assert_eq!(
            manifest(&out.with_file_name(".clipcap/out.manifest.json"))["recorded"],
            json!({"batch_size": batch_size, "threads": threads, "files": {"hidden": false, "include": [], "exclude": []}})
        );
        files.remove(".clipcap/out.manifest.json");
        assert!(&files == first.get_or_insert_with(|| files.clone()));
    }
}

#[test]
fn the_runs_own_files_are_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 3);
    for out in ["captions.parquet", "parts/"] {
        let out = images.join(out);
        for hidden in [false, true] {
            let settings = settings(&images, &out);
            let report =
                caption(&with(settings, |run| run.wanted = Wanted { hidden, ..Wanted::default() }), &Fake::new(4)).unwrap();
            let others = if out.ends_with("parts") { 1 } else { 0 };
            assert_eq!((report.report.counts.succeeded, report.report.counts.skipped), (3, others), "{}", out.display());
            assert_eq!(report.left_out, LeftOut::default());
        }
    }
    // The manifest of a folder would have the name that the table's has.
    let error = caption(&settings(&images, &images.join("captions/")), &Fake::new(4)).unwrap_err();
    assert!(error.to_string().contains("captions.parquet"), "{error}");
}

#[test]
fn an_errors_table_is_there_where_something_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 3);
    fs::write(images.join("bad.png"), "bad").unwrap();
    caption(&settings(&images, &out), &Fake::new(4)).unwrap();
    assert_eq!(errors(&beside(&out, "errors.parquet")).len(), 1);
    fs::remove_file(images.join("bad.png")).unwrap();
    let report = caption(&settings(&images, &out), &Fake::new(4)).unwrap();
    assert!(!beside(&out, "errors.parquet").exists());
    assert_eq!(report.summary().1["errors"], serde_json::Value::Null);
}

#[test]
fn a_table_of_an_earlier_version_is_reused_and_what_belongs_to_it_moved() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 3);
    fs::write(images.join("bad.png"), "bad").unwrap();
    for name in ["t.parquet", "parts/"] {
        let out = folder.path().join(name);
        caption(&settings(&images, &out), &Fake::new(4)).unwrap();
        let before = bytes(folder.path());
        for what in ["manifest.json", "errors.parquet"] {
            let old = if name.ends_with('/') { out.join(what) } else { out.with_extension(what) };
            fs::rename(beside(&out, what), old).unwrap();
        }
        assert_eq!(caption(&settings(&images, &out), &Fake::new(4)).unwrap().report.counts.computed, 0);
        assert!(bytes(folder.path()) == before, "{name}");
    }
}

#[test]
fn no_image_is_an_error_and_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    fs::create_dir(&images).unwrap();
    fs::write(images.join("a.txt"), "a").unwrap();
    let error = caption(&settings(&images, &out), &Fake::new(4)).unwrap_err();
    assert!(error.to_string().contains("no image found (1 files"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    pictures(&images, 3);
    caption(&settings(&images, &out), &Fake::new(4)).unwrap();
    let before = bytes(folder.path());
    for name in ["a", "b", "c"] {
        fs::rename(images.join(name), folder.path().join(format!("away-{name}"))).unwrap();
    }
    assert!(caption(&settings(&images, &out), &Fake::new(4)).is_err());
    for name in ["a", "b", "c"] {
        fs::rename(folder.path().join(format!("away-{name}")), images.join(name)).unwrap();
    }
    assert!(bytes(folder.path()) == before);
    let error = caption(&settings(&folder.path().join("nowhere"), &out), &Fake::new(4)).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn too_many_failures_are_told_by_the_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 3);
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    let mut settings = settings(&images, &out);
    for (rate, outcome) in [(0.25, Outcome::SomeFailed), (0.24, Outcome::TooManyFailed), (0.0, Outcome::TooManyFailed)] {
        settings.run.max_error_rate = rate;
        assert_eq!(caption(&settings, &Fake::new(4)).unwrap().outcome, outcome);
        assert_eq!(rows(&out).len(), 6);
    }
}

#[test]
fn a_second_run_is_refused_and_names_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 3);
    let lock = WorkLock::acquire(&folder.path().join("out.parquet.work")).unwrap();
    let error = caption(&settings(&images, &out), &Fake::new(4)).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert!(!out.exists());
    drop(lock);
    assert_eq!(caption(&settings(&images, &out), &Fake::new(4)).unwrap().outcome, Outcome::Complete);
}

#[test]
fn an_interrupt_finishes_the_window_and_the_same_command_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 300);
    fs::write(images.join("a/bad.jpg"), "bad").unwrap();
    let whole = folder.path().join("whole/out.parquet");
    caption(&settings(&images, &whole), &Fake { window_shows: true, ..Fake::new(4) }).unwrap();
    let parts = folder.path().join("parts/out.parquet");
    let fake = Fake { window_shows: true, ..Fake::new(4) };
    let stopped = Fake { interrupt_at: Some((100, Interrupt::default())), ..fake.clone() };
    let report = caption(&settings(&images, &parts), &stopped).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert_eq!(report.report.counts.computed, 128, "two windows of 64");
    assert!(!parts.exists());
    let report = caption(&settings(&images, &parts), &fake).unwrap();
    assert_eq!((report.outcome, report.report.counts.computed), (Outcome::SomeFailed, 172));
    assert_eq!(fake.num_captioned(), 300);
    assert!(bytes(whole.parent().unwrap()) == bytes(parts.parent().unwrap()));
}

#[test]
fn a_model_that_fails_ends_the_run_with_its_error_and_keeps_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 200);
    let error = caption(&settings(&images, &out), &Fake { fail_at: Some(150), ..Fake::new(4) }).unwrap_err();
    assert!(format!("{error:#}").contains("the device is gone"), "{error:#}");
    let fake = Fake::new(4);
    assert_eq!(caption(&settings(&images, &out), &fake).unwrap().outcome, Outcome::Complete);
    assert_eq!(fake.num_captioned(), 200 - 128);
}

#[test]
fn a_disk_that_refuses_ends_the_run_with_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("file/out.parquet"));
    pictures(&images, 3);
    File::create(folder.path().join("file")).unwrap();
    let error = caption(&settings(&images, &out), &Fake::new(4)).unwrap_err();
    assert!(format!("{error:#}").contains("/file: it is a file"), "{error:#}");
}
