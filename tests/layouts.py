"""The layouts in which public weights come, written by hand: what the loaders must understand.

Every function takes a folder, the tensors under the names and in the shapes of transformers 5, and
config.json as a dictionary. It writes the files and returns what a user would give to
from_pretrained: the folder, or one file in it.

Used by test_gpt2.py, test_clip_vit.py and the live comparisons in parity/.
"""

import json
import re
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn

from data.shapes.export import BLOCK, TEXT, VISION

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
    header += b" " * (-len(header) % 8 + odd)
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


def saved(folder, tensors, config, odd=False):
    """As transformers 5 saves a model: for GPT-2 with a prefix, without masks and lm_head."""
    write_safetensors(folder / "model.safetensors", tensors, odd=odd)
    return write_config(folder, config)


def pickled(folder, tensors, config, zipped=False):
    """A pytorch_model.bin; not zipped: in torch's format of before 2020."""
    torch.save(tensors, write_config(folder, config) / "pytorch_model.bin",
               _use_new_zipfile_serialization=zipped)
    return folder


def shards(folder, tensors, config, n=3):
    """A big model cut into n files, with an index that says which tensor is where."""
    where = {}
    for i in range(n):
        file, part = f"model-{i + 1:05}-of-{n:05}.safetensors", list(tensors)[i::n]
        write_safetensors(folder / file, {k: tensors[k] for k in part})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return write_config(folder, config)


# ---------------------------------------------------------------------------- GPT-2

def masks(tensors, prefix="", dtype=torch.float32):
    """The causal masks that older files carry as if they were weights; one number beside each."""
    n, out = len(tensors["transformer.wpe.weight"]), {}
    for i in range(sum(k.endswith("attn.c_attn.weight") for k in tensors)):
        out[f"{prefix}h.{i}.attn.bias"] = torch.ones(n, n).tril().view(1, 1, n, n).to(dtype)
        out[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return out


def public(tensors):
    """The names of the files that OpenAI's weights are published as: no prefix, float masks."""
    return masks(tensors) | {k.removeprefix("transformer."): t for k, t in tensors.items()}


def gpt2_transformers_4(folder, tensors, config):
    """With what older versions wrote besides: the tied head a second time, and the masks."""
    extra = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    extra |= masks(tensors, "transformer.", torch.bool)
    return pickled(folder, tensors | extra, config, zipped=True)


def gpt2_public(folder, tensors, config):
    """gpt2's own file of today, whose header has an odd length."""
    return saved(folder, public(tensors), config, odd=True)


def gpt2_public_alone(folder, tensors, config):
    """The same without config.json: nothing but shapes tells the sizes, so heads must be 64 wide.
    Other sizes say their number of heads in the file's metadata."""
    notes = {} if config["n_embd"] == 64 * config["n_head"] else {"n_head": str(config["n_head"])}
    return write_safetensors(folder / "gpt2.safetensors", public(tensors), notes, odd=True)


def gpt2_half(folder, tensors, config):
    """Rounded to 16 bits, as many fine-tuned models are shared."""
    return saved(folder, {k: t.half() for k, t in tensors.items()}, config)


GPT2_LAYOUTS = {"transformers 5": saved, "transformers 4": gpt2_transformers_4,
                "public": gpt2_public, "public, alone": gpt2_public_alone,
                "public, .bin of 2019": lambda *args: pickled(args[0], public(args[1]), args[2]),
                "shards": shards}


# ---------------------------------------------------------------------------- CLIP

OLD_BUFFERS = {f"{tower}_model.embeddings.position_ids": torch.arange(7)[None]
               for tower in ("vision", "text")}


def clip_transformers_4(folder, tensors, config):
    """A .bin with the index buffers that older versions saved."""
    return pickled(folder, tensors | OLD_BUFFERS, config)


def clip_vision(folder, tensors, config, prefix="", more=()):
    """CLIPVisionModel (prefix and index buffers until transformers 4) and more tensors."""
    theirs = tensors | OLD_BUFFERS if prefix else tensors
    part = {prefix + k.removeprefix("vision_model."): t for k, t in theirs.items()
            if k.startswith("vision_model.")}
    config = {"model_type": "clip_vision_model", **config["vision_config"]}
    return saved(folder, part | {k: tensors[k] for k in more}, config)


def clip_open_clip(folder, tensors, config):
    """OpenAI's names in one safetensors file, as timm and open_clip share them."""
    heads = {f"{tower}_heads": str(config[f"{tower}_config"]["num_attention_heads"])
             for tower in ("vision", "text")}
    return write_safetensors(folder / "open_clip_model.safetensors", openai_names(tensors), heads)


CLIP_LAYOUTS = {"CLIPModel, transformers 5": partial(saved, odd=True),
                "CLIPModel, transformers 4": clip_transformers_4,
                "CLIPModel, shards": shards,
                "CLIPVisionModel, transformers 5": clip_vision,
                "CLIPVisionModel, transformers 4": partial(clip_vision, prefix="vision_model."),
                "CLIPVisionModelWithProjection": partial(
                    clip_vision, prefix="vision_model.", more=["visual_projection.weight"]),
                "open_clip": clip_open_clip}


def openai_names(tensors):
    """transformers' CLIPModel under OpenAI's names, q, k and v in one tensor."""
    names = {theirs: f"visual.{ours}" for ours, theirs in VISION.items()}
    names |= {theirs: ours for ours, theirs in (TEXT | BLOCK).items()}
    out = {}
    for key, t in tensors.items():
        if "q_proj." in key:
            t = torch.cat([tensors[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
        elif "_projection" in key:
            t = t.t()
        key = key.replace("q_proj.", "in_proj_")
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        if "k_proj" not in key and "v_proj" not in key:
            out[key] = t
    return out


def module(**parts):
    out = nn.Module()
    for name, part in parts.items():
        setattr(out, name, part)
    return out


def empty(*shape):
    return nn.Parameter(torch.empty(shape))


def openai_transformer(width, layers, heads):
    """OpenAI's blocks, with torch's own multi-head attention as in their code."""
    return module(resblocks=nn.Sequential(*(module(
        attn=nn.MultiheadAttention(width, heads), ln_1=nn.LayerNorm(width),
        ln_2=nn.LayerNorm(width), mlp=module(c_fc=nn.Linear(width, 4 * width),
                                             c_proj=nn.Linear(4 * width, width)))
        for _ in range(layers))))


def run(transformer, x, mask=None):  # x (N, B, width)
    for block in transformer.resblocks:
        h = block.ln_1(x)
        x = x + block.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        h = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(h * torch.sigmoid(1.702 * h))
    return x


class OpenAICLIP(nn.Module):
    """The module tree of OpenAI's archives and what it computes: (images, idx) -> two features."""

    def __init__(self):
        super().__init__()
        self.visual = module(
            conv1=nn.Conv2d(3, 128, 8, stride=8, bias=False), class_embedding=empty(128),
            positional_embedding=empty(17, 128), ln_pre=nn.LayerNorm(128),
            transformer=openai_transformer(128, 2, 2), ln_post=nn.LayerNorm(128),
            proj=empty(128, 48))
        self.transformer = openai_transformer(64, 3, 1)
        self.token_embedding, self.positional_embedding = nn.Embedding(67, 64), empty(11, 64)
        self.ln_final, self.text_projection = nn.LayerNorm(64), empty(64, 48)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for name, n in (("input_resolution", 32), ("context_length", 11), ("vocab_size", 67)):
            self.register_buffer(name, torch.tensor(n))

    def forward(self, images, idx):
        v = self.visual
        x = v.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([v.class_embedding + torch.zeros(len(x), 1, x.shape[-1]), x], 1)
        x = run(v.transformer, v.ln_pre(x + v.positional_embedding).permute(1, 0, 2))
        image_features = v.ln_post(x[0]) @ v.proj
        x = (self.token_embedding(idx) + self.positional_embedding).permute(1, 0, 2)
        x = run(self.transformer, x, torch.full((len(x), len(x)), -torch.inf).triu(1))
        x = self.ln_final(x.permute(1, 0, 2))[torch.arange(len(idx)), idx.argmax(-1)]
        return image_features, x @ self.text_projection

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
