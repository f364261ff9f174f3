#!/usr/bin/env python3
"""Writes tests/answers/metrics.json: captions of 60 images, and their BLEU, ROUGE-L and CIDEr as pycocoevalcap has them, from the few lines
below, which share nothing with the program.

    scripts/make_metric_answers.py
    scripts/make_metric_answers.py --check ../shared/golden/metrics.expected.json    holds these lines against pycocoevalcap's answers there
"""

import collections
import json
import math
import random
import re
import sys
from pathlib import Path


def tokens(text):
    """One for each Han character, one for each run of ASCII letters and digits; the rest is dropped."""
    return re.findall("[\u4e00-\u9fff]|[a-z0-9]+", text.lower())


def ngrams(words, size):
    return collections.Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))


def bleu(images):
    """Of a whole corpus, up to four n-grams; the closest reference counts for the length."""
    right, guessed, length, wanted = [0] * 4, [0] * 4, 0, 0
    for candidate, references in images:
        length += len(candidate)
        wanted += min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
        for size in range(1, 5):
            most = collections.Counter()
            for reference in references:
                most |= ngrams(reference, size)
            right[size - 1] += sum((ngrams(candidate, size) & most).values())
            guessed[size - 1] += max(0, len(candidate) - size + 1)
    scores, product = [], 1.0
    for size in range(4):
        product *= (right[size] + 1e-15) / (guessed[size] + 1e-9)
        scores.append(product ** (1 / (size + 1)))
    ratio = (length + 1e-15) / (wanted + 1e-9)
    return [score * math.exp(1 - 1 / ratio) if ratio < 1 else score for score in scores]


def common(a, b):
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for at, y in enumerate(b):
            row.append(before[at] + 1 if x == y else max(before[at + 1], row[at]))
    return row[-1]


def rouge_l(candidate, references):
    shared = [common(candidate, reference) for reference in references]
    precision = max(s / max(1, len(candidate)) for s in shared)
    recall = max(s / max(1, len(r)) for s, r in zip(shared, references))
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0


def ciders(images):
    """Each image's CIDEr with clipped counts and a penalty for other lengths."""
    grams = lambda words: [ngrams(words, size) for size in range(1, 5)]
    seen = collections.Counter()
    for _, references in images:
        seen.update({gram for reference in references for size in grams(reference) for gram in size})
    weigh = lambda size: {gram: count * (math.log(len(images)) - math.log(max(1, seen[gram]))) for gram, count in size.items()}
    norm = lambda size: math.sqrt(sum(x * x for x in size.values()))
    found = []
    for candidate, references in images:
        ours, total = [weigh(size) for size in grams(candidate)], 0.0
        for reference in references:
            theirs = [weigh(size) for size in grams(reference)]
            apart = max(0, len(candidate) - 1) - max(0, len(reference) - 1)
            for a, b in zip(ours, theirs):
                dot = sum(min(x, b[gram]) * b[gram] for gram, x in a.items() if gram in b)
                total += dot / ((norm(a) * norm(b)) or 1) * math.exp(-apart * apart / 72)
        found.append(10 * total / 4 / len(references))
    return found


def scored(references, predictions):
    images = [(tokens(predictions[image]), [tokens(text) for text in texts]) for image, texts in references.items()]
    rouges, cider = [rouge_l(*image) for image in images], ciders(images)
    names = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    mean = lambda values: sum(values) / len(values)
    return {
        "expected": dict(zip(names, [*bleu(images), mean(rouges), mean(cider)])),
        "per_image": {image: {"rouge_l": r, "cider": c} for image, r, c in zip(references, rouges, cider)},
    }


def captions():
    """References and predictions that share much, little or nothing."""
    pick = random.Random(12)
    things = ["圆", "方块", "三角形", "星", "狗", "猫", "女孩", "T恤", "iPhone 15"]
    colours = ["红色的", "蓝色的", "大的", "两个", "", "白色"]
    places = ["在左边", "在草地上", "在桌子上面。", "，旁边有一棵树", "in the park", "在白色背景的右边"]
    say = lambda: "".join(pick.choice(some) for some in (colours, things, places))
    references = {f"image-{number:02}": [say() for _ in range(pick.randint(1, 5))] for number in range(60)}
    predictions = {}
    for number, (image, texts) in enumerate(references.items()):
        text = pick.choice(texts)
        predictions[image] = [text, say(), text[: len(text) // 2], text + say(), "！", "狗狗狗狗狗狗"][number % 6 if number < 30 else number % 4]
    return references, predictions


def make():
    references, predictions = captions()
    answers = {"references": references, "predictions": predictions} | scored(references, predictions)
    path = Path(__file__).resolve().parent.parent / "tests/answers/metrics.json"
    path.write_text(json.dumps(answers, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(path, answers["expected"])


def check(path):
    golden = json.loads(Path(path).read_text(encoding="utf-8"))
    found = scored(golden["references"], golden["predictions"])
    for name, wanted in golden["expected"].items():
        assert abs(found["expected"][name] - wanted) < 1e-9, (name, found["expected"][name], wanted)
    for image, wanted in golden["per_image"].items():
        assert all(abs(found["per_image"][image][name] - wanted[name]) < 1e-9 for name in wanted), (image, wanted)
    print(f"{len(golden['per_image'])} images: the same as pycocoevalcap")


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1:2] == ["--check"] else make()
