#!/usr/bin/env python3
"""Images per second of OpenVINO's own API on a bundle's image encoder: the model alone, pixels in memory, compiled and run once before the
clock starts.

    peers.py BUNDLE fp32|bf16|int8 BATCH THREADS RUNS
"""

import os
import sys
import time

import numpy as np
import openvino as ov

bundle, precision, batch, threads, runs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
graph = "image_encoder.int8.onnx" if precision == "int8" else "image_encoder.onnx"
core = ov.Core()
model = core.read_model(os.path.join(bundle, graph))
side = model.input(0).partial_shape[2].get_length()
model.reshape({0: [batch, 3, side, side]})
options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
# In 8 bits, the rest is in what OpenVINO prefers here.
if precision != "int8":
    options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
compiled = core.compile_model(model, "CPU", options)
pixels = np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)
compiled(pixels)
start = time.perf_counter()
for _ in range(runs):
    compiled(pixels)
print(batch * runs / (time.perf_counter() - start))
