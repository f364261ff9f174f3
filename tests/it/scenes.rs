//! `clipcap scenes`: the world it renders, and what it says of captions.

use std::fs;

use crate::common::{clipcap, run};
use serde_json::{Map, Value, json};

#[test]
fn captions_are_compared_with_the_scenes_they_are_of() {
    let folder = tempfile::tempdir().unwrap();
    let (scenes, table, out) = (folder.path().join("scenes"), folder.path().join("t.json"), folder.path().join("a.json"));
    run(clipcap().args(["scenes", "--num-images", "120", "--seed", "5", "--quiet", "--out"]).arg(&scenes), 0);
    let captions = |split: &str| -> Vec<(String, String)> {
        let text = fs::read_to_string(scenes.join(format!("captions/scenes-zh-{split}.txt"))).unwrap();
        let lines = text.lines().filter(|line| line.contains("#zh#0 "));
        lines.map(|line| line.split_once("#zh#0 ").map(|(id, caption)| (id.into(), caption.into())).unwrap()).collect()
    };
    let names = |folder: &str| {
        let mut names: Vec<_> = fs::read_dir(scenes.join(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("images").len(), 120);
    assert_eq!(
        names("held-out"),
        captions("test").iter().map(|(id, _)| format!("{id}.jpg").into()).collect::<Vec<std::ffi::OsString>>()
    );
    let check = |captions: &[(String, String)], flags: &[&str], status: i32| {
        let map: Map<String, Value> = captions.iter().map(|(id, caption)| (id.clone(), json!([caption]))).collect();
        fs::write(&table, Value::Object(map).to_string()).unwrap();
        let mut command = clipcap();
        command.args(["scenes", "--seed", "5", "--check"]).arg(&table).args(flags).arg("--out").arg(&out);
        let output = run(&mut command, status);
        if status != 0 {
            return json!(String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&fs::read(&out).unwrap()).unwrap()
    };
    let (train, test) = (captions("train"), captions("test"));
    let all = [train.clone(), test.clone()].concat();
    let told = check(&all, &[], 0);
    assert_eq!((told["scenes"].as_u64(), told["colour_shape_position_right"].as_f64()), (Some(all.len() as u64), Some(1.0)));
    let told = check(&all, &["--split", "test"], 0);
    assert_eq!(told["scenes"].as_u64(), Some(test.len() as u64));
    // Every caption one scene further on: a few are right by chance.
    let shifted: Vec<(String, String)> =
        (0..train.len()).map(|n| (train[n].0.clone(), train[(n + 1) % train.len()].1.clone())).collect();
    let told = check(&shifted, &[], 0);
    assert!(told["colour_shape_position_right"].as_f64().unwrap() < 0.1, "{told}");
    let colour = &told["colour"];
    assert!((0.02..0.5).contains(&colour["right"].as_f64().unwrap()), "{colour}");
    assert!(
        (colour["right"].as_f64().unwrap() + colour["wrong"].as_f64().unwrap() - 1.0).abs() < 1e-9,
        "every caption names a colour"
    );
    let told = check(&[("holiday-7".into(), "红色".into())], &[], 1);
    assert!(told.as_str().unwrap().contains("holiday-7"), "{told}");
    // Another world takes the place of this one only where it may, and whole.
    let another = |flags: &[&str], status: i32| {
        run(clipcap().args(["scenes", "--num-images", "9", "--quiet"]).args(flags).arg("--out").arg(&scenes), status);
    };
    another(&[], 1);
    assert_eq!(names("images").len(), 120);
    another(&["--overwrite"], 0);
    assert_eq!(names("images").len(), 9);
}

#[test]
fn pictures_of_others_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let photo = folder.path().join("images/holiday.jpg");
    fs::create_dir(folder.path().join("images")).unwrap();
    fs::write(&photo, "mine").unwrap();
    let output = run(clipcap().args(["scenes", "--num-images", "3", "--quiet", "--out"]).arg(folder.path()), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("holiday.jpg"));
    assert_eq!(fs::read(&photo).unwrap(), b"mine");
    // What a killed run left makes way.
    fs::remove_file(&photo).unwrap();
    fs::write(folder.path().join("images/scene-000009.jpg"), "half").unwrap();
    run(clipcap().args(["scenes", "--num-images", "3", "--quiet", "--out"]).arg(folder.path()), 0);
    assert_eq!(fs::read_dir(folder.path().join("images")).unwrap().count(), 3);
}
