#!/usr/bin/env bash
# From a fresh clone to a trained model that people can look at: sets up, builds, renders a small world, trains both recipes on it from the
# models in models/demo, captions scenes with combinations that no mapper and no GPT2 has met, and scores them. Nothing else is downloaded. Run
# again, it skips what is done.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/build.sh
clipcap=target/release/clipcap
out=out/demo
"$clipcap" doctor
"$clipcap" run pipelines/demo.toml
echo
python3 - "$out" <<'PY'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
read = lambda name: json.loads((out / name).read_text())
print("held-out scenes               CIDEr   BLEU-4   colour, shape and position right")
for name, title in [("before", "before training"), ("mlp", "MLP mapper + tuned GPT2"), ("bert", "BERT mapper + frozen GPT2")]:
    scores, attributes = read(f"scores-{name}.json")["char"], read(f"attributes-{name}.json")
    print(f"{title:<28}{scores['cider']:7.3f}{scores['bleu_4']:9.3f}{100 * attributes['colour_shape_position_right']:12.1f}%")
PY
echo
echo "Captions with their pictures and scores: $out/report.html"
echo "With real weights: put ViT-B-32.pt and a Chinese GPT2 folder under models/, Flickr30k under data/ (README.md, \"Real weights\"), then"
echo "  $clipcap run pipelines/flickr30k-mlp.toml"
