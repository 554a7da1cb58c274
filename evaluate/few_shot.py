"""Few-shot CPT, and the fine-tuned head it is compared with."""

import random
import sys
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from data.batches import pad
from evaluate.regions import chosen, hits_of, load, painted, paints_of, regions
from evaluate.tables import markdown
from lib import pictures
from lib.cli import clock, UserError
from lib.files import read_json, write_json
from lib.optim import parameter_groups, schedule
from lib.pictures import open_image
from model import TextState
from prompts import NONE, blank, fill_in, paint, whole_image_features

SHOTS_AT_ONCE = 100  # copies in a few-shot step, at most (CPT's code)


class RegionHead(nn.Module):
    """The baseline that CPT beats: a score from the image tokens inside a box, its place, and the phrase.

    differs: CPT's baseline reads the region outputs of VinVL; here a region is the mean of the ViT's tokens in its
    box and the box's five numbers, the phrase the captioner's last state. Linear, GELU, LayerNorm, Linear, as theirs.
    """

    def __init__(self, D, C):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(D + C + 5, C), nn.GELU(), nn.LayerNorm(C), nn.Linear(C, 1))

    def forward(self, regions, text):
        return self.score(torch.cat([regions, text], -1))[:, 0]  # (n,)


def region_tokens(feats, item, size):
    """The image tokens (N, D) of the clean image averaged over each proposal, with its place: (n, D + 5)."""
    feats = nn.functional.layer_norm(feats, feats.shape[-1:])[1:]
    side, (W, H) = round(len(feats) ** 0.5), size
    centres = (torch.arange(side) + 0.5) / side
    rows = []
    for x, y, w, h in item["proposals"]:
        x0, y0, x1, y1 = x / W, y / H, (x + w) / W, (y + h) / H
        inside = ((centres >= y0) & (centres <= y1))[:, None] & ((centres >= x0) & (centres <= x1))
        if not inside.any():  # a box smaller than a patch: the patch it is in
            inside[min(side - 1, int((y0 + y1) / 2 * side)), min(side - 1, int((x0 + x1) / 2 * side))] = True
        place = feats.new_tensor([x0, y0, x1, y1, (x1 - x0) * (y1 - y0)])
        rows.append(torch.cat([feats[inside.flatten().to(feats.device)].mean(0), place]))
    return torch.stack(rows)


def phrase_states(model, feats, phrases):
    """GPT-2's last states (n, C) behind n phrases, each with its clean image before it, feats (n, N, D).

    As model.read, without head: of VC-GPT, whose fusion stack is in there, that is the text alone.
    """
    idx, cond = pad([phrase.lower() for phrase in phrases], model.lm.tokenizer, feats.device)
    x, ctx = model.lm.embed(idx, 0), model.method.encode_image(feats)
    for l, block in enumerate(model.lm.h):
        x = model.method.block(l, block, x, ctx, TextState(condition_len=model.condition_lengths(cond)))
    x = x[:, -idx.shape[1]:]  # without a method's own tokens, which stand in front
    return model.lm.ln_f(x[torch.arange(len(x), device=x.device), cond - 1])


def head_scores(model, head, items, feats, tokens):
    """The head's scores of the proposals of each item, [(n,), ...], from clean images' feats and region_tokens of each."""
    sizes = [len(t) for t in tokens]
    text = phrase_states(model, torch.cat(feats), [item["expression"] for item in items])
    return head(torch.cat(tokens), text.repeat_interleave(torch.tensor(sizes, device=text.device), 0)).split(sizes)


def shots_of(items, K, seed):
    """K items drawn with a seed (CPT: the training expressions are shuffled, the first K taken)."""
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    return [items[i] for i in order[:K]]


def examples(item, limit, strict=False):
    """(proposals painted, right or wrong): those over the true box, and as many others; labels True and False."""
    hit, = hits_of([item], strict)
    right, wrong = [i for i, x in enumerate(hit) if x], [i for i, x in enumerate(hit) if not x]
    if not right:  # no proposal covers it: the first one takes the place, and is none of it (as released)
        return [(0, False)]
    right = right[:limit]
    wrong = random.Random(str(item["id"])).sample(wrong, min(len(wrong), len(right)))
    return [(i, True) for i in right] + [(i, False) for i in wrong]


def few_shot_steps(params, lr, steps):
    """Yields steps times; after each, the gradients that were made move params.

    AdamW as in CPT's code: betas (0.9, 0.98), weight decay 0.01 on matrices, a tenth of the steps to warm up.
    differs: gradients are clipped to a norm of 1, as in train.py.
    """
    optimizer = torch.optim.AdamW(parameter_groups(params, lr, 0.01), betas=(0.9, 0.98))
    for step in range(steps):
        schedule(optimizer, step, steps // 10, steps)
        yield
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def tune_cpt(model, shots, config, seed):
    """A copy of the captioner that says " red" for the right painted region, " none" for another. UserError if one of
    these words is more than one token.

    A step sees all painted copies, and SHOTS_AT_ONCE of more: those of a few shots are encoded once, those of a whole
    dataset, which no memory could hold, when their turn comes.
    differs: of a captioner with --train_vision all but its ViT is tuned: the copies are encoded without gradient.
    """
    model, dice = deepcopy(model).train(), np.random.default_rng(seed)
    enc, word, paints, most = model.lm.tokenizer, config.colours[0], paints_of(config), 1 if len(shots) >= 16 else SHOTS_AT_ONCE
    copies = [(item, i, right) for item in shots for i, right in examples(item, most, config.strict)]
    if pieces := [w for w in (word, NONE) if len(enc.encode_ordinary(f" {w}")) > 1]:
        raise UserError(f"--shots: {pieces[0]} is more than one token of this GPT-2; choose another of --colours")
    red, none = (enc.encode_ordinary(f" {w}")[0] for w in (word, NONE))

    def pictures(some):
        for item, i, _ in some:
            image = open_image(item["image"])
            yield paint(image, [(regions(item, image.size, config.masks)[i], paints[word])])

    def batch(some):
        feats = whole_image_features(model, pictures(some))
        idx, cond = pad([blank(item["expression"], config.template) for item, _, _ in some], enc, feats.device)
        return feats, idx, cond, torch.tensor([red if right else none for _, _, right in some], device=feats.device)

    every = batch(copies) if len(copies) <= SHOTS_AT_ONCE else None
    for _ in few_shot_steps(list(model.trained().values()), config.lr, config.steps):
        feats, idx, cond, targets = every or batch([copies[n] for n in dice.permutation(len(copies))[:SHOTS_AT_ONCE]])
        last = torch.arange(len(idx), device=feats.device) * idx.shape[1] + cond - 1
        logits = model.forward_text(idx, model.method.encode_image(feats), TextState(condition_len=model.condition_lengths(cond), wanted=last))
        nn.functional.cross_entropy(logits, targets).backward()
    return model.eval()


def score_cpt(model, items, config):
    """log p(red) - log p(none) of every proposal painted, [(n,), ...]: no constant on the logits changes it.

    differs: the released score is the ratio of the two logits, which turns around where one changes its sign.
    """
    found = [None] * len(items)
    for i, _, feats in painted(model, items, config):
        phrase = blank(items[i]["expression"], config.template)
        red, none = fill_in(model, feats, [phrase] * len(feats), [config.colours[0], NONE]).unbind(1)
        found[i] = (red - none).cpu().numpy()
    return found


def tune_head(model, shots, config, seed):
    """(captioner, head) fine-tuned together: a softmax over the proposals of each expression. Ten times as many steps at
    twice the learning rate of CPT, as released; a step sees ten expressions at most."""
    torch.manual_seed(seed)
    model, dice = deepcopy(model).train(), np.random.default_rng(seed)
    device = model.lm.wte.weight.device
    head = RegionHead(model.vit.width, model.lm.config.n_embd).to(device)
    shots = [(item, torch.tensor(hit, dtype=torch.float32, device=device))
             for item, hit in zip(shots, hits_of(shots, config.strict)) if any(hit)]
    seen = {}
    for _ in few_shot_steps([*model.trained().values(), *head.parameters()], 2 * config.lr, 10 * config.steps if shots else 0):
        drawn = dice.permutation(len(shots))[:10].tolist()
        if len(seen) > 10 * SHOTS_AT_ONCE:
            seen.clear()
        for n in drawn:
            if n not in seen:
                seen[n] = clean(model, shots[n][0])
        scores = head_scores(model, head, [shots[n][0] for n in drawn], *zip(*(seen[n] for n in drawn)))
        losses = [nn.functional.cross_entropy(s[None], shots[n][1][None] / shots[n][1].sum()) for n, s in zip(drawn, scores)]
        torch.stack(losses).mean().backward()
    return model.eval(), head.eval()


def clean(model, item):
    """(feats (1, N, D), region_tokens) of the image as it is."""
    image = open_image(item["image"])
    feats = whole_image_features(model, [image])
    return feats, region_tokens(feats[0], item, image.size)


@torch.no_grad()
def score_head(model, head, items, batch=32):
    """The fine-tuned head's score of every proposal, [(n,), ...]."""
    found = []
    for i in range(0, len(items), batch):
        part = items[i:i + batch]
        found += [s.cpu().numpy() for s in head_scores(model, head, part, *zip(*(clean(model, item) for item in part)))]
    return found


def few_shot(model, items, hits, config, settings):
    """Prints {method: {K: [accuracy x 100 of each seed]}}. With --json every run is written when it is done, and a second
    call with the same settings goes on from there; with --png the curve is drawn."""
    pool, began, done, found = load(config.dataset, "train"), time.time(), 0, {"CPT": {}, "fine-tuned head": {}}
    shots = list(dict.fromkeys(map(str, config.shots)))
    if config.json and Path(config.json).exists():
        written = read_json(Path(config.json), "expected the numbers of --shots in it")
        if not isinstance(written, dict) or written.get("settings") != settings or "accuracies" not in written:
            raise UserError(f"{config.json} is of other settings: name another file, or remove it")
        found = written["accuracies"]
    todo = [(K, seed) for seed in range(config.seeds) for K in shots if len(found["CPT"].get(K, ())) <= seed]
    for K, seed in todo:
        some = shots_of(pool, len(pool) if K == "all" else int(K), seed)
        for name, scores in (("CPT", score_cpt(tune_cpt(model, some, config, seed), items, config)),
                             ("fine-tuned head", score_head(*tune_head(model, some, config, seed), items))):
            found[name].setdefault(K, []).append(100 * chosen(scores, hits).mean())
        write_json(config.json, {"settings": settings, "accuracies": found})
        done += 1
        print(f"{K} shots, seed {seed}: CPT {found['CPT'][K][-1]:.1f}, head {found['fine-tuned head'][K][-1]:.1f}; "
              f"{clock((time.time() - began) / done * (len(todo) - done))} left", file=sys.stderr, flush=True)
    # The population's deviation, as CPT reports it.
    seen = {name: {K: (np.mean(f[K][:config.seeds]), np.std(f[K][:config.seeds])) for K in shots} for name, f in found.items()}
    print(markdown([["shots", *seen], *([K, *("{:.1f} ± {:.1f}".format(*f[K]) for f in seen.values())] for K in shots)]))
    if config.png:
        curves = []
        for (name, f), colour in zip(seen.items(), ("#1f4e8c", "#d1652a")):
            for label, away, looks in ((name, 0, dict(marker="o")), ("", 1, dict(linestyle=":")), ("", -1, dict(linestyle=":"))):
                points = {int(K): float(mean + away * std) for K, (mean, std) in f.items() if K != "all"}
                curves.append((label, points, looks | dict(color=colour)))
        pictures.plot(curves, config.png, "expressions tuned on (dotted: one standard deviation)", "accuracy, %",
                  config.json or "the table above")
