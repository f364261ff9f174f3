"""Full-size random models of every family beside PyTorch, in one run: scripts/measure.sh models.

    PYTHON scripts/measure_models.py CLIPCAP [NAME...]       (a venv by hand with torch, transformers, pillow and numpy)

For each model: makes it with random weights from its published configuration, then measures ours and PyTorch's in turn, each in a process of its
own: seconds from the weights on disk to the first result (without Python's imports), images/s of the image encoder (batch 8) or captions/s
(16 captions of 17 tokens, greedy, with a cache), processor milliseconds of one, and peak memory. On a shared machine only the ratios say
something, and those of processor time most. What a model needs on disk is removed before the next. REPEATS (2): the best of so many counts.
"""
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

OUT = pathlib.Path("out/measure/models")
THREADS = 2
IMAGES = 8
REPEATS = int(os.environ.get("REPEATS", 2))
TOKENS = 17

llama = dict(hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=True, initializer_range=0.02)
CONFIGS = {
    "CLIP ViT-L/14": dict(model_type="clip", projection_dim=768, text_config=dict(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768), vision_config=dict(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24, patch_size=14, image_size=224, projection_dim=768)),
    "CLIP RN50x4": dict(model_type="resnet", layers=[4, 6, 10, 6], width=80, heads=40, image_size=288, embed_dim=640),
    "Chinese-CLIP B/16": dict(model_type="chinese_clip", projection_dim=512, text_config=dict(vocab_size=21128), vision_config=dict(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, patch_size=16, image_size=224, projection_dim=512)),
    "SigLIP B/16": dict(model_type="siglip", vision_config=dict(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, patch_size=16, image_size=224)),
    "GPT2-Large": dict(model_type="gpt2", n_embd=1280, n_layer=36, n_head=20, vocab_size=50257),
    "Qwen2.5-0.5B": dict(model_type="qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                         num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768, rope_theta=1e6, **llama),
    "Qwen3-0.6B": dict(model_type="qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                       num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rope_theta=1e6, **llama),
}
IS_DECODER = {"gpt2", "qwen2", "qwen3"}


def resnet(settings):
    """OpenAI's ModifiedResNet, written down once more."""
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Bottleneck(nn.Module):
        def __init__(self, inputs, planes, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
            self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.conv3, self.bn3 = nn.Conv2d(planes, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
            self.downsample = None
            if stride > 1 or inputs != planes * 4:
                self.downsample = nn.Sequential()
                self.downsample.add_module("-1", nn.AvgPool2d(stride))
                self.downsample.add_module("0", nn.Conv2d(inputs, planes * 4, 1, bias=False))
                self.downsample.add_module("1", nn.BatchNorm2d(planes * 4))

        def forward(self, x):
            out = F.relu(self.bn1(self.conv1(x)))
            out = self.avgpool(F.relu(self.bn2(self.conv2(out))))
            out = self.bn3(self.conv3(out))
            return F.relu(out + (self.downsample(x) if self.downsample is not None else x))

    class Pool(nn.Module):
        def __init__(self, side, width, heads, out):
            super().__init__()
            self.positional_embedding = nn.Parameter(torch.randn(side * side + 1, width) / width**0.5)
            self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
            self.c_proj, self.heads = nn.Linear(width, out), heads

        def forward(self, x):
            x = x.flatten(2).permute(2, 0, 1)
            x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
            x, _ = F.multi_head_attention_forward(
                x[:1], x, x, x.shape[-1], self.heads, None, torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]), None, None,
                False, 0, self.c_proj.weight, self.c_proj.bias, use_separate_proj_weight=True, q_proj_weight=self.q_proj.weight,
                k_proj_weight=self.k_proj.weight, v_proj_weight=self.v_proj.weight, training=False, need_weights=False)
            return x[0]

    class ResNet(nn.Module):
        def __init__(self, layers, width, heads, image_size, embed_dim, **_):
            super().__init__()
            half = width // 2
            for number, (inputs, outputs, stride) in enumerate([(3, half, 2), (half, half, 1), (half, width, 1)], 1):
                self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False))
                self.add_module(f"bn{number}", nn.BatchNorm2d(outputs))
            inputs = width
            for number, (count, planes) in enumerate(zip(layers, [width, width * 2, width * 4, width * 8]), 1):
                blocks = []
                for block in range(count):
                    blocks.append(Bottleneck(inputs, planes, 2 if block == 0 and number > 1 else 1))
                    inputs = planes * 4
                self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self.attnpool = Pool(image_size // 32, width * 32, heads, embed_dim)

        def forward(self, x):
            for number in (1, 2, 3):
                x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
            x = F.avg_pool2d(x, 2)
            for number in (1, 2, 3, 4):
                x = getattr(self, f"layer{number}")(x)
            return self.attnpool(x)

    return ResNet(**settings).eval()


def torch_model(settings, folder=None):
    """From its configuration, or from a folder."""
    import torch
    import transformers
    kind = settings["model_type"]
    if kind == "resnet":
        model = resnet(settings)
        if folder:
            state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
            model.load_state_dict({name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")})
        return model
    known = {"clip": "CLIPModel", "chinese_clip": "ChineseCLIPModel", "siglip": "SiglipModel"}
    cls = getattr(transformers, known.get(kind, "AutoModelForCausalLM"))
    if folder:
        return cls.from_pretrained(folder, dtype=torch.float32).eval()
    config = transformers.AutoConfig.for_model(**settings)
    return cls.from_config(config) if kind in IS_DECODER else cls(config)


def make(settings, folder):
    import torch
    torch.manual_seed(0)
    model = torch_model(settings)
    folder.mkdir(parents=True)
    if settings["model_type"] == "resnet":
        # A folder as open_clip has it, with a text tower that nobody runs.
        state = {f"visual.{name}": value for name, value in model.state_dict().items()}
        torch.save(state, folder / "open_clip_pytorch_model.bin")
        config = {"model_cfg": {
            "embed_dim": settings["embed_dim"],
            "vision_cfg": {"layers": settings["layers"], "width": settings["width"], "image_size": settings["image_size"]},
            "text_cfg": {"width": 640, "heads": 10, "layers": 12, "context_length": 77, "vocab_size": 49408}}, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    else:
        model.save_pretrained(folder)


def measure_torch(name, folder):
    """Prints one line of JSON: run in a process of its own."""
    import torch
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    settings = CONFIGS[name]
    if settings["model_type"] in IS_DECODER:
        import transformers  # noqa: F401
        start = time.perf_counter()
        model = torch_model(settings, folder)
        prefix = torch.randn(16, 10, model.config.hidden_size)
        flags = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        model.generate(inputs_embeds=prefix[:1], **flags)
        first = time.perf_counter() - start
        work, count = (lambda: model.generate(inputs_embeds=prefix, **flags)), 16
    else:
        start = time.perf_counter()
        model = torch_model(settings, folder)
        side = settings["image_size"] if settings["model_type"] == "resnet" else settings["vision_config"]["image_size"]
        pixels = torch.randn(IMAGES, 3, side, side)
        run = model if settings["model_type"] == "resnet" else lambda x: model.get_image_features(pixel_values=x)
        run(pixels[:1])
        first = time.perf_counter() - start
        work, count = (lambda: run(pixels)), IMAGES
    work()
    seconds, cpu = time.perf_counter(), time.process_time()
    for _ in range(2):
        work()
    seconds, cpu = time.perf_counter() - seconds, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"first": first, "rate": 2 * count / seconds, "cpu_ms": 1000 * cpu / (2 * count), "peak_mib": peak}))


def timed(words):
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{words}: {text}")
    return json.loads(text), time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure_ours(clipcap, settings, bundle):
    common = ["--device", "cpu", "--threads", str(THREADS), "--overwrite", "--json", "--quiet", "--model", bundle]
    # What more images or captions take than one, in processor time, is theirs alone.
    if settings["model_type"] in IS_DECODER:
        words = [clipcap, "caption", "--batch-size", "16", "--no-loop-guard", "--out", OUT / "c.parquet", *common]
        words += ["--max-new-tokens", str(TOKENS), "--min-new-tokens", str(TOKENS)]
        _, first, alone, _ = timed([*words, "--embeddings", OUT / "one.npy"])
        found, _, cpu, peak = timed([*words, "--embeddings", OUT / "many.npy"])
        return {"first": first, "rate": 33 / found["timings"]["decoding_s"], "cpu_ms": 1000 * (cpu - alone) / 32, "peak_mib": peak}
    words = [clipcap, "embed", "--batch-size", str(IMAGES), "--out", OUT / "e", *common]
    _, first, alone, _ = timed([*words, "--images", OUT / "jpegs/000.jpg"])
    found, _, cpu, peak = timed([*words, "--images", OUT / "jpegs"])
    return {"first": first, "rate": (2 * IMAGES + 1) / found["timings"]["encoding_s"], "cpu_ms": 1000 * (cpu - alone) / (2 * IMAGES), "peak_mib": peak}


def inputs():
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    (OUT / "jpegs").mkdir(parents=True, exist_ok=True)
    for number in range(2 * IMAGES + 1):
        base = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((400, 300), Image.BICUBIC)
        base.save(OUT / f"jpegs/{number:03}.jpg", quality=90)
    np.save(OUT / "one.npy", rng.standard_normal((1, 512), dtype=np.float32))
    np.save(OUT / "many.npy", rng.standard_normal((33, 512), dtype=np.float32))


def main(clipcap, names):
    inputs()
    print(f"{'':<18}{'':<7}{'first result':>13}{'a second':>12}{'cpu of one':>12}{'peak':>11}")
    for name in names:
        settings = CONFIGS[name]
        folder, bundle = OUT / "model", OUT / "bundle"
        for old in (folder, bundle):
            shutil.rmtree(old, ignore_errors=True)
        # In a process of its own too: what a parent held counts among a child's peak.
        subprocess.run([sys.executable, __file__, "--make", name, folder], check=True, stderr=subprocess.DEVNULL)
        clip, decoder = ("vit-b-32", folder) if settings["model_type"] in IS_DECODER else (folder, "gpt2-tiny")
        subprocess.run([clipcap, "model", "init", "--clip", clip, "--gpt2", decoder, "--mapper", "mlp", "--seed", "1", "--out", bundle, "--quiet"],
                       check=True, stdout=subprocess.DEVNULL)
        unit = "captions" if settings["model_type"] in IS_DECODER else "images"
        theirs = [sys.executable, __file__, "--torch", name, folder]
        runs = {"ours": [], "torch": []}
        for _ in range(REPEATS):
            runs["ours"].append(measure_ours(clipcap, settings, bundle))
            runs["torch"].append(json.loads(subprocess.run(theirs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout.splitlines()[-1]))
        least = ("first", "cpu_ms", "peak_mib")
        best = {side: {"rate": max(run["rate"] for run in found), **{key: min(run[key] for run in found) for key in least}}
                for side, found in runs.items()}
        for side, found in best.items():
            print(f"{name:<18}{side:<7}{found['first']:>11.2f} s{found['rate']:>8.1f} {unit[:3]}{found['cpu_ms']:>9.0f} ms{found['peak_mib']:>7.0f} MiB", flush=True)
        ratio = {key: best["ours"][key] / best["torch"][key] for key in best["ours"]}
        print(f"{'':<18}{'ratio':<7}{ratio['first']:>11.2f}  {ratio['rate']:>8.2f}    {ratio['cpu_ms']:>9.2f}   {ratio['peak_mib']:>7.2f}", flush=True)
        for old in (folder, bundle):
            shutil.rmtree(old)


if sys.argv[1] == "--torch":
    measure_torch(sys.argv[2], pathlib.Path(sys.argv[3]))
elif sys.argv[1] == "--make":
    make(CONFIGS[sys.argv[2]], pathlib.Path(sys.argv[3]))
else:
    main(sys.argv[1], sys.argv[2:] or list(CONFIGS))
