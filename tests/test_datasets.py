"""The other datasets, each from a small tree in the layout of the published files.

What COCO's script does in the same way is tested in test_data.py. Here are the differences, and the
files that people really have: grey, CMYK, palette, 16-bit, animated, huge, cut off; captions with
byte-order marks, loose accents and emoji; names from Windows and from a Mac.
"""

import functools
import io
import json
import os
import subprocess
import sys
import urllib.parse
import zlib

import pytest
from PIL import Image

from lib.cli import UserError
from clip_vit import preprocess
from lib.pictures import open_image
from data import archives, common, tasks
from data.flickr30k import prepare as flickr30k
from data.folder import prepare as folder
from data.nocaps import prepare as nocaps
from data.visual_genome import prepare as visual_genome
from test_data import ROOT, entry, fails, jpeg, karpathy, lines, meta, site, skipped, zipped

ACCENT = "cafe\u0301"  # as a Mac writes café: the accent is a character of its own


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
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes((w + 7) // 8 + 1) * h, 1)) + chunk(b"IEND", b""))


SOUND = {"grey.jpg": jpeg("L"), "cmyk.jpg": jpeg("CMYK"), "palette.png": png(mode="P", transparency=0),
         "16 bit.png": png(mode="I;16"), "one bit.png": png(mode="1"), "grey alpha.png": png(mode="LA"),
         "animated.gif": animation(), "a.webp": png(form="WEBP"), "float.tif": png(mode="F", form="TIFF"),
         "a png.jpg": png()}
BROKEN = {"cut.jpg": jpeg()[:-300], "empty.jpg": b"", "text.jpg": b"<html>no</html>", "half.png": png()[:40],
          "thin.png": png((1, 200)), "large.png": large(10_000, 10_000), "bomb.png": large(20_000, 10_000)}


def fill(where, files):
    """Writes {name: bytes} into a folder, and gives it back."""
    for name, content in files.items():
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return where


def prepared(script, where, **config):
    """Runs a script on its tree, the result beside it; partial unless told otherwise."""
    script.main(script.Config(**({"folder": str(where), "out": str(where), "partial": True} | config)))


# ---------------------------------------------------------------------------- text and images


@pytest.mark.parametrize("raw, wanted", [
    ("\ufeffA  shoe.\r\n", "A shoe."),
    (ACCENT, "caf\u00e9"),
    ("a\u200bb\u00adc\x00d\x7f", "abcd"),
    ("a\u00a0b\u3000c\u2028d\x85e", "a b c d e"),
    ("\U0001f469\u200d\U0001f680 in space", "\U0001f469\u200d\U0001f680 in space"),  # a joined emoji
    ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ("half \ud83d an emoji", "half an emoji"),
    ("\u202eevil\u202c", "evil"),
    (" \t\u200b\ufeff\n", ""),
])
def test_a_caption_loses_what_cannot_be_seen_and_nothing_else(raw, wanted):
    assert common.clean(raw) == wanted
    assert common.clean(wanted) == wanted
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
    if name != "large.png":  # that one can be read, but a process needs 300 MB for it
        with pytest.raises(UserError):
            preprocess(open_image(path), 32)


def test_a_huge_image_is_named_as_such_without_a_warning(tmp_path, recwarn):
    paths = [fill(tmp_path, BROKEN) / name for name in ("large.png", "bomb.png", "thin.png")]
    large, bomb, thin = common.check_images(paths).values()
    assert large == "too large with 10,000 x 10,000 pixels" and "exceeds limit" in bomb
    assert thin == "too long and thin with 1 x 200 pixels"
    assert not recwarn.list


# ---------------------------------------------------------------------------- Flickr30k

PHOTOS = [entry(n, split, [f"Photo {n}, number {i}." for i in range(5)])
          for n, split in ((1001, "train"), (1002, "train"), (1003, "val"), (1004, "test"))]
for photo in PHOTOS:
    photo["filename"] = f"{photo['cocoid']}.jpg"
    photo["imgid"] -= 1001
    del photo["filepath"], photo["cocoid"]


@pytest.fixture
def flickr(tmp_path, monkeypatch):
    where = tmp_path / "flickr30k"
    fill(where, {f"images/{photo['filename']}": jpeg() for photo in PHOTOS})
    fill(where, {"images/999.jpg": jpeg(), "dataset_flickr30k.json": karpathy(PHOTOS, "flickr30k")})
    monkeypatch.setattr(flickr30k, "COUNTS", {"train": (2, 10), "val": (1, 5), "test": (1, 5)})
    return where


def prepare_flickr(where, **config):
    flickr30k.main(flickr30k.Config(images=str(where / "images"), out=str(where),
                                    karpathy=str(where / "dataset_flickr30k.json"), **config))


def test_flickr30k_has_five_captions_an_image_and_the_photos_number_as_id(flickr):
    prepare_flickr(flickr)
    assert [item["id"] for item in lines(flickr, "train")] == [1001, 1002]
    assert lines(flickr, "test") == [{"id": 1004, "image": "images/1004.jpg",
                                      "captions": [f"Photo 1004, number {i}." for i in range(5)]}]
    assert meta(flickr)["captions"] == {"train": 10, "val": 5, "test": 5}
    assert tasks.load_split(flickr, "val")[0]["image"] == flickr / "images/1003.jpg"


def test_flickr30k_counts_are_asserted_unless_partial(flickr, monkeypatch):
    monkeypatch.undo()
    assert sum(n for n, _ in flickr30k.COUNTS.values()) == 31_014
    assert all(texts == 5 * n for n, texts in flickr30k.COUNTS.values())
    fails(lambda: prepare_flickr(flickr), "train has 2 images with 10 captions instead of 29,000", "--partial")
    prepare_flickr(flickr, partial=True)


def test_missing_flickr30k_images_name_the_form_and_the_place(flickr):
    (flickr / "images/1003.jpg").unlink()
    fails(lambda: prepare_flickr(flickr), flickr / "images/1003.jpg", "the first of 1", flickr30k.FORM,
          flickr30k.COPY, "--images", "--partial")
    prepare_flickr(flickr, partial=True, check=True)
    assert skipped(flickr, "missing images") == ["1003.jpg"]
    (flickr / "dataset_flickr30k.json").write_text(karpathy(dataset="coco"))
    fails(lambda: prepare_flickr(flickr), "describes the dataset coco", "dataset_flickr30k.json")


def test_flickr30k_captions_are_downloaded(flickr, monkeypatch, site, capsys):
    text = (flickr / "dataset_flickr30k.json").read_text()
    (flickr / "dataset_flickr30k.json").unlink()
    fails(lambda: prepare_flickr(flickr), common.KARPATHY["urls"], "dataset_flickr30k.json", "--download")
    monkeypatch.setattr(flickr30k, "KARPATHY", site.put("captions.zip", zipped({"dataset_flickr30k.json": text})))
    prepare_flickr(flickr, download=True)
    assert f"{flickr / 'caption_datasets.zip'} is unpacked and may be deleted\n" in capsys.readouterr().out
    (flickr / "caption_datasets.zip").unlink()
    prepare_flickr(flickr, download=True)
    assert site.asked == ["captions.zip"]


# ---------------------------------------------------------------------------- nocaps

DOMAINS = ["in-domain", "near-domain", "out-domain"]


def nocaps_json(names, url="http://127.0.0.1:9"):
    """nocaps_val_4500_captions.json for images of these names, two captions each."""
    return {"images": [{"id": i, "file_name": name, "open_images_id": name[:-4], "width": 32, "height": 32,
                        "coco_url": f"{url}/{urllib.parse.quote(name)}", "domain": DOMAINS[i % 3]}
                       for i, name in enumerate(names)],
            "annotations": [{"id": 10 * i + k, "image_id": i, "caption": text} for i in range(len(names))
                            for k, text in enumerate((f"Thing {i}. ", "A thing."))]}


@pytest.fixture
def novel(tmp_path, monkeypatch):
    """nocaps with four images."""
    names = [f"000{i}.jpg" for i in range(4)]
    fill(tmp_path / "nocaps", {f"val/{name}": jpeg() for name in names})
    monkeypatch.setattr(nocaps, "COUNTS", {"val": (4, 8)})
    monkeypatch.setattr(nocaps, "PAUSE", 0)
    return fill(tmp_path / "nocaps", {"nocaps_val_4500_captions.json": json.dumps(nocaps_json(names))})


def test_nocaps_is_a_val_split_whose_items_keep_their_domain(novel):
    prepared(nocaps, novel, partial=False)
    items = lines(novel, "val")
    assert items[1] == {"id": 1, "image": "val/0001.jpg", "captions": ["Thing 1.", "A thing."],
                        "domain": "near-domain"}
    assert [item["domain"] for item in items] == DOMAINS + DOMAINS[:1]
    assert meta(novel)["domains"] == {"in-domain": 2, "near-domain": 1, "out-domain": 1}
    fails(lambda: tasks.load_split(novel, "test"), "no such split; there are: val")


def test_nocaps_counts_are_asserted_unless_partial(novel, monkeypatch):
    monkeypatch.undo()
    fails(lambda: prepared(nocaps, novel, partial=False), "4 images with 8 captions instead of 4,500 with 45,000")
    (novel / "val/0002.jpg").unlink()
    prepared(nocaps, novel)
    assert meta(novel)["images"] == {"val": 3} and meta(novel)["domains"]["out-domain"] == 0


@pytest.mark.parametrize("change, words", [
    (lambda d: d.pop("annotations"), ["holds no captions", nocaps.URL]),
    (lambda d: d["images"][0].pop("domain"), ["no 'domain'", nocaps.URL]),
    (lambda d: d["images"][0].update(domain="overall"), ["of the domain 'overall'"]),
    (lambda d: d["images"][0].update(file_name="../../a.jpg"), ["another form"]),
    (lambda d: d["annotations"][0].update(image_id=77), ["another form", "77"]),
    (lambda d: d["annotations"][0].update(caption=None), ["another form"]),
])
def test_a_wrong_nocaps_file_is_one_line(novel, change, words):
    data = nocaps_json(["0000.jpg"])
    change(data)
    fill(novel, {"nocaps_val_4500_captions.json": json.dumps(data)})
    fails(lambda: prepared(nocaps, novel), novel / "nocaps_val_4500_captions.json", *words)


def test_nocaps_images_are_fetched_one_by_one_and_only_once(novel, site, monkeypatch, capsys):
    """One is there, one answers at the third attempt, one is gone, one is a login page, one cut off."""
    names = ["0000.jpg", "flaky.jpg", "gone.jpg", "login.jpg", "cut.jpg", "a b.jpg"]
    for name, content in (("flaky.jpg", jpeg()), ("login.jpg", b"<html>"), ("cut.jpg", jpeg()[:-300]),
                          ("a b.jpg", png(mode="P"))):
        site.put(name, content)
    site.failures["flaky.jpg"] = [500, 503]
    (novel / "nocaps_val_4500_captions.json").unlink()
    text = json.dumps(nocaps_json(names, site.url("")[:-1])).encode()
    monkeypatch.setattr(nocaps, "URL", site.put("nocaps.json", text)["urls"])
    monkeypatch.setattr(nocaps, "COUNTS", {"val": (6, 12)})
    fails(lambda: prepared(nocaps, novel, download=True, partial=False), novel / "val/gone.jpg",
          "the first of 3", "--download", "--partial")
    captured = capsys.readouterr()
    assert "3 images could not be fetched: val/gone.jpg (HTTP 404 File not found)" in captured.out
    assert "fetching images: 5 of 5, 0 s left" in captured.err
    assert {name: site.asked.count(name.replace(" ", "%20")) for name in names} == {
        "0000.jpg": 0, "flaky.jpg": 3, "gone.jpg": 1, "login.jpg": 3, "cut.jpg": 3, "a b.jpg": 1}
    assert sorted(path.name for path in (novel / "val").iterdir()) == [
        "0000.jpg", "0001.jpg", "0002.jpg", "0003.jpg", "a b.jpg", "flaky.jpg"]

    site.asked.clear()
    site.put("cut.jpg", jpeg())
    prepared(nocaps, novel, download=True)
    assert set(site.asked) == {"gone.jpg", "login.jpg", "cut.jpg"}
    assert meta(novel)["images"] == {"val": 4}


def test_nocaps_without_a_network_stops_after_twenty(novel, site):
    names = [f"{i}.jpg" for i in range(100)]
    fill(novel, {"nocaps_val_4500_captions.json": json.dumps(nocaps_json(names, site.url("")[:-1]))})
    fails(lambda: prepared(nocaps, novel, download=True, threads=2), "none of the first 20 images", "HTTP 404")
    assert len(site.asked) < 50


def test_a_full_disk_ends_the_fetching_of_images(novel, site, monkeypatch):
    site.put("a.jpg", jpeg())
    fill(novel, {"nocaps_val_4500_captions.json": json.dumps(nocaps_json(["a.jpg"], site.url("")[:-1]))})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    fails(lambda: prepared(nocaps, novel, download=True), novel / "val/a.jpg", "No space left on device")


# ---------------------------------------------------------------------------- Visual Genome


def genome_json():
    """image_data.json and region_descriptions.json. By hand:

    id    folder      coco_id  flickr_id
    1     VG_100K_2                         train
    2     VG_100K     11                    train: COCO's, and Karpathy's train
    3     VG_100K     12                    out: Karpathy's restval is trained on, but 12 is val
    4     VG_100K     13                    out: test
    5     VG_100K_2   14       1003         out: in val of Flickr30k
    6     VG_100K_2            1001         train: in train of Flickr30k
    200   VG_100K_2                         val: divisible by 100
    7     VG_100K     15                    train: restval; all its phrases are empty
    """
    rows = [(1, 2, None, None), (2, 1, 11, None), (3, 1, 12, None), (4, 1, 13, None), (5, 2, 14, 1003),
            (6, 2, None, 1001), (200, 2, None, None), (7, 1, 15, None)]
    phrases = {1: ["the clock is green", "The clock is green.", "a  red\ncar ", "the clock is green",
                   "\ufeffa car", "caf\u00e9", ACCENT, " "], 7: ["", "\u200b"]}
    address = "https://cs.stanford.edu/people/rak248/{}/{}.jpg"
    return ([{"image_id": i, "url": address.format("VG_100K_2" if f == 2 else "VG_100K", i), "width": 32,
              "height": 32, "coco_id": coco, "flickr_id": flickr} for i, f, coco, flickr in rows],
            [{"id": i, "regions": [{"region_id": 100 * i + k, "image_id": i, "x": 1, "y": 2, "width": 3,
                                    "height": 4, "phrase": phrase}
                                   for k, phrase in enumerate(phrases.get(i, [f"thing {i}"]))]} for i, *_ in rows])


def genome_files():
    images, regions = genome_json()
    coco = [entry(n, split, ["A."]) for n, split in ((11, "train"), (12, "val"), (13, "test"), (14, "train"),
                                                     (15, "restval"))]
    return {"image_data.json": json.dumps(images), "region_descriptions.json": json.dumps(regions),
            "dataset_coco.json": karpathy(coco), "dataset_flickr30k.json": karpathy(PHOTOS, "flickr30k"),
            **{"/".join(image["url"].split("/")[-2:]): jpeg() for image in images}}


@pytest.fixture
def genome(tmp_path, monkeypatch):
    monkeypatch.setattr(visual_genome, "COUNTS", dict(zip(visual_genome.COUNTS, (8, 2, 2))))
    return fill(tmp_path / "visual_genome", genome_files())


def test_no_image_of_karpathys_val_and_test_is_trained_on(genome, capsys):
    prepared(visual_genome, genome, partial=False)
    assert [item["id"] for item in lines(genome, "train")] == [1, 2, 6]
    assert [item["id"] for item in lines(genome, "val")] == [200]
    assert skipped(genome, "images in Karpathy's val and test") == ["VG_100K/3.jpg", "VG_100K/4.jpg",
                                                                    "VG_100K_2/5.jpg"]
    assert skipped(genome, "images without captions") == ["VG_100K/7.jpg"]
    assert ("left out: 3 images in Karpathy's val and test: VG_100K/3.jpg, VG_100K/4.jpg, VG_100K_2/5.jpg\n"
            in capsys.readouterr().out)


def test_the_phrases_of_an_image_are_cleaned_and_different(genome):
    prepared(visual_genome, genome)
    assert lines(genome, "train")[0] == {
        "id": 1, "image": "VG_100K_2/1.jpg", "captions": ["the clock is green", "a red car", "a car", "caf\u00e9"]}
    assert skipped(genome, "repeated phrases") == ["VG_100K_2/1.jpg"] * 3 + ["VG_100K/7.jpg"]
    assert all(item["image"].is_file() for item in tasks.load_split(genome, "train"))


def test_visual_genome_counts_are_asserted_unless_partial(genome, monkeypatch):
    monkeypatch.undo()
    fails(lambda: prepared(visual_genome, genome, partial=False), "8 images instead of 108,077", "2 images instead of 10,000", "--partial")
    prepared(visual_genome, genome)


def test_visual_genome_needs_karpathys_files(genome):
    """Without them test images would be trained on, and nobody would notice."""
    fill(genome, {"dataset_coco.json": karpathy([entry(12, "val", ["A."])])})
    fails(lambda: prepared(visual_genome, genome, partial=False), "1 images instead of 2 in val and test of dataset_coco")
    (genome / "dataset_flickr30k.json").unlink()
    fails(lambda: prepared(visual_genome, genome), genome / "dataset_flickr30k.json", common.KARPATHY["urls"])


@pytest.mark.parametrize("file, change, words", [
    ("region_descriptions.json", lambda d: d.append({"id": 77, "regions": []}), ["another form", "77"]),
    ("region_descriptions.json", lambda d: d[0].pop("regions"), ["another form", "regions"]),
    ("region_descriptions.json", lambda d: d[0].update(regions=[{"x": 1}]), ["another form"]),
    ("region_descriptions.json", lambda d: d[0].update(regions=[{"phrase": 3}]), ["another form"]),
    ("image_data.json", lambda d: d[0].pop("coco_id"), ["another form", "coco_id"]),
    ("image_data.json", lambda d: d[0].update(url="https://a/../b.jpg"), ["another form"]),
])
def test_a_wrong_visual_genome_file_is_one_line(genome, file, change, words):
    data = json.loads((genome / file).read_text())
    change(data)
    (genome / file).write_text(json.dumps(data))
    fails(lambda: prepared(visual_genome, genome), file, *words)
    for text in ("[{", "{}"):
        (genome / file).write_text(text)
        fails(lambda: prepared(visual_genome, genome), genome / file, visual_genome.TEXTS[file]["urls"])
    (genome / file).unlink()
    fails(lambda: prepared(visual_genome, genome), genome / file, "no such file", "--download")


def test_visual_genome_is_downloaded_but_for_the_images_left_out(tmp_path, site, monkeypatch, capsys):
    files = genome_files()
    assert set(visual_genome.IMAGES) == {name.split("/")[0] for name in files if "/" in name}
    monkeypatch.setattr(visual_genome, "COUNTS", dict(zip(visual_genome.COUNTS, (8, 2, 2))))
    monkeypatch.setattr(visual_genome, "KARPATHY", site.put("caption_datasets.zip", zipped(
        {name: files[name] for name in visual_genome.HELD_OUT})))
    monkeypatch.setattr(visual_genome, "TEXTS", {
        name: site.put(f"{name}.zip", zipped({name: files[name]})) for name in visual_genome.TEXTS})
    monkeypatch.setattr(visual_genome, "IMAGES", {
        inside: site.put(zip_name, zipped({k: v for k, v in files.items() if k.startswith(f"{inside}/")}))
        for inside, zip_name in (("VG_100K", "images.zip"), ("VG_100K_2", "images2.zip"))})
    where = tmp_path / "vg"
    prepared(visual_genome, where, download=True, partial=False)
    assert len(site.asked) == 5
    assert [item["id"] for item in lines(where, "train")] == [1, 2, 6]
    assert not (where / "VG_100K/3.jpg").exists()
    assert "may be deleted" in capsys.readouterr().out
    (where / "VG_100K_2/1.jpg").unlink()
    for path in where.glob("*.zip"):
        path.unlink()
    prepared(visual_genome, where, download=True, partial=False)
    assert site.asked[5:] == ["images2.zip"]


# ---------------------------------------------------------------------------- your own photos


def photos(where, **config):
    """Prepares a folder of photos."""
    folder.main(folder.Config(folder=[str(where)], **config))


def captions_of(where):
    """{id: captions} of train and val."""
    return {item["id"]: item["captions"] for split in ("train", "val") for item in lines(where, split)}


@pytest.fixture
def album(tmp_path):
    """Six photos, some of them below, in a path with a space."""
    names = ("dog.jpg", "garden/red car.jpg", "garden/\u6c34.jpg", "x.JPG", f"{ACCENT}.jpg", "last.png")
    return fill(tmp_path / "my photos", {name: jpeg(seed=i) for i, name in enumerate(names)})


def test_a_list_with_tabs_gives_the_captions(album, capsys):
    """Several lines an image; names from Windows, from another computer, with either form of accent."""
    fill(album, {"captions.tsv": "\ufeffdog.jpg\tA dog.\r\n./dog.jpg\ta dog\r\ndog.jpg\ta   brown\tdog\r\n\r\n"
                                 "garden\\red car.jpg\ta car\nC:\\Users\\me\\photos\\garden\\\u6c34.jpg\twater\n"
                                 f"{album / 'x.JPG'}\tan x \U0001f600\ncaf\u00e9.jpg\tin a {ACCENT}\n"
                                 "gone.jpg\tnobody\nlast.png\t \u200b\n"})
    photos(album)
    assert captions_of(album) == {
        "dog.jpg": ["A dog.", "a brown dog"], "garden/red car.jpg": ["a car"], "garden/\u6c34.jpg": ["water"],
        "x.JPG": ["an x \U0001f600"], f"{ACCENT}.jpg": ["in a caf\u00e9"]}
    for split in ("train", "val"):
        for item in tasks.load_split(tasks.find_dataset(str(album)), split):
            assert item["image"].is_file()
    assert skipped(album, "missing images") == ["gone.jpg"]
    assert skipped(album, "repeated captions") == ["dog.jpg"]
    assert skipped(album, "images without captions") == ["last.png"]
    out = capsys.readouterr().out
    assert "left out: 1 missing images: gone.jpg\n" in out
    assert out.splitlines()[-1] == f'next: python train.py --dataset "{album}"'


def test_a_list_of_json_lines_gives_the_captions(album):
    fill(album, {"list.jsonl": '{"image": "dog.jpg", "caption": "a dog"}\n'
                               '{"image": "dog.jpg", "captions": ["a pet", "\\ud83d a dog"], "id": 3}\n'
                               '{"image": "x.JPG", "captions": []}\n'
                               '{"image": "last.png", "caption": "the last"}\n'})
    photos(album, captions=str(album / "list.jsonl"))
    assert captions_of(album) == {"dog.jpg": ["a dog", "a pet"], "last.png": ["the last"]}
    assert skipped(album, "images that no line names") == [f"{ACCENT}.jpg", "garden/red car.jpg",
                                                           "garden/\u6c34.jpg"]


def test_images_outside_of_the_folder_are_found_by_their_path(album, tmp_path):
    fill(tmp_path, {"dog.jpg": jpeg(), "next door/cat.jpg": jpeg()})
    fill(album, {"captions.tsv": f"{tmp_path / 'dog.jpg'}\tanother dog\n../next door/cat.jpg\ta cat\nx.JPG\tx\n"})
    photos(album)
    items = {item["captions"][0]: item["image"] for split in ("train", "val")
             for item in tasks.load_split(album, split)}
    assert items["another dog"].samefile(tmp_path / "dog.jpg")
    assert items["a cat"].samefile(tmp_path / "next door/cat.jpg")


@pytest.mark.parametrize("name, caption", [
    ("a_red_car_2.jpg", "a red car"), ("a red car (2).jpg", "a red car"), ("3-dogs.png", "3 dogs"),
    ("garden/a.dog--asleep__001.jpeg", "a dog asleep"), (f"{ACCENT}.jpg", "caf\u00e9"),
    ("IMG_20240131_120000.jpg", ""), ("DSC01234.JPG", ""), ("0001.jpg", ""), ("\u6c34_1.jpg", "\u6c34")])
def test_a_file_name_becomes_a_caption(name, caption):
    assert folder.from_name(name) == caption


def test_without_a_list_the_file_names_are_captions(tmp_path, capsys):
    fill(tmp_path, {"a_red_car_1.jpg": jpeg(), "a_red_car_2.jpg": jpeg(), "a blue car.jpg": jpeg(),
                    "IMG_1.jpg": jpeg(), ".thumbnails/a cat.jpg": jpeg(), "notes.txt": b"x",
                    "._a dog.jpg": b"left by a Mac"})
    photos(tmp_path)
    assert captions_of(tmp_path) == {"a_red_car_1.jpg": ["a red car"], "a_red_car_2.jpg": ["a red car"],
                                     "a blue car.jpg": ["a blue car"]}
    assert skipped(tmp_path, "images without captions") == ["IMG_1.jpg"]
    assert skipped(tmp_path, "damaged images") == []
    assert "the names of the files become captions" in capsys.readouterr().out


def test_odd_images_are_kept_and_broken_ones_reported(tmp_path, capsys, recwarn):
    fill(tmp_path, SOUND | BROKEN)
    photos(tmp_path)
    assert set(captions_of(tmp_path)) == set(SOUND)
    assert {text.split(" (")[0] for text in skipped(tmp_path, "damaged images")} == set(BROKEN)
    out = capsys.readouterr().out
    assert "left out: 7 damaged images: bomb.png (Image size (200000000 pixels) exceeds limit" in out
    assert ", ...\n" in out
    assert not recwarn.list


def test_a_photo_stays_in_its_split_when_others_join(tmp_path):
    assert folder.place("dog.jpg") == pytest.approx(0.861537, abs=1e-6)  # on every computer, in every year
    names = [f"thing {i:03} a.jpg" for i in range(200)]
    fill(tmp_path, {name: png((1, 1)) for name in names[:100]})
    photos(tmp_path, val=0.2, test=0.1)
    before = {split: {item["id"] for item in lines(tmp_path, split)} for split in ("train", "val", "test")}
    fill(tmp_path, {name: png((1, 1)) for name in names[100:]})
    photos(tmp_path, val=0.2, test=0.1)
    after = {split: {item["id"] for item in lines(tmp_path, split)} for split in ("train", "val", "test")}
    assert all(before[split] < after[split] for split in before)
    assert [len(ids) for ids in after.values()] == pytest.approx([140, 40, 20], abs=15)


def test_a_small_folder_has_one_image_to_validate_on(album):
    photos(album)
    assert len(lines(album, "train")) == 5 and len(lines(album, "val")) == 1
    photos(album, test=0.01)
    assert len(lines(album, "test")) == 1
    photos(album)
    assert not (album / "test.jsonl").exists()  # it would hold what is in train now


def test_splits_that_somebody_else_wrote_are_not_overwritten(album, tmp_path):
    fill(album, {"train.jsonl": "precious"})
    fails(lambda: photos(album), album / "train.jsonl", "not written by this script", "--out")
    fill(album, {"meta.json": '{"source": {"images": "elsewhere"}}'})
    fails(lambda: photos(album), album / "train.jsonl")
    assert (album / "train.jsonl").read_text() == "precious"
    photos(album, out=str(tmp_path / "out"))
    assert all(item["image"].is_file() for item in tasks.load_split(tmp_path / "out", "train"))
    photos(album, out=str(tmp_path / "out"))  # its own result may be replaced


@pytest.mark.parametrize("files, config, words", [
    ({"captions.tsv": "dog.jpg a dog\n"}, {}, ["captions.tsv line 1", "no tab"]),
    ({"captions.tsv": "dog.jpg\ta dog\n".encode("utf-16")}, {}, ["not written in UTF-8"]),
    ({"captions.tsv": "a caption\thttp://a/b.jpg\n"}, {}, ["none of the 1 images is there", "6 others"]),
    ({"captions.jsonl": '\n{"image": "dog.jpg"'}, {}, ["captions.jsonl line 2", "not of the form"]),
    ({"captions.jsonl": "3"}, {}, ["line 1", "not of the form"]),
    ({"captions.jsonl": '{"image": "dog.jpg"}'}, {}, ["line 1", "not of the form"]),
    ({"captions.jsonl": '{"image": "dog.jpg", "captions": "a dog"}'}, {}, ["line 1", '"captions": ["a dog"']),
    ({"captions.jsonl": '{"image": "dog.jpg", "caption": null}'}, {}, ["line 1"]),
    ({"captions.jsonl": "", "captions.tsv": ""}, {}, ["captions.jsonl and captions.tsv", "--captions"]),
    ({"captions.tsv": "dog.jpg\ta dog\n"}, {}, ["1 images with captions are too few"]),
    ({"captions.tsv": "dog.jpg\t\n"}, {}, ["no image is left", "1 images without captions"]),
    ({"captions.tsv": ""}, {}, ["none of the 0 images"]),
    ({}, {"captions": "no/where.tsv"}, ["where.tsv", "cannot be read"]),
    ({}, {"val": 0.0}, ["--val 0.0", "0.05"]),
    ({}, {"val": 0.6, "test": 0.4}, ["--test 0.4"]),
])
def test_what_cannot_be_prepared_is_one_line(album, files, config, words):
    fill(album, files)
    fails(lambda: photos(album, **config), *words)
    assert not (album / "train.jsonl").exists()


def test_a_folder_without_photos_is_one_line(tmp_path):
    fails(lambda: photos(tmp_path / "none"), tmp_path / "none", "no such folder")
    fails(lambda: photos(tmp_path), tmp_path, "none of the 0 images is there")
    fails(lambda: folder.main(folder.Config()), "python data/folder/prepare.py path/to/photos")


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
    assert "left out: 1 damaged images: 'caf\\udce9 broken.jpg (not an image)'\n" in done.stdout
    items = [item for split in ("train", "val") for item in tasks.load_split(tmp_path, split)]
    assert len(items) == 3 and all(item["image"].is_file() for item in items)


# ---------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", ["flickr30k", "nocaps", "visual_genome", "folder"])
def test_every_script_ends_in_one_line_and_is_found_by_name(name, tmp_path, monkeypatch):
    """As a user calls it, from another folder; and the line that train.py answers."""
    command = [sys.executable, str(ROOT / f"data/{name}/prepare.py")]
    option = {"flickr30k": ["--karpathy"], "folder": []}.get(name, ["--folder"])
    done = subprocess.run([*command, *option, "no/where"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no") and done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    if not tasks.is_prepared(ROOT / "data" / name):
        fails(lambda: tasks.find_dataset(name), f"run python data/{name}/prepare.py", tasks.RUN_WITH[name])
    help = subprocess.run([*command, "--help"], capture_output=True, text=True).stdout
    assert "--check" in help and "--out" in help
