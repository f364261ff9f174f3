#!/usr/bin/env python3
"""What scripts/check_cuda.sh times clipcap beside: the same sizes in PyTorch with transformers, as they are and compiled. Each figure becomes a row of
the table at once, so that what was measured by the end of the time is there.

    cuda_torch.py TABLE      SMALL=1: tiny sizes; without a card on the CPU, to try the script itself
"""
import os
import sys
import time

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, GPT2Config, GPT2LMHeadModel

SMALL = bool(os.environ.get("SMALL"))
CUDA = torch.cuda.is_available()
device = torch.device("cuda" if CUDA else "cpu")
wait = torch.cuda.synchronize if CUDA else lambda: None
names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
if CUDA:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def row(work, precision, batch, rate, engine=f"PyTorch {torch.__version__.split('+')[0]}"):
    peak = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if CUDA else ""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    text = f"| {engine} | {work} | {precision} | {batch} | {rate} | {peak} |"
    print(text, flush=True)
    with open(sys.argv[1], "a") as table:
        table.write(text + "\n")


def rate(f, count, reps=10):
    f()
    wait()
    reps = 1 if SMALL else reps
    start = time.time()
    for _ in range(reps):
        f()
    wait()
    return count * reps / (time.time() - start)


def compiled_of(model):
    # Compiling takes minutes without a card, and would try nothing of this script.
    return torch.compile(model, backend="eager" if SMALL else "inductor")


def attempt(what, f):
    try:
        f()
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {str(error)[:300]}", flush=True)


def clip_and_gpt2():
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=64) if SMALL else {}
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512, **sizes)).eval()
    small = dict(n_embd=64, n_layer=1, n_head=2) if SMALL else {}
    return clip, GPT2Config(vocab_size=21128, bos_token_id=None, eos_token_id=None, pad_token_id=0, **small)


def bus():
    host = torch.empty(21_600_000, dtype=torch.uint8)
    pinned, there = host.pin_memory(), host.cuda()
    pageable, fast = rate(lambda: host.copy_(there), 0.0216), rate(lambda: pinned.copy_(there), 0.0216)
    row("to the host, pageable and pinned", "", "", f"{pageable:.1f} and {fast:.1f} GB/s", "CUDA")
    x = torch.zeros(8, device="cuda")
    row("a launch", "", "", f"{1e6 / rate(lambda: [x.add_(1) for _ in range(1000)], 1000, 5):.2f} microseconds", "CUDA")


@torch.no_grad()
def inference(dtype, batches, compiled):
    clip, config = clip_and_gpt2()
    clip, gpt2 = clip.to(device, dtype), GPT2LMHeadModel(config).to(device, dtype).eval()
    side = clip.config.image_size
    for batch in batches:
        pixels = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
        embeds = torch.randn(batch, 10, config.n_embd, device=device, dtype=dtype)
        generate = lambda: gpt2.generate(inputs_embeds=embeds, max_new_tokens=17, min_new_tokens=17, do_sample=False)
        row("captions of 17 tokens, greedy, generate()", names[dtype], batch, f"{rate(generate, batch, 3):.0f} captions/s")
        row("embed pixels that are on the card, ViT-B/32", names[dtype], batch, f"{rate(lambda: clip(pixels), batch):.0f} images/s")
    if compiled:
        fast = compiled_of(clip)
        row("embed pixels that are on the card, ViT-B/32, compiled", names[dtype], batch, f"{rate(lambda: fast(pixels), batch):.0f} images/s")


def training(dtype, batch, compiled):
    _, config = clip_and_gpt2()
    model = GPT2LMHeadModel(config).to(device)
    net = compiled_of(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=CUDA)
    ids = torch.randint(0, 21128, (batch, 27), device=device)

    def one():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = net(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    row(f"training, GPT2 tuned{', compiled' if compiled else ''}", names[dtype], batch, f"{rate(one, batch):.0f} samples/s")


if CUDA:
    attempt("the bus", bus)
large, small = (4, 2) if SMALL else (256, 64)
half = torch.float16 if CUDA else torch.bfloat16
attempt("inference fp16", lambda: inference(half, [large], True))
attempt("inference fp32", lambda: inference(torch.float32, [large], False))
for dtype, batch in [(torch.bfloat16, 160), (torch.float32, 40)]:
    for compiled in (False, True):
        attempt(f"training {names[dtype]}", lambda: training(dtype, 2 if SMALL else batch, compiled))
attempt("inference bf16", lambda: inference(torch.bfloat16, [large], False))
attempt("inference of smaller batches", lambda: inference(half, [small], False))
