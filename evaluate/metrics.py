"""BLEU, ROUGE-L and CIDEr-D as pycocoevalcap, the code behind the papers' tables, computes them.

  hypothesis  "A dog's ball."     references  "The dog has a ball", ...
        |                               |
        +----------- tokenize ----------+      "a dog 's ball"     lower case, no punctuation
        |                               |
        +---> n-grams, 1 to 4 long <----+      BLEU, CIDEr-D
        +---> longest common part  <----+      ROUGE-L

differs: pycocoevalcap calls a tokenizer written in Java, ptb_tokenizer.py is our own. The two
disagree on rare strings only, but scores to the last digit need `python -m evaluate --official`.
"""

import math
from collections import Counter

import numpy as np

from evaluate.ptb_tokenizer import tokenize
from lib.cli import UserError


def prepare(hypotheses, references, tokenized=False):
    """Both as strings with one space between tokens. UserError unless there is one hypothesis and
    at least one reference an image."""
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses):,} captions for {len(references):,} images; "
                        "one each is needed")
    if not hypotheses or not all(references):
        raise UserError("an image without a reference caption cannot be scored" if hypotheses
                        else "there is no caption to score")
    if tokenized:
        return hypotheses, references
    joined = lambda text: " ".join(tokenize(text))
    return [joined(h) for h in hypotheses], [[joined(ref) for ref in refs] for refs in references]


def ngrams(text):
    """{n-gram: how often} for n = 1 to 4 together."""
    words = text.split()
    return Counter(tuple(words[i:i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def bleu_counts(hypotheses, references):
    """What BLEU needs of each image (n, 10): matches and totals of 1- to 4-grams, both lengths.

    An n-gram matches as often as it occurs in the reference in which it is most frequent. The
    reference length is the one closest to the hypothesis, the shorter of two equally close ones.
    """
    rows = []
    for hypothesis, refs in zip(hypotheses, references):
        most, matches, length = Counter(), [0] * 4, len(hypothesis.split())
        for ref in refs:
            most |= ngrams(ref)
        for gram, count in ngrams(hypothesis).items():
            matches[len(gram) - 1] += min(count, most[gram])
        _, closest = min((abs(len(ref.split()) - length), len(ref.split())) for ref in refs)
        rows.append([*matches, *(max(0, length - n) for n in range(4)), length, closest])
    return np.array(rows, float)


def bleu_scores(counts):
    """BLEU-1 to -4 (..., 4) of counts (..., 10), of one image or summed over many."""
    matches, totals, length, closest = np.split(counts, (4, 8, 9), axis=-1)
    # The two tiny numbers, which prevent a division by zero, are pycocoevalcap's.
    precision = np.cumprod((matches + 1e-15) / (totals + 1e-9), -1) ** (1 / np.arange(1, 5))
    ratio = (length + 1e-15) / (closest + 1e-9)
    return precision * np.exp(1 - 1 / np.minimum(ratio, 1))  # the brevity penalty


def bleu(hypotheses, references, tokenized=False, per_image=False):
    """[BLEU-1, ..., BLEU-4] in 0..1 of one hypothesis and a list of references an image (Papineni
    et al. 2002). tokenized: tokens are split at spaces only; per_image: also those of every image,
    (n, 4).

    BLEU-4 is the geometric mean of four precisions over the corpus. pitfall: the mean of the
    images' own BLEU-4 is another, much smaller number.
    """
    counts = bleu_counts(*prepare(hypotheses, references, tokenized))
    scores = bleu_scores(counts.sum(0)).tolist()
    return (scores, bleu_scores(counts)) if per_image else scores


def lcs(a, b):
    """Length of the longest common subsequence of two lists."""
    row = [0] * (len(b) + 1)  # row[j]: with the words of a so far and the first j of b
    for x in a:
        corner = 0
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], corner + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(hypotheses, references, tokenized=False, per_image=False):
    """ROUGE-L in 0..1 (Lin 2004), the mean over images; arguments as bleu; per_image: also (n,).

    F of precision and recall with beta 1.2. pitfall: each of the two is the best over the
    references, so they may come from different ones. An empty caption counts as one empty token.
    """
    scores, b2 = [], 1.2 ** 2
    for hypothesis, refs in zip(*prepare(hypotheses, references, tokenized)):
        words, refs = hypothesis.split(" "), [ref.split(" ") for ref in refs]
        lengths = [lcs(words, ref) for ref in refs]
        p, r = max(lengths) / len(words), max(n / len(ref) for n, ref in zip(lengths, refs))
        scores.append((1 + b2) * p * r / (r + b2 * p) if p and r else 0.0)
    return (float(np.mean(scores)), np.array(scores)) if per_image else float(np.mean(scores))


def cider_d(hypotheses, references, tokenized=False, per_image=False):
    """CIDEr-D (Vedantam et al. 2015), the mean over images, 1.20 for what papers print as 120;
    arguments as bleu; per_image: also (n,).

    The cosine of tf-idf vectors of n-grams, in which repetition is clipped and a different length
    is punished; the mean over n = 1 to 4 and over the references, times 10. pitfall: the document
    frequencies are those of the references given here. So the score of a part of a split cannot be
    compared with that of the whole, and the score of a single image is 0.
    """
    hypotheses, references = prepare(hypotheses, references, tokenized)
    references = [[ngrams(ref) for ref in refs] for refs in references]
    df = Counter(gram for refs in references for gram in set().union(*refs))  # in how many images
    log_n = math.log(len(references))

    def vector(counts):
        """Weights {n-gram: tf * idf}, their norm for each n, and the length in bigrams."""
        weights = {g: tf * (log_n - math.log(max(1, df[g]))) for g, tf in counts.items()}
        squares = [0.0] * 4
        for gram, w in weights.items():
            squares[len(gram) - 1] += w * w
        length = sum(tf for gram, tf in counts.items() if len(gram) == 2)
        return weights, [math.sqrt(s) for s in squares], length

    scores = []
    for hypothesis, refs in zip(hypotheses, references):
        hyp, hyp_norm, hyp_length = vector(ngrams(hypothesis))
        score = 0.0
        for ref, ref_norm, ref_length in map(vector, refs):
            dot = [0.0] * 4
            for gram, w in hyp.items():
                if gram in ref:
                    dot[len(gram) - 1] += min(w, ref[gram]) * ref[gram]
            cosines = sum(d / (h * r) for d, h, r in zip(dot, hyp_norm, ref_norm) if h and r)
            score += cosines / 4 * math.exp(-(hyp_length - ref_length) ** 2 / (2 * 6 ** 2))
        scores.append(10 * score / len(refs))
    return (float(np.mean(scores)), np.array(scores)) if per_image else float(np.mean(scores))
