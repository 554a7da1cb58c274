"""Tokens that no tokenizer knows, put in front of the text: ClipCap's prefix, and DVP with the
search for its layer. And CPT, which prompts with paint. Each part can be read without the others.

B images, R = B * k rows of text, T tokens, P prefix tokens, N image tokens, C GPT-2 width, D ViT
width, V vocabulary, L layers, K the layer of the prompt, A answers

Next: train.py
"""

import itertools
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from clip_vit import Transformer, preprocess
from data.batches import Batch, answer_accuracy, count_targets
from ituning import CrossAttention, plain_layer_norm
from lib import pictures
from lib.cli import UserError, opt, time_left
from lib.devices import to_device
from lib.files import write_json
from lib.optim import make_optimizer
from lib.runs import Stop, load_batches, put_back, save_resume
from model import Method, TextState, select, training_step

# ---------------------------------------------------------------------------- the prefix: ClipCap

class TransformerMapper(nn.Module):
    """feats (B, N, D) -> prefix (B, P, C): learnt constants ask the image in a small transformer.

    The class token becomes P tokens, P constants are put behind them, and what has become of the
    constants is the prefix. tokens "all" (ours): every image token, mapped by one matrix.
    """

    def __init__(self, D, C, P, layers, heads, tokens):
        super().__init__()
        self.P, self.tokens = P, tokens
        self.linear = nn.Linear(D, C * P if tokens == "class" else C)
        self.const = nn.Parameter(torch.randn(P, C))
        self.transformer = Transformer(C, layers, heads)
        for block in self.transformer.resblocks:  # half as wide as CLIP's, with ReLU, as theirs
            block.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))

    def forward(self, feats):
        if self.tokens == "class":
            feats = feats[:, :1]
        x = self.linear(feats).reshape(len(feats), -1, self.const.shape[1])  # (B, P or N, C)
        x = torch.cat([x, self.const.expand(len(x), -1, -1)], 1)
        return self.transformer(x)[:, -self.P:]


class Prefix(Method):
    """ClipCap: an image becomes P tokens in front of the text. ctx is the prefix (B, P, C).

    paper: Mokady et al., "ClipCap: CLIP Prefix for Image Captioning", arXiv 2111.09734. All of the
    image goes through P vectors, once, before the first word. GPT-2 stays frozen or is tuned
    (--train_lm). pitfall: frozen does not mean free, the gradient comes down through all of GPT-2.

    differs: ClipCap maps CLIP's final embedding, here the class token before the last norm and
    projection: that is what all methods here get to see. Its prefix takes GPT-2's first P
    positions; here positions count text tokens only, and a prefix token has its own vector alone.
    """

    @dataclass
    class Config:
        mapper: str = opt("transformer", "image to prefix (ClipCap: mlp if GPT-2 is tuned)",
                          choices=("transformer", "mlp"))
        prefix_length: int = opt(10, "prefix tokens (ClipCap 10)")
        tokens: str = opt("class", "what the transformer reads: class token (ClipCap) or all (ours)",
                          choices=("class", "all"))
        mapper_layers: int = opt(8, "of the transformer (ClipCap 8)")
        heads: int = opt(8, "of the transformer (ClipCap 8)")

    def __init__(self, config, lm, vit):
        super().__init__()
        D, C, P, heads = vit.width, lm.config.n_embd, config.prefix_length, config.heads
        if P < 1:
            raise UserError(f"--prefix_length {P}: must be 1 or more")
        if heads < 1 or C % heads:
            raise UserError(f"--heads {heads}: GPT-2's width {C} is not a multiple of it")
        if config.mapper == "mlp" and config.tokens == "all":
            raise UserError("--mapper mlp reads the class token alone; --tokens all needs --mapper "
                            "transformer")
        self.n_prompt = P
        if config.mapper == "mlp":
            self.mapper = nn.Sequential(nn.Linear(D, P * C // 2), nn.Tanh(),
                                        nn.Linear(P * C // 2, P * C), nn.Unflatten(-1, (P, C)))
        else:
            self.mapper = TransformerMapper(D, C, P, config.mapper_layers, heads, config.tokens)
        self.whole = config.mapper != "mlp"  # the two matrices get the class token alone

    def encode_image(self, feats):
        feats = plain_layer_norm(feats)
        return self.mapper(feats if self.whole else feats[:, 0])

    def block(self, l, layer, x, ctx, state):
        if l == 0 and state.pos == 0:  # later, the cache remembers the prefix
            x = torch.cat([ctx.repeat_interleave(len(x) // len(ctx), 0), x], 1)  # (R, P + T, C)
        return layer(x, state.cache, l)

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
    """What is trained of a GPT-2 layer: copies of its norms, an adapter behind attention and MLP."""

    def __init__(self, layer, C, width):
        super().__init__()
        self.ln_1, self.ln_2 = deepcopy(layer.ln_1), deepcopy(layer.ln_2)
        self.after_attn, self.after_mlp = Adapter(C, width), Adapter(C, width)

    def forward(self, layer, x, cache, l):
        x = x + self.after_attn(layer.attn(self.ln_1(x), cache, l))
        return x + self.after_mlp(layer.mlp(self.ln_2(x)))


class DVP(Method):
    """Dynamic Visual Prompting: the text asks the image, and the answer is one token, in front of
    the text from layer K on. ctx: keys and values of the image tokens; with visual "all" the tokens.

        img (B,3,H,W)            idx (R,T)
             |                       |
        [ CLIP-ViT ]            [ wte+wpe ]
             | feats (B,N,D)         | (R,T,C)
             |              [ layers 0 .. K-1 ] + (adapters, norms)
             |                       |
             |                       +-- state of the last token of the question --+
             |                       |                                             | (R,1,C)
             +----------(k)(v)-------|-------------------------> ( cross-attention )
                                     |                                             | p (R,1,C)
                                [ p | text ] <-------------------------------------+
                                     | (R,1+T,C)
                            [ layers K .. L-1 ] + (adapters, norms)
                                     | text positions only
                     ( norm ) -> [ lm_head ] -> logits (R,T,V)   or   ( classify ) -> (R,A)

    paper: Huang et al., "Dynamic Visual Prompting", arXiv 2306.00409; code: hsb1357173526/
    Dynamic_Visual_Prompting, for BERT, T5 and LLaMA. K is found by a search, KAB-APP (below).

    Positions count text tokens only, so the prompt has none and moves no word. pitfall: from layer
    K on every word sees p, and p has read the whole question: no word of the question may be a
    target. Captions have no question: there the query is the token that begins every text, and DVP
    is attention pooling. With K = 0 the query has read nothing in any case.

    differs: GPT-2 is none of their models; sizes follow their BERT, the causal order their LLaMA.
    The query is the last token of the question, the only one that has read all of it. Left out are
    dropout (0.1 there), BERT's type embedding and the tenfold learning rate of the classifier.
    """

    needs_image = False

    @dataclass
    class Config:
        insert_layer: int = opt(0, "layer K, which the prompt is put in front of; -1: a cross-"
                                   "attention for every layer, of which the search uses one")
        visual: str = opt("one", "image tokens in front: one (DVP), all (the costly baseline), none",
                          choices=("one", "all", "none"))
        adapter: int = opt(8, "GPT-2's width / an adapter's (DVP 8); 0: no adapters or norms, as "
                              "DVP's full tuning has it together with --train_lm")
        readout: str = opt("lm", "write the answer, or choose it (head: DVP's way)",
                           choices=("lm", "head"))
        soft: bool = opt(False, "several answers may be right, a yes or no for each (VQA2.0)")
        heads: int = opt(0, "of the cross-attention; 0: GPT-2 base's, 16 for wider ones (DVP)")
        answers: list = opt([], "the answers to choose from; empty: the dataset's")

    def __init__(self, config, lm, vit):
        super().__init__()
        C, L, self.K = lm.config.n_embd, lm.config.n_layer, config.insert_layer
        # As wide as GPT-2 base; for wider models 512 in 16 heads, as they have it for LLaMA.
        width, heads = (C, lm.config.n_head) if C <= 768 else (512, 16)
        heads = config.heads or heads
        if not -1 <= self.K < L:
            raise UserError(f"--insert_layer {self.K}: this GPT-2 has layers 0 to {L - 1}")
        if heads < 1 or width % heads:
            raise UserError(f"--heads {heads}: the cross-attention's width {width} is not a "
                            "multiple of it")
        if not 0 <= config.adapter <= C:
            raise UserError(f"--adapter {config.adapter}: from 0 (none) to GPT-2's width, {C}")
        if config.readout == "head" and len(config.answers) < 2:
            raise UserError("--readout head needs two answers or more to choose from; this dataset "
                            "has none: leave it out")
        self.config, self.soft_answers = config, config.soft
        self.answers = tuple(config.answers) if config.readout == "head" else ()
        grid = vit.image_size // vit.patch
        self.n_prompt = {"one": 1, "all": 1 + grid * grid, "none": 0}[config.visual]
        if config.visual == "one":
            self.xattn = nn.ModuleList(CrossAttention(C, vit.width, width, heads)
                                       for _ in range(L if self.K < 0 else 1))
            for m in self.xattn:
                for part in (m.q, m.k, m.v, m.o):
                    part.reset_parameters()  # nothing starts at zero: p takes attention in any case
        elif config.visual == "all":
            self.map = nn.Linear(vit.width, C)
        adapters = C // config.adapter if config.adapter else 0
        self.adapted = nn.ModuleList(AdaptedLayer(b, C, adapters) for b in lm.h if adapters)
        self.ln_f = deepcopy(lm.ln_f) if adapters else None
        if self.answers:
            self.classify = nn.Sequential(nn.Linear(C, 2 * C), nn.LayerNorm(2 * C), nn.GELU(),
                                          nn.Linear(2 * C, len(self.answers)))
            for m in (self.classify[0], self.classify[3]):
                nn.init.normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)
        self.requires_grad_(True)  # the copies of frozen norms, too

    @classmethod
    def fit_dataset(cls, config, facts):
        if config.readout == "head":
            if facts["has_choices"]:
                raise UserError("--readout head cannot choose letters with explanations: the "
                                "answers to questions with choices are written")
            config.answers = config.answers or facts["answers"]()
        elif config.adapter == 0 and facts["has_blind_items"] and not facts["train_lm"]:
            raise UserError("--adapter 0 learns nothing from items without an image, and this "
                            "dataset has some")

    @classmethod
    def search(cls, config, run):
        return replace(config, insert_layer=search_layer(config, run))

    def encode_image(self, feats):
        if feats is None or self.config.visual == "none":
            return None
        feats = plain_layer_norm(feats)
        return self.map(feats) if self.config.visual == "all" else self.asker().project_kv(feats)

    def asker(self):
        """The cross-attention in use."""
        return self.xattn[self.K if self.config.insert_layer < 0 else 0]

    def last(self, x, state):
        """The states (R, 1, C) of the last condition token in x (R, T, C)."""
        if state.condition_len is None:
            return x[:, :1]
        return x[torch.arange(len(x), device=x.device), state.condition_len - 1][:, None]

    def block(self, l, layer, x, ctx, state):
        if l == self.K and state.pos == 0 and ctx is not None:
            if self.config.visual == "all":
                prompt = ctx.repeat_interleave(len(x) // len(ctx), 0)
            else:
                prompt = self.asker()(self.last(x, state), ctx, self.record_attention, l)
            x = torch.cat([prompt, x], 1)  # (R, n_prompt + T, C)
        if not self.adapted:
            return layer(x, state.cache, l)
        return self.adapted[l](layer, x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        if state.pos == 0 and ctx is not None:
            x = x[:, self.n_prompt:]
        norm = self.ln_f or lm.ln_f
        if self.answers:
            return self.classify(norm(self.last(x, state)[:, 0])).float()
        return F.linear(norm(select(x, state)), lm.wte.weight).float()


class Bandit:
    """KAB-APP's policy over L layers: preferences alpha (L,), at first all 0; pi = softmax(alpha).

    paper: after N draws with scores s in percent, for every draw of layer k
        alpha_k += 0.005 * (s - mean of the N scores) * pi_k * (1 - pi_k)
    pitfall: scores in 0..1 would move alpha a hundred times less, and find nothing.
    """

    RATE, DRAWS = 0.005, 5

    def __init__(self, L):
        self.alpha = torch.zeros(L, dtype=torch.float64)

    def policy(self):
        return self.alpha.softmax(0)

    def sample_layers(self, generator=None):
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


@torch.no_grad()
def score_layers(model, batch, layers, autocast):
    """What the prompt at each of the layers earns on a batch kept apart, in percent (N,): the
    accuracy of chosen answers, exp(-loss) of written ones."""
    model.eval()
    earned, counts = {}, [int(count_targets(micro.targets)) for micro in batch]
    with autocast:
        batch = [Batch(*to_device(micro, model.lm.wte.weight.device)) for micro in batch]
        feats = [model.image_features(micro.images) for micro in batch]  # once for all layers
        for model.method.K in layers.unique().tolist():
            runs = [model(f, *micro[1:]) for f, micro in zip(feats, batch)]
            scores = [answer_accuracy(logits, micro.targets) if model.method.answers else
                      (-loss).exp().item() for micro, (logits, loss) in zip(batch, runs)]
            earned[model.method.K] = 100 * np.average(scores, weights=counts)
    model.train()
    return torch.tensor([earned[l] for l in layers.tolist()], dtype=torch.float64)


def search_layer(method_config, run):
    """KAB-APP: the layer where DVP's prompt helps most, found by trial while a supernet learns.

    The supernet has a cross-attention for every layer. Each step trains one of them, drawn
    uniformly, and all else; then the bandit draws some by its policy, and each earns what it scores
    on a half batch of training images kept apart. run: train.py's Run. Writes search.json and
    search.png into its folder; search.pt is for --resume.
    paper: a constant learning rate, no weight is inherited. differs: theirs is a fifth of the final
    one, ours is --lr; without dropout equal layers score alike, so each drawn one runs once; theirs
    tunes all of BERT in the search, ours the adapters.
    """
    config, resume, n = run.config, run.resume, len(run.train.entries)
    steps, kept = round(config.search_epochs * n / config.batch), min(1000, max(config.batch // 2, n // 20))
    if kept >= n or steps < 1:
        raise UserError(f"--search with {n:,} images and --batch {config.batch}: too few for a step")
    mixed = np.random.default_rng((config.seed, 2)).permutation(n)
    train, mini = run.train.subset(mixed[kept:]), run.train.subset(mixed[:kept], max(1, config.batch // 2))
    model = run.build(replace(method_config, insert_layer=-1))
    backbones = {n: p.detach().clone() for n, p in model.trained().items() if "method." not in n}
    optimizer, scaler = make_optimizer(model.trained(), config, run.device), run.scaler()
    bandit, dice = Bandit(len(model.lm.h)), torch.Generator().manual_seed(config.seed)
    first, history = 0, {}  # {step: policy}
    if resume:
        first, bandit.alpha, history = resume["step"], resume["alpha"], resume["history"]
        put_back(resume, model, optimizer, scaler, run.out / "search.pt")
        dice.set_state(resume["dice"])
    print(f"search for the layer: {steps:,} steps, rewarded on {kept:,} of the training images")
    left = time_left(first, steps)
    with Stop() as stop:
        for step, batch in load_batches(train, first, steps, run.workers, run.device):
            model.method.K = int(torch.randint(len(bandit.alpha), (), generator=dice))
            loss, count, _ = training_step(model, batch, optimizer, config.grad_clip, scaler, run.autocast)
            layers = bandit.sample_layers(dice)
            bandit.update(layers, score_layers(model, mini[step], layers, run.autocast))
            step, stopping = step + 1, stop.asked
            if step % max(1, steps // 200) == 0 or step == steps:
                history[step] = bandit.policy().tolist()
            if step % config.log_every == 0 or step == steps:
                print(f"search {step}/{steps}  loss {loss / count:.4f}  policy "
                      + " ".join(f"{p:.3f}" for p in bandit.policy()) + f"  {left(step)} left")
            if step % config.eval_every == 0 or step == steps or stopping:
                save_resume(run.out / "search.pt", step, model, optimizer, config, method_config,
                            scaler=scaler.state_dict(), alpha=bandit.alpha, history=history,
                            dice=dice.get_state())
            if stopping:
                run.stopped(step)
    model.restore({**model.trained(), **backbones}, "search")  # the retraining begins anew
    best = bandit.best()
    write_json(run.out / "search.json", {"layer": best[0], "ties": best, "steps": steps,
                                         "policy": bandit.policy().tolist(), "history": history})
    pictures.plot_policy(history, run.out / "search.png", run.out / "search.json")
    print(f"search: layer {best[0]}{f'; it ties with {best[1:]}' if best[1:] else ''}")
    return best[0]


# ---------------------------------------------------------------------------- CPT

# paper: Yao et al., "CPT: Colorful Prompt Tuning for Pre-trained Vision-Language Models", arXiv
# 2109.11797; colours and transparency as in their code, thunlp/CPT. A region is painted, a text ends
# where its colour is named, and a trained captioner (the host) fills in the word: no new parameter.
#
#   image, region i --> [ paint 127/255 red ] --> [ CLIP-ViT ] --+
#                                                                v
#   "the small circle left of the star is in" ----> [ GPT-2 + (method) ] --> log p(" red" | copy i)
#
# differs: their model is masked and reads " color." behind the blank; here the blank is the end of
# the text. They also tell a detector's names of the regions: GPT-2 has no place for those. Scores
# are log-probabilities where theirs are raw logits.
PAINTS = {"red": (240, 0, 30), "blue": (0, 10, 255), "yellow": (255, 255, 25),
          "purple": (155, 50, 210), "green": (0, 255, 0)}
ALPHA = 127  # of 255
NONE = "none"  # the word for: not here
# CPT's "{} is in [MASK] color." and "{} is [MASK]."; the third is ours. Those with the blank before
# the noun need annotations.
TEMPLATES = ("{} is in", "{} is", "the color of {} is")


def paint(image, region, colour, alpha=ALPHA):
    """A copy of an RGB image with a half-transparent region; the rest stays, bit for bit.

    region: a box [x, y, w, h] in pixels or an "L" mask of the image's size. out = (alpha * colour +
    (255 - alpha) * pixel) / 255. pitfall: paint first and resize then, and keep the whole image: a
    centre crop would cut off regions at the border.
    """
    out = image.convert("RGB")
    if isinstance(region, Image.Image):
        out.paste(colour, mask=region.point(lambda v: alpha if v else 0))
        return out
    x, y, w, h = region
    box = max(0, int(x)), max(0, int(y)), min(out.width, int(x + w)), min(out.height, int(y + h))
    if box[0] < box[2] and box[1] < box[3]:
        out.paste(colour, box, Image.new("L", (box[2] - box[0], box[3] - box[1]), alpha))
    return out


def cloze(phrase, template=TEMPLATES[0]):
    """"The Red Car." -> "the red car is in": what is read before the colour is named."""
    return template.format(" ".join(phrase.lower().replace(".", "").split()))


@torch.no_grad()
def whole_image_features(model, images, batch=64):
    """PIL images -> feats (n, N, D): all of a picture is squeezed into the square, no region is cut
    off. images may be a generator: then only one is held in its full size at a time."""
    pixels, found = (preprocess(x, model.vit.image_size, crop=False) for x in images), []
    while part := list(itertools.islice(pixels, batch)):
        found.append(model.image_features(torch.stack(part).to(model.lm.wte.weight.device)))
    return torch.cat(found)


@torch.no_grad()
def fill_in(model, images, prompts, words):
    """log p of each word behind each prompt, (n, W); images (n, ...) or feats, one a prompt.

    A word of several tokens has the sum of their log-probabilities.
    """
    feats = model.image_features(images)
    # pitfall: "red" without the space in front is another token.
    pieces = [model.lm.tokenizer.encode_ordinary(f" {word}") for word in words]
    found = feats.new_zeros(len(prompts), len(words))
    for group, idx in model.group_by_length(prompts):
        n, T = idx.shape
        ctx, every = model.method.encode_image(feats[group]), torch.arange(1, n + 1, device=idx.device)
        condition_len = model.condition_lengths(torch.full((n,), T, device=idx.device))

        def next_token(start):  # log-probabilities (n, V) behind prompt and start
            ids = torch.cat([idx, idx.new_tensor(start, dtype=idx.dtype).expand(n, -1)], 1)
            state = TextState(condition_len=condition_len, wanted=every * ids.shape[1] - 1)
            return model.forward_text(ids, ctx, state).log_softmax(-1)

        behind = {(): next_token([])}
        for w, piece in enumerate(pieces):
            for depth, token in enumerate(piece):
                start = tuple(piece[:depth])
                if start not in behind:
                    behind[start] = next_token(start)
                found[group, w] += behind[start][:, token]
    return found
