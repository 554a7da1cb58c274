"""Points at what a phrase means: paint a region, let a trained captioner name the colour (CPT).

    python ground.py --ckpt out/NAME                          zero-shot, on the test split of shapes/refer
    python ground.py --ckpt out/NAME --dataset refcoco/refcoco --split testA
    python ground.py --ckpt out/NAME --shots 1 2 4 8 16       few-shot: tuned on so many expressions, five seeds
    python ground.py --ckpt out/NAME --search                 which colours and words suit this captioner

  proposals         copies of the image, one region painted in each      log p(" red")
  +---------+       +---------+  +---------+  +---------+
  | o    [] |  -->  | #    [] |  | o    ## |  | o    [] |                 copy 2 has the highest:
  |    *    |       |    *    |  |    *    |  |    #    |                 the square is meant
  +---------+       +---------+  +---------+  +---------+
                     "the square right of the circle is in"

CPT has no parameters (prompts.py has its few functions), so a captioner of any method can be asked. A
proposal is right if it covers the true box with an intersection over union of at least 0.5 (--strict: more
than 0.5, and borders counted as pixels, as older code does). The share of expressions with such a proposal
bounds what any choice among them can reach.

Next: nothing. You have read it all.
"""

import hashlib
import json
import random
import re
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from lib import pictures
from lib.cli import UserError, opt, parse, run
from clip_vit import CLIPText, open_image
from weights.tokenizers import get_clip_tokenizer
from data.common import find_dataset, load_split
from lib.files import progress, read_json, replacing
from evaluate import RESAMPLES, bootstrap, iou, markdown, shown
from model import Rows, SeeGPT, checkpoint_file, here, padded
from prompts import NONE, PAINTS, TEMPLATES, blank, fill_in, mask_of, paint, see_whole
from sample import newest_run
from train import clock, groups_of, pick_device, schedule
from weights.public import locate

SMALL = 0.05  # of the image: ReCLIP's size prior drops boxes with less
SHOTS_AT_ONCE = 100  # copies in a few-shot step, at most (CPT's code)


@dataclass
class Config:
    ckpt: str = opt("", "the captioner: a run's folder or a checkpoint file; empty: the newest run in out/")
    dataset: str = opt("shapes/refer", "shapes/refer, refcoco/refcoco, refcoco/refcoco+, refcoco/refcocog, or a folder")
    split: list = opt(["test"], "one or more of test, val, testA, testB, novel; a column for each, and one for all together")
    images: int = opt(0, "only the first so many expressions of a split; 0: all")
    masks: bool = opt(False, "paint the proposals' masks (CPT-Seg) instead of their boxes (CPT-Blk)")
    colours: list = opt(["red"], f"words to paint with, of {', '.join(PAINTS)}: one region a copy; several: as many regions")
    palette: str = opt("", "other words and colours to choose --colours from: the file that --search --json wrote")
    template: str = opt(TEMPLATES[0], "the text, {} for the expression; its end is where the colour belongs", choices=TEMPLATES)
    strict: bool = opt(False, "count a choice above 0.5 with inclusive pixels, as CPT's code, not from 0.5 on")
    shots: list = opt([], "numbers of expressions to tune on (CPT 1 2 4 8 16), or all")
    seeds: int = opt(5, "few-shot runs for each number, with seeds 0, 1, ... (CPT 5)")
    steps: int = opt(500, "steps of a few-shot run (CPT 500)")
    lr: float = opt(3e-5, "peak learning rate of a few-shot run (CPT 3e-5; its fine-tuned head twice that)")
    search: bool = opt(False, "rank colours and words by what the captioner calls pure colours")
    json: str = opt("", "write the numbers to this file, too; --shots goes on with what it holds")
    png: str = opt("", "picture of the curve over shots, or of the colours found")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    gpt2: str = opt("", "where the frozen GPT-2 lies now, if not where it lay in training")
    clip: str = opt("", "where the frozen CLIP lies now, if not where it lay in training")


# ---------------------------------------------------------------------------- expressions and copies

def load(dataset, split, images=0):
    """The items of a split with expressions. UserError for any other, or one without proposals."""
    items = load_split(find_dataset(dataset), split)[:images or None]
    for item in items:
        boxes = [item.get("box"), *(item.get("proposals") or [None])]
        if "expression" not in item or not all(isinstance(b, list) and len(b) == 4 for b in boxes):
            raise UserError(f"{dataset}, {split}: item {item['id']} lacks an expression, its box [x, y, w, h] or proposals")
    return items


def paints_of(config):
    """{word: (r, g, b)} to paint with. UserError if --colours are not among them."""
    paints = PAINTS
    if config.palette:
        hint = 'expected [{"word": "red", "rgb": [240, 0, 30]}, ...], as --search --json writes it'
        found = read_json(Path(config.palette), hint)
        try:
            paints = {x["word"]: tuple(x["rgb"]) for x in found}
            whole = all(isinstance(w, str) and len(c) == 3 and set(c) <= set(range(256)) for w, c in paints.items())
        except (TypeError, KeyError):
            whole = False
        if not whole or not paints:
            raise UserError(f"{config.palette}: not a palette; {hint}")
    for word in config.colours:
        if word not in paints:
            raise UserError(f"--colours {word}: there are {', '.join(paints)}")
    return paints


def regions(item, size, masks):
    """What can be painted: the proposals' boxes, or their masks ("L" images)."""
    if not masks:
        return item["proposals"]
    if len(item.get("masks", ())) != len(item["proposals"]):
        raise UserError(f"item {item['id']} has no mask for every proposal; leave --masks away")
    return [mask_of(mask, size) for mask in item["masks"]]


def grouped(item, G):
    """Numbers of proposals that share a copy: at most G, and none over another by half (multi-colour CPT)."""
    groups = []
    for i, box in enumerate(item["proposals"]):
        free = (g for g in groups if len(g) < G and all(iou(box, item["proposals"][j]) < 0.5 for j in g))
        group = next(free, None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return groups


def painted(model, items, config):
    """Yields (number of an item, groups of its proposals, feats (n, N, D) of the copies with a group painted in each).

    Items of one image follow each other: what is painted alike is painted and encoded once.
    """
    before, show, paints = None, progress("painting", len(items)), paints_of(config)
    order = sorted(range(len(items)), key=lambda i: str(items[i]["image"]))
    for done, i in enumerate(order, 1):
        item = items[i]
        if (item["image"], item["proposals"]) != before:
            before, image = (item["image"], item["proposals"]), open_image(item["image"])
            what, groups = regions(item, image.size, config.masks), grouped(item, len(config.colours))
            feats = see_whole(model, (paint(image, [(what[j], paints[w]) for j, w in zip(group, config.colours)])
                                      for group in groups))
        yield i, groups, feats
        show(done)


# ---------------------------------------------------------------------------- zero-shot

@torch.no_grad()
def zero_shot(model, items, config, clip=None):
    """{score: [scores (n,) of an item's proposals]}.

    "raw" is log p(word); "normalised" is log p(word) less that of all words to paint with and "none" together; "wrong word", a
    control, is log p of a colour that is not there. With one colour and clip, sentence -> vector, also "CLIP alone": how near
    the copy is to "... is in red color." (CPT-adapted, in ReCLIP). Copies without paint, the other control, are all alike.
    """
    words, asked = config.colours, [*paints_of(config), NONE]
    own, wrong = [asked.index(word) for word in words], [i for i, word in enumerate(asked[:-1]) if word not in words]
    found = {name: [np.zeros(len(item["proposals"])) for item in items] for name in (
        "raw", "normalised", *(["wrong word"] if wrong else []), *(["CLIP alone"] if clip and len(words) == 1 else []))}
    for i, groups, feats in painted(model, items, config):
        phrase = blank(items[i]["expression"], config.template)
        logp = fill_in(model, feats, [phrase] * len(feats), asked).cpu()
        scores = {"raw": logp[:, own], "normalised": logp.log_softmax(1)[:, own]}
        if wrong:
            scores["wrong word"] = logp[:, wrong[:1]].expand(-1, len(words))
        if "CLIP alone" in found:
            seen = model.vit.ln_post(feats[:, 0]) @ model.vit.proj
            text = clip(f"{blank(items[i]['expression'])} {words[0]} color.")
            scores["CLIP alone"] = nn.functional.cosine_similarity(seen, text)[:, None].cpu()
        for name in found:
            for group, row in zip(groups, scores[name].tolist()):
                found[name][i][group] = row[:len(group)]
    return found


def chances(items, hits):
    """(random choice, random among boxes of 5 % of the image and more) -> expected hits of every item."""
    blind, prior, sizes = [], [], {}
    for item, hit in zip(items, hits):
        if item["image"] not in sizes:  # opened in full, so that a broken one is found before hours of painting
            sizes[item["image"]] = open_image(item["image"]).size
        w, h = sizes[item["image"]]
        large = [i for i, b in enumerate(item["proposals"]) if b[2] * b[3] >= SMALL * w * h] or range(len(hit))
        blind.append(np.mean(hit))
        prior.append(np.mean([hit[i] for i in large]))
    return np.array(blind), np.array(prior)


def naming(model, items, config):
    """How often the captioner calls the paint on the true box by its name: {word: share}, the premise of CPT."""
    paints = paints_of(config)
    right = {word: [] for word in paints}
    for item in items:
        image = open_image(item["image"])
        feats = see_whole(model, (paint(image, [(item["box"], colour)]) for colour in paints.values()))
        logp = fill_in(model, feats, [blank(item["expression"], config.template)] * len(feats), list(paints))
        for i, word in enumerate(paints):
            right[word].append(int(logp[i].argmax()) == i)
    return {word: float(np.mean(hits)) for word, hits in right.items()}


# ---------------------------------------------------------------------------- few-shot

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
    idx, cond = padded([phrase.lower() for phrase in phrases], model.gpt2.tokenizer, feats.device)
    x, ctx = model.gpt2.embed(idx, 0), model.method.look(feats)
    for l, block in enumerate(model.gpt2.h):
        x = model.method.block(l, block, x, ctx, Rows(cond=model.asked(cond)))
    x = x[:, -idx.shape[1]:]  # without a method's own tokens, which stand in front
    return model.gpt2.ln_f(x[torch.arange(len(x), device=x.device), cond - 1])


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
    optimizer = torch.optim.AdamW(groups_of(params, lr, 0.01), betas=(0.9, 0.98))
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
    enc, word, paints, most = model.gpt2.tokenizer, config.colours[0], paints_of(config), 1 if len(shots) >= 16 else SHOTS_AT_ONCE
    copies = [(item, i, right) for item in shots for i, right in examples(item, most, config.strict)]
    if pieces := [w for w in (word, NONE) if len(enc.encode_ordinary(f" {w}")) > 1]:
        raise UserError(f"--shots: {pieces[0]} is more than one token of this GPT-2; choose another of --colours")
    red, none = (enc.encode_ordinary(f" {w}")[0] for w in (word, NONE))

    def pictures(some):
        for item, i, _ in some:
            image = open_image(item["image"])
            yield paint(image, [(regions(item, image.size, config.masks)[i], paints[word])])

    def batch(some):
        feats = see_whole(model, pictures(some))
        idx, cond = padded([blank(item["expression"], config.template) for item, _, _ in some], enc, feats.device)
        return feats, idx, cond, torch.tensor([red if right else none for _, _, right in some], device=feats.device)

    every = batch(copies) if len(copies) <= SHOTS_AT_ONCE else None
    for _ in few_shot_steps(list(model.trained().values()), config.lr, config.steps):
        feats, idx, cond, targets = every or batch([copies[n] for n in dice.permutation(len(copies))[:SHOTS_AT_ONCE]])
        last = torch.arange(len(idx), device=feats.device) * idx.shape[1] + cond - 1
        logits = model.read(idx, model.method.look(feats), Rows(cond=model.asked(cond), pick=last))
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
    device = model.gpt2.wte.weight.device
    head = RegionHead(model.vit.width, model.gpt2.config.n_embd).to(device)
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
    feats = see_whole(model, [image])
    return feats, region_tokens(feats[0], item, image.size)


@torch.no_grad()
def score_head(model, head, items, batch=32):
    """The fine-tuned head's score of every proposal, [(n,), ...]."""
    found = []
    for i in range(0, len(items), batch):
        part = items[i:i + batch]
        found += [s.cpu().numpy() for s in head_scores(model, head, part, *zip(*(clean(model, item) for item in part)))]
    return found


# ---------------------------------------------------------------------------- colours and words without labels

NOMINAL = {"red": (220, 30, 30), "orange": (240, 140, 30), "yellow": (240, 230, 40), "green": (40, 170, 60),
           "cyan": (60, 210, 220), "blue": (40, 70, 220), "purple": (140, 50, 190), "pink": (240, 130, 190),
           "brown": (130, 80, 40), "black": (15, 15, 15), "white": (245, 245, 245), "grey": (128, 128, 128)}


def search_colours(model, side=20):
    """[(word, (r, g, b), score)], best first: what the captioner itself calls colours (CPT's cross-modal prompt search).

    A picture of one colour and "a photo in": a word's score is its log-probability. Words that are the best for no
    colour are dropped; each other gets the colour that gives it the highest score. The grid, fixed beforehand, is
    the nominal colour of every word and its neighbours, side levels away in R, G and B.
    """
    grid = sorted({tuple(int(np.clip(v + side * (i - 1), 0, 255)) for v, i in zip(rgb, steps))
                   for rgb in NOMINAL.values() for steps in np.ndindex(3, 3, 3)})
    words = list(NOMINAL)
    pictures = [Image.new("RGB", (model.vit.image_size,) * 2, colour) for colour in grid]
    return ranked(fill_in(model, see_whole(model, pictures), ["a photo in"] * len(grid), words).cpu().numpy(), grid, words)


def ranked(scores, grid, words):
    """scores (colours, words) -> [(word, colour, score)] of the words that win somewhere, best first."""
    winners = sorted(set(scores.argmax(1).tolist()))
    return sorted(((words[w], grid[int(scores[:, w].argmax())], float(scores[:, w].max())) for w in winners), key=lambda x: -x[2])


# ---------------------------------------------------------------------------- the command

def hits_of(items, strict):
    """Which proposals of each item are right, lists of 0 and 1.

    differs: CPT's code counts as strict does, later work from 0.5 on and without the pixel more.
    """
    if strict:
        return [[iou(b, item["box"], inclusive=True) > 0.5 for b in item["proposals"]] for item in items]
    return [[iou(b, item["box"]) >= 0.5 for b in item["proposals"]] for item in items]


def accuracies(found, items):
    """{"all", "names a colour", "names none", each of several splits: (accuracy, low, high)} x 100 of expected hits (n,) an
    item."""
    named = np.array([bool({*NOMINAL, "gray"} & set(re.findall("[a-z]+", item["expression"].lower()))) for item in items])
    means = {"all": (found, np.ones(len(items)))}
    if named.any() and not named.all():
        means |= {"names a colour": (found, 1.0 * named), "names none": (found, 1.0 * ~named)}
    splits = np.array([item.get("split") for item in items])
    means |= {s: (found, 1.0 * (splits == s)) for s in dict.fromkeys(splits.tolist()) if not (splits == s).all()}
    return bootstrap(np.zeros((len(items), 0)), means)


def chosen(scores, hits):
    """1 where the proposal with the highest score (the first of equal ones) is right, (n,)."""
    return np.array([float(hit[int(np.argmax(s))]) for s, hit in zip(scores, hits)])


def show_colours(model, config):
    """--search: prints what was found, draws and writes it if asked."""
    found = search_colours(model)
    for word, colour, score in found:
        print(f"{word:8} {str(colour):16} log p {score:.2f}")
    if config.png:
        cells = [(Image.new("RGB", (96, 96), c), f"{w} {s:.2f}") for w, c, s in found]
        with replacing(config.png) as f:
            pictures.sheet([("colours found", "a photo in ...", cells)]).save(f, "PNG")
    write_json(config.json, [{"word": w, "rgb": c, "log_p": s} for w, c, s in found])


def write_json(path, result):
    if path:
        with replacing(path) as f:
            f.write(json.dumps(result, indent=1).encode() + b"\n")


def clip_texts(model, config, items):
    """Sentence -> its vector of CLIP's text tower. UserError without a text tower, without merges.txt, if the model's ViT was
    tuned away from it, or for an expression of more than 77 tokens."""
    if model.origin["train_vision"]:
        raise UserError("its ViT was tuned")
    folder = locate(config.clip or here(model.origin["clip"]["name"]))
    text, encode = CLIPText.from_pretrained(folder), get_clip_tokenizer(folder if folder.is_dir() else None)
    text.to(model.gpt2.wte.weight.device)
    encode([f"{blank(item['expression'])} {config.colours[0]} color." for item in items])
    return lambda sentence: text.encode_text(encode([sentence]).to(model.gpt2.wte.weight.device))


def check(config):
    """UserError for what would otherwise be found out late."""
    paints_of(config)
    if any(k != "all" and not (k.isdecimal() and int(k)) for k in map(str, config.shots)):
        raise UserError("--shots: numbers from 1 on, or all")
    if config.shots and len(config.colours) > 1:
        raise UserError("--shots paints one region a copy: one of --colours")
    for least, name in ((1, "seeds"), (1, "steps"), (0, "lr"), (0, "images")):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)}: must be {least} or more")
    if config.png and not (config.png.lower().endswith(".png") and (config.shots or config.search)):
        raise UserError(f"--png {config.png}: a name that ends in .png, with --shots or --search")


def main(config):
    check(config)
    device, ckpt = pick_device(config.device), checkpoint_file(config.ckpt or newest_run())
    model = SeeGPT.load(ckpt, device, config.gpt2 or None, config.clip or None)
    print(f"with {ckpt}", file=sys.stderr)
    if model.method.answers:
        raise UserError(f"{ckpt} chooses among answers; CPT needs a model that writes: name one with --ckpt")
    if config.search:
        return show_colours(model, config)
    items = [item | {"split": split} for split in config.split for item in load(config.dataset, split, config.images)]
    hits = hits_of(items, config.strict)
    settings = {k: v for k, v in vars(config).items() if k not in ("shots", "seeds", "json", "png", "device")}
    settings |= {"ckpt": hashlib.sha256(ckpt.read_bytes()).hexdigest(),
                 "palette": {word: list(rgb) for word, rgb in paints_of(config).items()}}
    if config.shots:
        return few_shot(model, items, hits, config, settings)

    called = naming(model, items[:100], config)
    print(f"called by its name, painted on the true box of the first {min(100, len(items))}: "
          + ", ".join(f"{w} {100 * v:.0f} %" for w, v in called.items()))
    clip = None
    try:
        clip = clip_texts(model, config, items)
    except UserError as e:
        print(f"note: no row for CLIP alone: {e}", file=sys.stderr)
    blind, prior = chances(items, hits)
    rows = {"random": accuracies(blind, items),
            f"random, {100 * SMALL:.0f} % of the image and more": accuracies(prior, items)}
    for name, scores in zero_shot(model, items, config, clip).items():
        rows[name if name == "CLIP alone" else f"CPT, {name}"] = accuracies(chosen(scores, hits), items)
    rows["bound by the proposals"] = accuracies(np.array([float(any(hit)) for hit in hits]), items)
    columns = list(rows["random"])
    print(markdown([["", *columns], *([name, *(shown(*r[c]) for c in columns)] for name, r in rows.items())]))
    chance = rows["random"]["all"][0]
    above = {r: (rows[f"CPT, {r}"]["all"][0] - chance) / max(1e-9, 100 - chance) for r in ("raw", "normalised")}
    rule = "> 0.5, inclusive pixels" if config.strict else ">= 0.5"
    print(f"\n{config.dataset}, {', '.join(config.split)}: {len(items):,} expressions, {np.mean([len(h) for h in hits]):.1f} "
          f"proposals each; accuracy x 100 (IoU {rule}), in brackets the 95 % interval of {RESAMPLES:,} resamples. "
          f"(accuracy - chance) / (1 - chance): "
          + ", ".join(f"{share:.2f} ({r})" for r, share in above.items()))
    write_json(config.json, {"settings": settings, "expressions": len(items), "unit": "x 100", "naming": called,
                             "rows": {name: {c: dict(zip(("score", "low", "high"), v)) for c, v in r.items()}
                                      for name, r in rows.items()}})


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


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
