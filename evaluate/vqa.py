"""VQA accuracy."""

import re

import numpy as np

from data.tasks import answered, answers_to
from data.vqa2.answers import normalise_answer, one_line
from evaluate.tables import bootstrap


def vqa_accuracy(answer, ten_answers):
    """VQA accuracy in 0..1 (Antol et al. 2015) of an answer (str) by those of ten people (list of str).

    Three who say the same make an answer right: min(1, matches / 3), a mean over the ten ways to leave one of
    them out. 0 to 4 matches give 0, 0.3, 0.6, 0.9, 1. pitfall: min(1, matches / 3) of all ten is another number.
    pitfall: where the ten agree to the letter nothing is normalised, so "Yes." is wrong if all say "yes".
    """
    answer, truths = one_line(answer), [one_line(truth) for truth in ten_answers]
    if len(set(truths)) > 1:
        normal = {text: normalise_answer(text) for text in {answer, *truths}}
        answer, truths = normal[answer], [normal[truth] for truth in truths]
    matches = truths.count(answer)
    return sum(min(1, (matches - (truth == answer)) / 3) for truth in truths) / len(truths)


def score_answers(answers, items):
    """({metric: (score, low, high)} x 100, how right every answer is (n,)); ({}, None) unless every item has one to compare with.

    Where several answers are known but not the ten people's, only the most frequent one is right.
    """
    if not all(map(answered, items)):
        return {}, None
    right = []
    for text, item in zip(answers, items):
        if item.get("raw_answers"):
            right.append(vqa_accuracy(text, item["raw_answers"]))
        elif "choices" in item:  # "B", "B. because ..." or "(B) a hill", but not "Because" or "A hill"
            letter = re.fullmatch(r"\(?([A-Z])([.)].*)?", text.strip(), re.DOTALL)
            right.append(float(bool(letter) and letter[1] in item["answers"]))
        else:
            counts = answers_to(item)
            right.append(float(counts.get(text.strip()) == max(counts.values())))
    right = np.array(right)
    means = {"accuracy": (right, np.ones(len(items)))}
    sort = np.array([kind_of(item) for item in items])
    for kind in dict.fromkeys(sorted(sort.tolist())) if len(set(sort)) > 1 else ():
        means[kind] = (right, 1.0 * (sort == kind))
    return bootstrap(np.zeros((len(items), 0)), means), right


def kind_of(item):
    """"yes or no", "other", or the label of a hypothesis: accuracies that are worth a column of their own."""
    if "label" in item:
        return item["label"]
    if "choices" in item:
        return "without an image" if item["image"] is None else "with an image"
    return "yes or no" if max(item["answers"], key=item["answers"].get, default="") in ("yes", "no") else "other"
