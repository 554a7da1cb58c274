"""The settings of a run, in three layers: a dataclass's defaults, one recipe, the command line.

A resumed run keeps its own settings: a flag that cannot take effect any more is refused.
"""

import difflib
import importlib
import importlib.util
import os
import sys
from dataclasses import fields
from pathlib import Path

from data.tasks import dataset_name
from lib.cli import UserError, default_of, parse
from lib.runs import load_resume, new_folder, newest
from weights.checkpoints import read_run_info

# The built-in methods: module and class.
METHODS = {
    "ituning": ("ituning", "ITuning"),
    "vanilla": ("ituning", "Vanilla"),
    "vcgpt": ("ituning", "VCGPT"),
    "prefix": ("prompts", "Prefix"),
    "dvp": ("prompts", "DVP"),
}


def find_method(name):
    """The class of a method. A name not in the table is a module of your own: `--method mymethod`
    takes mymethod.Method from mymethod.py in the working folder, or wherever Python looks."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    own = name not in METHODS
    if own and not (name.isidentifier() and importlib.util.find_spec(name)):
        near = difflib.get_close_matches(name, METHODS, n=1)
        near = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"there is no method {name}{near} Known: {', '.join(METHODS)}, or a class "
                        f"Method in your own {name}.py")
    module, cls = METHODS.get(name, (name, "Method"))
    module = importlib.import_module(module)
    found = getattr(module, cls, None)  # of model.Method itself it says "model"
    if getattr(found, "__module__", "model") == "model" or own and hasattr(module, "Config"):
        raise UserError(f"{name}.py needs a class {cls} of its own, with its Config inside: see "
                        "Method in model.py")
    return found


def method_config(info, path):
    """The settings of the method of a checkpoint at path, whose run_info is info."""
    try:
        return find_method(info["method"]).Config(**info["config"])
    except TypeError as e:
        raise UserError(f"{path} has other settings than {info['method']} has now ({e}): train it "
                        "again") from None


# What --resume may change: all else belongs to the run.
CHANGEABLE = set("steps epochs accumulate grad_clip eval_every eval_images log_every score cache "
                 "workers device dtype compile out resume".split())


def find_recipe(config, recipes, presets):
    """(name, settings): the dataset's, or its own for the method, and on top those of --preset."""
    preset = presets.get(config.preset, {})
    if config.preset and not preset:
        raise UserError(f"--preset {config.preset}: there are {', '.join(presets)}")
    dataset = dataset_name(config.dataset)
    special = f"{dataset}, {config.method}"
    name = special if special in recipes else dataset
    names = [name] * (name in recipes) + [config.preset] * bool(config.preset)
    return " with preset ".join(names) or "none", recipes.get(name, {}) | preset


def read_command(Config, recipes, presets, argv=None):
    """(config, the method's config, name of the recipe, resume state or None)."""
    first, = parse(Config, argv=argv, peek=True)
    if first.resume:
        return resumed(Config, first, argv)
    name, settings = find_recipe(first, recipes, presets)
    first, = parse(Config, argv=argv, defaults=settings, peek=True)
    if first.preset and first.method != settings["method"]:
        raise UserError(f"--preset {first.preset} is for --method {settings['method']}")
    name, settings = find_recipe(first, recipes, presets)  # again: now the method is known
    if first.init_from:
        info = read_run_info(first.init_from)
        settings = {**settings, **{k: info[k] for k in ("method", "train_lm", "train_vision")},
                    **{k: info[k]["name"] for k in ("lm", "clip")}, **info["config"]}
        first, = parse(Config, argv=argv, defaults=settings, peek=True)
    method = find_method(first.method)
    config, method_config = parse(Config, method.Config, argv=argv, defaults=settings)
    if config.search and not method.search:
        raise UserError("--search looks for the layer of dvp's one prompt token: use --method dvp")
    config.dataset = dataset_name(config.dataset)
    if not config.out:
        config.out = str(new_folder(config.dataset, config.method))
    out = Path(config.out).absolute()
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--out {config.out}: {there} is not a folder that can be written to")
    if any((out / name).exists() for name in ("resume.pt", "search.pt")):
        raise UserError(f"{config.out} already holds a run: add --resume to go on with it, or "
                        "choose another --out")
    return config, method_config, name, None


def resumed(Config, first, argv):
    """As read_command, for --resume: the run's own settings, and what can still change."""
    out = Path(first.out) if first.out else newest("resume.pt", "search.pt")
    if not out:
        raise UserError("--resume: there is no run in out/ yet; leave out --resume to start one")
    resume = load_resume(out)
    before = {**resume["config"], **resume["method_config"], "out": str(out), "resume": True}
    method = find_method(before["method"])
    config, method_config = parse(Config, method.Config, argv=argv, defaults=before)
    config.dataset = dataset_name(config.dataset)
    for k, v in {**vars(config), **vars(method_config)}.items():
        if k not in CHANGEABLE and v != before.get(k, v):
            raise UserError(f"--resume goes on with {out}, where --{k} is {before[k]}; start a new "
                            "run to change it, or name another with --out")
    if config.steps and config.epochs != before["epochs"]:
        raise UserError(f"{out} was told --steps {config.steps}, so --epochs changes nothing; give "
                        "--steps")
    return config, method_config, "that of the run", resume


FLOORS = {1: "batch rows accumulate max_tokens eval_every eval_images log_every",
          0: "steps epochs search_epochs warmup weight_decay beta2 lr backbone_lr score workers "
             "seed"}


def check(config):
    """UserError for numbers of train.py that make no sense."""
    for least, names in FLOORS.items():
        for name in names.split():
            if getattr(config, name) < least:
                raise UserError(f"--{name} {getattr(config, name)}: must be {least} or more")
    if config.beta2 >= 1 or config.grad_clip <= 0:
        raise UserError("--beta2 must be below 1 and --grad_clip above 0")
    if config.cache and config.train_vision:
        raise UserError("--cache keeps features of a frozen ViT, but --train_vision changes it: "
                        "leave it out, or say --no-cache")
    size = int(os.environ.get("WORLD_SIZE", 1))
    if config.batch < config.accumulate * size:
        raise UserError(f"--batch {config.batch} cannot be split into {config.accumulate} "
                        f"micro-steps on {size} processes")


def count_steps(run):
    """The optimiser steps of a run: as asked, or as many as --epochs makes."""
    config, images = run.config, len(run.entries["train"])
    steps = config.steps or round(config.epochs * images / config.batch)
    if steps < 1:
        raise UserError(f"--epochs {config.epochs} is less than one step of {config.batch} images; "
                        "ask for more")
    done = run.resume["step"] if run.resume else 0
    if done >= steps and not (run.out / "best.safetensors").exists():
        raise UserError(f"{run.out} has done {done} steps already; ask for more with --steps")
    if done >= steps:
        run.processes.say(f"nothing is left to train: {done} steps are done, {steps} asked for")
    return steps


def differing(*configs):
    """"lr 0.004, batch 24, ...": what differs from the dataclasses' defaults."""
    return ", ".join(f"{f.name} {str(getattr(c, f.name))[:60]}" for c in configs for f in fields(c)
                     if getattr(c, f.name) != default_of(f))
