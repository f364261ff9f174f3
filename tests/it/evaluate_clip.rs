//! `evaluate --scorer`: CLIPScore and RefCLIPScore from transformers' embeddings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use serde_json::{Value, json};

use crate::common::golden::Golden;
use crate::common::{clipcap, run, tiny_bundle};

/// Photos with their embeddings, and captions with theirs, all at length 1, as transformers (or numpy) made them.
struct Answers {
    golden: Golden,
    photos: Vec<(String, Vec<f64>)>,
    captions: Vec<(String, Vec<f64>)>,
}

impl Answers {
    fn of(golden: Golden) -> Self {
        let file = golden.tensors("clip_text");
        let rows = |name: &str, texts: &str| {
            let (values, width) = (file.read_f32(name).unwrap(), file.get(name).unwrap().shape[1]);
            let unit = |row: &[f32]| {
                let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                row.iter().map(|x| f64::from(*x) / length).collect()
            };
            golden.texts(texts).into_iter().zip(values.chunks(width).map(unit)).collect()
        };
        let (photos, captions) = (rows("image_embeds", "photos"), rows("text_embeds_normalized", "english"));
        Self { golden, photos, captions }
    }

    fn caption(&self, number: usize) -> &(String, Vec<f64>) {
        &self.captions[number % self.captions.len()]
    }

    /// Means over images of what the paper says, with the caption of each image `shift` behind its number and the two behind that as references.
    fn scores(&self, shift: usize) -> Vec<[f64; 2]> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let each = self.photos.iter().enumerate().map(|(at, (_, image))| {
            let caption = &self.caption(at + shift).1;
            let clip = 2.5 * dot(image, caption).max(0.0);
            let best = [2, 3].map(|more| dot(&self.caption(at + more).1, caption)).into_iter().fold(0.0, f64::max);
            [clip, if clip + best > 0.0 { 2.0 * clip * best / (clip + best) } else { 0.0 }]
        });
        each.collect()
    }

    fn table(&self, path: &Path, shifts: &[usize]) {
        let lines = self.photos.iter().enumerate().flat_map(|(at, (photo, _))| {
            shifts.iter().map(move |shift| json!({"file_name": photo, "caption": self.caption(at + shift).0}).to_string())
        });
        fs::write(path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    }
}

fn mean(scores: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|m| scores.iter().map(|score| score[m]).sum::<f64>() / scores.len() as f64)
}

fn close(found: &Value, wanted: [f64; 2]) {
    for (name, wanted) in ["clip_score", "ref_clip_score"].iter().zip(wanted) {
        assert!((found[name].as_f64().unwrap() - wanted).abs() < 2e-3, "{name}: {found}, not {wanted}");
    }
}

#[test]
fn clip_scores_are_those_of_the_paper() {
    Golden::all().into_iter().for_each(|golden| clip_scores(&Answers::of(golden)));
}

fn clip_scores(golden: &Answers) {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    golden.table(&here("predictions.jsonl"), &[0]);
    golden.table(&here("others.jsonl"), &[1]);
    golden.table(&here("references.jsonl"), &[2, 3]);
    let clip = golden.golden.path("clip_text");
    let evaluate = |more: &[&str]| {
        let mut command = clipcap();
        command.arg("evaluate").arg("--predictions").arg(here("predictions.jsonl"));
        command.arg("--references").arg(here("references.jsonl")).arg("--scorer").arg(&clip).args(more);
        command
    };
    let json = |command: &mut Command| -> Value { serde_json::from_slice(&run(command.arg("--json"), 0).stdout).unwrap() };
    let images = golden.golden.photos.to_str().unwrap();
    let (out, per_image) = (here("scores.json"), here("images.parquet"));
    let files = ["--out", out.to_str().unwrap(), "--per-image", per_image.to_str().unwrap()];
    let found = json(evaluate(&["--images", images, "--bootstrap", "50"]).args(files));
    close(&found["clip"], mean(&golden.scores(0)));
    assert_eq!(found["clip"]["images"].as_u64(), Some(golden.photos.len() as u64));
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(&out).unwrap()).unwrap(), found);
    let interval = &found["intervals"]["clip"]["clip_score"];
    let mean_score = found["clip"]["clip_score"].as_f64().unwrap();
    assert!(interval[0].as_f64().unwrap() <= mean_score && mean_score <= interval[1].as_f64().unwrap(), "{interval}");
    let mut rows = vec![];
    for batch in clipcap::table::open(&per_image, None).unwrap() {
        let batch = batch.unwrap();
        let column = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Float64Type>().clone();
        let (first, second) = (column("clip_score"), column("ref_clip_score"));
        rows.extend((0..batch.num_rows()).map(|row| [first.value(row), second.value(row)]));
    }
    assert_eq!(rows.len(), 2 * golden.photos.len());
    assert!((mean(&rows)[0] - mean_score).abs() < 1e-9);
    // The second table, and what people read.
    let others = here("others.jsonl");
    let found = json(&mut evaluate(&["--images", images, "--compare", others.to_str().unwrap()]));
    let (first, second) = (mean(&golden.scores(0)), mean(&golden.scores(1)));
    let compared = &found["comparison"]["clip"];
    for (m, name) in ["clip_score", "ref_clip_score"].iter().enumerate() {
        assert!((compared[name]["second"].as_f64().unwrap() - second[m]).abs() < 2e-3, "{compared}");
        assert!((compared[name]["difference"].as_f64().unwrap() - (second[m] - first[m])).abs() < 2e-3, "{compared}");
    }
    let text = run(&mut evaluate(&["--images", images, "--compare", others.to_str().unwrap()]), 0).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("RefCLIPScore") && text.contains("clip, second table"), "{text}");
    // Embeddings stand in for the images.
    let (bundle, embeddings) = (bundle(&clip, folder.path()), here("embeddings"));
    let mut embed = clipcap();
    embed.args(["embed", "--quiet", "--images", images, "--model"]).arg(&bundle).arg("--out").arg(&embeddings);
    run(&mut embed, 0);
    close(&json(&mut evaluate(&["--embeddings", embeddings.to_str().unwrap()]))["clip"], mean(&golden.scores(0)));
}

fn bundle(clip: &Path, folder: &Path) -> PathBuf {
    let bundle = folder.join("bundle");
    let mut init = clipcap();
    init.args(["model", "init", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--quiet", "--clip"]).arg(clip);
    run(init.arg("--out").arg(&bundle), 0);
    bundle
}

#[test]
fn images_that_are_not_there_are_left_out_and_told() {
    let golden = Answers::of(Golden::own());
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let photos = here("photos");
    fs::create_dir(&photos).unwrap();
    for (photo, _) in &golden.photos[..3] {
        fs::copy(golden.golden.photos.join(photo), photos.join(photo)).unwrap();
    }
    golden.table(&here("predictions.jsonl"), &[0]);
    golden.table(&here("references.jsonl"), &[2, 3]);
    let clip = golden.golden.path("clip_text");
    let evaluate = |more: &[&str]| {
        let mut command = clipcap();
        command.args(["evaluate", "--json"]).arg("--predictions").arg(here("predictions.jsonl"));
        command.arg("--references").arg(here("references.jsonl")).args(more);
        command
    };
    let output = run(evaluate(&["--images"]).arg(&photos).arg("--scorer").arg(&clip), 0);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    close(&found["clip"], mean(&golden.scores(0)[..3]));
    assert_eq!(found["clip"]["images"].as_u64(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("left out of CLIPScore"));
    let empty = here("empty");
    fs::create_dir(&empty).unwrap();
    fs::copy(golden.golden.photos.join(&golden.photos[0].0), empty.join("another.jpg")).unwrap();
    let refused = run(evaluate(&["--images"]).arg(&empty).arg("--scorer").arg(&clip), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&golden.photos[0].0));
    run(evaluate(&["--images"]).arg(&photos), 2);
    run(evaluate(&["--scorer"]).arg(&clip), 2);
    let blind = run(evaluate(&["--images"]).arg(&photos).arg("--scorer").arg(tiny_bundle(folder.path())), 1);
    assert!(String::from_utf8_lossy(&blind.stderr).contains("no text tower"));
}
