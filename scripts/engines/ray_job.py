"""Captions (or embeds) a planned job on a Ray cluster: one task per shard, started again by Ray where a node is lost.

    python scripts/engines/ray_job.py JOB --out TABLE [--cpus 4] [--gpus 1] [--address auto]

JOB, the inputs and the model must lie under the same paths on every node. Ray only starts the workers: what is done, and what is not, is said by
the files in JOB, so that the driver may be killed and started again.
"""

import argparse
import json
import pathlib
import subprocess

import ray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=pathlib.Path)
    parser.add_argument("--out", required=True, help="table (or embeddings) that `clipcap merge` writes")
    parser.add_argument("--clipcap", default="clipcap", help="the program, on every node")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker")
    parser.add_argument("--address", default=None, help="of a running cluster; without it, Ray starts one on this machine")
    args = parser.parse_args()

    ray.init(address=args.address)
    job = str(args.job.resolve())
    plan = json.loads((args.job / "plan.json").read_text())
    num_shards, stage = plan["num_shards"], plan["stage"]
    threads = max(1, int(args.cpus))

    @ray.remote(num_cpus=args.cpus, num_gpus=args.gpus, max_retries=10, retry_exceptions=True)
    def work(shard: int) -> int:
        command = [args.clipcap, stage, "--quiet", "--job", job, "--shard", str(shard), "--threads", str(threads)]
        subprocess.run(command, check=True)
        return shard

    waiting = [work.remote(shard) for shard in range(num_shards)]
    while waiting:
        done, waiting = ray.wait(waiting)
        for shard in ray.get(done):
            print(f"shard {shard} is finished, {len(waiting)} to go", flush=True)
    raise SystemExit(subprocess.run([args.clipcap, "merge", job, "--out", args.out]).returncode)


if __name__ == "__main__":
    main()
