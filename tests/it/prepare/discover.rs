//! `prepare FOLDER`: what lies there is found out, told, and made a dataset of.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Folder, texts};
use crate::common::{clipcap, run};
use serde_json::Value;

fn picture(path: &Path, shade: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(12, 10, image::Rgb([shade, 3, 7])).save(path).unwrap();
}

/// What the dry run says of each file, by its name.
fn look(folder: &Path, flags: &[&str]) -> BTreeMap<String, Value> {
    let output = run(clipcap().arg("prepare").arg(folder).args(["--dry-run", "--json"]).args(flags), 0);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["files"].as_array().unwrap().iter().map(|file| (file["file"].as_str().unwrap().to_string(), file.clone())).collect()
}

/// `image_id split caption` of each row.
fn rows(folder: &Path, flags: &[&str], status: i32) -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("set");
    run(clipcap().arg("prepare").arg(folder).args(flags).arg("-o").arg(&out), status);
    let table = out.join("captions.parquet");
    let columns = ["image_id", "split", "caption"].map(|column| texts(&table, column));
    (0..columns[0].len()).map(|at| columns.iter().map(|column| column[at].as_str()).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn an_imagefolder_has_its_splits_and_names_of_its_own_folders() {
    let folder = Folder::new();
    let root = folder.path("hf");
    // The same name in every split: another picture each time.
    for (split, shade) in [("train", 1), ("validation", 2), ("test", 3)] {
        picture(&root.join(split).join("0001.png"), shade);
        let text = format!("{{\"file_name\": \"0001.png\", \"text\": \"第 {shade} 张\"}}\n");
        fs::write(root.join(split).join("metadata.jsonl"), text).unwrap();
    }
    fs::write(root.join("README.md"), "# words").unwrap();
    let files = look(&root, &[]);
    assert_eq!(files.len(), 3);
    let train = &files["train/metadata.jsonl"];
    assert_eq!((train["layout"].as_str(), train["split"].as_str()), (Some("imagefolder (jsonl)"), Some("train")));
    assert_eq!((train["images_found"].as_u64(), train["language"].as_str()), (Some(1), Some("zh")));
    assert_eq!(rows(&root, &[], 0), ["test/0001 test 第3张", "train/0001 train 第1张", "validation/0001 dev 第2张"]);
}

#[test]
fn sidecars_are_captions_whatever_their_encoding() {
    let folder = Folder::new();
    let root = folder.path("kohya");
    for (name, shade) in [("a.png", 1), ("b.png", 2), ("in/c.png", 3)] {
        picture(&root.join(name), shade);
    }
    fs::write(root.join("a.txt"), "一只 狗\n两只 狗\n").unwrap();
    fs::write(root.join("b.caption"), [0xd2, 0xbb, 0xd6, 0xbb, 0xc3, 0xa8]).unwrap();
    fs::write(root.join("in/c.txt"), "一只鸟").unwrap();
    let files = look(&root, &[]);
    let sidecars = &files["3 sidecar files"];
    assert_eq!((sidecars["layout"].as_str(), sidecars["rows"].as_u64()), (Some("sidecars"), Some(4)));
    assert_eq!(sidecars["encoding"], "gbk, utf-8");
    assert_eq!(rows(&root, &[], 0), ["a - 一只狗", "a - 两只狗", "b - 一只猫", "in/c - 一只鸟"]);
}

#[test]
fn columns_and_files_in_several_languages_are_one_choice() {
    let folder = Folder::new();
    let root = folder.path("set");
    for (name, shade) in [("1.png", 1), ("2.png", 2)] {
        picture(&root.join("pictures").join(name), shade);
    }
    fs::write(root.join("both.csv"), "图片,caption_zh,caption_en\n1.png,一只狗,a dog\n2.png,一只猫,a cat\n").unwrap();
    fs::write(root.join("english.tsv"), "1.png\tone dog\n2.png\tone cat\n").unwrap();
    fs::write(root.join("notes.txt"), "nothing of use\n").unwrap();
    fs::write(root.join("instances.json"), r#"{"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"bbox": [1]}]}"#)
        .unwrap();
    let files = look(&root, &[]);
    assert_eq!((files["both.csv"]["taken"].as_bool(), files["both.csv"]["language"].as_str()), (Some(true), Some("zh")));
    assert!(files["english.tsv"]["why_not"].as_str().unwrap().contains("--language en"), "{files:?}");
    assert!(files["notes.txt"]["taken"] == false && files["instances.json"]["why_not"] == "JSON without captions");
    assert_eq!(rows(&root, &[], 0), ["1 - 一只狗", "2 - 一只猫"]);
    assert_eq!(rows(&root, &["--language", "en"], 0), ["1 - a dog", "1 - one dog", "2 - a cat", "2 - one cat"]);
    // What was found is what is told before the work.
    let output = run(clipcap().arg("prepare").arg(&root).arg("-o").arg(folder.path("out")), 0);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("both.csv") && said.contains("captions from caption_zh (--language en takes the other)"), "{said}");
}

#[test]
fn chinese_headers_in_gbk_are_read_and_the_same_captions_once() {
    let folder = Folder::new();
    let root = folder.path("excel");
    picture(&root.join("1.png"), 1);
    // 图片,说明 and 1.png,一只狗
    let gbk = [
        &[0xcd, 0xbc, 0xc6, 0xac, b',', 0xcb, 0xb5, 0xc3, 0xf7, b'\r', b'\n'][..],
        b"1.png,",
        &[0xd2, 0xbb, 0xd6, 0xbb, 0xb9, 0xb7, b'\r', b'\n'],
    ]
    .concat();
    fs::write(root.join("a.csv"), gbk).unwrap();
    fs::write(root.join("b.jsonl"), "{\"image\": \"1.png\", \"caption\": \"一只狗\"}\n").unwrap();
    let files = look(&root, &[]);
    assert_eq!((files["a.csv"]["encoding"].as_str(), files["a.csv"]["layout"].as_str()), (Some("gbk"), Some("csv")));
    assert_eq!(files["b.jsonl"]["why_not"], "the same captions as a.csv");
    assert_eq!(rows(&root, &[], 0), ["1 - 一只狗"]);
}

#[test]
fn flickr_and_karpathy_lie_side_by_side() {
    let folder = Folder::new();
    let root = folder.path("flickr30k");
    for (name, shade) in [("1.jpg", 1), ("2.jpg", 2)] {
        picture(&root.join("flickr30k-images").join(name), shade);
    }
    let text = root.join("cn/seg.flickr30kzhbbosontrain.caption.txt");
    fs::create_dir_all(text.parent().unwrap()).unwrap();
    fs::write(&text, "1#zhb#0 一只 狗\n").unwrap();
    fs::write(root.join("cn/seg.flickr30kzhmbosontest.caption.txt"), "2#zhm#0 一只:m 猫:n\n").unwrap();
    let karpathy =
        r#"{"images": [{"sentids": [0], "filename": "1.jpg", "split": "train", "sentences": [{"raw": "a dog", "sentid": 0}]}]}"#;
    fs::write(root.join("dataset_flickr30k.json"), karpathy).unwrap();
    let files = look(&root, &[]);
    let layouts: Vec<_> =
        files.values().map(|file| (file["layout"].as_str().unwrap(), file["taken"].as_bool().unwrap())).collect();
    assert_eq!(layouts, [("flickr-cn", true), ("flickr-cn", true), ("karpathy", false)]);
    assert_eq!(rows(&root, &[], 0), ["1 train 一只狗", "2 test 一只猫"]);
    assert_eq!(rows(&root, &["--language", "en"], 0), ["1 train a dog"]);
}

#[test]
fn what_cannot_be_taken_says_why() {
    let folder = Folder::new();
    let said = |path: &Path| {
        let output = run(clipcap().arg("prepare").arg(path).arg("--dry-run"), 1);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&folder.path("gone")).contains("no such folder"));
    let empty = folder.path("empty");
    picture(&empty.join("1.png"), 1);
    assert!(said(&empty).contains("no captions found in it"));
    fs::write(empty.join("c.tsv"), "7.png\t一只狗\n").unwrap();
    let told = said(&empty);
    assert!(told.contains("names no image in the folder") && told.contains("--captions"), "{told}");
}
