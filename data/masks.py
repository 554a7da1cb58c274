"""Boxes and masks: how much two boxes overlap, and masks in the forms COCO writes."""

import numpy as np
from PIL import Image, ImageDraw

from lib.cli import UserError


def iou(a, b, inclusive=False):
    """Intersection over union of two boxes [x, y, w, h]. inclusive: w and h are 1 more, as code of MAttNet's time has it,
    where a box ends with its last pixel and not behind it."""
    more = 1 if inclusive else 0
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) + more
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) + more
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] + more) * (a[3] + more) + (b[2] + more) * (b[3] + more) - w * h)


def mask_of(segmentation, size):
    """A mask in COCO's form -> "L" image (0 or 255) of size (width, height).

    Polygons [[x0, y0, x1, y1, ...], ...], or runs {"size": [h, w], "counts": [...] or COCO's letters}.
    UserError for runs that do not fill the image. differs: COCO draws polygons on a finer grid, a pixel of the outline
    may come out otherwise.
    """
    if isinstance(segmentation, list):
        mask = Image.new("L", size)
        for polygon in segmentation:
            if len(polygon) < 6:
                raise UserError(f"a mask has a polygon of {len(polygon) // 2} points; at least three make one")
            ImageDraw.Draw(mask).polygon([(polygon[i], polygon[i + 1]) for i in range(0, len(polygon) - 1, 2)], fill=255)
        return mask
    h, w = segmentation["size"]
    counts = segmentation["counts"]
    counts = counts if isinstance(counts, list) else runs_of(counts)
    if (w, h) != size or sum(counts) != h * w or min(counts) < 0:
        raise UserError(f"a mask of {w} x {h} pixels with runs over {sum(counts)} does not fit an image of {size[0]} x {size[1]}")
    flat = np.repeat(np.arange(len(counts)) % 2, counts)  # runs of 0 and 1 in turn, down the columns
    return Image.fromarray((255 * flat.reshape(w, h).T).astype(np.uint8))


def runs_of(letters):
    """COCO's letters -> run lengths: 5 bits a letter, lowest first, signed, from the fourth run on less the one two before."""
    runs, x, shift = [], 0, 0
    for letter in letters:
        bits = ord(letter) - 48
        x |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last letter of a run; its fifth bit is the sign
            x -= (bits & 16) << (shift - 4)
            runs.append(x + runs[-2] if len(runs) > 2 else x)
            x, shift = 0, 0
    return runs
