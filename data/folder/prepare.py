"""Prepares your own photos with captions.

    python data/folder/prepare.py path/to/photos
    python train.py --dataset path/to/photos

The captions come from one of these files in the folder, or from another that --captions names:

    captions.jsonl    {"image": "garden/dog.jpg", "caption": "a dog asleep"},
                      or "captions": ["...", "..."]
    captions.tsv      garden/dog.jpg<TAB>a dog asleep         nothing is quoted
    none of them      the file names: "a_red_car_2.jpg" -> "a red car"; IMG_1234.jpg of a camera
                      and COCO_val2014_000000000042.jpg say nothing

An image may have several lines. Written into the folder (or --out) are {train,val}.jsonl, with
--test test.jsonl too, and meta.json. A hash of the file's name decides on the split, so a photo
stays in its split when others join it (only a folder so small that none falls to val lends it one).
"""

import hashlib
import io
import json
import os
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.common import clean, keep_usable, relative, unique, write_captions
from lib.cli import UserError, opt, parse, printable, run
from lib.files import IMAGES, open_file, plain_errors, user_path

MADE_BY = "data/folder/prepare.py"
# Words of which alone no caption is made.
CAMERA = {"img", "imag", "dsc", "dscn", "dscf", "dcim", "pxl", "gopr", "mvimg", "pano", "burst",
          "wa", "whatsapp", "signal", "fb", "image", "photo", "picture", "screenshot", "scan",
          "untitled", "frame", "file", "coco", "flickr", "vg", "vizwiz", "openimages"}
SPLITS = {"train", "val", "test"}  # as in COCO_val2014_...; a train alone may be one


@dataclass
class Config:
    folder: list = opt([], "the folder with your photos", positional=True)
    captions: str = opt("", "file with the captions, .jsonl or .tsv; empty: the one in the folder")
    out: str = opt("", "folder for the result; empty: the folder with the photos")
    val: float = opt(0.05, "share of the images to validate on; at least one image")
    test: float = opt(0.0, "share of the images to test on")
    partial: bool = opt(True, "leave out lines whose image is missing")
    check: bool = opt(True, "decode every image; leave out those that are damaged")


def find_images(folder):
    """The images in folder and below it, {name in NFC: name on the disk}, without hidden ones."""
    # pitfall: a Mac writes an accent as a character of its own (NFD), lists of captions rarely do.
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            # pitfall: ._a.jpg is no picture but what a Mac leaves beside a.jpg on a foreign disk.
            if Path(name).suffix.lower() in IMAGES and not name.startswith("."):
                name = Path(parent, name).relative_to(folder).as_posix()
                found[unicodedata.normalize("NFC", name)] = name
    return dict(sorted(found.items()))


def find(name, folder, images):
    """The image that a list of captions means by name, as it is called on the disk; else name."""
    name = unicodedata.normalize("NFC", name.strip().removeprefix("./"))
    end = name if name in images else name.replace("\\", "/")
    if re.match(r"/|[A-Za-z]:/", end):
        if os.path.exists(end):
            return relative(end, folder)
        # A path from another computer: what it ends in may be here.
        while end not in images and "/" in end:
            end = end.split("/", 1)[1]
    return images.get(end, name)


def read_captions(path, folder, images):
    """{name of an image: its captions} from a .jsonl or .tsv file. UserError names the line."""
    captions = {}
    try:
        # pitfall: Notepad begins a file with a byte-order mark; utf-8-sig skips it.
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                if path.suffix == ".jsonl":
                    name, texts = parse_json(line, f"{path} line {number}")
                else:
                    name, tab, text = line.partition("\t")
                    if not tab:
                        raise UserError(f"{path} line {number}: no tab between name and caption")
                    texts = [text]
                captions.setdefault(find(name, folder, images), []).extend(map(clean, texts))
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not written in UTF-8 ({e.reason} at byte {e.start}); save it as "
                        "UTF-8") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    return captions


def parse_json(line, where):
    """Name and captions in a line of captions.jsonl."""
    form = '{"image": "dog.jpg", "caption": "a dog"} or "captions": ["a dog", "..."]'
    try:
        entry = json.loads(line)
        name = entry["image"]
        texts = entry["captions"] if "captions" in entry else [entry["caption"]]
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in [name, *texts]):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{where}: not of the form {form}") from e
    return name, texts


def from_name(name):
    """ "garden/a_red_car_2.jpg" -> "a red car"; "" for a name that only a camera can have given."""
    words = clean(re.sub(r"[_\-.+]+", " ", Path(name).stem))
    words = re.sub(r"[\s\d()]+$", "", words)  # the number of a photo, or " (2)" of a copy
    said = set(re.findall(r"[^\W\d_]+", words.casefold()))
    return "" if said & CAMERA and said <= CAMERA | SPLITS else words


def place(name):
    """A number in 0..1 that depends on the image's name alone."""
    name = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
    return int(hashlib.sha256(name).hexdigest()[:13], 16) / 16**13


def split(items, shares):
    """{split: items} by place; shares {"val": 0.05, "test": 0}. What is left is for training."""
    splits = {"train": []} | {name: [] for name, share in shares.items() if share}
    for item in items:
        at = place(item["id"])
        name = "val" if at < shares["val"] else "test" if at < sum(shares.values()) else "train"
        splits[name].append(item)
    for name, chosen in splits.items():  # of a small folder at least one
        if not chosen and len(splits["train"]) > 1:
            chosen.append(min(splits["train"], key=lambda item: place(item["id"])))
            splits["train"].remove(chosen[0])
    if not all(splits.values()):
        raise UserError(f"{len(items)} images with captions are too few for {', '.join(splits)}")
    return splits


def refuse_foreign(out):
    """UserError if out holds files that were not written by this script: they would be lost."""
    try:
        with open_file(out / "meta.json") as f:
            ours = json.loads(f.read())["source"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    for name in ("train.jsonl", "val.jsonl", "test.jsonl", "meta.json"):
        if os.path.lexists(path := out / name) and not ours:
            raise UserError(f"{path}: not written by this script, and would be overwritten; move "
                            "it away, or choose another folder with --out")


def captions_of(config, folder, images):
    """{name of an image: its captions}, and what was left out, {why: names}."""
    lists = [folder / name for name in ("captions.jsonl", "captions.tsv")]
    lists = [path for path in lists if os.path.lexists(path)]
    lists = [user_path(config.captions)] if config.captions else lists
    if len(lists) > 1:
        raise UserError(f"{folder}: holds captions.jsonl and captions.tsv; name one with "
                        "--captions")
    if lists:
        captions = read_captions(lists[0], folder, images)
        skipped = {"images that no line names": [name for name in images.values()
                                                 if name not in captions]}
    else:
        captions, skipped = captions_of_names(folder, images), {}
    skipped["repeated captions"] = [name for name, texts in captions.items()
                                    for _ in texts[len(unique(texts)):]]
    return captions, skipped


def captions_of_names(folder, images):
    """{name of an image: [its caption]}, where the files' names are all there is. UserError where
    they say nothing, or where a list of captions is there that we cannot read."""
    if not images:
        raise UserError(f"{folder}: no image in there or below ({', '.join(IMAGES)})")
    with plain_errors(folder):
        others = sorted(p.name for p in folder.iterdir() if p.stem.casefold() == "captions")
    if others:
        raise UserError(f"{folder / others[0]}: captions are read from captions.tsv (name, tab, "
                        "caption) or captions.jsonl: save them as one of these")
    captions = {name: [from_name(name)] for name in images.values()}
    if len(said := {text for text, in captions.values() if text}) < min(2, len(images)):
        raise UserError(f"{folder}: no captions.jsonl or captions.tsv, and the files' names, such "
                        f"as {Path(next(iter(images))).name}, say " + (
                            f"{said.pop()!r} of every image" if said else "nothing"))
    print(f"{folder}: no captions.jsonl or captions.tsv, the names of the files become captions")
    return captions


def main(config):
    if len(config.folder) != 1:
        raise UserError("name the folder with your photos: python data/folder/prepare.py "
                        "path/to/photos")
    if not (config.val > 0 and config.test >= 0 and config.val + config.test < 1):
        raise UserError(f"--val {config.val} --test {config.test}: shares of the images are "
                        "wanted, such as 0.05, that leave some for training")
    folder = user_path(config.folder[0])
    out = user_path(config.out or folder)
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    refuse_foreign(out)
    images = find_images(folder)
    captions, skipped = captions_of(config, folder, images)
    usable = {"photos": [{"id": name, "image": name, "captions": unique(texts)}
                         for name, texts in sorted(captions.items())]}
    keep_usable(usable, skipped, folder, config, f"{len(images):,} others are")
    splits = split(usable["photos"], {"val": config.val, "test": config.test})
    write_captions(splits, skipped, folder, out, source=MADE_BY)
    if "test" not in splits:  # pitfall: one from an earlier run may hold what is in train now
        (out / "test.jsonl").unlink(missing_ok=True)
    example = splits["train"][0]
    print(f"for example {printable(example['image'])}: {example['captions'][0]!r}")
    print(f'next: python train.py --dataset "{out}"')


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
