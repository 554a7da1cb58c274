"""VQA accuracy, and how answers to questions of other kinds are scored."""

import re

import numpy as np

from data.tasks import answered, answers_to
from data.vqa2.answers import normalise_answer, one_line
from evaluate.tables import bootstrap


def vqa_accuracy(answer, ten_answers):
    """VQA accuracy in 0..1 (Antol et al. 2015) of an answer (str) by those of ten people (list of
    str).

    Three who say the same make an answer right: min(1, matches / 3), a mean over the ten ways to
    leave one of them out. 0 to 4 matches give 0, 0.3, 0.6, 0.9, 1. pitfall: min(1, matches / 3) of
    all ten is another number. pitfall: where the ten agree to the letter nothing is normalised, so
    "Yes." is wrong if all say "yes".
    """
    answer, truths = one_line(answer), [one_line(truth) for truth in ten_answers]
    if len(set(truths)) > 1:
        normal = {text: normalise_answer(text) for text in {answer, *truths}}
        answer, truths = normal[answer], [normal[truth] for truth in truths]
    matches = truths.count(answer)
    return sum(min(1, (matches - (truth == answer)) / 3) for truth in truths) / len(truths)


def is_right(answer, item):
    """How right an answer (str) is to an item that has answers: 0..1."""
    if item.get("raw_answers"):
        return vqa_accuracy(answer, item["raw_answers"])
    if "choices" in item:  # "B", "B. because ..." or "(B) a hill", but not "Because" or "A hill"
        letter = re.fullmatch(r"\(?([A-Z])([.)].*)?", answer.strip(), re.DOTALL)
        return float(bool(letter) and letter[1] in item["answers"])
    counts = answers_to(item)  # only the most frequent answer is right
    return float(counts.get(answer.strip()) == max(counts.values()))


def kind_of(item):
    """What is worth a column of its own: "yes or no" and "other", the labels of hypotheses, and
    for questions with choices whether there is an image."""
    if "label" in item:
        return item["label"]
    if "choices" in item:
        return "without an image" if item["image"] is None else "with an image"
    most = max(item["answers"], key=item["answers"].get, default="")
    return "yes or no" if most in ("yes", "no") else "other"


def score_answers(answers, items):
    """({metric: (score, low, high)} x 100, how right every answer is (n,)); ({}, None) unless every
    item has an answer to compare with."""
    if not all(map(answered, items)):
        return {}, None
    right = np.array([is_right(answer, item) for answer, item in zip(answers, items)])
    means, kinds = {"accuracy": right}, np.array([kind_of(item) for item in items])
    if len(set(kinds)) > 1:
        for kind in sorted(set(kinds.tolist())):
            means[kind] = np.where(kinds == kind, right, np.nan)
    return bootstrap(means), right
