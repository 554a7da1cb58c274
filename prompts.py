"""Tokens that no tokenizer knows, in front of the text: ClipCap's prefix, and DVP with the search
for its layer (which uses the loop of train.py). And CPT, which prompts with paint.

B images, R = B * k rows of text, T tokens, P prefix tokens, N image tokens, C GPT-2 width, D ViT
width, V vocabulary, L layers, K the layer of the prompt, A answers

Next: train.py
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from clip_vit import Transformer
from data.batches import Batch, answer_accuracy, count_targets, encode_answer
from ituning import CrossAttention, pick_heads, plain_layer_norm
from lib import curves
from lib.cli import UserError, opt, time_left
from lib.devices import to_device
from lib.files import write_json
from lib.optim import make_optimizer
from lib.runs import grad_scaler, loop, put_back, save_resume
from model import Method, TextState, select, training_step
from plm.adapters import adapt, init_linear, layers_of

# ---------------------------------------------------------------------------- the prefix: ClipCap

class Prefix(Method):
    """ClipCap: an image becomes P tokens in front of the text. ctx is the prefix (B, P, C).

    paper: Mokady et al., "ClipCap: CLIP Prefix for Image Captioning", arXiv 2111.09734. Mapped by
    two matrices with a tanh, or a small transformer: the class token becomes P tokens, P learnt
    constants stand behind them, and what becomes of these is the prefix. pitfall: frozen does not
    mean free, the gradient comes down through all layers of GPT-2.

    differs: ClipCap maps CLIP's final embedding, here tokens before the last norm are mapped. Its
    prefix takes GPT-2's first P positions; here only text tokens have positions.
    """

    @dataclass
    class Config:
        mapper: str = opt("transformer", "mlp if GPT-2 is tuned", choices=("transformer", "mlp"))
        prefix_length: int = opt(10, "prefix tokens (ClipCap 10)")
        tokens: str = opt("class", "tokens that it reads (all: ours)", choices=("class", "all"))
        mapper_layers: int = opt(8, "layers of the mapper (ClipCap 8)")
        heads: int = opt(8, "heads of the mapper (ClipCap 8)")

    def __init__(self, config, lm, vit):
        super().__init__()
        self.config, D, C, P = config, vit.width, lm.config.n_embd, config.prefix_length
        if P < 1:
            raise UserError(f"--prefix_length {P}: must be 1 or more")
        if config.mapper == "mlp" and config.tokens == "all":
            raise UserError("--tokens all needs --mapper transformer: mlp reads the class token")
        self.n_prompt = P
        if config.mapper == "mlp":  # its parameters grow with P * P
            self.mlp = nn.Sequential(nn.Linear(D, P * C // 2), nn.Tanh(),
                                     nn.Linear(P * C // 2, P * C), nn.Unflatten(-1, (P, C)))
            return
        self.linear = nn.Linear(D, C * P if config.tokens == "class" else C)
        self.const = nn.Parameter(torch.randn(P, C))
        self.transformer = Transformer(C, config.mapper_layers, pick_heads(config.heads, lm, C))
        for block in self.transformer.resblocks:  # half as wide as CLIP's, with ReLU, as theirs
            block.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))

    def encode_image(self, feats):
        feats = plain_layer_norm(feats)
        if self.config.mapper == "mlp":
            return self.mlp(feats[:, 0])
        feats = feats[:, :1] if self.config.tokens == "class" else feats
        x = self.linear(feats).reshape(len(feats), -1, self.const.shape[1])  # (B, P or N, C)
        x = torch.cat([x, self.const.expand(len(x), -1, -1)], 1)
        return self.transformer(x)[:, -self.n_prompt:]

    def block(self, l, layer, x, ctx, state):
        if l == 0 and state.pos == 0:  # later, the cache remembers the prefix
            x = torch.cat([ctx.repeat_interleave(len(x) // len(ctx), 0), x], 1)  # (R, P + T, C)
        return layer(x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        return lm.head(select(x[:, self.n_prompt:] if state.pos == 0 else x, state))


# ---------------------------------------------------------------------------- DVP

class DVP(Method):
    """Dynamic Visual Prompting: the text asks the image, and the answer is one token in front of
    the text from layer K on. ctx: keys and values of the image tokens (visual "all": the tokens).

        img (B,3,H,W)            idx (R,T)
             |                       |
        [ CLIP-ViT ]            [ wte+wpe ]
             | feats (B,N,D)         | (R,T,C)
             |              [ layers 0 .. K-1 ] + (adapters, norms)
             |                       +-- state of the last token of the question --+
             |                       |                                             | (R,1,C)
             +----------(k)(v)-------|-------------------------> ( cross-attention )
                                     |                                             | p (R,1,C)
                                [ p | text ] <-------------------------------------+
                                     | (R,1+T,C)
                            [ layers K .. L-1 ] + (adapters, norms)
                                     |
                     ( norm ) -> [ lm_head ] -> logits (R,T,V)   or   ( classify ) -> (R,A)

    paper: Huang et al., "Dynamic Visual Prompting", arXiv 2306.00409; code: hsb1357173526/
    Dynamic_Visual_Prompting, for BERT, T5 and LLaMA. K is found by a search, KAB-APP (below).

    Only text tokens have positions: p moves no word. pitfall: from layer K on every word sees p,
    which has read the whole question, so no word of that may be a target. Of captions, which have
    no question, the query is the token that begins every text.

    On BERT [CLS] asks and is classified. On T5 the encoder reads the question, the mean of its
    states asks, and p stands in front of what the decoder writes, or of its start, if that is
    classified. data/recipes.py has what was published for each model.

    differs: GPT-2's sizes follow their BERT, its causal order their LLaMA. On both the query is the
    question's last token, which alone has read all of it; theirs for LLaMA is an end of text behind
    it. No dropout, one learning rate. Their T5 loses its distances above the first layer of each
    stack, lets p see the start behind it, and counts padding in the mean: a fault, not followed.
    """

    lms = "gpt2", "llama", "bert", "t5"
    needs_image = False

    @dataclass
    class Config:
        insert_layer: int = opt(0, "layer K, from which on the prompt stands in front of the text")
        visual: str = opt("one", "image tokens; DVP: one", choices=("one", "all", "none"))
        adapter: int = opt(8, "the LM's width / an adapter's (DVP 8); 0: no adapters, no norms")
        silu: bool = opt(False, "adapters with SiLU and Xavier's start (LLaMA), not ReLU")
        types: bool = opt(False, "what is added to text and prompt to tell them apart (BERT, T5)")
        widening: float = opt(2.0, "hidden width of the classifier / the LM's (DVP 2, LLaMA 1/8)")
        readout: str = opt("lm", "write answers, or choose (head: DVP)", choices=("lm", "head"))
        soft: bool = opt(False, "several answers may be right, a yes or no for each (VQA2.0)")
        heads: int = opt(0, "of the cross-attention; 0: as the LM, 16 above width 768 (DVP)")
        draws: int = opt(5, "of the search: layers tried a step (DVP 5, LLaMA 10)", at_least=1)
        answers: list = opt([], "the answers to choose from; empty: the dataset's")

    def __init__(self, config, lm, vit):
        super().__init__()
        C, L, self.K = lm.config.n_embd, lm.config.n_layer, config.insert_layer
        # As wide as the LM, up to base's 768; beyond that 512 in 16 heads, as theirs for LLaMA.
        width, heads = (C, lm.config.n_head) if C <= 768 else (512, 16)
        heads = pick_heads(config.heads or heads, lm, width)
        if not -1 <= self.K < L or not 0 <= config.adapter <= C:
            raise UserError(f"--insert_layer {self.K}, --adapter {config.adapter}: this model has "
                            f"layers 0 to {L - 1}, and a width of {C}")
        if config.readout == "head" and len(config.answers) < 2:
            raise UserError("--readout head needs two answers or more to choose from: leave it out")
        self.config, self.soft_answers, arms = config, config.soft, L if self.K < 0 else 1
        self.answers = tuple(config.answers) if config.readout == "head" else ()
        self.n_prompt = {"one": 1, "all": len(vit.positional_embedding), "none": 0}[config.visual]
        if config.visual == "one":
            self.xattn = nn.ModuleList(CrossAttention(C, vit.width, width, heads)
                                       for _ in range(arms))
            for m in self.xattn:
                for part in (m.q, m.k, m.v, m.o):
                    part.reset_parameters()  # nothing starts at zero: p takes attention in any case
        elif config.visual == "all":
            self.map = nn.Linear(vit.width, C)
        if config.types and self.n_prompt:  # as theirs: large for BERT, whose states are smaller
            self.types = nn.ParameterList(torch.randn(2, C) for _ in range(arms))
        adapters = C // config.adapter if config.adapter else 0
        self.adapted = nn.ModuleList(adapt(layer, C, adapters, config.silu)
                                     for layer in layers_of(lm) if adapters)
        self.ln_f = deepcopy(lm.ln_f) if adapters else None
        if self.answers:
            hidden = max(1, int(config.widening * C))
            self.classify = nn.Sequential(nn.Linear(C, hidden), nn.LayerNorm(hidden), nn.GELU(),
                                          nn.Linear(hidden, len(self.answers)))
            init_linear(self.classify[0], 0.02)
            init_linear(self.classify[3], 0.02)
        self.requires_grad_(True)  # the copies of frozen norms, too

    @classmethod
    def fit_dataset(cls, config, facts, settings):
        if config.insert_layer < 0:  # -1 is the search's, with a cross-attention for every layer
            raise UserError(f"--insert_layer {config.insert_layer}: must be 0 or more")
        if config.readout == "head" and facts["has_choices"]:
            raise UserError("--readout head: the answers to questions with choices are written")
        if config.readout == "head":
            config.answers = config.answers or facts["answers"]()
        elif config.adapter == 0 and facts["has_blind_items"] and not settings.train_lm:
            raise UserError("--adapter 0 learns nothing from items without an image, as are here")

    @classmethod
    def search(cls, config, run):
        return replace(config, insert_layer=search_layer(config, run))

    def encode_image(self, feats):
        if feats is None or self.config.visual == "none":
            return None
        feats = plain_layer_norm(feats)
        if self.config.visual == "all":
            return self.map(feats)
        return self.xattn[self.arm()].project_kv(feats)

    def arm(self):  # the number of the cross-attention in use
        return self.K if self.config.insert_layer < 0 else 0

    def last(self, x, state):
        """The states (R, 1, C) of the last condition token in x (R, T, C). Where the language model
        says None, it is the first that has read all: BERT's [CLS], T5's start."""
        last = 0 if state.condition_len is None else state.condition_len - 1
        return x[torch.arange(len(x), device=x.device), last][:, None]

    def block(self, l, layer, x, ctx, state):
        if l == self.K and ctx is not None:
            x = self.insert(x, ctx, state)
        if not self.adapted:
            return layer(x, state.cache, l)
        return self.adapted[l](layer, x, state.cache, l)

    def insert(self, x, ctx, state):
        """x (R, T, C) with the prompt in front, unless the cache has it: (R, n_prompt + T, C)."""
        types = self.types[self.arm()] if self.config.types else None
        if state.pos > 0:
            return x if types is None else x + types[0]
        if self.config.visual == "all":
            prompt = ctx.repeat_interleave(len(x) // len(ctx), 0)
        else:
            asking = self.last(x, state) if state.summary is None else state.summary
            prompt = self.xattn[self.arm()](asking, ctx, self.record_attention, self.K)
        if types is not None:
            prompt, x = prompt + types[1], x + types[0]
        return torch.cat([prompt, x], 1)

    def logits(self, lm, x, ctx, state):
        if state.pos == 0 and ctx is not None:
            x = x[:, self.n_prompt:]
        if self.answers:
            return self.classify((self.ln_f or lm.ln_f)(self.last(x, state)[:, 0])).float()
        return lm.head(select(x, state), self.ln_f)


class Bandit:
    """KAB-APP's policy over L layers: preferences alpha (L,), at first all 0; pi = softmax(alpha).

    paper: after N draws with scores s in percent, for every draw of layer k
        alpha_k += 0.005 * (s - mean of the N scores) * pi_k * (1 - pi_k)
    pitfall: scores in 0..1 would move alpha a hundred times less, and find nothing.
    """

    RATE = 0.005

    def __init__(self, L, draws=5):
        self.alpha, self.draws = torch.zeros(L, dtype=torch.float64), draws

    def policy(self):
        return self.alpha.softmax(0)

    def sample_layers(self, generator=None):
        """N layers drawn from the policy, with replacement: (N,)."""
        return torch.multinomial(self.policy(), self.draws, True, generator=generator)

    def update(self, layers, scores):
        """layers (N,), scores (N,) in percent. A layer drawn twice moves twice."""
        pi = self.policy()
        step = self.RATE * (scores - scores.mean()) * (pi * (1 - pi))[layers]
        self.alpha.index_add_(0, layers, step)


@torch.no_grad()
def score_layers(model, batch, layers, autocast):
    """What the prompt at each layer earns on a batch kept apart, x 100: accuracy or exp(-loss)."""
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
    on half a batch of training images kept apart. run: train.Run; search.json, search.png and, for
    --resume, search.pt are in its folder.
    paper: a constant learning rate, no weight is inherited. differs: their rate is a fifth of the
    final one, and they tune all of BERT; without dropout a layer drawn twice scores once."""
    config, resume, n = run.config, run.resume, len(run.entries["train"])
    steps = round(config.search_epochs * n / config.batch)
    kept = min(1000, max(config.batch // 2, n // 20))
    if method_config.visual != "one" or method_config.insert_layer or config.init_from \
            or run.processes.size > 1 or kept >= n or steps < 1:
        raise UserError("--search finds one prompt token's layer: --visual one, images enough for "
                        "a step, and without --insert_layer, --init_from and torchrun")
    model = run.build(replace(method_config, insert_layer=-1))
    mixed = np.random.default_rng((config.seed, 2)).permutation(n)
    data = run.batches("train", model.method)
    mini = data.subset(mixed[:kept], max(1, config.batch // 2))
    optimizer, scaler = make_optimizer(model.trained(), config, run.device), grad_scaler(run)
    bandit = Bandit(len(model.lm.h), method_config.draws)
    dice = torch.Generator().manual_seed(config.seed)
    first, history = 0, {}  # {step: policy}
    more = lambda: {"alpha": bandit.alpha, "history": history, "dice": dice.get_state()}
    if resume:
        first, bandit.alpha, history, thrown = put_back(resume, model, optimizer, scaler, **more())
        dice.set_state(thrown)
    save = lambda step, due: save_resume(run.out / "search.pt", step, model, optimizer, scaler, run,
                                         **more())
    left = time_left(first, steps)
    for step, batch in loop(run, data.subset(mixed[kept:]), first, steps, save):
        model.method.K = int(torch.randint(len(bandit.alpha), (), generator=dice))
        loss, count, _ = training_step(model, batch, optimizer, config.grad_clip, scaler,
                                       run.autocast)
        layers = bandit.sample_layers(dice)
        bandit.update(layers, score_layers(model, mini.read(step), layers, run.autocast))
        step += 1
        if step % config.log_every == 0 or step == steps:
            history[step] = bandit.policy().tolist()
            run.processes.say(f"search {step:,}/{steps:,}  loss {loss / count:.4f}  policy "
                              + " ".join(f"{p:.3f}" for p in history[step])
                              + f"  {left(step)} left", renew=True)
    layer = int(bandit.alpha.argmax())  # the lowest of several that tie
    write_json(run.out / "search.json", {"layer": layer, "policy": bandit.policy().tolist(),
                                         "steps": steps, "history": history})
    curves.draw_policy(history, run.out / "search.png")
    print(f"search: layer {layer}")
    return layer


# ---------------------------------------------------------------------------- CPT

# paper: Yao et al., "CPT: Colorful Prompt Tuning for Pre-trained Vision-Language Models", arXiv
# 2109.11797; code: thunlp/CPT. A trained captioner (the host) fills in the colour of a region.
#
#   image, region i --> [ paint 127/255 red ] --> [ CLIP-ViT ] --+
#                                                                v
#   "the small circle left of the star is in" ----> [ GPT-2 + (method) ] --> log p(" red" | copy i)
#
# differs: their model is masked and reads on behind the blank; here the blank is the end. They also
# tell a detector's names of the regions, and score raw logits, not log-probabilities.
PAINTS = {"red": (240, 0, 30), "blue": (0, 10, 255), "yellow": (255, 255, 25),
          "purple": (155, 50, 210), "green": (0, 255, 0)}
ALPHA = 127  # of 255
NONE = "none"  # the word for: not here
TEMPLATES = ("{} is in", "{} is", "the color of {} is")  # the last is ours


def paint(image, region, colour, alpha=ALPHA):
    """A copy of an RGB image with a half-transparent region; the rest stays, bit for bit.

    region: a box [x, y, w, h] in pixels or an "L" mask. out = (alpha * colour + (255 - alpha) *
    pixel) / 255. pitfall: paint first, then resize, and keep the whole image.
    """
    out = image.convert("RGB")
    if isinstance(region, Image.Image):
        out.paste(colour, mask=region.point(lambda v: alpha if v else 0))
        return out
    x, y, w, h = region
    right, below = max(int(x + w), int(x) + 1), max(int(y + h), int(y) + 1)  # a pixel at least
    box = max(0, int(x)), max(0, int(y)), min(out.width, right), min(out.height, below)
    if box[0] < box[2] and box[1] < box[3]:
        out.paste(colour, box, Image.new("L", (box[2] - box[0], box[3] - box[1]), alpha))
    return out


def cloze(phrase, template=TEMPLATES[0]):
    """"The Red Car." -> "the red car is in": what is read before the colour is named."""
    return template.format(" ".join(phrase.lower().replace(".", "").split()))


@torch.no_grad()
def fill_in(model, images, prompts, words):
    """log p of each word behind each prompt, (n, W), the sum over its tokens; images (n, ...) or
    feats, one a prompt."""
    feats = model.image_features(images)
    # pitfall: "red" without the space in front is another token.
    pieces = [encode_answer(model.lm.tokenizer, word, "behind a text") for word in words]
    found = feats.new_zeros(len(prompts), len(words))
    for group, idx in model.group_by_length(prompts):
        n, T = idx.shape
        ctx, known = model.method.encode_image(feats[group]), {}
        condition_len = model.condition_lengths(torch.full((n,), T, device=idx.device))
        for w, d in ((w, d) for w, piece in enumerate(pieces) for d in range(len(piece))):
            start = tuple(pieces[w][:d])
            if start not in known:  # log-probabilities (n, V) of what comes behind it
                ids = torch.cat([idx, idx.new_tensor(start, dtype=idx.dtype).expand(n, -1)], 1)
                last = torch.arange(1, n + 1, device=idx.device) * (T + d) - 1
                state = TextState(condition_len=condition_len, wanted=last)
                known[start] = model.forward_text(ids, ctx, state).log_softmax(-1)
            found[group, w] += known[start][:, pieces[w][d]]
    return found
