#!/usr/bin/env bash
# Builds the release binary and leaves it at target/release/clipcap of this checkout, whatever CARGO_TARGET_DIR says.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked
built="${CARGO_TARGET_DIR:-target}/release/clipcap"
if [ "$(realpath "$built")" != "$PWD/target/release/clipcap" ]; then
  mkdir -p target/release
  cp "$built" target/release/clipcap.part
  mv target/release/clipcap.part target/release/clipcap
fi
