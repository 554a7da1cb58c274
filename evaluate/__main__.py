"""How good are captions and answers? One table, a row a checkpoint or results file.

    python -m evaluate                                 the newest run in out/, on its dataset's test
    python -m evaluate --ckpt out/a out/b --dataset coco --json scores.json --sheet sheet.png
    python -m evaluate --captions scores-a.json --dataset coco      a results file of any captioner
    python -m evaluate --official ...                  the official Java tools, METEOR and SPICE too
    python -m evaluate --ckpt out/dvp --dataset vqa2 --json answers.json          for the challenge

--json scores.json writes the numbers, and beside it for every row scores-NAME.json with the
captions alone, in COCO's results format, which the official tools read:

    [{"image_id": 42, "caption": "a dog on a sofa"}, ...]

or with the answers, in that of the VQA challenge: [{"question_id": 42, "answer": "a dog"}, ...].
Answers are not scored where the split has none (VQA's test).

Exact-scene accuracy is the share of images of the shapes world whose caption names every object
with size, colour and shape, and their relation, and says nothing wrong.
"""

from lib.cli import UserError, note, opt, parse, printable, run  # isort: skip (lib before torch)
from dataclasses import dataclass
from pathlib import Path

import torch

from data.tasks import find_dataset, load_split, task_of
from evaluate.captioning import answer, caption, score_captions
from evaluate.official import find_official
from evaluate.results import SHEET, beside, contact_sheet, read_captions, short_names, write_results
from evaluate.tables import RESAMPLES, table
from evaluate.vqa import score_answers
from lib.devices import autocast, pick_device
from lib.files import check_writable, replacing
from lib.settings import pick_checkpoint
from model import SeeGPT
from weights.checkpoints import read_run_info

LEARNT = {"captions": "captions", "question": "answers to questions",
          "hypothesis": "labels of hypotheses"}


@dataclass
class Config:
    ckpt: list = opt([], "runs' folders or checkpoint files, a row each; empty: the newest in out/")
    captions: list = opt([], "results files in COCO's format to score instead; no model is needed")
    dataset: str = opt("", "a dataset's name or folder; empty: that of the checkpoint's training")
    split: str = opt("test", "which of its splits (nocaps has only val)")
    images: int = opt(0, "only the first so many images; 0: all")
    beam: int = opt(5, "beams of the search for a caption (papers: 5); 1: greedy",
                    at_least=1, at_most=100)
    length_penalty: float = opt(0.0, "a beam's score is its log-probability / tokens ** this; "
                                     "above 0: longer", at_least=-10, at_most=10)
    max_new_tokens: int = opt(30, "longest caption in tokens", at_least=1)
    prompt: str = opt("", "how the text begins (no space at its end); not scored")
    batch: int = opt(64, "images at a time", at_least=1)
    json: str = opt("", "write the scores to this file, and the captions beside it")
    sheet: str = opt("", f"PNG file with the {SHEET // 2} best and {SHEET // 2} worst by CIDEr-D")
    all: bool = opt(False, "all columns, however wide the table is")
    official: bool = opt(False, "score with pycocoevalcap and Java; adds METEOR and SPICE")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("float32", "of matrix products and frozen weights",
                     choices=("float32", "bfloat16", "float16"))
    lm: str = opt("", "where the language model lies, if not as in training", alias="gpt2")
    clip: str = opt("", "where CLIP lies, if not as in training")


def check(config):
    """UserError for what would otherwise be found out late, after all the captions."""
    for flag, ending in (("json", ".json"), ("sheet", ".png")):
        value = getattr(config, flag)
        if value and not value.lower().endswith(ending):
            raise UserError(f"--{flag} {value}: a name that ends in {ending}, please")
        check_writable(value)
    if config.ckpt and config.captions:
        raise UserError("--ckpt or --captions, not both: score the captions of a checkpoint, or "
                        "those of a file")
    if config.official:
        find_official()


def trained_on(ckpts):
    """The dataset that all these checkpoints were trained on. UserError where they differ."""
    names = {read_run_info(path)["dataset"] for path in ckpts}
    if len(names) > 1:
        raise UserError(f"trained on {' and '.join(sorted(names))}; say with --dataset on which to "
                        "compare them")
    return names.pop()


def load_items(dataset, split, images=0):
    """The items of a split, all of one task. UserError for what cannot be evaluated here."""
    where, items = f"{dataset}, {split}", load_split(find_dataset(dataset), split)
    items = items[:images or None]
    for item in items:
        if "expression" in item:
            raise UserError(f"{where}: referring expressions; this command scores captions and "
                            "answers")
        if "captions" in item and not item["captions"]:
            raise UserError(f"{where}: item {item['id']} has no captions to compare with")
    if len({str(item["id"]) for item in items}) < len(items):
        raise UserError(f"{where}: several items have the same id, so they cannot be told apart")
    return items


def check_items(config, dataset, items):
    """UserError for flags that do not fit these items, and for an image that is not there: now
    rather than after an hour of captions."""
    if task_of(items[0]) != "captions":
        if config.captions or config.sheet or config.official:
            raise UserError(f"{dataset}: questions; --captions, --sheet and --official are for "
                            "captions")
        if not config.json and not score_answers([""] * len(items), items)[0]:
            raise UserError(f"{dataset}, {config.split} has no answers to compare with; --json "
                            "writes those of the model")
    for item in items if config.sheet or not config.captions else ():
        if item["image"] is not None and not item["image"].is_file():
            raise UserError(f"{item['image']}: no such image")


def texts_of(path, name, config, dataset, items):
    """The captions or answers of one checkpoint, a list of str."""
    device, dtype = pick_device(config.device), getattr(torch, config.dtype)
    model = SeeGPT.load(path, device, config.lm or None, config.clip or None).cast_frozen(dtype)
    learnt, needed = model.run_info.get("task", "captions"), task_of(items[0])
    if learnt != needed:
        raise UserError(f"{path} was trained on {LEARNT[learnt]}; {dataset} asks for "
                        f"{LEARNT[needed]}")
    task = caption if needed == "captions" else answer
    return task(model, items, config, autocast(device, dtype), f"{name}: {task.__name__}s")


def report(config, dataset, items, scores):
    """Prints the table, and what its numbers are."""
    if not any(scores.values()):
        print(f"{dataset}, {config.split} has no answers to compare with; --json holds those of "
              "the model")
        return
    questions = task_of(items[0]) != "captions"
    unit, tokenizer = ("questions", "") if questions else ("images", (
        "; Stanford's tokenizer, pycocoevalcap" if config.official else
        "; our own tokenizer (--official: Stanford's)"))
    print(table(scores, len(items), unit, config.all))
    print(f"\n{printable(dataset)}, {config.split}; all x 100, as papers print them; in brackets "
          f"the 95 % interval of {RESAMPLES:,} resamples of the {unit}{tokenizer}.")
    if config.images and not questions:
        print("A part of the split: CIDEr-D takes its document frequencies from these images, so "
              "it cannot be compared with that of all.")


@torch.no_grad()
def main(config):
    check(config)
    ckpts = [] if config.captions else config.ckpt or [pick_checkpoint("")]
    dataset = config.dataset or (trained_on(ckpts) if ckpts else "")
    if not dataset:
        raise UserError("--captions: say with --dataset which images these captions belong to")
    items = load_items(dataset, config.split, config.images)
    check_items(config, dataset, items)

    texts, scores, each = {}, {}, {}
    for path, name in zip(ckpts or config.captions, short_names(ckpts or config.captions)):
        texts[name] = (read_captions(path, items) if config.captions else
                       texts_of(path, name, config, dataset, items))
        scores[name], each[name] = (score_captions(texts[name], items, config.official)
                                    if task_of(items[0]) == "captions" else
                                    score_answers(texts[name], items))
    report(config, dataset, items, scores)
    if config.json:
        write_results(config.json, dataset, config, items, texts, scores, each)
    for name in texts if config.sheet else ():
        path = Path(config.sheet) if len(texts) == 1 else beside(config.sheet, name)
        sheet = contact_sheet(items, texts[name], each[name], scores[name],
                              f"{name} on {dataset}, {config.split}")
        with replacing(path) as f:
            sheet.save(f, "PNG")
        note(f"sheet: {path}")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
