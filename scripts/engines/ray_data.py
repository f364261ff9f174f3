"""Captions a Ray dataset of image bytes: an actor for each worker, whose model stays loaded.

    python scripts/engines/ray_data.py PHOTOS --model BUNDLE --out captions/ [--workers 2] [--gpus 1] [--address auto]

The dataset's rows have `id` and `bytes`; `clipcap caption --stdin arrow --stdout arrow` gives back a row for each caption and a row with `reason` and
`message` for each image that failed, so that nothing is dropped. Use the class below in a pipeline of your own:

    dataset.map_batches(Captioner, fn_constructor_kwargs={"command": [...]}, batch_format="pyarrow",
                        compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1)

(A module that workers cannot import is told to Ray by `ray.cloudpickle.register_pickle_by_value(module)`.)
"""

import argparse
import subprocess
import threading

import pyarrow as pa
import ray


class Captioner:
    """One `clipcap`, to which batches go and from which captions come."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.writer = None
        self.reader = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        # One batch goes in and one comes out, whatever Ray's blocks were.
        whole = batch.select(["id", "bytes"]).combine_chunks()
        if self.writer is None:
            self.writer = pa.ipc.new_stream(self.process.stdin, whole.schema)
        batches = whole.to_batches()
        # Written beside the reading, so that neither waits for the other where pipes are full.
        writing = threading.Thread(target=self._write, args=(batches,))
        writing.start()
        if self.reader is None:
            self.reader = pa.ipc.open_stream(self.process.stdout)
        captions = [self.reader.read_next_batch() for _ in batches]
        writing.join()
        return pa.Table.from_batches(captions, schema=self.reader.schema)

    def _write(self, batches: list[pa.RecordBatch]) -> None:
        for batch in batches:
            self.writer.write_batch(batch)
        self.process.stdin.flush()

    def __del__(self):
        if self.writer is not None:
            self.writer.close()
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder or bucket of image files")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, help="folder of Parquet files")
    parser.add_argument("--clipcap", default="clipcap", help="the program, on every node")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=1, help="cores of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker")
    parser.add_argument("--address", default=None, help="of a running cluster; without it, Ray starts one on this machine")
    args = parser.parse_args()

    ray.init(address=args.address)
    command = [args.clipcap, "caption", "--quiet", "--model", args.model, "--stdin", "arrow", "--stdout", "arrow"]
    command += ["--threads", str(max(1, int(args.cpus)))]
    # Reading and writing wait more than they work: with a core each they might find none beside the workers.
    images = ray.data.read_binary_files(args.photos, include_paths=True, num_cpus=0.1).rename_columns({"path": "id"})
    captions = images.map_batches(
        Captioner,
        fn_constructor_kwargs={"command": command},
        batch_format="pyarrow",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=args.cpus,
        num_gpus=args.gpus,
    )
    captions.write_parquet(args.out, ray_remote_args={"num_cpus": 0.1})


if __name__ == "__main__":
    main()
