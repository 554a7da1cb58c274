"""What the tiny CLIP is pre-trained on: pictures with captions, regions of pictures with phrases.

    pictures with captions    groups of four that differ from each other in one respect only
    regions with phrases      the patches of one Thing  <->  "a small red circle on the left"
                              of one that is marked     <->  "a small circle in blue"
                              the empty background      <->  "nothing"

Every phrase is held against every region. Beside the true ones stand false ones that are hard to
tell apart from them. A loss is told which fit, and there may be several.
"""

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from clip_vit import preprocess
from data.shapes import world
from data.shapes.drawing import render
from data.shapes.texts import ATTRIBUTES
from data.shapes.world import PRETRAINING, SIDE, WIDE, with_article

GROUPS, CROWDED = 20, 48  # groups of near-duplicates, and pictures of many Things, in a batch
EMPTY = 2  # pictures without any


class Batch(NamedTuple):
    """B pictures, the first of them with captions; N patches a picture; at most K regions each."""

    images: torch.Tensor  # (B, 3, 64, 64)
    captions: torch.Tensor  # ids (C, T)
    fits: torch.Tensor  # (C, C) bool: caption i is true of picture j
    patches: torch.Tensor  # (B, K, N) weights that average the patches of a region
    real: torch.Tensor  # (B, K) bool: there is such a region
    phrases: torch.Tensor  # ids (P, T)
    true: torch.Tensor  # (real.sum(), P) bool: phrase p is true of the region


def clip_batch(rng, tokenize, patch, relations):
    """One Batch. patch: the side of a patch in pixels; relations: let phrases say how a Thing
    stands to another."""
    scenes = [s for _ in range(GROUPS) for s in near_duplicates(rng)] + [[]] * EMPTY
    captions = [rng.choice(world.captions(s, rng)) for s in scenes]
    fits = torch.tensor(which_fit(captions, scenes))
    images = [render(s, rng) for s in scenes]
    crowded = [world.marked(world.sample_from(rng, rng.randint(2, 7), PRETRAINING, WIDE), rng)
               for _ in range(CROWDED)]
    images += [render(s, rng, strays=rng.choice((0, 0, 1))) for s in crowded]
    scenes += crowded
    images = torch.stack([preprocess(image, SIDE) for image in images])
    patches, real = region_patches(scenes, patch, rng.randrange(2 ** 32))
    regions = [(scenes[b], k) for b, k in real.nonzero().tolist()]
    phrases, true = region_phrases(regions, rng, relations)
    return Batch(images, crop(tokenize(captions)), fits, patches, real,
                 crop(tokenize(phrases)), true)


def crop(idx):
    """Ids without the padding behind the longest text."""
    return idx[:, :int((idx > 0).sum(1).max())]


# ---------------------------------------------------------------------------- whole pictures

def edit(scene, rng):
    """A near-duplicate of a scene: one attribute changed, or attributes or places exchanged between
    two Things. None if that gives no scene of pre-training."""
    things = list(scene)
    i = rng.randrange(len(things))
    kind = rng.choice(("size", "colour", "shape", "place") if len(things) == 1 else
                      ("size", "colour", "shape", "swap size", "swap colour", "swap shape",
                       "swap place", "swap place"))
    if kind == "place":
        x, y = world.sample(rng, 1, WIDE)[0].x, world.sample(rng, 1, WIDE)[0].y
        things[i] = replace(things[i], x=x, y=y)
    elif kind == "size":
        size = rng.choice(ATTRIBUTES["size"])
        things[i] = replace(things[i], size=size, r=world.radius_of(size, rng, WIDE))
    elif kind.startswith("swap"):
        names = {"swap place": ("x", "y"), "swap size": ("size", "r")}.get(
            kind, (kind.removeprefix("swap "),))
        a, b = things
        things = [replace(a, **{name: getattr(b, name) for name in names}),
                  replace(b, **{name: getattr(a, name) for name in names})]
    else:
        things[i] = replace(things[i], **{kind: rng.choice(ATTRIBUTES[kind])})
    return things if world.is_valid(things) and world.split_of(things) in PRETRAINING else None


def near_duplicates(rng, n=4):
    """n scenes, the later ones edits of the first: negatives that differ in just one respect."""
    scenes = [world.sample_from(rng, rng.choice((1, 2, 2)), PRETRAINING, WIDE)]
    while len(scenes) < n:
        new = edit(scenes[0], rng)
        if new and all(world.signature(new) != world.signature(s) for s in scenes):
            scenes.append(new)
    return scenes


def which_fit(captions, scenes):
    """Which caption is true of which picture, as lists of bool (C, C); caption i is of scene i.

    A caption of one Thing that names no place fits every picture of such a Thing, wherever it is.
    """
    exact = [world.signature(s) for s in scenes]
    loose = [s[0].looks if len(s) == 1 else world.signature(s) for s in scenes]
    placed = [len(s) == 1 and s[0].place in c for c, s in zip(captions, scenes)]
    return [[key == own[i] for key in own]
            for i, own in enumerate(exact if p else loose for p in placed)]


# ---------------------------------------------------------------------------- regions

def names(t):
    """What a Thing can be called by its looks, the plainest first. "in red" tells the colour of its
    marker, or its own if it has none."""
    return [t.looks, f"{t.size} {t.shape} in {t.seen}", f"{t.looks} in {t.seen}"]


def region_patches(scenes, patch, seed):
    """Weights (B, K, N) that average the patches of each region; which regions there are (B, K).

    A region is a Thing (k is its number) or the empty background (the last k). Half of its patches
    are left out at random, so that each of them has to know what it is part of.
    """
    side, K = SIDE // patch, 1 + max(map(len, scenes))
    centre = (np.arange(side) + 0.5) * patch  # of the patches, in pixels
    inside = np.zeros((len(scenes), K, side, side), bool)
    for b, scene in enumerate(scenes):
        background = np.ones((side, side), bool)
        for k, t in enumerate(scene):
            distance = np.hypot(centre[None, :] - t.x, centre[:, None] - t.y)
            inside[b, k] = distance <= max(t.radius, distance.min())
            background &= distance > t.radius + patch
        inside[b, -1] = background
    inside = inside.reshape(len(scenes), K, side * side)
    keep = np.random.default_rng(seed).random(inside.shape) < 0.5
    some = (inside & keep).any(-1, keepdims=True)  # never leave out all of them
    weights = np.where(some, inside & keep, inside).astype(np.float32)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1)
    return torch.from_numpy(weights), torch.from_numpy(inside.any(-1))


class Phrase(NamedTuple):
    """Something said of one Thing; what is not said is empty."""

    looks: str
    place: str = ""
    relation: str = ""
    other: str = ""  # the looks of the Thing that it stands to in this relation

    def text(self):
        other = with_article(self.other) if self.other else ""
        return f"{with_article(self.looks)} {self.place or self.relation} {other}".strip()


def phrase(scene, t, rng, relations):
    """A true Phrase on Thing t: its looks alone, with its place, or (if relations) with how it
    stands to another."""
    kind = rng.random()
    others = [o for o in scene if o is not t and world.relation(t, o)]
    # Of a marked Thing both its own looks and the marker have to be learnt.
    looks = names(t)[rng.choice((0, 1, 2, 2) if t.paint else (0, 0, 0, 1))]
    if relations and kind < 0.4 and others:
        o = rng.choice(others)
        return Phrase(looks, "", world.relation(t, o), o.looks)
    return Phrase(looks, t.place if kind < 0.7 else "")


def is_true(said, scene, t):
    """Does a Phrase fit Thing t of the scene?"""
    related = not said.relation or any(
        o.looks == said.other and world.relation(t, o) == said.relation for o in scene)
    return said.looks in names(t) and said.place in ("", t.place) and related


def falsify(said, rng):
    """A Phrase like this one, in another place, relation or marker: the hardest negative."""
    looks, marker, _ = said.looks.partition(" in ")
    if marker and rng.random() < 0.5:
        return said._replace(looks=f"{looks} in {rng.choice(ATTRIBUTES['colour'])}")
    return said._replace(
        place=rng.choice(world.PLACES) if said.place else "",
        relation=rng.choice(list(world.INVERSE)) if said.relation else "")


def region_phrases(regions, rng, relations):
    """Regions [(scene, number of the Thing)], a number past the last for the background -> texts of
    which the last is "nothing", and which region each is true of (regions, texts) bool."""
    said = sorted({phrase(scene, scene[k], rng, relations) for scene, k in regions
                   if k < len(scene) and rng.random() < 0.6})
    # pitfall: a set has no order of its own; falsify draws from rng, so its order must be the same
    # in every run.
    said = sorted({*said, *(falsify(p, rng) for p in said)})
    by_looks = defaultdict(list)
    for j, p in enumerate(said):
        by_looks[p.looks].append(j)
    true = torch.zeros(len(regions), len(said) + 1, dtype=torch.bool)
    for i, (scene, k) in enumerate(regions):
        if k >= len(scene):
            true[i, -1] = True
            continue
        for j in (j for looks in names(scene[k]) for j in by_looks[looks]):
            true[i, j] = is_true(said[j], scene, scene[k])
    return [*(p.text() for p in said), "nothing"], true
