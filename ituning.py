"""I-Tuning: a trained cross-attention beside the MLP of every layer of a frozen GPT-2.

  x (R,T,C) --+--> [ ln_1 ] -> [ causal self-attention ] --> + --+      layer l of GPT-2
              +----------------------------------------------+   |
                                                                 | x
              +--------------------------------------------------+
              |                                                  |
          [ ln_2 ]            feats (B,N,D)                      |
              | h                  |                             |
       +------+------+       (k)(v) once an image                |
       |             |             |                             |
    [ mlp ]         (q) -> softmax(q k') v                       |
       |             |                                           |
       |            (o)  zero at the start                       |
       +----> + <----+                                           |
              +------------------------------------------------> + --> x (R,T,C)

paper: Luo et al., "I-Tuning: Tuning Frozen Language Models with Image for Lightweight Image
Captioning", ICASSP 2023, arXiv 2202.06574. The cross-attention is a filter: it selects from the
image what the text state asks for, and adjusts that state. No token is added to the text.
Then: Vanilla (inside every layer) and VCGPT (a stack on top of all).

B images, R = B * k rows of text, T tokens, N image tokens, C GPT-2 width, D ViT width, nh heads,
r = nh * hs width of a module

Next: prompts.py
"""

from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from clip_vit import ResidualAttentionBlock
from gpt2 import Block
from lib.cli import UserError, opt
from lib.devices import attend, whole_heads
from model import Method, select


class ITuning(Method):
    """The method. ctx is a list of the keys and values of every layer that has a module.

    differs: the authors' code is not public; the paper gives neither width nor place nor starting
    values. Width C/2 in every layer gives its 14M / 44M / 95M trained parameters. Also ours: beside
    the MLP, behind GPT-2's own ln_2, W_o starts at zero, image tokens before CLIP's last norm.
    """

    @dataclass
    class Config:
        width_ratio: float = opt(0.5, "width of a module / width of GPT-2 (0.5 fits the paper's)")
        first_layer: int = opt(0, "lowest layer with a module; those below need no gradients")
        heads: int = opt(0, "heads of a module; 0: as many as GPT-2 has (as SmallCap does)")

    def __init__(self, config, lm, vit):
        super().__init__()
        C, L, self.first = lm.config.n_embd, lm.config.n_layer, config.first_layer
        if not 0 <= self.first < L:
            raise UserError(f"--first_layer {self.first}: this GPT-2 has layers 0 to {L - 1}")
        width = int(config.width_ratio * C)
        heads = pick_heads(config.heads, lm, width)
        self.xattn = nn.ModuleList(CrossAttention(C, vit.width, width, heads)
                                   for _ in range(L - self.first))

    def encode_image(self, feats):
        feats = plain_layer_norm(feats)
        return [m.project_kv(feats) for m in self.xattn]

    def block(self, l, layer, x, ctx, state):
        if l < self.first:
            return layer(x, state.cache, l)  # nothing below is trained: autograd keeps nothing
        x = x + layer.attn(layer.ln_1(x), state.cache, l)
        h, i = layer.ln_2(x), l - self.first
        image = self.xattn[i](h, ctx[i], self.record_attention, l)
        return x + (layer.mlp(h) + image)  # GPT-2 with one more term: this is I-Tuning


class CrossAttention(nn.Module):
    """Text asks, image answers: what the image adds to text states h (R, T, C).

    As in the figure: q = W_q h, k = W_k feats, v = W_v feats, softmax(q k' / sqrt(hs)) v, then W_o.
    There is no mask: every text position sees all image tokens.
    """

    def __init__(self, C, D, width, heads):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(C, width)
        self.k = nn.Linear(D, width)
        self.v = nn.Linear(D, width)
        self.o = nn.Linear(width, C)
        for m in (self.q, self.k, self.v):  # torch's own start for the weights
            nn.init.zeros_(m.bias)
        # The step-0 model is exactly GPT-2. pitfall: with W_v zero, too, nothing would ever learn.
        nn.init.zeros_(self.o.weight)
        nn.init.zeros_(self.o.bias)

    def split_heads(self, x):
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, nh, T, hs)

    def project_kv(self, feats):
        """Keys and values of the image tokens (B, N, D), two of (B, nh, N, hs): once per image.
        Where nothing is trained they lie as what is read for every token should."""
        k, v = self.split_heads(self.k(feats)), self.split_heads(self.v(feats))
        return (k, v) if self.training else (whole_heads(k), whole_heads(v))

    def forward(self, h, kv, record=None, l=0):
        """record: a list that receives (l, attention weights (R, nh, T, N)), or None."""
        (R, T, _), (k, v) = h.shape, kv
        # The rows of an image become one long row of queries: nothing of the image is copied.
        q = self.split_heads(self.q(h).reshape(len(k), R // len(k) * T, -1))  # (B, nh, R/B*T, hs)
        if record is None:
            y = attend(q, k, v)
        else:
            att = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
            y = att @ v
            record.append((l, att.detach().unflatten(2, (-1, T)).transpose(1, 2).flatten(0, 1)))
        return self.o(y.transpose(1, 2).reshape(R, T, -1))


def plain_layer_norm(feats):
    """Image tokens (B, N, D) brought to one scale, without parameters: where all methods start.

    Ours. The states of CLIP's last block are large and lean to a common direction, in which
    attention learns slowly: in the shapes world I-Tuning named both objects right in 80 % of the
    captions after 500 steps, without it in 51 % after 1,000.
    """
    return F.layer_norm(feats, feats.shape[-1:])


def pick_heads(heads, lm, width):
    """heads, or with 0 as many as the language model has. UserError if width has no such parts."""
    heads = heads or lm.config.n_head
    if width < 1 or heads < 1 or width % heads:
        raise UserError(f"width {width} cannot be split into {heads} heads: change one of the two")
    return heads


# ---------------------------------------------------------------------------- inside or on top

class CrossAttentionLayer(nn.Module):
    """A cross-attention, with its own norm, between the attention and the MLP of a GPT-2 layer.

    Vanilla runs the layers of GPT-2 itself with it, VCGPT new ones of its own. kv: keys and values
    as xattn.project_kv makes them of image tokens (B, N, D).
    """

    def __init__(self, C, D, heads, gate=False):
        super().__init__()
        self.ln_x = nn.LayerNorm(C)
        self.xattn = CrossAttention(C, D, C, heads)
        self.gate = nn.Parameter(torch.zeros(1)) if gate else None

    def forward(self, layer, x, kv, cache, l, record=None):
        x = x + layer.attn(layer.ln_1(x), cache, l)
        image = self.xattn(self.ln_x(x), kv, record, l)  # (R, T, C)
        x = x + (image if self.gate is None else self.gate.tanh() * image)
        return x + layer.mlp(layer.ln_2(x))


def init_weights(module, sums):
    """Starts a part at random, biases at zero, for both methods below (the scale is ours):
    torch's standard deviation, 0.02 for 768 inputs, but smaller by sqrt(sums) for matrices that end
    in a residual sum, as in GPT-2, so that a stream does not grow with what is added to it.
    """
    for name, p in module.named_parameters():
        if p.dim() == 2:
            last = name.endswith(("c_proj.weight", "out_proj.weight", "xattn.o.weight"))
            nn.init.normal_(p, std=(3 * p.shape[1] * (sums if last else 1)) ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


class Vanilla(Method):
    """Cross-attention of full width inside every layer of GPT-2: the usual way, VC-GPT's baseline.

      x (R,T,C) -> [ attn ] -> ( cross-attn ) * tanh(g) -> [ mlp ] -> x (R,T,C)    layer l of GPT-2
                                    ^  the gate g: only with --gate, 0 at the start
                          (k)(v)  feats (B,N,D)

    paper: the baseline of VC-GPT, arXiv 2201.12723; the gate: Flamingo, arXiv 2204.14198, section
    2.2. Without it GPT-2 reads random additions at step 0, until they are learnt. ctx is a list of
    the keys and values of every layer.
    """

    @dataclass
    class Config:
        gate: bool = opt(False, "tanh gates that start at zero, so that step 0 is GPT-2 (Flamingo)")
        heads: int = opt(0, "heads of a cross-attention; 0: as many as GPT-2 has (ours)")

    def __init__(self, config, lm, vit):
        super().__init__()
        C, L = lm.config.n_embd, lm.config.n_layer
        heads = pick_heads(config.heads, lm, C)
        self.insert = nn.ModuleList(CrossAttentionLayer(C, vit.width, heads, config.gate)
                                    for _ in range(L))
        init_weights(self.insert, 3 * L)

    def encode_image(self, feats):
        feats = plain_layer_norm(feats)
        return [m.xattn.project_kv(feats) for m in self.insert]

    def block(self, l, layer, x, ctx, state):
        return self.insert[l](layer, x, ctx[l], state.cache, l, self.record_attention)


class VCGPT(Method):
    """VC-GPT: a fusion stack on top of GPT-2 and CLIP, whose logits are added to those of GPT-2.

       idx (R,T)                         img (B,3,H,W)
          |                                   |
      [ GPT-2 ]                          [ CLIP-ViT ]
          | h_G (R,T,C)                       | feats (B,N,D)   (to width C, if D differs)
          +-------------+                     |
          |     +-------+---------------------+-----------+
          |     | ( causal attn )      ( self-attn )      |
          |     |       |                     |           |  x n_fusion
          |     | ( cross-attn ) <-(k)(v)- ( mlp )        |
          |     |       |                     |           |
          |     |    ( mlp )                  |           |
          |     +-------+---------------------+-----------+
          |          ( ln )
          |             | h_fuse (R,T,C)
       [ W_G ]      ( W_fuse )
          +---> + <-----+
                | logits (R,T,V)

    paper: Luo et al., "A Frustratingly Simple Approach for End-to-End Image Captioning", arXiv
    2201.12723. Nothing is inserted into GPT-2, so nothing disturbs it. Self-ensemble: logits =
    W_G h_G + W_fuse h_fuse. W_G is GPT-2's embedding; W_fuse starts at random, not tied to it.
    pitfall: the logits are added, before one softmax. Two probabilities are not averaged.

    differs: code and sizes are not public. n_fusion, heads, norms, residual sums, tokens of one
    scale, and CLIP's own block in the visual stream are our choice, and so is h_G after ln_f for
    both uses. Sources disagree on whether GPT-2 and CLIP were tuned: --train_lm and --train_vision
    do. ctx: as in Vanilla, of the visual stream.
    """

    @dataclass
    class Config:
        n_fusion: int = opt(6, "fusion layers (ours; the paper's N is not known)")
        self_ensemble: bool = opt(True, "add GPT-2's logits; without, the stack speaks alone")
        heads: int = opt(0, "heads of a fusion layer; 0: as many as GPT-2 has (ours)")

    def __init__(self, config, lm, vit):
        super().__init__()
        self.config, C, n = config, lm.config.n_embd, config.n_fusion
        if n < 1:
            raise UserError(f"--n_fusion {n}: must be 1 or more")
        heads = pick_heads(config.heads, lm, C)
        self.proj = nn.Identity() if vit.width == C else nn.Linear(vit.width, C)
        self.visual = nn.ModuleList(ResidualAttentionBlock(C, heads) for _ in range(n))
        self.text = nn.ModuleList(Block(replace(lm.config, n_head=heads)) for _ in range(n))
        self.insert = nn.ModuleList(CrossAttentionLayer(C, C, heads) for _ in range(n))
        self.ln = nn.LayerNorm(C)
        self.w_fuse = nn.Linear(C, lm.config.vocab_size, bias=False)  # torch's start is the same
        for part, sums in ((self.visual, 2 * n), (self.text, 3 * n), (self.insert, 3 * n)):
            init_weights(part, sums)

    def cache_layers(self, lm):
        return len(lm.h) + self.config.n_fusion  # the stack's text stream is cached, too

    def encode_image(self, feats):
        """The visual stream runs once per image -> keys and values of every fusion layer."""
        u, ctx = self.proj(plain_layer_norm(feats)), []
        for visual, insert in zip(self.visual, self.insert):
            u = visual(u)  # (B, N, C)
            ctx.append(insert.xattn.project_kv(u))
        return ctx

    def logits(self, lm, x, ctx, state):
        h = lm.ln_f(x)  # nothing below is trained, unless GPT-2 is: the backward pass ends here
        for i, (layer, insert) in enumerate(zip(self.text, self.insert)):
            # All positions, also those without a target: later tokens attend to them.
            h = insert(layer, h, ctx[i], state.cache, len(lm.h) + i, self.record_attention)
        logits = self.w_fuse(self.ln(select(h, state))).float()
        return logits + lm.head(select(x, state)) if self.config.self_ensemble else logits
