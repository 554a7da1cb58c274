"""What the prepare scripts share, and how train.py, sample.py and evaluate.py read their result.

A prepared dataset is a folder with one file a split, one line an item:

    data/coco/val.jsonl   {"id": 42, "image": "val2014/COCO_val2014_000000000042.jpg",
                           "captions": ["A shoe.", "..."], "cocoid": 42}
    data/coco/meta.json   {"task": "caption", "images": {"train": 113287, ...}, ...}

A question without a picture has "image": null. answers.json, where it is there, lists the answers to
choose from.

The first half finds and reads such a folder, the second half is for those who write one.
"""

import difflib
import json
import os
import re
import shutil
import unicodedata
import warnings
import zipfile
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lib.cli import UserError
from lib.files import progress, read_json, replacing
from weights.download import download

DATA = Path(__file__).resolve().parent
# What to run for a dataset that is not prepared, where the bare script is not enough.
RUN_WITH = {"coco": " --download (fetches 20 GB), or with --help for images you have",
            "flickr30k": " --download, which says where the images come from",
            "nocaps": " --download (4,500 images, one by one; there is only a split val)",
            "visual_genome": " --download (fetches 15 GB), or with --help for images you have",
            "vqa2": " --download (43 MB of questions; the images are COCO's), or with --help for files you have",
            "gqa": " --download (fetches 23 GB), or with --help for files you have",
            "snli_ve": " --download (the sentences; the images are Flickr30k's)",
            "scienceqa": " --download, or with --help for files you have",
            "refcoco": " --download (156 MB; the images are COCO's), or with --help for files you have; the names are "
                       "then refcoco/refcoco, refcoco/refcoco+ and refcoco/refcocog",
            "folder": " path/to/photos, and then give that path instead of the name"}
FORM = ('{"id": 1, "image": "photo.jpg", "captions": ["A shoe."]} (or in place of captions: '
        '"question" and "answers", "hypothesis" and "label", "expression" and "box")')
TASKS = ("captions", "question", "hypothesis", "expression")  # one of them is in every line
KINDS = {"id": (int, str), "image": str, "captions": list, "question": str, "answers": dict,
         "hypothesis": str, "label": str, "expression": str, "box": list, "proposals": list, "masks": list,
         "raw_answers": list, "choices": list, "hint": str, "lecture": str, "solution": str}

# ---------------------------------------------------------------------------- finding and reading


def is_prepared(folder):
    """Whether any of the usual splits is there; nocaps, for one, has no train."""
    return any((folder / f"{split}.jsonl").is_file() for split in ("train", "val", "test"))


def find_dataset(name):
    """The folder of a dataset: "coco" -> data/coco, "shapes/vqa" -> data/shapes/vqa, else name is
    the path of a folder. UserError says how to prepare it, or what was probably meant. Where both
    are there, ./coco is the one in the working folder."""
    key = str(name).replace(os.sep, "/").rstrip("/")
    files = [p for form in ("*/prepare.py", "*/*.jsonl", "*/*/*.jsonl") for p in DATA.glob(form)]
    known = sorted({p.parent.relative_to(DATA).as_posix() for p in files})
    places = [DATA / key] * (key.split("/")[0] in known) + [Path(name).expanduser().absolute()]
    for folder in places:
        if is_prepared(folder):
            return folder
    folder = places[0]
    for owner, task in ((folder, ""), (folder.parent, f" {folder.name}")):
        if owner.parent == DATA and (owner / "prepare.py").is_file():
            raise UserError(f"{key} is not prepared: run python data/{owner.name}/prepare.py"
                            f"{task}{RUN_WITH.get(owner.name, '')}")
    if folder.is_dir():
        raise UserError(f"{name}: this folder has no train.jsonl; python data/folder/prepare.py {name} makes "
                        f"it from photos with captions, or write one line an item: {FORM}")
    if folder.is_file():
        raise UserError(f"{name}: a file; name the folder that holds train.jsonl")
    near = "".join(f"did you mean {n}? " for n in difflib.get_close_matches(key, known, n=1))
    raise UserError(f"{name}: neither a dataset nor a folder; {near}datasets: {', '.join(known)}")


def load_split(folder, split):
    """The items of folder/split.jsonl as a list of dictionaries, "image" made an absolute Path
    unless it is None. UserError names file and line. Whether the images exist is seen when they
    are opened."""
    folder, items = Path(folder).expanduser().absolute(), []
    path = folder / f"{split}.jsonl"
    try:
        # pitfall: Notepad begins a file with a byte-order mark; utf-8-sig skips it.
        with open(path, encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    items.append(parse_item(line, folder, f"{path} line {number}"))
    except FileNotFoundError as e:
        there = ", ".join(sorted(p.stem for p in folder.glob("*.jsonl"))) or "none"
        raise UserError(f"{path}: no such split; there are: {there}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not written in UTF-8 ({e.reason} at byte {e.start})") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    if not items:
        raise UserError(f"{path}: holds no item")
    return items


def parse_item(line, folder, where):
    """One line as a dictionary. UserError that begins with where, if it has not the form above."""
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e})") from e
    if not isinstance(item, dict):
        raise UserError(f"{where}: not of the form {FORM}")
    for key in ("id", "image"):
        if key not in item:
            raise UserError(f'{where}: no "{key}"; expected {FORM}')
    if not any(key in item for key in TASKS):
        raise UserError(f"{where}: neither {' nor '.join(TASKS)}; expected {FORM}")
    for key, kind in KINDS.items():
        blind = key == "image" and item["image"] is None and "question" in item
        if key in item and not isinstance(item[key], kind) and not blind:
            raise UserError(f'{where}: "{key}" is {json.dumps(item[key])[:40]}; expected {FORM}')
    # pitfall: null is no caption, and a caption that is not in a list would be read by letters.
    if not all(isinstance(text, str) for text in item.get("captions", [])):
        raise UserError(f'{where}: "captions" must be a list of texts')
    for key in ("raw_answers", "choices"):
        if not all(isinstance(text, str) for text in item.get(key, [])):
            raise UserError(f'{where}: "{key}" must be a list of texts')
    if not all(isinstance(n, (int, float)) and n > 0 for n in item.get("answers", {}).values()):
        raise UserError(f'{where}: "answers" must be of the form {{"yes": 8, "no": 2}}, with how many gave each of them')
    if item["image"] is not None:
        item["image"] = folder / item["image"]  # an absolute path stays what it is
    return item


# ---------------------------------------------------------------------------- text and JSON

# What cannot be seen and is no white space: control characters, byte-order marks, zero-width spaces,
# soft hyphens, marks of the writing direction, and halves of a character (lone surrogates), which
# cannot be written as UTF-8. pitfall: the zero-width joiners U+200C and U+200D are not among them:
# they hold emoji and Persian words together.
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e"
                       "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def clean(text):
    """Without what cannot be seen and white space at the ends, one space in place of any other run
    of it; accents joined to their letters (NFC), as a Mac does not write them."""
    return " ".join(unicodedata.normalize("NFC", INVISIBLE.sub("", text)).split())


def unique(captions):
    """The captions without those that differ from an earlier one in capitals or a full stop only."""
    first = {}
    for text in captions:
        first.setdefault(text.casefold().rstrip(" ."), text)
    return list(first.values())


# ---------------------------------------------------------------------------- Karpathy's splits

# One zip holds dataset_coco.json and dataset_flickr30k.json; what download is told of it.
KARPATHY = {"urls": "http://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
            "size": 36_745_453,
            "sha256": "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817"}
# pitfall: restval is the part of COCO's val2014 that nobody validates on. Who forgets it trains on
# 82,783 images instead of 113,287, and compares with people who did not.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read_karpathy(path, dataset):
    """The list of images in Karpathy's JSON, in its own form; Flickr30k's have no filepath and cocoid:

    {"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg", "cocoid": 42,
     "split": "restval", "sentences": [{"raw": "A shoe. ", "sentid": 7, ...}, ...], ...}
    """
    data = read_json(path, f"fetch {KARPATHY['urls']} (37 MB) and unpack its dataset_{dataset}.json there, "
                           "or run with --download")
    name = data.get("dataset") if isinstance(data, dict) else None
    if name != dataset or not isinstance(data.get("images"), list):
        what = f"describes the dataset {name}" if name not in (None, dataset) else "has another form"
        raise UserError(f"{path}: not Karpathy's dataset_{dataset}.json, it {what}; the right one is "
                        f"in {KARPATHY['urls']}")
    return data["images"]


def karpathy_splits(path, dataset, describe):
    """{split: items} and what was left out of them, {why: names}. describe(image) gives back an item
    without its captions; its "image" is relative to the folder of images, wherever that lies."""
    splits = {split: [] for split in SPLITS.values()}
    skipped = {"repeated sentids": []}
    for number, image in enumerate(read_karpathy(path, dataset)):
        try:
            # By sentid, not by text: people did write the same caption twice for one image.
            captions = {s["sentid"]: clean(s["raw"]) for s in image["sentences"]}
            item = describe(image) | {"captions": list(captions.values())}
            if escapes(item["image"]) or image["split"] not in SPLITS:
                raise ValueError(f"{item['image']} in split {image['split']!r}")
        except KeyError as e:
            raise UserError(f"{path}: images[{number}] has no {e}; unpack the file again from "
                            f"{KARPATHY['urls']}") from e
        except (TypeError, AttributeError, ValueError) as e:
            raise UserError(f"{path}: images[{number}] has another form than the published ({e}); unpack "
                            f"the file again from {KARPATHY['urls']}") from e
        skipped["repeated sentids"] += [item["image"]] * (len(image["sentences"]) - len(captions))
        splits[SPLITS[image["split"]]].append(item)
    return splits, skipped


# ---------------------------------------------------------------------------- files


def relative(path, folder):
    """path as it is written into a line of folder: relative if it lies in there, else absolute.
    With forward slashes, which every system reads."""
    # pitfall: Path.resolve would follow a link in the folder to a big disk out of the folder.
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def list_images(folder):
    """The names in a folder as a set: one look at the folder, not one at each of 100,000 files.
    UserError if there is no such folder."""
    try:
        return set(os.listdir(folder))
    except OSError as e:
        raise UserError(f"{folder}: cannot be read as a folder ({e.strerror or e})") from e


def write_split(folder, name, items):
    """Writes items as folder/name.jsonl, whole or not at all."""
    with replacing(Path(folder) / f"{name}.jsonl") as f:
        f.writelines(json.dumps(item).encode() + b"\n" for item in items)


def write_answers(folder, answers):
    """Writes the answers to choose from as folder/answers.json."""
    with replacing(Path(folder) / "answers.json") as f:
        f.write(json.dumps(answers, indent=0).encode() + b"\n")


def write_meta(folder, meta):
    """Writes the task, the counts and what else is worth knowing as folder/meta.json."""
    with replacing(Path(folder) / "meta.json") as f:
        f.write(json.dumps(meta, indent=1).encode() + b"\n")


def check_image(file):
    """What is wrong with an image, a path or an open file, in words; "" if training can use it. Grey,
    CMYK, palette, 16-bit and animated ones can be used (of an animation the first picture)."""
    try:
        with Image.open(file) as image:
            w, h = image.size
            if w * h > Image.MAX_IMAGE_PIXELS:  # Pillow itself refuses twice as many, at open
                return f"too large with {w:,} x {h:,} pixels"
            if max(w, h) > 100 * min(w, h):  # clip_vit.preprocess refuses it
                return f"too long and thin with {w:,} x {h:,} pixels"
            ImageOps.exif_transpose(image).convert("RGB")  # open alone reads no more than the header
    except UnidentifiedImageError:
        return "not an image"
    except Exception as e:  # a damaged file can raise almost anything
        return str(e) or type(e).__name__
    return ""


def check_images(paths):
    """Decodes all images, one thread a core, with progress. Returns {path: what is wrong}."""
    show, wrong = progress("checking images", len(paths)), {}
    with warnings.catch_warnings(), ThreadPool() as pool:  # threads do: Pillow decodes outside of
        warnings.simplefilter("ignore")                    # Python's lock
        for done, (path, problem) in enumerate(zip(paths, pool.imap(check_image, paths)), 1):
            if problem:
                wrong[path] = problem
            show(done)
    return wrong


def need_room(folder, size):
    """UserError now, if size bytes do not fit, rather than after hours of download."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as e:
        raise UserError(f"{folder}: cannot be used ({e.strerror or e}); choose another") from e
    if free < size:
        raise UserError(f"{folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; "
                        "make room or choose another folder")


def escapes(name):
    """Whether a zip's member would be written outside of the folder that it is unpacked into."""
    # pitfall: a zip can name "../../.bashrc", "/etc/passwd", "C:x" or "..\\x".
    return name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name


def extract(archive, folder, wanted):
    """Unpacks those members of a zip whose names are in wanted. A file that is there already with
    the right size is kept, so a broken run goes on where it stopped. UserError for a damaged zip
    and for one with a member that would land outside of folder."""
    folder = Path(folder)

    def is_there(member):
        path = folder / member.filename
        return path.is_file() and path.stat().st_size == member.file_size

    try:
        with zipfile.ZipFile(archive) as z:
            for name in filter(escapes, z.namelist()):
                raise UserError(f"{archive}: refused, since its member {name!r} leads out of the "
                                "folder; this is not the published file")
            todo = [m for m in z.infolist() if m.filename in wanted and not is_there(m)]
            need_room(folder, sum(m.file_size for m in todo))
            show = progress(f"unpacking {Path(archive).name}", len(todo))
            for done, member in enumerate(todo, 1):
                with z.open(member) as source, replacing(folder / member.filename) as f:
                    shutil.copyfileobj(source, f)  # raises if checksum or size is wrong
                show(done)
    except OSError as e:
        raise UserError(f"{archive}: cannot be unpacked ({e.strerror or e})") from e
    # EOFError and zlib.error come from cut and garbled members, the last two from encrypted ones.
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as e:
        raise UserError(f"{archive}: damaged or cut off ({e}); delete it and run again") from e


def fetch_zip(path, wanted, urls, size=None, **hashes):
    """Downloads a zip to path, and unpacks beside it the members whose names are in wanted. size in
    bytes; where nobody states it, a full disk is noticed no earlier than it is full."""
    part = path.with_name(f"{path.name}.part")
    if not path.exists():  # room for the zip and for what is in it, which is hardly any smaller
        need_room(path.parent, 2 * (size or 0) - (part.stat().st_size if part.exists() else 0))
    extract(download(urls, path, size, **hashes), path.parent, wanted)
    print(f"{path} is unpacked and may be deleted")


# ---------------------------------------------------------------------------- items, to the end


def assert_numbers(path, found, numbers, what):
    """UserError unless found, {name: how many}, are the numbers that every paper reports."""
    wrong = [f"{found.get(name, 0):,} {what} instead of {n:,} in {name}"
             for name, n in numbers.items() if found.get(name, 0) != n]
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)}; if only a part is meant, add --partial")


def assert_counts(path, splits, counts):
    """UserError unless the splits have the sizes that every paper reports: {split: (images, captions)}."""
    for split, items in splits.items():
        found = len(items), sum(len(item["captions"]) for item in items)
        if found != counts[split]:
            raise UserError("{}: {} has {:,} images with {:,} captions instead of {:,} with {:,}; "
                            "if only a part is meant, add --partial"
                            .format(path, split, *found, *counts[split]))


def leave_out(splits, keep):
    """Removes in place the items for which keep(item) is false. Returns the names of their images."""
    gone = [item["image"] for items in splits.values() for item in items if not keep(item)]
    for items in splits.values():
        items[:] = filter(keep, items)
    return gone


def images_of(splits):
    """The names of all images in {split: items}, as a set; several items may share one, or have none."""
    return {item["image"] for items in splits.values() for item in items} - {None}


def present(folder, splits):
    """Those of the splits' images that lie in folder, as a set of their names."""
    images = images_of(splits)
    there = set()
    for parent in {os.path.dirname(image) for image in images}:
        if (folder / parent).is_dir():
            there |= {f"{parent}/{name}" if parent else name for name in list_images(folder / parent)}
    return images & there


def fetch_images(folder, splits, zips):
    """Downloads those zips of which an image is missing: {folder in the zip: what download is told}."""
    there = present(folder, splits)
    wanted = images_of(splits)
    for inside, file in zips.items():
        if any(image.startswith(f"{inside}/") for image in wanted - there):
            fetch_zip(folder / file["urls"].split("/")[-1], wanted, **file)


def drop_empty(splits):
    """Takes empty captions out, then images that have none left. Returns {why: names of the images}."""
    empty = []
    for items in splits.values():
        for item in items:
            empty += [item["image"]] * item["captions"].count("")
            item["captions"] = [text for text in item["captions"] if text]
    return {"empty captions": empty,
            "images without captions": leave_out(splits, lambda item: item["captions"])}


def printable(name):
    """A name as one line of text: a file name may hold line breaks and bytes that are no UTF-8."""
    return name if name.isprintable() else ascii(name)


def keep_usable(splits, skipped, folder, config, hint):
    """Takes out of {split: items} what training could not use, and notes it in skipped, {why: names}:
    images that do not lie in folder, empty captions, and with config.check what cannot be decoded.
    Without config.partial a missing image is a UserError; hint says where the images come from."""
    usable = present(folder, splits) | {None}
    missing = list(dict.fromkeys(leave_out(splits, lambda item: item["image"] in usable)))
    skipped["missing images"] = missing
    if missing and not config.partial:
        raise UserError(f"{folder / missing[0]} is missing, the first of {len(missing):,}; {hint}, or do "
                        "without them: --partial")
    if not any(splits.values()):
        raise UserError(f"{folder}: none of the {len(missing):,} images is there; {hint}")
    if any("captions" in item for items in splits.values() for item in items):
        skipped |= drop_empty(splits)
    if config.check:
        images = {folder / item["image"]: item["image"] for items in splits.values() for item in items
                  if item["image"] is not None}
        wrong = {images[path]: problem for path, problem in check_images(list(images)).items()}
        leave_out(splits, lambda item: item["image"] not in wrong)
        skipped["damaged images"] = [f"{image} ({problem})" for image, problem in wrong.items()]
    if not any(splits.values()):
        raise UserError(f"{folder}: no image is left; " + ", ".join(
            f"{len(names):,} {why}" for why, names in skipped.items() if names))


def write_captions(splits, skipped, folder, out, **meta):
    """write_items for captions."""
    write_items(splits, skipped, folder, out, "caption", "captions", **meta)


def write_items(splits, skipped, folder, out, task, unit, **meta):
    """Writes {split: items} of the images in folder and meta.json to out, and says how much there is
    and what was left out. unit: what there are several of an image, "captions" or "questions"."""
    images = {split: images_of({split: items}) for split, items in splits.items()}
    counts = {split: sum(len(item.get("captions", (1,))) for item in items) for split, items in splits.items()}
    width = max(len(split) for split in ("train", *splits))
    for split, items in splits.items():
        places = {image: relative(folder / image, out) for image in images[split]}
        write_split(out, split, (item | {"image": places.get(item["image"])} for item in items))
        print(f"{split:{width}} {len(images[split]):7,} images {counts[split]:9,} {unit} -> {out / split}.jsonl")
    for why, names in skipped.items():
        if names:
            first = [printable(name) for name in dict.fromkeys(names)]
            print(f"left out: {len(names):,} {why}: {', '.join(first[:3])}{', ...' * (len(first) > 3)}")
    write_meta(out, {"task": task, "images": {split: len(names) for split, names in images.items()},
                     unit: counts, "skipped": {why: {"count": len(names), "first": names[:100]}
                                               for why, names in skipped.items()}} | meta)
