"""Captions and answers of a split, and their scores."""


import numpy as np
import torch

from data.features import image_features_of
from data.shapes import world
from data.shapes.exact import exact_columns, scenes_of
from data.tasks import condition
from evaluate.metrics import bleu_counts, cider_d, prepare, rouge_l
from evaluate.official import official
from evaluate.tables import bootstrap
from lib.cli import UserError
from lib.files import progress
from model import check_context

DOMAINS = ("in-domain", "near-domain", "out-domain")  # of nocaps, in the order of its papers


def caption(model, items, config, device, autocast, label="captions"):
    """One caption an item, a list of str."""
    texts, show = [], progress(label, len(items))
    for i in range(0, len(items), config.batch):
        with autocast:
            feats = image_features_of(model, items[i:i + config.batch], device)
            texts += model.generate(feats, prompt=config.prompt, beam=config.beam,
                                    max_new_tokens=config.max_new_tokens, length_penalty=config.length_penalty)
        show(len(texts))
    return texts


def answer(model, items, config, device, autocast, label="answers"):
    """One answer an item, a list of str: chosen, or written greedily. An image is encoded once for its questions."""
    if model.method.needs_image and any(item["image"] is None for item in items):
        raise UserError("some items have no image, which this model cannot do without; dvp can")
    check_context(model.lm, map(condition, items), 0 if model.method.answers else config.max_new_tokens)
    texts, show = [None] * len(items), progress(label, len(items))
    # Questions on one image one after another, those without one at the end.
    order = sorted(range(len(items)), key=lambda i: (items[i]["image"] is None, str(items[i]["image"])))
    with_image, done = sum(item["image"] is not None for item in items), 0
    for part in (order[:with_image], order[with_image:]):
        for at in range(0, len(part), config.batch):
            numbers = part[at:at + config.batch]
            prompts, first = [condition(items[i]) for i in numbers], {}  # image -> the first question on it
            for i in numbers:
                first.setdefault(items[i]["image"], i)
            with autocast:
                feats = None
                if items[numbers[0]]["image"] is not None:
                    place = {image: n for n, image in enumerate(first)}
                    feats = image_features_of(model, [items[i] for i in first.values()], device)
                    feats = feats[torch.tensor([place[items[i]["image"]] for i in numbers], device=device)]
                found = ([best[0][0] for best in model.choose(feats, prompts)] if model.method.answers else
                         model.generate(feats, prompts, beam=1, max_new_tokens=config.max_new_tokens))
            for i, text in zip(numbers, found):
                texts[i] = text
            done += len(numbers)
            show(done)
    return texts


def score(captions, items, use_official=False, domains=True):
    """({metric: (score, low, high)} x 100, CIDEr-D of every image (n,)) for one caption an item."""
    references, theirs, per_image = [item["captions"] for item in items], {}, {}
    if use_official:
        hyps, refs, theirs, per_image = official(captions, references, extra=domains)
    else:
        hyps, refs = prepare(captions, references, tokenized=False)
    cider = cider_d(hyps, refs, True, per_image=True)[1]
    means = {"ROUGE-L": rouge_l(hyps, refs, True, per_image=True)[1], "CIDEr-D": cider}
    means = {name: (values, np.ones(len(items))) for name, values in (means | per_image).items()}
    if scenes := scenes_of(items):
        columns = exact_columns(captions, scenes)
        means |= {"exact" if name == "all" else f"exact, {name}": columns[name] for name in columns}
        named = np.array([world.names_all(c, s) for c, s in zip(captions, scenes)], float)
        means["objects named"] = (named, np.ones(len(named)))
    scores = bootstrap(bleu_counts(hyps, refs), means)
    # Their own number stands; the interval is ours, of the same tokens and the same definition.
    scores |= {name: (100 * float(value), *scores.get(name, (None, None, None))[1:])
               for name, value in theirs.items()}
    if domains and all("domain" in item for item in items):
        # As the public scripts do: the COCO scorer runs on one domain's images alone, so CIDEr-D's document
        # frequencies are those of the domain, and "overall" is no mean of the three.
        for domain in dict.fromkeys([*DOMAINS, *sorted({item["domain"] for item in items})]):
            if of := [i for i, item in enumerate(items) if item["domain"] == domain]:
                part, _ = score([captions[i] for i in of], [items[i] for i in of], use_official, domains=False)
                scores[f"CIDEr-D {domain}"] = part["CIDEr-D"]
    return scores, cider
