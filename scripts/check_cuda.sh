#!/usr/bin/env bash
# Everything the CUDA path promises, on a machine with a card and nothing else: it loads, agrees with the CPU, and is timed beside PyTorch. The
# machine has CUDA 13's libraries in Python's nvidia packages, torch with transformers and numpy; no Rust and no registry.
#
#   scripts/check_cuda.sh PACK OUT [PART...]   PACK: the folder pack_cuda.py made (or one with `clipcap` and `runtime/cuda/` as they are)
#
# PARTs, in the order of what is lost without them: load, parity, speed, torch, training, deep (more models and precisions). All of them where none is
# named. A call ends after BUDGET seconds (560): what no longer fits is told as left out, and a later call for those parts goes on with what is in
# WORK. A step that fails is told, with its last line, and the next one runs. After each step its row is in OUT/steps.md, and its figures are in
# OUT/table.md; what it said is in OUT/NAME.txt. SMALL=1 tries the script itself; the stand-in for CUDA's libraries is enough for it
# (scripts/check_cuda_on_paper.sh).
set -uo pipefail
pack=$(readlink -f "$1") out=$(mkdir -p "$2" && readlink -f "$2") w=${WORK:-/tmp/clipcap-check} budget=${BUDGET:-560}
shift 2
parts=${*:-load parity speed torch training deep}
for part in $parts; do case $part in load | parity | speed | torch | training | deep) ;; *) echo "check_cuda.sh: unknown part $part" >&2; exit 2 ;; esac; done
mkdir -p "$w/runtime/cuda" "$w/b"
exec > >(tee -a "$out/log.txt") 2>&1
n() { if [ -n "${SMALL:-}" ]; then echo "$2"; else echo "$1"; fi; }
left() { echo $((budget - SECONDS)); }
row() { echo "| $* |" | sed 's/¦/|/g' >>"$out/$file.md"; }

# step SECONDS NAME COMMAND...: in its own log, bounded by its seconds and by what is left.
step() {
  local limit=$1 name=$2 from=$SECONDS log status
  shift 2
  log=$out/$(echo "$name" | tr -c 'a-zA-Z0-9\n' '-').txt
  if [ "$(left)" -lt 5 ]; then
    echo "left out: $name"
    file=steps row "$name ¦ left out: the time is up ¦"
    return 1
  fi
  # A stand-in computes nothing and takes its time.
  [ -z "${SMALL:-}" ] || limit=$((limit * 10))
  [ "$limit" -le "$(left)" ] || limit=$(left)
  timeout -k 5 "$limit" "$@" >"$log" 2>&1
  status=$?
  if [ $status = 0 ]; then
    echo "ok      $name, $((SECONDS - from)) s"
    file=steps row "$name ¦ ok ¦ $((SECONDS - from)) s"
  else
    echo "FAILED ($status): $name: $(grep -v '^$' "$log" | tail -1 | cut -c1-300)"
    file=steps row "$name ¦ FAILED ($status) ¦ $((SECONDS - from)) s"
  fi
  return $status
}

# 1. The program, ONNX Runtime, and the CUDA libraries of this Python's wheels.
if [ -d "$pack/runtime" ]; then
  rm -rf "$w/runtime" && ln -sfn "$pack/runtime" "$w/runtime" && ln -sfn "$pack/clipcap" "$w/clipcap"
elif [ ! -x "$w/clipcap" ]; then
  cp "$pack/libonnxruntime_providers_shared.so" "$w/runtime/cuda/"
  xz -dc "$pack/ort.so.xz" >"$w/runtime/cuda/libonnxruntime.so" &
  xz -dc "$pack/provider.so.xz" >"$w/runtime/cuda/libonnxruntime_providers_cuda.so" &
  xz -dc "$pack/clipcap.xz" >"$w/clipcap.part" && wait $(jobs -p) && chmod +x "$w/clipcap.part" && mv "$w/clipcap.part" "$w/clipcap"
fi
export CLIPCAP_RUNTIME=$w/runtime
c=$w/clipcap
card=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -1)
card=${card:-unknown: no nvidia-smi}
echo "card: $card; parts: $parts; $budget s"
if [ ! -f "$out/steps.md" ]; then
  printf '# Steps on %s\n\n| step | end | time |\n| --- | --- | --- |\n' "$card" >"$out/steps.md"
  printf '# %s\n\n| engine | work | precision | batch | rate | peak MiB |\n| --- | --- | --- | --- | --- | --- |\n' "$card" >"$out/table.md"
fi
echo "without any path: $("$c" doctor --device cuda 2>&1 | tail -1 | cut -c1-300)"
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export LD_LIBRARY_PATH=${CUDA_LIBS:-$site/nvidia/cu13/lib}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
cached() { # what makes an input, once
  local name=$1
  shift
  [ -e "$w/made-$name" ] || { "$@" >"$out/input-$name.txt" 2>&1 && touch "$w/made-$name"; } || echo "FAILED: input $name: $(tail -1 "$out/input-$name.txt" | cut -c1-300)"
}

# 2. Models and pictures, side by side on all cores while the card still waits: full size (random weights, the same bytes everywhere) and the demo's
# trained ones.
size() { if [ -n "${SMALL:-}" ]; then echo "--clip vit-tiny --gpt2 gpt2-tiny"; else echo "--clip vit-b-32 --gpt2 gpt2-base-zh"; fi; }
jpegs() {
  python3 - "$w/jpegs" "$(n 6000 40)" <<'PY'
import concurrent.futures as f, pathlib, sys
import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)

def make(i):
    rng = np.random.default_rng(i)
    base = np.asarray(Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)).astype(np.int16)
    Image.fromarray((base + rng.integers(-12, 12, base.shape)).clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)

with f.ProcessPoolExecutor() as pool:
    list(pool.map(make, range(int(sys.argv[2])), chunksize=50))
PY
}
scenes() {
  "$c" scenes --out "$w/scenes" --num-images "$(n 2000 60)" --overwrite --quiet &&
    "$c" prepare --images "$w/scenes/images" --captions "$w"/scenes/captions/*.txt --out "$w/ds" --overwrite --quiet
}
demo() { "$c" model init --clip models/demo/clip --gpt2 models/demo/gpt2 --mapper "$1" --prefix-len 4 --out "$w/b/demo-$1" --overwrite --quiet; }
vectors() {
  python3 -c "import numpy as np, sys; np.save(sys.argv[1], np.random.default_rng(0).standard_normal((int(sys.argv[2]), int(sys.argv[3])), dtype=np.float32))" \
    "$w/vectors.npy" "$(n 8192 64)" "$(n 512 128)"
}
for m in mlp bert; do
  cached "bundle-$m" "$c" model init $(size) --mapper $m --seed 42 --out "$w/b/$m" --overwrite --quiet &
  cached "demo-$m" demo $m &
done
cached jpegs jpegs &
cached scenes scenes &
cached vectors vectors &
# The tee of the log is a child too.
wait $(jobs -p)
# Without Pillow the scenes stand in for photos.
[ -n "$(ls "$w/jpegs" 2>/dev/null)" ] || { rm -rf "$w/jpegs"; ln -sfn "$w/scenes/images" "$w/jpegs"; }
mkdir -p "$w/few"
find -L "$w/jpegs" -type f | sort | sed -n 1,128p | while read -r f; do ln -sf "$f" "$w/few/"; done
echo "inputs are there after $SECONDS s"

# 3. Does everything load and stay on the card? Nodes elsewhere, per session, are in the logs.
loads() { step 60 "loads: caption $1 $2" "$c" caption "$w/few" --model "$w/b/$1" --device cuda --precision "$2" --out "$w/t.jsonl" --overwrite --max-new-tokens 8 -v; }
load() {
  step 30 machine bash -c 'nvidia-smi; lscpu | grep -E "Model name|^CPU\(s\)"; free -g | sed -n 1,2p'
  step 60 doctor "$c" doctor --device cuda
  step 60 "doctor auto" "$c" doctor
  echo "a card that is not there: $("$c" doctor --device cuda:7 2>&1 | tail -1 | cut -c1-300)"
  for p in fp16 fp32 bf16; do loads mlp $p; done
}

# 4. The same answers as on the CPU, which our tests hold against PyTorch.
captions() { # mapper, device:precision, how
  step 60 "captions $1 $2 $3" "$c" caption "$w/scenes/held-out" --model "$w/b/demo-$1" --device "${2%:*}" --precision "${2#*:}" --max-new-tokens 40 \
    --out "$w/c-$1-${2/:/-}-$(echo "$3" | tr -dc a-z).jsonl" --overwrite --quiet $3
}
answers() {
  step 30 "same answers" python3 - "$w" "$out/table.md" <<'PY'
import glob, json, pathlib, sys
import numpy as np

w, table = pathlib.Path(sys.argv[1]), open(sys.argv[2], "a")
def say(what, precision, found):
    print(what, precision, found)
    table.write(f"| clipcap | {what}, beside the CPU in fp32 | {precision} | | {found} | |\n")
load = lambda k: np.concatenate([np.load(f).astype(np.float32) for f in sorted(glob.glob(str(w / f"e-{k}/**/*.npy"), recursive=True))])
far = False
try:
    cpu = load("cpu-fp32")
except Exception as e:
    sys.exit(f"no embeddings of the CPU: {e}")
for k, allowed in [("cuda-fp32", 1e-4), ("cuda-fp16", 5e-3), ("cuda-bf16", 3e-2)]:
    try:
        d = np.abs(load(k) - cpu).max() / np.abs(cpu).max()
        far |= not d <= allowed
        say("embeddings", k[5:], f"largest difference {d:.1e} ({'ok' if d <= allowed else 'TOO FAR'}, {allowed:.0e} allowed)")
    except Exception as e:
        say("embeddings", k[5:], f"none ({e})")
rows = lambda f: [json.loads(l) for l in open(f)]
for f in sorted(w.glob("c-*-cuda-*.jsonl")):
    _, mapper, _, precision, how = f.stem.split("-", 4)
    try:
        a, b = rows(f), rows(str(f).replace(f"cuda-{precision}", "cpu-fp32"))
        key = next((k for k in ("captions", "caption") if k in a[0]), list(a[0])[-1])
        same = sum(x[key] == y[key] for x, y in zip(a, b))
        far |= precision == "fp32" and same < 0.95 * len(a)
        say(f"captions {mapper} {how or 'greedy'}", precision, f"{same} of {len(a)} the same")
    except Exception as e:
        say(f"captions {mapper} {how or 'greedy'}", precision, f"none ({e})")
sys.exit(far)
PY
}
parity() {
  for p in cpu:fp32 cuda:fp32 cuda:fp16 cuda:bf16; do
    step 60 "embed $p" "$c" embed --images "$w/few" --model "$w/b/mlp" --device "${p%:*}" --precision "${p#*:}" --format npy --out "$w/e-${p/:/-}" --overwrite --quiet
  done
  for how in "" "--num-beams 4" "--top-p 0.9 --num-captions 3 --seed 1"; do
    for p in cpu:fp32 cuda:fp32 cuda:fp16 cuda:bf16; do captions mlp $p "$how"; done
  done
  answers
  # Whether recording the step changes a caption; if so, CLIPCAP_NO_CUDA_GRAPH=1 is what works meanwhile.
  CLIPCAP_NO_CUDA_GRAPH=1 step 60 "captions, step not recorded" "$c" caption "$w/scenes/held-out" --model "$w/b/demo-mlp" --device cuda --precision fp16 \
    --max-new-tokens 40 --out "$w/unrecorded.jsonl" --overwrite --quiet
  step 10 "recorded and not: the same captions" cmp "$w/c-mlp-cuda-fp16-.jsonl" "$w/unrecorded.jsonl"
}

# 5. How fast, and with how much memory at most.
rated() { # prints a line's rate out of a log
  grep -oE '[0-9.,]+ (images|captions|samples|tokens)/s' "$1" | awk -v want="$2" '$2 ~ want {print; exit}'
}
measured() { # work, precision, batch, unit, command: a row of the table with the most memory that the card had in use
  local work=$1 precision=$2 batch=$3 unit=$4 name="$1 $2 ${3:+batch $3}" poll log
  shift 4
  nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200 >"$w/memory" 2>/dev/null &
  poll=$!
  step "${LIMIT:-90}" "$name" "$@"
  local status=$?
  kill $poll 2>/dev/null
  wait $poll 2>/dev/null
  log=$out/$(echo "$name" | tr -c 'a-zA-Z0-9\n' '-').txt
  [ $status = 0 ] || return
  echo "        $(rated "$log" "$unit"), $(sort -n "$w/memory" | tail -1) MiB"
  file=table row "clipcap ¦ $work ¦ $precision ¦ $batch ¦ $(rated "$log" "$unit") ¦ $(sort -n "$w/memory" | tail -1)"
}
fixed=(--min-new-tokens 17 --max-new-tokens 17 --no-loop-guard --out "$w/t.jsonl" --overwrite)
embeds() { measured "embed JPEGs, ViT-B/32" "$1" "$2" images "$c" embed --images "$w/jpegs" --model "$w/b/mlp" --device cuda --precision "$1" --batch-size "$2" --out "$w/e" --overwrite; }
decodes() { # mapper, precision, batch, how, more to say
  measured "captions of 17 tokens, $1${4:+ $4}${5:+, $5}" "$2" "$3" captions "$c" caption --embeddings "$w/vectors.npy" --model "$w/b/$1" --device cuda --precision "$2" \
    --batch-size "$3" "${fixed[@]}" $4
}
speed() {
  decodes mlp fp16 256 ""
  embeds fp16 256
  CLIPCAP_NO_CUDA_GRAPH=1 decodes mlp fp16 256 "" "step not recorded"
  decodes mlp fp16 1000 ""
  decodes mlp fp32 256 ""
  embeds fp32 256
  decodes mlp fp16 256 "--top-p 0.8 --num-captions 5"
  decodes mlp fp16 256 "--num-beams 5"
  measured "JPEGs to captions, mlp" fp16 256 captions "$c" caption "$w/jpegs" --model "$w/b/mlp" --device cuda --precision fp16 "${fixed[@]}"
}
# PyTorch on the same card in the same minutes; it writes its rows itself.
torch() { step 240 PyTorch python3 scripts/cuda_torch.py "$out/table.md"; }

# 6. Training: twice the same bytes, losses beside the CPU's, and how fast.
trained() {
  local name=$1
  shift
  rm -rf "$w/run-$name"
  step 120 "train $name" "$c" train --out "$w/run-$name" --dataset "$w/ds" --sample-images 0 --save-steps 1000 --quiet "$@"
}
steps=$(n 60 3)
tuned=(--embeddings "$w/emb" --model "$w/b/demo-mlp" --finetune-gpt2 --max-grad-norm 1 --lr 1e-3 --warmup-steps 10 --max-steps "$steps")
emb() { [ -d "$w/emb" ] || step 60 "embeddings of the scenes" "$c" embed --dataset "$w/ds" --images "$w/scenes/images" --model "$w/b/demo-mlp" --device cpu --out "$w/emb" --overwrite --quiet; }
speed_of_training() {
  measured "training, GPT2 tuned" "$1" "$2" samples "$c" train --out "$w/run-full" --dataset "$w/ds" --embeddings "$w/emb512" --model "$w/b/mlp" --finetune-gpt2 \
    --batch-size "$2" --max-steps "$(n 40 2)" --dev-size 0 --eval-steps 100000 --sample-images 0 --save-steps 1000 --device cuda --precision "$1" --overwrite
}
training() {
  emb
  for d in cpu cuda; do trained "mlp-$d" "${tuned[@]}" --device $d; done
  trained mlp-again "${tuned[@]}" --device cuda
  step 10 "the same run twice" cmp "$w/run-mlp-cuda/last/gpt2/model.safetensors" "$w/run-mlp-again/last/gpt2/model.safetensors"
  for d in cpu cuda; do
    loss=$("$c" show "$w/run-mlp-$d/metrics.parquet" --columns train_loss --rows 1000 --quiet 2>/dev/null | grep -E "^[0-9.e+-]+$" | tail -1)
    echo "        last loss on $d: $loss"
    file=table row "clipcap on $d ¦ loss after $steps steps ¦ fp32 ¦ ¦ ${loss:-none} ¦"
  done
  [ -d "$w/emb512" ] || step 60 "512-wide embeddings" "$c" embed --dataset "$w/ds" --images "$w/scenes/images" --model "$w/b/mlp" --device cuda --precision fp16 --out "$w/emb512" --overwrite --quiet
  speed_of_training bf16 160
  speed_of_training fp32 40
  speed_of_training bf16 40
  speed_of_training fp32 160
}

# 7. The rest of models, precisions and batches.
deep() {
  for p in fp16 fp32 bf16; do loads bert $p; done
  for how in "" "--num-beams 4" "--top-p 0.9 --num-captions 3 --seed 1"; do
    for p in cpu:fp32 cuda:fp32 cuda:fp16 cuda:bf16; do captions bert $p "$how"; done
  done
  answers
  for p in fp16 fp32; do decodes bert $p 256 ""; decodes mlp $p 64 ""; embeds $p 64; done
  embeds bf16 256
  emb
  trained mlp-bf16 "${tuned[@]}" --device cuda --precision bf16
  trained mlp-bf16-again "${tuned[@]}" --device cuda --precision bf16
  step 10 "the same run twice, bf16" cmp "$w/run-mlp-bf16/last/gpt2/model.safetensors" "$w/run-mlp-bf16-again/last/gpt2/model.safetensors"
  for p in fp32 bf16; do
    trained "bert-$p" --embeddings "$w/emb" --model "$w/b/demo-bert" --gradient-accumulation-steps 2 --max-steps "$steps" --device cuda --precision $p
    trained "clip-$p" --objective contrastive --images "$w/scenes/images" --model "$w/b/demo-mlp" --batch-size "$(n 128 16)" --max-steps "$steps" --device cuda --precision $p
    trained "gpt2-$p" --objective language-model --model "$w/b/demo-mlp" --label-smoothing 0.1 --max-steps "$steps" --device cuda --precision $p
  done
}
for part in $parts; do
  echo; echo "=== $part ($SECONDS s)"
  $part
done
echo
cat "$out/table.md"
echo "=== done in $SECONDS s: $(grep -c ' ok ' "$out/steps.md") steps ok, $(grep -c FAILED "$out/steps.md") failed, $(grep -c 'left out' "$out/steps.md") left out"
