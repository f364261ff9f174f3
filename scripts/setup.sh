#!/usr/bin/env bash
# Puts ONNX Runtime, and OpenVINO beside it, under runtime/ (git-ignored): the library files out of PyPI's wheels, pinned by hash.
#
#   scripts/setup.sh               runtime/cpu
#   scripts/setup.sh --openvino    runtime/openvino too (faster image encoders, and bf16, on Intel and AMD CPUs)
#   scripts/setup.sh --chromium    Debian's Chromium too, for the tests that open reports in a browser
#   scripts/setup.sh --s3          s3s-fs too, a server that speaks S3, for the tests of buckets (built once, in ~/.cache/clipcap-ci/tools)
#   scripts/setup.sh --cuda        runtime/cuda too (a download of 256 MB, 313 MB on disk), and NVIDIA's own libraries in runtime/cuda/nvidia (483 MB more, 728 on disk)
#   scripts/setup.sh --cuda-only   runtime/cuda without NVIDIA's libraries: they are on this machine already, or there is no card
#   scripts/setup.sh --cudnn       cuDNN too, which ResNet image encoders need on CUDA and nothing else does
set -euo pipefail
cd "$(dirname "$0")/.."

want=(cpu) chromium= s3= nvidia=()
for argument in "$@"; do
  case "$argument" in
    --openvino) want+=(openvino) ;;
    --cuda) want+=(cuda) nvidia+=(cuda-runtime cublas curand) ;;
    --cuda-only) want+=(cuda) ;;
    --cudnn) want+=(cuda) nvidia+=(cuda-runtime cublas curand cudnn) ;;
    --chromium) chromium=yes ;;
    --s3) s3=yes ;;
    *) echo "setup.sh: unknown argument $argument (known: --openvino, --cuda, --cuda-only, --cudnn, --chromium, --s3)" >&2; exit 2 ;;
  esac
done

declare -A package=(
  [cpu]="onnxruntime==1.31.1 --hash=sha256:5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f"
  [openvino]="openvino==2026.4.1 --hash=sha256:2d22b1da03f7caf74df30e9f6417d0ab2f637e4a38e08e1dcd294d2c37407aaf"
  [cuda]="onnxruntime-gpu==1.31.1 --hash=sha256:e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6"
)

# The libraries that the CUDA provider asks for, of the CUDA that it was built with.
declare -A nvidia_package=(
  [cuda-runtime]="nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"
  [cublas]="nvidia-cublas==13.0.2.14 --hash=sha256:0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c"
  [curand]="nvidia-curand==10.4.0.35 --hash=sha256:1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"
  [cudnn]="nvidia-cudnn-cu13==9.13.1.26 --hash=sha256:a0f434a881ce8b35afe3a328634db1da4a3852fc6dfbe89577f3e78400ee10d0"
)

# libjpeg-turbo is built from source by a crate: CMake, and NASM for its SIMD.
missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v nasm >/dev/null || missing+=(nasm)
if [ -n "$chromium" ] && ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then missing+=(chromium); fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "setup.sh: install first: ${missing[*]} (apt install ${missing[*]})" >&2
    exit 1
  fi
  echo "installing ${missing[*]}" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

python=$(command -v python3) || { echo "setup.sh: python3 is needed to fetch the wheels (apt install python3 python3-venv)" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip() {
  # Debian's python3 may come without pip: a throw-away venv has one.
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$work/venv" || { echo "setup.sh: no pip here: apt install python3-venv (or python3-pip)" >&2; exit 1; }
    python="$work/venv/bin/python"
  fi
  "$python" -m pip --disable-pip-version-check "$@"
}

# Whether the wheel of this pin is unpacked beside its stamp: is_there STAMP PIN
is_there() {
  [ -f "$1" ] && [ "$(cat "$1")" = "$2" ] && echo "$(dirname "$1"): ${2%% *} is there" >&2
}

# Downloads the wheel of a pin into a folder: fetch STAMP PIN FOLDER PIP_FLAGS...
fetch() {
  echo "$(dirname "$1"): fetching ${2%% *}" >&2
  echo "$2" >"$work/requirements.txt"
  pip download --quiet --no-deps --require-hashes --only-binary=:all: --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    "${@:4}" -r "$work/requirements.txt" -d "$3"
}

for kind in "${want[@]}"; do
  pin=${package[$kind]}
  stamp="runtime/$kind/wheel.txt"
  if is_there "$stamp" "$pin"; then continue; fi
  # The library inside is the same whatever Python runs here, so one wheel (CPython 3.11's) is pinned.
  fetch "$stamp" "$pin" "$work/$kind" --implementation cp --python-version 3.11 --abi cp311
  mkdir -p runtime
  rm -rf "runtime/$kind.part"
  "$python" - "$work/$kind" "runtime/$kind.part" <<'PY'
import pathlib, sys, zipfile

wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
out = pathlib.Path(sys.argv[2])
out.mkdir(parents=True)
# OpenVINO's library, what computes on CPUs, what reads graphs and compiled graphs, and the threads they use.
openvino = ("libopenvino.so", "libopenvino_c.so", "libopenvino_intel_cpu_plugin.so", "libopenvino_onnx_frontend.so",
            "libopenvino_ir_frontend.so", "libtbb.so", "libtbbbind", "libtbbmalloc.so", "libhwloc.so")
with zipfile.ZipFile(wheel) as archive:
    for info in archive.infolist():
        path = pathlib.PurePosixPath(info.filename)
        folder = path.parent.as_posix()
        if folder == "onnxruntime/capi":
            keep = ".so" in path.name and "pybind11" not in path.name and "tensorrt" not in path.name
        elif folder == "openvino/libs":
            keep = path.name.startswith(openvino)
        else:
            keep = path.name in ("LICENSE", "ThirdPartyNotices.txt") and folder == "onnxruntime" or "licenses" in path.parts
        if keep:
            (out / path.name).write_bytes(archive.read(info))
PY
  library=libonnxruntime.so
  [ "$kind" != openvino ] || library=libopenvino_c.so
  (cd "runtime/$kind.part" && ln -s "$library".* "$library")
  echo "$pin" >"runtime/$kind.part/wheel.txt"
  rm -rf "runtime/$kind"
  mv "runtime/$kind.part" "runtime/$kind"
done

# NVIDIA's, each beside a file that names its pin; all into one folder, where the program looks first.
for kind in "${nvidia[@]}"; do
  pin=${nvidia_package[$kind]}
  stamp="runtime/cuda/nvidia/$kind.txt"
  if is_there "$stamp" "$pin"; then continue; fi
  fetch "$stamp" "$pin" "$work/nvidia-$kind" --platform manylinux2014_x86_64
  mkdir -p runtime/cuda/nvidia
  "$python" - "$work/nvidia-$kind" runtime/cuda/nvidia "$kind" <<'PY'
import os, pathlib, shutil, sys, zipfile

wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
out = pathlib.Path(sys.argv[2])
with zipfile.ZipFile(wheel) as archive:
    for info in archive.infolist():
        path = pathlib.PurePosixPath(info.filename)
        library = path.parent.name == "lib" and ".so" in path.name
        if library or path.name in ("License.txt", "LICENSE.txt", "LICENSE"):
            name = path.name if library else f"{sys.argv[3]}-{path.name}"
            with archive.open(info) as source, open(out / (name + ".part"), "wb") as target:
                shutil.copyfileobj(source, target)
            os.replace(out / (name + ".part"), out / name)
PY
  echo "$pin" >"$stamp"
  rm -rf "$work/nvidia-$kind"
done

tools="${XDG_CACHE_HOME:-$HOME/.cache}/clipcap-ci/tools"
if [ -n "$s3" ] && [ ! -x "$tools/bin/s3s-fs" ]; then
  echo "building s3s-fs" >&2
  cargo install --locked --quiet --root "$tools" --features binary s3s-fs@0.14.1
fi
