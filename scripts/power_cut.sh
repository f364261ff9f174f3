#!/usr/bin/env bash
# Cuts the power of a real disk: commands write to a file system in a file (a loop device), the file is copied before and behind every flush,
# each copy is mounted (which replays its journal), and the same command is given again there. It must end with the same bytes.
#
#   sudo scripts/power_cut.sh [CLIPCAP]      FS=xfs for another file system
#
# Needs root, a C compiler and mkfs. tests/it/power_cut.rs acts the same out without a disk.
set -euo pipefail
cd "$(dirname "$0")/.."
clipcap=$(realpath "${1:-target/release/clipcap}")
export CLIPCAP_RUNTIME=${CLIPCAP_RUNTIME:-$PWD/runtime}
fs=${FS:-ext4} size=16M every=1
[ "$fs" = ext4 ] || size=320M # xfs needs 300 MB
work=$(mktemp -d)
mount=$work/disk
trap 'umount -q "$mount" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$mount" "$work/snapshots" "$work/whole"
cc -shared -fPIC -O1 -o "$work/power.so" tests/fixtures/power.c -ldl

"$clipcap" scenes --quiet --num-images 6 --out "$work/scenes"
captions=$work/scenes/captions/scenes-zh-train.txt
"$clipcap" model init --quiet --clip vit-tiny --gpt2 gpt2-tiny --mapper mlp --seed 3 --out "$work/tiny"
"$clipcap" prepare --quiet --captions "$captions" --images "$work/scenes/images" --out "$work/dataset"
"$clipcap" embed --quiet --device cpu --images "$work/scenes/images" --model "$work/tiny" --out "$work/embeddings"

fresh() { # an empty disk, mounted
    rm -f "$work/disk.img"
    truncate -s "$size" "$work/disk.img"
    "mkfs.$fs" -q "$work/disk.img"
    mount -o loop "$work/disk.img" "$mount"
    mkdir "$mount/place"
    sync "$mount/place" "$mount"
}

# Files and their hashes, without those that hold times and what nobody could remove.
content() { (cd "$1" && find . -type f ! -name '*.tmp-*' ! -path '*.tmp-*' ! -path '*tensorboard*' ! -name metrics.parquet ! -name lock -print0 |
    sort -z | xargs -0 -r sha256sum); }

failed=0
try() { # NAME WORDS...: the command, cut at every flush
    local name=$1
    shift
    fresh
    (cd "$mount/place" && "$clipcap" "$@" >/dev/null 2>&1)
    content "$mount/place" >"$work/wanted"
    umount "$mount"
    fresh
    rm -f "$work"/snapshots/*
    (cd "$mount/place" && LD_PRELOAD=$work/power.so POWER_UNDER=$mount/place POWER_IMAGE=$work/disk.img POWER_SNAPSHOTS=$work/snapshots POWER_EVERY=$every \
        "$clipcap" "$@" >/dev/null 2>&1)
    umount "$mount"
    local snapshots=0 wrong=0
    for snapshot in "$work"/snapshots/*.img; do
        snapshots=$((snapshots + 1))
        mount -o loop "$snapshot" "$mount"
        if ! (cd "$mount/place" && "$clipcap" "$@" >"$work/said" 2>&1) || ! content "$mount/place" | cmp -s - "$work/wanted"; then
            wrong=$((wrong + 1))
            echo "$name: $(basename "$snapshot"):"
            tail -3 "$work/said"
            content "$mount/place" | diff - "$work/wanted" | head -10 || true
        fi
        umount "$mount"
        rm "$snapshot"
    done
    echo "$name: $snapshots disks, $wrong wrong"
    failed=$((failed + wrong))
}

caption=(caption "$work/scenes/images" --model "$work/tiny" --device cpu --max-new-tokens 5 --out)
try table "${caption[@]}" out.parquet
try parts "${caption[@]}" out/
try prepare prepare --captions "$captions" --images "$work/scenes/images" --with-images --out out
try embed embed --images "$work/scenes/images" --model "$work/tiny" --device cpu --out out
try stats stats "$work/dataset" --units char --out out
# Its checkpoints are large: a larger disk, and some of the flushes.
size=320M every=12
try train train --dataset "$work/dataset" --embeddings "$work/embeddings" --model "$work/tiny" --device cpu --epochs 2 --batch-size 2 \
    --save-steps 2 --dev-size 1 --sample-images 0 --out out
[ "$failed" = 0 ]
