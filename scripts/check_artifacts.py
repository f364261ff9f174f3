#!/usr/bin/env python3
"""Checks the graphs of an artifacts folder and trains a step with them from Python: numpy and onnxruntime only.

    check_artifacts.py RUN/artifacts [--steps 3] [--threads 2]

What is checked: the ONNX checker passes all three graphs; they use ai.onnx operators only; parameters have the names of the original's
checkpoints; training and evaluation agree on the loss; the gradient agrees with the difference of two losses along it; the optimizer's
graph agrees with AdamW written out in numpy; and the loss on one batch falls.
"""

import argparse
import json
import pathlib
import struct
import sys

import numpy as np
import onnx
import onnxruntime as ort


def fail(message):
    sys.exit(f"FAILED: {message}")


def check_graph(path):
    """The ONNX checker with full shape inference, and which operators there are."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    domains = {node.domain or "ai.onnx" for node in model.graph.node} | {o.domain or "ai.onnx" for o in model.opset_import}
    if domains != {"ai.onnx"}:
        fail(f"{path.name} uses operators of {sorted(domains)}")
    print(f"{path.name}: {len(model.graph.node)} nodes, {len(model.graph.input)} inputs, {len(model.graph.output)} outputs, ai.onnx only")


def session(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_safetensors(path):
    """float32 tensors by name."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[8 + size + start : 8 + size + end], np.float32).reshape(entry["shape"]).copy()
    return tensors


def make_batch(inputs, rng, vocab_size, rows=3, tokens=7):
    """Random embeddings and captions, the shorter ones padded."""
    positions = inputs["attention_mask"].shape[1]
    prefix_len = dimension(positions, {"batch": rows, "tokens": tokens}) - tokens
    lengths = np.array([tokens - i for i in range(rows)])
    real = np.arange(tokens)[None] < lengths[:, None]
    ids = np.where(real, rng.integers(1, vocab_size, (rows, tokens)), 0)
    mask = np.concatenate([np.ones((rows, prefix_len), np.int64), real.astype(np.int64)], 1)
    row, column = np.nonzero(real)
    return {
        "clip_embeds": rng.standard_normal((rows, inputs["clip_embeds"].shape[1])).astype(np.float32),
        "caption_ids": ids.astype(np.int64),
        "attention_mask": mask,
        # The state before a token predicts it.
        "label_positions": (row * (prefix_len + tokens) + prefix_len + column - 1).astype(np.int64),
        "labels": ids[row, column].astype(np.int64),
    }


def dimension(text, sizes):
    """`batch*tokens + 10*batch` with numbers for the symbols."""
    return sum(int(np.prod([sizes[f] if f in sizes else int(f) for f in term.strip().split("*")])) for term in text.split("+"))


def masks(inputs, batch, rng, rate=0.1):
    """What dropout multiplies by, for graphs that have it."""
    sizes = {"batch": batch["caption_ids"].shape[0], "tokens": batch["caption_ids"].shape[1]}
    for name, info in inputs.items():
        if name.startswith("dropout_mask."):
            shape = [d if isinstance(d, int) else dimension(d, sizes) for d in info.shape]
            yield name, (rng.random(shape) >= rate).astype(np.float32) / np.float32(1 - rate)


def adamw(p, g, m, v, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    p = p * (1 - lr * weight_decay)
    m = m + (g - m) * (1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    denominator = np.sqrt(v) / np.sqrt(1 - beta2**step) + eps
    return p - lr / (1 - beta1**step) * m / denominator, m, v


class Artifacts:
    """The graphs of an artifacts folder as sessions, and the parameters of its checkpoint."""

    def __init__(self, folder, threads):
        self.paths = {name: folder / f"{name}_model.onnx" for name in ("training", "eval", "optimizer")}
        self.training, self.evaluation, self.optimizer = (session(path, threads) for path in self.paths.values())
        self.inputs = {i.name: i for i in self.training.get_inputs()}
        outputs = [o.name for o in self.training.get_outputs()]
        self.names = [o.removesuffix(".grad") for o in outputs[1:]]
        if outputs[0] != "loss" or not all(o.endswith(".grad") for o in outputs[1:]):
            fail(f"unexpected outputs: {outputs[:5]} ...")
        if any(not n.startswith(("clip_project.", "gpt2.transformer.")) for n in self.names):
            fail(f"unexpected parameters: {self.names}")
        self.parameters = read_safetensors(folder / "checkpoint" / "parameters.safetensors")
        if set(self.parameters) != set(self.names):
            fail(f"the checkpoint and the graph differ in {sorted(set(self.parameters) ^ set(self.names))}")

    def loss_and_gradients(self, batch, parameters):
        """The mean loss and a gradient for each parameter, by name."""
        loss, *gradients = self.training.run(None, batch | parameters)
        return float(loss), dict(zip(self.names, gradients))

    def evaluate(self, batch, parameters):
        """The mean loss without dropout."""
        wanted = {i.name for i in self.evaluation.get_inputs()}
        feeds = {k: v for k, v in (batch | parameters).items() if k in wanted}
        total, count = self.evaluation.run(["loss_sum", "num_tokens"], feeds)
        return float(total) / int(count)

    def update(self, parameters, gradients, moments, learning_rate, step):
        """One step of the optimizer's graph: new parameters and moments."""
        feeds = {"learning_rate": np.asarray(learning_rate, np.float32), "step": np.asarray(step, np.int64)}
        for name in self.names:
            feeds[name], feeds[f"{name}.grad"] = parameters[name], gradients[name]
            feeds[f"{name}.exp_avg"], feeds[f"{name}.exp_avg_sq"] = moments[name]
        updated = dict(zip([o.name for o in self.optimizer.get_outputs()], self.optimizer.run(None, feeds)))
        new = {n: updated[f"{n}.updated"] for n in self.names}
        return new, {n: [updated[f"{n}.exp_avg.updated"], updated[f"{n}.exp_avg_sq.updated"]] for n in self.names}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01, help="what the run was set to")
    arguments = parser.parse_args()
    artifacts = Artifacts(arguments.folder, arguments.threads)
    for path in artifacts.paths.values():
        check_graph(path)
    names, inputs, parameters = artifacts.names, artifacts.inputs, artifacts.parameters
    print(f"{len(names)} parameters, {sum(p.size for p in parameters.values()):,} numbers")

    rng = np.random.default_rng(0)
    table = parameters.get("gpt2.transformer.wte.weight")
    batch = make_batch(inputs, rng, 100 if table is None else len(table))
    batch.update(masks(inputs, batch, rng))
    loss, gradients = artifacts.loss_and_gradients(batch, parameters)
    evaluated = artifacts.evaluate(batch, parameters)
    dropped = any(k.startswith("dropout_mask.") for k in batch)
    print(f"loss {loss:.5f}; evaluation {evaluated:.5f}{' (the former with dropout)' if dropped else ''}")
    if not dropped and abs(evaluated / loss - 1) > 1e-5:
        fail("training and evaluation disagree")

    # The gradient against the difference of two losses along it.
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    moved = [{n: p + np.float32(by / norm) * gradients[n] for n, p in parameters.items()} for by in (1e-2, -1e-2)]
    above, below = (artifacts.loss_and_gradients(batch, p)[0] for p in moved)
    slope = (above - below) / 2e-2
    print(f"gradient norm {norm:.5f}; slope along the gradient {slope:.5f}")
    if abs(slope / norm - 1) > 0.02:
        fail("the gradient is not the slope of the loss")

    moments = {n: [np.zeros_like(p), np.zeros_like(p)] for n, p in parameters.items()}
    first, rate = loss, arguments.learning_rate
    for step in range(1, arguments.steps + 1):
        loss, gradients = artifacts.loss_and_gradients(batch, parameters)
        new, new_moments = artifacts.update(parameters, gradients, moments, rate, step)
        worst = 0.0
        for name in names:
            expected = adamw(parameters[name], gradients[name], *moments[name], rate, step, weight_decay=arguments.weight_decay)
            for a, b in zip([new[name], *new_moments[name]], expected):
                worst = max(worst, float(np.abs(a - b).max()))
        parameters, moments = new, new_moments
        print(f"step {step}: loss {loss:.5f}; optimizer graph and numpy differ by {worst:.1e} at most")
        if worst > 1e-2 * rate:
            fail("the optimizer graph is not AdamW (was the run set to clip gradients, or to another weight decay?)")
    loss, _ = artifacts.loss_and_gradients(batch, parameters)
    print(f"loss {first:.5f} -> {loss:.5f}")
    if not loss < first:
        fail("the loss did not fall")
    print("all good")


if __name__ == "__main__":
    main()
