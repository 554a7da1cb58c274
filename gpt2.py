"""GPT-2 from scratch: the language model that will be taught to see. It knows nothing of images.

           idx (B,T)
              |
       [ wte ] + [ wpe ]
              |  x (B,T,C)
    +---------+----------------------+
    |  x = x + attn(ln_1(x))         |  x L     every layer adds to x,
    |  x = x + mlp(ln_2(x))          |          the residual stream
    +---------+----------------------+
           [ ln_f ]
              |
     [ wte transposed ] -> logits (B,T,V)

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Reference code:
openai/gpt-2 src/model.py and transformers' GPT2LMHeadModel. Parameters keep the names of the
public files, so that loading is almost the identity.

This is the first of seven files. Three words stand in front of comments in all of them: "paper:",
where something stands in the paper; "differs:", from the paper or its code, and why; "pitfall:",
a mistake that people really make.

differs: no dropout. The pre-trained model is frozen here, and frozen parts should be deterministic.

R (or B) rows of text, T tokens, C width, L layers, nh heads, hs size of one, V vocabulary

Next: clip_vit.py
"""

from lib.cli import UserError, opt, parse, run  # isort: skip (lib before torch)
import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn as nn
import torch.nn.functional as F

from lib.decoding import sample_token
from lib.devices import attend
from weights.public import locate
from weights.reading import (drop_copy, head_count, layer_count, load_into, metadata, need_matrices,
                             read, read_config)
from weights.tokenizers import get_tokenizer


@dataclass
class GPT2Config:  # of the smallest public one, "gpt2"
    vocab_size: int = 50257
    n_positions: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768


class Cache:
    """Keys and values of the tokens already read, so that each new token is computed alone.

    Every layer has a length of its own: a method may put a prompt token into some layers only, or
    have layers above GPT-2's. Buffers for max_len tokens are made on first use.
    """

    def __init__(self, n_layer, max_len):
        self.kv = [None] * n_layer  # per layer a buffer (2, R, nh, max_len, hs)
        self.len = [0] * n_layer
        self.shared = [0] * n_layer  # tokens at the start that all beams of a prompt share
        self.max_len = max_len

    def add(self, l, k, v):
        """Appends k, v (R, nh, T, hs) to layer l and returns all of its keys and values."""
        R, nh, T, hs = k.shape
        n = self.len[l]
        if self.kv[l] is None:
            self.kv[l] = k.new_empty(2, R, nh, self.max_len, hs)
        if n + T > self.max_len:
            raise ValueError(f"the cache was made for {self.max_len} tokens, not {n + T}")
        self.kv[l][0, :, :, n:n + T] = k
        self.kv[l][1, :, :, n:n + T] = v
        self.len[l] = n + T
        return self.kv[l][:, :, :, :n + T].unbind(0)

    def repeat(self, k):
        """Row i becomes the group of rows i*k .. i*k + k-1: the beams of one prompt."""
        for l, kv in enumerate(self.kv):
            if kv is not None:
                self.shared[l] = self.len[l]  # the prompt, which reorder need never move
                self.kv[l] = kv.repeat_interleave(k, 1)

    def reorder(self, rows):
        """Row i continues what row rows[i] has read, a row of its own group."""
        moved = [(i, row) for i, row in enumerate(rows) if i != row]
        if not moved:
            return
        device = next(kv.device for kv in self.kv if kv is not None)
        to, source = torch.tensor(moved, device=device).T  # a list would be sent for every layer
        for kv, start, end in zip(self.kv, self.shared, self.len):
            if kv is not None:
                kv[:, to, :, start:end] = kv[:, source, :, start:end]


class Attention(nn.Module):
    """Causal multi-head self-attention, (R, T, C) -> (R, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # q, k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, l=0):
        R, T, C = x.shape
        split = self.c_attn(x).view(R, T, 3, self.n_head, C // self.n_head)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (R, nh, T, hs)
        if cache is not None:
            k, v = cache.add(l, k, v)
        S = k.shape[2]  # tokens to look at: those in the cache and the T new ones
        if S == T:
            y = attend(q, k, v, is_causal=True)
        elif T == 1:
            y = attend(q, k, v)  # a single new token sees all
        else:
            # pitfall: is_causal aligns a T x S mask at the top left. New tokens stand at the end:
            # the last of them sees all S keys.
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
            y = attend(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).reshape(R, T, C))


class MLP(nn.Module):
    """Two linear maps with a GELU between them, at every position alone."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        # pitfall: the exact GELU gives no error, only slightly wrong logits (nanoGPT PR #274).
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One layer: attention mixes positions, the MLP works on each; both add to x."""
    parts = {"ln_1": "attn", "ln_2": "mlp"}  # each norm, and what it stands before

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)  # eps 1e-5, torch's default, is GPT-2's
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, l=0):
        x = x + self.attn(self.ln_1(x), cache, l)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The whole model. gpt2(idx) maps token ids (B, T) to logits (B, T, V) for the next token."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.folder = None  # where its tokenizer files are, if it came from a folder
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for name, p in self.named_parameters():  # paper: section 2.3, for training from nothing
            if p.dim() == 2:
                deep = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1
                nn.init.normal_(p, std=0.02 / deep)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, idx, pos=0):
        """Ids (R, T) of the tokens at positions pos, pos + 1, ... -> x (R, T, C)."""
        T = idx.shape[1]
        if pos + T > self.config.n_positions:
            raise UserError(f"a text of {pos + T} tokens is too long, this GPT-2 has only "
                            f"{self.config.n_positions} positions; use a shorter prompt or fewer "
                            "new tokens")
        return self.wte(idx) + self.wpe(torch.arange(pos, pos + T, device=idx.device))

    room = property(lambda self: self.config.n_positions)  # tokens of the longest text

    def start(self, idx, state, run):
        """Rows of text (R, T) as model.py has them -> x; plm/ has models that read otherwise."""
        return self.embed(idx, state.pos)

    def head(self, x, norm=None):
        """The last states -> logits (.., V) in float32: a norm (None: ln_f), then the embedding."""
        weight = getattr(self.wte, "rounded", self.wte.weight)  # lib/devices.py, cast_matrices
        return F.linear((norm or self.ln_f)(x), weight).float()

    def forward(self, idx, cache=None):
        x = self.embed(idx, cache.len[0] if cache else 0)
        for l, block in enumerate(self.h):
            x = block(x, cache, l)
        return self.head(x)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0):
        """Continues ids (B, T) to (B, T + max_new_tokens), each new one chosen by sample_token."""
        cache = Cache(len(self.h), idx.shape[1] + max_new_tokens)
        for _ in range(max_new_tokens):
            logits = self(idx[:, cache.len[0]:], cache)[:, -1]
            idx = torch.cat([idx, sample_token(logits, temperature, top_k, top_p)[:, None]], 1)
        return idx

    @cached_property
    def tokenizer(self):
        """The tiktoken encoding of these weights, looked for when first asked for."""
        return get_tokenizer(self.folder, self.config.vocab_size)

    @property
    def eot(self):
        """The id that begins and ends a text. pitfall: a vocabulary may be padded behind it."""
        return self.tokenizer.eot_token

    @classmethod
    def from_pretrained(cls, name):
        """Loads "gpt2", "gpt2-medium", ... (`python -m weights` lists them), a file, or a folder as
        transformers' save_pretrained writes it; float32, eval mode. UserError if a tensor is
        missing, unknown or of the wrong shape."""
        path = locate(name)
        tensors = rename(read(path), path)
        return load_into(lambda: cls(infer_config(tensors, path)), tensors, path)


# ---------------------------------------------------------------------------- public weights

# OpenAI's code used "Conv1D" layers, which store (in, out); nn.Linear stores (out, in).
# pitfall: attn.c_proj is square, so a forgotten transpose raises no error.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Buffers that hold the causal mask. The leading dot matters: ".attn.c_attn.bias" must survive.
MASKS = (".attn.bias", ".attn.masked_bias")


def rename(theirs, path):
    """A public file's tensors under this file's names, transposed where needed."""
    ours = {}
    for key, t in theirs.items():
        key = key.removeprefix("transformer.")  # GPT2LMHeadModel adds it, the first files have none
        if not key.endswith(MASKS):
            ours[key] = t.t() if key.endswith(CONV1D) and t.dim() == 2 else t
    # Only files written by torch.save of a whole model hold the embedding twice.
    drop_copy(ours, "lm_head.weight", "wte.weight", "GPT-2", path)
    return ours


# What config.json may say about things that have no shape.
CONFIG = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
          "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)}


def infer_config(tensors, path):
    """Sizes from the tensors' shapes; the number of heads from config.json or the metadata."""
    need_matrices(tensors, ("wte.weight", "wpe.weight"), "GPT-2", path)
    V, C = tensors["wte.weight"].shape
    told = read_config(path, CONFIG).get("n_head", metadata(path).get("n_head"))
    return GPT2Config(V, len(tensors["wpe.weight"]), layer_count(tensors, "h.", path),
                      head_count(told, C, path), C)


@dataclass
class Config:
    prompt: list = opt(["Once upon a time"], "the text to continue", positional=True)
    lm: str = opt("gpt2", "a public name, a file or a folder", alias="gpt2")
    new: int = opt(50, "number of tokens to write")
    temperature: float = opt(0.8, "0: always the likeliest token; 1: as the model says")
    top_k: int = opt(50, "sample among this many tokens; 0: all")


def main(config):
    model = GPT2.from_pretrained(config.lm)
    ids = model.tokenizer.encode_ordinary(" ".join(config.prompt)) or [model.eot]
    out = model.generate(torch.tensor([ids]), config.new, config.temperature, config.top_k)
    print(model.tokenizer.decode(out[0].tolist()))


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
