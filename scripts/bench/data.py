#!/usr/bin/env python3
"""`prepare`, `stats` and `evaluate` beside polars, DuckDB and pandas: whole commands, in turn, on captions of Flickr30k-CN's size and layout.

    data.py [--rounds N] [--images N] [--only WORK] CLIPCAP OUT     makes the captions in OUT once, checks that all find the same, prints a table

Run it with a Python that has scripts/bench/requirements.txt. Peers that it lacks are left out. On a shared machine read ratios, not seconds.
clipcap waits until the disk has its files (fsync), which the others do not.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

flags = argparse.ArgumentParser()
flags.add_argument("--rounds", type=int, default=5)
flags.add_argument("--images", type=int, default=31783)
flags.add_argument("--only")
flags.add_argument("clipcap")
flags.add_argument("out", type=pathlib.Path)
given = flags.parse_args()
clipcap, out, rounds, images = given.clipcap, given.out, given.rounds, given.images
peers = [name for name in ("polars", "duckdb", "pandas") if importlib.util.find_spec(name)]
script = [sys.executable, str(pathlib.Path(__file__).with_name("data_peers.py"))]


def generate():
    """Five captions an image, of words that are as uneven as those of a language. One caption in a hundred occurs elsewhere too."""
    chance = random.Random(1)
    cumulate = lambda count, flat: list(itertools.accumulate(1 / (rank + flat) for rank in range(count)))
    letters, common = [chr(0x4E00 + at) for at in chance.sample(range(20000), 3500)], cumulate(3500, 20)
    words = ["".join(chance.choices(letters, cum_weights=common, k=chance.choice([1, 2, 2, 2, 3]))) for _ in range(9000)]
    common = cumulate(len(words), 5)
    again = [chance.choices(words, cum_weights=common, k=7) for _ in range(50)]
    names = sorted({str(chance.randrange(10**8, 8 * 10**9)) for _ in range(images + 9)})[:images]
    held = set(chance.sample(names, images // 16))
    files = {split: out / f"seg.flickr30k{mark}boson{split}.caption.txt" for split, mark in [("train", "zhb"), ("val", "zhb"), ("test", "zhm")]}
    texts = {split: [] for split in files}
    kept = []
    for at, name in enumerate(names):
        split = ["val", "test"][at % 2] if name in held else "train"
        subject = chance.choices(words, cum_weights=common, k=4)
        for number in range(5):
            cut = chance.choices(words, cum_weights=common, k=chance.randint(5, 14))
            cut = [chance.choice(subject) if chance.random() < 0.4 else word for word in cut]
            cut = chance.choice(again) if chance.random() < 0.01 else cut
            line = " ".join(f"{word}:n" if split == "test" else word for word in cut)
            texts[split].append(f"{name}#{'zhm' if split == 'test' else 'zhb'}#{number} {line}\n")
            kept.append((name, number, "".join(cut)))
    for split, file in files.items():
        file.write_text("".join(texts[split]), encoding="utf-8")
    for part, chosen in [("predictions", lambda number: number == 0), ("references", lambda number: number > 0)]:
        rows = [json.dumps({"image_id": name, "caption": text}, ensure_ascii=False) for name, number, text in kept if chosen(number)]
        (out / f"{part}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        subprocess.run([*script[:1], "-c", "import sys, pyarrow.json as j, pyarrow.parquet as p; p.write_table(j.read_json(sys.argv[1]), sys.argv[2])",
                        str(out / f"{part}.jsonl"), str(out / f"{part}.parquet")], check=True)


def timed(command):
    """Seconds, processor seconds and peak memory (MB) of a whole process, and what it said."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = process.stdout.read()
    fault = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{command}: {fault.decode()}")
    return (seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), said.decode()


out.mkdir(parents=True, exist_ok=True)
files = sorted(str(file) for file in out.glob("seg.*.txt"))
if not files:
    generate()
    files = sorted(str(file) for file in out.glob("seg.*.txt"))
table, predicted, references = (str(out / name) for name in ("set/captions.parquet", "predictions.parquet", "references.parquet"))
ours = {
    "prepare": [clipcap, "prepare", "--quiet", "--overwrite", "--captions", *files, "--out", str(out / "set")],
    "stats": [clipcap, "stats", str(out / "set"), "--quiet", "--overwrite", "--units", "char", "--out", str(out / "stats")],
    "evaluate": [clipcap, "evaluate", "--quiet", "--predictions", predicted, "--references", references, "--tokens", "char", "--out", str(out / "scores.json")],
}
theirs = {
    "prepare": lambda who: [str(out / f"{who}.parquet"), *files],
    "stats": lambda who: [table, str(out / f"stats-{who}")],
    "evaluate": lambda who: [predicted, references],
}


def found_by_us(work):
    if work == "prepare":
        return {"captions": json.loads((out / ".clipcap" / "set.manifest.json").read_text())["counts"]["captions"]}
    if work == "stats":
        found = json.loads((out / "stats" / "stats.json").read_text())
        figures = next(group["figures"] for group in found["lengths"] if group["split"] is None and group["source"] is None)
        return {"captions": found["captions"], "mean": figures["mean"], "repeated": found["duplicate_captions"]["captions"],
                "opening": found["openings"][0]["top"][0]["text"]}
    found = json.loads((out / "scores.json").read_text())
    return {"bleu4": found["char"]["bleu_4"], "cider": found["char"]["cider"]}


print(f"{images} images, {5 * images} captions; medians of {rounds} rounds in turn: seconds, processor seconds, peak MB\n")
print("| work | clipcap | " + " | ".join(peers) + " |\n| --- | --- | " + " | ".join("---" for _ in peers) + " |")
for work in [work for work in ours if given.only in (None, work)]:
    measured = {who: [] for who in ["clipcap", *peers]}
    lacking = {who for who in peers if (who, work) == ("pandas", "evaluate")}
    for turn in range(rounds + 1):
        for who in measured:
            if who in lacking:
                continue
            figures, said = timed(ours[work] if who == "clipcap" else [*script, who, work, *theirs[work](who)])
            found = found_by_us(work) if who == "clipcap" else json.loads(said)
            if who == "clipcap":
                wanted = found
            elif not all(math.isclose(found[key], value, rel_tol=1e-6) if isinstance(value, float) else found[key] == value for key, value in wanted.items()):
                sys.exit(f"{work}: {who} finds {found}, and clipcap {wanted}")
            # The first round is to warm up.
            if turn:
                measured[who].append(figures)
    middle = {who: [statistics.median(column) for column in zip(*rows)] for who, rows in measured.items() if rows}
    cell = lambda who: (
        "" if who not in middle else "{:.3f} s, {:.3f}, {:.0f}".format(*middle[who])
        + (f" ({middle[who][0] / middle['clipcap'][0]:.1f} times)" if who != "clipcap" else "")
    )
    print(f"| {work} | " + " | ".join(cell(who) for who in middle | dict.fromkeys(lacking)) + " |", flush=True)
starts = {who: statistics.median(timed([*script, who, "start"])[0][0] for _ in range(rounds)) for who in peers}
print("\nOf these, starting alone: " + ", ".join(f"{who} {seconds:.2f} s" for who, seconds in starts.items()))
