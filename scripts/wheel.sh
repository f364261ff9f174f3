#!/usr/bin/env bash
# Makes a PyPI wheel with the program in it, under target/wheels/. It depends on onnxruntime, which the program finds beside itself.
#
#   scripts/wheel.sh                    with the dist profile (slow to build, smallest and fastest)
#   scripts/wheel.sh --profile release  with what scripts/build.sh has built already
#   scripts/wheel.sh --check            then installs it into a new venv and captions with it
set -euo pipefail
cd "$(dirname "$0")/.."

profile=dist check=
while [ $# -gt 0 ]; do
  case "$1" in
    --profile) profile=${2:?"--profile takes a name"}; shift 2 ;;
    --check) check=yes; shift ;;
    *) echo "wheel.sh: unknown argument $1 (known: --profile NAME, --check)" >&2; exit 2 ;;
  esac
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/maturin"
"$work/maturin/bin/pip" install --disable-pip-version-check --quiet 'maturin>=1.9,<2'
"$work/maturin/bin/maturin" build --locked --profile "$profile" --out "$work/wheels" --compatibility linux
mkdir -p target/wheels
wheel=$(basename "$work"/wheels/clipcap-*.whl)
cp "$work/wheels/$wheel" "target/wheels/$wheel"
echo "target/wheels/$wheel"

if [ -n "$check" ]; then
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --disable-pip-version-check --quiet "target/wheels/$wheel"
  # Away from the checkout and its runtime folder: only what pip brought may be found.
  cd "$work"
  clipcap() { env -u ORT_DYLIB_PATH -u CLIPCAP_RUNTIME HOME="$work" "$work/venv/bin/clipcap" "$@"; }
  clipcap doctor
  clipcap scenes --num-images 8 --out scenes --quiet
  clipcap model init --clip vit-tiny --gpt2 gpt2-tiny --mapper mlp --seed 1 --out model --quiet
  clipcap caption scenes/images --model model --out captions.parquet
fi
