"""Captions your own pictures, answers questions about them, and points at what a phrase means.

    python sample.py photo.jpg more.png folder/             the newest run in out/
    python sample.py --ckpt out/NAME photo.jpg --beam 5     a certain run, or a checkpoint file
    python sample.py photo.jpg --json captions.json         also as [{"image": ..., "caption": ...}]
    python sample.py photo.jpg --attn attn.png              also the sheet below
    python sample.py folder/ --html look.html               the same as a page: hover over a word
    python sample.py --ckpt out/dvp photo.jpg --question "what colour is the circle?"
    python sample.py photo.jpg --ground "the small circle" --boxes boxes.json --attn winner.png

  a small red circle left of a large blue square
  +---------+  +---------+  +---------+  +---------+  +---------+
  | o       |  | o       |  |::o      |  |##o      |  |@@o      |    coloured: looked at
  |     []  |  |     []: |  |     []  |  |     []  |  |     []  |    when about to write
  +---------+  +---------+  +---------+  +---------+  +---------+    the word
                    a          small         red        circle

How attention is recorded and drawn stands in lib/attention.py.

This was the last of the seven files; evaluate/ tells how good all this is.
"""

from lib.cli import UserError, note, opt, parse, printable, run  # isort: skip (lib before torch)
import sys
from dataclasses import dataclass

import torch

from clip_vit import MEAN, STD, preprocess
from data.batches import text_ids
from data.boxes import boxes_of, load_boxes
from data.features import whole_image_features
from data.tasks import condition
from lib import attention, pictures
from lib.devices import autocast, pick_device
from lib.files import check_writable, find_images, progress, replacing, write_json
from lib.settings import pick_checkpoint
from model import SeeGPT
from prompts import PAINTS, cloze, fill_in, paint

SHEET, PAGE = 20, 200  # pictures on one sheet of --attn, and on one page of --html, at most


@dataclass
class Config:
    images: list = opt([], "image files; of a folder, all that are in it", positional=True)
    ckpt: str = opt("", "a run's folder or a checkpoint file; empty: the newest run in out/")
    beam: int = opt(5, "beams (papers: 5); 1: greedy, as answers are", at_least=1, at_most=100)
    length_penalty: float = opt(0.0, "score: log p / tokens ** this", at_least=-10, at_most=10)
    temperature: float = opt(0.0, "above 0: draw each word at random; 1 as the model says")
    top_k: int = opt(0, "draw among so many tokens; 0: all")
    top_p: float = opt(1.0, "draw among the likeliest tokens of this total probability", at_most=1)
    seed: int = opt(1337, "of the drawing")
    max_new_tokens: int = opt(30, "longest caption in tokens", at_least=1)
    prompt: str = opt("", "how the text begins (no space at its end); not repeated")
    question: str = opt("", "ask this of every picture; of a model of hypotheses: is it true?")
    top: int = opt(3, "answers shown to a question, the likeliest first", at_least=1)
    ground: str = opt("", "which box does this mean? each is painted, its colour is named")
    boxes: str = opt("", "JSON file for --ground: [[x, y, w, h], ...] in pixels, or {image: such a "
                         "list}; empty: sliding windows")
    json: str = opt("", "write the results to this file, too")
    attn: str = opt("", f"PNG file for where it looked; at most the first {SHEET} pictures")
    html: str = opt("", f"page for the same, one file that works offline; at most {PAGE} pictures")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("float32", "of matrix products and frozen weights",
                     choices=("float32", "bfloat16", "float16"))
    lm: str = opt("", "where the frozen language model lies now, if it was moved", alias="gpt2")
    clip: str = opt("", "where the frozen CLIP lies now, if it was moved")
    batch: int = opt(16, "pictures at a time", at_least=1)


# ---------------------------------------------------------------------------- what to say

def find_look(model, feats, prompt, word, ids):
    """Where it looked for the answer that it chose, a word, or for the text of ids behind a prompt.
    UserError if the method never attends."""
    start = text_ids(model.lm.tokenizer, prompt)
    look = (attention.look_of_prompt(model, feats, start, word) if model.method.answers else
            attention.look_of_words(model, feats, start, ids))
    if look is None:
        raise UserError("--attn, --html: this method does not attend to the image word by word, "
                        "there is nothing to show; ituning, vanilla and vcgpt do")
    return look


def describe(model, files, config):
    """Yields (line to print, result, (title, file, picture, Look) or None) of captions, answers."""
    task, chooses = model.run_info.get("task", "captions"), bool(model.method.answers)
    prompt = condition({task: config.question}) if config.question else config.prompt
    device, size = model.lm.wte.weight.device, model.vit.image_size
    if config.attn or config.html:  # what cannot be shown is refused now, not after the work
        find_look(model, model.image_features(torch.zeros(1, 3, size, size).to(device)), prompt, "",
                  [0])
    # A line that renews itself, only where stdout is not the terminal.
    loud, shown = sys.stderr.isatty() and not sys.stdout.isatty(), 0
    show = progress("pictures", len(files)) if loud else lambda done: None
    for i in range(0, len(files), config.batch):
        names, images = pictures.read_images(files[i:i + config.batch])
        pixels = [preprocess(image, size) for image in images]
        if not names:
            continue
        feats = model.image_features(torch.stack(pixels).to(device))
        if chooses:
            found = model.answer(feats, [config.question] * len(names), config.top)
        else:
            found = model.generate(feats, prompt, 1 if config.question else config.beam,
                                   config.max_new_tokens, config.length_penalty,
                                   config.temperature, config.top_k, config.top_p, with_ids=True)
        for name, image, x, f, one in zip(names, images, pixels, feats.split(1), found):
            if config.question:
                answers = one if chooses else [(one[0], None)]
                text = ", ".join(a if p is None else f"{a} ({100 * p:.1f} %)" for a, p in answers)
                result, title = {"question": config.question, "answers": answers}, config.question
            else:
                text = title = " ".join(one[0].split())
                result = {"caption": one[0]}
            looked, shown = None, shown + 1
            if shown <= (PAGE if config.html else SHEET if config.attn else 0):
                look = find_look(model, f, prompt, one[0][0] if chooses else one[0], one[-1])
                cut = f", {image.width} x {image.height}: the square in the middle is what it sees"
                looked = (f"{title} {text}" if config.question else title,
                          name + cut * (image.width != image.height),
                          pictures.from_pixels(x, MEAN, STD), look)
            yield f"{name}: {text}", {"image": name, **result}, looked
        show(min(i + config.batch, len(files)))


def point(model, files, config):
    """As describe, for --ground: every box is painted red; the score is log p(red), zero-shot."""
    if not config.boxes:
        note("note: no --boxes, so the choice is among windows of a half and a quarter of the side")
    found = load_boxes(config.boxes)
    for name in files:
        try:
            image = pictures.open_image(name)
            boxes = boxes_of(found, name, image.size)
        except UserError as e:
            note(e)
            continue
        painted = lambda box: paint(image, box, PAINTS["red"])
        feats = whole_image_features(model, map(painted, boxes), config.batch)
        scores = fill_in(model, feats, [cloze(config.ground)] * len(boxes), ["red"])[:, 0]
        ranked = sorted(zip(boxes, scores.tolist()), key=lambda pair: -pair[1])
        (box, score), rest = ranked[0], ranked[1:]
        others = f"the next {rest[0][1]:.2f}" if rest else "the only one"
        cells = config.attn and pictures.box_cells(image, ranked, painted)
        yield (f"{name}: {[round(v, 1) for v in box]} ({score:.2f}, {others})",
               {"image": name, "expression": config.ground,
                "boxes": [{"box": b, "score": s} for b, s in ranked]},
               (config.ground, f"{name}, {len(boxes)} boxes, painted; numbers: log p(red)", cells))


# ---------------------------------------------------------------------------- the command

def check(config):
    """UserError for what would otherwise be found out late, after all the captions."""
    if sum(map(bool, (config.ground, config.question, config.prompt))) > 1:
        raise UserError("--ground, --question or --prompt: one of them")
    if config.boxes and not config.ground:
        raise UserError("--boxes is for --ground")
    if config.html and config.ground:
        raise UserError("--html shows words; --ground has none of its own, --attn draws its boxes")
    for flag, ending in (("attn", ".png"), ("html", ".html")):
        if (path := getattr(config, flag)) and not path.lower().endswith(ending):
            raise UserError(f"--{flag} {path}: a name that ends in {ending}, please")
    for path in (config.json, config.attn, config.html):
        check_writable(path)


def load(config, device, dtype):
    """The model. UserError if it cannot do what is asked of it."""
    ckpt = pick_checkpoint(config.ckpt)
    model = SeeGPT.load(ckpt, device, config.lm or None, config.clip or None).cast_frozen(dtype)
    info, chooses = model.run_info, bool(model.method.answers)
    if chooses and config.ground:
        raise UserError(f"{ckpt} chooses among answers; --ground needs a model that writes")
    if chooses and not config.question:
        raise UserError(f'{ckpt} answers questions: ask one, --question "..."')
    if config.question and info.get("task", "captions") == "captions":
        raise UserError(f"{ckpt} was trained on captions, so it answers no question; name another")
    if info.get("dataset", "").split("/")[0] == "shapes":
        note("note: trained on drawings of coloured shapes, so it sees a photo as shapes, too")
    return model


def write_pictures(looked, n, config):
    """Writes the sheet and the page of what was looked at in the first of n pictures."""
    if config.attn:
        blocks = looked if config.ground else [
            (title, name, attention.cells(image, look)) for title, name, image, look in
            looked[:SHEET]]
        much = "looked at most" + ", when about to write the word" * (not config.question)
        sheet, held = pictures.sheet(blocks, *(() if config.ground else ("hardly looked at", much)))
        with replacing(config.attn) as f:
            sheet.save(f, "PNG")
        note(f"{config.attn}: {held} of {n} pictures" if held < n else f"{config.attn} is written")
    if config.html:
        with replacing(config.html) as f:
            f.write(attention.page("where it looked", looked).encode())
        note(f"{config.html}: {len(looked)} of {n} pictures; open it in a browser")


@torch.no_grad()
def main(config):
    check(config)
    files, device = find_images(config.images), pick_device(config.device)
    dtype = getattr(torch, config.dtype)
    model, results, looked = load(config, device, dtype), [], []
    most = PAGE if config.html else SHEET
    torch.manual_seed(config.seed)
    with autocast(device, dtype):
        for line, result, one in (point if config.ground else describe)(model, files, config):
            print(printable(line), flush=True)
            results.append(result)
            looked += [one] if one and len(looked) < most else []
    if not results:
        raise UserError("none of the images could be used, see above")
    write_json(config.json, results)
    write_pictures(looked, len(results), config)
    if len(results) < len(files):
        raise UserError(f"{len(files) - len(results)} of {len(files)} images could not be used, "
                        "see above; the others are done")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
