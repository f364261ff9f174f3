#!/usr/bin/env bash
# The measurements that are too large for CI: full-size models, 100,000 images, timing against PyTorch.
#
#   scripts/measure.sh prepare              makes out/measure: a full-size random bundle and 200 JPEGs of 500x375
#   scripts/measure.sh encoder              images/s of `embed` in every precision, beside PyTorch
#   scripts/measure.sh captions             captions/s at 5 samples an image, 17 tokens, beside PyTorch
#   scripts/measure.sh startup              seconds from process start to the first caption
#   scripts/measure.sh memory               peak memory of 1,000 and of 100,000 tiny images
#   scripts/measure.sh dataset              158,915 captions and 31,783 JPEGs: `prepare` and `stats` beside pandas, matplotlib and jieba
#   CAPTIONS=FILE scripts/measure.sh train  milliseconds of a training step (GPT2 tuned, batch 40) and peak memory, beside PyTorch
#   scripts/measure.sh rerank               the demo's CIDEr and right captions, one sample beside five re-ranked; wrong captions found by score
#   scripts/measure.sh models [NAME...]     full-size random models of every family: first result, rate and peak memory, beside PyTorch
#   scripts/measure.sh s3                   images/s from a bucket 50 ms away beside a folder's, and caption, embed and a job from it; the server is garage where
#                                           it is installed (cargo install garage --version 2.5.0 --no-default-features --features bundled-libs,sqlite), else s3s-fs
#                                           (scripts/setup.sh --s3)
#   scripts/measure.sh million              1,000,000 tiny pictures in tars: seconds and peak memory of plan, a shard, all shards, merge
#   scripts/measure.sh names                seconds and peak memory of a plan of 10,000,000 files of one folder, and of as many URLs
#   scripts/measure.sh tars                 reading and decoding tars that img2dataset wrote, beside webdataset's and clip-retrieval's own readers (PYTHON, see scripts/bench/tars.py)
#   scripts/measure.sh ray                  two Ray nodes beside one process, and a node killed in the middle (PYTHON with ray[data])
#   scripts/measure.sh cuda-paper           CUDA without a card: every graph over the stand-in for CUDA's libraries, and scripts/check_cuda.sh on it
#   scripts/measure.sh rehearse             the pipelines for real data on full-size random models and a handful of pictures
#
# PyTorch's side needs PYTHON with torch, transformers, safetensors and pillow (a venv by hand); without it only ours is measured.
# A and B alternate within one run: on a shared machine only their ratio says something.
set -euo pipefail
cd "$(dirname "$0")/.."
clipcap=${CLIPCAP:-target/release/clipcap}
python=${PYTHON:-}
out=out/measure
repeats=${REPEATS:-3}
model=$out/model

reference() { if [ -n "$python" ]; then "$python" scripts/reference_torch.py "$@" 2>/dev/null; else echo "(no PYTHON)"; fi; }
tiny() { [ -f "$out/tiny/clipcap.json" ] || "$clipcap" model init --clip vit-tiny --gpt2 gpt2-tiny --mapper mlp --seed 1 --out "$out/tiny" --quiet; echo "${MODEL:-$out/tiny}"; }
closing() { "$@" 2>&1 | grep '^time' || true; }

case "${1:-}" in
  prepare)
    mkdir -p "$out"
    [ -f "$model/clipcap.json" ] || "$clipcap" model init --clip vit-b-32 --gpt2 gpt2-base-zh --mapper mlp --seed 1 --out "$model"
    [ -f "$out/model-int8/clipcap.json" ] || "$clipcap" model quantize "$model" --out "$out/model-int8"
    "${python:?set PYTHON to a Python with pillow and numpy}" - "$out/jpegs" <<'PY'
import pathlib, sys
import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(0)
for i in range(200):
    base = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
    noisy = np.asarray(base).astype(np.int16) + rng.integers(-12, 12, (375, 500, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=90)
np.save(folder.parent / "embeds.npy", rng.standard_normal((40, 512), dtype=np.float32))
PY
    ;;
  encoder)
    for _ in $(seq "$repeats"); do
      echo "cpu fp32       $(closing "$clipcap" embed --images "$out/jpegs" --model "$model" --device cpu --out "$out/e" --overwrite)"
      echo "torch fp32     $(reference clip "$model")"
      echo "cpu int8       $(closing "$clipcap" embed --images "$out/jpegs" --model "$out/model-int8" --device cpu --precision int8 --out "$out/e" --overwrite)"
      if [ -d runtime/openvino ]; then
        echo "openvino fp32  $(closing "$clipcap" embed --images "$out/jpegs" --model "$model" --device openvino --out "$out/e" --overwrite)"
        echo "openvino bf16  $(closing "$clipcap" embed --images "$out/jpegs" --model "$model" --device openvino --precision bf16 --out "$out/e" --overwrite)"
      fi
      echo "torch bf16     $(reference clip "$model" --bf16)"
    done
    ;;
  captions)
    flags=(--top-p 0.8 --num-captions 5 --min-new-tokens 17 --max-new-tokens 17 --no-loop-guard --overwrite)
    for _ in $(seq "$repeats"); do
      echo "cpu fp32  $(closing "$clipcap" caption --embeddings "$out/embeds.npy" --model "$model" --device cpu "${flags[@]}" --out "$out/c.parquet")"
      echo "torch     $(reference generate "$model")"
      echo "cpu int8  $(closing "$clipcap" caption --embeddings "$out/embeds.npy" --model "$out/model-int8" --precision int8 --device cpu "${flags[@]}" --out "$out/c.parquet")"
    done
    ;;
  startup)
    mkdir -p "$out/one"
    cp "$out/jpegs/0000.jpg" "$out/one/"
    for _ in $(seq "$repeats"); do
      /usr/bin/env time -f '%e s, %M KB' "$clipcap" caption "$out/one" --model "$model" --device cpu --max-new-tokens 17 --out "$out/one.parquet" --overwrite --quiet
    done
    ;;
  memory)
    [ -f "$out/tiny/clipcap.json" ] || "$clipcap" model init --clip vit-tiny --gpt2 gpt2-tiny --mapper mlp --seed 1 --out "$out/tiny"
    for count in 1000 100000; do
      "$clipcap" scenes --out "$out/scenes-$count" --num-images "$count" --quiet
      /usr/bin/env time -f "$count images: %e s, %M KB" "$clipcap" caption "$out/scenes-$count/images" --model "$out/tiny" --device cpu \
        --max-new-tokens 3 --out "$out/m-$count.parquet" --overwrite --quiet
    done
    ;;
  dataset)
    : "${python:?set PYTHON to a Python with pandas, pyarrow, matplotlib, pillow, numpy and jieba}"
    theirs=("$python" scripts/measure_dataset.py)
    data=$out/dataset
    [ -d "$data/captions" ] || "${theirs[@]}" generate ../shared/data "$data"
    [ -d "$data/jpegs" ] || "${theirs[@]}" jpegs 31783 "$data/jpegs"
    files=("$data"/captions/*/TextData/*.txt)
    race=("${theirs[@]}" race "$repeats" --)
    echo "captions to Parquet (A pandas, B prepare)"
    "${race[@]}" "${theirs[@]}" prepare "${files[@]}" "$data/theirs.parquet" -- \
      "$clipcap" prepare --quiet --overwrite --captions "${files[@]}" --out "$data/set"
    echo "lengths in characters and their picture (A pandas and matplotlib, B stats)"
    "${race[@]}" "${theirs[@]}" lengths "$data/theirs.parquet" "$data/theirs.png" -- \
      "$clipcap" stats "$data/set" --quiet --overwrite --units char --out "$data/stats"
    echo "words (A jieba, B stats)"
    "${theirs[@]}" race 1 -- "${theirs[@]}" words "$data/theirs.parquet" "$data/theirs.png" -- \
      "$clipcap" stats "$data/set" --quiet --overwrite --units char,word --out "$data/stats"
    echo "every image read, hashed and measured (A Python's hashlib on every core, B prepare with the captions too)"
    "${race[@]}" "${theirs[@]}" hash "$data/jpegs" -- \
      "$clipcap" prepare --quiet --overwrite --captions "${files[@]}" --images "$data/jpegs" --out "$data/set-images"
    ;;
  train)
    # Real captions with random embeddings; ours and PyTorch's take the same batches. The first step of each process does not count.
    steps=${STEPS:-5} device=(--device "${DEVICE:-cpu}" --precision "${PRECISION:-fp32}") dropout=${DROPOUT:-0}
    [ -d "$out/train-data" ] || "$clipcap" prepare --captions "${CAPTIONS:?name a caption file}" --splits none --out "$out/train-data" --quiet
    [ -d "$out/train-embeds" ] || "${python:?set PYTHON}" scripts/random_embeddings.py "$out/train-data" "$out/train-embeds"
    for _ in $(seq "$repeats"); do
      /usr/bin/env time -f '%M' -o "$out/peak" "$clipcap" train --model "$model" --dataset "$out/train-data" --embeddings "$out/train-embeds" \
        --finetune-gpt2 --dropout "$dropout" --dev-size 0 --sample-images 0 --max-steps "$steps" --threads 2 "${device[@]}" --overwrite --quiet \
        --out "$out/train" > /dev/null
      echo "ours   $("$python" scripts/run_corpus.py "$out/train") peak $(($(cat "$out/peak") / 1024)) MiB"
      echo "torch  $(reference train "$model" --run "$out/train" --steps "$steps" --dropout "$dropout" ${BF16:+--bf16})"
      [ -z "${PADDED:-}" ] || echo "padded $(reference train "$model" --run "$out/train" --steps 2 --tokens 90 --dropout "$dropout")"
    done
    ;;
  rerank)
    "$clipcap" run pipelines/demo.toml --until train_mlp --quiet
    python3 scripts/measure_rerank.py "$clipcap" out/demo
    ;;
  models)
    "${python:?set PYTHON to a Python with torch, transformers, pillow and numpy}" scripts/measure_models.py "$clipcap" "${@:2}"
    ;;
  s3)
    work=$(mktemp -d) port=8014 slow=8015
    PATH=${XDG_CACHE_HOME:-$HOME/.cache}/clipcap-ci/tools/bin:$PATH
    trap 'kill $(jobs -p) 2> /dev/null; rm -rf "$work"' EXIT
    mkdir -p "$work/store/bucket"
    "$clipcap" scenes --out "$work/scenes" --num-images "${PICTURES:-2000}" --quiet
    export AWS_ALLOW_HTTP=true AWS_REGION=garage AWS_ENDPOINT=http://127.0.0.1:$port
    # Garage wants keys of its own form.
    AWS_ACCESS_KEY_ID=GK$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n') AWS_SECRET_ACCESS_KEY=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
    export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
    if command -v garage > /dev/null; then
      cat > "$work/garage.toml" << TOML
metadata_dir = "$work/meta"
data_dir = "$work/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:8016"
rpc_secret = "$AWS_SECRET_ACCESS_KEY"

[s3_api]
api_bind_addr = "127.0.0.1:$port"
s3_region = "garage"
TOML
      GARAGE_DEFAULT_ACCESS_KEY=$AWS_ACCESS_KEY_ID GARAGE_DEFAULT_SECRET_KEY=$AWS_SECRET_ACCESS_KEY GARAGE_DEFAULT_BUCKET=bucket \
        garage -c "$work/garage.toml" server --single-node --default-bucket > "$work/server.log" 2>&1 &
      sleep 5
      python3 scripts/s3_put.py "$work/scenes/images" bucket photos || { tail "$work/server.log"; exit 1; }
      garage --version
    else
      cp -r "$work/scenes/images" "$work/store/bucket/photos"
      s3s-fs --host 127.0.0.1 --port "$port" --access-key "$AWS_ACCESS_KEY_ID" --secret-key "$AWS_SECRET_ACCESS_KEY" "$work/store" 2> "$work/server.log" &
    fi
    python3 scripts/slow_proxy.py "$slow" "$port" "${LATENCY_MS:-50}" &
    sleep 2
    export AWS_ENDPOINT=http://127.0.0.1:$slow
    for _ in $(seq "$repeats"); do
      echo "folder  $(closing "$clipcap" embed --device cpu --images "$work/scenes/images" --model "$(tiny)" --out "$work/e" --overwrite)"
      echo "s3      $(closing "$clipcap" embed --device cpu --images s3://bucket/photos/ --model "$(tiny)" --out "$work/s" --overwrite)"
      cmp "$work/e/part-00000.parquet" "$work/s/part-00000.parquet"
    done
    # One device for all: what `auto` becomes is kept in the cache folder, which is another one here.
    flags=(--model "$(tiny)" --max-new-tokens 4 --quiet --device cpu)
    "$clipcap" caption "$work/scenes/images" "${flags[@]}" --out "$work/folder.parquet"
    XDG_CACHE_HOME=$work/cache "$clipcap" caption s3://bucket/photos/ "${flags[@]}" --out s3://bucket/out/t.parquet
    cmp "$work/folder.parquet" "$work"/cache/clipcap/outputs/*/t.parquet
    XDG_CACHE_HOME=$work/elsewhere "$clipcap" caption s3://bucket/photos/ "${flags[@]}" --out s3://bucket/out/t.parquet
    cmp "$work/folder.parquet" "$work"/elsewhere/clipcap/outputs/*/t.parquet
    "$clipcap" plan s3://bucket/photos/ "${flags[@]}" --shard-size 500 --job "$work/job"
    "$clipcap" caption --job "$work/job" --next=all --quiet & first=$!
    "$clipcap" caption --job "$work/job" --next=all --quiet
    wait "$first"
    "$clipcap" merge "$work/job" --out "$work/merged.parquet" --quiet
    cmp "$work/folder.parquet" "$work/merged.parquet"
    echo "embed, caption there and back, and a job of two workers: the folder's bytes"
    ;;
  million)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # The pictures of the first tar differ; those of each other tar are one, so that what is measured there is everything but the model.
    python3 - "$work" "${PICTURES:-1000000}" <<'PY'
import io, struct, sys, tarfile, zlib

folder, pictures, each = sys.argv[1], int(sys.argv[2]), 10_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(number: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixel = zlib.compress(bytes([0, number >> 16 & 255, number >> 8 & 255, number & 255]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


for shard in range((pictures + each - 1) // each):
    with tarfile.open(f"{folder}/set-{shard:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(shard * each, min(pictures, (shard + 1) * each)):
            picture = png(number if shard == 0 else shard * each)
            member = tarfile.TarInfo(f"{number:09}.png")
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
PY
    measured() { /usr/bin/env time -f "$1: %e s, %U s of CPU, %M KB" "${@:2}"; }
    measured plan "$clipcap" plan "$work"/set-*.tar --model "$(tiny)" --max-new-tokens 8 --job "$work/job" --quiet
    measured "one shard" "$clipcap" caption --job "$work/job" --shard 0 --quiet
    measured "all shards" "$clipcap" caption --job "$work/job" --next=all --quiet
    measured merge "$clipcap" merge "$work/job" --out "$work/t.parquet" --quiet
    ;;
  names)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    measured() { /usr/bin/env time -f "$1: %e s, %U + %S s of CPU, %M KB" "${@:2}"; }
    # Names are what a listing is about: hard links to a few files.
    python3 - "$work/flat" "${NAMES:-10000000}" <<'PY'
import os, sys

folder, names = sys.argv[1], int(sys.argv[2])
os.makedirs(folder)
for number in range(names):
    name = f"{folder}/{number:08}.png"
    if number % 60_000 == 0:
        source = name
        open(source, "wb").close()
    else:
        os.link(source, name)
PY
    measured "plan of one folder" "$clipcap" plan "$work/flat" --model "$(tiny)" --max-new-tokens 8 --job "$work/flat-job" --quiet
    rm -rf "$work/flat" "$work/flat-job"
    # Nobody asks a server for them before a worker does.
    seq -f 'https://photos.example/set/%08.0f.jpg' "${NAMES:-10000000}" > "$work/list.txt"
    measured "plan of a list of URLs" "$clipcap" plan --urls "$work/list.txt" --model "$(tiny)" --max-new-tokens 8 --job "$work/list-job" --quiet
    ;;
  tars)
    "${python:?set PYTHON to a Python with img2dataset, webdataset and pillow (and clip-retrieval and torch)}" scripts/bench/tars.py "$clipcap" "${PICTURES:-3000}" "$repeats"
    ;;
  ray)
    "${python:?set PYTHON to a Python with ray[data]}" scripts/check_ray.py --clipcap "$clipcap" --model "$(tiny)" --pictures "${PICTURES:-10000}" --shard-size 500
    ;;
  rehearse)
    clipcap=$(realpath "$clipcap") pipelines=$PWD/pipelines home=$out/rehearsal
    "$clipcap" scenes --out "$home/scenes" --num-images 40 --quiet
    mkdir -p "$home/data/flickr30k" "$home/models"
    [ -e "$home/data/flickr30k/flickr30k-images" ] || cp -r "$home/scenes/images" "$home/data/flickr30k/flickr30k-images"
    for pair in train=zhbbosontrain val=zhbbosonval test=zhmbosontest; do
      name=flickr30k${pair#*=} folder=$home/data/flickr30k/flickr30k-cn/flickr30k${pair#*=}/TextData
      mkdir -p "$folder"
      cp "$home/scenes/captions/scenes-zh-${pair%%=*}.txt" "$folder/seg.$name.caption.txt"
    done
    cd "$home"
    for recipe in mlp bert; do
      /usr/bin/env time -f "$recipe: %e s, %M KB" "$clipcap" run "$pipelines/flickr30k-$recipe.toml" --set model.clip=vit-b-32 \
        --set model.gpt2=gpt2-base-zh --set train.max_steps=2 --set train.batch_size=8
    done
    "$clipcap" run "$pipelines/caption-folder.toml" --set caption.input=data/flickr30k/flickr30k-images --set caption.model=out/flickr30k-mlp/train/best \
      --set caption.max_new_tokens=20
    ;;
  cuda-paper)
    # onnxruntime-gpu's provider is real: a download of 256 MB. It counts; no time that it takes means anything.
    scripts/setup.sh --cuda-only
    CLIPCAP_RUNTIME=$PWD/runtime cargo test --release --locked --test it -- --ignored cuda::
    scripts/check_cuda_on_paper.sh "$clipcap" "$out/cuda"
    ;;
  *) sed -n '2,25p' "$0"; exit 2 ;;
esac
