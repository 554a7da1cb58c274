"""What later work found: other ways to mark a region, and other scores. None of them is CPT.

    outside blurred, outside greyed    log p of the expression itself, given a copy in which all but
                                       the region is blurred (FGVP) or greyed
    less the mean over others          log p(red), less its mean over other expressions: what a
                                       copy says whatever is asked tells nothing (as ReCLIP's)
"""

import random

import numpy as np
import torch
from PIL import Image, ImageFilter

from data.batches import pad
from evaluate.regions import painted
from model import TextState
from prompts import cloze, fill_in

OTHERS = 8  # expressions whose mean is subtracted


def only(image, region, outside):
    """The image inside a region (a box [x, y, w, h] or an "L" mask), outside(image) elsewhere."""
    image = image.convert("RGB")
    if isinstance(region, Image.Image):
        return Image.composite(image, outside(image), region)
    x, y, w, h = region
    box = (max(0, int(x)), max(0, int(y)),
           min(image.width, max(int(x + w), int(x) + 1)),
           min(image.height, max(int(y + h), int(y) + 1)))
    out = outside(image)
    if box[0] < box[2] and box[1] < box[3]:
        out.paste(image.crop(box), box)
    return out


def blurred(image):
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 16))


def greyed(image):
    """All of it in the mean colour."""
    mean = np.asarray(image, float).mean((0, 1)).round().astype(int)
    return Image.new("RGB", image.size, tuple(mean.tolist()))


OVERLAYS = {f"outside {outside.__name__}": (lambda image, region, outside=outside:
                                            only(image, region, outside))
            for outside in (blurred, greyed)}


@torch.no_grad()
def text_logp(model, feats, texts):
    """log p (R,) of whole texts, one for each of feats (R, N, D)."""
    idx, lengths = pad(texts, model.lm.tokenizer, feats.device)
    start = torch.ones_like(lengths)
    state = TextState(condition_len=start)
    logits = model.forward_text(idx[:, :-1], model.method.encode_image(feats), state)
    logp = logits.log_softmax(-1).gather(2, idx[:, 1:, None])[..., 0]
    said = torch.arange(1, idx.shape[1], device=idx.device) < lengths[:, None]
    return (logp * said).sum(1)


def overlay_scores(model, items, config):
    """{row: [(n,) of the proposals of each item]} by log p of the expression."""
    scores = {name: [None] * len(items) for name in OVERLAYS}
    for name, overlay in OVERLAYS.items():
        for i, feats in painted(model, items, config, overlay):
            text = " ".join(items[i]["expression"].lower().replace(".", "").split())
            scores[name][i] = text_logp(model, feats, [text] * len(feats)).cpu().numpy()
    return scores


def centred(model, items, i, feats, config):
    """Mean over OTHERS other expressions of log p(colour) in the copies of item i, (n,)."""
    rng = random.Random(f"others {i}")
    others = rng.sample([k for k in range(len(items)) if k != i], min(OTHERS, len(items) - 1))
    texts = [cloze(items[k]["expression"], config.template) for k in others or [i]]
    every = feats.repeat_interleave(len(texts), 0)
    logp = fill_in(model, every, texts * len(feats), [config.colour])[:, 0]
    return logp.view(len(feats), -1).mean(1).cpu().numpy()
