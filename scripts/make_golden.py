#!/usr/bin/env python3
"""Makes tests/golden: pictures, a mapper, and what the models of models/demo compute with them, worked out in double precision by the few
lines of numpy below, which share nothing with the program.

    scripts/make_golden.py                       writes tests/golden anew
    scripts/make_golden.py --check ../shared/golden    holds these lines against PyTorch's answers there

Needs numpy and Pillow. The tests that read tests/golden need nothing but the repository.
"""

import json
import struct
import sys
from pathlib import Path

import numpy
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/golden"
KINDS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}
PREFIX_LEN = 2
MAX_TOKENS = 24


def read_tensors(path):
    """A safetensors file in double precision."""
    bytes_ = path.read_bytes()
    length = struct.unpack("<Q", bytes_[:8])[0]
    header = json.loads(bytes_[8 : 8 + length])
    data = bytes_[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = numpy.frombuffer(data[begin:end], KINDS[entry["dtype"]]).reshape(entry["shape"])
    return {name: t.astype("f8") if t.dtype.kind == "f" else t for name, t in tensors.items()}


def write_tensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        kind = next(kind for kind, dtype in KINDS.items() if tensor.dtype == numpy.dtype(dtype))
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + tensor.nbytes]}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def layer_norm(x, weights, name, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(x):
    exp = numpy.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def attention(q, k, v, heads, mask=0.0):
    """[B, T, C] each."""
    batch, tokens, width = q.shape
    split = lambda x: x.reshape(batch, -1, heads, width // heads).transpose(0, 2, 1, 3)
    scores = split(q) @ split(k).transpose(0, 1, 3, 2) / numpy.sqrt(width // heads)
    return (softmax(scores + mask) @ split(v)).transpose(0, 2, 1, 3).reshape(batch, tokens, width)


def image_embeds(weights, config, pixel_values):
    """CLIP's image tower and projection, [B, D]."""
    vision = config["vision_config"]
    patch, heads = vision["patch_size"], vision["num_attention_heads"]
    batch, _, side, _ = pixel_values.shape
    patches = pixel_values.reshape(batch, 3, side // patch, patch, side // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(batch, (side // patch) ** 2, -1)
    kernel = weights["vision_model.embeddings.patch_embedding.weight"]
    x = patches @ kernel.reshape(len(kernel), -1).T
    first = numpy.broadcast_to(weights["vision_model.embeddings.class_embedding"], (batch, 1, x.shape[-1]))
    x = numpy.concatenate([first, x], 1) + weights["vision_model.embeddings.position_embedding.weight"]
    eps = vision.get("layer_norm_eps", 1e-5)
    x = layer_norm(x, weights, "vision_model.pre_layrnorm", eps)
    for layer in range(vision["num_hidden_layers"]):
        name = f"vision_model.encoder.layers.{layer}"
        linear = lambda x, part: x @ weights[f"{name}.{part}.weight"].T + weights[f"{name}.{part}.bias"]
        y = layer_norm(x, weights, f"{name}.layer_norm1", eps)
        q, k, v = (linear(y, f"self_attn.{part}_proj") for part in "qkv")
        x = x + linear(attention(q, k, v, heads), "self_attn.out_proj")
        y = linear(layer_norm(x, weights, f"{name}.layer_norm2", eps), "mlp.fc1")
        x = x + linear(y / (1 + numpy.exp(-1.702 * y)), "mlp.fc2")
    return layer_norm(x[:, 0], weights, "vision_model.post_layernorm", eps) @ weights["visual_projection.weight"].T


def gpt2_states(weights, config, inputs_embeds, seen=None):
    """The last block before and inside its last product; `seen` [B, T] is 0 where a position is padding."""
    batch, tokens, _ = inputs_embeds.shape
    mask = numpy.where(numpy.tri(tokens) == 1, 0.0, -1e30)[None, None]
    if seen is not None:
        mask = mask + numpy.where(seen == 1, 0.0, -1e30)[:, None, None, :]
    eps = config.get("layer_norm_epsilon", 1e-5)
    x = inputs_embeds + weights["transformer.wpe.weight"][:tokens]
    for layer in range(config["n_layer"]):
        name = f"transformer.h.{layer}"
        linear = lambda x, part: x @ weights[f"{name}.{part}.weight"] + weights[f"{name}.{part}.bias"]
        if layer > 0:
            x = x + y @ weights[f"transformer.h.{layer - 1}.mlp.c_proj.weight"] + weights[f"transformer.h.{layer - 1}.mlp.c_proj.bias"]
        q, k, v = numpy.split(linear(layer_norm(x, weights, f"{name}.ln_1", eps), "attn.c_attn"), 3, -1)
        x = x + linear(attention(q, k, v, config["n_head"], mask), "attn.c_proj")
        y = linear(layer_norm(x, weights, f"{name}.ln_2", eps), "mlp.c_fc")
        y = 0.5 * y * (1 + numpy.tanh(numpy.sqrt(2 / numpy.pi) * (y + 0.044715 * y**3)))
    return x, y


def gpt2_logits(weights, config, inputs_embeds, seen=None):
    """[B, T, V]; `seen` [B, T] is 0 where a position is padding."""
    x, y = gpt2_states(weights, config, inputs_embeds, seen)
    last = f"transformer.h.{config['n_layer'] - 1}.mlp.c_proj"
    x = x + y @ weights[f"{last}.weight"] + weights[f"{last}.bias"]
    return layer_norm(x, weights, "transformer.ln_f", config.get("layer_norm_epsilon", 1e-5)) @ weights["transformer.wte.weight"].T


def mapped(mapper, embeds, width):
    """The MLP mapper's prefix, [B, P, C]."""
    linear = lambda x, at: x @ mapper[f"clip_project.model.{at}.weight"].T + mapper[f"clip_project.model.{at}.bias"]
    return linear(numpy.tanh(linear(embeds, 0)), 2).reshape(len(embeds), -1, width)


def loss(mapper, gpt2, config, embeds, ids, lengths):
    """The mean over real caption tokens."""
    prefix = mapped(mapper, embeds, config["n_embd"])
    inputs = numpy.concatenate([prefix, gpt2["transformer.wte.weight"][ids]], 1)
    count = prefix.shape[1]
    seen = numpy.arange(inputs.shape[1])[None] < count + numpy.asarray(lengths)[:, None]
    logits = gpt2_logits(gpt2, config, inputs, seen)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - numpy.log(numpy.exp(shifted).sum(-1, keepdims=True))
    picked = [log_probabilities[b, count - 1 + t, ids[b, t]] for b in range(len(ids)) for t in range(lengths[b])]
    return -float(numpy.mean(picked))


def direction(shape):
    """A direction without pattern, the same in the tests."""
    return ((numpy.arange(numpy.prod(shape)) + 7) * 0.61803398875 % 1 * 2 - 1).reshape(shape)


def greedy(gpt2, config, prefix, end, banned):
    """Ids up to the end token, and the smallest distance between the best two logits."""
    ids, margin = [], numpy.inf
    while len(ids) < MAX_TOKENS and (not ids or ids[-1] != end):
        inputs = numpy.concatenate([prefix, gpt2["transformer.wte.weight"][ids].reshape(-1, prefix.shape[-1])])[None]
        last = gpt2_logits(gpt2, config, inputs)[0, -1]
        last[banned] = -numpy.inf
        best = numpy.argsort(last)[::-1]
        margin = min(margin, last[best[0]] - last[best[1]])
        ids.append(int(best[0]))
    return ids, float(margin)


def pictures():
    """Five pictures of different shapes, by name."""
    made = {}
    for number, (width, height) in enumerate([(96, 96), (140, 96), (96, 150), (64, 48), (301, 200)]):
        y, x = numpy.mgrid[0:height, 0:width] / max(width, height)
        waves = [numpy.sin(x * (3 + number + c) + y * (7 - number) + c * 2) * 0.5 + 0.5 for c in range(3)]
        pixels = numpy.stack(waves, -1) * 255
        inside = (x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.02 + 0.01 * number
        pixels[inside] = [(40 * number) % 255, 255 - 50 * number, (90 * number) % 255]
        made[f"{number}.png"] = Image.fromarray(pixels.astype("u1"))
    return made


def preprocessed(picture, config):
    """CLIP's: the short side to size by Pillow, the middle, and numbers."""
    size, crop = config["size"]["shortest_edge"], config["crop_size"]["height"]
    width, height = picture.size
    short = min(width, height)
    wide, high = size * width // short, size * height // short
    picture = picture.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - crop) // 2, (high - crop) // 2
    pixels = numpy.asarray(picture.crop((left, top, left + crop, top + crop))).astype("f8") * config["rescale_factor"]
    return ((pixels - config["image_mean"]) / config["image_std"]).transpose(2, 0, 1)


def make():
    demo = ROOT / "models/demo"
    read = lambda path: json.loads((demo / path).read_text(encoding="utf-8"))
    clip, gpt2 = read_tensors(demo / "clip/model.safetensors"), read_tensors(demo / "gpt2/model.safetensors")
    clip_config, gpt2_config = read("clip/config.json"), read("gpt2/config.json")
    vocabulary = (demo / "gpt2/vocab.txt").read_text(encoding="utf-8").splitlines()
    (OUT / "pictures").mkdir(parents=True, exist_ok=True)
    drawn = pictures()
    for name, picture in drawn.items():
        picture.save(OUT / "pictures" / name, optimize=True)
    pixel_values = numpy.stack([preprocessed(picture, read("clip/preprocessor_config.json")) for picture in drawn.values()])
    embeds = image_embeds(clip, clip_config, pixel_values)

    random = numpy.random.default_rng(12)
    width, size = gpt2_config["n_embd"], embeds.shape[1]
    hidden = width * PREFIX_LEN // 2
    normal = lambda *shape: random.normal(0, shape[-1] ** -0.5, shape).astype("f2")
    mapper = {
        "clip_project.model.0.weight": normal(hidden, size) * numpy.float16(3 / embeds.std()),
        "clip_project.model.0.bias": normal(hidden),
        "clip_project.model.2.weight": normal(PREFIX_LEN * width, hidden) * numpy.float16(2),
        "clip_project.model.2.bias": normal(PREFIX_LEN * width),
    }
    write_tensors(OUT / "mapper.safetensors", mapper)
    mapper = {name: tensor.astype("f8") for name, tensor in mapper.items()}

    end, unknown = vocabulary.index("[SEP]"), vocabulary.index("[UNK]")
    prefixes = mapped(mapper, embeds, width)
    captions = []
    for name, prefix in zip(drawn, prefixes):
        ids, margin = greedy(gpt2, gpt2_config, prefix, end, [unknown])
        text = "".join(vocabulary[i].removeprefix("##") for i in ids if i != end and vocabulary[i] not in ("[PAD]", "[CLS]"))
        captions.append({"image": name, "ids": ids, "text": text, "smallest_margin": margin})

    lengths = [7, 3, 11, 5, 9]
    ids = random.integers(5, len(vocabulary), (len(lengths), max(lengths)))
    ids[numpy.arange(max(lengths))[None] >= numpy.asarray(lengths)[:, None]] = 0
    for row, length in enumerate(lengths):
        ids[row, length - 1] = end
    names = [
        "clip_project.model.0.weight", "clip_project.model.2.bias", "transformer.wte.weight", "transformer.wpe.weight",
        "transformer.h.0.attn.c_attn.weight", "transformer.h.1.ln_1.bias", "transformer.h.3.mlp.c_proj.weight",
        "transformer.ln_f.weight",
    ]
    along = {}
    for name in names:
        weights = mapper if name in mapper else gpt2
        kept, step = weights[name], 1e-4 * direction(weights[name].shape)
        sides = []
        for sign in (1, -1):
            weights[name] = kept + sign * step
            sides.append(loss(mapper, gpt2, gpt2_config, embeds, ids, lengths))
        weights[name] = kept
        along[name] = (sides[0] - sides[1]) / 2e-4
    logits = gpt2_logits(gpt2, gpt2_config, gpt2["transformer.wte.weight"][ids[2:3, :10]])
    expected = {
        "captions": captions,
        "lengths": lengths,
        "loss": loss(mapper, gpt2, gpt2_config, embeds, ids, lengths),
        "loss_along": along,
    }
    (OUT / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tensors = {"pixel_values": pixel_values[:2], "image_embeds": embeds, "prefix_embeds": prefixes, "logits_last": logits[:, -1]}
    tensors = {name: tensor.astype("f4") for name, tensor in tensors.items()}
    write_tensors(OUT / "expected.safetensors", tensors | {"caption_ids": ids.astype("i8")})
    print(f"{OUT}: {sum(path.stat().st_size for path in OUT.rglob('*') if path.is_file()) >> 10} KB")
    for caption in captions:
        print(caption["text"], f"{caption['smallest_margin']:.3f}")


def check(golden):
    """The lines above against PyTorch's answers."""
    config = lambda path: json.loads((golden / path).read_text(encoding="utf-8"))
    apart = lambda found, wanted: float(numpy.abs(found - wanted).max() / numpy.abs(wanted).max())
    theirs = read_tensors(golden / "clip_hf.expected.safetensors")
    found = image_embeds(read_tensors(golden / "clip_hf/model.safetensors"), config("clip_hf/config.json"), theirs["pixel_values"])
    gpt2, gpt2_config = read_tensors(golden / "gpt2/model.safetensors"), config("gpt2/config.json")
    logits = read_tensors(golden / "gpt2.expected.safetensors")
    last = gpt2_logits(gpt2, gpt2_config, gpt2["transformer.wte.weight"][logits["input_ids"]])[:, -1]
    for name, difference in [("image_embeds", apart(found, theirs["image_embeds"])), ("logits", apart(last, logits["logits_last"]))]:
        print(f"{name}: {difference:.1e}")
        assert difference < 1e-4, name


if __name__ == "__main__":
    check(Path(sys.argv[2])) if sys.argv[1:2] == ["--check"] else make()
