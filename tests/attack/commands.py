"""Command lines of every command, most of them wrong: odd values for every flag, missing flags,
files and folders, names that a terminal or a disk cannot take."""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import shutil
import tempfile
import typing
from pathlib import Path

import numpy as np
from PIL import Image

from data.recipes import PRESETS, RECIPES
from lib import cli
from lib.settings import read_command
from prompts import DVP, Prefix
from tests.attack.watch import ROOT, is_clear

CASES = 1000
NUMBERS = (*"-1 0 1 2 3 nan inf -inf x 1.5 1e3 1_0 0x10".split(), "", " 5", "1e-320", "1e308",
           "-1e-9", "-1000", "1000", "9" * 20, "4294967296", "\u0663", "9" * 5000, "-" + "9" * 30)
LONG = "steps epochs search_epochs seeds threads images search compile".split()  # take only long
TEXTS = (
    "", " ", "\udcff\udcfe", "x" * 300, "x" * 5000, "a\nb", "\x1b[31m", "\u00e9\U0001f600",
    "two words.png", *". .. x no/such/place /proc/x fifo full ~nobody/x gpt2 ViT-B/32 {} %s - -- "
    "a.png a.json b.PNG cpu cpu:x cuda:9 meta mps none ituning ituning.py dvp prefix os "
    "json.decoder a.b .x train mine broken coco vqa2 val novel ../train red all 16 "
    "http://127.0.0.1:1/x tiny-gpt2 tiny-clip out/run out/run/best.safetensors "
    "captions refer star.png boxes.json results.json".split())
WORDS = (*"--nope --lrr=3 -x -- - --steps --help --no-steps --RESUME --out= @x --= --no- shapes "
         "--learning_rate=3".split(), "\udcff", "\x1b]0;x\x07")
OWN = ("from model import Method as Base\nclass Method(Base):\n    needs_image = False\n"
       "    class Config:\n        strength = 3\n")
SMALL = "--lm tiny-gpt2 --clip tiny-clip --steps 2 --batch 3 --rows 2 --workers 0 --eval_images 2"
TRAIN = f"--dataset captions {SMALL} --out new"
ASK = "--ckpt out/run --max_new_tokens 3"
POINT = "--ckpt out/run --dataset refer --images 2"
# command -> (module, command lines that are right, or nearly). Those of data/ lack their files.
COMMANDS = {
    "train": (TRAIN, TRAIN, f"{TRAIN} --method dvp", f"{TRAIN} --method prefix --mapper_layers 1",
              f"--dataset captions {SMALL}", "--resume --out out/run --steps 3",
              f"{SMALL} --dataset captions --resume --steps 3", f"{TRAIN} --init_from out/run"),
    "sample": (f"star.png {ASK}", f"star.png {ASK} --temperature 1", f"star.png {ASK} --attn a.png",
               "star.png --ckpt out/run --ground star --boxes boxes.json", ""),
    "evaluate.__main__": (f"{ASK} --dataset captions --beam 1", "--ckpt out/run --batch 2",
                          "--captions results.json --dataset captions", ""),
    "evaluate.pointing": (POINT, POINT, "--ckpt out/run --search",
                          f"{POINT} --shots 1 --seeds 1 --steps 2"),
    "weights.__main__": ("", "tiny-gpt2", "out/run/best.safetensors"),
    "gpt2": ("red --lm tiny-gpt2 --new 3",),
    **{f"data.{name}.prepare": ("--folder photos",) for name in (
        "gqa", "nocaps", "scienceqa", "snli_ve", "visual_genome", "vqa2")},
    "data.refcoco.prepare": ("refcoco --folder photos",),
    "data.coco.prepare": ("--images photos --out o --partial",),
    "data.flickr30k.prepare": ("--images photos --karpathy results.json --out o",),
    "data.folder.prepare": ("photos", "photos --out o")}
OFTEN = ["train"] * 8 + ["sample"] * 5 + ["evaluate.__main__", "evaluate.pointing"] * 4 + ["gpt2"]


@functools.cache
def modules():
    """The commands, imported; without a network."""
    os.environ |= {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    return {name: importlib.import_module(name) for name in COMMANDS}


def call_main(name, argv):
    """What the command does, in this process."""
    module = modules()[name]
    module.main(*(read_command(module.Config, RECIPES, PRESETS, argv) if name == "train" else
                  cli.parse(module.Config, argv=argv)))


def write_lines(folder, **more):
    """A dataset of three items in every split, with more in each."""
    folder.mkdir()
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    text = "".join(json.dumps({"id": n, "image": f"{n}.png", **more}) + "\n" for n in range(3))
    for split in ("train", "val", "test"):
        (folder / f"{split}.jsonl").write_text(text)


@functools.cache
def ground():
    """{path: bytes} of what a command line finds in its working folder, a trained run among it."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for part in ("tiny-gpt2", "tiny-clip"):
            shutil.copytree(ROOT / "data/shapes" / part, part)
        write_lines(Path("captions"), captions=["a red star", "a star"])
        write_lines(Path("refer"), expression="the star", box=[1, 2, 9, 9],
                    proposals=[[1, 2, 9, 9], [20, 20, 12, 9]])
        Path("photos").mkdir()
        for path in ("star.png", "two words.png", "photos/a red circle.png", "photos/IMG_1.png"):
            shutil.copy("captions/0.png", path)
        Path("boxes.json").write_text("[[1, 2, 10, 10], [20, 20, 12, 9]]")
        Path("results.json").write_text(json.dumps([{"image_id": n, "caption": "a"}
                                                    for n in range(3)]))
        Path("mine.py").write_text(OWN)
        Path("broken.py").write_text("def :")
        call_main("train", f"--dataset captions {SMALL} --out out/run".split())
        found = {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}
        os.chdir(before)
    return found


def odd(rng, field, kind):
    """The words of one flag with a value that is often wrong."""
    name, meta = f"--{field.name}", field.metadata
    if kind is bool and field.name not in LONG:
        return [rng.choice((name, f"--no-{field.name}"))]
    if kind is list:
        return [name, *rng.choices(NUMBERS if field.name == "shots" else TEXTS, k=rng.randrange(3))]
    value = rng.choice(TEXTS if kind is str else NUMBERS[:14] if field.name in LONG else NUMBERS)
    if meta.get("choices") and rng.random() < 0.8:
        value = rng.choice(meta["choices"])
    value = "0" if field.name == "workers" else value  # a child of multiprocessing has none
    return [f"{name}={value}"] if rng.random() < 0.5 else [name, value]


def case(rng, folder):
    name = rng.choice(OFTEN + list(COMMANDS))
    argv, changed = rng.choice(COMMANDS[name]).split(), []
    configs = [modules()[name].Config, *([DVP.Config, Prefix.Config] * (name == "train"))]
    fields = [(f, typing.get_type_hints(c)[f.name]) for c in configs[:rng.choice((1, 1, 3))]
              for f in dataclasses.fields(c)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        field, kind = rng.choice(fields)
        if rng.random() < 0.06:
            changed.append(rng.choice(WORDS))
        elif field.metadata.get("positional"):
            argv = rng.choices(TEXTS, k=rng.randrange(3)) + argv[1:]
        else:
            changed += odd(rng, field, kind)
    here, out, err = folder / "here", io.BytesIO(), io.StringIO()
    for path, data in ground().items():
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_bytes(data)
    os.mkfifo(here / "fifo")
    reader = os.open(here / "fifo", os.O_RDWR | os.O_NONBLOCK)  # who writes to it need not wait
    (here / "full").symlink_to("/dev/full")
    printed = io.TextIOWrapper(out, rng.choice(("utf-8", "ascii")))

    def call():
        os.chdir(here)
        code = 0
        try:
            err.reconfigure = lambda **how: None
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(err):
                cli.run(lambda: call_main(name, argv + changed))
        except SystemExit as e:
            code = e.code
        finally:
            os.close(reader)
        assert out.getvalue().decode().replace("\n", "").isprintable(), "codes for the terminal"
        if code:  # what is said last is all that a user reads
            said = code if isinstance(code, str) else err.getvalue().strip() or str(code)
            assert is_clear(said), f"not one line: {said[-200:]!r}"
            raise cli.UserError(said)

    return f"{name} {' '.join(word[:40] for word in [*argv, '+', *changed])}"[:200], call


case.patience = 100  # seconds on the clock: the first case trains the run that the others find
