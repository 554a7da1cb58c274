"""Prepares Visual Genome's region descriptions as captions, to train on before COCO.

    python data/visual_genome/prepare.py --download   # fetches 15.3 GB; 31 GB disk, 2 GB memory
    python data/visual_genome/prepare.py --folder path/to/visual_genome

The folder holds region_descriptions.json, image_data.json, VG_100K/, VG_100K_2/, and Karpathy's
dataset_coco.json and dataset_flickr30k.json. Written are {train,val}.jsonl, one line an image, and
meta.json with the counts:

    {"id": 1, "image": "VG_100K_2/1.jpg", "captions": ["the clock is green", "..."]}

Of 108,077 images with 5.4 million phrases, about 50 an image, left out and reported are

    * images that are in val or test of the Karpathy splits, of COCO (by coco_id) or of Flickr30k
      (by flickr_id): about half of Visual Genome's images are COCO's, and a test image that was
      trained on is no test;
    * phrases that an image has already, but for capitals and a full stop;
    * the four images that are published damaged.

A phrase describes a part of the image; its box is not kept. val holds the images whose id is
divisible by 100, about one in a hundred.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import escapes, fetch_zip
from data.common import (KARPATHY, assert_sizes, clean, fetch_images, karpathy_splits, keep_usable,
                         published_form, unique, write_captions)
from lib.cli import opt, parse, run
from lib.files import read_json, user_path

SITE = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/"
STANFORD = "https://cs.stanford.edu/people/rak248/VG_100K_2/"
# No hashes are published. A zip has a checksum for each of its members, and unpacking looks at it.
TEXTS = {"image_data.json": {"urls": f"{SITE}image_data.json.zip", "size": 1_780_854},
         "region_descriptions.json": {"urls": f"{SITE}region_descriptions.json.zip",
                                      "size": 127_377_968}}
IMAGES = {"VG_100K": {"urls": f"{STANFORD}images.zip", "size": 9_731_705_982},
          "VG_100K_2": {"urls": f"{STANFORD}images2.zip", "size": 5_471_658_058}}
HELD_OUT = ("dataset_coco.json", "dataset_flickr30k.json")  # Karpathy's
# Too short a list of what is held out would let test images through, and nobody would notice.
COUNTS = {"region_descriptions.json": 108_077, "val and test of dataset_coco.json": 10_000,
          "val and test of dataset_flickr30k.json": 2_014}

DAMAGED = {1592, 1722, 4616, 4617}  # ids; everybody who works with scene graphs leaves them out


@dataclass
class Config:
    folder: str = opt("", "folder with the files named above; empty: data/visual_genome")
    out: str = opt("", "folder for the result; empty: data/visual_genome")
    download: bool = opt(False, "fetch what is missing (15.3 GB) into that folder")
    partial: bool = opt(False, "a part of Visual Genome will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, many minutes; leave out those that are damaged")


def held_out(folder):
    """{"coco_id": ids, "flickr_id": ids}, as text, of the images in Karpathy's val and test."""
    id_of = {"coco": lambda image: str(image["cocoid"]),
             "flickr30k": lambda image: Path(image["filename"]).stem}
    ids = {}
    for name, key in (("coco", "coco_id"), ("flickr30k", "flickr_id")):
        splits, _ = karpathy_splits(folder / f"dataset_{name}.json", name, lambda image: {
            "id": id_of[name](image), "image": image["filename"]})
        ids[key] = {item["id"] for item in splits["val"] + splits["test"]}
    return ids


def read(path, **more):
    """One of the two JSON files, a list with an entry an image; more goes to json.loads."""
    data = read_json(path, f"fetch {TEXTS[path.name]['urls']} and unpack it there, or run with "
                           "--download", **more)
    if not isinstance(data, list):
        raise TypeError(f"{type(data).__name__} in place of a list")
    return data


def published(path):
    """published_form for one of the two."""
    url = TEXTS[path.name]["urls"]
    return published_form(path, "Visual Genome's", f"unpack it again from {url}")


def make_items(folder, secret):
    """{split: items} and what was left out of them, {why: names}, from

    image_data           [{"image_id": 1, "url": "https://.../VG_100K_2/1.jpg", "coco_id": null,
                           "flickr_id": null, ...}, ...]
    region_descriptions  [{"id": 1, "regions": [{"phrase": "the clock is green", ...}, ...]}, ...]
    """
    splits = {"train": [], "val": []}
    taken, damaged, repeated, names, secret_names = [], [], [], {}, set()
    with published(folder / "image_data.json"):
        for image in read(folder / "image_data.json"):
            name = "/".join(image["url"].split("/")[-2:])  # only the address tells the folder
            if escapes(name):
                raise ValueError(f"the address {image['url']}")
            names[image["image_id"]] = name
            if any(str(image[key]) in ids for key, ids in secret.items()):
                secret_names.add(name)
    with published(folder / "region_descriptions.json"):
        # A region becomes its phrase while it is read: 5.4 million dictionaries take 4 GB more.
        for entry in read(folder / "region_descriptions.json",
                          object_hook=lambda d: d.get("phrase", d)):
            name = names[entry["id"]]
            if name in secret_names:
                taken.append(name)
                continue
            if entry["id"] in DAMAGED:
                damaged.append(name)
                continue
            phrases = [clean(phrase or "") for phrase in entry["regions"]]
            captions = unique(phrases)
            repeated += [name] * (len(phrases) - len(captions))
            splits["train" if entry["id"] % 100 else "val"].append(
                {"id": entry["id"], "image": name, "captions": captions})
    return splits, {"images in Karpathy's val and test": taken, "repeated phrases": repeated,
                    "images published damaged": damaged}


def main(config):
    folder = user_path(config.folder or HERE)
    out = user_path(config.out or HERE)
    if config.download:
        if not all((folder / name).exists() for name in HELD_OUT):
            fetch_zip(folder / "caption_datasets.zip", set(HELD_OUT), **KARPATHY)
        for name, file in TEXTS.items():
            if not (folder / name).exists():
                fetch_zip(folder / f"{name}.zip", {name}, **file)
    secret = held_out(folder)
    splits, skipped = make_items(folder, secret)
    if not config.partial:  # before 15 GB are fetched
        taken = skipped["images in Karpathy's val and test"]
        taken = taken + skipped["images published damaged"]
        found = [[*splits["train"], *splits["val"], *taken], secret["coco_id"], secret["flickr_id"]]
        assert_sizes(folder, dict(zip(COUNTS, found)), COUNTS, "images")
    if config.download:
        fetch_images(folder, splits, IMAGES)
    keep_usable(splits, skipped, folder, config, "unpack images.zip and images2.zip from "
                f"{STANFORD} into {folder}, or run with --download")
    write_captions(splits, skipped, folder, out,
                   source={"images": STANFORD, "captions": SITE, "held out": KARPATHY["urls"]})


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
