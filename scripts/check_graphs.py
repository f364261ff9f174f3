#!/usr/bin/env python3
"""Runs the ONNX checker, with shape inference, over every graph under some folders (bundles, training artifacts).

    scripts/check_graphs.py FOLDER...
    scripts/check_graphs.py CLIPCAP        the program: it makes small bundles and training artifacts of every kind first

Needs the package onnx (scripts/requirements-check.txt). Exit status 1 if a graph fails or there is none.
"""

import pathlib
import subprocess
import sys
import tempfile

import onnx

# onnx knows these by no schema; what is around them is still checked.
CONTRIB = "com.microsoft"


def check(path: pathlib.Path) -> str:
    onnx.checker.check_model(str(path))
    model = onnx.load(str(path), load_external_data=False)
    domains = {entry.domain for entry in model.opset_import}
    if CONTRIB not in domains:
        onnx.checker.check_model(str(path), full_check=True)
    for node in model.graph.node:
        if not node.name or node.domain not in ("", CONTRIB):
            raise ValueError(f"node {node.name!r} ({node.domain}.{node.op_type}) has no name or an unknown domain")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise ValueError(f"{tensor.name}: {entry.value} is not there")
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    return f"{len(model.graph.node)} nodes, opset {opsets}"


def make(program: pathlib.Path, folder: pathlib.Path) -> None:
    """Bundles of both mappers, one with 8-bit parts, and what both recipes train with."""

    def clipcap(*words):
        done = subprocess.run([program, "--quiet", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"clipcap {' '.join(map(str, words))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")

    for mapper in ("mlp", "bert"):
        model = folder / mapper
        clipcap("model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", mapper, "--seed", 1, "--out", model)
        for tuned in ([], ["--finetune-gpt2"]):
            clipcap("train", "--artifacts-only", "--model", model, *tuned, "--out", folder / f"{mapper}-run{''.join(tuned)}")
    clipcap("model", "quantize", folder / "mlp", "--out", folder / "int8")


def check_all(folders: list[pathlib.Path]) -> int:
    paths = sorted(path for folder in folders for path in folder.rglob("*.onnx"))
    if not paths:
        print("no .onnx file found", file=sys.stderr)
        return 1
    failures = 0
    for path in paths:
        try:
            print(f"{path}: {check(path)}")
        except Exception as error:  # one bad graph does not hide the next
            failures += 1
            print(f"{path}: FAILED: {error}", file=sys.stderr)
    return 1 if failures else 0


def main() -> int:
    given = [pathlib.Path(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        if len(given) == 1 and given[0].is_file():
            make(given[0].resolve(), pathlib.Path(scratch))
            given = [pathlib.Path(scratch)]
        return check_all(given)


if __name__ == "__main__":
    sys.exit(main())
