"""Small datasets in the layout of the published files, one function each.

tree(name) writes the files below tmp_path, tells the script the small numbers in place of the
published ones, and gives back a Tree, whose run(**config) prepares it in place.
"""

import hashlib
import importlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
ACCENT = "cafe\u0301"  # as a Mac writes café: the accent is a character of its own


def fails(call, *words, **config):
    """call(**config) ends in a UserError of one line that contains all words."""
    with pytest.raises(UserError) as caught:
        call(**config)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, f"{word!r} is not in {text!r}"
    return text


def fill(where, files):
    """Writes {name: bytes, text or JSON} into a folder, and gives it back."""
    for name, content in files.items():
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (bytes, str)):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return where


def change(path, edit):
    """Replaces a JSON file by what edit makes of its content."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def jpeg(mode="RGB", seed=0):
    """The bytes of a small file with noise in it, so that a part cut off is missed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    shape = {"RGB": pixels[..., :3], "CMYK": pixels, "L": pixels[..., 0]}[mode]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shape), mode).save(file, "JPEG")
    return file.getvalue()


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for name, content in files.items():
            z.writestr(name, content if isinstance(content, (bytes, str)) else json.dumps(content))
    return file.getvalue()


def publish(site, name, content):
    """Puts a file into a folder that download reads as a web site. Gives back what it is told."""
    fill(site, {name: content})
    return {"urls": (site / name).as_uri(), "size": len(content),
            "md5": hashlib.md5(content).hexdigest()}


class Tree:
    """A small dataset: its script, its folder, and the folder of its result."""

    def __init__(self, root, name, files, options=None, small=()):
        self.root, self.folder, self.files = root, root / name, files
        self.script = importlib.import_module(f"data.{name}.prepare")
        self.options, self.small = options or {"folder": name}, dict(small)
        self.more = {"sets": ["refcoco"]} if name == "refcoco" else {}
        self.result = self.folder / "refcoco" if name == "refcoco" else self.folder
        fill(root, files)

    def run(self, **config):
        """Prepares it in place."""
        options = {key: str(self.root / place) for key, place in self.options.items()}
        config = options | {"out": str(self.folder)} | self.more | config
        self.script.main(self.script.Config(**config))

    def lines(self, split):
        return [json.loads(line) for line in (self.result / f"{split}.jsonl").open()]

    def column(self, split, key="id"):
        return [item[key] for item in self.lines(split)]

    def json(self, name="meta"):
        return json.loads((self.result / f"{name}.json").read_text())

    def skipped(self, why):
        """The names that meta.json gives for one reason; here they are too few to leave any out."""
        entry = self.json()["skipped"][why]
        assert entry["count"] == len(entry["first"])
        return entry["first"]

    def inside(self, folder):
        """{name below a folder: content} of its files."""
        return {name.removeprefix(f"{folder}/"): content for name, content in self.files.items()
                if name.startswith(f"{folder}/")}


def tree(tmp_path, monkeypatch, name):
    made = Tree(tmp_path / "my data", name, *MAKERS[name]())
    for attribute, value in made.small.items():
        monkeypatch.setattr(made.script, attribute, value)
    return made


# ---------------------------------------------------------------------------- captions

# By hand:  file                    split     captions                              comes out as
#           train2014/..._1.jpg     train     "A shoe. "                            train
#           val2014/..._2.jpg       restval   six, one with a line break            train
#           val2014/..._3.jpg       val       one sentid twice                      val
#           val2014/..._4.jpg       test      one text twice, under two sentids     test
#           train2014/..._5.jpg     train     one good, one empty (a CMYK file)     train
#           val2014/..._6.jpg       val       a grey file in a name with a space    val


def entry(number, split, raws, sentids=None):
    """One image as Karpathy's JSON has it."""
    folder = "train2014" if split == "train" else "val2014"
    sentids = sentids or [100 * number + i for i in range(len(raws))]
    return {"filepath": folder, "filename": f"COCO_{folder}_{number:012}.jpg", "cocoid": number,
            "imgid": 7, "split": split,
            "sentences": [{"raw": raw, "sentid": s, "tokens": ["a"]}
                          for raw, s in zip(raws, sentids)]}


ENTRIES = [entry(1, "train", ["A shoe. "]),
           entry(2, "restval", ["One.", "Two  dogs.", "Three\ncats.\n", "Four.", "Five.", "Six."]),
           entry(3, "val", ["A cup.", "A cup.", "A mug."], sentids=[7, 7, 8]),
           entry(4, "test", ["A hat.", "A hat."]),
           entry(5, "train", ["A cat.", " \n"]),
           entry(6, "val", ["A car."]) | {"filename": "COCO_val2014 6.jpg"}]
PHOTOS = [entry(n, split, [f"Photo {n}, number {i}." for i in range(5)]) | {"filename": f"{n}.jpg"}
          for n, split in ((1001, "train"), (1002, "train"), (1003, "val"), (1004, "test"))]
for photo in PHOTOS:
    del photo["filepath"], photo["cocoid"]


def karpathy(entries=ENTRIES, dataset="coco"):
    return {"dataset": dataset, "images": entries}


def coco():
    images = {f"coco/{e['filepath']}/{e['filename']}": jpeg({5: "CMYK", 6: "L"}.get(i, "RGB"), i)
              for i, e in enumerate(ENTRIES, 1)}
    return (images | {"coco/dataset_coco.json": karpathy()}, {"images": "coco"},
            {"COUNTS": {"train": (3, 9), "val": (2, 3), "test": (1, 2)}})  # images, captions


def flickr30k():
    images = {f"flickr30k/images/{n}.jpg": jpeg() for n in (1001, 1002, 1003, 1004, 999)}
    return (images | {"flickr30k/dataset_flickr30k.json": karpathy(PHOTOS, "flickr30k")},
            {"images": "flickr30k/images", "karpathy": "flickr30k/dataset_flickr30k.json"},
            {"COUNTS": {"train": (2, 10), "val": (1, 5), "test": (1, 5)}})


def nocaps_json(names, url="http://127.0.0.1:9/"):
    """nocaps_val_4500_captions.json for images of these names, two captions each."""
    domains = ["in-domain", "near-domain", "out-domain"]
    return {"images": [{"id": i, "file_name": name, "coco_url": url + name.replace(" ", "%20"),
                        "domain": domains[i % 3], "width": 32} for i, name in enumerate(names)],
            "annotations": [{"id": 7, "image_id": i, "caption": text} for i in range(len(names))
                            for text in (f"Thing {i}. ", "A thing.")]}


def nocaps():
    names = [f"000{i}.jpg" for i in range(4)]
    return ({f"nocaps/val/{name}": jpeg() for name in names}
            | {"nocaps/nocaps_val_4500_captions.json": nocaps_json(names)},
            None, {"COUNTS": {"val": (4, 8)}, "PAUSE": 0})


def visual_genome():
    """By hand:

    id    folder      coco_id  flickr_id
    1     VG_100K_2                         train
    2     VG_100K     11                    train: COCO's, and Karpathy's train
    3     VG_100K     12                    out: Karpathy's restval is trained on, but 12 is val
    4     VG_100K     13                    out: test
    5     VG_100K_2            1003         out: Flickr30k's val
    6     VG_100K_2            1001         train: Flickr30k's train
    200   VG_100K_2                         val, for it is divisible by 100
    7     VG_100K     15                    out: no phrase is left
    """
    rows = [(1, 2, None, None), (2, 1, 11, None), (3, 1, 12, None), (4, 1, 13, None),
            (5, 2, None, 1003), (6, 2, None, 1001), (200, 2, None, None), (7, 1, 15, None)]
    phrases = {1: ["the clock is green", "The clock is green.", "a  red\ncar ",
                   "the clock is green", "\ufeffa car", "caf\u00e9", ACCENT, " "],
               7: ["", "\u200b"]}
    folder = {1: "VG_100K", 2: "VG_100K_2"}
    images = [{"image_id": i, "url": f"https://cs.stanford.edu/people/rak248/{folder[f]}/{i}.jpg",
               "coco_id": coco, "flickr_id": flickr, "width": 32} for i, f, coco, flickr in rows]
    regions = [{"id": i, "regions": [{"region_id": 7, "image_id": i, "x": 1, "phrase": phrase}
                                     for phrase in phrases.get(i, [f"thing {i}"])]}
               for i, *_ in rows]
    entries = [entry(n, split, ["A."]) for n, split in ((11, "train"), (12, "val"), (13, "test"),
                                                        (14, "train"), (15, "restval"))]
    files = {"image_data.json": images, "region_descriptions.json": regions,
             "dataset_coco.json": karpathy(entries),
             "dataset_flickr30k.json": karpathy(PHOTOS, "flickr30k"),
             **{f"{folder[f]}/{i}.jpg": jpeg() for i, f, *_ in rows}}
    return ({f"visual_genome/{name}": content for name, content in files.items()}, None,
            {"COUNTS": {"region_descriptions.json": 8, "val and test of dataset_coco.json": 2,
                        "val and test of dataset_flickr30k.json": 2}})


# ---------------------------------------------------------------------------- questions

# VQA v2: question: (image, {typed answer: how many of the ten}), the first one being
# multiple_choice_answer. By hand, with a threshold of 2 questions and one image in the mini-val:
#
#   yes      of 101, 301 and 10001           an answer to choose from, the most frequent
#   2 dogs   of 201 and 2001, typed in two ways
#   ""       of 102 and 302, typed "a" and "The"
#   red      of 303 only, though ten people said it
VQA = {"train2014": {101: (1, {"yes": 8, "Yes.": 1, "no": 1}), 102: (1, {"a": 6, "b": 4}),
                     201: (2, {"two dogs": 5, "2 Dogs!": 5}), 202: (2, {"caf\u00e9": 9, "no": 1})},
       "val2014": {301: (3, {"yes": 10}), 302: (3, {"The": 10}), 303: (3, {"red": 10}),
                   2001: (20, {"2 dogs": 4, "3": 3, "4": 3}), 10001: (100, {"yes": 10}),
                   10002: (100, {"purple\n": 6, "Mauve": 4})}}


def vqa_questions(ids):
    return {"info": {}, "data_type": "mscoco", "questions": [
        {"question_id": i, "image_id": i // 100, "question": f"What is {i}? "} for i in ids]}


def vqa2():
    files = {}
    for part, questions in VQA.items():
        annotations = []
        for i, (image, said) in questions.items():
            ten = [text for text, n in said.items() for _ in range(n)]
            annotations.append({"question_id": i, "image_id": image,
                                "multiple_choice_answer": ten[0],
                                "answers": [{"answer_id": 1, "answer": text} for text in ten]})
            files[f"coco/{part}/COCO_{part}_{image:012}.jpg"] = jpeg(seed=image)
        files[f"vqa2/v2_OpenEnded_mscoco_{part}_questions.json"] = vqa_questions(questions)
        files[f"vqa2/v2_mscoco_{part}_annotations.json"] = {"annotations": annotations}
    counts = {"train2014": 4, "val2014": 6, "test2015": 3, "test-dev2015": 1}
    return (files, {"folder": "vqa2", "images": "coco"},
            {"COUNTS": counts, "ANSWERS": {"answers.json": 3}, "TIMES": 2, "MINI_VAL": 1})


def gqa():
    def question(image, answer, text="Is the cup left of the plate?"):
        return {"imageId": image, "question": text, "answer": answer, "isBalanced": True,
                "semantic": [{"operation": "select", "argument": "cup (1)"}]}

    files = {"train": {"05515938": question("2412112", "yes"),
                       "5515938": question("2412112", "t-shirt"),
                       "7": question("n161313", "yes", f"Is this a {ACCENT}?\n")},
             "val": {"8": question("12", "no")}, "testdev": {"9": question("n5", "bottle cap")}}
    return ({f"gqa/{part}_balanced_questions.json": content for part, content in files.items()}
            | {f"gqa/images/{n}.jpg": jpeg() for n in ("2412112", "n161313", "12", "n5", "99")},
            None, {"COUNTS": {"train": 3, "val": 1, "test-dev": 1}, "ANSWERS": {"answers.json": 4}})


def pair(image, number, label, text="A man is outside. ", key="Flickr30K_ID"):
    """A line of SNLI-VE."""
    return {key: str(image), "gold_label": label, "pairID": f"{image}.jpg#2r1{number}",
            "sentence1": "A premise.", "sentence2": text}


def snli_ve():
    pairs = {"train": [pair(1001, "n", "neutral"),
                       pair(1001, "e", "entailment", f"A\u00a0{ACCENT} \U0001f600"),
                       pair(1002, "x", "-")],
             "dev": [pair(1003, "c", "contradiction", key="Flikr30kID")],
             "test": [pair(1004, "e", "entailment")]}
    files = {f"snli_ve/snli_ve_{part}.jsonl": "".join(json.dumps(row) + "\n" for row in rows)
             for part, rows in pairs.items()}
    return (files | {f"flickr30k/images/{n}.jpg": jpeg() for n in (1001, 1002, 1003, 1004)},
            {"folder": "snli_ve", "images": "flickr30k/images"},
            {"COUNTS": {"train": 2, "val": 1, "test": 1}})


def scienceqa():
    def problem(answer, image=None, hint=""):
        return {"question": "Which is north?", "choices": ["A hill", "B", f" {ACCENT}"],
                "answer": answer, "hint": hint, "image": image, "grade": "grade2",
                "lecture": "Maps have\n\n* four sides.", "solution": "Look up."}

    problems = {"1": problem(1, "image.png"), "12": problem(2, hint="It is  cold."),
                "3": problem(0, "choice_0.png"), "4": problem(1), "5": problem(0, "image.png")}
    splits = {"train": ["12", "1"], "val": ["3"], "test": ["4", "5"], "minitrain": ["1"]}
    images = ("train/1/image", "val/3/choice_0", "test/5/image")
    return ({f"scienceqa/images/{name}.png": jpeg() for name in images}
            | {"scienceqa/problems.json": problems, "scienceqa/pid_splits.json": splits},
            None, {"COUNTS": {"train": 2, "val": 1, "test": 2},
                   "PICTURES": {"train": 1, "val": 1, "test": 1}})


# ---------------------------------------------------------------------------- RefCOCO

# The tree, the same for the three sets but for the names of the splits, by hand:
#
#   image  its objects                                  referred to, in the order of the file
#   1      11 and 12 with polygons, 13 a crowd (runs)   11 (train): "Left  man ", "cafe", accented
#   2      21                                           21 (val): "not the Dog."
#   3      31                                           31 (testA, or test): "\U0001f600 woman"
#   4      41 and 42                                    42 (testB, or test): "a", then "b"
#   5      51                                           nothing
SETS = ["refcoco", "refcoco+", "refcocog"]
H, W = 32, 40
RUNS = {"size": [H, W], "counts": [100, 30, H * W - 130]}  # pixels 100 to 129, down the columns
OBJECTS = {11: [1.5, 2.0, 10.0, 20.25], 12: [20.0, 2.0, 8.0, 9.0], 13: [3, 4, 2, 16],
           21: [0.0, 0.0, 40.0, 32.0], 31: [5.0, 5.0, 5.0, 5.0], 41: [1.0, 1.0, 3.0, 0.0],
           42: [7.0, 7.0, 7.0, 7.0], 51: [1, 1, 1, 1]}
SAID = {11: ["Left  man ", f"{ACCENT}\n"], 21: ["not the Dog."], 31: ["\U0001f600 woman"],
        42: ["a", "b"]}


def polygons(box):
    """A triangle in the box, and beside it another one; an object behind a pole has two."""
    x, y, w, h = box
    return [[x, y, x + w, y, x, y + h], [x, y, x + w, y + h, x, y + h]]


def instances():
    """instances.json."""
    return {"categories": [{"supercategory": "person", "id": 1, "name": "person"}],
            "images": [{"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "height": H,
                        "width": W} for i in range(1, 6)],
            "annotations": [{"id": i, "image_id": i // 10, "bbox": box, "category_id": 1,
                             "iscrowd": int(i == 13),
                             "segmentation": RUNS if i == 13 else polygons(box)}
                            for i, box in OBJECTS.items()]}


def references(name="refcoco"):
    """What the pickle holds. sent_ids count up from 0."""
    splits = {11: "train", 21: "val", 31: "testA", 42: "testB"}
    if name == "refcocog":
        splits |= {31: "test", 42: "test"}
    refs, count = [], 0
    for number, (i, texts) in enumerate(SAID.items()):
        ids = list(range(count, count := count + len(texts)))
        refs.append({"ref_id": number, "ann_id": i, "image_id": i // 10, "split": splits[i],
                     "file_name": f"COCO_train2014_{i // 10:012}_{number}.jpg", "sent_ids": ids,
                     "sentences": [{"sent_id": k, "raw": raw, "sent": raw.strip().lower()}
                                   for k, raw in zip(ids, texts)]})
    return refs


def python2(value, protocol=2):
    """The bytes of a pickle in which every text is a string of bytes, as Python 2 has them.

    Python 3 cannot write such a one: python2(["a"], 0) is b"(S'a'\\nl.", and
    pickle.dumps(["a"], 0) b"(lp0\\nVa\\n..."
    """
    def write(v):
        if isinstance(v, int):
            return b"I%d\n" % v
        if isinstance(v, (list, dict)):
            inside = v if isinstance(v, list) else [x for item in v.items() for x in item]
            return b"(" + b"".join(map(write, inside)) + (b"l" if isinstance(v, list) else b"d")
        raw = v if isinstance(v, bytes) else v.encode()
        if protocol:
            return b"T" + len(raw).to_bytes(4, "little") + raw
        return b"S" + repr(raw)[1:].encode() + b"\n"

    return (b"\x80\x02" if protocol else b"") + write(value) + b"."


def refs_name(name="refcoco"):
    return f"{name}/refs({'umd' if name == 'refcocog' else 'unc'}).p"


def refcoco():
    files = {f"coco/train2014/COCO_train2014_{i:012}.jpg": jpeg(seed=i) for i in range(1, 6)}
    for name in SETS:
        files |= {f"refcoco/{refs_name(name)}": python2(references(name)),
                  f"refcoco/{name}/instances.json": instances()}
    unc = {"train": 2, "val": 1, "testA": 1, "testB": 2}
    return files, {"folder": "refcoco", "images": "coco"}, {"COUNTS": {
        "refcoco": unc, "refcoco+": unc, "refcocog": {"train": 2, "val": 1, "test": 3}}}


MAKERS = {f.__name__: f for f in (coco, flickr30k, nocaps, visual_genome, vqa2, gqa, snli_ve,
                                  scienceqa, refcoco)}
