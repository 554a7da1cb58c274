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

import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from cli import UserError, opt, parse, run
from data.common import (check_images, clean, extract, list_images, need_room, relative,
                         write_meta, write_split)

COCO = "http://images.cocodataset.org/zips/"
KARPATHY = "http://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
FILES = {  # what weights.download is told of each
    "caption_datasets.zip": {
        "urls": KARPATHY, "size": 36_745_453,
        "sha256": "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817"},
    "train2014.zip": {"urls": f"{COCO}train2014.zip", "size": 13_510_573_713,
                      "md5": "0da8c0bd3d6becc4dcb32757491aca88"},
    "val2014.zip": {"urls": f"{COCO}val2014.zip", "size": 6_645_013_297,
                    "md5": "a3d79f5ed8d289b7a7554ce06a5782b3"}}
FOLDERS = ("train2014", "val2014")
# pitfall: restval is the part of val2014 that nobody validates on. Who forgets it trains on 82,783
# images instead of 113,287, and compares with people who did not.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
COUNTS = {"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)}


@dataclass
class Config:
    images: str = opt("", "folder with train2014/ and val2014/; empty: data/coco")
    karpathy: str = opt("", "Karpathy's dataset_coco.json; empty: the one in the folder of images")
    out: str = opt("", "folder for the result; empty: data/coco")
    download: bool = opt(False, "fetch what is missing (20 GB) into the folder of images")
    partial: bool = opt(False, "a part of COCO will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, many minutes; leave out those that are damaged")


def read_karpathy(path):
    """The list of images in Karpathy's JSON, in its own form:

    {"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg", "cocoid": 42,
     "split": "restval", "sentences": [{"raw": "A shoe. ", "sentid": 7, ...}, ...], ...}
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; fetch {KARPATHY} (37 MB) and unpack its "
                        "dataset_coco.json there, or run with --download") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: damaged or cut off ({e}); delete it, then unpack it again from "
                        f"{KARPATHY} or run with --download") from e
    name = data.get("dataset") if isinstance(data, dict) else None
    if name != "coco" or not isinstance(data.get("images"), list):
        what = f"describes the dataset {name}" if name not in (None, "coco") else "has another form"
        raise UserError(f"{path}: not Karpathy's dataset_coco.json, it {what}; the right one is "
                        f"in {KARPATHY}")
    return data["images"]


def make_items(path, images):
    """{split: items} from Karpathy's images, and {what: how many} were left out. An item's "image"
    begins with train2014/ or val2014/ wherever these folders lie."""
    splits = {split: [] for split in COUNTS}
    skipped = {"repeated sentids": 0}
    for number, image in enumerate(images):
        try:
            # By sentid, not by text: people did write the same caption twice for one image.
            captions = {s["sentid"]: clean(s["raw"]) for s in image["sentences"]}
            skipped["repeated sentids"] += len(image["sentences"]) - len(captions)
            item = {"id": image["cocoid"], "image": f"{image['filepath']}/{image['filename']}",
                    "captions": list(captions.values()), "cocoid": image["cocoid"]}
            split = image["split"]
            if image["filepath"] not in FOLDERS or split not in SPLITS:
                raise ValueError(f"{item['image']} in split {split!r}")
        except KeyError as e:
            raise UserError(f"{path}: images[{number}] has no {e}; unpack the file again from "
                            f"{KARPATHY}") from e
        except (TypeError, AttributeError, ValueError) as e:
            raise UserError(f"{path}: images[{number}] has another form than COCO's ({e}); unpack "
                            f"the file again from {KARPATHY}") from e
        splits[SPLITS[split]].append(item)
    return splits, skipped


def assert_counts(path, splits):
    """UserError unless the splits have the sizes that every paper reports."""
    for split, items in splits.items():
        found = len(items), sum(len(item["captions"]) for item in items)
        if found != COUNTS[split]:
            raise UserError("{}: {} has {:,} images with {:,} captions instead of {:,} with {:,}; "
                            "if only a part of COCO is meant, add --partial"
                            .format(path, split, *found, *COUNTS[split]))


def fetch(name, folder, wanted):
    """Downloads one of FILES into folder, and unpacks the members that are wanted."""
    from weights import download  # here, since it needs torch, and nothing else in this file does

    path, size = folder / name, FILES[name]["size"]
    part = path.with_name(f"{name}.part")
    if not path.exists():  # room for the zip and for what is in it, which is hardly any smaller
        need_room(folder, 2 * size - (part.stat().st_size if part.exists() else 0))
    extract(download(path=path, **FILES[name]), folder, wanted)


def present(folder, partial):
    """The images that lie in folder, as {"train2014/NAME.jpg", ...}."""
    found = set()
    for name in FOLDERS:
        if (folder / name).is_dir():
            found |= {f"{name}/{image}" for image in list_images(folder / name)}
        elif not partial:
            url = FILES[f"{name}.zip"]["urls"]
            raise UserError(f"{folder / name}: no such folder; unpack {url} into {folder}, or "
                            "run with --download, or name another folder with --images")
    return found


def fetch_images(folder, splits):
    """Downloads each of the two zips, unless all images of its folder are there."""
    wanted = {item["image"] for items in splits.values() for item in items}
    for name in FOLDERS:
        there = present(folder, partial=True)
        if any(image.startswith(f"{name}/") for image in wanted - there):
            fetch(f"{name}.zip", folder, wanted)


def leave_out(splits, keep):
    """Removes in place the items for which keep(item) is false, and returns them."""
    gone = [item for items in splits.values() for item in items if not keep(item)]
    for items in splits.values():
        items[:] = filter(keep, items)
    return gone


def keep_present(folder, splits, partial):
    """Leaves out the images that are not in folder, and returns their number. Without partial a
    missing image is an error."""
    there = present(folder, partial)
    missing = leave_out(splits, lambda item: item["image"] in there)
    if missing and not partial:
        raise UserError(f"{folder / missing[0]['image']} is missing, the first of "
                        f"{len(missing):,}; --download fetches them, --partial does without")
    if not any(splits.values()):
        raise UserError(f"{folder}: none of the {len(missing):,} images is there; it must hold "
                        "train2014/ and val2014/")
    if missing:
        print(f"{folder}: {len(missing):,} images are missing and left out (--partial)")
    return len(missing)


def keep_sound(folder, splits):
    """Leaves out the images that cannot be decoded, and returns {image: what is wrong}."""
    # pitfall: some mirrors hold a damaged train2014/COCO_train2014_000000167126.jpg.
    paths = [folder / item["image"] for items in splits.values() for item in items]
    wrong = {path.relative_to(folder).as_posix(): problem
             for path, problem in check_images(paths).items()}
    leave_out(splits, lambda item: item["image"] not in wrong)
    for image, problem in wrong.items():
        print(f"{image}: damaged and left out ({problem})")
    return wrong


def drop_empty(splits):
    """Takes empty captions out, then images that have none left. Returns both numbers."""
    captions = 0
    for items in splits.values():
        for item in items:
            captions += item["captions"].count("")
            item["captions"] = [text for text in item["captions"] if text]
    return captions, len(leave_out(splits, lambda item: item["captions"]))


def report(meta, out):
    """Prints the counts, and how many were left out and why."""
    for split, images in meta["images"].items():
        captions = meta["captions"][split]
        print(f"{split:5} {images:7,} images {captions:8,} captions -> {out / split}.jsonl")
    gone = {what: n if isinstance(n, int) else len(n) for what, n in meta["skipped"].items()}
    if any(gone.values()):
        print("left out: " + ", ".join(f"{n:,} {what}" for what, n in gone.items() if n))


def main(config):
    folder = Path(config.images or HERE).expanduser()
    out = Path(config.out or HERE).expanduser()
    karpathy = Path(config.karpathy or folder / "dataset_coco.json").expanduser()
    if config.download and not karpathy.exists():
        fetch("caption_datasets.zip", karpathy.parent, {"dataset_coco.json"})
    splits, skipped = make_items(karpathy, read_karpathy(karpathy))
    if not config.partial:  # before anything is left out, and before 20 GB are fetched
        assert_counts(karpathy, splits)
    if config.download:
        fetch_images(folder, splits)
    skipped["missing images"] = keep_present(folder, splits, config.partial)
    skipped["empty captions"], skipped["images without captions"] = drop_empty(splits)
    skipped["damaged images"] = keep_sound(folder, splits) if config.check else {}

    prefix = {name: relative(folder / name, out) for name in FOLDERS}
    for split, items in splits.items():
        for item in items:
            name, image = item["image"].split("/", 1)
            item["image"] = f"{prefix[name]}/{image}"
        write_split(out, split, items)
    meta = {"task": "caption", "images": {split: len(items) for split, items in splits.items()},
            "captions": {split: sum(len(item["captions"]) for item in items)
                         for split, items in splits.items()},
            "source": {"images": COCO, "splits": KARPATHY}, "skipped": skipped}
    write_meta(out, meta)
    report(meta, out)
    zips = [karpathy.parent / "caption_datasets.zip", *(folder / f"{name}.zip" for name in FOLDERS)]
    zips = [str(path) for path in zips if path.exists()]
    if config.download and zips:
        print(f"no longer needed, may be deleted: {', '.join(zips)}")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
