#!/usr/bin/env python3
"""Reading and decoding webdataset tars: `clipcap embed` beside clip-retrieval's reader and beside webdataset's with Pillow.

    tars.py CLIPCAP PICTURES ROUNDS

JPEGs of 500x375 are written, served by a web server of this machine, and packed by img2dataset. Then each side reads the tars and makes 224x224
pixels in float32 of every picture, as CLIP wants them: two processes for each of theirs, and `embed` with a tower of one small layer, which computes
besides and writes its table. Of theirs, imports and the start of workers are not counted; of ours, everything is.

Needs numpy, pillow, webdataset and img2dataset; and torch, torchvision and clip-retrieval for its reader.
"""

import functools
import glob
import http.server
import importlib.metadata
import io
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

SIDE, WORKERS = 224, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make_pictures(folder, pictures):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(pictures):
        base = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        noisy = np.asarray(base).astype(np.int16) + rng.integers(-12, 12, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=90)


def pack(pictures, folder):
    """img2dataset asks a web server for each picture, and writes tars."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=pictures))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = folder / "urls.txt"
    urls.write_text("".join(f"http://127.0.0.1:{server.server_port}/{path.name}\n" for path in sorted(pictures.iterdir())))
    start = time.monotonic()
    subprocess.run([pathlib.Path(sys.executable).parent / "img2dataset", "--url_list", urls, "--output_folder", folder / "set", "--output_format", "webdataset",
                    "--resize_mode", "no", "--processes_count", "1", "--thread_count", "8", "--number_sample_per_shard", "500",
                    "--enable_wandb", "False"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server.shutdown()
    return time.monotonic() - start


def make_tower(clipcap, folder):
    """A bundle whose image tower takes 224x224 pixels and computes next to nothing."""
    import numpy as np

    width, patch = 32, 32
    rng = np.random.default_rng(0)
    layer = "vision_model.encoder.layers.0."
    shapes = {
        "vision_model.embeddings.class_embedding": [width],
        "vision_model.embeddings.patch_embedding.weight": [width, 3, patch, patch],
        "vision_model.embeddings.position_embedding.weight": [(SIDE // patch) ** 2 + 1, width],
        layer + "mlp.fc1.weight": [width, width], layer + "mlp.fc1.bias": [width],
        layer + "mlp.fc2.weight": [width, width], layer + "mlp.fc2.bias": [width],
        "visual_projection.weight": [width, width],
    }
    for name in ["q_proj", "k_proj", "v_proj", "out_proj"]:
        shapes |= {f"{layer}self_attn.{name}.weight": [width, width], f"{layer}self_attn.{name}.bias": [width]}
    for name in [layer + "layer_norm1", layer + "layer_norm2", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]:
        shapes |= {f"{name}.weight": [width], f"{name}.bias": [width]}
    header, data = {}, b""
    for name, shape in shapes.items():
        values = (rng.standard_normal(shape) * 0.1).astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    tower = folder / "tower"
    tower.mkdir()
    (tower / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (tower / "config.json").write_text(json.dumps({
        "model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"], "hidden_size": width, "intermediate_size": width,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_channels": 3, "image_size": SIDE, "patch_size": patch, "projection_dim": width,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    }))
    (tower / "preprocessor_config.json").write_text(json.dumps({
        "do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3, "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD, "do_convert_rgb": True,
        "image_processor_type": "CLIPImageProcessor",
    }))
    subprocess.run([clipcap, "model", "init", "--clip", tower, "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--out", folder / "model", "--quiet"], check=True)
    return folder / "model"


def used():
    """Processor seconds of this process and of those that it waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def pixels(image):
    import numpy as np
    from PIL import Image

    image = image.convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize([max(SIDE, round(edge * scale)) for edge in image.size], Image.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    image = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32) / 255
    return ((image - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)


def read_webdataset(urls):
    import webdataset
    from PIL import Image

    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    return sum(pixels(Image.open(io.BytesIO(sample["jpg"]))).shape[1] == SIDE for sample in dataset)


def their_webdataset(urls):
    import webdataset  # noqa: F401  (loaded before the clock starts, and the workers are forks)
    from PIL import Image  # noqa: F401

    with multiprocessing.Pool(WORKERS) as pool:
        start = time.monotonic()
        count = sum(pool.map(read_webdataset, [urls[worker::WORKERS] for worker in range(WORKERS)], chunksize=1))
        taken = time.monotonic() - start
        pool.close()
        pool.join()
    return count, taken


def their_clip_retrieval(urls):
    import importlib.util

    import torch
    import webdataset  # noqa: F401
    from torchvision import transforms

    torch.set_num_threads(1)
    # The reader alone: the package's front loads its index and its server.
    where = pathlib.Path(importlib.metadata.distribution("clip-retrieval").locate_file("clip_retrieval/clip_inference/reader.py"))
    spec = importlib.util.spec_from_file_location("reader", where)
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    # As open_clip's and OpenAI's own.
    preprocess = transforms.Compose([
        transforms.Resize(SIDE, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE),
        lambda image: image.convert("RGB"), transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])
    start = time.monotonic()
    batches = reader.WebdatasetReader(lambda all: all, preprocess, None, urls, 64, WORKERS, enable_text=False, enable_metadata=False)
    count = sum(len(batch["image_tensor"]) for batch in batches)
    return count, time.monotonic() - start


def read(side, folder):
    urls = sorted(glob.glob(f"{folder}/*.tar"))
    before = used()
    count, taken = {"webdataset": their_webdataset, "clip-retrieval": their_clip_retrieval}[side](urls)
    print(json.dumps({"count": count, "seconds": taken, "processor": used() - before}))


def ours(clipcap, model, folder, out):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [clipcap, "embed", "--images", *sorted(glob.glob(f"{folder}/*.tar")), "--model", model, "--device", "cpu", "--out", out, "--overwrite", "--json"]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"count": told["counts"]["embedded"], "seconds": time.monotonic() - start, "processor": processor}


def theirs(side, folder):
    told = subprocess.run([sys.executable, __file__, "read", side, folder], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return json.loads(told.splitlines()[-1])


def main(clipcap, pictures, rounds):
    clipcap = str(pathlib.Path(clipcap).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "pictures").mkdir()
        make_pictures(folder / "pictures", int(pictures))
        print(f"img2dataset packed {pictures} pictures in {pack(folder / 'pictures', folder):.1f} s", flush=True)
        model, tars = make_tower(clipcap, folder), folder / "set"
        sides = {"clipcap embed": lambda: ours(clipcap, model, tars, folder / "out")}
        for name in ["webdataset", "clip-retrieval"]:
            try:
                sides[f"{name} {importlib.metadata.version(name)}"] = functools.partial(theirs, name, tars)
            except importlib.metadata.PackageNotFoundError:
                print(f"({name} is not there)")
        rows = {name: [] for name in sides}
        for _ in range(int(rounds)):
            for name, side in sides.items():
                row = side()
                assert row["count"] == int(pictures), (name, row)
                rows[name].append(row)
        for name, all in rows.items():
            median = {what: statistics.median(row[what] for row in all) for what in ("seconds", "processor")}
            milliseconds = 1000 * median["processor"] / int(pictures)
            print(f"{name:22} {int(pictures) / median['seconds']:7.0f} pictures/s {milliseconds:6.2f} ms of a core each")
        first = rows["clipcap embed"]
        for name, all in rows.items():
            ratios = {what: statistics.median(a[what] / b[what] for a, b in zip(all, first)) for what in ("seconds", "processor")}
            print(f"{name:22} {ratios['seconds']:.2f} times our seconds, {ratios['processor']:.2f} times our processor time")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "read":
        read(sys.argv[2], sys.argv[3])
    elif len(sys.argv) == 4:
        main(*sys.argv[1:])
    else:
        sys.exit(__doc__)
