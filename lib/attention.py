"""Where a method looked: recorded, joined to words, and shown, as cells of a sheet or as a page.

The text so far decides where to look, so a word's map belongs to the position in front of it:

  text read     <|endoftext|>      a       small      red
  looks at          map 0        map 1     map 2     map 3
  and writes          a          small      red      circle

differs: Xu et al. 2015 ("Show, Attend and Tell") have one attention; here every layer has heads
that differ. A sheet shows the mean of all; on a page a layer or a head can be chosen.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import pictures
from weights.tokenizers import join_words

HERE = Path(__file__).resolve().parent


@dataclass
class Look:
    """Where a method looked for each of its words."""

    words: list  # W texts
    maps: torch.Tensor  # (layers, heads, W, grid, grid), each map with a sum of at most 1
    layers: list  # the number of each layer that looks
    of_prompt: bool = False  # DVP's: one map for all, made before the first word


@torch.no_grad()
def record_attention(model, feats, ids, condition_len):
    """What the method attends to while it reads ids (list) of one image, feats (1, N, D), of which
    the first condition_len are given: [(layer, attention (nh, T, N))], in their order."""
    model.method.record_attention = []
    try:
        lengths = model.condition_lengths(torch.tensor([condition_len], device=feats.device))
        model(feats, torch.tensor([ids], device=feats.device), condition_len=lengths)
        return [(l, att[0].float().cpu()) for l, att in model.method.record_attention]
    finally:
        model.method.record_attention = None


def as_grid(att):
    """Attention (..., N) -> maps (..., grid, grid), without the class token, which is nowhere."""
    side = round((att.shape[-1] - 1) ** 0.5)
    return att[..., 1:].unflatten(-1, (side, side))


def attention_maps(model, feats, start, ids):
    """Where the method looked before it wrote each of ids: (maps (layers, heads, len(ids), grid,
    grid), numbers of the layers), or None if it does not attend word by word.

    feats (1, N, D) of one image, start the ids in front.
    """
    T = len(start) + len(ids)
    found = record_attention(model, feats, start + ids, len(start))
    if not found or any(att.shape[1] < T for _, att in found):  # DVP looks once, before all words
        return None
    # A method's own prompt tokens stand in front of the text.
    att = torch.stack([att[:, -T:] for _, att in found])  # (layers, heads, T, N)
    # pitfall: what is looked at to write token t is in row t - 1; row t is for the next one.
    return as_grid(att[:, :, len(start) - 1:T - 1]), [l for l, _ in found]


def look_of_words(model, feats, start, ids):
    """The Look of a text, a map for every word, or None as for attention_maps."""
    found = attention_maps(model, feats, start, ids)
    if found is None:
        return None
    maps, layers = found
    words = join_words(model.lm.tokenizer, ids)
    means = [maps[:, :, places].mean(2) for _, places in words]
    maps = torch.stack(means, 2) if means else maps[:, :, :0]
    return Look([word for word, _ in words], maps, layers)


def look_of_prompt(model, feats, ids, word):
    """The Look of DVP's one prompt token, made for the condition ids, under the name word; None if
    the method has no such token."""
    found = record_attention(model, feats, ids, len(ids))
    if not found:
        return None
    layer, att = found[0]
    return Look([word], as_grid(att[:, :1])[None], [layer], True)


# ---------------------------------------------------------------------------- cells of a sheet

def cells(image, look):
    """The picture, then heat maps over it: [(image, label)]."""
    return (head_cells if look.of_prompt else word_cells)(image, look)


def word_cells(image, look):
    """A map for every word, the mean of all heads."""
    maps = look.maps.mean((0, 1))
    # One scale for all words: with its own, an "a" that hardly looks anywhere would glow, too.
    most = max([float(m.max()) for m in maps] + [1e-9])
    return [(image, ""),
            *((pictures.glow(image, m / most), word) for m, word in zip(maps, look.words))]


def head_cells(image, look):
    """Where the heads of one layer looked for one word: all of them, and each."""
    heads = look.maps[0, :, 0]
    maps = {"all heads": heads.mean(0)}
    maps |= {f"head {i}": m for i, m in enumerate(heads) if len(heads) <= 6}
    return [(image, ""), *((pictures.glow(image, m / max(float(m.max()), 1e-9)), label)
                           for label, m in maps.items())]


# ---------------------------------------------------------------------------- a page

def data_url(image):
    """An RGB image as a text that a browser shows."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def as_json(look):
    """A Look as the page's script reads it; maps as bytes, 255 for the highest number of all."""
    if look is None:
        return None
    most = max(float(look.maps.max()), 1e-9) if look.words else 1
    # Square roots: beside a head that looks at a point, one that looks everywhere is faint.
    maps = ((look.maps / most).sqrt() * 255).round().to(torch.uint8)
    return {"words": look.words, "layers": look.layers, "heads": maps.shape[1],
            "grid": maps.shape[-1], "maps": base64.b64encode(maps.numpy().tobytes()).decode()}


def in_script(value):
    """JSON that can stand inside <script>, whatever the texts in it."""
    return json.dumps(value).replace("<", "\\u003c")


def look_parts():
    """The style and the script that draw words and their maps, for any page."""
    return ((HERE / "look.html").read_text("utf-8")
            .replace("/*HEAT*/[]", json.dumps(pictures.HEAT.tolist())))


def page(title, looked):
    """One HTML file that needs no other and no network: looked [(title, name, image, Look)] one
    under another, with the map of the word under the pointer. Of a name no folder is told."""
    readings = [{"title": title, "name": Path(name).name, "image": data_url(image),
                 "look": as_json(look)} for title, name, image, look in looked]
    return ((HERE / "page.html").read_text("utf-8").replace("<!--LOOK-->", look_parts())
            .replace("/*READINGS*/{}", in_script({"title": title, "readings": readings})))
