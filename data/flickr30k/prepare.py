"""Prepares Flickr30k captions with the Karpathy splits.

    python data/flickr30k/prepare.py --download     # the captions (37 MB), not the images
    python data/flickr30k/prepare.py --images path/to/flickr30k-images \\
        --karpathy path/to/dataset_flickr30k.json

The images (4.4 GB) are given out against a form and are not fetched. Written are
{train,val,test}.jsonl, one line an image, and meta.json with the counts:

    {"id": 1000092795, "image": "images/1000092795.jpg", "captions": ["A shoe.", "..."]}

    split         images  captions
    train         29,000   145,000
    val            1,014     5,070
    test           1,000     5,000

The id is the photo's number at Flickr, and so its file name. Of 31,783 images 769 are in no split.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import fetch_zip
from data.common import KARPATHY, assert_counts, karpathy_splits, keep_usable, write_captions
from lib.cli import opt, parse, run
from lib.files import user_path

FORM = "https://shannon.cs.illinois.edu/DenotationGraph/"
# Public, but nobody states its size or hash: whoever uses it does so knowingly, and uses --check.
COPY = "https://storage.googleapis.com/allennlp-public-data/snli-ve/flickr30k_images.tar.gz"
COUNTS = {"train": (29_000, 145_000), "val": (1_014, 5_070), "test": (1_000, 5_000)}


@dataclass
class Config:
    images: str = opt("", "folder with the .jpg files; empty: data/flickr30k/images")
    karpathy: str = opt("", "Karpathy's dataset_flickr30k.json; empty: the one in data/flickr30k")
    out: str = opt("", "folder for the result; empty: data/flickr30k")
    download: bool = opt(False, "fetch the captions, if they are missing (37 MB; not the images)")
    partial: bool = opt(False, "a part of Flickr30k will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, some minutes; leave out those that are damaged")


def describe(image):
    """An item without captions from one of Karpathy's images."""
    return {"id": int(Path(image["filename"]).stem), "image": image["filename"]}


def main(config):
    folder = user_path(config.images or HERE / "images")
    out = user_path(config.out or HERE)
    karpathy = user_path(config.karpathy or HERE / "dataset_flickr30k.json")
    if config.download and not karpathy.exists():
        fetch_zip(karpathy.parent / "caption_datasets.zip", {"dataset_flickr30k.json"}, **KARPATHY)
    splits, skipped = karpathy_splits(karpathy, "flickr30k", describe)
    if not config.partial:
        assert_counts(karpathy, splits, COUNTS)
    keep_usable(splits, skipped, folder, config,
                f"fill in the form at {FORM} (or take the copy {COPY}), unpack the .tar.gz (4.4 "
                f"GB), and move its .jpg files into {folder} or name their folder with --images")
    write_captions(splits, skipped, folder, out,
                   source={"images": FORM, "splits": KARPATHY["urls"]})


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
