#!/usr/bin/env python3
"""Compares the artifacts of a small model with those that ONNX Runtime's own training tool makes of the same model.

ONNX Runtime's training build ended with 1.19.2; it is independent of this program and of PyTorch's autograd. Two steps, since its packages do
not live beside today's:

    PYTORCH_VENV/bin/python  check_against_ort_training.py export BUNDLE FOLDER [--finetune-gpt2]
    TRAINING_VENV/bin/python check_against_ort_training.py compare RUN/artifacts FOLDER [--steps 10]

`export` writes the forward graph that PyTorch's exporter makes of transformers' modules, and a batch. `compare` has ONNX Runtime's
`generate_artifacts` differentiate that graph, and compares loss, every gradient and ten steps of AdamW with ours (RUN comes from `clipcap
train --artifacts-only --dropout 0 --model BUNDLE`). PYTORCH_VENV: torch, transformers, safetensors, onnxruntime. TRAINING_VENV (Python 3.8 to
3.11): onnxruntime-training-cpu==1.19.2 'numpy<2' 'onnx<1.17'.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
import unittest.mock

import numpy as np

from check_artifacts import Artifacts, fail, make_batch

BATCH = ("clip_embeds", "caption_ids", "attention_mask")


def spelled_out(torch, norm, x):
    """A layer norm in small steps."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def export(arguments):
    import json

    import torch

    from torch_clipcap import ClipCap

    model = ClipCap(arguments.bundle, dropout=0.0)
    parameters = model.trainable(arguments.finetune_gpt2)
    # PyTorch's exporter makes one of equal tensors, as new biases are; and zeros and ones hide mistakes.
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 0.02 * torch.randn_like(parameter)
    if not arguments.finetune_gpt2:
        # Layer norms that the tool recognizes get gradients of their frozen weights too, twice, and that breaks it.
        for module in model.gpt2.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.forward = functools.partial(spelled_out, torch, module)
    config = json.loads((arguments.bundle / "mapper/config.json").read_text())

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, clip_embeds, caption_ids, attention_mask, labels):
            logits = self.inner.logits(clip_embeds, caption_ids, attention_mask)
            scores = torch.log_softmax(logits.reshape(-1, logits.shape[-1]), -1)
            counts = (labels >= 0).float()
            picked = scores.gather(1, labels.clamp(min=0)[:, None])[:, 0]
            return -(picked * counts).sum() / counts.sum()

    class Shape:
        def __init__(self, *shape):
            self.shape = shape

    inputs = {
        "clip_embeds": Shape("batch", config["clip_size"]),
        "attention_mask": Shape("batch", f"{config['prefix_len']} + tokens"),
    }
    vocab_size = json.loads((arguments.bundle / "gpt2/config.json").read_text())["vocab_size"]
    batch = make_batch(inputs, np.random.default_rng(0), vocab_size, rows=4, tokens=9)
    real = batch["attention_mask"][:, config["prefix_len"] :] == 1
    batch["spread_labels"] = np.where(real, batch["caption_ids"], -100).reshape(-1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.folder / "batch.npz", **batch)
    np.savez(arguments.folder / "parameters.npz", **{name: p.detach().numpy() for name, p in parameters.items()})
    feeds = tuple(torch.from_numpy(batch[k]) for k in (*BATCH, "spread_labels"))
    torch.onnx.export(
        Loss().eval(),
        feeds,
        str(arguments.folder / "forward.onnx"),
        dynamo=False,
        # Layer norms are spelled out below 17, where the tool has no gradient for an operator of one output.
        opset_version=16,
        do_constant_folding=False,
        input_names=[*BATCH, "labels"],
        output_names=["loss"],
    )
    print(f"{arguments.folder}: forward graph and batch; PyTorch's loss is {Loss()(*feeds).item():.6f}")


def theirs(folder, steps, rate, weight_decay):
    """Losses, first gradients and final parameters of ONNX Runtime's own training."""
    import onnx

    # The package imports torch for parts that are not used here, and a venv of it need not have it.
    sys.modules.setdefault("torch", unittest.mock.MagicMock())
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module, Optimizer
    from onnxruntime.training.onnxblock.optim import AdamW

    model = onnx.load(str(folder / "forward.onnx"))
    trained = {f"inner.{name}": name for name in np.load(folder / "parameters.npz").files}
    present = {i.name for i in model.graph.initializer}
    if not set(trained) <= present:
        fail(f"the exported graph lacks {sorted(set(trained) - present)}")
    batch = np.load(folder / "batch.npz")
    feeds = [batch[k] for k in (*BATCH, "spread_labels")]
    with tempfile.TemporaryDirectory() as made:
        artifacts.generate_artifacts(
            model,
            requires_grad=list(trained),
            frozen_params=sorted(present - set(trained)),
            optimizer=AdamW(bias_correction=True, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay),
            artifact_directory=made,
        )
        state = CheckpointState.load_checkpoint(f"{made}/checkpoint")
        module = Module(f"{made}/training_model.onnx", state, f"{made}/eval_model.onnx")
        optimizer = Optimizer(f"{made}/optimizer_model.onnx", module)
        optimizer.set_learning_rate(rate)
        module.train()
        losses, gradients = [], {}
        for step in range(steps):
            module.lazy_reset_grad()
            losses.append(float(module(*feeds)))
            if step == 0:
                gradients = {ours: np.array(state.parameters[name].grad) for name, ours in trained.items()}
            optimizer.step()
        losses.append(float(module(*feeds)))
        return losses, gradients, {ours: np.array(state.parameters[name].data) for name, ours in trained.items()}


def difference(found, wanted):
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)


def compare(arguments):
    artifacts = Artifacts(arguments.artifacts, threads=2)
    values = dict(np.load(arguments.folder / "parameters.npz"))
    names = list(values)
    if set(names) != set(artifacts.names):
        fail(f"other parameters: {sorted(set(names) ^ set(artifacts.names))}")
    rate, weight_decay = 2e-3, 0.01
    their_losses, their_gradients, their_values = theirs(arguments.folder, arguments.steps, rate, weight_decay)

    batch = {k: v for k, v in np.load(arguments.folder / "batch.npz").items() if k in artifacts.inputs}
    moments = {n: [np.zeros_like(v), np.zeros_like(v)] for n, v in values.items()}
    losses, first = [], {}
    for step in range(arguments.steps):
        loss, gradients = artifacts.loss_and_gradients(batch, values)
        losses.append(loss)
        first = first or gradients
        values, moments = artifacts.update(values, gradients, moments, rate, step + 1)
    losses.append(artifacts.loss_and_gradients(batch, values)[0])

    # A key's bias has no gradient but rounding, and AdamW makes steps of full size out of rounding.
    compared = [n for n in names if not n.endswith("key.bias")]
    gradient = max((difference(first[n], their_gradients[n]), n) for n in compared)
    parameter = max((difference(values[n], their_values[n]), n) for n in compared)
    loss = max(abs(a / b - 1) for a, b in zip(losses, their_losses))
    for step, (a, b) in enumerate(zip(losses, their_losses)):
        print(f"  after {step} steps: loss {a:.6f}, ONNX Runtime's training {b:.6f}")
    print(f"first loss differs by {abs(losses[0] / their_losses[0] - 1):.1e}, all by {loss:.1e} at most")
    print(f"worst gradient {gradient[1]} {gradient[0]:.1e}; worst parameter after {arguments.steps} steps {parameter[1]} {parameter[0]:.1e}")
    if abs(losses[0] / their_losses[0] - 1) > 1e-5 or gradient[0] > 1e-4 or loss > 1e-3:
        fail("not what ONNX Runtime's training build computes")
    print("all good")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    exporter = commands.add_parser("export")
    exporter.add_argument("bundle", type=pathlib.Path)
    exporter.add_argument("folder", type=pathlib.Path)
    exporter.add_argument("--finetune-gpt2", action="store_true")
    exporter.set_defaults(run=export)
    comparer = commands.add_parser("compare")
    comparer.add_argument("artifacts", type=pathlib.Path)
    comparer.add_argument("folder", type=pathlib.Path)
    comparer.add_argument("--steps", type=int, default=10)
    comparer.set_defaults(run=compare)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
