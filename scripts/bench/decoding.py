#!/usr/bin/env python3
"""Captions per second of CTranslate2 on a bundle's GPT2: prompts of PREFIX tokens in place of an image's prefix, then SAMPLES samples of TOKENS
tokens each, top-p 0.8. The model is converted once, beside the results; loading it and a first batch are not in the time.

    decoding.py BUNDLE CONVERTED fp32|int8 IMAGES THREADS [PREFIX SAMPLES TOKENS]
"""

import os
import sys
import time

import ctranslate2
import numpy as np

bundle, converted, precision, images, threads = *sys.argv[1:4], *map(int, sys.argv[4:6])
prefix, samples, tokens = map(int, sys.argv[6:9] or (10, 5, 17))


def convert():
    from ctranslate2.converters.transformers import GPT2Loader
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(os.path.join(bundle, "gpt2")).eval()
    # The bundle's own vocabulary is not needed: tokens are called by their numbers.
    names = [f"t{number}" for number in range(model.config.vocab_size)]
    spec = GPT2Loader().get_model_spec(model)
    spec.register_vocabulary(names)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = names[0], names[1], names[2]
    spec.validate()
    spec.optimize(quantization=None)
    os.makedirs(converted, exist_ok=True)
    spec.save(converted)


if not os.path.isfile(os.path.join(converted, "config.json")):
    convert()
generator = ctranslate2.Generator(
    converted, device="cpu", compute_type={"fp32": "float32", "int8": "int8"}[precision], inter_threads=1, intra_threads=threads
)
vocabulary = len(open(os.path.join(bundle, "gpt2/vocab.txt"), encoding="utf-8").read().splitlines())
prompts = np.random.default_rng(0).integers(vocabulary // 2, vocabulary, (images, prefix))
prompts = [[f"t{number}" for number in row] for row in prompts.tolist()]


def captions(prompts):
    made = generator.generate_batch(
        prompts,
        max_batch_size=16,
        min_length=tokens,
        max_length=tokens,
        sampling_topk=0,
        sampling_topp=0.8,
        num_hypotheses=samples,
        include_prompt_in_result=False,
        end_token="t1",
    )
    lengths = {len(sequence) for result in made for sequence in result.sequences_ids}
    assert lengths == {tokens} and all(len(result.sequences) == samples for result in made), lengths


captions(prompts[:4])
start = time.perf_counter()
captions(prompts)
print(images * samples / (time.perf_counter() - start))
