"""The three sets of referring expressions, each from a small tree in the layout of the published files.

What all prepare scripts share is tested in test_data.py, test_datasets.py and test_datasets_vqa.py. Here is
what is particular: pickles that Python 2 wrote and that nobody should trust, boxes to choose from, and masks.
The tree, the same for the three but for the names of the splits, by hand:

    image  its objects                                  referred to, in the order of the file
    1      11 and 12 with polygons, 13 a crowd (runs)   11 (train): "Left  man ", then "cafe" with an accent
    2      21                                           21 (val): "not the Dog."
    3      31                                           31 (testA, or test): "\U0001f600 woman"
    4      41 and 42                                    42 (testB, or test): "a", then "b"
    5      51                                           nothing
"""

import json
import pickle
import subprocess
import sys

import pytest

from data import archives, common, tasks
from data.refcoco import prepare as refcoco
from test_data import ROOT, fails, jpeg, lines, meta, site, skipped, zipped
from test_datasets import ACCENT, fill
from test_datasets_vqa import change

SETS = ["refcoco", "refcoco+", "refcocog"]
H, W = 32, 40
RUNS = {"size": [H, W], "counts": [100, 30, H * W - 130]}  # the pixels 100 to 129, counted down the columns
OBJECTS = {11: [1.5, 2.0, 10.0, 20.25], 12: [20.0, 2.0, 8.0, 9.0], 13: [3, 4, 2, 16], 21: [0.0, 0.0, 40.0, 32.0],
           31: [5.0, 5.0, 5.0, 5.0], 41: [1.0, 1.0, 3.0, 0.0], 42: [7.0, 7.0, 7.0, 7.0], 51: [1, 1, 1, 1]}
SAID = {11: ["Left  man ", f"{ACCENT}\n"], 21: ["not the Dog."], 31: ["\U0001f600 woman"], 42: ["a", "b"]}
SPLITS = {11: "train", 21: "val", 31: "testA", 42: "testB"}


def polygons(box):
    """A triangle in the box, and beside it another one; an object behind a pole has two."""
    x, y, w, h = box
    return [[x, y, x + w, y, x, y + h], [x, y, x + w, y + h, x, y + h]]


def instances():
    """instances.json as a dictionary."""
    return {"info": {}, "licenses": [], "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
            "images": [{"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "height": H, "width": W, "license": 1}
                       for i in range(1, 6)],
            "annotations": [{"id": i, "image_id": i // 10, "bbox": box, "category_id": 1, "area": 9.5,
                             "iscrowd": int(i == 13), "segmentation": RUNS if i == 13 else polygons(box)}
                            for i, box in OBJECTS.items()]}


def references(name):
    """What the pickle holds. sent_ids count up from 0."""
    refs, count = [], 0
    for number, (i, texts) in enumerate(SAID.items()):
        ids = list(range(count, count := count + len(texts)))
        split = "test" if name == "refcocog" and i > 30 else SPLITS[i]
        refs.append({"ref_id": number, "ann_id": i, "image_id": i // 10, "category_id": 1, "split": split,
                     "file_name": f"COCO_train2014_{i // 10:012}_{number}.jpg", "sent_ids": ids,
                     "sentences": [{"sent_id": k, "raw": raw, "sent": raw.strip().lower(),
                                    "tokens": raw.lower().split()} for k, raw in zip(ids, texts)]})
    return refs


def python2(value, protocol=2):
    """The bytes of a pickle in which every text is a string of bytes, as Python 2 has them.

    Python 3 cannot write such a one: python2(["a"], 0) is b"(S'a'\\nl.", pickle.dumps(["a"], 0) b"(lp0\\nVa\\n..."
    """
    def write(v):
        if isinstance(v, int):
            return b"I%d\n" % v
        if isinstance(v, (list, dict)):
            inside = v if isinstance(v, list) else [x for pair in v.items() for x in pair]
            return b"(" + b"".join(map(write, inside)) + (b"l" if isinstance(v, list) else b"d")
        raw = v if isinstance(v, bytes) else v.encode()
        return b"T" + len(raw).to_bytes(4, "little") + raw if protocol else b"S" + repr(raw)[1:].encode() + b"\n"

    return (b"\x80\x02" if protocol else b"") + write(value) + b"."


def refs_name(name):
    return f"{name}/refs({'umd' if name == 'refcocog' else 'unc'}).p"


@pytest.fixture
def refer(tmp_path, monkeypatch):
    """A folder with the three sets, beside COCO's images."""
    fill(tmp_path / "coco", {f"train2014/COCO_train2014_{i:012}.jpg": jpeg(seed=i) for i in (1, 2, 3, 4, 5)})
    unc = {"train": 2, "val": 1, "testA": 1, "testB": 2}
    monkeypatch.setattr(refcoco, "COUNTS", {"refcoco": unc, "refcoco+": unc,
                                            "refcocog": {"train": 2, "val": 1, "test": 3}})
    return fill(tmp_path / "refer", {refs_name(name): python2(references(name)) for name in SETS}
                | {f"{name}/instances.json": json.dumps(instances()) for name in SETS})


def run(where, *names, **config):
    """Prepares the named sets, refcoco if none is named, in place."""
    refcoco.main(refcoco.Config(sets=list(names or ["refcoco"]), folder=str(where), out=str(where),
                                images=str(where.parent / "coco"), **config))


def expressions(where, name="refcoco"):
    return {split: [item["expression"] for item in lines(where / name, split)]
            for split in meta(where / name)["expressions"]}


# ---------------------------------------------------------------------------- what is written


def test_an_expression_comes_out_as_documented(refer):
    run(refer)
    first, second = lines(refer / "refcoco", "train")
    assert first == {"id": 0, "image": str(refer.parent / "coco/train2014/COCO_train2014_000000000001.jpg"),
                     "expression": "Left man", "box": OBJECTS[11],
                     "proposals": [OBJECTS[11], OBJECTS[12], OBJECTS[13]]}
    assert second == first | {"id": 1, "expression": "caf\u00e9"}
    item = tasks.load_split(refer / "refcoco", "testB")[1]
    assert item["image"].is_file() and item["id"] == 5 and item["box"] == OBJECTS[42]
    assert item["proposals"] == [OBJECTS[41], OBJECTS[42]]  # 41 has no height: a few of COCO's boxes are so


@pytest.mark.parametrize("name", SETS)
def test_each_set_has_its_own_splits(refer, name, capsys):
    run(refer, name)
    tests = {"test": ["\U0001f600 woman", "a", "b"]} if name == "refcocog" else {
        "testA": ["\U0001f600 woman"], "testB": ["a", "b"]}
    assert expressions(refer, name) == {"train": ["Left man", "caf\u00e9"], "val": ["not the Dog."], **tests}
    about = meta(refer / name)
    assert about["task"] == "refer" and about["images"]["train"] == about["images"]["val"] == 1
    assert "easier" in about["proposals"] and about["source"]["expressions"] == refcoco.ZIPS[name]["urls"]
    assert [other for other in SETS if (refer / other / "train.jsonl").exists()] == [name]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{name}:" and out[1].split()[:5] == ["train", "1", "images", "2", "expressions"]


def test_all_three_are_prepared_by_one_command(refer):
    run(refer, *SETS)
    assert all((refer / name / "val.jsonl").exists() for name in SETS)
    assert refcoco.Config().sets == SETS
    fails(lambda: run(refer, "refcoco", "refclef"), "there is no refclef", "refcocog")


def test_the_right_box_is_among_those_to_choose_from(refer):
    run(refer, *SETS)
    for name in SETS:
        for split in refcoco.COUNTS[name]:
            assert all(item["box"] in item["proposals"] for item in lines(refer / name, split))


@pytest.mark.parametrize("protocol", [0, 2])
def test_the_words_of_python_2_come_out_whole(refer, protocol):
    """Most are UTF-8; a byte that is not is taken for Latin-1. What cannot be seen goes, an emoji stays."""
    refs = references("refcoco")
    refs[0]["sentences"][0]["raw"] = b"na\xefve caf\xe9"
    refs[0]["sentences"][1]["raw"] = "\u202ethe  man\u200b's \u201chat\u201d \U0001f469\u200d\U0001f680"
    (refer / refs_name("refcoco")).write_bytes(python2(refs, protocol))
    run(refer)
    assert expressions(refer)["train"] == ["na\u00efve caf\u00e9",
                                           "the man's \u201chat\u201d \U0001f469\u200d\U0001f680"]
    assert expressions(refer)["testA"] == ["\U0001f600 woman"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_python_3_wrote_is_read_as_well(refer, protocol):
    refs = references("refcoco")
    refs[0]["sentences"][0]["raw"] = "half \ud83d an emoji"
    (refer / refs_name("refcoco")).write_bytes(pickle.dumps(refs, protocol))
    run(refer)
    assert expressions(refer)["train"] == ["half an emoji", "caf\u00e9"]


def test_empty_expressions_are_counted_and_left_out(refer, capsys):
    refs = references("refcoco")
    refs[3]["sentences"][0]["raw"] = " \u200b\n"
    (refer / refs_name("refcoco")).write_bytes(python2(refs))
    run(refer)
    assert expressions(refer)["testB"] == ["b"]
    assert skipped(refer / "refcoco", "empty expressions") == ["train2014/COCO_train2014_000000000004.jpg"]
    assert "left out: 1 empty expressions: train2014/COCO" in capsys.readouterr().out


# ---------------------------------------------------------------------------- pickles nobody should trust


def hostile(path):
    """{name: a pickle that would write a file at path}, one for each way to name a function."""
    code = f"open({str(path)!r}, 'w')".encode()
    size = len(code).to_bytes(4, "little")
    return {"builtins.eval": b"c__builtin__\neval\n(S" + repr(code)[1:].encode() + b"\ntR.",
            "__builtin__.eval": b"(S" + repr(code)[1:].encode() + b"\ni__builtin__\neval\n.",
            "os.system": b"\x80\x04\x8c\x02os\x8c\x06system\x93T" + size + code + b"\x85R.",
            "in a list": b"\x80\x02](" + python2(references("refcoco"))[2:-1] + b"c__builtin__\neval\nT" + size
                         + code + b"\x85Re."}


@pytest.mark.parametrize("name", hostile(""))
def test_a_pickle_that_names_a_function_is_refused_and_nothing_is_run(refer, name):
    """That the pickles are no blanks is seen at the end: Python's own unpickler does run the first."""
    content = hostile(refer / "evil")[name]
    path = fill(refer, {refs_name("refcoco"): content}) / refs_name("refcoco")
    wanted = {"os.system": "os.system"}.get(name, "__builtin__.eval")
    text = fails(lambda: run(refer, partial=True), path, "refused", wanted, "delete it")
    assert len(text) < len(str(path)) + 200
    assert not (refer / "evil").exists() and not (refer / "refcoco/train.jsonl").exists()
    if name == "builtins.eval":
        pickle.loads(content)
        assert (refer / "evil").exists()


def test_harmless_classes_are_refused_as_well_and_their_names_stay_one_line(refer):
    path = refer / refs_name("refcoco")
    path.write_bytes(pickle.dumps({"a"}, 2))
    fails(lambda: run(refer), path, "__builtin__.set")
    path.write_bytes(b"\x80\x04\x8c\x05a\nb\x1b[\x8c\x01c\x93.")
    fails(lambda: run(refer), path, r"a\nb\x1b[.c")


@pytest.mark.parametrize("damage", [
    lambda b: b[:-1], lambda b: b[:len(b) // 2], lambda b: b[:1], lambda b: b"", lambda b: b"<html>no</html>",
    lambda b: b"." + b, lambda b: b[:2] + b"\x82\x01.", lambda b: b[:2] + b"T\xff\xff\xff\x7fabc",
    lambda b: b[:2] + b"I1\nQ.", lambda b: b[:2] + b"]}b.", lambda b: b[:2] + b"\x8b\xff\xff\xff\xff."])
def test_a_damaged_pickle_is_one_line(refer, damage):
    path = refer / refs_name("refcocog")
    path.write_bytes(damage(path.read_bytes()))
    fails(lambda: run(refer, "refcocog", partial=True), path, "damaged or cut off", "delete it",
          refcoco.ZIPS["refcocog"]["urls"])


def test_a_pickle_far_too_large_is_not_read(refer, monkeypatch):
    monkeypatch.setattr(refcoco, "LARGEST", 100)
    fails(lambda: run(refer), refer / refs_name("refcoco"), "bytes", "delete it", refcoco.ZIPS["refcoco"]["urls"])


@pytest.mark.parametrize("edit", [
    lambda r: r[0].pop("sentences"), lambda r: r[0].update(split="testC"), lambda r: r[0].update(image_id="1"),
    lambda r: r[0].update(image_id=2), lambda r: r[0].update(ann_id=99), lambda r: r[0].update(sentences=3),
    lambda r: r[0]["sentences"][0].pop("raw"), lambda r: r[0]["sentences"][0].update(raw=7),
    lambda r: r[0].update(split=[]), lambda r: r.append(3), lambda r: r.insert(0, "a")])
def test_references_of_another_form_are_one_line(refer, edit):
    refs = references("refcoco")
    edit(refs)
    (refer / refs_name("refcoco")).write_bytes(python2(refs))
    fails(lambda: run(refer, partial=True), refer / refs_name("refcoco"), "another form")


@pytest.mark.parametrize("value", [3, {}, {"a": 1}, "text"])
def test_a_pickle_of_something_else_is_one_line(refer, value):
    (refer / refs_name("refcoco")).write_bytes(python2(value))
    fails(lambda: run(refer, partial=True), refer / refs_name("refcoco"), "in place of a list")


# ---------------------------------------------------------------------------- boxes and masks


@pytest.mark.parametrize("edit", [
    lambda d: d.pop("annotations"), lambda d: d.pop("images"), lambda d: d["images"][0].pop("height"),
    lambda d: d["annotations"][1].pop("bbox"), lambda d: d["annotations"][1].update(bbox=[1, 2, 3]),
    lambda d: d["annotations"][1].update(bbox=[1, 2, -3, 4]), lambda d: d["annotations"][1].update(bbox="1234"),
    lambda d: d["annotations"][1].update(bbox=[1, float("nan"), 3, 4]), lambda d: d.update(annotations={"a": 1}),
    lambda d: d["annotations"][1].update(bbox=[1, 2, 10 ** 400, 4]), lambda d: d.update(images=None),
    lambda d: d["annotations"][1].update(bbox=[1, 2, float("inf"), 4]),
    lambda d: d["annotations"][1].update(image_id=[])])
def test_a_wrong_file_of_boxes_is_one_line(refer, edit):
    change(refer / "refcoco/instances.json", edit)
    fails(lambda: run(refer, partial=True), refer / "refcoco/instances.json", "another form", "delete it")


def test_masks_are_written_when_asked_for(refer):
    run(refer)
    assert not any("masks" in item for item in lines(refer / "refcoco", "train"))
    run(refer, masks=True)
    item = tasks.load_split(refer / "refcoco", "train")[0]
    assert item["masks"] == [polygons(OBJECTS[11]), polygons(OBJECTS[12]), RUNS]
    assert len(item["proposals"]) == 3
    assert all(len(item["masks"]) == len(item["proposals"]) for item in lines(refer / "refcoco", "testB"))
    fill(refer, {"a.jsonl": json.dumps(item | {"image": "a.jpg", "masks": "P1"})})
    fails(lambda: tasks.load_split(refer, "a"), '"masks" is "P1"')


@pytest.mark.parametrize("mask", [
    {"size": [W, H], "counts": [100, 30, H * W - 130]}, {"size": [H, W], "counts": [100, 30]}, {"size": [H, W]},
    {"counts": "a"}, {"size": [H, W], "counts": None}, "polygon", [1, 2, 3, 4], None])
def test_a_wrong_mask_is_one_line(refer, mask):
    change(refer / "refcoco/instances.json", lambda d: d["annotations"][2].update(segmentation=mask))
    fails(lambda: run(refer, masks=True), refer / "refcoco/instances.json", "another form")
    run(refer)  # nobody wants the masks


def detections(masks=False):
    """MAttNet's list: two boxes in each image, of which the second is wrong, and some in an image of others."""
    found = [{"det_id": 2 * i + k, "h5_id": 2 * i + k, "image_id": i, "category_id": 1, "category_name": "person",
              "score": 0.9912, "box": [k + 0.123456789, 1.5, 9.25, 12.0]} for i in (4, 3, 2, 1, 777) for k in (0, 1)]
    return [d | {"rle": {"size": [H, W], "counts": f"P{d['det_id']}1\\"}} for d in found] if masks else found


def test_detections_take_the_place_of_the_annotated_boxes(refer):
    """In their order, as they are; that the right box may be missing is what is hard about them."""
    path = fill(refer, {"dets.json": json.dumps(detections())}) / "dets.json"
    run(refer, detections=str(path))
    for item in lines(refer / "refcoco", "train") + lines(refer / "refcoco", "testB"):
        assert item["proposals"] == [[0.123456789, 1.5, 9.25, 12.0], [1.123456789, 1.5, 9.25, 12.0]]
        assert item["box"] in OBJECTS.values() and item["box"] not in item["proposals"]
    assert meta(refer / "refcoco")["proposals"] == "detected, from dets.json"


def test_detected_masks_pass_through(refer):
    path = fill(refer, {"a_masks.json": json.dumps(detections(masks=True))}) / "a_masks.json"
    run(refer, detections=str(path), masks=True)
    item = lines(refer / "refcoco", "val")[0]  # image 2 has the detections 4 and 5
    assert item["masks"] == [{"size": [H, W], "counts": f"P{n}1\\"} for n in (4, 5)]
    run(refer, detections=str(path))
    assert "masks" not in lines(refer / "refcoco", "val")[0]
    path.write_text(json.dumps(detections()))
    fails(lambda: run(refer, detections=str(path), masks=True), path, "without masks", "_masks.json")


def test_of_a_folder_each_set_takes_its_own_detections(refer, tmp_path):
    dets = "res101_coco_minus_refer_notime_dets.json"
    names = {"refcoco": "refcoco_unc", "refcoco+": "refcoco+_unc", "refcocog": "refcocog_umd"}
    for number, folder in enumerate(names.values()):
        rows = [d | {"box": [number, 0, 1, 1]} for d in detections()]
        fill(tmp_path / "detections", {f"{folder}/{dets}": json.dumps(rows)})
    run(refer, *SETS, detections=str(tmp_path / "detections"))
    for number, name in enumerate(SETS):
        assert lines(refer / name, "val")[0]["proposals"] == [[number, 0, 1, 1]] * 2
    masks = tmp_path / "detections/refcoco_unc/res101_coco_minus_refer_notime_masks.json"
    fails(lambda: run(refer, detections=str(tmp_path / "detections"), masks=True), masks, "no such file",
          refcoco.MATTNET)


def test_an_image_without_detections_is_an_error_unless_partial(refer, capsys):
    path = fill(refer, {"dets.json": json.dumps([d for d in detections() if d["image_id"] != 4])}) / "dets.json"
    fails(lambda: run(refer, detections=str(path)), path, "000000000004.jpg", "the first of 1", "--partial")
    run(refer, detections=str(path), partial=True)
    assert skipped(refer / "refcoco", "images without detections") == ["train2014/COCO_train2014_000000000004.jpg"]
    assert expressions(refer) == {"train": ["Left man", "caf\u00e9"], "val": ["not the Dog."],
                                  "testA": ["\U0001f600 woman"], "testB": []}
    assert "left out: 1 images without detections: train2014" in capsys.readouterr().out


@pytest.mark.parametrize("content, word", [
    (None, "no such file"), ("[", "damaged"), ("{}", "nothing detected"), ('{"1": []}', "another form"),
    ("3", "another form"), ('[{"image_id": 1}]', "another form"), ('[{"image_id": 1, "box": [1, 2]}]', "another form"),
    ('[{"box": [1, 2, 3, 4]}]', "another form")])
def test_a_wrong_file_of_detections_is_one_line(refer, content, word):
    if content is not None:
        fill(refer, {"dets.json": content})
    fails(lambda: run(refer, detections=str(refer / "dets.json")), refer / "dets.json", word)


# ---------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("name", SETS)
def test_counts_are_asserted_unless_partial(refer, monkeypatch, name):
    monkeypatch.undo()
    number = {"refcoco": "120,624", "refcoco+": "120,191", "refcocog": "80,512"}[name]
    fails(lambda: run(refer, name), refer / refs_name(name), f"2 expressions instead of {number} in train", "val",
          "--partial")
    run(refer, name, partial=True)
    assert sum(meta(refer / name)["expressions"].values()) == 6


def test_the_counts_asserted_are_the_published():
    """Papers give 142,209 for RefCOCO, one fewer than the files hold, and 141,564 for RefCOCO+."""
    assert [sum(refcoco.COUNTS[name].values()) for name in SETS] == [142_210, 141_564, 95_010]
    assert [file["urls"].split("/")[-1] for file in refcoco.ZIPS.values()] == [f"{name}.zip" for name in SETS]


@pytest.mark.parametrize("file", ["refs", "instances.json"])
@pytest.mark.parametrize("name", SETS)
def test_a_missing_file_says_what_to_fetch(refer, name, file):
    path = refer / (refs_name(name) if file == "refs" else f"{name}/{file}")
    path.unlink()
    fails(lambda: run(refer, name), path, "no such file", refcoco.ZIPS[name]["urls"], f"unpack it in {refer}",
          "--download")
    path.mkdir()
    fails(lambda: run(refer, name), path, "cannot be read")


def test_missing_images_are_an_error_unless_partial(refer, capsys):
    image = refer.parent / "coco/train2014/COCO_train2014_000000000001.jpg"
    image.unlink()
    fails(lambda: run(refer), image, "the first of 1", "train2014.zip", "data/coco/prepare.py", "--images", "--partial")
    run(refer, partial=True)
    assert skipped(refer / "refcoco", "missing images") == ["train2014/COCO_train2014_000000000001.jpg"]
    assert expressions(refer)["train"] == [] and expressions(refer)["val"] == ["not the Dog."]
    assert "left out: 1 missing images: train2014/COCO" in capsys.readouterr().out


def test_a_damaged_image_is_left_out_by_check_only(refer):
    image = refer.parent / "coco/train2014/COCO_train2014_000000000004.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    run(refer)
    assert expressions(refer)["testB"] == ["a", "b"]
    run(refer, check=True)
    assert expressions(refer)["testB"] == [] and len(skipped(refer / "refcoco", "damaged images")) == 1


def test_each_set_is_downloaded_once(refer, tmp_path, site, monkeypatch, capsys):
    for name in SETS:
        files = {file: (refer / file).read_bytes() for file in (refs_name(name), f"{name}/instances.json")}
        monkeypatch.setitem(refcoco.ZIPS, name, site.put(f"{name}.zip", zipped(
            files | {f"{name}/refs(google).p": b"", f"__MACOSX/{name}/._instances.json": b""})))
    new = tmp_path / "new"
    for _ in range(2):
        run(new, "refcoco+", "refcocog", download=True)
        for path in new.glob("*.zip"):
            path.unlink()
    assert site.asked == ["refcoco+.zip", "refcocog.zip"]
    assert len(lines(new / "refcoco+", "testB")) == 2 and len(lines(new / "refcocog", "test")) == 3
    assert {path.name for path in (new / "refcocog").iterdir()} == {
        "refs(umd).p", "instances.json", "train.jsonl", "val.jsonl", "test.jsonl", "meta.json"}
    out = capsys.readouterr().out
    assert all(f"{new / name}.zip is unpacked and may be deleted\n" in out for name in ("refcoco+", "refcocog"))


# ---------------------------------------------------------------------------- as a user calls it


def test_the_sets_are_found_by_name_once_prepared(refer, monkeypatch, tmp_path):
    fill(tmp_path / "data", {"refcoco/prepare.py": ""})
    monkeypatch.setattr(tasks, "DATA", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name in ("refcoco", "refcoco/"):
        fails(lambda: tasks.find_dataset(name), "refcoco is not prepared: run python data/refcoco/prepare.py "
              "--download", "--help", "refcoco/refcoco,", "refcoco/refcoco+ ", "refcoco/refcocog")
    fails(lambda: tasks.find_dataset("refcoco/refcoco+"), "refcoco/refcoco+ is not prepared: run python "
          "data/refcoco/prepare.py refcoco+ --download")
    refcoco.main(refcoco.Config(sets=["refcoco+"], folder=str(refer), out=str(tmp_path / "data/refcoco"),
                                images=str(tmp_path / "coco")))
    assert tasks.find_dataset("refcoco/refcoco+") == tmp_path / "data/refcoco/refcoco+"
    fails(lambda: tasks.find_dataset("refcoco/refcocog"), "prepare.py refcocog --download")
    assert len(tasks.load_split(tasks.find_dataset("refcoco/refcoco+"), "testA")) == 1


def test_the_command_ends_in_one_line_and_needs_no_torch(refer, tmp_path):
    command = [sys.executable, str(ROOT / "data/refcoco/prepare.py"), "refcoco+"]
    done = subprocess.run([*command, "--folder", "no/where"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no") and done.stderr.count("\n") == 1
    code = ("import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], "
            "run_name='__main__'); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, *command[1:], "--folder", str(refer), "--out", "out",
                           "--images", "coco", "--partial"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "testB       1 images         2 expressions" in done.stdout
    assert tasks.load_split(tmp_path / "out/refcoco+", "train")[0]["image"].is_file()
    help = subprocess.run([*command, "--help"], capture_output=True, text=True).stdout
    assert "--detections" in help and "--masks" in help


def test_what_is_fetched_and_written_is_not_in_the_repository():
    names = ["refcoco.zip", "refcoco/refs(unc).p", "refcoco+/instances.json", "refcocog/train.jsonl",
             "refcoco+/meta.json", "detections/refcoco_unc/res101_coco_minus_refer_notime_dets.json", "dets.json"]
    paths = [f"data/refcoco/{name}" for name in names]
    done = subprocess.run(["git", "check-ignore", *paths, "data/refcoco/prepare.py"], capture_output=True, text=True,
                          cwd=ROOT)
    if done.returncode > 1:
        pytest.skip("not in a git repository")
    assert done.stdout.split() == paths
