//! `plan`, `caption --job`, `job status` and `merge` from the outside.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

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

/// Workers stand still in the middle of a shard, go on and are killed: each says what it has of the cores, and the bytes are the single run's.
#[test]
fn workers_of_a_machine_share_its_cores() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 24));
    let (job, single) = (folder.path().join("job"), folder.path().join("single.parquet"));
    let flags = ["--max-new-tokens", "40", "--min-new-tokens", "40", "--quiet", "--model"];
    run(clipcap().arg("caption").arg(&images).args(flags).arg(&bundle).arg("--out").arg(&single), 0);
    run(clipcap().arg("plan").arg(&images).args(flags).arg(&bundle).args(["--shard-size", "6", "--job"]).arg(&job), 0);
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let worker = |flags: &[&str]| {
        let mut command = clipcap();
        command.args(["caption", "--device", "cpu", "--job"]).arg(&job).args(flags).env("TMPDIR", &temporary);
        command.env_remove("SLURM_CPUS_PER_TASK");
        command
    };
    let told = |output: std::process::Output| String::from_utf8(output.stderr).unwrap();
    let send = |signal: &str, to: u32| run(Command::new("kill").args([signal, &to.to_string()]), 0);
    let start = |shards| {
        let claims = || fs::read_dir(job.join("claims")).into_iter().flatten().count();
        let (before, mut started) = (claims(), worker(&["--shard", shards]).stderr(Stdio::piped()).spawn().unwrap());
        while claims() == before && started.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        send("-STOP", started.id());
        started
    };
    let cores = std::thread::available_parallelism().unwrap().get();
    let shared = format!("2 workers share {cores} cores");

    let (first, mut killed) = (start("0-1"), start("2"));
    // With a number of its own, a worker says nothing of it.
    let own = told(run(&mut worker(&["--shard", "3", "--threads", "1"]), 0));
    assert!(!own.contains("share"), "{own}");
    send("-CONT", first.id());
    let first = first.wait_with_output().unwrap();
    let status = first.status.code();
    let first = told(first);
    assert!(status == Some(0) && first.contains(&shared), "{status:?}: {first}");
    // The dead have no part, and the file of one does not stay.
    send("-KILL", killed.id());
    killed.wait().unwrap();
    let alone = told(run(&mut worker(&["--shard", "2"]), 0));
    assert!(!alone.contains("share") && !alone.contains("no other worker"), "{alone}");
    for entry in fs::read_dir(&temporary).unwrap().flatten() {
        assert!(fs::read_dir(entry.path()).into_iter().flatten().count() == 0, "{:?}", entry.path());
    }
    run(clipcap().args(["merge", "--quiet"]).arg(&job).arg("--out").arg(folder.path().join("merged.parquet")), 0);
    assert!(fs::read(folder.path().join("merged.parquet")).unwrap() == fs::read(&single).unwrap(), "other bytes");
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

/// An id and a picture's bytes.
type Sent<'a> = (&'a str, Option<Vec<u8>>);

/// An Arrow stream of ids and bytes; an absent picture is a null.
fn stream(batches: &[Vec<Sent>]) -> Vec<u8> {
    use arrow::array::{ArrayRef, BinaryArray, StringArray};
    use arrow::ipc::writer::StreamWriter;
    let batch = |rows: &Vec<Sent>| {
        let ids: ArrayRef = std::sync::Arc::new(StringArray::from_iter_values(rows.iter().map(|(id, _)| id)));
        let bytes: ArrayRef = std::sync::Arc::new(rows.iter().map(|(_, bytes)| bytes.as_deref()).collect::<BinaryArray>());
        arrow::record_batch::RecordBatch::try_from_iter_with_nullable([("id", ids, false), ("bytes", bytes, true)]).unwrap()
    };
    let batches: Vec<_> = batches.iter().map(batch).collect();
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

#[test]
fn an_arrow_stream_comes_back_with_captions_and_failures_in_its_order() {
    use arrow::array::{Array, AsArray};
    use std::io::Write;
    use std::process::Stdio;
    let folder = tempfile::tempdir().unwrap();
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 9));
    let table = folder.path().join("t.parquet");
    let flags = ["--top-p", "0.9", "--num-captions", "2", "--max-new-tokens", "5", "--seed", "7", "--threads", "1"];
    let mut single = clipcap();
    run(single.args(["caption", "--quiet", "--model"]).arg(&bundle).arg(&images).arg("--out").arg(&table).args(flags), 0);
    let wanted = crate::common::columns(&table, &["sha256", "caption"]);
    let mut paths: Vec<_> = fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let picture = |at: usize| Some(fs::read(&paths[at]).unwrap());
    let batches = [
        vec![("a", picture(0)), ("b", Some(b"no picture".to_vec())), ("c", picture(1)), ("d", None)],
        vec![],
        (2..9).map(|at| ("more", picture(at))).collect(),
    ];
    let pipe = |input: Vec<u8>, status: i32| {
        let mut command = clipcap();
        command.args(["caption", "--quiet", "--stdin", "arrow", "--stdout", "arrow", "--model"]).arg(&bundle).args(flags);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", String::from_utf8_lossy(&output.stderr));
        output
    };
    let output = pipe(stream(&batches), 3);
    let answers = arrow::ipc::reader::StreamReader::try_new(&output.stdout[..], None).unwrap();
    let answers: Vec<_> = answers.map(|batch| batch.unwrap()).collect();
    assert_eq!(answers.iter().map(|batch| batch.num_rows()).collect::<Vec<_>>(), [6, 0, 14]);
    let text = |batch: usize, column: &str| -> Vec<String> {
        let column = answers[batch].column_by_name(column).unwrap().as_string::<i32>();
        column.iter().map(|text| text.unwrap_or("-").to_string()).collect()
    };
    assert_eq!(text(0, "id"), ["a", "a", "b", "c", "c", "d"]);
    assert_eq!(text(0, "reason"), ["-", "-", "unsupported_format", "-", "-", "unreadable"]);
    assert_eq!(answers[0].column_by_name("caption").unwrap().null_count(), 2);
    let mut found: Vec<Vec<String>> = Vec::new();
    for batch in [0, 2] {
        let rows = text(batch, "sha256").into_iter().zip(text(batch, "caption")).zip(text(batch, "reason"));
        found.extend(rows.filter(|(_, reason)| reason == "-").map(|((sha256, caption), _)| vec![sha256, caption]));
    }
    let sorted = |mut rows: Vec<Vec<String>>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(found), sorted(wanted));
    let told = pipe(b"no stream".to_vec(), 1);
    assert!(String::from_utf8_lossy(&told.stderr).contains("not an Arrow stream"), "{told:?}");
    run(clipcap().args(["caption", "--stdin", "arrow", "--model"]).arg(&bundle), 2);
}

#[test]
fn parquet_files_and_datasets_are_planned_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 10));
    let captions = at("c.jsonl");
    let mut names: Vec<String> = fs::read_dir(&images).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let lines: String = names.iter().map(|name| format!("{{\"file_name\": \"{name}\", \"caption\": \"一张图\"}}\n")).collect();
    fs::write(&captions, lines).unwrap();
    let mut prepare = clipcap();
    prepare.args(["prepare", "--quiet", "--with-images", "--captions"]).arg(&captions).arg("--images").arg(&images);
    run(prepare.arg("--out").arg(at("dataset")), 0);
    let mut export = clipcap();
    export.args(["export", "--quiet", "--to", "parquet", "--shard-images", "4"]).arg(at("dataset")).arg("--images").arg(&images);
    run(export.arg("--out").arg(at("parquet")), 0);
    let parts: Vec<_> = (0..3).map(|part| at("parquet").join(format!("train-{part:05}.parquet"))).collect();
    for (name, inputs, shards) in [("parts", &parts[..], 3), ("set", &[at("dataset")][..], 1)] {
        let single = at(&format!("single-{name}/t.parquet"));
        let mut command = clipcap();
        command.args(["caption", "--quiet", "--max-new-tokens", "4", "--model"]).arg(&bundle).args(inputs);
        run(command.arg("--out").arg(&single), 0);
        let job = at(&format!("job-{name}"));
        let mut plan = clipcap();
        plan.args(["plan", "--json", "--max-new-tokens", "4", "--model"]).arg(&bundle).args(inputs).arg("--job").arg(&job);
        let planned = json(&run(&mut plan, 0));
        assert_eq!((planned["num_shards"].as_u64(), planned["counts"]["found"].as_u64()), (Some(shards), Some(10)));
        let mut all = worker(&job);
        run(all.arg("--next=all"), 0);
        let merged = at(&format!("merged-{name}/t.parquet"));
        run(clipcap().args(["merge", "--quiet"]).arg(&job).arg("--out").arg(&merged), 0);
        assert!(fs::read(&single).unwrap() == fs::read(&merged).unwrap(), "{name}");
        // Nothing failed, and there is no table of it.
        for table in [&single, &merged] {
            assert!(!table.with_file_name(".clipcap/t.errors.parquet").exists(), "{name}");
        }
    }
    run(clipcap().args(["plan", "--model"]).arg(&bundle).arg(&parts[0]).arg(&images).arg("--job").arg(at("x")), 2);
    run(clipcap().args(["plan", "--model"]).arg(&bundle).arg(&images).args(["--job", "s3://bucket/job"]), 1);
}
