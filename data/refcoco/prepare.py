"""Prepares RefCOCO, RefCOCO+ and RefCOCOg: expressions that refer to one object in a COCO image.

    python data/refcoco/prepare.py --download       # 156 MB of expressions and boxes, of all three
    python data/refcoco/prepare.py refcoco+ refcocog --folder path/to/refer/data \\
        --images path/to/coco

The folder holds refcoco/, refcoco+/ and refcocog/, each of which holds instances.json and
refs(unc).p or, in refcocog/, refs(umd).p; the folder of images holds COCO's train2014/ (python
data/coco/prepare.py --download fetches it). For each of the three, written are
refcoco/{train,val,testA,testB}.jsonl, one line an expression, and refcoco/meta.json with the
counts; their names are then refcoco/refcoco, refcoco/refcoco+ and refcoco/refcocog:

    {"id": 0, "image": ".../coco/train2014/COCO_train2014_000000000042.jpg",
     "expression": "Left man", "box": [x, y, w, h], "proposals": [[x, y, w, h], ...]}

                 split         images  expressions
    RefCOCO      train         16,994      120,624   short, typed in a game for two
                 val            1,500       10,834
                 testA            750        5,657   people
                 testB            750        5,095   everything else
    RefCOCO+     train         16,992      120,191   the same, but without words like "left"
                 val            1,500       10,758
                 testA            750        5,726
                 testB            750        4,889
    RefCOCOg     train         21,899       80,512   long, without a game; the split of UMD
                 val            1,300        4,896
                 test           2,600        9,602

Boxes are in pixels, x and y those of the corner at the top left. The proposals are what a method
chooses from. These are all boxes that people have drawn in the image, the right one among them:
easier than with a detector's, which may miss it. Say so beside a result, or give MAttNet's
detections with --detections, as papers do; they are taken as they are. --masks adds "masks", one a
proposal, as COCO writes them: a list of polygons, or {"size": [h, w], "counts": ...}, the runs of
pixels outside and inside.

Expressions keep their capitals and full stops. pitfall: the images of val and of the tests lie in
COCO's train2014, too, so whoever trained on COCO's captions has seen them. Say that as well.
"""

import io
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import fetch_zip
from data.boxes import is_box
from data.common import assert_sizes, clean, keep_usable, leave_out, published_form, write_items
from lib.cli import UserError, opt, parse, printable, run
from lib.files import open_file, read_json, user_path

COCO = "http://images.cocodataset.org/zips/"
# The authors' server has been gone since 2022; these are the Internet Archive's copies and hashes.
COPY = ("https://web.archive.org/web/{}id_/https://bvisionweb1.cs.unc.edu/licheng/referit/data/"
        "{}.zip")
ZIPS = {
    "refcoco": {"urls": COPY.format("20220413011718", "refcoco"), "size": 53_993_993,
                "sha256": "7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0"},
    "refcoco+": {"urls": COPY.format("20220413011656", "refcoco+"), "size": 45_613_210,
                 "sha256": "5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45"},
    "refcocog": {"urls": COPY.format("20220413012904", "refcocog"), "size": 56_712_951,
                 "sha256": "3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211"}}
# pitfall: RefCOCOg has another split, refs(google).p, in which train and val share images.
SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
COUNTS = {"refcoco": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
          "refcoco+": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889},
          "refcocog": {"train": 80_512, "val": 4_896, "test": 9_602}}
MATTNET = "http://bvision.cs.unc.edu/licheng/MattNet/detections.zip"  # often out of reach
DETECTIONS = "{}_{}/res101_coco_minus_refer_notime_{}.json"  # in there: refcoco_unc/..._dets.json
LARGEST = 1_000_000_000  # bytes of a file of references; the published ones are far smaller


@dataclass
class Config:
    sets: list = opt([*SPLIT_BY], "refcoco, refcoco+, refcocog; none: all three", positional=True)
    folder: str = opt("", "folder with refcoco/, refcoco+/ and refcocog/; empty: data/refcoco")
    images: str = opt("", "folder with train2014/; empty: data/coco")
    out: str = opt("", "folder for the results, one folder each; empty: data/refcoco")
    detections: str = opt("", "MAttNet's file of detected boxes, or the folder with its "
                              "refcoco_unc/, ...; empty: the annotated boxes")
    masks: bool = opt(False, "write the proposals' masks, too, which makes the files about ten "
                             "times larger")
    download: bool = opt(False, "fetch missing expressions and boxes (156 MB; neither images nor "
                                "detections)")
    partial: bool = opt(False, "a part will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, some minutes; leave out those that are damaged")


# ------------------------------------------------------------------------ reading the references


class PlainUnpickler(pickle._Unpickler):
    """Reads lists, dictionaries, texts and numbers, of which the published files consist.

    pitfall: a pickle can name any function of any module and have it called while it is read, and
    so do what it likes with your computer. find_class looks the name up, and here it refuses to.
    pickle.Unpickler, the same in C, takes 16 bytes for every number below that of an object to
    remember, and so 3 GB where ten bytes say that it is number 200,000,000. This takes 3 seconds.
    """

    def __init__(self, path, file):
        # pitfall: Python 2 wrote bytes. ASCII, the default, fails on accents, Latin-1 garbles them.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.path = path

    def find_class(self, module, name):
        wanted = printable(f"{module}.{name}"[:80])
        raise UserError(f"{self.path}: refused, since it wants to use {wanted}, and the published "
                        "file holds nothing but lists, dictionaries, texts and numbers; delete it")


def read_refs(path, hint):
    """What a file of references holds, which nobody has looked at yet."""
    try:
        with open_file(path) as f:
            if (size := os.fstat(f.fileno()).st_size) > LARGEST:
                raise UserError(f"{path}: has {size:,} bytes, the published file far fewer; delete "
                                f"it, then {hint}")
            return PlainUnpickler(path, io.BytesIO(f.read())).load()
    except UserError:
        raise
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; {hint}") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    except Exception as e:  # a damaged pickle can raise almost anything
        why = printable(f"{type(e).__name__}: {e}")
        raise UserError(f"{path}: damaged or cut off ({why}); delete it, then {hint}") from e


def decoded(text):
    """A text that Python 2 wrote and that is not UTF-8 after all: it is Latin-1."""
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError:
        return text.encode("utf-8", "surrogateescape").decode("latin1")
    except UnicodeEncodeError:  # halves of a character, which clean takes out
        return text


# ---------------------------------------------------------------------------- boxes and masks


def as_box(box):
    """A box [x, y, w, h], if it is one; else ValueError."""
    if not is_box(box):
        raise ValueError(f"the box {str(box)[:80]}")
    return box


def as_mask(mask, size):
    """A mask of an image of that size, [h, w], if it is one; ValueError, TypeError or KeyError if
    not."""
    if isinstance(mask, dict):  # runs of pixels, column by column; a text holds them packed
        runs = mask["counts"]
        if mask["size"] != size or not isinstance(runs, str) and sum(runs) != size[0] * size[1]:
            raise ValueError(f"a mask of {mask['size']} for an image of {size}")
    elif not all(isinstance(polygon, list) for polygon in mask):
        raise ValueError("a mask that is no list of polygons")
    return mask


def gather(rows, box, mask, sizes, masks):
    """{image's id: {"proposals": [...], "masks": [...]}} of rows, one a box; box and mask are the
    keys of a row, and masks tells whether they are wanted. Rows of images not in sizes, {image's
    id: [h, w]}, are skipped: a detector may have looked at more."""
    found = {}
    for row in rows:
        if (image := row["image_id"]) in sizes:
            lists = found.setdefault(image, {"proposals": []} | ({"masks": []} if masks else {}))
            lists["proposals"].append(as_box(row[box]))
            if masks:
                lists["masks"].append(as_mask(row[mask], sizes[image]))
    return found


def read_objects(path, hint, masks):
    """({object's id: row}, {image's id: [h, w]}, what gather makes of the rows) of one file:

    {"images": [{"id": 42, "file_name": "COCO_train2014_000000000042.jpg", "height": 480,
                 "width": 640}, ...],
     "annotations": [{"id": 9, "image_id": 42, "bbox": [x, y, w, h], "category_id": 1,
                      "segmentation": [[x, y, x, y, ...], ...], "iscrowd": 0, ...}, ...], ...}
    """
    # The masks go while the file is read, if nobody wants them: they are most of it.
    dropped = () if masks else ("segmentation",)
    data = read_json(path, hint, object_hook=lambda d: {
        key: value for key, value in d.items() if key not in dropped})
    with published_form(path, "COCO's", f"delete it, then {hint}"):
        sizes = {image["id"]: [image["height"], image["width"]] for image in data["images"]}
        return ({row["id"]: row for row in data["annotations"]}, sizes,
                gather(data["annotations"], "bbox", "segmentation", sizes, masks))


def read_detections(path, sizes, masks):
    """What gather makes of MAttNet's detections; the file ..._masks.json has the masks, too:

    [{"det_id": 1, "image_id": 42, "category_id": 1, "category_name": "person", "score": 0.99,
      "box": [x, y, w, h], "rle": {"size": [h, w], "counts": "..."}}, ...]
    """
    hint = (f"MAttNet's were in {MATTNET}, and its tools/run_detect.py and run_detect_to_mask.py "
            "make them anew")
    rows = read_json(path, hint)
    with published_form(path, "MAttNet's detections", hint):
        if masks and not all("rle" in row for row in rows):
            raise UserError(f"{path}: holds boxes without masks; give the file that ends in "
                            "_masks.json, or leave out --masks")
        return gather(rows, "box", "rle", sizes, masks)


# ---------------------------------------------------------------------------- the items


def make_items(path, refs, objects, proposals, splits):
    """{split: items} of the references, without proposals where there are none for the image, from

    [{"ref_id": 0, "ann_id": 9, "image_id": 42, "category_id": 1, "split": "testA", "sent_ids": [0],
      "file_name": "COCO_train2014_000000000042_0.jpg",
      "sentences": [{"sent_id": 0, "raw": "Left man", "sent": "left man", ...}, ...]}, ...]
    """
    items = {split: [] for split in splits}
    with published_form(path, "the published", "or it belongs to another instances.json"):
        if not isinstance(refs, list):
            raise TypeError(f"{type(refs).__name__} in place of a list")
        for ref in refs:
            image, thing = ref["image_id"], objects[ref["ann_id"]]
            if thing["image_id"] != image:
                raise ValueError(f"object {thing['id']} is not in image {image}")
            # pitfall: a reference's file_name is no file; it ends in the object's number.
            name = f"train2014/COCO_train2014_{image:012d}.jpg"
            for sentence in ref["sentences"]:
                items[ref["split"]].append({
                    "id": sentence["sent_id"], "image": name,
                    "expression": clean(decoded(sentence["raw"])), "box": as_box(thing["bbox"]),
                    **proposals.get(image, {})})
    return items


def read_proposals(name, config, sizes):
    """({image's id: its detections}, the file that they are from)."""
    path = user_path(config.detections)
    if path.is_dir():
        path /= DETECTIONS.format(name, SPLIT_BY[name], "masks" if config.masks else "dets")
    return read_detections(path, sizes, config.masks), path


def prepare(name, folder, images, out, config):
    """Prepares one of the three: reads folder/name, writes out/name."""
    refs, instances = folder / name / f"refs({SPLIT_BY[name]}).p", folder / name / "instances.json"
    if config.download and not (refs.exists() and instances.exists()):
        fetch_zip(folder / f"{name}.zip", {f"{name}/{refs.name}", f"{name}/instances.json"},
                  **ZIPS[name])
    hint = f"fetch {ZIPS[name]['urls']} and unpack it in {folder}, or run with --download"
    content = read_refs(refs, hint)
    objects, sizes, proposals = read_objects(instances, hint, config.masks)
    origin, path = "annotated: easier than detected ones", instances
    if config.detections:
        proposals, path = read_proposals(name, config, sizes)
        origin = f"detected, from {path.name}"
    splits = make_items(refs, content, objects, proposals, COUNTS[name])
    if not config.partial:
        assert_sizes(refs, splits, COUNTS[name], "expressions")
    blind = list(dict.fromkeys(leave_out(splits, lambda item: "proposals" in item)))
    if blind and not config.partial:
        raise UserError(f"{path}: nothing detected in {blind[0]}, the first of {len(blind):,} "
                        f"images; give the file for {name}, or do without them: --partial")
    skipped = {"images without detections": blind,
               "empty expressions": leave_out(splits, lambda item: item["expression"])}
    keep_usable(splits, skipped, images, config,
                f"unpack {COCO}train2014.zip into {images} (python data/coco/prepare.py --download "
                "does it), or name another folder with --images")
    print(f"{name}:")
    write_items(splits, skipped, images, out / name, "refer", "expressions", proposals=origin,
                source={"images": COCO, "expressions": ZIPS[name]["urls"]})


def main(config):
    folder = user_path(config.folder or HERE)
    images = user_path(config.images or HERE.parent / "coco")
    for name in config.sets:
        if name not in SPLIT_BY:
            raise UserError(f"there is no {name}: refcoco, refcoco+ or refcocog")
    for name in config.sets:
        prepare(name, folder, images, user_path(config.out or HERE), config)


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
