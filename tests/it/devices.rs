//! Devices other than the CPU provider: OpenVINO for real, CUDA's refusal where there is none.

use std::path::Path;

use crate::common::golden::Golden;
use crate::common::{clipcap, columns, embed, golden_bundle, joined, openvino, run, scenes, tiny_bundle};

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn openvino_gives_the_golden_captions() {
    if openvino() {
        Golden::all().iter().for_each(openvino_captions);
    }
}

fn openvino_captions(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["mlp", "bert"] {
        let wanted = golden.expected(&format!("greedy_{kind}_trained_photos"));
        let bundle = golden_bundle(golden, kind, folder.path());
        for (precision, margin) in [("fp32", 0.1), ("bf16", 1.0)] {
            let table = folder.path().join(format!("{kind}-{precision}.parquet"));
            let mut command = clipcap();
            command.arg("caption").arg(&golden.photos).arg("--model").arg(&bundle).arg("--out").arg(&table);
            run(
                command.args(["--device", "openvino", "--precision", precision, "--batch-size", "4"]).args([
                    "--max-new-tokens",
                    "40",
                    "--quiet",
                ]),
                0,
            );
            let mut sure = 0;
            for row in columns(&table, &["image_path", "caption"]) {
                let answer = &wanted[&row[0]];
                if answer["smallest_margin"].as_f64().unwrap() > margin {
                    assert_eq!(joined(&row[1]), answer["text"].as_str().unwrap(), "{kind} {precision} {}", row[0]);
                    sure += 1;
                }
            }
            assert!(sure > 0, "{kind} {precision}");
        }
    }
}

#[test]
fn openvino_embeds_as_the_cpu_does_and_says_where_nodes_compute() {
    if !openvino() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (images, model) = (scenes(folder.path(), 11), tiny_bundle(folder.path()));
    let cpu = embed(&images, &model, folder.path().join("cpu"), &["--device", "cpu"]);
    assert_eq!(cpu.len(), 11);
    for (precision, least) in [("fp32", 0.999_999), ("bf16", 0.999)] {
        // Batches of 4: the last one is padded.
        let flags = ["--device", "openvino", "--precision", precision, "--batch-size", "4"];
        let other = embed(&images, &model, folder.path().join(precision), &flags);
        for (a, b) in cpu.iter().zip(&other) {
            assert!(cosine(a, b) > least, "{precision}: {}", cosine(a, b));
        }
    }
    let mut command = clipcap();
    command.arg("embed").arg("--images").arg(&images).arg("--model").arg(&model).arg("--out").arg(folder.path().join("v"));
    let output = run(command.args(["-v", "--device", "openvino"]), 0);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("image_encoder: ") && said.contains(" nodes on OpenVINO, none elsewhere"), "{said}");
}

#[test]
fn a_device_or_precision_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (images, model) = (scenes(folder.path(), 2), tiny_bundle(folder.path()));
    let refused = |flags: &[&str]| {
        let out = folder.path().join("refused.parquet");
        let mut command = clipcap();
        command.arg("caption").arg(&images).arg("--model").arg(&model).arg("--out").arg(&out);
        let output = run(command.args(flags), 1);
        assert!(!out.exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&["--device", "cpu", "--precision", "bf16"]);
    assert!(said.contains("openvino"), "{said}");
    if !Path::new("/proc/driver/nvidia/version").exists() {
        let said = refused(&["--device", "cuda:3"]);
        assert!(said.contains("cuda:3"), "{said}");
    }
}
