"""Captions your own pictures, answers questions about them, and points at what a phrase means.

    python sample.py photo.jpg more.png folder/             the newest run in out/
    python sample.py --ckpt out/NAME photo.jpg --beam 5     a certain run, or a checkpoint file
    python sample.py photo.jpg --json captions.json         also as [{"image": ..., "caption": ...}]
    python sample.py photo.jpg --attn attn.png              also the sheet below
    python sample.py --ckpt out/dvp photo.jpg --question "what colour is the circle?"
    python sample.py photo.jpg --ground "the small circle" --boxes boxes.json --attn winner.png

  a small red circle left of a large blue square
  +---------+  +---------+  +---------+  +---------+  +---------+
  | o       |  |.........|  |.::......|  |.##......|  |.@@......|    bright: looked at
  |     []  |  |....::...|  |.::......|  |.##......|  |.@@......|    most, when about to
  +---------+  +---------+  +---------+  +---------+  +---------+    write the word
                    a          small         red        circle

The text so far decides where to look, so a word's map belongs to the position in front of it:

  text read     <|endoftext|>      a       small      red
  looks at          map 0        map 1     map 2     map 3
  and writes          a          small      red      circle

differs: Xu et al. 2015 ("Show, Attend and Tell") have one attention; here a map is the mean of all
heads of all layers, which differ.

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
from lib import pictures
from lib.devices import autocast, pick_device
from lib.files import check_writable, find_images, progress, replacing, write_json
from lib.settings import pick_checkpoint
from model import SeeGPT
from prompts import PAINTS, cloze, fill_in, paint
from weights.tokenizers import join_words

SHEET = 20  # pictures on one sheet of --attn, at most


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
    attn: str = opt("", f"PNG file for where it looked; the first {SHEET} pictures only")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("float32", "of matrix products and frozen weights",
                     choices=("float32", "bfloat16", "float16"))
    lm: str = opt("", "where the frozen language model lies now, if it was moved", alias="gpt2")
    clip: str = opt("", "where the frozen CLIP lies now, if it was moved")
    batch: int = opt(16, "pictures at a time", at_least=1)


# ---------------------------------------------------------------------------- attention

@torch.no_grad()
def record_attention(model, feats, ids, condition_len):
    """What the method attends to while it reads ids (list) of one image, feats (1, N, D), of which
    the first condition_len are given: [attention (nh, T, N)], one a layer, in their order."""
    model.method.record_attention = []
    try:
        lengths = model.condition_lengths(torch.tensor([condition_len], device=feats.device))
        model(feats, torch.tensor([ids], device=feats.device), condition_len=lengths)
        return [att[0].float().cpu() for _, att in model.method.record_attention]
    finally:
        model.method.record_attention = None


def as_grid(att):
    """Attention (..., N) -> maps (..., grid, grid), without the class token, which is nowhere."""
    side = round((att.shape[-1] - 1) ** 0.5)
    return att[..., 1:].unflatten(-1, (side, side))


def attention_maps(model, feats, start, ids):
    """Where the method looked before it wrote each of ids: maps (len(ids), grid, grid), sum <= 1.

    feats (1, N, D) of one image, start the ids in front. UserError if the method never attends.
    """
    T = len(start) + len(ids)
    layers = record_attention(model, feats, start + ids, len(start))
    if not layers or any(att.shape[1] < T for att in layers):  # DVP looks once, before all words
        raise UserError("--attn: this method does not attend to the image word by word, there is "
                        "nothing to show; ituning, vanilla and vcgpt do")
    # Mean over heads, then over layers. A method's own prompt tokens stand in front of the text.
    att = torch.stack([att.mean(0)[-T:] for att in layers]).mean(0)  # (T, N)
    # pitfall: what is looked at to write token t is in row t - 1; row t is for the next one.
    return as_grid(att[len(start) - 1:T - 1])


def caption_cells(model, x, feats, prompt, ids):
    """The picture, then a heat map for every word of a caption: [(image, label)]."""
    start = text_ids(model.lm.tokenizer, prompt)
    maps, image = attention_maps(model, feats, start, ids), pictures.from_pixels(x, MEAN, STD)
    found = [(word, maps[places].mean(0)) for word, places in join_words(model.lm.tokenizer, ids)]
    # One scale for all words: with its own, an "a" that hardly looks anywhere would glow, too.
    most = max([float(m.max()) for _, m in found] + [1e-9])
    return [(image, ""), *((pictures.glow(image, m / most), word) for word, m in found)]


def answer_cells(model, x, feats, prompt, ids=None):
    """The picture, then where DVP's one prompt token looked: all heads, and each. No ids follow."""
    ids = text_ids(model.lm.tokenizer, prompt)
    layers = record_attention(model, feats, ids, len(ids))
    if not layers:
        raise UserError("--attn: this model has no single prompt that looks at the image, so there "
                        "is nothing to show")
    heads = as_grid(layers[0][:, 0])  # (nh, grid, grid), of the one layer K
    image, maps = pictures.from_pixels(x, MEAN, STD), {"all heads": heads.mean(0)}
    maps |= {f"head {i}": m for i, m in enumerate(heads) if len(heads) <= 6}
    glow = lambda m: pictures.glow(image, m / max(float(m.max()), 1e-9))
    return [(image, ""), *((glow(m), label) for label, m in maps.items())]


# ---------------------------------------------------------------------------- what to say

def describe(model, files, config):
    """Yields (line to print, result, block of the sheet or None) for captions and answers."""
    task, chooses = model.run_info.get("task", "captions"), bool(model.method.answers)
    prompt = condition({task: config.question}) if config.question else config.prompt
    device = model.lm.wte.weight.device
    cells = answer_cells if chooses else caption_cells
    if config.attn:  # a method that does not attend is refused now, not after the work
        x = torch.zeros(3, model.vit.image_size, model.vit.image_size)
        cells(model, x, model.image_features(x[None].to(device)), prompt, [0])
    # A line that renews itself, only where stdout is not the terminal.
    loud, shown = sys.stderr.isatty() and not sys.stdout.isatty(), 0
    show = progress("pictures", len(files)) if loud else lambda done: None
    for i in range(0, len(files), config.batch):
        names, images = pictures.read_images(files[i:i + config.batch])
        pixels = [preprocess(image, model.vit.image_size) for image in images]
        if not names:
            continue
        feats = model.image_features(torch.stack(pixels).to(device))
        if chooses:
            found = model.answer(feats, [config.question] * len(names), config.top)
        else:
            found = model.generate(feats, prompt, 1 if config.question else config.beam,
                                   config.max_new_tokens, config.length_penalty,
                                   config.temperature, config.top_k, config.top_p, with_ids=True)
        for name, x, f, one in zip(names, pixels, feats.split(1), found):
            if config.question:
                answers = one if chooses else [(one[0], None)]
                text = ", ".join(a if p is None else f"{a} ({100 * p:.1f} %)" for a, p in answers)
                result, title = {"question": config.question, "answers": answers}, config.question
            else:
                text = title = " ".join(one[0].split())
                result = {"caption": one[0]}
            block, shown = None, shown + 1
            if config.attn and shown <= SHEET:
                heading = f"{title} {text}" if config.question else title
                block = heading, name, cells(model, x, f, prompt, one[-1])
            yield f"{name}: {text}", {"image": name, **result}, block
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
        block = config.attn and (
            config.ground, f"{name}, {len(boxes)} boxes, painted; numbers: log p(red)",
            pictures.box_cells(image, ranked, painted))
        yield (f"{name}: {[round(v, 1) for v in box]} ({score:.2f}, {others})",
               {"image": name, "expression": config.ground,
                "boxes": [{"box": b, "score": s} for b, s in ranked]}, block)


# ---------------------------------------------------------------------------- the command

def check(config):
    """UserError for what would otherwise be found out late, after all the captions."""
    if sum(map(bool, (config.ground, config.question, config.prompt))) > 1:
        raise UserError("--ground, --question or --prompt: one of them")
    if config.boxes and not config.ground:
        raise UserError("--boxes is for --ground")
    if config.attn and not config.attn.lower().endswith(".png"):
        raise UserError(f"--attn {config.attn}: a name that ends in .png, please")
    for path in (config.json, config.attn):
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


@torch.no_grad()
def main(config):
    check(config)
    files, device = find_images(config.images), pick_device(config.device)
    dtype = getattr(torch, config.dtype)
    model, results, blocks = load(config, device, dtype), [], []
    torch.manual_seed(config.seed)
    with autocast(device, dtype):
        for line, result, block in (point if config.ground else describe)(model, files, config):
            print(printable(line), flush=True)
            results.append(result)
            blocks += [block] if block and len(blocks) < SHEET else []
    if not results:
        raise UserError("none of the images could be used, see above")
    write_json(config.json, results)
    if config.attn:
        much = "looked at most" + ", when about to write the word" * (not config.question)
        sheet = pictures.sheet(blocks, *(() if config.ground else ("hardly looked at", much)))
        with replacing(config.attn) as f:
            sheet.save(f, "PNG")
        if len(results) > len(blocks):
            note(f"note: {config.attn} shows the first {SHEET} of {len(results)} pictures")
    if len(results) < len(files):
        raise UserError(f"{len(files) - len(results)} of {len(files)} images could not be used, "
                        "see above; the others are done")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
