"""The demo with `--rerank`, and wrong captions found by `--min-clip-score`: scripts/measure.sh rerank.

    python3 scripts/measure_rerank.py CLIPCAP [OUT]

Needs pipelines/demo.toml run up to train_mlp (OUT, out/demo by default). The scorer is the demo's own CLIP; nothing else is installed.
"""
import csv
import json
import pathlib
import random
import subprocess
import sys

clipcap = sys.argv[1]
demo = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "out/demo")
out = demo / "rerank"
out.mkdir(parents=True, exist_ok=True)
model = demo / "train_mlp/best"


def run(*words):
    done = subprocess.run([clipcap, *map(str, words), "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"{words}: exit {done.returncode}: {done.stdout}")
    return json.loads(done.stdout)


def captioned(name, *flags):
    table = out / f"{name}.parquet"
    run("caption", demo / "scenes/held-out", "--model", model, "--max-new-tokens", 40, "--overwrite", "--out", table, *flags)
    scores = run("evaluate", "--predictions", table, "--references", demo / "prepare", "--tokens", "char", "--scorer", model,
                 "--images", demo / "scenes/held-out")
    right = run("scenes", "--check", table, "--seed", 42, "--overwrite", "--out", out / f"{name}.json")
    right = json.loads((out / f"{name}.json").read_text())
    return scores["char"]["cider"], scores["clip"]["clip_score"], right["colour_shape_position_right"]


print("held-out scenes                       CIDEr  CLIPScore  colour, shape and position right")
sampled = ["--top-p", 0.9, "--seed", 3]
for temperature in [1, 1.5]:
    for name, title, flags in [
        ("one", "one sample", []),
        ("five", "best of five, re-ranked", ["--num-captions", 5, "--rerank", "--keep", 1]),
    ]:
        cider, clip, right = captioned(f"{name}-{temperature}", *sampled, "--temperature", temperature, *flags)
        print(f"{title + f', temperature {temperature}':<38}{cider:6.3f}{clip:10.3f}{100 * right:12.1f}%")
cider, clip, right = captioned("greedy")
print(f"{'greedy':<38}{cider:6.3f}{clip:10.3f}{100 * right:12.1f}%")

# A tenth of the captions are another picture's.
pairs = []
for path in sorted((demo / "scenes/captions").glob("*train.txt")):
    for line in path.read_text().splitlines():
        head, words = line.split(" ", 1)
        pairs.append([head.split("#")[0], words.replace(" ", "")])
random.seed(5)
random.shuffle(pairs)
pairs = pairs[:5000]
wrong = set(random.sample(range(len(pairs)), len(pairs) // 10))
texts = {}
for image, text in pairs:
    texts.setdefault(image, set()).add(text)
rows = []
for number, (image, text) in enumerate(pairs):
    if number in wrong:
        others = [other for other in random.sample(pairs, 20) if other[0] != image and other[1] not in texts[image]]
        text = others[0][1]
    rows.append({"image": f"{image}.jpg", "caption": text, "split": "train"})
mixed = out / "mixed.jsonl"
mixed.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
run("score", mixed, "--images", demo / "scenes/images", "--scorer", model, "--overwrite", "--out", out / "mixed.csv")
scores = [float(row["clip_score"]) for row in csv.DictReader((out / "mixed.csv").open())]


def found(threshold):
    below = {number for number, score in enumerate(scores) if score < threshold}
    hits = len(below & wrong)
    return len(below), hits / max(len(below), 1), hits / len(wrong)


print(f"\n{len(rows)} captions, {len(wrong)} of them another picture's; below the score: how many, precision, recall")
ordered = sorted(scores)
good = sorted(score for number, score in enumerate(scores) if number not in wrong)
thresholds = {share: ordered[int(share * len(ordered))] for share in (0.02, 0.05, 0.08, 0.1, 0.12, 0.15)}
for share, threshold in thresholds.items():
    count, precision, recall = found(threshold)
    print(f"  lowest {100 * share:3.0f}% (--min-clip-score {threshold:.4f}): {count:5} {100 * precision:6.1f}% {100 * recall:6.1f}%")
# What `prepare` does with the threshold that a person would take who guesses a tenth.
threshold = round(thresholds[0.1], 4)
summary = run("prepare", "--captions", mixed, "--images", demo / "scenes/images", "--scorer", model, "--min-clip-score", threshold,
              "--overwrite", "--out", out / "prepared")
count, precision, recall = found(threshold)
print(f"prepare --min-clip-score {threshold}: {summary['counts']['below_min_clip_score']} captions in a table of their own "
      f"({count} by `score`)")
