//! Small caption tables for tests of the report, and a look into its pages.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, StringArray};
use arrow::record_batch::RecordBatch;
use clipcap::table::ParquetSink;
use serde_json::{Value, json};

use super::beside;

/// A caption that would do harm as markup: it breaks out of scripts, attributes and comments, calls a server and changes the title.
pub const HOSTILE: &str =
    "</script><!--<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">'\"&amp;\u{2028}狗";

/// An image name with quotes and markup, as a listing gives it.
pub const HOSTILE_NAME: &str = "a\"b' onerror=alert(1) <b>&c;.png";

/// image_path, caption, logprob, num_tokens, finish_reason
pub type Row<'a> = (&'a str, &'a str, f64, i32, &'a str);

fn parquet(path: &Path, format: &str, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut sink = ParquetSink::create(path, batch.schema(), format).unwrap();
    sink.write(&batch).unwrap();
    sink.finish().unwrap();
}

fn text<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from(values.collect::<Vec<_>>()))
}

/// A caption table as `caption` writes it; rows of an image follow each other.
pub fn write_table(path: &Path, rows: &[Row]) {
    let stem = |path: &'_ str| path.rsplit_once('.').map_or(path, |(stem, _)| stem).to_string();
    let ids: Vec<String> = rows.iter().map(|row| stem(row.0)).collect();
    let mut index = 0;
    let indices: Vec<i32> = (0..rows.len())
        .map(|at| {
            index = if at > 0 && rows[at - 1].0 == rows[at].0 { index + 1 } else { 0 };
            index
        })
        .collect();
    parquet(
        path,
        "captions/1",
        vec![
            ("image_id", text(ids.iter().map(String::as_str))),
            ("image_path", text(rows.iter().map(|row| row.0))),
            ("sha256", text(rows.iter().map(|_| ""))),
            ("caption_index", Arc::new(Int32Array::from(indices))),
            ("caption", text(rows.iter().map(|row| row.1))),
            ("logprob", Arc::new(Float64Array::from(rows.iter().map(|row| row.2).collect::<Vec<_>>()))),
            ("num_tokens", Arc::new(Int32Array::from(rows.iter().map(|row| row.3).collect::<Vec<_>>()))),
            ("finish_reason", text(rows.iter().map(|row| row.4))),
        ],
    );
}

/// The errors table and the manifest beside a table.
pub fn write_companions(table: &Path, failures: &[(&str, &str, &str)], counts: Value) {
    parquet(
        &beside(table, "errors.parquet"),
        "errors/1",
        vec![
            ("image_path", text(failures.iter().map(|f| f.0))),
            ("reason", text(failures.iter().map(|f| f.1))),
            ("message", text(failures.iter().map(|f| f.2))),
        ],
    );
    let name = table.file_name().unwrap().to_str().unwrap();
    let manifest = json!({
        "clipcap.format": "captions/1", "table": name, "stage": "caption", "fingerprint": "00ff",
        "settings": {"model": {"fingerprint": "abcd"}, "decoding": {"top_p": 0.8}}, "counts": counts,
    });
    fs::create_dir_all(table.with_file_name(".clipcap")).unwrap();
    fs::write(beside(table, "manifest.json"), manifest.to_string()).unwrap();
}

/// A folder with three readable pictures (one of them with a hostile name), one that is broken, and a table about these and one that is
/// not there. Returns table and folder.
pub fn small(folder: &Path) -> (PathBuf, PathBuf) {
    let pictures = folder.join("pictures");
    fs::create_dir_all(pictures.join("sub")).unwrap();
    for (number, name) in [HOSTILE_NAME, "sub/b.png", "c.png"].into_iter().enumerate() {
        image::RgbImage::from_pixel(300, 200, image::Rgb([60 * number as u8, 90, 200])).save(pictures.join(name)).unwrap();
    }
    fs::write(pictures.join("d.jpg"), "no picture").unwrap();
    let table = folder.join("captions.parquet");
    write_table(
        &table,
        &[
            (HOSTILE_NAME, HOSTILE, -10.5, 12, "eos"),
            (HOSTILE_NAME, "一只狗在草地上", -8.25, 8, "eos"),
            ("c.png", "一个人在跑步一个人在跑步一个人在跑步", -30.0, 20, "length"),
            ("d.jpg", "两只猫", -4.0, 4, "eos"),
            ("gone.jpg", "", -1.0, 1, "loop"),
            ("sub/b.png", "一个女孩在看书", -7.0, 8, "eos"),
        ],
    );
    let failures = [("broken.jpg", "corrupt", HOSTILE), ("empty <i>.jpg", "empty", "the file is empty")];
    write_companions(&table, &failures, json!({"found": 9, "captioned": 5, "failed": 2, "skipped": 2}));
    (table, pictures)
}

/// The JSON of a page's script element.
pub fn data(page: &Path, id: &str) -> Value {
    let html = fs::read_to_string(page).unwrap();
    let start = format!("<script type=\"application/json\" id=\"{id}\">");
    let rest = &html[html.find(&start).unwrap_or_else(|| panic!("{}: no {id}", page.display())) + start.len()..];
    serde_json::from_str(&rest[..rest.find("</script>").unwrap()]).unwrap()
}

/// The images on a page by their paths.
pub fn paths(page: &Path) -> Vec<String> {
    data(page, "images").as_array().unwrap().iter().map(|image| image["path"].as_str().unwrap().to_string()).collect()
}
