"""Expressions, the boxes to choose from, and copies of an image with one of them painted."""

from pathlib import Path

import numpy as np

from data.tasks import find_dataset, load_split
from data.masks import iou, mask_of
from lib.cli import UserError
from lib.files import progress, read_json
from lib.pictures import open_image
from prompts import PAINTS, paint, whole_image_features

NOMINAL = {"red": (220, 30, 30), "orange": (240, 140, 30), "yellow": (240, 230, 40), "green": (40, 170, 60),
           "cyan": (60, 210, 220), "blue": (40, 70, 220), "purple": (140, 50, 190), "pink": (240, 130, 190),
           "brown": (130, 80, 40), "black": (15, 15, 15), "white": (245, 245, 245), "grey": (128, 128, 128)}


def load(dataset, split, images=0):
    """The items of a split with expressions. UserError for any other, or one without proposals."""
    items = load_split(find_dataset(dataset), split)[:images or None]
    for item in items:
        boxes = [item.get("box"), *(item.get("proposals") or [None])]
        if "expression" not in item or not all(isinstance(b, list) and len(b) == 4 for b in boxes):
            raise UserError(f"{dataset}, {split}: item {item['id']} lacks an expression, its box [x, y, w, h] or proposals")
    return items


def paints_of(config):
    """{word: (r, g, b)} to paint with. UserError if --colours are not among them."""
    paints = PAINTS
    if config.palette:
        hint = 'expected [{"word": "red", "rgb": [240, 0, 30]}, ...], as --search --json writes it'
        found = read_json(Path(config.palette), hint)
        try:
            paints = {x["word"]: tuple(x["rgb"]) for x in found}
            whole = all(isinstance(w, str) and len(c) == 3 and set(c) <= set(range(256)) for w, c in paints.items())
        except (TypeError, KeyError):
            whole = False
        if not whole or not paints:
            raise UserError(f"{config.palette}: not a palette; {hint}")
    for word in config.colours:
        if word not in paints:
            raise UserError(f"--colours {word}: there are {', '.join(paints)}")
    return paints


def regions(item, size, masks):
    """What can be painted: the proposals' boxes, or their masks ("L" images)."""
    if not masks:
        return item["proposals"]
    if len(item.get("masks", ())) != len(item["proposals"]):
        raise UserError(f"item {item['id']} has no mask for every proposal; leave --masks away")
    return [mask_of(mask, size) for mask in item["masks"]]


def grouped(item, G):
    """Numbers of proposals that share a copy: at most G, and none over another by half (multi-colour CPT)."""
    groups = []
    for i, box in enumerate(item["proposals"]):
        free = (g for g in groups if len(g) < G and all(iou(box, item["proposals"][j]) < 0.5 for j in g))
        group = next(free, None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return groups


def painted(model, items, config):
    """Yields (number of an item, groups of its proposals, feats (n, N, D) of the copies with a group painted in each).

    Items of one image follow each other: what is painted alike is painted and encoded once.
    """
    before, show, paints = None, progress("painting", len(items)), paints_of(config)
    order = sorted(range(len(items)), key=lambda i: str(items[i]["image"]))
    for done, i in enumerate(order, 1):
        item = items[i]
        if (item["image"], item["proposals"]) != before:
            before, image = (item["image"], item["proposals"]), open_image(item["image"])
            what, groups = regions(item, image.size, config.masks), grouped(item, len(config.colours))
            feats = whole_image_features(model, (paint(image, [(what[j], paints[w]) for j, w in zip(group, config.colours)])
                                      for group in groups))
        yield i, groups, feats
        show(done)


def hits_of(items, strict):
    """Which proposals of each item are right, lists of 0 and 1.

    differs: CPT's code counts as strict does, later work from 0.5 on and without the pixel more.
    """
    if strict:
        return [[iou(b, item["box"], inclusive=True) > 0.5 for b in item["proposals"]] for item in items]
    return [[iou(b, item["box"]) >= 0.5 for b in item["proposals"]] for item in items]


def chosen(scores, hits):
    """1 where the proposal with the highest score (the first of equal ones) is right, (n,)."""
    return np.array([float(hit[int(np.argmax(s))]) for s, hit in zip(scores, hits)])
