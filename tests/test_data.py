"""A dataset on its way from the published files into lines that the training reads.

The tests build a COCO of six images in the layout of the real one, with what is odd about it: a
split called restval, white space in captions, grey and CMYK files. By hand:

    file                    split     captions                                     comes out as
    train2014/..._1.jpg     train     "A shoe. "                                   train
    val2014/..._2.jpg       restval   six, one with a line break                   train
    val2014/..._3.jpg       val       one sentid twice                             val
    val2014/..._4.jpg       test      one text twice, under two sentids            test
    train2014/..._5.jpg     train     one good, one empty (a CMYK file)            train
    val2014/..._6.jpg       val       a grey file in a name with a space           val
"""

import errno
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib import files
from lib.cli import UserError
from data import archives, common, tasks
from data.coco import prepare

ROOT = Path(__file__).resolve().parent.parent


def entry(number, split, raws, folder=None, sentids=None):
    """One image as Karpathy's JSON has it."""
    folder = folder or ("train2014" if split == "train" else "val2014")
    sentids = sentids or [100 * number + i for i in range(len(raws))]
    return {"filepath": folder, "filename": f"COCO_{folder}_{number:012}.jpg", "cocoid": number,
            "imgid": number, "split": split, "sentids": sentids,
            "sentences": [{"tokens": raw.lower().split(), "raw": raw, "imgid": number, "sentid": s}
                          for raw, s in zip(raws, sentids)]}


ENTRIES = [
    entry(1, "train", ["A shoe. "]),
    entry(2, "restval", ["One.", "Two  dogs.", "Three\ncats.\n", "Four.", "Five.", "Six."]),
    entry(3, "val", ["A cup.", "A cup.", "A mug."], sentids=[7, 7, 8]),
    entry(4, "test", ["A hat.", "A hat."]),
    entry(5, "train", ["A cat.", " \n"]),
    entry(6, "val", ["A car."]) | {"filename": "COCO_val2014 6.jpg"},
]
KARPATHY = common.KARPATHY["urls"]
MODES = {5: "CMYK", 6: "L"}
COUNTS = {"train": (3, 9), "val": (2, 3), "test": (1, 2)}  # images, captions; the empty one counts


def jpeg(mode="RGB", seed=0):
    """The bytes of a small file with noise in it, so that a part cut off is missed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    shape = {"RGB": pixels[..., :3], "CMYK": pixels, "L": pixels[..., 0]}[mode]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shape), mode).save(file, "JPEG")
    return file.getvalue()


def members():
    """{name as in the published zips: bytes} of all images."""
    return {f"{e['filepath']}/{e['filename']}": jpeg(MODES.get(e["cocoid"], "RGB"), e["cocoid"])
            for e in ENTRIES}


def karpathy(entries=ENTRIES, dataset="coco"):
    return json.dumps({"dataset": dataset, "images": entries})


@pytest.fixture
def coco(tmp_path):
    """A folder as a user has it after unpacking the three zips, in a path with spaces."""
    folder = tmp_path / "my data" / "coco"
    for name, content in members().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "dataset_coco.json").write_text(karpathy(), "utf-8")
    return folder


def run(folder, **config):
    """Prepares folder in place; partial unless told otherwise, for it is not the whole COCO."""
    config = {"images": str(folder), "out": str(folder), "partial": True} | config
    prepare.main(prepare.Config(**config))


def lines(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def meta(folder):
    return json.loads((folder / "meta.json").read_text())


def skipped(folder, why):
    """The names that meta.json gives for one reason; these trees are too small for it to leave any out."""
    entry = meta(folder)["skipped"][why]
    assert entry["count"] == len(entry["first"])
    return entry["first"]


def fails(call, *words):
    """call() ends in a UserError of one line that contains all words."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, f"{word!r} is not in {text!r}"
    return text


# ---------------------------------------------------------------------------- what is written


def test_restval_is_trained_on(coco):
    run(coco)
    assert [item["id"] for item in lines(coco, "train")] == [1, 2, 5]
    assert [item["id"] for item in lines(coco, "val")] == [3, 6]
    assert [item["id"] for item in lines(coco, "test")] == [4]


def test_the_counts_asserted_are_those_of_coco():
    assert sum(n for n, _ in prepare.COUNTS.values()) == 82_783 + 40_504
    assert prepare.COUNTS["train"][0] == 82_783 + 30_504  # train and restval
    assert sum(n for _, n in prepare.COUNTS.values()) == 616_767


def test_an_item_is_written_as_documented(coco):
    run(coco)
    assert lines(coco, "train")[0] == {
        "id": 1, "image": "train2014/COCO_train2014_000000000001.jpg", "captions": ["A shoe."],
        "cocoid": 1}


def test_captions_come_from_raw_without_stray_white_space(coco):
    """Capitals and full stops stay, all six captions too."""
    run(coco)
    assert lines(coco, "train")[1]["captions"] == ["One.", "Two dogs.", "Three cats.", "Four.",
                                                   "Five.", "Six."]


def test_captions_are_told_apart_by_sentid_not_by_text(coco):
    run(coco)
    assert lines(coco, "val")[0]["captions"] == ["A cup.", "A mug."]
    assert lines(coco, "test")[0]["captions"] == ["A hat.", "A hat."]
    assert skipped(coco, "repeated sentids") == ["val2014/COCO_val2014_000000000003.jpg"]


def test_empty_captions_are_dropped_and_counted(coco, capsys):
    entries = [*ENTRIES, entry(1, "train", ["", "  "])]  # nothing is left of the last one
    (coco / "dataset_coco.json").write_text(karpathy(entries))
    run(coco)
    assert [item["captions"] for item in lines(coco, "train")][2:] == [["A cat."]]
    assert len(skipped(coco, "empty captions")) == 3
    assert skipped(coco, "images without captions") == ["train2014/COCO_train2014_000000000001.jpg"]
    out = capsys.readouterr().out
    assert "left out: 3 empty captions: train2014/COCO_train2014_000000000005.jpg, train2014/COCO" in out
    assert "left out: 1 images without captions: train2014/COCO_train2014_000000000001.jpg\n" in out


def test_meta_and_the_last_lines_give_the_counts(coco, capsys):
    run(coco)
    assert meta(coco)["task"] == "caption"
    assert meta(coco)["images"] == {"train": 3, "val": 2, "test": 1}
    assert meta(coco)["captions"] == {"train": 8, "val": 3, "test": 2}
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:5] == ["train", "3", "images", "8", "captions"]


def test_images_elsewhere_get_absolute_paths(coco, tmp_path):
    run(coco, out=str(tmp_path / "new" / "out"))
    image = lines(tmp_path / "new" / "out", "val")[0]["image"]
    assert image == (coco / "val2014/COCO_val2014_000000000003.jpg").as_posix()
    assert Path(image).is_absolute() and Path(image).is_file()


def test_images_below_the_result_get_relative_paths(coco):
    run(coco, out=str(coco.parent))
    assert lines(coco.parent, "val")[1]["image"] == "coco/val2014/COCO_val2014 6.jpg"


def test_a_link_to_another_disk_stays_a_relative_path(coco, tmp_path):
    link = tmp_path / "link"
    link.mkdir()
    try:
        for name in prepare.IMAGES:
            (link / name).symlink_to(coco / name, target_is_directory=True)
    except OSError:
        pytest.skip("links need a permission on this system")
    run(link, karpathy=str(coco / "dataset_coco.json"))
    assert lines(link, "test")[0]["image"] == "val2014/COCO_val2014_000000000004.jpg"


def test_what_was_written_is_read_again(coco, monkeypatch, tmp_path):
    run(coco)
    monkeypatch.chdir(coco.parent)  # a relative folder gives absolute images too
    items = tasks.load_split("coco", "val")
    assert [item["image"] for item in items] == [coco / "val2014/COCO_val2014_000000000003.jpg",
                                                 coco / "val2014/COCO_val2014 6.jpg"]
    assert all(item["image"].is_absolute() and item["image"].is_file() for item in items)
    run(coco, out=str(tmp_path / "far"))
    assert tasks.load_split(tmp_path / "far", "val") == items


# ---------------------------------------------------------------------------- what is missing


def test_the_whole_coco_needs_no_partial(coco, monkeypatch):
    monkeypatch.setattr(prepare, "COUNTS", COUNTS)
    run(coco, partial=False)
    assert meta(coco)["images"] == {"train": 3, "val": 2, "test": 1}


def test_other_counts_are_an_error_unless_partial(coco):
    fails(lambda: run(coco, partial=False), coco / "dataset_coco.json",
          "train has 3 images with 9 captions instead of 113,287 with 566,747", "--partial")
    assert not (coco / "train.jsonl").exists()


def test_a_missing_image_is_an_error_unless_partial(coco, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "COUNTS", COUNTS)
    gone = [coco / "train2014/COCO_train2014_000000000005.jpg", coco / "val2014/COCO_val2014 6.jpg"]
    for path in gone:
        path.unlink()
    fails(lambda: run(coco, partial=False), gone[0], "the first of 2", "--download", "--partial")
    run(coco)
    assert [item["id"] for item in lines(coco, "train") + lines(coco, "val")] == [1, 2, 3]
    assert skipped(coco, "missing images") == [path.relative_to(coco).as_posix() for path in gone]
    assert "left out: 2 missing images: train2014/COCO_train2014_000000000005.jpg, val2014/COCO_val2014 6.jpg" \
        in capsys.readouterr().out


def test_partial_does_with_one_of_the_two_folders(coco, monkeypatch):
    monkeypatch.setattr(prepare, "COUNTS", COUNTS)
    shutil.rmtree(coco / "train2014")
    fails(lambda: run(coco, partial=False), coco / "train2014/COCO_train2014_000000000001.jpg", "missing",
          "the first of 2", "train2014.zip", "--download", "--images", "--partial")
    run(coco)
    assert meta(coco)["images"] == {"train": 1, "val": 2, "test": 1}
    shutil.rmtree(coco / "val2014")
    fails(lambda: run(coco), coco, "none of the 6 images is there")


def test_check_leaves_out_damaged_images_only(coco, capsys):
    """Grey and CMYK files are sound; a JPEG cut off is not, and neither is an empty file."""
    half = coco / "val2014/COCO_val2014_000000000003.jpg"
    none = coco / "train2014/COCO_train2014_000000000001.jpg"
    half.write_bytes(half.read_bytes()[:-300])  # its header stays whole
    none.write_bytes(b"")
    run(coco)
    assert meta(coco)["images"] == {"train": 3, "val": 2, "test": 1}  # not looked at
    run(coco, check=True)
    assert meta(coco)["images"] == {"train": 2, "val": 1, "test": 1}
    wrong = sorted(skipped(coco, "damaged images"))
    assert [text.split(" ")[0] for text in wrong] == [f"train2014/{none.name}", f"val2014/{half.name}"]
    assert "truncated" in wrong[1]
    captured = capsys.readouterr()
    assert "left out: 2 damaged images: " in captured.out
    assert "checking images: 6 of 6" in captured.err


# ---------------------------------------------------------------------------- bad input


def test_an_absent_json_says_what_to_fetch(coco):
    (coco / "dataset_coco.json").unlink()
    fails(lambda: run(coco), coco / "dataset_coco.json", KARPATHY, "--download")


@pytest.mark.parametrize("text, words", [
    (karpathy()[:-9], ["damaged or cut off", "delete it"]),
    ("", ["damaged or cut off"]),
    ("[" * 100_000, ["damaged or cut off"]),
    ("[]", ["not Karpathy's", "another form"]),
    (karpathy(dataset="flickr30k"), ["describes the dataset flickr30k", KARPATHY]),
    ('{"images": [], "annotations": []}', ["not Karpathy's"]),  # COCO's own captions
    ('{"dataset": "coco", "images": 3}', ["another form"]),
    (karpathy([ENTRIES[0], {}]), ["images[1]", "no 'sentences'"]),
    (karpathy([{k: v for k, v in ENTRIES[0].items() if k != "cocoid"}]), ["no 'cocoid'"]),
    (karpathy([{k: v for k, v in ENTRIES[0].items() if k != "filepath"}]), ["no 'filepath'"]),
    (karpathy([ENTRIES[0] | {"split": "dev"}]), ["images[0]", "split 'dev'"]),
    (karpathy([ENTRIES[0] | {"filepath": "../../etc"}]), ["images[0]", "another form"]),
    (karpathy([ENTRIES[0] | {"sentences": None}]), ["images[0]", "another form"]),
    (karpathy([ENTRIES[0] | {"sentences": [{"sentid": 1, "raw": None}]}]), ["another form"]),
    (karpathy([ENTRIES[0] | {"sentences": [{"sentid": 1}]}]), ["no 'raw'"]),
    (karpathy(["a"]), ["images[0]"]),
    (karpathy([]), ["none of the 0 images"]),
])
def test_a_wrong_json_is_one_line(coco, text, words):
    (coco / "dataset_coco.json").write_text(text)
    fails(lambda: run(coco), *words)


def test_a_full_disk_is_one_line_and_spares_the_old_file(coco, monkeypatch):
    run(coco)
    before = (coco / "train.jsonl").read_bytes()

    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    fails(lambda: run(coco), coco / "train.jsonl", "No space left on device")
    assert (coco / "train.jsonl").read_bytes() == before
    assert not list(coco.glob("*.tmp"))


def test_a_split_is_written_whole_or_not_at_all(tmp_path):
    def items():
        yield {"id": 1}
        raise ValueError("half-way")

    common.write_split(tmp_path, "val", [{"id": 0}])
    with pytest.raises(ValueError, match="half-way"):
        common.write_split(tmp_path, "val", items())
    assert lines(tmp_path, "val") == [{"id": 0}]
    assert [path.name for path in tmp_path.iterdir()] == ["val.jsonl"]


def test_a_file_where_a_folder_should_be_is_one_line(coco, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    fails(lambda: run(coco, out=str(file)), file, "cannot be written")
    fails(lambda: run(coco, karpathy=str(coco)), coco, "cannot be read")
    fails(lambda: common.list_images(file), file, "cannot be read as a folder")
    fails(lambda: archives.check_disk(file / "x", 1), file, "choose another")


def test_the_command_ends_in_one_line_and_needs_no_torch(coco):
    """As a user calls it, from another folder."""
    command = [sys.executable, str(ROOT / "data/coco/prepare.py"), "--images", str(coco),
               "--out", str(coco)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=coco)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    code = ("import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], "
            "run_name='__main__'); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, *command[1:], "--partial"],
                          capture_output=True, text=True, cwd=coco)
    assert done.returncode == 0, done.stderr
    assert "test        1 images         2 captions" in done.stdout


# ---------------------------------------------------------------------------- download


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return file.getvalue()


class Site:
    """A web server on this computer. folder: what it has; asked: what was asked for; failures: {name:
    status codes} with which it answers first."""

    def __init__(self, folder):
        self.folder, self.asked, self.failures = folder, [], {}
        folder.mkdir()
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                name = self.path.strip("/")
                site.asked.append(name)
                if site.failures.get(name):
                    return self.send_error(site.failures[name].pop(0))
                super().do_GET()

        handler = functools.partial(Handler, directory=folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def url(self, name):
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def put(self, name, content):
        """Publishes a file. Gives back what download is told of it."""
        (self.folder / name).write_bytes(content)
        return {"urls": self.url(name), "size": len(content), "md5": hashlib.md5(content).hexdigest()}


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site(tmp_path / "site")
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def published(tmp_path, monkeypatch, site):
    """A web server with the three zips; prepare is told to go there. Gives back its folder and the
    list of what was asked for."""
    images = members()
    extra = {"train2014/COCO_train2014_000000000999.jpg": b"not in the JSON"}
    texts = {"dataset_coco.json": karpathy(), "dataset_flickr8k.json": "{}"}
    zips = {"caption_datasets": texts,
            "train2014": {k: v for k, v in images.items() if k.startswith("train")} | extra,
            "val2014": {k: v for k, v in images.items() if k.startswith("val")}}
    files = {name: site.put(f"{name}.zip", zipped(content)) for name, content in zips.items()}
    monkeypatch.setattr(prepare, "KARPATHY", files.pop("caption_datasets"))
    monkeypatch.setattr(prepare, "IMAGES", files)
    monkeypatch.setattr(prepare, "COUNTS", COUNTS)
    return site.folder, site.asked


def test_download_brings_everything_that_is_needed(published, tmp_path, capsys):
    site, asked = published
    coco = tmp_path / "disk" / "coco"
    run(coco, download=True, partial=False)
    assert asked == ["caption_datasets.zip", "train2014.zip", "val2014.zip"]
    assert {p.relative_to(coco).as_posix() for p in coco.rglob("*") if p.is_file()} == {
        *members(), *asked, "dataset_coco.json", "train.jsonl", "val.jsonl", "test.jsonl",
        "meta.json"}
    assert all((coco / name).read_bytes() == content for name, content in members().items())
    said = [line for line in capsys.readouterr().out.splitlines() if "may be deleted" in line]
    assert len(said) == 3 and all(any(str(coco / name) in line for line in said) for name in asked)


def test_a_second_download_fetches_nothing(published, tmp_path):
    """Even when the zips have been deleted. An image that is gone is unpacked again."""
    site, asked = published
    run(tmp_path / "coco", download=True, partial=False)
    for path in (tmp_path / "coco").glob("*.zip"):
        path.unlink()
    asked.clear()
    run(tmp_path / "coco", download=True, partial=False)
    assert asked == []
    (tmp_path / "coco" / "val2014/COCO_val2014 6.jpg").unlink()
    run(tmp_path / "coco", download=True, partial=False)
    assert asked == ["val2014.zip"]


def test_a_download_with_another_hash_is_refused(published, tmp_path):
    site, asked = published
    content = (site / "val2014.zip").read_bytes()
    (site / "val2014.zip").write_bytes(content[:-1] + b"x")
    fails(lambda: run(tmp_path / "coco", download=True, partial=False), "val2014.zip", "md5")
    assert not (tmp_path / "coco" / "val2014").exists()


def test_a_zip_cut_off_on_the_disk_is_refused(published, tmp_path):
    site, asked = published
    shutil.copytree(site, tmp_path / "coco")
    with open(tmp_path / "coco" / "train2014.zip", "r+b") as f:
        f.truncate(500)
    fails(lambda: run(tmp_path / "coco", download=True, partial=False), "train2014.zip", "500",
          "delete it")


def test_a_wrong_json_costs_no_download(published, tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "dataset_coco.json").write_text(karpathy(ENTRIES[1:]))
    fails(lambda: run(tmp_path / "coco", download=True, partial=False), "train has 2 images")
    assert published[1] == []


def test_too_small_a_disk_costs_no_download(published, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 80, 20))
    fails(lambda: run(tmp_path / "coco", download=True), tmp_path / "coco", "make room")
    assert published[1] == []


# ---------------------------------------------------------------------------- zips


def test_unpacking_goes_on_where_it_stopped(tmp_path, capsys):
    files = {"a/1": b"one", "a/2": b"two", "a/3": b"three", "b": b""}
    (tmp_path / "x.zip").write_bytes(zipped(files))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").write_bytes(b"ONE")  # the right size: was unpacked before
    (tmp_path / "a/2").write_bytes(b"t")
    archives.extract(tmp_path / "x.zip", tmp_path, {"a/1", "a/2", "a/3", "c"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        "1": b"ONE", "2": b"two", "3": b"three"}
    assert not (tmp_path / "b").exists()  # nobody wanted it
    assert "unpacking x.zip: 2 of 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:evil", "..\\evil"])
def test_a_zip_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped({"good": b"1", name: b"2"}))
    fails(lambda: archives.extract(archive, tmp_path / "in", {"good", name}), archive, "refused")
    assert [path.name for path in tmp_path.rglob("*")] == ["x.zip"]


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b[:40] + b"x" + b[41:],
                                    lambda b: b"", lambda b: b"<html>"])
def test_a_damaged_zip_is_one_line_and_leaves_no_file(tmp_path, damage):
    archive = tmp_path / "x.zip"
    archive.write_bytes(damage(zipped({"a": b"0123456789" * 9})))
    fails(lambda: archives.extract(archive, tmp_path, {"a"}), archive, "damaged", "delete it")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("line, words", [
    ('{"id": 1, "image": "a.jpg"', ["not JSON"]),
    ("3", ["not of the form"]),
    ('{"id": 1, "captions": ["A shoe."]}', ['no "image"']),
    ('{"image": "a.jpg", "captions": ["A shoe."]}', ['no "id"']),
    ('{"id": 1, "image": "a.jpg", "caption": "A shoe."}', ["neither captions nor hypothesis nor"]),
    ('{"id": 1, "image": "a.jpg", "question": "red?", "answers": {"yes": "8"}}', ['"answers" must be of the form']),
    ('{"id": 1, "image": "a.jpg", "question": "red?", "answers": {"yes": 0}}', ['"answers" must be of the form']),
    ('{"id": 1, "image": "a.jpg", "question": "red?", "answers": {}, "raw_answers": [1]}', ['"raw_answers" must be a list']),
    ('{"id": 1, "image": "a.jpg", "question": "red?", "answers": {}, "choices": [null]}', ['"choices" must be a list']),
    ('{"id": 1, "image": "a.jpg", "captions": "A shoe."}', ['"captions" is "A shoe."']),
    ('{"id": 1, "image": "a.jpg", "captions": [null]}', ["list of texts"]),
    ('{"id": 1, "image": null, "captions": []}', ['"image" is null']),
    ('{"id": 1, "image": "a.jpg", "question": "Is it?", "answers": "yes"}', ['"answers" is']),
])
def test_a_wrong_line_is_named_by_file_and_number(tmp_path, line, words):
    good = '{"id": 1, "image": "a.jpg", "captions": ["A shoe."]}\n'
    (tmp_path / "train.jsonl").write_text(good + "\n" + good + line + "\n")
    fails(lambda: tasks.load_split(tmp_path, "train"), tmp_path / "train.jsonl line 4", *words)


def test_all_tasks_and_other_keys_are_read(tmp_path):
    """Equal ids, a blank line, Notepad's byte-order mark and an absolute path do no harm."""
    items = [{"id": 7, "image": "a.jpg", "question": "Is it?", "answers": {"no": 2}, "choices": []},
             {"id": 7, "image": "b/a.jpg", "hypothesis": "A man.", "label": "neutral"},
             {"id": "7", "image": str(tmp_path / "ä.jpg"), "expression": "man", "box": [1, 2, 3, 4],
              "proposals": [[1, 2, 3, 4]]},
             {"id": 8, "image": "a.jpg", "captions": ["Line\u2028separator"], "domain": "near"}]
    text = "\n\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    (tmp_path / "test.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    images = [tmp_path / name for name in ("a.jpg", "b/a.jpg", "ä.jpg", "a.jpg")]
    assert tasks.load_split(tmp_path, "test") == [
        item | {"image": image} for item, image in zip(items, images)]


def test_an_absent_or_empty_split_is_one_line(tmp_path):
    common.write_split(tmp_path, "test", [{"id": 1}])
    common.write_split(tmp_path, "val", [])
    (tmp_path / "latin.jsonl").write_bytes('{"id": "é"}'.encode("latin1"))
    fails(lambda: tasks.load_split(tmp_path, "train"), "train.jsonl", "latin, test, val")
    fails(lambda: tasks.load_split(tmp_path, "val"), "val.jsonl", "no item")
    fails(lambda: tasks.load_split(tmp_path, "latin"), "latin.jsonl", "UTF-8")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A project whose data folder knows coco, not prepared, and shapes with one of its tasks."""
    folder = tmp_path / "project" / "data"
    for name in ("coco", "shapes"):
        (folder / name).mkdir(parents=True)
        (folder / name / "prepare.py").write_text("")
    common.write_split(folder / "shapes", "train", [])
    (folder / "shapes/vqa").mkdir()
    common.write_split(folder / "shapes/vqa", "val", [])
    monkeypatch.setattr(tasks, "DATA", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_dataset_is_found_by_name_or_by_path(data, tmp_path):
    common.write_split(tmp_path / "my own", "test", [])
    assert tasks.find_dataset("shapes") == data / "shapes"
    assert tasks.find_dataset("shapes/") == data / "shapes"
    assert tasks.find_dataset("shapes/vqa") == data / "shapes/vqa"
    assert tasks.find_dataset("my own") == tmp_path / "my own"
    assert tasks.find_dataset(tmp_path / "my own") == tmp_path / "my own"
    assert tasks.find_dataset("project/data/shapes") == data / "shapes"
    for folder in ("coco", "shapes"):  # of the same name in the working folder
        common.write_split(tmp_path / folder, "train", [])
    assert tasks.find_dataset("shapes") == data / "shapes"
    assert tasks.find_dataset("./shapes") == tmp_path / "shapes"
    assert tasks.find_dataset("coco") == tmp_path / "coco"  # data/coco is not prepared


def test_a_dataset_that_is_not_prepared_says_what_to_run(data, tmp_path):
    """A raw download that happens to be a .jsonl does not count as prepared."""
    common.write_split(data / "coco", "snli_ve_train", [])
    for name in ("coco", "coco/", str(data / "coco")):
        fails(lambda: tasks.find_dataset(name), "coco is not prepared: run python "
              "data/coco/prepare.py --download (fetches 20 GB), or with --help")
    text = fails(lambda: tasks.find_dataset("shapes/refer"))
    assert text == "shapes/refer is not prepared: run python data/shapes/prepare.py refer"


def test_an_unknown_dataset_is_answered_with_the_nearest(data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jsonl").write_text("")
    fails(lambda: tasks.find_dataset("cocco"), "cocco: neither a dataset nor a folder",
          "did you mean coco?", "datasets: coco, shapes, shapes/vqa")
    assert "did you mean" not in fails(lambda: tasks.find_dataset("qqqqq"))
    fails(lambda: tasks.find_dataset("empty"), "no train.jsonl", '"captions": ["A shoe."]')
    fails(lambda: tasks.find_dataset("file.jsonl"), "name the folder")


# ---------------------------------------------------------------------------- the rest


def test_progress_in_a_log_file_is_ten_lines(capsys):
    show = files.progress("counting", 1234)
    for done in range(1, 1235):
        show(done)
    said = capsys.readouterr().err.splitlines()
    assert 10 <= len(said) <= 11
    assert said[-1] == "counting: 1,234 of 1,234, 0 s left"


def test_progress_on_a_terminal_renews_one_line(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock = iter(range(0, 1000, 100))
    monkeypatch.setattr(files.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", Terminal())
    show = files.progress("counting", 4)
    show(1)
    show(4)
    said = sys.stderr.getvalue()
    assert said.count("\n") == 1 and said.endswith("\n")
    # 100 seconds for one of four: 300 for the other three
    assert [part.strip() for part in said.split("\r")[1:]] == [
        "counting: 1 of 4, 5 min left", "counting: 4 of 4, 0 s left"]


@pytest.mark.skipif("SEEGPT_COCO_MINI" not in os.environ,
                    reason="set SEEGPT_COCO_MINI to a folder with 80 real images of COCO")
def test_real_images_are_prepared(tmp_path):
    folder = Path(os.environ["SEEGPT_COCO_MINI"])
    run(folder, out=str(tmp_path), check=True)
    assert meta(tmp_path)["images"] == {"train": 66, "val": 7, "test": 7}
    assert skipped(tmp_path, "damaged images") == []
    items = tasks.load_split(tasks.find_dataset(str(tmp_path)), "train")
    folders = [item["image"].parent.name for item in items]
    assert folders.count("train2014") == 60 and folders.count("val2014") == 6  # restval
    assert all(text == text.strip() and "\n" not in text for i in items for text in i["captions"])
