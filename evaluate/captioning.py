"""The captions and answers of a model for a split, and the scores of captions."""

import numpy as np
import torch

from data.batches import fits
from data.features import image_features_of
from data.shapes import world
from data.shapes.exact import exact_columns, scenes_of
from data.tasks import condition
from evaluate.metrics import bleu_counts, cider_d, prepare, rouge_l
from evaluate.official import official_scores, official_tokens
from evaluate.tables import bootstrap
from lib.cli import UserError, note
from lib.files import progress

DOMAINS = ("in-domain", "near-domain", "out-domain")  # of nocaps, in the order of its papers


def caption(model, items, config, autocast, label="captions"):
    """One caption an item, a list of str."""
    texts, show = [], progress(label, len(items))
    for i in range(0, len(items), config.batch):
        with autocast:
            some = items[i:i + config.batch]
            feats = image_features_of(model, some, model.lm.wte.weight.device)
            texts += model.generate(feats, prompt=config.prompt, beam=config.beam,
                                    max_new_tokens=config.max_new_tokens,
                                    length_penalty=config.length_penalty)
        show(len(texts))
    return texts


def answer(model, items, config, autocast, label="answers"):
    """One answer an item, a list of str: chosen, or written greedily; "" to a question that is too
    long. UserError for an item without an image where the model needs one."""
    if model.method.needs_image and any(item["image"] is None for item in items):
        raise UserError("some items have no image, which this model cannot do without; dvp can")
    room = model.lm.config.n_positions - (0 if model.method.answers else config.max_new_tokens)
    short = [i for i, item in enumerate(items) if fits(model.lm.tokenizer, condition(item), room)]
    if len(short) < len(items):
        note(f"{len(items) - len(short):,} of {len(items):,} questions are longer than {room} "
             "tokens: their answers are left empty")
    # Questions on one image one after another, those without an image at the end.
    key = lambda i: (items[i]["image"] is None, str(items[i]["image"]))
    order = sorted(short, key=key)
    with_image = sum(items[i]["image"] is not None for i in order)
    batches = [part[i:i + config.batch] for part in (order[:with_image], order[with_image:])
               for i in range(0, len(part), config.batch)]
    texts, done, show = [""] * len(items), 0, progress(label, len(order))
    for batch in batches:
        with autocast:
            answers = answer_batch(model, [items[i] for i in batch], config.max_new_tokens)
        for i, text in zip(batch, answers):
            texts[i] = text
        done += len(batch)
        show(done)
    return texts


def answer_batch(model, items, max_new_tokens):
    """One answer an item of a batch, of which either all or none have an image; an image is encoded
    once for all its questions."""
    prompts, feats = [condition(item) for item in items], None
    if items[0]["image"] is not None:
        images = list(dict.fromkeys(item["image"] for item in items))
        device = model.lm.wte.weight.device
        feats = image_features_of(model, [{"image": image} for image in images], device)
        rows = [images.index(item["image"]) for item in items]
        feats = feats[torch.tensor(rows, device=device)]
    if model.method.answers:
        return [best[0][0] for best in model.choose(feats, prompts)]
    return model.generate(feats, prompts, beam=1, max_new_tokens=max_new_tokens)


def score_captions(captions, items, official=False, domains=True):
    """({metric: (score, low, high)} x 100, CIDEr-D of every image (n,)) of one caption an item."""
    references, theirs, means = [item["captions"] for item in items], {}, {}
    if official:
        hyps, refs = official_tokens(captions, references)
        theirs, means = official_scores(hyps, refs, extra=domains)
    else:
        hyps, refs = prepare(captions, references)
    cider = cider_d(hyps, refs, True, per_image=True)[1]
    means = {"ROUGE-L": rouge_l(hyps, refs, True, per_image=True)[1], "CIDEr-D": cider} | means
    if scenes := scenes_of(items):
        for name, right in exact_columns(captions, scenes).items():
            means["exact" if name == "all" else f"exact, {name}"] = right
        named = [world.names_all(text, scene) for text, scene in zip(captions, scenes)]
        means["objects named"] = np.array(named, float)
    scores = bootstrap(means, bleu_counts(hyps, refs))
    # Their own number stands; the interval is ours, of the same tokens and the same definition.
    for name, value in theirs.items():
        scores[name] = (100 * float(value), *scores.get(name, (None, None, None))[1:])
    if domains and all("domain" in item for item in items):
        scores |= score_domains(captions, items, official)
    return scores, cider


def score_domains(captions, items, official):
    """{"CIDEr-D in-domain": ..., ...} of nocaps, as the public scripts do it: the COCO scorer runs
    on the images of one domain alone. So CIDEr-D's document frequencies are those of the domain,
    and the score of all images is no mean of the three."""
    scores, domains = {}, [item["domain"] for item in items]
    for domain in dict.fromkeys([*DOMAINS, *sorted(domains)]):
        if some := [i for i, d in enumerate(domains) if d == domain]:
            part, _ = score_captions([captions[i] for i in some], [items[i] for i in some],
                                     official, domains=False)
            scores[f"CIDEr-D {domain}"] = part["CIDEr-D"]
    return scores
