"""Scores with their intervals, as Markdown tables."""

import numpy as np

from evaluate.metrics import bleu_scores

RESAMPLES = 1000  # of the bootstrap


def bootstrap(counts, means, resamples=RESAMPLES, seed=1337):
    """{metric: (score, low, high)} x 100 with the interval that holds the middle 95 % of resamples.

    counts (n, 10) as bleu_counts makes them, or (n, 0) for no BLEU; means {metric: (values (n,), weights (n,))}, whose score
    is sum(values * weights) / sum(weights). A resample draws n of the n images, with repetition, and
    scores them: how much would the number move with other images like these? (Efron 1979.) Every score
    is a function of sums over images, so a resample is one product of how often each image was drawn
    with the table of all columns. CIDEr-D keeps the document frequencies of the images that there are.
    The seed is fixed: the same captions give the same interval.
    """
    with_bleu = counts.shape[1]
    columns = [counts.T, *(part for v, w in means.values() for part in ((v * w)[None], w[None]))]
    columns = np.concatenate(columns).T  # (n, columns)

    def scores(sums):  # (..., columns) -> (..., metrics)
        ratios = sums[..., with_bleu::2] / np.maximum(sums[..., with_bleu + 1::2], 1e-9)
        return 100 * (np.concatenate([bleu_scores(sums[..., :10]), ratios], -1) if with_bleu else ratios)

    rng, n = np.random.default_rng(seed), len(columns)
    drawn = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) @ columns for _ in range(resamples)])
    low, high = np.percentile(scores(drawn), (2.5, 97.5), axis=0)
    names = [f"BLEU-{k}" for k in range(1, 5) if with_bleu] + list(means)
    return dict(zip(names, zip(scores(columns.sum(0)).tolist(), low.tolist(), high.tolist())))


def shown(score, low, high):
    return f"{score:.1f}" if low is None else f"{score:.1f} [{low:.1f}, {high:.1f}]"


def markdown(lines):
    """A Markdown table of lines of cells (str), the first of them the head; all columns but the first to the right."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *rest])


def table(rows, n, of="images"):
    """Markdown of {row: {metric: (score, low, high)}}, each of n images or questions."""
    metrics = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    cells = [["checkpoint", of, *metrics]]
    for name, scores in rows.items():
        numbers = [shown(*scores[m]) if m in scores else "" for m in metrics]
        cells.append([name.replace("|", "\\|"), f"{n:,}", *numbers])
    return markdown(cells)
