"""Features of the frozen image transformer, computed once."""

import hashlib
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch

from clip_vit import preprocess
from lib.files import progress
from lib.pictures import open_image
from weights.reading import fingerprint


def cached_features(vit, items, folder, split, device, batch=64):
    """Feats (n, N, D) of a split's images, computed once into a memory-mapped fp16 file beside the dataset.

    The file's name carries a hash of the encoder's weights, the preprocessing and the list of
    images: with another encoder or other images it is simply not found. fp16 rounds by 5e-4 at most.
    """
    items = [item for item in items if item["image"] is not None]
    sha = hashlib.sha256(f"{fingerprint(vit)} crop {vit.image_size}".encode())
    for item in items:
        info = os.stat(item["image"]) if Path(item["image"]).exists() else None
        sha.update(f"{item['image']} {info and (info.st_size, info.st_mtime_ns)}".encode())
    path = Path(folder) / f"features-{split}-{sha.hexdigest()[:16]}.npy"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        N = 1 + (vit.image_size // vit.patch) ** 2
        out = np.lib.format.open_memmap(part, "w+", np.float16, (len(items), N, vit.width))
        show = progress(f"encoding {split}", len(items))
        try:
            for i in range(0, len(items), batch):
                images = [preprocess(open_image(x["image"]), vit.image_size) for x in items[i:i + batch]]
                with torch.no_grad():
                    out[i:i + len(images)] = vit(torch.stack(images).to(device)).half().cpu().numpy()
                show(i + len(images))
            out.flush()
            del out
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def features(model, items, device, batch=64):
    """Feats (n, N, D) of the items' images, in memory. UserError for an image that cannot be read."""
    load = lambda item: preprocess(open_image(item["image"]), model.vit.image_size)
    with ThreadPool() as pool, torch.no_grad():  # decoding JPEGs takes longer than a small ViT
        return torch.cat([model.image_features(torch.stack(pool.map(load, items[i:i + batch])).to(device))
                          for i in range(0, len(items), batch)])
