"""What image and text towers compute, in double precision."""

import math

import numpy

from make_golden import attention, image_embeds, layer_norm

erf = numpy.vectorize(math.erf)
gelu = lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))
quick_gelu = lambda x: x / (1 + numpy.exp(-1.702 * x))
gelu_tanh = lambda x: 0.5 * x * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "gelu_pytorch_tanh": gelu_tanh}


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def clip_layers(x, weights, scope, config, mask=0.0):
    """Blocks that normalize first, as CLIP's and SigLIP's."""
    eps = config.get("layer_norm_eps", 1e-5)
    for layer in range(config["num_hidden_layers"]):
        name = f"{scope}.encoder.layers.{layer}"
        y = layer_norm(x, weights, f"{name}.layer_norm1", eps)
        q, k, v = (linear(y, weights, f"{name}.self_attn.{part}_proj") for part in "qkv")
        x = x + linear(attention(q, k, v, config["num_attention_heads"], mask), weights, f"{name}.self_attn.out_proj")
        y = linear(layer_norm(x, weights, f"{name}.layer_norm2", eps), weights, f"{name}.mlp.fc1")
        x = x + linear(ACTIVATIONS[config.get("hidden_act", "quick_gelu")](y), weights, f"{name}.mlp.fc2")
    return x


def clip_text_embeds(weights, config, ids):
    """One caption's [D]: the state at its last token, projected."""
    text = config["text_config"]
    x = weights["text_model.embeddings.token_embedding.weight"][ids][None]
    x = x + weights["text_model.embeddings.position_embedding.weight"][: len(ids)]
    mask = numpy.where(numpy.tri(len(ids)) == 1, 0.0, -1e30)[None, None]
    x = clip_layers(x, weights, "text_model", text, mask)
    last = layer_norm(x[0, -1], weights, "text_model.final_layer_norm", text.get("layer_norm_eps", 1e-5))
    return last @ weights["text_projection.weight"].T


def bert_layers(x, weights, scope, config):
    """Blocks that normalize last."""
    eps = config["layer_norm_eps"]
    for layer in range(config["num_hidden_layers"]):
        name = f"{scope}.encoder.layer.{layer}"
        q, k, v = (linear(x, weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        y = linear(attention(q, k, v, config["num_attention_heads"]), weights, f"{name}.attention.output.dense")
        x = layer_norm(x + y, weights, f"{name}.attention.output.LayerNorm", eps)
        y = linear(gelu(linear(x, weights, f"{name}.intermediate.dense")), weights, f"{name}.output.dense")
        x = layer_norm(x + y, weights, f"{name}.output.LayerNorm", eps)
    return x


def chinese_text_embeds(weights, config, ids):
    """One caption's [D]: the state at [CLS], projected."""
    text, scope = config["text_config"], "text_model.embeddings"
    x = weights[f"{scope}.word_embeddings.weight"][ids] + weights[f"{scope}.position_embeddings.weight"][: len(ids)]
    x = layer_norm(x + weights[f"{scope}.token_type_embeddings.weight"][0], weights, f"{scope}.LayerNorm", text["layer_norm_eps"])
    return bert_layers(x[None], weights, "text_model", text)[0, 0] @ weights["text_projection.weight"].T


def patches(pixels, kernel):
    """A convolution whose stride is its size, [B, N, C]."""
    batch, _, side, _ = pixels.shape
    patch = kernel.shape[-1]
    cut = pixels.reshape(batch, 3, side // patch, patch, side // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(batch, (side // patch) ** 2, -1) @ kernel.reshape(len(kernel), -1).T


def siglip_embeds(weights, config, pixels):
    """SigLIP's image tower, whose states are pooled by a probe's attention, [B, D]."""
    vision, scope = config["vision_config"], "vision_model"
    kernel = f"{scope}.embeddings.patch_embedding"
    x = patches(pixels, weights[f"{kernel}.weight"]) + weights[f"{kernel}.bias"]
    x = clip_layers(x + weights[f"{scope}.embeddings.position_embedding.weight"], weights, scope, vision)
    eps = vision["layer_norm_eps"]
    x = layer_norm(x, weights, f"{scope}.post_layernorm", eps)
    head = f"{scope}.head"
    probe = numpy.broadcast_to(weights[f"{head}.probe"], (len(x), 1, x.shape[-1]))
    products = zip((probe, x, x), *(numpy.split(weights[f"{head}.attention.in_proj_{part}"], 3) for part in ("weight", "bias")))
    q, k, v = (states @ weight.T + bias for states, weight, bias in products)
    x = linear(attention(q, k, v, vision["num_attention_heads"]), weights, f"{head}.attention.out_proj")
    y = linear(layer_norm(x, weights, f"{head}.layernorm", eps), weights, f"{head}.mlp.fc1")
    return (x + linear(gelu_tanh(y), weights, f"{head}.mlp.fc2"))[:, 0]


def convolved(x, weights, conv, norm, stride=1):
    """A convolution of 1 x 1 or 3 x 3 without bias, and the normalization behind it."""
    kernel = weights[f"{conv}.weight"]
    around = kernel.shape[-1] // 2
    x = numpy.pad(x, ((0, 0), (0, 0), (around, around), (around, around)))
    windows = numpy.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    x = numpy.einsum("bihwkl,oikl->bohw", windows, kernel, optimize=True)
    mean, var, weight, bias = (
        weights[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / numpy.sqrt(var + 1e-5) * weight + bias


def pooled(x, by):
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // by, by, width // by, by).mean((3, 5))


def resnet_embeds(weights, pixels):
    """OpenAI's ModifiedResNet with heads of 64, [B, D]."""
    relu = lambda x: numpy.maximum(x, 0)
    x = pixels
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = relu(convolved(x, weights, f"visual.conv{number}", f"visual.bn{number}", stride))
    x = pooled(x, 2)
    for stage in range(1, 5):
        for number in range(1000):
            name = f"visual.layer{stage}.{number}"
            if f"{name}.conv1.weight" not in weights:
                break
            by = 2 if stage > 1 and number == 0 else 1
            y = relu(convolved(x, weights, f"{name}.conv1", f"{name}.bn1"))
            y = relu(convolved(y, weights, f"{name}.conv2", f"{name}.bn2"))
            y = convolved(pooled(y, by), weights, f"{name}.conv3", f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                x = convolved(pooled(x, by), weights, f"{name}.downsample.0", f"{name}.downsample.1")
            x = relu(x + y)
    x = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    pool = "visual.attnpool"
    x = numpy.concatenate([x.mean(1, keepdims=True), x], 1) + weights[f"{pool}.positional_embedding"]
    q, k, v = (linear(x[:, :1] if part == "q" else x, weights, f"{pool}.{part}_proj") for part in "qkv")
    return linear(attention(q, k, v, x.shape[-1] // 64), weights, f"{pool}.c_proj")[:, 0]
