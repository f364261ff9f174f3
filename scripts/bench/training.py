#!/usr/bin/env python3
"""Training steps per second of PyTorch: an MLP mapper and a bundle's GPT2, both tuned, BATCH captions of TOKENS tokens behind a prefix of PREFIX; forward,
backward and fused AdamW, no dropout. Compiling and the first two steps are not in the time.

    training.py BUNDLE fp32|bf16 eager|compiled BATCH PREFIX TOKENS THREADS STEPS
"""

import os
import sys
import time

import torch
from transformers import GPT2LMHeadModel

bundle, precision, how = sys.argv[1:4]
batch, prefix, tokens, threads, steps = map(int, sys.argv[4:9])
torch.manual_seed(0)
torch.set_num_threads(threads)


class Captions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gpt2 = GPT2LMHeadModel.from_pretrained(
            os.path.join(bundle, "gpt2"), attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
        ).train()
        self.width = self.gpt2.config.n_embd
        hidden = self.width * prefix // 2
        self.mapper = torch.nn.Sequential(torch.nn.Linear(512, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, self.width * prefix))

    def forward(self, embeddings, ids):
        prefixes = self.mapper(embeddings).view(-1, prefix, self.width)
        inputs = torch.cat([prefixes, self.gpt2.transformer.wte(ids)], 1)
        hidden = self.gpt2.transformer(inputs_embeds=inputs).last_hidden_state[:, prefix - 1 : -1]
        logits = self.gpt2.lm_head(hidden).flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(logits, ids.flatten())


model = Captions()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
forward = torch.compile(model) if how == "compiled" else model
embeddings = torch.randn(batch, 512)
ids = torch.randint(100, model.gpt2.config.vocab_size, (batch, tokens))


def step():
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = forward(embeddings, ids)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


step()
step()
start = time.perf_counter()
for _ in range(steps):
    step()
print(steps / (time.perf_counter() - start))
