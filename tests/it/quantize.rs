//! `model quantize --calibrate`: static 8-bit weights on ONNX Runtime's CPU provider and on OpenVINO.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::golden::Golden;
use crate::common::{checkout, clipcap, columns, embed, golden_bundle, joined, openvino, run, scenes, tiny_bundle};

/// The trained CLIP and GPT2 of the checkout with a new mapper.
fn demo_bundle(folder: &Path) -> PathBuf {
    let (demo, bundle) = (checkout().join("models/demo"), folder.join("demo"));
    let mut command = clipcap();
    command.args(["model", "init", "--quiet", "--mapper", "mlp", "--seed", "1", "--clip"]).arg(demo.join("clip"));
    run(command.arg("--gpt2").arg(demo.join("gpt2")).arg("--out").arg(&bundle), 0);
    bundle
}

fn quantize(bundle: &Path, calibrate: &Path, out: PathBuf) -> (PathBuf, Value) {
    let mut command = clipcap();
    command.args(["model", "quantize", "--quiet", "--json"]).arg(bundle).arg("--calibrate").arg(calibrate).arg("--out").arg(&out);
    let output = run(&mut command, 0);
    (out, serde_json::from_slice(&output.stdout).unwrap())
}

fn least_cosine(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    a.iter().zip(b).map(cosine).fold(1.0, f64::min)
}

#[test]
fn static_scales_keep_embeddings_and_rows_do_not_influence_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (images, bundle) = (scenes(folder.path(), 40), demo_bundle(folder.path()));
    let (small, record) = quantize(&bundle, &images, folder.path().join("small"));
    let calibration = &record["int8"]["calibration"];
    assert_eq!((&calibration["kind"], &calibration["count"]), (&"images".into(), &40.into()), "{record}");
    assert_eq!(calibration["parts"]["image_encoder"]["in_float"]["visual_projection.weight"], "last");
    assert!(calibration["report"]["cosine_least"].as_f64().unwrap() > 0.999, "{record}");
    assert_eq!(calibration["report"]["captions_compared"], 40);

    // The same inputs, the same bytes; other inputs, another model's identity.
    let (again, _) = quantize(&bundle, &images, folder.path().join("again"));
    assert_eq!(fs::read(small.join("int8.safetensors")).unwrap(), fs::read(again.join("int8.safetensors")).unwrap());
    for graph in ["image_encoder", "mapper", "decoder"] {
        let name = format!("{graph}.int8.onnx");
        assert_eq!(fs::read(small.join(&name)).unwrap(), fs::read(again.join(&name)).unwrap(), "{name}");
    }

    let float = embed(&images, &bundle, folder.path().join("float"), &["--device", "cpu"]);
    let int8 = |batch: &str| {
        let flags = ["--device", "cpu", "--precision", "int8", "--batch-size", batch];
        embed(&images, &small, folder.path().join(format!("int8-{batch}")), &flags)
    };
    let (one, many) = (int8("1"), int8("16"));
    assert!(least_cosine(&float, &many) > 0.999, "{}", least_cosine(&float, &many));
    let apart = one.iter().flatten().zip(many.iter().flatten()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart < 1e-5, "a batch changes an embedding by {apart}");
    if openvino() {
        let flags = ["--device", "openvino", "--precision", "int8", "--batch-size", "16"];
        let there = embed(&images, &small, folder.path().join("openvino"), &flags);
        assert!(least_cosine(&float, &there) > 0.998, "{}", least_cosine(&float, &there));
    }
}

#[test]
fn what_openvino_compiled_is_kept_and_gives_the_same_bytes() {
    if !openvino() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (images, bundle) = (scenes(folder.path(), 5), demo_bundle(folder.path()));
    let (small, _) = quantize(&bundle, &images, folder.path().join("small"));
    // Weights that changed within the last two seconds are not trusted to be the same later.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let embedded = |name: &str, cache: &str| {
        let mut command = clipcap();
        command.arg("embed").arg("--images").arg(&images).arg("--model").arg(&small).arg("--out").arg(folder.path().join(name));
        command.env("XDG_CACHE_HOME", folder.path().join(cache));
        run(command.args(["--quiet", "--device", "openvino", "--precision", "int8"]), 0);
        fs::read(folder.path().join(name).join("part-00000.parquet")).unwrap()
    };
    let kept = || {
        let folders: Vec<_> = fs::read_dir(folder.path().join("cache/clipcap/openvino")).unwrap().collect();
        assert_eq!(folders.len(), 1, "{folders:?}");
        let mut files = fs::read_dir(folders[0].as_ref().unwrap().path()).unwrap().map(|file| file.unwrap().path());
        let blob = files.find(|path| path.extension().is_some_and(|e| e == "blob")).unwrap();
        (fs::metadata(&blob).unwrap().modified().unwrap(), blob)
    };
    let first = embedded("first", "cache");
    let (made, blob) = kept();
    assert_eq!(embedded("second", "cache"), first);
    assert_eq!(kept(), (made, blob.clone()), "it was compiled again");
    // A blob that a bad disk changed is not used, and one that cannot be kept is not needed.
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let damaged = fs::metadata(&blob).unwrap().modified().unwrap();
    assert_eq!(embedded("third", "cache"), first);
    assert_ne!(kept().0, damaged);
    fs::write(folder.path().join("no-folder"), "").unwrap();
    assert_eq!(embedded("fourth", "no-folder"), first);
}

#[test]
fn every_product_in_8_bits_is_computed_in_integers() {
    let folder = tempfile::tempdir().unwrap();
    let (images, bundle) = (scenes(folder.path(), 8), demo_bundle(folder.path()));
    let mut command = clipcap();
    command.args(["model", "quantize", "-v"]).arg(&bundle).arg("--calibrate").arg(&images);
    let output = run(command.arg("--out").arg(folder.path().join("small")), 0);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in ["image_encoder: 24 products in integers", "mapper: 2 products in integers"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.contains("visual_projection.weight is multiplied in float"), "{said}");
    assert!(!said.contains("slower, not wrong") && !said.contains("_int8 is multiplied in float"), "{said}");
}

#[test]
fn static_int8_says_the_same_wherever_the_model_is_sure() {
    Golden::all().iter().for_each(static_int8);
}

fn static_int8(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["mlp", "bert"] {
        let bundle = golden_bundle(golden, kind, folder.path());
        let (small, _) = quantize(&bundle, &golden.photos, folder.path().join(format!("{kind}-int8")));
        let wanted = golden.expected(&format!("greedy_{kind}_trained_photos"));
        let devices = if openvino() { &["cpu", "openvino"][..] } else { &["cpu"] };
        for device in devices {
            let table = folder.path().join(format!("{kind}-{device}.parquet"));
            let mut command = clipcap();
            command.arg("caption").arg(&golden.photos).arg("--model").arg(&small).arg("--out").arg(&table);
            run(command.args(["--precision", "int8", "--device", device, "--max-new-tokens", "40", "--quiet"]), 0);
            for row in columns(&table, &["image_path", "caption"]) {
                let answer = &wanted[&row[0]];
                if answer["smallest_margin"].as_f64().unwrap() > 0.5 {
                    assert_eq!(joined(&row[1]), answer["text"].as_str().unwrap(), "{kind} {device} {}", row[0]);
                }
            }
        }
    }
}

#[test]
fn embeddings_calibrate_what_comes_after_the_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let (images, bundle) = (scenes(folder.path(), 6), tiny_bundle(folder.path()));
    embed(&images, &bundle, folder.path().join("embeddings"), &["--device", "cpu"]);
    let (small, record) = quantize(&bundle, &folder.path().join("embeddings"), folder.path().join("small"));
    let parts = record["int8"]["calibration"]["parts"].as_object().unwrap();
    assert!(parts.contains_key("mapper") && !parts.contains_key("image_encoder"), "{record}");
    // The encoder has a scale for each row, as without calibration.
    assert_eq!(embed(&images, &small, folder.path().join("int8"), &["--device", "cpu", "--precision", "int8"]).len(), 6);
    let mut command = clipcap();
    command.arg("embed").arg("--images").arg(&images).arg("--model").arg(&small).arg("--out").arg(folder.path().join("no"));
    if openvino() {
        let output = run(command.args(["--device", "openvino", "--precision", "int8"]), 1);
        assert!(String::from_utf8_lossy(&output.stderr).contains("--calibrate IMAGES"));
    }
}

#[test]
fn nothing_to_look_at_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let refused = |status| {
        let mut command = clipcap();
        command.args(["model", "quantize", "--quiet"]).arg(&bundle).arg("--calibrate").arg(&empty);
        let output = run(command.arg("--out").arg(folder.path().join("small")), status);
        assert!(!folder.path().join("small").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(1).contains("nothing to look at"));
    fs::write(empty.join("broken.jpg"), b"this is not a picture").unwrap();
    assert!(refused(1).contains("none of 1 files can be read as an image"));
}
