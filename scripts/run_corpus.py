"""A training run's captions in the run's own order, for comparisons: RUN/corpus read with numpy and pyarrow.

As a program, `run_corpus.py RUN` prints what a step of the run took, the first one not counted.
"""

import json
import pathlib
import sys

import numpy as np
import pyarrow.parquet as parquet

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ORDER = 0x6F726465
WINDOW = 100


def mix(z):
    """SplitMix64's output function."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def stream(parts):
    """64-bit draws for a list of numbers, as src/training/random.rs makes them."""
    key = GOLDEN
    for part in parts:
        key = mix(((key + GOLDEN) & MASK) ^ mix((part + GOLDEN) & MASK))
    while True:
        key = (key + GOLDEN) & MASK
        yield mix(key)


def shuffle(items, draws):
    for i in range(len(items) - 1, 0, -1):
        j = (next(draws) * (i + 1)) >> 64
        items[i], items[j] = items[j], items[i]


class RunCorpus:
    """Training captions and the embeddings of their images."""

    def __init__(self, run, prefix_len):
        folder = pathlib.Path(run) / "corpus"
        record = json.loads((folder / "corpus.json").read_text())
        self.embeddings = np.fromfile(folder / "images.bin", "<f4").reshape(-1, record["row_bytes"] // 4)
        table = parquet.read_table(folder / "captions.parquet")
        train = [split != "dev" for split in table["split"].to_pylist()]
        self.ids = [ids for ids, keep in zip(table["input_ids"].to_pylist(), train) if keep]
        self.rows = [row for row, keep in zip(table["image_row"].to_pylist(), train) if keep]
        self.prefix_len = prefix_len

    def epoch(self, batch_size, seed, number):
        """Batches of one pass as lists of caption numbers, as src/training/batches.rs orders them."""
        draws = stream([ORDER, seed, number])
        order = list(range(len(self.ids)))
        shuffle(order, draws)
        sorted_order = []
        for start in range(0, len(order), WINDOW * batch_size):
            sorted_order += sorted(order[start : start + WINDOW * batch_size], key=lambda n: len(self.ids[n]))
        batches = [sorted_order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        shuffle(batches, draws)
        return batches

    def batch(self, numbers, tokens=None):
        """clip_embeds, caption_ids and attention_mask, padded to the longest caption or to `tokens`."""
        tokens = tokens or max(len(self.ids[n]) for n in numbers)
        ids = np.zeros((len(numbers), tokens), np.int64)
        mask = np.zeros((len(numbers), self.prefix_len + tokens), np.int64)
        for row, n in enumerate(numbers):
            ids[row, : len(self.ids[n])] = self.ids[n]
            mask[row, : self.prefix_len + len(self.ids[n])] = 1
        return self.embeddings[[self.rows[n] for n in numbers]], ids, mask


def step_times(run):
    """Milliseconds of a step's forward + backward and of its update."""
    table = parquet.read_table(pathlib.Path(run) / "metrics.parquet")
    return {name: round(float(np.mean(table[name].to_pylist()[1:])), 1) for name in ("gradients_ms", "update_ms")}


if __name__ == "__main__":
    print(json.dumps(step_times(sys.argv[1])))
