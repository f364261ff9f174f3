//! Captions that are scored in the pass that makes them: `caption --rerank`, `--scorer`, `--keep` and `--min-clip-score`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Int32Type};
use serde_json::Value;

use crate::common::golden::Golden;
use crate::common::{clipcap, columns, run, tiny_bundle};

/// A scored row: image_path, caption_index, caption, clip_score, and the rank where there is one.
type Row = (String, i32, String, Option<f32>, Option<i32>);

fn rows(table: &Path) -> Vec<Row> {
    let mut rows = vec![];
    for batch in clipcap::table::open(table, None).unwrap() {
        let batch = batch.unwrap();
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let (paths, captions) = (text("image_path"), text("caption"));
        let indexes = batch.column_by_name("caption_index").unwrap().as_primitive::<Int32Type>();
        let scores = batch.column_by_name("clip_score").unwrap();
        assert_eq!(scores.data_type(), &DataType::Float32);
        let scores = scores.as_primitive::<Float32Type>();
        let ranks = batch.column_by_name("rank").map(|column| column.as_primitive::<Int32Type>());
        rows.extend((0..batch.num_rows()).map(|row| {
            let score = (!scores.is_null(row)).then(|| scores.value(row));
            let rank = ranks.map(|ranks| ranks.value(row));
            (paths.value(row).into(), indexes.value(row), captions.value(row).into(), score, rank)
        }));
    }
    rows
}

/// A bundle whose CLIP reads text, and photos.
struct World {
    folder: tempfile::TempDir,
    bundle: PathBuf,
    photos: PathBuf,
}

impl World {
    fn new() -> Self {
        let golden = Golden::own();
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        let mut command = clipcap();
        command.args(["model", "import", "--quiet"]).arg("--clip").arg(golden.path("clip_text"));
        command.arg("--gpt2").arg(golden.path("gpt2_en")).arg("--checkpoint").arg(golden.path("original_mlp_trained.pt"));
        run(command.arg("--out").arg(&bundle), 0);
        Self { folder, bundle, photos: golden.photos }
    }

    fn here(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Four sampled captions for each photo.
    fn caption(&self, out: &str, more: &[&str]) -> Command {
        let mut command = clipcap();
        command.arg("caption").arg(&self.photos).arg("--model").arg(&self.bundle).arg("--out").arg(self.here(out));
        command.args(["--quiet", "--temperature", "1.5", "--num-captions", "4", "--max-new-tokens", "12", "--seed", "5"]);
        command.args(more);
        command
    }

    fn table(&self, out: &str, more: &[&str]) -> Vec<Row> {
        run(&mut self.caption(out, more), 0);
        rows(&self.here(out))
    }
}

fn by_image(rows: &[Row]) -> BTreeMap<&str, Vec<&Row>> {
    let mut images: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    rows.iter().for_each(|row| images.entry(&row.0).or_default().push(row));
    images
}

#[test]
fn captions_are_scored_and_ranked_in_one_pass() {
    let world = World::new();
    let all = world.table("all.parquet", &["--rerank"]);
    assert_eq!(by_image(&all).len(), fs::read_dir(&world.photos).unwrap().count());
    // Ranks are those of the scores, equals in order of their numbers.
    for captions in by_image(&all).values() {
        let mut order: Vec<&&Row> = captions.iter().collect();
        order.sort_by(|a, b| b.3.unwrap().total_cmp(&a.3.unwrap()).then(a.1.cmp(&b.1)));
        assert_eq!(order.iter().map(|row| row.4.unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(captions.iter().map(|row| row.1).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
    assert!(all.iter().any(|row| row.1 > 0 && row.4 == Some(1)), "the first is the best everywhere");
    // The captions are those of a run without scores, and the scores those of `score`.
    run(&mut world.caption("plain.parquet", &[]), 0);
    let plain: Vec<String> = columns(&world.here("plain.parquet"), &["caption"]).into_iter().flatten().collect();
    assert_eq!(plain, all.iter().map(|row| row.2.clone()).collect::<Vec<_>>());
    let scored = world.here("scored.parquet");
    let mut score = clipcap();
    score.arg("score").arg(world.here("plain.parquet")).arg("--images").arg(&world.photos).arg("--scorer").arg(&world.bundle);
    run(score.arg("--quiet").arg("--out").arg(&scored), 0);
    for (ours, theirs) in all.iter().zip(rows(&scored)) {
        assert!((ours.3.unwrap() - theirs.3.unwrap()).abs() < 1e-4, "{ours:?} {theirs:?}");
    }
    // The scores alone, and by another name for the same CLIP.
    let alone = world.table("alone.parquet", &["--scorer", world.bundle.to_str().unwrap()]);
    assert!(alone.iter().zip(&all).all(|(a, b)| (a.3, a.4) == (b.3, None)));
    let clip = Golden::own().path("clip_text");
    let again = world.table("again.parquet", &["--rerank", "--scorer", clip.to_str().unwrap()]);
    assert_eq!(again, all);
    // Neither batches nor threads change a byte, and nothing is computed twice.
    let bytes = fs::read(world.here("all.parquet")).unwrap();
    for (batch, threads) in [("1", "1"), ("3", "2"), ("64", "1")] {
        world.table("other.parquet", &["--rerank", "--batch-size", batch, "--threads", threads, "--overwrite"]);
        assert!(fs::read(world.here("other.parquet")).unwrap() == bytes, "batch {batch}, {threads} threads");
    }
    let told = run(&mut world.caption("all.parquet", &["--rerank", "--json"]), 0);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["computed"], 0);
    let refused = run(&mut world.caption("all.parquet", &["--rerank", "--keep", "2"]), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("scoring.keep"), "{refused:?}");
}

#[test]
fn the_best_stay_in_every_format() {
    let world = World::new();
    let all = world.table("all.parquet", &["--rerank"]);
    let best = |most: i32| all.iter().filter(|row| row.4.unwrap() <= most).cloned().collect::<Vec<_>>();
    assert_eq!(world.table("two.parquet", &["--rerank", "--keep", "2"]), best(2));
    assert_eq!(world.table("one.parquet", &["--rerank", "--keep", "1"]), best(1));
    assert_eq!(world.table("many.parquet", &["--rerank", "--keep", "9"]), all);
    for name in ["c.csv", "j.jsonl", "t.tsv"] {
        run(&mut world.caption(name, &["--rerank", "--keep", "2"]), 0);
        // Again, from the table itself.
        let before = fs::read(world.here(name)).unwrap();
        run(&mut world.caption(name, &["--rerank", "--keep", "2"]), 0);
        assert!(fs::read(world.here(name)).unwrap() == before, "{name}");
    }
    let mut csv = csv::Reader::from_path(world.here("c.csv")).unwrap();
    let header: Vec<String> = csv.headers().unwrap().iter().map(String::from).collect();
    assert_eq!(header[8..], ["damaged", "clip_score", "rank"]);
    let found: Vec<(String, String)> = csv.records().map(|r| r.unwrap()).map(|r| (r[9].into(), r[10].into())).collect();
    let wanted: Vec<(String, String)> =
        best(2).iter().map(|row| (row.3.unwrap().to_string(), row.4.unwrap().to_string())).collect();
    assert_eq!(found, wanted);
    let lines = fs::read_to_string(world.here("j.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (line, row) in lines.iter().zip(best(2)) {
        let score = row.3.unwrap().to_string().parse::<f64>().unwrap();
        assert_eq!((line["clip_score"].as_f64(), line["rank"].as_i64()), (Some(score), row.4.map(i64::from)));
    }
    // The original's table has no numbers: the best comes first.
    let tsv = fs::read_to_string(world.here("t.tsv")).unwrap();
    for (line, captions) in tsv.lines().zip(by_image(&best(2)).values()) {
        let mut captions = captions.clone();
        captions.sort_by_key(|row| row.4);
        let words: Vec<&str> = captions.iter().map(|row| row.2.as_str()).collect();
        assert_eq!(line.split('\t').skip(1).collect::<Vec<_>>(), words);
    }
    // A folder of parts, and what evaluate takes for an image's caption.
    run(&mut world.caption("parts/", &["--rerank"]), 0);
    assert_eq!(rows(&world.here("parts/part-00000.parquet")), all);
    let references = world.here("references.jsonl");
    let line = |row: &Row| serde_json::json!({"image": row.0, "caption": row.2}).to_string();
    fs::write(&references, best(1).iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    for table in ["all.parquet", "one.parquet", "c.csv"] {
        let mut evaluate = clipcap();
        evaluate.args(["evaluate", "--json", "--references"]).arg(&references).arg("--predictions").arg(world.here(table));
        let scores: Value = serde_json::from_slice(&run(&mut evaluate, 0).stdout).unwrap();
        assert!(scores["word"]["bleu_1"].as_f64().unwrap() > 0.9999, "{table}: {scores}");
    }
}

#[test]
fn captions_below_a_score_go_and_images_stay_accounted_for() {
    let world = World::new();
    let all = world.table("all.parquet", &["--rerank"]);
    let mut scores: Vec<f32> = by_image(&all).values().map(|rows| rows.iter().filter_map(|r| r.3).fold(-1.0, f32::max)).collect();
    scores.sort_by(f32::total_cmp);
    // Above the best of some images.
    let bound = scores[scores.len() / 3].to_string();
    let min: f32 = bound.parse().unwrap();
    for flags in [&["--rerank"][..], &["--scorer", world.bundle.to_str().unwrap()]] {
        let flags: Vec<&str> = flags.iter().copied().chain(["--min-clip-score", &bound, "--overwrite", "--json"]).collect();
        let told: Value = serde_json::from_slice(&run(&mut world.caption("some.parquet", &flags), 3).stdout).unwrap();
        let left = rows(&world.here("some.parquet"));
        let wanted: Vec<&Row> = all.iter().filter(|row| row.3.unwrap() >= min).collect();
        assert_eq!(
            left.iter().map(|row| (&row.0, row.1)).collect::<Vec<_>>(),
            wanted.iter().map(|r| (&r.0, r.1)).collect::<Vec<_>>()
        );
        let failed = columns(&world.here(".clipcap/some.errors.parquet"), &["image_path", "reason", "message"]);
        assert_eq!(failed.len() + by_image(&left).len(), by_image(&all).len());
        assert!(failed.iter().all(|row| row[1] == "filtered" && row[2].contains("clip_score")), "{failed:?}");
        assert_eq!(told["failed_by_reason"]["filtered"].as_u64(), Some(failed.len() as u64));
    }
}

#[test]
fn another_scorer_sees_the_pictures_itself() {
    let world = World::new();
    let other = Golden::own().path("chinese_clip");
    let other = other.to_str().unwrap();
    let ranked = world.table("ranked.parquet", &["--rerank", "--scorer", other]);
    run(&mut world.caption("plain.parquet", &[]), 0);
    let mut score = clipcap();
    score.arg("score").arg(world.here("plain.parquet")).arg("--images").arg(&world.photos).args(["--scorer", other, "--quiet"]);
    run(score.arg("--out").arg(world.here("scored.parquet")), 0);
    for (ours, theirs) in ranked.iter().zip(rows(&world.here("scored.parquet"))) {
        assert_eq!((&ours.0, &ours.2), (&theirs.0, &theirs.2));
        assert!((ours.3.unwrap() - theirs.3.unwrap()).abs() < 1e-4, "{ours:?} {theirs:?}");
    }
    // Embeddings are the model's own, and stand in for no other's.
    let embeddings = world.here("embeddings");
    let mut embed = clipcap();
    embed.args(["embed", "--quiet", "--images"]).arg(&world.photos).arg("--model").arg(&world.bundle);
    run(embed.arg("--out").arg(&embeddings), 0);
    let embedded = |out: &str, more: &[&str], status: i32| {
        let mut command = clipcap();
        command.args(["caption", "--quiet", "--top-p", "0.9", "--num-captions", "2", "--max-new-tokens", "8", "--model"]);
        command.arg(&world.bundle).arg("--embeddings").arg(&embeddings).arg("--out").arg(world.here(out)).args(more);
        String::from_utf8(run(&mut command, status).stderr).unwrap()
    };
    let message = embedded("no.parquet", &["--rerank", "--scorer", other], 1);
    assert!(message.contains("give the images in their place"), "{message}");
    embedded("e.parquet", &["--rerank"], 0);
    assert!(rows(&world.here("e.parquet")).iter().all(|row| row.3.is_some()));
}

#[test]
fn a_job_of_workers_scores_as_a_single_run_does() {
    let world = World::new();
    let flags = ["--top-p", "0.9", "--num-captions", "3", "--max-new-tokens", "8", "--rerank", "--keep", "2", "--scorer"];
    let other = Golden::own().path("chinese_clip");
    let single = world.here("single.parquet");
    let mut command = clipcap();
    command.arg("caption").arg(&world.photos).arg("--model").arg(&world.bundle).arg("--out").arg(&single);
    run(command.args(["--quiet", "--threads", "1"]).args(flags).arg(&other), 0);
    let job = world.here("job");
    let mut plan = clipcap();
    plan.arg("plan").arg(&world.photos).arg("--model").arg(&world.bundle).arg("--job").arg(&job).args(flags).arg(&other);
    run(plan.args(["--shard-size", "2", "--quiet"]), 0);
    let worker = |more: &[&str], status: i32| {
        let mut command = clipcap();
        command.args(["caption", "--quiet", "--threads", "1", "--job"]).arg(&job).args(more);
        String::from_utf8(run(&mut command, status).stderr).unwrap()
    };
    assert!(worker(&["--next", "--keep", "1"], 2).contains("--keep"));
    assert!(worker(&["--next", "--scorer", world.bundle.to_str().unwrap()], 1).contains("scoring.scorer"));
    // The same scorer may lie elsewhere.
    worker(&["--shard", "0", "--scorer", other.to_str().unwrap()], 0);
    worker(&["--next=all"], 0);
    let merged = world.here("merged.parquet");
    run(clipcap().args(["merge", "--quiet"]).arg(&job).arg("--out").arg(&merged), 0);
    assert!(fs::read(&single).unwrap() == fs::read(&merged).unwrap());
}

#[test]
fn what_cannot_be_scored_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, out) = (tiny_bundle(folder.path()), folder.path().join("t.parquet"));
    let told = |flags: &[&str], status: i32| {
        let mut command = clipcap();
        command.arg("caption").arg(folder.path()).arg("--model").arg(&bundle).arg("--out").arg(&out).args(flags);
        String::from_utf8(run(&mut command, status).stderr).unwrap()
    };
    let message = told(&["--rerank"], 1);
    assert!(message.contains("--scorer CLIP") && message.contains("no text tower"), "{message}");
    for (flags, word) in [
        (&["--keep", "2"][..], "--rerank"),
        (&["--rerank", "--keep", "0"], "0 is not in 1..=100000"),
        (&["--min-clip-score", "0.2"], "--rerank"),
        (&["--rerank", "--min-clip-score", "7"], "not a cosine"),
        (&["--rerank", "--min-clip-score", "NaN"], "not a cosine"),
    ] {
        let message = told(flags, 2);
        assert!(message.contains(word), "{flags:?}: {message}");
    }
    assert!(!out.exists());
}
