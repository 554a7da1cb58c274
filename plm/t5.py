"""T5 from scratch: an encoder reads a text, a decoder writes another while it looks at the first.

   idx (B,S), mask (B,S)                  decoder_idx (B,T): 0, then what is written so far
          |                                      |
     [ shared ]                             [ shared ]
          |  x (B,S,C)                           |  x (B,T,C)
   +------+----------------+             +-------+------------------------------+
   | x = x + attn(ln_1(x)) |  x L'       | x = x + attn(ln_1(x))       causal   |  x L
   | x = x + mlp(ln_2(x))  |             | x = x + cross(ln_cross(x))  keys and |
   +------+----------------+             |      values from the encoder's text  |
   [ final_layer_norm ] ------(k)(v)---> | x = x + mlp(ln_2(x))                 |
                                         +-------+------------------------------+
                                         [ final_layer_norm ]
                                         [ shared transposed, or lm_head ] -> logits (B,T,V)

No token has a position of its own. Instead every score between two tokens gets a number that
depends on their distance, learnt for 32 classes of distances and each head: one table in each
stack, kept in its first layer and used by all of them.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", arXiv 1910.10683, section 2.1; version 1.1 (and Flan-T5): a gated MLP (Shazeer 2020,
arXiv 2002.05202) and an output matrix of its own. Reference code: mesh-tensorflow
transformer_layers.py and transformers' T5ForConditionalGeneration. Parameters keep the names of
the public files; a layer also has its parts under gpt2.py's names.

differs: no dropout, as in gpt2.py. pitfall: 16-bit floats overflow behind some of T5's wo.

B texts, S tokens of a text to read, T of one to write, C width, L layers, nh heads, hs size of one,
F width inside the MLP, V vocabulary
"""

import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root, for these:
from gpt2 import GPT2, Cache
from lib.cli import opt, parse, run
from lib.devices import attend
from plm.rows import start_t5
from weights.public import locate
from weights.reading import load_into
from weights.sentencepiece import get_t5_tokenizer
from weights.t5_layout import EOS, PAD, read_t5, sizes_of


@dataclass
class T5Config:  # of "t5-base"
    vocab_size: int = 32128
    n_encoder: int = 12  # layers that read
    n_layer: int = 12  # layers that write
    n_head: int = 12
    n_embd: int = 768
    n_inner: int = 3072
    head_size: int = 64
    n_buckets: int = 32  # classes of distances
    max_distance: int = 128
    gated: bool = False  # version 1.1: two maps into the MLP, one of them a gate
    tied: bool = True  # the output matrix is the embedding; version 1.1 has its own
    scaled: bool = True  # the last states are divided by sqrt(C); version 1.1 does not
    n_positions: int = 512  # as trained; longer texts are read, too


def bucket(distance, both, n, most):
    """The class, 0 .. n-1, of each distance (key's place minus query's), a tensor of any shape.

    Half of the classes are for one distance each, the others for ranges that grow to `most`, beyond
    which all is one class. both: keys behind the query have classes of their own, half of them;
    else such keys are not seen. Source: mesh-tensorflow, _relative_position_bucket."""
    n = n // 2 if both else n
    behind = n * (distance > 0) if both else 0
    distance = distance.abs() if both else (-distance).clamp(min=0)
    exact = n // 2
    far = (distance / exact).clamp(min=1).log() / math.log(most / exact) * (n - exact)
    far = (exact + far.long()).clamp(max=n - 1)
    return behind + torch.where(distance < exact, distance, far)


class Reading(Cache):
    """What the layers of one stack may look at. mask (B, S): what of the text is no padding. In
    the decoder, the encoder's states (B, S, C), and keys and values (B, nh, S, hs) of them for each
    layer. max_len: room in the cache for what is written, 0: nothing is kept."""

    def __init__(self, stack, mask, states=None, text=None, max_len=0):
        super().__init__(len(stack.block), max_len)
        self.stack, self.states, self.text = stack, states, text
        self.mask = mask.bool()[:, None, None]  # (B, 1, 1, S)
        self.biases = {}  # (T, S): what is below

    def repeat(self, k):
        super().repeat(k)
        self.mask = self.mask.repeat_interleave(k, 0)
        self.text = [[part.repeat_interleave(k, 0) for part in kv] for kv in self.text]

    def bias(self, T, S):
        """What is added to the scores of T queries, the last of S tokens: (1 or B, nh, T, S), minus
        infinity where nothing is seen. The same for all layers that see as many tokens."""
        if (T, S) not in self.biases:
            decodes, config = self.text is not None, self.stack.config
            table = self.stack.block[0].attn.relative_attention_bias
            places = torch.arange(S, device=table.weight.device)
            distance = places - places[S - T:, None]
            classes = bucket(distance, not decodes, config.n_buckets, config.max_distance)
            bias, hidden = table(classes).permute(2, 0, 1), distance > 0 if decodes else ~self.mask
            self.biases = {(T, S): bias[None].masked_fill(hidden, -math.inf)}
        return self.biases[T, S]


class Attention(nn.Module):
    """Tokens x (B, T, C) look at their own text or, if cross, at the encoder's -> (B, T, C)."""

    def __init__(self, config, cross=False, table=False):
        super().__init__()
        self.n_head, self.cross, inner = config.n_head, cross, config.n_head * config.head_size
        self.q, self.k, self.v = (nn.Linear(config.n_embd, inner, bias=False) for _ in "qkv")
        self.o = nn.Linear(inner, config.n_embd, bias=False)
        if table:
            self.relative_attention_bias = nn.Embedding(config.n_buckets, config.n_head)

    def split(self, x):
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (B, nh, T, hs)

    def project_kv(self, x):
        return self.split(self.k(x)), self.split(self.v(x))

    def forward(self, x, reading, l=0):
        if self.cross:
            (k, v), bias = reading.text[l], reading.mask
        else:
            k, v = self.project_kv(x)
            if reading.max_len:
                k, v = reading.add(l, k, v)
            bias = reading.bias(x.shape[1], k.shape[2])
        # pitfall: torch divides scores by sqrt(hs) unless told otherwise. T5 does not: its q were
        # smaller from the start.
        y = attend(self.split(self.q(x)), k, v, attn_mask=bias, scale=1.0)
        return self.o(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with a ReLU between them, or three with a gate (version 1.1)."""

    def __init__(self, config):
        super().__init__()
        self.gated = config.gated
        for name in ("wi_0", "wi_1") if config.gated else ("wi",):
            self.add_module(name, nn.Linear(config.n_embd, config.n_inner, bias=False))
        self.wo = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x):
        if not self.gated:
            return self.wo(F.relu(self.wi(x)))
        # pitfall: the files say "gelu" and mean its tanh form. Written out as the reference does:
        # torch's own rounds otherwise, which the unscaled logits of 1.1 enlarge to 6e-5.
        g = self.wi_0(x)
        g = 0.5 * g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g ** 3)))
        return self.wo(g * self.wi_1(x))


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2)) * weight. The encoder's last one may be run as if it were a layer."""
    parts = {}

    def forward(self, x, reading=None, l=0):
        return super().forward(x)


class Block(nn.Module):
    """One layer of either stack, x (B, T, C) -> (B, T, C): two parts or three, each with a norm."""

    def __init__(self, config, decoder, first):
        super().__init__()
        parts = {"SelfAttention": Attention(config, table=first),
                 "EncDecAttention": Attention(config, cross=True) if decoder else None,
                 "DenseReluDense": MLP(config)}
        self.layer = nn.ModuleList(
            nn.ModuleDict({name: part, "layer_norm": RMSNorm(config.n_embd, eps=1e-6)})
            for name, part in parts.items() if part)
        cross = {"ln_cross": "cross"} if decoder else {}
        self.parts = {"ln_1": "attn", **cross, "ln_2": "mlp"}

    # gpt2.py's names, and two for what GPT-2 has not.
    ln_1 = property(lambda self: self.layer[0]["layer_norm"])
    attn = property(lambda self: self.layer[0]["SelfAttention"])
    ln_cross = property(lambda self: self.layer[1]["layer_norm"])
    cross = property(lambda self: self.layer[1]["EncDecAttention"])
    ln_2 = property(lambda self: self.layer[-1]["layer_norm"])
    mlp = property(lambda self: self.layer[-1]["DenseReluDense"])

    def forward(self, x, reading, l=0):
        x = x + self.attn(self.ln_1(x), reading, l)
        if len(self.layer) == 3:  # in the decoder
            x = x + self.cross(self.ln_cross(x), reading, l)
        return x + self.mlp(self.ln_2(x))


class Stack(nn.Module):
    """The encoder or the decoder: n layers, the first with the table of distances, and a norm."""

    def __init__(self, config, decoder, n):
        super().__init__()
        self.config = config
        self.block = nn.ModuleList(Block(config, decoder, first=i == 0) for i in range(n))
        self.final_layer_norm = RMSNorm(config.n_embd, eps=1e-6)


class T5(nn.Module):
    """The whole model. t5(idx, mask, decoder_idx) maps a text to read (B, S) and the beginning of
    one to write (B, T) to logits (B, T, V) for its next tokens."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.folder = None  # where its tokenizer file is, if it came from a folder
        self.shared = nn.Embedding(config.vocab_size, config.n_embd)
        self.encoder = Stack(config, False, config.n_encoder)
        self.decoder = Stack(config, True, config.n_layer)
        self.lm_head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, False)
        for name, p in self.named_parameters():  # for training from nothing, as mesh-tensorflow
            if "block" in name and p.dim() == 2:
                inputs = config.n_embd if "relative" in name else p.shape[1]
                inputs *= config.head_size if name.endswith("q.weight") else 1
                nn.init.normal_(p, std=inputs ** -0.5)

    # What is asked of every language model, under gpt2.py's names: those of the decoder.
    wte = property(lambda self: self.shared)
    h = property(lambda self: self.decoder.block)
    ln_f = property(lambda self: self.decoder.final_layer_norm)
    reader = property(lambda self: [*self.encoder.block, self.encoder.final_layer_norm])
    eot = EOS  # ends a text; the decoder begins with another one, PAD
    start, room = start_t5, GPT2.room

    def embed(self, idx, pos=0):
        """Ids (B, T) -> x (B, T, C). Whatever the position: distances are the layers' business."""
        return self.shared(idx)

    def read(self, idx, mask=None, max_len=0, run=lambda l, layer, *args: layer(*args, l)):
        """The encoder: a text (B, S), mask True for tokens and False for padding -> the Reading
        that every layer of the decoder is given, layer(x, reading, l). run: how a layer runs."""
        mask = torch.ones_like(idx) if mask is None else mask
        reading, x = Reading(self.encoder, mask), self.embed(idx)
        for l, layer in enumerate(self.reader):
            x = run(l, layer, x, reading)
        text = [layer.cross.project_kv(x) for layer in self.h]  # once, however much is written
        return Reading(self.decoder, mask, x, text, max_len)

    def head(self, x, norm=None):
        """The last states -> logits (.., V) in float32, with ln_f or another norm."""
        x = (norm or self.ln_f)(x)
        x = x * self.config.n_embd ** -0.5 if self.config.scaled else x
        head = self.lm_head or self.shared
        return F.linear(x, getattr(head, "rounded", head.weight)).float()

    def write(self, decoder_idx, reading):
        """The decoder: ids (B, T), those behind what is in the reading's cache -> (B, T, V)."""
        x = self.embed(decoder_idx)
        for l, layer in enumerate(self.h):
            x = layer(x, reading, l)
        return self.head(x)

    def forward(self, idx, mask, decoder_idx):
        return self.write(decoder_idx, self.read(idx, mask))

    @cached_property
    def tokenizer(self):
        """The SentencePiece of these weights with T5's sentinels, looked for when asked for."""
        return get_t5_tokenizer(self.folder, self.config.vocab_size)

    @classmethod
    def from_pretrained(cls, name):
        """Loads "t5-base", a file, or a folder as transformers' save_pretrained writes it; float32,
        eval mode. UserError if a tensor is missing, unknown or of the wrong shape."""
        path = locate(name)
        tensors, told = read_t5(path)
        return load_into(lambda: cls(T5Config(**sizes_of(tensors, told, path))), tensors, path)


# ---------------------------------------------------------------------------- its own command

@torch.no_grad()
def generate(t5, idx, mask=None, max_new_tokens=50):
    """Reads ids (B, S), writes the likeliest token each time -> ids (B, up to max_new_tokens).
    A row that has ended with EOS goes on with PAD."""
    reading, out = t5.read(idx, mask, max_new_tokens), idx.new_full((len(idx), 1), PAD)
    while out.shape[1] <= max_new_tokens and not (ended := (out == EOS).any(1)).all():
        token = t5.write(out[:, -1:], reading)[:, -1].argmax(-1).masked_fill(ended, PAD)
        out = torch.cat([out, token[:, None]], 1)
    return out[:, 1:]


@dataclass
class Config:
    prompt: list = opt(["translate English to German: The house is wonderful."],
                       "the text to read; <extra_id_0> marks a hole", positional=True)
    lm: str = opt("t5-base", "a public name, a file or a folder")
    new: int = opt(50, "number of tokens to write at most")


def main(config):
    t5 = T5.from_pretrained(config.lm)
    idx = torch.tensor([t5.tokenizer.encode(" ".join(config.prompt))])
    print(t5.tokenizer.decode(generate(t5, idx, max_new_tokens=config.new)[0].tolist()))


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
