#!/bin/bash
# Captions (or embeds) a planned job as a Slurm array, one task per shard, then merges. Tasks that fail or are preempted are queued again.
#   scripts/engines/slurm.sh JOB TABLE [sbatch flags, such as --gres=gpu:1 --time=2:00:00 --partition=gpu]
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,3p "$0"; exit 2; }
job=$1 table=$2
shift 2
clipcap=${CLIPCAP:-clipcap}
last=$(($(sed -n 's/^  "num_shards": \([0-9]*\),$/\1/p' "$job/plan.json") - 1))
stage=$(sed -n 's/^  "stage": "\([a-z]*\)",$/\1/p' "$job/plan.json")
worker=$(sbatch --parsable --array="0-$last" --requeue --job-name=clipcap "$@" --wrap="$clipcap $stage --job '$job'")
# Whatever became of the tasks: what they left is finished by one more, and a finished shard costs nothing.
sbatch --dependency="afterany:$worker" --job-name=clipcap-merge "$@" \
    --wrap="$clipcap $stage --job '$job' --next=all && $clipcap merge '$job' --out '$table'"
