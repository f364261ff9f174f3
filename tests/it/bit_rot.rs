//! One flipped bit in what lies on disk is found before it is used.

use std::fs;
use std::path::Path;

use crate::common::{clipcap, run, scenes, tiny_bundle};

fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let place = at(bytes.len());
    bytes[place] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_bundles_weights_are_checked_before_they_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let (images, model) = (scenes(folder.path(), 4), tiny_bundle(folder.path()));
    let out = |name: &str| folder.path().join(name);
    let caption = |name: &str, status: i32| {
        let output = run(
            clipcap().args(["caption", "--device", "cpu"]).arg(&images).arg("--model").arg(&model).arg("--out").arg(out(name)),
            status,
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let embed = |name: &str, status: i32| {
        let output = run(
            clipcap()
                .args(["embed", "--device", "cpu", "--images"])
                .arg(&images)
                .arg("--model")
                .arg(&model)
                .arg("--out")
                .arg(out(name)),
            status,
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    caption("good.parquet", 0);
    for part in ["gpt2", "mapper", "clip"] {
        let weights = model.join(part).join("model.safetensors");
        let whole = fs::read(&weights).unwrap();
        // In the middle of the numbers, at their end.
        for place in [2, 1] {
            flip(&weights, |length| length - length / 2 * (place - 1) - 1);
            let told = caption("bad.parquet", 1);
            assert!(told.contains(part) && told.contains("its bytes are not those that were written"), "{told}");
            assert!(!out("bad.parquet").exists() && !out("bad.parquet.work").exists());
            assert_eq!(
                embed(&format!("{part}-{place}"), if part == "clip" { 1 } else { 0 }).contains("its bytes"),
                part == "clip"
            );
            run(clipcap().args(["model", "inspect", "--verify"]).arg(&model), 1);
            run(clipcap().args(["doctor", "--device", "cpu", "--model"]).arg(&model), 1);
            fs::write(&weights, &whole).unwrap();
        }
    }
    run(clipcap().args(["model", "inspect", "--verify"]).arg(&model), 0);
    caption("good again.parquet", 0);
    assert_eq!(fs::read(out("good.parquet")).unwrap(), fs::read(out("good again.parquet")).unwrap());
}

/// What a work folder says of itself: with one bit of it changed, nothing of the folder is used, and the table is the same.
#[test]
fn a_work_folders_ledger_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (images, model) = (scenes(folder.path(), 4), tiny_bundle(folder.path()));
    let out = folder.path().join("t.parquet");
    let caption = || {
        let mut command = clipcap();
        command.args(["caption", "--device", "cpu", "--keep-work", "--json", "--max-new-tokens", "4"]).arg(&images);
        let output = run(command.arg("--model").arg(&model).arg("--out").arg(&out), 0);
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (summary["computed"].as_u64().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // As a run leaves it that was stopped before its table was in place.
    let only_the_work = || {
        for name in ["t.parquet", ".clipcap/t.manifest.json"] {
            let _ = fs::remove_file(folder.path().join(name));
        }
    };
    assert_eq!(caption().0, 4);
    let right = fs::read(&out).unwrap();
    only_the_work();
    assert_eq!(caption().0, 0);
    let ledger = folder.path().join("t.parquet.work/ledger.json");
    // In the settings, in the checksum, at the front, at the end.
    for part in [2, 5, 1000, 1] {
        only_the_work();
        flip(&ledger, |length| match part {
            1000 => 3,
            1 => length - 6,
            part => length / part,
        });
        let (computed, told) = caption();
        assert!(computed == 4 && told.contains("ledger.json: damaged") && told.contains("computed again"), "{computed}: {told}");
        assert_eq!(fs::read(&out).unwrap(), right);
    }
    // Beside a finished table the table has it all.
    flip(&ledger, |length| length / 2);
    let (computed, told) = caption();
    assert!(computed == 0 && told.contains("ledger.json: damaged"), "{told}");
    assert_eq!(fs::read(&out).unwrap(), right);
}
