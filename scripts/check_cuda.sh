#!/usr/bin/env bash
# Everything the CUDA path promises, on a machine with a card and nothing else: it loads, agrees with the CPU, and is timed beside PyTorch. Under
# 10 minutes. The machine has CUDA 13's libraries in Python's nvidia packages, torch with transformers and numpy; no Rust and no registry.
#
#   scripts/check_cuda.sh PACK OUT     PACK: the folder pack_cuda.py made (or one with `clipcap` and `runtime/cuda/` as they are); OUT: logs and tables
#
# A step that fails is told and the next one runs: time on a card is short. SMALL=1 tries the script itself; the stand-in for CUDA's libraries
# is enough for it (scripts/check_cuda_on_paper.sh).
set -uo pipefail
pack=$(readlink -f "$1") out=$(mkdir -p "$2" && readlink -f "$2") w=${WORK:-/tmp/clipcap-check}
mkdir -p "$w/runtime/cuda" "$w/b"
n() { if [ -n "${SMALL:-}" ]; then echo "$2"; else echo "$1"; fi; }
step() {
  echo; echo "=== $1 ($SECONDS s)"
  local name=$1
  shift
  timeout "${LIMIT:-120}" "$@" || echo "FAILED ($?): $name"
}
exec > >(tee "$out/log.txt") 2>&1

# 1. The program, ONNX Runtime, and the CUDA libraries of this Python's wheels.
if [ -d "$pack/runtime" ]; then
  rm -rf "$w/runtime" && ln -sfn "$pack/runtime" "$w/runtime" && ln -sfn "$pack/clipcap" "$w/clipcap"
elif [ ! -x "$w/clipcap" ]; then
  xz -dc "$pack/clipcap.xz" >"$w/clipcap" && chmod +x "$w/clipcap"
  cp "$pack/libonnxruntime_providers_shared.so" "$w/runtime/cuda/"
  xz -dc "$pack/ort.so.xz" >"$w/runtime/cuda/libonnxruntime.so"
  xz -dc "$pack/provider.so.xz" >"$w/runtime/cuda/libonnxruntime_providers_cuda.so"
fi
export CLIPCAP_RUNTIME=$w/runtime
c=$w/clipcap
echo "without any path: $("$c" doctor --device cuda 2>&1 | tail -1 | cut -c1-300)"
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export LD_LIBRARY_PATH=${CUDA_LIBS:-$site/nvidia/cu13/lib}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
step "machine" bash -c 'nvidia-smi; lscpu | grep -E "Model name|^CPU\(s\)"; free -g | sed -n 1,2p'
for p in fp32 fp16 bf16; do step "doctor $p" "$c" doctor --device cuda --precision $p; done
step "doctor auto" "$c" doctor
echo "a card that is not there: $("$c" doctor --device cuda:7 2>&1 | tail -1)"

# 2. Models and pictures: full size (random weights, the same bytes everywhere) and the demo's trained ones.
size() { if [ -n "${SMALL:-}" ]; then echo "--clip vit-tiny --gpt2 gpt2-tiny"; else echo "--clip vit-b-32 --gpt2 gpt2-base-zh"; fi; }
for m in mlp bert; do step "bundle $m" "$c" model init $(size) --mapper $m --seed 42 --out "$w/b/$m" --overwrite --quiet >/dev/null; done
for m in mlp bert; do
  step "demo bundle $m" "$c" model init --clip models/demo/clip --gpt2 models/demo/gpt2 --mapper $m --prefix-len 4 --out "$w/b/demo-$m" --overwrite --quiet >/dev/null
done
step "scenes" "$c" scenes --out "$w/scenes" --num-images "$(n 2000 60)" --overwrite --quiet
step "dataset" "$c" prepare --images "$w/scenes/images" --captions "$w"/scenes/captions/*.txt --out "$w/ds" --overwrite --quiet
python3 - "$w/jpegs" "$(n 6000 40)" <<'PY' || echo "no Pillow: the scenes stand in for photos"
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
[ -d "$w/jpegs" ] && [ -n "$(ls "$w/jpegs")" ] || { rm -rf "$w/jpegs"; ln -sfn "$w/scenes/images" "$w/jpegs"; }
mkdir -p "$w/few"
find -L "$w/jpegs" -type f | sort | sed -n 1,128p | while read -r f; do ln -sf "$f" "$w/few/"; done

# 3. Does everything load and stay on the card? Nodes elsewhere, per session.
for m in mlp bert; do for p in fp32 fp16 bf16; do
  step "loads: caption $m $p" "$c" caption "$w/few" --model "$w/b/$m" --device cuda --precision $p --out "$w/t.jsonl" --overwrite --max-new-tokens 8 -v
done; done

# 4. The same answers as on the CPU, which our tests hold against PyTorch.
for p in cpu:fp32 cuda:fp32 cuda:fp16 cuda:bf16; do
  step "embed $p" "$c" embed --images "$w/few" --model "$w/b/mlp" --device "${p%:*}" --precision "${p#*:}" --format npy --out "$w/e-${p/:/-}" --overwrite --quiet
done
for m in mlp bert; do for p in cpu:fp32 cuda:fp32 cuda:fp16 cuda:bf16; do for how in "" "--num-beams 4" "--top-p 0.9 --num-captions 3 --seed 1"; do
  step "captions $m $p $how" "$c" caption "$w/scenes/held-out" --model "$w/b/demo-$m" --device "${p%:*}" --precision "${p#*:}" --max-new-tokens 40 \
    --out "$w/c-$m-${p/:/-}-$(echo "$how" | tr -dc a-z).jsonl" --overwrite --quiet $how
done; done; done
step "same answers" python3 - "$w" <<'PY'
import glob, json, pathlib, sys
import numpy as np

w = pathlib.Path(sys.argv[1])
load = lambda k: np.concatenate([np.load(f).astype(np.float32) for f in sorted(glob.glob(str(w / f"e-{k}/**/*.npy"), recursive=True))])
cpu = load("cpu-fp32")
for k, allowed in [("cuda-fp32", 1e-4), ("cuda-fp16", 5e-3), ("cuda-bf16", 3e-2)]:
    try:
        d = np.abs(load(k) - cpu).max() / np.abs(cpu).max()
        print(f"embeddings {k}: {d:.1e} ({'ok' if d <= allowed else 'TOO FAR'}, {allowed:.0e} allowed)")
    except Exception as e:
        print(f"embeddings {k}: {e}")
rows = lambda f: [json.loads(l) for l in open(f)]
for f in sorted(w.glob("c-*-cuda-*.jsonl")):
    a = rows(f)
    b = rows(str(f).replace("cuda-fp16", "cpu-fp32").replace("cuda-bf16", "cpu-fp32").replace("cuda-fp32", "cpu-fp32"))
    key = next((k for k in ("captions", "caption") if k in a[0]), list(a[0])[-1])
    print(f"{f.name}: {sum(x[key] == y[key] for x, y in zip(a, b))} of {len(a)} rows the same")
PY

# 5. Training: losses beside the CPU's, twice the same bytes.
train() {
  local name=$1
  shift
  rm -rf "$w/run-$name"
  LIMIT=150 step "train $name" "$c" train --out "$w/run-$name" --dataset "$w/ds" --sample-images 0 --save-steps 1000 --quiet "$@"
}
step "embeddings of the scenes" "$c" embed --dataset "$w/ds" --images "$w/scenes/images" --model "$w/b/demo-mlp" --device cuda --out "$w/emb" --overwrite --quiet
steps=$(n 60 3)
tuned=(--embeddings "$w/emb" --model "$w/b/demo-mlp" --finetune-gpt2 --max-grad-norm 1 --lr 1e-3 --warmup-steps 10 --max-steps "$steps")
for d in cpu cuda; do train "mlp-$d" "${tuned[@]}" --device $d; done
train mlp-again "${tuned[@]}" --device cuda
train mlp-bf16 "${tuned[@]}" --device cuda --precision bf16
train mlp-bf16-again "${tuned[@]}" --device cuda --precision bf16
for p in fp32 bf16; do
  train "bert-$p" --embeddings "$w/emb" --model "$w/b/demo-bert" --gradient-accumulation-steps 2 --max-steps "$steps" --device cuda --precision $p
  train "clip-$p" --objective contrastive --images "$w/scenes/images" --model "$w/b/demo-mlp" --batch-size "$(n 128 16)" --max-steps "$steps" --device cuda --precision $p
  train "gpt2-$p" --objective language-model --model "$w/b/demo-mlp" --label-smoothing 0.1 --max-steps "$steps" --device cuda --precision $p
done
step "the same run twice" cmp "$w/run-mlp-cuda/last/gpt2/model.safetensors" "$w/run-mlp-again/last/gpt2/model.safetensors"
step "the same run twice, bf16" cmp "$w/run-mlp-bf16/last/gpt2/model.safetensors" "$w/run-mlp-bf16-again/last/gpt2/model.safetensors"
for run in "$w"/run-*; do echo "$(basename "$run")"; "$c" show "$run/metrics.parquet" --columns step,train_loss,dev_loss --rows 6 2>&1 | tail -8; done

# 6. How fast, and with how much memory at most. PyTorch on the same card in the same minutes.
step "512-wide embeddings" "$c" embed --dataset "$w/ds" --images "$w/scenes/images" --model "$w/b/mlp" --device cuda --precision fp16 --out "$w/emb512" --overwrite --quiet
measured() { # label, command: its line of times, and the most memory that the card had in use
  local label=$1 poll
  shift
  (while sleep 0.2; do nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null; done >"$w/memory") &
  poll=$!
  echo "$label: $(timeout 120 "$@" 2>&1 | grep -E '^time|^error|tokens/s' | tail -2 | tr '\n' ' '), $(kill $poll; sort -n "$w/memory" | tail -1) MiB"
}
for p in fp32 fp16 bf16; do for b in 64 256; do
  measured "embed $p batch $b" "$c" embed --images "$w/jpegs" --model "$w/b/mlp" --device cuda --precision $p --batch-size $b --out "$w/e" --overwrite
done; done
python3 - "$w/vectors.npy" "$(n 8192 64)" "$c" <<'PY'
import sys
import numpy as np
width = 512
try:
    import glob, os
    width = np.load(sorted(glob.glob(os.path.dirname(sys.argv[1]) + "/e-cpu-fp32/**/*.npy", recursive=True))[0]).shape[1]
except Exception:
    pass
np.save(sys.argv[1], np.random.default_rng(0).standard_normal((int(sys.argv[2]), width), dtype=np.float32))
PY
fixed=(--min-new-tokens 17 --max-new-tokens 17 --no-loop-guard --out "$w/t.jsonl" --overwrite)
for m in mlp bert; do for p in fp32 fp16; do for b in 64 256 1000; do
  measured "captions $m $p batch $b" "$c" caption --embeddings "$w/vectors.npy" --model "$w/b/$m" --device cuda --precision $p --batch-size $b "${fixed[@]}"
done; done; done
for how in "--num-beams 5" "--top-p 0.8 --num-captions 5"; do
  measured "captions mlp fp16 $how" "$c" caption --embeddings "$w/vectors.npy" --model "$w/b/mlp" --device cuda --precision fp16 "${fixed[@]}" $how
done
measured "pictures to captions, fp16" "$c" caption "$w/jpegs" --model "$w/b/mlp" --device cuda --precision fp16 "${fixed[@]}"
for p in fp32 bf16; do for b in 40 160; do
  measured "training, GPT2 too, $p batch $b" "$c" train --out "$w/run-full" --dataset "$w/ds" --embeddings "$w/emb512" --model "$w/b/mlp" --finetune-gpt2 \
    --batch-size $b --max-steps "$(n 30 2)" --eval-steps 100000 --sample-images 0 --save-steps 1000 --device cuda --precision $p --overwrite
done; done
LIMIT=180 step "PyTorch" python3 - <<'PY'
import time
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, GPT2Config, GPT2LMHeadModel

torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
print(torch.__version__, torch.cuda.get_device_name())

def rate(f, count, reps=10):
    f()
    torch.cuda.synchronize()
    t = time.time()
    for _ in range(reps):
        f()
    torch.cuda.synchronize()
    return count * reps / (time.time() - t)

def peak():
    mib = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return f"{mib:.0f} MiB"

host = torch.empty(21_600_000, dtype=torch.uint8)
pinned, there = host.pin_memory(), host.cuda()
print("to the host, GB/s: pageable %.1f, pinned %.1f" % (rate(lambda: host.copy_(there), 0.0216), rate(lambda: pinned.copy_(there), 0.0216)))
x = torch.zeros(8, device="cuda")
print("a launch, microseconds: %.2f" % (1e6 / rate(lambda: [x.add_(1) for _ in range(1000)], 1000, 5)))
with torch.no_grad():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)).cuda().to(dtype).eval()
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=21128, eos_token_id=None, pad_token_id=0)).cuda().to(dtype).eval()
        for b in (64, 256):
            pixels = torch.randn(b, 3, 224, 224, device="cuda", dtype=dtype)
            embeds = torch.randn(b, 10, 768, device="cuda", dtype=dtype)
            generate = lambda: gpt2.generate(inputs_embeds=embeds, max_new_tokens=17, min_new_tokens=17, do_sample=False)
            print(dtype, b, "images/s %.0f, captions/s %.0f," % (rate(lambda: clip(pixels), b), rate(generate, b, 3)), peak(), flush=True)
        if dtype == torch.float16:
            try:
                fast = torch.compile(clip)
                print(dtype, b, "compiled, images/s %.0f" % rate(lambda: fast(pixels), b), flush=True)
            except Exception as e:
                print("not compiled:", str(e)[:200])
model = GPT2LMHeadModel(GPT2Config(vocab_size=21128)).cuda()
for compiled in (False, True):
    try:
        net = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for b in (40, 160):
            ids = torch.randint(0, 21128, (b, 27), device="cuda")
            for dtype in (torch.float32, torch.bfloat16):
                def one():
                    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                        loss = net(ids, labels=ids).loss
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                print("training", dtype, b, "compiled" if compiled else "", "samples/s %.0f," % rate(one, b), peak(), flush=True)
    except Exception as e:
        print("not compiled:", str(e)[:200])
PY
echo
echo "=== done in $SECONDS s"
grep -n "FAILED\|TOO FAR\|^error" "$out/log.txt" | sed -n 1,40p
