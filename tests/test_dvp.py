"""Questions from beginning to end: the search for DVP's layer, and what a trained model is asked.
The runs are short and on a mini dataset, the backbones the committed ones.
"""

import itertools
import json
import math
import random
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_methods import build, inputs
from test_train import fit, same

import sample
import train
from data.batches import Batch, Batches, answer_accuracy
from data.common import write_meta, write_split
from data.features import image_features_of
from data.shapes import world
from data.shapes.drawing import render
from data.shapes.prepare import scene_items
from data.tasks import load_split
from evaluate import __main__ as evaluate
from evaluate.captioning import answer
from evaluate.vqa import score_answers
from lib import runs
from lib.cli import UserError, parse
from lib.runs import read_log
from model import SeeGPT
from prompts import Bandit, score_layers
from weights.checkpoints import read_run_info

HEAD = ["--method", "dvp", "--readout", "head", "--steps", 6]


def call(module, *words):
    module.main(*parse(module.Config, argv=[str(word) for word in words]))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """24 train and 8 val pictures of the shapes world with three questions each."""
    folder, rng = tmp_path_factory.mktemp("vqa"), random.Random(0)
    for split, n in (("train", 24), ("val", 8)):
        items = []
        for i in range(n):
            scene = world.sample_from(rng, 1 + i % 2, ("train",))
            render(scene, rng).save(folder / f"{split}{i}.png")
            items += [{"image": f"{split}{i}.png", **x} for x in scene_items("vqa", scene, rng)]
        write_split(folder, split, [{"id": i, **item} for i, item in enumerate(items)])
    write_meta(folder, {"task": "vqa"})
    return folder


@pytest.fixture
def rewrite(questions, tmp_path):
    """rewrite({key: value}): a copy of the mini questions with other values (None: without) in all
    items or every second one; test is as val."""
    def rewrite(change, every=1):
        for split, source in (("train", "train"), ("val", "val"), ("test", "val")):
            items = load_split(questions, source)
            for i, item in enumerate(items):
                item |= {"image": str(item["image"]), **(change if i % every == 0 else {})}
            write_split(tmp_path, split, [
                {k: v for k, v in item.items() if k == "image" or v is not None} for item in items])
        return tmp_path
    return rewrite


# ---------------------------------------------------------------------------- the search

@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("readout", ["head", "lm"])
def test_a_layer_earns_its_accuracy_or_exp_of_minus_its_loss_in_percent(readout):
    """On micro-batches of three rows and of two that count, each layer in its own place."""
    model = build("dvp", settings=dict(insert_layer=-1, readout=readout, answers=list("abcde")))
    images, idx, targets = inputs()
    if readout == "head":
        targets = torch.eye(5)[[0, 1, 2, 3, 4, 0]]
        targets[5] = -1
    batch = [Batch(images[b:b + 1], idx[3 * b:3 * b + 3], targets[3 * b:3 * b + 3], None)
             for b in range(2)]
    earned, want = score_layers(model, batch, torch.tensor([2, 0, 2]), nullcontext()), []
    counts = (3, 2) if readout == "head" else [int((t.targets != -1).sum()) for t in batch]
    for model.method.K in (2, 0, 2):
        found = [(*model(*micro), micro.targets) for micro in batch]
        scores = [answer_accuracy(logits, right) if readout == "head" else math.exp(-loss.item())
                  for logits, loss, right in found]
        want.append(100 * np.average(scores, weights=counts))
    assert earned.tolist() == pytest.approx(want) and want[0] != want[1]


@pytest.mark.parametrize("layers, scores, moves", [
    ([0, 1, 2, 3, 4], [60, 50, 50, 50, 50], [0.0030556] + [-0.00076389] * 4),  # the paper's rule
    ([0, 0, 0, 0, 0], [60, 50, 50, 50, 50], [0.0]),  # all draws on one layer
    ([0, 1, 2, 3, 4], [50, 50, 50, 50, 50], [0.0])])  # equal scores
def test_the_first_step_of_the_bandit(layers, scores, moves):
    bandit = Bandit(12)
    bandit.update(torch.tensor(layers), torch.tensor(scores, dtype=torch.float64))
    want = torch.tensor(moves + [0.0] * (12 - len(moves)), dtype=torch.float64)
    torch.testing.assert_close(bandit.alpha, want, rtol=0, atol=1e-7)


def test_a_planted_best_layer_is_found_in_95_of_100_seeds():
    """50 + 5 * [layer 4] + N(0, 3) percent, twelve layers: 500 steps, of 2,100 in the paper's
    shortest search."""
    found = 0
    for seed in range(100):
        dice, bandit = torch.Generator().manual_seed(seed), Bandit(12)
        for _ in range(500):
            layers = bandit.sample_layers(dice)
            noise = torch.randn(len(layers), generator=dice, dtype=torch.float64)
            bandit.update(layers, 50 + 5.0 * (layers == 4) + 3 * noise)
        found += int(bandit.alpha.argmax()) == 4
    assert found >= 95


def test_a_supernet_step_moves_only_the_drawn_layers_cross_attention(
        questions, tmp_path, monkeypatch):
    """Step by step, since AdamW's momentum would move a layer of an earlier one, were its gradient
    zero, not None. The images that reward are none of those that train."""
    steps, parts, subset, build = [], [], Batches.subset, train.Run.build

    def watched_subset(self, indices, *batch):
        parts.append({*indices.tolist()})
        return subset(self, indices, *batch)

    def watched_build(run, config):
        model = build(run, config)
        keep = lambda: {n: p.detach().clone() for n, p in model.trained().items() if "xattn" in n}
        if config.insert_layer < 0:
            model.register_forward_pre_hook(
                lambda m, inputs: steps.append((m.method.K, keep())) if m.training else None)
        return model

    monkeypatch.setattr(Batches, "subset", watched_subset)
    monkeypatch.setattr(train.Run, "build", watched_build)
    fit(questions, tmp_path / "run", *HEAD, "--search", "--search_epochs", 1.5, "--steps", 1)
    assert len({K for K, _ in steps}) > 2  # several layers were drawn
    for (drawn, before), (_, after) in zip(steps, steps[1:]):
        for l in range(4):
            mine = [n for n in after if n.startswith(f"method.xattn.{l}.")]
            assert all(torch.equal(after[n], before[n]) for n in mine) == (l != drawn)
    assert len(parts) == 2 and not parts[0] & parts[1] and parts[0] | parts[1] == set(range(24))


def test_search_then_retrain_with_the_found_layer_and_resume_is_exact(
        questions, tmp_path, monkeypatch):
    """Stopped in the search, and again in training: the layer, the policy and the weights are those
    of an unbroken run. Nothing that was learnt in the search is inherited, by GPT-2 neither: the
    found layer's own run with this seed gives the same bits."""
    flags, a, b = [*HEAD, "--train_lm"], tmp_path / "a", tmp_path / "b"
    search = [*flags, "--search", "--search_epochs", 1]  # six steps, too
    tensors, found = fit(questions, a, *search)[0], json.loads((a / "search.json").read_text())
    assert found["policy"][found["layer"]] == max(found["policy"]) and len(found["policy"]) == 4
    config = read_run_info(a)["config"]
    assert config["insert_layer"] == found["layer"] and len(config["answers"]) > 2
    own, _ = fit(questions, tmp_path / "c", *flags, "--insert_layer", found["layer"])
    assert same(own, tensors)

    def interrupted(*args, load_batches=runs.load_batches):  # Ctrl-C in the 4th and the 8th step
        for step, batch in load_batches(*args):
            if next(count) in (4, 8):
                signal.raise_signal(signal.SIGINT)
            yield step, batch

    count = itertools.count(1)
    monkeypatch.setattr(runs, "load_batches", interrupted)
    for more, stopped_in in (((), "search.pt"), (("--resume",), "resume.pt")):
        with pytest.raises(KeyboardInterrupt):
            fit(questions, b, *search, *more)
        assert (b / stopped_in).exists() and (b / "resume.pt").exists() == bool(more)
    assert json.loads((b / "search.json").read_text()) == found
    assert same(*(torch.load(run / "search.pt")["trained"] for run in (a, b)))
    assert same(fit(questions, b, *search, "--resume")[0], tensors)


# ---------------------------------------------------------------------------- what is asked

@pytest.fixture(scope="module")
def trained(questions, tmp_path_factory):
    """A short run that chooses among the answers of the mini questions."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    fit(questions, folder, *HEAD, "--insert_layer", 2)
    return folder


def test_a_method_of_ones_own_that_chooses_is_trained_and_asked_like_dvp(
        questions, tmp_path, monkeypatch):
    (tmp_path / "mychooser.py").write_text("from test_model import Chooser as Method\n")
    monkeypatch.chdir(tmp_path)
    fit(questions, tmp_path / "run", "--method", "mychooser")
    line = next(x for x in read_log(tmp_path / "run" / "log.jsonl") if "accuracy" in x)
    assert line["val_loss"] != line["blind_loss"]  # that of exchanged images
    model = SeeGPT.load(tmp_path / "run")
    (answer, p), = model.answer(torch.randn(1, 3, 64, 64), ["is there a star?"], top=1)[0]
    assert answer in model.method.answers and p > 1 / 3


def test_questions_without_a_picture_are_learnt_beside_the_others(rewrite, tmp_path):
    """As in ScienceQA: half of the items have no image. I-Tuning refuses them."""
    folder = rewrite({"image": None}, every=2)
    fit(folder, tmp_path / "run", "--method", "dvp", "--steps", 3)
    assert len([1 for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]) == 3
    with pytest.raises(UserError, match="items without an image"):
        fit(folder, tmp_path / "other", "--method", "ituning")


def test_evaluation_answers_every_question_and_counts_the_right_ones(
        questions, trained, tmp_path, capsys):
    call(evaluate, "--ckpt", trained, "--dataset", questions, "--split", "val", "--json",
         tmp_path / "s.json", "--batch", 3)
    result, = json.loads((tmp_path / "s.json").read_text())["rows"]
    answers = json.loads((tmp_path / result["answers"]).read_text())
    items, model = load_split(questions, "val"), SeeGPT.load(trained)
    assert [a["question_id"] for a in answers] == [item["id"] for item in items]
    for item, given in zip(items, answers):
        feats = image_features_of(model, [item], "cpu")
        assert model.answer(feats, [item["question"]], top=1)[0][0][0] == given["answer"]
    right = sum(a["answer"] in item["answers"] for a, item in zip(answers, items)) / len(items)
    assert result["scores"]["accuracy"]["score"] == pytest.approx(100 * right)
    out = capsys.readouterr().out
    assert f"{100 * right:.1f} [" in out and "yes or no" in out


def test_a_question_that_is_too_long_is_answered_with_nothing(questions, trained, capsys):
    items, model = load_split(questions, "val")[:3], SeeGPT.load(trained)
    items[1]["question"] = "star " * 500
    texts = answer(model, items, SimpleNamespace(batch=2, max_new_tokens=5), nullcontext())
    assert [bool(text) for text in texts] == [True, False, True]
    assert "1 of 3 questions are longer than" in capsys.readouterr().err


def test_a_split_without_answers_is_answered_but_not_scored(rewrite, trained, tmp_path, capsys):
    words = "--ckpt", trained, "--dataset", rewrite({"answers": None})
    with pytest.raises(UserError, match="no answers to compare with; --json"):
        call(evaluate, *words)
    call(evaluate, *words, "--json", tmp_path / "s.json")
    row, = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert "no answers to compare with" in capsys.readouterr().out and row["scores"] == {}
    assert len(json.loads((tmp_path / row["answers"]).read_text())) == 24


@pytest.mark.parametrize("item, answers, right", [
    (dict(answers={"yes": 3}, raw_answers=["yes"] * 3 + ["No."] * 7), ["Yes", "no", "green"],
     [0.9, 1, 0]),  # VQA accuracy where ten people answered
    (dict(choices=["a", "b"], answers={"B": 1}), [" B. because of\nthis", "(B) b", "B"], [1] * 3),
    (dict(choices=["a", "b"], answers={"B": 1}), ["A", "", "Because", "both", "B answer"], [0] * 5),
    (dict(answers={"yes": 8, "no": 2}), ["yes", "no", "maybe"], [1, 0, 0]),  # as answer_accuracy
    (dict(label="yes"), ["yes"], None)])  # a question has "answers"
def test_answers_are_scored_by_what_people_said(item, answers, right):
    item = {"id": 1, "image": None, "question": "is it?", **item}
    scores, found = score_answers(answers, [item] * len(answers))
    if right is None:
        assert (scores, found) == ({}, None)
    else:
        assert found.tolist() == pytest.approx(right)
        assert scores["accuracy"][0] == pytest.approx(100 * sum(right) / len(right))


def test_one_asks_about_a_picture(questions, trained, tmp_path, capsys):
    photo = questions / "val0.png"
    ask = photo, "--question", "is there a star?", "--attn", tmp_path / "a.png"
    call(sample, "--ckpt", trained, *ask, "--json", tmp_path / "a.json")
    found, = json.loads((tmp_path / "a.json").read_text())
    assert found["question"] == "is there a star?" and len(found["answers"]) == 3
    says = ", ".join(f"{a} ({100 * p:.1f} %)" for a, p in found["answers"])
    assert capsys.readouterr().out == f"{photo}: {says}\n"
    assert Image.open(tmp_path / "a.png").width > 500
    with pytest.raises(UserError, match="answers questions: ask one"):
        call(sample, "--ckpt", trained, photo)
    fit(questions, tmp_path / "run", "--method", "dvp", "--steps", 1)
    with pytest.raises(UserError, match="does not attend to the image word by word"):
        call(sample, "--ckpt", tmp_path / "run", *ask)


# ---------------------------------------------------------------------------- refused in one line

HYPOTHESIS = {"question": None, "hypothesis": "a star", "label": "entailment"}


@pytest.mark.parametrize("change, says", [
    (HYPOTHESIS, "trained on answers to questions; .* asks for labels of hypotheses"),
    ({"question": None, "captions": ["a star"]}, "asks for captions")])
def test_what_a_model_has_not_learnt_is_not_asked_of_it(rewrite, trained, change, says):
    with pytest.raises(UserError, match=says):
        call(evaluate, "--ckpt", trained, "--dataset", rewrite(change))


@pytest.mark.parametrize("words, says", [
    ("--search --method ituning", "use --method dvp"),
    ("--search --method dvp --visual all", "one prompt token"),
    ("--search --method dvp --search_epochs 0.01", "images enough"),
    ("--search --init_from {trained}", "without"), ("--search --method dvp --insert_layer 1", "without"),
    ("--method dvp --insert_layer 9", "layers 0 to 3"), ("--method dvp --insert_layer -1", "-1"),
    ("--method dvp --readout head --answers x", "two answers or more"),
    ("--method dvp --score 5", "exact scenes"),
    ("--method dvp --visual none --adapter 0", "nothing to train")])
def test_settings_that_cannot_be_are_refused(questions, trained, tmp_path, words, says):
    with pytest.raises(UserError, match=says):
        fit(questions, tmp_path / "run", *words.format(trained=trained).split())


@pytest.mark.parametrize("answers, change, says", [
    ('[1, 2]', {}, "not a list of different texts"), ('null', {}, "not a list"),
    ('["yes", "yes"]', {}, "not a list of different"), ("{", {}, "not JSON"),
    ('["heavy", "light"]', {}, "none of the answers"), ('["yes"]', {}, "two answers or more"),
    ("", {"answers": None}, "lacks the captions, answers"),
    ("", {"choices": ["a", "b"]}, "questions with choices are written"),
    ("", {"question": "is there a star? " * 100}, "every text is longer than the 128 tok.*shorten")])
def test_questions_that_cannot_be_chosen_an_answer_to_are_refused(
        rewrite, tmp_path, answers, change, says):
    folder = rewrite(change)
    if answers:
        (folder / "answers.json").write_text(answers)
    with pytest.raises(UserError, match=says):
        fit(folder, tmp_path / "run", *HEAD)
