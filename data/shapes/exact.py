"""How many captions of the shapes world are exact: they name every object, and nothing wrong."""

import numpy as np

from data.features import image_features_of
from data.shapes import world
from data.tasks import load_split


def exact_columns(captions, scenes):
    """{which scenes: (n,)}: 1 for an exact caption, 0 for another, NaN where the scene is not one
    of these. Which: "all", "one object", "two objects"."""
    right = np.array([world.is_exact(c, s) for c, s in zip(captions, scenes)], float)
    objects = np.array([len(s) for s in scenes])
    return {"all": right, "one object": np.where(objects == 1, right, np.nan),
            "two objects": np.where(objects == 2, right, np.nan)}


def scenes_of(items):
    """The scenes of a dataset of the shapes world, None for any other dataset."""
    try:
        return [world.from_json(item["scene"]) for item in items]
    except (KeyError, TypeError):
        return None


def report_exact(model, folder, device, n, batch=250):
    """Prints the exact-scene accuracy of greedy captions on n test and n novel images, and blind.

    Blind: the captions are compared with the scenes of other images. What that scores is chance.
    """
    print(f"greedy captions, exact scenes   {'all':>7}{'one object':>13}{'two objects':>13}")
    for split in ("test", "novel"):
        items = load_split(folder, split)[:n]
        if split == "test" and len(items) < n:
            print(f"  (--score {n:,}, but there are {len(items):,} test images)")
        scenes, feats = scenes_of(items), image_features_of(model, items, device)
        captions = [caption for i in range(0, len(items), batch)
                    for caption in model.generate(feats[i:i + batch], beam=1)]
        rows, half = {split: captions}, len(items) // 2
        if split == "test":
            rows["test, other images"] = captions[half:] + captions[:half]
        for name, texts in rows.items():
            columns = exact_columns(texts, scenes).values()
            shares = [np.nansum(c) / max(1, np.sum(~np.isnan(c))) for c in columns]
            print(f"  {name:20}{len(items):>8,}  " + "".join(f"{100 * s:>11.1f} %" for s in shares))
