"""Draws the shapes datasets: pictures with captions, and the world's other tasks.

    python data/shapes/prepare.py       # data/shapes: captions (train.py does this by itself)
    python data/shapes/prepare.py vqa entail refer regions

One line an item in {train,val,test,novel}.jsonl; "scene" is the exact truth behind the picture:

    {"id": 0, "image": "images/train/00000.png", "captions": ["a small red circle", ...],
     "scene": [...]}

and in place of the captions:

    vqa      "question": "is there a star?", "answers": {"no": 1}
    entail   "hypothesis": "there is a star", "label": "contradiction"
    refer    "expression": "the star", "box": [x, y, w, h], "proposals": [[x, y, w, h], ...]
    regions  "captions": ["the star is in red", ...] of crowded pictures, some Things marked with a
             box of that colour, many texts each and no "scene": what Visual Genome's region
             descriptions are to COCO's captions

Boxes are in pixels.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.common import write_meta, write_split
from data.shapes import texts, world
from data.shapes.drawing import render
from lib.cli import UserError, opt, parse, run

TASKS = ("caption", "vqa", "entail", "refer", "regions")
IMAGES = {"train": 8000, "val": 1000, "test": 1000, "novel": 500}  # how many of each split
# Times as many training pictures for regions: texts on 8,000 crowds are learnt by heart. On clean
# pictures of refer the colour was then named right in 56 %, with three times as many in 88.
CROWDS = 3
EMPTY = 0.02  # of the training pictures show nothing, and their captions say so


@dataclass
class Config:
    task: list = opt(["caption"], f"some of {', '.join(TASKS)}", positional=True)
    seed: int = opt(1337, "of scenes, tints and words; the splits do not depend on it")
    out: str = opt("", "folder; empty: data/shapes for captions, data/shapes/TASK for the others")


def scene_items(task, scene, rng):
    """The items that one scene gives for a task, without id, image and scene."""
    if task == "caption":
        return [{"captions": world.captions(scene, rng)}]
    if task == "vqa":
        return [{"question": q, "answers": {a: 1}} for q, a in texts.questions(scene, rng)[:3]]
    if task == "entail":
        return [{"hypothesis": h, "label": label}
                for h, label in texts.hypotheses(scene, rng)[:3]]
    if task == "regions":
        return [{"captions": texts.descriptions(scene, rng)}]
    i = rng.randrange(len(scene))
    expression = texts.expression(scene, i, rng)
    boxes = [t.box for t in scene]
    while len(boxes) < 6:  # distractors: boxes with no Thing of their own
        w = 2 * world.radius_of(rng.choice(list(world.SIZES)), rng)
        x, y = (round(rng.uniform(0, world.SIDE - w), 1) for _ in "xy")
        boxes.append([x, y, w, w])
    return [{"expression": expression, "box": scene[i].box,
             "proposals": rng.sample(boxes, len(boxes))}]


def scene_size(task, split, rng):
    """How many Things the next scene of a task has."""
    if task == "refer":
        return rng.randint(3, 7)
    if task == "regions":  # some with few Things: who is meant is learnt there first
        return rng.randint(1, 6) if split == "train" else rng.randint(3, 7)
    if task == "caption" and split == "train" and rng.random() < EMPTY:
        return 0
    # Training has more pairs: they are what has to be learnt.
    return rng.choice((1, 2, 2, 2) if split == "train" else (1, 2))


def images_of(task):
    """How many pictures of each split a task has."""
    return IMAGES | ({"train": CROWDS * IMAGES["train"]} if task == "regions" else {})


def prepare(task, folder, seed=1337):
    """Writes one task's splits and pictures into a folder."""
    for split, n in images_of(task).items():
        rng = random.Random(f"{task} {split} {seed}")
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        items = []
        for i in range(n):
            scene = world.sample_from(rng, scene_size(task, split, rng), (split,))
            image = f"images/{split}/{i:05}.png"
            if task == "regions":  # some are marked: "the star is in red" is then true of that
                scene = world.marked(scene, rng, often=0.95, shares=(0.3, 0.7))
            strays = rng.randint(0, 1) if task == "regions" else 0
            render(scene, rng, strays).save(folder / image, compress_level=1)
            truth = {} if task == "regions" else {"scene": world.to_json(scene)}
            items += [{"id": len(items) + j, "image": image, **item, **truth}
                      for j, item in enumerate(scene_items(task, scene, rng))]
        write_split(folder, split, items)
    write_meta(folder, {"task": task, "images": images_of(task), "seed": seed})


def main(config):
    for task in config.task:
        if task not in TASKS:
            raise UserError(f"there is no task {task}: {', '.join(TASKS)}")
        folder = Path(config.out) if config.out else HERE / task if task != "caption" else HERE
        prepare(task, folder, config.seed)
        counts = ", ".join(f"{n:,} {split} images" for split, n in images_of(task).items())
        print(f"{task}: {counts} in {folder}")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
