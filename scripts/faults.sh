#!/usr/bin/env bash
# Every write of every command fails in turn: a full disk, a bad sector, half a write, a kill. Takes hours; tests/it/faults.rs does some of
# each in CI.
set -euo pipefail
cd "$(dirname "$0")/.."
CLIPCAP_FAULTS=all cargo test --release --locked --test it -- faults:: --nocapture "$@"
