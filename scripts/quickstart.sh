#!/usr/bin/env bash
# From a fresh clone to a caption table: sets up, builds, renders a folder of images, makes a small model and captions the folder.
# The model is random, so the captions are noise; the point is that the whole way works. Real weights: see README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/build.sh
clipcap=target/release/clipcap
out=out/quickstart
mkdir -p "$out"
"$clipcap" doctor
"$clipcap" scenes --out "$out/scenes" --num-images 200
if [ ! -f "$out/model/clipcap.json" ]; then
  "$clipcap" model init --clip vit-tiny --gpt2 gpt2-tiny --mapper mlp --seed 1 --out "$out/model"
fi
"$clipcap" caption "$out/scenes/images" --model "$out/model" --max-new-tokens 12 --out "$out/captions.parquet"
"$clipcap" caption "$out/scenes/images" --model "$out/model" --max-new-tokens 12 --out "$out/captions.tsv" --quiet
echo
head -n 5 "$out/captions.tsv"
echo
echo "The table: $out/captions.parquet (and .tsv). Run this again: what is done is not done twice."
echo "With real weights: README.md, \"Real weights\"."
