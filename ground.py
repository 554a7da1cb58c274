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

import json
import random
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

import draw
from cli import UserError, opt, parse, run
from clip_vit import CLIPText, get_clip_tokenizer, open_image, preprocess
from data.common import find_dataset, load_split, progress, replacing
from evaluate import RESAMPLES, bootstrap, iou, shown
from model import Rows, SeeGPT, here
from prompts import NONE, PAINTS, blank, fill_in, mask_of, paint
from sample import newest_run
from train import pick_device, schedule
from weights import locate

SMALL = 0.05  # of the image: ReCLIP's size prior drops boxes with less
SHOTS_AT_ONCE = 100  # copies in a few-shot step, at most (CPT's code)


@dataclass
class Config:
    ckpt: str = opt("", "the captioner: a run's folder or a checkpoint file; empty: the newest run in out/")
    dataset: str = opt("shapes/refer", "shapes/refer, refcoco/refcoco, refcoco/refcoco+, refcoco/refcocog, or a folder")
    split: str = opt("test", "test, val, testA, testB, novel")
    images: int = opt(0, "only the first so many expressions; 0: all")
    masks: bool = opt(False, "paint the proposals' masks (CPT-Seg) instead of their boxes (CPT-Blk)")
    colours: list = opt(["red"], f"words to paint with, of {', '.join(PAINTS)}: one region a copy; several: as many regions")
    strict: bool = opt(False, "count a choice above 0.5 with inclusive pixels, as CPT's code, not from 0.5 on")
    shots: list = opt([], "numbers of expressions to tune on (CPT 1 2 4 8 16), or all")
    seeds: int = opt(5, "few-shot runs for each number, with seeds 0, 1, ... (CPT 5)")
    steps: int = opt(500, "steps of a few-shot run (CPT 500)")
    lr: float = opt(3e-5, "peak learning rate of a few-shot run (CPT 3e-5; its fine-tuned head twice that)")
    search: bool = opt(False, "rank colours and words by what the captioner calls pure colours")
    json: str = opt("", "write the numbers to this file, too")
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


@torch.no_grad()
def see(model, pictures, device, batch=64):
    """PIL images -> feats (n, N, D). The whole image is squeezed into the square: no region is cut off."""
    x = [preprocess(p, model.vit.image_size, crop=False) for p in pictures]
    return torch.cat([model.see(torch.stack(x[i:i + batch]).to(device)) for i in range(0, len(x), batch)])


# ---------------------------------------------------------------------------- zero-shot

def zero_shot(model, items, config, device):
    """{score: scores (n,) of every item's proposals}: "raw" is log p(word), "normalised" is log p(word) less that of
    all words and "none" together; "wrong word", a control, is log p of a colour that is not there."""
    words = config.colours
    other = next(w for w in PAINTS if w not in words) if len(words) < len(PAINTS) else words[-1]
    asked, found, show = [*words, NONE, other], [], progress("painting", len(items))
    for number, item in enumerate(items):
        image = open_image(item["image"]).convert("RGB")
        what, groups = regions(item, image.size, config.masks), grouped(item, len(words))
        copies = [paint(image, [(what[i], PAINTS[w]) for i, w in zip(group, words)]) for group in groups]
        logp = fill_in(model, see(model, copies, device), [blank(item["expression"])] * len(copies), asked).cpu()
        scores = {"raw": np.zeros(len(what)), "normalised": np.zeros(len(what)), "wrong word": np.zeros(len(what))}
        for row, group in zip(logp, groups):
            for w, i in enumerate(group):
                scores["raw"][i] = row[w]
                scores["normalised"][i] = row[w] - row[:len(words) + 1].logsumexp(0)
                scores["wrong word"][i] = row[-1]
        found.append(scores)
        show(number + 1)
    return {name: [scores[name] for scores in found] for name in found[0]}


@torch.no_grad()
def clip_scores(model, items, config, device):
    """Scores of CLIP alone (CPT-adapted, in ReCLIP): painted red, how near is the image to "... is in red color."."""
    folder = locate(here(model.origin["clip"]["name"])) if not config.clip else locate(config.clip)
    text = CLIPText.from_pretrained(folder).to(device)
    encode = get_clip_tokenizer(folder if folder.is_dir() else None)
    found, show = [], progress("CLIP", len(items))
    for number, item in enumerate(items):
        image = open_image(item["image"]).convert("RGB")
        copies = [paint(image, [(r, PAINTS["red"])]) for r in regions(item, image.size, config.masks)]
        x = torch.stack([preprocess(p, model.vit.image_size, crop=False) for p in copies]).to(device)
        seen = nn.functional.normalize(model.vit.encode_image(x), dim=-1)
        words = text.encode_text(encode([f"{blank(item['expression'])} red color."]).to(device))
        found.append((seen @ nn.functional.normalize(words, dim=-1)[0]).cpu().numpy())
        show(number + 1)
    return found


def chances(items, hits):
    """(random choice, random among boxes of 5 % of the image and more) -> expected hits of every item."""
    blind, prior = [], []
    for item, hit in zip(items, hits):
        w, h = open_image(item["image"]).size
        large = [i for i, b in enumerate(item["proposals"]) if b[2] * b[3] >= SMALL * w * h] or range(len(hit))
        blind.append(np.mean(hit))
        prior.append(np.mean([hit[i] for i in large]))
    return np.array(blind), np.array(prior)


def naming(model, items, device):
    """How often the captioner calls the paint on the true box by its name: {word: share}, the premise of CPT."""
    right = {word: [] for word in PAINTS}
    for item in items:
        image = open_image(item["image"]).convert("RGB")
        copies = [paint(image, [(item["box"], colour)]) for colour in PAINTS.values()]
        logp = fill_in(model, see(model, copies, device), [blank(item["expression"])] * len(copies), list(PAINTS))
        for i, word in enumerate(PAINTS):
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
        return self.score(torch.cat([regions, text.expand(len(regions), -1)], -1))[:, 0]  # (n,)


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


def phrase_state(model, feats, phrase):
    """The captioner's last state (1, C) behind a phrase, with the clean image before it."""
    enc, method, seen = model.gpt2.tokenizer, model.method, []
    idx = torch.tensor([[enc.eot_token, *enc.encode_ordinary(phrase.lower())]], device=feats.device)
    # The norm in front of the vocabulary, whichever the method uses: VC-GPT and DVP have their own.
    norm = getattr(method, "ln", None) or getattr(method, "ln_f", None) or model.gpt2.ln_f
    hook = norm.register_forward_hook(lambda module, x, y: seen.append(y))
    try:
        cond = torch.tensor([idx.shape[1]], device=feats.device)
        model.read(idx, method.look(feats), Rows(cond=cond, pick=cond - 1))
    finally:
        hook.remove()
    return seen[-1].reshape(1, -1)


def shots_of(items, K, seed):
    """K items drawn with a seed (CPT: the training expressions are shuffled, the first K taken)."""
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    return [items[i] for i in order[:K]]


def examples(item, limit):
    """(proposals painted, right or wrong): those over the true box, and as many others; labels True and False."""
    hit = [iou(box, item["box"]) > 0.5 for box in item["proposals"]]
    right, wrong = [i for i, x in enumerate(hit) if x], [i for i, x in enumerate(hit) if not x]
    if not right:  # no proposal covers it: the first one takes the place, and is none of it (as released)
        return [(0, False)]
    right = right[:limit]
    return [(i, True) for i in right] + [(i, False) for i in random.Random(str(item["id"])).sample(wrong, min(len(wrong), len(right)))]


def tune_cpt(load_model, shots, config, device, seed):
    """A copy of the captioner that says " red" for the right painted region, " none" for another.

    A step sees at most SHOTS_AT_ONCE painted copies. Those of a few shots are encoded once, those of a whole dataset,
    which no memory could hold, when their turn comes.
    """
    model = load_model().train()
    enc = model.gpt2.tokenizer
    red, none = (enc.encode_ordinary(f" {w}")[0] for w in (config.colours[0], NONE))
    copies = [(item, i, right) for item in shots for i, right in examples(item, 1 if len(shots) >= 16 else len(item["proposals"]))]
    seen, dice = {}, np.random.default_rng(seed)

    def feats_of(n):
        item, i, _ = copies[n]
        image = open_image(item["image"]).convert("RGB")
        return see(model, [paint(image, [(regions(item, image.size, config.masks)[i], PAINTS[config.colours[0]])])], device)

    optimizer = few_shot_optimizer(model.trained().values(), config.lr)
    for step in range(config.steps):
        at = schedule(step, Few(config.steps // 10), config.steps)
        for group in optimizer.param_groups:
            group["lr"] = at * group["peak"]
        chosen = dice.permutation(len(copies))[:SHOTS_AT_ONCE].tolist()
        if len(seen) + len(chosen) > 10 * SHOTS_AT_ONCE:
            seen.clear()
        for n in chosen:
            if n not in seen:
                seen[n] = feats_of(n)
        for group, idx in model.by_length([blank(copies[n][0]["expression"]) for n in chosen]):
            of, (n, T) = [chosen[g] for g in group], idx.shape
            last, cond = torch.arange(1, n + 1, device=device) * T - 1, torch.full((n,), T, device=device)
            targets = torch.tensor([red if copies[c][2] else none for c in of], device=device)
            logits = model.read(idx, model.method.look(torch.cat([seen[c] for c in of])), Rows(cond=cond, pick=last))
            (nn.functional.cross_entropy(logits, targets, reduction="sum") / len(chosen)).backward()
        nn.utils.clip_grad_norm_(list(model.trained().values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()


def score_cpt(model, items, config, device):
    """log p(red) - log p(none) of every proposal painted: one number that no constant on the logits changes."""
    found = []
    for item in items:
        image = open_image(item["image"]).convert("RGB")
        copies = [paint(image, [(r, PAINTS[config.colours[0]])]) for r in regions(item, image.size, config.masks)]
        logp = fill_in(model, see(model, copies, device), [blank(item["expression"])] * len(copies), [config.colours[0], NONE])
        found.append((logp[:, 0] - logp[:, 1]).cpu().numpy())
    return found


def tune_head(load_model, shots, config, device, seed):
    """(captioner, head) fine-tuned together: a softmax over the proposals of each expression. Ten times as many steps at
    twice the learning rate of CPT, as released; a step sees ten expressions at most."""
    torch.manual_seed(seed)
    model = load_model().train()
    head = RegionHead(model.vit.width, model.gpt2.config.n_embd).to(device)
    params = [*model.trained().values(), *head.parameters()]
    optimizer = few_shot_optimizer(params, 2 * config.lr)
    hits = [[iou(box, item["box"]) > 0.5 for box in item["proposals"]] for item in shots]
    shots, seen, dice = [(item, hit) for item, hit in zip(shots, hits) if any(hit)], {}, np.random.default_rng(seed)
    steps = 10 * config.steps if shots else 0
    for step in range(steps):
        at = schedule(step, Few(steps // 10), steps)
        for group in optimizer.param_groups:
            group["lr"] = at * group["peak"]
        chosen = dice.permutation(len(shots))[:10].tolist()
        if len(seen) > 10 * SHOTS_AT_ONCE:
            seen.clear()
        for n in chosen:
            item, hit = shots[n]
            if n not in seen:
                image = open_image(item["image"]).convert("RGB")
                feats = see(model, [image], device)
                seen[n] = feats, region_tokens(feats[0], item, image.size)
            feats, tokens = seen[n]
            wanted = torch.tensor([hit], dtype=torch.float32, device=device)
            scores = head(tokens, phrase_state(model, feats, item["expression"]))[None]
            (nn.functional.cross_entropy(scores, wanted / wanted.sum()) / len(chosen)).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval(), head.eval()


@torch.no_grad()
def score_head(model, head, items, device):
    """The fine-tuned head's score of every proposal."""
    found = []
    for item in items:
        image = open_image(item["image"]).convert("RGB")
        feats = see(model, [image], device)
        found.append(head(region_tokens(feats[0], item, image.size), phrase_state(model, feats, item["expression"])).cpu().numpy())
    return found


@dataclass
class Few:
    """What schedule asks of a config."""
    warmup: int


def few_shot_optimizer(params, lr):
    """AdamW as in CPT's code: betas (0.9, 0.98), weight decay 0.01 but for biases and norms."""
    params = list(params)
    return torch.optim.AdamW([{"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.01, "peak": lr},
                              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0, "peak": lr}], betas=(0.9, 0.98))


# ---------------------------------------------------------------------------- colours and words without labels

NOMINAL = {"red": (220, 30, 30), "orange": (240, 140, 30), "yellow": (240, 230, 40), "green": (40, 170, 60),
           "cyan": (60, 210, 220), "blue": (40, 70, 220), "purple": (140, 50, 190), "pink": (240, 130, 190),
           "brown": (130, 80, 40), "black": (15, 15, 15), "white": (245, 245, 245), "grey": (128, 128, 128)}


def search_colours(model, device, side=20):
    """[(word, (r, g, b), score)], best first: what the captioner itself calls colours (CPT's cross-modal prompt search).

    A picture of one colour and "a photo in": a word's score is its log-probability. Words that are the best for no
    colour are dropped; each other gets the colour that gives it the highest score. The grid, fixed beforehand, is
    the nominal colour of every word and its neighbours, side levels away in R, G and B.
    """
    grid = sorted({tuple(int(np.clip(v + d, 0, 255)) for v, d in zip(rgb, delta)) for rgb in NOMINAL.values()
                   for delta in np.ndindex(3, 3, 3) for delta in [tuple(side * (i - 1) for i in delta)]})
    words = list(NOMINAL)
    pictures = [Image.new("RGB", (model.vit.image_size,) * 2, colour) for colour in grid]
    return ranked(fill_in(model, see(model, pictures, device), ["a photo in"] * len(grid), words).cpu().numpy(), grid, words)


def ranked(scores, grid, words):
    """scores (colours, words) -> [(word, colour, score)] of the words that win somewhere, best first."""
    winners = sorted(set(scores.argmax(1).tolist()))
    return sorted(((words[w], grid[int(scores[:, w].argmax())], float(scores[:, w].max())) for w in winners), key=lambda x: -x[2])


# ---------------------------------------------------------------------------- the command

def hits_of(items, strict):
    """Which proposals of each item are right, lists of 0 and 1."""
    if strict:
        return [[iou(b, item["box"], inclusive=True) > 0.5 for b in item["proposals"]] for item in items]
    return [[iou(b, item["box"]) >= 0.5 for b in item["proposals"]] for item in items]


def accuracies(found, items, hits):
    """{"all", "names a colour", "names none": (accuracy, low, high)} x 100 of expected hits (n,) an item."""
    named = np.array([any(w in item["expression"].lower().split() for w in NOMINAL) for item in items])
    means = {"all": (found, np.ones(len(items)))}
    if named.any() and not named.all():
        means |= {"names a colour": (found, 1.0 * named), "names none": (found, 1.0 * ~named)}
    return bootstrap(np.zeros((len(items), 0)), means)


def chosen(scores, hits):
    """1 where the proposal with the highest score (the first of equal ones) is right, (n,)."""
    return np.array([float(hit[int(np.argmax(s))]) for s, hit in zip(scores, hits)])


def table(rows):
    columns = list(dict.fromkeys(c for r in rows.values() for c in r))
    lines = [["", *columns], ["---"] + ["---:"] * len(columns)]
    lines += [[name, *(shown(*r[c]) if c in r else "" for c in columns)] for name, r in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(config):
    device, ckpt = pick_device(config.device), config.ckpt or newest_run()
    for word in config.colours:
        if word not in PAINTS:
            raise UserError(f"--colours {word}: there are {', '.join(PAINTS)}")
    shots = [int(k) if str(k).isdigit() else k for k in config.shots]
    if any(not (k == "all" or isinstance(k, int) and k > 0) for k in shots):
        raise UserError("--shots: numbers from 1 on, or all")
    load_model = lambda: SeeGPT.load(ckpt, device, config.gpt2 or None, config.clip or None)
    model = load_model()
    if model.method.answers:
        raise UserError(f"{ckpt} chooses among answers; CPT needs a model that writes")
    if config.search:
        found = search_colours(model, device)
        for word, colour, score in found:
            print(f"{word:8} {str(colour):16} log p {score:.2f}")
        if config.png:
            cells = [(Image.new("RGB", (96, 96), c), f"{w} {s:.2f}") for w, c, s in found]
            with replacing(config.png) as f:
                draw.sheet([("colours found", "a photo in ...", cells)]).save(f, "PNG")
        if config.json:
            with replacing(config.json) as f:
                f.write(json.dumps([{"word": w, "rgb": c, "log_p": s} for w, c, s in found], indent=1).encode() + b"\n")
        return
    items = load(config.dataset, config.split, config.images)
    hits = hits_of(items, config.strict)
    blind, prior = chances(items, hits)
    rows = {"random": accuracies(blind, items, hits), "random, 5 % of the image and more": accuracies(prior, items, hits)}
    result = {"dataset": config.dataset, "split": config.split, "expressions": len(items), "unit": "x 100"}
    if shots:
        result["shots"] = few_shot(load_model, items, hits, shots, config, device)
    else:
        names = naming(model, items[:100], device)
        result["naming"] = names
        print("called by its name, painted on the true box of the first 100: "
              + ", ".join(f"{w} {100 * v:.0f} %" for w, v in names.items()))
        for name, scores in zero_shot(model, items, config, device).items():
            rows[f"CPT, {name}"] = accuracies(chosen(scores, hits), items, hits)
        try:
            rows["CLIP alone, painted"] = accuracies(chosen(clip_scores(model, items, config, device), hits), items, hits)
        except UserError as e:  # a CLIP without its text tower, or without merges.txt
            print(f"note: no row for CLIP alone: {e}", file=sys.stderr)
        rows["bound by the proposals"] = accuracies(np.array([float(any(hit)) for hit in hits]), items, hits)
        print(table(rows))
        best = max(rows[r]["all"][0] for r in rows if r in ("CPT, raw", "CPT, normalised"))
        chance = rows["random"]["all"][0]
        print(f"\n{config.dataset}, {config.split}: {len(items):,} expressions, {np.mean([len(h) for h in hits]):.1f} proposals each; "
              f"accuracy x 100 (IoU {'> 0.5, inclusive pixels' if config.strict else '>= 0.5'}), in brackets the 95 % interval of "
              f"{RESAMPLES:,} resamples. (accuracy - chance) / (1 - chance) = {(best - chance) / max(1e-9, 100 - chance):.2f}.")
    result["rows"] = {name: {c: dict(zip(("score", "low", "high"), v)) for c, v in r.items()} for name, r in rows.items()}
    if config.json:
        with replacing(config.json) as f:
            f.write(json.dumps(result, indent=1).encode() + b"\n")


def few_shot(load_model, items, hits, shots, config, device):
    """Prints and returns {method: {K: [accuracy x 100 of each seed]}}; a picture of it with --png."""
    train, began = load(config.dataset, "train"), time.time()
    found = {"CPT": {}, "fine-tuned head": {}}
    todo = len(shots) * config.seeds
    for k, K in enumerate(shots):
        for name in found:
            found[name][K] = []
        for seed in range(config.seeds):
            some = shots_of(train, len(train) if K == "all" else K, seed)
            tuned = tune_cpt(load_model, some, config, device, seed)
            found["CPT"][K].append(100 * chosen(score_cpt(tuned, items, config, device), hits).mean())
            found["fine-tuned head"][K].append(
                100 * chosen(score_head(*tune_head(load_model, some, config, device, seed), items, device), hits).mean())
            done = k * config.seeds + seed + 1
            print(f"{K} shots, seed {seed}: CPT {found['CPT'][K][-1]:.1f}, head {found['fine-tuned head'][K][-1]:.1f}; "
                  f"{(time.time() - began) / done * (todo - done) / 60:.0f} minutes left", file=sys.stderr, flush=True)
    lines = [["shots", *found], ["---", *["---:"] * len(found)]]
    for K in shots:  # the population's deviation, as CPT reports it
        lines.append([str(K), *(f"{np.mean(f[K]):.1f} ± {np.std(f[K]):.1f}" for f in found.values())])
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if config.png:
        numbers = [K for K in shots if K != "all"]
        draw.plot([(name, {K: float(np.mean(f[K])) for K in numbers}, dict(marker="o", color=colour))
                   for (name, f), colour in zip(found.items(), ("#1f4e8c", "#d1652a"))], config.png, "expressions tuned on",
                  "accuracy, %", config.json or "the table above")
    return found


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
