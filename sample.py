"""Captions your own pictures, and shows for every word where the method looked.

    python sample.py photo.jpg more.png folder/             the newest run in out/
    python sample.py --ckpt out/NAME photo.jpg --beam 5     a certain run, or a checkpoint file
    python sample.py photo.jpg --json captions.json         also as [{"image": ..., "caption": ...}]
    python sample.py photo.jpg --attn attn.png              also the sheet below
    python sample.py --ckpt out/dvp photo.jpg --question "what colour is the circle?"    answers, with probabilities
    python sample.py photo.jpg --ground "the small circle" --boxes boxes.json --attn winner.png    which box is meant (CPT)

  a small red circle left of a large blue square
  +---------+  +---------+  +---------+  +---------+  +---------+
  | o       |  |.........|  |.::......|  |.##......|  |.@@......|    bright: looked at
  |     []  |  |....::...|  |.::......|  |.##......|  |.@@......|    most, when about to
  +---------+  +---------+  +---------+  +---------+  +---------+    write the word
                    a          small         red        circle

The text so far decides where to look, so a word's map belongs to the position in front of it:

  text read     <|endoftext|>      a       small      red
                      |            |         |         |
  looks at          map 0        map 1     map 2     map 3
                      |            |         |         |
  and writes          a          small      red      circle

differs: Xu et al. 2015 ("Show, Attend and Tell") have one attention; here every head of every layer
has one, and a map is the mean of all of them. Heads differ, so take it as a summary.

Next: evaluate.py
"""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from clip_vit import MEAN, STD, preprocess
from data.tasks import condition
from lib.cli import UserError, opt, parse, run
from lib.devices import pick_device
from lib.files import progress, read_json, replacing
from lib.pictures import fit, heat, open_image, sheet
from lib.runs import newest_run
from model import SeeGPT
from prompts import PAINTS, blank, fill_in, paint, whole_image_features

# What counts as an image file in a folder.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SHEET = 20  # pictures on one sheet of --attn, at most


@dataclass
class Config:
    images: list = opt([], "image files; of a folder, all that are in it", positional=True)
    ckpt: str = opt("", "a run's folder or a checkpoint file; empty: the newest run in out/")
    beam: int = opt(5, "beams of the search; 1 takes the likeliest token each time (papers: 5)")
    length_penalty: float = opt(0.0, "a beam's score is its log-probability / tokens ** this; above 0 favours long texts")
    temperature: float = opt(0.0, "above 0: draw each word at random instead; 1 as the model says, less is safer")
    top_k: int = opt(0, "draw among so many tokens; 0: all")
    top_p: float = opt(1.0, "draw among the likeliest tokens that sum to this probability; 1: all")
    seed: int = opt(1337, "of the drawing")
    max_new_tokens: int = opt(30, "longest caption in tokens")
    prompt: str = opt("", "how the text begins (no space at its end); not repeated")
    question: str = opt("", "ask this of every picture instead of describing it; of a model trained on hypotheses: is this true?")
    top: int = opt(3, "answers shown to a question, the likeliest first")
    ground: str = opt("", "say which box of every picture this means: each is painted, and the captioner names the colour")
    boxes: str = opt("", "JSON file for --ground: [[x, y, w, h], ...] in pixels, or {image: such a list}; empty: sliding windows")
    json: str = opt("", "write the captions to this file, too")
    attn: str = opt("", f"PNG file for where the method looked; the first {SHEET} pictures only")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("float32", "of matrix products and frozen weights", choices=("float32", "bfloat16", "float16"))
    gpt2: str = opt("", "where the frozen GPT-2 lies now, if not where it lay in training")
    clip: str = opt("", "where the frozen CLIP lies now, if not where it lay in training")
    batch: int = opt(16, "pictures at a time")


# ---------------------------------------------------------------------------- what to caption

def find_images(names):
    """Files as they are, folders as the image files directly inside, sorted. UserError if none."""
    if not names:
        raise UserError("which picture? python sample.py photo.jpg (--help lists all flags)")
    found = []
    for name in names:
        if Path(name).is_dir():  # a dot in front: another program's thumbnail or note
            found += sorted(str(p) for p in Path(name).iterdir()
                            if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
        else:
            found.append(name)
    if not found:
        raise UserError(f"{', '.join(names)}: no image in there ({', '.join(ENDINGS)})")
    return found


# ---------------------------------------------------------------------------- attention

def words(enc, ids):
    """Joins the tokens of each word: [(word, [places in ids])]. White space begins a word."""
    groups = []
    for i, token in enumerate(ids):
        piece = enc.decode_single_token_bytes(token)  # bytes: two tokens may share a letter
        if not groups or piece[:1].isspace():
            groups.append((piece, [i]))
        else:
            groups[-1] = (groups[-1][0] + piece, groups[-1][1] + [i])
    texts = [(piece.decode("utf-8", "replace").strip(), places) for piece, places in groups]
    return [(text, places) for text, places in texts if text]


@torch.no_grad()
def watched(model, feats, ids, cond):
    """What the method attends to while it reads ids (list) of one image, feats (1, N, D), the first cond of them given:
    [attention (nh, T, N)], one a layer, in the order of the layers."""
    model.method.record_attention = []
    try:
        cond = model.condition_lengths(torch.tensor([cond], device=feats.device))
        model(feats, torch.tensor([ids], device=feats.device), condition_len=cond)
        return [att[0].float().cpu() for _, att in model.method.record_attention]
    finally:
        model.method.record_attention = None


def on_picture(att):
    """Attention (..., N) -> maps (..., grid, grid), without the class token, which is nowhere in the picture."""
    side = round((att.shape[-1] - 1) ** 0.5)
    return att[..., 1:].unflatten(-1, (side, side))


def look(model, feats, start, ids):
    """Where the method looked before it wrote each of ids: maps (len(ids), grid, grid), sum <= 1.

    feats (1, N, D) of one image, start the ids in front. UserError if the method never attends.
    """
    T = len(start) + len(ids)
    seen = watched(model, feats, start + ids, len(start))
    if not seen or any(att.shape[1] < T for att in seen):  # DVP looks once, before all words
        raise UserError(f"--attn: {model.run_info.get('method', 'this method')} does not attend to "
                        "the image word by word, so there is nothing to show; ituning, vanilla and vcgpt do")
    # Mean over heads, then over layers. A method's own prompt tokens stand in front of the text.
    att = torch.stack([att.mean(0)[-T:] for att in seen]).mean(0)  # (T, N)
    # pitfall: what is looked at in order to write token t is in row t - 1; the row of a word itself
    # shows where it looks for the next one.
    return on_picture(att[len(start) - 1:T - 1])


def picture(x):
    """A preprocessed image (3, H, W) as the model sees it, in the size of a cell of the sheet."""
    x = x.cpu() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    image = Image.fromarray((x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    side = image.width
    if side < 128:  # whole multiples without smoothing: the few pixels there are
        return image.resize([side * round(192 / side)] * 2, Image.NEAREST)
    return image if side <= 256 else image.resize((256, 256), Image.LANCZOS)


def block_of_answer(model, x, feats, name, question, answers):
    """As block, of a question: the picture, and one heat map of where DVP's prompt looked."""
    image, enc = picture(x), model.lm.tokenizer
    ids = [enc.eot_token, *enc.encode_ordinary(condition({model.run_info.get("task", "question"): question}))]
    seen = watched(model, feats, ids, len(ids))
    if not seen:
        raise UserError("--attn: this model has no single prompt that looks at the image, so there is nothing to show")
    heads = on_picture(seen[0][:, 0])  # (nh, grid, grid), of the one layer K
    most = max(float(heads.mean(0).max()), 1e-9)
    cells = [(image, ""), (heat(image, (heads.mean(0) / most) ** 0.7), "all heads")]
    if len(heads) <= 6:
        cells += [(heat(image, (m / max(float(m.max()), 1e-9)) ** 0.7), f"head {i}") for i, m in enumerate(heads)]
    return f"{question} {', '.join(f'{a} {100 * p:.0f} %' for a, p in answers)}", name, cells


def block(model, x, feats, name, caption, ids, config):
    """One image's part of the sheet for pictures.sheet: the picture, then a heat map for every word."""
    image = picture(x)
    enc = model.lm.tokenizer
    maps = look(model, feats, [enc.eot_token, *enc.encode_ordinary(config.prompt)], ids)
    found = [(word, maps[places].mean(0)) for word, places in words(enc, ids)]
    # One scale, from 0 up, for all words of a caption: an "a" that hardly looks anywhere stays dim.
    # With a scale a word, its noise would glow like the sharp spot of "circle". The power lifts
    # weak maps a little; it keeps the order.
    most = max([float(m.max()) for _, m in found] + [1e-9])
    cells = [(heat(image, (m / most) ** 0.7), word) for word, m in found]
    return caption, name, [(image, ""), *cells]


# ---------------------------------------------------------------------------- pointing

def windows(size):
    """Squares of a half and a quarter of the shorter side, each half over the next or more: the choice without boxes."""
    found = []
    for part in (2, 4):
        side = min(size) / part
        xs, ys = (np.linspace(0, length - side, math.ceil(2 * (length - side) / side) + 1).tolist() for length in size)
        found += [[x, y, side, side] for y in ys for x in xs]
    return found


def read_boxes(path, name):
    """The boxes for an image; None without a file. UserError unless it holds boxes of four numbers."""
    if not path:
        return None
    form = "expected [[x, y, w, h], ...] in pixels, or {image: such a list}"
    found = read_json(Path(path), form)
    if isinstance(found, dict):
        if not (key := next((k for k in (name, Path(name).name) if k in found), None)):
            raise UserError(f"{path} has no boxes for {name}; {form}")
        found = found[key]
    good = isinstance(found, list) and found and all(
        isinstance(b, list) and len(b) == 4 and all(isinstance(v, (int, float)) for v in b) and min(b[2:]) > 0 for b in found)
    if not good:
        raise UserError(f"{path}: no boxes, or not of this form; {form}")
    return found


def point(model, name, config):
    """(image, [(box, score)], best first) of one image file. The score is log p(red) with the box painted red, zero-shot."""
    image = open_image(name)
    boxes = read_boxes(config.boxes, name) or windows(image.size)
    for x, y, w, h in boxes:
        if x >= image.width or y >= image.height or x + w <= 0 or y + h <= 0:
            raise UserError(f"{config.boxes}: {[x, y, w, h]} lies outside {name}, which has {image.width} x {image.height} "
                            "pixels")
    feats = whole_image_features(model, (paint(image, [(box, PAINTS["red"])]) for box in boxes), config.batch)
    scores = fill_in(model, feats, [blank(config.ground)] * len(boxes), ["red"])[:, 0].tolist()
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    return image, [(boxes[i], scores[i]) for i in order]


def block_of_boxes(image, name, phrase, found, most=11):
    """For pictures.sheet: the picture with the winner's outline, then the painted candidates, best first."""
    big = 224 / max(image.size)
    enlarge = lambda p: p.resize([max(1, round(v * big)) for v in p.size], Image.NEAREST if big > 2 else Image.LANCZOS)
    whole = enlarge(image)
    x, y, w, h = (v * big for v in found[0][0])
    right, below = max(x, min(x + w, whole.width) - 1), max(y, min(y + h, whole.height) - 1)
    ImageDraw.Draw(whole).rectangle((x, y, right, below), outline=(240, 0, 30), width=3)
    cells = [(whole, "the winner")]
    cells += [(enlarge(paint(image, [(box, PAINTS["red"])])), f"{score:.2f}") for box, score in found[:most]]
    cells = [(fit(picture, 224, 224), label) for picture, label in cells]
    return phrase, f"{name}, {len(found)} boxes, painted; numbers: log p(red)", cells


# ---------------------------------------------------------------------------- the command

def say(text, end="\n"):
    """To stderr: stdout is for captions alone."""
    print(text, end=end, file=sys.stderr, flush=True)


def load_images(names, size):
    """(names, images) of the files that can be read, and the errors of the others."""
    good, images, bad = [], [], []
    for name in names:
        try:
            images.append(preprocess(open_image(name), size))
            good.append(name)
        except UserError as e:
            bad.append(e)
    return good, images, bad


def check(config):
    """UserError for what would otherwise be found out late, after all the captions."""
    for name in ("beam", "max_new_tokens", "batch", "top"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: must be 1 or more")
    if config.temperature < 0 or config.top_k < 0 or not 0 < config.top_p <= 1:
        raise UserError("--temperature and --top_k must be 0 or more, --top_p above 0 and at most 1")
    if sum(map(bool, (config.ground, config.question, config.prompt))) > 1:
        raise UserError("--ground, --question or --prompt: one of them")
    if config.boxes and not config.ground:
        raise UserError("--boxes is for --ground")
    if config.attn and not config.attn.lower().endswith(".png"):
        raise UserError(f"--attn {config.attn}: a name that ends in .png, please")


def save(config, results, blocks):
    """Writes the files asked for with --json and --attn."""
    if config.json:
        with replacing(config.json) as f:
            f.write(json.dumps(results, indent=1).encode() + b"\n")
    if config.attn:
        with replacing(config.attn) as f:
            much = "looked at most" if config.question else "looked at most, when about to write the word"
            sheet(blocks, *(() if config.ground else ("hardly looked at", much))).save(f, "PNG")
        if len(results) > len(blocks):
            say(f"note: {config.attn} shows the first {SHEET} of {len(results)} pictures")


@torch.no_grad()
def main(config):
    check(config)
    files, device = find_images(config.images), pick_device(config.device)
    ckpt = config.ckpt or newest_run()
    if not config.ckpt:
        say(f"checkpoint: {ckpt}, the newest run (--ckpt for another)")
    dtype = getattr(torch, config.dtype)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    model = SeeGPT.load(ckpt, device, config.gpt2 or None, config.clip or None).cast_frozen(dtype)
    torch.manual_seed(config.seed)
    chooses, task = bool(model.method.answers), model.run_info.get("task", "captions")
    if chooses and config.ground:
        raise UserError(f"{ckpt} chooses among answers; --ground needs a model that writes")
    if chooses and not config.question:
        raise UserError(f'{ckpt} answers questions: ask one, --question "..."')
    if model.run_info.get("dataset", "").split("/")[0] == "shapes":
        say("note: trained on drawings of coloured shapes, so it sees a photo as shapes, too")
    if config.ground:
        with autocast:
            return ground(model, files, config)
    if config.question and task == "captions":
        raise UserError(f"{ckpt} was trained on captions, so it answers no question; leave --question away, or name "
                        "with --ckpt a model trained on questions")
    prompt = condition({task: config.question}) if config.question else config.prompt
    terminal = sys.stderr.isatty() and len(files) > config.batch
    show = progress("captions", len(files)) if terminal else lambda done: None
    results, blocks = [], []
    for i in range(0, len(files), config.batch):
        names, images, bad = load_images(files[i:i + config.batch], model.vit.image_size)
        with autocast:
            feats = model.image_features(torch.stack(images).to(device)) if images else None
            if images and chooses:
                found = model.answer(feats, [config.question] * len(images), config.top)
            else:
                found = model.generate(feats, prompt, config.beam, config.max_new_tokens, config.length_penalty,
                                       temperature=config.temperature, top_k=config.top_k, top_p=config.top_p,
                                       with_ids=True) if images else []
        say(f"\r{'':78}\r" * terminal, end="")  # wipes the progress away
        for e in bad:
            say(e)
        for b, (name, one) in enumerate(zip(names, found)):
            if config.question:
                answers = one if chooses else [(one[0], None)]
                print(f"{name}: " + ", ".join(a if p is None else f"{a} ({100 * p:.1f} %)" for a, p in answers), flush=True)
                results.append({"image": name, "question": config.question, "answers": answers})
            else:
                print(f"{name}: {' '.join(one[0].split())}", flush=True)
                results.append({"image": name, "caption": one[0]})
            if config.attn and len(blocks) < SHEET:
                x, f = images[b], feats[b:b + 1]
                with autocast:
                    blocks.append(block_of_answer(model, x, f, name, config.question, one) if chooses else
                                  block(model, x, f, name, *one, replace(config, prompt=prompt)))
        show(min(i + config.batch, len(files)))
    if not results:
        raise UserError("none of the images could be read, so there is no caption")
    save(config, results, blocks)
    if len(results) < len(files):
        raise UserError(f"{len(files) - len(results)} of {len(files)} images could not be read; "
                        "the others have their captions")


def ground(model, files, config):
    """--ground: prints the best box of every image, and with --attn draws the candidates."""
    if not config.boxes:
        say("note: no --boxes, so the choice is among sliding windows, squares of a half and a quarter of the shorter side")
    results, blocks = [], []
    for name in files:
        try:
            image, found = point(model, name, config)
        except UserError as e:
            if len(files) == 1:
                raise
            say(e)
            continue
        (box, score), others = found[0], f"the next {found[1][1]:.2f}" if len(found) > 1 else "the only one"
        print(f"{name}: {[round(v, 1) for v in box]} ({score:.2f}, {others})", flush=True)
        results.append({"image": name, "expression": config.ground, "boxes": [{"box": b, "score": s} for b, s in found]})
        if config.attn and len(blocks) < SHEET:
            blocks.append(block_of_boxes(image, name, config.ground, found))
    if results:
        save(config, results, blocks)
    if len(results) < len(files):
        raise UserError(f"{len(files) - len(results)} of {len(files)} images were left out, see above")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a character they lack becomes its number
        stream.reconfigure(errors="backslashreplace")
    run(lambda: main(*parse(Config)))
