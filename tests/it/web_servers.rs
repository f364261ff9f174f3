//! Web servers that are no buckets: signed URLs, servers without parts, lists with lines that lead nowhere.

use std::fs;
use std::sync::Arc;

use crate::common::s3::{Fault, Faults, SECRET};
use crate::common::{beside, clipcap, columns, run};
use crate::remote::{World, pack, tables};

/// Web servers that answer reading alone (as signed URLs do), hand out no parts, or have nothing under a URL.
#[test]
fn web_servers_that_know_little_are_read_and_every_line_of_a_list_is_accounted_for() {
    let world = World::new(8);
    let photos: Vec<String> = world.s3.keys().into_iter().filter(|key| key.contains("scene")).collect();
    let (bare, bytes) = (world.at("bare"), world.s3.get(&photos[0]).unwrap());
    fs::create_dir(&bare).unwrap();
    for (number, key) in photos.iter().enumerate() {
        let extension = key.rsplit('.').next().unwrap();
        fs::write(bare.join(format!("{number}.{extension}")), world.s3.get(key).unwrap()).unwrap();
        fs::write(bare.join(format!("{number}.txt")), format!("第{number}张图")).unwrap();
    }
    fs::write(bare.join("filler.bin"), vec![7; 5 << 20]).unwrap();
    pack(&bare, &[], &world.at("set.tar"));
    world.s3.put("set.tar", fs::read(world.at("set.tar")).unwrap());
    world.s3.put("plain", bytes.clone());
    world.s3.put("empty", Vec::new());
    let host = format!("http://127.0.0.1:{}/bucket", world.s3.port);
    let signed = |key: &str| format!("{host}/{key}?X-Amz-Signature={SECRET}");
    world.caption(&[world.at("set.tar")], "here/t.parquet", 0);
    let wanted = tables(&world.at("here"));
    let prepared = |tar: &str, out: &str| {
        let output = run(clipcap().args(["prepare", "--images", tar, "--out"]).arg(world.at(out)), 0);
        assert!(!String::from_utf8_lossy(&output.stderr).contains(SECRET), "{output:?}");
        tables(&world.at(out))
    };
    let dataset = prepared(world.at("set.tar").to_str().unwrap(), "d-here");
    let no_head = |_: u64, method: &str, _: &str| if method == "HEAD" { Fault::Status(403) } else { Fault::None };
    let no_parts = |_: u64, method: &str, _: &str| if method == "HEAD" { Fault::Status(405) } else { Fault::Whole };
    for (number, faults) in [Arc::new(no_head) as Faults, Arc::new(no_parts)].into_iter().enumerate() {
        world.s3.fail(move |number, method, key| faults(number, method, key));
        world.caption(&[signed("set.tar").into()], &format!("there-{number}/t.parquet"), 0);
        assert!(tables(&world.at(&format!("there-{number}"))) == wanted);
        assert!(prepared(&signed("set.tar"), &format!("d-{number}")) == dataset);
        fs::read_dir(world.folder.path().join(".clipcap")).unwrap().flatten().for_each(|entry| {
            assert!(!fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(SECRET)), "{entry:?}");
        });
        let lines = [
            signed("plain"),
            signed("gone"),
            signed("gone.jpg"),
            signed(&photos[0].replace(' ', "%20")),
            format!("{host}/plain"),
            signed("empty"),
        ];
        let (list, out) = (world.at("urls.txt"), format!("list-{number}/t.parquet"));
        fs::write(&list, lines.join("\n")).unwrap();
        let mut caption = world.command(&["caption", "--json", "--max-new-tokens", "4", "--urls"]);
        let told = run(caption.arg(&list).arg("--out").arg(world.at(&out)), 3);
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!(
            (&told["counts"]["found"], &told["counts"]["captioned"], &told["counts"]["failed"]),
            (&5.into(), &2.into(), &2.into()),
            "{told}"
        );
        let errors = columns(&beside(&world.at(&out), "errors.parquet"), &["image_path", "reason"]);
        assert!(errors.iter().all(|row| row[0].contains("/bucket/gone") && row[1] == "vanished"), "{errors:?}");
    }
    // A table of pictures under a signed URL.
    let mut export = clipcap();
    export
        .arg("export")
        .arg(world.at("here/t.parquet"))
        .args(["--quiet", "--to", "parquet", "--images"])
        .arg(world.at("set.tar"));
    run(export.arg("--out").arg(world.at("parquet")), 0);
    world.s3.put("train.parquet", fs::read(world.at("parquet/train-00000.parquet")).unwrap());
    world.s3.fail(no_head);
    world.caption(&[signed("train.parquet").into()], "rows/t.parquet", 0);
    let captions = |out: &str| columns(&world.at(out), &["image_id", "caption"]);
    assert_eq!(captions("rows/t.parquet"), captions("here/t.parquet"));
    tables(&world.at("rows"));
    // A tar that is not there says so where nothing is found.
    let told = world.command(&["caption", &signed("gone.tar"), "--out"]).arg(world.at("x.parquet")).output().unwrap();
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("gone.tar") && !told.contains("permission") && !told.contains(SECRET), "{told}");
}
