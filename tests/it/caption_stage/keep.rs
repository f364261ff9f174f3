//! Nothing that was done vanishes: other folders, half-mounted disks, locked folders, flipped bits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clipcap::pipeline::{Interrupt, Lost, Source, WouldDrop};
use clipcap::stages::Outcome;
use clipcap::stages::caption::{CaptionReport, CaptionSettings, TableFormat};

use super::fake::{Fake, bytes, caption, errors, manifest, picture, pictures, rows, settings, with};
use crate::common::beside;

const FORMATS: [&str; 5] = ["out.parquet", "out.csv", "out.jsonl", "out.tsv", "out/"];

fn run(settings: &CaptionSettings) -> CaptionReport {
    caption(settings, &Fake::new(4)).unwrap()
}

/// The message of a run that is refused and changes nothing.
fn refused(settings: &CaptionSettings) -> String {
    let folder = settings.run.out.parent().unwrap();
    let before = bytes(folder);
    let error = caption(settings, &Fake::new(4)).unwrap_err();
    assert!(error.is::<WouldDrop>(), "{error:#}");
    assert!(bytes(folder) == before, "{error:#}");
    let message = error.to_string();
    assert!(message.contains("--prune"), "{message}");
    message
}

fn pruning(settings: &CaptionSettings) -> CaptionSettings {
    with(settings.clone(), |run| run.prune = true)
}

#[test]
fn another_folder_takes_no_tables_place_unasked() {
    for name in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let (a, b, out) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("tables").join(name));
        pictures(&a, 30);
        (0..40).for_each(|i| picture(&b.join(format!("{i}.png")), 500 + i));
        run(&settings(&a, &out));
        let message = refused(&settings(&b, &out));
        assert!(message.contains("../a"), "{message}");
        // A folder more is no loss; the folder that is inside is.
        refused(&settings(&a.join("b"), &out));
        let both = with(settings(&a, &out), |run| run.source = Source::Paths(vec![a.clone(), b.clone()]));
        if name != "out.tsv" {
            let report = run(&both);
            assert_eq!((report.report.counts.succeeded, report.report.lost), (70, Lost { dropped: 0, renamed: 30 }), "{name}");
        }
        let report = run(&pruning(&settings(&b, &out)));
        assert_eq!(report.report.counts.succeeded, 40);
        // From both folders the images had other names; what is left of theirs has a new one.
        let lost = if name == "out.tsv" { Lost { dropped: 30, renamed: 0 } } else { Lost { dropped: 30, renamed: 40 } };
        assert_eq!(report.report.lost, lost, "{name}");
        let (text, json) = report.summary();
        assert!(text.contains("dropped the results of 30 images") && json["dropped"] == 30, "{text}{json}");
    }
}

#[test]
fn a_half_mounted_folder_is_refused_before_anything_is_computed() {
    for name in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let (images, out) = (folder.path().join("images"), folder.path().join("tables").join(name));
        pictures(&images, 60);
        let settings = settings(&images, &out);
        run(&settings);
        fs::rename(images.join("a"), folder.path().join("away")).unwrap();
        let fake = Fake::new(4);
        let message = refused(&settings);
        assert!(message.contains("60 images") && message.contains("of 20 would be dropped"), "{message}");
        assert!(name == "out.tsv" || message.contains("a/0001.png"), "{message}");
        picture(&images.join("new.png"), 900);
        assert!(caption(&settings, &fake).unwrap_err().is::<WouldDrop>());
        assert!(fake.num_captioned() == 0, "{name}");
        // Overwriting says that what is there may go; in a pipeline it does not.
        let guarded = with(settings.clone(), |run| run.overwrite = true);
        refused(&guarded);
        let report = run(&pruning(&settings));
        assert_eq!((report.report.counts.succeeded, report.report.lost.dropped), (41, 20), "{name}");
        fs::remove_file(images.join("new.png")).unwrap();
        fs::rename(folder.path().join("away"), images.join("a")).unwrap();
        assert_eq!(run(&settings).report.counts.succeeded, 60);
        // A tenth may go, and is counted.
        for i in [1, 4, 7, 10, 13, 16] {
            fs::remove_file(images.join(format!("a/{i:04}.png"))).unwrap();
        }
        let report = run(&settings);
        assert_eq!((report.outcome, report.report.lost), (Outcome::Complete, Lost { dropped: 6, renamed: 0 }));
        let manifest = manifest(&beside(&out, "manifest.json"));
        assert_eq!(manifest["counts"]["dropped"], 6);
    }
}

#[test]
fn files_that_changed_into_nothing_are_rows_that_go_too() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("tables/out.parquet"));
    pictures(&images, 30);
    let settings = settings(&images, &out);
    run(&settings);
    let good = bytes(&images);
    for name in good.keys().take(10) {
        fs::write(images.join(name), [0; 100]).unwrap();
    }
    let error = caption(&settings, &Fake::new(4)).unwrap_err();
    assert!(error.is::<WouldDrop>() && error.to_string().contains("of 10 would be dropped"), "{error:#}");
    assert_eq!(rows(&out).len(), 60);
    // All others, under the same names as before or not: nothing is left.
    for name in good.keys() {
        picture(&images.join(name), 3000 + u32::from(name.as_bytes()[name.len() - 5]) + 256 * name.len() as u32);
        fs::rename(images.join(name), images.join(name).with_extension("gif")).unwrap();
    }
    let stopped = Fake::new(4);
    assert!(caption(&settings, &stopped).unwrap_err().is::<WouldDrop>());
    // What was computed is not lost: pruning goes on from it.
    let fake = Fake::new(4);
    let report = caption(&pruning(&settings), &fake).unwrap();
    assert_eq!((report.report.lost.dropped, fake.num_captioned()), (30, 0));
}

#[test]
fn unfinished_work_is_not_thrown_away_for_another_folder_or_a_shorter_list() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, out) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("tables/out.parquet"));
    pictures(&a, 150);
    (0..5).for_each(|i| picture(&b.join(format!("{i}.png")), 500 + i));
    let stopped = Fake { interrupt_at: Some((64, Interrupt::default())), ..Fake::new(4) };
    assert_eq!(caption(&settings(&a, &out), &stopped).unwrap().outcome, Outcome::Interrupted);
    let error = caption(&settings(&b, &out), &Fake::new(4)).unwrap_err();
    assert!(error.is::<WouldDrop>() && error.to_string().contains("out.parquet.work"), "{error:#}");
    let away = folder.path().join("away");
    fs::rename(a.join("a"), &away).unwrap();
    let error = caption(&settings(&a, &out), &Fake::new(4)).unwrap_err();
    assert!(error.is::<WouldDrop>() && error.to_string().contains("64 images have results"), "{error:#}");
    fs::rename(&away, a.join("a")).unwrap();
    let fake = Fake::new(4);
    let report = caption(&settings(&a, &out), &fake).unwrap();
    // The refused run has computed what it found, and that is not lost either.
    assert_eq!((report.report.counts.succeeded, report.report.lost, fake.num_captioned()), (150, Lost::default(), 0));
}

#[test]
fn a_kept_work_folder_counts_what_its_table_holds_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("tables/out.parquet"));
    pictures(&images, 60);
    let settings = with(settings(&images, &out), |run| run.keep_work = true);
    run(&settings);
    fs::remove_dir_all(images.join("a")).unwrap();
    assert!(caption(&settings, &Fake::new(4)).unwrap_err().is::<WouldDrop>());
    assert_eq!(run(&pruning(&settings)).report.lost.dropped, 20);
    // They are gone, and no loss again.
    for _ in 0..2 {
        assert_eq!(run(&settings).report.lost, Lost::default());
    }
    // What was there once is still known by its content.
    pictures(&images, 60);
    assert_eq!(computed(&settings), 0);
}

fn computed(settings: &CaptionSettings) -> usize {
    let fake = Fake::new(4);
    caption(settings, &fake).unwrap();
    fake.num_captioned()
}

/// Runs as a user whom permissions stop, whoever runs the tests.
fn as_nobody<T: Send>(folder: &Path, work: impl FnOnce() -> T + Send) -> T {
    unsafe extern "C" {
        fn setfsuid(user: u32) -> i32;
    }
    const NOBODY: u32 = 65534;
    fn give(path: &Path) {
        let _ = std::os::unix::fs::lchown(path, Some(NOBODY), None);
        for entry in fs::read_dir(path).into_iter().flatten() {
            give(&entry.unwrap().path());
        }
    }
    give(folder);
    // Of this thread and those it starts.
    let job = move || {
        unsafe { setfsuid(NOBODY) };
        work()
    };
    std::thread::scope(|scope| scope.spawn(job).join().unwrap())
}

fn lock(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_locked_folder_keeps_its_rows_and_is_told() {
    for name in ["out.parquet", "out.csv", "out/"] {
        let folder = tempfile::tempdir().unwrap();
        let (images, out) = (folder.path().join("images"), folder.path().join("tables").join(name));
        pictures(&images, 60);
        picture(&images.join("a/in ner/x.png"), 777);
        picture(&images.join("a.png"), 778);
        let settings = settings(&images, &out);
        run(&settings);
        let table = if name == "out/" { out.join("part-00000.parquet") } else { out.clone() };
        let first = fs::read(&table).unwrap();
        picture(&images.join("c/new.png"), 900);
        lock(&images.join("a"), 0);
        let fake = Fake::new(4);
        let report = as_nobody(folder.path(), || caption(&settings, &fake).unwrap());
        let counts = report.report.counts;
        assert_eq!((counts.succeeded, counts.kept, counts.unlisted, fake.num_captioned()), (63, 21, 1, 1), "{name}");
        assert_eq!((report.outcome, report.report.lost), (Outcome::SomeFailed, Lost::default()));
        let told = errors(&report.output.errors());
        assert_eq!(told.get("a/").map(String::as_str), Some("permission_denied"), "{told:?}");
        let counts = &manifest(&report.output.manifest())["counts"];
        assert_eq!((&counts["found"], &counts["captioned"], &counts["kept"]), (&63.into(), &63.into(), &21.into()));
        // Given again while it is locked, nothing changes; unlocked, it is as if it had never been.
        let locked = fs::read(&table).unwrap();
        as_nobody(folder.path(), || run(&settings));
        assert!(fs::read(&table).unwrap() == locked);
        lock(&images.join("a"), 0o755);
        assert_eq!(computed(&settings), 0);
        assert!(fs::read(&table).unwrap() == locked, "{name}: the rows are in list order");
        fs::remove_file(images.join("c/new.png")).unwrap();
        run(&settings);
        assert!(fs::read(&table).unwrap() == first);
        // Files that may not be opened, in a folder that may be listed.
        lock(&images.join("b/0003.png"), 0);
        let report = as_nobody(folder.path(), || run(&settings));
        assert_eq!((report.outcome, report.report.counts.kept), (Outcome::SomeFailed, 1));
        assert_eq!(errors(&report.output.errors()).get("b/0003.png").map(String::as_str), Some("permission_denied"));
        assert!(fs::read(&table).unwrap() == first);
        // The whole folder: no image is found, and the table stays.
        lock(&images, 0);
        let error = as_nobody(folder.path(), || caption(&settings, &Fake::new(4)).unwrap_err());
        assert!(error.to_string().contains("no image found"), "{error:#}");
        assert!(fs::read(&table).unwrap() == first);
        lock(&images, 0o755);
    }
}

#[test]
fn a_shorter_list_of_files_and_a_moved_project() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("project/images"), folder.path().join("project/tables/out.parquet"));
    (0..20).for_each(|i| picture(&images.join(format!("{i:02}.png")), i));
    let list =
        |range: std::ops::Range<u32>, images: &Path| Source::Paths(range.map(|i| images.join(format!("{i:02}.png"))).collect());
    let all = with(settings(&images, &out), |run| run.source = list(0..20, &images));
    run(&all);
    assert_eq!(run(&with(all.clone(), |run| run.source = list(0..18, &images))).report.lost.dropped, 2);
    refused(&with(all.clone(), |run| run.source = list(0..10, &images)));
    // The table and its images moved together are still the same.
    fs::rename(folder.path().join("project"), folder.path().join("moved")).unwrap();
    let (images, out) = (folder.path().join("moved/images"), folder.path().join("moved/tables/out.parquet"));
    let moved = with(CaptionSettings { format: TableFormat::Parquet, ..all }, |run| {
        run.source = list(0..18, &images);
        run.out = out;
    });
    assert_eq!(computed(&moved), 0);
    // Its images moved alone are others.
    fs::rename(&images, folder.path().join("elsewhere")).unwrap();
    let elsewhere = with(moved, |run| run.source = list(0..18, &folder.path().join("elsewhere")));
    refused(&elsewhere);
    let report = run(&pruning(&elsewhere));
    assert_eq!((report.report.counts.computed, report.report.lost), (0, Lost::default()));
}

#[test]
fn one_flipped_bit_in_a_shard_is_found_and_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 100);
    let out = |name: &str| folder.path().join(name).join("out.parquet");
    run(&settings(&images, &out("whole")));
    let wanted = bytes(&folder.path().join("whole"));
    let stop = |out: &Path| {
        let stopped = Fake { interrupt_at: Some((60, Interrupt::default())), ..Fake::new(4) };
        assert_eq!(caption(&settings(&images, out), &stopped).unwrap().outcome, Outcome::Interrupted);
    };
    stop(&out("size"));
    let shard = "out.parquet.work/shards/000001-00000000.parquet";
    let length = fs::metadata(folder.path().join("size").join(shard)).unwrap().len() as usize;
    // Everywhere in the file, and every bit of its end, where the checksum is.
    let places = (0..length * 8).filter(|bit| bit % 1009 == 0 || *bit > (length - 24) * 8 && bit % 7 == 0);
    let mut number = 0;
    for bit in places {
        let out = out(&format!("bit-{bit}"));
        stop(&out);
        let path = out.parent().unwrap().join(shard);
        let mut content = fs::read(&path).unwrap();
        content[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, content).unwrap();
        assert_eq!(computed(&settings(&images, &out)), 100, "bit {bit}");
        assert!(bytes(out.parent().unwrap()) == wanted, "bit {bit}");
        number += 1;
    }
    assert!(number > 20, "{number}");
}

#[test]
fn a_flipped_bit_in_what_a_table_held_is_read_from_the_table_again() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("tables/out.parquet"));
    pictures(&images, 100);
    run(&settings(&images, &out));
    (0..80).for_each(|i| picture(&images.join(format!("z/{i:02}.png")), 500 + i));
    let stopped = Fake { interrupt_at: Some((60, Interrupt::default())), ..Fake::new(4) };
    caption(&settings(&images, &out), &stopped).unwrap();
    let shard = folder.path().join("tables/out.parquet.work/shards/000000-00000000.parquet");
    let mut content = fs::read(&shard).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&shard, content).unwrap();
    assert_eq!(computed(&settings(&images, &out)), 80 - 64);
    assert_eq!(rows(&out).len(), 360);
}
