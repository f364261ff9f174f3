//! `clipcap prepare`, driven as a program: every layout, hostile lines, images, splits, and the same bytes each time.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use common::{clipcap, run};
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
    serde_json::from_slice(&fs::read(dataset.join("manifest.json")).unwrap()).unwrap()
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
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 4, "the work folder is gone");
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

/// Hostile lines, each with whether it is a caption (true), blank (None) or bad.
fn hostile_lines() -> Vec<(Vec<u8>, Option<bool>)> {
    let mut lines: Vec<(Vec<u8>, Option<bool>)> = Vec::new();
    let mut put = |bytes: &[u8], good: Option<bool>| lines.push((bytes.to_vec(), good));
    for i in 0..125 {
        put(format!("{i}#zhb#0 一只 狗 {i}").as_bytes(), Some(true));
        put(format!("{i}#zhb#1\t两只 猫\r").as_bytes(), Some(true));
        put(format!("\u{feff}{i}#zhb#2 三个 人").as_bytes(), Some(true));
        match i % 5 {
            0 => put(b"", None),
            1 => put(b"  \t ", None),
            2 => put(b"\r", None),
            3 => put(format!("{i} no key at all").as_bytes(), Some(false)),
            _ => put(format!("{i}#zhb#3").as_bytes(), Some(false)),
        }
        put(format!("{i}#zhb#4 N\0L").as_bytes(), Some(false));
        put(&[format!("{i}#zhb#5 ").as_bytes(), b"\xff\xfe\x80"].concat(), Some(false));
        put(format!("{i}#zhb#0 again").as_bytes(), Some(false));
        match i {
            7 => put(&[b"x#zhb#0 ".to_vec(), vec![b'y'; 1_000_000]].concat(), Some(false)),
            8 => put(&vec![0xe7; 1_100_000], Some(false)),
            _ => put(format!("{i}#zhb#nine 狗").as_bytes(), Some(false)),
        }
    }
    lines
}

#[test]
fn a_thousand_hostile_lines_are_all_accounted_for() {
    let folder = Folder::new();
    let lines = hostile_lines();
    assert_eq!(lines.len(), 1000);
    let count = |kind: Option<bool>| lines.iter().filter(|(_, good)| *good == kind).count();
    let text: Vec<u8> = lines.iter().flat_map(|(line, _)| [&line[..], b"\n"].concat()).collect();
    let path = folder.write("hostile.txt", text);
    let out = folder.path("set");
    run(clipcap().arg("prepare").arg("--captions").arg(&path).arg("--out").arg(&out), 3);
    let counts = &manifest(&out)["counts"];
    assert_eq!((counts["lines"].as_u64(), counts["captions"].as_u64()), (Some(1000), Some(count(Some(true)) as u64)));
    assert_eq!((counts["bad"].as_u64(), counts["blank"].as_u64()), (Some(count(Some(false)) as u64), Some(count(None) as u64)));
    let good: BTreeSet<i64> = ints(&out.join("captions.parquet"), "line").into_iter().collect();
    let bad: BTreeSet<i64> = ints(&out.join("errors.parquet"), "line").into_iter().collect();
    for (at, (line, kind)) in lines.iter().enumerate() {
        let number = at as i64 + 1;
        let found = (good.contains(&number), bad.contains(&number));
        let expected = (*kind == Some(true), *kind == Some(false));
        assert_eq!(found, expected, "line {number}: {}", String::from_utf8_lossy(&line[..line.len().min(60)]));
    }
    let reasons: BTreeMap<String, usize> =
        texts(&out.join("errors.parquet"), "reason").into_iter().fold(BTreeMap::new(), |mut all, reason| {
            *all.entry(reason).or_default() += 1;
            all
        });
    let names: Vec<&str> = reasons.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["bad_id", "control_character", "duplicate_id", "empty_caption", "invalid_utf8", "line_too_long", "no_separator"]
    );
    assert_eq!((reasons["line_too_long"], reasons["duplicate_id"]), (2, 125));
    assert!(texts(&out.join("errors.parquet"), "message").iter().all(|m| !m.contains('\0') && m.len() < 400));
}

#[test]
fn hostile_json_is_accounted_for() {
    let folder = Folder::new();
    let lines = [
        "{\"image_id\": 1, \"caption\": \"狗\"}",
        "{\"image_id\": 1, \"caption\": \"\\ud800\"}",
        "{\"image_id\": 1, \"caption\": \"\\udc00 狗\"}",
        "{\"image_id\": 1}",
        "",
        "[]",
        "{\"image_id\": {\"a\": 1}, \"caption\": \"狗\"}",
        "{\"image_id\": 2, \"caption\": \"\\ud83d\\ude00 狗\"}",
        "{\"image_id\": 2, \"caption\": \"\\u0000\"}",
    ];
    let path = folder.write("h.jsonl", lines.join("\n"));
    let out = folder.path("set");
    run(clipcap().arg("prepare").arg("--captions").arg(&path).arg("--out").arg(&out), 3);
    assert_eq!(ints(&out.join("captions.parquet"), "line"), [1, 8]);
    assert_eq!(ints(&out.join("errors.parquet"), "line"), [2, 3, 4, 6, 7, 9]);
    assert_eq!(manifest(&out)["counts"]["blank"], 1);
    // One bad element of a document spoils no other.
    let document = r#"{"images": [{"filename": "1.jpg", "sentences": [{"raw": "\ud800"}]}, {"filename": "2.jpg", "sentences": [{"raw": "狗"}]}, 7]}"#;
    let path = folder.write("h.json", document);
    let out = folder.path("doc");
    run(clipcap().arg("prepare").arg("--captions").arg(&path).arg("--out").arg(&out), 3);
    assert_eq!(texts(&out.join("captions.parquet"), "image_id"), ["2"]);
    assert_eq!(manifest(&out)["counts"]["bad"], 2);
}

/// Ten images in two folders, one bad, one that is no image; captions for nine of them and for one that is missing.
fn with_images(folder: &Folder) -> (PathBuf, PathBuf) {
    for i in 0..9u32 {
        folder.picture(&format!("images/{}/{i}.png", i % 2), 40 + i, 30, i);
    }
    fs::copy(folder.path("images/0/0.png"), folder.path("images/1/copy.png")).unwrap();
    folder.write("images/bad.jpg", "no picture");
    folder.write("images/notes.txt", "no picture either");
    let mut text = String::new();
    for i in 0..9 {
        text.push_str(&format!("{i}\t第 {i} 张\n{i}\t又 一 张 {i}\n"));
    }
    text.push_str("copy\t复制\nbad\t坏\nmissing\t没有\nmissing\t也没有\n");
    (folder.path("images"), folder.write("captions.tsv", text))
}

#[test]
fn images_are_hashed_measured_and_matched() {
    let folder = Folder::new();
    let (images, captions) = with_images(&folder);
    let list = folder.write("test.txt", "copy.png\n");
    let out = folder.path("set");
    let mut command = clipcap();
    command.arg("prepare").arg("--images").arg(&images).arg("--captions").arg(&captions).arg("--out").arg(&out);
    command.arg("--splits").arg("train=1").arg("--split-list").arg(format!("test={}", list.display())).arg("--with-images");
    let output = run(&mut command, 3);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("1 images with 2 captions were not found"), "{said}");
    assert!(said.contains("1 of 1 exact duplicates straddle splits"), "{said}");
    let table = out.join("images.parquet");
    let ids = texts(&table, "image_id");
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "bad", "copy", "missing"]);
    assert_eq!(texts(&table, "image_path")[..2], ["0/0.png", "1/1.png"]);
    let status = texts(&table, "status");
    assert_eq!((status[0].as_str(), status[9].as_str(), status[11].as_str()), ("ok", "failed", "missing"));
    assert_eq!(texts(&table, "reason")[9], "unsupported_format");
    assert_eq!(ints(&table, "width")[..3], [40, 41, 42]);
    assert_eq!(texts(&table, "sha256")[0], clipcap::files::sha256_file(&images.join("0/0.png")).unwrap());
    assert_eq!(texts(&table, "split")[10], "test");
    assert_eq!(ints(&table, "num_captions")[10..], [1, 2]);
    // The bytes, as they are.
    let shard = &batches(&out.join("images-00000.parquet"));
    let image = shard[0].column_by_name("image").unwrap().as_struct();
    let bytes = image.column_by_name("bytes").unwrap().as_binary::<i32>();
    assert_eq!(bytes.value(0), fs::read(images.join("0/0.png")).unwrap());
    assert_eq!(shard.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
    assert_eq!(texts(&out.join("duplicates.parquet"), "other_image_id"), ["copy"]);
}

#[test]
fn a_folder_without_images_is_told() {
    let folder = Folder::new();
    let captions = folder.write("c.tsv", "1\t狗\n");
    fs::create_dir(folder.path("empty")).unwrap();
    let out = folder.path("set");
    let output = run(
        clipcap()
            .arg("prepare")
            .arg("--images")
            .arg(folder.path("empty"))
            .arg("--captions")
            .arg(&captions)
            .arg("--out")
            .arg(&out),
        1,
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("no image was found"));
}

#[test]
fn near_duplicates_are_found_on_request() {
    let folder = Folder::new();
    // Tiles in shades that follow no order, others for each seed.
    let tiles = |name: &str, seed: u32| {
        let shade = |x: u32, y: u32| ((x / 25 * 7919 + y / 25 * 104_729 + 1).wrapping_mul(2_654_435_761 ^ seed) >> 24) as u8;
        let path = folder.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_fn(200, 150, |x, y| image::Rgb([shade(x, y); 3])).save(&path).unwrap();
        path
    };
    let path = tiles("images/a.png", 3);
    tiles("images/other.png", 0x5bd1_e995);
    image::open(&path)
        .unwrap()
        .resize(180, 135, image::imageops::FilterType::Triangle)
        .save(folder.path("images/b.jpg"))
        .unwrap();
    let captions = folder.write("c.tsv", "a\t狗\nb\t狗\nother\t猫\n");
    let out = folder.path("set");
    let mut command = clipcap();
    command
        .arg("prepare")
        .arg("--images")
        .arg(folder.path("images"))
        .arg("--captions")
        .arg(&captions)
        .arg("--near-duplicates")
        .arg("--out")
        .arg(&out);
    run(&mut command, 0);
    let table = out.join("duplicates.parquet");
    assert_eq!(
        (texts(&table, "kind"), texts(&table, "image_id"), texts(&table, "other_image_id")),
        (vec!["near".into()], vec!["a".into()], vec!["b".into()])
    );
}

#[test]
fn the_same_bytes_whatever_order_and_threads() {
    let folder = Folder::new();
    let (images, captions) = with_images(&folder);
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
        let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let one = prepare("one", [&captions, &more], "1");
    assert_eq!(one.len(), 6);
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
fn real_captions() {
    let (Some(flickr), Some(coco)) =
        (common::shared("data/captions/flickr30k_zh_1000.csv"), common::shared("data/captions/coco-cn_ext_3000.txt"))
    else {
        return;
    };
    let folder = Folder::new();
    let out = folder.path("set");
    run(clipcap().arg("prepare").arg("--captions").args([&flickr, &coco]).arg("--lint").arg("--out").arg(&out), 0);
    let counts = &manifest(&out)["counts"];
    assert_eq!((counts["captions"].as_u64(), counts["bad"].as_u64()), (Some(4000), Some(0)));
    let table = out.join("captions.parquet");
    let at = texts(&table, "image_id").iter().position(|id| id.ends_with("/1000092795")).unwrap();
    assert_eq!(texts(&table, "caption")[at], "两个毛发发发型的年轻人一边在院子里晃来晃去一边看着自己的手");
    let translations: BTreeSet<String> = texts(&table, "translation").into_iter().collect();
    assert_eq!(translations.into_iter().collect::<Vec<_>>(), ["human", "unknown"]);
}
