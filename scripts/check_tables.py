#!/usr/bin/env python3
"""Opens the tables that clipcap writes in pandas, polars, DuckDB and Hugging Face datasets, and checks columns and types.

    scripts/check_tables.py DATASET [STATS]

DATASET is a folder of `clipcap prepare` (with images-00000.parquet it is checked too), STATS one of `clipcap stats`.
Needs: pip install pandas pyarrow polars duckdb datasets pillow
"""

import sys
from pathlib import Path

import datasets
import duckdb
import pandas
import polars

TEXT, INT, LONG, FLOAT, BOOL = "text", "int32", "int64", "float64", "bool"

DATASET = {
    "captions": {
        "image_id": TEXT, "caption_id": INT, "caption": TEXT, "caption_raw": TEXT, "source": TEXT, "translation": TEXT,
        "split": TEXT, "line": LONG,
    },
    "images": {
        "image_id": TEXT, "image_path": TEXT, "sha256": TEXT, "width": INT, "height": INT, "bytes": LONG, "status": TEXT,
        "reason": TEXT, "split": TEXT, "num_captions": INT,
    },
    "errors": {"file": TEXT, "line": LONG, "reason": TEXT, "message": TEXT},
    "duplicates": {
        "kind": TEXT, "image_id": TEXT, "other_image_id": TEXT, "split": TEXT, "other_split": TEXT, "distance": INT,
    },
}
STATS = {
    "lengths": {
        "unit": TEXT, "split": TEXT, "source": TEXT, "count": LONG, "mean": FLOAT, "std": FLOAT, "min": LONG, "q1": FLOAT,
        "median": FLOAT, "q3": FLOAT, "p95": FLOAT, "p99": FLOAT, "max": LONG,
    },
    "histogram": {"unit": TEXT, "split": TEXT, "source": TEXT, "length": LONG, "count": LONG},
    "captions_per_image": {"captions": LONG, "images": LONG},
    "vocabulary": {"unit": TEXT, "text": TEXT, "count": LONG, "known": BOOL},
    "phrases": {"kind": TEXT, "n": INT, "text": TEXT, "count": LONG},
    "cut": {"unit": TEXT, "max_len": LONG, "captions": LONG, "share": FLOAT},
}

POLARS = {TEXT: polars.String, INT: polars.Int32, LONG: polars.Int64, FLOAT: polars.Float64, BOOL: polars.Boolean}
DUCKDB = {TEXT: "VARCHAR", INT: "INTEGER", LONG: "BIGINT", FLOAT: "DOUBLE", BOOL: "BOOLEAN"}
HUGGING_FACE = {TEXT: "string", INT: "int32", LONG: "int64", FLOAT: "float64", BOOL: "bool"}


def check(path, columns):
    """One table in all four readers: the same columns, types and number of rows."""
    frame = pandas.read_parquet(path)
    missing = set(columns) - set(frame.columns)
    assert not missing, f"{path}: pandas finds no {missing}"
    for name, kind in columns.items():
        full = frame[name].notna().all()
        if kind != TEXT and full and len(frame):
            assert str(frame[name].dtype) == kind, f"{path}: {name} is {frame[name].dtype} in pandas"
        if kind == TEXT:
            assert frame[name].dropna().map(lambda value: isinstance(value, str)).all(), f"{path}: {name} is not text in pandas"

    table = polars.read_parquet(path)
    assert table.height == len(frame), f"{path}: polars reads {table.height} rows, pandas {len(frame)}"
    for name, kind in columns.items():
        assert table.schema[name] == POLARS[kind], f"{path}: {name} is {table.schema[name]} in polars"

    described = duckdb.sql(f"describe select * from read_parquet('{path}')").fetchall()
    types = {row[0]: row[1] for row in described}
    for name, kind in columns.items():
        assert types[name] == DUCKDB[kind], f"{path}: {name} is {types[name]} in DuckDB"
    (rows,) = duckdb.sql(f"select count(*) from read_parquet('{path}')").fetchone()
    assert rows == len(frame), f"{path}: DuckDB reads {rows} rows"

    if len(frame):
        loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(CACHE))
        assert loaded.num_rows == len(frame), f"{path}: datasets reads {loaded.num_rows} rows"
        for name, kind in columns.items():
            assert loaded.features[name].dtype == HUGGING_FACE[kind], f"{path}: {name} is {loaded.features[name]} in datasets"
    print(f"{path.name}: {len(frame)} rows in pandas, polars, DuckDB and datasets")
    return frame


def check_images(path):
    """A shard of image bytes: Hugging Face decodes it without being told how."""
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(CACHE))
    assert isinstance(loaded.features["image"], datasets.Image), f"{path}: image is {loaded.features['image']}"
    first = loaded[0]
    size = (first["width"], first["height"])
    assert first["image"].size in (size, size[::-1]), f"{path}: {first['image'].size} decoded, {size} stored"
    table = polars.read_parquet(path)
    assert table.schema["image"] == polars.Struct({"bytes": polars.Binary, "path": polars.String})
    assert len(pandas.read_parquet(path)) == table.height
    (rows,) = duckdb.sql(f"select count(*) from read_parquet('{path}') where octet_length(image.bytes) > 0").fetchone()
    assert rows == table.height, f"{path}: {rows} of {table.height} images have bytes in DuckDB"
    print(f"{path.name}: {table.height} images, decoded by datasets")


def main():
    dataset = Path(sys.argv[1])
    frames = {name: check(dataset / f"{name}.parquet", columns) for name, columns in DATASET.items()}
    captions = frames["captions"]
    keys = list(zip(captions["image_id"].map(str.encode), captions["caption_id"]))
    assert keys == sorted(keys) and len(set(keys)) == len(keys), "captions are not sorted by image_id and caption_id"
    for shard in sorted(dataset.glob("images-*.parquet")):
        check_images(shard)
    if len(sys.argv) > 2:
        for name, columns in STATS.items():
            check(Path(sys.argv[2]) / f"{name}.parquet", columns)
    print("all tables open with the right types")


if __name__ == "__main__":
    import tempfile

    if len(sys.argv) < 2:
        sys.exit(__doc__)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        CACHE = Path(folder)
        main()
