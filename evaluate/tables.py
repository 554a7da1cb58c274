"""Scores with their confidence intervals, as Markdown tables."""

import numpy as np

from evaluate.metrics import bleu_scores
from lib.cli import printable

RESAMPLES = 1000  # of the bootstrap


def bootstrap(means, bleu=None, resamples=RESAMPLES, seed=1337):
    """{metric: (score, low, high)} x 100 with the interval of the middle 95 % of the resamples.

    means {metric: values (n,)}, the score being their mean, NaN left out; bleu: bleu_counts
    (n, 10), or None for no BLEU. A resample draws n of the n items with replacement and scores
    them: how much would the number move with other items like these? (Efron 1979.) Every score is
    a function of sums over items, so a resample is one product of how often each item was drawn
    with the table of all columns. CIDEr-D keeps the document frequencies of all images. The seed
    is fixed: the same captions give the same interval.
    """
    columns = [] if bleu is None else list(bleu.T)
    first = len(columns)
    for values in means.values():
        columns += [np.nan_to_num(values), 1.0 * ~np.isnan(values)]  # a sum and a count each
    columns = np.stack(columns, 1)  # (n, columns)

    def scores(sums):  # (..., columns) -> (..., metrics)
        parts = [bleu_scores(sums[..., :10])] if first else []
        parts.append(sums[..., first::2] / np.maximum(sums[..., first + 1::2], 1e-9))
        return 100 * np.concatenate(parts, -1)

    rng, n = np.random.default_rng(seed), len(columns)
    drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)]
    low, high = np.percentile(scores(np.stack([times @ columns for times in drawn])),
                              (2.5, 97.5), axis=0)
    names = [f"BLEU-{k}" for k in range(1, 5) if first] + list(means)
    return dict(zip(names, zip(scores(columns.sum(0)).tolist(), low.tolist(), high.tolist())))


def shown(score, low, high):
    """"12.3 [1.0, 20.0]", or the score alone where there is no interval."""
    return f"{score:.1f}" if low is None else f"{score:.1f} [{low:.1f}, {high:.1f}]"


def markdown(lines):
    """A Markdown table of lines of cells (str), the first line the head; all columns but the first
    to the right."""
    head, *rest = lines
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rest]
    return "\n".join(printable(f"| {' | '.join(line)} |") for line in lines)


WIDE = 100  # columns of a terminal
# The metrics; what is left out of a table that is too wide goes from the end to the beginning.
FIRST = ("accuracy", "CIDEr-D", "BLEU-4", "exact", "SPICE", "METEOR", "ROUGE-L", "objects named",
         "BLEU-1")


def fitted(lines, where, rank=lambda title: 0, keep=1):
    """Markdown of as many columns as fit into WIDE, the first keep always; a line names the others
    and where they are. Columns of the highest rank(title) go first, of equal ones the last."""
    columns, hidden = list(range(len(lines[0]))), []
    while True:
        text = markdown([[line[i] for i in columns] for line in lines])
        if len(columns) <= keep or max(map(len, text.splitlines())) <= WIDE:
            break
        hidden.append(max(columns[keep:], key=lambda i: (rank(lines[0][i]), i)))
        columns.remove(hidden[-1])
    more = f"More {where}: {'; '.join(lines[0][i] for i in hidden[::-1])}."
    return text + f"\n\n{more}" * bool(hidden)


def table(rows, n, unit="images", every=False):
    """Markdown of {row: {metric: (score, low, high)}}, each of n images or questions (unit); of the
    metrics as many as fit and a line that names the others, or every one."""
    metrics = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    lines = [["checkpoint", unit, *metrics]]
    for name, scores in rows.items():
        numbers = [shown(*scores[m]) if m in scores else "" for m in metrics]
        lines.append([name.replace("|", "\\|"), f"{n:,}", *numbers])
    rank = lambda name: FIRST.index(name) if name in FIRST else len(FIRST)
    return markdown(lines) if every else fitted(lines, "with --all", rank, keep=2)
