#!/usr/bin/env python3
"""Makes tests/golden/models: small models with random weights in the layouts that published ones have, and what they compute, worked out in
double precision by numpy. Those called `trained` know a caption for each of the pictures of scripts/make_golden.py.

    scripts/make_golden_models.py                              writes tests/golden/models anew
    scripts/make_golden_models.py --check ../shared/golden_models    holds these lines against PyTorch's answers there

Needs numpy and Pillow, and some minutes: gradients are differences of losses, parameter by parameter. Weights are multiples of 1/256, so that halves hold them exactly and every layout of a model has the same ones.
"""

import json
import sys
from pathlib import Path

import numpy

import make_golden
from golden.decoders import Gpt2, Qwen2, bert_mapped, greedy, taught, transformer_mapped
from golden.pairs import Pairs
from golden.torch_files import in_halves, openai_names, read_archive, save_legacy, save_script, save_zip
from golden.towers import chinese_text_embeds, clip_text_embeds, resnet_embeds, siglip_embeds
from golden.weights import Weights
from make_golden import ROOT, image_embeds, mapped, read_tensors, write_tensors

OUT = ROOT / "tests/golden/models"
CHINESE = ["红色的圆在蓝色的方块上面", "绿色的三角形在左边", "黄色的星在红色的圆下面", "蓝色的方块在右边", "两个绿色的圆在中间"]
ENGLISH = [
    "A red circle stands above a blue square.",
    "Two green triangles lie to the left of a star.",
    "A yellow star, and a small circle below it.",
    "The blue square is large; the red one isn't.",
    "Three circles are in a row near the middle.",
]

SPELLINGS = [
    *ENGLISH,
    "Don't stop at  two   spaces!",
    "naïve café, 100% of 3.5 kg",
    "snake_case and __init__",
    "一只狗在草地上跑。",
    "tab\there, line\nthere",
    "🙂 it's we'll they've I'm you'd",
]


def doubles(weights):
    return {name: values.astype("f8") for name, values in weights.items()}


def folder(name, config, preprocessor=None):
    path = OUT / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if preprocessor:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n", encoding="utf-8")
    return path


def vision(size, width=32, patch=16, **more):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    return sizes | {"image_size": size, "patch_size": patch, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5} | more


def preprocessor(size, squashed=False, half=False, **more):
    """CLIP's, or Chinese-CLIP's and SigLIP's, which squash."""
    mean, std = demo_mean_and_std() if not half else ([0.5] * 3, [0.5] * 3)
    made = {"do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": mean, "image_std": std, "do_convert_rgb": True}
    square = {"height": size, "width": size}
    return made | ({"size": square} if squashed else {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": square}) | more


def demo_mean_and_std():
    read = json.loads((ROOT / "models/demo/clip/preprocessor_config.json").read_text(encoding="utf-8"))
    return read["image_mean"], read["image_std"]


def pixels_of(pictures, settings):
    if "crop_size" in settings:
        return numpy.stack([make_golden.preprocessed(picture, settings) for picture in pictures])
    size = (settings["size"]["width"], settings["size"]["height"])
    rows = []
    for picture in pictures:
        picture = picture.convert("RGB").resize(size, make_golden.Image.Resampling.BICUBIC)
        pixels = numpy.asarray(picture).astype("f8") * settings["rescale_factor"]
        rows.append(((pixels - settings["image_mean"]) / settings["image_std"]).transpose(2, 0, 1))
    return numpy.stack(rows)


def write_model(path, tensors):
    """In the order and the spelling of the program, which takes such a file as it is."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in sorted(tensors.items()):
        assert tensor.dtype == numpy.float32, name
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + tensor.nbytes]}
        data += tensor.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def expect(name, **tensors):
    kept = {key: values.astype("i8" if values.dtype.kind == "i" else "f4") for key, values in tensors.items()}
    write_tensors(OUT / f"{name}.expected.safetensors", kept)


def expect_training(name, trained, frozen, prefix_of, config, embeds, captions, scope):
    """Losses of captions behind their prefixes, and the gradient of the first by differences: of `trained`, whose GPT2, where it is among
    them, is called `scope`."""
    tokens = max(len(ids) for ids in captions) + 4
    lengths = numpy.array([len(ids) for ids in captions])
    ids = numpy.array([[*caption, *[0] * (tokens - len(caption))] for caption in captions])
    weights = doubles(trained | frozen)
    count = prefix_of(weights, embeds[:1]).shape[1]
    real = numpy.arange(tokens)[None] < lengths[:, None]
    seen = numpy.concatenate([numpy.ones((len(ids), count), bool), real], 1)

    def losses():
        inputs = numpy.concatenate([prefix_of(weights, embeds), weights["transformer.wte.weight"][ids]], 1)
        logits = make_golden.gpt2_logits(weights, config, inputs, seen)[:, count - 1 : -1]
        shifted = logits - logits.max(-1, keepdims=True)
        picked = numpy.take_along_axis(shifted, ids[..., None], -1)[..., 0] - numpy.log(numpy.exp(shifted).sum(-1))
        return -picked[real].mean(), -picked.mean()

    gradients = {}
    for key in trained:
        values = weights[key].reshape(-1)
        weights[key] = values.reshape(weights[key].shape)
        found = numpy.zeros(values.shape)
        for at, value in enumerate(values):
            sides = []
            for step in (1e-5, -1e-5):
                values[at] = value + step
                sides.append(losses()[0])
            values[at] = value
            found[at] = (sides[0] - sides[1]) / 2e-5
        gradients[f"grad.{scope if key.startswith('transformer.') else ''}{key}"] = found.reshape(weights[key].shape)
    captions_only, with_padding = (numpy.array([loss]) for loss in losses())
    expect(name, clip_embeds=embeds, caption_ids=ids, attention_mask=seen.astype("i8"), prefix_embeds=prefix_of(weights, embeds),
           loss_captions_only=captions_only, loss_with_padding=with_padding, **gradients)


def unit(rows):
    return rows / numpy.linalg.norm(rows, axis=-1, keepdims=True)


def wordpiece(vocabulary, text):
    """Every letter is a word; the texts above have no others."""
    known = {piece: at for at, piece in enumerate(vocabulary)}
    return [known["[CLS]"], *(known[letter] for letter in text), known["[SEP]"]]


def make_clips(pictures):
    vocabulary = (ROOT / "models/demo/gpt2/vocab.txt").read_text(encoding="utf-8")
    # CLIP with its pairs, in Hugging Face's layout, as a .bin too.
    pairs = Pairs(ENGLISH, True, 120, ["<|startoftext|>", "<|endoftext|>"])
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(pairs.pieces),
            "max_position_embeddings": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            "bos_token_id": len(pairs.pieces) - 2, "eos_token_id": len(pairs.pieces) - 1, "pad_token_id": len(pairs.pieces) - 1}
    config = {"model_type": "clip", "projection_dim": 24, "vision_config": vision(64), "text_config": text}
    settings = preprocessor(64)
    made = Weights(1)
    made.clip_image(config)
    made.clip_text(config)
    path = folder("clip_text", config, settings)
    pairs.write(path)
    write_model(path / "model.safetensors", made.tensors)
    weights = doubles(made.tensors)
    captions = numpy.stack([clip_text_embeds(weights, config, pairs.encode(text)) for text in ENGLISH])
    found = {"clip_text": image_embeds(weights, config, pixels_of(pictures, settings))}
    expect("clip_text", image_embeds=found["clip_text"], text_embeds_normalized=unit(captions))

    # Chinese-CLIP.
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "layer_norm_eps": 1e-12,
            "vocab_size": len(vocabulary.splitlines()), "max_position_embeddings": 48, "type_vocab_size": 2, "hidden_act": "gelu",
            "pad_token_id": 0}
    config = {"model_type": "chinese_clip", "projection_dim": 24, "vision_config": vision(64), "text_config": text}
    settings = preprocessor(64, squashed=True)
    made = Weights(2)
    made.clip_image(config)
    made.bert("text_model", text)
    made.normal("text_projection.weight", 24, 32)
    made.normal("logit_scale", scale=0.0, mean=2.6592)
    path = folder("chinese_clip", config, settings)
    (path / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    write_model(path / "model.safetensors", made.tensors)
    weights = doubles(made.tensors)
    captions = [chinese_text_embeds(weights, config, wordpiece(vocabulary.splitlines(), text)) for text in CHINESE]
    embeds = image_embeds(weights, config, pixels_of(pictures, settings))
    expect("chinese_clip", image_embeds=embeds, text_embeds_normalized=unit(numpy.stack(captions)))

    # SigLIP's image tower.
    tower = vision(64, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    config = {"model_type": "siglip", "vision_config": tower}
    settings = preprocessor(64, squashed=True, half=True, image_processor_type="SiglipImageProcessor")
    made = Weights(3)
    made.clip_image({"vision_config": tower, "projection_dim": 1})
    scope, width = "vision_model", tower["hidden_size"]
    for name in ("embeddings.class_embedding", "pre_layrnorm.weight", "pre_layrnorm.bias"):
        del made.tensors[f"{scope}.{name}"]
    del made.tensors["visual_projection.weight"]
    made.normal(f"{scope}.embeddings.patch_embedding.bias", width, scale=0.1)
    made.normal(f"{scope}.embeddings.position_embedding.weight", 16, width, scale=0.3)
    made.normal(f"{scope}.head.probe", 1, 1, width, scale=1.0)
    made.normal(f"{scope}.head.attention.in_proj_weight", 3 * width, width)
    made.normal(f"{scope}.head.attention.in_proj_bias", 3 * width, scale=0.1)
    made.linear(f"{scope}.head.attention.out_proj", width, width)
    made.norm(f"{scope}.head.layernorm", width)
    made.linear(f"{scope}.head.mlp.fc1", 2 * width, width)
    made.linear(f"{scope}.head.mlp.fc2", width, 2 * width)
    write_model(folder("siglip", config, settings) / "model.safetensors", made.tensors)
    expect("siglip", image_embeds=siglip_embeds(doubles(made.tensors), config, pixels_of(pictures, settings)))

    # OpenAI's ResNet and vision transformer as TorchScript archives, and an open_clip. An archive does not say how pictures are normalized:
    # as OpenAI's are.
    settings = preprocessor(64, image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 40,
             "max_position_embeddings": 16}
    config = {"projection_dim": 24, "vision_config": vision(64, 64, num_attention_heads=1), "text_config": small}
    made = Weights(4)
    made.resnet(2, (1, 2, 1, 1), 64, 24)
    words_ = Weights(5)
    words_.clip_image(config)
    words_.clip_text(config)
    named = openai_names(words_.tensors, 2, 1)
    both = {name: values for name, values in named.items() if not name.startswith("visual.")} | made.tensors
    save_script(OUT / "openai_resnet.pt", {name: in_halves(name, values) for name, values in both.items()})
    expect("openai_resnet", image_embeds=resnet_embeds(doubles(made.tensors), pixels_of(pictures, settings)))
    save_script(OUT / "openai_vit.pt", {name: in_halves(name, values) for name, values in named.items()})
    embeds = image_embeds(doubles(words_.tensors), config, pixels_of(pictures, settings))
    expect("openai_vit", image_embeds=embeds)
    found["clip_hf"] = embeds
    # The same CLIP in Hugging Face's layout, twice.
    path = folder("clip_hf", {"model_type": "clip"} | config, settings)
    write_model(path / "model.safetensors", words_.tensors)
    save_zip(path / "pytorch_model.bin", words_.tensors)

    tower = vision(64, hidden_act="gelu")
    config = {"projection_dim": 24, "vision_config": tower, "text_config": small | {"hidden_size": 32, "intermediate_size": 128}}
    made = Weights(6)
    made.clip_image(config)
    made.clip_text(config)
    path = OUT / "open_clip"
    path.mkdir(exist_ok=True)
    write_model(path / "open_clip_model.safetensors", openai_names(made.tensors, 2, 1))
    layout = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 8, "patch_size": 16, "mlp_ratio": 2.0},
            "text_cfg": {"context_length": 16, "vocab_size": 40, "width": 32, "heads": 1, "layers": 1},
        },
        "preprocess_cfg": {"mean": settings["image_mean"], "std": settings["image_std"]},
    }
    (path / "open_clip_config.json").write_text(json.dumps(layout, indent=1) + "\n", encoding="utf-8")
    expect("open_clip", image_embeds=image_embeds(doubles(made.tensors), config, pixels_of(pictures, settings)))
    return found


def spread(mapper, name, embeds):
    """What a mapper multiplies first, for embeddings around 0: the pictures' own are much alike."""
    mapper[f"{name}.weight"] = (mapper[f"{name}.weight"] / embeds.std(0).mean()).astype("f2").astype("f4")
    mapper[f"{name}.bias"] = (-mapper[f"{name}.weight"] @ embeds.mean(0)).astype("f4")


def said(decoder, prefixes, pieces_of, **how):
    """Each prefix's greedy ids and text."""
    found = []
    for prefix in prefixes:
        ids, margin = greedy(decoder, prefix, **how)
        found.append({"ids": ids, "text": pieces_of(ids), "smallest_margin": margin})
    return found


def make_chinese(pictures, clip_hf):
    """GPT2 with a vocabulary of letters, and ClipCap's checkpoints around it; answers from pictures through clip_hf."""
    text = (ROOT / "models/demo/gpt2/vocab.txt").read_text(encoding="utf-8")
    vocabulary = text.splitlines()
    config = {"model_type": "gpt2", "vocab_size": len(vocabulary), "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
    made = Weights(7)
    made.gpt2(config)
    head = lambda weights: {"lm_head.weight": weights["transformer.wte.weight"]}
    # What older releases kept among the parameters.
    buffers = {}
    for layer in range(config["n_layer"]):
        seen = numpy.tril(numpy.ones((1, 1, 96, 96), "u1"))
        buffers |= {f"transformer.h.{layer}.attn.bias": seen, f"transformer.h.{layer}.attn.masked_bias": numpy.array(-1e4, "f4")}
    for name in ("gpt2", "gpt2_legacy"):
        (folder(name, config) / "vocab.txt").write_text(text, encoding="utf-8")
    write_model(OUT / "gpt2/model.safetensors", made.tensors)
    save_zip(OUT / "gpt2/pytorch_model.bin", made.tensors | head(made.tensors) | buffers)
    save_legacy(OUT / "gpt2_legacy/pytorch_model.bin", made.tensors | head(made.tensors) | buffers)
    bert = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 48, "type_vocab_size": 2, "vocab_size": 60, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    folder("bert", bert)
    embeds = clip_hf
    wanted = [wordpiece(vocabulary, caption)[1:] for caption in CHINESE]
    specials = [vocabulary.index(piece) for piece in ("[PAD]", "[UNK]", "[CLS]")]
    end = vocabulary.index("[SEP]")
    answers = {}
    for kind in ("mlp", "bert"):
        own, mapper = Weights(8), Weights(9)
        own.gpt2(config)
        if kind == "mlp":
            mapper.linear("clip_project.model.0", 64, 24)
            mapper.linear("clip_project.model.2", 4 * 32, 64)
            spread(mapper.tensors, "clip_project.model.0", embeds)
            prefixes = mapped(doubles(mapper.tensors), embeds, 32)
        else:
            mapper.normal("clip_project.prefix_const", 4, 32, scale=0.5)
            mapper.bert("clip_project.bert", bert)
            mapper.linear("clip_project.bert.pooler.dense", 32, 32)
            mapper.linear("clip_project.linear", 4 * 32, 24)
            spread(mapper.tensors, "clip_project.linear", embeds)
            prefixes = bert_mapped(doubles(mapper.tensors), bert, embeds, 32)
        checkpoint = lambda: {f"gpt2.{name}": values for name, values in (own.tensors | head(own.tensors)).items()} | mapper.tensors
        save_zip(OUT / f"clipcap_{kind}.pt", checkpoint())
        # Six captions for five pictures; behind the BERT the decoder is frozen.
        batch = wanted + [wordpiece(vocabulary, "两个圆在左边")[1:]]
        six = numpy.concatenate([embeds, embeds[:1]])
        if kind == "mlp":
            prefix_of = lambda weights, embeds: mapped(weights, embeds, 32)
            expect_training("clipcap_mlp", mapper.tensors | own.tensors, {}, prefix_of, config, six, batch, "gpt2.")
        else:
            left_out = ("pooler", "word_embeddings")
            used = {name: values for name, values in mapper.tensors.items() if not any(part in name for part in left_out)}
            prefix_of = lambda weights, embeds: bert_mapped(weights, bert, embeds, 32)
            expect_training("clipcap_bert", used, own.tensors, prefix_of, config, six, batch, "gpt2.")
        own.tensors |= taught(Gpt2(doubles(own.tensors), config), prefixes, wanted)
        save_zip(OUT / f"clipcap_{kind}_trained.pt", checkpoint())
        text_of = lambda ids: "".join(vocabulary[at] for at in ids if at not in (end, *specials))
        found = said(Gpt2(doubles(own.tensors), config), prefixes, text_of, ends=[end], banned=[specials[1]])
        answers[f"greedy_{kind}_trained_photos"] = dict(zip(pictures, found))
    return answers


def make_english(pictures, embeds):
    """The original's checkpoints around a GPT2 with pairs, and a Qwen2 with a mapper alone; answers from clip_text's embeddings."""
    pairs = Pairs(ENGLISH, False, 110, ["<|endoftext|>"])
    count, width = len(pairs.pieces), 32
    end = count - 1
    config = {"model_type": "gpt2", "vocab_size": count, "n_positions": 96, "n_embd": width, "n_layer": 2, "n_head": 4,
              "bos_token_id": end, "eos_token_id": end}
    made = Weights(10)
    made.gpt2(config)
    path = folder("gpt2_en", config)
    pairs.write(path)
    write_model(path / "model.safetensors", made.tensors)
    wanted = [pairs.encode(text) for text in ENGLISH]
    answers = {"stop_token": pairs.ids["."], "bpe": [{"text": text, "ids": pairs.encode(text)} for text in SPELLINGS]}
    for kind in ("transformer", "mlp"):
        own, mapper = Weights(11), Weights(12)
        own.gpt2(config)
        if kind == "mlp":
            mapper.linear("clip_project.model.0", 120, 24)
            mapper.linear("clip_project.model.2", 5 * width, 120)
            spread(mapper.tensors, "clip_project.model.0", embeds)
            prefixes = mapped(doubles(mapper.tensors), embeds, width)
        else:
            mapper.normal("clip_project.prefix_const", 5, width, scale=0.5)
            mapper.linear("clip_project.linear", 4 * width, 24)
            spread(mapper.tensors, "clip_project.linear", embeds)
            for layer in range(2):
                name = f"clip_project.transformer.layers.{layer}"
                mapper.norm(f"{name}.norm1", width)
                mapper.normal(f"{name}.attn.to_queries.weight", width, width)
                mapper.normal(f"{name}.attn.to_keys_values.weight", 2 * width, width)
                mapper.linear(f"{name}.attn.project", width, width)
                mapper.norm(f"{name}.norm2", width)
                mapper.linear(f"{name}.mlp.fc1", 2 * width, width)
                mapper.linear(f"{name}.mlp.fc2", width, 2 * width)
            prefixes = transformer_mapped(doubles(mapper.tensors), embeds, width, 2)
        own.tensors |= taught(Gpt2(doubles(own.tensors), config), prefixes, wanted)
        weights = own.tensors | {"lm_head.weight": own.tensors["transformer.wte.weight"]}
        save_zip(OUT / f"original_{kind}_trained.pt", {f"gpt.{name}": values for name, values in weights.items()} | mapper.tensors)
        expect(f"original_{kind}", clip_embeds=embeds)
        decoder = Gpt2(doubles(own.tensors), config)
        answers[f"greedy_original_{kind}"] = said(decoder, prefixes, pairs.decode, ends=[pairs.ids["."]])
    # Its mapper is the MLP above.
    config = {"model_type": "qwen2", "vocab_size": count + 3, "hidden_size": width, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
              "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": end, "eos_token_id": end,
              "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "use_sliding_window": False, "sliding_window": None}
    own = Weights(13)
    own.qwen2(config)
    own.tensors |= taught(Qwen2(doubles(own.tensors), config), prefixes, [[*ids, end] for ids in wanted])
    path = folder("qwen2", config)
    pairs.write(path)
    (path / "tokenizer.json").write_text(json.dumps(pairs.tokenizer_json(), ensure_ascii=False), encoding="utf-8")
    write_model(path / "model.safetensors", own.tensors)
    save_zip(OUT / "qwen2_mapper.pt", mapper.tensors)
    decoder = Qwen2(doubles(own.tensors), config)
    text_of = lambda ids: pairs.decode([at for at in ids if at != end])
    answers["greedy_qwen2"] = said(decoder, prefixes, text_of, ends=[end])
    begin = pairs.encode(" ".join(ENGLISH[0].split()[:4]))
    ids, _ = greedy(decoder, prefixes[0], [end], begin=begin)
    answers["behind_a_prompt"] = {"prompt": " ".join(ENGLISH[0].split()[:4]), "text": text_of(ids).strip()}
    return answers


def make():
    pictures = make_golden.pictures()
    OUT.mkdir(parents=True, exist_ok=True)
    expected = {"photos": list(pictures), "chinese": CHINESE, "english": ENGLISH}
    embeds = make_clips(list(pictures.values()))
    expected |= make_chinese(pictures, embeds["clip_hf"]) | make_english(pictures, embeds["clip_text"])
    (OUT / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{OUT}: {sum(path.stat().st_size for path in OUT.rglob('*') if path.is_file()) >> 10} KB")
    for key in [key for key in expected if key.startswith("greedy")]:
        answers = expected[key].values() if isinstance(expected[key], dict) else expected[key]
        for answer in answers:
            print(key, answer["text"], f"{answer['smallest_margin']:.2f}")


def check(golden):
    """The lines above against PyTorch's answers."""
    read = lambda path: json.loads((golden / path).read_text(encoding="utf-8"))
    apart = lambda found, wanted: float(numpy.abs(found - wanted).max() / numpy.abs(wanted).max())
    expected = read("expected.json")

    def compare(name, found, wanted):
        print(f"{name}: {apart(found, wanted):.1e}")
        assert apart(found, wanted) < 1e-4, name

    for name, embeds in (("clip_text", clip_text_embeds), ("chinese_clip", chinese_text_embeds)):
        theirs, weights = read_tensors(golden / f"{name}.expected.safetensors"), read_tensors(golden / f"{name}/model.safetensors")
        config = read(f"{name}/config.json")
        compare(f"{name}, pictures", image_embeds(weights, config, theirs["pixel_values"]), theirs["image_embeds"])
        end = config["text_config"].get("eos_token_id") or 0
        rows = []
        for ids in expected[f"{name}_ids"]:
            length = ids.index(end, 1) + (1 if end else 0) if end in ids[1:] else len(ids)
            rows.append(embeds(weights, config, ids[:length]))
        compare(f"{name}, captions", unit(numpy.stack(rows)), theirs["text_embeds_normalized"])
    theirs = read_tensors(golden / "siglip.expected.safetensors")
    found = siglip_embeds(read_tensors(golden / "siglip/model.safetensors"), read("siglip/config.json"), theirs["pixel_values"])
    compare("siglip", found, theirs["image_embeds"])
    theirs = read_tensors(golden / "openai_resnet.expected.safetensors")
    compare("openai_resnet", resnet_embeds(read_archive(golden / "openai_resnet.pt"), theirs["pixel_values"]), theirs["image_embeds"])
    theirs = read_tensors(golden / "original_mlp.expected.safetensors")
    mapper = read_archive(golden / "qwen2_mapper.pt")
    decoder = Qwen2(read_tensors(golden / "qwen2/model.safetensors"), read("qwen2/config.json"))
    for prefix, answer in zip(mapped(mapper, theirs["clip_embeds"], 64), expected["greedy_qwen2"]):
        ids, _ = greedy(decoder, prefix, [decoder.config["eos_token_id"]])
        assert ids[: len(answer["ids"])] == answer["ids"], answer
    theirs = read_tensors(golden / "original_transformer.expected.safetensors")
    mapper = read_archive(golden / "original_transformer.pt")
    compare("the original's transformer", transformer_mapped(mapper, theirs["clip_embeds"], 64, 2), theirs["prefix_embeds"])
    golden = golden.parent / "golden"
    theirs, config = read_tensors(golden / "clipcap_bert.expected.safetensors"), json.loads((golden / "bert/config.json").read_text())
    found = bert_mapped(read_archive(golden / "clipcap_bert.pt"), config, theirs["clip_embeds"], config["hidden_size"])
    compare("the mapper with a BERT", found, theirs["prefix_embeds"])



if __name__ == "__main__":
    check(Path(sys.argv[2])) if sys.argv[1:2] == ["--check"] else make()
