"""Few-shot CPT: a captioner is tuned to say the colour's word for the right painted region.

  image, each proposal painted --> (captioner) <-- "the circle left of the star is in"
                                       |
    loss "proposals"    log p(red) of every copy, softmax over the copies: the right one
    loss "released"     " red" if it is the right one, " none" if it is another

Before the first step log p(red) is the zero-shot score, and "proposals" only moves it. "released"
trains a difference, log p(red) - log p(none), which a captioner that has often read "none" as the
answer already fills with something else: the zero-shot prior is thrown away.
"""

import random
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from data.batches import Batch, pad
from evaluate.regions import Kept, hits_of, painted
from lib.cli import UserError
from lib.optim import parameter_groups, schedule
from model import TextState, training_step
from prompts import NONE, cloze, fill_in

COPIES = 100  # painted copies in a step, at most (CPT's code)
# Expressions in a step, at most: CPT's code has 16, of which it sees two copies each.
EXPRESSIONS = {"proposals": 8, "released": 16}
LOSSES = tuple(EXPRESSIONS)


def draw_shots(items, K, seed):
    """K items drawn with a seed (CPT: the training expressions are shuffled, the first K taken)."""
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    return [items[i] for i in order[:K]]


def draw_copies(hits, limit, rng):
    """[(proposal to paint, is it right)] of an expression for one step: at most limit right
    proposals and as many others, drawn anew each time, so that in the end all have been seen.

    hits: which proposals are right. rng: a numpy Generator.
    """
    right, wrong = (rng.permutation(np.flatnonzero(np.equal(hits, x))).tolist() for x in (1, 0))
    if not right:  # no proposal covers it: the first one stands in, as a wrong one (as released)
        return [(0, False)]
    right = right[:limit]
    return [(i, True) for i in right] + [(i, False) for i in wrong[:len(right)]]


def few_shot_steps(params, lr, steps):
    """Yields, steps times, the optimizer of params with the step's learning rate.

    AdamW as in CPT's code: betas (0.9, 0.98), weight decay 0.01 on matrices, a tenth of the steps
    to warm up. differs: gradients are clipped to a norm of 1, as in train.py.
    """
    # fused: the dozen small operations for every parameter would be a twelfth of the head's step
    optimizer = torch.optim.AdamW(parameter_groups(params, lr, 0.01), betas=(0.9, 0.98),
                                  fused=params[0].device.type != "mps")
    for step in range(steps):
        schedule(optimizer, step, steps // 10, steps)
        yield optimizer


class Copies(Kept):
    """Feats (n, N, D) of the painted copies of each item, kept in half precision: the ViT does not
    learn."""

    def __init__(self, model, items, config, most=1000):
        super().__init__(model, items, most)
        self.config = config

    def encode(self, items):
        for n, feats in painted(self.model, items, self.config, quiet=True):
            yield n, feats.half()

    def read(self, which):
        return [feats.float() for feats in super().read(which)]


def word_tokens(model, words):
    """The token of each word. UserError if one has several."""
    found = [model.lm.tokenizer.encode_ordinary(f" {word}") for word in words]
    for word, tokens in zip(words, found):
        if len(tokens) > 1:
            raise UserError(f"--shots: {word} is more than one token of this language model; "
                            "choose another --colour")
    return [tokens[0] for tokens in found]


def cpt_batch(model, feats, texts):
    """Feats (R, N, D) and the texts that a colour is to end -> Batch, the positions of the blanks
    in wanted."""
    idx, lengths = pad(texts, model.lm.tokenizer, feats.device)
    wanted = torch.arange(len(idx), device=idx.device) * idx.shape[1] + lengths - 1
    return Batch(feats, idx, None, model.condition_lengths(lengths), wanted)


def colour_logp(model, feats, idx, condition_len, wanted):
    """log p (R, V) of what fills the blanks."""
    ctx = model.method.encode_image(feats)
    state = TextState(condition_len=condition_len, wanted=wanted)
    return model.forward_text(idx, ctx, state).log_softmax(-1)


def proposals_batch(model, copies, drawn, hits, texts, words):
    """The step's Batch, targets (E, P) the share of each proposal among the right ones, and its
    loss: each expression chooses among its proposals by log p(colour)."""
    feats = copies.read(drawn)
    sizes = [len(f) for f in feats]
    batch = cpt_batch(model, torch.cat(feats), [t for i, n in zip(drawn, sizes)
                                                for t in [texts[i]] * n])
    targets = [torch.tensor(hits[i], dtype=torch.float32) for i in drawn]
    targets = pad_sequence([t / t.sum() for t in targets], batch_first=True)

    def forward(feats, idx, targets, condition_len, wanted):
        scores = colour_logp(model, feats, idx, condition_len, wanted)[:, words[0]].split(sizes)
        scores = pad_sequence(scores, batch_first=True, padding_value=-1e9)
        return scores, F.cross_entropy(scores, targets)

    return batch._replace(targets=targets), forward


def released_batch(model, copies, drawn, hits, texts, words, limit, rng):
    """The step's Batch of copies drawn anew, targets (R, 1) the words that are to fill the blanks:
    the colour's where the copy is right, "none" where it is not; and its loss."""
    chosen = [draw_copies(hits[i], limit, rng) for i in drawn]
    feats = [feats[[k for k, _ in some]] for feats, some in zip(copies.read(drawn), chosen)]
    rows = [(texts[i], words[0] if right else words[1])
            for i, some in zip(drawn, chosen) for _, right in some][:COPIES]
    batch = cpt_batch(model, torch.cat(feats)[:COPIES], [text for text, _ in rows])

    def forward(feats, idx, targets, condition_len, wanted):
        logp = colour_logp(model, feats, idx, condition_len, wanted)
        return logp, F.nll_loss(logp, targets[:, 0])

    return batch._replace(targets=torch.tensor([[token] for _, token in rows])), forward


def tune_cpt(model, copies, config, seed, loss="proposals", lr=3e-5):
    """A copy of the captioner, tuned on the expressions of copies. UserError if the colour's word
    is more than one token.

    A step sees EXPRESSIONS of them, drawn anew where there are more.
    differs: of a captioner with --train_vision all but its ViT is tuned: the copies are encoded
    without gradient.
    """
    shots, hits = copies.items, hits_of(copies.items, config.strict)
    model, rng = deepcopy(model).train(), np.random.default_rng(seed)
    words = word_tokens(model, [config.colour, NONE])
    texts = [cloze(item["expression"], config.template) for item in shots]
    # Nothing can be chosen where no proposal is right.
    usable = [i for i, hit in enumerate(hits) if any(hit) or loss == "released"]
    limit = 1 if len(shots) >= 16 else COPIES
    for optimizer in few_shot_steps(list(model.trained().values()), lr,
                                    config.steps if usable else 0):
        drawn = [usable[n] for n in rng.permutation(len(usable))[:EXPRESSIONS[loss]]]
        if loss == "released":
            batch, forward = released_batch(model, copies, drawn, hits, texts, words, limit, rng)
        else:
            batch, forward = proposals_batch(model, copies, drawn, hits, texts, words)
        training_step(forward, [batch], optimizer, grad_clip=1.0)
    return model.eval()


def score_cpt(model, copies, config, batch=64):
    """{score: [(n,) of the proposals of each item]}: "log p(red)", the zero-shot score, and "red
    against none", log p(red) - log p(none). No constant added to the logits changes either.

    differs: the released score is the ratio of the two logits, which turns around where one of them
    changes its sign.
    """
    prior, released = [], []
    for start in range(0, len(copies.items), batch):
        some = range(start, min(start + batch, len(copies.items)))
        feats = copies.read(some)
        sizes = [len(f) for f in feats]
        texts = [cloze(copies.items[i]["expression"], config.template) for i in some]
        texts = [text for text, n in zip(texts, sizes) for _ in range(n)]
        logp = fill_in(model, torch.cat(feats), texts, [config.colour, NONE]).cpu()
        prior += [x.numpy() for x in logp[:, 0].split(sizes)]
        released += [x.numpy() for x in (logp[:, 0] - logp[:, 1]).split(sizes)]
    return {"prior": prior, "released": released}
