"""What a line of train.jsonl means: captions, questions, hypotheses, expressions."""

from lib.cli import UserError
from lib.files import read_json


def condition(item):
    """What GPT-2 reads of an item before it answers; "" for captions. No space at the end: the answer brings its own."""
    if "hypothesis" in item:
        return f"hypothesis: {item['hypothesis']} answer:"
    if "question" not in item:
        return ""
    words = item.get("hint", "").split()[-300:]  # the rest of a longer one would not fit GPT-2's 1,024 positions
    hint = f" context: {' '.join(words)}" if words else ""
    options = "".join(f" ({chr(65 + i)}) {choice}" for i, choice in enumerate(item.get("choices", ())))
    return f"question: {item['question']}{hint}{' options:' if options else ''}{options} answer:"


def answers_to(item):
    """{answer: how many gave it} to a question or hypothesis. Where the item explains its answer, so does the text:
    ScienceQA's order QCM-ALE (question, context, choices; answer, lecture, explanation)."""
    if "hypothesis" in item:
        return {item["label"]: 1}
    because = " ".join(item[key] for key in ("lecture", "solution") if item.get(key))
    return {f"{a}. because {because}" if because else a: count for a, count in item["answers"].items()}


def answered(item):
    """Whether an item has what its task asks for: captions, the answers to its question, the label of its hypothesis."""
    return bool(item.get({"captions": "captions", "question": "answers", "hypothesis": "label"}[task_of(item)]))


def task_of(item):
    """"captions", "question" or "hypothesis"."""
    return next(key for key in ("captions", "hypothesis", "question") if key in item)


def group_by_image(items):
    """Items -> what is learnt from each image: [{"image", "texts": [(condition, {answer: count})]}].

    Items on the same image become one entry, so that their texts share it. Those without an image
    come last, one by one: entry i has its features in row i.
    """
    entries = {}
    for item in items:
        if not answered(item):
            raise UserError(f"item {item['id']} lacks the captions, answers or label, so nothing can be learnt from it")
        texts = [("", {caption: 1}) for caption in item.get("captions", ())] or [(condition(item), answers_to(item))]
        key = item["image"] if item["image"] is not None else ("none", len(entries))
        entries.setdefault(key, {"image": item["image"], "texts": []})["texts"] += texts
    return sorted(entries.values(), key=lambda x: x["image"] is None)


def answer_vocabulary(folder, entries):
    """The answers to choose from: the dataset's answers.json, or all that occur in train."""
    path, form = folder / "answers.json", 'expected ["yes", "no", ...]'
    if not path.exists():
        return sorted({answer for entry in entries for asked, answers in entry["texts"] if asked for answer in answers})
    found = read_json(path, form)
    if not isinstance(found, list) or not all(isinstance(a, str) for a in found) or len(set(found)) < len(found):
        raise UserError(f"{path}: not a list of different texts; {form}")
    return found
