"""How good are captions and answers? BLEU, ROUGE-L, CIDEr-D and VQA accuracy as the papers measure them, and exact scenes.

    python evaluate.py                                        the newest run in out/, on its dataset's test
    python evaluate.py --ckpt out/a out/b --dataset coco --split test --json scores.json --sheet sheet.png
    python evaluate.py --captions scores-a.json --dataset coco      a results file, from any captioner
    python evaluate.py --official ...                         the official Java tools, with METEOR and SPICE
    python evaluate.py --ckpt out/dvp --dataset vqa2 --split test --json answers.json     for the challenge

  hypothesis  "A dog's ball."     references  "The dog has a ball", ...
        |                               |
        +----------- tokenize ----------+      "a dog 's ball"     lower case, no punctuation
        |                               |
        +---> n-grams, 1 to 4 long <----+      BLEU, CIDEr-D
        +---> longest common part  <----+      ROUGE-L

It prints one table with a row a checkpoint. --json scores.json writes the numbers, and beside it for every
row scores-NAME.json with the captions alone, in COCO's results format, which the official tools read:

    [{"image_id": 42, "caption": "a dog on a sofa"}, ...]

or with the answers, in that of the VQA challenge: [{"question_id": 42, "answer": "a dog"}, ...]. Answers are
not scored where the split has none (VQA's test).

The three metrics follow pycocoevalcap, the code behind the papers' tables, with its quirks; they are marked
below. differs: it calls a tokenizer in Java, this file has its own. The two disagree on rare strings only
(the README says how often), but scores to the last digit need --official.

Exact-scene accuracy is the share of images of the shapes world whose caption names every object with size,
colour and shape, and their relation, and says nothing wrong (data/shapes/world.py, is_exact).
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.tasks import find_dataset, load_split
from data.tasks import task_of
from evaluate.captioning import answer, caption, score
from evaluate.official import find_official
from evaluate.tables import RESAMPLES, table
from evaluate.vqa import score_answers
from lib.cli import UserError, opt, parse, run
from lib.files import read_json, replacing
from lib.pictures import captioned, open_image
from model import SeeGPT, read_run_info

SHEET = 24  # pictures on --sheet: the better half of them the best, the others the worst


@dataclass
class Config:
    ckpt: list = opt([], "runs' folders or checkpoint files, a row each; empty: the newest run in out/")
    captions: list = opt([], "results files in COCO's format to score instead, a row each; no model is needed")
    dataset: str = opt("", "a dataset's name or folder; empty: the one that the checkpoint was trained on")
    split: str = opt("test", "which of its splits (nocaps has only val)")
    images: int = opt(0, "only the first so many images; 0: all")
    beam: int = opt(5, "beams of the search for a caption; 1 takes the likeliest token each time (papers: 5)")
    length_penalty: float = opt(0.0, "a beam's score is its log-probability / tokens ** this; above 0: longer")
    max_new_tokens: int = opt(30, "longest caption in tokens")
    prompt: str = opt("", "how the text begins (no space at its end); not part of the caption that is scored")
    batch: int = opt(64, "images at a time")
    json: str = opt("", "write the scores to this file, and the captions beside it")
    sheet: str = opt("", f"PNG file for a look: the {SHEET // 2} best and the {SHEET // 2} worst by CIDEr-D")
    official: bool = opt(False, "score with pycocoevalcap and Java; adds METEOR and SPICE")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("float32", "of matrix products and frozen weights", choices=("float32", "bfloat16", "float16"))
    gpt2: str = opt("", "where the frozen GPT-2 lies now, if not where it lay in training")
    clip: str = opt("", "where the frozen CLIP lies now, if not where it lay in training")


# ---------------------------------------------------------------------------- the command

def say(text):
    """To stderr: stdout is for the table."""
    print(text, file=sys.stderr, flush=True)


def load_items(dataset, split, images=0):
    """The items of a split, all of one task. UserError for what cannot be evaluated here."""
    items = load_split(find_dataset(dataset), split)[:images or None]
    for item in items:
        if "expression" in item:
            raise UserError(f"{dataset}, {split}: referring expressions; this command scores captions and answers")
        if task_of(item) != task_of(items[0]):
            raise UserError(f"{dataset}, {split}: items {items[0]['id']} and {item['id']} have different tasks")
        if "captions" in item and not item["captions"]:
            raise UserError(f"{dataset}, {split}: item {item['id']} has no captions to compare with")
    if len({str(item["id"]) for item in items}) < len(items):
        raise UserError(f"{dataset}, {split}: several items have the same id, so they cannot be told apart")
    return items


def read_captions(path, items):
    """The captions of a results file, in the order of the items. UserError unless the file is a list as in
    the text on top and has exactly one caption for every item."""
    form = 'expected [{"image_id": 42, "caption": "a dog"}, ...]'
    found = read_json(Path(path), form)
    if not isinstance(found, list):
        raise UserError(f"{path}: not a list; {form}")
    texts = {}
    for number, line in enumerate(found):
        if not isinstance(line, dict) or "image_id" not in line or not isinstance(line.get("caption"), str):
            raise UserError(f"{path}: entry {number} is {json.dumps(line)[:60]}; {form}")
        if str(line["image_id"]) in texts:
            raise UserError(f"{path}: two captions for image_id {line['image_id']}")
        texts[str(line["image_id"])] = line["caption"]
    ids = [str(item["id"]) for item in items]
    for what, wrong in (("no caption for", set(ids) - set(texts)), ("no such image:", set(texts) - set(ids))):
        if wrong:
            raise UserError(f"{path}: {what} image_id {min(wrong)}, and {len(wrong) - 1:,} more; "
                            f"there are {len(ids):,} images to be scored")
    return [texts[i] for i in ids]


def unlike(paths):
    """A short name for each: the last part of its path, or all of it where that is not unique."""
    def short(p):
        if p.suffix == ".safetensors":  # out/a/last.safetensors
            return f"{p.resolve().parent.name}/{p.stem}"
        return p.stem if p.suffix == ".json" else p.resolve().name

    names = [short(Path(p)) for p in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths)]


def beside(path, name):
    """scores.json, a -> scores-a.json"""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
    return Path(path).with_name(f"{Path(path).stem}-{name}{Path(path).suffix}")


def best_and_worst(items, captions, cider, scores, title):
    """The contact sheet: images in the order of their CIDEr-D, from both ends."""
    order = np.argsort(-cider, kind="stable").tolist()
    half = min(SHEET // 2, -(-len(order) // 2))
    best, worst = order[:half], order[half:][::-1][:SHEET // 2]
    cell = lambda i: (open_image(items[i]["image"]), f"CIDEr-D {100 * cider[i]:.0f}",
                      f"image {Path(str(items[i]['id'])).name}", captions[i], items[i]["captions"])
    top = [(name, f"{value:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}")
           for name, (value, low, high) in scores.items()]
    return captioned(title, top, {"best": map(cell, best), "worst": map(cell, worst)})


def check(config):
    """UserError for what would otherwise be found out late, after all the captions."""
    for name in ("beam", "max_new_tokens", "batch"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: must be 1 or more")
    if config.images < 0:
        raise UserError(f"--images {config.images}: must be 0 (all) or more")
    for flag, ending in (("json", ".json"), ("sheet", ".png")):
        value = getattr(config, flag)
        if value and not value.lower().endswith(ending):
            raise UserError(f"--{flag} {value}: a name that ends in {ending}, please")
    if config.ckpt and config.captions:
        raise UserError("--ckpt or --captions, not both: score the captions of a checkpoint, or those of a file")
    if config.official:
        find_official()


def trained_on(ckpts):
    """The dataset in the metadata of all these checkpoints. UserError where they differ."""
    names = {read_run_info(c)["dataset"] for c in ckpts}
    if len(names) > 1:
        raise UserError(f"trained on {' and '.join(sorted(names))}; say with --dataset on which to compare them")
    return names.pop()


@torch.no_grad()
def main(config):
    # Here, since both import this file: train.py to score at its end, sample.py through train.py.
    from lib.devices import pick_device
    from lib.runs import newest_run

    check(config)
    device, dtype = pick_device(config.device), getattr(torch, config.dtype)
    ckpts = [] if config.captions else config.ckpt or [newest_run()]
    if ckpts and not config.ckpt:
        say(f"checkpoint: {ckpts[0]}, the newest run (--ckpt for another)")
    dataset = config.dataset or (trained_on(ckpts) if ckpts else "")
    if not dataset:
        raise UserError("--captions: say with --dataset which images these captions belong to")
    items = load_items(dataset, config.split, config.images)
    asked = task_of(items[0]) != "captions"
    if asked and (config.captions or config.sheet or config.official):
        raise UserError(f"{dataset}: questions; --captions, --sheet and --official are for captions")
    if asked and not config.json and not score_answers([""] * len(items), items)[0]:
        raise UserError(f"{dataset}, {config.split} has no answers to compare with; --json writes those of the model")
    if ckpts or config.sheet:
        for item in items:  # now rather than after an hour of captions
            if item["image"] is not None and not item["image"].is_file():
                raise UserError(f"{item['image']}: no such image")
    captions, rows, ciders = {}, {}, {}
    for path, name in zip(ckpts or config.captions, unlike(ckpts or config.captions)):
        if config.captions:
            captions[name] = read_captions(path, items)
        else:
            model = SeeGPT.load(path, device, config.gpt2 or None, config.clip or None).cast_frozen(dtype)
            autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
            task = answer if asked else caption
            learnt, needed = model.run_info.get("task", "captions"), task_of(items[0])
            if learnt != needed:
                a = {"captions": "captions", "question": "answers to questions", "hypothesis": "labels of hypotheses"}
                raise UserError(f"{path} was trained on {a[learnt]}; {dataset} asks for {a[needed]}")
            captions[name] = task(model, items, config, device, autocast, f"{name}: {task.__name__}s")
        rows[name], ciders[name] = (score_answers(captions[name], items) if asked else
                                    score(captions[name], items, config.official))
    if not any(rows.values()):
        print(f"{dataset}, {config.split} has no answers to compare with; --json holds those of the model")
    else:
        print(table(rows, len(items), "questions" if asked else "images"))
        print(f"\n{dataset}, {config.split}; all x 100, as papers print them; in brackets the 95 % interval of "
              f"{RESAMPLES:,} resamples of the {'questions' if asked else 'images'}" + ("." if asked else "; Stanford's "
              "tokenizer, pycocoevalcap." if config.official else "; our own tokenizer (--official: Stanford's)."))
    if config.images and not asked:
        print("A part of the split: CIDEr-D takes its document frequencies from these images, so it cannot be "
              "compared with that of all.")
    if config.json:
        write_json(config.json, dataset, config, items, captions, rows, ciders)
    for name in rows if config.sheet else ():
        path = Path(config.sheet) if len(rows) == 1 else beside(config.sheet, name)
        picture = best_and_worst(items, captions[name], ciders[name], rows[name],
                                 f"{name} on {dataset}, {config.split}")
        with replacing(path) as f:
            picture.save(f, "PNG")
        say(f"sheet: {path}")


def write_json(path, dataset, config, items, captions, rows, ciders):
    """The scores as one file, and for every row its captions as a plain results file beside it."""
    keys, asked = ("score", "low", "high"), task_of(items[0]) != "captions"
    decoding = {k: getattr(config, k) for k in ("beam", "length_penalty", "max_new_tokens", "prompt")}
    result = {"dataset": dataset, "split": config.split, "questions" if asked else "images": len(items), "unit": "x 100",
              **({} if asked else {"tokenizer": "stanford" if config.official else "ours"}),
              **({} if asked or config.captions else decoding), "rows": []}
    for name, texts in captions.items():
        each = {} if ciders[name] is None else {str(x["id"]): float(100 * c) for x, c in zip(items, ciders[name])}
        result["rows"].append({"name": name, "answers" if asked else "captions": beside(path, name).name,
                               "scores": {metric: dict(zip(keys, values)) for metric, values in rows[name].items()},
                               "accuracy" if asked else "cider_d": each})
        id_key, text_key = ("question_id", "answer") if asked else ("image_id", "caption")
        with replacing(beside(path, name)) as f:
            f.write(json.dumps([{id_key: item["id"], text_key: text} for item, text in zip(items, texts)],
                               indent=0).encode() + b"\n")
    with replacing(path) as f:
        f.write(json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a character they lack becomes its number
        stream.reconfigure(errors="backslashreplace")
    run(lambda: main(*parse(Config)))
