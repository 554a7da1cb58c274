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
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root, for these:
from gpt2 import Cache
from lib.cli import UserError, opt, parse, run
from plm.rows import split_rows
from weights.public import locate
from weights.reading import layer_count, load_into, read, read_config
from weights.sentencepiece import get_t5_tokenizer

PAD, EOS = 0, 1  # the decoder starts with PAD; a text ends with EOS


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

    def __init__(self, stack, mask=None, states=None, text=None, max_len=0):
        super().__init__(len(stack.block), max_len)
        self.stack, self.states, self.text = stack, states, text
        self.mask = None if mask is None else mask.bool()[:, None, None]  # (B, 1, 1, S)
        self.shape, self.scores = None, None

    def repeat(self, k):
        super().repeat(k)
        self.mask = None if self.mask is None else self.mask.repeat_interleave(k, 0)
        self.text = [[part.repeat_interleave(k, 0) for part in kv] for kv in self.text]

    def bias(self, T, S):
        """What is added to the scores of T queries, the last of S tokens: (1 or B, nh, T, S). The
        same for all layers that see as many tokens."""
        if self.shape != (T, S):
            self.shape, self.scores = (T, S), self.stack.bias(T, S)
            if self.text is None and self.mask is not None:
                self.scores = self.scores.masked_fill(~self.mask, -math.inf)
        return self.scores


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
        y = F.scaled_dot_product_attention(self.split(self.q(x)), k, v, attn_mask=bias, scale=1.0)
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

    def __init__(self, config):
        super().__init__(config.n_embd, eps=1e-6)

    def forward(self, x, reading=None, l=0):
        return super().forward(x)


class Block(nn.Module):
    """One layer of either stack, x (B, T, C) -> (B, T, C): two parts or three, each with a norm."""

    def __init__(self, config, decoder, first):
        super().__init__()
        parts = {"SelfAttention": Attention(config, table=first),
                 "EncDecAttention": Attention(config, cross=True) if decoder else None,
                 "DenseReluDense": MLP(config)}
        self.layer = nn.ModuleList(nn.ModuleDict({name: part, "layer_norm": RMSNorm(config)})
                                   for name, part in parts.items() if part)
        self.parts = {"ln_1": "attn", "ln_cross": "cross", "ln_2": "mlp"}  # as in gpt2.py
        if not decoder:
            del self.parts["ln_cross"]

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
    """The encoder or the decoder: layers, a last norm, and the table of distances."""

    def __init__(self, config, decoder, n):
        super().__init__()
        self.config, self.decoder = config, decoder
        self.block = nn.ModuleList(Block(config, decoder, first=i == 0) for i in range(n))
        self.final_layer_norm = RMSNorm(config)

    def bias(self, T, S):
        """The table's numbers for the last T of S tokens as queries: (1, nh, T, S). The decoder
        sees nothing behind a query: there they are minus infinity."""
        table = self.block[0].attn.relative_attention_bias
        places = torch.arange(S, device=table.weight.device)
        distance = places - places[S - T:, None]
        n, most = self.config.n_buckets, self.config.max_distance
        scores = table(bucket(distance, not self.decoder, n, most)).permute(2, 0, 1)[None]
        return scores.masked_fill(distance > 0, -math.inf) if self.decoder else scores


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
        self.lm_head = None
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
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

    def embed(self, idx, pos=0):
        """Ids (B, T) -> x (B, T, C). Whatever the position: distances are the layers' business."""
        return self.shared(idx)

    def read(self, idx, mask=None, max_len=0, run=lambda l, layer, *args: layer(*args, l)):
        """The encoder: a text (B, S), mask True for tokens and False for padding -> the Reading
        that every layer of the decoder is given, layer(x, reading, l). run: how a layer runs."""
        reading, x = Reading(self.encoder, mask), self.embed(idx)
        for l, layer in enumerate(self.reader):
            x = run(l, layer, x, reading)
        text = [layer.cross.project_kv(x) for layer in self.h]  # once, however much is written
        return Reading(self.decoder, mask, x, text, max_len)

    def start(self, idx, state, run):
        """Rows of text as model.py has them: the encoder reads the conditions, its layers by their
        places from the end, run(l - n, layer, x, None, state) -> x (R, T', C) of the decoder."""
        def run_here(l, layer, x, reading):
            state.cache = reading
            return run(l - len(self.reader), layer, x, None, state)

        if state.pos:
            return self.embed(idx)
        text, mask, idx, state.wanted = split_rows(idx, state.condition_len, state.wanted, PAD, EOS)
        state.cache = self.read(text, mask, state.cache.max_len if state.cache else 0, run_here)
        seen = mask[..., None]
        state.summary = (state.cache.states * seen).sum(1, True) / seen.sum(1, True)  # the mean
        state.condition_len = None
        return self.embed(idx)

    def head(self, x, norm=None):
        """The last states -> logits (.., V) in float32, with ln_f or another norm."""
        x = (norm or self.ln_f)(x)
        x = x * self.config.n_embd ** -0.5 if self.config.scaled else x
        return F.linear(x, (self.lm_head or self.shared).weight).float()

    def write(self, decoder_idx, reading):
        """The decoder: ids (B, T), those behind what is in the reading's cache -> (B, T, V)."""
        x = self.embed(decoder_idx)
        for l, layer in enumerate(self.h):
            x = layer(x, reading, l)
        return self.head(x)

    def forward(self, idx, mask, decoder_idx):
        return self.write(decoder_idx, self.read(idx, mask))

    @torch.no_grad()
    def generate(self, idx, mask=None, max_new_tokens=50):
        """Reads ids (B, S), writes the likeliest token each time -> ids (B, up to max_new_tokens).
        A row that has ended with EOS goes on with PAD."""
        reading = self.read(idx, mask, max_new_tokens)
        out = idx.new_full((len(idx), 1), PAD)
        ended = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
        while out.shape[1] <= max_new_tokens and not ended.all():
            token = self.write(out[:, -1:], reading)[:, -1].argmax(-1).masked_fill(ended, PAD)
            out, ended = torch.cat([out, token[:, None]], 1), ended | (token == EOS)
        return out[:, 1:]

    @cached_property
    def tokenizer(self):
        """The SentencePiece of these weights with T5's sentinels, looked for when asked for."""
        return get_t5_tokenizer(self.folder, self.config.vocab_size)

    @property
    def eot(self):
        """The id that ends a text. The decoder begins with another one, PAD."""
        return EOS

    @classmethod
    def from_pretrained(cls, name):
        """Loads "t5-base", a file, or a folder as transformers' save_pretrained writes it; float32,
        eval mode. UserError if a tensor is missing, unknown or of the wrong shape."""
        path = locate(name)
        told = read_config(path, CONFIG)
        tensors = rename(read(path), told, path)
        model = load_into(lambda: cls(infer_config(tensors, told, path)), tensors, path)
        model.folder = path if os.path.isdir(path) else path.parent
        return model


# ---------------------------------------------------------------------------- public weights

# Some files hold the embedding again for each stack, and t5-base a table that no code reads: in
# cross-attention there are no distances.
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
TABLE = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def rename(theirs, told, path):
    """A public file's tensors without copies: of the embedding, and of it as the output matrix."""
    ours = {key: t for key, t in theirs.items() if key not in (*COPIES, UNUSED)}
    for key in COPIES:
        if key in theirs and not torch.equal(ours.setdefault("shared.weight", theirs[key]),
                                             theirs[key]):
            raise UserError(f"{path}: {key} differs from shared.weight, but T5 shares the two")
    if told.get("tie_word_embeddings") is not False and "shared.weight" in ours and torch.equal(
            ours.get("lm_head.weight", torch.empty(0)), ours["shared.weight"]):
        del ours["lm_head.weight"]
    return ours


# What config.json may say about things that have no shape.
CONFIG = {"feed_forward_proj": ("relu", "gated-gelu"), "dense_act_fn": ("relu", "gelu_new"),
          "layer_norm_epsilon": (1e-6,), "pad_token_id": (PAD,), "eos_token_id": (EOS,),
          "decoder_start_token_id": (PAD, None), "is_encoder_decoder": (True,),
          "tie_word_embeddings": (True, False), "scale_decoder_outputs": (True, False, None),
          "relative_attention_max_distance": (128,)}


def infer_config(tensors, told, path):
    """Sizes from the tensors' shapes: even the heads, a column each in the table of distances."""
    q, wi = "encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.1.{}.weight"
    gated = any(".DenseReluDense.wi_" in key for key in tensors)
    wi = wi.format("DenseReluDense.wi_0" if gated else "DenseReluDense.wi")
    for key in ("shared.weight", TABLE.format("encoder"), TABLE.format("decoder"), q, wi):
        if key not in tensors or tensors[key].dim() != 2 or 0 in tensors[key].shape:
            raise UserError(f"{path}: no matrix {key}, so this is not a T5 with both of its "
                            f"stacks; it holds {', '.join(sorted(tensors)[:3])}, ...")
    (V, C), (n, heads) = tensors["shared.weight"].shape, tensors[TABLE.format("encoder")].shape
    layers = [layer_count(tensors, f"{side}.block.", path) for side in ("encoder", "decoder")]
    if len(tensors[q]) % heads or n < 4:
        raise UserError(f"{path}: queries of {len(tensors[q])} numbers cannot be split into "
                        f"{heads} heads, or {n} classes of distances are too few")
    # pitfall: version 5 of transformers writes that all is tied, whatever is in the file, and apart
    # from it what is scaled; version 4 knows only "tied". Without a config the head itself tells.
    tied = "lm_head.weight" not in tensors
    if tied and told.get("tie_word_embeddings") is False:
        raise UserError(f"{path}: lm_head.weight is missing, and config.json says that the output "
                        "matrix is not the embedding")
    scaled = told.get("scale_decoder_outputs")
    scaled = told.get("tie_word_embeddings", tied or bool(told)) if scaled is None else scaled
    return T5Config(V, *layers, heads, C, len(tensors[wi]),
                    len(tensors[q]) // heads, n, gated=gated, tied=tied, scaled=scaled)


@dataclass
class Config:
    prompt: list = opt(["translate English to German: The house is wonderful."],
                       "the text to read; <extra_id_0> marks a hole", positional=True)
    lm: str = opt("t5-base", "a public name, a file or a folder")
    new: int = opt(50, "number of tokens to write at most")


def main(config):
    t5 = T5.from_pretrained(config.lm)
    idx = torch.tensor([t5.tokenizer.encode(" ".join(config.prompt))])
    print(t5.tokenizer.decode(t5.generate(idx, max_new_tokens=config.new)[0].tolist()))


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
