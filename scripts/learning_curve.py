#!/usr/bin/env python3
"""Learning for real, beside PyTorch: 500 images' worth of random, distinct embeddings with real captions, memorized by a small model.

    learning_curve.py --captions FILE --vocabulary vocab.txt --out FOLDER [--clipcap target/release/clipcap] [--epochs 60]

The program and PyTorch start from the same weights (the bundle's), see the same batches in the same order and follow the same schedule,
without dropout. What is compared is the training loss a token, as a mean over an epoch, at ten points. A picture of both curves lies in
FOLDER/curves.png. Needs torch, transformers, safetensors, pyarrow and matplotlib. With --precision bf16 or --device, only ours changes.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as parquet
import torch

from run_corpus import RunCorpus
from torch_clipcap import ClipCap

HERE = pathlib.Path(__file__).parent
BATCH, WARMUP, IMAGES = 40, 40, 500


def prepare(arguments):
    """A dataset, embeddings of IMAGES of its images and a small bundle."""
    out, run = arguments.out, lambda *command: subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    gpt2 = out / "gpt2"
    gpt2.mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments.vocabulary, gpt2 / "vocab.txt")
    entries = len((gpt2 / "vocab.txt").read_text().splitlines())
    config = {"model_type": "gpt2", "vocab_size": entries, "n_positions": 128, "n_embd": 128, "n_layer": 4, "n_head": 4}
    (gpt2 / "config.json").write_text(json.dumps(config))
    run(arguments.clipcap, "prepare", "--captions", arguments.captions, "--splits", "none", "--out", out / "dataset", "--overwrite")
    run(sys.executable, HERE / "random_embeddings.py", out / "dataset", out / "embeddings", "--dim", 128, "--images", IMAGES)
    init = ("--clip", "vit-tiny", "--gpt2", gpt2, "--mapper", "mlp", "--seed", 1, "--out", out / "model", "--overwrite")
    run(arguments.clipcap, "model", "init", *init)


def ours(arguments):
    """(epoch, mean loss) of our run."""
    out = arguments.out
    flags = ["--finetune-gpt2", "--dropout", 0, "--batch-size", BATCH, "--epochs", arguments.epochs, "--lr", arguments.lr, "--warmup-steps", WARMUP]
    flags += ["--dev-size", 0, "--sample-images", 0, "--threads", arguments.threads, "--device", arguments.device]
    flags += ["--precision", arguments.precision, "--overwrite", "--quiet"]
    inputs = ["--dataset", out / "dataset", "--embeddings", out / "embeddings", "--model", out / "model", "--out", out / "run"]
    start = time.perf_counter()
    subprocess.run([str(x) for x in [arguments.clipcap, "train", *flags, *inputs]], check=True)
    print(f"ours: {time.perf_counter() - start:.0f} s")
    table = parquet.read_table(out / "run/metrics.parquet")
    return np.array(table["train_loss"].to_pylist(), np.float64)


def theirs(arguments, corpus, model):
    """The loss of each step in PyTorch."""
    optimizer = torch.optim.AdamW(model.trainable(finetune_gpt2=True).values(), lr=1.0)
    per_epoch = -(-len(corpus.ids) // BATCH)
    total = arguments.epochs * per_epoch
    losses, start = [], time.perf_counter()
    for epoch in range(arguments.epochs):
        for numbers in corpus.epoch(BATCH, 0, epoch):
            step = len(losses)
            rate = arguments.lr * (step / WARMUP if step < WARMUP else (total - step) / (total - WARMUP))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = model.loss(*(torch.from_numpy(x) for x in corpus.batch(numbers)))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    print(f"PyTorch: {time.perf_counter() - start:.0f} s")
    return np.array(losses)


def weighted(losses, corpus, epochs):
    """The mean loss a token of each epoch."""
    means, step = [], 0
    for epoch in range(epochs):
        tokens = [sum(len(corpus.ids[n]) for n in numbers) for numbers in corpus.epoch(BATCH, 0, epoch)]
        means.append(float(np.average(losses[step : step + len(tokens)], weights=tokens)))
        step += len(tokens)
    return means


def draw(path, curves):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, values in curves.items():
        pyplot.plot(range(1, len(values) + 1), values, label=name)
    pyplot.xlabel("epoch")
    pyplot.ylabel("training loss per token (nats)")
    pyplot.legend()
    pyplot.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=pathlib.Path, required=True)
    parser.add_argument("--vocabulary", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--clipcap", type=lambda path: pathlib.Path(path).resolve(), default=HERE.parent / "target/release/clipcap")
    parser.add_argument("--epochs", type=int, default=60)
    # Twice as high, both runs jump about once hardly anything is left to learn, each in its own way.
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prepare(arguments)
    losses = ours(arguments)
    model = ClipCap(arguments.out / "model", dropout=0.0)
    corpus = RunCorpus(arguments.out / "run", model.prefix_len)
    print(f"{len(corpus.ids)} captions of {len(corpus.embeddings)} images, {len(losses)} steps")
    curves = {"clipcap": losses, "PyTorch": theirs(arguments, corpus, model)}
    curves = {name: weighted(values, corpus, arguments.epochs) for name, values in curves.items()}
    draw(arguments.out / "curves.png", curves)
    worst = 0.0
    for point in range(1, 11):
        epoch = arguments.epochs * point // 10
        a, b = (curves[name][epoch - 1] for name in ("clipcap", "PyTorch"))
        worst = max(worst, abs(a / b - 1))
        print(f"epoch {epoch:3}: clipcap {a:.4f}, PyTorch {b:.4f} ({a / b - 1:+.2%})")
    print(f"worst of ten points: {worst:.2%}")
    if worst > 0.02:
        sys.exit("FAILED: further than 2% from PyTorch's curve")


if __name__ == "__main__":
    main()
