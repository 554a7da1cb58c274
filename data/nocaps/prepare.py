"""Prepares nocaps: captions of things that COCO's captions never name. To evaluate, not to train.

    python data/nocaps/prepare.py --download           # 4,500 images of Open Images, one by one
    python data/nocaps/prepare.py --folder path/to/nocaps

The folder holds nocaps_val_4500_captions.json and val/ with the images. Written are val.jsonl, one
line an image, and meta.json with the counts:

    {"id": 0, "image": "val/0013ea2087020901.jpg", "captions": ["A baby stands.", "..."],
     "domain": "in-domain"}

    split         images  captions
    val            4,500    45,000

The domain tells whether the image shows things of COCO only (in-domain), both kinds (near-domain)
or new things only (out-domain). There is no train and no test here: the captions of nocaps' test
are secret, and papers report val: `python -m evaluate --dataset nocaps --split val`.
"""

import http.client
import io
import sys
import time
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the project's root, for the imports below

from data.archives import escapes
from data.common import assert_counts, clean, keep_usable, present, published_form, write_captions
from lib.cli import UserError, opt, parse, printable, run
from lib.files import progress, read_json, replacing, user_path
from lib.images import check_image
from weights.download import download

URL = "https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json"
COUNTS = {"val": (4_500, 45_000)}
DOMAINS = ("in-domain", "near-domain", "out-domain")
PAUSE = 1  # seconds before a second attempt
LARGEST = 100_000_000  # bytes of an image; those of Open Images are far smaller


@dataclass
class Config:
    folder: str = opt("", "folder with nocaps_val_4500_captions.json and val/; empty: data/nocaps")
    out: str = opt("", "folder for the result; empty: data/nocaps")
    download: bool = opt(False, "fetch what is missing into that folder; run again to go on")
    threads: int = opt(16, "images fetched at a time")
    partial: bool = opt(False, "a part of nocaps will do: leave out images that are missing")
    check: bool = opt(False, "decode every image, a minute; leave out those that are damaged")


def read(path):
    """({"val": items}, {image: its address}) from the JSON, which has COCO's form:

    {"images": [{"id": 0, "file_name": "0013.jpg", "coco_url": "https://...",
                 "domain": "near-domain", ...}],
     "annotations": [{"image_id": 0, "caption": "A baby stands.", ...}]}
    """
    hint = f"fetch {URL} and put it there, or run with --download"
    data = read_json(path, hint)
    if isinstance(data, dict) and "images" in data and "annotations" not in data:
        raise UserError(f"{path}: holds no captions (nocaps_val_image_info.json does not); {hint}")
    items, urls = {}, {}
    with published_form(path, "nocaps'", f"delete it, then {hint}"):
        for image in data["images"]:
            name = f"val/{image['file_name']}"
            items[image["id"]] = {"id": image["id"], "image": name, "captions": [],
                                  "domain": image["domain"]}
            urls[name] = image["coco_url"]
            if image["domain"] not in DOMAINS or escapes(name):
                raise ValueError(f"{name} of the domain {image['domain']!r}")
        for annotation in data["annotations"]:
            # A caption that two people wrote stays in twice: it counts twice as a reference.
            items[annotation["image_id"]]["captions"].append(clean(annotation["caption"]))
    return {"val": list(items.values())}, urls


def fetch_image(job):
    """Fetches (path, url), if it is an image. Returns in words what went wrong, or ""."""
    path, url = job
    for attempt in range(3):
        time.sleep(attempt * PAUSE)
        try:
            # Some servers turn Python's own name away.
            request = urllib.request.Request(url, headers={"User-Agent": "seegpt"})
            with urllib.request.urlopen(request, timeout=30) as reply:
                content = reply.read(LARGEST)
            # pitfall: a login page or a connection that broke off would end up as a .jpg, too.
            problem = check_image(io.BytesIO(content))
            if not problem:
                with replacing(path) as f:
                    f.write(content)
                return ""
        except urllib.error.HTTPError as e:
            problem = f"HTTP {e.code} {e.reason}"
            if e.code in (401, 403, 404, 410):  # asking again will not help
                break
        except (OSError, http.client.HTTPException, ValueError) as e:
            problem = str(getattr(e, "reason", e)) or type(e).__name__
    return problem


def fetch_images(folder, urls, threads):
    """Fetches {image: url} into folder, several at a time; says which could not be had."""
    wrong, show = [], progress("fetching images", len(urls))
    with warnings.catch_warnings(), ThreadPool(max(1, threads)) as pool:
        warnings.simplefilter("ignore")  # of huge images; check_image says it in its own words
        jobs = [(folder / image, url) for image, url in urls.items()]
        for done, (image, problem) in enumerate(zip(urls, pool.imap(fetch_image, jobs)), 1):
            if problem:
                wrong.append(f"{printable(image)} ({problem})")
            show(done)
            if len(wrong) == done == 20:
                raise UserError(f"none of the first 20 images could be fetched: {wrong[0]}; is "
                                "there a network?")
    if wrong:
        print(f"{len(wrong):,} images could not be fetched: {', '.join(wrong[:3])}; run again to "
              "try them again")


def main(config):
    folder = user_path(config.folder or HERE)
    out = user_path(config.out or HERE)
    path = folder / "nocaps_val_4500_captions.json"
    if config.download and not path.exists():
        download(URL, path)  # no hash is published; the counts are checked below
    splits, urls = read(path)
    if not config.partial:
        assert_counts(path, splits, COUNTS)
    if config.download:
        for image in present(folder, splits):
            del urls[image]
        fetch_images(folder, urls, config.threads)
    skipped = {}
    keep_usable(splits, skipped, folder, config, "run with --download, or put Open Images' "
                f"validation images of these names into {folder / 'val'}")
    domains = {domain: sum(item["domain"] == domain for item in splits["val"])
               for domain in DOMAINS}
    write_captions(splits, skipped, folder, out, source={"captions": URL}, domains=domains)


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
