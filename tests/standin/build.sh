#!/usr/bin/env bash
# Compiles the stand-in for CUDA 13's libraries into FOLDER/lib, and the driver's into FOLDER/driver.
#
#   tests/standin/build.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/lib" "$1/driver"
out=$(cd "$1" && pwd)
library() { # define, path, symbols' version ("" for none), more arguments
  local define=$1 path=$2 version=$3
  shift 3
  if [ -n "$version" ]; then
    echo "$version { global: *; };" >"$out/$define.map"
    set -- "-Wl,--version-script=$out/$define.map" "$@"
  fi
  cc -shared -fPIC -O1 -Wall -Wextra "-D$define" "-Wl,-soname,$(basename "$path")" -o "$path" "$here/cuda.c" -ldl -lpthread "$@"
  rm -f "$out/$define.map"
}
library CUDART "$out/lib/libcudart.so.13" libcudart.so.13
library CUBLASLT "$out/lib/libcublasLt.so.13" libcublasLt.so.13 "$out/lib/libcudart.so.13"
library CUBLAS "$out/lib/libcublas.so.13" libcublas.so.13 "$out/lib/libcudart.so.13"
library CURAND "$out/lib/libcurand.so.10" ""
library DRIVER "$out/driver/libcuda.so.1" ""
