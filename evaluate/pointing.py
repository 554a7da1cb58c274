"""Points at what a phrase means: paint a region, let a trained captioner name the colour (CPT).

    python -m evaluate.pointing --ckpt out/NAME             zero-shot, on shapes/refer, split test
    python -m evaluate.pointing --ckpt out/NAME --dataset refcoco/refcoco --split testA
    python -m evaluate.pointing --ckpt out/NAME --shots 1 2 4 8 16    tuned on so many expressions
    python -m evaluate.pointing --ckpt out/NAME --search    which colours and words suit it

  proposals         copies of the image, one region painted in each      log p(" red")
  +---------+       +---------+  +---------+  +---------+
  | o    [] |  -->  | #    [] |  | o    ## |  | o    [] |                 copy 2 has the highest:
  |    *    |       |    *    |  |    *    |  |    #    |                 the square is meant
  +---------+       +---------+  +---------+  +---------+
                     "the square right of the circle is in"

CPT has no parameters (prompts.py has its few functions), so a captioner of any method can be asked.
A proposal is right if its intersection over union with the true box is 0.5 or more (--strict: more
than 0.5). The share of expressions with such a proposal bounds what any choice can reach.
"""

from lib.cli import UserError, note, opt, parse, run  # isort: skip (lib before torch)
import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from multiprocessing import get_all_start_methods

import numpy as np
import torch
import torch.nn.functional as F

from clip_vit import CLIPText
from data.features import whole_image_features
from evaluate.colours import NOMINAL, show_colours
from evaluate.few_shot import few_shot
from evaluate.overlays import centred, overlay_scores
from evaluate.regions import chosen, hits_of, load_expressions, painted, paints_of
from evaluate.tables import RESAMPLES, bootstrap, fitted, shown
from evaluate.tuning import LOSSES
from lib.devices import pick_device
from lib.files import check_writable, repo_path, write_json
from lib.pictures import open_image
from lib.settings import pick_checkpoint
from model import SeeGPT
from prompts import NONE, PAINTS, TEMPLATES, cloze, fill_in, paint
from weights.checkpoints import checkpoint_file
from weights.public import locate
from weights.tokenizers import get_clip_tokenizer

SMALL = 0.05  # of the image: ReCLIP's size prior drops smaller boxes


@dataclass
class Config:
    ckpt: str = opt("", "the captioner's folder or checkpoint file; empty: the newest run in out/")
    dataset: str = opt("shapes/refer", "shapes/refer, refcoco/refcoco, refcoco/refcoco+, "
                                       "refcoco/refcocog, or a folder")
    split: list = opt(["test"], "of test, val, testA, testB, novel; a column each, one for all")
    images: int = opt(0, "only the first so many expressions of a split; 0: all")
    masks: bool = opt(False, "paint the proposals' masks (CPT-Seg), not their boxes (CPT-Blk)")
    colour: str = opt("red", f"the word to paint with: {', '.join(PAINTS)}, or one of --palette")
    palette: str = opt("", "other words and colours: the file that --search --json wrote")
    template: str = opt(TEMPLATES[0], "the text, {} for the expression; at its end the colour "
                                      "belongs", choices=TEMPLATES)
    strict: bool = opt(False, "count a choice as right above 0.5, not from 0.5 on")
    shots: list = opt([], "numbers of expressions to tune on (CPT 1 2 4 8 16), or all")
    seeds: int = opt(5, "few-shot runs for each number, with seeds 0, 1, ... (CPT 5)", at_least=1)
    steps: int = opt(500, "steps of a few-shot run (CPT 500)", at_least=1)
    lr: list = opt(["3e-5", "1e-5"], "peak learning rates of CPT, a row each: the published one, "
                                     "and one chosen on val")
    head_lr: list = opt(["6e-5", "3e-4"], "the same of the fine-tuned head; it takes ten times as "
                                          "many steps (as released)")
    loss: list = opt(["proposals"], f"of CPT, a row each: {', '.join(LOSSES)} (evaluate/tuning.py)")
    jobs: int = opt(1, "few-shot runs side by side, on a CPU: as many as it has cores", at_least=1)
    others: bool = opt(True, "also rows of what is not CPT (evaluate/overlays.py)")
    search: bool = opt(False, "rank colours and words by what the captioner calls pure colours")
    json: str = opt("", "write the numbers to this file; --shots goes on with what it holds")
    png: str = opt("", "picture of the curve over shots, or of the colours found")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    lm: str = opt("", "where the language model lies, if not as in training", alias="gpt2")
    clip: str = opt("", "where CLIP lies, if not as in training")


def check(config):
    """UserError for what would otherwise be found out late."""
    paints_of(config)
    if any(K != "all" and not re.fullmatch("0*[1-9][0-9]{0,8}", K) for K in config.shots):
        raise UserError("--shots: numbers from 1 on, or all")
    for name in ("lr", "head_lr"):
        try:
            good = all(0 <= float(lr) <= 1 for lr in getattr(config, name))
        except ValueError:
            good = False
        if not good:
            raise UserError(f"--{name}: numbers from 0 to 1")
    if set(config.loss) - set(LOSSES) or not config.loss:
        raise UserError(f"--loss: some of {', '.join(LOSSES)}")
    for path in (config.json, config.png):
        check_writable(path)
    if config.search and config.shots:
        raise UserError("--search or --shots: one of them")
    if config.png and not (config.png.lower().endswith(".png")
                           and (config.shots or config.search)):
        raise UserError(f"--png {config.png}: a name that ends in .png, with --shots or --search")


# ---------------------------------------------------------------------------- scores of proposals

@torch.no_grad()
def zero_shot(model, items, config, clip=None):
    """{score: [(n,) of the proposals of each item]}.

    "raw" is log p(colour); "normalised" is log p(colour) less that of all words to paint with and
    "none" together; "wrong word", a control, is log p of a colour that is not there. With clip,
    sentence -> vector, also "CLIP alone": how near the copy is to "... is in red color."
    (CPT-adapted, in ReCLIP). Copies without paint, the other control, are all alike.
    """
    words = [*paints_of(config), NONE]
    own, wrong = words.index(config.colour), [w for w in words[:-1] if w != config.colour]
    scores = defaultdict(lambda: [None] * len(items))
    for i, feats in painted(model, items, config):
        text = cloze(items[i]["expression"], config.template)
        logp = fill_in(model, feats, [text] * len(feats), words).cpu()  # (n, words)
        scores["raw"][i] = logp[:, own].numpy()
        scores["normalised"][i] = logp.log_softmax(1)[:, own].numpy()
        if config.others:
            scores["less the mean over others"][i] = (
                scores["raw"][i] - centred(model, items, i, feats, config))
        if wrong:
            scores["wrong word"][i] = logp[:, words.index(wrong[0])].numpy()
        if clip:
            images = model.vit.ln_post(feats[:, 0]) @ model.vit.proj
            near = F.cosine_similarity(images, clip(clip_sentence(items[i], config)))
            scores["CLIP alone"][i] = near.cpu().numpy()
    return scores


def clip_sentence(item, config):
    return f"{cloze(item['expression'])} {config.colour} color."


def clip_texts(model, config, items):
    """Sentence -> its vector by CLIP's text tower. UserError without a text tower, without
    merges.txt, if the model's ViT was tuned away from it, or for an expression of more than 77
    tokens."""
    if model.run_info["train_vision"]:
        raise UserError("its ViT was tuned")
    folder = locate(config.clip or repo_path(model.run_info["clip"]["name"]))
    device = model.lm.wte.weight.device
    tower = CLIPText.from_pretrained(folder).to(device)
    encode = get_clip_tokenizer(folder if folder.is_dir() else None)
    encode([clip_sentence(item, config) for item in items])
    return lambda sentence: tower.encode_text(encode([sentence]).to(device))


def chances(items, hits):
    """(random choice, random among the boxes of at least SMALL) -> expected hits (n,) each."""
    blind, prior, areas = [], [], {}
    for item, hit in zip(items, hits):
        if item["image"] not in areas:  # opened in full: a broken one is found before the painting
            w, h = open_image(item["image"]).size
            areas[item["image"]] = w * h
        large = [i for i, (_, _, w, h) in enumerate(item["proposals"])
                 if w * h >= SMALL * areas[item["image"]]]
        blind.append(np.mean(hit))
        prior.append(np.mean([hit[i] for i in large or range(len(hit))]))
    return np.array(blind), np.array(prior)


def naming(model, items, config):
    """How often the captioner calls the paint on the true box by its name, the premise of CPT:
    {word: share}."""
    paints, right = paints_of(config), []
    for item in items:
        image, text = open_image(item["image"]), cloze(item["expression"], config.template)
        copies = (paint(image, item["box"], colour) for colour in paints.values())
        feats = whole_image_features(model, copies)
        called = fill_in(model, feats, [text] * len(feats), list(paints)).argmax(1).tolist()
        right.append([c == i for i, c in enumerate(called)])
    return dict(zip(paints, np.mean(right, 0).tolist()))


# ---------------------------------------------------------------------------- the command

def accuracies(found, items):
    """{"all", "names a colour", "names none", each of several splits: (accuracy, low, high)} x 100
    of expected hits (n,)."""
    words = [set(re.findall("[a-z]+", item["expression"].lower())) for item in items]
    named = np.array([bool({*NOMINAL, "gray"} & said) for said in words])
    columns = {"all": np.ones(len(items), bool)}
    if named.any() and not named.all():
        columns |= {"names a colour": named, "names none": ~named}
    splits = np.array([item.get("split") for item in items])
    columns |= {split: splits == split for split in dict.fromkeys(splits.tolist())
                if not (splits == split).all()}
    return bootstrap({name: np.where(some, found, np.nan) for name, some in columns.items()})


def zero_shot_rows(model, items, hits, config):
    """{row of the table: its accuracies}."""
    clip = None
    try:
        clip = clip_texts(model, config, items)
    except UserError as e:
        note(f"note: no row for CLIP alone: {e}")
    blind, prior = chances(items, hits)
    rows = {"random": blind, f"random, {100 * SMALL:.0f} % of the image and more": prior}
    for name, scores in zero_shot(model, items, config, clip).items():
        mine = name in ("raw", "normalised", "wrong word")
        rows[f"CPT, {name}" if mine else name] = chosen(scores, hits)
    if config.others:
        for name, scores in overlay_scores(model, items, config).items():
            rows[f"{name}, log p(expression)"] = chosen(scores, hits)
    rows["bound by the proposals"] = np.array([float(any(hit)) for hit in hits])
    return {name: accuracies(found, items) for name, found in rows.items()}


def report(rows, items, config):
    """Prints the table, and what its numbers are."""
    columns, chance = list(rows["random"]), rows["random"]["all"][0]
    print(fitted([["", *columns], *([name, *(shown(*row[c]) for c in columns)]
                                    for name, row in rows.items())], "with --json", keep=2))
    above = {name: (rows[f"CPT, {name}"]["all"][0] - chance) / max(1e-9, 100 - chance)
             for name in ("raw", "normalised")}
    proposals = np.mean([len(item["proposals"]) for item in items])
    print(f"\n{config.dataset}, {', '.join(config.split)}: {len(items):,} expressions, "
          f"{proposals:.1f} proposals each; accuracy x 100 (IoU {'>' if config.strict else '>='} "
          f"0.5), in brackets the 95 % interval of {RESAMPLES:,} resamples. "
          "(accuracy - chance) / (1 - chance): "
          + ", ".join(f"{share:.2f} ({name})" for name, share in above.items()))


def main(config):
    check(config)
    device, ckpt = pick_device(config.device), checkpoint_file(pick_checkpoint(config.ckpt))
    model = SeeGPT.load(ckpt, device, config.lm or None, config.clip or None)
    note(f"with {ckpt}")
    if model.method.answers:
        raise UserError(f"{ckpt} chooses among answers; CPT needs a model that writes: name one "
                        "with --ckpt")
    if config.search:
        return show_colours(model, config.json, config.png)
    items = [item | {"split": split} for split in config.split
             for item in load_expressions(config.dataset, split, config.images)]
    hits = hits_of(items, config.strict)
    settings = {name: value for name, value in vars(config).items()
                if name not in ("shots", "seeds", "jobs", "json", "png", "device")}
    settings |= {"ckpt": hashlib.sha256(ckpt.read_bytes()).hexdigest(),
                 "palette": {word: list(rgb) for word, rgb in paints_of(config).items()}}
    if config.jobs > 1 and (device.type != "cpu" or "fork" not in get_all_start_methods()):
        raise UserError("--jobs: side by side only on a CPU of Linux or macOS; leave it out")
    if config.shots:
        return few_shot(model, items, hits, config, settings)

    called = naming(model, items[:100], config)
    print(f"called by its name, painted on the true box of the first {min(100, len(items))}: "
          + ", ".join(f"{word} {100 * share:.0f} %" for word, share in called.items()))
    rows = zero_shot_rows(model, items, hits, config)
    report(rows, items, config)
    write_json(config.json, {
        "settings": settings, "expressions": len(items), "unit": "x 100", "naming": called,
        "rows": {name: {c: dict(zip(("score", "low", "high"), values)) for c, values in row.items()}
                 for name, row in rows.items()}})


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
