//! `clipcap export`: other tools' layouts, and back through `prepare`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{beside, clipcap, columns, run};

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
        let row = serde_json::json!({"file_name": name, "captions": [format!("第{i}张，<一> & 二"), format!("另 一 句  {i}")], "split": split});
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

/// What a round trip must leave as it is: ids, captions, what they were before they were normalized, and splits.
fn content(dataset: &Path) -> Vec<Vec<String>> {
    let mut rows = columns(&dataset.join("captions.parquet"), &["image_id", "caption", "caption_raw", "split"]);
    rows.sort();
    rows
}

/// image_id and content of each image.
fn hashes(dataset: &Path) -> Vec<Vec<String>> {
    columns(&dataset.join("images.parquet"), &["image_id", "sha256", "split", "status"])
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
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
    let wanted = ["test-000000.tar", "train-000000.tar", "train-000001.tar", "train-000002.tar"];
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
    assert_eq!(names(&out), ["test-00000.parquet", "train-00000.parquet"]);
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
    // The same again is left as it is, and another is refused.
    export(&dataset, &images, "coco", Some(&json), &[], 0);
    fs::write(&json, "[]").unwrap();
    export(&dataset, &images, "coco", Some(&json), &[], 1);
    export(&dataset, &images, "coco", Some(&json), &["--overwrite"], 0);
    let out = folder.path().join("kohya");
    // A picture that is gone is told and left out.
    fs::remove_file(images.join("a/照片 2.png")).unwrap();
    assert_eq!(export(&dataset, &images, "kohya", Some(&out), &[], 3)["counts"]["failed"], 1);
    assert_eq!(columns(&beside(&out, "errors.parquet"), &["image_path", "reason"]), [["a/照片 2.png", "vanished"]]);
    assert!(fs::read_to_string(out.join("images/a/照片 0.txt")).unwrap().starts_with("第0张"));
    assert!(out.join("images/b c/照片 5.png").is_file() && out.join("dataset.toml").is_file());
    run(clipcap().arg("export").arg(&dataset).args(["--to", "imagefolder", "--images", "x"]), 2);
    run(clipcap().arg("export").arg(&dataset).args(["--to", "abacus", "--out", "x"]), 2);
}

#[test]
fn round_trips_through_every_layout_are_exact() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (dataset, images) = dataset(folder.path());
    let (wanted, pictures) = (content(&dataset), hashes(&dataset));
    assert!(wanted.iter().any(|row| row[1] != row[2]), "nothing was normalized: {wanted:?}");

    export(&dataset, &images, "webdataset", Some(&at("tars")), &["--shard-images", "2"], 0);
    let tars = [at("tars/train-{000000..000002}.tar"), at("tars/test-000000.tar")];
    // Tars hold their captions themselves.
    let mut command = clipcap();
    command.args(["prepare", "--quiet", "--images"]).args(&tars).arg("--out").arg(at("from-tars"));
    run(&mut command, 0);
    assert_eq!((content(&at("from-tars")), hashes(&at("from-tars"))), (wanted.clone(), pictures.clone()));
    let paths = columns(&at("from-tars/images.parquet"), &["image_path"]);
    assert_eq!(paths[5], ["test-000000.tar/000000000000.png"]);
    // And from there once more, and with the pictures inside.
    let mut again = clipcap();
    again.args(["export", "--quiet", "--to", "webdataset", "--out"]).arg(at("tars-2")).arg(at("from-tars"));
    run(again.arg("--images").args(&tars), 0);
    let mut command = clipcap();
    command.args(["prepare", "--quiet", "--with-images", "--images"]).arg(at("tars-2/train-000000.tar"));
    run(command.arg(at("tars-2/test-000000.tar")).arg("--out").arg(at("stored")), 0);
    assert_eq!((content(&at("stored")), hashes(&at("stored"))), (wanted.clone(), pictures.clone()));
    // Gzipped tars are as good.
    for name in ["train-000000", "test-000000"] {
        run(std::process::Command::new("gzip").arg("-k").arg(at(&format!("tars-2/{name}.tar"))), 0);
    }
    let gzipped = [at("tars-2/train-000000.tar.gz"), at("tars-2/test-000000.tar.gz")];
    for (out, flags) in [("gzipped", &[][..]), ("gzipped-stored", &["--with-images"])] {
        let mut command = clipcap();
        command.args(["prepare", "--quiet", "--images"]).args(&gzipped).args(flags).arg("--out").arg(at(out));
        run(&mut command, 0);
        assert_eq!((content(&at(out)), hashes(&at(out))), (wanted.clone(), pictures.clone()), "{out}");
    }
    let mut again = clipcap();
    again.args(["export", "--quiet", "--to", "webdataset", "--out"]).arg(at("tars-3")).arg(at("gzipped"));
    run(again.arg("--images").args(&gzipped), 0);
    let mut command = clipcap();
    command
        .args(["prepare", "--quiet", "--images"])
        .args(["train", "test"].map(|split| at(&format!("tars-3/{split}-000000.tar"))));
    run(command.arg("--out").arg(at("from-gzipped")), 0);
    assert_eq!((content(&at("from-gzipped")), hashes(&at("from-gzipped"))), (wanted.clone(), pictures.clone()));

    export(&dataset, &images, "imagefolder", Some(&at("hf")), &[], 0);
    let metadata = ["train", "test"].map(|split| at("hf").join(split).join("metadata.jsonl"));
    prepare(&metadata, &[at("hf")], &at("from-hf"));
    assert_eq!((content(&at("from-hf")), hashes(&at("from-hf"))), (wanted.clone(), pictures));

    export(&dataset, &images, "parquet", Some(&at("parquet")), &[], 0);
    run(clipcap().args(["prepare", "--quiet", "--captions"]).arg(at("parquet")).arg("--out").arg(at("from-parquet")), 0);
    assert_eq!(content(&at("from-parquet")), wanted);

    // The same embeddings, whichever of them is read.
    let bundle = crate::common::tiny_bundle(folder.path());
    let embedded = |source: &[&str], roots: &[PathBuf], out: &str| {
        let mut command = clipcap();
        command.args(["embed", "--quiet", "--model"]).arg(&bundle).arg("--out").arg(at(out)).args(source).args(roots);
        run(&mut command, 0);
        let mut rows = vec![];
        for batch in clipcap::table::open(&at(out).join("part-00000.parquet"), None).unwrap() {
            let batch = batch.unwrap();
            let ids: &arrow::array::StringArray = clipcap::table::column(&batch, "image_id", Path::new("x")).unwrap();
            let lists = batch.column_by_name("embedding").unwrap();
            rows.extend((0..batch.num_rows()).map(|row| (ids.value(row).to_string(), format!("{:?}", lists.slice(row, 1)))));
        }
        rows
    };
    let original = embedded(&["--dataset", dataset.to_str().unwrap(), "--images"], std::slice::from_ref(&images), "e-0");
    assert_eq!(original.len(), 6);
    let from_tars = at("from-tars");
    assert_eq!(embedded(&["--dataset", from_tars.to_str().unwrap(), "--images"], &tars, "e-1"), original);
    assert_eq!(embedded(&["--dataset", at("stored").to_str().unwrap()], &[], "e-2"), original);
    assert_eq!(embedded(&["--dataset", at("gzipped").to_str().unwrap(), "--images"], &gzipped, "e-3"), original);
}

#[test]
fn texts_beside_pictures_come_back_with_their_captions() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (dataset, images) = dataset(folder.path());
    let rows = |dataset: &Path| {
        let mut rows = columns(&dataset.join("captions.parquet"), &["image_id", "caption"]);
        rows.sort();
        rows
    };
    let wanted = rows(&dataset);
    export(&dataset, &images, "sidecar", None, &[], 0);
    let back = |photos: &Path, out: &str| {
        run(clipcap().args(["prepare", "--quiet", "--splits", "none", "--out"]).arg(at(out)).arg(photos), 0);
        (rows(&at(out)), columns(&at(out).join("images.parquet"), &["image_id", "sha256"]))
    };
    let pictures = columns(&dataset.join("images.parquet"), &["image_id", "sha256"]);
    assert_eq!(back(&images, "from-sidecars"), (wanted.clone(), pictures.clone()));
    // Kohya's tools take one caption.
    export(&dataset, &images, "kohya", Some(&at("kohya")), &[], 0);
    let firsts: Vec<_> = wanted.iter().filter(|row| row[1].starts_with('第')).cloned().collect();
    assert_eq!((firsts.len(), back(&at("kohya/images"), "from-kohya")), (6, (firsts, pictures)));
}

#[test]
fn tars_without_captions_and_captions_without_tars_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (_, images) = dataset(folder.path());
    let out = folder.path().join("x");
    run(clipcap().args(["prepare", "--quiet", "--images"]).arg(&images).arg("--out").arg(&out), 2);
    let tar = folder.path().join("bare.tar");
    run(std::process::Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&images).arg("."), 0);
    run(clipcap().args(["prepare", "--quiet", "--images"]).arg(&tar).arg("--out").arg(&out), 1);
    // Captions from elsewhere name the members.
    let captions = folder.path().join("c.tsv");
    fs::write(&captions, "bare.tar/a/照片 0.png\t一只狗\n照片 1.png\t两只猫\n").unwrap();
    prepare(&[captions], &[tar], &out);
    assert_eq!(columns(&out.join("captions.parquet"), &["image_id"]), [["bare.tar/a/照片 0"], ["照片 1"]]);
}

#[test]
fn an_export_in_the_place_of_a_larger_one_leaves_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (dataset, images) = dataset(folder.path());
    let out = folder.path().join("out");
    export(&dataset, &images, "imagefolder", Some(&out), &[], 0);
    let mine = out.join("train/a/mine.txt");
    fs::write(&mine, "not the export's").unwrap();
    fs::remove_file(images.join("b c/照片 1.png")).unwrap();
    fs::remove_file(images.join("b c/照片 3.png")).unwrap();
    export(&dataset, &images, "imagefolder", Some(&out), &["--overwrite"], 3);
    assert!(!out.join("train/b c").exists() && out.join("test/b c/照片 5.png").is_file());
    // Another layout: only what nobody knows of stays.
    export(&dataset, &images, "webdataset", Some(&out), &["--overwrite", "--shard-images", "1"], 3);
    assert_eq!(names(&out), ["test-000000.tar", "train", "train-000000.tar", "train-000001.tar", "train-000002.tar"]);
    assert_eq!(fs::read_to_string(&mine).unwrap(), "not the export's");
    assert!(!out.join("train/metadata.jsonl").exists());
    export(&dataset, &images, "webdataset", Some(&out), &["--overwrite"], 3);
    assert_eq!(names(&out), ["test-000000.tar", "train", "train-000000.tar"]);
}
