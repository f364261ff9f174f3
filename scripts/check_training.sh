#!/usr/bin/env bash
# Holds training against others at sizes that no test has: heads that are no multiple of 8 wide, one layer, prefixes of 1 and 7, odd
# vocabularies and embeddings; MLP and BERT mappers, GPT2 frozen and tuned.
#
#   PYTHON=venv/bin/python [ORT_TRAINING_PYTHON=venv2/bin/python] scripts/check_training.sh
#
# For each model: ONNX's checker and a training step from numpy (check_artifacts.py), PyTorch's loss, gradients and ten steps
# (compare_training.py), the same of ONNX Runtime's own training build (check_against_ort_training.py), and twenty steps of `clipcap train`
# that are killed and go on. PYTHON has torch, transformers, safetensors, onnx, onnxruntime and pyarrow.
set -euo pipefail
cd "$(dirname "$0")/.."
clipcap=${CLIPCAP:-target/release/clipcap}
python=${PYTHON:?set PYTHON to a Python with torch, transformers, onnx and onnxruntime}
out=${OUT:-out/check-training}
rm -rf "$out"
mkdir -p "$out"

# GPT2 and, for BERT mappers, BERT of as many layers and heads: vocabulary, width, layers, heads, prefix, embedding.
model() { # NAME MAPPER VOCAB WIDTH LAYERS HEADS PREFIX DIM
  local folder=$out/$1
  mkdir -p "$folder/gpt2" "$folder/clip"
  cat > "$folder/gpt2/config.json" <<JSON
{"model_type": "gpt2", "vocab_size": $3, "n_positions": 48, "n_embd": $4, "n_layer": $5, "n_head": $6}
JSON
  cat > "$folder/clip/config.json" <<JSON
{"model_type": "clip", "projection_dim": $8, "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
 "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": $8}}
JSON
  echo '{"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}' > "$folder/clip/preprocessor_config.json"
  cat > "$folder/bert.json" <<JSON
{"vocab_size": 11, "hidden_size": $4, "num_hidden_layers": $5, "num_attention_heads": $6, "intermediate_size": $((2 * $4 + 1)),
 "max_position_embeddings": $((2 * $7 + 3))}
JSON
  "$clipcap" model init --clip "$folder/clip" --gpt2 "$folder/gpt2" --mapper "$2" --bert-config "$folder/bert.json" --prefix-len "$7" \
    --random --seed 3 --out "$folder/model" --quiet
}

# Runs a script, whose remarks are only of interest where it fails.
told() {
  "$@" 2> "$out/remarks" | grep -v '^  after' || { tail -5 "$out/remarks"; exit 1; }
}

check() { # NAME [--finetune-gpt2]
  local bundle=$out/$1/model run=$out/$1/run${2:-}
  echo "== $1 ${2:-frozen}"
  "$clipcap" train --artifacts-only --dropout 0 --model "$bundle" ${2:+"$2"} --out "$run" --quiet > /dev/null
  told "$python" scripts/check_artifacts.py "$run/artifacts" | tail -1
  "$clipcap" train --artifacts-only --model "$bundle" ${2:+"$2"} --out "$run-dropout" --quiet > /dev/null
  told "$python" scripts/check_artifacts.py "$run-dropout/artifacts" | tail -1
  told "$python" scripts/compare_training.py "$bundle" "$run/artifacts" ${2:+"$2"}
  if [ -n "${ORT_TRAINING_PYTHON:-}" ]; then
    told "$python" scripts/check_against_ort_training.py export "$bundle" "$run/ort" ${2:+"$2"}
    told "$ORT_TRAINING_PYTHON" scripts/check_against_ort_training.py compare "$run/artifacts" "$run/ort"
  fi
  resume "$1" "${2:-}"
}

# Twenty steps at once, and the same killed once and gone on with: the same bytes.
resume() { # NAME FLAG
  local folder=$out/$1 flags=(--model "$out/$1/model" --dataset "$out/data" --embeddings "$out/$1/embeddings" --batch-size 7)
  flags+=(--max-steps 20 --lr 1e-3 --warmup-steps 3 --save-steps 4 --sample-images 1 --quiet ${2:+"$2"})
  "$python" scripts/random_embeddings.py "$out/data" "$folder/embeddings" --dim "$(cut -d' ' -f8 <<< "${sizes[$1]}")" > /dev/null
  rm -rf "$folder/whole" "$folder/killed"
  "$clipcap" train "${flags[@]}" --out "$folder/whole"
  "$clipcap" train "${flags[@]}" --out "$folder/killed" &
  local child=$!
  while [ ! -d "$folder/killed/checkpoints/step-8" ] && kill -0 $child 2>/dev/null; do sleep 0.01; done
  kill -9 $child 2>/dev/null || true
  wait $child 2>/dev/null || true
  "$clipcap" train "${flags[@]}" --out "$folder/killed"
  for part in checkpoints best last; do diff -r "$folder/whole/$part" "$folder/killed/$part"; done
  echo "killed and resumed: the same bytes"
}

awk 'BEGIN { for (i = 0; i < 60; i++) printf "image-%d.jpg#%d\t%c%c a dog and %d cats\n", i / 2, i % 2, 97 + i % 26, 98 + i % 24, i }' > "$out/captions.txt"
"$clipcap" prepare --captions "$out/captions.txt" --format coco-cn --out "$out/data" --quiet

declare -A sizes=(
  [narrow]="narrow mlp 301 20 1 5 1 13"
  [odd]="odd mlp 533 33 3 3 7 29"
  [bert]="bert bert 259 42 3 7 7 31"
  [single]="single bert 300 24 1 2 1 8"
)
for name in narrow odd bert single; do
  # shellcheck disable=SC2086
  model ${sizes[$name]} > /dev/null
  for flag in "" --finetune-gpt2; do check "$name" $flag; done
done
echo "all sizes hold"
