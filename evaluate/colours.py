"""Which colours and words suit a captioner (CPT's cross-modal prompt search)."""

import numpy as np
from PIL import Image

from evaluate.regions import NOMINAL
from prompts import fill_in, whole_image_features


def search_colours(model, side=20):
    """[(word, (r, g, b), score)], best first: what the captioner itself calls colours (CPT's cross-modal prompt search).

    A picture of one colour and "a photo in": a word's score is its log-probability. Words that are the best for no
    colour are dropped; each other gets the colour that gives it the highest score. The grid, fixed beforehand, is
    the nominal colour of every word and its neighbours, side levels away in R, G and B.
    """
    grid = sorted({tuple(int(np.clip(v + side * (i - 1), 0, 255)) for v, i in zip(rgb, steps))
                   for rgb in NOMINAL.values() for steps in np.ndindex(3, 3, 3)})
    words = list(NOMINAL)
    pictures = [Image.new("RGB", (model.vit.image_size,) * 2, colour) for colour in grid]
    return ranked(fill_in(model, whole_image_features(model, pictures), ["a photo in"] * len(grid), words).cpu().numpy(), grid, words)


def ranked(scores, grid, words):
    """scores (colours, words) -> [(word, colour, score)] of the words that win somewhere, best first."""
    winners = sorted(set(scores.argmax(1).tolist()))
    return sorted(((words[w], grid[int(scores[:, w].argmax())], float(scores[:, w].max())) for w in winners), key=lambda x: -x[2])
