#!/usr/bin/env bash
# How fast: ours, others, and what the processor can do at most, in turn in one run. Writes a table and a picture.
#
#   scripts/bench.sh               full size (random ViT-B/32 and GPT2): out/bench/table.md and table.svg
#   scripts/bench.sh --smoke       the smallest size, a round: does everything run?
#
# Ours are whole commands: starting, loading the model, reading and decoding pictures, and writing the table are in the time. OpenVINO's own API
# is the model alone. Set PYTHON to a Python with scripts/bench/requirements.txt for the others; without one, ours and the limit are shown.
# CLIPCAP, ROUNDS, IMAGES and THREADS can be set too. On a shared machine read ratios, not figures.
set -euo pipefail
cd "$(dirname "$0")/.."
smoke=
case "${1:-}" in
  "") ;;
  --smoke) smoke=1 ;;
  *) sed -n '2,11p' "$0"; exit 2 ;;
esac
clipcap=${CLIPCAP:-target/release/clipcap}
python=${PYTHON:-}
threads=${THREADS:-$(nproc)}
if [ -n "$smoke" ]; then
  rounds=${ROUNDS:-1} images=${IMAGES:-12} clip=vit-tiny gpt2=gpt2-tiny out=out/bench-smoke batch=4 captioned=4
else
  rounds=${ROUNDS:-3} images=${IMAGES:-256} clip=vit-b-32 gpt2=gpt2-base-zh out=out/bench batch=32 captioned=32
fi
[ -x "$clipcap" ] || { echo "bench.sh: $clipcap is not there: scripts/build.sh, or set CLIPCAP" >&2; exit 1; }
mkdir -p "$out"
rm -rf "$out/results"
mkdir "$out/results"

quiet() { "$@" >"$out/log" 2>&1 || { cat "$out/log" >&2; echo "bench.sh: failed: $*" >&2; exit 1; }; }
[ -f "$out/model/clipcap.json" ] || quiet "$clipcap" model init --clip "$clip" --gpt2 "$gpt2" --mapper mlp --seed 1 --out "$out/model"
[ -d "$out/pictures/images" ] || quiet "$clipcap" scenes --num-images "$images" --out "$out/pictures"
[ -f "$out/int8/clipcap.json" ] || quiet "$clipcap" model quantize "$out/model" --calibrate "$out/pictures/images" --out "$out/int8"
quiet "$clipcap" embed --images "$out/pictures/images" --model "$out/model" --device cpu --overwrite --out "$out/embeddings"

# record WORK PRECISION WHO UNITS_PER_SECOND
record() { echo "$4" >>"$out/results/$1.$2.$3"; }
# timed WORK PRECISION WHO COUNT COMMAND...: COUNT per second of a whole command
timed() {
  local work=$1 precision=$2 who=$3 count=$4 start=$EPOCHREALTIME end
  shift 4
  quiet "$@"
  end=$EPOCHREALTIME
  record "$work" "$precision" "$who" "$(awk -v n="$count" -v s="$start" -v e="$end" 'BEGIN { print n / (e - s) }')"
}
bundle() { if [ "$1" = int8 ]; then echo "$out/int8"; else echo "$out/model"; fi; }
embed() {
  timed images "$2" "clipcap-$1" "$images" "$clipcap" embed --images "$out/pictures/images" --model "$(bundle "$2")" --device "$1" --precision "$2" \
    --batch-size "$batch" --threads "$threads" --overwrite --out "$out/e"
}
peer() {
  [ -z "$python" ] || record images "$1" openvino "$("$python" scripts/bench/peers.py "$(bundle "$1")" "$1" "$batch" "$threads" 4)"
}
captions() {
  timed captions "$1" clipcap-cpu $((captioned * 5)) "$clipcap" caption --embeddings "$out/few.npy" --model "$(bundle "$1")" --device cpu \
    --precision "$1" --top-p 0.8 --num-captions 5 --min-new-tokens 17 --max-new-tokens 17 --no-loop-guard --threads "$threads" --overwrite --out "$out/c.parquet"
}
# The first embeddings as a .npy file: a header of 128 bytes, then numbers; clip-retrieval's layout has them that way.
quiet "$clipcap" embed --images "$out/pictures/images" --model "$out/model" --device cpu --format npy --overwrite --out "$out/npy"
width=$(grep -ao "'shape': ([0-9]*, [0-9]*)" "$out/npy/img_emb/img_emb_0.npy" | grep -o '[0-9]*' | tail -1)
{
  header=$(printf "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" "$captioned" "$width")
  printf '\x93NUMPY\x01\x00\x76\x00%-117s\n' "$header"
  # The reader of a pipe must not leave first, or the writer dies of it and this script too: the head is cut off before the tail.
  head -c $((128 + captioned * width * 4)) "$out/npy/img_emb/img_emb_0.npy" | tail -c +129
} >"$out/few.npy"

openvino=
if [ -d runtime/openvino ]; then openvino=1; fi
for _ in $(seq "$rounds"); do
  for precision in fp32 bf16 int8; do
    [ "$precision" = bf16 ] || embed cpu "$precision"
    if [ -n "$openvino" ]; then embed openvino "$precision"; fi
    peer "$precision"
  done
  captions fp32
  captions int8
done

# What the registers can do, over what an image or a caption takes (billions of operations; a multiply-add is two).
if command -v "${CC:-cc}" >/dev/null && "${CC:-cc}" -O2 -pthread scripts/bench/peak.c -o "$out/peak" 2>"$out/log"; then
  "$out/peak" "$threads" >"$out/peak.txt"
  if [ -z "$smoke" ]; then
    while read -r precision gops; do
      record images "$precision" limit "$(awk -v g="$gops" 'BEGIN { print g / 8.83 }')"
      record captions "$precision" limit "$(awk -v g="$gops" 'BEGIN { print g / 3.78 }')"
    done <"$out/peak.txt"
  fi
else
  echo "bench.sh: no C compiler takes scripts/bench/peak.c here: no limit is shown" >&2
fi

median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
for file in "$out"/results/*; do
  name=$(basename "$file")
  echo "${name//./ } $(median "$file")"
done >"$out/medians.txt"
cpu=$(sed -n '/^model name[^:]*: /{s///;p;q}' /proc/cpuinfo)
title="$cpu, $threads threads, medians of $rounds"
awk -v title="$title" '
  { value[$1, $2, $3] = $4; rows[$1 " " $2] = 1; columns[$3] = 1 }
  function cell(work, precision, who) { return (work, precision, who) in value ? sprintf("%.1f", value[work, precision, who]) : "" }
  END {
    print title "\n"
    print "| per second | clipcap, CPU provider | clipcap, OpenVINO | OpenVINO, model alone | limit |\n| --- | --- | --- | --- | --- |"
    n = split("images fp32,images bf16,images int8,captions fp32,captions bf16,captions int8", order, ",")
    for (i = 1; i <= n; i++) if (order[i] in rows) {
      split(order[i], key, " ")
      line = cell(key[1], key[2], "clipcap-cpu") " | " cell(key[1], key[2], "clipcap-openvino") " | " cell(key[1], key[2], "openvino")
      print "| " order[i] " | " line " | " cell(key[1], key[2], "limit") " |"
    }
  }' "$out/medians.txt" >"$out/table.md"
awk -v title="$title" '
  function shown(text) { gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); return text }
  $3 != "limit" { n++; label[n] = $1 " " $2 ", " $3; value[n] = $4; key[n] = $1 " " $2 }
  $3 == "limit" { limit[$1 " " $2] = $4 }
  END {
    height = 22 * n + 50
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"%d\" font-family=\"sans-serif\" font-size=\"13\">\n", height
    printf "<rect width=\"760\" height=\"%d\" fill=\"white\"/><text x=\"10\" y=\"20\" font-weight=\"bold\">%s</text>\n", height, shown(title)
    for (i = 1; i <= n; i++) {
      y = 22 * i + 16; work = key[i]; sub(/ .*/, "", work)
      if (value[i] > most[work]) most[work] = value[i]
    }
    for (i = 1; i <= n; i++) {
      y = 22 * i + 16; work = key[i]; sub(/ .*/, "", work)
      fill = label[i] ~ /clipcap/ ? "#2b6cb0" : "#a0aec0"
      printf "<text x=\"10\" y=\"%d\">%s</text>", y + 14, shown(label[i])
      printf "<rect x=\"240\" y=\"%d\" width=\"%.1f\" height=\"16\" fill=\"%s\"/>", y, 320 * value[i] / most[work], fill
      part = (key[i] in limit) ? sprintf(" (%.0f%% of the limit)", 100 * value[i] / limit[key[i]]) : ""
      printf "<text x=\"%.1f\" y=\"%d\">%.1f%s</text>\n", 246 + 320 * value[i] / most[work], y + 14, value[i], part
    }
    print "</svg>"
  }' "$out/medians.txt" >"$out/table.svg"
cat "$out/table.md"
echo "$out/table.md, $out/table.svg" >&2
