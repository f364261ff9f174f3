#!/usr/bin/env bash
# How fast: ours, others, and what the processor can do at most, in turn in one run. Writes a table and a picture.
#
#   scripts/bench.sh               full size (random ViT-B/32 and GPT2), about a quarter of an hour: out/bench/table.md and table.svg
#   scripts/bench.sh --smoke       the smallest size, a round: does everything run?
#
# Ours are whole commands: starting, loading the model, reading and decoding pictures, and writing the table are in the time (of training: the
# steps after the first). The others are the model alone: OpenVINO's own API, CTranslate2, and PyTorch after torch.compile.
# Set PYTHON to a Python with scripts/bench/requirements.txt for them; what it lacks is left out, and without one ours and the limit are shown.
# CLIPCAP, ROUNDS, IMAGES, THREADS and WORKS (of: images captions first training) can be set too. On a shared machine read ratios, not figures.
set -euo pipefail
cd "$(dirname "$0")/.."
smoke=
case "${1:-}" in
  "") ;;
  --smoke) smoke=1 ;;
  *) sed -n '2,12p' "$0"; exit 2 ;;
esac
clipcap=${CLIPCAP:-target/release/clipcap}
python=${PYTHON:-}
threads=${THREADS:-$(nproc)}
works=" ${WORKS:-images captions first training} "
if [ -n "$smoke" ]; then
  rounds=${ROUNDS:-1} images=${IMAGES:-12} clip=vit-tiny gpt2=gpt2-tiny out=out/bench-smoke batch=4 captioned=4 trained=4 steps=3
else
  rounds=${ROUNDS:-3} images=${IMAGES:-160} clip=vit-b-32 gpt2=gpt2-base-zh out=out/bench batch=32 captioned=32 trained=40 steps=5
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
has() { [ -n "$python" ] && "$python" -c "import $1" 2>/dev/null; }
has_openvino=$(has openvino && echo 1 || true) has_ctranslate2=$(has ctranslate2 && echo 1 || true) has_torch=$(has torch && echo 1 || true)
# other WORK PRECISION WHO SCRIPT ARGUMENT...: what a script of another's says it does per second
other() {
  local work=$1 precision=$2 who=$3 said
  shift 3
  # What takes too long (compiling, on few cores) or fails is left out, and said.
  if ! said=$(timeout "${OTHERS_SECONDS:-240}" "$python" "$@" 2>"$out/log"); then
    tail -3 "$out/log" >&2
    echo "bench.sh: left out, it failed or took more than ${OTHERS_SECONDS:-240} s: $*" >&2
    return 0
  fi
  record "$work" "$precision" "$who" "$said"
}
peer() { [ -z "$has_openvino" ] || other images "$1" openvino scripts/bench/peers.py "$(bundle "$1")" "$1" "$batch" "$threads" 4; }
captions_peer() { [ -z "$has_ctranslate2" ] || other captions "$1" ctranslate2 scripts/bench/decoding.py "$out/model" "$out/ctranslate2" "$1" "$captioned" "$threads"; }
# The first caption of one picture, from the start of the program to its end.
first() {
  timed first "$1" clipcap-cpu 1 "$clipcap" caption "$out/one" --model "$(bundle "$1")" --device cpu --precision "$1" --max-new-tokens 17 \
    --threads "$threads" --overwrite --out "$out/one.parquet"
}
# train DEVICE PRECISION: steps per second of a run in which every caption has 17 tokens, the first step not counted
train() {
  quiet "$clipcap" train --dataset "$out/dataset" --embeddings "$out/embeddings" --model "$out/model" --finetune-gpt2 --dropout 0 --dev-size 0 \
    --sample-images 0 --batch-size "$trained" --max-steps "$steps" --device "$1" --precision "$2" --threads "$threads" --overwrite --out "$out/run"
  # As JSON without spaces, whatever they are.
  quiet "$clipcap" show "$out/run/metrics.parquet" --json --columns step,gradients_ms,update_ms
  record training "$2" "clipcap-$1" "$(tr -d ' \n' <"$out/log" | grep -o '"step":"\?[0-9]*"\?,*\|"[a-z]*_ms":"\?[0-9.e+-]*' | awk -F: '
    { gsub(/"/, "", $2) }
    /step/ { step = $2 + 0 }
    /_ms/ && step > 1 { ms += $2; if (/gradients/) n++ }
    END { print 1e3 * n / ms }')"
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
wanted() { [[ $works == *" $1 "* ]]; }
mkdir -p "$out/one"
pictures=("$out"/pictures/images/*)
cp "${pictures[0]}" "$out/one/"
for _ in $(seq "$rounds"); do
  if wanted images; then
    for precision in fp32 bf16 int8; do
      [ "$precision" = bf16 ] || embed cpu "$precision"
      if [ -n "$openvino" ]; then embed openvino "$precision"; fi
      peer "$precision"
    done
  fi
  for precision in fp32 int8; do
    if wanted captions; then captions "$precision" && captions_peer "$precision"; fi
    if wanted first; then first "$precision"; fi
  done
done
if wanted training; then
  # Two captions of 16 characters for each picture; with their end they have 17 tokens.
  for name in "${pictures[@]##*/}"; do printf '%s\n%s\n' "$name#0" "$name#1"; done |
    awk 'NR == FNR { if (FNR > 5000 && FNR < 12000 && $0 !~ /[ -~]/) pieces[n++] = $0; next }
      { text = ""; for (i = 0; i < 16; i++) text = text pieces[(FNR * 131 + i * 37) % n]; print $0 "\t" text }' "$out/model/gpt2/vocab.txt" - >"$out/captions.txt"
  quiet "$clipcap" prepare --captions "$out/captions.txt" --splits none --overwrite --out "$out/dataset"
  # Ours before and after the others.
  for turn in 1 2; do
    train cpu fp32
    if [ -n "$openvino" ]; then train openvino bf16; fi
    if [ "$turn" = 1 ] && [ -n "$has_torch" ]; then
      for precision in fp32 bf16; do
        other training "$precision" torch-compile scripts/bench/training.py "$out/model" "$precision" compiled "$trained" 10 17 "$threads" "$((steps - 1))"
      done
    fi
    [ -z "$smoke" ] || break
  done
fi

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
  function cell(work, precision, who) { return (work, precision, who) in value ? sprintf(work == "training" ? "%.3f" : "%.1f", value[work, precision, who]) : "" }
  END {
    print title "\n"
    print "| per second | clipcap, CPU provider | clipcap, OpenVINO | others, model alone | best of ours to theirs | limit |"
    print "| --- | --- | --- | --- | --- | --- |"
    n = split("images fp32,images bf16,images int8,captions fp32,captions int8,training fp32,training bf16", order, ",")
    split("clipcap-cpu clipcap-openvino", ours, " ")
    others = split("openvino ctranslate2 torch-compile", other, " ")
    for (i = 1; i <= n; i++) if (order[i] in rows) {
      split(order[i], key, " ")
      theirs = ratio = ""
      best = 0
      for (o = 1; o <= 2; o++) if ((key[1], key[2], ours[o]) in value && value[key[1], key[2], ours[o]] > best) best = value[key[1], key[2], ours[o]]
      for (o = 1; o <= others; o++) if ((key[1], key[2], other[o]) in value) {
        theirs = other[o] " " cell(key[1], key[2], other[o])
        ratio = sprintf("%.2f", best / value[key[1], key[2], other[o]])
      }
      name = order[i]
      sub(/training/, "training steps", name)
      print "| " name " | " cell(key[1], key[2], "clipcap-cpu") " | " cell(key[1], key[2], "clipcap-openvino") " | " theirs " | " ratio " | " cell(key[1], key[2], "limit") " |"
    }
    for (i = 1; i <= split("fp32 int8", both, " "); i++) if (("first", both[i], "clipcap-cpu") in value)
      printf "\nFrom the start to the end of one caption, %s: %.2f s.\n", both[i], 1 / value["first", both[i], "clipcap-cpu"]
  }' "$out/medians.txt" >"$out/table.md"
awk -v title="$title" '
  function shown(text) { gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); return text }
  $1 == "first" { next }
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
      printf "<text x=\"%.1f\" y=\"%d\">%.*f%s</text>\n", 246 + 320 * value[i] / most[work], y + 14, work == "training" ? 3 : 1, value[i], part
    }
    print "</svg>"
  }' "$out/medians.txt" >"$out/table.svg"
cat "$out/table.md"
echo "$out/table.md, $out/table.svg" >&2
