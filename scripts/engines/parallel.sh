#!/bin/bash
# Captions (or embeds) a planned job with GNU parallel, here or on other machines over ssh, then merges.
#   scripts/engines/parallel.sh JOB TABLE [parallel flags, such as -j 2 or --sshlogin a,b,c]
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,3p "$0"; exit 2; }
job=$1 table=$2
shift 2
clipcap=${CLIPCAP:-clipcap}
last=$(($(sed -n 's/^  "num_shards": \([0-9]*\),$/\1/p' "$job/plan.json") - 1))
stage=$(sed -n 's/^  "stage": "\([a-z]*\)",$/\1/p' "$job/plan.json")
seq 0 "$last" | parallel --quote --retries 3 "$@" "$clipcap" "$stage" --quiet --job "$job" --shard {}
"$clipcap" merge "$job" --out "$table"
