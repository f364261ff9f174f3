"""PyTorch's side of scripts/measure.sh: the same work at the same size, timed in the same minute.

    python scripts/reference_torch.py clip BUNDLE [--bf16]        images/s of the bare image encoder, batch 32
    python scripts/reference_torch.py generate BUNDLE             captions/s, 4 images x 5 samples x 17 tokens, top-p 0.8:
                                                                  the original's way (no cache) and with a key/value cache
    python scripts/reference_torch.py train BUNDLE --run RUN      the first steps of a run, on its own batches, after one to warm up:
        [--steps N] [--tokens T] [--dropout P] [--bf16]           milliseconds of forward + backward and of fused AdamW, peak memory;
                                                                  T pads captions and counts padding in the loss, as the original does

Needs torch, transformers and safetensors (a venv by hand; no part of the project depends on it).
"""
import argparse
import json
import pathlib
import resource
import time

import torch
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPVisionModelWithProjection, GPT2LMHeadModel

parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["clip", "generate", "train"])
parser.add_argument("bundle", type=pathlib.Path)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--run", type=pathlib.Path)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--tokens", type=int)
parser.add_argument("--dropout", type=float, default=0.0)
parser.add_argument("--batch-size", type=int, default=40)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)


def timed(work):
    work()
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


@torch.no_grad()
def clip():
    config = json.loads((args.bundle / "clip/config.json").read_text())
    whole = "vision_config" in config
    model = (CLIPModel if whole else CLIPVisionModelWithProjection).from_pretrained(args.bundle / "clip").eval()
    size = (config["vision_config"] if whole else config)["image_size"]
    pixels = torch.randn(32, 3, size, size)

    def work():
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            model.get_image_features(pixel_values=pixels) if whole else model(pixel_values=pixels)

    return {"images_per_second": 32 / timed(work)}


def top_p(logits, p=0.8):
    values, ids = torch.sort(logits, descending=True)
    past = torch.cumsum(torch.softmax(values, -1), -1) > p
    past[:, 1:] = past[:, :-1].clone()
    past[:, 0] = False
    chosen = torch.multinomial(torch.softmax(values.masked_fill(past, -float("inf")), -1), 1)
    return ids.gather(1, chosen)


@torch.no_grad()
def generate(images=4, samples=5, tokens=17):
    gpt2 = GPT2LMHeadModel.from_pretrained(args.bundle / "gpt2").eval()
    weights = load_file(args.bundle / "mapper/model.safetensors")
    width = gpt2.config.n_embd
    embeds = torch.randn(images, weights["clip_project.model.0.weight"].shape[1])

    def prefix():
        x = torch.tanh(torch.nn.functional.linear(embeds, weights["clip_project.model.0.weight"], weights["clip_project.model.0.bias"]))
        x = torch.nn.functional.linear(x, weights["clip_project.model.2.weight"], weights["clip_project.model.2.bias"])
        return x.view(images, -1, width).repeat_interleave(samples, 0)

    def original():
        x = prefix()
        for _ in range(tokens):
            x = torch.cat([x, gpt2.transformer.wte(top_p(gpt2(inputs_embeds=x, use_cache=False).logits[:, -1]))], 1)

    def cached():
        x, past = prefix(), None
        for _ in range(tokens):
            out = gpt2(inputs_embeds=x, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, x = out.past_key_values, gpt2.transformer.wte(top_p(out.logits[:, -1]))

    captions = images * samples
    return {"captions_per_second_original": captions / timed(original), "captions_per_second_cached": captions / timed(cached)}


def train():
    from run_corpus import RunCorpus
    from torch_clipcap import ClipCap

    model = ClipCap(args.bundle, args.dropout)
    corpus = RunCorpus(args.run, model.prefix_len)
    optimizer = torch.optim.AdamW(model.trainable(finetune_gpt2=True).values(), lr=2e-5, fused=True)
    gradients, updates, tokens = [], [], 0
    for numbers in corpus.epoch(args.batch_size, 0, 0)[: args.steps]:
        batch = [torch.from_numpy(x) for x in corpus.batch(numbers, args.tokens)]
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = model.loss(*batch, on_padding=args.tokens is not None)
        loss.backward()
        middle = time.perf_counter()
        optimizer.step()
        gradients.append(middle - start)
        updates.append(time.perf_counter() - middle)
        tokens += sum(len(corpus.ids[n]) for n in numbers) if len(gradients) > 1 else 0
    mean = lambda seconds: round(1e3 * sum(seconds[1:]) / (len(seconds) - 1), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"gradients_ms": mean(gradients), "update_ms": mean(updates), "tokens": tokens, "peak_mib": peak, "loss": round(loss.item(), 4)}


print(json.dumps({"train": train, "clip": clip, "generate": generate}[args.what]()))
