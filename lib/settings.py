"""The settings of a run, in three layers: a dataclass's defaults, one recipe, the command line.

A resumed run keeps its own settings: a flag that cannot take effect any more is refused.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import os
import sys
import traceback
import typing
from dataclasses import fields
from pathlib import Path

from data.tasks import dataset_name
from lib.cli import UserError, check_range, check_setting, default_of, note, parse
from lib.files import check_writable, repo_path
from lib.runs import data_bytes, load_resume, new_folder, newest, newest_run
from weights.checkpoints import read_run_info
from weights.kinds import kind_of

ROOT = Path(__file__).resolve().parents[1]
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
    takes mymethod.Method from mymethod.py in the working folder, or in the project's."""
    if name in METHODS:
        module, cls = METHODS[name]
        return getattr(importlib.import_module(module), cls)
    module = import_own(name)
    found = getattr(module, "Method", None)  # of model.Method itself it says "model"
    # Names, not classes: lib knows nothing of the book.
    base = [(c.__module__, c.__name__) for c in getattr(found, "__mro__", ())[1:]]
    if ("model", "Method") not in base or hasattr(module, "Config"):
        raise UserError(f"{name}.py needs a class Method of its own, derived from model.Method, "
                        "with its Config inside: see Method in model.py")
    if not dataclasses.is_dataclass(found.Config):
        raise UserError(f"{name}.py: write @dataclass above the class Config")
    typed = {f.name for f in fields(found.Config)}
    for k, v in vars(found.Config).items():
        if not (k in typed or k.startswith("_") or callable(v)):
            raise UserError(f"{name}.py: {k} = {v!r} in Config is no setting without a type: write "
                            f"{k}: {type(v).__name__} = {v!r}")
    return found


def import_own(name):
    """The module of a user's own method, from name.py in the working folder or the project's.

    pitfall: the name may come from a checkpoint that somebody else made. So no other place is
    looked at, no other module of that name is taken, and the file is named before it runs.
    """
    path = next((folder / f"{name}.py" for folder in (Path.cwd(), ROOT)
                 if name.isidentifier() and (folder / f"{name}.py").is_file()), None)
    if not path:
        stem = name.removesuffix(".py")  # of mymethod.py the name is mymethod
        found = [stem] * (stem != name and Path(name).is_file())
        near = [*found, *difflib.get_close_matches(stem, METHODS, n=1)]
        near = f"; did you mean {near[0]}?" if near else "."
        own = stem if stem.isidentifier() else "mymethod"
        raise UserError(f"there is no method {name!r}{near} Known: {', '.join(METHODS)}, or a "
                        f"class Method in your own {own}.py, for which say {own}")
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return sys.modules[name]
    if name in sys.modules or name in sys.stdlib_module_names:
        raise UserError(f"{path}: another module is called {name}, too; rename the file")
    note(f"method {name}: from {path}")
    sys.path.append(str(path.parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        frames = traceback.extract_tb(e.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        raise UserError(f"{path}{f' line {line}' if line else ''} cannot be imported: "
                        f"{type(e).__name__}: {e}") from e
    return module


def method_config(info, path):
    """The settings of the method of a checkpoint at path, whose run_info is info. UserError where
    they are not of the types and in the ranges that the command line would allow."""
    Config = find_method(info["method"]).Config
    try:
        config = Config(**info["config"])
    except TypeError as e:
        raise UserError(f"{path} has other settings than {info['method']} has now ({e}): train it "
                        "again") from None
    check_settings(config, path)
    return config


def check_settings(config, path):
    """UserError for settings from the file at path that the command line would not allow."""
    kinds = typing.get_type_hints(type(config))
    for f in fields(config):
        check_setting(f"{path}: {f.name}", f, kinds[f.name], getattr(config, f.name))


def pick_checkpoint(path):
    """The path, or if it is empty the newest run in out/, named on stderr with what it is: it may
    be one of three steps, for a try."""
    if not path:
        path = newest_run()
        info = read_run_info(path)
        steps = f", {info['step']:,} steps" if isinstance(info.get("step"), int) else ""
        note(f"checkpoint: {path}, the newest run ({info['method']} on {info.get('dataset')}"
             f"{steps}); --ckpt names another")
    return path


# What --resume may change: all else belongs to the run.
CHANGEABLE = set("steps epochs accumulate grad_clip eval_every eval_images log_every score cache "
                 "workers device dtype compile out resume".split())


def find_recipe(config, recipes, presets):
    """(name, settings): the dataset's, or its own for the method, and on top those of the method on
    this kind of language model and those of --preset."""
    preset = presets.get(config.preset, {})
    if config.preset and not preset:
        raise UserError(f"--preset {config.preset}: there are {', '.join(presets)}")
    dataset = dataset_name(config.dataset)
    special = f"{dataset}, {config.method}"
    names, settings = [special if special in recipes else dataset], {}
    if any(name.startswith(f"{config.method} on ") for name in recipes):
        kind = f"{config.method} on {kind_of(repo_path(config.lm))}"
        names += [kind, f"{dataset}, {kind}"]
    names = [name for name in names if name in recipes]
    for name in names:
        settings |= recipes[name]
    with_preset = [", ".join(names[:2])] * bool(names) + [config.preset] * bool(config.preset)
    return " with preset ".join(with_preset) or "none", settings | preset


def read_command(Config, recipes, presets, argv=None):
    """(config, the method's config, name of the recipe, resume state or None)."""
    first, = parse(Config, argv=argv, peek=True)
    if first.resume:
        words = (sys.argv if argv is None else argv) + ["--"]
        behind = words[words.index("--resume") + 1]
        if not behind.startswith("-"):
            raise UserError(f"--resume {behind}: name the run by --resume --out {behind}")
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
    out = Path(config.out)
    check_writable(out / "log.jsonl", f"--out {out}")
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
    method = find_method(str(before["method"]))
    config, method_config = parse(Config, method.Config, argv=argv, defaults=before)
    check_settings(config, resume["path"])
    check_settings(method_config, resume["path"])
    config.dataset = dataset_name(config.dataset)
    for k, v in {**vars(config), **vars(method_config)}.items():
        if k not in CHANGEABLE and v != before.get(k, v):
            raise UserError(f"--resume goes on with {out}, where --{k} is {before[k]}; start a new "
                            "run to change it, or name another with --out")
    if config.steps and config.epochs != before["epochs"]:
        raise UserError(f"{out} was told --steps {config.steps}, so --epochs changes nothing; give "
                        "--steps")
    return config, method_config, "that of the run", resume


# Numbers of train.py with a narrower range than 0 to 1e9, which is that of all.
RANGES = {**dict.fromkeys("batch rows accumulate eval_every eval_images log_every".split(),
                          (1, 10**6)),
          "max_tokens": (1, 10**6), "lr": (0, 100), "backbone_lr": (0, 100), "workers": (0, 1000),
          "beta2": (0, 1 - 1e-9), "grad_clip": (1e-9, 1e9), "weight_decay": (0, 1000),
          "epochs": (0, 10**6), "search_epochs": (0, 10**6)}


def check(config):
    """UserError for numbers of train.py that make no sense."""
    for f in fields(config):
        if type(default_of(f)) in (int, float):
            check_range(f"--{f.name}", getattr(config, f.name), *RANGES.get(f.name, ()))
    if config.cache and config.train_vision:
        raise UserError("--cache keeps features of a frozen ViT, but --train_vision changes it: "
                        "leave it out, or say --no-cache")
    size = int(os.environ.get("WORLD_SIZE", 1))
    if config.batch < config.accumulate * size:
        raise UserError(f"--batch {config.batch} cannot be split into {config.accumulate} "
                        f"micro-steps on {size} processes")


def check_data(run):
    """UserError for a dataset that does not go with the settings."""
    config, images = run.config, len(run.entries["train"])
    if config.batch > images:
        raise UserError(f"--batch {config.batch} is more than the {images} images to train on: "
                        "give less")
    if config.score and not run.facts["has_scenes"]:
        raise UserError("--score counts exact scenes, which only the captions of the shapes world "
                        "have: leave it out")
    if run.facts["has_blind_items"] and run.method.needs_image:
        raise UserError(f"{run.folder} has items without an image, which {config.method} cannot "
                        "read; dvp can")


def count_steps(run):
    """The optimiser steps of a run: as asked, or as many as --epochs makes."""
    config, images = run.config, len(run.entries["train"])
    steps = config.steps or round(config.epochs * images / config.batch)
    if steps < 1:
        raise UserError(f"--epochs {config.epochs} is less than one step of {config.batch} images; "
                        "ask for more")
    done = run.resume["step"] if run.resume else 0
    if run.resume and run.resume.get("data_bytes") != data_bytes(run):
        raise UserError(f"{run.folder}/train.jsonl has changed since {run.out} began: put it back, "
                        "or start a new run, with --init_from this one if you like")
    if done >= steps and not (run.out / "best.safetensors").exists():
        raise UserError(f"{run.out} has done {done} steps already; ask for more with --steps")
    if done >= steps:
        run.processes.say(f"nothing is left to train: {done} steps are done, {steps} asked for")
    return steps


def differing(*configs):
    """"lr 0.004, batch 24, ...": what differs from the dataclasses' defaults."""
    return ", ".join(f"{f.name} {str(getattr(c, f.name))[:60]}" for c in configs for f in fields(c)
                     if getattr(c, f.name) != default_of(f))
