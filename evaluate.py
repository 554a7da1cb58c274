"""How good are the captions? So far: exact scenes in the shapes world, where the truth is known.

Exact-scene accuracy is the share of images whose caption names every object with size, colour and
shape, and their relation, and says nothing wrong (data/shapes/world.py, is_exact).
"""

import torch

from clip_vit import open_image, preprocess
from data.common import load_split
from data.shapes import world


def features(model, items, device, batch=64):
    """Feats (n, N, D) of the items' images, in memory."""
    out = []
    for i in range(0, len(items), batch):
        images = [preprocess(open_image(x["image"]), model.vit.image_size) for x in items[i:i + batch]]
        with torch.no_grad():
            out.append(model.see(torch.stack(images).to(device)))
    return torch.cat(out)


def exact(captions, scenes):
    """Share of the captions that are exact, in all and for scenes of one and of two objects."""
    right = [world.is_exact(c, s) for c, s in zip(captions, scenes)]
    share = lambda keep: sum(r for r, k in zip(right, keep) if k) / max(1, sum(keep))
    return {"all": share([True] * len(scenes)), **{
        name: share([len(s) == n for s in scenes]) for n, name in ((1, "one object"), (2, "two objects"))}}


def report_exact(model, folder, device, n, batch=250):
    """Prints exact-scene accuracy of greedy captions on n test and n novel images, and blind.

    Blind: the captions of other images are held against the scenes. What that scores is chance.
    """
    print(f"greedy captions, exact scenes   {'all':>7}{'one object':>13}{'two objects':>13}")
    for split in ("test", "novel"):
        items = load_split(folder, split)[:n]
        scenes = [world.from_json(x["scene"]) for x in items]
        feats = features(model, items, device)
        captions = [c for i in range(0, len(items), batch) for c in model.generate(feats[i:i + batch], beam=1)]
        half = len(items) // 2
        results = {split: exact(captions, scenes)}
        if split == "test":
            results["test, other images"] = exact(captions[half:] + captions[:half], scenes)
        for name, r in results.items():
            print(f"  {name:20}{len(items):>8,}  " + "".join(f"{100 * v:>11.1f} %" for v in r.values()))
