"""Boxes and masks: how far two boxes overlap, and masks in the forms that COCO writes."""

import numpy as np
from PIL import Image, ImageDraw

from data.boxes import is_number
from lib.cli import UserError


def iou(a, b):
    """Intersection over union, 0..1, of two boxes [x, y, w, h] in pixels."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def mask_of(segmentation, size):
    """A mask in one of COCO's forms -> "L" image (0 or 255) of size (width, height).

    Polygons [[x0, y0, x1, y1, ...], ...], or run lengths {"size": [h, w], "counts": [...]}, the
    counts a list or COCO's compressed string. UserError for run lengths that do not fill the image,
    and for what is no mask.
    differs: COCO draws polygons on a finer grid, so a pixel of the outline may differ.
    """
    try:
        return draw_mask(segmentation, size)
    except (LookupError, TypeError, ValueError, ArithmeticError) as e:
        raise UserError("a mask is neither a list of polygons nor run lengths "
                        f"({type(e).__name__}: {e})") from e


def draw_mask(segmentation, size):
    if isinstance(segmentation, list):
        mask = Image.new("L", size)
        for polygon in segmentation:
            if len(polygon) < 6:
                raise UserError(f"a mask has a polygon of {len(polygon) // 2} points; "
                                "at least three make one")
            if not all(map(is_number, polygon)):
                raise ValueError("a corner that is no number of pixels")
            points = [(polygon[i], polygon[i + 1]) for i in range(0, len(polygon) - 1, 2)]
            ImageDraw.Draw(mask).polygon(points, fill=255)
        return mask
    h, w = segmentation["size"]
    runs = segmentation["counts"]
    runs = runs if isinstance(runs, list) else decompress(runs)
    if not all(map(is_number, (w, h))) or not all(type(run) is int for run in runs):
        raise ValueError("a length that is no number of pixels")
    if (w, h) != size or sum(runs) != h * w or min(runs) < 0:
        raise UserError(f"a mask of {w} x {h} pixels with runs over {sum(runs):.6g} does not fit "
                        f"an image of {size[0]} x {size[1]}")
    flat = np.repeat(np.arange(len(runs)) % 2, runs)  # runs of 0 and 1 in turn, down the columns
    return Image.fromarray((255 * flat.reshape(w, h).T).astype(np.uint8))


def decompress(letters):
    """COCO's compressed string -> run lengths, a list of int.

    Five bits a letter, lowest first, signed; from the fourth run on, less the run two before.
    """
    runs, x, shift = [], 0, 0
    for letter in letters:
        bits = ord(letter) - 48
        x |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("letters that are no run lengths")
        if not bits & 32:  # the last letter of a run; its fifth bit is the sign
            x -= (bits & 16) << (shift - 4)
            runs.append(x + runs[-2] if len(runs) > 2 else x)
            x, shift = 0, 0
    return runs
