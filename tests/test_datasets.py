"""What all prepare scripts do, and what captions and people's own files are like.

Each dataset is a small tree in the layout of the published files (dataset_trees.py). Below the
tables for all of them come Flickr30k, nocaps, Visual Genome and your own photos, with the files
that people really have: grey, CMYK, palette, 16-bit, animated, huge, cut off; captions with
byte-order marks, loose accents and emoji; names from Windows and from a Mac.
"""

import errno
import functools
import gzip
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
from dataset_trees import (ACCENT, MAKERS, ROOT, change, entry, fails, fill, jpeg, karpathy,
                           nocaps_json, publish, tree, zipped)
from PIL import Image

from clip_vit import preprocess
from data import common, tasks
from data.folder import prepare as folder
from lib.cli import UserError
from lib.images import FORMATS, open_image

coco, flickr30k, nocaps, visual_genome, vqa2, gqa, snli_ve, scienceqa, refcoco = (
    importlib.import_module(f"data.{name}.prepare") for name in MAKERS)


@pytest.fixture
def made(request, tmp_path, monkeypatch):
    """The tree of the dataset that a test is parametrised with, or asks for by its mark."""
    return tree(tmp_path, monkeypatch, request.param)


def of(*names):
    """Runs a test on these datasets."""
    return pytest.mark.parametrize("made", names, indirect=True)


# ---------------------------------------------------------------------------- all of them

KARPATHY = common.KARPATHY["urls"]
# An image of train or val, and what the error says of where the images come from.
IMAGES = {
    "coco": ("coco/train2014/COCO_train2014_000000000005.jpg",
             ["train2014.zip", "--download", "--images"]),
    "flickr30k": ("flickr30k/images/1003.jpg", [flickr30k.FORM, flickr30k.COPY, "--images"]),
    "nocaps": ("nocaps/val/0002.jpg", ["--download"]),
    "visual_genome": ("visual_genome/VG_100K_2/1.jpg", [visual_genome.STANFORD, "--download"]),
    "vqa2": ("coco/train2014/COCO_train2014_000000000001.jpg",
             ["data/coco/prepare.py", "test2015.zip", "--images"]),
    "gqa": ("gqa/images/n161313.jpg", [gqa.SITE, "--download"]),
    "snli_ve": ("flickr30k/images/1001.jpg", ["data/flickr30k/prepare.py", "--images"]),
    "scienceqa": ("scienceqa/images/train/1/image.png", [scienceqa.ZIPS, "--download"]),
    "refcoco": ("coco/train2014/COCO_train2014_000000000001.jpg",
                ["train2014.zip", "data/coco/prepare.py", "--images"])}
# {a file that is read: where the error says that it comes from}
SOURCES = {
    "coco": {"dataset_coco.json": KARPATHY}, "flickr30k": {"dataset_flickr30k.json": KARPATHY},
    "nocaps": {"nocaps_val_4500_captions.json": nocaps.URL},
    "visual_genome": {name: file["urls"] for name, file in visual_genome.TEXTS.items()}
    | dict.fromkeys(visual_genome.HELD_OUT, KARPATHY),
    "vqa2": {name: file["urls"] for name, file in vqa2.ZIPS.items()},
    "gqa": dict.fromkeys(gqa.FILES.values(), gqa.QUESTIONS),
    "snli_ve": {name: f"{snli_ve.COPY}{name}.gz" for name in snli_ve.FILES.values()},
    "scienceqa": {name: f"{scienceqa.SITE}{name}" for name in scienceqa.FILES},
    "refcoco": dict.fromkeys(["refcoco/refs(unc).p", "refcoco/instances.json"],
                             refcoco.ZIPS["refcoco"]["urls"])}
TOO_FEW = {
    "coco": "train has 3 images with 9 captions instead of 113,287 with 566,747",
    "flickr30k": "train has 2 images with 10 captions instead of 29,000",
    "nocaps": "val has 4 images with 8 captions instead of 4,500 with 45,000",
    "visual_genome": "8 images instead of 108,077 in region_descriptions.json, 2 images instead of "
                     "10,000 in val and test of dataset_coco.json",
    "vqa2": "4 questions instead of 443,757 in train2014, 6 questions instead of 214,354 in val",
    "gqa": "3 questions instead of 943,000 in train, 1 questions instead of 132,062 in val",
    "snli_ve": "2 sentences instead of 529,527 in train",
    "scienceqa": "2 questions instead of 12,726 in train",
    "refcoco": "2 expressions instead of 120,624 in train"}


@of(*MAKERS)
def test_other_counts_than_the_papers_are_an_error_unless_partial(made, monkeypatch):
    monkeypatch.undo()
    fails(made.run, TOO_FEW[made.folder.name], "--partial")
    assert not list(made.folder.glob("train.jsonl"))
    made.run(partial=True)


@pytest.mark.parametrize("script, constant, wrong, words", [
    ("vqa2", "ANSWERS", {"answers.json": 3_129}, "3 answers instead of 3,129 in answers.json"),
    ("gqa", "ANSWERS", {"answers.json": 1_843}, "4 answers instead of 1,843 in answers.json"),
    ("scienceqa", "PICTURES", {"train": 2, "val": 1, "test": 1}, "1 pictures instead of 2 in trai"),
    ("visual_genome", "COUNTS", dict(zip(visual_genome.COUNTS, (8, 3, 2))), "2 images instead of")])
def test_answers_pictures_and_what_is_held_out_are_counted_as_well(
        tmp_path, monkeypatch, script, constant, wrong, words):
    made = tree(tmp_path, monkeypatch, script)
    monkeypatch.setattr(made.script, constant, wrong)
    fails(made.run, words, "--partial")


@of(*MAKERS)
def test_a_missing_image_is_an_error_unless_partial(made, capsys):
    image, words = IMAGES[made.folder.name]
    (made.root / image).unlink()
    fails(made.run, made.root / image, "the first of 1;", *words, "--partial")
    made.run(partial=True)
    gone, = made.skipped("missing images")
    assert f"/{made.root / image}".endswith(f"/{gone}")
    assert f"left out: 1 missing images: {gone}\n" in capsys.readouterr().out
    for split in ("train", "val"):
        if (made.result / f"{split}.jsonl").exists() and made.lines(split):
            for item in tasks.load_split(made.result, split):
                assert item["image"] is None or item["image"].is_file()


@of(*MAKERS)
def test_a_damaged_image_is_left_out_with_the_reason_by_check_only(made, capsys):
    """With it go all items on it. That it is counted once, not once an item, is in meta.json."""
    made.run()
    before = made.json()
    image = made.root / IMAGES[made.folder.name][0]
    image.write_bytes(jpeg()[:-300])
    made.run()
    assert made.json() == before
    made.run(check=True)
    wrong, = made.skipped("damaged images")
    assert "truncated" in wrong and "left out: 1 damaged images: " in capsys.readouterr().out
    assert sum(before["images"].values()) - sum(made.json()["images"].values()) == 1
    assert not any(item["image"] and image.samefile(made.result / item["image"])
                   for split in made.json()["images"] for item in made.lines(split))


@pytest.mark.parametrize("made, file, url", [(name, *source) for name, files in SOURCES.items()
                                             for source in files.items()], indirect=["made"])
def test_a_missing_or_unreadable_file_says_what_to_fetch(made, file, url):
    path = made.folder / file
    path.write_bytes(b"[{")
    fails(made.run, path, url if made.folder.name != "snli_ve" else "line 1", partial=True)
    path.unlink()
    fails(made.run, path, "no such file", url, "--download", partial=True)
    path.mkdir()
    fails(made.run, path, "cannot be read", partial=True)


VQA, GENOME = "v2_OpenEnded_mscoco_val2014_questions.json", "region_descriptions.json"
VQA_ANSWERS, NOCAPS = "v2_mscoco_train2014_annotations.json", "nocaps_val_4500_captions.json"
GQA, BOXES = "val_balanced_questions.json", "refcoco/instances.json"


@pytest.mark.parametrize("made, file, edit, words", [
    ("nocaps", NOCAPS, lambda d: d.pop("annotations"), "holds no captions"),
    ("nocaps", NOCAPS, lambda d: d["images"][0].pop("domain"), "no 'domain'"),
    ("nocaps", NOCAPS, lambda d: d["images"][0].update(domain="overall"), "the domain 'overall'"),
    ("nocaps", NOCAPS, lambda d: d["images"][0].update(file_name="../../a.jpg"), "another form"),
    ("nocaps", NOCAPS, lambda d: d["annotations"][0].update(image_id=77), "77"),
    ("nocaps", NOCAPS, lambda d: d["annotations"][0].update(caption=None), "another form"),
    ("visual_genome", GENOME, lambda d: d.append({"id": 77, "regions": []}), "77"),
    ("visual_genome", GENOME, lambda d: d[0].pop("regions"), "regions"),
    ("visual_genome", GENOME, lambda d: d[0].update(regions=[{"x": 1}]), "another form"),
    ("visual_genome", GENOME, lambda d: d[0].update(regions=[{"phrase": 3}]), "another form"),
    ("visual_genome", "image_data.json", lambda d: d[0].pop("coco_id"), "coco_id"),
    ("visual_genome", "image_data.json", lambda d: d[0].update(url="https://a/../b.jpg"), "form"),
    ("vqa2", VQA, lambda d: d.pop("questions"), "another form"),
    ("vqa2", VQA, lambda d: d["questions"][0].pop("image_id"), "another form"),
    ("vqa2", VQA, lambda d: d["questions"][0].update(image_id="../7"), "another form"),
    ("vqa2", VQA, lambda d: d["questions"][0].update(question=None), "another form"),
    ("vqa2", VQA_ANSWERS, lambda d: d.update(annotations=3), "another form"),
    ("vqa2", VQA_ANSWERS, lambda d: d["annotations"][0].pop("answers"), "another form"),
    ("vqa2", VQA_ANSWERS, lambda d: d["annotations"][0].update(multiple_choice_answer=3), "form"),
    ("vqa2", "", lambda d: d["annotations"].pop(), "do not belong together"),
    ("vqa2", "", lambda d: d["annotations"][0].update(answers=[7]), "do not belong together"),
    ("gqa", GQA, lambda d: d["8"].pop("answer"), gqa.QUESTIONS),
    ("gqa", GQA, lambda d: d["8"].pop("imageId"), gqa.QUESTIONS),
    ("gqa", GQA, lambda d: d["8"].update(question=None), gqa.QUESTIONS),
    ("gqa", GQA, lambda d: d["8"].update(imageId="../8"), gqa.QUESTIONS),
    ("gqa", GQA, lambda d: d.update({"8": 3}), gqa.QUESTIONS),
    ("scienceqa", "problems.json", lambda d: d["1"].pop("lecture"), scienceqa.SITE),
    ("scienceqa", "problems.json", lambda d: d.pop("1"), scienceqa.SITE),
    ("scienceqa", "problems.json", lambda d: d["1"].update(answer=3), scienceqa.SITE),
    ("scienceqa", "problems.json", lambda d: d["1"].update(answer="B"), scienceqa.SITE),
    ("scienceqa", "problems.json", lambda d: d["1"].update(image="../../a.png"), scienceqa.SITE),
    ("scienceqa", "problems.json", lambda d: d["1"].update(choices=[1, 2]), scienceqa.SITE),
    ("refcoco", BOXES, lambda d: d.pop("annotations"), "delete it"),
    ("refcoco", BOXES, lambda d: d.update(images=None), "delete it"),
    ("refcoco", BOXES, lambda d: d["images"][0].pop("height"), "delete it"),
    ("refcoco", BOXES, lambda d: d["annotations"][1].pop("bbox"), "delete it"),
    ("refcoco", BOXES, lambda d: d["annotations"][1].update(image_id=[]), "delete it"),
    *(("refcoco", BOXES, lambda d, box=box: d["annotations"][1].update(bbox=box), "delete it")
      for box in ([1, 2, 3], [1, 2, -3, 4], "1234", [1, float("nan"), 3, 4], [1, 2, 10 ** 400, 4],
                  [1, 2, float("inf"), 4])),
], indirect=["made"])
def test_a_file_of_another_form_is_one_line(made, file, edit, words):
    change(made.folder / (file or VQA_ANSWERS), edit)
    where = made.folder if made.folder.name == "scienceqa" else made.folder / file
    fails(made.run, where, words, "" if words.startswith("holds no") else "another form",
          partial=True)


# {constant of the script: what it becomes}, from put(zip's name, beginnings of names in it) and
# loose(names of files), which gives back the address of their folder.
PUBLISHED = {
    "coco": lambda put, loose: {"KARPATHY": put("k.zip", "dataset_coco"), "IMAGES": {
        part: put(f"{part}.zip", part) for part in coco.IMAGES}},
    "flickr30k": lambda put, loose: {"KARPATHY": put("k.zip", "dataset_flickr30k")},
    "nocaps": lambda put, loose: {"URL": loose(NOCAPS) + NOCAPS},
    "visual_genome": lambda put, loose: {
        "KARPATHY": put("k.zip", "dataset_"),
        "TEXTS": {name: put(f"{name}.zip", name) for name in visual_genome.TEXTS},
        "IMAGES": {"VG_100K": put("images.zip", "VG_100K/"),
                   "VG_100K_2": put("images2.zip", "VG_100K_2/")}},
    "vqa2": lambda put, loose: {"ZIPS": {name: put(f"{name}.zip", name) for name in vqa2.ZIPS}},
    "gqa": lambda put, loose: {"QUESTIONS": put("q.zip", *gqa.FILES.values())["urls"],
                               "IMAGES": {"images": put("images.zip", "images/")}},
    "snli_ve": lambda put, loose: {"COPY": loose(*snli_ve.FILES.values(), pack=gzip.compress)},
    "scienceqa": lambda put, loose: {"SITE": loose(*scienceqa.FILES), "IMAGES": {
        part: put(f"{part}.zip", f"{part}/", where="scienceqa/images") for part in IMAGE_SPLITS}},
    "refcoco": lambda put, loose: {"ZIPS": {"refcoco": put("refcoco.zip", "refcoco/")}}}
IMAGE_SPLITS = ("train", "val", "test")


@of(*PUBLISHED)
def test_everything_published_is_downloaded_once(made, tmp_path, monkeypatch, capsys):
    """Even when the zips have been deleted; for an image that is gone its zip is fetched again."""
    name, site = made.folder.name, tmp_path / "site"

    def put(zip_name, *begin, where=name):
        files = {file: content for file, content in made.inside(where).items()
                 if file.startswith(begin)}
        for file in files:
            (made.root / where / file).unlink()
        return publish(site, zip_name, zipped(files | {"unwanted.txt": b""}))

    def loose(*files, pack=None):
        for file in files:
            content = (made.folder / file).read_bytes()
            publish(site, f"{file}.gz" if pack else file, pack(content) if pack else content)
            (made.folder / file).unlink()
        return f"{site.as_uri()}/"

    for attribute, value in PUBLISHED[name](put, loose).items():
        monkeypatch.setattr(made.script, attribute, value)
    made.run(download=True)
    zips = list(made.root.rglob("*.zip"))
    assert capsys.readouterr().out.count("is unpacked and may be deleted\n") == len(zips)
    assert not list(made.root.rglob("unwanted.txt")) and made.lines("val")
    for path in [*zips, *site.iterdir()]:
        path.unlink()
    made.run(download=True)
    if hasattr(made.script, "IMAGES"):
        (made.root / IMAGES[name][0]).unlink()
        fails(made.run, "could not be fetched", download=True)


def publish_coco(made, site, monkeypatch):
    content = zipped({name: content for name, content in made.inside("coco").items()
                      if name.startswith("val2014/")})
    monkeypatch.setattr(coco, "IMAGES", {"val2014": publish(site, "val2014.zip", content)})
    shutil.rmtree(made.folder / "val2014")
    return content


@of("coco")
def test_a_download_with_another_hash_or_cut_off_on_the_disk_is_refused(
        made, tmp_path, monkeypatch):
    content = publish_coco(made, tmp_path, monkeypatch)
    fill(tmp_path, {"val2014.zip": content[:-1] + b"x"})
    fails(made.run, "val2014.zip", "md5", download=True)
    fill(made.folder, {"val2014.zip": b"cut"})
    fails(made.run, "val2014.zip", "3 bytes", "delete it", download=True)
    assert not (made.folder / "val2014").exists()


@of("coco")
def test_a_wrong_json_or_too_small_a_disk_costs_no_download(made, tmp_path, monkeypatch):
    publish_coco(made, tmp_path, monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 80, 20))
    fails(made.run, made.folder, "make room", download=True)
    fill(made.folder, {"dataset_coco.json": karpathy([entry(1, "val", ["A."])])})
    fails(made.run, "train has 0 images", download=True)
    assert not list(made.folder.glob("*.zip*"))


@pytest.mark.parametrize("name", [*MAKERS, "folder"])
def test_every_script_ends_in_one_line_and_is_found_by_name(name, tmp_path, monkeypatch):
    """As a user calls it, from another folder; and the line that train.py answers."""
    command = [sys.executable, str(ROOT / f"data/{name}/prepare.py")]
    option = {"coco": ["--karpathy"], "flickr30k": ["--karpathy"], "folder": []}
    done = subprocess.run([*command, *option.get(name, ["--folder"]), "no/where"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no") and sorted(tmp_path.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    if not tasks.is_prepared(ROOT / "data" / name):
        fails(lambda: tasks.find_dataset(name), f"run python data/{name}/prepare.py",
              tasks.RUN_WITH[name])
    text = subprocess.run([*command, "--help"], capture_output=True, text=True).stdout
    assert "--check" in text and "--out" in text


@of("coco", "refcoco")
def test_a_script_needs_no_torch(made):
    options = [word for key, place in made.options.items() for word in (f"--{key}", place)]
    code = ("import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], "
            "run_name='__main__'); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, made.script.__file__, *options, "--out",
                           made.folder, "--partial"], capture_output=True, text=True, cwd=made.root)
    assert done.returncode == 0, done.stderr
    assert " 1 images         2 " in done.stdout


def test_what_is_fetched_and_written_is_not_in_the_repository():
    """git leaves alone what is put below data/, so that nobody commits 20 GB of images."""
    paths = [f"data/{name}/{file}" for name, files in SOURCES.items() for file in files] + [
        "data/vqa2/answers.json", "data/coco/test2015/a.jpg", "data/coco/train.jsonl",
        "data/gqa/images/1.jpg", "data/gqa/questions1.2.zip", "data/nocaps/val/a.jpg",
        "data/snli_ve/snli_ve_train.jsonl.gz", "data/scienceqa/images/train/1/image.png",
        "data/visual_genome/VG_100K_2/1.jpg", "data/refcoco/refcoco.zip",
        "data/refcoco/refcoco+/meta.json", "data/refcoco/dets.json",
        "data/refcoco/detections/refcoco_unc/res101_coco_minus_refer_notime_dets.json"]
    done = subprocess.run(["git", "check-ignore", *paths, "data/refcoco/prepare.py"],
                          capture_output=True, text=True, cwd=ROOT)
    if done.returncode > 1:
        pytest.skip("not in a git repository")
    assert done.stdout.split() == paths


# ---------------------------------------------------------------------------- text and images


def png(size=(32, 32), mode="RGB", form="PNG", **options):
    """The bytes of an image of one colour."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


def animation():
    return png(mode="P", form="GIF", save_all=True, append_images=[Image.new("P", (32, 32), 9)])


@functools.cache
def large(w, h):
    """A black PNG of one bit a pixel with a true header: 200 million pixels in 25 kB."""
    def chunk(kind, content):
        return (len(content).to_bytes(4, "big") + kind + content
                + zlib.crc32(kind + content).to_bytes(4, "big"))

    header = w.to_bytes(4, "big") + h.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes((w + 7) // 8 + 1) * h, 1)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
            + chunk(b"IEND", b""))


SOUND = {"grey.jpg": jpeg("L"), "cmyk.jpg": jpeg("CMYK"), "a.webp": png(form="WEBP"),
         "palette.png": png(mode="P", transparency=0), "16 bit.png": png(mode="I;16"),
         "one bit.png": png(mode="1"), "grey alpha.png": png(mode="LA"), "moving.gif": animation(),
         "a png.jpg": png()}
PROGRAM = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
           b"(x) (w) file closefile\nshowpage\n")  # of PostScript; it writes a file
BROKEN = {"cut.jpg": jpeg()[:-300], "program.jpg": PROGRAM, "photoshop.png": b"8BPS\0\1",
          "empty.jpg": b"", "text.jpg": b"<html>no</html>",
          "float.tif": png(mode="F", form="TIFF"), "32 bit.tif": png(mode="I", form="TIFF"),
          "half.png": png()[:40], "thin.png": png((1, 200)), "large.png": large(10_000, 10_000),
          "bomb.png": large(20_000, 10_000)}


@pytest.mark.parametrize("raw, wanted", [
    ("\ufeffA  shoe.\r\n", "A shoe."),
    (ACCENT, "caf\u00e9"),
    ("a\u200bb\u00adc\x00d\x7f", "abcd"),
    ("a\u00a0b\u3000c\u2028d\x85e", "a b c d e"),
    ("\U0001f469\u200d\U0001f680 in space", "\U0001f469\u200d\U0001f680 in space"),  # joined emoji
    ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",) * 2,  # and joined Persian
    ("half \ud83d an emoji", "half an emoji"),
    ("\u202eevil\u202c", "evil"),
    (" \t\u200b\ufeff\n", ""),
])
def test_a_caption_loses_what_cannot_be_seen_and_nothing_else(raw, wanted):
    assert common.clean(raw) == common.clean(wanted) == wanted
    wanted.encode()


@pytest.mark.parametrize("name", SOUND)
def test_training_reads_what_the_check_lets_through(tmp_path, name):
    path = fill(tmp_path, SOUND) / name
    assert common.check_image(path) == ""
    assert preprocess(open_image(path), 32).shape == (3, 32, 32)


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_finds_what_training_could_not_read(tmp_path, name):
    path = fill(tmp_path, BROKEN) / name
    assert common.check_images([path])[path]
    with pytest.raises(UserError):
        preprocess(open_image(path), 32)


def test_nothing_but_pictures_is_even_tried(tmp_path, monkeypatch):
    """Of PostScript, Pillow reads the first lines and starts Ghostscript for the others."""
    for kind, (factory, accept) in [*Image.OPEN.items()]:
        if kind not in FORMATS:
            monkeypatch.setitem(Image.OPEN, kind, (None, lambda prefix: 1 / 0))
    assert "EPS" in Image.OPEN and "EPS" not in FORMATS
    fails(lambda: open_image(fill(tmp_path, BROKEN) / "program.jpg"), "not a readable image (of JPE")


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.ppm", "grey.jp2"])
def test_16_bits_of_grey_are_as_bright_as_8(tmp_path, name):
    """Pillow alone cuts off at 255, of 65,535: the picture would be white."""
    grey = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / name)
    for band in open_image(tmp_path / name).split():
        np.testing.assert_allclose(np.asarray(band), grey, atol=1)


def test_a_huge_image_is_named_as_such_without_a_warning(tmp_path, recwarn):
    paths = [fill(tmp_path, BROKEN) / name for name in ("large.png", "bomb.png", "thin.png")]
    large, bomb, thin = common.check_images(paths).values()
    assert large == "too large with 10,000 x 10,000 pixels" and "exceeds limit" in bomb
    assert thin == "too long and thin with 1 x 200 pixels"
    assert not recwarn.list


# ---------------------------------------------------------------------------- published captions


@of("flickr30k")
def test_flickr30k_has_five_captions_an_image_and_the_photos_number_as_id(made):
    made.run()
    assert made.column("train") == [1001, 1002]
    assert made.lines("test") == [{"id": 1004, "image": "images/1004.jpg",
                                   "captions": [f"Photo 1004, number {i}." for i in range(5)]}]
    assert made.json()["captions"] == {"train": 10, "val": 5, "test": 5}


def test_flickr30ks_published_counts_are_five_captions_for_31_014_images():
    assert sum(n for n, _ in flickr30k.COUNTS.values()) == 31_014
    assert all(texts == 5 * n for n, texts in flickr30k.COUNTS.values())


@of("nocaps")
def test_nocaps_is_a_val_split_whose_items_keep_their_domain(made):
    made.run()
    assert made.lines("val")[1] == {"id": 1, "image": "val/0001.jpg", "domain": "near-domain",
                                    "captions": ["Thing 1.", "A thing."]}
    assert made.json()["domains"] == {"in-domain": 2, "near-domain": 1, "out-domain": 1}
    fails(lambda: tasks.load_split(made.folder, "test"), "no such split; there are: val")


class Web:
    """Stands for the network: contents {name: bytes}, failures {name: status codes to begin with},
    asked: the names that were asked for. Any other name is answered with 404."""

    def __init__(self, contents, failures=()):
        self.contents, self.failures, self.asked = contents, dict(failures), []

    def urlopen(self, request, timeout):
        name = request.full_url.split("/")[-1]
        time.sleep(0.01)  # no network is faster than who counts its failures
        self.asked.append(name)
        status = (self.failures.get(name) or [None]).pop(0) or (name not in self.contents and 404)
        if status:
            raise urllib.error.HTTPError(request.full_url, status, "not found", {}, None)
        return io.BytesIO(self.contents[name])


@of("nocaps")
def test_nocaps_images_are_fetched_one_by_one_and_only_once(made, monkeypatch, capsys):
    """One is there, one answers at the third attempt, one is gone, a login page, one cut off."""
    names = ["0000.jpg", "flaky.jpg", "gone.jpg", "login.jpg", "cut.jpg", "a b.jpg"]
    web = Web({"flaky.jpg": jpeg(), "login.jpg": b"<html>", "cut.jpg": jpeg()[:-300],
               "a%20b.jpg": png(mode="P")}, {"flaky.jpg": [500, 503, None]})
    monkeypatch.setattr(urllib.request, "urlopen", web.urlopen)
    fill(made.folder, {NOCAPS: nocaps_json(names)})
    monkeypatch.setattr(nocaps, "COUNTS", {"val": (6, 12)})
    fails(made.run, made.folder / "val/gone.jpg", "the first of 3", "--download", download=True)
    captured = capsys.readouterr()
    assert "3 images could not be fetched: val/gone.jpg (HTTP 404 not found)" in captured.out
    assert "fetching images: 5 of 5, 0 s left" in captured.err
    assert {name: web.asked.count(name.replace(" ", "%20")) for name in names} == {
        "0000.jpg": 0, "flaky.jpg": 3, "gone.jpg": 1, "login.jpg": 3, "cut.jpg": 3, "a b.jpg": 1}
    assert {path.name for path in (made.folder / "val").iterdir()} == {
        "0000.jpg", "0001.jpg", "0002.jpg", "0003.jpg", "a b.jpg", "flaky.jpg"}
    web.asked.clear()
    web.contents["cut.jpg"] = jpeg()
    made.run(download=True, partial=True)
    assert set(web.asked) == {"gone.jpg", "login.jpg", "cut.jpg"}
    assert made.json()["images"] == {"val": 4}


@of("nocaps")
def test_without_a_network_or_room_the_fetching_of_images_ends(made, monkeypatch):
    web = Web({})
    monkeypatch.setattr(urllib.request, "urlopen", web.urlopen)
    fill(made.folder, {NOCAPS: nocaps_json([f"{i}.jpg" for i in range(100)])})
    fails(made.run, "none of the first 20 images", "HTTP 404", download=True, threads=2,
          partial=True)
    assert len(web.asked) < 60

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    web.contents["0.jpg"] = jpeg()
    fails(made.run, made.folder / "val/0.jpg", "No space left", download=True, partial=True)


@of("visual_genome")
def test_no_image_of_karpathys_val_and_test_is_trained_on(made):
    made.run()
    assert made.column("train") == [1, 2, 6] and made.column("val") == [200]
    assert made.skipped("images in Karpathy's val and test") == [
        "VG_100K/3.jpg", "VG_100K/4.jpg", "VG_100K_2/5.jpg"]
    assert made.skipped("images without captions") == ["VG_100K/7.jpg"]


@of("visual_genome")
def test_the_images_that_are_published_damaged_are_left_out_by_their_id(made, monkeypatch):
    assert visual_genome.DAMAGED == {1592, 1722, 4616, 4617}
    monkeypatch.setattr(visual_genome, "DAMAGED", {2, 200})
    made.run()  # and the number of images is compared with the published one before
    assert made.column("train") == [1, 6] and made.column("val") == []
    assert len(made.skipped("images published damaged")) == 2


@of("visual_genome")
def test_the_phrases_of_an_image_are_cleaned_and_different(made):
    made.run()
    assert made.lines("train")[0] == {
        "id": 1, "image": "VG_100K_2/1.jpg",
        "captions": ["the clock is green", "a red car", "a car", "caf\u00e9"]}
    assert made.skipped("repeated phrases") == ["VG_100K_2/1.jpg"] * 3 + ["VG_100K/7.jpg"]


# ---------------------------------------------------------------------------- your own photos


def photos(where, **config):
    """Prepares a folder of photos."""
    folder.main(folder.Config(folder=[str(where)], **config))


def read(where, *splits):
    """The items of train and val, or of other splits."""
    return [item for split in splits or ("train", "val") for item in tasks.load_split(where, split)]


def captions_of(where):
    return {item["id"]: item["captions"] for item in read(where)}


def skipped(where, why):
    return json.loads((where / "meta.json").read_text())["skipped"][why]["first"]


@pytest.fixture
def album(tmp_path):
    """Six photos, some of them below, in a path with a space."""
    names = ("dog.jpg", "garden/red car.jpg", "garden/\u6c34.jpg", "x.JPG", f"{ACCENT}.jpg",
             "last.png")
    return fill(tmp_path / "my photos", {name: jpeg(seed=i) for i, name in enumerate(names)})


def test_a_list_with_tabs_gives_the_captions(album, capsys):
    """Several lines an image; names from Windows, another computer, with either form of accent."""
    fill(album, {"captions.tsv": "\ufeffdog.jpg\tA dog.\r\n./dog.jpg\ta dog\r\n"
                                 "dog.jpg\ta   brown\tdog\r\n\r\ngarden\\red car.jpg\ta car\n"
                                 "C:\\Users\\me\\photos\\garden\\\u6c34.jpg\twater\n"
                                 f"{album / 'x.JPG'}\tan x \U0001f600\n"
                                 f"caf\u00e9.jpg\tin a {ACCENT}\ngone.jpg\tnobody\n"
                                 "last.png\t \u200b\n"})
    photos(album)
    assert captions_of(album) == {
        "dog.jpg": ["A dog.", "a brown dog"], "garden/red car.jpg": ["a car"],
        "garden/\u6c34.jpg": ["water"], "x.JPG": ["an x \U0001f600"],
        f"{ACCENT}.jpg": ["in a caf\u00e9"]}
    assert all(item["image"].is_file() for item in read(album))
    assert skipped(album, "missing images") == ["gone.jpg"]
    assert skipped(album, "repeated captions") == ["dog.jpg"]
    assert skipped(album, "images without captions") == ["last.png"]
    assert capsys.readouterr().out.endswith(f'next: python train.py --dataset "{album}"\n')


def test_a_list_of_json_lines_gives_the_captions(album):
    fill(album, {"list.jsonl": '{"image": "dog.jpg", "caption": "a dog"}\n'
                               '{"image": "dog.jpg", "captions": ["a pet", "\\ud83d a dog"]}\n'
                               '{"image": "x.JPG", "captions": []}\n'
                               '{"image": "last.png", "caption": "the last", "id": 3}\n'})
    photos(album, captions=str(album / "list.jsonl"))
    assert captions_of(album) == {"dog.jpg": ["a dog", "a pet"], "last.png": ["the last"]}
    assert skipped(album, "images that no line names") == [
        f"{ACCENT}.jpg", "garden/red car.jpg", "garden/\u6c34.jpg"]


def test_images_outside_of_the_folder_are_found_by_their_path(album, tmp_path):
    fill(tmp_path, {"dog.jpg": jpeg(), "next door/cat.jpg": jpeg()})
    fill(album, {"captions.tsv": f"{tmp_path / 'dog.jpg'}\tanother dog\n"
                                 "../next door/cat.jpg\ta cat\nx.JPG\tx\n"})
    photos(album)
    items = {item["captions"][0]: item["image"] for item in read(album)}
    assert items["another dog"].samefile(tmp_path / "dog.jpg")
    assert items["a cat"].samefile(tmp_path / "next door/cat.jpg")


@pytest.mark.parametrize("name, caption", [
    ("a_red_car_2.jpg", "a red car"), ("a red car (2).jpg", "a red car"), ("3-dogs.png", "3 dogs"),
    ("garden/a.dog--asleep__001.jpeg", "a dog asleep"), (f"{ACCENT}.jpg", "caf\u00e9"),
    ("IMG_20240131_120000.jpg", ""), ("DSC01234.JPG", ""), ("0001.jpg", ""),
    ("COCO_val2014_000000000042.jpg", ""), ("IMG-20240131-WA0007.jpg", ""), ("frame_01.png", ""),
    ("a_train_2.jpg", "a train"), ("train.jpg", "train"), ("a frame.jpg", "a frame"),
    ("\u6c34_1.jpg", "\u6c34")])
def test_a_file_name_becomes_a_caption(name, caption):
    assert folder.from_name(name) == caption


def test_without_a_list_the_file_names_are_captions(tmp_path, capsys):
    """Hidden files are not seen, and what a camera named has no caption."""
    names = ("a_red_car_1.jpg", "a_red_car_2.jpg", "a blue car.jpg", "IMG_1.jpg", "notes.txt",
             ".thumbnails/a cat.jpg", "._a dog.jpg")
    photos(fill(tmp_path, {name: jpeg() for name in names}))
    assert captions_of(tmp_path) == {"a_red_car_1.jpg": ["a red car"],
                                     "a_red_car_2.jpg": ["a red car"],
                                     "a blue car.jpg": ["a blue car"]}
    assert skipped(tmp_path, "images without captions") == ["IMG_1.jpg"]
    out = capsys.readouterr().out
    assert "the names of the files become captions" in out
    assert "\nfor example a blue car.jpg: 'a blue car'\n" in out


@pytest.mark.parametrize("names, words", [
    ([], ["no image in there", ".jpg"]), (["notes.txt"], ["no image in there"]),
    (["captions.csv", "a dog.jpg", "a cat.jpg"], ["captions.csv", "captions.tsv (name, tab"]),
    (["Captions.TXT", "a dog.jpg", "a cat.jpg"], ["Captions.TXT"]),
    (["IMG_1.jpg", "IMG_2.jpg"], ["IMG_1.jpg, say nothing"]),
    (["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"], ["say nothing"]),
    (["party_1.jpg", "party_2.jpg"], ["say 'party' of every image"]),
])
def test_a_folder_without_images_or_captions_is_one_line(tmp_path, names, words):
    fill(tmp_path, {name: jpeg() for name in names})
    fails(lambda: photos(tmp_path), tmp_path, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_photo_stays_in_its_split_when_others_join(tmp_path):
    assert folder.place("dog.jpg") == pytest.approx(0.861537, abs=1e-6)  # everywhere, every year
    names = [f"thing {i:03} a.jpg" for i in range(200)]
    found = []
    for end in (100, 200):
        fill(tmp_path, {name: png((1, 1)) for name in names[:end]})
        photos(tmp_path, val=0.2, test=0.1)
        found.append([{item["id"] for item in read(tmp_path, split)}
                      for split in ("train", "val", "test")])
    assert all(before < after for before, after in zip(*found))
    assert [len(ids) for ids in found[1]] == pytest.approx([140, 40, 20], abs=15)


def test_a_small_folder_has_one_image_to_validate_on(album):
    photos(album)
    assert len(read(album, "train")) == 5 and len(read(album, "val")) == 1
    photos(album, test=0.01)
    assert len(read(album, "test")) == 1
    photos(album)
    assert not (album / "test.jsonl").exists()  # it would hold what is in train now


def test_splits_that_somebody_else_wrote_are_not_overwritten(album, tmp_path):
    fill(album, {"train.jsonl": "precious"})
    fails(lambda: photos(album), album / "train.jsonl", "not written by this script", "--out")
    for source in ({"images": "elsewhere"}, [[[]]]):
        fill(album, {"meta.json": {"source": source}})
        fails(lambda: photos(album), album / "train.jsonl")
    assert (album / "train.jsonl").read_text() == "precious"
    (album / "train.jsonl").unlink()
    fill(album, {"meta.json": "[" * 100_000})
    fails(lambda: photos(album), album / "meta.json", "--out")
    for _ in range(2):  # its own result may be replaced
        photos(album, out=str(tmp_path / "out"))
    assert all(item["image"].is_file() for item in read(tmp_path / "out"))


@pytest.mark.parametrize("files, config, words", [
    ({"captions.tsv": "dog.jpg a dog\n"}, {}, ["captions.tsv line 1", "no tab"]),
    ({"captions.tsv": "dog.jpg\ta dog\n".encode("utf-16")}, {}, ["not written in UTF-8"]),
    ({"captions.tsv": "a caption\thttp://a/b.jpg\n"}, {}, ["none of the 1 images", "6 others"]),
    ({"captions.jsonl": '\n{"image": "dog.jpg"'}, {}, ["captions.jsonl line 2", "not of the form"]),
    ({"captions.jsonl": "3"}, {}, ["line 1", "not of the form"]),
    ({"captions.jsonl": {"image": "dog.jpg"}}, {}, ["line 1", "not of the form"]),
    ({"captions.jsonl": {"image": "dog.jpg", "captions": "a"}}, {}, ['"captions": ["a dog"']),
    ({"captions.jsonl": {"image": "dog.jpg", "caption": None}}, {}, ["line 1"]),
    ({"captions.jsonl": {"image": 3, "caption": "a"}}, {}, ["line 1"]),
    ({"captions.jsonl": "", "captions.tsv": ""}, {}, ["and captions.tsv", "--captions"]),
    ({"captions.tsv": "dog.jpg\ta dog\n"}, {}, ["1 images with captions are too few"]),
    ({"captions.tsv": "dog.jpg\t\n"}, {}, ["no image is left", "1 images without captions"]),
    ({"captions.tsv": ""}, {}, ["none of the 0 images"]),
    ({}, {"captions": "no/where.tsv"}, ["where.tsv", "cannot be read"]),
    ({}, {"val": 0.0}, ["--val 0.0", "0.05"]),
    ({}, {"val": 0.6, "test": 0.4}, ["--test 0.4"]),
    ({}, {"folder": ["none"]}, ["none", "no such folder"]),
    ({}, {"folder": []}, ["python data/folder/prepare.py path/to/photos"]),
])
def test_what_cannot_be_prepared_is_one_line(album, files, config, words):
    fill(album, files)
    fails(lambda: folder.main(folder.Config(**{"folder": [str(album)]} | config)), *words)
    assert not (album / "train.jsonl").exists()


def test_a_name_that_cannot_be_printed_is_reported_and_read(tmp_path):
    """Linux allows any bytes in a name, even a line break."""
    broken, odd = os.fsdecode(b"caf\xe9 broken.jpg"), os.fsdecode(b"caf\xe9 \n good.jpg")
    try:
        fill(tmp_path, {broken: b"", odd: jpeg(), "a.jpg": jpeg(), "b.jpg": jpeg()})
    except OSError:
        pytest.skip("this file system wants UTF-8")
    done = subprocess.run([sys.executable, str(ROOT / "data/folder/prepare.py"), str(tmp_path)],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: 1 damaged images: caf\\udce9 broken.jpg (not an image)\n" in done.stdout
    assert len(read(tmp_path)) == 3 and all(item["image"].is_file() for item in read(tmp_path))
