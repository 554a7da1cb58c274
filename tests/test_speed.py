"""evaluate.speed: what it measures is the real work, and its table says what was measured."""

import json
from dataclasses import replace

import pytest
import torch

from clip_vit import CLIPViT
from evaluate import speed, workloads
from evaluate.roofline import floor_of
from evaluate.workloads import STEPS, WORKS, Task, cost_of, make_models, our_piece
from gpt2 import GPT2, GPT2Config
from lib.cli import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("speed")
    sizes = dict(vocab_size=300, n_positions=64, n_layer=2, n_head=4, n_embd=32)
    make_models(where, GPT2(GPT2Config(**sizes)), CLIPViT(32, 8, 32, 2, 4, 16))
    return str(where)


@pytest.mark.parametrize("method", ["ituning", "vanilla", "vcgpt", "prefix", "dvp"])
@pytest.mark.parametrize("work", ["train", "train-features", "train-files", "greedy-1", "beam5-8"])
def test_every_method_does_every_kind_of_work(method, work, folder):
    piece, model = our_piece(Task(folder, work, method, "bfloat16", CPU, False))
    proof, (first, token, read) = piece(), cost_of(piece, model, WORKS[work])
    if WORKS[work].beam:
        assert len(proof) == WORKS[work].images and {*map(len, proof)} == {30}
        assert first > token > 0 and read > 2 * 300 * 32
    else:
        assert len(proof) == STEPS and piece() < proof and first > 0  # the same batches are learnt


def test_captions_are_about_as_long_as_those_of_coco(folder):
    task = Task(folder, "train", "ituning", "float32", CPU, False)
    batches = workloads.caption_batches(task, workloads.build(folder, "ituning"))
    lengths = torch.cat([(m.targets >= 0).sum(1) - 1 for i in range(50) for m in batches.read(i)])
    assert 11 < lengths.float().mean() < 12 and lengths.min() == 8 and lengths.max() <= 24


def test_the_floor_is_arithmetic_or_for_further_tokens_the_reading_of_weights():
    assert floor_of((100, 2, 8), 30, rate=10, bytes_per_s=4) == 10 + 29 * 2
    assert floor_of((100, 60, 8), 30, rate=10, bytes_per_s=4) == 10 + 29 * 6


def test_the_table_has_medians_and_ratios_of_rounds_that_ran_by_turns(
        folder, monkeypatch, capsys, tmp_path):
    """A second round in which the machine was twice as slow changes no ratio."""
    def measure(tasks, rounds):
        return [{"seconds": [s, 2 * s, s], "proof": [2.0], "peak": 3e9, "cost": (1e9, 0, 0)}
                for s in (2.0, 8.0)[:len(tasks)]]
    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "make_models", lambda *_: None)
    monkeypatch.setattr(speed.peers, "library", lambda: None)
    monkeypatch.setattr(speed.peers, "save", lambda *_: None)
    monkeypatch.setattr(speed, "matrix_rate", lambda *_: 1e9)
    monkeypatch.setattr(speed, "bandwidth", lambda *_: 1e9)
    monkeypatch.setattr(speed, "GPT2", lambda *_: None)
    monkeypatch.setattr(speed, "CLIPViT", lambda *_: None)
    speed.main(speed.Config(peer="transformers", only=["train"], methods=["vanilla"],
                            dtypes=["float32"], rounds=3, json=str(tmp_path / "x.json")))
    line = "vanilla | 40.00/s | 50% | 3.00 GB | 10.00/s | 4.00x | 3.00 GB | 0e+00 |"
    assert f"| train | float32 | {line}" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["lines"][0]["seconds"] == [2, 4, 2]


@pytest.mark.parametrize("wrong, says", [
    (dict(only=["tran"]), "--only tran: there are load, train"),
    (dict(dtypes=["half"]), "--dtypes half"), (dict(methods=["itunning"]), "did you mean ituning"),
    (dict(peer="transformers"), "not installed: pip install transformers")])
def test_what_cannot_be_measured_is_refused_in_one_line(wrong, says, monkeypatch):
    monkeypatch.setattr(speed.peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=says):
        speed.main(speed.Config(**wrong))


def test_processes_answer_by_turns_and_the_death_of_one_is_told(folder):
    task = Task(folder, "greedy-1", "ituning", "float32", CPU, False)
    torch.ones(2**28)  # 1 GB, of this process and not of the one that it starts
    (found,) = speed.measure([task], 2)
    speed.measure([replace(task, work="train-files")], 1)  # it has readers, processes of its own
    assert len(found["seconds"]) == 2 and 1e7 < found["peak"] < 1e9 and len(found["cost"]) == 3
    worker = speed.Worker(task)
    worker.process.terminate()
    with pytest.raises(UserError, match="its process has died"):
        worker.ask("run")
    worker.end()
