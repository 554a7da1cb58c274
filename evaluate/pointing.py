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
import re
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from clip_vit import CLIPText
from evaluate.colours import search_colours
from evaluate.few_shot import few_shot
from evaluate.regions import NOMINAL, chosen, hits_of, load, painted, paints_of
from evaluate.tables import RESAMPLES, bootstrap, markdown, shown
from lib import pictures
from lib.cli import UserError, opt, parse, run
from lib.devices import pick_device
from lib.files import repo_path, replacing, write_json
from lib.pictures import open_image
from lib.runs import newest_run
from model import SeeGPT, checkpoint_file
from prompts import NONE, PAINTS, TEMPLATES, blank, fill_in, paint, whole_image_features
from weights.public import locate
from weights.tokenizers import get_clip_tokenizer

SMALL = 0.05  # of the image: ReCLIP's size prior drops boxes with less


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
        feats = whole_image_features(model, (paint(image, [(item["box"], colour)]) for colour in paints.values()))
        logp = fill_in(model, feats, [blank(item["expression"], config.template)] * len(feats), list(paints))
        for i, word in enumerate(paints):
            right[word].append(int(logp[i].argmax()) == i)
    return {word: float(np.mean(hits)) for word, hits in right.items()}


# ---------------------------------------------------------------------------- few-shot


# ---------------------------------------------------------------------------- colours and words without labels


# ---------------------------------------------------------------------------- the command


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


def clip_texts(model, config, items):
    """Sentence -> its vector of CLIP's text tower. UserError without a text tower, without merges.txt, if the model's ViT was
    tuned away from it, or for an expression of more than 77 tokens."""
    if model.run_info["train_vision"]:
        raise UserError("its ViT was tuned")
    folder = locate(config.clip or repo_path(model.run_info["clip"]["name"]))
    text, encode = CLIPText.from_pretrained(folder), get_clip_tokenizer(folder if folder.is_dir() else None)
    text.to(model.lm.wte.weight.device)
    encode([f"{blank(item['expression'])} {config.colours[0]} color." for item in items])
    return lambda sentence: text.encode_text(encode([sentence]).to(model.lm.wte.weight.device))


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


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
