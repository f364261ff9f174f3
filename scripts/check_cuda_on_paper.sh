#!/usr/bin/env bash
# scripts/check_cuda.sh from end to end without a card, over the stand-in for CUDA's libraries: once as it is, which says what the graphs use of the
# provider; then on the pack that a lent card would be given, which must hold all of that. Numbers of speed and parity mean nothing here.
# python3 needs numpy, as on the machine with the card.
#
#   scripts/check_cuda_on_paper.sh CLIPCAP OUT
set -euo pipefail
cd "$(dirname "$0")/.."
clipcap=$(readlink -f "$1")
mkdir -p "$2"
out=$(readlink -f "$2")
tests/standin/build.sh "$out/standin"
mkdir -p "$out/whole/runtime"
ln -sfn "$PWD/runtime/cuda" "$out/whole/runtime/cuda"
ln -sfn "$PWD/runtime/cpu" "$out/whole/runtime/cpu"
ln -sfn "$clipcap" "$out/whole/clipcap"
export SMALL=1 CUDA_LIBS=$out/standin/lib LD_LIBRARY_PATH=$out/standin/driver
rm -f "$out/fatbins.txt"
WORK=$out/work-whole STANDIN_FATBINS=$out/fatbins.txt scripts/check_cuda.sh "$out/whole" "$out/log-whole" >/dev/null
sort -u "$out/fatbins.txt" -o "$out/fatbins.txt"
python3 scripts/pack_cuda.py runtime/cuda "$clipcap" "$out/pack" --used "$out/fatbins.txt"
rm -rf "$out/work-pack"
WORK=$out/work-pack scripts/check_cuda.sh "$out/pack" "$out/log-pack" >/dev/null
rm -rf "$out/work-whole" "$out/work-pack"
# What the stand-in cannot do: compute, be nvidia-smi, run PyTorch.
expected='doctor (fp32|fp16|bf16|auto)|PyTorch|machine'
for log in "$out/log-whole/log.txt" "$out/log-pack/log.txt"; do
  grep -q "^=== done in" "$log" || { echo "$log: it did not come to its end" >&2; exit 1; }
  if sed '/^=== done in/,$d' "$log" | grep -E '^FAILED|^error|: error' | grep -vE "FAILED \([0-9]+\): ($expected)$|^(without any path|a card that is not there): " | grep .; then
    echo "$log: these steps failed" >&2
    exit 1
  fi
done
echo "scripts/check_cuda.sh ran from end to end, as it is and from its pack; logs: $out/log-whole, $out/log-pack"
