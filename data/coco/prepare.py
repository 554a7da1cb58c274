"""Prepares COCO captions with the Karpathy splits, on which captioners are compared.

    python data/coco/prepare.py --download            # 20 GB to fetch, 40 GB of disk
    python data/coco/prepare.py --images path/to/coco --karpathy path/to/dataset_coco.json

The folder of images holds train2014/ and val2014/. Written are {train,val,test}.jsonl, one line an
image, and meta.json with the counts:

    {"id": 42, "image": "val2014/COCO_val2014_000000000042.jpg",
     "captions": ["A shoe.", "..."], "cocoid": 42}

    split         images  captions
    train        113,287   566,747   Karpathy's train and restval
    val            5,000    25,010
    test           5,000    25,010

Captions keep their capitals and full stops: a recipe or a scorer that wants other text makes it
from this one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import fetch_zip
from data.common import (KARPATHY, assert_counts, fetch_images, karpathy_splits, keep_usable,
                         write_captions)
from lib.cli import opt, parse, run
from lib.files import user_path

COCO = "http://images.cocodataset.org/zips/"
IMAGES = {"train2014": {"urls": f"{COCO}train2014.zip", "size": 13_510_573_713,
                        "md5": "0da8c0bd3d6becc4dcb32757491aca88"},
          "val2014": {"urls": f"{COCO}val2014.zip", "size": 6_645_013_297,
                      "md5": "a3d79f5ed8d289b7a7554ce06a5782b3"}}
COUNTS = {"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)}


@dataclass
class Config:
    images: str = opt("", "folder with train2014/ and val2014/; empty: data/coco")
    karpathy: str = opt("", "Karpathy's dataset_coco.json; empty: the one in the folder of images")
    out: str = opt("", "folder for the result; empty: data/coco")
    download: bool = opt(False, "fetch what is missing (20 GB) into the folder of images")
    partial: bool = opt(False, "a part of COCO will do: leave out images that are missing")
    # pitfall: some mirrors hold a damaged train2014/COCO_train2014_000000167126.jpg.
    check: bool = opt(False, "decode every image, many minutes; leave out those that are damaged")


def describe(image):
    """An item without captions from one of Karpathy's images."""
    return {"id": image["cocoid"], "image": f"{image['filepath']}/{image['filename']}",
            "cocoid": image["cocoid"]}


def main(config):
    folder = user_path(config.images or HERE)
    out = user_path(config.out or HERE)
    karpathy = user_path(config.karpathy or folder / "dataset_coco.json")
    if config.download and not karpathy.exists():
        fetch_zip(karpathy.parent / "caption_datasets.zip", {"dataset_coco.json"}, **KARPATHY)
    splits, skipped = karpathy_splits(karpathy, "coco", describe)
    if not config.partial:  # before anything is left out, and before 20 GB are fetched
        assert_counts(karpathy, splits, COUNTS)
    if config.download:
        fetch_images(folder, splits, IMAGES)
    keep_usable(splits, skipped, folder, config,
                f"unpack train2014.zip and val2014.zip from {COCO} into {folder}, or run with "
                "--download, or name another folder with --images")
    write_captions(splits, skipped, folder, out,
                   source={"images": COCO, "splits": KARPATHY["urls"]})


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
