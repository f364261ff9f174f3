//! `plan`, `caption --job`, `job status` and `merge` from the outside.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{beside, clipcap, run, scenes, tiny_bundle};
use serde_json::Value;

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn worker(job: &Path) -> Command {
    let mut command = clipcap();
    command.args(["caption", "--json", "--threads", "1", "--job"]).arg(job);
    command.env_remove("SLURM_ARRAY_TASK_ID").env_remove("JOB_COMPLETION_INDEX");
    command
}

#[test]
fn a_job_of_real_workers_is_the_single_run() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 10));
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    fs::write(images.join("notes.txt"), "notes").unwrap();
    let flags = ["--top-p", "0.9", "--num-captions", "2", "--max-new-tokens", "5", "--seed", "7"];
    let single = folder.path().join("single/t.parquet");
    let mut command = clipcap();
    command.arg("caption").arg(&images).arg("--model").arg(&bundle).arg("--out").arg(&single).args(["--threads", "1"]);
    run(command.args(flags).arg("--quiet"), 3);
    let job = folder.path().join("job");
    let mut plan = clipcap();
    plan.arg("plan").arg(&images).arg("--model").arg(&bundle).arg("--job").arg(&job).args(flags).arg("--json");
    let planned = json(&run(plan.args(["--shard-size", "4"]), 0));
    assert_eq!((planned["num_shards"].as_u64(), planned["counts"]["found"].as_u64()), (Some(3), Some(12)));
    let on_disk: Value = serde_json::from_slice(&fs::read(job.join("plan.json")).unwrap()).unwrap();
    assert_eq!((on_disk["num_shards"].as_u64(), &on_disk["fingerprint"]), (Some(3), &planned["fingerprint"]));

    let told = |mut command: Command, status, words: &str| {
        let output = run(&mut command, status);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(words), "{message}");
    };
    let with = |flags: &[&str]| {
        let mut command = worker(&job);
        command.args(flags);
        command
    };
    told(with(&[]), 2, "--shard K");
    told(with(&["--shard", "3"]), 2, "shards are 0 to 2");
    told(with(&["--shard", "0", "--top-p", "0.5"]), 2, "--top-p");
    told(with(&["--shard", "0", "--max-pixels", "9"]), 2, "--max-pixels");
    told(with(&["--shard", "0", "--next"]), 2, "--next");
    // Slurm's and Kubernetes' numbers, then whatever is left.
    let done = json(&run(with(&[]).env("SLURM_ARRAY_TASK_ID", "1"), 0));
    assert_eq!((done["shards"][0]["shard"].as_u64(), done["shards"][0]["state"].as_str()), (Some(1), Some("finished")));
    run(with(&[]).env("JOB_COMPLETION_INDEX", "0"), 0);
    let status = json(&run(clipcap().args(["job", "status", "--json"]).arg(&job), 0));
    assert_eq!((status["finished"].as_u64(), &status["unfinished"]), (Some(2), &serde_json::json!([2])));
    let mut merge = clipcap();
    let merged = folder.path().join("merged/t.parquet");
    merge.arg("merge").arg(&job).arg("--out").arg(&merged);
    let refused = run(&mut merge, 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1 of 3 shards are not finished: 2"));
    let done = json(&run(&mut with(&["--next"]), 0));
    assert_eq!(done["shards"][0]["shard"].as_u64(), Some(2));
    // A finished shard ends at once: the model is not even looked for.
    fs::rename(&bundle, folder.path().join("away")).unwrap();
    for flags in [&["--shard", "0-2"][..], &["--next"], &["--next=all"]] {
        run(&mut with(flags), 0);
    }
    let summary = json(&run(merge.arg("--json"), 3));
    assert_eq!(summary["counts"], serde_json::json!({"found": 12, "captioned": 10, "failed": 1, "skipped": 1}));
    for name in ["t.parquet", ".clipcap/t.errors.parquet"] {
        assert!(fs::read(single.with_file_name(name)).unwrap() == fs::read(merged.with_file_name(name)).unwrap(), "{name}");
    }
    let status = run(clipcap().args(["job", "status"]).arg(&job), 0);
    assert!(String::from_utf8_lossy(&status.stdout).contains("3 of 3 shards, 12 of 12 files"), "{status:?}");
    told(
        {
            let mut c = clipcap();
            c.args(["job", "status"]).arg(folder.path());
            c
        },
        1,
        "no job is planned here",
    );
}

#[test]
fn a_job_of_embeddings_is_the_single_run() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 10));
    fs::write(images.join("bad.jpg"), "bad").unwrap();
    fs::write(images.join("notes.txt"), "notes").unwrap();
    for flags in [&["--dtype", "float16", "--normalize"][..], &[]] {
        let job = at(&format!("job-{}", flags.len()));
        let mut plan = clipcap();
        plan.args(["plan", "--quiet", "--embeddings", "--shard-size", "5", "--model"]).arg(&bundle).arg("--job").arg(&job);
        run(plan.arg(&images).args(flags), 0);
        let mut embed = clipcap();
        embed.args(["embed", "--quiet", "--threads", "1", "--job"]).arg(&job);
        for shards in [&["--shard", "2"][..], &["--next=all"], &["--shard", "0-2"]] {
            let mut embed = clipcap();
            embed.args(["embed", "--quiet", "--threads", "1", "--job"]).arg(&job);
            run(embed.args(shards), 0);
        }
        run(embed.args(["--shard", "0", "--dtype", "float32"]), 2);
        let refused = run(&mut worker(&job), 2);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("clipcap embed --job"));
        for layout in ["parquet", "npy"] {
            let (single, merged) = (at(&format!("single-{layout}")), at(&format!("merged-{layout}")));
            let mut command = clipcap();
            command
                .args(["embed", "--quiet", "--overwrite", "--threads", "1", "--model"])
                .arg(&bundle)
                .arg("--images")
                .arg(&images);
            run(command.args(["--format", layout, "--out"]).arg(&single).args(flags), 3);
            for _ in 0..2 {
                let mut merge = clipcap();
                merge.args(["merge", "--json", "--overwrite", "--format", layout]).arg(&job).arg("--out").arg(&merged);
                let summary = json(&run(&mut merge, 3));
                assert_eq!(summary["counts"], serde_json::json!({"found": 12, "embedded": 10, "failed": 1, "skipped": 1}));
            }
            let names: &[&str] = match layout {
                "npy" => &["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"],
                _ => &["part-00000.parquet"],
            };
            let errors = |folder: &Path| fs::read(beside(folder, "errors.parquet")).unwrap();
            assert!(errors(&single) == errors(&merged), "{layout}");
            for name in names {
                assert!(fs::read(single.join(name)).unwrap() == fs::read(merged.join(name)).unwrap(), "{layout} {name}");
            }
            // A run over everything goes on from it as from its own.
            let mut command = clipcap();
            command.args(["embed", "--json", "--threads", "1", "--model"]).arg(&bundle).arg("--images").arg(&images);
            let again = json(&run(command.args(["--prune", "--format", layout, "--out"]).arg(&merged).args(flags), 3));
            assert_eq!(again["computed"], 0, "{again}");
        }
        let status = run(clipcap().args(["job", "status"]).arg(&job), 0);
        assert!(String::from_utf8_lossy(&status.stdout).contains("10 embedded, 1 failed"), "{status:?}");
    }
}
