//! Images: matched to captions, hashed, measured, compared.

use std::fs;
use std::path::PathBuf;

use arrow::array::AsArray;
use arrow::record_batch::RecordBatch;

use super::{Folder, batches, ints, texts};
use crate::common::{cases, clipcap, run};

/// Ten images in two folders, one bad, one that is no image; captions for nine of them and for one that is missing.
pub fn with_images(folder: &Folder) -> (PathBuf, PathBuf) {
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
    assert_eq!(texts(&table, "sha256")[0], clipcap::files::ContentHash::of_file(&images.join("0/0.png")).unwrap().to_string());
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
fn a_list_of_images_is_left_out_with_their_captions() {
    let folder = Folder::new();
    let (images, captions) = with_images(&folder);
    let list = folder
        .write("bad.tsv", "image_id\timage_path\tmark\tcaption\n1\t1/1.png\tn\t\n2\t0/2.png\ty\t\n8\t\tn\t\nno\tno.png\tn\t\n");
    let prepare = |out: &str, list: Option<&std::path::Path>| {
        let mut command = clipcap();
        command.arg("prepare").arg("--images").arg(&images).arg("--captions").arg(&captions).arg("--out").arg(folder.path(out));
        command.args(list.map(|list| ["--drop".as_ref(), list.as_os_str()]).into_iter().flatten());
        run(&mut command, 3)
    };
    prepare("all", None);
    let output = prepare("set", Some(&list));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("left out by --drop: 2 images with 4 captions"), "{said}");
    assert!(said.contains("1 of its 3 images are not here: no.png"), "{said}");
    let kept = |ids: Vec<String>| ids.into_iter().filter(|id| id != "1" && id != "8").collect::<Vec<_>>();
    for table in ["images.parquet", "captions.parquet"] {
        let [all, set] = ["all", "set"].map(|name| folder.path(name).join(table));
        assert_eq!(texts(&set, "image_id"), kept(texts(&all, "image_id")), "{table}");
    }
    let [all, set] = ["all", "set"].map(|name| folder.path(name).join("captions.parquet"));
    let pairs = |path: &std::path::Path| -> Vec<(String, String)> {
        texts(path, "image_id").into_iter().zip(texts(path, "caption")).filter(|(id, _)| id != "1" && id != "8").collect()
    };
    assert_eq!(pairs(&set), pairs(&all));
    assert_eq!(super::manifest(&folder.path("set"))["counts"]["dropped"]["captions"], 4);
    // Another list is another dataset; a list that is none says what it should be.
    fs::write(&list, "2\n").unwrap();
    let mut command = clipcap();
    command.arg("prepare").arg("--images").arg(&images).arg("--captions").arg(&captions).arg("--out").arg(folder.path("set"));
    run(command.arg("--drop").arg(&list), 1);
    fs::write(&list, "\n").unwrap();
    let mut command = clipcap();
    command.arg("prepare").arg("--captions").arg(&captions).arg("--out").arg(folder.path("new")).arg("--drop").arg(&list);
    let said = String::from_utf8(run(&mut command, 1).stderr).unwrap();
    assert!(said.contains("no image in it; a list has one image_id or image_path per line"), "{said}");
}

/// Every way in which a file says that it lies on its side: the dataset has its upright size.
#[test]
fn sizes_are_upright() {
    let cases = cases("img");
    let folder = Folder::new();
    let turned = |name: &str| ["exif_", "raw_profile_", "xmp_only_"].iter().any(|begin| name.starts_with(begin));
    let mut lines = String::new();
    for entry in fs::read_dir(cases).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if turned(&name) {
            folder.write(&format!("images/{name}"), fs::read(entry.path()).unwrap());
            lines += &format!("{name}\t侧\n");
        }
    }
    let out = folder.path("set");
    let mut command = clipcap();
    command.arg("prepare").arg("--images").arg(folder.path("images")).arg("--captions").arg(folder.write("c.tsv", lines));
    run(command.arg("--quiet").arg("--out").arg(&out), 0);
    let table = out.join("images.parquet");
    let (widths, heights) = (ints(&table, "width"), ints(&table, "height"));
    assert!(widths.len() >= 12, "{}", widths.len());
    assert!(widths.iter().all(|width| *width == 24) && heights.iter().all(|height| *height == 40), "{widths:?} {heights:?}");
}
