"""A run is a folder: its name, its log, resuming, Ctrl-C."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import torch

from lib.cli import UserError
from lib.files import repo_path


def run_folder(config):
    """The run's folder: as asked, or a new out/DATASET-METHOD, -2, -3, ...: no run overwrites another."""
    if config.out:
        return Path(config.out)
    base = Path("out") / f"{Path(config.dataset).name}-{config.method}"
    if config.resume:
        runs = sorted([*Path("out").glob("*/resume.pt"), *Path("out").glob("*/search.pt")], key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError("--resume: there is no run in out/ yet; leave --resume away to start one")
        return runs[-1].parent
    n = 2
    out = base
    while out.exists():
        out, n = base.with_name(f"{base.name}-{n}"), n + 1
    return out


class Stop:
    """Ctrl-C and SIGTERM ask the loop to save and stop after this step; the second time it is at once."""

    def __init__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def over(self):
        for s, handler in self.before.items():
            signal.signal(s, handler)


def save_resume(path, step, model, optimizer, config, method_config, **more):
    """Everything that the next step depends on, in one file that is either old or new, never half."""
    state = {"step": step, "config": asdict(config), "method_config": asdict(method_config),
             "trained": {n: p.detach() for n, p in model.trained().items()}, "rng": torch.get_rng_state(),
             "optimizer": optimizer.state_dict(), **more}
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_resume(folder):
    """The state that save_resume wrote in training, or before that in the search for a layer."""
    path = Path(folder) / "resume.pt"
    if not path.exists() and (Path(folder) / "search.pt").exists():
        path = Path(folder) / "search.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"--resume: {folder} has no resume.pt; it appears with the first validation") from None
    except Exception as e:  # a damaged pickle can raise almost anything
        raise UserError(f"{path} is damaged ({type(e).__name__}); "
                        f"start anew, or use {folder}/last.safetensors with sample.py") from None


def open_log(path, step):
    """log.jsonl open for appending, cut back to the lines up to this step."""
    kept = []
    for line in path.read_text("utf-8").splitlines() if path.exists() and step else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            pass  # the last line of a killed run may be half a line
    path.write_text("".join(kept), "utf-8")
    return open(path, "a", buffering=1, encoding="utf-8")


def ignore_ctrl_c(worker):
    """A data worker lets the main process decide when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def newest_run():
    """The run in out/ that was saved last. UserError if there is none."""
    out = Path(repo_path("out"))
    saved = [*out.glob("*/best.safetensors"), *out.glob("*/last.safetensors")]
    if not saved:
        raise UserError("there is no checkpoint in out/ yet: run python train.py first, "
                        "or name one with --ckpt")
    return max(saved, key=lambda p: p.stat().st_mtime).parent
