"""What a command line makes of a run: flags, recipes, presets, --resume; the README's commands."""

import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import ituning
import train
from data.tasks import find_dataset
from lib.cli import UserError, opt, parse
from lib.settings import read_command
from weights.safetensors import write


def command(*words):
    """What train.py makes of its command line: config, method config, recipe, resume state."""
    return read_command(train.Config, train.RECIPES, train.PRESETS, [str(word) for word in words])


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- flags

@pytest.mark.parametrize("words, says", [
    ("train.py --step 3", "there is no --step; did you mean --steps?"),
    ("train.py --out README.md/x", "README.md/x: cannot be written (Not a directory)"),
    ("train.py --dataset cocoo", "did you mean coco?"), ("-m evaluate --batch many", "--batch")])
def test_a_mistake_ends_in_one_line(words, says):
    done = subprocess.run([sys.executable, *words.split()], cwd=ROOT, stderr=subprocess.PIPE)
    line, = done.stderr.decode().splitlines()
    assert done.returncode != 0 and says in line


@dataclass
class Settings:
    name: str = opt("a", "100 % text", alias="title")
    sizes: list = opt([1], "numbers")
    fast: bool = opt(None, "quickly")
    kind: str = opt("x", "one of two", choices=("x", "y"))


def test_a_dataclass_becomes_flags_and_help(capsys):
    given, = parse(Settings, argv=["--title", "b", "--no-fast", "--kind", "y"])
    assert given == Settings("b", [1], False, "y") and Settings().sizes is not Settings().sizes
    assert parse(Settings, argv=["--lr"], defaults={"sizes": [2]}, peek=True)[0].sizes == [2]
    with pytest.raises(SystemExit):
        parse(Settings, argv=["--help"])
    text = capsys.readouterr().out
    assert "100 % text [a]" in text and "numbers [1]" in text and "What a command" in text


# ---------------------------------------------------------------------------- recipes, presets

@pytest.mark.parametrize("spelling", ["shapes", "shapes/", "data/shapes", "./data/shapes/",
                                      str(ROOT / "data" / "shapes")])
def test_a_dataset_has_one_recipe_and_one_folder_however_it_is_spelt(spelling, monkeypatch):
    monkeypatch.setattr("data.tasks.is_prepared", lambda folder: True)  # drawn on first use
    config, method, recipe, _ = command("--dataset", spelling)
    assert (recipe, config.out) == ("shapes", str(Path("out/shapes-ituning")))
    assert (config.lr, config.score, method.heads) == (4e-3, 1000, 16)
    assert find_dataset(spelling) == ROOT / "data" / "shapes"


def test_no_run_overwrites_another(tmp_path):
    for n in ("", "-2"):
        config = command()[0]
        assert config.out == str(Path(f"out/shapes-ituning{n}"))
        Path(config.out).mkdir(parents=True)
        (Path(config.out) / "log.jsonl").touch()
    (tmp_path / "resume.pt").touch()
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        command("--out", tmp_path)


@pytest.mark.parametrize("words, recipe, settings", [
    ("--dataset coco", "none", dict(method="ituning", lr=1e-4, batch=13, rows=5)),
    ("--dataset coco --gpt2 gpt2-xl", "none", dict(lm="gpt2-xl")),  # as --lm
    ("", "shapes", dict(lr=4e-3)), ("--lr 2", "shapes", dict(lr=2.0, rows=3)),
    ("--method prefix", "shapes, prefix", dict(lr=1e-3, tokens="all", score=1000)),
    ("--dataset shapes/vqa", "shapes/vqa", dict(method="dvp", readout="head")),
    ("--dataset coco --preset ituning-medium --lr 3e-4", "ituning-medium",
     dict(lm="gpt2-medium", clip="ViT-B/16", width_ratio=0.5, lr=3e-4)),
    ("--dataset coco --preset vcgpt", "vcgpt",
     dict(method="vcgpt", lm="gpt2", train_lm=False, n_fusion=6, self_ensemble=True)),
    ("--dataset coco --preset vcgpt-tuned", "vcgpt-tuned",
     dict(train_lm=True, train_vision=True, backbone_lr=1e-5, n_fusion=6)),
    ("--dataset visual_genome --preset clipcap", "clipcap",
     dict(method="prefix", train_lm=False, lr=2e-5, clip="ViT-B/32", mapper="transformer")),
    ("--dataset coco --preset clipcap-tuned", "clipcap-tuned", dict(train_lm=True, mapper="mlp")),
    # On shapes a preset changes what it names, and the tiny backbones stay.
    ("--preset vcgpt", "shapes, vcgpt with preset vcgpt",
     dict(lm="data/shapes/tiny-gpt2", clip="data/shapes/tiny-clip", n_fusion=6, lr=1e-3))])
def test_the_command_line_wins_over_the_recipe_and_that_over_the_defaults(words, recipe, settings):
    config, method, name, _ = command(*words.split())
    assert name == recipe and settings.items() <= {**vars(config), **vars(method)}.items()


def test_a_preset_with_another_method_is_refused():
    with pytest.raises(UserError, match="--preset vcgpt is for --method vcgpt"):
        command("--preset", "vcgpt", "--method", "ituning")


def test_a_checkpoint_of_an_earlier_version_is_refused():
    write(Path("old.safetensors"), {"x": torch.zeros(1)}, {"seegpt": '{"gpt2": {"name": "gpt2"}}'})
    with pytest.raises(UserError, match="^old.safetensors: written by an earlier [^\n]*$"):
        command("--init_from", "old.safetensors")


# ---------------------------------------------------------------------------- --resume

@pytest.fixture
def run():
    """A stopped run: as much of its resume.pt as is read before training."""
    config = train.Config(dataset="shapes", batch=4, lr=2e-3, out="out/mine")
    Path("out/mine").mkdir(parents=True)
    torch.save({"step": 2, "config": asdict(config),
                "method_config": asdict(ituning.ITuning.Config(heads=2))}, "out/mine/resume.pt")


def test_a_resumed_run_has_its_own_settings_and_takes_what_can_still_change(run):
    config, method, _, state = command("--resume", "--out", "out/mine", "--steps", 99,
                                       "--eval_every", 7, "--device", "cpu", "--lr", 2e-3)
    assert (config.batch, config.lr, method.heads, state["step"]) == (4, 2e-3, 2, 2)
    assert (config.steps, config.eval_every, config.device) == (99, 7, "cpu")


@pytest.mark.parametrize("flag, value, was", [
    ("--lr", "1", "0.002"), ("--batch", "8", "4"), ("--weight_decay", "0.1", "0.0"),
    ("--dataset", "shapes/vqa", "shapes"), ("--method", "prefix", "ituning"),
    ("--seed", "7", "1337"), ("--preset", "vcgpt", ""), ("--heads", "4", "2"),
    ("--lm", "gpt2-medium", "gpt2"),
    ("--init_from", "out/vg", "")])
def test_a_flag_that_can_take_effect_no_more_is_refused(run, flag, value, was):
    with pytest.raises(UserError, match=f"--resume goes on with .*mine, where {flag} is {was}"):
        command("--resume", "--out", "out/mine", flag, value)


# ---------------------------------------------------------------------------- the README

def test_readme_commands_parse():
    """Every `python FILE.py ...`, `python -m MODULE ...` and `torchrun ... FILE.py ...` at the
    beginning of a line or behind && is accepted by the parser of that command."""
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = re.findall(r"^(?:pip .*&& )?(?:python|torchrun) (.*)$", readme, re.M)
    assert len(lines) > 25
    for line in lines:
        name, *words = shlex.split(re.sub(r"^(-\S+ )*|\.\.\.", "", line), comments=True)
        if name == "pytest":
            continue
        folder = ROOT / name / "__main__.py"
        name = f"{name}.__main__" if folder.exists() else name.removesuffix(".py").replace("/", ".")
        if name == "train":
            # No run to resume is here, nor a first stage; mymethod.py is the reader's own.
            line = re.sub(r"--resume|--init_from \S+", "", shlex.join(words))
            command(*shlex.split(line.replace("mymethod", "ituning")))
        else:
            parse(importlib.import_module(name).Config, argv=words)
