"""Draws the shapes datasets: pictures with captions, and the world's other tasks.

    python data/shapes/prepare.py                # data/shapes: captions (train.py does this by itself)
    python data/shapes/prepare.py vqa entail refer regions

One line an item in {train,val,test,novel}.jsonl; "scene" is the exact truth behind the picture:

    {"id": 0, "image": "images/train/00000.png", "captions": ["a small red circle", ...], "scene": [...]}
    vqa:     {"id": 0, "image": ..., "question": "is there a star?", "answers": {"no": 1}, "scene": [...]}
    entail:  {"id": 0, "image": ..., "hypothesis": "there is a star", "label": "contradiction", "scene": [...]}
    refer:   {"id": 0, "image": ..., "expression": "the star", "box": [x, y, w, h], "proposals": [...], ...}
    regions: {"id": 0, "image": ..., "captions": ["the star is in red", ...]}, crowds as in refer, many texts each:
             what Visual Genome's region descriptions are to COCO's captions

Boxes are in pixels. "names_colour" tells whether a referring expression mentions a colour.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.common import write_meta, write_split
from data.shapes import world
from lib.cli import UserError, opt, parse, run

TASKS = ("caption", "vqa", "entail", "refer", "regions")
IMAGES = {"train": 8000, "val": 1000, "test": 1000, "novel": 500}  # how many of each split


@dataclass
class Config:
    task: list = opt(["caption"], f"some of {', '.join(TASKS)}", positional=True)
    seed: int = opt(1337, "of scenes, tints and words; the splits do not depend on it")
    out: str = opt("", "folder; empty: data/shapes for captions, data/shapes/TASK for the others")


def texts(task, scene, rng):
    """The items that one scene gives for a task, without id and image."""
    if task == "caption":
        return [{"captions": world.captions(scene, rng)}]
    if task == "vqa":
        return [{"question": q, "answers": {a: 1}} for q, a in world.questions(scene, rng)[:3]]
    if task == "entail":
        return [{"hypothesis": h, "label": label} for h, label in world.hypotheses(scene, rng)[:3]]
    if task == "regions":
        return [{"captions": world.descriptions(scene, rng)}]
    i = rng.randrange(len(scene))
    said = world.expression(scene, i, rng)
    boxes = [t.box for t in scene]
    while len(boxes) < 6:  # distractors: boxes with no Thing of their own
        w = 2 * rng.choice(list(world.SIZES.values()))
        boxes.append([round(rng.uniform(0, world.SIDE - w), 1), round(rng.uniform(0, world.SIDE - w), 1), w, w])
    return [{"expression": said, "box": scene[i].box, "proposals": rng.sample(boxes, len(boxes)),
             "names_colour": any(c in said.split() for c in world.COLOURS)}]


def things(task, split, rng):
    """How many Things the next scene of a task has. One or two in captions; training has more of the
    pairs, which are what has to be learnt."""
    return rng.randint(3, 7) if task in ("refer", "regions") else rng.choice((1, 2, 2, 2) if split == "train" else (1, 2))


def prepare(task, folder, seed=1337):
    """Writes one task's splits and pictures into a folder and returns the number of images per split."""
    counts = {}
    for split, n in IMAGES.items():
        rng = random.Random(f"{task} {split} {seed}")
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        items = []
        for i in range(n):
            scene = world.sample_from(rng, things(task, split, rng), (split,))
            image = f"images/{split}/{i:05}.png"
            world.render(scene, rng).save(folder / image, compress_level=1)
            truth = {} if task == "regions" else {"scene": world.to_json(scene)}  # what exact captions are measured by
            items += [{"image": image, **item, **truth} for item in texts(task, scene, rng)]
        write_split(folder, split, [{"id": i, **item} for i, item in enumerate(items)])
        counts[split] = n
    write_meta(folder, {"task": task, "images": counts, "seed": seed})
    return counts


def main(config):
    for task in config.task:
        if task not in TASKS:
            raise UserError(f"there is no task {task}: {', '.join(TASKS)}")
        folder = Path(config.out) if config.out else HERE if task == "caption" else HERE / task
        counts = prepare(task, folder, config.seed)
        print(f"{task}: " + ", ".join(f"{n:,} {split} images" for split, n in counts.items()) + f" in {folder}")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
