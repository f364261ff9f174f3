//! `clipcap export`: other tools' layouts, and back through `prepare`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{clipcap, columns, run};

/// A dataset of six pictures in two splits, with two captions each.
fn dataset(folder: &Path) -> (PathBuf, PathBuf) {
    let images = folder.join("图片");
    let mut lines = String::new();
    for i in 0..6_u8 {
        let name = format!("{}/照片 {i}.png", ["a", "b c"][usize::from(i) % 2]);
        let path = images.join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([40 * i, x as u8, y as u8])).save(path).unwrap();
        let split = if i == 5 { "test" } else { "train" };
        let row = serde_json::json!({"file_name": name, "captions": [format!("第{i}张，<一> & 二"), format!("另一句{i}")], "split": split});
        lines += &format!("{row}\n");
    }
    fs::write(folder.join("captions.jsonl"), lines).unwrap();
    let dataset = folder.join("dataset");
    prepare(&[folder.join("captions.jsonl")], std::slice::from_ref(&images), &dataset);
    (dataset, images)
}

fn prepare(captions: &[PathBuf], images: &[PathBuf], out: &Path) {
    let mut command = clipcap();
    command.args(["prepare", "--quiet", "--captions"]).args(captions).arg("--images").args(images).arg("--out").arg(out);
    run(&mut command, 0);
}

fn export(input: &Path, images: &Path, to: &str, out: Option<&Path>, flags: &[&str], status: i32) -> serde_json::Value {
    let mut command = clipcap();
    command.arg("export").arg(input).arg("--images").arg(images).args(["--json", "--to", to]).args(flags);
    if let Some(out) = out {
        command.arg("--out").arg(out);
    }
    serde_json::from_slice(&run(&mut command, status).stdout).unwrap_or_default()
}

#[test]
fn an_imagefolder_comes_back_through_prepare() {
    let folder = tempfile::tempdir().unwrap();
    let (dataset, images) = dataset(folder.path());
    let out = folder.path().join("hf");
    assert_eq!(export(&dataset, &images, "imagefolder", Some(&out), &[], 0)["counts"]["exported"], 6);
    let again = folder.path().join("again");
    let metadata = ["train", "test"].map(|split| out.join(split).join("metadata.jsonl"));
    prepare(&metadata, &["train", "test"].map(|split| out.join(split)), &again);
    let rows = |dataset: &Path| columns(&dataset.join("captions.parquet"), &["image_id", "caption", "split"]);
    let mut wanted = rows(&dataset);
    wanted.sort();
    let mut back = rows(&again);
    back.sort();
    assert_eq!(back, wanted);
    for name in ["a/照片 0.png", "a/照片 4.png"] {
        assert_eq!(fs::read(out.join("train").join(name)).unwrap(), fs::read(images.join(name)).unwrap());
    }
    // Given again it is finished, and other captions are refused.
    export(&dataset, &images, "imagefolder", Some(&out), &[], 0);
    export(&dataset, &images, "webdataset", Some(&out), &[], 1);
}

#[test]
fn a_webdataset_and_parquet_hold_what_was_captioned() {
    let folder = tempfile::tempdir().unwrap();
    let (dataset, images) = dataset(folder.path());
    let out = folder.path().join("tars");
    export(&dataset, &images, "webdataset", Some(&out), &["--shard-images", "2"], 0);
    let names = |out: &Path| {
        let mut names: Vec<String> = fs::read_dir(out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let wanted =
        ["errors.parquet", "manifest.json", "test-000000.tar", "train-000000.tar", "train-000001.tar", "train-000002.tar"];
    assert_eq!(names(&out), wanted);
    let listed = run(std::process::Command::new("tar").arg("-tf").arg(out.join("train-000001.tar")), 0).stdout;
    let keys = "000001000000.png\n000001000000.txt\n000001000000.json\n000001000001.png\n000001000001.txt\n000001000001.json\n";
    assert_eq!(String::from_utf8(listed).unwrap(), keys);
    let mut extract = std::process::Command::new("tar");
    extract.arg("-xf").arg(out.join("test-000000.tar")).arg("-C").arg(folder.path());
    run(&mut extract, 0);
    let about: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("000000000000.json")).unwrap()).unwrap();
    assert_eq!((&about["image_path"], &about["split"]), (&"b c/照片 5.png".into(), &"test".into()));
    assert_eq!(about["captions"].as_array().unwrap().len(), 2);
    assert_eq!(fs::read_to_string(folder.path().join("000000000000.txt")).unwrap(), about["captions"][0].as_str().unwrap());
    let picture = fs::read(images.join("b c/照片 5.png")).unwrap();
    assert_eq!(fs::read(folder.path().join("000000000000.png")).unwrap(), picture);

    let out = folder.path().join("parquet");
    export(&dataset, &images, "parquet", Some(&out), &[], 0);
    assert_eq!(names(&out), ["errors.parquet", "manifest.json", "test-00000.parquet", "train-00000.parquet"]);
    let rows = columns(&out.join("train-00000.parquet"), &["image_id", "text", "split"]);
    assert_eq!((rows.len(), rows[0][0].as_str(), rows[0][2].as_str()), (5, "a/照片 0", "train"));
}

#[test]
fn sidecars_never_replace_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (dataset, images) = dataset(folder.path());
    let mine = images.join("a/照片 2.txt");
    fs::write(&mine, "my own words").unwrap();
    let told = export(&dataset, &images, "sidecar", None, &["--xmp"], 0);
    assert_eq!((told["counts"]["exported"].as_u64(), told["counts"]["kept"].as_u64()), (Some(6), Some(1)));
    assert_eq!(fs::read_to_string(&mine).unwrap(), "my own words");
    let text = fs::read_to_string(images.join("a/照片 0.txt")).unwrap();
    assert_eq!(text.lines().count(), 2);
    let xmp = fs::read_to_string(images.join("a/照片 0.xmp")).unwrap();
    assert!(xmp.contains("&lt;一&gt; &amp;二"), "{xmp}");
    // The same again touches nothing, and --overwrite replaces.
    assert_eq!(export(&dataset, &images, "sidecar", None, &["--xmp"], 0)["counts"]["kept"], 1);
    assert_eq!(export(&dataset, &images, "sidecar", None, &["--overwrite"], 0)["counts"]["kept"], 0);
    assert!(fs::read_to_string(&mine).unwrap().starts_with("第2张"));
    let elsewhere = folder.path().join("texts");
    export(&dataset, &images, "sidecar", Some(&elsewhere), &[], 0);
    assert_eq!(fs::read_to_string(elsewhere.join("a/照片 0.txt")).unwrap(), text);
}

#[test]
fn coco_results_and_kohyas_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (dataset, images) = dataset(folder.path());
    let json = folder.path().join("results.json");
    export(&dataset, &images, "coco", Some(&json), &[], 0);
    let results: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!((results.as_array().unwrap().len(), &results[0]["image_id"]), (6, &"a/照片 0".into()));
    export(&dataset, &images, "coco", Some(&json), &[], 1);
    export(&dataset, &images, "coco", Some(&json), &["--overwrite"], 0);
    let out = folder.path().join("kohya");
    // A picture that is gone is told and left out.
    fs::remove_file(images.join("a/照片 2.png")).unwrap();
    assert_eq!(export(&dataset, &images, "kohya", Some(&out), &[], 3)["counts"]["failed"], 1);
    assert_eq!(columns(&out.join("errors.parquet"), &["image_path", "reason"]), [["a/照片 2.png", "vanished"]]);
    assert!(fs::read_to_string(out.join("images/a/照片 0.txt")).unwrap().starts_with("第0张"));
    assert!(out.join("images/b c/照片 5.png").is_file() && out.join("dataset.toml").is_file());
    run(clipcap().arg("export").arg(&dataset).args(["--to", "imagefolder", "--images", "x"]), 2);
    run(clipcap().arg("export").arg(&dataset).args(["--to", "abacus", "--out", "x"]), 2);
}
