#!/usr/bin/env python3
"""Packs what one call on a lent card needs into FOLDER: clipcap, ONNX Runtime and its CUDA provider cut down to one generation of cards.

    pack_cuda.py RUNTIME/cuda CLIPCAP FOLDER [--used FILE] [--arch 90] [--keep-below 140000]

FILE (which the stand-in for CUDA's libraries writes: STANDIN_FATBINS) lists the fat binaries that our graphs used, by their offsets in the provider,
in hex, one a line. Images of these are kept whole, of others only those smaller than --keep-below. Everything else becomes zeros, which xz
removes. A call may carry 64 MiB.
"""
import argparse
import lzma
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("runtime", type=pathlib.Path)
parser.add_argument("clipcap")
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--used", type=pathlib.Path)
parser.add_argument("--arch", type=int, default=90)
parser.add_argument("--keep-below", type=int, default=140000)
parser.add_argument("--preset", type=int, default=6)
a = parser.parse_args()
a.folder.mkdir(parents=True, exist_ok=True)

provider = a.runtime / "libonnxruntime_providers_cuda.so"
data = bytearray(provider.read_bytes())
sections = subprocess.run(["readelf", "-SW", provider], capture_output=True, text=True, check=True).stdout.replace("[ ", "[").splitlines()
section = next(line.split() for line in sections if " .nv_fatbin " in line)
start, size = int(section[4], 16), int(section[5], 16)
used = {int(line.split()[0], 16) for line in a.used.read_text().splitlines()} if a.used else set()
found, at = set(), start
while at < start + size - 16:
    magic, _, header, length = struct.unpack_from("<IHHQ", data, at)
    if magic != 0xBA55ED50:
        at += 8
        continue
    found.add(at)
    image = at + header
    while image < at + header + length:
        (head,) = struct.unpack_from("<I", data, image + 4)
        (payload,) = struct.unpack_from("<Q", data, image + 8)
        (arch,) = struct.unpack_from("<I", data, image + 28)
        if arch != a.arch or (used and at not in used and payload >= a.keep_below):
            data[image + head : image + head + payload] = bytes(payload)
        image += head + payload
    at += header + length
if used - found:
    sys.exit(f"{len(used - found)} of {len(used)} offsets in {a.used} are no fat binaries of {provider}: was it made with another version?")

def pack(name, content):
    (a.folder / name).write_bytes(lzma.compress(bytes(content), preset=a.preset))

pack("provider.so.xz", data)
pack("ort.so.xz", next(path for path in a.runtime.glob("libonnxruntime.so*") if path.is_file()).read_bytes())
shutil.copy(a.runtime / "libonnxruntime_providers_shared.so", a.folder)
with tempfile.NamedTemporaryFile() as stripped:
    subprocess.run(["strip", "-o", stripped.name, a.clipcap], check=True)
    pack("clipcap.xz", pathlib.Path(stripped.name).read_bytes())
mib = sum(path.stat().st_size for path in a.folder.iterdir()) / 2**20
print(f"{a.folder}: {mib:.1f} MiB, {len(used) or len(found)} of {len(found)} fat binaries whole")
sys.exit(mib > 64 and "more than the 64 MiB that a call may carry" or 0)
