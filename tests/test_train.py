"""The loop: weighting, exact resume, two processes, what a run leaves, what a mistake ends in.

A tiny dataset is drawn from the shapes world; the backbones are the committed ones.
"""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_methods import build
from test_settings import command

import train
from data.batches import Batches, epoch_order
from data.common import write_meta, write_split
from data.shapes import world
from data.shapes.drawing import render
from gpt2 import GPT2
from lib.cli import UserError
from lib.devices import Processes, pick_device
from lib.optim import make_optimizer, schedule
from lib.runs import load_resume, put_back, read_log, save_resume, say_done, writing_alone
from weights.checkpoints import restore
from weights.reading import read
from weights.safetensors import write
from weights.tokenizers import get_tokenizer

TINY_GPT2 = ROOT / "data" / "shapes" / "tiny-gpt2"
ENC = get_tokenizer(TINY_GPT2)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """18 train and 6 val images; some with fewer or more captions than rows."""
    folder, rng = tmp_path_factory.mktemp("mini"), random.Random(0)
    for split, n in (("train", 18), ("val", 6)):
        items = []
        for i in range(n):
            scene = world.sample_from(rng, 1 + i % 2, ("train",))
            render(scene, rng).save(folder / f"{split}{i}.png")
            captions = world.captions(scene, rng)
            items.append({"id": i, "image": f"{split}{i}.png", "scene": world.to_json(scene),
                          "captions": (captions + captions[:2])[:(5, 1, 7, 6)[i % 4]]})
        write_split(folder, split, items)
    write_meta(folder, {"task": "caption"})
    return folder


def flags(dataset, out, *more):
    """A short run on the mini dataset with the tiny backbones, as command-line words."""
    words = ("--lm data/shapes/tiny-gpt2 --clip data/shapes/tiny-clip --batch 4 --rows 3 --steps 10"
             " --lr 2e-3 --warmup 2 --eval_every 5 --log_every 1 --workers 0 --device cpu")
    return [*words.split(), "--dataset", str(dataset), "--out", str(out), *map(str, more)]


def fit(dataset, out, *more):
    """Trains -> the last checkpoint's tensors, {step: loss}."""
    train.main(*command(*flags(dataset, out, *more)))
    return read(Path(out) / "last.safetensors"), losses(out)


def losses(out):
    return {x["step"]: x["loss"] for x in read_log(Path(out) / "log.jsonl") if "loss" in x}


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def near(log, other, atol=1e-4):
    return log.keys() == other.keys() and all(abs(log[s] - other[s]) < atol for s in log)


@pytest.fixture(scope="session")
def unbroken(dataset, tmp_path_factory):
    """Ten steps without a stop, in out: what the other ways of doing ten steps are held against."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return out, *fit(dataset, out)


# ------------------------------------------------------------------- the same steps, other ways

def test_stop_and_resume_is_exact(dataset, unbroken, tmp_path, monkeypatch):
    """Ctrl-C in step 3, a closed terminal in step 5, where a validation is due, and Ctrl-C in the
    last: bit for bit ten steps at once, and the same validations."""
    dice = []

    def ctrl_c(optimizer, step, *rest):
        schedule(optimizer, step, *rest)
        dice.append(torch.rand(()).item())  # as a method with dropout would
        if step + 1 == last:
            signal.raise_signal(getattr(signal, "SIGHUP", signal.SIGINT) if last == 5 else
                                signal.SIGINT)

    monkeypatch.setattr(train, "schedule", ctrl_c)
    for last, more in ((3, ()), (5, ("--resume",))):
        with pytest.raises(KeyboardInterrupt):
            fit(dataset, tmp_path, *more)
        assert load_resume(tmp_path)["step"] == last
        with open(tmp_path / "log.jsonl", "a") as f:
            f.write('{"step": 99, "loss": 1}\nnull\n[1]\n{}\n{"step": "x"}\n{"step": 1, "loss": []}'
                    f'\n{{"step": 1, "loss": 1{400 * "0"}}}\n{"[" * 9999}\n{{"step": 3, "lo')
    last = 10
    tensors, log = fit(dataset, tmp_path, "--resume")
    assert same(tensors, unbroken[1]) and log == unbroken[2] and len({*dice}) == 10
    best = [read(out / "best.safetensors") for out in (tmp_path, unbroken[0])]
    checks = [[x for x in read_log(out / "log.jsonl") if "val_loss" in x]
              for out in (tmp_path, unbroken[0])]
    assert same(*best) and checks[0] == checks[1] and len(checks[0]) == 2


@pytest.mark.parametrize("words", ["", "--log_every 99 --eval_every 99"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_is_good(
        dataset, tmp_path, monkeypatch, words):
    """Where it is logged; or where Ctrl-C would save it before."""
    fit(dataset, tmp_path, "--steps", 5)
    good = [(tmp_path / name).read_bytes() for name in ("last.safetensors", "resume.pt")]

    def too_fast(optimizer, step, *rest):
        for group in optimizer.param_groups:
            group["lr"] = 1e30
        if words and step == 7:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "schedule", too_fast)
    with pytest.raises(UserError, match="lower --lr"):
        fit(dataset, tmp_path, "--steps", 9, "--resume", *words.split())
    assert [(tmp_path / name).read_bytes() for name in ("last.safetensors", "resume.pt")] == good


def test_a_run_ends_well_without_a_best_checkpoint(dataset, tmp_path):
    fit(dataset, tmp_path, "--steps", 5)
    path = tmp_path / "resume.pt"
    torch.save({**torch.load(path, weights_only=True), "best": 0.0}, path)  # it gets no better
    (tmp_path / "best.safetensors").unlink()
    fit(dataset, tmp_path, "--steps", 6, "--resume")


@pytest.mark.parametrize("how", ["image", "DataLoader worker (pid 17) is killed by signal: Killed.",
                                 "Pin memory thread exited unexpectedly"])
def test_what_cannot_be_read_ends_a_run_that_is_saved_and_goes_on(
        dataset, unbroken, tmp_path, monkeypatch, how):
    """An image is damaged, or the process that reads it has died: saved first, then one line."""
    mine, out = shutil.copytree(dataset, tmp_path / "data"), tmp_path / "run"
    image = mine / f"train{epoch_order(1337, 0, 18)[13]}.png"  # in the fourth step
    whole = image.read_bytes()

    def read(batches, step, good=Batches.read):
        if step == 3 and how != "image":
            raise RuntimeError(how)
        return good(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "read", read)
        if how == "image":
            image.write_bytes(b"no picture")
        with pytest.raises(UserError, match=f"{image.name}|has died") as e:
            fit(mine, out)
    assert (step := load_resume(out)["step"]) == 3 and "\n" not in str(e.value)
    assert f"saved after step {step}; go on with: python train.py --resume" in str(e.value)
    image.write_bytes(whole)
    assert same(fit(mine, out, "--resume")[0], unbroken[1])


def test_a_run_that_nobody_listens_to_is_saved(dataset, tmp_path, monkeypatch):
    """As in `train.py | head`, or when the terminal is closed."""
    class Pipe(io.StringIO):
        fileno = lambda self: os.open(os.devnull, os.O_WRONLY)

        def write(self, text):
            if "step 2/" in text:
                raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Pipe())
    with pytest.raises(KeyboardInterrupt):
        fit(dataset, tmp_path)
    assert load_resume(tmp_path)["step"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.parametrize("room", [900, 400_000, 1_000_000])  # a log, a checkpoint, resume.pt
def test_a_full_disk_is_one_line_and_what_was_saved_stays(dataset, tmp_path, room):
    import resource
    fit(dataset, tmp_path, "--steps", 5)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "log.jsonl"}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        with pytest.raises(UserError, match="File too large") as e:
            fit(dataset, tmp_path, "--steps", 10, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "log.jsonl"}
    assert "\n" not in str(e.value) and after.keys() == before.keys()
    assert after["resume.pt"] == before["resume.pt"]
    fit(dataset, tmp_path, "--steps", 10, "--resume")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_run_that_went_on_meanwhile_is_not_overwritten(dataset, tmp_path):
    """Between the reading of resume.pt and the lock another run comes to its end."""
    words = command(*flags(dataset, tmp_path, "--steps", 3))
    fit(dataset, tmp_path, "--steps", 3)
    late = command(*flags(dataset, tmp_path, "--steps", 4, "--resume"))
    fit(dataset, tmp_path, "--steps", 5, "--resume")
    for run in (words, late):
        with pytest.raises(UserError, match="another process has just trained here"):
            train.main(*run)
    assert load_resume(tmp_path)["step"] == 5


def test_a_run_does_not_go_on_with_other_data(dataset, tmp_path):
    mine = shutil.copytree(dataset, tmp_path / "data")
    fit(mine, tmp_path / "run", "--steps", 2)
    lines = (mine / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (mine / "train.jsonl").write_text("".join(lines[:-2]), "utf-8")
    with pytest.raises(UserError, match="train.jsonl has changed since .*run began"):
        fit(mine, tmp_path / "run", "--steps", 3, "--resume")


def test_the_next_command_is_one_for_the_shell(capsys):
    run = SimpleNamespace(out="out/two words", began=0, facts={"task": "question"},
                          processes=Processes("cpu"))
    say_done(run, None)
    assert "sample.py --ckpt 'out/two words' picture.jpg --question" in capsys.readouterr().out


def test_two_runs_do_not_write_to_one_folder(dataset, tmp_path):
    """Until the one is killed: a dead process holds no lock."""
    told, tell = os.pipe()
    other = os.fork()
    if not other:
        with writing_alone(tmp_path, SimpleNamespace(main=True)):
            os.write(tell, b"!")
            signal.pause()
    os.read(told, 1)
    try:
        with pytest.raises(UserError, match=f"{tmp_path}: another process is training here"):
            fit(dataset, tmp_path)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    (tmp_path / "last.safetensors.17.tmp").touch()  # what it may leave
    fit(dataset, tmp_path, "--steps", 1)
    assert not list(tmp_path.glob("*.tmp"))


class Line(torch.nn.Linear):
    """As little of a model as a resume.pt can be of."""

    run_info = {"lm": {"sha256": "1"}, "clip": {"sha256": "2"}}
    trained = lambda self: dict(self.named_parameters())
    restore = lambda self, tensors, path: restore(self.trained(), tensors, path)


def line_run(folder):
    """A Line after one step, its optimiser and scaler, and a run as save_resume looks at it."""
    model, run = Line(2, 1), SimpleNamespace(config=train.Config(), method_config=train.Config(),
                                             folder=folder)
    (folder / "train.jsonl").touch()
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu")
    model(torch.ones(2)).backward()
    optimizer.step()
    return model, optimizer, scaler, run


@pytest.mark.parametrize("where, value", [
    ("step", -1), ("step", 1.5), ("config", []), ("config", None), ("method_config", "x"),
    ("trained", 1), ("trained", {"weight": 1, "bias": 2}), ("optimizer", {}), ("best", "x"),
    ("optimizer", {"state": {0: {"step": 1}}}), ("rng", torch.zeros(3)), ("frozen", None),
    ("optimizer", {"state": {0: {"step": torch.zeros(()), "exp_avg": torch.zeros(9),
                                 "exp_avg_sq": torch.zeros(9)}}}),
    ("alpha", torch.zeros(5)), ("alpha", None), ("scaler", 1), ("scaler", {}), ("step", 4)])
def test_odd_entries_of_a_resume_file_are_refused(tmp_path, where, value):
    """The last two are not odd: a run in float32 has no loss scale, and may go on in float16."""
    model, optimizer, scaler, run = line_run(tmp_path)
    path, more = tmp_path / "resume.pt", {"best": 1.0, "alpha": torch.zeros(4)}
    save_resume(path, 3, model, optimizer, scaler, run, **more)
    torch.save({**torch.load(path, weights_only=True), where: value}, path)
    go_on = lambda: put_back(load_resume(tmp_path), model, optimizer, scaler, **more)
    if (where, value) in (("scaler", {}), ("step", 4)):
        assert go_on()[:2] == [4 if where == "step" else 3, 1.0]
        return
    with pytest.raises(UserError, match="resume.pt is damaged|other frozen") as e:
        go_on()
    assert "\n" not in str(e.value)


def test_a_gpu_throws_its_dice_as_if_the_run_had_not_stopped(tmp_path, monkeypatch):
    thrown = []
    for name, f in {"is_initialized": lambda: True, "get_rng_state": lambda: torch.arange(3),
                    "set_rng_state": thrown.append}.items():
        monkeypatch.setattr(torch.cuda, name, f)
    model, optimizer, scaler, run = line_run(tmp_path)
    save_resume(tmp_path / "resume.pt", 3, model, optimizer, scaler, run)
    put_back(load_resume(tmp_path), model, optimizer, scaler)
    assert thrown[0].tolist() == [0, 1, 2]


def test_a_run_does_not_go_on_with_other_frozen_weights(dataset, tmp_path):
    shutil.copytree(TINY_GPT2, tmp_path / "lm")
    fit(dataset, tmp_path / "run", "--lm", tmp_path / "lm", "--steps", 1)
    tensors = read(tmp_path / "lm")
    tensors["transformer.wte.weight"][3] += 1
    write(tmp_path / "lm" / "model.safetensors", tensors, {"n_head": "4"})
    with pytest.raises(UserError, match="other frozen weights"):
        fit(dataset, tmp_path / "run", "--lm", tmp_path / "lm", "--steps", 2, "--resume")


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_sigterm_to_the_process_group_saves_although_workers_read_the_images(dataset, tmp_path):
    words = flags(dataset, tmp_path, "--workers", 2, "--steps", 100_000)
    run = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, start_new_session=True,
                           stdout=subprocess.PIPE, text=True)
    next(line for line in run.stdout if line.startswith("step 2/"))
    os.killpg(run.pid, signal.SIGTERM)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 130 and "stopped and saved after step" in said
    assert load_resume(tmp_path)["step"] >= 2


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_ctrl_c_while_torch_is_loaded_shows_no_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run([sys.executable, "train.py"], cwd=ROOT, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == -signal.SIGINT and not done.stderr


def test_two_processes_have_the_loss_curve_of_one(dataset, unbroken, tmp_path):
    words = "-m torch.distributed.run --standalone --nproc_per_node=2 train.py".split()
    done = subprocess.run([sys.executable, *words, *flags(dataset, tmp_path)], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and near(losses(tmp_path), unbroken[2]), done.stderr[-2000:]


def test_cached_features_give_the_same_run_up_to_their_rounding(dataset, unbroken, tmp_path):
    _, log = fit(dataset, tmp_path, "--cache")
    assert near(log, unbroken[2], 0.02) and len(list(dataset.glob("features-train-*.npy"))) == 1


# ---------------------------------------------------------------------------- what a run leaves

def test_a_run_leaves_the_method_alone_and_a_log(unbroken):
    """Nothing frozen is in a checkpoint; the loss has fallen."""
    out, tensors, log = unbroken
    assert all(n.startswith("method.xattn.") for n in tensors) and log[10] < log[1]
    *_, last = read_log(out / "log.jsonl")
    assert sys.platform == "win32" or 5e7 < last["peak_memory"] < 1e11  # torch alone takes 50 MB


def test_a_run_first_prints_its_recipe_and_what_is_not_at_its_default(dataset, tmp_path, capsys):
    fit(dataset, tmp_path, "--steps", 1, "--preset", "ituning-base", "--heads", 2)
    line, = [x for x in capsys.readouterr().out.splitlines() if x.startswith("recipe ")]
    assert "recipe ituning-base;" in line and "rows 3" in line and "heads 2" in line
    assert "seed" not in line and "width_ratio" not in line


def test_the_second_stage_begins_with_what_the_first_has_learnt(dataset, unbroken, tmp_path):
    """--init_from takes over method, settings and backbones; with a rate of 0 the weights stay."""
    first, _ = fit(dataset, tmp_path / "vg", *"--steps 3 --width_ratio 0.25 --heads 2".split())
    config, method, *rest = command(
        "--dataset", dataset, "--init_from", tmp_path / "vg", "--out", tmp_path / "coco", "--lr", 0,
        *"--batch 4 --rows 3 --steps 1 --workers 0 --device cpu".split())
    assert (config.lm, method.width_ratio, method.heads) == ("data/shapes/tiny-gpt2", 0.25, 2)
    train.main(config, method, *rest)
    assert same(read(tmp_path / "coco" / "last.safetensors"), first)
    _, log = fit(dataset, tmp_path / "more", "--init_from", tmp_path / "vg", "--steps", 1)
    assert log[1] < unbroken[2][1]  # from nothing


def test_a_second_stage_on_other_weights_or_settings_is_refused(dataset, unbroken, tmp_path):
    tensors = read(other := shutil.copytree(TINY_GPT2, tmp_path / "other"))
    next(iter(tensors.values())).view(-1)[0] += 1
    write(other / "model.safetensors", tensors)
    again = flags(dataset, tmp_path / "run", "--init_from", unbroken[0])
    for more, says in ((["--heads", 2], "other settings: heads 0, here 2"),  # of the same shape
                       (["--lm", other], "trained on other lm weights")):
        with pytest.raises(UserError, match=says):
            train.main(*command(*again, *more))


def test_the_loss_without_the_image_is_never_that_with_it(dataset, tmp_path):
    fit(dataset, tmp_path, "--steps", 1, "--eval_images", 1)  # there is no other image
    assert [x.keys() for x in read_log(tmp_path / "log.jsonl")][1] == {"step", "val_loss"}


# ---------------------------------------------------------------------------- learning rates

def test_tuned_backbones_have_a_rate_of_their_own():
    """No tensor is in two groups or in none, also GPT-2's tied embedding; no decay of biases."""
    model = build("vcgpt", train_lm=True, train_vision=True)
    config = train.Config(lr=3.0, backbone_lr=2.0, weight_decay=0.1)
    groups = make_optimizer(model.trained(), config, torch.device("cpu")).param_groups
    found = {id(p): (g["peak"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups)
    assert found == {id(p): (3.0 if n.startswith("method.") else 2.0, 0.1 * (p.dim() >= 2))
                     for n, p in model.trained().items()}


def test_the_backbones_move_with_their_rate(dataset, tmp_path):
    """--backbone_lr 0 leaves GPT-2 as it was while the method learns; above 0 it moves."""
    before = {f"lm.{n}": p for n, p in GPT2.from_pretrained(TINY_GPT2).named_parameters()}
    short = ("--train_lm", "--steps", 2, "--backbone_lr")
    still, _ = fit(dataset, tmp_path / "still", *short, 0)
    moved, _ = fit(dataset, tmp_path / "moved", *short, 1e-4)
    assert same(before, {n: t for n, t in still.items() if n in before})
    assert any(t.any() for n, t in still.items() if n.endswith(".o.weight"))  # 0 before training
    assert not any(torch.equal(moved[n], before[n]) for n in before if n.endswith("weight"))


def test_the_rate_rises_then_falls_to_zero():
    optimizer, rates = SimpleNamespace(param_groups=[{"peak": 1.0}, {"peak": 0.5}]), []
    for step in range(101):
        schedule(optimizer, step, 10, 100)
        rates.append([group["lr"] for group in optimizer.param_groups])
    one, half = map(list, zip(*rates))
    assert half == [rate / 2 for rate in one] and one[0] == pytest.approx(1 / 11)
    assert one[:11] == sorted(one[:11]) and one[10:] == sorted(one[10:], reverse=True)
    assert one[10] == 1 and one[55] == 0.5 and one[100] == 0


# ---------------------------------------------------------------------------- mistakes

@pytest.mark.parametrize("words, says", [("", "bad.png: not a readable image"),
                                         ("--score 3", "--score counts exact scenes")])
def test_an_image_that_is_broken_or_has_no_scene_is_an_error(words, says, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    for split in ("train", "val"):
        write_split(tmp_path, split, [{"id": 0, "image": "bad.png", "captions": ["a star"]}])
    with pytest.raises(UserError, match=says):
        fit(tmp_path, tmp_path / "run", "--batch", 1, *words.split())


@pytest.mark.parametrize("words, says", [
    ("--device cuda:9", "not available"), ("--dtype float16", "needs CUDA"),
    ("--device cpu:x", "cpu:x: not available"), ("--device cpu:", "cpu:: not available"),
    ("--batch 19", "--batch 19 is more than the 18 images"),
    ("--batch 1 --accumulate 2", "cannot be split"), ("--rows 0", "--rows 0: must be 1"),
    ("--lr -1", "--lr -1.0"), ("--steps 0 --epochs 0.01", "one step"), ("--beta2 1", "beta2 1.0"),
    ("--cache --train_vision", "no-cache"), ("--lm nowhere", "nowhere"), ("--resume", "resume.pt"),
    ("--first_layer 77", "first_layer"), ("--method itunin", "did you mean ituning"),
    ("--method ../x", "no method .../x"), ("--method model", "a class Method of its own"),
    ("--preset ituning-huge", "ituning-large"), ("--init_from nowhere", "no checkpoint here"),
    ("--search", "--method dvp"), ("--resume --out damaged", "damaged/resume.pt is damaged"),
    ("--resume --out odd", r"odd/resume.pt: beta2 \[1\]: must be of type float")])
def test_impossible_settings_are_refused(dataset, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    Path("damaged").mkdir()
    Path("damaged/resume.pt").write_bytes(b"half a file")
    Path("odd").mkdir()
    settings = {"config": {"lm": "x", "method": "ituning", "beta2": [1]}, "method_config": {}}
    torch.save({"step": 1, **settings}, "odd/resume.pt")
    with pytest.raises(UserError, match=says) as e:
        fit(dataset, tmp_path / "run", *words.split())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name, there", [("cuda", True), ("cuda:1", True), ("cuda:2", False),
                                         ("cuda:", False), ("cuda:-1", False), ("cuda:01", False)])
def test_a_device_has_a_number_that_is_there(name, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if there:
        assert str(pick_device(name)) == name
    else:
        with pytest.raises(UserError, match=f"--device {name}: not available here; cuda"):
            pick_device(name)


@pytest.mark.parametrize("environment, says", [
    ({"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}, "process 1 of 2 did not meet"),
    ({"RANK": "0"}, "MASTER_ADDR"), ({"RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT")])
def test_a_process_does_not_wait_for_ever_for_the_others(environment, says, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Processes, "MEET", timedelta(seconds=1))
    with pytest.raises(UserError, match=says) as e:
        Processes("cpu")
    assert "\n" not in str(e.value)


def test_a_process_that_has_lost_the_others_says_so(monkeypatch):
    def all_reduce(x):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer\nin C++")

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    alone = Processes("cpu")
    alone.size = 2
    for lost in (alone.barrier, lambda: alone.sum_gradients([torch.nn.Parameter(torch.ones(1))])):
        with pytest.raises(UserError, match="^process 0 lost the others[^\n]*$"):
            lost()


@pytest.mark.parametrize("part, gives, says", [
    ("k", "self.k(feats.mean(1)).detach() + self.q", "no gradient reaches method.k.weight:"),
    ("k", "self.k(feats.mean(1))", "no gradient reaches method.q:"),
    ("k", "(self.k(feats.mean(1)) + self.q).detach()", "no gradient reaches what is trained")])
def test_a_method_that_the_gradient_does_not_reach_is_refused(
        dataset, tmp_path, monkeypatch, part, gives, says):
    monkeypatch.chdir(tmp_path)
    name = f"mine{abs(hash(gives))}"
    Path(f"{name}.py").write_text(f"""import torch
from dataclasses import dataclass
from model import Method as Base

class Method(Base):
    @dataclass
    class Config:
        pass
    def __init__(self, config, lm, vit):
        super().__init__()
        self.k = torch.nn.Linear(vit.width, lm.config.n_embd, bias=False)
        self.q = torch.nn.Parameter(torch.zeros(lm.config.n_embd))
    def encode_image(self, feats):
        return {gives}
    def block(self, l, layer, x, ctx, state):
        return layer(x + ctx.repeat_interleave(len(x) // len(ctx), 0)[:, None], state.cache, l)
""")
    with pytest.raises(UserError, match=says):
        fit(dataset, tmp_path / "run", "--method", name)


def test_on_a_terminal_a_step_overwrites_the_one_before_and_what_is_kept_leaves_no_rest_of_it(
        monkeypatch, capsys):
    processes = Processes("cpu")
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        for words, renew in (("step 1, a long line", True), ("step 2", True), ("saved", False)):
            processes.say(words, renew=renew)
    pipe, terminal = capsys.readouterr().out.split("saved\n", 1)
    assert pipe == "step 1, a long line\nstep 2\n"
    assert terminal == f"step 1, a long line\r{'step 2':19}\r{'saved':6}\n"
