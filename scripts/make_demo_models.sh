#!/usr/bin/env bash
# Makes the weights in models/demo again, from their configurations, the vocabulary and a seed: pipelines/demo-models.toml.
# The same runtime and CPU type give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
clipcap=${CLIPCAP:-target/release/clipcap}
untrained=out/demo-models/untrained
rm -rf "$untrained"
mkdir -p "$untrained/clip" "$untrained/gpt2"
cp models/demo/clip/*.json "$untrained/clip/"
cp models/demo/gpt2/*.json models/demo/gpt2/vocab.txt "$untrained/gpt2/"
"$clipcap" run pipelines/demo-models.toml "$@"
for part in clip gpt2; do
  cp "out/demo-models/export_$part/model.safetensors" "models/demo/$part/model.safetensors.part"
  mv "models/demo/$part/model.safetensors.part" "models/demo/$part/model.safetensors"
done
du -sh models/demo
