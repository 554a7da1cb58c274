"""The batch of a step as tensors: a function of the step's number alone.

So a resumed run sees the same batches. A batch is a list of micro-batches (--accumulate), each

    images (B,3,H,W), or feats (B,N,D) made before, or None    idx (B*k,T)    targets (B*k,T)

with k rows of text an image: "a cat" -> idx [EOT, a, cat], targets [a, cat, EOT].
"""

from copy import copy
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from data.features import in_threads, load_pixels
from data.tasks import answer_vocabulary, group_by_image, load_split, task_of
from lib.cli import UserError, note


class Batch(NamedTuple):
    """A micro-batch, in the order of SeeGPT.forward's arguments. A tuple with names."""

    images: object
    idx: object
    targets: object  # (R, T), -1: not scored; of a method that chooses (R, A), how right each is
    condition_len: object  # (R,) how many tokens the text's condition has, eot included
    wanted: object = None  # flat positions in R * T that are scored; None where answers are chosen


def count_targets(targets):
    """How many targets count: tokens, or rows of a method that chooses."""
    return (targets[:, 0] >= 0).sum() if targets.is_floating_point() else (targets != -1).sum()


def answer_accuracy(logits, targets):
    """How right the likeliest answers are on average, in 0..1; logits, targets (R, A)."""
    kept = targets[:, 0] >= 0
    return targets[kept].gather(1, logits[kept].argmax(1, keepdim=True)).mean().item()


def load_entries(folder, val_images):
    """({"train": entries, "val": at most so many of them}, facts about them) of a dataset's folder.
    An entry is an image with all of its texts (group_by_image)."""
    items = {split: load_split(folder, split) for split in ("train", "val")}
    first = items["train"][0]
    if task_of(first) == "expression":
        raise UserError(f"{folder}/train.jsonl holds referring expressions; what is trained here "
                        "needs captions, questions or hypotheses")
    has_choices = any("choices" in item for item in items["train"])
    entries = {split: group_by_image(items[split]) for split in items}
    blind = [split for split in items if entries[split][-1]["image"] is None]  # those come last
    every = -(-len(entries["val"]) // val_images) if "val" in blind else 1  # some of both kinds
    entries["val"] = entries["val"][::every][:val_images]
    return entries, {"task": task_of(first), "has_scenes": "captions" in first and "scene" in first,
                     "has_choices": has_choices, "has_blind_items": bool(blind),
                     "answers": lambda: answer_vocabulary(folder, entries["train"])}


class Batches(Dataset):
    """Item number `step` is the batch of that step.

    Every epoch has its own order of the images and, per image, of its texts; of an image with more
    than config.rows texts the surplus comes up in other epochs. entries: group_by_image(items).
    feats has a row an entry. room: tokens of the longest text that the language model reads; longer
    ones are left out, None: nobody looks.
    """

    def __init__(self, entries, tokenizer, config, image_size, feats=None, processes=None,
                 answers=(), soft=False, room=None):
        self.tokenizer, self.config, self.image_size = tokenizer, config, image_size
        self.entries, self.feats, self.rows_of = entries, feats, np.arange(len(entries))
        if room:
            self.leave_out_long(room, 0 if answers else config.max_tokens)
        self.rank, self.size = (processes.rank, processes.size) if processes else (0, 1)
        self.answers, self.soft = {a: i for i, a in enumerate(answers)}, soft
        given = {a for entry in self.entries for _, counts in entry["texts"] for a in counts}
        if answers and not given & self.answers.keys():
            raise UserError(f"none of the answers in this dataset is among the {len(answers):,} to "
                            "choose from")
        self.indices, self.batch = np.arange(len(self.entries)), config.batch  # in use; a step

    def leave_out_long(self, room, more):
        """Takes out texts that leave less than `more` tokens of the room free, and entries that
        have no other. UserError if nothing is left."""
        room -= more
        kept = [[pair for pair in entry["texts"] if fits(self.tokenizer, pair[0], room)]
                for entry in self.entries]
        texts, left = (sum(map(len, each)) for each in ([e["texts"] for e in self.entries], kept))
        if left == texts:
            return
        if not left:
            raise UserError(f"every text is longer than the {max(0, room)} tokens that fit: "
                            + (f"lower --max_tokens {more}" if more else "shorten them"))
        note(f"left out: {texts - left:,} of {texts:,} texts, which are longer than {room} tokens")
        self.rows_of = np.flatnonzero([len(texts) for texts in kept])
        self.entries = [self.entries[i] | {"texts": kept[i]} for i in self.rows_of]

    def subset(self, indices, batch=None):
        """The same with some of the entries, batch of them a step."""
        other = copy(self)
        other.indices, other.batch = indices, batch or self.batch
        return other

    def __getitem__(self, step):
        """As read; a broken image is its message: an exception would lose its type in a worker."""
        try:
            return self.read(step)
        except UserError as e:
            return str(e)

    def read(self, step):
        """The micro-batches of this process."""
        c, n, chosen = self.config, len(self.indices), []
        for place in range(step * self.batch, (step + 1) * self.batch):
            epoch = place // n
            i = int(self.indices[epoch_order(c.seed, epoch, n)[place % n]])
            chosen.append((i, np.random.default_rng((c.seed, 1, epoch, i))))
        chosen = chosen[self.rank::self.size]
        parts = [chosen[m::c.accumulate] for m in range(c.accumulate)]
        return [micro for part in parts for micro in self.collate(part)]

    def collate(self, chosen):
        """One Batch of the chosen (index, rng); two where some have an image and some have none."""
        batches = []
        for blind in (False, True):
            part = [(i, rng) for i, rng in chosen if (self.entries[i]["image"] is None) == blind]
            texts = [self.pick_texts(self.entries[i]["texts"], rng) for i, rng in part]
            if part:
                images = None if blind else self.load_images([i for i, _ in part])
                batches.append(Batch(images, *self.rows(texts)))
        return batches

    def pick_texts(self, texts, rng):
        """At most config.rows of an image's texts, in random order."""
        return [texts[j] for j in rng.permutation(len(texts))[:self.config.rows]]

    def rows(self, texts):
        if self.answers:
            return answer_rows(texts, self.config.rows, self.tokenizer, self.answers, self.soft)
        return text_rows(texts, self.config.rows, self.tokenizer, self.config.max_tokens)

    def load_images(self, indices):
        if self.feats is not None:
            return torch.from_numpy(self.feats[self.rows_of[indices]].astype(np.float32))
        load = lambda i: load_pixels(self.entries[i]["image"], self.image_size)
        # Processes that read work side by side already; without them threads do.
        return torch.stack([*(map if get_worker_info() else in_threads)(load, indices)])


@lru_cache(2)  # a batch may reach from one epoch into the next
def epoch_order(seed, epoch, n):
    """The permutation of n items in an epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(n)


def text_rows(texts, k, tokenizer, max_tokens):
    """Texts per image (lists of at most k (condition, {answer: count})) -> idx, targets (B * k, T),
    condition_len (B * k,), wanted.

    A row is EOT text EOT (or begins with first_token): the model reads all but the last and is
    asked for all but the first. A text that was cut after max_tokens does not end there, so it is
    not asked for an end. Of a question only the answer is asked for: "question: ... answer:", "
    red" -> targets [-1, ..., -1, red, EOT]. Inputs are padded with EOT, targets with -1. pitfall:
    EOT as a target must count, or the model never learns to stop; padding must not. An image with
    fewer texts than k gets filler rows without any target.
    """
    eot, rows = tokenizer.eot_token, []
    for image_texts in texts:
        for condition, answers in image_texts:
            answer = max(answers, key=answers.get)
            answer = encode_answer(tokenizer, str(answer), condition)
            end = [eot] if len(answer) <= max_tokens else [-1]
            rows.append((tokenizer.encode_ordinary(condition), answer[:max_tokens], end))
        rows += [([], None, None)] * (k - len(image_texts))
    T = 1 + max(len(condition) + len(answer or ()) for condition, answer, _ in rows)
    idx, targets = torch.full((len(rows), T), eot), torch.full((len(rows), T), -1)
    idx[:, 0] = first_token(tokenizer)
    condition_len = torch.tensor([len(condition) + 1 for condition, _, _ in rows])
    for r, (condition, answer, end) in enumerate(rows):
        if answer is not None:
            n, m = len(condition), len(condition) + len(answer)
            idx[r, 1:m + 1] = torch.tensor(condition + answer, dtype=torch.int64)
            targets[r, n:m + 1] = torch.tensor(answer + end)
    return idx, targets, condition_len, (targets.flatten() != -1).nonzero().squeeze(1)


def answer_rows(texts, k, tokenizer, classes, soft):
    """As text_rows for a method that chooses: idx (B * k, T) of conditions alone, targets
    (B * k, A) and condition_len (B * k,).

    Targets: soft, as DVP on VQA2.0: 0, .3, .6, .9 or 1 for answers given 0, 1, 2, 3 or more times;
    else 1 for the most frequent answer. Filler rows are -1.
    """
    rows = [pair for image_texts in texts for pair in image_texts + [None] * (k - len(image_texts))]
    idx, condition_len = pad([row[0] if row else "" for row in rows], tokenizer)
    targets = torch.zeros(len(rows), len(classes))
    for row, target in zip(rows, targets):
        if row is None:
            target[:] = -1
            continue
        for answer, count in row[1].items():
            if answer in classes and (soft or count == max(row[1].values())):
                target[classes[answer]] = min(1.0, 0.3 * count) if soft else 1.0
        if not soft:  # answers equally frequent share the one
            target /= target.sum().clamp(min=1)
    return idx, targets, condition_len


def pad(texts, tokenizer, device=None):
    """Texts -> ids (R, T) that begin with first_token and are filled up with eot, and their
    lengths (R,).

    Filling behind a text changes nothing for who reads the state of its last word only.
    """
    eot = tokenizer.eot_token
    ids = [text_ids(tokenizer, text) for text in texts]
    T = max(map(len, ids))
    idx = torch.tensor([i + [eot] * (T - len(i)) for i in ids], device=device)
    return idx, torch.tensor([len(i) for i in ids], device=device)


def first_token(tokenizer):
    """The id that begins every text: of GPT-2 the one that ends it, of others one of its own."""
    bos = getattr(tokenizer, "bos", None)  # tiktoken's encodings know of none
    return tokenizer.eot_token if bos is None else bos


def text_ids(tokenizer, text):
    """The ids of a text with the one that begins it."""
    return [first_token(tokenizer), *tokenizer.encode_ordinary(text)]


def encode_answer(tokenizer, text, condition):
    """The ids of a text behind a condition ("": alone). pitfall: " red" and "red" are different
    tokens; behind a text only the first fits. SentencePiece puts the space there by itself."""
    spaced = condition and not getattr(tokenizer, "dummy", False)
    return tokenizer.encode_ordinary(f" {text}" if spaced else text)


def fits(tokenizer, text, room):
    """Whether a text has at most `room` tokens, with the one that begins it."""
    return (2 + len(text.encode()) <= room  # a token is a byte at least, or a space put in front
            or 1 + len(tokenizer.encode_ordinary(text)) <= room)
