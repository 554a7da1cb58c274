"""Checkpoints of train.py: safetensors files of what was trained, with how it was made in them."""

import contextlib
import json
import os
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from lib.cli import UserError
from weights.reading import metadata, read

# The note that train.py leaves in a checkpoint, and what else may be in it.
NOTE = {"method": str, "config": dict, "lm": dict, "clip": dict, "train_lm": bool,
        "train_vision": bool}
MORE = {"dataset": str, "task": str, "train": dict}


def checkpoint_file(path):
    """The weight file meant by a run's folder or by the file's own path."""
    path = Path(path)
    for file in (path / "best.safetensors", path / "last.safetensors", path):
        if os.path.isfile(file):
            return file
    raise UserError(f"{path}: no checkpoint here (best.safetensors or last.safetensors); train.py "
                    "writes one to out/NAME")


def read_run_info(path):
    """How a checkpoint was made: method, config, names and hashes of the frozen files. UserError
    unless these have the right types: the note of a file from elsewhere may say anything."""
    path = checkpoint_file(path)
    try:
        info = json.loads(metadata(path).get("seegpt", "null"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: the note in it is damaged ({e}); train it again") from e
    if info is None:
        raise UserError(f"{path}: not a checkpoint of train.py (no entry seegpt in its metadata)")
    if isinstance(info, dict) and "lm" not in info:
        raise UserError(f"{path}: written by an earlier version of train.py; train it again")
    if wrong := strange_entries(info):
        raise UserError(f"{path}: the note in it is damaged ({wrong[0]} is not what train.py "
                        "writes there); train it again")
    return info


def strange_entries(info):
    """The names of what is missing or of the wrong type in a checkpoint's note."""
    if not isinstance(info, dict):
        return ["all of it"]
    wrong = [k for k, kind in (NOTE | MORE).items()
             if not isinstance(info.get(k), kind) and (k in NOTE or k in info)]
    if wrong:
        return wrong
    wrong = [f"{k}.{entry}" for k in ("lm", "clip") for entry in ("name", "sha256")
             if not isinstance(info[k].get(entry), str)]
    # Settings are what a command line can say: a word, a number, or a list of them.
    wrong += [f"config.{k}" for k, v in info["config"].items() if not is_setting(v)]
    named = len(info["method"]) <= 100 and info["method"].isidentifier()
    return wrong + ["method"] * (not named)


def is_setting(value):
    if isinstance(value, list):
        return not any(isinstance(v, list) or not is_setting(v) for v in value)
    number = isinstance(value, (int, float)) and -1e18 <= value <= 1e18  # nan is in no range
    return value is None or isinstance(value, str) or number


@contextlib.contextmanager
def no_larger_than(path):
    """While a model is built for the checkpoint at path: UserError as soon as what is new in it has
    more numbers than the file has bytes. A note may ask for a million layers."""
    left = os.path.getsize(path)

    def count(module, name, parameter):
        nonlocal left
        left -= parameter.numel() if parameter is not None else 0
        if left < 0:
            raise UserError(f"{path}: the settings in it are those of a larger model than it holds;"
                            " train it again")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except RuntimeError as e:
        if "allocate" not in str(e):  # that is how torch says that it got no memory
            raise
        raise UserError(f"{path}: the settings in it need more memory than there is; train it "
                        "again") from e
    finally:
        hook.remove()


def restore(params, tensors, path):
    """Copies a checkpoint's tensors into {name: parameter}; names and shapes must agree."""
    if wrong := [n for n in sorted({*params, *tensors}) if n not in params or n not in tensors
                 or params[n].shape != tensors[n].shape or not tensors[n].is_floating_point()]:
        raise UserError(f"{path} does not fit this model: {', '.join(wrong[:5])} (missing, unknown "
                        "or of another shape); were the method's code or settings changed?")
    with torch.no_grad():
        for n, p in params.items():
            p.copy_(tensors[n])


def begin_with(model, path):
    """Puts what another run trained into the model. UserError if that differs in what it was."""
    info, now = read_run_info(path), model.run_info
    if info["method"] != now["method"]:
        raise UserError(f"--init_from {path} was trained with --method {info['method']}, and this "
                        f"is {now['method']}: leave out one of the two")
    for name in ("lm", "clip"):
        if info[name]["sha256"] != now[name]["sha256"]:
            raise UserError(f"--init_from {path} was trained on other {name} weights "
                            f"({info[name]['name']}); give those with --{name}")
    before, here = ({k: note[k] for k in ("train_lm", "train_vision")} | note["config"]
                    for note in (info, now))
    other = [k for k in here if k not in before or before[k] != here[k]]
    task = "" if info.get("task") == now.get("task") else (
        f" (its task was {info.get('task')}, here it is {now.get('task')})")
    if other:
        raise UserError(f"--init_from {path} was trained with other settings{task}: " + ", ".join(
            f"{k} {str(before.get(k))[:40]}, here {str(here[k])[:40]}" for k in other))
    file = checkpoint_file(path)
    model.restore(read(file), f"{file}{task}")
