//! Lines that are no captions.

use std::collections::{BTreeMap, BTreeSet};

use super::{Folder, ints, manifest, texts};
use crate::common::{beside, clipcap, run};

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
    let bad: BTreeSet<i64> = ints(&beside(&out, "errors.parquet"), "line").into_iter().collect();
    for (at, (line, kind)) in lines.iter().enumerate() {
        let number = at as i64 + 1;
        let found = (good.contains(&number), bad.contains(&number));
        let expected = (*kind == Some(true), *kind == Some(false));
        assert_eq!(found, expected, "line {number}: {}", String::from_utf8_lossy(&line[..line.len().min(60)]));
    }
    let reasons: BTreeMap<String, usize> =
        texts(&beside(&out, "errors.parquet"), "reason").into_iter().fold(BTreeMap::new(), |mut all, reason| {
            *all.entry(reason).or_default() += 1;
            all
        });
    let names: Vec<&str> = reasons.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["bad_id", "control_character", "duplicate_id", "empty_caption", "invalid_utf8", "line_too_long", "no_separator"]
    );
    assert_eq!((reasons["line_too_long"], reasons["duplicate_id"]), (2, 125));
    assert!(texts(&beside(&out, "errors.parquet"), "message").iter().all(|m| !m.contains('\0') && m.len() < 400));
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
    assert_eq!(ints(&beside(&out, "errors.parquet"), "line"), [2, 3, 4, 6, 7, 9]);
    assert_eq!(manifest(&out)["counts"]["blank"], 1);
    // One bad element of a document spoils no other.
    let document = r#"{"images": [{"filename": "1.jpg", "sentences": [{"raw": "\ud800"}]}, {"filename": "2.jpg", "sentences": [{"raw": "狗"}]}, 7]}"#;
    let path = folder.write("h.json", document);
    let out = folder.path("doc");
    run(clipcap().arg("prepare").arg("--captions").arg(&path).arg("--out").arg(&out), 3);
    assert_eq!(texts(&out.join("captions.parquet"), "image_id"), ["2"]);
    assert_eq!(manifest(&out)["counts"]["bad"], 2);
}
