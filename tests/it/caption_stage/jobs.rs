//! A job over many workers: whatever their number, their order and their deaths, the table is the single run's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use clipcap::dataset::Wanted;
use clipcap::generation::Settings as Decoding;
use clipcap::pipeline::{ImageReading, Interrupt, JobFolder, Plan, Reporter, Silent};
use clipcap::stages::Outcome;
use clipcap::stages::caption::{ModelInfo, TableFormat};
use clipcap::stages::embed::Layout;
use clipcap::stages::job::{
    self, MergeSettings, Merged, PlanSettings, Planned, ShardEnd, ShardState, Shards, Worker, settings_of,
};
use serde_json::json;

use super::fake::{AbortAt, Fake, bytes, caption, errors, manifest, model, picture, pictures, rows, settings};

fn plan_settings(images: &Path, job: &Path, shard_size: u64) -> PlanSettings {
    let model = model();
    let images_read = ImageReading::default().settings(&model.preprocess);
    PlanSettings {
        inputs: vec![images.into()],
        column: None,
        wanted: Default::default(),
        job: job.into(),
        shard_size,
        model: "model".into(),
        scorer: None,
        settings: settings_of(
            &model.identity["fingerprint"],
            "fp32",
            &Decoding::default(),
            &Default::default(),
            None,
            images_read,
        ),
        device: "cpu".into(),
        precision: "fp32".into(),
        batch_size: None,
        overwrite: false,
    }
}

fn plan(images: &Path, job: &Path, shard_size: u64) -> Planned {
    job::plan(&plan_settings(images, job, shard_size), &Silent, &Interrupt::default()).unwrap()
}

fn work_as(
    model: &ModelInfo,
    job: &Path,
    shards: &Shards,
    fake: &Fake,
    reporter: &dyn Reporter,
) -> anyhow::Result<Vec<ShardEnd>> {
    let folder = JobFolder::new(job);
    let plan = folder.plan()?;
    let interrupt = fake.interrupt_at.as_ref().map(|(_, interrupt)| interrupt.clone()).unwrap_or_default();
    let worker = Worker { job: &folder, plan: &plan, again: false, crew: None, reporter, interrupt: &interrupt };
    worker.run(shards, &worker.caption_settings(2, 4)?, model, |_| Ok(fake.clone()))
}

fn work(job: &Path, shards: &Shards, fake: &Fake) -> Vec<ShardEnd> {
    work_as(&model(), job, shards, fake, &Silent).unwrap()
}

fn merge_settings(job: &Path, out: &Path) -> MergeSettings {
    MergeSettings {
        job: job.into(),
        out: out.into(),
        format: TableFormat::of(out).unwrap(),
        layout: Layout::Parquet,
        allow_missing: false,
        allow_mixed: false,
        overwrite: false,
        quotes_formulas: false,
        bom: false,
        prune: false,
        max_error_rate: 1.0,
    }
}

fn merge(settings: &MergeSettings) -> anyhow::Result<Merged> {
    job::merge(settings, &Silent, &Interrupt::default())
}

/// Plans, works and merges.
pub fn whole_job(inputs: &[PathBuf], job: &Path, shard_size: u64, out: &Path) -> Plan {
    let settings = PlanSettings { inputs: inputs.to_vec(), ..plan_settings(Path::new("."), job, shard_size) };
    let planned = job::plan(&settings, &Silent, &Interrupt::default()).unwrap();
    work(job, &Shards::AllNext, &Fake::new(4));
    merge(&merge_settings(job, out)).unwrap();
    planned.plan.unwrap()
}

/// Pictures, copies of some, files that fail, files that are none, and names of all kinds.
fn world(images: &Path, number: u32) {
    pictures(images, number);
    fs::copy(images.join("a/0001.png"), images.join("a/0001-copy.png")).unwrap();
    fs::copy(images.join("a/0001.png"), images.join("c/copy.png")).unwrap();
    picture(&images.join("line\nbreak.png"), 5000);
    for i in 0..40 {
        fs::write(images.join(format!("a/note{i}.txt")), "no image").unwrap();
    }
    fs::write(images.join("b/empty.jpg"), "").unwrap();
    fs::write(images.join("c/text.jpg"), "this is text").unwrap();
    std::os::unix::fs::symlink("nowhere", images.join("c/broken.jpg")).unwrap();
}

/// Tables and errors of an output's folder, without manifests, which record batch sizes.
fn tables(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut files = bytes(folder);
    files.retain(|name, _| !name.ends_with("manifest.json"));
    files
}

/// Not a test of its own: a worker that dies at its n-th write.
#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn child() {
    let get = |name: &str| std::env::var(name).unwrap();
    let abort = AbortAt::new(&get("CRASH_AT"));
    let shards = get("CRASH_SHARDS").parse().unwrap_or(Shards::AllNext);
    work_as(&model(), Path::new(&get("CRASH_JOB")), &shards, &Fake::new(4), &abort).unwrap();
}

fn worker(job: &Path, shards: &str, dies_at: usize) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "caption_stage::jobs::child", "--ignored", "--nocapture"]);
    child.env("CRASH_AT", dies_at.to_string()).env("CRASH_JOB", job).env("CRASH_SHARDS", shards);
    child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// True where the worker got to its end.
fn end(child: Child) -> bool {
    let output = child.wait_with_output().unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(6);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    !killed
}

#[test]
fn killed_workers_of_any_number_make_the_single_runs_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("图片");
    world(&images, 300);
    let whole = folder.path().join("whole");
    caption(&settings(&images, &whole.join("out.parquet")), &Fake::new(4)).unwrap();
    let wanted = tables(&whole);
    let mut random = 12345_u64;
    let mut next = |most: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % most
    };
    for num_workers in [1, 3, 8] {
        let job = folder.path().join(format!("job-{num_workers}"));
        let planned = plan(&images, &job, 40).plan.unwrap();
        assert_eq!((planned.num_shards, planned.counts.found), (9, 346));
        // Each dies after a few writes, at shards in any order, until all are finished.
        let mut deaths = 0;
        while !job::status(&job).unwrap().summary().1["complete"].as_bool().unwrap() {
            let workers: Vec<Child> = (0..num_workers)
                .map(|_| {
                    let shards = if next(2) == 0 { "next".into() } else { next(9).to_string() };
                    worker(&job, &shards, 1 + next(9) as usize)
                })
                .collect();
            deaths += workers.into_iter().map(|child| usize::from(!end(child))).sum::<usize>();
        }
        assert!(deaths > 3, "{deaths} deaths of {num_workers} workers");
        let out = folder.path().join(format!("merged-{num_workers}/out.parquet"));
        let merged = merge(&merge_settings(&job, &out)).unwrap();
        assert_eq!(merged.outcome, Outcome::SomeFailed);
        assert!(tables(out.parent().unwrap()) == wanted, "{num_workers} workers: other bytes");
        let counts = json!({"found": 346, "captioned": 303, "failed": 3, "skipped": 40});
        assert_eq!(manifest(&out.with_file_name(".clipcap/out.manifest.json"))["counts"], counts);
        // A run over everything goes on from it as from its own.
        let fake = Fake::new(4);
        assert_eq!(caption(&settings(&images, &out), &fake).unwrap().report.counts.computed, 0);
        assert!(tables(out.parent().unwrap()) == wanted);
    }
}

#[test]
fn shards_of_thousands_keep_the_windows_of_the_single_run() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 2100);
    let fake = || Fake { window_shows: true, ..Fake::new(4) };
    let whole = folder.path().join("whole/out.parquet");
    caption(&settings(&images, &whole), &fake()).unwrap();
    let job = folder.path().join("job");
    plan(&images, &job, 1000);
    for shard in [2, 0, 1] {
        work(&job, &Shards::Range(shard, shard), &fake());
    }
    let out = folder.path().join("merged/out.parquet");
    assert_eq!(merge(&merge_settings(&job, &out)).unwrap().outcome, Outcome::Complete);
    assert!(tables(out.parent().unwrap()) == tables(whole.parent().unwrap()));
}

#[test]
fn every_kind_of_table_is_the_single_runs() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    world(&images, 60);
    let job = folder.path().join("job");
    plan(&images, &job, 13);
    assert!(work(&job, &Shards::AllNext, &Fake::new(4)).len() == 9);
    for name in ["t.parquet", "t.csv", "t.jsonl", "t.tsv", "parts"] {
        let (single, merged) = (folder.path().join(format!("single-{name}")), folder.path().join(format!("merged-{name}")));
        caption(&settings(&images, &single.join(name)), &Fake::new(4)).unwrap();
        for _ in 0..2 {
            // Merged again, it replaces its own.
            merge(&merge_settings(&job, &merged.join(name))).unwrap();
        }
        assert!(tables(&single) == tables(&merged), "{name}");
    }
}

#[test]
fn two_workers_at_one_shard_end_with_one_result() {
    let folder = tempfile::tempdir().unwrap();
    let (images, job) = (folder.path().join("images"), folder.path().join("job"));
    pictures(&images, 150);
    plan(&images, &job, 1000);
    let ends: Vec<ShardEnd> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| work(&job, &Shards::Range(0, 0), &Fake::new(4)))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ends.iter().filter(|end| matches!(end, ShardEnd::Done(_))).count(), 1, "{ends:?}");
    assert_eq!(fs::read_dir(job.join("results")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(job.join("work")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(job.join("claims")).unwrap().count(), 0);
    // Finished, it is not looked at again.
    let fake = Fake::new(4);
    assert!(work(&job, &Shards::Range(0, 0), &fake).is_empty() && work(&job, &Shards::Next, &fake).is_empty());
    assert_eq!(fake.num_captioned(), 0);
}

#[test]
fn an_interrupted_shard_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (images, job) = (folder.path().join("images"), folder.path().join("job"));
    pictures(&images, 150);
    plan(&images, &job, 1000);
    let stopped = Fake { interrupt_at: Some((64, Interrupt::default())), ..Fake::new(4) };
    assert!(matches!(work(&job, &Shards::Next, &stopped)[..], [ShardEnd::Interrupted(0)]));
    assert!(matches!(job::status(&job).unwrap().shards[..], [ShardState::Waiting]));
    let fake = Fake::new(4);
    assert!(matches!(work(&job, &Shards::Next, &fake)[..], [ShardEnd::Done(_)]));
    assert!(fake.num_captioned() <= 150 - 64);
}

#[test]
fn merge_refuses_what_is_missing_damaged_or_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let (images, job) = (folder.path().join("images"), folder.path().join("job"));
    world(&images, 60);
    plan(&images, &job, 30);
    let out = folder.path().join("merged/out.parquet");
    let refused = |settings: &MergeSettings, words: &str| {
        let error = format!("{:#}", merge(settings).unwrap_err());
        assert!(error.contains(words), "{error}");
        assert!(!out.exists());
    };
    let strict = merge_settings(&job, &out);
    work(&job, &Shards::Range(0, 1), &Fake::new(4));
    refused(&strict, "2 of 4 shards are not finished: 2-3");
    // Another machine does the rest.
    let other = ModelInfo { identity: json!({"fingerprint": "fake", "device": "cpu", "cpu": "another"}), ..model() };
    work_as(&other, &job, &Shards::AllNext, &Fake::new(4), &Silent).unwrap();
    refused(&strict, "shards 2-3: cpu");
    // A result changed by hand, by one byte.
    let results: Vec<PathBuf> = fs::read_dir(job.join("results")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let of_shard_3 = |path: &&PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("00003-") && name.ends_with("captions.parquet")
    };
    let victim = results.iter().find(of_shard_3).unwrap();
    let whole = fs::read(victim).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(victim, &damaged).unwrap();
    let mixed = MergeSettings { allow_mixed: true, ..strict.clone() };
    refused(&mixed, "the results of shards 3 are damaged or gone");
    fs::remove_file(victim).unwrap();
    refused(&mixed, "--shard 3 --overwrite");
    fs::write(victim, &whole).unwrap();
    let merged = merge(&mixed).unwrap();
    assert_eq!((merged.counts.found(), rows(&out).len() as u64), (106, 2 * merged.counts.succeeded));
    assert_eq!(errors(&out.with_file_name(".clipcap/out.errors.parquet")).len(), 3);
    let manifest = manifest(&out.with_file_name(".clipcap/out.manifest.json"));
    assert_eq!(manifest["settings"]["model"]["mixed"].as_array().unwrap().len(), 2);
    // No single machine's run goes on from such a table as from its own.
    assert!(caption(&settings(&images, &out), &Fake::new(4)).is_err());
    // A record taken away: left out on request, and told.
    fs::remove_file(job.join("done/00002.json")).unwrap();
    let partial = MergeSettings { allow_missing: true, overwrite: true, ..mixed };
    let merged = merge(&partial).unwrap();
    assert_eq!((merged.outcome, &merged.missing[..]), (Outcome::SomeFailed, &[2][..]));
    assert_eq!(merged.counts.found(), 76);
    // Counts that do not add up.
    let record = job.join("done/00000.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replacen("\"skipped\": ", "\"skipped\": 1", 1)).unwrap();
    let error = format!("{:#}", merge(&partial).unwrap_err());
    assert!(error.contains("shard 0: 30 files were found"), "{error}");
}

#[test]
fn merge_drops_no_rows_unasked_and_quotes_formulas_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let (images, fewer) = (folder.path().join("images"), folder.path().join("fewer"));
    pictures(&images, 40);
    fs::create_dir(&fewer).unwrap();
    fs::copy(images.join("a/0001.png"), fewer.join("=1+1.png")).unwrap();
    fs::copy(images.join("b/0000.png"), fewer.join("kept.png")).unwrap();
    let (job, other) = (folder.path().join("job"), folder.path().join("other"));
    for (images, job) in [(&images, &job), (&fewer, &other)] {
        plan(images, job, 100);
        work(job, &Shards::AllNext, &Fake::new(4));
    }
    for name in ["out.parquet", "out.csv", "out.tsv", "out.jsonl"] {
        let out = folder.path().join(name);
        let all = merge(&merge_settings(&job, &out)).unwrap();
        assert_eq!(all.counts.succeeded, 40, "{name}");
        let before = fs::read(&out).unwrap();
        let error = format!("{:#}", merge(&merge_settings(&other, &out)).unwrap_err());
        assert!(error.contains("40 images have results") && error.contains("--prune"), "{name}: {error}");
        assert!(fs::read(&out).unwrap() == before && !folder.path().join(format!("{name}.work")).exists(), "{name}");
        let pruned = merge(&MergeSettings { prune: true, ..merge_settings(&other, &out) }).unwrap();
        // Names alone tell nothing of a new name.
        let (dropped, renamed) = if name == "out.tsv" { (40, 0) } else { (38, 2) };
        assert_eq!((pruned.lost.dropped, pruned.lost.renamed), (dropped, renamed), "{name}");
        assert_eq!(manifest(&out.with_file_name(".clipcap/out.manifest.json"))["counts"]["dropped"], dropped);
        // One manifest goes with one table.
        fs::remove_file(&out).unwrap();
    }
    let out = folder.path().join("quoted.csv");
    merge(&MergeSettings { quotes_formulas: true, ..merge_settings(&other, &out) }).unwrap();
    assert!(fs::read_to_string(&out).unwrap().contains("'=1+1.png"));
    // As `caption` refuses it: the cells would be others.
    assert!(merge(&merge_settings(&other, &out)).unwrap_err().to_string().contains("quote-formulas"));
}

#[test]
fn a_plan_stands_until_it_is_discarded() {
    let folder = tempfile::tempdir().unwrap();
    let (images, job) = (folder.path().join("images"), folder.path().join("images/job"));
    pictures(&images, 30);
    let first = plan(&images, &job, 10).plan.unwrap();
    assert_eq!((first.num_shards, first.counts.found), (3, 30), "the job's own files are not found");
    work(&job, &Shards::Range(1, 1), &Fake::new(4));
    // The same command again changes nothing, whatever came since.
    picture(&images.join("late.png"), 77);
    assert_eq!(plan(&images, &job, 10).plan.unwrap().id, first.id);
    let other = PlanSettings { shard_size: 7, ..plan_settings(&images, &job, 10) };
    let error = job::plan(&other, &Silent, &Interrupt::default()).unwrap_err().to_string();
    assert!(error.contains("--shard-size 7 (was 10)") && error.contains("--overwrite"), "{error}");
    let wanted = Wanted { exclude: vec!["b/".into()], ..Wanted::default() };
    let excluding = PlanSettings { wanted, ..plan_settings(&images, &job, 10) };
    let error = job::plan(&excluding, &Silent, &Interrupt::default()).unwrap_err().to_string();
    assert!(error.contains("--exclude b/ (was none)"), "{error}");
    let again = PlanSettings { overwrite: true, ..other };
    let again = job::plan(&again, &Silent, &Interrupt::default()).unwrap().plan.unwrap();
    assert_eq!((again.num_shards, again.counts.found), (5, 31));
    assert!(job::status(&job).unwrap().shards.iter().all(|shard| matches!(shard, ShardState::Waiting)));
    // A listing that was changed is not worked on, and another model is refused.
    let listing = job.join("listing/00000.parquet");
    fs::copy(job.join("listing/00001.parquet"), &listing).unwrap();
    let error = work_as(&model(), &job, &Shards::Range(0, 0), &Fake::new(4), &Silent).unwrap_err();
    assert!(error.to_string().contains("not what was planned"), "{error}");
    let other = ModelInfo { identity: json!({"fingerprint": "other", "device": "cpu"}), ..model() };
    let error = work_as(&other, &job, &Shards::Range(1, 1), &Fake::new(4), &Silent).unwrap_err();
    assert!(error.to_string().contains("another --model"), "{error}");
    // Nothing to plan.
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let nothing = plan_settings(&empty, &folder.path().join("none"), 10);
    assert!(job::plan(&nothing, &Silent, &Interrupt::default()).unwrap_err().to_string().contains("no file found"));
    assert!(!folder.path().join("none").exists());
}
