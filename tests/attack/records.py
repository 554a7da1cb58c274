"""Lines of train.jsonl of every task, with one place in one of them changed, read as train.py,
evaluate and evaluate.pointing read them; and the other files of a dataset: answers.json, meta.json,
boxes, masks."""

import contextlib
import functools
import io
import json
import os
import types

import torch
from PIL import Image

from clip_vit import CLIPViT
from data.batches import Batches, load_entries
from data.boxes import boxes_of, load_boxes
from data.features import cached_features
from data.folder import prepare
from data.masks import iou, mask_of
from data.tasks import answer_vocabulary, condition, load_split
from evaluate.regions import hits_of, load_expressions
from gpt2 import GPT2
from lib.cli import UserError
from lib.devices import Processes
from prompts import paint
from tests.attack.mutate import ODD, damage, damage_json
from tests.attack.watch import ROOT

ALONE = Processes("cpu")
CASES = 5000
GOOD = {
    "captions": {"id": 1, "image": "a.png", "captions": ["a small red circle", "a red circle"]},
    "question": {"id": 2, "image": "a.png", "question": "is there a star?",
                 "answers": {"yes": 8, "no": 2}, "raw_answers": ["yes"] * 8 + ["no"] * 2},
    "blind": {"id": "x", "image": None, "question": "which?", "choices": ["a", "b"],
              "answers": {"A": 1}, "hint": "h", "lecture": "l", "solution": "s"},
    "hypothesis": {"id": 3, "image": "a.png", "hypothesis": "there is a star", "label": "neutral"},
    "expression": {"id": 4, "image": "a.png", "expression": "the star", "box": [1, 2, 10, 10],
                   "proposals": [[1, 2, 10, 10], [20, 20, 12.5, 9]],
                   "masks": [[[1, 1, 9, 1, 9, 9]], {"size": [32, 32], "counts": [100, 50, 874]}]}}
VALUES = (*ODD, "word " * 3000, "/dev/zero", "a\0b", "\ufeff", "\U0001f600" * 50, "<|endoftext|>",
          ["\ud800"], [""], ["a", 5], {"yes": 0}, {"yes": 10**400}, {"yes": True}, {"\ud800": 1},
          {"": 1}, [1, 2, 3], [0] * 4, [-5, -5, 1, 1], [1e308] * 4, ["a"] * 4, [None] * 4,
          [[1, 2, 3, 4]] * 200, [{"size": [32, 32]}], [{"size": [32, 32], "counts": "abc"}],
          [[["a"]]], [[[1, 2]]], {"size": [32, 32], "counts": [10**400]})
MORE = ("domain", "scene", "split", "extra")


@functools.cache
def models():
    return (CLIPViT.from_pretrained(ROOT / "data/shapes/tiny-clip"),
            GPT2.from_pretrained(ROOT / "data/shapes/tiny-gpt2").tokenizer)


def line(rng, task):
    """(a spoilt line as bytes, what was done)."""
    item, kind = json.loads(json.dumps(GOOD[task])), rng.choice(
        "value value value value json json add drop raw deep twice two other".split())
    key = rng.choice([*item])
    if kind == "value":
        item[key] = rng.choice(VALUES)
    elif kind == "json":
        item, kind = damage_json(item, rng)
    elif kind == "add":
        item[rng.choice([k for good in GOOD.values() for k in good] + [*MORE])] = rng.choice(VALUES)
    elif kind == "drop":
        del item[key]
    elif kind == "other":
        item = GOOD[rng.choice([*GOOD])]
    text = json.dumps(item, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    if kind == "raw":
        text = damage(text, rng)[0].replace(b"\n", b" ")
    elif kind == "deep":
        n = rng.choice((400, 990, 100_000))
        text = text[:-1] + b', "%s": ' % key.encode() + b"[" * n + b"]" * n + b"}"
    elif kind == "twice":
        text = text[:-1] + b", " + json.dumps({key: rng.choice(VALUES)})[1:].encode()
    return text * (2 if kind == "two" else 1), f"{kind} {key}"


def through_training(folder, task, soft, cached):
    vit, tokenizer = models()
    entries, facts = load_entries(folder, 3)
    answers = facts["answers"]() if task in ("question", "hypothesis") and soft else ()
    config = types.SimpleNamespace(batch=3, rows=2, max_tokens=20, accumulate=1, seed=1)
    for split, some in entries.items():
        feats = cached_features(vit, some, folder, split, ALONE) if cached else None
        data = Batches(some, tokenizer, config, vit.image_size, feats, None, answers, soft, 128)
        for step in range(2):
            if isinstance(batch := data[step], str):
                raise UserError(batch)
            assert all(torch.isfinite(micro.targets.float()).all() for micro in batch)


def through_evaluation(folder, task):
    items = load_split(folder, "test")
    if task != "expression":
        return [condition(item) for item in items]
    items = load_expressions(folder, "test")
    hits_of(items)
    for item in items:
        image = Image.new("RGB", (32, 32))
        masks = [mask_of(mask, image.size) for mask in item.get("masks", ())]
        for region in (item["box"], *item["proposals"][:9], *masks[:9]):
            paint(image, region, (240, 0, 30))


def line_case(rng, folder):
    models()  # their time is not the case's
    task, split = rng.choice([*GOOD]), rng.choice(("train", "val", "test"))
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    good = [json.dumps(GOOD[task] | {"id": 100 + n}).encode() for n in range(4)]
    bad, kind = line(rng, task)
    at = rng.choice((0, 0, 1, 4))
    for name in ("train", "val", "test"):
        lines = good[:at] + [bad] + good[at:] if name == split else good
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    if kind.startswith("drop") and rng.random() < 0.2:
        os.mkfifo(folder / "b.png")
        (folder / "a.png").rename(folder / "c.png")
        (folder / "b.png").rename(folder / "a.png")
    soft, cached = rng.random() < 0.5, rng.random() < 0.3
    call = ((lambda: through_evaluation(folder, task)) if split == "test" or task == "expression"
            else lambda: through_training(folder, task, soft, cached))
    return f"{task} {split} line {at + 1} {kind}", call


FILES = {"answers.json": ["yes", "no"], "boxes.json": {"a.png": [[1, 2, 10, 10]]},
         "list.json": [[1, 2, 10, 10], [20, 20, 12.5, 9]], "meta.json": {"source": prepare.MADE_BY},
         "mask": GOOD["expression"]["masks"][1], "polygons": GOOD["expression"]["masks"][0],
         "letters": {"size": [32, 32], "counts": "T3n0"}, "overlap": [[1, 2, 3, 4], [2, 2, 9, 0]]}


def file_case(rng, folder):
    """One of the other files, changed anywhere: a JSON of odd values, damaged, deep, or no file."""
    name = rng.choice([*FILES])
    path, (value, kind) = folder / name, damage_json(FILES[name], rng)
    if rng.random() < 0.2:
        value, kind = rng.choice(VALUES), "value"
    if name in ("mask", "polygons", "letters"):
        return f"{name} {kind}", lambda: mask_of(value, (32, 32))
    path.write_text(json.dumps(value))
    if (other := rng.random()) < 0.3:
        path.write_bytes(damage(path.read_bytes(), rng)[0])
    elif other < 0.4:
        path.write_bytes(rng.choice((b"[", b'{"a":', b'{"source":')) * rng.choice((990, 200_000)))
    elif other < 0.5:
        path.unlink()
        rng.choice((os.mkfifo, os.mkdir, lambda p: p.symlink_to(p), lambda p: None))(path)
    return f"{name} {kind}", lambda: read_file(path)


def read_file(path):
    if path.name == "answers.json":
        answer_vocabulary(path.parent, [])
    elif path.name == "meta.json":
        for name, colour in (("a red dog.png", "red"), ("a blue cat.png", "blue")):
            Image.new("RGB", (8, 8), colour).save(path.parent / name)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare.main(prepare.Config(folder=[str(path.parent)]))
    else:
        boxes = boxes_of(load_boxes(path), "a.png", (32, 32))
        iou(boxes[0], boxes[-1])


def case(rng, folder):
    return (line_case if rng.random() < 0.8 else file_case)(rng, folder)


case.patience = 100  # seconds: others may want the processor, too
