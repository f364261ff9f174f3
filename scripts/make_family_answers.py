"""Writes tests/answers/families.json: what transformers computes with small decoders and image towers of every family.

    python scripts/make_family_answers.py          (a venv by hand with torch and transformers)

No weight is stored: each tensor is a formula of its name, which the tests have too (src/models/family_tests.rs).
"""
import json
import pathlib
import zlib

import numpy as np
import torch
from transformers import (
    AutoConfig, AutoModelForCausalLM, Siglip2VisionConfig, SiglipVisionConfig, SiglipVisionModel,
)

torch.set_grad_enabled(False)


def values(name, shape):
    """Numbers in -1 .. 1 that look random: a hash of the position and of the name."""
    at = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    x = (at * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) & mask
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(2246822519)) & mask
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(3266489917)) & mask
    x = x ^ (x >> np.uint64(16))
    return (x.astype(np.float64) / 2**31 - 1.0).reshape(shape)


def fill(model, scope=""):
    for name, parameter in model.named_parameters():
        name = scope + name
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        numbers = 1.0 + 0.2 * values(name, parameter.shape) if is_norm else 0.3 * values(name, parameter.shape)
        parameter.copy_(torch.from_numpy(numbers).to(parameter.dtype))
    return model.eval()


def decoder(**settings):
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    fill(model)
    ids = [[(7 * at * at + 3 * at + 1) % config.vocab_size for at in range(12)]]
    logits = model(input_ids=torch.tensor(ids)).logits[0, -1]
    return {"config": config.to_dict(), "input_ids": ids[0], "logits": [round(x, 6) for x in logits.tolist()]}


llama = dict(
    vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=None,
)
stretched = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
answers = {
    "gpt2": decoder(model_type="gpt2", vocab_size=40, n_positions=32, n_embd=24, n_layer=2, n_head=4, tie_word_embeddings=False,
                    bos_token_id=0, eos_token_id=1),
    "qwen2": decoder(model_type="qwen2", **llama),
    "qwen3": decoder(model_type="qwen3", **{**llama, "head_dim": 8, "tie_word_embeddings": False}),
    "llama": decoder(model_type="llama", **{**llama, "rope_parameters": stretched}),
    "llama_biases": decoder(model_type="llama", **{**llama, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "mistral": decoder(model_type="mistral", **{**llama, "tie_word_embeddings": False, "sliding_window": None}),
}
vision = SiglipVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8)
model = fill(SiglipVisionModel._from_config(vision, attn_implementation="eager"), "vision_model.")
pixels = torch.from_numpy(values("pixel_values", (1, 3, 16, 16))).float()
pooled = model(pixel_values=pixels).pooler_output[0]
names = sorted("vision_model." + name for name, _ in model.named_parameters())
answers["siglip2"] = {
    # A SigLIP 2 of a fixed resolution is published under SigLIP's own classes.
    "config": {"model_type": "siglip", "vision_config": vision.to_dict()}, "tensors": names, "embeds": [round(x, 6) for x in pooled.tolist()],
}
path = pathlib.Path(__file__).parent.parent / "tests/answers/families.json"
path.write_text(json.dumps(answers, indent=1, sort_keys=True, default=str) + "\n")
print(path, path.stat().st_size, "bytes")
