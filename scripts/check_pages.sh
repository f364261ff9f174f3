#!/bin/bash
# Makes a report, a comparison, statistics and a training run of the small world, and looks at their pages in headless Chromium: at 400, 800
# and 1600 pixels, light, dark and as printed, with axe-core (from npm), which must find nothing serious; nothing may be wider than the screen;
# 2,000 rows must open in under a second.
#
#   scripts/check_pages.sh CLIPCAP [SHOTS]      the program, such as target/release/clipcap; a folder for screenshots
#
# Without npm (or its registry), Python or Chromium it says that it skips.
set -euo pipefail
clipcap=$(realpath "$1")
shots=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
browser=${CLIPCAP_CHROMIUM:-$(command -v chromium || command -v google-chrome || command -v chromium-browser || true)}
for tool in npm python3 "${browser:-chromium}"; do
  command -v "$tool" > /dev/null || { echo "SKIPPED: no $tool; the pages are not looked at"; exit 0; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work/npm" axe-core@4.14.1 ||
  { echo "SKIPPED: axe-core cannot be fetched; the pages are not looked at"; exit 0; }
mkdir "$work/world"
cd "$work/world"
"$clipcap" scenes --num-images 120 --out scenes --quiet
"$clipcap" prepare --captions scenes/captions/*.txt --images scenes/images --near-duplicates --out set --quiet
"$clipcap" model init --clip vit-tiny --gpt2 gpt2-tiny --mapper mlp --seed 1 --out model --quiet
"$clipcap" embed --dataset set --images scenes/images --model model --out embeddings --quiet
"$clipcap" train --dataset set --embeddings embeddings --model model --finetune-gpt2 --lr 1e-3 \
  --max-steps 20 --eval-steps 5 --batch-size 20 --cider-images 10 --max-len 40 --out run --quiet
"$clipcap" train --objective scst --dataset set --embeddings embeddings --model run/last --finetune-gpt2 \
  --max-steps 4 --eval-steps 2 --batch-size 10 --cider-images 10 --max-len 40 --out scst --quiet
echo "no picture" > scenes/images/broken.jpg
"$clipcap" caption scenes/images --model model --max-new-tokens 12 --out before.parquet --quiet || [ $? = 3 ]
"$clipcap" caption scenes/images --model run/last --max-new-tokens 20 --out after.parquet --quiet || [ $? = 3 ]
"$clipcap" caption scenes/images --model run/last --max-new-tokens 20 --top-p 0.8 --num-captions 3 --out samples.parquet --quiet || [ $? = 3 ]
"$clipcap" report samples.parquet --images scenes/images --out report.html --quiet
"$clipcap" report before.parquet after.parquet --labels before,after --references set --images scenes/images --out compared.html --quiet
"$clipcap" report before.parquet after.parquet samples.parquet --references set --images scenes/images --out three.html --quiet
"$clipcap" stats set --out stats --quiet
python3 "$here/check_pages.py" "$browser" "$work/npm/node_modules/axe-core/axe.min.js" "$clipcap" "$shots" \
  report.html compared.html three.html stats/index.html run/index.html scst/index.html
