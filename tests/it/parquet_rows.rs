//! Parquet files of pictures as others write them: one name for several files, one name for several rows, text in every layout.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, LargeStringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;

use crate::common::{clipcap, columns, run, scenes, tiny_bundle};

/// Pictures with names, as pandas and polars write text.
fn write(path: &Path, pictures: &[(&str, Vec<u8>)]) {
    let names: ArrayRef = Arc::new(LargeStringArray::from_iter_values(pictures.iter().map(|(name, _)| name)));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(pictures.iter().map(|(_, bytes)| bytes)));
    let fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::LargeUtf8, true)]);
    let images: ArrayRef = Arc::new(StructArray::new(fields.clone(), vec![bytes, names], None));
    let schema = Arc::new(Schema::new(vec![Field::new("image", DataType::Struct(fields), true)]));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema.clone(), None).unwrap();
    writer.write(&RecordBatch::try_new(schema, vec![images]).unwrap()).unwrap();
    writer.close().unwrap();
}

#[test]
fn no_two_rows_have_one_name_whatever_the_files_say_and_a_job_calls_them_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bundle = tiny_bundle(folder.path());
    let mut pictures: Vec<PathBuf> = fs::read_dir(scenes(folder.path(), 7)).unwrap().map(|entry| entry.unwrap().path()).collect();
    pictures.sort();
    let picture = |number: usize| fs::read(&pictures[number]).unwrap();
    let caption = |files: &[PathBuf], out: &str| {
        let mut command = clipcap();
        command
            .args(["caption", "--quiet", "--max-new-tokens", "4", "--model"])
            .arg(&bundle)
            .args(files)
            .arg("--out")
            .arg(at(out));
        run(&mut command, 0);
        columns(&at(out), &["image_path", "image_id"]).into_iter().map(|row| row.join(" ")).collect::<Vec<_>>()
    };
    // Names that are each a row's own stay as they are.
    write(&at("own.parquet"), &[("a/1.jpg", picture(0)), ("a/2.jpg", picture(1))]);
    assert_eq!(caption(&[at("own.parquet")], "own/t.parquet"), ["a/1.jpg a/1", "a/2.jpg a/2"]);
    let files = [at("train/0000.parquet"), at("test/0000.parquet")];
    write(&files[0], &[("1.jpg", picture(0)), ("2.jpg", picture(1)), ("1.jpg", picture(2)), ("1.png", picture(3))]);
    write(&files[1], &[("1.jpg", picture(4)), ("5.jpg", picture(5)), ("", picture(6))]);
    let called = caption(&files, "single/t.parquet");
    let wanted = [
        "train/0000.parquet/1.jpg train/0000.parquet/1",
        "train/0000.parquet/2.jpg train/0000.parquet/2",
        "train/0000.parquet/00000002 train/0000.parquet/00000002",
        "train/0000.parquet/1.png train/0000.parquet/1.png",
        "test/0000.parquet/1.jpg test/0000.parquet/1",
        "test/0000.parquet/5.jpg test/0000.parquet/5",
        "test/0000.parquet/00000002 test/0000.parquet/00000002",
    ];
    assert_eq!(called, wanted);
    assert_eq!(called.iter().collect::<BTreeSet<_>>().len(), 7);
    let mut plan = clipcap();
    plan.args(["plan", "--quiet", "--max-new-tokens", "4", "--model"]).arg(&bundle).args(&files).arg("--job").arg(at("job"));
    run(&mut plan, 0);
    let mut work = clipcap();
    run(work.args(["caption", "--quiet", "--next=all", "--job"]).arg(at("job")), 0);
    run(clipcap().args(["merge", "--quiet"]).arg(at("job")).arg("--out").arg(at("merged/t.parquet")), 0);
    assert!(fs::read(at("merged/t.parquet")).unwrap() == fs::read(at("single/t.parquet")).unwrap());
}
