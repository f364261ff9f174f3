"""Whether adapters load in peft, and say what the merged weights say.

    python scripts/check_peft.py MODEL RUN/last          (a venv by hand with torch, transformers and peft)

MODEL is the bundle that training began with (or its gpt2 folder), RUN one of `clipcap train --lora-rank`.
"""
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, last = map(pathlib.Path, sys.argv[1:])
base = base / "gpt2" if (base / "gpt2").is_dir() else base
torch.set_grad_enabled(False)
plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
merged = AutoModelForCausalLM.from_pretrained(last / "gpt2", dtype=torch.float32).eval()
vocab = plain.config.vocab_size
ids = torch.arange(1, 13).reshape(1, -1) % vocab
before = plain(input_ids=ids).logits
adapted = PeftModel.from_pretrained(plain, last / "adapter").eval()
found, wanted = adapted(input_ids=ids).logits, merged(input_ids=ids).logits
moved, apart = (wanted - before).abs().max().item(), (found - wanted).abs().max().item()
print(f"{sum('lora_' in name for name, _ in adapted.named_parameters())} adapter tensors; logits moved by {moved:.3e}, peft and merged {apart:.3e} apart")
sys.exit(0 if apart < 1e-4 * max(1.0, wanted.abs().max().item()) and moved > 10 * apart else 1)
