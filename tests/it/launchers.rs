//! The launchers of `scripts/engines/`. Ray's is tried by `scripts/check_ray.py`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::{checkout, clipcap, run, scenes, tiny_bundle};

/// What `sbatch` would do on a cluster, one task after the other.
const SBATCH: &str = r#"#!/bin/bash
for flag in "$@"; do case $flag in --array=*) array=${flag#*=} ;; --wrap=*) work=${flag#*=} ;; esac; done
if [ -n "${array-}" ]; then
  for task in $(seq "${array%-*}" "${array#*-}"); do SLURM_ARRAY_TASK_ID=$task bash -c "$work" > "$0.log" 2>&1; done
else
  bash -c "$work" > "$0.log" 2>&1
fi
echo 17
"#;

/// As much of GNU parallel as is asked of it, where it is not installed.
const PARALLEL: &str = r#"#!/bin/bash
[ "$1 $2 $3" = "--quote --retries 3" ] || exit 9
shift 4
while read -r item; do "${@//\{\}/$item}" < /dev/null || exit 1; done
"#;

#[test]
fn slurm_and_parallel_finish_jobs_of_captions_and_of_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (bundle, images) = (tiny_bundle(folder.path()), scenes(folder.path(), 5));
    let program = |name: &str, text: &str| {
        let path = at("bin").join(name);
        fs::create_dir_all(at("bin")).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("sbatch", SBATCH);
    if !Path::new("/usr/bin/parallel").is_file() {
        program("parallel", PARALLEL);
    }
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    for (stage, plan_flags, out) in [("caption", &["--max-new-tokens", "4"][..], "t.parquet"), ("embed", &["--embeddings"], "e")]
    {
        let single = at("single").join(out);
        let mut command = clipcap();
        command.args([stage, "--quiet", "--threads", "1", "--model"]).arg(&bundle).arg("--out").arg(&single);
        command.args(if stage == "caption" { plan_flags } else { &["--images"] });
        run(command.arg(&images), 0);
        for (launcher, flag) in [("slurm.sh", "--time=1"), ("parallel.sh", "-j1")] {
            // A folder that a shell could take for two.
            let job = at(&format!("a job of {stage} {launcher}"));
            let mut plan = clipcap();
            plan.args(["plan", "--quiet", "--shard-size", "2", "--model"]).arg(&bundle).arg("--job").arg(&job);
            run(plan.args(plan_flags).arg(&images), 0);
            let merged = at(launcher).join(out);
            let mut launch = Command::new("bash");
            launch.arg(checkout().join("scripts/engines").join(launcher)).arg(&job).arg(&merged).arg(flag);
            launch
                .env("PATH", &path)
                .env("CLIPCAP", env!("CARGO_BIN_EXE_clipcap"))
                .env("CLIPCAP_RUNTIME", checkout().join("runtime"));
            run(launch.env_remove("SLURM_ARRAY_TASK_ID").env_remove("JOB_COMPLETION_INDEX"), 0);
            let table =
                |path: &Path| fs::read(if stage == "embed" { path.join("part-00000.parquet") } else { path.into() }).unwrap();
            assert!(table(&merged) == table(&single), "{stage} {launcher}");
        }
    }
}
