"""Prepares VQA v2: questions about COCO's images, each answered by ten people.

    python data/vqa2/prepare.py --download    # 43 MB of questions and answers; 3 GB of memory
    python data/vqa2/prepare.py --folder path/to/vqa2 --images path/to/coco

The folder holds v2_OpenEnded_mscoco_{train,val}2014_questions.json and v2_mscoco_{train,val}2014_
annotations.json, the folder of images COCO's train2014/ and val2014/ (python data/coco/prepare.py
--download fetches them). Written are {train,val}.jsonl, one line a question, answers.json and
meta.json with the counts:

    {"id": 42000, "image": ".../coco/val2014/COCO_val2014_000000000042.jpg",
     "question": "Is it red?", "answers": {"yes": 8, "no": 2}, "raw_answers": ["yes", "Yes.", ...]}

    split         images  questions
    train        122,287             train2014 (443,757) and val2014 (214,354) without val
    val            1,000             the mini-val: the last 1,000 images of val2014, by their id
    test          81,434    447,793  no answers; written where the questions and test2015/ are
    test-dev                107,394  a part of test

answers.json lists the 3,129 answers to choose from, the most frequent first: those that are the
commonest of the ten for 9 or more questions of train2014 and val2014. "answers" says how many of
the ten gave which of them, in the form in which the official metric compares answers (answers.py);
"raw_answers" are the ten as they were typed. A question of train that nobody answered with one of
the 3,129 is left out. In val it stays, with all its answers: without it every method would look
better.
"""

import functools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import fetch_zip
from data.common import assert_sizes, clean, keep_usable, published_form, write_answers, write_items
from data.vqa2.answers import normalise_answer
from lib.cli import opt, parse, run
from lib.files import read_json, user_path

SITE = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
COCO = "http://images.cocodataset.org/zips/"
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"
# No hashes are published. A zip has a checksum for each of its members, and unpacking looks at it.
ZIPS = {QUESTIONS.format("train2014"): ("v2_Questions_Train_mscoco.zip", 7_239_401),
        QUESTIONS.format("val2014"): ("v2_Questions_Val_mscoco.zip", 3_494_929),
        ANNOTATIONS.format("train2014"): ("v2_Annotations_Train_mscoco.zip", 21_708_861),
        ANNOTATIONS.format("val2014"): ("v2_Annotations_Val_mscoco.zip", 10_518_930)}
ZIPS = {name: {"urls": f"{SITE}{file}", "size": size} for name, (file, size) in ZIPS.items()}
TESTS = {"test": "test2015", "test-dev": "test-dev2015"}  # both on the images of test2015
TEST_ZIP = f"{SITE}v2_Questions_Test_mscoco.zip"
COUNTS = {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793, "test-dev2015": 107_394}
MINI_VAL = 1_000  # images
TIMES, ANSWERS = 9, {"answers.json": 3_129}


@dataclass
class Config:
    folder: str = opt("", "folder with the questions and annotations; empty: data/vqa2")
    images: str = opt("", "folder with train2014/, val2014/ and, for the tests, test2015/; empty: "
                          "data/coco")
    out: str = opt("", "folder for the result; empty: data/vqa2")
    download: bool = opt(False, "fetch missing questions and annotations (43 MB; neither images "
                                "nor tests)")
    partial: bool = opt(False, "a part of VQA v2 will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, many minutes; leave out those that are damaged")


def read(path, key, make, collect=list, **more):
    """make(row) of all rows under a key of a JSON file, collected; more goes to json.loads."""
    url = ZIPS.get(path.name, {"urls": TEST_ZIP})["urls"]
    with published_form(path, "VQA v2's", f"unpack it again from {url}"):
        data = read_json(path, f"fetch {url} and unpack it there, or run with --download", **more)
        return collect(make(row) for row in data[key])


def read_questions(folder, name):
    """Items without answers, of train2014, val2014, test2015 or test-dev2015, from

    {"questions": [{"question_id": 42000, "image_id": 42, "question": "Is it red?"}, ...], ...}
    """
    inside = name.replace("-dev", "")
    return read(folder / QUESTIONS.format(name), "questions", lambda q: {
        "id": q["question_id"], "image": f"{inside}/COCO_{inside}_{q['image_id']:012d}.jpg",
        "question": clean(q["question"])})


def read_answers(folder, name, normalise):
    """{question's id: (the most frequent answer, normalised, and the ten answers as typed)}, from

    {"annotations": [{"question_id": 42000, "multiple_choice_answer": "yes",
                      "answers": [{"answer": "yes", "answer_id": 1, ...}, ...], ...}, ...]}
    """
    # An answer becomes its text while it is read: 6.6 million dictionaries would take 2 GB more.
    return read(folder / ANNOTATIONS.format(name), "annotations", lambda a: (
        a["question_id"], (normalise(a["multiple_choice_answer"]), a["answers"])), dict,
        object_hook=lambda d: d.get("answer", d))


def vocabulary(most_frequent):
    """The answers that are the most frequent one of at least TIMES questions, the commonest first.

    pitfall: one of them is "", which is left of "a": people do ask which letter is on a sign. And
    who counts all ten answers instead of the most frequent has several times as many.
    """
    return [answer for answer, n in Counter(most_frequent).most_common() if n >= TIMES]


def add_answers(items, answers, known, normalise):
    """The items with their answers: {known answer: count}, or all answers where none is known."""
    for item in items:
        raw = answers[item["id"]][1]
        counts = Counter(map(normalise, raw))
        item["answers"] = {a: n for a, n in counts.items() if a in known} or dict(counts)
        item["raw_answers"] = raw
    return items


def main(config):
    folder = user_path(config.folder or HERE)
    images = user_path(config.images or HERE.parent / "coco")
    out = user_path(config.out or HERE)
    if config.download:
        for name, file in ZIPS.items():
            if not (folder / name).exists():
                fetch_zip(folder / file["urls"].split("/")[-1], {name}, **file)
    items = {name: read_questions(folder, name) for name in ("train2014", "val2014")}
    tests = {}
    for split, name in TESTS.items():
        if (folder / QUESTIONS.format(name)).exists() and (images / "test2015").is_dir():
            tests[split] = items[name] = read_questions(folder, name)
    if not config.partial:
        assert_sizes(folder, items, COUNTS, "questions")
    normalise, answers = functools.cache(normalise_answer), {}
    for name in ("train2014", "val2014"):
        answers |= read_answers(folder, name, normalise)
    choices = vocabulary(answer for answer, _ in answers.values())
    if not config.partial:
        assert_sizes(folder, {"answers.json": choices}, ANSWERS, "answers")
    known = set(choices)
    with published_form(folder, "VQA v2's", "annotations and questions do not belong together"):
        both = add_answers(items["train2014"] + items["val2014"], answers, known, normalise)
    # differs: DVP's last 1,000 are those of a shuffled list, which nobody else can know.
    mini_val = set(sorted({item["image"] for item in items["val2014"]})[-MINI_VAL:])
    train = [item for item in both if item["image"] not in mini_val]
    skipped = {"questions of train without an answer to choose": [
        str(item["id"]) for item in train if not known & item["answers"].keys()]}
    splits = {"train": [item for item in train if known & item["answers"].keys()],
              "val": [item for item in both if item["image"] in mini_val], **tests}
    keep_usable(splits, skipped, images, config,
                "unpack train2014.zip, val2014.zip (python data/coco/prepare.py --download does "
                f"it) and, for the tests, test2015.zip from {COCO} into {images}, or name another "
                "folder with --images")
    write_answers(out, choices)
    write_items(splits, skipped, images, out, "vqa", "questions", answers=len(choices),
                source={"images": COCO, "questions": SITE})
    if not tests:
        print(f"no test and no test-dev: for them unpack {TEST_ZIP} into {folder} and "
              f"{COCO}test2015.zip into {images}")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
