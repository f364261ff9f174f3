//! A list chooses which images are captioned; the others keep what the table has of them.

use std::fs;
use std::path::Path;

use clipcap::generation;
use clipcap::pipeline::{Interrupt, OtherSettings};
use clipcap::stages::Outcome;
use clipcap::stages::caption::CaptionSettings;
use serde_json::json;

use super::fake::{Fake, bytes, caption, errors, manifest, picture, pictures, rows, settings, with};
use crate::common::beside;

/// One whose captions show that they are new.
fn other(batch_size: usize) -> Fake {
    Fake { window_shows: true, ..Fake::new(batch_size) }
}

fn only(settings: &CaptionSettings, list: &Path) -> CaptionSettings {
    CaptionSettings { only: Some(list.into()), ..settings.clone() }
}

#[test]
fn a_new_table_has_the_listed_images_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out, list) = (folder.path().join("images"), folder.path().join("out.parquet"), folder.path().join("list.txt"));
    pictures(&images, 9);
    fs::write(&list, "a/0001\nb/0006.png\nnowhere.png\n").unwrap();
    let settings = only(&settings(&images, &out), &list);
    let report = caption(&settings, &Fake::new(4)).unwrap();
    assert_eq!((report.outcome, report.report.counts.succeeded), (Outcome::Complete, 2));
    assert_eq!(
        rows(&out).iter().map(|row| row[1].clone()).collect::<Vec<_>>(),
        ["a/0001.png", "a/0001.png", "b/0006.png", "b/0006.png"]
    );
    fs::write(&list, "nowhere.png\n").unwrap();
    let nothing = with(settings, |run| run.out = folder.path().join("none.parquet"));
    assert!(caption(&nothing, &Fake::new(4)).unwrap_err().to_string().contains("no image found"));
}

#[test]
fn the_others_keep_their_rows_unread_and_the_settings_say_whose_they_are() {
    for name in ["out.parquet", "out.csv", "out.jsonl", "out/"] {
        let folder = tempfile::tempdir().unwrap();
        let (images, list) = (folder.path().join("images"), folder.path().join("list.tsv"));
        let out = folder.path().join("t").join(name);
        pictures(&images, 12);
        fs::write(images.join("bad.jpg"), "bad").unwrap();
        let plain = settings(&images, &out);
        caption(&plain, &Fake::new(4)).unwrap();
        let (manifest_path, errors_path) = (beside(&out, "manifest.json"), beside(&out, "errors.parquet"));
        let (before, first) = (rows_of(&out), manifest(&manifest_path));
        fs::write(
            &list,
            "image_id\timage_path\tmark\tcaption\na/0001\ta/0001.png\tn\tx\na/0004\ta/0004.png\ty\tx\nb/0003\tb/0003.png\tn\tx\n",
        )
        .unwrap();

        // With the same settings the table stays one of these settings.
        let fake = other(4);
        let report = caption(&only(&plain, &list), &fake).unwrap();
        assert_eq!((report.report.counts.succeeded, report.report.counts.failed, fake.num_captioned()), (12, 1, 2), "{name}");
        assert_eq!(manifest(&manifest_path)["fingerprint"], first["fingerprint"]);
        assert_eq!(errors(&errors_path).keys().collect::<Vec<_>>(), ["bad.jpg"]);
        let changed = |rows: &[String]| -> Vec<usize> { (0..rows.len()).filter(|&at| rows[at] != before[at]).collect() };
        let after = rows_of(&out);
        assert_eq!((after.len(), changed(&after).len()), (before.len(), 4));
        // Nothing is left to do, and nothing of it is done again.
        let fake = Fake::new(4);
        caption(&plain, &fake).unwrap();
        assert_eq!((fake.num_captioned(), rows_of(&out) == after), (0, true), "{name}");

        // With others, the table says that its rows are of both.
        let decoding = generation::Settings { repetition_penalty: 1.5, ..plain.decoding.clone() };
        let new = CaptionSettings { decoding, ..plain.clone() };
        assert!(caption(&new, &Fake::new(4)).unwrap_err().is::<OtherSettings>());
        picture(&images.join("a/0007.png"), 900);
        caption(&only(&new, &list), &Fake::new(4)).unwrap();
        let told = manifest(&manifest_path);
        assert_eq!(told["settings"]["rows"]["others"], json!([first["fingerprint"]]));
        assert_eq!(told["settings"]["decoding"]["repetition_penalty"], 1.5);
        // Not even a picture that changed is looked at: it was not chosen. The chosen ones are as they were at first.
        assert_eq!(rows_of(&out), before, "{name}");
        for refused in [&plain, &new] {
            assert!(caption(refused, &Fake::new(4)).unwrap_err().is::<OtherSettings>());
        }
        // The same again is the same.
        let bytes_before = bytes(&folder.path().join("t"));
        caption(&only(&new, &list), &Fake::new(4)).unwrap();
        assert!(bytes(&folder.path().join("t")) == bytes_before, "{name}");
        // Everything by one: the table is that one's but for the name of the other settings.
        caption(&only(&plain, &list), &Fake::new(4)).unwrap();
        assert_eq!(manifest(&manifest_path)["settings"]["rows"]["made_by"], first["fingerprint"]);
    }
}

fn rows_of(out: &Path) -> Vec<String> {
    match out.extension().and_then(|extension| extension.to_str()) {
        Some("csv" | "jsonl") => fs::read_to_string(out).unwrap().lines().map(str::to_string).collect(),
        _ => rows(out).iter().map(|row| row.join("\t")).collect(),
    }
}

#[test]
fn an_interrupted_choice_goes_on_and_a_tsv_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out, list) = (folder.path().join("images"), folder.path().join("t/out.parquet"), folder.path().join("list.txt"));
    pictures(&images, 200);
    let plain = settings(&images, &out);
    caption(&plain, &Fake::new(4)).unwrap();
    let whole = folder.path().join("whole");
    clipcap::files::copy_folder(&folder.path().join("t"), &whole, &|_| true).unwrap();
    let names: Vec<String> = (0..200).filter(|i| i % 3 == 1).map(|i| format!("a/{i:04}.png\n")).collect();
    fs::write(&list, names.concat()).unwrap();
    let fake = other(4);
    let chosen = with(only(&plain, &list), |run| run.out = whole.join("out.parquet"));
    caption(&chosen, &fake).unwrap();
    let interrupt = Interrupt::default();
    let broken = Fake { interrupt_at: Some((4, interrupt)), ..other(4) };
    let report = caption(&only(&plain, &list), &broken).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    let rest = other(4);
    caption(&only(&plain, &list), &rest).unwrap();
    assert_eq!((broken.num_captioned() + rest.num_captioned(), fake.num_captioned()), (67, 67));
    assert!(broken.num_captioned() >= 4 && bytes(&whole) == bytes(&folder.path().join("t")));

    let tsv = settings(&images, &folder.path().join("out.tsv"));
    caption(&tsv, &Fake::new(4)).unwrap();
    assert!(caption(&only(&tsv, &list), &Fake::new(4)).unwrap_err().to_string().contains("a .tsv holds too little"));
}
