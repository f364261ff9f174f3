#!/usr/bin/env python3
"""Runs the ONNX checker, with shape inference, over every graph under some folders (bundles, training artifacts).

    python scripts/check_graphs.py FOLDER...

Needs the package onnx (scripts/requirements-check.txt). Exit status 1 if a graph fails or there is none.
"""

import pathlib
import sys

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


def main() -> int:
    paths = sorted(path for folder in sys.argv[1:] for path in pathlib.Path(folder).rglob("*.onnx"))
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


if __name__ == "__main__":
    sys.exit(main())
