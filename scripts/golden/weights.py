"""Random weights by name."""

import numpy


class Weights:
    """Random tensors by name; multiples of 1/256."""

    def __init__(self, seed):
        self.random, self.tensors = numpy.random.default_rng(seed), {}

    def normal(self, name, *shape, scale=None, mean=0.0):
        scale = 1.2 * shape[-1] ** -0.5 if scale is None else scale
        values = numpy.round(256 * self.random.normal(mean, scale, shape)) / 256
        self.tensors[name] = values.astype("f4")

    def linear(self, name, outputs, inputs):
        self.normal(f"{name}.weight", outputs, inputs)
        self.normal(f"{name}.bias", outputs, scale=0.1)

    def norm(self, name, width):
        self.normal(f"{name}.weight", width, mean=1.0, scale=0.1)
        self.normal(f"{name}.bias", width, scale=0.1)

    def blocks(self, scope, config):
        width, inner = config["hidden_size"], config["intermediate_size"]
        for layer in range(config["num_hidden_layers"]):
            name = f"{scope}.encoder.layers.{layer}"
            for part in ("q", "k", "v", "out"):
                self.linear(f"{name}.self_attn.{part}_proj", width, width)
            self.norm(f"{name}.layer_norm1", width)
            self.linear(f"{name}.mlp.fc1", inner, width)
            self.linear(f"{name}.mlp.fc2", width, inner)
            self.norm(f"{name}.layer_norm2", width)

    def clip_image(self, config, bias=False):
        vision, scope = config["vision_config"], "vision_model"
        width, patch = vision["hidden_size"], vision["patch_size"]
        grid = (vision["image_size"] // patch) ** 2
        self.normal(f"{scope}.embeddings.class_embedding", width, scale=0.5)
        self.normal(f"{scope}.embeddings.patch_embedding.weight", width, 3, patch, patch, scale=1.2 * (3 * patch * patch) ** -0.5)
        self.normal(f"{scope}.embeddings.position_embedding.weight", grid + 1, width, scale=0.3)
        self.norm(f"{scope}.pre_layrnorm", width)
        self.blocks(scope, vision)
        self.norm(f"{scope}.post_layernorm", width)
        self.normal("visual_projection.weight", config["projection_dim"], width)

    def clip_text(self, config):
        text, scope = config["text_config"], "text_model"
        width = text["hidden_size"]
        self.normal("logit_scale", scale=0.0, mean=2.6592)
        self.normal(f"{scope}.embeddings.token_embedding.weight", text["vocab_size"], width, scale=0.5)
        self.normal(f"{scope}.embeddings.position_embedding.weight", text["max_position_embeddings"], width, scale=0.3)
        self.blocks(scope, text)
        self.norm(f"{scope}.final_layer_norm", width)
        self.normal("text_projection.weight", config["projection_dim"], width)

    def bert(self, scope, config):
        width, inner = config["hidden_size"], config["intermediate_size"]
        for name, count in (("word", "vocab_size"), ("position", "max_position_embeddings"), ("token_type", "type_vocab_size")):
            self.normal(f"{scope}.embeddings.{name}_embeddings.weight", config[count], width, scale=0.5)
        self.norm(f"{scope}.embeddings.LayerNorm", width)
        for layer in range(config["num_hidden_layers"]):
            name = f"{scope}.encoder.layer.{layer}"
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                self.linear(f"{name}.attention.{part}", width, width)
            self.norm(f"{name}.attention.output.LayerNorm", width)
            self.linear(f"{name}.intermediate.dense", inner, width)
            self.linear(f"{name}.output.dense", width, inner)
            self.norm(f"{name}.output.LayerNorm", width)

    def resnet(self, width, stages, image, projection):
        def convolution(conv, norm, inputs, outputs, kernel):
            self.normal(f"visual.{conv}.weight", outputs, inputs, kernel, kernel, scale=1.4 * (inputs * kernel * kernel) ** -0.5)
            self.norm(f"visual.{norm}", outputs)
            self.normal(f"visual.{norm}.running_mean", outputs, scale=0.1)
            self.normal(f"visual.{norm}.running_var", outputs, mean=1.0, scale=0.1)
            self.tensors[f"visual.{norm}.num_batches_tracked"] = numpy.array(7, "i8")

        for number, inputs, outputs in ((1, 3, width // 2), (2, width // 2, width // 2), (3, width // 2, width)):
            convolution(f"conv{number}", f"bn{number}", inputs, outputs, 3)
        inputs = width
        for stage, count in enumerate(stages):
            planes = width << stage
            for number in range(count):
                name = f"layer{stage + 1}.{number}"
                for at, (i, o, kernel) in enumerate(((inputs, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)), 1):
                    convolution(f"{name}.conv{at}", f"{name}.bn{at}", i, o, kernel)
                if number == 0:
                    convolution(f"{name}.downsample.0", f"{name}.downsample.1", inputs, 4 * planes, 1)
                inputs = 4 * planes
        channels = 32 * width
        self.normal("visual.attnpool.positional_embedding", (image // 32) ** 2 + 1, channels, scale=0.3)
        for part, outputs in (("k", channels), ("q", channels), ("v", channels), ("c", projection)):
            self.linear(f"visual.attnpool.{part}_proj", outputs, channels)

    def gpt2(self, config):
        width, scope = config["n_embd"], "transformer"
        self.normal(f"{scope}.wte.weight", config["vocab_size"], width, scale=0.3)
        self.normal(f"{scope}.wpe.weight", config["n_positions"], width, scale=0.3)
        for layer in range(config["n_layer"]):
            name = f"{scope}.h.{layer}"
            self.norm(f"{name}.ln_1", width)
            self.norm(f"{name}.ln_2", width)
            for part, inputs, outputs in (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)):
                self.normal(f"{name}.{part}.weight", inputs * width, outputs * width, scale=1.2 * (inputs * width) ** -0.5)
                self.normal(f"{name}.{part}.bias", outputs * width, scale=0.1)
        self.norm(f"{scope}.ln_f", width)

    def qwen2(self, config):
        width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        shared = width // heads * config["num_key_value_heads"]
        self.normal("model.embed_tokens.weight", config["vocab_size"], width, scale=0.3)
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            for part in ("input_layernorm", "post_attention_layernorm"):
                self.normal(f"{name}.{part}.weight", width, mean=1.0, scale=0.1)
            for part, outputs in (("q", width), ("k", shared), ("v", shared)):
                self.linear(f"{name}.self_attn.{part}_proj", outputs, width)
            self.normal(f"{name}.self_attn.o_proj.weight", width, width)
            self.normal(f"{name}.mlp.gate_proj.weight", inner, width)
            self.normal(f"{name}.mlp.up_proj.weight", inner, width)
            self.normal(f"{name}.mlp.down_proj.weight", width, inner)
        self.normal("model.norm.weight", width, mean=1.0, scale=0.1)
