"""Tokens that no tokenizer knows, put in front of the text for GPT-2 to read: ClipCap's prefix, and DVP.

DVP: the text asks the image, and the answer is one token, in front of the text from layer K on.

    img (B,3,H,W)                 idx (R,T)
         |                            |
    [ CLIP-ViT ]                 [ wte+wpe ]
         | feats (B,N,D)              | (R,T,C)
         |                     [ layers 0 .. K-1 ] + (adapters, norms)
         |                            |
         |                            +--- state of the last token of the question --+
         |                            |                                              | (R,1,C)
         +-------------(k)(v)---------|-----------------------------> ( cross-attention )
                                      |                                              | p (R,1,C)
                                 [ p | text ] <--------------------------------------+
                                      | (R,1+T,C)
                               [ layers K .. L-1 ] + (adapters, norms)
                                      | text positions only
                      ( norm ) -> [ lm_head ] -> logits (R,T,V)   or   ( head ) -> logits (R,A)

Paper: Huang et al., "Dynamic Visual Prompting", arXiv 2306.00409; code: hsb1357173526/
Dynamic_Visual_Prompting, for BERT, T5 and LLaMA. K is found by a search with a k-armed bandit, KAB-APP.

differs: GPT-2 is none of their models; sizes follow their BERT, the causal order their LLaMA. The query is
the last token of the question, the only one that has read all of it. Left out are dropout (0.1 there),
BERT's type embedding and the tenfold learning rate of the head; the search tunes the adapters, where theirs tunes
all of BERT. Image tokens are brought to one scale, as everywhere here.

Prefix is ClipCap, the baseline that the field compares with: Mokady et al., "ClipCap: CLIP Prefix for
Image Captioning", arXiv 2111.09734. All of the image has to go through P vectors, once, before
the first word; I-Tuning and VC-GPT ask the image again at every word.

differs: ClipCap maps CLIP's final embedding, here the class token before the last norm and projection
is mapped: that is what all methods here get to see. Its prefix takes GPT-2's first P positions; here
positions count text tokens only, and a prefix token has none beside its own vector.

B images, R = B * k rows of text, T tokens, P prefix tokens, N image tokens, C GPT-2 width, D ViT width,
V vocabulary, L layers, K the layer of the prompt, A answers

Next: train.py
"""

import itertools
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from clip_vit import Transformer, preprocess
from ituning import CrossAttention, plain_layer_norm
from lib.cli import UserError, opt
from model import Method, TextState, select


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
        self.n_prompt = P
        self.mapper = (MLPMapper(D, C, P) if config.mapper == "mlp" else
                       TransformerMapper(D, C, P, config.mapper_layers, config.heads, config.tokens))

    def encode_image(self, feats):
        return self.mapper(plain_layer_norm(feats))

    def block(self, l, block, x, ctx, state):
        if l == 0 and state.pos == 0:  # later, the cache remembers the prefix
            x = torch.cat([ctx.repeat_interleave(len(x) // len(ctx), 0), x], 1)  # (R, P + T, C)
        return block(x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        return lm.head(select(x[:, self.n_prompt:] if state.pos == 0 else x, state))


# ---------------------------------------------------------------------------- DVP

class Adapter(nn.Module):
    """y + up(relu(down(y))), y (R, T, C): a bottleneck, nearly the identity at the start."""

    def __init__(self, C, width):
        super().__init__()
        self.down, self.up = nn.Linear(C, width), nn.Linear(width, C)
        for m in (self.down, self.up):
            nn.init.normal_(m.weight, std=0.01)
            nn.init.zeros_(m.bias)

    def forward(self, y):
        return y + self.up(F.relu(self.down(y)))


class AdaptedLayer(nn.Module):
    """What is trained of a GPT-2 layer: copies of its two norms, an adapter behind attention and MLP each."""

    def __init__(self, block, C, width):
        super().__init__()
        self.ln_1, self.ln_2 = deepcopy(block.ln_1), deepcopy(block.ln_2)
        self.after_attn, self.after_mlp = Adapter(C, width), Adapter(C, width)

    def forward(self, block, x, cache, l):
        x = x + self.after_attn(block.attn(self.ln_1(x), cache, l))
        return x + self.after_mlp(block.mlp(self.ln_2(x)))


class DVP(Method):
    """Dynamic Visual Prompting. ctx: keys and values of the image tokens; visual "all": its tokens (B, N, C).

    Positions count text tokens only, so the prompt has none and moves no word. pitfall: from layer K on
    every word sees p, and p has read the whole question: no word of the question may be a target.
    Captions have no question. There the query is the end-of-text token that begins every text, the same
    for all images, and DVP is attention pooling. With K = 0 the query has read nothing in any case.
    """

    needs_image = False

    @dataclass
    class Config:
        insert_layer: int = opt(0, "layer K: the prompt is put in front of it; -1: a cross-attention for every "
                                   "layer, of which the search uses one at a time")
        visual: str = opt("one", "image tokens in front: one (DVP), all (the costly baseline), none (text only)",
                          choices=("one", "all", "none"))
        adapter: int = opt(8, "GPT-2's width / an adapter's (DVP 8); 0: neither adapters nor trained norms, as "
                              "DVP's full tuning has it together with --train_lm")
        readout: str = opt("lm", "write the answer, or choose it (head, DVP's way)", choices=("lm", "head"))
        soft: bool = opt(False, "several answers may be right, a yes or no for each (DVP on VQA2.0)")
        heads: int = opt(0, "heads of the cross-attention; 0: as many as GPT-2 base has, 16 for wider ones (DVP)")
        answers: list = opt([], "the answers to choose from; empty: the dataset's")

    def __init__(self, config, gpt2, vit):
        super().__init__()
        c, L, K = gpt2.config, gpt2.config.n_layer, config.insert_layer
        C = c.n_embd
        # The cross-attention is as wide as GPT-2 base; for wider models 512 in 16 heads, as they have it for LLaMA.
        width, heads = (C, c.n_head) if C <= 768 else (512, 16)
        heads = config.heads or heads
        if not -1 <= K < L:
            raise UserError(f"--insert_layer {K}: this GPT-2 has layers 0 to {L - 1}")
        if heads < 1 or width % heads:
            raise UserError(f"--heads {heads}: the cross-attention's width {width} is not a multiple of it")
        if config.adapter < 0 or config.adapter > C:
            raise UserError(f"--adapter {config.adapter}: from 0 (none) to GPT-2's width, {C}")
        if config.readout == "head" and len(config.answers) < 2:
            raise UserError("--readout head needs two answers or more to choose from; this dataset has none: leave it away")
        self.config, self.K = config, K
        self.answers = tuple(config.answers) if config.readout == "head" else ()
        tokens = {"one": 1, "all": 1 + (vit.image_size // vit.patch) ** 2, "none": 0}
        self.n_prompt = tokens[config.visual]
        if config.visual == "one":
            self.xattn = nn.ModuleList(CrossAttention(C, vit.width, width, heads) for _ in range(L if K < 0 else 1))
            for m in self.xattn:
                for part in (m.q, m.k, m.v, m.o):
                    part.reset_parameters()  # nothing starts at zero: p takes attention in any case
        elif config.visual == "all":
            self.map = nn.Linear(vit.width, C)
        self.adapted = nn.ModuleList(AdaptedLayer(b, C, C // config.adapter) for b in gpt2.h) if config.adapter else None
        self.ln_f = deepcopy(gpt2.ln_f) if config.adapter else None
        if self.answers:
            self.classify = nn.Sequential(nn.Linear(C, 2 * C), nn.LayerNorm(2 * C), nn.GELU(),
                                          nn.Linear(2 * C, len(self.answers)))
            for m in (self.classify[0], self.classify[3]):
                nn.init.normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)
        self.requires_grad_(True)  # the copies of frozen norms, too

    def encode_image(self, feats):
        if feats is None or self.config.visual == "none":
            return None
        feats = plain_layer_norm(feats)
        return self.map(feats) if self.config.visual == "all" else self.at().project_kv(feats)

    def at(self):
        """The cross-attention in use."""
        return self.xattn[self.K if self.config.insert_layer < 0 else 0]

    def last(self, x, state):
        """The states (R, 1, C) of the last condition token in x (R, T, C)."""
        cond = x.new_ones(len(x), dtype=torch.int64) if state.condition_len is None else state.condition_len
        return x[torch.arange(len(x), device=x.device), cond - 1][:, None]

    def block(self, l, block, x, ctx, state):
        if l == self.K and state.pos == 0 and ctx is not None:
            if self.config.visual == "all":
                prompt = ctx.repeat_interleave(len(x) // len(ctx), 0)
            else:
                prompt = self.at()(self.last(x, state), ctx, self.record_attention, l)
            x = torch.cat([prompt, x], 1)  # (R, extra + T, C)
        if self.adapted is None:
            return block(x, state.cache, l)
        return self.adapted[l](block, x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        if state.pos == 0 and ctx is not None:
            x = x[:, self.n_prompt:]
        norm = self.ln_f or lm.ln_f
        if self.answers:
            return self.classify(norm(self.last(x, state)[:, 0])).float()
        return F.linear(norm(select(x, state)), lm.wte.weight).float()

    def loss(self, logits, targets):
        if not self.answers:
            return super().loss(logits, targets)
        kept = targets[:, 0] >= 0
        logits, targets = logits[kept], targets[kept]
        if self.config.soft:  # summed over the answers: each of them is a question of its own
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
        return F.cross_entropy(logits, targets)  # an answer outside the classes adds 0; accuracy counts it as wrong

    def probabilities(self, logits):
        """Logits (R, A) -> probability of each answer: of being right (soft), or of being the one."""
        return logits.sigmoid() if self.config.soft else logits.softmax(-1)


class Bandit:
    """KAB-APP's policy over L layers: preferences alpha (L,), all 0 at first, and pi = softmax(alpha).

    paper: after N draws with scores s in percent, for every draw of layer k
        alpha_k += 0.005 * (s - mean of the N scores) * pi_k * (1 - pi_k)
    pitfall: scores in 0..1 would move alpha a hundred times less, and find nothing.
    """

    RATE, DRAWS = 0.005, 5

    def __init__(self, L):
        self.alpha = torch.zeros(L, dtype=torch.float64)

    def policy(self):
        return self.alpha.softmax(0)

    def draw(self, generator=None):
        """N layers drawn from the policy, with replacement: (N,)."""
        return torch.multinomial(self.policy(), self.DRAWS, True, generator=generator)

    def update(self, layers, scores):
        """layers (N,), their scores (N,) in percent."""
        pi = self.policy()
        step = self.RATE * (scores - scores.mean()) * (pi * (1 - pi))[layers]
        self.alpha.index_add_(0, layers, step)  # a layer drawn twice moves twice

    def best(self):
        """The layers with the highest preference: one, or several that tie."""
        return (self.alpha == self.alpha.max()).nonzero().flatten().tolist()


def reward(method, logits, loss, targets):
    """What a mini-validation batch earns, in percent: the accuracy of chosen answers, exp(-loss) of written ones."""
    return 100 * (soft_accuracy(logits, targets) if method.answers else (-loss).exp().item())


def soft_accuracy(logits, targets):
    """How right the likeliest answers are on average, in 0..1; logits, targets (R, A), a row of -1 does not count."""
    kept = targets[:, 0] >= 0
    return targets[kept].gather(1, logits[kept].argmax(1, keepdim=True)).mean().item()


# ---------------------------------------------------------------------------- CPT

# CPT: Yao et al., "CPT: Colorful Prompt Tuning for Pre-trained Vision-Language Models", arXiv 2109.11797; colours and
# transparency as in their code, thunlp/CPT. A region is painted, a text ends where its colour is named, and a trained
# captioner (the host) fills in the word. Nothing is added to the model.
#
#   image, region i --> [ paint 127/255 red ] --> [ CLIP-ViT ] --+
#                                                                v
#   "the small circle left of the star is in" -------------> [ GPT-2 + (method) ] --> log p(" red" | copy i)
#
# differs: their model is masked and reads " color." behind the blank; here the blank is the end of the text. They
# also tell a detector's names of the regions, "red person" for the painted one: GPT-2 has no place for those. Scores are
# log-probabilities where theirs are raw logits, and a difference of two where theirs is a ratio, which a sign can turn.
PAINTS = {"red": (240, 0, 30), "blue": (0, 10, 255), "yellow": (255, 255, 25), "purple": (155, 50, 210), "green": (0, 255, 0)}
ALPHA = 127  # of 255
NONE = "none"  # the word for: not here
# CPT's "{} is in [MASK] color." and "{} is [MASK].", and one of our own. differs: a causal model cannot read on behind the
# blank, so it is the end; those with the blank before the noun need annotations.
TEMPLATES = ("{} is in", "{} is", "the color of {} is")


def paint(image, regions, alpha=ALPHA):
    """A copy of an RGB image with half-transparent colours on it; the rest stays as it is, to the bit.

    regions: [(region, colour)], a region being a box [x, y, w, h] in pixels or an "L" mask of the image's size.
    out = (alpha * colour + (255 - alpha) * pixel) / 255. pitfall: paint first and resize then, and keep
    the whole image: a centre crop would cut off regions at the border.
    """
    out = image.convert("RGB")
    for region, colour in regions:
        if isinstance(region, Image.Image):
            out.paste(colour, mask=region.point(lambda v: alpha if v else 0))
        else:
            x, y, w, h = region
            box = max(0, int(x)), max(0, int(y)), min(out.width, int(x + w)), min(out.height, int(y + h))
            if box[0] < box[2] and box[1] < box[3]:
                out.paste(colour, box, Image.new("L", (box[2] - box[0], box[3] - box[1]), alpha))
    return out


def blank(phrase, template=TEMPLATES[0]):
    """"The Red Car." -> "the red car is in": what is read before the colour is named."""
    return template.format(" ".join(phrase.lower().replace(".", "").split()))


@torch.no_grad()
def whole_image_features(model, pictures, batch=64):
    """PIL images -> feats (n, N, D), without gradient. All of a picture is squeezed into the square: no region is cut off.

    pictures may be a generator: then only one is held in its full size at a time.
    """
    squeezed, found = (preprocess(p, model.vit.image_size, crop=False) for p in pictures), []
    while part := list(itertools.islice(squeezed, batch)):
        found.append(model.image_features(torch.stack(part).to(model.lm.wte.weight.device)))
    return torch.cat(found)


@torch.no_grad()
def fill_in(model, images, prompts, words):
    """log p of each word behind each prompt, (n, W); images (n, ...) or feats, one a prompt.

    A word of several tokens has the sum of their log-probabilities.
    """
    enc, feats = model.lm.tokenizer, model.image_features(images)
    pieces = [enc.encode_ordinary(f" {word}") for word in words]  # pitfall: "red" without the space is another token
    found = feats.new_zeros(len(prompts), len(words))
    for group, idx in model.by_length(prompts):
        n, T = idx.shape
        ctx, cond = model.method.encode_image(feats[group]), model.condition_lengths(torch.full((n,), T, device=idx.device))
        for depth in range(max(map(len, pieces))):
            for start in {tuple(p[:depth]) for p in pieces if len(p) > depth}:
                ids = torch.cat([idx, idx.new_tensor(start).expand(n, -1)], 1)
                last = torch.arange(1, n + 1, device=idx.device) * ids.shape[1] - 1
                logp = model.forward_text(ids, ctx, TextState(condition_len=cond, wanted=last)).log_softmax(-1)  # (n, V)
                for w, piece in enumerate(pieces):
                    if tuple(piece[:depth]) == start and len(piece) > depth:
                        found[group, w] += logp[:, piece[depth]]
    return found


if __name__ == "__main__":  # shapes on random weights: what comes in, what stands in front of the text, what goes out
    from clip_vit import CLIPViT
    from gpt2 import GPT2, GPT2Config
    from model import SeeGPT
    vit, gpt2 = CLIPViT(64, 16, 96, 2, 3, 32), GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=64))
    for cls in (Prefix, DVP):
        model = SeeGPT(vit, gpt2, cls(cls.Config(), gpt2, vit))
        feats = model.image_features(torch.randn(2, 3, 64, 64))
        logits, _ = model(feats, torch.zeros(10, 7, dtype=torch.int64))
        print(cls.__name__, "feats", tuple(feats.shape), "tokens in front", model.method.n_prompt, "logits", tuple(logits.shape))
