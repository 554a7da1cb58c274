"""Prepares GQA: questions made from scene graphs of Visual Genome's images, with one right answer.

    python data/gqa/prepare.py --download     # 23 GB to fetch, 46 GB of disk, 3 GB of memory
    python data/gqa/prepare.py --folder path/to/gqa

The folder holds {train,val,testdev}_balanced_questions.json and images/. Written are
{train,val,test-dev}.jsonl, one line a question, answers.json and meta.json with the counts:

    {"id": "05515938", "image": "images/2412112.jpg", "question": "Is the cup left of the plate?",
     "answers": {"yes": 1}}

    split         images  questions
    train         72,140    943,000   the balanced questions, as in all papers
    val           10,234    132,062
    test-dev         398     12,578   what papers report

answers.json lists the 1,843 answers to choose from, the most frequent first: 1,842 occur in train
and val, and one in test-dev alone.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import escapes, fetch_zip
from data.common import (assert_sizes, clean, fetch_images, keep_usable, published_form,
                         write_answers, write_items)
from lib.cli import opt, parse, run
from lib.files import read_json, user_path

SITE = "https://downloads.cs.stanford.edu/nlp/data/gqa/"
# No hashes are published. A zip has a checksum for each of its members, and unpacking looks at it.
QUESTIONS = f"{SITE}questions1.2.zip"  # 1.4 GB, with the unbalanced questions
IMAGES = {"images": {"urls": f"{SITE}images.zip", "size": 21_817_965_542}}
FILES = {"train": "train_balanced_questions.json", "val": "val_balanced_questions.json",
         "test-dev": "testdev_balanced_questions.json"}
COUNTS = {"train": 943_000, "val": 132_062, "test-dev": 12_578}
ANSWERS = {"answers.json": 1_843}


@dataclass
class Config:
    folder: str = opt("", "folder with the questions and images/; empty: data/gqa")
    out: str = opt("", "folder for the result; empty: data/gqa")
    download: bool = opt(False, "fetch what is missing (23 GB) into that folder")
    partial: bool = opt(False, "a part of GQA will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, many minutes; leave out those that are damaged")


def read(path):
    """The items of one of the JSON files:

    {"05515938": {"imageId": "2412112", "question": "Is the ...?", "answer": "yes", ...}, ...}
    """
    hint = f"fetch {QUESTIONS} (1.4 GB) and unpack its {path.name} there, or run with --download"

    def item(d):
        # A question becomes its item while it is read: all else takes several GB more.
        return {"image": f"images/{d['imageId']}.jpg", "question": clean(d["question"]),
                "answers": {clean(d["answer"]): 1}} if "imageId" in d else d

    with published_form(path, "GQA's", f"delete it, then {hint}"):
        data = read_json(path, hint, object_hook=item)
        # pitfall: all ids are texts: "05515938" is not 5515938, and images are called n161313, too.
        items = [{"id": key, **value} for key, value in data.items()]
        if bad := next((x for x in items if "image" not in x or escapes(x["image"])), None):
            raise ValueError(f"the question {bad['id']}")
    return items


def main(config):
    folder = user_path(config.folder or HERE)
    out = user_path(config.out or HERE)
    if config.download and not all((folder / name).exists() for name in FILES.values()):
        fetch_zip(folder / "questions1.2.zip", set(FILES.values()), QUESTIONS)
    splits = {split: read(folder / name) for split, name in FILES.items()}
    given = Counter(answer for items in splits.values() for item in items
                    for answer in item["answers"])
    answers = [answer for answer, _ in given.most_common()]
    if not config.partial:  # before 20 GB are fetched
        assert_sizes(folder, splits, COUNTS, "questions")
        assert_sizes(folder, {"answers.json": answers}, ANSWERS, "answers")
    if config.download:
        fetch_images(folder, splits, IMAGES)
    skipped = {}
    keep_usable(splits, skipped, folder, config,
                f"unpack images.zip (22 GB) from {SITE} into {folder}, or run with --download")
    write_answers(out, answers)
    write_items(splits, skipped, folder, out, "vqa", "questions", answers=len(answers),
                source={"images": SITE, "questions": QUESTIONS})


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
