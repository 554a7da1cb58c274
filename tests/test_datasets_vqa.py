"""The datasets of questions and hypotheses: which are trained on, and which answers there are.

What all prepare scripts do is tested in test_datasets.py; the trees are in dataset_trees.py.
"""

import gzip
import json

import pytest
from dataset_trees import fails, fill, jpeg, pair, tree, vqa_questions

from data.scienceqa import prepare as scienceqa
from data.vqa2 import prepare as vqa2


@pytest.fixture
def vqa(tmp_path, monkeypatch):
    return tree(tmp_path, monkeypatch, "vqa2")


@pytest.fixture
def entail(tmp_path, monkeypatch):
    return tree(tmp_path, monkeypatch, "snli_ve")


# ---------------------------------------------------------------------------- VQA v2


def test_a_question_of_vqa_comes_out_as_documented(vqa):
    vqa.run()
    assert vqa.lines("train")[0] == {
        "id": 101, "image": str(vqa.root / "coco/train2014/COCO_train2014_000000000001.jpg"),
        "question": "What is 101?", "answers": {"yes": 9},
        "raw_answers": ["yes"] * 8 + ["Yes.", "no"]}
    assert vqa.json()["task"] == "vqa" and vqa.json()["answers"] == 3
    assert vqa.json()["questions"] == {"train": 6, "val": 2}
    assert vqa.json()["images"] == {"train": 4, "val": 1}


def test_the_answers_to_choose_from_are_the_most_frequent_of_enough_questions(vqa):
    vqa.run()
    assert vqa.json("answers") == ["yes", "", "2 dogs"]
    assert {item["id"]: item["answers"] for item in vqa.lines("train")} == {
        101: {"yes": 9}, 102: {"": 6}, 201: {"2 dogs": 10}, 301: {"yes": 10}, 302: {"": 10},
        2001: {"2 dogs": 4}}


def test_questions_without_an_answer_to_choose_are_left_out_of_train_only(vqa, capsys):
    vqa.run()
    why = "questions of train without an answer to choose"
    assert vqa.skipped(why) == ["202", "303"]
    assert f"left out: 2 {why}: 202, 303\n" in capsys.readouterr().out
    last = vqa.lines("val")[-1]
    assert last["id"] == 10002 and last["answers"] == {"purple": 6, "mauve": 4}
    assert last["raw_answers"] == ["purple\n"] * 6 + ["Mauve"] * 4


@pytest.mark.parametrize("n, held_out", [(1, {100}), (2, {20, 100}), (3, {3, 20, 100})])
def test_no_image_of_the_mini_val_is_trained_on(vqa, monkeypatch, n, held_out):
    """Nor does it depend on which images are there."""
    monkeypatch.setattr(vqa2, "MINI_VAL", n)
    vqa.run()
    train, val = (set(vqa.column(split, "image")) for split in ("train", "val"))
    assert not train & val and {int(image[-16:-4]) for image in val} == held_out
    (vqa.root / "coco/val2014/COCO_val2014_000000000020.jpg").unlink()
    vqa.run(partial=True)
    assert set(vqa.column("val", "image")) == {image for image in val if "0020.jpg" not in image}


def test_the_tests_of_vqa_are_written_where_they_are_there(vqa, capsys):
    for name, ids in (("test2015", [501, 502, 601]), ("test-dev2015", [502])):
        fill(vqa.folder, {f"v2_OpenEnded_mscoco_{name}_questions.json": vqa_questions(ids)})
    vqa.run()  # the questions are there, but no images
    assert vqa2.TEST_ZIP in capsys.readouterr().out and not (vqa.folder / "test.jsonl").exists()
    fill(vqa.root, {f"coco/test2015/COCO_test2015_{i:012}.jpg": jpeg() for i in (5, 6)})
    vqa.run()
    assert vqa.column("test") == [501, 502, 601] and len(vqa.lines("train")) == 6
    assert [set(item) for item in vqa.lines("test-dev")] == [{"id", "image", "question"}]


# ---------------------------------------------------------------------------- the others


def test_gqa_keeps_ids_as_texts_and_answers_as_they_are(tmp_path, monkeypatch):
    gqa = tree(tmp_path, monkeypatch, "gqa")
    gqa.run()
    first = {"id": "05515938", "image": "images/2412112.jpg", "answers": {"yes": 1},
             "question": "Is the cup left of the plate?"}
    assert gqa.lines("train") == [
        first, first | {"id": "5515938", "answers": {"t-shirt": 1}},
        {"id": "7", "image": "images/n161313.jpg", "question": "Is this a caf\u00e9?",
         "answers": {"yes": 1}}]
    assert gqa.json("answers") == ["yes", "t-shirt", "no", "bottle cap"]
    assert gqa.json()["task"] == "vqa" and gqa.json()["images"]["train"] == 2
    assert gqa.json()["questions"] == {"train": 3, "val": 1, "test-dev": 1}


def test_snli_ve_pairs_a_hypothesis_with_a_photo_of_flickr30k(entail, capsys):
    """One line has the other spelling of the key, and one no label."""
    entail.run()
    first, second = entail.lines("train")
    assert first == {"id": "1001.jpg#2r1n", "hypothesis": "A man is outside.", "label": "neutral",
                     "image": str(entail.root / "flickr30k/images/1001.jpg")}
    assert second["hypothesis"] == "A caf\u00e9 \U0001f600"
    assert entail.column("val", "image")[0].endswith("1003.jpg")
    assert entail.json("answers") == ["entailment", "neutral", "contradiction"]
    assert entail.json()["task"] == "entail"
    assert entail.json()["hypotheses"] == {"train": 2, "val": 1, "test": 1}
    assert entail.skipped("sentences without a label") == ["1002.jpg#2r1x"]
    assert "left out: 1 sentences without a label: 1002.jpg#2r1x\n" in capsys.readouterr().out


@pytest.mark.parametrize("line, word", [
    ("{", ""), (3, ""), (pair(1001, "n", "maybe"), "'maybe'"),
    (pair("../1001", "n", "neutral"), "../1001"),
    (pair(1001, "n", "neutral", key="image"), "Flikr30kID"),
    (pair(1001, "n", "neutral", None), "")])
def test_a_wrong_line_of_snli_ve_is_named(entail, line, word):
    path = entail.folder / "snli_ve_dev.jsonl"
    line = line if isinstance(line, str) else json.dumps(line)
    path.write_text(f"{path.read_text()}{line}\n")
    fails(entail.run, f"{path} line 2: has another form", word)


def test_a_packed_file_that_is_damaged_is_to_be_fetched_again(entail):
    path = entail.folder / "snli_ve_test.jsonl"
    content, packed = gzip.compress(path.read_bytes()), path.with_name("snli_ve_test.jsonl.gz")
    path.unlink()
    for wrong in (content[:-12], b"<html>", content[:10] + b"\xff" * 40):
        packed.write_bytes(wrong)
        fails(entail.run, packed, "fetch it again")


def test_scienceqa_asks_for_the_letter_of_a_choice_with_or_without_a_picture(tmp_path, monkeypatch):
    science = tree(tmp_path, monkeypatch, "scienceqa")
    science.run(check=True)
    without, with_picture = science.lines("train")
    assert with_picture == {
        "id": "1", "image": "images/train/1/image.png", "question": "Which is north?",
        "choices": ["A hill", "B", "caf\u00e9"], "hint": "", "lecture": "Maps have * four sides.",
        "solution": "Look up.", "answers": {"B": 1}}
    assert without["image"] is None and without["answers"] == {"C": 1}
    assert without["hint"] == "It is cold."
    assert science.column("val", "image") == ["images/val/3/choice_0.png"]
    assert science.json()["task"] == "scienceqa"
    assert science.json()["images"] == {"train": 1, "val": 1, "test": 1}
    assert science.json()["questions"] == {"train": 2, "val": 1, "test": 2}
    monkeypatch.undo()
    assert sum(scienceqa.COUNTS.values()) == 21_208
    assert sum(scienceqa.PICTURES.values()) == 10_332
