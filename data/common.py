"""What the prepare scripts share; tasks.py describes what they write. Each of them

    fetches the published files, if it is told to      archives.py, fetch_images
    makes items of them: {split: [item, ...]}          clean, published_form, karpathy_splits
    compares their number with the papers'             assert_counts, assert_sizes
    takes out what training could not use              keep_usable
    writes the splits and meta.json                    write_items
"""

import contextlib
import json
import os
import posixpath
import re
import unicodedata
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path

from data.archives import escapes, fetch_zip
from lib.cli import UserError, printable
from lib.files import progress, read_json, replacing, write_json
from lib.images import check_image

# ---------------------------------------------------------------------------- text and JSON

# What cannot be seen and is no white space: control characters, byte-order marks, zero-width
# spaces, soft hyphens, marks of the writing direction, and halves of a character (lone surrogates),
# which cannot be written as UTF-8. pitfall: the zero-width joiners U+200C and U+200D are not among
# them: they hold emoji and Persian words together.
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e"
                       "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def clean(text):
    """Without what cannot be seen and white space at the ends, one space in place of any other run
    of it; accents joined to their letters (NFC), as a Mac does not write them."""
    return " ".join(unicodedata.normalize("NFC", INVISIBLE.sub("", text)).split())


def unique(captions):
    """The captions without those that an earlier one equals but for capitals and a full stop."""
    first = {}
    for text in captions:
        first.setdefault(text.casefold().rstrip(" ."), text)
    return list(first.values())


@contextlib.contextmanager
def published_form(where, whose, hint):
    """Around code that takes JSON to have its published form: UserError if it has another. It
    begins with where and ends in hint, which says how to get the right file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError,
            RecursionError) as e:
        what = f"no {e}" if isinstance(e, KeyError) else f"{type(e).__name__}: {e}"
        raise UserError(f"{where}: has another form than {whose} ({what}); {hint}") from e


# ---------------------------------------------------------------------------- Karpathy's splits

# One zip holds dataset_coco.json and dataset_flickr30k.json; what download is told of it.
KARPATHY = {"urls": "http://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
            "size": 36_745_453,
            "sha256": "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817"}
# pitfall: restval is the part of COCO's val2014 that nobody validates on. Who forgets it trains on
# 82,783 images instead of 113,287, and compares with people who did not.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read_karpathy(path, dataset):
    """The list of images in Karpathy's JSON, in its own form; Flickr30k's have no filepath and
    cocoid:

    {"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg", "cocoid": 42,
     "split": "restval", "sentences": [{"raw": "A shoe. ", "sentid": 7, ...}, ...], ...}
    """
    data = read_json(path, f"fetch {KARPATHY['urls']} (37 MB) and unpack its "
                           f"dataset_{dataset}.json there, or run with --download")
    name = data.get("dataset") if isinstance(data, dict) else None
    if name != dataset or not isinstance(data.get("images"), list):
        other = name not in (None, dataset)
        what = f"describes the dataset {name}" if other else "has another form"
        raise UserError(f"{path}: not Karpathy's dataset_{dataset}.json, it {what}; the right one "
                        f"is in {KARPATHY['urls']}")
    return data["images"]


def karpathy_splits(path, dataset, describe):
    """{split: items} and what was left out of them, {why: names}. describe(image) gives back an
    item without its captions; its "image" is relative to the folder of images."""
    splits = {split: [] for split in SPLITS.values()}
    skipped = {"repeated sentids": []}
    hint = f"unpack the file again from {KARPATHY['urls']}"
    for number, image in enumerate(read_karpathy(path, dataset)):
        with published_form(f"{path}: images[{number}]", "the published", hint):
            # By sentid, not by text: people did write the same caption twice for one image.
            captions = {s["sentid"]: clean(s["raw"]) for s in image["sentences"]}
            item = describe(image) | {"captions": list(captions.values())}
            if escapes(item["image"]) or image["split"] not in SPLITS:
                raise ValueError(f"{item['image']} in split {image['split']!r}")
        skipped["repeated sentids"] += [item["image"]] * (len(image["sentences"]) - len(captions))
        splits[SPLITS[image["split"]]].append(item)
    return splits, skipped


# ---------------------------------------------------------------------------- numbers


def assert_sizes(path, found, sizes, what):
    """UserError unless found, {name: items}, are as many as every paper reports, {name: number}."""
    wrong = [f"{len(items):,} {what} instead of {sizes[name]:,} in {name}"
             for name, items in found.items() if len(items) != sizes[name]]
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)}; if only a part is meant, add --partial")


def assert_counts(path, splits, counts):
    """As assert_sizes, for captions: counts is {split: (images, captions)}."""
    for split, items in splits.items():
        images, captions = len(items), sum(len(item["captions"]) for item in items)
        if (images, captions) != counts[split]:
            raise UserError(f"{path}: {split} has {images:,} images with {captions:,} captions "
                            "instead of {:,} with {:,}; if only a part is meant, add --partial"
                            .format(*counts[split]))


# ---------------------------------------------------------------------------- images


def images_of(splits):
    """The names of all images in {split: items}, as a set; items may share one, or have none."""
    return {item["image"] for items in splits.values() for item in items} - {None}


def list_images(folder):
    """The names in a folder as a set: one look at the folder, not one at each of 100,000 files.
    UserError if there is no such folder."""
    try:
        return set(os.listdir(folder))
    except OSError as e:
        raise UserError(f"{folder}: cannot be read as a folder ({e.strerror or e})") from e


def present(folder, splits):
    """Those of the splits' images that lie in folder, as a set of their names."""
    images, there = images_of(splits), set()
    for parent in {posixpath.dirname(image) for image in images}:
        if (folder / parent).is_dir():
            there |= {posixpath.join(parent, name) for name in list_images(folder / parent)}
    return images & there


def fetch_images(folder, splits, zips):
    """Downloads those zips of which an image is missing. zips: {folder in the zip: what download
    is told}."""
    wanted = images_of(splits)
    missing = wanted - present(folder, splits)
    for inside, file in zips.items():
        if any(image.startswith(f"{inside}/") for image in missing):
            fetch_zip(folder / file["urls"].split("/")[-1], wanted, **file)


def check_images(paths):
    """Decodes all images, one thread a core, with progress. Returns {path: what is wrong}."""
    show, wrong = progress("checking images", len(paths)), {}
    # Threads do, since Pillow decodes outside of Python's lock.
    with warnings.catch_warnings(), ThreadPool() as pool:
        warnings.simplefilter("ignore")
        for done, (path, problem) in enumerate(zip(paths, pool.imap(check_image, paths)), 1):
            if problem:
                wrong[path] = problem
            show(done)
    return wrong


# ---------------------------------------------------------------------------- items, to the end


def leave_out(splits, keep):
    """Removes in place the items for which keep(item) is false. Returns their images' names."""
    gone = [item["image"] for items in splits.values() for item in items if not keep(item)]
    for items in splits.values():
        items[:] = filter(keep, items)
    return gone


def drop_empty(splits):
    """Takes empty captions out, then images that have none left. Returns {why: images' names}."""
    empty = []
    for items in splits.values():
        for item in items:
            empty += [item["image"]] * item["captions"].count("")
            item["captions"] = [text for text in item["captions"] if text]
    return {"empty captions": empty,
            "images without captions": leave_out(splits, lambda item: item["captions"])}


def keep_usable(splits, skipped, folder, config, hint):
    """Takes out of {split: items} what training could not use, and notes it in skipped, {why:
    names}: images that do not lie in folder, empty captions, and with config.check what cannot be
    decoded. Without config.partial a missing image is a UserError; hint says where the images come
    from."""
    usable = present(folder, splits) | {None}
    missing = list(dict.fromkeys(leave_out(splits, lambda item: item["image"] in usable)))
    skipped["missing images"] = missing
    if missing and not config.partial:
        raise UserError(f"{folder / missing[0]} is missing, the first of {len(missing):,}; {hint}, "
                        "or do without them: --partial")
    if not any(splits.values()):
        raise UserError(f"{folder}: none of the {len(missing):,} images is there; {hint}")
    if any("captions" in item for items in splits.values() for item in items):
        skipped |= drop_empty(splits)
    if config.check:
        images = {folder / item["image"]: item["image"] for items in splits.values()
                  for item in items if item["image"] is not None}
        wrong = {images[path]: problem for path, problem in check_images([*images]).items()}
        leave_out(splits, lambda item: item["image"] not in wrong)
        skipped["damaged images"] = [f"{image} ({problem})" for image, problem in wrong.items()]
    if not any(splits.values()):
        raise UserError(f"{folder}: no image is left; " + ", ".join(
            f"{len(names):,} {why}" for why, names in skipped.items() if names))


def relative(path, folder):
    """path as it is written into a line of folder: relative if it lies in there, else absolute.
    With forward slashes, which every system reads."""
    # pitfall: Path.resolve would follow a link in the folder to a big disk out of the folder.
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


# A clone may lie where one may not write.
ELSEWHERE = "choose another folder with --out, and train with --dataset and its path"


def write_split(folder, name, items):
    """Writes items as folder/name.jsonl, whole or not at all."""
    with replacing(Path(folder) / f"{name}.jsonl", ELSEWHERE) as f:
        f.writelines(json.dumps(item).encode() + b"\n" for item in items)


def write_answers(folder, answers):
    """Writes the answers to choose from as folder/answers.json."""
    with replacing(Path(folder) / "answers.json", ELSEWHERE) as f:
        f.write(json.dumps(answers, indent=0).encode() + b"\n")


def write_meta(folder, meta):
    """Writes the task, the counts and what else is worth knowing as folder/meta.json."""
    write_json(Path(folder) / "meta.json", meta, ELSEWHERE, quiet=True)


def write_items(splits, skipped, folder, out, task, unit, **meta):
    """Writes {split: items} of the images in folder and meta.json to out, and says how much there
    is and what was left out. unit: what an image has several of, "captions" or "questions"."""
    images = {split: images_of({split: items}) for split, items in splits.items()}
    counts = {split: sum(len(item.get("captions", (1,))) for item in items)
              for split, items in splits.items()}
    width = max(len(split) for split in ("train", *splits))
    for split, items in splits.items():
        places = {image: relative(folder / image, out) for image in images[split]}
        write_split(out, split, (item | {"image": places.get(item["image"])} for item in items))
        print(f"{split:{width}} {len(images[split]):7,} images {counts[split]:9,} {unit} -> "
              f"{out / split}.jsonl")
    for why, names in skipped.items():
        if names:
            first = ", ".join(printable(name) for name in [*dict.fromkeys(names)][:3])
            more = ", ..." if len(set(names)) > 3 else ""
            print(f"left out: {len(names):,} {why}: {first}{more}")
    left_out = {why: {"count": len(names), "first": names[:100]} for why, names in skipped.items()}
    counted = {split: len(names) for split, names in images.items()}
    write_meta(out, {"task": task, "images": counted, unit: counts, "skipped": left_out} | meta)


def write_captions(splits, skipped, folder, out, **meta):
    """write_items for captions."""
    write_items(splits, skipped, folder, out, "caption", "captions", **meta)
