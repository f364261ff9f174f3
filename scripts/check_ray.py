"""Ray for real: two nodes of one core each, one of which is killed in the middle; and what the engine costs beside one process.

    python scripts/check_ray.py --clipcap target/release/clipcap [--model BUNDLE] [--pictures 1000]

Needs `ray` and `pyarrow`. Exits with 1 where the table is not the single run's, byte for byte.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

HERE = pathlib.Path(__file__).parent


def two_nodes(tries: int = 3) -> Cluster:
    """On a machine that is busy with other things, a node may come up too late for Ray's patience."""
    while True:
        try:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes(timeout=120)
            return cluster
        except Exception as error:
            tries -= 1
            if tries == 0:
                raise
            print(f"the cluster did not come up: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clipcap", required=True)
    parser.add_argument("--model", help="a bundle; without it a tiny one is made")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--shard-size", type=int, default=100)
    args = parser.parse_args()
    clipcap = str(pathlib.Path(args.clipcap).resolve())

    # Ray gives its workers a low priority, which on a busy machine is no measure of Ray.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)

        def run(*words, **more) -> float:
            start = time.monotonic()
            subprocess.run([clipcap, *map(str, words)], check=True, **more)
            return time.monotonic() - start

        model = pathlib.Path(args.model).resolve() if args.model else folder / "model"
        if not args.model:
            run("model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--seed", 1, "--out", model, "--quiet")
        run("scenes", "--num-images", args.pictures, "--out", folder / "scenes", "--quiet")
        photos = folder / "scenes" / "images"
        single = run("caption", photos, "--model", model, "--out", folder / "single.parquet", "--quiet", "--threads", 2)
        print(f"one process, 2 cores: {single:.1f} s, {args.pictures / single:.1f} pictures/s", flush=True)

        def job(name: str) -> pathlib.Path:
            run("plan", photos, "--model", model, "--job", folder / name, "--shard-size", args.shard_size, "--quiet")
            return folder / name

        def launch(job: pathlib.Path, out: pathlib.Path, address: str) -> subprocess.Popen:
            command = [sys.executable, HERE / "engines/ray_job.py", job, "--out", out, "--clipcap", clipcap, "--address", address]
            return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)

        def same(out: pathlib.Path) -> bool:
            return out.is_file() and (folder / "single.parquet").read_bytes() == out.read_bytes()

        cluster = two_nodes()
        start = time.monotonic()
        whole = launch(job("whole"), folder / "whole.parquet", cluster.address)
        whole.communicate()
        taken = time.monotonic() - start
        records = [json.loads(path.read_text()) for path in sorted((folder / "whole/done").iterdir())]
        worked = sum(record["seconds"] for record in records)
        print(f"2 nodes x 1 core: {taken:.1f} s, {args.pictures / taken:.1f} pictures/s; {taken / single - 1:+.0%} against one process")
        print(f"  of which shards {worked / 2:.1f} s a node ({len(records)} shards), the engine and model loads {taken - worked / 2:.1f} s", flush=True)
        faults = [] if same(folder / "whole.parquet") else ["the table of two nodes is not the single run's"]

        # A node dies in the middle, and another comes.
        victim = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        killed = job("killed")
        driver = launch(killed, folder / "killed.parquet", cluster.address)
        while not (killed / "done").is_dir() or len(list((killed / "done").iterdir())) < 2:
            time.sleep(0.05)
        cluster.remove_node(victim, allow_graceful=False)
        print("a node was killed", flush=True)
        told, _ = driver.communicate()
        if driver.returncode != 0 or not same(folder / "killed.parquet"):
            faults.append(f"after a node was killed the table is not the single run's (exit status {driver.returncode}):\n{told}")

        # A dataset through the actors: every picture has a row, damaged ones too.
        (photos / "broken.jpg").write_bytes(b"broken")
        start = time.monotonic()
        command = [sys.executable, HERE / "engines/ray_data.py", photos, "--model", model, "--out", folder / "data"]
        subprocess.run([*map(str, command), "--clipcap", clipcap, "--address", cluster.address], check=True)
        print(f"through Ray Data, one worker: {time.monotonic() - start:.1f} s", flush=True)
        rows = pq.read_table(folder / "data").to_pylist()
        wanted = dict(zip(*[pq.read_table(folder / "single.parquet")[name].to_pylist() for name in ("sha256", "caption")]))
        captions = {row["sha256"]: row["caption"] for row in rows if row["caption"] is not None}
        broken = [row for row in rows if row["reason"] is not None]
        if captions != wanted or len(rows) != args.pictures + 1 or [row["reason"] for row in broken] != ["unsupported_format"]:
            faults.append(f"through Ray Data: {len(rows)} rows, {len(broken)} failures, {sum(captions.get(k) != v for k, v in wanted.items())} other captions")
        cluster.shutdown()
        for fault in faults:
            print(fault)
        print("Ray: " + ("FAILED" if faults else "the single run's bytes, with a node killed; every row through Ray Data"))
        sys.exit(bool(faults))


if __name__ == "__main__":
    main()
