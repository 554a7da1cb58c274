"""How many captions of the shapes world are exact."""

import numpy as np

from data.features import image_features_of
from data.shapes import world
from data.tasks import load_split


def exact(captions, scenes):
    """Share of the captions that are exact, in all and for scenes of one and of two objects."""
    columns = exact_columns(captions, scenes)
    return {name: float((v * w).sum() / max(1, w.sum())) for name, (v, w) in columns.items()}


def exact_columns(captions, scenes):
    """{which scenes: (right (n,), whether it is such a scene (n,))}, in 0 and 1."""
    right = np.array([world.is_exact(c, s) for c, s in zip(captions, scenes)], float)
    objects = np.array([len(s) for s in scenes])
    return {"all": (right, np.ones(len(right))), "one object": (right, 1.0 * (objects == 1)),
            "two objects": (right, 1.0 * (objects == 2))}


def scenes_of(items):
    """The scenes of a dataset of the shapes world, None for any other."""
    try:
        return [world.from_json(item["scene"]) for item in items]
    except (KeyError, TypeError):
        return None


def report_exact(model, folder, device, n, batch=250):
    """Prints exact-scene accuracy of greedy captions on n test and n novel images, and blind.

    Blind: the captions of other images are held against the scenes. What that scores is chance.
    """
    print(f"greedy captions, exact scenes   {'all':>7}{'one object':>13}{'two objects':>13}")
    for split in ("test", "novel"):
        items = load_split(folder, split)[:n]
        scenes = [world.from_json(x["scene"]) for x in items]
        feats = image_features_of(model, items, device)
        captions = [c for i in range(0, len(items), batch) for c in model.generate(feats[i:i + batch], beam=1)]
        half = len(items) // 2
        results = {split: exact(captions, scenes)}
        if split == "test":
            results["test, other images"] = exact(captions[half:] + captions[:half], scenes)
        for name, r in results.items():
            print(f"  {name:20}{len(items):>8,}  " + "".join(f"{100 * v:>11.1f} %" for v in r.values()))
