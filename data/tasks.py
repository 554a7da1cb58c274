"""What a line of train.jsonl means, and how it is found and read.

A prepared dataset is a folder with one file a split, one line an item:

    data/coco/val.jsonl   {"id": 42, "image": "val2014/COCO_val2014_000000000042.jpg",
                           "captions": ["A shoe.", "..."], "cocoid": 42}
    data/coco/meta.json   {"task": "caption", "images": {"train": 113287, ...}, ...}

The key that an item has beside its image is its task. The language model reads a condition and
learns to write an answer:

    task         condition                                            answer
    captions     nothing                                              each of the captions
    question     "question: Is it red? answer:"                       a key of "answers"
    hypothesis   "hypothesis: A man is outside. answer:"              "label"
    expression   none: evaluate/pointing.py finds its box

A question without a picture has "image": null. answers.json, where it is there, lists the answers
to choose from. Next: batches.py makes tensors of it.
"""

import difflib
import io
import json
import os
from pathlib import Path

from data.boxes import is_box
from lib.cli import UserError
from lib.files import open_file, read_json, repo_path, user_path

DATA = Path(__file__).resolve().parent
# {task: the key of what can be learnt for it}; a task's own key is in every line.
TASKS = {"captions": "captions", "hypothesis": "label", "question": "answers", "expression": None}

# ---------------------------------------------------------------------------- what an item means


def task_of(item):
    """"captions", "hypothesis", "question" or "expression"."""
    return next(task for task in TASKS if task in item)


def answered(item):
    """Whether an item has what its task asks for: captions, answers to its question, a label."""
    return bool(item.get(TASKS[task_of(item)]))


def condition(item):
    """What the language model reads of an item before it answers; "" for captions. It ends without
    a space, since the answer brings its own."""
    if "hypothesis" in item:
        return f"hypothesis: {item['hypothesis']} answer:"
    if "question" not in item:
        return ""
    text = f"question: {item['question']}"
    if words := item.get("hint", "").split()[-300:]:  # GPT-2 has 1,024 positions
        text += f" context: {' '.join(words)}"
    if choices := item.get("choices"):
        text += " options:" + "".join(f" ({chr(65 + i)}) {c}" for i, c in enumerate(choices))
    return f"{text} answer:"


def answers_to(item):
    """{answer: how many gave it} to a question or hypothesis. Where the item explains its answer,
    so does the text.

    paper: ScienceQA's order QCM-ALE: question, context, choices; answer, lecture, explanation.
    """
    if "hypothesis" in item:
        return {item["label"]: 1}
    because = " ".join(item[key] for key in ("lecture", "solution") if item.get(key))
    return {f"{answer}. because {because}" if because else answer: count
            for answer, count in item["answers"].items()}


def group_by_image(items):
    """What is learnt from each image: [{"image", "texts": [(condition, {answer: count}), ...]}].

    Items on the same image become one entry, so that their texts share it. Those without an image
    come last, one by one: entry i has its features in row i.
    """
    entries = {}
    for item in items:
        if not answered(item):
            raise UserError(f"item {item['id']} lacks the captions, answers or label, so nothing "
                            "can be learnt from it")
        texts = [("", {caption: 1}) for caption in item.get("captions", ())]
        texts = texts or [(condition(item), answers_to(item))]
        key = item["image"] if item["image"] is not None else ("none", len(entries))
        entries.setdefault(key, {"image": item["image"], "texts": []})["texts"] += texts
    return sorted(entries.values(), key=lambda entry: entry["image"] is None)


def answer_vocabulary(folder, entries):
    """The answers to choose from: the dataset's answers.json, or all that occur in entries."""
    path, form = folder / "answers.json", 'expected ["yes", "no", ...]'
    if not path.exists():
        return sorted({answer for entry in entries for asked, answers in entry["texts"] if asked
                       for answer in answers})
    found = read_json(path, form)
    texts = isinstance(found, list) and all(isinstance(answer, str) for answer in found)
    if not texts or len(set(found)) < len(found):
        raise UserError(f"{path}: not a list of different texts; {form}")
    return found


# ---------------------------------------------------------------------------- finding a dataset

# What to run for a dataset that is not prepared, where the bare script is not enough.
RUN_WITH = {
    "coco": "--download (fetches 20 GB), or with --help for images you have",
    "flickr30k": "--download, which says where the images come from",
    "nocaps": "--download (4,500 images, one by one; there is only a split val)",
    "visual_genome": "--download (fetches 15 GB), or with --help for images you have",
    "vqa2": "--download (43 MB; the images are COCO's), or with --help for files you have",
    "gqa": "--download (fetches 23 GB), or with --help for files you have",
    "snli_ve": "--download (the sentences; the images are Flickr30k's)",
    "scienceqa": "--download, or with --help for files you have",
    "refcoco": "--download (156 MB; the images are COCO's), or with --help for files you have; the "
               "names are then refcoco/refcoco, refcoco/refcoco+ and refcoco/refcocog",
    "folder": "path/to/photos, and then give that path instead of the name"}
FORM = ('{"id": 1, "image": "photo.jpg", "captions": ["A shoe."]} (or in place of captions: '
        '"question" and "answers", "hypothesis" and "label", "expression" and "box")')


def is_prepared(folder):
    """Whether any of the usual splits is there; nocaps, for one, has no train."""
    return any(os.path.isfile(folder / f"{split}.jsonl") for split in ("train", "val", "test"))


def known_datasets():
    """The names of the project's datasets, such as "coco" and "shapes/vqa", prepared or not."""
    files = [p for form in ("*/prepare.py", "*/*.jsonl", "*/*/*.jsonl") for p in DATA.glob(form)]
    return sorted({p.parent.relative_to(DATA).as_posix() for p in files})


def is_known(name):
    """Whether name begins with that of a dataset of the project: "shapes/no_such_task" does."""
    return name.split("/")[0] in {known.split("/")[0] for known in known_datasets()}


def dataset_name(name):
    """The short name of a dataset of the project, however it is spelled: "shapes" for "shapes/",
    "data/shapes" and "./data/shapes". Any other path comes back as given, but for a last slash."""
    key = str(name).replace(os.sep, "/").rstrip("/") or str(name)
    path = Path(os.path.abspath(user_path(repo_path(key))))
    inside = path.relative_to(DATA).as_posix() if path.is_relative_to(DATA) else ""
    return inside if is_known(inside) and not is_known(key) else key


def find_dataset(name):
    """The folder of a dataset: "coco" -> data/coco, "shapes/vqa" -> data/shapes/vqa, else name is
    the path of a folder. UserError says how to prepare it, or what was probably meant. Where both
    are there, ./coco is the one in the working folder."""
    key = dataset_name(name)
    places = [DATA / key] * is_known(key) + [user_path(name).absolute()]
    for folder in places:
        if is_prepared(folder):
            return folder
    folder = places[0]
    if os.path.isfile(folder):
        raise UserError(f"{name}: a file; name the folder that holds train.jsonl")
    owner, _, task = key.partition("/")
    if os.path.isfile(DATA / owner / "prepare.py"):
        command = [f"python data/{owner}/prepare.py", task, RUN_WITH.get(owner, "")]
        raise UserError(f"{key} is not prepared: run {' '.join(filter(None, command))}")
    if os.path.isdir(folder):
        raise UserError(f"{name}: this folder has no train.jsonl; python data/folder/prepare.py "
                        f"{name} makes it from photos with captions, or write one line an item: "
                        f"{FORM}")
    known = known_datasets()
    near = "".join(f"did you mean {n}? " for n in difflib.get_close_matches(key, known, n=1))
    raise UserError(f"{name}: neither a dataset nor a folder; {near}datasets: {', '.join(known)}")


# ---------------------------------------------------------------------------- reading its lines

TYPES = {"id": (int, str), "image": str, "captions": list, "question": str, "answers": dict,
         "hypothesis": str, "label": str, "expression": str, "box": list, "proposals": list,
         "masks": list, "raw_answers": list, "choices": list, "hint": str, "lecture": str,
         "solution": str}


def load_split(folder, split):
    """The items of folder/split.jsonl as dictionaries, "image" made an absolute Path unless it is
    None. UserError names file and line. Whether the images exist is seen when they are opened."""
    folder, items = user_path(folder).absolute(), []
    path = folder / f"{split}.jsonl"
    try:
        # pitfall: Notepad begins a file with a byte-order mark; utf-8-sig skips it.
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    items.append(parse_item(line, folder, f"{path} line {number}"))
                    if task_of(items[0]) != task_of(items[-1]):
                        raise UserError(f"{path} line {number}: asks for {task_of(items[-1])}, the "
                                        f"first line for {task_of(items[0])}; a dataset cannot "
                                        "have different tasks")
    except FileNotFoundError as e:
        there = sorted(p.stem for p in folder.glob("*.jsonl"))
        other = "; say --split val" if split == "test" and "val" in there else ""
        raise UserError(f"{path}: no such split; there are: {', '.join(there) or 'none'}"
                        f"{other}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not written in UTF-8 ({e.reason} at byte {e.start})") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    if not items:
        raise UserError(f"{path}: holds no item")
    return items


def shortened(value):
    """A JSON value in at most 40 letters."""
    try:
        return json.dumps(value)[:40]
    except RecursionError:
        return "nested deeply"


def parse_item(line, folder, where):
    """One line as a dictionary. UserError that begins with where, if it does not have FORM."""
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e})") from e
    if not isinstance(item, dict):
        raise UserError(f"{where}: not of the form {FORM}")
    if missing := [key for key in ("id", "image") if key not in item]:
        raise UserError(f'{where}: no "{missing[0]}"; expected {FORM}')
    tasks = [task for task in TASKS if task in item]
    if len(tasks) != 1:
        what = " and ".join(tasks) if tasks else f"neither {' nor '.join(TASKS)}"
        raise UserError(f"{where}: {what}; expected {FORM}")
    for key, kind in TYPES.items():
        no_image = key == "image" and item["image"] is None and "question" in item
        if key in item and (not isinstance(item[key], kind) or item[key] is True
                            or item[key] is False) and not no_image:
            raise UserError(f'{where}: "{key}" is {shortened(item[key])}; expected {FORM}')
    # pitfall: null is no caption, and a caption that is not in a list would be read by letters.
    for key in ("captions", "raw_answers", "choices"):
        if not all(isinstance(text, str) for text in item.get(key, [])):
            raise UserError(f'{where}: "{key}" must be a list of texts')
    if not all(type(n) in (int, float) and 0 < n < 1e6 for n in item.get("answers", {}).values()):
        raise UserError(f'{where}: "answers" must be of the form {{"yes": 8, "no": 2}}')
    if not all(map(is_box, [item.get("box", [0] * 4), *item.get("proposals", ())])):
        raise UserError(f'{where}: "box" and "proposals" must be boxes [x, y, w, h] in pixels')
    # pitfall: JSON can write half of a character (\ud83d alone), which no tokenizer takes. A file's
    # name may have one: in place of a byte that is no UTF-8.
    if "\\ud" in line.lower():
        try:
            texts = {key: value for key, value in item.items() if key not in ("id", "image")}
            json.dumps(texts, ensure_ascii=False).encode()
        except ValueError as e:
            raise UserError(f"{where}: half of a character (\\ud...), write all of it") from e
    if item["image"] is not None:
        item["image"] = folder / item["image"]  # an absolute path stays what it is
    return item
