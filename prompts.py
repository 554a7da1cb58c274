"""Tokens that no tokenizer knows: image tokens written in front of the text, for GPT-2 to read.

    img (B,3,H,W)                 idx (R,T)
         |                            |
    [ CLIP-ViT ]                 [ wte+wpe ]
         | feats (B,N,D)              | (R,T,C)
    ( mapper )                        |
         | prefix (B,P,C)             |
         +--- for each row --> [ prefix | text ]
                                      | (R,P+T,C)
                               [ GPT-2, L layers ]
                                      | text positions only
                                 [ lm_head ] -> logits (R,T,V)

Prefix is ClipCap, the baseline that the field compares with: Mokady et al., "ClipCap: CLIP Prefix for
Image Captioning", arXiv 2111.09734. All of the image has to go through P vectors, once, before
the first word; I-Tuning and VC-GPT ask the image again at every word.

differs: ClipCap maps CLIP's final embedding, here the class token before the last norm and projection
is mapped: that is what all methods here get to see. Its prefix takes GPT-2's first P positions; here
positions count text tokens only, and a prefix token has none beside its own vector.

B images, R = B * k rows of text, T tokens, P prefix tokens, N image tokens, C GPT-2 width, D ViT width,
V vocabulary

Next: train.py
"""

from dataclasses import dataclass

import torch
import torch.nn as nn

from cli import UserError, opt
from clip_vit import Transformer
from ituning import one_scale
from model import Method, picked


class MLPMapper(nn.Module):
    """The class token of feats (B, N, D) -> prefix (B, P, C): two matrices with a tanh between them.

    ClipCap's choice together with a tuned GPT-2 (--train_lm). Its parameters grow with P * P.
    """

    def __init__(self, D, C, P):
        super().__init__()
        self.P = P
        self.c_fc = nn.Linear(D, P * C // 2)
        self.c_proj = nn.Linear(P * C // 2, P * C)

    def forward(self, feats):
        return self.c_proj(self.c_fc(feats[:, 0]).tanh()).unflatten(1, (self.P, -1))


class TransformerMapper(nn.Module):
    """feats (B, N, D) -> prefix (B, P, C): learnt constants ask the image in a small transformer.

    ClipCap's choice for a frozen GPT-2. The class token becomes P tokens, P constants are put behind
    them, and what has become of the constants is the prefix. tokens "all" (ours): instead of P
    tokens made of one, every image token mapped by one matrix.
    """

    def __init__(self, D, C, P, layers, heads, tokens):
        super().__init__()
        self.P, self.tokens = P, tokens
        self.linear = nn.Linear(D, C * P if tokens == "class" else C)
        self.const = nn.Parameter(torch.randn(P, C))
        self.transformer = Transformer(C, layers, heads)
        for block in self.transformer.resblocks:  # half as wide as CLIP's, with ReLU, as in ClipCap's code
            block.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))

    def forward(self, feats):
        if self.tokens == "class":
            feats = feats[:, :1]
        x = self.linear(feats).reshape(len(feats), -1, self.const.shape[1])  # (B, P or N, C)
        x = torch.cat([x, self.const.expand(len(x), -1, -1)], 1)
        return self.transformer(x)[:, -self.P:]


class Prefix(Method):
    """ClipCap: an image becomes P tokens in front of the text. ctx is the prefix (B, P, C).

    GPT-2 stays frozen or is tuned (--train_lm), as in the paper's two variants. pitfall: frozen does
    not mean free. The gradient of the prefix comes down through all layers of GPT-2.
    """

    @dataclass
    class Config:
        mapper: str = opt("transformer", "from image to prefix (ClipCap: mlp if GPT-2 is tuned)",
                          choices=("transformer", "mlp"))
        prefix_length: int = opt(10, "prefix tokens (ClipCap 10)")
        tokens: str = opt("class", "what the transformer reads: the class token (ClipCap) or all (ours)",
                          choices=("class", "all"))
        mapper_layers: int = opt(8, "of the transformer (ClipCap 8)")
        heads: int = opt(8, "of the transformer (ClipCap 8)")

    def __init__(self, config, gpt2, vit):
        super().__init__()
        D, C, P = vit.width, gpt2.config.n_embd, config.prefix_length
        if P < 1:
            raise UserError(f"--prefix_length {P}: must be 1 or more")
        if config.heads < 1 or C % config.heads:
            raise UserError(f"--heads {config.heads}: GPT-2's width {C} is not a multiple of it")
        if config.mapper == "mlp" and config.tokens == "all":
            raise UserError("--mapper mlp reads the class token alone; --tokens all needs --mapper transformer")
        self.extra = P
        self.mapper = (MLPMapper(D, C, P) if config.mapper == "mlp" else
                       TransformerMapper(D, C, P, config.mapper_layers, config.heads, config.tokens))

    def look(self, feats):
        return self.mapper(one_scale(feats))

    def block(self, l, block, x, ctx, rows):
        if l == 0 and rows.t == 0:  # later, the cache remembers the prefix
            x = torch.cat([ctx.repeat_interleave(len(x) // len(ctx), 0), x], 1)  # (R, P + T, C)
        return block(x, rows.cache, l)

    def head(self, gpt2, x, ctx, rows):
        return gpt2.head(picked(x[:, self.extra:] if rows.t == 0 else x, rows))


if __name__ == "__main__":  # shapes on random weights: what comes in, what stands in front of the text, what goes out
    from clip_vit import CLIPViT
    from gpt2 import GPT2, GPT2Config
    from model import SeeGPT
    vit, gpt2 = CLIPViT(64, 16, 96, 2, 3, 32), GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=64))
    model = SeeGPT(vit, gpt2, Prefix(Prefix.Config(), gpt2, vit))
    feats = model.see(torch.randn(2, 3, 64, 64))
    logits, _ = model(feats, torch.zeros(10, 7, dtype=torch.int64))
    print("feats", tuple(feats.shape), "prefix", tuple(model.method.look(feats).shape), "logits", tuple(logits.shape))
