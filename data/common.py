"""What the prepare scripts share, and how train.py, sample.py and evaluate.py read their result.

A prepared dataset is a folder with one file a split, one line an item:

    data/coco/val.jsonl   {"id": 42, "image": "val2014/COCO_val2014_000000000042.jpg",
                           "captions": ["A shoe.", "..."], "cocoid": 42}
    data/coco/meta.json   {"task": "caption", "images": {"train": 113287, ...}, ...}

The first half finds and reads such a folder, the second half is for those who write one.
"""

import contextlib
import difflib
import json
import os
import shutil
import sys
import time
import zipfile
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image

from cli import UserError

DATA = Path(__file__).resolve().parent
# What to run for a dataset that is not prepared, where the bare script is not enough.
RUN_WITH = {"coco": " --download (fetches 20 GB), or with --help for images you have"}
FORM = ('{"id": 1, "image": "photo.jpg", "captions": ["A shoe."]} (or in place of captions: '
        '"question" and "answers", "hypothesis" and "label", "expression" and "box")')
TASKS = ("captions", "question", "hypothesis", "expression")  # one of them is in every line
KINDS = {"id": (int, str), "image": str, "captions": list, "question": str, "answers": dict,
         "hypothesis": str, "label": str, "expression": str, "box": list, "proposals": list}

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
                            f"{task or RUN_WITH.get(owner.name, '')}")
    if folder.is_dir():
        raise UserError(f"{name}: this folder has no train.jsonl; write one line an item: {FORM}")
    if folder.is_file():
        raise UserError(f"{name}: a file; name the folder that holds train.jsonl")
    near = "".join(f"did you mean {n}? " for n in difflib.get_close_matches(key, known, n=1))
    raise UserError(f"{name}: neither a dataset nor a folder; {near}datasets: {', '.join(known)}")


def load_split(folder, split):
    """The items of folder/split.jsonl as a list of dictionaries, "image" made an absolute Path.
    UserError names file and line. Whether the images exist is seen when they are opened."""
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
        if key in item and not isinstance(item[key], kind):
            raise UserError(f'{where}: "{key}" is {json.dumps(item[key])[:40]}; expected {FORM}')
    # pitfall: null is no caption, and a caption that is not in a list would be read by letters.
    if not all(isinstance(text, str) for text in item.get("captions", [])):
        raise UserError(f'{where}: "captions" must be a list of texts')
    item["image"] = folder / item["image"]  # an absolute path stays what it is
    return item


# ---------------------------------------------------------------------------- preparing


def clean(text):
    """Without white space at the ends, and one space in place of any other run of it."""
    return " ".join(text.split())


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


@contextlib.contextmanager
def replacing(path):
    """A binary file to write to that becomes path when all went well; else path stays as it was."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            yield f
        os.replace(temporary, path)
    except OSError as e:  # disk full, no permission, a file where the folder should be
        raise UserError(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        with contextlib.suppress(OSError):  # usually it has been moved away
            temporary.unlink()


def write_split(folder, name, items):
    """Writes items as folder/name.jsonl, whole or not at all."""
    with replacing(Path(folder) / f"{name}.jsonl") as f:
        f.writelines(json.dumps(item).encode() + b"\n" for item in items)


def write_meta(folder, meta):
    """Writes the task, the counts and what else is worth knowing as folder/meta.json."""
    with replacing(Path(folder) / "meta.json") as f:
        f.write(json.dumps(meta, indent=1).encode() + b"\n")


def progress(label, total):
    """Gives back show(done), which says how many of total are done and the time left: on a
    terminal in one line that renews itself, in a log file in one line for every tenth."""
    terminal, began = sys.stderr.isatty(), time.monotonic()
    due = step = max(1, total // (1000 if terminal else 10))

    def show(done):
        nonlocal due
        if done < due and done != total:
            return
        due = done + step
        left = (time.monotonic() - began) * (total - done) / max(done, 1)
        left = f"{left / 60:.0f} min" if left > 100 else f"{left:.0f} s"
        text = f"{label}: {done:,} of {total:,}, {left} left"
        end = "" if terminal and done != total else "\n"
        print("\r" * terminal + text.ljust(70 * terminal), end=end, file=sys.stderr, flush=True)

    return show


def check_image(path):
    """What is wrong with an image file, in words; "" if it can be decoded to its last row."""
    try:
        with Image.open(path) as image:
            image.convert("RGB")  # open alone reads no more than the header
    except Exception as e:  # a damaged file can raise almost anything
        return str(e) or type(e).__name__
    return ""


def check_images(paths):
    """Decodes all images, one thread a core, with progress. Returns {path: what is wrong}."""
    show, wrong = progress("checking images", len(paths)), {}
    with ThreadPool() as pool:  # threads do: Pillow decodes outside of Python's lock
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
