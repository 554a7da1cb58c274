"""Prepares ScienceQA: questions of school science with choices, half of them with a picture.

    python data/scienceqa/prepare.py --download
    python data/scienceqa/prepare.py --folder path/to/scienceqa

The folder holds problems.json, pid_splits.json and images/{train,val,test}/. Written are
{train,val,test}.jsonl, one line a question, and meta.json with the counts:

    {"id": "1", "image": "images/train/1/image.png", "question": "Which is north?",
     "choices": ["A hill", "B"], "answers": {"B": 1},
     "hint": "", "lecture": "Maps ...", "solution": "To find ..."}

    split         images  questions
    train          6,218     12,726
    val            2,097      4,241
    test           2,017      4,241

"image" is null for a question without a picture; "hint" is a text that belongs to the question;
"lecture" and "solution" explain the answer. The answer is the letter of the right choice.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import escapes
from data.common import (assert_sizes, clean, fetch_images, images_of, keep_usable, published_form,
                         write_items)
from lib.cli import opt, parse, run
from lib.files import read_json, user_path
from weights.download import download

SITE = "https://raw.githubusercontent.com/lupantech/ScienceQA/main/data/scienceqa/"
ZIPS = "https://scienceqa.s3.us-west-1.amazonaws.com/images/"
FILES = ("problems.json", "pid_splits.json")
IMAGES = {split: {"urls": f"{ZIPS}{split}.zip"} for split in ("train", "val", "test")}
COUNTS = {"train": 12_726, "val": 4_241, "test": 4_241}
PICTURES = {"train": 6_218, "val": 2_097, "test": 2_017}


@dataclass
class Config:
    folder: str = opt("", "folder with problems.json, pid_splits.json and images/; empty: "
                          "data/scienceqa")
    out: str = opt("", "folder for the result; empty: data/scienceqa")
    download: bool = opt(False, "fetch what is missing into that folder")
    partial: bool = opt(False, "a part of ScienceQA will do: leave out questions whose picture is "
                               "missing")
    check: bool = opt(False, "decode every image, a minute; leave out those that are damaged")


def describe(key, split, problem):
    """One of the problems as an item; its image is relative to the folder of images.

    {"question": "Which is north?", "choices": ["A hill", "B"], "answer": 1,
     "image": "image.png" or null, "hint": "", "lecture": "Maps ...", "solution": "To find", ...}
    """
    # image.png; of a question whose choices are pictures it may be choice_0.png.
    name = problem["image"]
    item = {"id": key, "image": f"{split}/{key}/{name}" if name else None,
            "question": clean(problem["question"]),
            "choices": [clean(choice) for choice in problem["choices"]],
            **{part: clean(problem[part]) for part in ("hint", "lecture", "solution")}}
    if name and escapes(item["image"]) or not 0 <= problem["answer"] < len(item["choices"]):
        raise ValueError(f"the problem {key}")
    return item | {"answers": {chr(ord("A") + problem["answer"]): 1}}


def main(config):
    folder = user_path(config.folder or HERE)
    out = user_path(config.out or HERE)
    if config.download:
        for name in FILES:  # no hashes are published; the counts are checked below
            download(f"{SITE}{name}", folder / name)
    problems, ids = (read_json(folder / name, f"fetch {SITE}{name} and put it there, or run with "
                               "--download") for name in FILES)
    with published_form(f"{folder}: {' or '.join(FILES)}", "ScienceQA's",
                        f"fetch them again from {SITE}"):
        splits = {split: [describe(key, split, problems[key]) for key in ids[split]]
                  for split in COUNTS}
    if not config.partial:
        assert_sizes(folder, splits, COUNTS, "questions")
        pictures = {split: images_of({split: items}) for split, items in splits.items()}
        assert_sizes(folder, pictures, PICTURES, "pictures")
    images = folder / "images"
    if config.download:
        fetch_images(images, splits, IMAGES)
    skipped = {}
    keep_usable(splits, skipped, images, config, "unpack train.zip, val.zip and test.zip from "
                f"{ZIPS} into {images}, or run with --download")
    write_items(splits, skipped, images, out, "scienceqa", "questions",
                source={"images": ZIPS, "questions": SITE})


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
