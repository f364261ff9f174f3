"""PyTorch's files, written and read without PyTorch; and OpenAI's names for CLIP's tensors."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy

torch = types.ModuleType("torch")
torch._utils = types.ModuleType("torch._utils")
sys.modules |= {"torch": torch, "torch._utils": torch._utils}
STORAGES = {}
for kind, storage in (("<f4", "FloatStorage"), ("<f2", "HalfStorage"), ("<i8", "LongStorage"), ("|u1", "ByteStorage")):
    STORAGES[kind] = type(storage, (), {"__module__": "torch"})
    setattr(torch, storage, STORAGES[kind])


def _rebuild_tensor_v2():
    pass


_rebuild_tensor_v2.__module__ = "torch._utils"
torch._utils._rebuild_tensor_v2 = _rebuild_tensor_v2


class Storage:
    def __init__(self, values, key):
        self.values, self.key = numpy.ascontiguousarray(values), key


class Tensor:
    def __init__(self, values, key):
        self.storage, self.shape = Storage(values, key), values.shape

    def __reduce__(self):
        strides = tuple(int(numpy.prod(self.shape[at + 1 :])) for at in range(len(self.shape)))
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, strides, False, collections.OrderedDict())


def pickled(top, more=()):
    """The bytes of an object that holds tensors, and its storages by key."""
    storages, out = {}, io.BytesIO()

    class Torch(pickle._Pickler):
        def persistent_id(self, it):
            if not isinstance(it, Storage):
                return None
            storages[it.key] = it.values
            return ("storage", STORAGES[it.values.dtype.str], it.key, "cpu", it.values.size, *more)

    Torch(out, 2).dump(top)
    return out.getvalue(), storages


def tensors_of(weights):
    return collections.OrderedDict((name, Tensor(values, str(at))) for at, (name, values) in enumerate(weights.items()))


def write_zip(path, bytes_, storages, more=()):
    with zipfile.ZipFile(path, "w") as archive:
        put = lambda name, data: archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), data)
        put("data.pkl", bytes_)
        put("byteorder", b"little")
        for key, values in storages.items():
            put(f"data/{key}", values.tobytes())
        for name, data in more:
            put(name, data)
        put("version", b"3\n")


def save_zip(path, weights):
    """What torch.save writes."""
    write_zip(path, *pickled(tensors_of(weights)))


def save_script(path, weights):
    """What torch.jit.save writes, as far as anybody reads it."""
    module = types.ModuleType("__torch__")
    sys.modules["__torch__"] = module
    module.Module = type("Module", (), {"__module__": "__torch__"})
    root = module.Module()
    for name, tensor in tensors_of(weights).items():
        *parts, last = name.split(".")
        place = root
        for part in parts:
            place = place.__dict__.setdefault(part, module.Module())
        setattr(place, last, tensor)
    write_zip(path, *pickled(root), [("code/__torch__.py", b""), ("constants.pkl", pickle.dumps((), 2))])


def save_legacy(path, weights):
    """What torch.save wrote before 1.6."""
    bytes_, storages = pickled(tensors_of(weights), (None,))
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as out:
        for thing in (0x1950A86A20F9469CFC6C, 1001, facts):
            out.write(pickle.dumps(thing, 2))
        out.write(bytes_ + pickle.dumps(list(storages), 2))
        for values in storages.values():
            out.write(struct.pack("<q", values.size) + values.tobytes())


def read_archive(path):
    """The tensors of a zip file of PyTorch's in double precision."""
    archive = zipfile.ZipFile(path)
    kinds = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "BoolStorage": "|u1", "ByteStorage": "|u1"}

    class Module:
        pass

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if name == "OrderedDict":
                return collections.OrderedDict
            rebuild = lambda values, offset, shape, *_: values[offset : offset + int(numpy.prod(shape))].reshape(shape).astype("f8")
            return {"_rebuild_tensor_v2": rebuild}.get(name) or kinds.get(name) or type(name, (Module,), {})

        def persistent_load(self, saved):
            return numpy.frombuffer(archive.read(f"{path.stem}/data/{saved[2]}"), saved[1])

    def walk(value, name, found):
        if isinstance(value, numpy.ndarray):
            found[name] = value
        elif isinstance(value, (Module, dict)):
            for key, inner in (value if isinstance(value, dict) else vars(value)).items():
                walk(inner, f"{name}.{key}" if name else key, found)
        return found

    return walk(Reader(io.BytesIO(archive.read(f"{path.stem}/data.pkl"))).load(), "", {})


def openai_names(weights, layers, text_layers):
    """CLIP's tensors as OpenAI calls them."""
    named = {"logit_scale": weights["logit_scale"]}
    for ours, theirs, count in (("vision_model", "visual.transformer", layers), ("text_model", "transformer", text_layers)):
        for layer in range(count):
            old, new = f"{ours}.encoder.layers.{layer}", f"{theirs}.resblocks.{layer}"
            for part in ("weight", "bias"):
                named[f"{new}.attn.in_proj_{part}"] = numpy.concatenate([weights[f"{old}.self_attn.{x}_proj.{part}"] for x in "qkv"])
                pairs = (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                         ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))
                named |= {f"{new}.{a}.{part}": weights[f"{old}.{b}.{part}"] for a, b in pairs}
    for ours, theirs in (("vision_model.pre_layrnorm", "visual.ln_pre"), ("vision_model.post_layernorm", "visual.ln_post"),
                         ("text_model.final_layer_norm", "ln_final")):
        named |= {f"{theirs}.{part}": weights[f"{ours}.{part}"] for part in ("weight", "bias")}
    return named | {
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T,
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
    }


def in_halves(name, values):
    """As OpenAI's archives have them: matrices and biases of products as halves."""
    whole = ("ln_", "bn", "downsample.1", "positional_embedding", "class_embedding", "token_embedding", "logit_scale")
    return values if values.dtype != numpy.float32 or any(part in name for part in whole) else values.astype("f2")
