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
# A card that says who it is, and how much of it is in use, for as long as it is asked.
mkdir -p "$out/bin"
cat >"$out/bin/nvidia-smi" <<'SH'
#!/bin/sh
case "$*" in
  *name,driver*) echo "stand-in for a card, 580.00, 81920 MiB" ;;
  *memory.used*) while echo 1000; do sleep 0.2; done ;;
  *) echo "stand-in for a card" ;;
esac
SH
chmod +x "$out/bin/nvidia-smi"
export SMALL=1 BUDGET=3000 LIMIT=400 CUDA_LIBS=$out/standin/lib LD_LIBRARY_PATH=$out/standin/driver PATH=$out/bin:$PATH
rm -rf "$out/fatbins.txt" "$out/log-whole" "$out/log-pack"
WORK=$out/work-whole STANDIN_FATBINS=$out/fatbins.txt scripts/check_cuda.sh "$out/whole" "$out/log-whole" >/dev/null
sort -u "$out/fatbins.txt" -o "$out/fatbins.txt"
python3 scripts/pack_cuda.py runtime/cuda "$clipcap" "$out/pack" --used "$out/fatbins.txt"
# From the pack in several calls, as on a lent card.
rm -rf "$out/work-pack"
for parts in "load parity" "speed torch" "training deep"; do
  WORK=$out/work-pack scripts/check_cuda.sh "$out/pack" "$out/log-pack" $parts >/dev/null
done
rm -rf "$out/work-whole" "$out/work-pack"
# What the stand-in cannot do: compute, and so agree with anything; PyTorch may not be here.
expected='doctor|doctor auto|same answers|PyTorch'
for calls in "log-whole 1" "log-pack 3"; do
  log=$out/${calls% *}/log.txt
  if [ "$(grep -c "^=== done in" "$log")" != "${calls#* }" ]; then echo "$log: it did not come to its end" >&2; exit 1; fi
  if grep -E '^(FAILED|left out)' "$log" | grep -vE "^FAILED \([0-9]+\): ($expected): " | grep .; then
    echo "$log: these steps failed" >&2
    exit 1
  fi
  for engine in clipcap 'clipcap on cuda'; do
    grep -q "^| $engine | .* [0-9]" "$out/${calls% *}/table.md" || { echo "$out/${calls% *}/table.md: nothing of $engine" >&2; exit 1; }
  done
done
echo "scripts/check_cuda.sh ran from end to end, as it is and from its pack; logs and tables: $out/log-whole, $out/log-pack"
