"""Boxes [x, y, w, h] in pixels to choose from: of a file, or windows that slide over the image."""

import math
from pathlib import Path

import numpy as np

from lib.cli import UserError
from lib.files import read_json

FORM = "expected [[x, y, w, h], ...] in pixels, or {image: such a list}"


def windows(size):
    """Squares of a half and a quarter of the shorter side of an image of size (width, height), each
    half over the next or more."""
    found = []
    for part in (2, 4):
        side = min(size) / part
        xs, ys = (np.linspace(0, n - side, math.ceil(2 * (n - side) / side) + 1).tolist()
                  for n in size)
        found += [[x, y, side, side] for y in ys for x in xs]
    return found


def is_number(value):
    """Whether value is a number of pixels: neither of infinite size nor true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def is_box(value):
    """Whether value is [x, y, w, h]; a side of 0, as a few of COCO's have, is one."""
    return (isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
            and min(value[2:]) >= 0)


def load_boxes(path):
    """What a file of boxes holds, None without a path. UserError if it is no JSON."""
    return read_json(Path(path), FORM) if path else None


def boxes_of(found, name, size):
    """The boxes, of what load_boxes found, for the image called name, of size (width, height);
    windows for None. UserError unless they are boxes of four numbers, all of them in the image."""
    if found is None:
        return windows(size)
    if isinstance(found, dict):
        if name not in found and Path(name).name not in found:
            raise UserError(f"--boxes: none for {name}; {FORM}")
        found = found.get(name, found.get(Path(name).name))
    if not (isinstance(found, list) and found and all(is_box(b) and min(b[2:]) for b in found)):
        raise UserError(f"--boxes: none for {name}, or not of this form; {FORM}")
    for x, y, w, h in found:
        if x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0:
            raise UserError(f"--boxes: {[x, y, w, h]} lies outside {name}, which has {size[0]} x "
                            f"{size[1]} pixels")
    return found
