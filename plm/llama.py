"""LLaMA from scratch: the decoder that most language models of today resemble. Reads like gpt2.py.

           idx (B,T)
              |
           [ wte ]            no positions here: attention turns queries and keys by theirs
              |  x (B,T,C)
    +---------+----------------------+
    |  x = x + attn(ln_1(x))         |  x L    RMSNorm, rotary positions, shared key heads
    |  x = x + mlp(ln_2(x))          |         SwiGLU; nowhere a bias
    +---------+----------------------+
           [ ln_f ]
              |
          [ lm_head ] -> logits (B,T,V)        or wte transposed, where the two are tied

paper: Touvron et al. 2023, "LLaMA", arXiv 2302.13971, section 2.2 lists what is not as in GPT-2;
here that is RMSNorm, rotate, Attention and MLP. Reference code: meta-llama/llama llama/model.py and
transformers' LlamaForCausalLM.

differs: layers have the names of gpt2.py, ln_1, attn, ln_2 and mlp, and a norm is called a norm:
so what is written around GPT-2's layers fits around these. What is inside attn and mlp keeps the
names of transformers' files. No dropout, as in gpt2.py (the released models have none).

R (or B) rows of text, T tokens, C width, L layers, nh heads of queries, kv heads of keys, hs size
of one, F width inside the MLP, V vocabulary
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root, for these:
from gpt2 import GPT2
from lib.cli import UserError, opt, parse, run
from lib.devices import attend
from weights.llama_layouts import read_llama, told_number, told_rope
from weights.public import locate
from weights.reading import drop_copy, layer_count, load_into, need_matrices, weight_file


@dataclass
class LLaMAConfig:  # of the smallest public one, SmolLM2-135M
    vocab_size: int = 49152
    n_positions: int = 8192
    n_layer: int = 30
    n_head: int = 9
    n_kv_head: int = 3  # as many as n_head: every query head has keys of its own
    n_embd: int = 576
    head_size: int = 64
    n_inner: int = 1536
    eps: float = 1e-5
    rope_theta: float = 1e5
    rope_divisors: tuple = ()  # hs/2 numbers, if frequencies are divided for longer texts
    tied: bool = True


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2)) * weight: LayerNorm without mean and bias, (.., C) -> (.., C).

    paper: Zhang and Sennrich 2019, arXiv 1910.07467. pitfall: x is rounded back to its 16 bits
    before it meets the weight, as in Meta's code; the other order rounds differently.
    """

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.eps = config.eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


def rotate(x, start, config):
    """Turns queries or keys x (R, nh, T, hs) that stand at positions start, start + 1, ...

    Numbers i and i + hs/2 of a head are a point in a plane, which position p turns by the angle
    p * theta^(-2i/hs). A query times a key then depends on how far apart they stand, not on where.
    paper: Su et al. 2021, "RoFormer", arXiv 2104.09864, section 3.2.
    pitfall: the paper, Meta's files and GGUF take the neighbours 2i and 2i + 1 instead. With the
    wrong ones a text is almost right for some ten tokens. weights/llama_layouts.py makes all alike.
    """
    i = torch.arange(0, config.head_size, 2, device=x.device)
    freq = 1 / config.rope_theta ** (i / config.head_size)  # (hs/2,)
    if config.rope_divisors:
        freq = freq / torch.tensor(config.rope_divisors, device=x.device)
    p = torch.arange(start, start + x.shape[2], device=x.device)
    angle = p[:, None] * freq  # (T, hs/2); in 32 bits, or distant positions would fall together
    a, b = x.float().chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).type_as(x)


class Attention(nn.Module):
    """Causal self-attention in which nh/kv heads of queries share the keys and values of one.

    paper: Ainslie et al. 2023, "GQA", arXiv 2305.13245, section 2.2. The cache holds kv heads.

    A layer counts positions by itself: a token stands where the cache of its layer ends. So where a
    method puts a prompt token in front from layer K on, the text moves one place on from there,
    which rotary positions never notice: all distances in the text stay.
    """

    def __init__(self, config):
        super().__init__()
        self.config, C, hs = config, config.n_embd, config.head_size
        self.q_proj = nn.Linear(C, config.n_head * hs, bias=False)
        self.k_proj = nn.Linear(C, config.n_kv_head * hs, bias=False)
        self.v_proj = nn.Linear(C, config.n_kv_head * hs, bias=False)
        self.o_proj = nn.Linear(config.n_head * hs, C, bias=False)

    def forward(self, x, cache=None, l=0):
        R, T, _ = x.shape
        q, k, v = (proj(x).view(R, T, -1, self.config.head_size).transpose(1, 2)  # (R, .., T, hs)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        start = 0 if cache is None else cache.len[l]
        q, k = rotate(q, start, self.config), rotate(k, start, self.config)
        if cache is not None:
            k, v = cache.add(l, k, v)
        S = k.shape[2]  # tokens to look at, as in gpt2.py
        mask = {"is_causal": True} if S == T else {}
        if S > T > 1:
            mask["attn_mask"] = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # (R, nh, S, hs)
        y = attend(q, k, v, **mask)
        return self.o_proj(y.transpose(1, 2).reshape(R, T, -1))


class MLP(nn.Module):
    """SwiGLU: one linear map, times the SiLU of another, then a third, at every position alone.

    paper: Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202, equation 6.
    """

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer, word for word GPT-2's."""
    parts = {"ln_1": "attn", "ln_2": "mlp"}

    def __init__(self, config):
        super().__init__()
        self.ln_1 = RMSNorm(config)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, l=0):
        x = x + self.attn(self.ln_1(x), cache, l)
        return x + self.mlp(self.ln_2(x))


class LLaMA(nn.Module):
    """The whole model. llama(idx) maps token ids (B, T) to logits (B, T, V) for the next token."""

    def __init__(self, config):
        super().__init__()
        self.config, self.folder = config, None  # where its tokenizer is: a folder or a GGUF file
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = RMSNorm(config)
        self.lm_head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, False)
        for name, p in self.named_parameters():  # the paper does not say; this is GPT-2's start
            if p.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * config.n_layer) if last else 1))

    def embed(self, idx, pos=0):
        """Ids (R, T) of the tokens at positions pos, pos + 1, ... -> x (R, T, C)."""
        if pos + idx.shape[1] > self.config.n_positions:
            raise UserError(f"a text of {pos + idx.shape[1]} tokens is too long, this LLaMA has "
                            f"learnt {self.config.n_positions} positions; use a shorter prompt or "
                            "fewer new tokens")
        return self.wte(idx)

    def head(self, x, norm=None):
        """The last states -> logits (.., V) in float32, with ln_f or another norm."""
        head = self.wte if self.lm_head is None else self.lm_head
        return F.linear((norm or self.ln_f)(x), getattr(head, "rounded", head.weight)).float()

    # Layer after layer, token after token, and the tokenizer: nothing here differs from GPT-2.
    forward, generate, start = GPT2.forward, GPT2.generate, GPT2.start
    tokenizer, eot, room = GPT2.tokenizer, GPT2.eot, GPT2.room

    @classmethod
    def from_pretrained(cls, name):
        """Loads "smollm2", a GGUF file, or a folder as transformers or Meta write it; float32, eval
        mode. UserError if a tensor is missing, unknown or of the wrong shape."""
        path = weight_file(locate(name))
        tensors, told = read_llama(path)
        tensors = rename(tensors, path)
        config = infer_config(tensors, told, path)
        model = load_into(lambda: cls(config), tensors, path)
        if "tokenizer.ggml.tokens" in told:
            model.folder = path  # the file itself
        return model


# ---------------------------------------------------------------------------- public weights

# transformers' names -> ours. Meta's and GGUF's become transformers' in weights/llama_layouts.py.
RENAME = {"embed_tokens": "wte", "input_layernorm": "ln_1", "self_attn": "attn",
          "post_attention_layernorm": "ln_2", "norm": "ln_f", "layers": "h"}


def rename(theirs, path):
    ours = {".".join(RENAME.get(w, w) for w in key.split(".")): t for key, t in theirs.items()}
    if len(ours) < len(theirs):
        raise UserError(f"{path}: a tensor is there twice, under two names")
    return ours


def infer_config(tensors, told, path):
    """The config, from shapes where there are some, else as config.json tells. Takes the copy of a
    tied head out of tensors."""
    q, gate = "h.0.attn.q_proj.weight", "h.0.mlp.gate_proj.weight"
    need_matrices(tensors, ("wte.weight", q, gate), "LLaMA", path)
    if tied := bool(told.get("tie_word_embeddings")):
        drop_copy(tensors, "lm_head.weight", "wte.weight", "tied LLaMA", path)
    number = partial(told_number, told, path=path)
    (V, C), Q = tensors["wte.weight"].shape, len(tensors[q])
    there = layer_count(tensors, "h.", path)
    L, nh = number("num_hidden_layers"), number("num_attention_heads")
    kv, hs = number("num_key_value_heads", nh), number("head_dim", max(1, Q // nh))
    if L != there or nh * hs != Q or hs % 2 or nh % kv:
        raise UserError(f"{path}: {there} layers and {Q} numbers a query are there, the config "
                        f"says {L} layers, {nh} heads ({kv} of keys) of size {hs}")
    return LLaMAConfig(V, number("max_position_embeddings", 2048), L, nh, kv, C, hs,
                       len(tensors[gate]), number("rms_norm_eps", 1e-6, whole=False),
                       *told_rope(told, hs, path), tied)


# ---------------------------------------------------------------------------- its own command

@dataclass
class Config:
    prompt: list = opt(["Once upon a time"], "the text to continue", positional=True)
    lm: str = opt("smollm2", "a public name, a file or a folder")
    new: int = opt(50, "number of tokens to write")
    temperature: float = opt(0.0, "0: always the likeliest token; 1: as the model says")
    top_k: int = opt(50, "sample among this many tokens; 0: all")


def main(config):
    model = LLaMA.from_pretrained(config.lm)
    ids = model.tokenizer.encode_ordinary(" ".join(config.prompt))
    begin = model.eot if model.tokenizer.bos is None and not ids else model.tokenizer.bos
    ids = ids if begin is None else [begin, *ids]
    out = model.generate(torch.tensor([ids]), config.new, config.temperature, config.top_k)
    print(model.tokenizer.decode(out[0].tolist()))


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
