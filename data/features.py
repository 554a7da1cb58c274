"""Features of the frozen image transformer: computed once into a file, or in memory."""

import hashlib
import itertools
import math
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch

from clip_vit import preprocess
from data.archives import check_disk
from lib.cli import UserError
from lib.files import progress, replacing
from lib.images import open_image
from weights.reading import fingerprint


def cached_features(vit, items, folder, split, processes, batch=64):
    """Feats (n, N, D) of a split's images, computed once into a memory-mapped fp16 file beside the
    dataset. fp16 rounds by 5e-4 at most. UserError if the disk has no room for it.

    Each process encodes its share on its device; the main one puts them together.

    The file's name carries a hash of the encoder's weights, the preprocessing and the list of
    images: with another encoder or other images it is simply not found.
    """
    items = [item for item in items if item["image"] is not None]
    hint = "--no-cache does without this file"
    sha = hashlib.sha256(f"{fingerprint(vit)} crop {vit.image_size}".encode())
    for item in items:
        info = os.stat(item["image"]) if os.path.exists(item["image"]) else None
        text = f"{item['image']} {info and (info.st_size, info.st_mtime_ns)}"
        # pitfall: on Linux a name may hold bytes that are no UTF-8; Python has surrogates for them.
        sha.update(text.encode("utf-8", "surrogatepass"))
    path = Path(folder) / f"features-{split}-{sha.hexdigest()[:16]}.npy"
    if any(processes.sum([not path.exists()])):
        share = slice(*(len(items) * (processes.rank + i) // processes.size for i in (0, 1)))
        parts = [path.with_suffix(f".part{rank}") for rank in range(processes.size)]
        shape = len(items), 1 + (vit.image_size // vit.patch) ** 2, vit.width
        check_disk(path.parent, 2 * math.prod(shape), hint)
        show, done = progress(f"encoding {split}", share.stop - share.start), 0
        # pitfall: a mapped file takes its room only while it is written, and where the disk is full
        # by then, the process dies without a word. A plain file raises.
        with replacing(path if processes.main else parts[processes.rank], hint) as f:
            if processes.main:
                np.lib.format.write_array_header_1_0(
                    f, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for feats in encode(vit, items[share], vit.image_size, processes.device, batch):
                f.write(feats.half().cpu().numpy().astype("<f2").tobytes())
                done += len(feats)
                if processes.main:
                    show(done)
            if processes.main:
                processes.barrier()  # the parts are there
                for part in parts[1:]:
                    with open(part, "rb") as other:
                        shutil.copyfileobj(other, f)
                    part.unlink()
        if not processes.main:
            processes.barrier()
        processes.barrier()  # the whole is there
    return np.load(path, mmap_mode="r")


def image_features_of(model, items, device, batch=64):
    """Feats (n, N, D) of the items' images, in memory."""
    return torch.cat([*encode(model.image_features, items, model.vit.image_size, device, batch)])


def load_pixels(path, size):
    """An image of a dataset, preprocessed, (3, size, size). UserError says what to do with one that
    cannot be read."""
    try:
        return preprocess(open_image(path), size)
    except UserError as e:
        raise UserError(f"{e}; put a sound file in its place and --resume, or leave it out (the "
                        "dataset's prepare.py does with --check) and start anew") from e


@torch.no_grad()
def encode(encoder, items, size, device, batch):
    """Yields feats (batch, N, D) of the items' images, size pixels wide and tall. UserError for an
    image that cannot be read."""
    load = lambda item: load_pixels(item["image"], size)
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
