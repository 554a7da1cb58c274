"""A dataset on its way from the published files into lines that the training reads.

The tests prepare a COCO of six images (dataset_trees.py) in the layout of the real one, with what
is odd about it: a split called restval, white space in captions, grey and CMYK files.
"""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch
from dataset_trees import ENTRIES, ROOT, entry, fails, fill, jpeg, karpathy, tree, zipped

from data import archives, common, tasks
from data.coco import prepare
from data.features import cached_features, image_features_of
from data.masks import mask_of
from data.refcoco.prepare import read_refs
from lib import files
from lib.cli import UserError
from lib.devices import Processes
from lib.images import open_image

ALONE = Processes("cpu")


@pytest.fixture
def coco(tmp_path, monkeypatch):
    return tree(tmp_path, monkeypatch, "coco")


def full_disk(*args, **more):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---------------------------------------------------------------------------- what is written


def test_restval_is_trained_on(coco):
    coco.run()
    assert [coco.column(split) for split in ("train", "val", "test")] == [[1, 2, 5], [3, 6], [4]]


def test_the_counts_asserted_are_those_of_coco(coco, monkeypatch):
    monkeypatch.undo()
    assert sum(n for n, _ in prepare.COUNTS.values()) == 82_783 + 40_504
    assert prepare.COUNTS["train"][0] == 82_783 + 30_504  # train and restval
    assert sum(n for _, n in prepare.COUNTS.values()) == 616_767


def test_captions_come_out_of_raw_without_stray_white_space_and_are_told_apart_by_sentid(coco):
    """Capitals and full stops stay, all six captions too."""
    coco.run()
    assert coco.lines("train")[0] == {
        "id": 1, "image": "train2014/COCO_train2014_000000000001.jpg", "captions": ["A shoe."],
        "cocoid": 1}
    assert coco.lines("train")[1]["captions"] == ["One.", "Two dogs.", "Three cats.", "Four.",
                                                  "Five.", "Six."]
    assert coco.column("val", "captions")[0] == ["A cup.", "A mug."]
    assert coco.column("test", "captions") == [["A hat.", "A hat."]]
    assert coco.skipped("repeated sentids") == ["val2014/COCO_val2014_000000000003.jpg"]


def test_empty_captions_are_dropped_and_counted(coco, capsys):
    entries = [*ENTRIES, entry(1, "train", ["", "  "])]  # nothing is left of the last one
    fill(coco.folder, {"dataset_coco.json": karpathy(entries)})
    coco.run(partial=True)
    assert coco.column("train", "captions")[2:] == [["A cat."]]
    assert len(coco.skipped("empty captions")) == 3
    first = "train2014/COCO_train2014_000000000001.jpg"
    assert coco.skipped("images without captions") == [first]
    out = capsys.readouterr().out
    assert "left out: 3 empty captions: train2014/COCO_train2014_000000000005.jpg, train20" in out
    assert f"left out: 1 images without captions: {first}\n" in out


def test_meta_and_the_last_lines_give_the_counts(coco, capsys):
    coco.run()
    assert coco.json()["task"] == "caption"
    assert coco.json()["images"] == {"train": 3, "val": 2, "test": 1}
    assert coco.json()["captions"] == {"train": 8, "val": 3, "test": 2}
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:5] == ["train", "3", "images", "8", "captions"]


def test_images_below_the_result_get_relative_paths_and_others_absolute_ones(coco, tmp_path):
    above, far = coco.folder.parent, tmp_path / "new" / "out"
    coco.run(out=str(above))
    assert json.loads((above / "test.jsonl").read_text())["image"].startswith("coco/val2014/")
    coco.run(out=str(far))
    coco.run()
    items = tasks.load_split(coco.folder, "val")
    assert items == tasks.load_split(far, "val") == tasks.load_split(above, "val")
    image = coco.folder / "val2014/COCO_val2014_000000000003.jpg"
    assert items[0]["image"] == image and image.is_file()


def test_a_link_to_another_disk_stays_a_relative_path(coco, tmp_path):
    link = tmp_path / "link"
    link.mkdir()
    try:
        for name in prepare.IMAGES:
            (link / name).symlink_to(coco.folder / name, target_is_directory=True)
    except OSError:
        pytest.skip("links need a permission on this system")
    coco.run(images=str(link), karpathy=str(coco.folder / "dataset_coco.json"), out=str(link))
    item = json.loads((link / "test.jsonl").read_text())
    assert item["image"] == "val2014/COCO_val2014_000000000004.jpg"


def test_partial_does_with_one_of_the_two_folders(coco):
    shutil.rmtree(coco.folder / "train2014")
    coco.run(partial=True)
    assert coco.json()["images"] == {"train": 1, "val": 2, "test": 1}
    shutil.rmtree(coco.folder / "val2014")
    fails(coco.run, coco.folder, "none of the 6 images is there", partial=True)


def test_check_leaves_out_damaged_images_only(coco, capsys):
    """Grey and CMYK files are sound; a JPEG cut off is not, and neither is an empty file."""
    half = coco.folder / "val2014/COCO_val2014_000000000003.jpg"
    half.write_bytes(half.read_bytes()[:-300])  # its header stays whole
    fill(coco.folder, {"train2014/COCO_train2014_000000000001.jpg": b""})
    coco.run(check=True)
    assert coco.json()["images"] == {"train": 2, "val": 1, "test": 1}
    empty, cut = sorted(coco.skipped("damaged images"))
    assert empty.startswith("train2014/COCO_train2014_000000000001.jpg (")
    assert cut.startswith(f"val2014/{half.name} (") and "truncated" in cut
    captured = capsys.readouterr()
    assert "left out: 2 damaged images: " in captured.out
    assert "checking images: 6 of 6" in captured.err


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("content, words", [
    (json.dumps(karpathy())[:-9], ["damaged or cut off", "delete it"]),
    ("", ["damaged or cut off"]),
    ("[" * 100_000, ["damaged or cut off"]),
    ([], ["not Karpathy's", "another form"]),
    (karpathy(dataset="flickr30k"), ["describes the dataset flickr30k", common.KARPATHY["urls"]]),
    ({"images": [], "annotations": []}, ["not Karpathy's"]),  # COCO's own captions
    ({"dataset": "coco", "images": 3}, ["another form"]),
    (karpathy([ENTRIES[0], {}]), ["images[1]", "no 'sentences'"]),
    (karpathy([{k: v for k, v in ENTRIES[0].items() if k != "cocoid"}]), ["no 'cocoid'"]),
    (karpathy([ENTRIES[0] | {"split": "dev"}]), ["images[0]", "split 'dev'"]),
    (karpathy([ENTRIES[0] | {"filepath": "../../etc"}]), ["images[0]", "another form"]),
    (karpathy([ENTRIES[0] | {"sentences": [{"sentid": 1, "raw": None}]}]), ["another form"]),
    (karpathy(["a"]), ["images[0]"]),
    (karpathy([]), ["none of the 0 images"]),
])
def test_a_wrong_json_is_one_line(coco, content, words):
    fill(coco.folder, {"dataset_coco.json": content})
    fails(coco.run, *words, partial=True)


def test_a_split_is_written_whole_or_not_at_all(coco, monkeypatch, tmp_path):
    def items():
        yield {"id": 1}
        raise ValueError("half-way")

    coco.run()
    before = coco.lines("train")
    with pytest.raises(ValueError, match="half-way"):
        common.write_split(coco.folder, "train", items())
    monkeypatch.setattr(os, "replace", full_disk)
    fails(coco.run, coco.folder / "train.jsonl", "No space left on device")
    assert coco.lines("train") == before and not list(coco.folder.glob("*.tmp"))


def test_a_file_where_a_folder_should_be_is_one_line(coco, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    fails(coco.run, file, "cannot be written", "--out", out=str(file))
    fails(coco.run, coco.folder, "cannot be read", karpathy=str(coco.folder))
    fails(common.list_images, file, "cannot be read as a folder", folder=file)
    fails(archives.check_disk, file, "choose another", folder=file / "x", size=1)


# ---------------------------------------------------------------------------- zips


def test_unpacking_goes_on_where_it_stopped(tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(zipped({"a/1": b"one", "a/2": b"two", "a/3": b"3", "b": b""}))
    fill(tmp_path, {"a/1": b"ONE", "a/2": b"t"})  # the first has the right size: unpacked before
    archives.extract(tmp_path / "x.zip", tmp_path, {"a/1", "a/2", "a/3", "c"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        "1": b"ONE", "2": b"two", "3": b"3"}
    assert not (tmp_path / "b").exists()  # nobody wanted it
    assert "unpacking x.zip: 2 of 2" in capsys.readouterr().err


@pytest.mark.parametrize("content, words", [
    *((zipped({"good": b"1", name: b"2"}), ["refused"])
      for name in ("../evil", "a/../../evil", "/evil", "C:evil", "..\\evil")),
    *((damage(zipped({"good": b"0123456789" * 9})), ["damaged", "delete it"])
      for damage in (lambda b: b[:-30], lambda b: b[:40] + b"x" + b[41:], lambda b: b"",
                     lambda b: b"<html>"))])
def test_a_zip_that_is_damaged_or_leads_out_of_the_folder_leaves_no_file(tmp_path, content, words):
    archive = tmp_path / "x.zip"
    archive.write_bytes(content)
    fails(lambda: archives.extract(archive, tmp_path / "in", {"good", "evil"}), archive, *words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_one_flipped_bit_in_a_zip_is_one_line_or_does_no_harm(tmp_path, method):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", method) as z:
        z.writestr("good", b"0123456789" * 9)
    whole, complaints = archive.read_bytes(), set()
    for at in range(len(whole)):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1:])
        try:
            archives.extract(archive, tmp_path / "in", {"good"})
        except UserError as e:
            complaints.add(type(e.__cause__).__name__)
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
    assert {"BadZipFile", "NotImplementedError"} <= complaints


# ---------------------------------------------------------------------------- reading

QUESTION = {"id": 1, "image": "a.jpg", "question": "red?"}
BOX = {"id": 1, "image": "a.jpg", "expression": "man", "box": [1, 2, 3, 4]}


@pytest.mark.parametrize("line, words", [
    ('{"id": 1, "image": "a.jpg"', ["not JSON"]),
    (3, ["not of the form"]),
    ({"id": 1, "captions": ["A shoe."]}, ['no "image"']),
    ({"image": "a.jpg", "captions": ["A shoe."]}, ['no "id"']),
    ({"id": 1, "image": "a.jpg", "caption": "A shoe."}, ["neither captions nor hypothesis nor"]),
    ({"id": 1, "image": "a.jpg", "captions": "A shoe."}, ['"captions" is "A shoe."']),
    ({"id": 1, "image": "a.jpg", "captions": [None]}, ['"captions" must be a list of texts']),
    (QUESTION | {"answers": {"yes": "8"}}, ['"answers" must be of the form']),
    (QUESTION | {"answers": {"yes": 0}}, ['"answers" must be of the form']),
    (QUESTION | {"answers": "yes"}, ['"answers" is']),
    (QUESTION | {"answers": {}, "raw_answers": [1]}, ['"raw_answers" must be a list']),
    (QUESTION | {"answers": {}, "choices": [None]}, ['"choices" must be a list']),
    (QUESTION | {"choices": "ab"}, ['"choices" is "ab"']),
    (QUESTION | {"masks": "P1"}, ['"masks" is "P1"']),
    (QUESTION | {"answers": {"yes": 1}}, ["asks for question, the first line for captions"]),
    ({"id": 1, "image": "a.jpg", "captions": ["A."], "question": "?"}, ["captions and question"]),
    ({"id": True, "image": "a.jpg", "captions": ["A shoe."]}, ['"id" is true']),
    *((QUESTION | {"answers": {"yes": n}}, ['"answers" must be of the form'])
      for n in (10 ** 400, float("nan"), float("inf"), True)),
    (QUESTION | {"answers": {"half \ud83d": 1}}, ["half of a character"]),
    ({"id": 1, "image": "a.jpg", "captions": ["\ud83d"]}, ["half of a character"]),
    *((BOX | {"box": box}, ["must be boxes"])
      for box in ([1, 2, 3], [1, 2, -3, 4], ["1", 2, 3, 4], [1, 2, 10 ** 400, 4],
                  [True, 2, 3, 4], [1, 2, float("inf"), 4])),
    (BOX | {"proposals": [[1, 2, 3, 4], {}]}, ["must be boxes"]),
    ('{"id": ' + "9" * 5000 + "}", ["not JSON"]),
    ({"id": 1, "image": None, "captions": []}, ['"image" is null']),
    ({"id": 1, "image": None, "hypothesis": "a", "label": "neutral"}, ['"image" is null']),
    ({"id": 1, "image": None, "expression": "a", "box": [1, 2, 3, 4]}, ['"image" is null']),
])
def test_a_wrong_line_is_named_by_file_and_number(tmp_path, line, words):
    good = '{"id": 1, "image": "a.jpg", "captions": ["A shoe."]}\n'
    line = line if isinstance(line, str) else json.dumps(line)
    fill(tmp_path, {"train.jsonl": f"{good}\n{good}{line}\n"})
    fails(lambda: tasks.load_split(tmp_path, "train"), tmp_path / "train.jsonl line 4", *words)


def test_all_tasks_and_other_keys_are_read(tmp_path):
    """Equal ids, a blank line, Notepad's byte-order mark and an absolute path do no harm."""
    items = [{"id": 7, "image": "a.jpg", "question": "?", "answers": {"no": 2}, "choices": []},
             {"id": 7, "image": "b/a.jpg", "hypothesis": "A man.", "label": "neutral"},
             {"id": "7", "image": str(tmp_path / "ä.jpg"), "expression": "man",
              "box": [1, 2, 3, 4], "proposals": [[1, 2, 3, 4]]},
             {"id": 8, "image": "a.jpg", "captions": ["Line\u2028separator"], "domain": "near"}]
    for item, task in zip(items, ("question", "hypothesis", "expression", "captions")):
        text = "\n\n".join([json.dumps(item, ensure_ascii=False)] * 2)
        fill(tmp_path, {"test.jsonl": b"\xef\xbb\xbf" + text.encode()})
        read = tasks.load_split(tmp_path, "test")
        assert read == [item | {"image": tmp_path / item["image"]}] * 2
        assert tasks.task_of(read[0]) == task


def test_an_absent_or_empty_split_is_one_line(tmp_path):
    fill(tmp_path, {"test.jsonl": "{}", "val.jsonl": "", "latin.jsonl": '"é"'.encode("latin1")})
    for split, words in (("train", "latin, test, val"), ("val", "no item"), ("latin", "UTF-8")):
        fails(lambda: tasks.load_split(tmp_path, split), f"{split}.jsonl", words)
    (tmp_path / "test.jsonl").unlink()
    fails(lambda: tasks.load_split(tmp_path, "test"), "there are: latin, val; say --split val")


# ---------------------------------------------------------------------------- what an item means


@pytest.mark.parametrize("item, condition, answers", [
    (QUESTION | {"answers": {"yes": 8, "no": 2}}, "question: red? answer:", {"yes": 8, "no": 2}),
    (QUESTION | {"answers": {"B": 1}, "hint": "It is  dark.", "choices": ["a", "b"],
                 "lecture": "Night is dark.", "solution": ""},
     "question: red? context: It is dark. options: (A) a (B) b answer:",
     {"B. because Night is dark.": 1}),
    ({"image": "a.jpg", "hypothesis": "A man.", "label": "neutral"},
     "hypothesis: A man. answer:", {"neutral": 1})])
def test_a_question_becomes_a_condition_and_what_answers_it(item, condition, answers):
    assert tasks.condition(item) == condition and tasks.answers_to(item) == answers
    assert tasks.group_by_image([item]) == [{"image": "a.jpg", "texts": [(condition, answers)]}]


def test_a_long_hint_is_cut_to_its_last_words():
    item = QUESTION | {"hint": " ".join(map(str, range(400)))}
    assert tasks.condition(item).split()[2:5] == ["context:", "100", "101"]


def test_items_on_one_image_share_an_entry_and_those_without_come_last():
    items = [QUESTION | {"image": None, "answers": {"a": 1}}, QUESTION | {"answers": {"b": 1}},
             {"id": 2, "image": "b.jpg", "captions": ["One.", "Two."]},
             QUESTION | {"image": None, "answers": {"c": 1}}, QUESTION | {"answers": {"d": 1}}]
    entries = tasks.group_by_image(items)
    assert [e["image"] for e in entries] == ["a.jpg", "b.jpg", None, None]
    assert [[[*answers] for _, answers in e["texts"]] for e in entries] == [
        [["b"], ["d"]], [["One."], ["Two."]], [["a"]], [["c"]]]
    box = {"id": 3, "image": "a.jpg", "expression": "a", "box": [1, 2, 3, 4]}
    for item in (QUESTION, QUESTION | {"answers": {}}, box):
        fails(lambda: tasks.group_by_image([item]), f"item {item['id']} lacks the captions")


def test_the_answers_to_choose_from_are_those_of_the_file_or_all(tmp_path):
    entries = tasks.group_by_image([QUESTION | {"answers": {"no": 1, "a": 1}},
                                    {"id": 2, "image": "b.jpg", "captions": ["One."]}])
    assert tasks.answer_vocabulary(tmp_path, entries) == ["a", "no"]
    common.write_answers(tmp_path, ["yes", "no"])
    assert tasks.answer_vocabulary(tmp_path, entries) == ["yes", "no"]
    for wrong in ({"yes": 1}, ["yes", "yes"], [1]):
        common.write_answers(tmp_path, wrong)
        fails(lambda: tasks.answer_vocabulary(tmp_path, entries), "answers.json", '["yes", "no"')


# ---------------------------------------------------------------------------- finding


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A project whose data folder knows coco, not prepared, and shapes with one of its tasks."""
    monkeypatch.setattr(tasks, "DATA", tmp_path / "project" / "data")
    monkeypatch.chdir(tmp_path)
    return fill(tasks.DATA, {"coco/prepare.py": "", "coco/snli_ve_train.jsonl": "",
                             "shapes/prepare.py": "", "shapes/train.jsonl": "",
                             "shapes/vqa/val.jsonl": ""})


@pytest.mark.parametrize("name", ["shapes", "shapes/", "project/data/shapes",
                                  "./project/data/shapes/", "project/../project/data/shapes"])
@pytest.mark.parametrize("task", ["", "vqa", "refer"])
def test_a_dataset_has_one_name_however_it_is_spelled(data, monkeypatch, name, task):
    name = f"{name.rstrip('/')}/{task}" if task else name
    short = f"shapes/{task}" if task else "shapes"
    assert tasks.dataset_name(name) == tasks.dataset_name(data / "shapes" / task) == short
    if task != "refer":
        assert tasks.find_dataset(name) == data / "shapes" / task
    monkeypatch.chdir(data / "shapes")
    assert tasks.dataset_name(short) == short


def test_a_dataset_is_found_by_the_path_of_any_folder(data, tmp_path):
    fill(tmp_path, {f"{name}/test.jsonl": "" for name in ("my own", "shapes", "coco")})
    for name in ("my own", "my own/", "./my own", tmp_path / "my own"):
        assert tasks.find_dataset(name) == tmp_path / "my own"
        assert tasks.dataset_name(name) == str(name).rstrip("/")
    assert tasks.find_dataset("shapes") == data / "shapes"  # rather than that in the working folder
    assert tasks.find_dataset("./shapes") == tmp_path / "shapes"
    assert tasks.find_dataset("coco") == tmp_path / "coco"  # data/coco is not prepared


@pytest.mark.parametrize("name, words", [
    *((name, ["coco is not prepared: run python data/coco/prepare.py --download (fetches 20 GB)"])
      for name in ("coco", "coco/", "project/data/coco")),
    ("shapes/refer", ["shapes/refer is not prepared: run python data/shapes/prepare.py refer"]),
    ("cocco", ["neither a dataset nor a folder", "did you mean coco? datasets: coco, shapes, sha"]),
    ("qqqqq", ["qqqqq: neither a dataset nor a folder; datasets:"]),
    ("project", ["no train.jsonl", '"captions": ["A shoe."]']),
    ("project/data/shapes/train.jsonl", ["name the folder"])])
def test_a_dataset_that_is_not_there_is_one_line(data, name, words):
    """A raw download that happens to be a .jsonl does not count as prepared."""
    fails(lambda: tasks.find_dataset(name), *words)


# ---------------------------------------------------------------------------- features


class Encoder(torch.nn.Module):
    """A ViT's interface: images of 32 pixels -> (B, 5, 3)."""

    image_size, patch, width = 32, 16, 3

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.arange(1.0, 6)[:, None])
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return self.scale * images.mean((2, 3))[:, None]

    vit = property(lambda self: self)
    image_features = torch.nn.Module.__call__


def test_features_are_computed_once_and_again_for_another_encoder_or_image(tmp_path):
    vit = Encoder()
    fill(tmp_path, {f"{i}.jpg": jpeg(seed=i) for i in range(5)})
    items = [{"image": tmp_path / f"{i}.jpg"} for i in range(5)] + [{"image": None}]
    wanted = image_features_of(vit, items[:5], "cpu", batch=2)
    assert wanted.shape == (5, 5, 3) and not wanted.requires_grad
    vit.seen = 0
    for _ in range(2):
        feats = cached_features(vit, items, tmp_path, "val", ALONE, batch=2)
        np.testing.assert_allclose(feats, wanted, rtol=5e-4)
    assert feats.dtype == np.float16 and vit.seen == 5
    fill(tmp_path, {"4.jpg": jpeg("L")})
    cached_features(vit, items, tmp_path, "val", ALONE)
    vit.scale.data += 1
    cached_features(vit, items, tmp_path, "val", ALONE)
    assert vit.seen == 15 and len(list(tmp_path.glob("features-val-*"))) == 3
    missing = [{"image": tmp_path / "x.jpg"}]
    fails(lambda: cached_features(vit, missing, tmp_path, "val", ALONE), "x.jpg", "--check")
    assert not list(tmp_path.glob("*.tmp"))


class OneOfTwo:
    """One of two threads that stand for processes."""

    def __init__(self, rank, meeting):
        self.rank, self.size, self.main, self.device = rank, 2, rank == 0, "cpu"
        self.barrier = meeting.wait

    def sum(self, values):
        self.barrier()
        return values


def test_every_process_encodes_its_share(tmp_path):
    fill(tmp_path, {f"{i}.jpg": jpeg(seed=i) for i in range(5)})
    items, encoders = [{"image": tmp_path / f"{i}.jpg"} for i in range(5)], [Encoder(), Encoder()]
    meeting, found = threading.Barrier(2, timeout=60), [None, None]

    def work(rank):
        found[rank] = cached_features(encoders[rank], items, tmp_path, "val",
                                      OneOfTwo(rank, meeting))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [encoder.seen for encoder in encoders] == [2, 3] and not list(tmp_path.glob("*.part*"))
    wanted = image_features_of(Encoder(), items, "cpu")
    for feats in found:
        np.testing.assert_allclose(feats, wanted, rtol=5e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want UTF-8 in names")
def test_features_of_an_image_whose_name_is_no_utf_8(tmp_path):
    image = fill(tmp_path, {os.fsdecode(b"caf\xe9.jpg"): jpeg()}) / os.fsdecode(b"caf\xe9.jpg")
    assert len(cached_features(Encoder(), [{"image": image}], tmp_path, "val", ALONE)) == 1


def test_a_disk_that_fills_up_under_the_features_is_one_line(tmp_path, monkeypatch):
    """Written, not mapped: a mapped file would end the process by SIGBUS."""
    fill(tmp_path, {"a.jpg": jpeg()})
    monkeypatch.setattr(files, "open", lambda *args: open("/dev/full", "wb"), raising=False)
    fails(lambda: cached_features(Encoder(), [{"image": tmp_path / "a.jpg"}], tmp_path, "val",
                                  ALONE), "features-val-", "No space left", "--no-cache")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_room_for_the_features_is_checked_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 71, 29))
    fill(tmp_path, {"a.jpg": jpeg()})  # 5 * 3 numbers of 2 bytes
    fails(lambda: cached_features(Encoder(), [{"image": tmp_path / "a.jpg"}], tmp_path, "val",
                                  ALONE), tmp_path, "make room: --no-cache")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


# ---------------------------------------------------------------------------- masks


@pytest.mark.parametrize("mask", [
    5, None, "P1", [[1, 1, 9, 1, 9, "9"]], [[1, 1, 9, 1, 9, 10 ** 400]], [5], {"size": [4, 4]},
    {"size": [4, 4], "counts": []}, {"size": [4, 4], "counts": [16.0]}, {"size": 4, "counts": "a"},
    {"size": [4, 4], "counts": "~" * 10 ** 5}, {"size": [4, 4], "counts": "P" * 10 ** 5},
    {"size": [4, 4], "counts": [10 ** 400]}, {"size": [10 ** 9] * 2, "counts": [10 ** 18]}])
def test_what_is_no_mask_is_one_line(mask):
    fails(lambda: mask_of(mask, (4, 4)), "a mask")


# ---------------------------------------------------------------------------- files


def write(path, content=b"new"):
    with files.replacing(path) as f:
        f.write(content)


@pytest.fixture
def fifo(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs on this system")
    os.mkfifo(tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


@pytest.mark.parametrize("read", [
    lambda path: files.read_json(path, "expected"), open_image, lambda path: read_refs(path, ""),
    lambda path: archives.extract(path, path.parent, set()),
    lambda path: tasks.load_split(path.parent, "train")])
def test_nobody_waits_for_who_may_write_to_a_fifo(fifo, read):
    fails(lambda: read(fifo), "no regular file")


def test_a_fifo_is_written_to_and_stays_one(fifo):
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write(fifo)
    assert os.read(reader, 99) == b"new" and fifo.is_fifo()
    os.close(reader)


def test_what_is_printed_to_a_file_stays_when_it_is_also_written_to(tmp_path):
    """--json /dev/stdout, and the shell sends what is printed to a file."""
    (tmp_path / "stdout").symlink_to("/dev/fd/1")  # as /dev/stdout, which shall not be risked
    code = "import sys; from lib.files import *; print('said', flush=True); write_json('{}', 1)"
    for name in (tmp_path / "stdout", tmp_path / "log"):
        with open(tmp_path / "log", "w") as log:
            done = subprocess.run([sys.executable, "-c", code.format(name)], stdout=log, cwd=ROOT)
        assert done.returncode == 0 and (tmp_path / "log").read_text() == "said\n1\n"
    assert (tmp_path / "stdout").is_symlink()


def test_a_link_stays_a_link_to_the_new_file(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("disk/a")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/a").read_bytes() == b"new"


@pytest.mark.parametrize("path, words", [
    ("/dev/full", "No space left"), ("x" * 5000, "too long"), ("a\0b", "no file can have this"),
    ("\ud800", "no file can have this"), ("a file/below", "Not a directory"), (".", "directory"),
    ("/proc/nothing", "No such file")])
@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux's devices")
def test_where_nothing_can_be_written_is_one_line(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(fill(tmp_path, {"a file": ""}))
    fails(lambda: write(path, bytes(99)), "cannot be written", words)
    assert [p.name for p in tmp_path.iterdir()] == ["a file"]


def test_what_a_killed_process_left_is_cleared_by_the_next_one(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    names = [f"a.{done.pid}.tmp", f"b.{os.getpid()}.tmp", "c.x.tmp", f"d.{done.pid}.tmp"]
    fill(tmp_path, dict.fromkeys(names, ""))
    for name in names[:3]:
        os.utime(tmp_path / name, (0, 0))
    write(tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"new", *names[1:]}


# ---------------------------------------------------------------------------- the rest


def test_progress_in_a_log_file_is_ten_lines(capsys):
    show = files.progress("counting", 1234)
    for done in range(1, 1235):
        show(done)
    said = capsys.readouterr().err.splitlines()
    assert 10 <= len(said) <= 11
    assert said[-1] == "counting: 1,234 of 1,234, 0 s left"


def test_progress_on_a_terminal_renews_one_line(monkeypatch):
    terminal, clock = io.StringIO(), iter(range(0, 1000, 100))
    terminal.isatty = lambda: True
    monkeypatch.setattr(files.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", terminal)
    show = files.progress("counting", 4)
    show(1)
    show(4)
    said = terminal.getvalue()
    assert said.count("\n") == 1 and said.endswith("\n")
    # 100 seconds for one of four: 300 for the other three
    assert [part.strip() for part in said.split("\r")[1:]] == [
        "counting: 1 of 4, 5 min left", "counting: 4 of 4, 0 s left"]
