# What developers type: `just` lists it.

default:
    @just --list

# ONNX Runtime, OpenVINO, Chromium and a server of buckets for the tests
setup:
    scripts/setup.sh --openvino --chromium --s3

# Formatted, linted, every test: what CI runs
test:
    scripts/test.sh

# Compile errors only, in seconds
check:
    cargo check --release --locked --all-targets

# Tests whose path contains FILTER, with the program itself compiled quickly
one FILTER:
    CLIPCAP_RUNTIME="$PWD/runtime" cargo test --release --locked --config profile.release.package.clipcap.opt-level=0 --lib --test it {{FILTER}}

# The program at target/release/clipcap
build:
    scripts/build.sh

# The demo, from drawing pictures to the report
demo:
    scripts/quickstart.sh

# A wheel for pip, under target/wheels
wheel:
    scripts/wheel.sh --check

# Licences, advisories and sources of all dependencies
deny:
    cargo deny check

# Timings of reading pictures (benches/)
bench:
    cargo bench --bench images

# A fuzz target: image, pickle, safetensors, captions or pipeline (a nightly toolchain and cargo-fuzz)
fuzz TARGET:
    cargo +nightly fuzz run {{TARGET}}
