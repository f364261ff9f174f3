#!/usr/bin/env python3
"""Compares the artifacts of a model with PyTorch: loss, every gradient, and ten steps of AdamW.

    compare_training.py BUNDLE RUN/artifacts [--finetune-gpt2] [--steps 10]

RUN comes from `clipcap train --artifacts-only --dropout 0 --model BUNDLE [--finetune-gpt2] --out RUN`. The artifacts run in Python's
onnxruntime, PyTorch runs transformers' modules. Needs what torch_clipcap.py needs, and onnxruntime.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch

from check_artifacts import Artifacts, make_batch
from torch_clipcap import ClipCap

# Relative differences that are allowed.
LOSS, GRADIENT, TRAJECTORY = 1e-5, 1e-4, 1e-3


def schedule(step, steps, peak=2e-3, warmup=3):
    """Linear warm-up, then linear decay to 0 behind the last step; `step` counts from 0."""
    return peak * (step / warmup if step < warmup else (steps - step) / (steps - warmup))


def compare_gradients(found, wanted):
    """(name, relative difference) of the worst gradient."""
    worst = ("", 0.0)
    largest = max(np.linalg.norm(g) for g in wanted.values())
    for name, gradient in wanted.items():
        norm, difference = np.linalg.norm(gradient), np.linalg.norm(found[name] - gradient)
        # Softmax does not see what a key's bias adds: that gradient is 0, and rounding here and there.
        if name.endswith("key.bias"):
            if max(norm, np.linalg.norm(found[name])) > 1e-5 * largest:
                sys.exit(f"FAILED: {name} has a gradient of {norm}")
        elif difference / norm > worst[1]:
            worst = (name, difference / norm)
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("artifacts", type=pathlib.Path)
    parser.add_argument("--finetune-gpt2", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    artifacts = Artifacts(arguments.artifacts, arguments.threads)
    model = ClipCap(arguments.bundle, dropout=0.0)
    parameters = model.trainable(arguments.finetune_gpt2)
    if set(parameters) != set(artifacts.names):
        sys.exit(f"FAILED: other parameters than PyTorch's: {sorted(set(parameters) ^ set(artifacts.names))}")

    vocab_size = json.loads((arguments.bundle / "gpt2/config.json").read_text())["vocab_size"]
    rng = np.random.default_rng(0)
    batches = [make_batch(artifacts.inputs, rng, vocab_size, rows=5, tokens=tokens) for tokens in (9, 6)]
    tensors = [[torch.from_numpy(b[k]) for k in ("clip_embeds", "caption_ids", "attention_mask")] for b in batches]

    values = {name: parameter.detach().numpy().copy() for name, parameter in parameters.items()}
    for name, stored in artifacts.parameters.items():
        if not np.array_equal(stored, values[name]):
            sys.exit(f"FAILED: the checkpoint's {name} is not the bundle's")
    loss, gradients = artifacts.loss_and_gradients(batches[0], values)
    wanted = model.loss(*tensors[0])
    wanted.backward()
    difference = abs(loss / wanted.item() - 1)
    name, gradient = compare_gradients(gradients, {n: p.grad.numpy() for n, p in parameters.items()})
    print(f"loss {loss:.6f}, PyTorch {wanted.item():.6f} ({difference:.1e}); worst gradient {name} {gradient:.1e}")
    if difference > LOSS or gradient > GRADIENT:
        sys.exit("FAILED: not PyTorch's loss or gradients")

    optimizer = torch.optim.AdamW(parameters.values(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    moments = {n: [np.zeros_like(v), np.zeros_like(v)] for n, v in values.items()}
    worst = 0.0
    for step in range(arguments.steps + 1):
        which = step % 2
        loss, gradients = artifacts.loss_and_gradients(batches[which], values)
        optimizer.zero_grad()
        wanted = model.loss(*tensors[which])
        worst = max(worst, abs(loss / wanted.item() - 1))
        print(f"  after {step} steps: loss {loss:.6f}, PyTorch {wanted.item():.6f}")
        if step < arguments.steps:
            rate = schedule(step, arguments.steps)
            wanted.backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            values, moments = artifacts.update(values, gradients, moments, rate, step + 1)
    print(f"{arguments.steps} steps: losses differ by {worst:.1e} at most")
    if worst > TRAJECTORY:
        sys.exit("FAILED: another trajectory than PyTorch's")
    print("all good")


if __name__ == "__main__":
    main()
