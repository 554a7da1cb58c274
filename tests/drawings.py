"""Drawings of coloured shapes by another hand than the shapes world's own renderer, to test with.

    python tests/drawings.py [out/NAME]     # exact captions (the newest run's) on each background

Nothing is ever trained on them. The world fills polygons (data/shapes/drawing.py); here every pixel
asks, nine times, whether it is inside: other outlines, other edges, other tints, other backgrounds.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.settings import pick_checkpoint  # isort: skip (lib before torch)
import numpy as np
import torch
from PIL import Image

from clip_vit import preprocess
from data.shapes import world
from model import SeeGPT

RADII = {"small": (4.2, 6.6), "large": (8.6, 11.5)}
TINTS = {"red": (205, 25, 35), "orange": (250, 150, 20), "yellow": (248, 225, 30),
         "green": (35, 145, 50), "cyan": (40, 210, 230), "blue": (30, 70, 225),
         "purple": (125, 45, 170), "pink": (250, 145, 200)}
GROUNDS = ("grey", "white", "pastel", "dark")


def is_inside(shape, u, v, rng):
    """Which points are in a shape of radius 1 around 0; u to the right, v downwards."""
    if shape == "circle":
        return u ** 2 + v ** 2 < 1
    if shape == "square":  # round corners: a norm between the circle's and the square's
        return abs(u) ** (p := rng.choice((8, 20, 60))) + abs(v) ** p < rng.uniform(0.86, 0.98) ** p
    if shape == "diamond":
        return abs(u) / rng.uniform(0.85, 1) + abs(v) < 1.08
    if shape == "triangle":
        wide, low = rng.uniform(0.9, 1), rng.uniform(0.6, 0.9)
        return (v < low) & (abs(u) < wide * (v + 1) / (low + 1))
    if shape == "cross":
        arm = rng.uniform(0.28, 0.38)
        return (np.minimum(abs(u), abs(v)) < arm) & (np.maximum(abs(u), abs(v)) < 1)
    angle = np.arctan2(u, -v) * 5 / (2 * np.pi)  # a star: five times out and in on the way round
    return np.hypot(u, v) < 1.1 - 2 * rng.uniform(0.55, 0.68) * abs(angle - np.round(angle))


def ground_colour(ground, rng):
    if ground in ("grey", "white"):
        return [rng.randint(120, 225) if ground == "grey" else 255] * 3
    low, high = (200, 250) if ground == "pastel" else (0, 55)
    return [rng.randint(low, high) for _ in "rgb"]


def scene_of(rng):
    """One or two Things, of any split, that do not touch and stand clearly to each other."""
    while True:
        scene = []
        for _ in range(rng.choice((1, 2))):
            size = rng.choice([*RADII])
            r = rng.uniform(*RADII[size])
            x, y = (rng.uniform(r + 2, world.SIDE - r - 2) for _ in "xy")
            scene.append(world.Thing(size, rng.choice([*TINTS]), rng.choice(world.SHAPES), x, y, r))
        if world.is_valid(scene):
            return scene


def draw(scene, ground, rng):
    """The picture of a scene on a kind of background, 64 x 64."""
    side, fine = world.SIDE, 3 * world.SIDE
    v, u = (np.mgrid[:fine, :fine] + 0.5) / 3
    pixels = np.empty((fine, fine, 3))
    pixels[:] = ground_colour(ground, rng)
    for t in scene:
        turn = rng.uniform(-0.12, 0.12)
        a, b = (u - t.x) / t.radius, (v - t.y) / t.radius
        inside = is_inside(t.shape, a * np.cos(turn) + b * np.sin(turn),
                           b * np.cos(turn) - a * np.sin(turn), rng)
        pixels[inside] = [c + rng.randint(-10, 10) for c in TINTS[t.colour]]
    pixels = pixels.reshape(side, 3, side, 3, 3).mean((1, 3))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def drawings(ground, n, seed=0):
    """n (picture, scene) on a kind of background; "empty ...": without any Thing."""
    rng = random.Random(f"{ground} {seed}")
    scenes = [[] if ground.startswith("empty") else scene_of(rng) for _ in range(n)]
    return [(draw(s, ground.removeprefix("empty "), rng), s) for s in scenes]


def main(ckpt="", n=100):
    model = SeeGPT.load(pick_checkpoint(ckpt))
    for ground in (*GROUNDS, *(f"empty {g}" for g in GROUNDS)):
        pictures, scenes = zip(*drawings(ground, n))
        said = model.generate(torch.stack([preprocess(p, world.SIDE) for p in pictures]), beam=1)
        exact = [world.is_exact(c, s) for c, s in zip(said, scenes)]
        wrong = next((c for c, e in zip(said, exact) if not e), "")
        print(f"{ground:12} {100 * np.mean(exact):5.1f} % of {n} exact   {wrong}")


if __name__ == "__main__":
    main(*sys.argv[1:])
