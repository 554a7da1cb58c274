"""Short runs of train.py in processes of their own, and what an unbroken one would have left.

A run is a fork of this process, which has torch already: so it takes a second and not five.
"""

import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import train
from data.common import write_meta, write_split
from data.shapes import world
from data.shapes.drawing import render
from data.shapes.prepare import scene_items
from lib import cli
from lib.devices import Processes
from lib.runs import read_log
from lib.settings import read_command
from weights.reading import read

ROOT = Path(train.__file__).parent
HOME = tempfile.TemporaryDirectory(prefix="attack-runs-")
COMMON = ("--lm data/shapes/tiny-gpt2 --clip data/shapes/tiny-clip --steps 12 --batch 4 --rows 2 "
          "--lr 2e-3 --warmup 3 --eval_every 5 --eval_images 4 --log_every 2 --device cpu ")
KINDS = {"plain": "--workers 0", "workers": "--workers 2", "cache": "--cache --workers 0",
         "tuned": "--train_lm --workers 0",
         "search": "--workers 0 --method dvp --readout head --search --search_epochs 2"}
EXEC = torch.cuda.is_available()  # CUDA and autograd do not survive a fork


def words_of(kind, out):
    """The command line of a run in the folder out: it goes on where something was saved."""
    data = Path(HOME.name) / ("vqa" if kind == "search" else "caption")
    if not data.exists():
        rng = random.Random(0)
        data.mkdir()
        for split, n in (("train", 18), ("val", 4)):
            items = []
            for i in range(n):
                scene = world.sample_from(rng, 1 + i % 2, ("train",))
                render(scene, rng).save(data / f"{split}{i}.png")
                items += [{"image": f"{split}{i}.png", **x}
                          for x in scene_items(data.name, scene, rng)]
            write_split(data, split, [{"id": i, **item} for i, item in enumerate(items)])
        write_meta(data, {"task": data.name})
    go_on = any((out / name).exists() for name in ("resume.pt", "search.pt"))
    return [*COMMON.split(), *KINDS[kind].split(), "--dataset", str(data), "--out", str(out),
            *["--resume"] * go_on]


class Run:
    """A run of train.py in a process group of its own, which says all to a file."""

    def __init__(self, kind, out, log, room=None, env=None, new=False):
        """room: the most bytes that a file may get; new: a fresh interpreter, imports and all."""
        words, self.log = words_of(kind, out), log
        self.pid, self.code = os.fork(), None
        if not self.pid:
            self.work(words, room, env or {}, new or EXEC)

    def work(self, words, room, env, new):
        code = 99
        try:
            os.setsid()
            os.chdir(ROOT)
            multiprocessing.current_process()._config["daemon"] = False  # it may have workers
            os.environ.update(env, OMP_NUM_THREADS="1")
            for s in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(s, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            file = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            if room:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            if new:
                os.execv(sys.executable, [sys.executable, "train.py", *words])
            sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False)
                                      for fd in (1, 2))
            Processes.MEET /= 30
            cli.run(lambda: train.main(*read_command(train.Config, train.RECIPES, train.PRESETS,
                                                     words)))
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
            print(e.code, file=sys.stderr, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def alive(self):
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code is None

    def wait(self, ready, seconds=180):
        """Until ready() or its end. AssertionError if that takes too long."""
        end = time.monotonic() + seconds
        while self.alive() and not ready():
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise AssertionError(f"not over after {seconds} s: {self.said()[-300:]}")
            time.sleep(0.002)

    def send(self, number, group=True):
        if self.alive():
            (os.killpg if group and os.getpgid(self.pid) == self.pid else os.kill)(self.pid, number)

    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self, *codes, seconds=180):
        """Waits for its end, with one of these exit codes and without a traceback."""
        self.wait(lambda: False, seconds)
        said = self.said()
        assert "Traceback" not in said and "Exception ignored" not in said, said[-200:]
        assert said.count("\nerror: ") + said.startswith("error: ") <= 1, said[-1500:]
        assert self.code in codes, f"exit status {self.code}: {said[-500:]}"
        return said


def unbroken(kind):
    """(folder, seconds) of a run of this kind that nothing happens to."""
    kind = "plain" if kind == "workers" else kind
    out = Path(HOME.name) / f"unbroken-{kind}"
    took = out / "seconds"
    if not took.exists():
        began = time.monotonic()
        Run(kind, out, Path(HOME.name) / f"{kind}.txt").end(0)
        took.write_text(str(time.monotonic() - began))
    return out, float(took.read_text())


def losses(folder):
    """What log.jsonl says of each step. loss: a mean since the last line or the last start."""
    names = ("step", "lr", "grad_norm", "val_loss", "blind_loss", "accuracy")
    lines = [{k: line[k] for k in names if k in line} for line in read_log(folder / "log.jsonl")]
    return [line for line in lines if len(line) > 1]


def same_end(out, whole):
    """AssertionError unless a run left what the unbroken one did, bit for bit."""
    for name in ("best.safetensors", "last.safetensors"):
        a, b = read(out / name), read(whole / name)
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a), f"{name} differs"
    assert losses(out) == losses(whole), f"log: {losses(out)} and not {losses(whole)}"
    assert not [*out.glob("*.tmp")], "what was not written to its end is still there"


def finish(kind, out, log):
    """Goes on to the end, which must be that of an unbroken run."""
    Run(kind, out, log).end(0)
    whole, _ = unbroken(kind)
    same_end(out, whole)
    if kind == "search":
        assert (out / "search.json").read_text() == (whole / "search.json").read_text()
