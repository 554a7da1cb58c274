"""The loop: batches, weighting, exact resume, two processes, and what a user's mistake ends in.

A tiny dataset is drawn from the shapes world; the backbones are the committed ones.
"""

import json
import os
import random
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from lib.cli import UserError
from data.common import write_meta, write_split
from data.shapes import world
from gpt2 import CONV1D
from weights.tokenizers import get_tokenizer
from weights.reading import read

ROOT = Path(__file__).resolve().parent.parent
ENC = get_tokenizer(ROOT / "data" / "shapes" / "tiny-gpt2")
EOT = ENC.eot_token


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """18 train and 6 val images; some with fewer or more captions than rows."""
    folder = tmp_path_factory.mktemp("mini")
    rng = random.Random(0)
    for split, n in (("train", 18), ("val", 6)):
        items = []
        for i in range(n):
            scene = world.sample_from(rng, 1 + i % 2, ("train",))
            world.render(scene, rng).save(folder / f"{split}{i}.png")
            captions = world.captions(scene, rng)
            items.append({"id": i, "image": f"{split}{i}.png", "captions": (captions + captions[:2])[:(5, 1, 7, 6)[i % 4]],
                          "scene": world.to_json(scene)})
        write_split(folder, split, items)
    write_meta(folder, {"task": "caption"})
    return folder


def flags(dataset, out, *more):
    """A short run on the mini dataset with the tiny backbones, as command-line words."""
    return ["--dataset", str(dataset), "--out", str(out), "--gpt2", "data/shapes/tiny-gpt2",
            "--clip", "data/shapes/tiny-clip", "--batch", "4", "--rows", "3", "--steps", "10", "--lr", "2e-3",
            "--warmup", "2", "--eval_every", "5", "--log_every", "1", "--workers", "0", "--device", "cpu", *more]


def fit(dataset, out, *more):
    train.main(*train.command_line(flags(dataset, out, *more)))
    return read(Path(out) / "last.safetensors"), losses(out)


def losses(out):
    """{step: training loss} of a run's log."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return {x["step"]: x["loss"] for x in lines if "loss" in x}


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory):
    """Ten steps without a stop: what the other ways of doing ten steps are held against."""
    return fit(dataset, tmp_path_factory.mktemp("unbroken") / "run")


# ---------------------------------------------------------------------------- rows of text

def test_a_row_is_asked_for_every_word_and_the_end_and_for_no_padding():
    """"a star" -> idx [EOT, a, star], targets [a, star, EOT]; a shorter caption is pad with -1."""
    a, star, red = (ENC.encode_ordinary(w)[0] for w in ("a", " star", " red"))
    idx, targets, cond = train.text_rows([[("", {"a star": 1}), ("", {"a": 1})]], 3, ENC, 40)
    assert idx.tolist() == [[EOT, a, star], [EOT, a, EOT], [EOT, EOT, EOT]] and cond.tolist() == [1, 1, 1]
    assert targets.tolist() == [[a, star, EOT], [a, EOT, -1], [-1, -1, -1]]
    _, targets, _ = train.text_rows([[("", {"a red star": 1})]], 1, ENC, max_tokens=2)
    assert targets.tolist() == [[a, red, EOT]]


def test_the_exclamation_mark_survives():
    """pitfall: id 0 is "!" in GPT-2's vocabulary. Who pads with 0 never learns it."""
    bang, = ENC.encode_ordinary("!")
    _, targets, _ = train.text_rows([[("", {"!": 1}), ("", {"a star": 1})]], 2, ENC, 40)
    assert targets[0].tolist() == [bang, EOT, -1]


def test_more_padding_changes_neither_the_loss_nor_the_gradients():
    from test_methods import build
    model = build("ituning")
    torch.manual_seed(0)
    images, idx, targets = torch.randn(2, 3, 16, 16), torch.randint(0, 37, (4, 5)), torch.randint(0, 37, (4, 5))
    targets[0, 3:] = -1
    results = []
    for pad in (0, 6):
        model.zero_grad()
        more = torch.nn.functional.pad
        loss = model(images, more(idx, (0, pad), value=36), more(targets, (0, pad), value=-1))[1]
        loss.backward()
        results.append([loss.detach()] + [p.grad.clone() for p in model.trained().values()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_images_with_1_5_6_and_7_captions_in_a_batch_have_the_loss_of_one_caption_at_a_time():
    from test_methods import build
    model = build("ituning").eval()
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    texts = ["a star", "a", "a red star", "red", "a red", "star", "star star"]
    texts = [[("", {text: 1}) for text in texts[:n]] for n in (1, 5, 6, 7)]
    enc = ByteLike()
    loss = model(images, *train.text_rows(texts, 7, enc, 40))[1]
    total, count = 0.0, 0
    for image, captions in zip(images, texts):
        for text in captions:
            idx, targets, _ = train.text_rows([[text]], 1, enc, 40)
            n = int((targets != -1).sum())
            total, count = total + model(image[None], idx, targets)[1].item() * n, count + n
    assert abs(loss.item() - total / count) < 1e-5


class ByteLike:
    """An encoding of letters for the 37-token model of test_methods."""
    eot_token = 36

    def encode_ordinary(self, text):
        return [ord(c) % 36 for c in text]


# ---------------------------------------------------------------------------- batches

def test_batches_are_a_function_of_the_step_and_every_epoch_sees_every_image(dataset):
    config, _, _ = train.command_line(flags(dataset, "x"))
    data = train.Batches(train.group_by_image(train.load_split(dataset, "train")), ENC, config, 64)
    places = [train.order(config.seed, e, 18).tolist() for e in range(3)]
    assert all(sorted(p) == list(range(18)) for p in places) and places[0] != places[1]
    (images, idx, *_), = data[4]  # steps 4: places 16, 17 of epoch 0 and 0, 1 of epoch 1
    want = data.images([*places[0][16:], *places[1][:2]])
    assert torch.equal(images, want)
    assert torch.equal(idx, data[4][0][1])


def test_surplus_captions_come_up_in_other_epochs(dataset):
    config, _, _ = train.command_line(flags(dataset, "x"))
    entries = train.group_by_image(train.load_split(dataset, "train"))
    data, seen = train.Batches(entries, ENC, config, 64), set()
    for epoch in range(12):
        (_, idx, *_), = data.micro([(3, np.random.default_rng((config.seed, 1, epoch, 3)))])
        seen |= {ENC.decode([t for t in row if t != EOT]) for row in idx.tolist()}
    captions = {answer for _, answers in entries[3]["texts"] for answer in answers}
    assert len(entries[3]["texts"]) == 6 and seen == captions


def test_a_broken_image_is_named(dataset, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    for split in ("train", "val"):
        write_split(tmp_path, split, [{"id": 0, "image": "bad.png", "captions": ["a star"]}])
    with pytest.raises(UserError, match="bad.png"):
        fit(tmp_path, tmp_path / "run")


# ---------------------------------------------------------------------------- the same steps, other ways

def test_stop_and_resume_is_exact(dataset, unbroken, tmp_path, monkeypatch):
    """Ctrl-C after step 3, resume, Ctrl-C after step 7, resume: bit-equal to ten steps at once."""
    tensors, log = unbroken
    out = tmp_path / "run"
    for last, more in ((3, ()), (7, ("--resume",)), (None, ("--resume",))):
        steps = iter(range(100))
        first = 0 if last == 3 else 3 if last == 7 else 7
        monkeypatch.setattr(train.Stop, "asked", property(
            lambda self: last is not None and next(steps) + first + 1 >= last, lambda self, v: None), raising=False)
        if last:
            with pytest.raises(KeyboardInterrupt):
                fit(dataset, out, *more)
        else:
            resumed, again = fit(dataset, out, *more)
    assert same(resumed, tensors) and again == log


def test_killed_at_any_moment_a_run_resumes_exactly(dataset, unbroken, tmp_path):
    """kill -9 as soon as resume.pt exists; the log has gone further, and is cut back."""
    out = tmp_path / "run"
    command = [sys.executable, "train.py", *flags(dataset, out, "--eval_every", "2")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (out / "resume.pt").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    if (out / "log.jsonl").exists():
        with open(out / "log.jsonl", "a") as f:
            f.write('{"step": 99, "loss": 1}\n{"step": 3, "lo')  # what a kill can leave behind
    resumed, log = fit(dataset, out, "--resume")
    assert same(resumed, unbroken[0]) and log == unbroken[1]


def test_accumulation_equals_a_big_batch(dataset, unbroken, tmp_path):
    """1 x 4 and 4 x 1 images: captions of unequal length are weighted by their tokens, not by batch."""
    tensors, log = fit(dataset, tmp_path / "run", "--accumulate", "4")
    for step in log:
        assert abs(log[step] - unbroken[1][step]) < 1e-4
    for n in tensors:
        torch.testing.assert_close(tensors[n], unbroken[0][n], rtol=0, atol=1e-3)


def test_two_processes_have_the_loss_curve_of_one(dataset, unbroken, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "train.py", *flags(dataset, out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    log = losses(out)
    assert log.keys() == unbroken[1].keys()
    for step in log:
        assert abs(log[step] - unbroken[1][step]) < 1e-4


def test_cached_features_give_the_same_run_up_to_their_rounding(dataset, unbroken, tmp_path):
    _, log = fit(dataset, tmp_path / "run", "--cache")
    for step in log:
        assert abs(log[step] - unbroken[1][step]) < 0.02
    assert len(list(dataset.glob("features-train-*.npy"))) == 1


# ---------------------------------------------------------------------------- what a run leaves

def test_the_checkpoint_holds_the_method_and_nothing_frozen(dataset, unbroken):
    tensors, log = unbroken
    assert all(n.startswith("method.xattn.") for n in tensors) and len(tensors) % 8 == 0
    assert log[10] < log[1]


def test_a_run_is_never_overwritten(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = train.Config(dataset="shapes")
    assert train.run_folder(config) == Path("out/shapes-ituning")
    Path("out/shapes-ituning").mkdir(parents=True)
    assert train.run_folder(config) == Path("out/shapes-ituning-2")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "resume.pt").write_bytes(b"")
    with pytest.raises(UserError, match="already holds a run"):
        fit(dataset, tmp_path / "mine")


def test_settings_of_a_resumed_run_are_its_own(dataset, tmp_path):
    fit(dataset, tmp_path / "run", "--steps", "2", "--first_layer", "1")
    config, method, state = train.command_line(["--resume", "--out", str(tmp_path / "run")])
    assert (config.batch, config.lr, method.first_layer, state["step"]) == (4, 2e-3, 1, 2)


def test_the_second_stage_begins_with_what_the_first_has_learnt(dataset, unbroken, tmp_path):
    """--init_from takes over method, switches and backbones; a learning rate of 0 leaves the weights as they came."""
    first, _ = fit(dataset, tmp_path / "vg", "--steps", "3", "--width_ratio", "0.25", "--heads", "2")
    words = ["--dataset", str(dataset), "--init_from", str(tmp_path / "vg"), "--out", str(tmp_path / "coco"),
             "--batch", "4", "--rows", "3", "--steps", "1", "--lr", "0", "--workers", "0", "--device", "cpu"]
    config, method, state = train.command_line(words)
    assert (config.gpt2, method.width_ratio, method.heads, state) == ("data/shapes/tiny-gpt2", 0.25, 2, None)
    train.main(config, method, state)
    assert same(read(tmp_path / "coco" / "last.safetensors"), first)
    _, log = fit(dataset, tmp_path / "more", "--init_from", str(tmp_path / "vg"), "--steps", "1")
    assert log[1] < unbroken[1][1]  # from nothing


def test_resume_does_not_go_on_with_another_dataset_method_or_seed(dataset, tmp_path):
    fit(dataset, run := tmp_path / "run", "--steps", "1")
    for flags in (["--dataset", "shapes/vqa"], ["--method", "prefix"], ["--seed", "7"]):
        with pytest.raises(UserError, match=f"--resume goes on with .*, where {flags[0]} is "):
            train.command_line(["--resume", "--out", str(run), *flags])


def test_a_preset_names_the_paper_s_sizes_and_flags_win_over_it():
    config, method, _ = train.command_line(["--dataset", "coco", "--preset", "ituning-medium", "--lr", "3e-4"])
    assert (config.gpt2, config.clip, method.width_ratio, config.lr) == ("gpt2-medium", "ViT-B/16", 0.5, 3e-4)
    assert config.batch * config.rows == 65


def test_a_method_has_its_own_settings_on_a_dataset(monkeypatch):
    """In the order: default, dataset, method on it, command line."""
    monkeypatch.setitem(train.SETTINGS, "shapes prefix", {"lr": 0.5})
    monkeypatch.setitem(train.SETTINGS, "shapes", {**train.SETTINGS["shapes"], "lr": 0.4})
    assert [train.command_line(["--method", m])[0].lr for m in ("ituning", "prefix")] == [0.4, 0.5]
    assert train.command_line(["--method", "prefix", "--lr", "2"])[0].lr == 2


@pytest.mark.parametrize("name, method, config, switches", [
    ("vcgpt", "vcgpt", dict(train_lm=False, train_vision=False), dict(n_fusion=6, self_ensemble=True)),
    ("vcgpt-tuned", "vcgpt", dict(train_lm=True, train_vision=True, lr=1e-4, backbone_lr=1e-5), dict(n_fusion=6)),
    ("vanilla", "vanilla", dict(clip="ViT-B/16", lr=1e-4), dict(gate=False)),
    ("clipcap", "prefix", dict(train_lm=False, lr=2e-5, warmup=5000, clip="ViT-B/32"), dict(mapper="transformer")),
    ("clipcap-tuned", "prefix", dict(train_lm=True, lr=2e-5, backbone_lr=2e-5), dict(mapper="mlp", prefix_length=10))])
@pytest.mark.parametrize("dataset", ["coco", "visual_genome"])
def test_every_way_to_connect_has_a_preset(dataset, name, method, config, switches):
    c, m, _ = train.command_line(["--dataset", dataset, "--preset", name])
    assert (c.dataset, c.method, c.gpt2) == (dataset, method, "gpt2")
    assert config.items() <= vars(c).items() and switches.items() <= vars(m).items()


# ---------------------------------------------------------------------------- learning rates

def test_tuned_backbones_have_a_rate_of_their_own():
    """No tensor is in two groups or in none; GPT-2's tied embedding is counted once; W_fuse is not tied to it."""
    from test_methods import build
    model = build("vcgpt", train_lm=True, train_vision=True)
    config = train.Config(lr=3.0, backbone_lr=2.0, weight_decay=0.1)
    groups = train.make_optimizer(model, config, torch.device("cpu")).param_groups
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    rate = {id(p): g["peak"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for n, p in model.trained().items():
        assert rate[id(p)] == (3.0 if n.startswith("method.") else 2.0), n
        assert decay[id(p)] == (0.1 if p.dim() >= 2 else 0.0), n
    assert model.lm.wte.weight is not model.method.w_fuse.weight


def test_the_backbones_move_with_their_rate(dataset, tmp_path):
    """--backbone_lr 0 leaves GPT-2 as it was while the method learns; above 0 it moves, and --resume keeps the rate."""
    before = {f"gpt2.{n}": p for n, p in train.GPT2.from_pretrained(ROOT / "data" / "shapes" / "tiny-gpt2").named_parameters()}
    still, _ = fit(dataset, tmp_path / "a", "--train_lm", "--backbone_lr", "0", "--steps", "2")
    assert set(before) <= set(still) and all(torch.equal(still[n], before[n]) for n in before)
    assert any(t.any() for n, t in still.items() if n.endswith(".o.weight"))  # zero at the start
    moved, _ = fit(dataset, tmp_path / "b", "--train_lm", "--backbone_lr", "1e-4", "--steps", "2")
    assert all(not torch.equal(moved[n], before[n]) for n in before if n.endswith("weight"))
    saved = train.load_resume(tmp_path / "b")["optimizer"]["param_groups"]
    assert {g["peak"] for g in saved} == {2e-3, 1e-4}


def test_the_rate_rises_then_falls_to_zero():
    one, half = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    optimizer, rates = torch.optim.AdamW(train.parameter_groups([one], 1.0, 0.1) + train.parameter_groups([half], 0.5, 0.1)), []
    for step in range(101):
        train.schedule(optimizer, step, 10, 100)
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == rates[-1] / 2
    assert rates[:10] == sorted(rates[:10]) and rates[10] == max(rates) == 1 and rates[100] == 0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[55] == 0.5


def test_a_run_ends_with_the_most_memory_it_held(unbroken, dataset, tmp_path):
    fit(dataset, tmp_path / "run", "--steps", "1")
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    if sys.platform != "win32":
        assert 5e7 < last["peak_memory"] < 1e11  # torch alone takes more than 50 MB


# ---------------------------------------------------------------------------- mistakes end in one line

def failing(*words, cwd=ROOT):
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_a_typo_in_a_flag_is_answered_with_the_nearest_one():
    assert "did you mean --steps?" in failing("train.py", "--step", "3")


def test_an_absent_dataset_says_what_to_run(tmp_path):
    if not (ROOT / "data" / "coco" / "train.jsonl").exists():
        assert "python data/coco/prepare.py" in failing("train.py", "--dataset", "coco", "--out", str(tmp_path / "x"))
    assert "did you mean" in failing("train.py", "--dataset", "cocoo", "--out", str(tmp_path / "x"))


@pytest.mark.parametrize("words, says", [
    (["--device", "cuda:9"], "not available"), (["--dtype", "float16", "--device", "cpu"], "needs CUDA"),
    (["--batch", "1", "--accumulate", "2"], "cannot be split"),
    (["--rows", "0"], "--rows 0: must be 1"), (["--lr", "-1"], "--lr -1.0"), (["--steps", "0", "--epochs", "0.01"], "one step"), (["--resume"], "resume.pt"),
    (["--cache", "--train_vision"], "no-cache"), (["--gpt2", "nowhere"], "nowhere"),
    (["--first_layer", "77"], "first_layer"), (["--method", "itunin"], "did you mean ituning"),
    (["--preset", "ituning-huge"], "ituning-large"), (["--init_from", "nowhere"], "no checkpoint here")])
def test_impossible_settings_are_refused(dataset, tmp_path, words, says):
    with pytest.raises(UserError, match=says):
        fit(dataset, tmp_path / "run", *words)


def test_a_second_stage_on_other_frozen_weights_is_refused(dataset, tmp_path):
    fit(dataset, tmp_path / "vg", "--steps", "1")
    model = train.GPT2.from_pretrained(ROOT / "data" / "shapes" / "tiny-gpt2")
    with torch.no_grad():
        model.wpe.weight[0, 0] += 1
    (tmp_path / "other").mkdir()
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / "other" / name).write_bytes((ROOT / "data" / "shapes" / "tiny-gpt2" / name).read_bytes())
    torch.save({k: v.t() if k.endswith(CONV1D) else v for k, v in model.state_dict().items()},
               tmp_path / "other" / "pytorch_model.bin")
    with pytest.raises(UserError, match="other settings: heads 0, here 2"):  # same shapes, another function
        fit(dataset, tmp_path / "run", "--init_from", str(tmp_path / "vg"), "--heads", "2")
    with pytest.raises(UserError, match="trained on other gpt2 weights"):
        fit(dataset, tmp_path / "run", "--init_from", str(tmp_path / "vg"), "--gpt2", str(tmp_path / "other"))


def test_a_damaged_resume_file_is_refused(tmp_path):
    (tmp_path / "resume.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match="is damaged"):
        train.load_resume(tmp_path)


def test_readme_commands_parse():
    """Every `python FILE.py ...` line of the README is accepted by that file's parser."""
    import evaluate  # noqa: F401
    lines = re.findall(r"^(?:torchrun .*?|python )(\w+\.py.*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert len(lines) > 5
    for line in lines:
        name, *words = shlex.split(line.split("#")[0].replace("...", ""))
        if name == "train.py":
            # no run to resume here, and mymethod.py is the reader's own
            words = [w.replace("mymethod", "ituning") for w in words if w != "--resume"]
            if "--init_from" in words:  # nor a first stage
                at = words.index("--init_from")
                del words[at:at + 2]
            train.command_line(words)
        else:
            module = __import__(name.removesuffix(".py"))
            train.parse(module.Config, argv=words)
