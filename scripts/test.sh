#!/usr/bin/env bash
# Sets up, then format, lints, the tables in other programs, and every test. Ends with the test runner's own summary.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --openvino --chromium --s3
export CLIPCAP_RUNTIME="$PWD/runtime"
cargo fmt --check
# One profile for everything, so that dependencies compile once.
cargo clippy --release --locked --all-targets -- -D warnings
cargo test --release --locked --no-run
# The tables are opened by what people open them with, and the graphs checked by ONNX's own checker, in a venv that is kept between runs.
venv="${XDG_CACHE_HOME:-$HOME/.cache}/clipcap-ci/venv"
if ! cmp -s scripts/requirements-check.txt "$venv/requirements-check.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --disable-pip-version-check --quiet --requirement scripts/requirements-check.txt
  cp scripts/requirements-check.txt "$venv/"
fi
clipcap="${CARGO_TARGET_DIR:-target}/release/clipcap"
"$venv/bin/python" scripts/check_tables.py "$clipcap"
"$venv/bin/python" scripts/check_graphs.py "$clipcap"
# A job on two Ray nodes, one of which is killed, and Ray Data. A cluster that does not come up is no reason to wait for ever.
timeout --foreground 15m "$venv/bin/python" scripts/check_ray.py --clipcap "$clipcap" --pictures 120 --shard-size 12
# Pages in a browser, where there are npm and one.
scripts/check_pages.sh "$clipcap"
# The benchmark's smallest size: it must run, its figures mean nothing.
CLIPCAP="$clipcap" scripts/bench.sh --smoke
# Property tests take the same cases here each time; a plain `cargo test` draws others, and PROPTEST_CASES=200000 looks far.
export PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-1}"
# A test that waits for ever is told while somebody still looks: the lines "has been running for over 60 seconds" name it.
timeout --foreground 45m cargo test --release --locked || {
  status=$?
  [ "$status" != 124 ] || echo "the tests had not ended after 45 minutes" >&2
  exit "$status"
}
