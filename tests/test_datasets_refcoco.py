"""Referring expressions: pickles that nobody should trust, boxes to choose from, and masks.

What all prepare scripts do is tested in test_datasets.py; the tree is in dataset_trees.py.
"""

import pickle

import pytest
from dataset_trees import (OBJECTS, RUNS, SETS, H, W, change, fails, fill, polygons, python2,
                           references, refs_name, tree)

from data import tasks
from data.refcoco import prepare as refcoco

TRAIN, WOMAN = ["Left man", "caf\u00e9"], "\U0001f600 woman"
IMAGE_4 = "train2014/COCO_train2014_000000000004.jpg"


@pytest.fixture
def refer(tmp_path, monkeypatch):
    return tree(tmp_path, monkeypatch, "refcoco")


def expressions(refer):
    return {split: refer.column(split, "expression") for split in refer.json()["expressions"]}


def write_refs(refer, content):
    """Writes a pickle in place of RefCOCO's, and gives back its path."""
    path = refer.folder / refs_name()
    path.write_bytes(content)
    return path


def edited(edit):
    """References that edit has changed, as a pickle of Python 2."""
    refs = references()
    edit(refs)
    return python2(refs)


# ---------------------------------------------------------------------------- what is written


def test_an_expression_comes_out_as_documented(refer):
    refer.run()
    first, second = refer.lines("train")
    assert first == {
        "id": 0, "image": str(refer.root / "coco/train2014/COCO_train2014_000000000001.jpg"),
        "expression": "Left man", "box": OBJECTS[11],
        "proposals": [OBJECTS[11], OBJECTS[12], OBJECTS[13]]}
    assert second == first | {"id": 1, "expression": "caf\u00e9"}
    item = tasks.load_split(refer.result, "testB")[1]
    assert item["image"].is_file() and item["id"] == 5 and item["box"] == OBJECTS[42]
    assert item["proposals"] == [OBJECTS[41], OBJECTS[42]]  # 41 has no height, as a few of COCO's


def test_each_set_has_its_own_splits_and_counts(refer, monkeypatch, capsys):
    fails(refer.run, "there is no refclef", "refcocog", sets=["refcoco", "refclef"])
    refer.run(sets=SETS)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "refcoco:" and out[1].split()[:4] == ["train", "1", "images", "2"]
    for name in SETS:
        refer.result = refer.folder / name
        tests = {"testA": [WOMAN], "testB": ["a", "b"]} if name != "refcocog" else {
            "test": [WOMAN, "a", "b"]}
        assert expressions(refer) == {"train": TRAIN, "val": ["not the Dog."], **tests}
        assert refer.json()["task"] == "refer" and "easier" in refer.json()["proposals"]
        assert refer.json()["source"]["expressions"] == refcoco.ZIPS[name]["urls"]
        assert refcoco.ZIPS[name]["urls"].endswith(f"/{name}.zip")
        assert all(item["box"] in item["proposals"] for split in ("train", *tests)
                   for item in refer.lines(split))
    monkeypatch.undo()
    # Papers give 142,209 for RefCOCO, one fewer than the files hold, and 141,564 for RefCOCO+.
    assert [sum(refcoco.COUNTS[name].values()) for name in SETS] == [142_210, 141_564, 95_010]
    assert refcoco.Config().sets == SETS


@pytest.mark.parametrize("protocol", [0, 2])
def test_the_words_of_python_2_come_out_whole(refer, protocol):
    """Most are UTF-8; a byte that is not is taken for Latin-1. What cannot be seen goes."""
    refs = references()
    first, second = refs[0]["sentences"]
    first["raw"] = b"na\xefve caf\xe9"
    second["raw"] = "\u202ethe  man\u200b's \u201chat\u201d \U0001f469\u200d\U0001f680"
    write_refs(refer, python2(refs, protocol))
    refer.run()
    assert expressions(refer)["train"] == ["na\u00efve caf\u00e9",
                                           "the man's \u201chat\u201d \U0001f469\u200d\U0001f680"]
    assert expressions(refer)["testA"] == [WOMAN]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_python_3_wrote_is_read_as_well(refer, protocol):
    refs = references()
    refs[0]["sentences"][0]["raw"] = "half \ud83d an emoji"
    write_refs(refer, pickle.dumps(refs, protocol))
    refer.run()
    assert expressions(refer)["train"] == ["half an emoji", "caf\u00e9"]


def test_empty_expressions_are_counted_and_left_out(refer):
    write_refs(refer, edited(lambda refs: refs[3]["sentences"][0].update(raw=" \u200b\n")))
    refer.run()
    assert expressions(refer)["testB"] == ["b"]
    assert refer.skipped("empty expressions") == [IMAGE_4]


# ------------------------------------------------------------------- pickles nobody should trust


def hostile(path):
    """{name: a pickle that would write a file at path}, one for each way to name a function."""
    code = f"open({str(path)!r}, 'w')".encode()
    size, text = len(code).to_bytes(4, "little"), repr(code)[1:].encode()
    return {"builtins.eval": b"c__builtin__\neval\n(S" + text + b"\ntR.",
            "__builtin__.eval": b"(S" + text + b"\ni__builtin__\neval\n.",
            "os.system": b"\x80\x04\x8c\x02os\x8c\x06system\x93T" + size + code + b"\x85R.",
            "in a list": b"\x80\x02](" + python2(references())[2:-1] + b"c__builtin__\neval\nT"
                         + size + code + b"\x85Re."}


@pytest.mark.parametrize("name", hostile(""))
def test_a_pickle_that_names_a_function_is_refused_and_nothing_is_run(refer, name):
    """That the pickles are no blanks is seen at the end: Python's own unpickler runs the first."""
    evil = refer.root / "evil"
    path = write_refs(refer, hostile(evil)[name])
    wanted = "os.system" if name == "os.system" else "__builtin__.eval"
    text = fails(refer.run, path, "refused", wanted, "delete it", partial=True)
    assert len(text) < len(str(path)) + 200
    assert not evil.exists() and not (refer.result / "train.jsonl").exists()
    if name == "builtins.eval":
        pickle.loads(path.read_bytes())
        assert evil.exists()


@pytest.mark.parametrize("content, words", [
    (pickle.dumps({"a"}, 2), ["refused", "__builtin__.set"]),  # harmless, and yet a class
    (b"\x80\x04\x8c\x05a\nb\x1b[\x8c\x01c\x93.", ["refused", r"a\nb\x1b[.c"]),
    *((damage(python2(references())), ["damaged or cut off", "delete it", "refcoco.zip"])
      for damage in (lambda b: b[:-1], lambda b: b[:len(b) // 2], lambda b: b"",
                     lambda b: b"<html>", lambda b: b"." + b, lambda b: b[:2] + b"\x82\x01.",
                     lambda b: b[:2] + b"T\xff\xff\xff\x7fabc", lambda b: b[:2] + b"I1\nQ.",
                     lambda b: b[:2] + b"]r\xff\xff\xff\x0bb.",
                     lambda b: b[:2] + b"\x8b\xff\xff\xff\xff.",
                     lambda b: b[:2] + b"]}U\x01aK\x01sb.")),
    *((python2(value), ["in place of a list"]) for value in (3, {}, {"a": 1}, "text")),
    *((edited(edit), ["another form"]) for edit in (
        lambda r: r[0].pop("sentences"), lambda r: r[0].update(split="testC"),
        lambda r: r[0].update(image_id="1"), lambda r: r[0].update(image_id=2),
        lambda r: r[0].update(ann_id=99), lambda r: r[0].update(sentences=3),
        lambda r: r[0]["sentences"][0].pop("raw"), lambda r: r[0]["sentences"][0].update(raw=7),
        lambda r: r[0].update(split=[]), lambda r: r.append(3), lambda r: r.insert(0, "a")))])
def test_any_other_pickle_is_one_line(refer, content, words):
    fails(refer.run, write_refs(refer, content), *words, partial=True)


def test_a_pickle_far_too_large_is_not_read(refer, monkeypatch):
    monkeypatch.setattr(refcoco, "LARGEST", 100)
    fails(refer.run, refer.folder / refs_name(), "bytes", "delete it", "refcoco.zip")


# ---------------------------------------------------------------------------- boxes and masks


def test_masks_are_written_when_asked_for(refer):
    refer.run()
    assert not any("masks" in item for item in refer.lines("train"))
    refer.run(masks=True)
    item = refer.lines("train")[0]
    assert item["masks"] == [polygons(OBJECTS[11]), polygons(OBJECTS[12]), RUNS]
    assert all(len(item["masks"]) == len(item["proposals"]) for item in refer.lines("testB"))


@pytest.mark.parametrize("mask", [
    {"size": [W, H], "counts": [100, 30, H * W - 130]}, {"size": [H, W], "counts": [100, 30]},
    {"size": [H, W]}, {"counts": "a"}, {"size": [H, W], "counts": None}, "polygon", [1, 2], None])
def test_a_wrong_mask_is_one_line(refer, mask):
    path = refer.folder / "refcoco/instances.json"
    change(path, lambda d: d["annotations"][2].update(segmentation=mask))
    fails(refer.run, path, "another form", masks=True)
    refer.run()  # nobody wants the masks


def detections(masks=False, images=(4, 3, 2, 1, 777)):
    """MAttNet's list: two boxes in each image, the second a wrong one; 777 is in no set."""
    found = [{"det_id": 2 * i + k, "image_id": i, "category_name": "person", "score": 0.9912,
              "box": [k + 0.123456789, 1.5, 9.25, 12.0]} for i in images for k in (0, 1)]
    for detection in found if masks else ():
        detection["rle"] = {"size": [H, W], "counts": f"P{detection['det_id']}"}
    return found


def write_detections(refer, content, name="dets.json"):
    return str(fill(refer.folder, {name: content}) / name)


def test_detections_take_the_place_of_the_annotated_boxes(refer):
    """In their order, as they are; that the right box may be missing is what is hard about them."""
    refer.run(detections=write_detections(refer, detections()))
    for item in refer.lines("train") + refer.lines("testB"):
        assert item["proposals"] == [[0.123456789, 1.5, 9.25, 12.0], [1.123456789, 1.5, 9.25, 12.0]]
        assert item["box"] in OBJECTS.values()
    assert refer.json()["proposals"] == "detected, from dets.json"


def test_detected_masks_pass_through(refer):
    path = write_detections(refer, detections(masks=True))
    refer.run(detections=path, masks=True)  # image 2 has the detections 4 and 5
    masks = [{"size": [H, W], "counts": f"P{n}"} for n in (4, 5)]
    assert refer.column("val", "masks") == [masks]
    refer.run(detections=path)
    assert "masks" not in refer.lines("val")[0]
    write_detections(refer, detections())
    fails(refer.run, path, "without masks", "_masks.json", detections=path, masks=True)


def test_of_a_folder_each_set_takes_its_own_detections(refer):
    folder = refer.folder / "detections"
    names = {"refcoco": "refcoco_unc", "refcoco+": "refcoco+_unc", "refcocog": "refcocog_umd"}
    for number, name in enumerate(names.values()):
        fill(folder / name, {"res101_coco_minus_refer_notime_dets.json": [
            d | {"box": [number, 0, 1, 1]} for d in detections()]})
    refer.run(sets=SETS, detections=str(folder))
    for number, name in enumerate(SETS):
        refer.result = refer.folder / name
        assert refer.column("val", "proposals") == [[[number, 0, 1, 1]] * 2]
    fails(refer.run, folder / "refcoco_unc/res101_coco_minus_refer_notime_masks.json",
          "no such file", refcoco.MATTNET, detections=str(folder), masks=True)


def test_an_image_without_detections_is_an_error_unless_partial(refer):
    path = write_detections(refer, detections(images=(1, 2, 3)))
    fails(refer.run, path, "000000000004.jpg", "the first of 1", "--partial", detections=path)
    refer.run(detections=path, partial=True)
    assert refer.skipped("images without detections") == [IMAGE_4]
    assert expressions(refer) == {"train": TRAIN, "val": ["not the Dog."], "testA": [WOMAN],
                                  "testB": []}


@pytest.mark.parametrize("content, word", [
    ("[", "damaged"), ({}, "nothing detected"), ({"1": []}, "another form"), (3, "another form"),
    ([{"image_id": 1}], "another form"), ([{"image_id": 1, "box": [1, 2]}], "another form"),
    ([{"box": [1, 2, 3, 4]}], "another form")])
def test_a_wrong_file_of_detections_is_one_line(refer, content, word):
    path = write_detections(refer, content)
    fails(refer.run, path, word, detections=path)


def test_the_sets_are_found_by_name_once_prepared(refer, monkeypatch):
    monkeypatch.setattr(tasks, "DATA", fill(refer.root / "data", {"refcoco/prepare.py": ""}))
    monkeypatch.chdir(refer.root)
    fails(lambda: tasks.find_dataset("refcoco/"), "refcoco is not prepared: run python "
          "data/refcoco/prepare.py --download", "refcoco/refcoco,", "refcoco/refcoco+ ")
    refer.run(sets=["refcoco+"], out=str(refer.root / "data/refcoco"))
    assert tasks.find_dataset("refcoco/refcoco+") == refer.root / "data/refcoco/refcoco+"
    fails(lambda: tasks.find_dataset("refcoco/refcocog"), "prepare.py refcocog --download")
