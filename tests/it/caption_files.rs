//! Caption files as people have them: which caption belongs to which picture, and the same scores from a file and from its dataset.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{beside, cases, clipcap, run, tiny_bundle};

/// Text columns of a Parquet table.
fn columns(table: &Path, names: &[&str]) -> Vec<Vec<String>> {
    let rows = crate::common::columns(table, names);
    (0..names.len()).map(|at| rows.iter().map(|row| row[at].clone()).collect()).collect()
}

/// Prepares captions, and gives what each image file (or image without one, by its id in brackets) is said to show.
fn prepared(images: Option<&Path>, captions: &Path, extra: &[&str], status: i32) -> (BTreeMap<String, Vec<String>>, PathBuf) {
    let out = tempfile::tempdir().unwrap().keep().join("set");
    let mut command = clipcap();
    command.arg("prepare").arg("--captions").arg(captions).args(extra).arg("--out").arg(&out);
    if let Some(images) = images {
        command.arg("--images").arg(images);
    }
    run(&mut command, status);
    let [ids, paths] = columns(&out.join("images.parquet"), &["image_id", "image_path"]).try_into().unwrap();
    let files: BTreeMap<String, String> = ids.into_iter().zip(paths).collect();
    let [ids, texts] = columns(&out.join("captions.parquet"), &["image_id", "caption"]).try_into().unwrap();
    let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, text) in ids.into_iter().zip(texts) {
        let file = files[&id].clone();
        said.entry(if file.is_empty() || file == "-" { format!("[{id}]") } else { file }).or_default().push(text);
    }
    (said, out)
}

fn is(found: &BTreeMap<String, Vec<String>>, expected: &[(&str, &[&str])]) {
    let expected: BTreeMap<String, Vec<String>> =
        expected.iter().map(|(file, texts)| (file.to_string(), texts.iter().map(|t| t.to_string()).collect())).collect();
    assert_eq!(*found, expected);
}

fn errors(dataset: &Path) -> Vec<(String, String)> {
    let [reasons, messages] = columns(&beside(dataset, "errors.parquet"), &["reason", "message"]).try_into().unwrap();
    reasons.into_iter().zip(messages).collect()
}

fn evaluate(folder: &Path, args: &[&str]) -> Value {
    let output = run(clipcap().arg("evaluate").args(args).arg("--json").current_dir(folder), 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_file_name_decides_which_picture_a_caption_is_of() {
    let data = cases("data");
    let two = data.join("two");
    for name in [
        "coco_zero.json",
        "coco_swap.json",
        "swap_image_id_file_name.csv",
        "swap_image_id_file_name.jsonl",
        "control_id_filename.csv",
        "karpathy.json",
    ] {
        let (said, _) = prepared(Some(&two), &data.join(name), &[], 0);
        is(&said, &[("1.png", &["一号图的描述"]), ("2.png", &["二号图的描述"])]);
    }
    let (said, out) = prepared(Some(&two), &data.join("coco.json"), &[], 3);
    is(&said, &[("[1]", &["一只狗"]), ("[2]", &["一只猫"])]);
    assert!(
        errors(&out)
            .iter()
            .all(|(reason, text)| reason == "image_conflict" && text.contains("001/1.png") && text.contains("002/1.png"))
    );
}

#[test]
fn an_id_of_no_listed_image_is_no_files_name() {
    let two = cases("data/two");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("captions.json");
    let said = |images: Value, status: i32| {
        let annotations = json!([{"image_id": 1, "caption": "一号图的描述"}, {"image_id": 2, "caption": "二号图的描述"}]);
        fs::write(&path, json!({"annotations": annotations, "images": images}).to_string()).unwrap();
        let (said, out) = prepared(Some(&two), &path, &[], status);
        (said, if status == 0 { Vec::new() } else { errors(&out) })
    };
    // Whatever a tool calls the member.
    for name in ["file_name", "filename", "path", "coco_url"] {
        let (found, _) = said(json!([{"id": 1, name: "http://images/2.png"}, {"id": 2, name: "http://images/1.png"}]), 0);
        is(&found, &[("1.png", &["二号图的描述"]), ("2.png", &["一号图的描述"])]);
    }
    // An image that is not listed, or whose file is said in a way that is not known.
    for rest in [json!({"id": 3, "file_name": "3.png"}), json!({"id": 2, "uri": "x/1.png"})] {
        let (found, told) = said(json!([{"id": 1, "file_name": "1.png"}, rest]), 3);
        is(&found, &[("1.png", &["一号图的描述"])]);
        assert!(told.iter().any(|(reason, text)| reason == "missing_image" && text.contains("image_id 2")), "{told:?}");
    }
    // Files for scores alone have ids and nothing else.
    let (found, _) = said(json!([{"id": 1}, {"id": 2}]), 3);
    is(&found, &[("1.png", &["一号图的描述"]), ("2.png", &["二号图的描述"])]);
    let (found, told) =
        said(json!([{"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}, {"id": 2, "file_name": "2.png"}]), 3);
    is(&found, &[("2.png", &["二号图的描述"])]);
    assert!(told.iter().any(|(reason, text)| reason == "image_conflict" && text.contains("both 1.png and 2.png")), "{told:?}");
}

#[test]
fn no_file_has_two_names_and_no_name_two_files() {
    let data = cases("data");
    let two = data.join("two");
    let (said, out) = prepared(Some(&two), &data.join("cls.tsv"), &[], 3);
    assert_eq!((said.len(), said.keys().filter(|file| file.starts_with('[')).count()), (4, 4));
    let told = errors(&out);
    assert_eq!(told.len(), 4);
    assert!(
        told.iter().all(|(reason, text)| reason == "image_conflict" && text.contains("001/") && text.contains("002/")),
        "{told:?}"
    );
    assert_eq!(prepared(Some(&two), &data.join("cls.jsonl"), &[], 3).0.len(), 2);
    let (said, out) = prepared(Some(&data.join("deep")), &data.join("deep.tsv"), &[], 3);
    is(&said, &[("[test/1]", &["一只猫"]), ("[train/1]", &["一只狗"])]);
    assert_eq!(errors(&out).len(), 2);
    let (said, _) = prepared(Some(&data.join("case")), &data.join("case.tsv"), &[], 0);
    is(&said, &[("b.JPG", &["一只鸟"]), ("b.jpg", &["一条鱼"])]);
}

#[test]
fn a_list_in_a_cell_is_several_captions() {
    let data = cases("data");
    let lists = data.join("lists");
    for references in ["refs_rows.parquet", "refs_list.parquet", "refs_large_list.parquet", "refs_list.csv", "refs_jsonlist.csv"]
    {
        let found = evaluate(&lists, &["--predictions", "pred_plain.parquet", "--references", references, "--tokens", "char"]);
        assert_eq!(found["coverage"]["references"], 6, "{references}");
        let value = |name: &str| found["char"][name].as_f64().unwrap();
        assert!((value("bleu_1") - 1.0).abs() < 1e-4 && (value("cider") - 5.6602).abs() < 1e-4, "{references}: {found}");
        let (said, _) = prepared(None, &lists.join(references), &[], 0);
        assert!(said.len() == 3 && said.values().all(|captions| captions.len() == 2), "{references}");
    }
    // As predictions, and in other layouts and columns.
    let folder = tempfile::tempdir().unwrap();
    let path = lists.join("refs_rows.parquet");
    let references = path.to_str().unwrap();
    for (name, text) in [
        (
            "p.csv",
            "img_id,sentences\na,\"['一只狗在草地上跑', 'x']\"\nb,\"[\"\"两个人在海边走\"\"]\"\nc,\"('一辆红色的车', 'y')\"\n",
        ),
        ("p.tsv", "a\t['一只狗在草地上跑', 'x']\nb\t两个人在海边走\tz\nc\t[\"一辆红色的车\"]\n"),
        (
            "p.jsonl",
            "{\"id\": \"a\", \"text\": \"['一只狗在草地上跑', 'x']\"}\n{\"id\": \"b\", \"text\": [\"两个人在海边走\"]}\n{\"id\": \"c\", \"text\": \"一辆红色的车\"}\n",
        ),
        ("p.json", r#"{"a": "['一只狗在草地上跑', 'x']", "b": ["两个人在海边走"], "c": "一辆红色的车"}"#),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
        let found = evaluate(folder.path(), &["--predictions", name, "--references", references, "--tokens", "char"]);
        assert!((found["char"]["bleu_1"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{name}: {found}");
        assert_eq!(found["coverage"]["images"], 3, "{name}");
    }
}

#[test]
fn ids_of_any_length_and_shape() {
    let data = cases("data");
    let (said, _) = prepared(None, &data.join("ids/big_ids.jsonl"), &[], 0);
    is(&said, &[("[123456789012345678901]", &["一只狗"]), ("[123456789012345678902]", &["一只猫"])]);
    let folder = tempfile::tempdir().unwrap();
    for name in ["391895.png", "42.png", "10.png"] {
        fs::copy(data.join("two/1.png"), folder.path().join(name)).unwrap();
    }
    let expected: [(&str, &[&str]); 3] = [("10.png", &["一只鸟"]), ("391895.png", &["一只狗"]), ("42.png", &["一只猫"])];
    is(&prepared(Some(folder.path()), &data.join("ids/float_ids.jsonl"), &[], 0).0, &expected);
    let table = folder.path().join("t.csv");
    fs::write(&table, "image_id,caption\n391895.0,一只狗\n42.0,一只猫\n10,一只鸟\n").unwrap();
    is(&prepared(Some(folder.path()), &table, &[], 0).0, &expected);
}

#[test]
fn other_encodings_are_told_and_read_on_request() {
    let data = cases("data");
    let text = data.join("text");
    let folder = tempfile::tempdir().unwrap();
    for name in ["gbk_two.tsv", "gbk.csv", "gbk.jsonl"] {
        let out = folder.path().join(name);
        let output = run(clipcap().arg("prepare").arg("--captions").arg(text.join(name)).arg("--out").arg(&out), 1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("--encoding gbk") && !out.exists(), "{said}");
    }
    is(&prepared(None, &text.join("gbk_two.tsv"), &["--encoding", "gbk"], 0).0, &[("[1]", &["一只猫"]), ("[2]", &["一只猫"])]);
    is(&prepared(None, &text.join("gbk.csv"), &["--encoding", "gb18030"], 0).0, &[("[1]", &["一只狗"]), ("[2]", &["一只猫"])]);
    assert_eq!(prepared(None, &text.join("gbk.jsonl"), &["--encoding", "gbk"], 0).0.len(), 8);
    let write = |name: &str, encoding: &'static encoding_rs::Encoding, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, encoding.encode(text).0).unwrap();
        path
    };
    let big5 = write("b.tsv", encoding_rs::BIG5, "1.png\t兩個男人在下棋\n2.png\t一隻貓\n");
    is(&prepared(None, &big5, &["--encoding", "big5"], 0).0, &[("[1]", &["兩個男人在下棋"]), ("[2]", &["一隻貓"])]);
    let utf16: Vec<u8> = "\u{feff}image,caption\r\n1.png,一只猫\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let path = folder.path().join("u.csv");
    fs::write(&path, utf16).unwrap();
    is(&prepared(None, &path, &["--encoding", "utf-16"], 0).0, &[("[1]", &["一只猫"])]);
    // evaluate, report and stats too; a UTF-8 file beside it stays one.
    write("r.tsv", encoding_rs::GBK, "1.png\t一只猫\n2.png\t一只狗在跑\n");
    fs::write(folder.path().join("p.tsv"), "1.png\t一只猫\n2.png\t一只狗在跑\n").unwrap();
    let args = ["--predictions", "p.tsv", "--references", "r.tsv", "--encoding", "gbk", "--tokens", "char"];
    let found = evaluate(folder.path(), &args);
    assert!((found["char"]["rouge_l"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{found}");
    let report = ["report", "p.tsv", "--references", "r.tsv", "--encoding", "gbk", "--out", "r.html"];
    run(clipcap().args(report).current_dir(folder.path()), 0);
    run(clipcap().args(["stats", "r.tsv", "--encoding", "gbk", "--out", "s"]).current_dir(folder.path()), 0);
    let output =
        run(clipcap().args(["evaluate", "--predictions", "r.tsv", "--references", "p.tsv"]).current_dir(folder.path()), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--encoding gbk"));
}

#[test]
fn names_meet_their_files_however_they_are_written() {
    let data = cases("data");
    let nfd = data.join("names_nfd");
    let (cafe, glass) = ("cafe\u{301}.png", "sub/\u{30ab}\u{3099}\u{30e9}\u{30b9}.png");
    is(
        &prepared(Some(&data.join("names")), &data.join("names.tsv"), &[], 0).0,
        &[("50%25.png", &["一只猫"]), ("plain.png", &["一只狗"])],
    );
    is(&prepared(Some(&nfd), &data.join("nfd_path.tsv"), &[], 0).0, &[(cafe, &["一只狗"]), (glass, &["一只猫"])]);
    is(&prepared(Some(&nfd), &data.join("nfd_leading.tsv"), &[], 0).0, &[(cafe, &["一只狗"])]);
    is(&prepared(Some(&nfd), &data.join("nfd_name_alone.tsv"), &[], 0).0, &[(glass, &["一只猫"])]);
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("imgs");
    for name in ["a b/1.png", "a b/2.png", "c/1.png", "c/100% #1.png"] {
        fs::create_dir_all(images.join(name).parent().unwrap()).unwrap();
        fs::copy(data.join("two/1.png"), images.join(name)).unwrap();
    }
    let (said, _) = prepared(Some(&images), &data.join("text/backslash.csv"), &[], 0);
    is(&said, &[("a b/1.png", &["一只狗"]), ("a b/2.png", &["一只鸟"]), ("c/1.png", &["一只猫"])]);
    let (said, _) = prepared(Some(&images), &data.join("text/url.csv"), &[], 0);
    is(&said, &[("a b/1.png", &["一只狗"]), ("c/1.png", &["一只猫"]), ("c/100%25 #1.png", &["一只鸟"])]);
}

#[test]
fn prepare_caption_and_evaluate_call_a_file_the_same() {
    let data = cases("data");
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    for (images, captions) in [("names", "names.tsv"), ("names_nfd", "nfd_path.tsv"), ("case", "case.tsv")] {
        let table = folder.path().join(format!("{images}.csv"));
        let mut command = clipcap();
        command.arg("caption").arg(data.join(images)).arg("--model").arg(&bundle).args(["--max-new-tokens", "3"]);
        run(command.arg("--out").arg(&table), 0);
        let (_, dataset) = prepared(Some(&data.join(images)), &data.join(captions), &[], 0);
        let ids = |text: &str| text.lines().skip(1).map(|line| line.split(',').next().unwrap().to_string()).collect::<Vec<_>>();
        let mut captioned = ids(&fs::read_to_string(&table).unwrap());
        captioned.sort();
        assert_eq!(captioned, columns(&dataset.join("images.parquet"), &["image_id"])[0], "{images}");
        let (table, dataset) = (table.to_str().unwrap(), dataset.to_str().unwrap());
        let raw = data.join(captions);
        for references in [dataset, raw.to_str().unwrap()] {
            let found = evaluate(folder.path(), &["--predictions", table, "--references", references, "--tokens", "char"]);
            assert_eq!((&found["coverage"]["images"], &found["coverage"]["matched_exactly"]), (&json!(2), &json!(2)), "{images}");
        }
    }
}

#[test]
fn a_file_name_decides_over_an_id_in_scores_too() {
    let data = cases("data");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(data.join("eval_pred_files.jsonl"), folder.path().join("p.jsonl")).unwrap();
    let swapped = "image_id,file_name,caption\n1,2.png,两辆红色的车\n2,1.png,一只狗在跑\n";
    fs::write(folder.path().join("r.csv"), swapped).unwrap();
    let (_, dataset) = prepared(Some(&data.join("two")), &folder.path().join("r.csv"), &[], 0);
    for references in ["r.csv", dataset.to_str().unwrap()] {
        let found = evaluate(folder.path(), &["--predictions", "p.jsonl", "--references", references, "--tokens", "char"]);
        assert_eq!(found["coverage"]["images"], 2);
        assert!((found["char"]["rouge_l"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{references}: {found}");
    }
}

#[test]
fn what_python_and_excel_write_is_read() {
    let data = cases("data");
    let text = data.join("text");
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [("nan.jsonl", 3), ("nan.json", 2), ("sep_line.csv", 2)] {
        assert_eq!(prepared(None, &text.join(name), &[], 0).0.len(), count, "{name}");
        let path = text.join(name);
        let path = path.to_str().unwrap();
        let found = evaluate(folder.path(), &["--predictions", path, "--references", path, "--tokens", "char"]);
        assert_eq!(found["coverage"]["images"], count, "{name}");
    }
    let table = folder.path().join("t.tsv");
    fs::write(&table, "a.jpg\t一只狗\t黑狗\nb.jpg\t猫\n").unwrap();
    is(&prepared(None, &table, &[], 0).0, &[("[a]", &["一只狗", "黑狗"]), ("[b]", &["猫"])]);
}

#[test]
fn every_bad_element_of_a_document_in_one_line_has_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    let element =
        |at: usize| json!({"image_id": at, "caption": if at.is_multiple_of(3) { Value::from("狗") } else { Value::Null }});
    let document =
        json!({"images": [{"id": 0, "file_name": "0.jpg"}, {"id": 3}], "annotations": (0..6).map(element).collect::<Vec<_>>()});
    fs::write(&path, document.to_string()).unwrap();
    let (_, out) = prepared(None, &path, &[], 3);
    let messages: Vec<String> = errors(&out).into_iter().map(|(_, message)| message).collect();
    for expected in [
        "element 2 of images",
        "element 2 of annotations",
        "element 3 of annotations",
        "element 5 of annotations",
        "element 6 of annotations",
    ] {
        assert!(messages.iter().any(|message| message.starts_with(expected)), "{expected}: {messages:?}");
    }
    assert_eq!(messages.len(), 5);
}

/// The same three images in every layout.
fn layouts() -> Vec<(&'static str, String)> {
    let images = [
        ("a.jpg", ["一只 黑狗 在 草地 上 跑", "黑狗在跑"]),
        ("b.jpg", ["两个 男人 在 下棋", "two men 在下 ２ 盘棋"]),
        ("c.jpg", ["女孩 在 看书", "犬のカメラ"]),
    ];
    let each = |line: &dyn Fn(&str, usize, &str) -> String| {
        images.iter().flat_map(|(name, texts)| texts.iter().enumerate().map(|(k, text)| line(name, k, text))).collect::<String>()
    };
    let annotations: Vec<Value> = images
        .iter()
        .zip(1..)
        .flat_map(|((_, texts), id)| texts.iter().map(move |text| json!({"image_id": id, "caption": text})))
        .collect();
    let named: Vec<Value> = images.iter().zip(1..).map(|((name, _), id)| json!({"id": id, "file_name": name})).collect();
    let karpathy = |(name, texts): &(&str, [&str; 2])| json!({"filename": name, "split": "test", "sentences": texts.iter().map(|text| json!({"raw": text})).collect::<Vec<_>>()});
    vec![
        ("flickr.txt", each(&|name, k, text| format!("{}#zhb#{k} {text}\n", &name[..1]))),
        ("repeated.txt", each(&|name, _, text| format!("{name}#zhb#0 {text}\n"))),
        ("tagged.txt", each(&|name, k, text| format!("{name}#zhm#{k} {}:n\n", text.replace(' ', ":n ")))),
        ("coco-cn.txt", each(&|name, k, text| format!("{name}#{k}\t{text}\n"))),
        ("lines.tsv", each(&|name, _, text| format!("x/{name}\t{text}\n"))),
        ("wide.tsv", images.iter().map(|(name, texts)| format!("{name}\t{}\t{}\n", texts[0], texts[1])).collect()),
        ("t.csv", format!("image,caption\n{}", each(&|name, _, text| format!("{name},{text}\n")))),
        ("t.jsonl", each(&|name, _, text| json!({"file_name": name, "text": text}).to_string() + "\n")),
        ("karpathy.json", json!({"images": images.iter().map(karpathy).collect::<Vec<_>>(), "dataset": "x"}).to_string()),
        ("coco.json", json!({"images": named, "annotations": annotations}).to_string()),
        ("map.json", Value::Object(images.iter().map(|(name, texts)| (name.to_string(), json!(texts))).collect()).to_string()),
    ]
}

#[test]
fn a_caption_file_and_its_dataset_have_the_same_scores() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.tsv"), "a.jpg\t一只狗在草地上\nb.jpg\t男人下2盘棋\nc.jpg\t犬の女孩 看书\n").unwrap();
    for (name, text) in &layouts() {
        fs::write(folder.path().join(name), text).unwrap();
    }
    for (name, _) in layouts() {
        let path = folder.path().join(name);
        let status = if name == "repeated.txt" { 3 } else { 0 };
        let (_, dataset) = prepared(None, &path, &[], status);
        let score = |predictions: &str, references: &str| {
            let found = evaluate(folder.path(), &["--predictions", predictions, "--references", references]);
            (
                found["char"].clone(),
                found["word"].clone(),
                found["coverage"]["images"].clone(),
                found["coverage"]["references"].clone(),
            )
        };
        let dataset = dataset.to_str().unwrap();
        let raw = score("p.tsv", name);
        assert_eq!((raw.clone(), raw.2.as_u64()), (score("p.tsv", dataset), Some(3)), "{name}");
        // As predictions as well.
        assert_eq!(score(name, "t.csv"), score(dataset, "t.csv"), "{name}");
    }
}

#[test]
fn letters_that_make_no_token_are_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.tsv"), "1\t犬のカメラ\n2\tрыжий кот\n").unwrap();
    let args = ["evaluate", "--predictions", "r.tsv", "--references", "r.tsv", "--tokens", "char", "--json"];
    let every = run(clipcap().args(args).current_dir(folder.path()), 0);
    let scores: Value = serde_json::from_slice(&every.stdout).unwrap();
    assert!((scores["char"]["rouge_l"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(scores["captions"]["char"]["mean_len"], 3.5);
    assert!(!String::from_utf8_lossy(&every.stderr).contains("no token"));
    let strict = run(clipcap().args(args).arg("--strict-tokens").current_dir(folder.path()), 0);
    assert!(
        String::from_utf8_lossy(&strict.stderr).contains("92% of the characters make no token"),
        "{}",
        String::from_utf8_lossy(&strict.stderr)
    );
}
