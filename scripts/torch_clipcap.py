"""ClipCap in PyTorch, built from a bundle with transformers' own GPT2 and BERT: what our training is compared with.

Parameters have the names of the original's checkpoints, which are ours too. Needs torch, transformers and safetensors (a venv by hand; no
part of the project depends on it).
"""

import json
import pathlib

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel, GPT2LMHeadModel


class Mlp(nn.Module):
    """Linear layers with tanh between them: [B, D] -> [B, P, C]."""

    def __init__(self, config):
        super().__init__()
        sizes, layers = config["layer_sizes"], []
        for inputs, outputs in zip(sizes, sizes[1:]):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.model = nn.Sequential(*layers[:-1])
        self.shape = (-1, config["prefix_len"], config["n_embd"])

    def forward(self, embeds):
        return self.model(embeds).view(self.shape)


class BertMapper(nn.Module):
    """The embedding becomes P positions before P learned ones, whose states after BERT are the prefix: [B, D] -> [B, P, C]."""

    def __init__(self, config, dropout):
        super().__init__()
        self.prefix_len, width = config["prefix_len"], config["n_embd"]
        bert = BertConfig(**{k: v for k, v in config["bert"].items() if v is not None}, attn_implementation="eager")
        if dropout is not None:
            bert.hidden_dropout_prob = bert.attention_probs_dropout_prob = dropout
        self.bert = BertModel(bert)
        self.linear = nn.Linear(config["clip_size"], self.prefix_len * width)
        self.prefix_const = nn.Parameter(torch.zeros(config["constant_len"], width))

    def forward(self, embeds):
        x = self.linear(embeds).view(len(embeds), self.prefix_len, -1)
        x = torch.cat([x, self.prefix_const.expand(len(embeds), -1, -1)], 1)
        return self.bert(inputs_embeds=x).last_hidden_state[:, self.prefix_len :]


class ClipCap(nn.Module):
    """A bundle's mapper and GPT2. `dropout` stands for every probability of the configurations."""

    def __init__(self, bundle, dropout=None):
        super().__init__()
        bundle = pathlib.Path(bundle)
        config = json.loads((bundle / "mapper/config.json").read_text())
        self.prefix_len = config["prefix_len"]
        self.clip_project = Mlp(config) if config["kind"] == "mlp" else BertMapper(config, dropout)
        weights = {k.removeprefix("clip_project."): v for k, v in load_file(bundle / "mapper/model.safetensors").items()}
        missing, unexpected = self.clip_project.load_state_dict(weights, strict=False)
        # Words and the pooled state are no part of the mapper.
        missing = [name for name in missing if not ("word_embeddings" in name or "pooler" in name)]
        if missing or unexpected:
            raise ValueError(f"mapper weights do not fit: missing {missing}, unexpected {unexpected}")
        rates = {} if dropout is None else dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
        self.gpt2 = GPT2LMHeadModel.from_pretrained(bundle / "gpt2", **rates)
        self.gpt2.config.use_cache = False
        self.train()

    def trainable(self, finetune_gpt2):
        """Parameters by name, as the artifacts have them; the others are frozen."""
        unused = ("clip_project.bert.embeddings.word_embeddings", "clip_project.bert.pooler")
        chosen = {}
        for name, parameter in self.named_parameters():
            wanted = name.startswith("clip_project.") or finetune_gpt2
            parameter.requires_grad_(wanted and not name.startswith(unused))
            if parameter.requires_grad:
                chosen[name] = parameter
        if not finetune_gpt2:
            self.gpt2.eval()
        return chosen

    def logits(self, clip_embeds, caption_ids, attention_mask):
        """Of the positions before each caption token: [B, T, V]."""
        words = self.gpt2.transformer.wte(caption_ids)
        embeds = torch.cat([self.clip_project(clip_embeds), words], 1)
        return self.gpt2(inputs_embeds=embeds, attention_mask=attention_mask).logits[:, self.prefix_len - 1 : -1]

    def loss(self, clip_embeds, caption_ids, attention_mask, on_padding=False):
        """Mean over the real caption tokens, or over every caption position as the original has it."""
        logits = self.logits(clip_embeds, caption_ids, attention_mask)
        labels = caption_ids if on_padding else caption_ids.masked_fill(attention_mask[:, self.prefix_len :] == 0, -100)
        return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
