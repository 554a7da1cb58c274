"""Features of the frozen image transformer: computed once into a file, or in memory."""

import hashlib
import itertools
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch

from clip_vit import preprocess
from data.archives import check_disk
from lib.files import plain_errors, progress
from lib.pictures import open_image
from weights.reading import fingerprint


def cached_features(vit, items, folder, split, device, batch=64):
    """Feats (n, N, D) of a split's images, computed once into a memory-mapped fp16 file beside the
    dataset. fp16 rounds by 5e-4 at most. UserError if the disk has no room for it.

    The file's name carries a hash of the encoder's weights, the preprocessing and the list of
    images: with another encoder or other images it is simply not found.
    """
    items = [item for item in items if item["image"] is not None]
    sha = hashlib.sha256(f"{fingerprint(vit)} crop {vit.image_size}".encode())
    for item in items:
        info = os.stat(item["image"]) if Path(item["image"]).exists() else None
        sha.update(f"{item['image']} {info and (info.st_size, info.st_mtime_ns)}".encode())
    path = Path(folder) / f"features-{split}-{sha.hexdigest()[:16]}.npy"
    if not path.exists():
        shape = len(items), 1 + (vit.image_size // vit.patch) ** 2, vit.width
        # pitfall: a mapped file takes its room only while it is written, and where the disk is full
        # by then, the process dies without a word.
        check_disk(path.parent, 2 * math.prod(shape))
        part = path.with_suffix(f".{os.getpid()}.part")
        show, done = progress(f"encoding {split}", len(items)), 0
        try:
            with plain_errors(part):
                out = np.lib.format.open_memmap(part, "w+", np.float16, shape)
            for feats in encode(vit, items, vit.image_size, device, batch):
                out[done:done + len(feats)] = feats.half().cpu().numpy()
                done += len(feats)
                show(done)
            out.flush()
            del out
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def image_features_of(model, items, device, batch=64):
    """Feats (n, N, D) of the items' images, in memory."""
    return torch.cat([*encode(model.image_features, items, model.vit.image_size, device, batch)])


@torch.no_grad()
def encode(encoder, items, size, device, batch):
    """Yields feats (batch, N, D) of the items' images, size pixels wide and tall. UserError for an
    image that cannot be read."""
    load = lambda item: preprocess(open_image(item["image"]), size)
    with ThreadPool() as pool:  # decoding JPEGs takes longer than a small ViT
        for i in range(0, len(items), batch):
            yield encoder(torch.stack(pool.map(load, items[i:i + batch])).to(device))


def in_threads(f, things, ahead=8):
    """Yields f(x) of each thing in order. Threads work a few ahead, so that no more than these are
    held at a time."""
    with ThreadPoolExecutor() as pool:
        waiting = deque()
        for x in things:
            waiting.append(pool.submit(f, x))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@torch.no_grad()
def whole_image_features(model, images, batch=64):
    """PIL images -> feats (n, N, D): all of a picture is squeezed into the square, no region is cut
    off. images may be a generator: then few are held in their full size at a time."""
    size, found = model.vit.image_size, []
    pixels = in_threads(lambda image: preprocess(image, size, crop=False), images)
    while part := list(itertools.islice(pixels, batch)):
        found.append(model.image_features(torch.stack(part).to(model.lm.wte.weight.device)))
    return torch.cat(found)
