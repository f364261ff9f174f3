//! `clipcap report`, driven as a program.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::report::{HOSTILE, HOSTILE_NAME, data, paths, small, write_table};
use crate::common::{clipcap, run};
use serde_json::{Value, json};

fn report(folder: &Path, args: &[&str]) -> Command {
    let mut command = clipcap();
    command.current_dir(folder).arg("report").args(args).arg("--json");
    command
}

fn summary(folder: &Path, args: &[&str], status: i32) -> Value {
    serde_json::from_slice(&run(&mut report(folder, args), status).stdout).unwrap()
}

#[test]
fn a_page_holds_everything_and_nothing_of_it_is_markup() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, page) = (folder.path(), folder.path().join("r.html"));
    small(folder);
    let args = ["captions.parquet", "--images", "pictures", "--out", "r.html"];
    let found = summary(folder, &args, 3);
    let counts =
        json!({"images": 5, "captions": 6, "failures": 2, "scored": 0, "shown": 5, "pictures": 3, "pictures_missing": 2});
    assert_eq!(found["counts"], counts);
    assert_eq!((&found["pages"], &found["exit_status"]), (&json!(["r.html"]), &json!(3)));

    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(found["bytes"], html.len());
    assert!(!html.contains("alert(1) <b>") && !html.contains("<img") && !html.contains("hacked'</script>"));
    // The two data elements, the pictures and the one script whose hash the policy names.
    assert_eq!(html.matches("<script").count(), 4);
    assert_eq!(html.matches("</script").count(), 4);
    assert!(!html.contains("http://") && !html.contains("https://") && html.contains("default-src 'none'"));
    for text in
        ["<b>9</b><span>images found", "<b>2</b><span>failed", "settings.model.fingerprint", "abcd", "Length in characters"]
    {
        assert!(html.contains(text), "{text}");
    }

    let images = data(&page, "images");
    let names: Vec<&str> = images.as_array().unwrap().iter().map(|image| image["path"].as_str().unwrap()).collect();
    assert_eq!(names, [HOSTILE_NAME, "c.png", "d.jpg", "gone.jpg", "sub/b.png"]);
    let first = json!([[[HOSTILE, -10.5, 12, 0, images[0]["tables"][0][0][4], 0], ["一只狗在草地上", -8.25, 8, 0, 7, 0]]]);
    assert_eq!(images[0]["tables"], first);
    assert!(images[1]["tables"][0][0][5].as_f64().unwrap() > 0.5);
    assert_eq!((&images[2]["missing"], &images[3]["missing"]), (&json!("unsupported_format"), &json!("vanished")));
    let facts = data(&page, "facts");
    assert_eq!(facts["finish_reasons"], json!(["eos", "length", "loop"]));
    assert_eq!(facts["failures"][0], json!([0, "broken.jpg", "corrupt", HOSTILE]));
    let pictures = html.split("class=\"pictures\">").nth(1).unwrap().split("</script>").next().unwrap();
    let lines: Vec<&str> = pictures.lines().collect();
    assert_eq!(lines.iter().map(|line| line.starts_with("/9j/")).collect::<Vec<_>>(), [true, true, false, false, true]);

    // The same bytes again, on any number of threads.
    run(&mut report(folder, &["captions.parquet", "--images", "pictures", "--threads", "1", "--out", "again.html"]), 3);
    assert!(html == fs::read_to_string(folder.join("again.html")).unwrap());
}

#[test]
fn every_layout_of_a_table_gives_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let rows = [("a.jpg", "一只狗", -1.5, 4, "eos"), ("a.jpg", "两只狗", -2.5, 4, "length"), ("s/b.jpg", "<猫>", -3.0, 3, "eos")];
    write_table(&folder.join("t.parquet"), &rows);
    write_table(&folder.join("parts/part-00000.parquet"), &rows[..2]);
    write_table(&folder.join("parts/part-00001.parquet"), &rows[2..]);
    let header = "image_id,image_path,sha256,caption_index,caption,logprob,num_tokens,finish_reason\n";
    let line = |(index, row): (usize, &(&str, &str, f64, i32, &str))| {
        let id = row.0.trim_end_matches(".jpg");
        let csv = format!("{id},{},,{},{},{},{},{}\n", row.0, index % 2, row.1, row.2, row.3, row.4);
        let object = json!({"image_id": id, "image_path": row.0, "caption_index": index % 2, "caption": row.1, "logprob": row.2,
            "num_tokens": row.3, "finish_reason": row.4});
        (csv, format!("{object}\n"))
    };
    let (csv, jsonl): (Vec<_>, Vec<_>) = rows.iter().enumerate().map(line).unzip();
    fs::write(folder.join("t.csv"), header.to_string() + &csv.concat()).unwrap();
    fs::write(folder.join("t.jsonl"), jsonl.concat()).unwrap();
    fs::write(folder.join("t.tsv"), "a.jpg\t一只狗\t两只狗\ns/b.jpg\t<猫>\n").unwrap();
    let images = |table: &str| {
        run(&mut report(folder, &[table, "--out", "r.html"]), 0);
        data(&folder.join("r.html"), "images")
    };
    let wanted = images("t.parquet");
    assert_eq!(wanted[0]["tables"][0][1], json!(["两只狗", -2.5, 4, 1, 3, 0]));
    for table in ["parts", "t.csv", "t.jsonl"] {
        assert_eq!(images(table), wanted, "{table}");
    }
    let tsv = images("t.tsv");
    assert_eq!(
        tsv[0],
        json!({"path": "a.jpg", "tables": [[["一只狗", null, null, null, 3, 0], ["两只狗", null, null, null, 3, 0]]]})
    );
}

#[test]
fn scores_are_those_of_evaluate() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(
        folder.join("refs.txt"),
        "a#0\t一只黑狗在草地上跑\na#1\t黑色的狗在跑\nb#0\t两个男人在下棋\nc#0\t一个女孩在看书\nz#0\t没有\n",
    )
    .unwrap();
    fs::write(folder.join("one.tsv"), "a.jpg\t一只黑狗在草地上跑\nb.jpg\t两个人\nc.jpg\t一个女孩在看书\nd.jpg\t猫\n").unwrap();
    fs::write(folder.join("two.tsv"), "a.jpg\t黑狗\nb.jpg\t两个男人在下棋\nc.jpg\t猫在看书\td\nd.jpg\t猫\n").unwrap();
    let evaluate = |level: &str| -> Value {
        let mut command = clipcap();
        command.current_dir(folder).args([
            "evaluate",
            "--predictions",
            "one.tsv",
            "--references",
            "refs.txt",
            "--compare",
            "two.tsv",
        ]);
        serde_json::from_slice(&run(command.args(["--json", "--tokens", level]), 0).stdout).unwrap()
    };
    for level in ["char", "word"] {
        let args =
            ["one.tsv", "two.tsv", "--references", "refs.txt", "--tokens", level, "--labels", "<one>,two", "--out", "r.html"];
        let (found, wanted) = (summary(folder, &args, 0), evaluate(level));
        for name in ["bleu_1", "bleu_4", "rouge_l", "cider"] {
            assert_eq!(found["scores"][0][name], wanted[level][name], "{name}");
            assert_eq!(found["scores"][1][name], wanted["comparison"][level][name]["second"], "{name}");
        }
        assert_eq!(found["counts"]["scored"], 3);
    }
    let page = folder.join("r.html");
    let html = fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("A: &lt;one&gt;") && html.contains("1 images have no reference. 1 images with references have no caption.")
    );
    let images = data(&page, "images");
    assert_eq!(images[0]["references"], json!(["一只黑狗在草地上跑", "黑色的狗在跑"]));
    assert_eq!(images[2]["tables"][1].as_array().unwrap().len(), 2);
    assert_eq!(images[0]["tables"][0][0][7], 1);
    assert!(images[3].get("references").is_none() && images[3]["tables"][0][0].get(6).is_none());
}

#[test]
fn what_is_suspicious_is_told_at_the_top_and_tables_share_their_axes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let names: Vec<String> = (0..40).map(|number| format!("{number:02}.jpg")).collect();
    let varied: Vec<String> = (0..40).map(|number| format!("第{number}只狗")).collect();
    let rows = |collapsed: usize| -> Vec<_> {
        let text = |at: usize| if at < collapsed { "<一只狗>" } else { varied[at].as_str() };
        names
            .iter()
            .enumerate()
            .map(|(at, name)| (name.as_str(), text(at), -1.0, 4, if at == 39 { "loop" } else { "eos" }))
            .collect()
    };
    write_table(&folder.join("good.parquet"), &rows(1));
    write_table(&folder.join("bad.parquet"), &rows(30));
    let page = |args: &[&str]| {
        summary(folder, &[args, &["--out", "r.html"]].concat(), 0);
        fs::read_to_string(folder.join("r.html")).unwrap()
    };
    let html = page(&["bad.parquet"]);
    assert!(
        html.contains("<strong>The same caption on 30 images</strong> (75% of all): <q lang=\"zh-CN\">&lt;一只狗&gt;</q>"),
        "{html}"
    );
    assert!(html.contains("#view=images&amp;same=%3C%E4%B8%80") && html.contains("#view=images&amp;finish=loop\">1 loops</a>"));
    let html = page(&["good.parquet"]);
    assert!(!html.contains("The same caption") && html.contains("class=\"banner\""));
    // The identity that marks are kept under stays, and is another one for another table.
    let identity = || data(&folder.join("r.html"), "facts")["identity"].as_str().unwrap().to_string();
    let good = identity();
    page(&["good.parquet", "--edge", "100"]);
    assert_eq!(identity(), good);
    page(&["bad.parquet"]);
    assert_ne!(identity(), good);
    let html = page(&["good.parquet", "bad.parquet", "good.parquet", "--labels", "x,y,z"]);
    assert!(html.contains("B: <strong>The same caption on 30 images") && !html.contains("A: <strong>"));
    assert!(
        html.contains("class=\"bar s2\"")
            && html.contains("<li class=\"s1\">B: y</li>")
            && html.matches("histogram: captions").count() == 1
    );
    assert_eq!(data(&folder.join("r.html"), "images")[0]["tables"].as_array().unwrap().len(), 3);
}

#[test]
fn a_large_table_has_pages_that_hold_every_image_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pictures = folder.join("p");
    fs::create_dir(&pictures).unwrap();
    let mut state = 7u32;
    let names: Vec<String> = (0..120).map(|number| format!("{number:03}.jpg")).collect();
    for name in &names {
        let noise = image::RgbImage::from_fn(128, 128, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb([(state >> 8) as u8, (state >> 16) as u8, (state >> 24) as u8])
        });
        noise.save(pictures.join(name)).unwrap();
    }
    let text = |number: usize| if number == 77 { "狗跑在草地狗跑在草地" } else { "一只狗" };
    let rows: Vec<_> =
        names.iter().enumerate().map(|(number, name)| (name.as_str(), text(number), -(number as f64), 4, "eos")).collect();
    write_table(&folder.join("t.parquet"), &rows);
    let table = ["t.parquet", "--images", "p", "--edge", "192", "--page-mb", "1", "--out", "'r 1%.html"];
    let found = summary(folder, &table, 0);
    let pages: Vec<&str> = found["pages"].as_array().unwrap().iter().map(|page| page.as_str().unwrap()).collect();
    assert!(pages.len() > 3, "{pages:?}");
    assert_eq!((pages[0], pages[1], pages[pages.len() - 1]), ("'r 1%.html", "'r 1%.2.html", "'r 1%.worst.html"));
    let (worst, numbered) = (folder.join(pages[pages.len() - 1]), &pages[..pages.len() - 1]);
    assert_eq!(numbered.iter().flat_map(|page| paths(&folder.join(page))).collect::<Vec<_>>(), names);
    for page in &pages {
        let html = fs::read_to_string(folder.join(page)).unwrap();
        assert!(html.len() <= 1 << 20, "{page}: {} bytes", html.len());
        assert!(html.contains("href=\"%27r%201%25%2E2%2Ehtml\"") && html.contains("%2Eworst%2Ehtml\""));
    }
    let worst = paths(&worst);
    assert!(worst.contains(&names[77]) && worst.contains(&names[119]) && !worst.contains(&names[3]), "{worst:?}");

    // A sample, and the pages that are too many now are gone.
    let sample = [&table[..], &["--max-images", "10"]].concat();
    let found = summary(folder, &sample, 0);
    assert_eq!((&found["pages"], &found["counts"]["shown"]), (&json!(["'r 1%.html", "'r 1%.worst.html"]), &json!(10)));
    assert_eq!(paths(&folder.join(pages[0])), names.iter().step_by(12).cloned().collect::<Vec<_>>());
    assert!(fs::read_to_string(folder.join(pages[0])).unwrap().contains("A sample: 10 of 120 images"));
    assert!(!folder.join(pages[1]).exists());
}

#[test]
fn images_come_out_of_a_dataset_that_stores_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (_, pictures) = small(folder);
    fs::write(folder.join("captions.tsv"), "c.png\t一个人在跑步\nsub/b.png\t一个女孩\n").unwrap();
    let mut command = clipcap();
    command.current_dir(folder).args([
        "prepare",
        "--captions",
        "captions.tsv",
        "--with-images",
        "--quiet",
        "--out",
        "set",
        "--images",
    ]);
    // 3: one of the pictures is broken.
    run(command.arg(&pictures), 3);
    let found = summary(folder, &["captions.parquet", "--references", "set", "--out", "r.html"], 0);
    assert_eq!((&found["counts"]["pictures"], &found["counts"]["scored"]), (&json!(3), &json!(2)));
    let named = summary(folder, &["captions.parquet", "--images", "set", "--out", "r.html"], 3);
    assert_eq!((&named["counts"]["pictures"], &named["counts"]["pictures_missing"]), (&json!(3), &json!(2)));
}

#[test]
fn a_pipeline_has_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    small(folder);
    let toml =
        "[pipeline]\nout = 'o'\n[report]\ninput = 'captions.parquet'\nimages = 'pictures'\nlabels = 'mine'\nout = 'o/r.html'\n";
    fs::write(folder.join("p.toml"), toml).unwrap();
    let pipeline = || {
        let output = run(clipcap().current_dir(folder).args(["run", "p.toml", "--json"]), 3);
        let lines = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str::<Value>(lines.lines().last().unwrap()).unwrap()["stages"][0]["ran"].clone()
    };
    assert_eq!((pipeline(), pipeline()), (json!(true), json!(false)));
    write_table(&folder.join("captions.parquet"), &[("c.png", "猫", -1.0, 2, "eos"), ("gone.jpg", "猫", -1.0, 2, "eos")]);
    assert_eq!(pipeline(), json!(true));
    assert_eq!(paths(&folder.join("o/r.html")), ["c.png", "gone.jpg"]);
}

#[test]
fn what_cannot_be_shown_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    small(folder);
    fs::write(folder.join("refs.tsv"), "other\t狗\n").unwrap();
    fs::write(folder.join("mine.html"), "my own page").unwrap();
    let says = |args: &[&str], status: i32, text: &str| {
        let said = String::from_utf8(run(&mut report(folder, args), status).stderr).unwrap();
        assert!(said.contains(text), "{said}");
    };
    says(&["none.parquet", "--out", "r.html"], 1, "none.parquet");
    says(&["captions.parquet", "--images", "nowhere", "--out", "r.html"], 1, "nowhere");
    says(&["captions.parquet", "--references", "refs.tsv", "--out", "r.html"], 1, "no image has a reference");
    says(&["captions.parquet", "--out", "mine.html"], 1, "--overwrite");
    says(&["captions.parquet", "--out", "r.pdf"], 2, ".html");
    says(&["captions.parquet", "--labels", "a,b", "--out", "r.html"], 2, "--labels");
    assert_eq!(fs::read(folder.join("mine.html")).unwrap(), b"my own page");
    assert!(!folder.join("r.html").exists());
    run(&mut report(folder, &["captions.parquet", "--overwrite", "--out", "mine.html"]), 0);
    assert_eq!(paths(&folder.join("mine.html")).len(), 5);
}
