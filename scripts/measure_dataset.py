#!/usr/bin/env python3
"""The Python side of `scripts/measure.sh dataset`: data of Flickr30k-CN's size, the usual Python doing the same work, and a stopwatch.

    measure_dataset.py generate SHARED OUT     158,915 captions of 31,783 images in OUT/captions, in the layout of Flickr30k-CN,
                                               recombined from the real ones in SHARED (../shared/data)
    measure_dataset.py jpegs COUNT OUT         JPEGs of 500x375 named as the captions name them, of different content, about 110 KB each
    measure_dataset.py prepare FILE... OUT     ClipCap-Chinese's process_caption.py loop, then pandas to_parquet
    measure_dataset.py lengths TABLE OUT       its statistics.py (20 bins, matplotlib) and pandas describe, from a Parquet table
    measure_dataset.py words TABLE OUT         the same in words cut by jieba, and how often each occurs
    measure_dataset.py hash FOLDER             SHA-256 of every file, on every core
    measure_dataset.py race ROUNDS -- A... -- B...     runs A and B in turn and prints seconds, peak memory and A's time over B's

Needs numpy, pandas, pyarrow, matplotlib, pillow and jieba, each only where it is used.
"""

import csv
import hashlib
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

IMAGES, CAPTIONS_AN_IMAGE, HELD_OUT = 31_783, 5, 1_000


def ids():
    """As many different numbers as there are images, of five to ten digits, in the order of their text."""
    numbers = random.Random(1)
    found = set()
    while len(found) < IMAGES:
        found.add(str(numbers.randrange(10 ** numbers.choice([6, 7, 8, 9, 9, 9, 9]), 8 * 10**9)))
    return sorted(found)


def generate(shared, out):
    """Sentences with some of their words taken from other sentences, so that hardly any occurs twice."""
    import jieba

    shared, out = pathlib.Path(shared) / "captions", pathlib.Path(out) / "captions"
    with open(shared / "flickr30k_zh_1000.csv", encoding="utf-8") as file:
        sentences = [row["caption_zh"] for row in csv.DictReader(file)]
    with open(shared / "coco-cn_ext_3000.txt", encoding="utf-8") as file:
        sentences += [line.split("\t")[1] for line in file]
    cut = [[word for word in jieba.cut(sentence) if word.strip()] for sentence in sentences]
    every = [word for words in cut for word in words]
    chance = random.Random(2)

    def caption():
        return [chance.choice(every) if chance.random() < 0.3 else word for word in chance.choice(cut)]

    names = ids()
    order = names.copy()
    chance.shuffle(order)
    held = {"val": set(order[:HELD_OUT]), "test": set(order[HELD_OUT : 2 * HELD_OUT])}
    held["train"] = set(names) - held["val"] - held["test"]
    for split, mark in [("train", "zhb"), ("val", "zhb"), ("test", "zhm")]:
        name = f"flickr30k{mark}boson{split}"
        path = out / name / "TextData" / f"seg.{name}.caption.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            for image in names:
                for number in range(CAPTIONS_AN_IMAGE if image in held[split] else 0):
                    words = [f"{word}:n" for word in caption()] if split == "test" else caption()
                    file.write(f"{image}#{mark}#{number} {' '.join(words)}\n")


def jpegs(count, out):
    """A hundred noisy pictures; every file has a comment of its own behind the header, so that no two are equal."""
    import io

    import numpy as np
    from PIL import Image

    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    pictures = []
    for _ in range(100):
        base = Image.fromarray(noise.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        pixels = (np.asarray(base).astype(np.int16) + noise.integers(-30, 30, (375, 500, 3))).clip(0, 255)
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG", quality=88)
        pictures.append(stream.getvalue())
    for at, name in enumerate(ids()[: int(count)]):
        picture, comment = pictures[at % len(pictures)], name.encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{name}.jpg").write_bytes(picture[:2] + segment + picture[2:])


def process_caption(file, test):
    with open(file, encoding="utf8") as stream:
        lines = stream.readlines()
    result = []
    for line in lines:
        line = line.split()
        image_id = line[0].split("#")[0]
        words = [word.split(":")[0] for word in line[1:]] if test else line[1:]
        result.append((image_id, "".join(words)))
    return result


def prepare(*paths):
    import pandas

    *files, out = paths
    result = []
    for file in files:
        result += process_caption(file, test="test" in pathlib.Path(file).name)
    pandas.DataFrame(result, columns=["image_id", "caption"]).to_parquet(out)


def draw(lengths, unit, out):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    print(lengths.describe(percentiles=[0.25, 0.5, 0.75, 0.95, 0.99]))
    plt.hist(x=lengths, bins=20, color="steelblue", edgecolor="black")
    plt.xlabel(f"{unit} per caption")
    plt.ylabel("captions")
    plt.title("Caption length")
    plt.savefig(out)


def lengths(table, out):
    import pandas

    captions = pandas.read_parquet(table, columns=["caption"])["caption"]
    draw(captions.str.len(), "characters", out)


def words(table, out):
    from collections import Counter

    import jieba
    import pandas

    captions = pandas.read_parquet(table, columns=["caption"])["caption"]
    cut = [jieba.lcut(caption) for caption in captions]
    print(Counter(word for caption in cut for word in caption).most_common(50))
    draw(pandas.Series([len(caption) for caption in cut]), "words", out)


def hash_files(folder):
    def one(path):
        content = path.read_bytes()
        hashlib.sha256(content).hexdigest()
        return len(content)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        print(sum(pool.map(one, pathlib.Path(folder).iterdir())), "bytes")


def timed(command):
    """Seconds and peak memory (MB) of a whole process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{command}: {said.decode()}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def race(rounds, *rest):
    at = rest.index("--", 1)
    sides = [list(rest[1:at]), list(rest[at + 1 :])]
    for side in sides:
        timed(side)
    rows = [[timed(side) for side in sides] for _ in range(int(rounds))]
    for name, side in zip("AB", range(2)):
        seconds = sorted(row[side][0] for row in rows)
        print(f"{name}  median {statistics.median(seconds):.3f} s, fastest {seconds[0]:.3f} s, "
              f"peak {max(row[side][1] for row in rows):.0f} MB")
    ratios = sorted(row[0][0] / row[1][0] for row in rows)
    print(f"A / B  median {statistics.median(ratios):.1f}, from {ratios[0]:.1f} to {ratios[-1]:.1f} in {rounds} rounds")


if __name__ == "__main__":
    commands = {
        "generate": generate, "jpegs": jpegs, "prepare": prepare, "lengths": lengths, "words": words, "hash": hash_files, "race": race,
    }
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
