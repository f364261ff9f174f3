#!/usr/bin/env python3
"""Runs clipcap on a few rendered pictures and opens every table it writes in pandas, polars, DuckDB and Hugging Face datasets: columns,
types and rows must be the same in all of them. A training run is read by TensorBoard, and its GPT2's configuration and tokenizer by
transformers. Text tables are held against Excel's rules. Then the other way round: tables that those write, in every compression they use,
are read by clipcap.

    scripts/check_tables.py CLIPCAP        the program, such as target/release/clipcap

Needs what scripts/requirements-check.txt lists; scripts/test.sh makes a venv of it.
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Nothing here is fetched from anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import duckdb
import pandas
import polars
import pyarrow
import pyarrow.parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TEXT, INT, LONG, FLOAT, BOOL = "text", "int32", "int64", "float64", "bool"
# 512 numbers a row; the tiny CLIP here has fewer.
VECTOR, HALF_VECTOR = "float32 vector", "float16 vector"

LINT = ["lint_length_outlier", "lint_repeated_ngram", "lint_residual_latin", "lint_no_chinese", "lint_duplicate"]
CAPTIONS = {
    "image_id": TEXT, "caption_id": INT, "caption": TEXT, "caption_raw": TEXT, "source": TEXT, "translation": TEXT, "split": TEXT,
    "line": LONG,
}
DATASET = {
    "captions": CAPTIONS,
    "images": {
        "image_id": TEXT, "image_path": TEXT, "sha256": TEXT, "width": INT, "height": INT, "bytes": LONG, "status": TEXT,
        "reason": TEXT, "split": TEXT, "num_captions": INT,
    },
    "duplicates": {
        "kind": TEXT, "image_id": TEXT, "other_image_id": TEXT, "split": TEXT, "other_split": TEXT, "distance": INT,
    },
}
BAD_LINES = {"file": TEXT, "line": LONG, "reason": TEXT, "message": TEXT}
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
    "words": {"rank": LONG, "word": TEXT, "count": LONG, "share": FLOAT},
    "duplicates": {"caption": TEXT, "count": LONG, "images": LONG, "splits": TEXT},
    "overlap": {"kind": TEXT, "split": TEXT, "other_split": TEXT, "count": LONG, "of": LONG, "share": FLOAT},
}
ROW = {"image_id": TEXT, "image_path": TEXT, "sha256": TEXT}
TABLE = ROW | {"caption_index": INT, "caption": TEXT, "logprob": FLOAT, "num_tokens": INT, "finish_reason": TEXT, "damaged": BOOL}
FAILED = {"image_path": TEXT, "reason": TEXT, "message": TEXT}
SCORES = {
    "image_id": TEXT, "tokens": TEXT, "source": TEXT, "caption_index": INT, "caption": TEXT, "num_references": INT, "num_tokens": INT,
} | {name: FLOAT for name in ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]}

POLARS = {TEXT: polars.String, INT: polars.Int32, LONG: polars.Int64, FLOAT: polars.Float64, BOOL: polars.Boolean}
DUCKDB = {TEXT: "VARCHAR", INT: "INTEGER", LONG: "BIGINT", FLOAT: "DOUBLE", BOOL: "BOOLEAN"}
HUGGING_FACE = {TEXT: "string", INT: "int32", LONG: "int64", FLOAT: "float64", BOOL: "bool"}


def query(text):
    """Rows of a DuckDB query."""
    return duckdb.connect().execute(text).fetchall()


def in_pandas(path, columns):
    frame = pandas.read_parquet(path)
    assert list(frame.columns)[: len(columns)] == list(columns), f"{path}: pandas finds {list(frame.columns)}"
    for name, kind in columns.items():
        values = frame[name].dropna()
        if kind == TEXT:
            assert values.map(lambda value: isinstance(value, str)).all(), f"{path}: {name} is not text in pandas"
        elif kind in (VECTOR, HALF_VECTOR):
            assert {str(value.dtype) for value in values} <= {kind.split()[0]}, f"{path}: {name} in pandas"
        elif len(values) == len(frame) > 0:
            assert str(frame[name].dtype) == kind, f"{path}: {name} is {frame[name].dtype} in pandas"
    return frame


def in_polars(path, columns):
    table = polars.read_parquet(path)
    for name, kind in columns.items():
        found = table.schema[name]
        if kind in (VECTOR, HALF_VECTOR):
            inner = polars.Float32 if kind == VECTOR else polars.Float16
            assert found.inner == inner and isinstance(found, polars.Array), f"{path}: {name} is {found} in polars"
        else:
            assert found == POLARS[kind], f"{path}: {name} is {found} in polars"
    return table.height


def in_duckdb(path, columns):
    types = {row[0]: row[1] for row in query(f"describe select * from read_parquet('{path}')")}
    for name, kind in columns.items():
        # DuckDB has no type of 16 bits and no arrays in Parquet: it reads lists of its FLOAT.
        wanted = "FLOAT[]" if kind in (VECTOR, HALF_VECTOR) else DUCKDB[kind]
        assert types[name] == wanted, f"{path}: {name} is {types[name]} in DuckDB"
    return query(f"select count(*) from read_parquet('{path}')")[0][0]


def in_datasets(path, columns):
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(CACHE))
    for name, kind in columns.items():
        feature = loaded.features[name]
        if kind in (VECTOR, HALF_VECTOR):
            assert feature.feature.dtype == kind.split()[0] and feature.length > 0, f"{path}: {name} is {feature} in datasets"
        else:
            assert feature.dtype == HUGGING_FACE[kind], f"{path}: {name} is {feature} in datasets"
    return loaded.num_rows


def check(path, columns):
    """One table in all four readers: the same columns, types and number of rows."""
    frame = in_pandas(path, columns)
    rows = [in_polars(path, columns), in_duckdb(path, columns)]
    # datasets refuses to make anything of a table without rows, whoever wrote it.
    rows += [in_datasets(path, columns)] if len(frame) else []
    assert set(rows) == {len(frame)}, f"{path}: {len(frame)} rows in pandas, {rows} in the others"
    codecs = {
        group.column(at).compression
        for group in map(pyarrow.parquet.read_metadata(path).row_group, range(pyarrow.parquet.read_metadata(path).num_row_groups))
        for at in range(group.num_columns)
    }
    assert codecs <= {"ZSTD"}, f"{path}: compressed by {codecs}"
    print(f"{path.relative_to(CACHE.parent)}: {len(frame)} rows")
    return frame


def check_folder(folder, columns):
    """A folder of data opens as a whole, without a pattern for its files."""
    rows = [len(pandas.read_parquet(folder)), polars.scan_parquet(folder).select(polars.len()).collect().item()]
    rows += [query(f"select count(*) from read_parquet('{folder}/*.parquet')")[0][0]]
    loaded = datasets.load_dataset(str(folder), cache_dir=str(CACHE))["train"]
    rows += [loaded.num_rows]
    assert len(set(rows)) == 1 and rows[0] > 0, f"{folder}: {rows} rows"
    assert loaded.column_names == list(columns), f"{folder}: {loaded.column_names}"
    print(f"{folder.name}/: {rows[0]} rows as a folder")


def check_configs(folder, tables):
    """A folder of several tables says to Hugging Face which is which."""
    first = next(iter(tables))
    for name in [None, *tables]:
        path = folder / f"{name or first}.parquet"
        if len(pandas.read_parquet(path)):
            loaded = datasets.load_dataset(str(folder), name, cache_dir=str(CACHE))["train"]
            assert set(tables[name or first]) <= set(loaded.column_names), f"{folder} {name}: {loaded.column_names}"
    print(f"{folder.name}/: load_dataset finds {', '.join(tables)}")


def check_images(path):
    """A shard of image bytes: Hugging Face decodes it without being told how."""
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(CACHE))
    assert isinstance(loaded.features["image"], datasets.Image), f"{path}: image is {loaded.features['image']}"
    first = loaded[0]
    if "width" in first:
        assert first["image"].size == (first["width"], first["height"]), f"{path}: {first['image'].size} decoded"
    table = polars.read_parquet(path)
    assert table.schema["image"] == polars.Struct({"bytes": polars.Binary, "path": polars.String})
    assert len(pandas.read_parquet(path)) == table.height == loaded.num_rows
    assert query(f"select count(*) from read_parquet('{path}') where octet_length(image.bytes) > 0") == [(table.height,)]
    print(f"{path.relative_to(CACHE.parent)}: {table.height} images, decoded by datasets")


def check_ours(run, root):
    """Every table that clipcap writes."""
    scenes, model = root / "scenes", root / "model"
    run("scenes", "--num-images", 40, "--out", scenes)
    run("model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--seed", 1, "--out", model)
    images, captions = scenes / "images", sorted((scenes / "captions").iterdir())
    (images / "broken.jpg").write_bytes(b"no picture")
    with open(captions[0], "a", encoding="utf-8") as file:
        file.write("a line without a key\n")
    sources = ["--images", images, "--captions", *captions]
    run("prepare", *sources, "--with-images", "--lint", "--out", root / "set", status=3)
    run("prepare", "--captions", *captions, "--out", root / "bare", status=3)
    run("embed", "--dataset", root / "set", "--images", images, "--model", model, "--device", "cpu", "--save-images",
        "--out", root / "embeddings", status=3)
    run("embed", "--dataset", root / "set", "--model", model, "--device", "cpu", "--dtype", "float16", "--out", root / "half")
    run("caption", images, "--model", model, "--device", "cpu", "--max-new-tokens", 6, "--out", root / "table.parquet", status=3)
    run("stats", root / "set", "--model", model, "--out", root / "stats")
    run("stats", root / "bare", "--units", "char", "--out", root / "stats-bare")
    run("evaluate", "--predictions", root / "table.parquet", "--references", root / "set", "--per-image", root / "scores.parquet")

    for folder in ["set", "bare"]:
        for name, columns in DATASET.items():
            lint = dict.fromkeys(LINT, BOOL) if (folder, name) == ("set", "captions") else {}
            check(root / folder / f"{name}.parquet", columns | lint)
        check(root / f".clipcap/{folder}.errors.parquet", BAD_LINES)
        check_configs(root / folder, DATASET)
    frame = pandas.read_parquet(root / "set/captions.parquet")
    keys = list(zip(frame["image_id"].map(str.encode), frame["caption_id"]))
    assert keys == sorted(keys) and len(set(keys)) == len(keys) > 0, "captions are not sorted by image_id and caption_id"
    for shard in [*root.glob("set/images-*.parquet"), *root.glob("embeddings/images-*.parquet")]:
        check_images(shard)
    check(root / "embeddings/part-00000.parquet", ROW | {"embedding": VECTOR, "damaged": BOOL})
    check(root / ".clipcap/embeddings.errors.parquet", FAILED)
    check(root / "half/part-00000.parquet", ROW | {"embedding": HALF_VECTOR, "damaged": BOOL})
    check(root / "table.parquet", TABLE)
    check(root / ".clipcap/table.errors.parquet", FAILED)
    check(root / "scores.parquet", SCORES)
    for folder in ["stats", "stats-bare"]:
        for name, columns in STATS.items():
            check(root / folder / f"{name}.parquet", columns)
        check_configs(root / folder, STATS)
    run("caption", images, "--model", model, "--device", "cpu", "--max-new-tokens", 6, "--out", f"{root}/parts/", status=3)
    check_folder(root / "parts", TABLE)
    check_folder(root / "half", ROW | {"embedding": HALF_VECTOR, "damaged": BOOL})


def check_excel(path, with_mark):
    """A table as Excel imports it: UTF-8 told by its mark where there is one, as many cells in each row, quotes doubled inside quotes, and no
    cell of numbers that would be taken for text."""
    raw = path.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf") == with_mark, f"{path}: the mark of UTF-8"
    rows = list(csv.reader(raw.decode("utf-8-sig").splitlines(keepends=True), strict=True))
    assert len({len(row) for row in rows}) == 1 < len(rows), f"{path}: rows of several lengths"
    frames = [pandas.read_csv(path), polars.read_csv(path).to_pandas(), duckdb.connect().execute(f"select * from read_csv('{path}')").df()]
    frames.append(datasets.load_dataset("csv", data_files=str(path), split="train", cache_dir=str(CACHE)).to_pandas())
    for frame in frames:
        # Some keep the mark in front of the first name; what they read is the same.
        assert [name.lstrip("\ufeff") for name in frame.columns] == rows[0] and len(frame) == len(rows) - 1, f"{path}: {list(frame.columns)}"
    print(f"{path.relative_to(CACHE.parent)}: {len(rows) - 1} rows as Excel, pandas, polars, DuckDB and datasets import them")


def check_run(run, root):
    """A training run: its events, its metrics, its model."""
    out = root / "run"
    run("train", "--dataset", root / "set", "--embeddings", root / "embeddings", "--model", root / "model", "--finetune-gpt2",
        "--max-steps", 6, "--eval-steps", 3, "--batch-size", 8, "--device", "cpu", "--out", out)
    metrics = pandas.read_parquet(out / "metrics.parquet")
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    for tag, column in {"train/loss": "train_loss", "train/lr": "learning_rate", "dev/loss": "dev_loss", "dev/cider": "dev_cider"}.items():
        wanted = metrics[["step", column]].dropna()
        found = events.Scalars(tag)
        assert [event.step for event in found] == list(wanted["step"]), f"{tag}: other steps in TensorBoard"
        assert all(abs(event.value - value) <= 1e-5 * max(1, abs(value)) for event, value in zip(found, wanted[column])), tag
    told = events.Tensors("dev/captions")[-1].tensor_proto.string_val[0].decode()
    assert told.startswith("- ") and "\n  - " in told, f"TensorBoard's captions: {told[:200]}"
    shown = datasets.load_dataset("json", data_files=str(out / "samples.jsonl"), split="train", cache_dir=str(CACHE))
    assert shown["step"] == [3, 6] and shown[1]["samples"][0]["references"], "samples.jsonl in datasets"
    print(f"{len(metrics)} steps in TensorBoard, captions beside their references")
    try:
        import transformers
    except ImportError:
        print("SKIPPED: no transformers; the bundle's configuration and tokenizer are not opened")
        return
    folder = out / "best/gpt2"
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    text = pandas.read_parquet(root / "set/captions.parquet")["caption"][0]
    assert config.model_type == "gpt2" and len(tokenizer) <= config.vocab_size
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)).replace(" ", "") == text.replace(" ", "").lower()
    # Its weights need PyTorch, which is not installed for this; scripts/check_training.sh compares them.
    print("the bundle's GPT2: configuration and tokenizer open in transformers")


def check_exports(run, root):
    """What `export` writes for `datasets`: every picture with its captions, in its split."""
    frame = pandas.read_parquet(root / "set/captions.parquet").groupby("image_id")["caption"].apply(list)
    for layout, loader in [("imagefolder", "imagefolder"), ("parquet", "parquet")]:
        out = root / f"export-{layout}"
        run("export", root / "set", "--images", root / "scenes/images", "--to", layout, "--out", out)
        if layout == "parquet":
            files = {split: [str(path) for path in sorted(out.glob(f"{split}-*.parquet"))] for split in ["train", "dev", "test"]}
            loaded = datasets.load_dataset(loader, data_files={split: paths for split, paths in files.items() if paths}, cache_dir=str(CACHE))
        else:
            loaded = datasets.load_dataset(loader, data_dir=str(out), cache_dir=str(CACHE))
        rows = {row["image_id"]: row for split in loaded.values() for row in split}
        assert len(rows) == len(frame), f"{layout}: {len(rows)} rows of {len(frame)} images"
        for image_id, captions in frame.items():
            row = rows[image_id]
            assert row["image"].width > 0 and row["captions"] == captions and row["text"] == captions[0], f"{layout}: {row}"
        print(f"{layout}: {len(rows)} pictures with captions in {', '.join(loaded)}, by datasets")


def check_theirs(run, root):
    """Tables that others write, as inputs: captions for stats and evaluate, images for embed."""
    frame = pandas.read_parquet(root / "set/captions.parquet")[["image_id", "caption", "split"]]
    theirs = root / "theirs"
    theirs.mkdir()
    for codec in ["none", "snappy", "gzip", "lz4", "zstd"]:
        frame.to_parquet(theirs / f"pandas-{codec}.parquet", compression=None if codec == "none" else codec)
    polars.from_pandas(frame).with_columns(polars.col("split").cast(polars.Categorical)).write_parquet(theirs / "polars.parquet")
    query(f"copy (select * from read_parquet('{root}/set/captions.parquet')) to '{theirs}/duckdb.parquet' (format parquet)")
    datasets.Dataset.from_pandas(frame).to_parquet(str(theirs / "datasets.parquet"))
    for path in sorted(theirs.iterdir()):
        told = run("--json", "stats", path, "--units", "char", "--out", root / "stats-of" / path.stem)
        assert f'"captions":{len(frame)},' in told, f"{path}: {told[:200]}"
        run("evaluate", "--predictions", root / "table.parquet", "--references", path)
        print(f"{path.name}: {len(frame)} captions read by clipcap")

    shards = root / "images-of-datasets"
    shards.mkdir()
    pictures = sorted((root / "scenes/images").glob("scene-*.jpg"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in pictures]
    columns = {"image_path": [path.name for path in pictures], "image": images}
    stored = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    stored.to_parquet(str(shards / "images-00000.parquet"))
    run("embed", "--dataset", shards, "--model", root / "model", "--device", "cpu", "--out", root / "embeddings-of-datasets")
    both = [pandas.read_parquet(root / name / "part-00000.parquet") for name in ["embeddings", "embeddings-of-datasets"]]
    assert list(both[0]["sha256"]) == list(both[1]["sha256"]), "datasets stored other images"
    print(f"{len(pictures)} images stored by datasets, embedded by clipcap")


def main():
    program = Path(sys.argv[1]).resolve()

    def run(*words, status=0):
        done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, encoding="utf-8")
        if done.returncode != status:
            sys.exit(f"clipcap {' '.join(map(str, words))}: exit status {done.returncode}, not {status}\n{done.stdout}{done.stderr}")
        return done.stdout

    check_ours(run, CACHE.parent)
    root = CACHE.parent
    run("caption", root / "scenes/images", "--model", root / "model", "--device", "cpu", "--max-new-tokens", 6, "--quote-formulas",
        "--out", root / "excel.csv", status=3)
    check_excel(root / "excel.csv", False)
    check_excel(root / "stats/words.csv", True)
    check_run(run, root)
    check_exports(run, CACHE.parent)
    check_theirs(run, CACHE.parent)
    print("every table opens with the right types, and every table of others is read")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        CACHE = Path(folder) / "cache"
        main()
