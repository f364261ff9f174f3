//! `clipcap stats`, driven as a program.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{clipcap, files_in, run};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use serde_json::Value;

fn prepared(folder: &Path) -> PathBuf {
    let train: String = (0..40).map(|i| format!("{}#zhb#{} 一个 男人 在 {} 跑步\n", i / 5, i % 5, "很".repeat(i % 7))).collect();
    let test: String = (0..10).map(|i| format!("9{}#zhm#{} 两只:m 狗:n 在:p 草地:n 上:f\n", i / 5, i % 5)).collect();
    fs::write(folder.join("x-train.txt"), train).unwrap();
    fs::write(folder.join("x-test.txt"), test).unwrap();
    let out = folder.join("set");
    run(
        clipcap()
            .arg("prepare")
            .arg("--captions")
            .args([folder.join("x-train.txt"), folder.join("x-test.txt")])
            .arg("--out")
            .arg(&out),
        0,
    );
    out
}

fn figure(out: &Path, unit: &str, split: Option<&str>, column: &str) -> f64 {
    let batch = clipcap::table::open(&out.join("lengths.parquet"), Some("stats/1")).unwrap().next().unwrap().unwrap();
    let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
    let (units, splits, sources) = (text("unit"), text("split"), text("source"));
    let value = |array: &arrow::array::StringArray, at: usize| {
        arrow::array::Array::is_valid(array, at).then(|| array.value(at).to_string())
    };
    let at = (0..batch.num_rows())
        .find(|&at| units.value(at) == unit && value(&splits, at).as_deref() == split && value(&sources, at).is_none())
        .unwrap();
    let values = batch.column_by_name(column).unwrap();
    match values.as_primitive_opt::<Float64Type>() {
        Some(floats) => floats.value(at),
        None => values.as_primitive::<Int64Type>().value(at) as f64,
    }
}

#[test]
fn caption_tables_of_every_form_are_counted_alike() {
    let folder = tempfile::tempdir().unwrap();
    // Two files of one stem: two images.
    let rows = [("a.jpg", ["一只狗", "黑狗"]), ("a.png", ["猫", "一只猫"])];
    let line = |(path, captions): &(&str, [&str; 2])| format!("{path}\t{}\n", captions.join("\t"));
    let csv = |(path, captions): &(&str, [&str; 2])| captions.map(|caption| format!("a,{path},{caption}\n")).concat();
    let header = "image_id,image_path,caption\n".to_string();
    for (name, text) in
        [("t.tsv", rows.iter().map(line).collect::<String>()), ("t.csv", header + &rows.iter().map(csv).collect::<String>())]
    {
        let (table, out) = (folder.path().join(name), folder.path().join(format!("{name}-stats")));
        fs::write(&table, text).unwrap();
        let output = run(clipcap().args(["stats", "--units", "char"]).arg(&table).arg("--out").arg(&out), 0);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with("4 captions of 2 images"), "{name}: {said}");
    }
    // The parts of a folder.
    let set = prepared(folder.path());
    let parts = folder.path().join("parts");
    fs::create_dir(&parts).unwrap();
    fs::copy(set.join("captions.parquet"), parts.join("part-00000.parquet")).unwrap();
    fs::copy(set.join("captions.parquet"), parts.join("part-00001.parquet")).unwrap();
    let output = run(clipcap().args(["stats", "--units", "char"]).arg(&parts).arg("--out").arg(folder.path().join("s")), 0);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("100 captions"));
    let output =
        run(clipcap().args(["stats", "--units", "char"]).arg(folder.path()).arg("--out").arg(folder.path().join("e")), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("neither captions.parquet nor parts"));
}

#[test]
fn lengths_pictures_and_page() {
    let folder = tempfile::tempdir().unwrap();
    let set = prepared(folder.path());
    let vocabulary = folder.path().join("vocab.txt");
    fs::write(&vocabulary, "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n一\n个\n男\n人\n在\n很\n跑\n步\n").unwrap();
    let out = folder.path().join("stats");
    let mut command = clipcap();
    command.arg("stats").arg(&set).arg("--vocab").arg(&vocabulary).args(["--max-len", "10", "--out"]).arg(&out);
    let output = run(&mut command, 0);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("50 captions of 10 images"), "{said}");
    // 7 characters and 0 to 6 more: 40 captions in train; 7 characters each in test.
    let lengths: Vec<usize> = (0..40).map(|i| 7 + i % 7).collect();
    let mean = lengths.iter().sum::<usize>() as f64 / 40.0;
    assert!((figure(&out, "char", Some("train"), "mean") - mean).abs() < 1e-9);
    assert_eq!(figure(&out, "char", Some("test"), "std"), 0.0);
    assert_eq!(
        (figure(&out, "char", None, "min"), figure(&out, "char", None, "max"), figure(&out, "char", None, "count")),
        (7.0, 13.0, 50.0)
    );
    assert_eq!(figure(&out, "token", None, "max"), 13.0);
    let json: Value = serde_json::from_slice(&fs::read(out.join("stats.json")).unwrap()).unwrap();
    // 两 只 狗 草 地 上 are not in the vocabulary: 6 of 7 tokens of the ten test captions.
    assert_eq!(json["unknown_tokens"], 60);
    let cut = lengths.iter().filter(|&&l| l + 1 > 10).count();
    assert_eq!(json["cut"][0]["captions"].as_u64(), Some(cut as u64));
    // A bin for each length from 7 to 13: whole numbers, and not 20 bins of 0.3.
    let bins = json["histograms"]["char"].as_array().unwrap();
    let bin = |bin: &Value| ["from", "to", "count"].map(|key| bin[key].as_u64().unwrap());
    let wanted =
        (7..14).map(|n| [n, n + 1, lengths.iter().filter(|l| **l as u64 == n).count() as u64 + if n == 7 { 10 } else { 0 }]);
    assert_eq!(bins.iter().map(bin).collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    assert!(said.contains(&format!("{:.0}% ({cut}) exceed 10 tokens with [SEP]", cut as f64 * 2.0)), "{said}");
    assert_eq!(json["openings"][0]["top"][0]["text"], "一个");
    for name in ["characters", "words", "tokens", "captions_per_image"] {
        let picture = image::open(out.join(format!("{name}.png"))).unwrap();
        assert!(picture.width() > 800);
        let svg = fs::read_to_string(out.join(format!("{name}.svg"))).unwrap();
        assert!(svg.contains("captions") && svg.contains("<svg"), "{name}");
    }
    assert!(fs::read_to_string(out.join("openings.svg")).unwrap().contains("两只狗在"));
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(
        page.contains("两只") && page.contains("prefers-color-scheme") && !page.contains("<script") && !page.contains("src=")
    );
    for table in ["lengths", "histogram", "captions_per_image", "vocabulary", "phrases", "cut", "words", "duplicates", "overlap"]
    {
        assert!(clipcap::table::open(&out.join(format!("{table}.parquet")), Some("stats/1")).unwrap().count() > 0, "{table}");
    }
}

/// Where the lines, bars and labels of pictures are, and what the tables for others say.
#[test]
fn files_have_the_bytes_that_they_had() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("stats");
    run(clipcap().arg("stats").arg(prepared(folder.path())).arg("--out").arg(&out), 0);
    let wanted = [
        ("captions_per_image.svg", "40239f39ff7c"),
        ("characters.svg", "8f835fe6f118"),
        ("lengths_by_split.svg", "40d549da008c"),
        ("openings.svg", "041bc38ed7ad"),
        ("words.svg", "89dbd8d90aa0"),
        ("stats.json", "37ac3dbde4ac"),
        ("words.csv", "1f01cc5914be"),
    ];
    let found = wanted.map(|(name, _)| {
        let text = fs::read_to_string(out.join(name)).unwrap();
        // Lines that do not begin with a tag are what labels say.
        let lines = text.lines().filter(|line| !name.ends_with(".svg") || line.starts_with('<'));
        let kept: String = lines.flat_map(|line| [line, "\n"]).collect();
        (name, format!("{:.12}", clipcap::files::ContentHash::of(kept)))
    });
    assert_eq!(found, wanted.map(|(name, hash)| (name, hash.to_string())));
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let set = prepared(folder.path());
    let stats = |threads: &str| {
        let out = folder.path().join(threads);
        run(clipcap().arg("stats").arg(&set).args(["--threads", threads, "--out"]).arg(&out), 0);
        files_in(&out)
    };
    assert_eq!(stats("1"), stats("3"));
}

#[test]
fn caption_files_and_tables_of_others_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.tsv");
    fs::write(&path, "1\t一只狗\n1\t<b>猫</b>\n2\t两个人\n").unwrap();
    let out = folder.path().join("stats");
    let output = run(clipcap().args(["--json", "stats"]).arg(&path).args(["--units", "char", "--out"]).arg(&out), 0);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["captions"].as_u64(), json["images"].as_u64()), (Some(3), Some(2)));
    assert!(!fs::read_to_string(out.join("index.html")).unwrap().contains("<b>猫"));
    assert!(!out.join("words.png").exists());
}

#[test]
fn what_cannot_be_counted_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let says = |args: &[&str], status: i32, text: &str| {
        let output = run(clipcap().arg("stats").args(args).arg("--out").arg(folder.path().join("o")), status);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(text), "{said}");
    };
    says(&["/nowhere.parquet"], 1, "/nowhere.parquet");
    let empty = folder.path().join("e.tsv");
    fs::write(&empty, "\n\n").unwrap();
    says(&[empty.to_str().unwrap()], 1, "e.tsv");
    fs::write(&empty, "1\t狗\n").unwrap();
    says(&[empty.to_str().unwrap(), "--units", "token"], 2, "--vocab");
}

#[test]
fn words_repeats_overlaps_and_a_table_for_a_paper() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let picture = |name: &str, seed: u8| {
        fs::create_dir_all(at("p")).unwrap();
        image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([seed.wrapping_mul(37) ^ x as u8, y as u8 * seed, seed]))
            .save(at("p").join(name))
            .unwrap();
    };
    (1..=6).for_each(|seed| picture(&format!("{seed}.png"), seed));
    // A picture of train is in test too.
    fs::copy(at("p/1.png"), at("p/6.png")).unwrap();
    fs::write(at("c_train.tsv"), "1\t一只黑狗\n1\t一只狗在跑\n2\t一只黑狗\n3\t两只猫\n4\t大山\n").unwrap();
    fs::write(at("c_test.tsv"), "5\t一只黑狗\n5\t小鸟\n6\t大山\n6\t小鸟\n").unwrap();
    let mut prepare = clipcap();
    prepare.args(["prepare", "--quiet", "--near-duplicates", "0", "--captions"]).args([at("c_train.tsv"), at("c_test.tsv")]);
    run(prepare.arg("--images").arg(at("p")).arg("--out").arg(at("set")), 0);
    let output = run(clipcap().arg("stats").arg(at("set")).arg("--out").arg(at("stats")), 0);
    let said = String::from_utf8(output.stdout).unwrap();
    for text in [
        "78% (7) say what another caption says",
        "2 captions of test (50%) are in train too",
        "1 pictures of test (50%) are in train too",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let batch = |name: &str| clipcap::table::open(&at("stats").join(name), Some("stats/1")).unwrap().next().unwrap().unwrap();
    let texts = |name: &str, column: &str| -> Vec<String> {
        let batch = batch(name);
        let array = batch.column_by_name(column).unwrap().as_string::<i32>();
        (0..array.len()).map(|at| array.value(at).to_string()).collect()
    };
    let numbers = |name: &str, column: &str| -> Vec<i64> {
        batch(name).column_by_name(column).unwrap().as_primitive::<Int64Type>().values().to_vec()
    };
    assert_eq!(texts("duplicates.parquet", "caption"), ["一只黑狗", "大山", "小鸟"]);
    assert_eq!((numbers("duplicates.parquet", "count"), numbers("duplicates.parquet", "images")), (vec![3, 2, 2], vec![3, 2, 2]));
    assert_eq!(texts("duplicates.parquet", "splits"), ["test,train", "test,train", "test"]);
    let counts = numbers("words.parquet", "count");
    assert!(
        counts.is_sorted_by(|a, b| a >= b) && numbers("words.parquet", "rank") == (1..=counts.len() as i64).collect::<Vec<_>>()
    );
    let csv = fs::read_to_string(at("stats/words.csv")).unwrap();
    assert!(csv.starts_with("\u{feff}rank,word,count,share\n1,") && csv.lines().count() == counts.len() + 1, "{csv}");
    let json: Value = serde_json::from_slice(&fs::read(at("stats/stats.json")).unwrap()).unwrap();
    assert_eq!(json["splits"]["train"], serde_json::json!({"images": 4, "captions": 5}));
    let overlap = |kind: &str, split: &str| {
        json["overlap"].as_array().unwrap().iter().find(|o| o["kind"] == kind && o["split"] == split).unwrap().clone()
    };
    assert_eq!((overlap("caption", "test")["count"].as_u64(), overlap("exact", "test")["of"].as_u64()), (Some(3), Some(4)));
    let tex = fs::read_to_string(at("stats/table.tex")).unwrap();
    assert!(tex.contains("\\toprule\nSplit & Images & Captions & Characters per caption & Words per caption \\\\"), "{tex}");
    assert!(tex.contains("\ntrain & 4 & 5 & $3.6 \\pm 1.1$") && tex.contains("\nall & 6 & 9 & "), "{tex}");
    let page = fs::read_to_string(at("stats/index.html")).unwrap();
    assert!(
        page.contains("Length in characters by split")
            && page.contains("the same pictures")
            && page.contains("print-color-adjust: exact")
    );
    assert!(image::open(at("stats/lengths_by_split.png")).unwrap().width() > 800);
}
