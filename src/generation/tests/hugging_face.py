"""Writes hugging_face.json: what Hugging Face transformers generates from the toy language models of toy.rs.

    python hugging_face.py > hugging_face.json        (transformers 5.24, torch 2.15)
"""

import json
import random

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import CausalLMOutput

MASK = (1 << 64) - 1
SEP, UNK = 0, 1


def toy_logits(toy, history):
    state = 0xCBF29CE484222325 ^ toy["seed"]
    for token in history[max(0, len(history) - toy["memory"]):]:
        state = ((state ^ (token + 1)) * 0x100000001B3) & MASK
    logits = []
    for token in range(toy["vocab_size"]):
        mixed = (state + token * 0x9E3779B97F4A7C15) & MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        mixed ^= mixed >> 31
        logits.append((mixed >> 44) / 65536.0 + (toy["sep_bias"] if token == SEP else 0))
    return logits


class Config(PretrainedConfig):
    model_type = "toy"


class ToyModel(PreTrainedModel, GenerationMixin):
    """Sees one prompt token, which stands for the prefix and is no part of the history."""

    config_class = Config
    main_input_name = "input_ids"

    def __init__(self, toy):
        super().__init__(Config(vocab_size=toy["vocab_size"], num_hidden_layers=1, hidden_size=4, num_attention_heads=1))
        self.toy = toy
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **_):
        logits = torch.zeros(input_ids.shape[0], input_ids.shape[1], self.toy["vocab_size"])
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, -1] = torch.tensor(toy_logits(self.toy, ids[1:]))
        return CausalLMOutput(logits=logits)

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}


class WithoutPrompt:
    """A processor that sees the generated tokens only, as with inputs_embeds."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, input_ids, scores):
        return self.processor(input_ids[:, 1:], scores) if input_ids.shape[1] > 1 else scores


def generate(case):
    model = ToyModel(case["toy"])
    processors = LogitsProcessorList()
    if case["repetition_penalty"] != 1.0:
        processors.append(WithoutPrompt(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])))
    if case["no_repeat_ngram_size"] > 0:
        processors.append(WithoutPrompt(NoRepeatNGramLogitsProcessor(case["no_repeat_ngram_size"])))
    processors.append(SuppressTokensLogitsProcessor([UNK]))
    if case["min_new_tokens"] > 0:
        processors.append(MinNewTokensLengthLogitsProcessor(1, case["min_new_tokens"], [SEP]))
    beams = case["num_beams"]
    config = GenerationConfig(
        do_sample=False,
        num_beams=max(beams, 1),
        num_return_sequences=max(case["num_captions"], 1),
        length_penalty=case["length_penalty"],
        early_stopping=False,
        max_new_tokens=case["max_new_tokens"],
        eos_token_id=SEP,
        pad_token_id=UNK,
        use_cache=False,
    )
    with torch.no_grad():
        out = model.generate(torch.tensor([[2]]), generation_config=config, logits_processor=processors)
    return [[token for token in ids[1:] if token != UNK] for ids in out.tolist()]


def warped(case):
    scores = torch.tensor([toy_logits(case["toy"], [])])
    scores[:, UNK] = -float("inf")
    if case["temperature"] != 1.0:
        scores = TemperatureLogitsWarper(case["temperature"])(None, scores)
    if case["top_k"] > 0:
        scores = TopKLogitsWarper(case["top_k"])(None, scores)
    if case["top_p"] < 1.0:
        scores = TopPLogitsWarper(case["top_p"])(None, scores)
    probabilities = scores.softmax(-1)[0].tolist()
    kept = [(p, i) for i, p in enumerate(probabilities) if p > 0]
    return [[i, round(p, 7)] for p, i in sorted(kept, key=lambda pair: (-pair[0], pair[1]))]


def main():
    draw = random.Random(20)
    searches, samples = [], []
    for number in range(60):
        beams = 0 if number < 15 else draw.choice([2, 3, 4, 5])
        toy = {
            "vocab_size": draw.choice([12, 30, 90]),
            "seed": draw.randrange(1 << 16),
            "memory": draw.choice([2, 100]) if beams == 0 else 100,
            "sep_bias": draw.choice([-2, 0, 2, 4]),
        }
        case = {
            "toy": toy,
            "num_beams": beams,
            "num_captions": draw.randint(1, beams) if beams else 1,
            "length_penalty": draw.choice([0.0, 0.6, 1.0, 2.0, -0.5]) if beams else 1.0,
            "repetition_penalty": draw.choice([1.0, 1.0, 1.2, 1.8, 0.8]),
            "no_repeat_ngram_size": draw.choice([0, 0, 1, 2, 3]),
            "min_new_tokens": draw.choice([0, 0, 3, 8]),
            "max_new_tokens": draw.choice([9, 16, 24]),
        }
        searches.append(case | {"expected": generate(case)})
    for _ in range(40):
        toy = {"vocab_size": draw.choice([12, 60, 300]), "seed": draw.randrange(1 << 16), "memory": 100, "sep_bias": 0}
        case = {
            "toy": toy,
            "temperature": draw.choice([1.0, 0.7, 2.5, 8.0]),
            "top_k": draw.choice([0, 0, 5, 20]),
            "top_p": draw.choice([1.0, 0.8, 0.95, 0.3]),
        }
        if case["top_k"] == 0 and case["top_p"] == 1.0:
            case["top_k"] = 10
        samples.append(case | {"expected": warped(case)})
    lines = lambda cases: ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    print('{"searches":[\n' + lines(searches) + '\n],"samples":[\n' + lines(samples) + "\n]}")


main()
