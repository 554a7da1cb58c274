"""The table of all methods: its commands are valid, its numbers are those of the runs."""

import json
import sys
from pathlib import Path

import pytest

import train
from cli import UserError
from model import METHODS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.shapes import compare


def test_every_row_is_a_valid_command_and_every_caption_method_has_a_row():
    methods = {train.command_line(flags)[0].method for _, flags in compare.RUNS.values()}
    assert methods == set(METHODS)


def test_all_rows_have_the_same_budget_of_captions_and_the_same_backbones():
    configs = [train.command_line(flags)[0] for _, flags in compare.RUNS.values()]
    for name in ("epochs", "steps", "batch", "rows", "gpt2", "clip"):
        assert len({getattr(c, name) for c in configs}) == 1, name


def test_a_mean_stands_with_the_sample_deviation():
    assert compare.shown([96.0, 97.0, 98.0]) == "97.0 ± 1.0"
    assert compare.shown([96.0]) == "96.0"


def test_the_table_says_what_the_runs_scored():
    scores = {"exact": [90.0, 92.0], "CIDEr-D": [700.0, 702.0], "BLEU-4": [80.0, 80.0]}
    row = {"title": "I-Tuning", "trained": 264_192, "captions_per_s": 1500.4, "peak_memory": 6.2e8,
           "test": scores, "novel": {"exact": [88.0, 88.0]}}
    assert compare.table_of({"ituning": row}).splitlines()[-1] == (
        "| I-Tuning | 264,192 | 1,500 | 620 MB | 701.0 ± 1.4 | 80.0 ± 0.0 | 91.0 ± 1.4 | 88.0 ± 0.0 |")


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
