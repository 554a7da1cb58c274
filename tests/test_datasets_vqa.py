"""The datasets of questions and hypotheses, each from a small tree in the layout of the published files.

What all prepare scripts share is tested in test_data.py and test_datasets.py. Here is what is particular:
which questions are trained on, which answers there are to choose from, and what is left out and counted.
"""

import gzip
import json
import subprocess
import sys

import pytest

from lib.cli import UserError
from data import archives, common, tasks
from data.gqa import prepare as gqa
from data.scienceqa import prepare as scienceqa
from data.snli_ve import prepare as snli_ve
from data.vqa2 import prepare as vqa2
from test_data import ROOT, fails, jpeg, lines, meta, site, skipped, zipped
from test_datasets import ACCENT, fill


def answers_json(where):
    return json.loads((where / "answers.json").read_text())


def change(path, edit):
    """Replaces a JSON file by what edit makes of its content."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


# ---------------------------------------------------------------------------- VQA v2

# question: image, {typed answer: how many of the ten}, the first one being multiple_choice_answer. By hand,
# with a threshold of 2 questions and one image in the mini-val:
#
#   yes      of 101, 301 and 10001           an answer to choose from, the most frequent
#   2 dogs   of 201 and 2001, typed in two ways
#   ""       of 102 and 302, typed "a" and "The"
#   red      of 303 only, though ten people said it
TRAIN = {101: (1, {"yes": 8, "Yes.": 1, "no": 1}), 102: (1, {"a": 6, "b": 4}), 201: (2, {"two dogs": 5, "2 Dogs!": 5}),
         202: (2, {"caf\u00e9": 9, "no": 1})}
VAL = {301: (3, {"yes": 10}), 302: (3, {"The": 10}), 303: (3, {"red": 10}), 2001: (20, {"2 dogs": 4, "3": 3, "4": 3}),
       10001: (100, {"yes": 10}), 10002: (100, {"purple\n": 6, "Mauve": 4})}
PARTS = {"train2014": TRAIN, "val2014": VAL}


def questions_json(ids):
    return json.dumps({"info": {}, "data_type": "mscoco", "questions": [
        {"question_id": i, "image_id": i // 100, "question": f"What is {i}? "} for i in ids]})


def vqa_files():
    files = {}
    for part, questions in PARTS.items():
        annotations = [{"question_id": i, "image_id": image, "question_type": "what is", "answer_type": "other",
                        "multiple_choice_answer": next(iter(said)),
                        "answers": [{"answer_id": k + 1, "answer": text, "answer_confidence": "yes"} for k, text in
                                    enumerate(text for text, n in said.items() for _ in range(n))]}
                       for i, (image, said) in questions.items()]
        files[f"v2_OpenEnded_mscoco_{part}_questions.json"] = questions_json(questions)
        files[f"v2_mscoco_{part}_annotations.json"] = json.dumps({"info": {}, "annotations": annotations})
    return files


@pytest.fixture
def vqa(tmp_path, monkeypatch):
    """A folder with VQA v2, beside COCO's images. 10 questions on 5 images."""
    fill(tmp_path / "coco", {f"{part}/COCO_{part}_{image:012}.jpg": jpeg(seed=image)
                             for part, questions in PARTS.items() for image, _ in questions.values()})
    monkeypatch.setattr(vqa2, "COUNTS", {"train2014": 4, "val2014": 6, "test2015": 3, "test-dev2015": 1})
    monkeypatch.setattr(vqa2, "ANSWERS", {"answers.json": 3})
    monkeypatch.setattr(vqa2, "TIMES", 2)
    monkeypatch.setattr(vqa2, "MINI_VAL", 1)
    return fill(tmp_path / "vqa2", vqa_files())


def prepare_vqa(where, **config):
    vqa2.main(vqa2.Config(folder=str(where), images=str(where.parent / "coco"), out=str(where), **config))


def test_a_question_of_vqa_comes_out_as_documented(vqa):
    prepare_vqa(vqa)
    item = lines(vqa, "train")[0]
    assert item == {"id": 101, "image": str(vqa.parent / "coco/train2014/COCO_train2014_000000000001.jpg"),
                    "question": "What is 101?", "answers": {"yes": 9}, "raw_answers": ["yes"] * 8 + ["Yes.", "no"]}
    assert tasks.load_split(vqa, "train")[0]["image"].is_file()
    assert meta(vqa)["task"] == "vqa" and meta(vqa)["answers"] == 3
    assert meta(vqa)["questions"] == {"train": 6, "val": 2} and meta(vqa)["images"] == {"train": 4, "val": 1}


def test_the_answers_to_choose_from_are_the_most_frequent_of_enough_questions(vqa):
    prepare_vqa(vqa)
    assert answers_json(vqa) == ["yes", "", "2 dogs"]
    assert {item["id"]: item["answers"] for item in lines(vqa, "train")} == {
        101: {"yes": 9}, 102: {"": 6}, 201: {"2 dogs": 10}, 301: {"yes": 10}, 302: {"": 10}, 2001: {"2 dogs": 4}}


def test_questions_without_an_answer_to_choose_are_counted_and_left_out_of_train_only(vqa, capsys):
    prepare_vqa(vqa)
    assert skipped(vqa, "questions of train without an answer to choose") == ["202", "303"]
    assert "left out: 2 questions of train without an answer to choose: 202, 303\n" in capsys.readouterr().out
    assert not {202, 303} & {item["id"] for item in lines(vqa, "train")}
    last = lines(vqa, "val")[-1]
    assert last["id"] == 10002 and last["answers"] == {"purple": 6, "mauve": 4}
    assert last["raw_answers"] == ["purple\n"] * 6 + ["Mauve"] * 4


@pytest.mark.parametrize("n, held_out", [(1, {100}), (2, {20, 100}), (3, {3, 20, 100})])
def test_no_image_of_the_mini_val_is_trained_on(vqa, monkeypatch, n, held_out):
    monkeypatch.setattr(vqa2, "MINI_VAL", n)
    prepare_vqa(vqa)
    train, val = ({item["image"] for item in lines(vqa, split)} for split in ("train", "val"))
    assert not train & val
    assert {int(image[-16:-4]) for image in val} == held_out


def test_the_mini_val_does_not_depend_on_which_images_are_there(vqa):
    (vqa.parent / "coco/val2014/COCO_val2014_000000000020.jpg").unlink()
    prepare_vqa(vqa, partial=True)
    assert {item["id"] for item in lines(vqa, "val")} == {10001, 10002}
    assert skipped(vqa, "missing images") == ["val2014/COCO_val2014_000000000020.jpg"]


def test_the_tests_of_vqa_are_written_where_they_are_there(vqa, capsys):
    prepare_vqa(vqa)
    assert vqa2.TEST_ZIP in capsys.readouterr().out and not (vqa / "test.jsonl").exists()
    for name, ids in (("test2015", [501, 502, 601]), ("test-dev2015", [502])):
        fill(vqa, {f"v2_OpenEnded_mscoco_{name}_questions.json": questions_json(ids)})
    prepare_vqa(vqa)
    assert not (vqa / "test.jsonl").exists()  # the questions are there, but no images
    fill(vqa.parent / "coco", {f"test2015/COCO_test2015_{image:012}.jpg": jpeg() for image in (5, 6)})
    prepare_vqa(vqa)
    assert [item["id"] for item in lines(vqa, "test")] == [501, 502, 601]
    assert [set(item) for item in lines(vqa, "test-dev")] == [{"id", "image", "question"}]
    assert tasks.load_split(vqa, "test-dev")[0]["image"].is_file()
    assert len(lines(vqa, "train")) == 6  # as before


def test_vqa_counts_are_asserted_unless_partial(vqa, monkeypatch):
    monkeypatch.setattr(vqa2, "ANSWERS", {"answers.json": 3_129})
    fails(lambda: prepare_vqa(vqa), "3 answers instead of 3,129 in answers.json", "--partial")
    monkeypatch.undo()
    fails(lambda: prepare_vqa(vqa), "4 questions instead of 443,757 in train2014, 6 questions instead of 214,354",
          "--partial")
    prepare_vqa(vqa, partial=True)
    assert answers_json(vqa) == []  # fewer than nine of each


@pytest.mark.parametrize("name", sorted(vqa_files()))
def test_a_missing_file_of_vqa_says_what_to_fetch(vqa, name):
    (vqa / name).unlink()
    fails(lambda: prepare_vqa(vqa), vqa / name, "no such file", vqa2.ZIPS[name]["urls"], "--download")


@pytest.mark.parametrize("name, edit", [
    ("v2_OpenEnded_mscoco_val2014_questions.json", lambda d: d.pop("questions")),
    ("v2_OpenEnded_mscoco_val2014_questions.json", lambda d: d["questions"][0].pop("image_id")),
    ("v2_OpenEnded_mscoco_val2014_questions.json", lambda d: d["questions"][0].update(image_id="../7")),
    ("v2_OpenEnded_mscoco_val2014_questions.json", lambda d: d["questions"][0].update(question=None)),
    ("v2_mscoco_train2014_annotations.json", lambda d: d.update(annotations=3)),
    ("v2_mscoco_train2014_annotations.json", lambda d: d["annotations"][0].pop("answers")),
    ("v2_mscoco_train2014_annotations.json", lambda d: d["annotations"][0].update(multiple_choice_answer=None)),
])
def test_a_wrong_file_of_vqa_is_one_line(vqa, name, edit):
    change(vqa / name, edit)
    fails(lambda: prepare_vqa(vqa), vqa / name, "another form")


@pytest.mark.parametrize("edit", [lambda d: d["annotations"].pop(), lambda d: d["annotations"][0].update(answers=[7]),
                                  lambda d: d["annotations"][0].update(answers=[{"answer_id": 1}])])
def test_annotations_that_do_not_fit_the_questions_are_one_line(vqa, monkeypatch, edit):
    monkeypatch.setattr(vqa2, "TIMES", 1)
    change(vqa / "v2_mscoco_train2014_annotations.json", edit)
    fails(lambda: prepare_vqa(vqa, partial=True), vqa, "do not belong together")


def test_vqa_questions_are_downloaded_once(vqa, site, monkeypatch, capsys):
    for number, (name, content) in enumerate(vqa_files().items()):
        (vqa / name).unlink()
        monkeypatch.setitem(vqa2.ZIPS, name, site.put(f"{number}.zip", zipped({name: content, "more.json": "{}"})))
    prepare_vqa(vqa, download=True)
    assert len(lines(vqa, "train")) == 6 and not (vqa / "more.json").exists()
    assert "may be deleted" in capsys.readouterr().out
    for path in vqa.glob("*.zip"):
        path.unlink()
    prepare_vqa(vqa, download=True)
    assert sorted(site.asked) == ["0.zip", "1.zip", "2.zip", "3.zip"]


# ---------------------------------------------------------------------------- GQA


def gqa_question(image, answer, question="Is the cup left of the plate?"):
    return {"imageId": image, "question": question, "answer": answer, "fullAnswer": f"It is {answer}.",
            "isBalanced": True, "types": {"structural": "verify", "semantic": "rel", "detailed": "existRel"},
            "semantic": [{"operation": "select", "dependencies": [], "argument": "cup (1)"}],
            "annotations": {"answer": {}, "question": {"2": "1"}}}


def gqa_files():
    """Three files. The ids are texts, and one starts with a zero."""
    return {"train_balanced_questions.json": json.dumps({
                "05515938": gqa_question("2412112", "yes"), "5515938": gqa_question("2412112", "t-shirt"),
                "7": gqa_question("n161313", "yes", f"Is this a {ACCENT}?\n")}),
            "val_balanced_questions.json": json.dumps({"8": gqa_question("12", "no")}),
            "testdev_balanced_questions.json": json.dumps({"9": gqa_question("n5", "bottle cap")})}


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    """GQA with five questions on four images."""
    fill(tmp_path / "gqa", {f"images/{name}.jpg": jpeg() for name in ("2412112", "n161313", "12", "n5", "99")})
    monkeypatch.setattr(gqa, "COUNTS", {"train": 3, "val": 1, "test-dev": 1})
    monkeypatch.setattr(gqa, "ANSWERS", {"answers.json": 4})
    return fill(tmp_path / "gqa", gqa_files())


def prepare_folder(script, where, **config):
    script.main(script.Config(folder=str(where), out=str(where), **config))


def test_gqa_keeps_ids_as_texts_and_answers_as_they_are(graphs):
    prepare_folder(gqa, graphs)
    assert lines(graphs, "train") == [
        {"id": "05515938", "image": "images/2412112.jpg", "question": "Is the cup left of the plate?",
         "answers": {"yes": 1}},
        {"id": "5515938", "image": "images/2412112.jpg", "question": "Is the cup left of the plate?",
         "answers": {"t-shirt": 1}},
        {"id": "7", "image": "images/n161313.jpg", "question": "Is this a caf\u00e9?", "answers": {"yes": 1}}]
    assert answers_json(graphs) == ["yes", "t-shirt", "no", "bottle cap"]
    assert [item["id"] for item in tasks.load_split(graphs, "test-dev")] == ["9"]
    assert meta(graphs)["task"] == "vqa" and meta(graphs)["questions"] == {"train": 3, "val": 1, "test-dev": 1}
    assert meta(graphs)["images"]["train"] == 2


def test_gqa_counts_are_asserted_unless_partial(graphs, monkeypatch):
    monkeypatch.setattr(gqa, "ANSWERS", {"answers.json": 1_843})
    fails(lambda: prepare_folder(gqa, graphs), "4 answers instead of 1,843 in answers.json")
    monkeypatch.undo()
    fails(lambda: prepare_folder(gqa, graphs), "3 questions instead of 943,000 in train", "--partial")
    prepare_folder(gqa, graphs, partial=True)


def test_missing_files_and_images_of_gqa_say_what_to_fetch(graphs):
    (graphs / "images/n161313.jpg").unlink()
    fails(lambda: prepare_folder(gqa, graphs), graphs / "images/n161313.jpg", "the first of 1", gqa.SITE, "--partial")
    prepare_folder(gqa, graphs, partial=True)
    assert skipped(graphs, "missing images") == ["images/n161313.jpg"]
    assert [item["id"] for item in lines(graphs, "train")] == ["05515938", "5515938"]
    for name in gqa_files():
        (graphs / name).unlink()
        fails(lambda: prepare_folder(gqa, graphs), graphs / name, "no such file", gqa.QUESTIONS, "--download")
        fill(graphs, gqa_files())


@pytest.mark.parametrize("edit", [
    lambda d: d["8"].pop("answer"), lambda d: d["8"].pop("imageId"), lambda d: d["8"].update(question=None),
    lambda d: d["8"].update(imageId="../8"), lambda d: d.update({"8": 3})])
def test_a_wrong_file_of_gqa_is_one_line(graphs, edit):
    change(graphs / "val_balanced_questions.json", edit)
    fails(lambda: prepare_folder(gqa, graphs), graphs / "val_balanced_questions.json", "another form", gqa.QUESTIONS)


def test_gqa_is_downloaded_once(graphs, tmp_path, site, monkeypatch):
    images = {f"images/{path.name}": path.read_bytes() for path in graphs.glob("images/*.jpg")}
    monkeypatch.setattr(gqa, "QUESTIONS", site.put("q.zip", zipped(
        gqa_files() | {"train_all_questions/train_all_questions_0.json": "{}"}))["urls"])
    monkeypatch.setattr(gqa, "IMAGES", {"images": site.put("images.zip", zipped(images))})
    where = tmp_path / "new"
    prepare_folder(gqa, where, download=True)
    assert len(lines(where, "train")) == 3 and not (where / "images/99.jpg").exists()
    assert not (where / "train_all_questions").exists()
    for path in where.glob("*.zip"):
        path.unlink()
    prepare_folder(gqa, where, download=True)
    assert site.asked == ["q.zip", "images.zip"]


# ---------------------------------------------------------------------------- SNLI-VE


def pair(image, number, label, text="A man is outside. ", key="Flickr30K_ID"):
    return {key: str(image), "annotator_labels": [label], "captionID": f"{image}.jpg#2", "gold_label": label,
            "pairID": f"{image}.jpg#2r1{number}", "sentence1": "A premise.", "sentence2": text}


PAIRS = {"train": [pair(1001, "n", "neutral"), pair(1001, "e", "entailment", f"A\u00a0{ACCENT} \U0001f600"),
                   pair(1002, "x", "-")],
         "dev": [pair(1003, "c", "contradiction", key="Flikr30kID")], "test": [pair(1004, "e", "entailment")]}


def snli_files():
    return {f"snli_ve_{part}.jsonl": "".join(json.dumps(row) + "\n" for row in rows) for part, rows in PAIRS.items()}


@pytest.fixture
def entail(tmp_path, monkeypatch):
    fill(tmp_path / "flickr30k/images", {f"{n}.jpg": jpeg() for n in (1001, 1002, 1003, 1004)})
    monkeypatch.setattr(snli_ve, "COUNTS", {"train": 2, "val": 1, "test": 1})
    return fill(tmp_path / "snli_ve", snli_files())


def prepare_entail(where, **config):
    prepare_folder(snli_ve, where, images=str(where.parent / "flickr30k/images"), **config)


def test_snli_ve_pairs_a_hypothesis_with_a_photo_of_flickr30k(entail, capsys):
    prepare_entail(entail)
    first, second = lines(entail, "train")
    assert first == {"id": "1001.jpg#2r1n", "image": str(entail.parent / "flickr30k/images/1001.jpg"),
                     "hypothesis": "A man is outside.", "label": "neutral"}
    assert second["hypothesis"] == "A caf\u00e9 \U0001f600"
    assert tasks.load_split(entail, "val")[0]["image"].name == "1003.jpg"  # the other spelling of the key
    assert answers_json(entail) == ["entailment", "neutral", "contradiction"]
    assert meta(entail)["task"] == "entail" and meta(entail)["hypotheses"] == {"train": 2, "val": 1, "test": 1}


def test_sentences_without_a_label_are_counted_and_left_out(entail, capsys):
    prepare_entail(entail)
    assert skipped(entail, "sentences without a label") == ["1002.jpg#2r1x"]
    assert "left out: 1 sentences without a label: 1002.jpg#2r1x\n" in capsys.readouterr().out
    assert all(item["label"] != "-" for item in lines(entail, "train"))


def test_snli_ve_counts_are_asserted_unless_partial(entail, monkeypatch):
    monkeypatch.undo()
    fails(lambda: prepare_entail(entail), "2 sentences instead of 529,527 in train", "--partial")
    prepare_entail(entail, partial=True)


def test_missing_files_and_images_of_snli_ve_say_what_to_do(entail):
    (entail.parent / "flickr30k/images/1003.jpg").unlink()
    fails(lambda: prepare_entail(entail), "1003.jpg is missing", "data/flickr30k/prepare.py", "--images", "--partial")
    prepare_entail(entail, partial=True)
    assert skipped(entail, "missing images") == ["1003.jpg"]
    for name in snli_files():
        (entail / name).unlink()
        fails(lambda: prepare_entail(entail), entail / name, "no such file", f"{snli_ve.COPY}{name}.gz", snli_ve.SITE)
        fill(entail, snli_files())


@pytest.mark.parametrize("line, words", [
    ("{", ["line 2"]), ("3", ["line 2"]), (json.dumps(pair(1001, "n", "maybe")), ["line 2", "'maybe'"]),
    (json.dumps(pair("../1001", "n", "neutral")), ["../1001"]),
    (json.dumps(pair(1001, "n", "neutral", key="image")), ["Flikr30kID"]),
    (json.dumps(pair(1001, "n", "neutral", None)), ["line 2"])])
def test_a_wrong_line_of_snli_ve_is_one_line(entail, line, words):
    fill(entail, {"snli_ve_dev.jsonl": f"{json.dumps(PAIRS['dev'][0])}\n{line}\n"})
    fails(lambda: prepare_entail(entail), entail / "snli_ve_dev.jsonl", "another form", *words)


def test_packed_sentences_are_downloaded_and_read(entail, site, monkeypatch):
    for name, text in snli_files().items():
        (entail / name).unlink()
        site.put(f"{name}.gz", gzip.compress(text.encode()))
    monkeypatch.setattr(snli_ve, "COPY", site.url(""))
    prepare_entail(entail, download=True)
    prepare_entail(entail, download=True)
    assert len(lines(entail, "train")) == 2 and len(site.asked) == 3
    packed = entail / "snli_ve_test.jsonl.gz"
    for content in (packed.read_bytes()[:-12], b"<html>", packed.read_bytes()[:12] + b"\xff" * 40):
        packed.write_bytes(content)
        fails(lambda: prepare_entail(entail), entail / "snli_ve_test.jsonl", "fetch it again")


# ---------------------------------------------------------------------------- ScienceQA


def problem(split, answer, image=None, **more):
    return {"question": "Which is north?", "choices": ["A hill", "B", f" {ACCENT}"], "answer": answer, "hint": "",
            "image": image, "task": "closed choice", "grade": "grade2", "subject": "social science",
            "topic": "geography", "category": "Maps", "skill": "Read a map", "lecture": "Maps have\n\n* four sides.",
            "solution": "Look up.", "split": split} | more


PROBLEMS = {"1": problem("train", 1, "image.png"), "12": problem("train", 2, hint="It is  cold."),
            "3": problem("val", 0, "choice_0.png"), "4": problem("test", 1), "5": problem("test", 0, "image.png")}


def science_files():
    splits = {"train": ["12", "1"], "val": ["3"], "test": ["4", "5"], "minitrain": ["1"], "trainval": ["1", "12", "3"]}
    return {"problems.json": json.dumps(PROBLEMS), "pid_splits.json": json.dumps(splits)}


@pytest.fixture
def science(tmp_path, monkeypatch):
    monkeypatch.setattr(scienceqa, "COUNTS", {"train": 2, "val": 1, "test": 2})
    monkeypatch.setattr(scienceqa, "PICTURES", {"train": 1, "val": 1, "test": 1})
    fill(tmp_path / "scienceqa/images", {f"{name}.png": jpeg() for name in (
        "train/1/image", "val/3/choice_0", "test/5/image")})
    return fill(tmp_path / "scienceqa", science_files())


def test_scienceqa_asks_for_the_letter_of_a_choice(science):
    prepare_folder(scienceqa, science)
    without, with_picture = lines(science, "train")
    assert with_picture == {"id": "1", "image": "images/train/1/image.png", "question": "Which is north?",
                            "choices": ["A hill", "B", "caf\u00e9"], "hint": "", "lecture": "Maps have * four sides.",
                            "solution": "Look up.", "answers": {"B": 1}}
    assert without["image"] is None and without["answers"] == {"C": 1} and without["hint"] == "It is cold."
    assert lines(science, "val")[0]["image"] == "images/val/3/choice_0.png"
    assert meta(science)["task"] == "scienceqa" and meta(science)["images"] == {"train": 1, "val": 1, "test": 1}
    assert meta(science)["questions"] == {"train": 2, "val": 1, "test": 2}


def test_a_question_without_a_picture_is_read_as_none(science):
    prepare_folder(scienceqa, science, check=True)
    without, with_picture = tasks.load_split(science, "train")
    assert without["image"] is None and with_picture["image"].is_file()


@pytest.mark.parametrize("rest", ['"captions": ["A shoe."]', '"hypothesis": "a", "label": "neutral"',
                                  '"expression": "a", "box": [1, 2, 3, 4]'])
def test_only_a_question_can_do_without_an_image(tmp_path, rest):
    fill(tmp_path, {"a.jsonl": '{"id": 1, "image": null, "question": "What?", "answers": {"B": 1}, "choices": ["a"]}'})
    assert tasks.load_split(tmp_path, "a")[0]["image"] is None
    fill(tmp_path, {"b.jsonl": f'{{"id": 1, "image": null, {rest}}}',
                    "c.jsonl": '{"id": 1, "image": null, "question": "What?", "choices": "ab"}'})
    fails(lambda: tasks.load_split(tmp_path, "b"), "b.jsonl line 1", '"image" is null')
    fails(lambda: tasks.load_split(tmp_path, "c"), "c.jsonl line 1", '"choices" is "ab"')


def test_scienceqa_counts_are_asserted_unless_partial(science, monkeypatch):
    monkeypatch.setattr(scienceqa, "PICTURES", {"train": 2, "val": 1, "test": 1})
    fails(lambda: prepare_folder(scienceqa, science), "1 pictures instead of 2 in train")
    monkeypatch.undo()
    assert sum(scienceqa.COUNTS.values()) == 21_208 and sum(scienceqa.PICTURES.values()) == 10_332
    fails(lambda: prepare_folder(scienceqa, science), "2 questions instead of 12,726 in train", "--partial")
    prepare_folder(scienceqa, science, partial=True)


def test_missing_files_and_images_of_scienceqa_say_what_to_fetch(science):
    (science / "images/test/5/image.png").unlink()
    fails(lambda: prepare_folder(scienceqa, science), science / "images/test/5/image.png", scienceqa.ZIPS, "--partial")
    prepare_folder(scienceqa, science, partial=True)
    assert [item["id"] for item in lines(science, "test")] == ["4"]
    for name in scienceqa.FILES:
        (science / name).unlink()
        fails(lambda: prepare_folder(scienceqa, science), science / name, "no such file", f"{scienceqa.SITE}{name}")
        fill(science, science_files())


@pytest.mark.parametrize("name, edit", [
    ("problems.json", lambda d: d["1"].pop("lecture")), ("problems.json", lambda d: d.pop("1")),
    ("problems.json", lambda d: d["1"].update(answer=3)), ("problems.json", lambda d: d["1"].update(answer="B")),
    ("problems.json", lambda d: d["1"].update(image="../../a.png")), ("pid_splits.json", lambda d: d.pop("test")),
    ("problems.json", lambda d: d["1"].update(choices=[1, 2]))])
def test_a_wrong_file_of_scienceqa_is_one_line(science, name, edit):
    change(science / name, edit)
    fails(lambda: prepare_folder(scienceqa, science), science, "another form", scienceqa.SITE)


def test_scienceqa_is_downloaded_once(science, tmp_path, site, monkeypatch):
    for name, text in science_files().items():
        site.put(name, text.encode())
    zips = {split: zipped({f"{split}/": b""} | {path.relative_to(science / "images").as_posix(): path.read_bytes()
                                                for path in (science / f"images/{split}").glob("*/*")})
            for split in ("train", "val", "test")}
    monkeypatch.setattr(scienceqa, "IMAGES", {
        split: {"urls": site.put(f"{split}.zip", content)["urls"]} for split, content in zips.items()})
    monkeypatch.setattr(scienceqa, "SITE", site.url(""))
    for _ in range(2):
        prepare_folder(scienceqa, tmp_path / "new", download=True)
        for path in (tmp_path / "new/images").glob("*.zip"):
            path.unlink()
    assert site.asked == [*scienceqa.FILES, "train.zip", "val.zip", "test.zip"]
    assert tasks.load_split(tmp_path / "new", "train")[1]["image"].is_file()


# ---------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("tree, call, image", [
    ("vqa", prepare_vqa, "coco/train2014/COCO_train2014_000000000001.jpg"),
    ("graphs", lambda where, **config: prepare_folder(gqa, where, **config), "gqa/images/2412112.jpg"),
    ("entail", prepare_entail, "flickr30k/images/1001.jpg"),
    ("science", lambda where, **config: prepare_folder(scienceqa, where, **config),
     "scienceqa/images/train/1/image.png")])
def test_a_damaged_image_is_left_out_with_the_reason_by_check_only(request, tree, call, image, capsys):
    """With it go all questions about it. That it is counted once, not once a question, shows in meta.json."""
    where = request.getfixturevalue(tree)
    call(where)
    before = meta(where)
    (where.parent / image).write_bytes(jpeg()[:-300])
    call(where)
    assert meta(where) == before
    call(where, check=True)
    assert len(skipped(where, "damaged images")) == 1 and "truncated" in skipped(where, "damaged images")[0]
    assert "left out: 1 damaged images: " in capsys.readouterr().out
    assert meta(where)["images"]["train"] == before["images"]["train"] - 1
    assert not any((item["image"] or "").endswith(image) for item in lines(where, "train"))
    (where.parent / image).unlink()
    with pytest.raises(UserError, match="the first of 1"):
        call(where)


def test_what_is_fetched_and_written_is_not_in_the_repository():
    """git leaves alone what prepare puts below data/, so that nobody commits 20 GB of images."""
    names = {"vqa2": [*vqa2.ZIPS, "answers.json", "v2_Questions_Train_mscoco.zip"],
             "gqa": [*gqa.FILES.values(), "images/1.jpg", "questions1.2.zip"],
             "snli_ve": ["snli_ve_train.jsonl.gz", "snli_ve_train.jsonl", "answers.json"],
             "scienceqa": [*scienceqa.FILES, "images/train/1/image.png"], "coco": ["test2015/a.jpg"]}
    paths = [f"data/{name}/{file}" for name, files in names.items() for file in files]
    done = subprocess.run(["git", "check-ignore", *paths], capture_output=True, text=True, cwd=ROOT)
    if done.returncode > 1:
        pytest.skip("not in a git repository")
    assert done.stdout.split() == paths


@pytest.mark.parametrize("name", ["vqa2", "gqa", "snli_ve", "scienceqa"])
def test_every_script_ends_in_one_line_and_is_found_by_name(name, tmp_path, monkeypatch):
    """As a user calls it, from another folder; and the line that train.py answers."""
    command = [sys.executable, str(ROOT / f"data/{name}/prepare.py")]
    done = subprocess.run([*command, "--folder", "no/where"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no") and done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    if not tasks.is_prepared(ROOT / "data" / name):
        fails(lambda: tasks.find_dataset(name), f"run python data/{name}/prepare.py", tasks.RUN_WITH[name])
    help = subprocess.run([*command, "--help"], capture_output=True, text=True).stdout
    assert "--check" in help and "--out" in help
