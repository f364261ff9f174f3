"""What decoders and mappers compute, in double precision; and how a decoder with random weights is taught a few captions at once."""

import numpy

from golden.towers import bert_layers, linear
from make_golden import attention, gpt2_states, layer_norm


class Gpt2:
    def __init__(self, weights, config):
        self.weights, self.config = weights, config
        self.words = weights["transformer.wte.weight"]
        self.taught = f"transformer.h.{config['n_layer'] - 1}.mlp.c_proj"

    def states(self, inputs):
        """Before and inside the last block's last product."""
        return gpt2_states(self.weights, self.config, inputs)

    def logits(self, inputs):
        x, y = self.states(inputs)
        x = x + y @ self.weights[f"{self.taught}.weight"] + self.weights[f"{self.taught}.bias"]
        return layer_norm(x, self.weights, "transformer.ln_f", self.config.get("layer_norm_epsilon", 1e-5)) @ self.words.T

    def teach(self, product, bias):
        return {f"{self.taught}.weight": product, f"{self.taught}.bias": bias}


class Qwen2:
    def __init__(self, weights, config):
        self.weights, self.config = weights, config
        self.words = weights["model.embed_tokens.weight"]
        self.taught = f"model.layers.{config['num_hidden_layers'] - 1}.mlp.down_proj"

    def norm(self, x, name):
        return x / numpy.sqrt((x**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]

    def turned(self, x, heads):
        """Positions as angles; [B, T, heads * D]."""
        batch, tokens, width = x.shape
        size = width // heads
        angles = numpy.arange(tokens)[:, None] * self.config["rope_parameters"]["rope_theta"] ** -(numpy.arange(0, size, 2) / size)
        angles = numpy.concatenate([angles, angles], -1)[None, :, None]
        x = x.reshape(batch, tokens, heads, size)
        crossed = numpy.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return (x * numpy.cos(angles) + crossed * numpy.sin(angles)).reshape(batch, tokens, width)

    def states(self, inputs):
        """Before and inside the last block's last product."""
        config, tokens = self.config, inputs.shape[1]
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        mask = numpy.where(numpy.tri(tokens) == 1, 0.0, -1e30)[None, None]
        x = inputs
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            plain = lambda x, part: x @ self.weights[f"{name}.{part}.weight"].T
            y = self.norm(x, f"{name}.input_layernorm")
            q, k, v = (linear(y, self.weights, f"{name}.self_attn.{part}_proj") for part in "qkv")
            q, k = self.turned(q, heads), self.turned(k, shared)
            repeat = lambda x: numpy.repeat(x.reshape(*x.shape[:2], shared, -1), heads // shared, 2).reshape(q.shape)
            x = x + plain(attention(q, repeat(k), repeat(v), heads, mask), "self_attn.o_proj")
            y = self.norm(x, f"{name}.post_attention_layernorm")
            gate = plain(y, "mlp.gate_proj")
            y = gate / (1 + numpy.exp(-gate)) * plain(y, "mlp.up_proj")
            if layer + 1 < config["num_hidden_layers"]:
                x = x + plain(y, "mlp.down_proj")
        return x, y

    def logits(self, inputs):
        x, y = self.states(inputs)
        return self.norm(x + y @ self.weights[f"{self.taught}.weight"].T, "model.norm") @ self.words.T

    def teach(self, product, _bias):
        return {f"{self.taught}.weight": product.T}


def taught(decoder, prefixes, captions):
    """The last block's last product, with which the decoder says `captions` [ids] behind `prefixes` [B, P, C]: least squares of what it should
    add at each token to point at the next one."""
    rows, wanted = [], []
    for prefix, ids in zip(prefixes, captions):
        x, y = decoder.states(numpy.concatenate([prefix, decoder.words[ids[:-1]]])[None])
        rows.append(y[0, len(prefix) - 1 :])
        wanted.append(4 * decoder.words[ids] - x[0, len(prefix) - 1 :])
    rows, wanted = numpy.concatenate(rows), numpy.concatenate(wanted)
    inner = rows.shape[1]
    rows = numpy.concatenate([rows, numpy.ones((len(rows), 1))], 1) if isinstance(decoder, Gpt2) else rows
    product = numpy.linalg.solve(rows.T @ rows + 1e-3 * numpy.eye(rows.shape[1]), rows.T @ wanted)
    bias = product[inner:].sum(0)
    return {name: values.astype("f4") for name, values in decoder.teach(product[:inner], bias).items()}


def greedy(decoder, prefix, ends, banned=(), begin=(), most=40):
    """Ids up to an end token, and the smallest distance between the best two logits."""
    ids, margin = [], numpy.inf
    while len(ids) < most and (not ids or ids[-1] not in ends):
        inputs = numpy.concatenate([prefix, decoder.words[[*begin, *ids]]])[None]
        last = decoder.logits(inputs)[0, -1]
        last[list(banned)] = -numpy.inf
        best = numpy.argsort(last)[::-1]
        margin = min(margin, last[best[0]] - last[best[1]])
        ids.append(int(best[0]))
    return ids, float(margin)


def bert_mapped(mapper, config, embeds, width):
    """ClipCap with a BERT between: the states at the constant places, [B, P, C]."""
    constant = mapper["clip_project.prefix_const"]
    projected = linear(embeds, mapper, "clip_project.linear").reshape(len(embeds), -1, width)
    x = numpy.concatenate([projected, numpy.broadcast_to(constant, (len(embeds), *constant.shape))], 1)
    scope = "clip_project.bert.embeddings"
    x = x + mapper[f"{scope}.position_embeddings.weight"][: x.shape[1]] + mapper[f"{scope}.token_type_embeddings.weight"][0]
    x = layer_norm(x, mapper, f"{scope}.LayerNorm", config["layer_norm_eps"])
    return bert_layers(x, mapper, "clip_project.bert", config)[:, -len(constant) :]


def transformer_mapped(mapper, embeds, width, layers):
    """The original's transformer, of 8 heads: the states at the constant places, [B, P, C]."""
    constant = mapper["clip_project.prefix_const"]
    projected = linear(embeds, mapper, "clip_project.linear").reshape(len(embeds), -1, width)
    x = numpy.concatenate([projected, numpy.broadcast_to(constant, (len(embeds), *constant.shape))], 1)
    for layer in range(layers):
        name = f"clip_project.transformer.layers.{layer}"
        y = layer_norm(x, mapper, f"{name}.norm1", 1e-5)
        k, v = numpy.split(y @ mapper[f"{name}.attn.to_keys_values.weight"].T, 2, -1)
        y = attention(y @ mapper[f"{name}.attn.to_queries.weight"].T, k, v, 8)
        x = x + linear(y, mapper, f"{name}.attn.project")
        y = linear(layer_norm(x, mapper, f"{name}.norm2", 1e-5), mapper, f"{name}.mlp.fc1")
        x = x + linear(numpy.maximum(y, 0), mapper, f"{name}.mlp.fc2")
    return x[:, -len(constant) :]
