//! A table is anyone's: no path in it leads out of the folder of images. Links in the folder are its owner's, and are followed as in a listing.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, StringArray, StructArray};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use clipcap::table::ParquetSink;
use image::RgbImage;

use crate::common::{beside, clipcap, columns, run, tiny_bundle};

/// A folder of images with a link to a picture beside it, and a picture that is nobody's business.
fn world(root: &Path) {
    fs::create_dir(root.join("images")).unwrap();
    for (name, shade) in [("images/a.png", 10), ("linked.png", 100), ("secret.png", 200)] {
        RgbImage::from_pixel(20, 20, image::Rgb([shade, 9, 9])).save(root.join(name)).unwrap();
    }
    std::os::unix::fs::symlink("../linked.png", root.join("images/link.png")).unwrap();
}

const OUTSIDE: [&str; 4] = ["../secret.png", "a/../../secret.png", "/etc/passwd", "%2e%2e/secret.png"];

#[test]
fn export_stays_inside() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    world(root);
    let mut table = String::from("image_id,image_path,caption\n0,a.png,一\n1,link.png,二\n");
    for (number, path) in (2..).zip(OUTSIDE) {
        table += &format!("{number},{path},密\n");
    }
    fs::write(root.join("t.csv"), table).unwrap();
    for to in ["imagefolder", "webdataset", "parquet"] {
        let out = root.join(to);
        let mut command = clipcap();
        command.args(["export", "--quiet", "--to", to, "--images"]).arg(root.join("images")).arg("--out").arg(&out);
        run(command.arg(root.join("t.csv")), 3);
        let told = columns(&beside(&out, "errors.parquet"), &["reason"]);
        assert_eq!(told.len(), OUTSIDE.len(), "{to}: {told:?}");
        let secret = fs::read(root.join("secret.png")).unwrap();
        let holds = |path: &Path| {
            let bytes = fs::read(path).unwrap_or_default();
            bytes.windows(secret.len()).any(|window| window == secret)
        };
        let mut open = vec![out.clone()];
        while let Some(path) = open.pop() {
            match fs::read_dir(&path) {
                Ok(entries) => open.extend(entries.map(|entry| entry.unwrap().path())),
                Err(_) => assert!(!holds(&path), "{}", path.display()),
            }
        }
    }
}

/// Stored images are those of the dataset's own bytes: a path to a file elsewhere is none.
#[test]
fn a_dataset_stores_what_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    world(root);
    let (model, dataset) = (tiny_bundle(root), root.join("dataset"));
    fs::create_dir(&dataset).unwrap();
    let paths: Vec<&str> = OUTSIDE.into_iter().chain(["a.png"]).collect();
    let picture = fs::read(root.join("images/a.png")).unwrap();
    let bytes: Vec<Option<&[u8]>> = OUTSIDE.iter().map(|_| None).chain([Some(&picture[..])]).collect();
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    let parts: Vec<ArrayRef> = vec![Arc::new(BinaryArray::from(bytes)), Arc::new(StringArray::from(paths))];
    let images: ArrayRef = Arc::new(StructArray::new(fields.into(), parts, None));
    let batch = RecordBatch::try_from_iter([("image", images)]).unwrap();
    let mut sink = ParquetSink::create(&dataset.join("images-00000.parquet"), batch.schema(), "images/1").unwrap();
    sink.write(&batch).unwrap();
    sink.finish().unwrap();
    let out = root.join("t.parquet");
    let mut command = clipcap();
    command.args(["caption", "--quiet", "--device", "cpu", "--max-new-tokens", "3"]).arg(&dataset).arg("--model").arg(&model);
    run(command.arg("--out").arg(&out), 3);
    assert_eq!(columns(&out, &["image_path"]), [["a.png"]]);
    assert_eq!(columns(&beside(&out, "errors.parquet"), &["reason"]), vec![["unreadable"]; OUTSIDE.len()]);
}
