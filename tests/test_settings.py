"""What a command line makes of a run: flags, recipes, presets, --resume; the README's commands."""

import ast
import importlib.util
import os
import re
import runpy
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
from lib.cli import LONGEST, UserError, opt, parse
from lib.settings import check, read_command
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
    ("train.py --resume out/x", "--resume --out out/x"),
    ("train.py --score nan", "--score"), ("-m evaluate --batch many", "--batch")])
def test_a_mistake_ends_in_one_line(words, says):
    done = subprocess.run([sys.executable, *words.split()], cwd=ROOT, stderr=subprocess.PIPE)
    line, = done.stderr.decode().splitlines()
    assert done.returncode != 0 and says in line


@pytest.mark.parametrize("words, says", [
    ("--batch_size 3", "did you mean --batch?"), ("--learning_rate 3", "did you mean --lr?"),
    ("shapes", "did you mean --dataset shapes?"), ("--x\n\x1b[31m", "there is no --x"),
    ("--xyzzy", "there is no --xyzzy ("),
    ("--steps " + 5000 * "9", " ... "), ("\t", "there is no empty argument")])
def test_a_flag_that_is_not_there_is_answered_with_the_one_that_was_meant(words, says, capsys):
    with pytest.raises(SystemExit):
        command(*words.split(" "))
    line, = capsys.readouterr().err.splitlines()
    assert says in line and line.isprintable() and len(line) <= LONGEST


def test_two_dashes_are_a_value_since_python_3_13_and_none_before(capsys):
    try:
        assert command("--lm=--")[0].lm == "--"
    except SystemExit:
        assert "--lm: expected a value" in capsys.readouterr().err


@pytest.mark.parametrize("flag, value", [
    ("seed", 10**20), ("epochs", "inf"), ("epochs", "nan"), ("beta2", "nan"), ("beta2", 1),
    ("lr", -1), ("lr", "1e308"), ("batch", 0), ("max_tokens", 0), ("grad_clip", 0), ("steps", -1),
    ("workers", 10**6)])
def test_every_number_has_a_range(flag, value):
    with pytest.raises(UserError, match=f"^--{flag} .*: must be "):
        check(command(f"--{flag}", value)[0])


def test_a_message_is_one_line_that_a_terminal_can_show_however_long_its_names_are():
    for name in ("a\nb\x1b[31m\udcff\u2028", "x" * 400_344, "\n" * 10**6):
        text = str(UserError(f"{name}: no such file; fetch it"))
        assert text.isprintable() and len(text) <= LONGEST and text.endswith("; fetch it")
    assert str(UserError("a\nb\x1b")) == r"a\nb\x1b"


# ---------------------------------------------------------------------------- where commands begin

COMMANDS = [path.relative_to(ROOT) for form in ("*.py", "evaluate/*.py", "weights/*.py",
                                                "data/*/*.py") for path in ROOT.glob(form)
            if "__name__ ==" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_a_command_settles_how_threads_wait_before_it_loads_torch(path, tmp_path):
    """A stub in the place of torch says what is settled when it is loaded."""
    (tmp_path / "torch.py").write_text("import os; print(os.environ['GOMP_SPINCOUNT']); exit()")
    words = [path] if path.parts[0] not in ("evaluate", "weights") else [
        "-m", ".".join(path.with_suffix("").parts)]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, env=env,
                          capture_output=True, text=True)
    assert done.stdout.startswith(("1000\n", "usage")), done.stderr  # "usage": without torch
    ast.parse((ROOT / path).read_text("utf-8"), feature_version=(3, 9))  # which is then refused


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_how_threads_wait_is_the_user_s_choice_if_he_made_one(given, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(ROOT / "lib" / "__init__.py")
    assert os.environ.get("GOMP_SPINCOUNT") == given.get("GOMP_SPINCOUNT")


@pytest.mark.parametrize("target, name, value, says", [
    (sys, "version_info", (3, 9), "needs Python 3.10 or newer; here is 3.9"),
    (importlib.util, "find_spec", lambda name: name != "torch", "torch not found: pip install -r")])
def test_an_old_python_and_a_missing_torch_are_one_line(target, name, value, says, monkeypatch):
    monkeypatch.setattr(target, name, value)
    with pytest.raises(SystemExit, match=says):
        runpy.run_path(ROOT / "lib" / "__init__.py")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, and the shell")
@pytest.mark.parametrize("code, shell, status, says", [
    ("print('caf\u00e9 \U0001f600')", "PYTHONIOENCODING=ascii {} 2>&1", 0, r"caf\xe9 \U0001f600"),
    ("print('x' * 10**6)", "{{ {}; echo $? >&2; }} | head -c 1", 0, "141"),
    ("print('x')", "{} > /dev/full", 1, "error: No space left on device"),
    ("print('x')", "{} >&-", 0, ""), ("open('/no/x', 'w')", "{}", 1, "error: /no/x: No such file"),
    ("bytearray(10**18)", "{}", 1, "error: not enough memory"),
    ("__import__('torch').empty(10**15)", "{}", 1, "error: not enough memory")])
def test_whatever_becomes_of_the_output_ends_in_a_line_or_a_status(code, shell, status, says):
    python = shlex.join([sys.executable, "-c", f"from lib.cli import run; run(lambda: {code})"])
    done = subprocess.run(shell.format(python), shell=True, cwd=ROOT, capture_output=True)
    said = (done.stderr or done.stdout).decode().strip()
    assert done.returncode == status and said.startswith(says) and "\n" not in said


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
    ("--lm", "gpt2-medium", "gpt2"), ("--beta2", "0.9", "0.999"), ("--backbone_lr", "1", "1e-05"),
    ("--init_from", "out/vg", "")])
def test_a_flag_that_can_take_effect_no_more_is_refused(run, flag, value, was):
    with pytest.raises(UserError, match=f"--resume goes on with .*mine, where {flag} is {was}"):
        command("--resume", "--out", "out/mine", flag, value)


# ---------------------------------------------------------------------------- README, EXERCISES

@pytest.mark.parametrize("name, most", [("README.md", 180), ("EXERCISES.md", 100)])
def test_readme_and_exercises_are_short_and_as_wide_as_a_terminal(name, most):
    lines = (ROOT / name).read_text("utf-8").splitlines()
    assert len(lines) <= most and max(map(len, lines)) <= 120


@pytest.mark.parametrize("file, least", [("README.md", 25), ("EXERCISES.md", 10)])
def test_commands_in_readme_and_exercises_parse(file, least):
    """Every `python FILE.py ...`, `python -m MODULE ...` and `torchrun ... FILE.py ...` at the
    beginning of a line, behind && or in a sentence is accepted by the parser of that command."""
    text = (ROOT / file).read_text("utf-8").replace("\\\n", "")
    lines = re.findall(r"(?:^(?: {4})?|&& )(?:python|torchrun) (?!-m venv|-c)([^&\n]*)", text, re.M)
    prose = re.sub("```.*?```", "", text, flags=re.S)
    lines += re.findall(r"`(?:python|torchrun) ([^`]*)`", prose)
    assert len(lines) >= least
    for line in lines:
        name, *words = shlex.split(re.sub(r"^(-\S+ )*|\.\.\.", "", line), comments=True)
        if name == "pytest":
            continue
        folder = ROOT / name / "__main__.py"
        name = f"{name}.__main__" if folder.exists() else name.removesuffix(".py").replace("/", ".")
        if name == "train":
            # No run to resume is here, nor a first stage; these methods are the reader's own.
            line = re.sub(r"--resume|--init_from \S+", "", shlex.join(words))
            command(*shlex.split(re.sub("mymethod|smooth|gated", "ituning", line)))
        else:
            parse(importlib.import_module(name).Config, argv=words)


@pytest.mark.parametrize("line", re.findall(
    r"^ {4}python -m pytest (.* -k .*)$", (ROOT / "EXERCISES.md").read_text("utf-8"), re.M))
def test_the_checks_of_the_exercises_are_there(line):
    """Every word behind -k names a test."""
    *files, _, words = shlex.split(line)
    tests = "".join((ROOT / name).read_text("utf-8") for name in files)
    assert all(re.search(rf"def test_\w*{word}", tests) for word in words.split(" or "))
