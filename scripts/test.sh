#!/usr/bin/env bash
# Sets up, then format, lints and every test. Ends with the test runner's own summary.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --openvino
export CLIPCAP_RUNTIME="$PWD/runtime"
cargo fmt --check
# One profile for everything, so that dependencies compile once.
cargo clippy --release --locked --all-targets -- -D warnings
cargo test --release --locked
