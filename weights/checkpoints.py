"""Checkpoints of train.py: safetensors files of what was trained, with how it was made in them."""

import json
from pathlib import Path

import torch

from lib.cli import UserError
from weights.reading import metadata, read


def checkpoint_file(path):
    """The weight file meant by a run's folder or by the file's own path."""
    path = Path(path)
    for file in (path / "best.safetensors", path / "last.safetensors", path):
        if file.is_file():
            return file
    raise UserError(f"{path}: no checkpoint here (best.safetensors or last.safetensors); train.py "
                    "writes one to out/NAME")


def read_run_info(path):
    """How a checkpoint was made: method, config, names and hashes of the frozen files."""
    path = checkpoint_file(path)
    info = json.loads(metadata(path).get("seegpt", "null"))
    if info is None:
        raise UserError(f"{path}: not a checkpoint of train.py (no entry seegpt in its metadata)")
    if "lm" not in info:
        raise UserError(f"{path}: written by an earlier version of train.py; train it again")
    return info


def restore(params, tensors, path):
    """Copies a checkpoint's tensors into {name: parameter}; names and shapes must agree."""
    if wrong := [n for n in sorted({*params, *tensors}) if n not in params or n not in tensors
                 or params[n].shape != tensors[n].shape]:
        raise UserError(f"{path} does not fit this model: {', '.join(wrong[:5])} (missing, unknown "
                        "or of another shape); were the method's code or settings changed?")
    with torch.no_grad():
        for n, p in params.items():
            p.copy_(tensors[n])


def begin_with(model, path):
    """Puts what another run trained into the model. UserError if that differs in what it was."""
    info, now = read_run_info(path), model.run_info
    for name in ("lm", "clip"):
        if info[name]["sha256"] != now[name]["sha256"]:
            raise UserError(f"--init_from {path} was trained on other {name} weights "
                            f"({info[name]['name']}); give those with --{name}")
    before = {"method": info["method"], **info["config"]}
    now = {"method": now["method"], **now["config"]}
    if other := [k for k in now if before.get(k) != now[k]]:
        raise UserError(f"--init_from {path} was trained with other settings: " + ", ".join(
            f"{k} {str(before.get(k))[:40]}, here {str(now[k])[:40]}" for k in other))
    path = checkpoint_file(path)
    model.restore(read(path), path)
