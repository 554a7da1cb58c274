"""The batch of a step, as tensors, as a function of the step's number alone."""

from copy import copy
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from clip_vit import preprocess
from lib.cli import UserError
from lib.pictures import open_image


class Batches(Dataset):
    """Batch number `step` as a function of the step alone: so a resumed run sees the same batches.

    Every epoch has its own order of the images and, per image, of its texts; of an image with
    more than `rows` texts the surplus comes up in other epochs. What is learnt from an image: group_by_image.
    """

    def __init__(self, entries, enc, config, image_size, feats=None, world=None, answers=(), soft=False):
        self.entries, self.enc, self.config, self.size, self.feats = entries, enc, config, image_size, feats
        self.rank, self.world = (world.rank, world.size) if world else (0, 1)
        self.answers, self.soft = {a: i for i, a in enumerate(answers)}, soft
        self.of, self.batch = np.arange(len(entries)), config.batch  # the entries in use, and how many a step

    def part(self, of, batch=None):
        """The same with some of the entries (their numbers), batch of them a step."""
        other = copy(self)
        other.of, other.batch = of, batch or self.batch
        return other

    def __getitem__(self, step):
        """The micro-batches of this process: list of (images, feats or None; idx; targets; cond).

        A broken image is returned as its message: an exception would lose its type in a worker.
        """
        c, n = self.config, len(self.of)
        chosen = []
        for place in range(step * self.batch, (step + 1) * self.batch):
            epoch = place // n
            i = int(self.of[order(c.seed, epoch, n)[place % n]])
            chosen.append((i, np.random.default_rng((c.seed, 1, epoch, i))))
        chosen = chosen[self.rank::self.world]
        try:
            return [micro for m in range(c.accumulate) for micro in self.micro(chosen[m::c.accumulate])]
        except UserError as e:
            return str(e)

    def micro(self, chosen):
        """One batch of the chosen (number, rng); two where some have an image and some have none."""
        batches = []
        for blind in (False, True):
            part = [(self.entries[i], i, rng) for i, rng in chosen if (self.entries[i]["image"] is None) == blind]
            if part:
                texts = [[x["texts"][j] for j in rng.permutation(len(x["texts"]))[:self.config.rows]] for x, _, rng in part]
                rows = (answer_rows(texts, self.config.rows, self.enc, self.answers, self.soft) if self.answers else
                        text_rows(texts, self.config.rows, self.enc, self.config.max_tokens))
                batches.append((None if blind else self.images([i for _, i, _ in part]), *rows))
        return batches

    def images(self, indices):
        if self.feats is not None:
            return torch.from_numpy(self.feats[indices].astype(np.float32))
        return torch.stack([preprocess(open_image(self.entries[i]["image"]), self.size) for i in indices])


@lru_cache(2)  # a batch may reach from one epoch into the next
def order(seed, epoch, n):
    """The permutation of n items in an epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(n)


def text_rows(texts, k, enc, max_tokens):
    """Texts per image (lists of at most k (condition, {answer: count})) -> idx, targets (B * k, T), cond (B * k,).

    A row is EOT text EOT: the model reads all but the last and is asked for all but the first.
    "a cat" -> idx [EOT, a, cat], targets [a, cat, EOT]. Of a question only the answer is asked for:
    "question: ... answer:", " red" -> targets [-1, ..., -1, red, EOT]; cond counts the tokens up to there.
    Inputs are pad with EOT, targets with -1. pitfall: EOT as a target must count, or the model
    never learns to stop; padding must not. An image with fewer texts than k gets filler rows without any target.
    """
    eot, rows = enc.eot_token, []
    for of_image in texts:
        for asked, answers in of_image:
            answer = max(answers, key=answers.get)
            head = enc.encode_ordinary(asked)
            # pitfall: " red" and "red" are different tokens, and behind a text only the first is natural.
            rows.append((head, enc.encode_ordinary(" " + answer if asked else str(answer))[:max_tokens]))
        rows += [None] * (k - len(of_image))
    T = 1 + max(len(r[0]) + len(r[1]) for r in rows if r is not None)
    idx, targets = torch.full((len(rows), T), eot), torch.full((len(rows), T), -1)
    cond = torch.ones(len(rows), dtype=torch.int64)
    for r, row in enumerate(rows):
        if row is not None:
            head, answer = row
            n, end = len(head), len(head) + len(answer)
            idx[r, 1:end + 1] = torch.tensor(head + answer, dtype=torch.int64)
            targets[r, n:end + 1] = torch.tensor([*answer, eot])
            cond[r] = n + 1
    return idx, targets, cond


def answer_rows(texts, k, enc, classes, soft):
    """As rows_of for a method that chooses: idx (B * k, T) of conditions alone, targets (B * k, A), cond (B * k,).

    Targets: soft, as DVP on VQA2.0: 0, .3, .6, .9 or 1 for answers given 0, 1, 2, 3 or more times; else
    1 for the most frequent answer. Filler rows are -1.
    """
    rows = [pair for of_image in texts for pair in of_image + [None] * (k - len(of_image))]
    idx, cond = pad([row[0] if row else "" for row in rows], enc)
    targets = torch.zeros(len(rows), len(classes))
    for row, target in zip(rows, targets):
        if row is None:
            target[:] = -1
        for answer, count in row[1].items() if row else ():
            if answer in classes and (soft or count == max(row[1].values())):
                target[classes[answer]] = min(1.0, 0.3 * count) if soft else 1.0
        if row is not None and not soft:  # answers equally frequent share the one
            target /= target.sum().clamp(min=1)
    return idx, targets, cond


def count_targets(targets):
    """How many targets count: tokens, or rows of a method that chooses."""
    return (targets[:, 0] >= 0).sum() if targets.is_floating_point() else (targets != -1).sum()


def pad(prompts, enc, device=None):
    """Texts -> ids (R, T) that begin with end-of-text and are filled up with it, and their lengths cond (R,).

    Filling behind a text changes nothing in front of it: for who reads the state of its last word only.
    """
    ids = [[enc.eot_token, *enc.encode_ordinary(p)] for p in prompts]
    T = max(map(len, ids))
    idx = torch.tensor([i + [enc.eot_token] * (T - len(i)) for i in ids], device=device)
    return idx, torch.tensor([len(i) for i in ids], device=device)
