#!/usr/bin/env python3
"""Writes random but distinct embeddings for the images of a dataset, in the layout of `clipcap embed`: for comparisons without photos.

    random_embeddings.py DATASET EMBEDDINGS [--dim 512] [--images N]     (N: of the first N images only)
"""

import argparse
import hashlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", type=pathlib.Path)
parser.add_argument("embeddings", type=pathlib.Path)
parser.add_argument("--dim", type=int, default=512)
parser.add_argument("--images", type=int)
arguments = parser.parse_args()
ids = sorted(set(parquet.read_table(arguments.dataset / "captions.parquet")["image_id"].to_pylist()))[: arguments.images]
values = np.random.default_rng(0).standard_normal((len(ids), arguments.dim), dtype=np.float32)
table = pa.table(
    {
        "image_id": ids,
        "image_path": ids,
        "sha256": [hashlib.sha256(row.tobytes()).hexdigest() for row in values],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), arguments.dim),
    }
)
arguments.embeddings.mkdir(parents=True, exist_ok=True)
parquet.write_table(table.replace_schema_metadata({"clipcap.format": "embeddings/1"}), arguments.embeddings / "part-00000.parquet")
print(f"{len(ids)} embeddings of {arguments.dim}")
