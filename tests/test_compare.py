"""The table of all methods: its commands are valid, its numbers are those of the runs."""

import json
import sys
from pathlib import Path

import pytest
import torch

import train
from lib.cli import UserError
from clip_vit import CLIPViT
from gpt2 import GPT2, GPT2Config
from model import METHODS
from prompts import DVP

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.shapes import compare


FLAGS = [flags for rows in compare.TABLES.values() for _, flags in rows.values()]


def test_every_row_is_a_valid_command_and_every_method_has_a_row():
    assert {train.command_line(flags)[0].method for flags in FLAGS} == set(METHODS)


@pytest.mark.parametrize("table", compare.TABLES)
def test_all_rows_have_the_same_budget_of_texts_and_the_same_backbones(table):
    configs = [train.command_line(flags)[0] for _, flags in compare.TABLES[table].values()]
    for name in ("dataset", "epochs", "steps", "batch", "rows", "gpt2", "clip"):
        assert len({getattr(c, name) for c in configs}) == 1, name


@pytest.mark.parametrize("T, text, everything, dvp", [(16, 1.36, 18.93, 1.68), (32, 2.74, 20.42, 3.06)])
def test_multiply_accumulates_at_the_size_of_the_paper(T, text, everything, dvp):
    """GPT-2 base with 197 tokens of ViT-B/16 in front of layer 0, counted by hand: 12 layers of 12 d^2 T + 2 d T^2.
    All tokens there come without a map to GPT-2's width, ours has one: 197 d^2 more."""
    d = 768
    with torch.device("meta"):
        gpt2, vit = GPT2(GPT2Config()), CLIPViT(224, 16, 768, 12, 12, 512)
        found = {visual: compare.macs(DVP(DVP.Config(visual=visual, adapter=0), gpt2, vit), gpt2, vit, T)
                 for visual in ("none", "all", "one")}
    assert abs(found["none"][0] - text) < 0.01 and abs(found["one"][0] - dvp) < 0.01
    assert abs(found["all"][0] - 197 * d * d / 1e9 - everything) < 0.01
    assert abs(found["one"][1] - 17.6) < 0.1


def test_a_mean_stands_with_the_sample_deviation():
    assert compare.shown([96.0, 97.0, 98.0]) == "97.0 ± 1.0"
    assert compare.shown([96.0]) == "96.0"


def test_the_table_says_what_the_runs_scored():
    scores = {"exact": [90.0, 92.0], "objects named": [99.0, 99.0], "CIDEr-D": [700.0, 702.0], "BLEU-4": [80.0, 80.0]}
    row = {"title": "I-Tuning", "trained": 264_192, "texts_per_s": 1500.4, "macs": (0.01, 0.02), "peak_memory": 6.2e8,
           "test": scores, "novel": {"exact": [88.0, 88.0]}}
    assert compare.table_of({"ituning": row}, "captions").splitlines()[-1] == (
        "| I-Tuning | 264,192 | 1,500 | 620 MB | 701.0 ± 1.4 | 80.0 ± 0.0 | 99.0 ± 0.0 | 91.0 ± 1.4 | 88.0 ± 0.0 |")


def test_a_finished_run_is_not_run_again_and_a_stopped_one_goes_on(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(compare, "command", lambda *words: said.append([str(w) for w in words]))
    compare.train(tmp_path / "new", ["--method", "ituning"])
    assert "--resume" not in said[0] and str(tmp_path / "new") in said[0]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "resume.pt").touch()
    compare.train(tmp_path / "new", ["--method", "ituning"])
    assert "--resume" in said[1]
    (tmp_path / "new" / "log.jsonl").write_text(json.dumps({"step": 3, "peak_memory": 1}) + "\n")
    compare.train(tmp_path / "new", ["--method", "ituning"])
    assert len(said) == 2


def test_a_method_that_is_not_there_ends_in_one_line():
    with pytest.raises(UserError, match="there are ituning"):
        compare.main(compare.Config(only=["itunin"]))
