//! `clipcap prepare`, driven as a program: every layout, hostile lines, images, splits, and the same bytes each time.

mod discover;
mod images;
mod lines;
mod scores;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{beside, clipcap, files_in, run};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use serde_json::Value;

fn batches(path: &Path) -> Vec<RecordBatch> {
    clipcap::table::open(path, None).unwrap().map(|batch| batch.unwrap()).collect()
}

/// A text column; nulls as "-".
fn texts(path: &Path, column: &str) -> Vec<String> {
    let value = |array: &arrow::array::StringArray, at| if array.is_null(at) { "-".into() } else { array.value(at).to_string() };
    batches(path)
        .iter()
        .flat_map(|batch| {
            let array = batch.column_by_name(column).unwrap().as_string::<i32>();
            (0..array.len()).map(|at| value(array, at)).collect::<Vec<_>>()
        })
        .collect()
}

fn ints(path: &Path, column: &str) -> Vec<i64> {
    batches(path)
        .iter()
        .flat_map(|batch| {
            let array = batch.column_by_name(column).unwrap();
            match array.as_primitive_opt::<Int64Type>() {
                Some(array) => array.values().to_vec(),
                None => array.as_primitive::<Int32Type>().values().iter().map(|&v| i64::from(v)).collect(),
            }
        })
        .collect()
}

fn manifest(dataset: &Path) -> Value {
    serde_json::from_slice(&fs::read(beside(dataset, "manifest.json")).unwrap()).unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A picture whose pixels depend on `seed`, smoothly.
    fn picture(&self, name: &str, width: u32, height: u32, seed: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let wave = |a: u32, b: u32, k: u32| {
            (((a * (k + 3) + b * (seed % 7 + 1)) as f32 / (5.0 + (seed * (k + 1) % 11) as f32)).sin() * 100.0 + 128.0) as u8
        };
        image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([wave(x, y, seed), wave(y, x, seed + 1), wave(x, x, seed + 2)])
        })
        .save(&path)
        .unwrap();
        path
    }
}

#[test]
fn the_flickr30k_cn_distribution() {
    let folder = Folder::new();
    let train = folder.write(
        "seg.flickr30kzhbbosontrain.caption.txt",
        "2#zhb#0 两 个 男孩\n2#zhb#1\t穿着 T恤 的 人 在 看 iPhone 15 手机\n10#zhb#0 一只 狗\n",
    );
    let val = folder.write("seg.flickr30kzhbbosonval.caption.txt", "30#zhb#0 一只 猫\n");
    let test = folder.write("seg.flickr30kzhmbosontest.caption.txt", "40#zhm#0 一架:m 飞机:n 在:p 飞行:v\n");
    let out = folder.path("set");
    run(clipcap().arg("prepare").arg("--captions").args([&test, &train, &val]).arg("--out").arg(&out), 0);
    let table = out.join("captions.parquet");
    assert_eq!(texts(&table, "image_id"), ["10", "2", "2", "30", "40"]);
    assert_eq!(ints(&table, "caption_id"), [0, 0, 1, 0, 0]);
    assert_eq!(texts(&table, "caption"), ["一只狗", "两个男孩", "穿着T恤的人在看iPhone 15手机", "一只猫", "一架飞机在飞行"]);
    assert_eq!(texts(&table, "caption_raw")[4], "一架:m 飞机:n 在:p 飞行:v");
    assert_eq!(texts(&table, "translation"), ["machine", "machine", "machine", "machine", "human"]);
    assert_eq!(texts(&table, "split"), ["train", "train", "train", "dev", "test"]);
    assert_eq!(texts(&table, "source")[0], "seg.flickr30kzhbbosontrain.caption.txt");
    assert_eq!(ints(&table, "line"), [3, 1, 2, 1, 1]);
    assert_eq!(manifest(&out)["clipcap.format"], "dataset/1");
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 5, "the work folder is gone");
}

#[test]
fn every_layout_is_told_by_its_content() {
    let folder = Folder::new();
    let files = [
        ("a", "1.jpg\t一只 狗\n", "tsv"),
        ("b", "1.jpg#0\t一只 狗\n", "coco-cn"),
        ("c", "image_path,en_caption,caption_zh\n1.jpg,\"a, dog\",\"一只 狗\"\n", "csv"),
        ("d", "{\"file_name\": \"1.jpg\", \"text\": \"一只 狗\"}\n", "jsonl"),
        (
            "e",
            "{\"images\": [{\"filename\": \"1.jpg\", \"imgid\": 0, \"split\": \"train\", \"sentences\": [{\"raw\": \"一只 狗\"}]}]}",
            "karpathy",
        ),
        (
            "f",
            "{\"images\": [{\"id\": 1, \"file_name\": \"x_1.jpg\"}], \"annotations\": [{\"id\": 9, \"image_id\": 1, \"caption\": \"一只 狗\"}]}",
            "coco",
        ),
        ("g", "1#zhc#0 一只 狗\n", "flickr-cn"),
    ];
    for (name, text, format) in files {
        let path = folder.write(name, text);
        let out = folder.path(&format!("out-{name}"));
        run(clipcap().arg("prepare").arg("--captions").arg(&path).arg("--out").arg(&out), 0);
        assert_eq!(manifest(&out)["files"][0]["format"], format, "{name}");
        let table = out.join("captions.parquet");
        assert_eq!((texts(&table, "image_id"), texts(&table, "caption")), (vec!["1".into()], vec!["一只狗".into()]), "{name}");
        assert_eq!(texts(&table, "caption_raw"), ["一只 狗"]);
        // The same when it is named.
        let named = folder.path(&format!("named-{name}"));
        run(clipcap().arg("prepare").arg("--format").arg(format).arg("--captions").arg(&path).arg("--out").arg(&named), 0);
        assert_eq!(fs::read(named.join("captions.parquet")).unwrap(), fs::read(table).unwrap());
    }
}

#[test]
fn the_same_bytes_whatever_order_and_threads() {
    let folder = Folder::new();
    let (images, captions) = images::with_images(&folder);
    let more: String = (0..3000).map(|i| format!("{}#zhb#{} 第 {i} 句 话\n", i / 5, i % 5)).collect();
    let more = folder.write("more-train.txt", more);
    let prepare = |name: &str, files: [&PathBuf; 2], threads: &str| {
        let out = folder.path(name);
        let mut command = clipcap();
        command
            .args(["prepare", "--overwrite"])
            .arg("--images")
            .arg(&images)
            .arg("--captions")
            .args(files)
            .arg("--lint")
            .arg("--with-images");
        run(command.arg("--threads").arg(threads).arg("--out").arg(&out), 3);
        files_in(&out)
    };
    let one = prepare("one", [&captions, &more], "1");
    assert_eq!(one.len(), 5);
    assert_eq!(one, prepare("two", [&more, &captions], "4"));
    // And in place of an earlier dataset.
    assert_eq!(one, prepare("one", [&more, &captions], "2"));
}

#[test]
fn splits_by_share_keep_an_image_together_and_adding_images_moves_none() {
    let folder = Folder::new();
    let text = |n: usize| (0..n).map(|i| format!("{i}\t第 {i} 张\n{i}\t另一 句 {i}\n")).collect::<String>();
    let splits = |name: &str, n: usize| -> BTreeMap<String, BTreeSet<String>> {
        let captions = folder.write(&format!("{name}.tsv"), text(n));
        let out = folder.path(name);
        run(
            clipcap()
                .arg("prepare")
                .arg("--captions")
                .arg(&captions)
                .args(["--splits", "train=0.8,dev=0.1,test=0.1", "--out"])
                .arg(&out),
            0,
        );
        let table = out.join("captions.parquet");
        texts(&table, "image_id").into_iter().zip(texts(&table, "split")).fold(BTreeMap::new(), |mut all, (id, split)| {
            all.entry(id).or_default().insert(split);
            all
        })
    };
    let (few, many) = (splits("few", 300), splits("many", 600));
    assert!(many.values().all(|splits| splits.len() == 1));
    assert!(few.iter().all(|(id, splits)| many[id] == *splits));
    let train = many.values().filter(|splits| splits.contains("train")).count();
    assert!((440..520).contains(&train), "{train}");
}

#[test]
fn lint_adds_columns_and_deletes_nothing() {
    let folder = Folder::new();
    let captions = folder.write("c.tsv", "1\t一只狗在草地上跑\n1\t一只狗在草地上跑\n2\ta dog\n2\t一个人\n");
    let out = folder.path("set");
    run(clipcap().arg("prepare").arg("--captions").arg(&captions).arg("--lint").arg("--out").arg(&out), 0);
    let batch = &batches(&out.join("captions.parquet"))[0];
    let marks = |name: &str| batch.column_by_name(name).unwrap().as_boolean().iter().map(|v| v.unwrap()).collect::<Vec<_>>();
    assert_eq!(batch.num_rows(), 4);
    assert_eq!(marks("lint_duplicate"), [false, true, false, false]);
    assert_eq!(marks("lint_no_chinese"), [false, false, true, false]);
    assert_eq!(manifest(&out)["lint"]["lint_residual_latin"], 1);
}

#[test]
fn what_cannot_be_done_says_so_and_leaves_nothing() {
    let folder = Folder::new();
    let captions = folder.write("c.tsv", "1\t狗\n");
    let junk = folder.write("junk.txt", "只有一行\n");
    let says = |args: &[&str], status: i32, text: &str| {
        let output = run(clipcap().arg("prepare").args(args), status);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(text), "{said}");
    };
    let (c, j) = (captions.to_str().unwrap(), junk.to_str().unwrap());
    let out = folder.path("set");
    let out = out.to_str().unwrap();
    says(&["--captions", j, "--out", out], 1, "--format");
    says(&["--captions", "/nowhere/x.tsv", "--out", out], 1, "/nowhere/x.tsv");
    says(&["--captions", c, c, "--out", out], 2, "given twice");
    says(&["--captions", c, "--splits", "train=0.5", "--out", out], 2, "add up");
    says(&["--captions", c, "--columns", "x", "--out", out], 2, "image=A,caption=B");
    assert!(!Path::new(out).exists());
    folder.write("taken/file", "mine");
    let taken = folder.path("taken");
    says(&["--captions", c, "--out", taken.to_str().unwrap()], 1, "--overwrite");
    assert_eq!(fs::read(folder.path("taken/file")).unwrap(), b"mine");
}

#[test]
fn what_a_command_reads_it_does_not_replace() {
    let folder = Folder::new();
    let captions = folder.write("c.tsv", "1\t狗\n");
    let out = folder.path("set");
    run(clipcap().arg("prepare").arg("--captions").arg(&captions).arg("--out").arg(&out), 0);
    let table = fs::read(out.join("captions.parquet")).unwrap();
    let mut commands = [clipcap(), clipcap(), clipcap()];
    commands[0].arg("stats").arg(&out);
    commands[1].args(["embed", "--model", "nowhere", "--dataset"]).arg(&out);
    commands[2].args(["prepare", "--format", "tsv", "--captions"]).arg(out.join("captions.parquet"));
    for command in &mut commands {
        let said = run(command.arg("--overwrite").arg("--out").arg(&out), 2).stderr;
        assert!(String::from_utf8_lossy(&said).contains("is an input: choose another output"));
    }
    assert_eq!(fs::read(out.join("captions.parquet")).unwrap(), table);
}

#[test]
fn captions_as_they_are_published() {
    let shared = crate::common::shared;
    let own = |name: &str| crate::common::checkout().join("tests/fixtures/captions").join(name);
    published([own("flickr30k_zh.csv"), own("coco-cn.txt")], 7, ("/1000000002", "两个人站在蓝色的门前面。"));
    if let (Some(flickr), Some(coco)) =
        (shared("data/captions/flickr30k_zh_1000.csv"), shared("data/captions/coco-cn_ext_3000.txt"))
    {
        published([flickr, coco], 4000, ("/1000092795", "两个毛发发发型的年轻人一边在院子里晃来晃去一边看着自己的手"));
    }
}

/// Files of Flickr30k and COCO in Chinese, how many captions they have, and an image's first one.
fn published(files: [PathBuf; 2], count: u64, (image, caption): (&str, &str)) {
    let folder = Folder::new();
    let out = folder.path("set");
    run(clipcap().arg("prepare").arg("--captions").args(&files).arg("--lint").arg("--out").arg(&out), 0);
    let counts = &manifest(&out)["counts"];
    assert_eq!((counts["captions"].as_u64(), counts["bad"].as_u64()), (Some(count), Some(0)));
    let table = out.join("captions.parquet");
    let at = texts(&table, "image_id").iter().position(|id| id.ends_with(image)).unwrap();
    assert_eq!(texts(&table, "caption")[at], caption);
    let translations: BTreeSet<String> = texts(&table, "translation").into_iter().collect();
    assert_eq!(translations.into_iter().collect::<Vec<_>>(), ["human", "unknown"]);
}
