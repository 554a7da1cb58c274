"""Few-shot CPT: a captioner is tuned to say the colour's word for the right painted region.

  image, one proposal painted --> (captioner) <-- "the circle left of the star is in"
                                       |
                                " red" if it is the right one, " none" if it is another
"""

import random
from copy import deepcopy

import numpy as np
import torch

from data.batches import Batch, pad
from data.features import whole_image_features
from evaluate.regions import hits_of, painted, paints_of, regions_of
from lib.cli import UserError
from lib.optim import parameter_groups, schedule
from lib.pictures import open_image
from model import training_step
from prompts import NONE, cloze, fill_in, paint

COPIES = 100  # painted copies in a step, at most (CPT's code)


def draw_shots(items, K, seed):
    """K items drawn with a seed (CPT: the training expressions are shuffled, the first K taken)."""
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    return [items[i] for i in order[:K]]


def examples(item, limit, strict=False):
    """[(proposal to paint, is it right)]: at most limit right proposals, and as many others."""
    hits, = hits_of([item], strict)
    right = [i for i, hit in enumerate(hits) if hit][:limit]
    if not right:  # no proposal covers it: the first one stands in, as a wrong one (as released)
        return [(0, False)]
    wrong = [i for i, hit in enumerate(hits) if not hit]
    wrong = random.Random(str(item["id"])).sample(wrong, min(len(wrong), len(right)))
    return [(i, True) for i in right] + [(i, False) for i in wrong]


def few_shot_steps(params, lr, steps):
    """Yields, steps times, the optimizer of params with the step's learning rate.

    AdamW as in CPT's code: betas (0.9, 0.98), weight decay 0.01 on matrices, a tenth of the steps
    to warm up. differs: gradients are clipped to a norm of 1, as in train.py.
    """
    optimizer = torch.optim.AdamW(parameter_groups(params, lr, 0.01), betas=(0.9, 0.98))
    for step in range(steps):
        schedule(optimizer, step, steps // 10, steps)
        yield optimizer


def cpt_batch(model, copies, words, config):
    """One Batch of copies [(item, proposal to paint, is it right)]. words: the tokens that are to
    follow where the copy is right, and where it is not."""
    colour = paints_of(config)[config.colour]

    def pictures():
        for item, i, _ in copies:
            image = open_image(item["image"])
            yield paint(image, regions_of(item, image.size, config.masks)[i], colour)

    feats = whole_image_features(model, pictures())
    texts = [cloze(item["expression"], config.template) for item, _, _ in copies]
    idx, lengths = pad(texts, model.lm.tokenizer, feats.device)
    targets = torch.full_like(idx, -1)
    for row, length, (_, _, right) in zip(targets, lengths, copies):
        row[length - 1] = words[0] if right else words[1]
    return Batch(feats, idx, targets, model.condition_lengths(lengths))


def tune_cpt(model, shots, config, seed):
    """A copy of the captioner, tuned on shots. UserError if the colour's word is more than one
    token.

    A step sees all painted copies, or COPIES of more: those of a few shots are encoded once, those
    of a whole dataset, which no memory could hold, when their turn comes.
    differs: of a captioner with --train_vision all but its ViT is tuned: the copies are encoded
    without gradient.
    """
    model, rng = deepcopy(model).train(), np.random.default_rng(seed)
    words = []
    for word in (config.colour, NONE):
        token, *more = model.lm.tokenizer.encode_ordinary(f" {word}")
        if more:
            raise UserError(f"--shots: {word} is more than one token of this language model; "
                            "choose another --colour")
        words.append(token)
    limit = 1 if len(shots) >= 16 else COPIES
    copies = [(item, i, right) for item in shots
              for i, right in examples(item, limit, config.strict)]
    every = cpt_batch(model, copies, words, config) if len(copies) <= COPIES else None
    for optimizer in few_shot_steps(list(model.trained().values()), config.lr, config.steps):
        batch = every or cpt_batch(
            model, [copies[n] for n in rng.permutation(len(copies))[:COPIES]], words, config)
        training_step(model, [batch], optimizer, grad_clip=1.0)
    return model.eval()


def score_cpt(model, items, config):
    """log p(colour) - log p(none) of every proposal painted, [(n,), ...]: no constant added to the
    logits changes it.

    differs: the released score is the ratio of the two logits, which turns around where one of them
    changes its sign.
    """
    scores = [None] * len(items)
    for i, feats in painted(model, items, config):
        text = cloze(items[i]["expression"], config.template)
        logp = fill_in(model, feats, [text] * len(feats), [config.colour, NONE])
        scores[i] = (logp[:, 0] - logp[:, 1]).cpu().numpy()
    return scores
