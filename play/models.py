"""Which runs can do what, and what they say about a picture."""

import time
from pathlib import Path

import torch

from clip_vit import MEAN, STD, preprocess
from data.batches import text_ids
from data.boxes import is_box, windows
from data.features import whole_image_features
from data.tasks import condition
from lib.attention import as_json, data_url, look_of_prompt, look_of_words
from lib.cli import UserError, note
from lib.files import repo_path
from lib.pictures import from_pixels
from model import SeeGPT
from prompts import PAINTS, cloze, fill_in, paint
from weights.checkpoints import checkpoint_file, read_run_info

# What the page can do, and the command that makes a model for it.
COMMANDS = {"caption": "python train.py",
            "answer": "python train.py --dataset shapes/vqa --search",
            "point": ("python train.py --dataset shapes/regions "
                      "--init_from out/shapes-ituning")}
LONGEST = 200  # characters of a question or an expression
BOXES = 64  # that an expression can choose among, at most
TOP = 5  # answers shown


def abilities(info):
    """What a run of these facts is good for, a list of names of COMMANDS."""
    if info.get("task", "captions") != "captions":
        return ["answer"]
    # A captioner of the shapes world has never read "is in red"; one of photos has.
    return {"shapes": ["caption"], "shapes/regions": ["point"]}.get(
        info.get("dataset"), ["caption", "point"])


def find_runs(ckpts):
    """{ability: path} of these runs, or of all in out/; of several that can do it the first named,
    or the newest. UserError for a named one that is none."""
    found, paths = {}, ckpts
    if not ckpts:
        files = Path(repo_path("out")).glob("*/*.safetensors")
        newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
        paths = list(dict.fromkeys(file.parent for file in newest))
    for path in paths:
        try:
            info = read_run_info(path)
        except UserError as e:
            if ckpts:
                raise
            note(f"left out: {e}")
            continue
        for ability in abilities(info):
            found.setdefault(ability, path)
    return found


class Models:
    """The models of {ability: path}, each loaded when it is first asked for."""

    def __init__(self, runs, device):
        self.runs, self.device, self.loaded = runs, device, {}

    def lines(self):
        """What can be done with what, or how to make it possible."""
        for ability, command in COMMANDS.items():
            path = self.runs.get(ability)
            yield f"{ability:8} {path or f'no model yet; {command} makes one'}"

    def model(self, ability):
        """UserError if there is none."""
        if ability not in self.runs:
            raise UserError(f"no model for this yet; {COMMANDS[ability]} makes one, then start "
                            "python -m play again")
        file = str(checkpoint_file(self.runs[ability]))
        if file not in self.loaded:
            self.loaded[file] = SeeGPT.load(file, self.device)
        return self.loaded[file]

    @torch.no_grad()
    def reply(self, ability, image, asked):
        """What the page shows: a dictionary of JSON. image: RGB; asked: the request, of which
        "text" is the question or expression and "boxes" what can be pointed at."""
        began, text = time.perf_counter(), asked.get("text", "")
        if not isinstance(text, str) or len(text) > LONGEST or "\0" in text:
            raise UserError(f"a text of at most {LONGEST} characters, please")
        if ability != "caption" and not text.strip():
            raise UserError("type something first")
        model, text = self.model(ability), " ".join(text.split())
        found = (caption(model, image) if ability == "caption" else
                 answer(model, image, text) if ability == "answer" else
                 point(model, image, text, asked.get("boxes")))
        return {**found, "run": str(Path(self.runs[ability]).name),
                "ms": round(1000 * (time.perf_counter() - began))}


def encode(model, image):
    """(preprocessed pixels (3, H, W), features (1, N, D)) of a picture."""
    x = preprocess(image, model.vit.image_size)
    return x, model.image_features(x[None].to(model.lm.wte.weight.device))


def caption(model, image):
    """The greedy caption, and where the method looked for each word."""
    x, feats = encode(model, image)
    (text, ids), = model.generate(feats, beam=1, with_ids=True)
    look = look_of_words(model, feats, text_ids(model.lm.tokenizer, ""), ids)
    return {"title": text, "look": as_json(look), "image": data_url(from_pixels(x, MEAN, STD))}


def answer(model, image, question):
    """The likeliest answers with their probabilities, or the one that the model writes."""
    x, feats = encode(model, image)
    asked = condition({model.run_info.get("task", "question"): question})
    start = text_ids(model.lm.tokenizer, asked)
    if len(start) >= model.lm.config.n_positions - 30:
        raise UserError("this question is too long for the model")
    if model.method.answers:
        answers = model.answer(feats, [question], TOP)[0]
        look = look_of_prompt(model, feats, start, answers[0][0])
    else:
        (text, ids), = model.generate(feats, asked, beam=1, with_ids=True)
        answers, look = [(text, None)], look_of_words(model, feats, start, ids)
    return {"title": answers[0][0], "answers": answers, "look": as_json(look),
            "image": data_url(from_pixels(x, MEAN, STD))}


def point(model, image, expression, boxes):
    """CPT: each box is painted red in a copy; the likeliest one to be called red is meant. boxes
    [[x, y, w, h], ...] in pixels of the image, or None: windows."""
    if boxes is None or boxes == []:
        boxes = windows(image.size)[:BOXES]
    if not (isinstance(boxes, list) and len(boxes) <= BOXES and all(map(is_box, boxes))):
        raise UserError(f"boxes: at most {BOXES} of [x, y, width, height], please")
    copies = [paint(image, box, PAINTS["red"]) for box in boxes]
    feats = whole_image_features(model, copies, 16)
    prompt = cloze(expression)
    if len(text_ids(model.lm.tokenizer, prompt)) >= model.lm.config.n_positions - 30:
        raise UserError("this expression is too long for the model")
    scores = fill_in(model, feats, [prompt] * len(boxes), ["red"])[:, 0]
    return {"title": expression, "boxes": boxes, "scores": scores.tolist(),
            "shares": scores.softmax(0).tolist()}
