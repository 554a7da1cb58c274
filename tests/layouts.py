"""The layouts in which public weights come, written by hand: what the loaders must understand.

Every function takes a folder, the tensors under the names and in the shapes of transformers 5, and
config.json as a dictionary. It writes the files and returns what a user would give to
from_pretrained: the folder, or one file in it.

Used by test_gpt2.py, test_clip_vit.py and the live comparisons in parity/.
"""

import itertools
import json
import re
import warnings
from collections import Counter
from pathlib import Path

import torch
import torch.nn as nn

GOLDEN = Path(__file__).resolve().parent / "golden"


def write_safetensors(path, tensors, metadata=None, odd=False):
    """The whole format: length of the header, header, numbers.

    odd: a header of odd length, like the one of gpt2's own file (14,283 bytes), so that no float32
    in the file begins at a multiple of four.
    """
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8",
             torch.bool: "BOOL"}
    table, place = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    for name, t in tensors.items():
        size = t.numel() * t.element_size()
        table[name] = {"dtype": kinds[t.dtype], "shape": list(t.shape),
                       "data_offsets": [place, place + size]}
        place += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8 + (1 if odd else 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for t in tensors.values():
            f.write(t.contiguous().numpy().tobytes())
    return path


def write_config(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def shards(folder, tensors, config, n=3):
    """A big model cut into n files, with an index that says which tensor is where."""
    write_config(folder, config)
    where = {}
    for i in range(n):
        names = list(tensors)[i::n]
        file = f"model-{i + 1:05}-of-{n:05}.safetensors"
        write_safetensors(folder / file, {k: tensors[k] for k in names})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


# ---------------------------------------------------------------------------- GPT-2

def bare(tensors):
    return {k.removeprefix("transformer."): t for k, t in tensors.items()}


def masks(tensors, prefix="", dtype=torch.float32):
    """The causal masks that older files carry as if they were weights; one number beside each."""
    n = next(len(t) for k, t in tensors.items() if k.endswith("wpe.weight"))
    layers = sum(k.endswith("attn.c_attn.weight") for k in tensors)
    out = {}
    for i in range(layers):
        out[f"{prefix}h.{i}.attn.bias"] = torch.ones(n, n).tril().view(1, 1, n, n).to(dtype)
        out[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return out


def gpt2_transformers_5(folder, tensors, config):
    """As GPT2LMHeadModel.save_pretrained writes it today: prefix, no masks, no lm_head."""
    write_safetensors(folder / "model.safetensors", tensors)
    return write_config(folder, config)


def gpt2_transformers_4(folder, tensors, config):
    """With what older versions wrote besides: the tied head a second time, and the masks."""
    extra = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    extra |= masks(tensors, "transformer.", torch.bool)
    write_config(folder, config)
    torch.save({**tensors, **extra}, folder / "pytorch_model.bin")
    return folder


def gpt2_public(folder, tensors, config):
    """The file that OpenAI's weights are published as: no prefix, float masks, an odd header."""
    write_safetensors(folder / "model.safetensors", {**masks(tensors), **bare(tensors)}, odd=True)
    return write_config(folder, config)


def gpt2_public_alone(folder, tensors, config):
    """The same without config.json: nothing but shapes tells the sizes, so heads must be 64 wide.
    Other sizes say their number of heads in the file's metadata."""
    notes = {} if config["n_embd"] == 64 * config["n_head"] else {"n_head": str(config["n_head"])}
    tensors = {**masks(tensors), **bare(tensors)}
    return write_safetensors(folder / "gpt2.safetensors", tensors, notes, odd=True)


def gpt2_public_bin(folder, tensors, config):
    """gpt2's pytorch_model.bin of 2019: torch's format from before the zip files."""
    write_config(folder, config)
    torch.save({**bare(tensors), **masks(tensors)}, folder / "pytorch_model.bin",
               _use_new_zipfile_serialization=False)
    return folder


def gpt2_half(folder, tensors, config):
    """Rounded to 16 bits, as many fine-tuned models are shared."""
    write_safetensors(folder / "model.safetensors", {k: t.half() for k, t in tensors.items()})
    return write_config(folder, config)


GPT2_LAYOUTS = {
    "transformers 5": gpt2_transformers_5,
    "transformers 4": gpt2_transformers_4,
    "public": gpt2_public,
    "public, alone": gpt2_public_alone,
    "public, .bin of 2019": gpt2_public_bin,
    "shards": shards,
}


# ---------------------------------------------------------------------------- CLIP

OLD_BUFFERS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")


def clip_transformers_5(folder, tensors, config):
    write_safetensors(folder / "model.safetensors", tensors, odd=True)
    return write_config(folder, config)


def clip_transformers_4(folder, tensors, config):
    """A .bin with the index buffers that were saved in former years."""
    write_config(folder, config)
    tensors = {**tensors, **{k: torch.arange(7)[None] for k in OLD_BUFFERS}}
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


def clip_vision(folder, tensors, config, prefix="", projection=False):
    """CLIPVisionModel (without the prefix since transformers 5), or ...WithProjection."""
    part = {prefix + k.removeprefix("vision_model."): t for k, t in tensors.items()
            if k.startswith("vision_model.")}
    if prefix:
        part[OLD_BUFFERS[0]] = torch.arange(7)[None]
    if projection:
        part["visual_projection.weight"] = tensors["visual_projection.weight"]
    write_safetensors(folder / "model.safetensors", part)
    return write_config(folder, {"model_type": "clip_vision_model", **config["vision_config"]})


def clip_vision_4(folder, tensors, config):
    return clip_vision(folder, tensors, config, prefix="vision_model.")


def clip_vision_projected(folder, tensors, config):
    return clip_vision(folder, tensors, config, prefix="vision_model.", projection=True)


def clip_open_clip(folder, tensors, config):
    """OpenAI's names in one safetensors file, as timm and open_clip share them."""
    heads = {f"{tower}_heads": str(config[f"{tower}_config"]["num_attention_heads"])
             for tower in ("vision", "text")}
    return write_safetensors(folder / "open_clip_model.safetensors", openai_names(tensors), heads)


CLIP_LAYOUTS = {
    "CLIPModel, transformers 5": clip_transformers_5,
    "CLIPModel, transformers 4": clip_transformers_4,
    "CLIPModel, shards": shards,
    "CLIPVisionModel, transformers 5": clip_vision,
    "CLIPVisionModel, transformers 4": clip_vision_4,
    "CLIPVisionModelWithProjection": clip_vision_projected,
    "open_clip": clip_open_clip,
}


def openai_names(tensors):
    """transformers' CLIPModel under OpenAI's names, spelt out one by one."""
    image, text = "vision_model.embeddings.", "text_model.embeddings."
    out = {"logit_scale": tensors["logit_scale"],
           "visual.class_embedding": tensors[image + "class_embedding"],
           "visual.conv1.weight": tensors[image + "patch_embedding.weight"],
           "visual.positional_embedding": tensors[image + "position_embedding.weight"],
           "visual.proj": tensors["visual_projection.weight"].t(),
           "token_embedding.weight": tensors[text + "token_embedding.weight"],
           "positional_embedding": tensors[text + "position_embedding.weight"],
           "text_projection": tensors["text_projection.weight"].t()}
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
    for model, ours in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        layers = sum(k.startswith(model) and k.endswith("mlp.fc1.bias") for k in tensors)
        for i, kind in itertools.product(range(layers), ("weight", "bias")):
            theirs, mine = f"{model}.encoder.layers.{i}", f"{ours}.resblocks.{i}"
            qkv = [tensors[f"{theirs}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            out[f"{mine}.attn.in_proj_{kind}"] = torch.cat(qkv)
            for a, b in (("self_attn.out_proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
                         ("mlp.fc2", "mlp.c_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
                out[f"{mine}.{b}.{kind}"] = tensors[f"{theirs}.{a}.{kind}"]
    return out


class OpenAIBlock(nn.Module):
    """OpenAI's block, with torch's own multi-head attention as in their code."""

    def __init__(self, width, heads, causal):
        super().__init__()
        self.causal = causal
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):  # (N, B, width)
        mask = torch.full((len(x), len(x)), -torch.inf).triu(1) if self.causal else None
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        h = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(h * torch.sigmoid(1.702 * h))


class OpenAITransformer(nn.Module):
    def __init__(self, width, layers, heads, causal=False):
        super().__init__()
        self.resblocks = nn.Sequential(*(OpenAIBlock(width, heads, causal) for _ in range(layers)))

    def forward(self, x):
        return self.resblocks(x)


class OpenAIVision(nn.Module):
    def __init__(self, size, patch, width, layers, heads, embed):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = OpenAITransformer(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed))

    def forward(self, images):
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding + torch.zeros(len(x), 1, x.shape[-1]), x], 1)
        x = self.ln_pre(x + self.positional_embedding).permute(1, 0, 2)
        return self.ln_post(self.transformer(x)[0]) @ self.proj


class OpenAICLIP(nn.Module):
    """The module tree of OpenAI's archives and what it computes: (images, idx) -> two features."""

    def __init__(self, size=32, patch=8, width=128, layers=2, heads=2, embed=48, context=11,
                 vocab=67, text_width=64, text_layers=3, text_heads=1):
        super().__init__()
        self.visual = OpenAIVision(size, patch, width, layers, heads, embed)
        self.transformer = OpenAITransformer(text_width, text_layers, text_heads, causal=True)
        self.token_embedding = nn.Embedding(vocab, text_width)
        self.positional_embedding = nn.Parameter(torch.empty(context, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.empty(text_width, embed))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("input_resolution", torch.tensor(size))
        self.register_buffer("context_length", torch.tensor(context))
        self.register_buffer("vocab_size", torch.tensor(vocab))

    def forward(self, images, idx):
        x = (self.token_embedding(idx) + self.positional_embedding).permute(1, 0, 2)
        x = self.ln_final(self.transformer(x).permute(1, 0, 2))
        text = x[torch.arange(len(idx)), idx.argmax(-1)] @ self.text_projection
        return self.visual(images), text

    def save(self, path, images, idx):
        """Writes a TorchScript archive, rounded to 16 bits where OpenAI's files are; only once.

        The norms, the embeddings and logit_scale stay in 32 bits. Gives back the features that the
        rounded weights give, computed in 32 bits.
        """
        narrow = re.compile(r"conv1|in_proj|out_proj|\bmlp|text_projection|visual\.proj$")
        for name, p in self.named_parameters():
            if narrow.search(name):
                p.data = p.data.half().float()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, but so are the files made
            script = torch.jit.trace(self, (images, idx), check_trace=False)
            features = self(images, idx)
            for name, p in script.named_parameters():  # they are self's: from here on it is spoilt
                p.data = p.data.half() if narrow.search(name) else p.data
            script.save(str(path))
            return features


def perturb(model, seed, scale=0.1):
    """Noise on every parameter: fresh norms are all 1 and biases all 0, which hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=scale)
    return model.eval()


# ---------------------------------------------------------------------------- byte-pair encoding

def learn_bpe(words, most):
    """Joins the most frequent neighbours again and again. words: lists of symbols -> the merges."""
    words, merges = Counter(tuple(w) for w in words), []
    while len(merges) < most:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs or max(pairs.values()) < 2:
            break
        a, b = best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        joined = Counter()
        for word, n in words.items():
            out = []
            for symbol in word:
                if out and out[-1] == a and symbol == b:
                    out[-1] = a + b
                else:
                    out.append(symbol)
            joined[tuple(out)] += n
        words = joined
    return merges
