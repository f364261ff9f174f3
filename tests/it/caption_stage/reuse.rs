//! Only what is new is computed.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clipcap::pipeline::Interrupt;
use clipcap::stages::Outcome;
use clipcap::stages::caption::CaptionSettings;

use super::fake::{Fake, bytes, caption, errors, manifest, picture, pictures, rows, settings, with};

/// How many images a run of these settings captions.
fn computed(settings: &CaptionSettings) -> usize {
    let fake = Fake::new(4);
    caption(settings, &fake).unwrap();
    fake.num_captioned()
}

#[test]
fn files_added_changed_renamed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 100);
    let settings = settings(&images, &out);
    assert_eq!(computed(&settings), 100);
    let first = bytes(folder.path());
    assert_eq!(computed(&settings), 0);
    assert!(bytes(folder.path()) == first);
    let table = |files: &std::collections::BTreeMap<String, Vec<u8>>| files["out.parquet"].clone();
    picture(&images.join("a/new.png"), 1000);
    assert_eq!(computed(&settings), 1);
    assert_eq!(rows(&out).len(), 202);
    fs::remove_file(images.join("a/new.png")).unwrap();
    assert_eq!(computed(&settings), 0);
    // The manifest says that a row went; given once more, the same command leaves the same bytes.
    assert_eq!(manifest(&folder.path().join(".clipcap/out.manifest.json"))["counts"]["dropped"], 1);
    let second = bytes(folder.path());
    assert!(table(&second) == table(&first));
    assert_eq!(computed(&settings), 0);
    assert!(bytes(folder.path()) == second);
    picture(&images.join("b/0003.png"), 1001);
    assert_eq!(computed(&settings), 1);
    fs::rename(images.join("a/0001.png"), images.join("z.png")).unwrap();
    assert_eq!(computed(&settings), 0);
    let table = rows(&out);
    assert_eq!((table[199][1].as_str(), table.len()), ("z.png", 200));
    // What is known stands beside what is new, in list order, as in a run from nothing.
    let fresh = folder.path().join("fresh.parquet");
    assert_eq!(computed(&with(settings, |run| run.out = fresh.clone())), 100);
    assert!(rows(&fresh) == table);
}

#[test]
fn each_distinct_content_is_computed_once() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 150);
    for (from, to) in [("a/0001.png", "a/copy.png"), ("a/0001.png", "c/d/9999.png"), ("b/0099.png", "z/last.png")] {
        fs::create_dir_all(images.join(to).parent().unwrap()).unwrap();
        fs::copy(images.join(from), images.join(to)).unwrap();
    }
    let fake = Fake::new(4);
    let report = caption(&settings(&images, &out), &fake).unwrap();
    let seen = fake.captioned.lock().unwrap().clone();
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (150, 150));
    let counts = report.report.counts;
    assert_eq!((counts.succeeded, counts.computed, counts.reused()), (153, 150, 3));
    let table = rows(&out);
    let of = |path: &str| table.iter().filter(|row| row[1] == path).map(|row| row[2..].to_vec()).collect::<Vec<_>>();
    assert_eq!(of("a/0001.png"), of("c/d/9999.png"));
    assert_eq!(of("b/0099.png"), of("z/last.png"));
}

fn age(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path);
        } else if let Ok(file) = fs::File::open(&path) {
            file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        }
    }
}

#[test]
fn unchanged_files_are_not_even_read_again_while_the_work_folder_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 100);
    fs::write(images.join("a/bad.png"), fs::read(images.join("a/0001.png")).unwrap().split_at(60).0).unwrap();
    age(&images);
    // Times of change cannot be set back: wait until the files are old enough to be believed.
    std::thread::sleep(Duration::from_millis(2200));
    let settings = with(settings(&images, &out), |run| run.keep_work = true);
    assert_eq!(computed(&settings), 100);
    let first = bytes(folder.path());
    // A file that may not be opened is only known from before. (Root opens everything: then this shows less.)
    let secret = images.join("b/0003.png");
    let failed = images.join("a/bad.png");
    let reading = |settings: &CaptionSettings| caption(settings, &Fake::new(4)).unwrap().report.timings.reading_s;
    assert_eq!(reading(&settings), 0.0, "nothing was read");
    assert_eq!(bytes(folder.path()).get("out.parquet"), first.get("out.parquet"));
    // Failures are remembered, too, until they are to be tried again.
    assert!(errors(&folder.path().join(".clipcap/out.errors.parquet")).contains_key("a/bad.png"));
    let again = with(settings.clone(), |run| run.retry_failed = true);
    assert!(reading(&again) > 0.0);
    fs::copy(&secret, &failed).unwrap();
    let fake = Fake::new(4);
    let report = caption(&settings, &fake).unwrap();
    assert_eq!((report.outcome, fake.num_captioned()), (Outcome::Complete, 0));
    assert!(folder.path().join("out.parquet.work").exists());
    // A touched file is read, and found to be the same.
    let file = fs::File::open(&secret).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    assert_eq!(computed(&settings), 0);
    assert_eq!(computed(&with(settings, |run| run.overwrite = true)), 100);
}

#[test]
fn what_other_settings_made_is_not_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 70);
    let plain = settings(&images, &out);
    caption(&plain, &Fake::new(4)).unwrap();
    let first = bytes(folder.path());
    let mut longer = plain.clone();
    longer.decoding.max_new_tokens = 20;
    let error = caption(&longer, &Fake::new(4)).unwrap_err().to_string();
    assert!(error.contains("--max-new-tokens 20 (was 67)") && error.contains("--overwrite"), "{error}");
    assert!(bytes(folder.path()) == first);
    let longer = with(longer, |run| run.overwrite = true);
    // Overwriting, interrupted and given again, goes on from where it was.
    let stopped = Fake { interrupt_at: Some((1, Interrupt::default())), ..Fake::new(4) };
    assert_eq!(caption(&longer, &stopped).unwrap().outcome, Outcome::Interrupted);
    assert_eq!(bytes(folder.path())["out.parquet"], first["out.parquet"]);
    let error = caption(&plain, &Fake::new(4)).unwrap_err().to_string();
    assert!(error.contains("unfinished work with other settings"), "{error}");
    assert_eq!(computed(&longer), 70 - 64);
    assert_eq!(manifest(&folder.path().join(".clipcap/out.manifest.json"))["settings"]["decoding"]["max_new_tokens"], 20);
    // Given once more, it makes everything anew.
    assert_eq!(computed(&longer), 70);
}

#[test]
fn files_of_others_are_not_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 2);
    for name in ["out.csv", "out.parquet", "parts/mine.txt"] {
        let out = folder.path().join(name);
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        fs::write(&out, "mine").unwrap();
        let out = if name.starts_with("parts") { folder.path().join("parts") } else { out };
        let settings = settings(&images, &out);
        let error = caption(&settings, &Fake::new(4)).unwrap_err().to_string();
        assert!(error.contains("was not made by clipcap"), "{error}");
        assert!(!out.with_file_name(format!("{}.work", out.file_name().unwrap().to_string_lossy())).exists());
        if name != "out.csv" {
            caption(&with(settings, |run| run.overwrite = true), &Fake::new(4)).unwrap();
        }
    }
    assert_eq!(fs::read(folder.path().join("parts/mine.txt")).unwrap(), b"mine");
    // Two tables of one name have a manifest each, and neither run takes the other's for its own.
    fs::remove_file(folder.path().join("out.csv")).unwrap();
    for name in ["out.csv", "out.parquet", "out.csv"] {
        caption(&settings(&images, &folder.path().join(name)), &Fake::new(4)).unwrap();
    }
    for name in ["out.manifest.json", "out.csv.manifest.json"] {
        assert!(folder.path().join(".clipcap").join(name).is_file(), "{name}");
    }
}

#[test]
fn a_damaged_shard_is_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 200);
    let stopped = Fake { interrupt_at: Some((100, Interrupt::default())), ..Fake::new(4) };
    caption(&settings(&images, &out), &stopped).unwrap();
    let shards = folder.path().join("out.parquet.work/shards");
    let mut names: Vec<_> = fs::read_dir(&shards).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    assert_eq!(names.len(), 2);
    fs::write(&names[0], "damaged").unwrap();
    assert_eq!(computed(&settings(&images, &out)), 200 - 64);
    assert_eq!(rows(&out).len(), 400);
}

#[test]
fn a_run_that_computed_nothing_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out.parquet"));
    pictures(&images, 3);
    let failing = Fake { fail_at: Some(1), ..Fake::new(4) };
    assert!(caption(&settings(&images, &out), &failing).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no work folder");
    let mut other = settings(&images, &out);
    other.decoding.max_new_tokens = 20;
    assert_eq!(computed(&other), 3);
    // A folder where a file is to be is refused before anything is computed, even with --overwrite.
    let inside = out.with_file_name("folder.csv");
    fs::create_dir(&inside).unwrap();
    let blocked = with(CaptionSettings { format: clipcap::stages::caption::TableFormat::Csv, ..other }, |run| {
        run.out = inside;
        run.overwrite = true;
    });
    let fake = Fake::new(4);
    assert!(caption(&blocked, &fake).unwrap_err().to_string().contains("is a folder"));
    assert_eq!(fake.num_captioned(), 0);
}
