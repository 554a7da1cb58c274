"""Expressions, the proposals to choose from, and copies of an image with one proposal painted."""

import itertools
import operator
from pathlib import Path

import numpy as np

from data.features import in_threads, whole_image_features
from data.masks import iou, mask_of
from data.tasks import find_dataset, load_split
from lib.cli import UserError
from lib.files import progress, read_json
from lib.pictures import open_image
from prompts import PAINTS, paint

BATCH = 64  # copies that are encoded together


def load_expressions(dataset, split, images=0):
    """The items of a split with expressions. UserError for any other, or one without proposals."""
    items = load_split(find_dataset(dataset), split)[:images or None]
    for item in items:
        boxes = [item.get("box"), *(item.get("proposals") or [None])]
        if "expression" not in item or not all(isinstance(b, list) and len(b) == 4 for b in boxes):
            raise UserError(f"{dataset}, {split}: item {item['id']} lacks an expression, its box "
                            "[x, y, w, h] or proposals")
    return items


def paints_of(config):
    """{word: (r, g, b)} to paint with: PAINTS, or the colours in --palette. UserError if --colour
    is not among them."""
    paints = PAINTS
    if config.palette:
        hint = ('expected [{"word": "red", "rgb": [240, 0, 30]}, ...], as --search --json writes '
                "it")
        found = read_json(Path(config.palette), hint)
        try:
            paints = {x["word"]: tuple(x["rgb"]) for x in found}
            whole = all(isinstance(word, str) and len(rgb) == 3 and set(rgb) <= set(range(256))
                        for word, rgb in paints.items())
        except (TypeError, KeyError):
            whole = False
        if not whole or not paints:
            raise UserError(f"{config.palette}: not a palette; {hint}")
    if config.colour not in paints:
        raise UserError(f"--colour {config.colour}: there are {', '.join(paints)}")
    return paints


def regions_of(item, size, masks):
    """What can be painted on an image of size (width, height): the proposals' boxes, or with masks
    their masks ("L" images)."""
    if not masks:
        return item["proposals"]
    if len(item.get("masks", ())) != len(item["proposals"]):
        raise UserError(f"item {item['id']} has no mask for every proposal; leave --masks out")
    return [mask_of(mask, size) for mask in item["masks"]]


def image_of(item):
    """What two expressions on the same things of one image share: painted and encoded once."""
    return str(item["image"]), str(item["proposals"])


class Kept:
    """What encode, which a subclass has, makes of items; for at most so many images it is kept."""

    def __init__(self, model, items, most):
        self.model, self.items, self.most, self.kept = model, items, most, {}

    def read(self, which):
        """[what encode made of each of these items], encoded when first asked for."""
        items = {image_of(self.items[i]): self.items[i] for i in which}
        if len(self.kept.keys() | items) > self.most:
            self.kept.clear()
        missing = [key for key in items if key not in self.kept]
        for n, found in self.encode([items[key] for key in missing]) if missing else ():
            self.kept[missing[n]] = found
        return [self.kept[image_of(self.items[i])] for i in which]


def painted(model, items, config, overlay=None, quiet=False):
    """Yields (index of an item, feats (n, N, D) of its n copies, in each one proposal painted).

    overlay(image, region) -> image: what is done to a copy in place of painting. quiet: no word of
    progress. Items of one image follow each other. At least BATCH copies are encoded together.
    """
    show = (lambda done: None) if quiet else progress("painting", len(items))
    colour, part, done = paints_of(config)[config.colour], [], 0
    overlay = overlay or (lambda image, region: paint(image, region, colour))
    key = lambda i: image_of(items[i])
    groups = [[*group] for _, group in itertools.groupby(sorted(range(len(items)), key=key), key)]
    for g, group in enumerate(groups, 1):
        part.append(group)
        if sum(len(items[some[0]]["proposals"]) for some in part) < BATCH and g < len(groups):
            continue
        firsts = [items[some[0]] for some in part]
        feats = whole_image_features(model, copies_of(firsts, overlay, config))
        for some, rows in zip(part, feats.split([len(item["proposals"]) for item in firsts])):
            done += len(some)
            for i in some:
                yield i, rows
        show(done)
        part = []


def copies_of(items, overlay, config):
    """Yields the painted copies of each item's image, made by threads a few ahead."""
    def regions():
        for item in items:
            image = open_image(item["image"])
            for region in regions_of(item, image.size, config.masks):
                yield image, region

    return in_threads(lambda copy: overlay(*copy), regions())


def hits_of(items, strict=False):
    """Which proposals of each item are right, [[bool, ...], ...]: an intersection over union with
    the true box of 0.5 or more; strict: of more than 0.5."""
    enough = operator.gt if strict else operator.ge
    return [[enough(iou(box, item["box"]), 0.5) for box in item["proposals"]] for item in items]


def chosen(scores, hits):
    """1 where the proposal with the highest score (the first of equal ones) is right, (n,)."""
    return np.array([float(hit[int(np.argmax(s))]) for s, hit in zip(scores, hits)])
