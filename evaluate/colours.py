"""Which colours and words suit a captioner (CPT's cross-modal prompt search)."""

import numpy as np
from PIL import Image

from data.features import whole_image_features
from lib.cli import note
from lib.files import replacing, write_json
from lib.pictures import sheet
from prompts import fill_in

NOMINAL = {"red": (220, 30, 30), "orange": (240, 140, 30), "yellow": (240, 230, 40),
           "green": (40, 170, 60), "cyan": (60, 210, 220), "blue": (40, 70, 220),
           "purple": (140, 50, 190), "pink": (240, 130, 190), "brown": (130, 80, 40),
           "black": (15, 15, 15), "white": (245, 245, 245), "grey": (128, 128, 128)}


def search_colours(model, step=20):
    """[(word, (r, g, b), score)], best first: what the captioner itself calls colours.

    A picture of one colour and "a photo in": a word's score is its log-probability. Words that are
    the best for no colour are dropped; each other gets the colour that gives it the highest score.
    The grid, fixed beforehand, is the nominal colour of every word and its neighbours, step levels
    (of 255) away in R, G and B.
    """
    grid = sorted({tuple(int(np.clip(v + step * (i - 1), 0, 255)) for v, i in zip(rgb, offsets))
                   for rgb in NOMINAL.values() for offsets in np.ndindex(3, 3, 3)})
    pictures = [Image.new("RGB", (model.vit.image_size,) * 2, colour) for colour in grid]
    feats, words = whole_image_features(model, pictures), list(NOMINAL)
    scores = fill_in(model, feats, ["a photo in"] * len(grid), words)
    return rank_words(scores.cpu().numpy(), grid, words)


def rank_words(scores, grid, words):
    """scores (colours, words) -> [(word, colour, score)] of the words that win somewhere, best
    first."""
    winners = sorted(set(scores.argmax(1).tolist()))
    found = [(words[w], grid[int(scores[:, w].argmax())], float(scores[:, w].max()))
             for w in winners]
    return sorted(found, key=lambda x: -x[2])


def show_colours(model, json="", png=""):
    """Prints what the search found, and writes it to the files that are named."""
    found = search_colours(model)
    for word, colour, score in found:
        print(f"{word:8} {str(colour):16} log p {score:.2f}")
    if png:
        cells = [(Image.new("RGB", (128, 96), colour), f"{word} {score:.2f}")
                 for word, colour, score in found]
        with replacing(png) as f:
            sheet([("colours found", "a photo in ...", cells)])[0].save(f, "PNG")
        note(f"{png} is drawn")
    write_json(json, [{"word": word, "rgb": colour, "log_p": score}
                      for word, colour, score in found])
