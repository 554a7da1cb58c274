"""What DVP trains of a frozen layer: copies of its norms, and an adapter behind each of its parts.

    pre-norm (GPT-2, LLaMA, T5)     x -> [ part ( norm x ) ] -> ( adapter ) -> + x
    post-norm (BERT)                x -> [ part x ] -> ( adapter ) -> + x -> ( norm )

A layer says in `parts` which they are: {"ln_1": "attn", "ln_2": "mlp"} in GPT-2, LLaMA and BERT,
and in T5's decoder one more, for what it looks at in the encoder's text.

paper: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751, in
the shape that DVP's code gives it. C width of the language model, R rows of text, T tokens
"""

from copy import deepcopy

import torch.nn as nn
import torch.nn.functional as F

from plm import bert, t5


def init_linear(linear, std):
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)


class Adapter(nn.Module):
    """y + up(relu(down(y))), y (R, T, C): a bottleneck, nearly the identity at the start. silu: as
    for LLaMA, with a SiLU between the two, and larger first weights."""

    def __init__(self, C, width, silu=False):
        super().__init__()
        self.down, self.up, self.silu = nn.Linear(C, width), nn.Linear(width, C), silu
        for linear in (self.down, self.up):
            init_linear(linear, 0.01)
            if silu:
                nn.init.xavier_uniform_(linear.weight)

    def forward(self, y):
        return y + self.up((F.silu if self.silu else F.relu)(self.down(y)))


class AdaptedLayer(nn.Module):
    """The norms of a layer, which learn, and its adapters. Runs the frozen layer with them."""

    def __init__(self, layer, C, width, silu):
        super().__init__()
        self.post_norm = isinstance(layer, bert.Layer)
        for norm in layer.parts:
            self.add_module(norm, deepcopy(getattr(layer, norm)))
        for part in layer.parts.values():
            self.add_module(f"after_{part}", Adapter(C, width, silu))

    def forward(self, layer, x, cache, l):
        for norm, part in layer.parts.items():
            norm, run = getattr(self, norm), getattr(layer, part)
            h = x if self.post_norm else norm(x)
            h = run(h) if part == "mlp" else run(h, cache, l)
            x = x + getattr(self, f"after_{part}")(h)
            x = norm(x) if self.post_norm else x
        return x


class AdaptedNorm(nn.Module):
    """The norm behind T5's encoder, which stands among its layers as the last one."""

    def __init__(self, norm):
        super().__init__()
        self.norm = deepcopy(norm)

    def forward(self, layer, x, cache, l):
        return self.norm(x)


def layers_of(lm):
    """The layers of a language model, and behind them those of T5's encoder with its last norm: so
    the encoder's have the numbers -n .. -1."""
    return [*lm.h, *(lm.reader if isinstance(lm, t5.T5) else ())]


def adapt(layer, C, width, silu):
    """What is trained of a layer; width: of an adapter."""
    return AdaptedLayer(layer, C, width, silu) if layer.parts else AdaptedNorm(layer)
