"""BERT from scratch: an encoder that reads a whole text at once and fills in the words left out.

           idx (B,T)        mask (B,T): True for tokens, False for padding
              |               |
   [ words + positions ]      |
   [ + types ] [ LayerNorm ]  |
              |  x (B,T,C)    |
    +---------+---------------+------+
    |  x = ln_1(x + attn(x, mask))   |  x L     the norms stand behind the additions
    |  x = ln_2(x + mlp(x))          |
    +---------+----------------------+
              |  hidden states (B,T,C)
    [ cls: dense, GELU, LayerNorm ]
     [ words transposed ] -> logits (B,T,V)     what each [MASK] stands for

Unlike in GPT-2 no token waits for those before it: every one sees all others, so nothing can be
written from left to right, and the norms come last ("post-norm"), none is left for the end.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", arXiv 1810.04805,
section 3. Reference code: google-research/bert modeling.py and transformers' BertForMaskedLM.
Parameters keep the names of the public files; a layer also has its parts under gpt2.py's names.

differs: no dropout, as in gpt2.py. The pooler and the head that guessed whether one sentence
follows another are left out: neither takes part in hidden states or masked words.

B texts, T tokens, C width, L layers, nh heads, hs size of one, F width inside the MLP, V vocabulary
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's root, for these:
from lib.cli import UserError, opt, parse, run
from lib.devices import attend
from plm.rows import start_bert
from weights.public import locate
from weights.reading import (drop_copy, head_count, layer_count, load_into, metadata, need_matrices,
                             read, read_config)
from weights.wordpiece import get_wordpiece


@dataclass
class BERTConfig:  # of "bert-base-uncased"
    vocab_size: int = 30522
    n_positions: int = 512
    n_types: int = 2  # a first and a second sentence
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int = 3072
    mlm: bool = True  # has the head for masked words


def layer_norm(config):
    # pitfall: torch's own 1e-5 gives no error, only states that are off in the fifth digit.
    return nn.LayerNorm(config.n_embd, eps=1e-12)


class SelfAttention(nn.Module):
    """Every token looks at all that are no padding, (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd)
        self.key = nn.Linear(config.n_embd, config.n_embd)
        self.value = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask=None):
        q, k, v = (part(x).unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (B, nh, T, hs)
                   for part in (self.query, self.key, self.value))
        if mask is not None:  # what a method has put in front of the text is seen by all
            mask = F.pad(mask.bool(), (x.shape[1] - mask.shape[1], 0), value=True)
        seen = None if mask is None else mask[:, None, None]  # (B, 1, 1, T)
        y = attend(q, k, v, attn_mask=seen)
        return y.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """The end of each half of a layer: a linear map, and the norm behind the addition."""

    def __init__(self, config, width):
        super().__init__()
        self.dense = nn.Linear(width, config.n_embd)
        self.LayerNorm = layer_norm(config)


class Layer(nn.Module):
    """One layer, x (B, T, C) -> (B, T, C). mask (B, T) or None; l is there as in gpt2.py."""
    parts = {"ln_1": "attn", "ln_2": "mlp"}

    def __init__(self, config):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config),
                                        "output": Output(config, config.n_embd)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.n_embd, config.n_inner)})
        self.output = Output(config, config.n_inner)

    # gpt2.py's names: what is added to x, and the norms (here behind the addition).
    ln_1 = property(lambda self: self.attention["output"].LayerNorm)
    ln_2 = property(lambda self: self.output.LayerNorm)

    def attn(self, x, mask=None, l=0):
        return self.attention["output"].dense(self.attention["self"](x, mask))

    def mlp(self, x):
        # pitfall: GPT-2 has the tanh form of the GELU, BERT the exact one.
        return self.output.dense(F.gelu(self.intermediate["dense"](x)))

    def forward(self, x, mask=None, l=0):
        x = self.ln_1(x + self.attn(x, mask, l))
        return self.ln_2(x + self.mlp(x))


class MLMHead(nn.Module):
    """States (.., C) -> logits (.., V), through the word embeddings."""

    def __init__(self, config):
        super().__init__()
        self.transform = nn.ModuleDict({"dense": nn.Linear(config.n_embd, config.n_embd),
                                        "LayerNorm": layer_norm(config)})
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x, words):
        x = self.transform["LayerNorm"](F.gelu(self.transform["dense"](x)))
        return F.linear(x, words, self.bias)


class BERT(nn.Module):
    """The whole model. bert(idx, mask) maps token ids (B, T) to hidden states (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.folder = None  # where its tokenizer files are, if it came from a folder
        C = config.n_embd
        self.embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(config.vocab_size, C),
            "position_embeddings": nn.Embedding(config.n_positions, C),
            "token_type_embeddings": nn.Embedding(config.n_types, C),
            "LayerNorm": layer_norm(config)})
        self.ln_f = nn.Identity()  # GPT-2's name for a norm that BERT, being post-norm, has not
        layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.cls = nn.ModuleDict({"predictions": MLMHead(config)}) if config.mlm else None
        for name, p in self.named_parameters():  # for training from nothing, as theirs
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    # What is asked of every language model, under gpt2.py's names.
    wte = property(lambda self: self.embeddings["word_embeddings"])
    h = property(lambda self: self.encoder["layer"])
    start = start_bert
    room = property(lambda self: self.config.n_positions - 1)  # start adds [SEP]

    def embed(self, idx, pos=0, types=None):
        """Ids (B, T) of the tokens at positions pos, pos + 1, ... -> x (B, T, C).

        types (B, T): 0 for the first sentence and 1 for the second of a pair; None: all 0."""
        T, parts = idx.shape[1], self.embeddings
        if pos + T > self.config.n_positions:
            raise UserError(f"a text of {pos + T} tokens is too long, this BERT has only "
                            f"{self.config.n_positions} positions; use a shorter one")
        types = torch.zeros_like(idx) if types is None else types
        positions = torch.arange(pos, pos + T, device=idx.device)
        # Added in transformers' order: the states of padding, which nothing reads, are so sensitive
        # that another order moves them by 1e-4 in a published file.
        return parts["LayerNorm"](self.wte(idx) + parts["token_type_embeddings"](types)
                                  + parts["position_embeddings"](positions))

    def head(self, x):
        """The last states -> logits (.., V) in float32. UserError if the file held no such head."""
        if self.cls is None:
            raise UserError("this BERT came without the head for masked words (cls.predictions), "
                            "it has hidden states only; use a file of BertForMaskedLM")
        return self.cls["predictions"](x, self.wte.weight).float()

    def forward(self, idx, mask=None, types=None):
        x = self.embed(idx, types=types)
        for l, layer in enumerate(self.h):
            x = layer(x, mask, l)
        return x

    def mlm(self, idx, mask=None, types=None):
        """Ids (B, T) -> logits (B, T, V): at every [MASK], what may have stood there."""
        return self.head(self(idx, mask, types))

    @cached_property
    def tokenizer(self):
        """The WordPiece of these weights, looked for when first asked for."""
        return get_wordpiece(self.folder, self.config.vocab_size)

    @property
    def eot(self):
        """The id that ends a text: [SEP]. [CLS] begins one."""
        return self.tokenizer.eot_token

    @classmethod
    def from_pretrained(cls, name):
        """Loads "bert-base-uncased", a file, or a folder as transformers' save_pretrained writes it
        (BertForPreTraining, BertForMaskedLM or BertModel); float32, eval mode. UserError if a
        tensor is missing, unknown or of the wrong shape."""
        path = locate(name)
        tensors = rename(read(path), path)
        return load_into(lambda: cls(infer_config(tensors, path)), tensors, path)


# ---------------------------------------------------------------------------- public weights

# The first files called a norm's weight and bias gamma and beta, as TensorFlow does.
OLD = {".gamma": ".weight", ".beta": ".bias"}
UNUSED = ("pooler.", "cls.seq_relationship.", "embeddings.position_ids")  # the last is 0, 1, 2, ...
# Copies of the two: written by torch.save, and by older versions of transformers.
COPIES = {"cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
          "cls.predictions.decoder.bias": "cls.predictions.bias"}


def rename(theirs, path):
    """A public file's tensors under this file's names."""
    ours = {}
    for key, t in theirs.items():
        key = key.removeprefix("bert.")  # BertModel alone is saved without it
        for old, new in OLD.items():
            key = key.removesuffix(old) + new if key.endswith(old) else key
        if not key.startswith(UNUSED):
            ours[key] = t
    for copy, original in COPIES.items():
        drop_copy(ours, copy, original, "BERT", path)
    return ours


# What config.json may say about things that have no shape.
CONFIG = {"hidden_act": ("gelu",), "layer_norm_eps": (1e-12,), "is_decoder": (False,),
          "position_embedding_type": ("absolute",), "add_cross_attention": (False,)}


def infer_config(tensors, path):
    """Sizes from the tensors' shapes; the number of heads from config.json or the metadata."""
    names = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    inner = "encoder.layer.0.intermediate.dense.weight"
    need_matrices(tensors, (*names, inner), "BERT", path)
    V, C = tensors[names[0]].shape
    told = read_config(path, CONFIG).get("num_attention_heads", metadata(path).get("n_head"))
    return BERTConfig(V, len(tensors[names[1]]), len(tensors[names[2]]),
                      layer_count(tensors, "encoder.layer.", path), head_count(told, C, path), C,
                      len(tensors[inner]), any(k.startswith("cls.predictions.") for k in tensors))


# ---------------------------------------------------------------------------- its own command

@dataclass
class Config:
    prompt: list = opt(["the star is [MASK] the circle"], "a text with [MASK] in it",
                       positional=True)
    lm: str = opt("bert-base-uncased", "a public name, a file or a folder")
    top: int = opt(5, "guesses to show for each [MASK]")


@torch.no_grad()
def main(config):
    bert, text = BERT.from_pretrained(config.lm), " ".join(config.prompt)
    idx = torch.tensor([bert.tokenizer.encode(text)])
    places = (idx[0] == bert.tokenizer.mask).nonzero().flatten()
    if not len(places):
        raise UserError(f"no [MASK] in {text!r}: put one where a word is to be filled in")
    logits = bert.mlm(idx)[0, places, :bert.tokenizer.n_vocab]  # embeddings are often padded
    best, words = logits.softmax(-1).topk(max(1, min(config.top, logits.shape[1])))
    for p, ids in zip(best.tolist(), words.tolist()):
        print("   ".join(f"{bert.tokenizer.pieces[i]} {q:.0%}" for q, i in zip(p, ids)))
    idx[0, places] = words[:, 0]
    print(bert.tokenizer.decode(idx[0].tolist()))


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
