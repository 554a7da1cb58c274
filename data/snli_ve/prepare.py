"""Prepares SNLI-VE: does a sentence follow from an image of Flickr30k, contradict it, or neither?

    python data/snli_ve/prepare.py --download          # the sentences; the images are Flickr30k's
    python data/snli_ve/prepare.py --folder path/to/snli_ve --images path/to/flickr30k-images

The folder holds snli_ve_{train,dev,test}.jsonl, packed (.gz) or not; data/flickr30k/prepare.py says
where the images come from. Written are {train,val,test}.jsonl, one line a sentence, answers.json
with the three labels, and meta.json with the counts:

    {"id": "4705552913.jpg#2r1n", "image": ".../flickr30k/images/4705552913.jpg",
     "hypothesis": "A man is outside.", "label": "neutral"}

    split         images  hypotheses
    train         29,783     529,527
    val            1,000      17,858   their dev
    test           1,000      17,901

The three labels are equally frequent. Lines on which the annotators did not agree, with the label
"-", are left out; in the published files there are none. About 9 % of the labels are wrong, as the
authors say.
"""

import gzip
import json
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import escapes
from data.common import assert_sizes, clean, keep_usable, published_form, write_answers, write_items
from lib.cli import UserError, opt, parse, run
from lib.files import open_file, user_path
from weights.download import download

SITE = "https://github.com/necla-ml/SNLI-VE"  # links to files on Google Drive
COPY = "https://storage.googleapis.com/allennlp-public-data/snli-ve/"
FILES = {"train": "snli_ve_train.jsonl", "val": "snli_ve_dev.jsonl", "test": "snli_ve_test.jsonl"}
COUNTS = {"train": 529_527, "val": 17_858, "test": 17_901}
ANSWERS = ["entailment", "neutral", "contradiction"]


@dataclass
class Config:
    folder: str = opt("", "folder with snli_ve_train.jsonl, ...; empty: data/snli_ve")
    images: str = opt("", "folder with Flickr30k's .jpg files; empty: data/flickr30k/images")
    out: str = opt("", "folder for the result; empty: data/snli_ve")
    download: bool = opt(False, "fetch the sentences, if they are missing (not the images)")
    partial: bool = opt(False, "a part of SNLI-VE will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, some minutes; leave out those that are damaged")


def describe(row):
    """One line as an item."""
    image, label = row.get("Flickr30K_ID") or row["Flikr30kID"], row["gold_label"]  # both occur
    if label not in ANSWERS or escapes(f"{image}.jpg"):
        raise ValueError(f"the label {label!r} for the image {image}")
    return {"id": row["pairID"], "image": f"{image}.jpg", "hypothesis": clean(row["sentence2"]),
            "label": label}


def read(path):
    """(items, ids of what has no label) from path or path.gz, one line a sentence:

    {"Flickr30K_ID": "4705552913", "gold_label": "neutral", "sentence2": "A man is outside.",
     "pairID": "4705552913.jpg#2r1n", "sentence1": "a caption of the image", ...}
    """
    items, undecided = [], []
    packed = path.with_name(f"{path.name}.gz")
    opened = path if os.path.exists(path) else packed
    fetch = f"fetch {COPY}{packed.name} (or follow the links at {SITE})"
    try:
        with open_file(opened) as file, gzip.open(file) if opened == packed else file as f:
            for number, line in enumerate(f, 1):
                with published_form(f"{opened} line {number}", "SNLI-VE's", fetch):
                    row = json.loads(line)
                    if row["gold_label"] == "-":
                        undecided.append(row["pairID"])
                    else:
                        items.append(describe(row))
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; {fetch} and put it there, or run with "
                        "--download") from e
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{opened}: cannot be read, or is cut off ({e}); delete it and fetch it "
                        "again") from e
    return items, undecided


def main(config):
    folder = user_path(config.folder or HERE)
    images = user_path(config.images or HERE.parent / "flickr30k/images")
    out = user_path(config.out or HERE)
    splits, skipped = {}, {"sentences without a label": []}
    for split, name in FILES.items():
        if config.download and not (folder / name).exists():
            # No size or hash is published; the counts are checked below.
            download(f"{COPY}{name}.gz", folder / f"{name}.gz")
        splits[split], undecided = read(folder / name)
        skipped["sentences without a label"] += undecided
    if not config.partial:
        assert_sizes(folder, splits, COUNTS, "sentences")
    keep_usable(splits, skipped, images, config, "python data/flickr30k/prepare.py --download says "
                "where the images come from, and --images names their folder")
    write_answers(out, ANSWERS)
    write_items(splits, skipped, images, out, "entail", "hypotheses", answers=len(ANSWERS),
                source={"sentences": SITE})


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
