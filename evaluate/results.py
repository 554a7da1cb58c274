"""Results on disk: captions in COCO's format, scores as JSON, and a contact sheet for a look."""

import json
import re
from pathlib import Path

import numpy as np

from data.shapes.exact import exact_columns, scenes_of
from data.tasks import task_of
from lib.cli import UserError, note
from lib.files import read_json, replacing, write_json
from lib.pictures import captioned, open_image

SHEET = 16  # pictures on a contact sheet: the better half of them the best, the others the worst


def read_captions(path, items):
    """The captions of a results file, in the order of the items.

    UserError unless it is a list as in expected below, with exactly one caption for every item.
    """
    expected = 'expected [{"image_id": 42, "caption": "a dog"}, ...]'
    found = read_json(Path(path), expected)
    if not isinstance(found, list):
        raise UserError(f"{path}: not a list; {expected}")
    texts = {}
    for i, entry in enumerate(found):
        if not (isinstance(entry, dict) and "image_id" in entry
                and isinstance(entry.get("caption"), str)):
            raise UserError(f"{path}: entry {i} is {json.dumps(entry)[:60]}; {expected}")
        if str(entry["image_id"]) in texts:
            raise UserError(f"{path}: two captions for image_id {entry['image_id']}")
        texts[str(entry["image_id"])] = entry["caption"]
    ids = [str(item["id"]) for item in items]
    for what, wrong in (("no caption for", set(ids) - set(texts)),
                        ("no such image:", set(texts) - set(ids))):
        if wrong:
            raise UserError(f"{path}: {what} image_id {min(wrong)}, and {len(wrong) - 1:,} more; "
                            f"there are {len(ids):,} images to be scored")
    return [texts[i] for i in ids]


def short_names(paths):
    """A name for each path: its last part, or all of it where that is not unique."""
    def short(path):
        if path.suffix == ".safetensors":  # out/a/last.safetensors
            return f"{path.resolve().parent.name}/{path.stem}"
        return path.stem if path.suffix == ".json" else path.resolve().name

    names = [short(Path(path)) for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths)]


def beside(path, name):
    """scores.json, a -> scores-a.json"""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
    return Path(path).with_name(f"{Path(path).stem}-{name}{Path(path).suffix}")


def write_results(path, dataset, config, items, texts, scores, each):
    """Writes the scores as one file, and for every row a plain results file beside it.

    texts {row: one text an item}, scores {row: {metric: (score, low, high)}}, each {row: the
    score (n,) of every item, or None}.
    """
    questions = task_of(items[0]) != "captions"
    result = {"dataset": dataset, "split": config.split,
              "questions" if questions else "images": len(items), "unit": "x 100"}
    if not questions:
        result["tokenizer"] = "stanford" if config.official else "ours"
        if not config.captions:
            decoding = ("beam", "length_penalty", "max_new_tokens", "prompt")
            result |= {name: getattr(config, name) for name in decoding}
    result["rows"] = []
    id_key, text_key = ("question_id", "answer") if questions else ("image_id", "caption")
    for name in texts:
        ids = [item["id"] for item in items]
        of_items = {} if each[name] is None else {
            str(i): float(100 * value) for i, value in zip(ids, each[name])}
        result["rows"].append({
            "name": name, "answers" if questions else "captions": beside(path, name).name,
            "scores": {metric: dict(zip(("score", "low", "high"), values))
                       for metric, values in scores[name].items()},
            "accuracy" if questions else "cider_d": of_items})
        with replacing(beside(path, name)) as f:
            lines = [{id_key: i, text_key: text} for i, text in zip(ids, texts[name])]
            f.write(json.dumps(lines, indent=0).encode() + b"\n")
        note(f"{beside(path, name)} is written")
    write_json(path, result)


def unlike(order, captions, n):
    """The first n of order whose captions have at most three words of five in common with any
    before, then the first of the others."""
    found, words = [], [set(captions[i].split()) for i in order]
    for i, own in enumerate(words):
        if all(len(own & words[j]) <= 0.6 * len(own | words[j]) for j in found[:n]):
            found.append(i)
    found += [i for i in range(len(order)) if i not in set(found)]
    return [order[i] for i in found[:n]]


def contact_sheet(items, captions, cider, scores, title):
    """A picture of the best and the worst images: by their CIDEr-D (n,), but of the shapes world,
    where it is known what is true, those with a wrong caption are the worst, whatever it says."""
    scenes = scenes_of(items)
    exact = exact_columns(captions, scenes)["all"] if scenes else np.zeros(len(cider))
    order = np.lexsort((-cider, -exact)).tolist()
    half = min(SHEET // 2, -(-len(order) // 2))
    best = unlike(order[:max(half, len(order) // 2)], captions, half)
    worst = [i for i in order[::-1] if i not in best][:min(SHEET // 2, len(order) - half)]
    cell = lambda i: (open_image(items[i]["image"]), f"CIDEr-D {100 * cider[i]:.0f}",
                      f"image {Path(str(items[i]['id'])).name}", captions[i], items[i]["captions"])
    top = [(name, f"{value:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}")
           for name, (value, low, high) in scores.items()]
    return captioned(title, top, {"best": map(cell, best), "worst": map(cell, worst)})
