"""The fine-tuned head that CPT is compared with: it scores every proposal, without any paint.

  image --> [ ViT ] --+--> mean of the tokens in a proposal's box, and its place --+
                      |                                                            +--> ( head )
                      +--> (captioner) <-- phrase --> its last state --------------+
"""

from copy import deepcopy
from functools import partial

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from data.batches import Batch, pad
from data.features import whole_image_features
from evaluate.regions import Kept, hits_of
from evaluate.tuning import few_shot_steps
from lib.pictures import open_image
from model import TextState, training_step

EXPRESSIONS, KEPT = 10, 2000  # expressions a step; images whose features are kept, at most


class RegionHead(nn.Module):
    """A captioner with a head behind it: Linear, GELU, LayerNorm, Linear, as CPT's baseline.

    differs: CPT's baseline reads the region outputs of VinVL; here a region is the mean of the
    ViT's tokens in its box and the box's five numbers, the phrase the captioner's last state.
    """

    def __init__(self, captioner):
        super().__init__()
        self.captioner = captioner
        D, C = captioner.vit.width, captioner.lm.config.n_embd
        self.score = nn.Sequential(nn.Linear(D + C + 5, C), nn.GELU(), nn.LayerNorm(C),
                                   nn.Linear(C, 1))

    def trained(self):
        """Everything that learns: a list of parameters."""
        return [*self.captioner.trained().values(), *self.score.parameters()]

    def forward(self, regions, feats, idx, targets=None, lengths=None, wanted=None):
        """regions [(n, D + 5)] of R images, feats (R, N, D) of these, phrases idx (R, T) with their
        lengths -> scores (R, P), hardly above -1e9 where an image has fewer than P regions, and the
        loss of targets (R, P), the probability of each region."""
        sizes = [len(rows) for rows in regions]
        text = phrase_states(self.captioner, feats, idx, lengths)
        text = text.repeat_interleave(torch.tensor(sizes, device=text.device), 0)
        scores = self.score(torch.cat([torch.cat(regions), text], -1))[:, 0].split(sizes)
        scores = pad_sequence(scores, batch_first=True, padding_value=-1e9)
        return scores, None if targets is None else F.cross_entropy(scores, targets)


def phrase_states(model, feats, idx, lengths):
    """The language model's last states (R, C) behind phrases idx (R, T) of these lengths, each with
    its clean image, feats (R, N, D).

    As SeeGPT.forward_text without logits: of VC-GPT, whose fusion stack is in there, that is the
    text alone.
    """
    x, ctx = model.lm.embed(idx, 0), model.method.encode_image(feats)
    for l, layer in enumerate(model.lm.h):
        state = TextState(condition_len=model.condition_lengths(lengths))
        x = model.method.block(l, layer, x, ctx, state)
    x = x[:, -idx.shape[1]:]  # without a method's own tokens, which stand in front
    return model.lm.ln_f(x[torch.arange(len(x), device=x.device), lengths - 1])


def region_tokens(feats, boxes, size):
    """The mean of an image's tokens feats (N, D) over each box [x, y, w, h], with its place in an
    image of size (width, height): (n, D + 5)."""
    feats = F.layer_norm(feats, feats.shape[-1:])[1:]
    side, (W, H) = round(len(feats) ** 0.5), size
    centres = (torch.arange(side) + 0.5) / side
    rows = []
    for x, y, w, h in boxes:
        x0, y0, x1, y1 = x / W, y / H, (x + w) / W, (y + h) / H
        inside = (((centres >= y0) & (centres <= y1))[:, None]
                  & ((centres >= x0) & (centres <= x1)))
        if not inside.any():  # a box smaller than a patch: the patch it is in
            row, column = int((y0 + y1) / 2 * side), int((x0 + x1) / 2 * side)
            inside[min(side - 1, row), min(side - 1, column)] = True
        place = feats.new_tensor([x0, y0, x1, y1, (x1 - x0) * (y1 - y0)])
        rows.append(torch.cat([feats[inside.flatten().to(feats.device)].mean(0), place]))
    return torch.stack(rows)


def read_image(model, item):
    """(feats (N, D), region_tokens) of an item's clean image."""
    image = open_image(item["image"])
    feats = whole_image_features(model, [image])[0]
    return feats, region_tokens(feats, item["proposals"], image.size)


def head_batch(model, items, images):
    """(regions, Batch without targets) of items and of each what read_image gave."""
    feats, regions = zip(*images)
    phrases = [item["expression"].lower() for item in items]
    idx, lengths = pad(phrases, model.lm.tokenizer, feats[0].device)
    return regions, Batch(torch.stack(feats), idx, None, lengths)


class Images(Kept):
    """What read_image gives of each item's image: (feats, region_tokens)."""

    def __init__(self, model, items):
        super().__init__(model, items, KEPT)

    def encode(self, items):
        return enumerate(read_image(self.model, item) for item in items)


def tune_head(model, images, config, seed, lr=6e-5):
    """A RegionHead with a copy of the captioner, tuned together on the items of images: a softmax
    over the proposals of each expression. Ten times as many steps as CPT, as released."""
    torch.manual_seed(seed)
    model, rng = deepcopy(model).train(), np.random.default_rng(seed)
    head = RegionHead(model).to(model.lm.wte.weight.device)
    hits = [torch.tensor(hit, dtype=torch.float32) for hit in hits_of(images.items, config.strict)]
    usable = [i for i, hit in enumerate(hits) if hit.any()]
    for optimizer in few_shot_steps(head.trained(), lr, 10 * config.steps if usable else 0):
        drawn = [usable[n] for n in rng.permutation(len(usable))[:EXPRESSIONS]]
        regions, batch = head_batch(model, [images.items[i] for i in drawn], images.read(drawn))
        targets = pad_sequence([hits[i] / hits[i].sum() for i in drawn], batch_first=True)
        training_step(partial(head, regions), [batch._replace(targets=targets)], optimizer, 1.0)
    return head.eval()


@torch.no_grad()
def score_head(head, images, batch=64):
    """The fine-tuned head's score of every proposal, [(n,), ...]."""
    found, n = [], len(images.items)
    for start in range(0, n, batch):
        some = range(start, min(start + batch, n))
        regions, micro = head_batch(head.captioner, [images.items[i] for i in some],
                                    images.read(some))
        scores, _ = head(regions, micro.images, micro.idx, lengths=micro.condition_len)
        found += [row[:len(r)].cpu().numpy() for row, r in zip(scores, regions)]
    return found
