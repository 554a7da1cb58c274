"""The table of all methods: its commands are valid, its numbers are those of the runs."""

import json
from types import SimpleNamespace

import pytest
import torch

import train
from clip_vit import CLIPViT
from evaluate import compare
from gpt2 import GPT2, GPT2Config
from lib.cli import UserError
from lib.settings import read_command
from plm.bert import BERT, BERTConfig
from plm.t5 import T5, T5Config
from prompts import DVP


@pytest.mark.parametrize("table, kinds", [
    ("captions", ["gpt2"]), ("questions", ["gpt2", "bert", "t5", "llama"])])
def test_all_rows_are_valid_commands_with_the_same_texts_and_backbones(table, kinds, monkeypatch):
    monkeypatch.setattr("lib.settings.kind_of", lambda path: str(path).rpartition("-")[2])
    configs = [read_command(train.Config, train.RECIPES, train.PRESETS, flags)[0]
               for _, flags in compare.TABLES[table].values()]
    for name in ("dataset", "epochs", "steps", "batch", "rows", "clip"):
        assert len({getattr(config, name) for config in configs}) == 1, name
    assert list(dict.fromkeys(c.lm for c in configs)) == [f"data/shapes/tiny-{k}" for k in kinds]


def test_rows_of_a_language_model_that_is_not_there_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    rows = {name: row for name, row in compare.TABLES["questions"].items() if "--lm" in row[1]}
    with pytest.raises(UserError, match="no row is left"):
        compare.at_hand({name: rows[name] for name in ("bert-none", "bert-searched")})
    (tmp_path / "data/shapes/tiny-bert").mkdir(parents=True)
    (tmp_path / "data/shapes/tiny-bert/config.json").touch()
    assert list(compare.at_hand(rows)) == ["bert-none", "bert-one-0", "bert-searched"]
    assert "without t5-none, t5-one-0, t5-searched: there is no" in capsys.readouterr().err


def test_the_speed_of_a_searched_row_is_that_of_the_layer_found(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(compare, "train", lambda folder, flags: commands.append(flags))
    monkeypatch.setattr(compare, "logged", lambda folder, name: [1.0, 2.0])
    (tmp_path / "t5-searched-1").mkdir()
    (tmp_path / "t5-searched-1/search.json").write_text('{"layer": 2}')
    rows = {"t5-searched": compare.TABLES["questions"]["t5-searched"]}
    assert compare.speeds(rows, tmp_path, 1) == {"t5-searched": 2.0}
    assert "--search" not in commands[0] and commands[0][4:6] == ["--insert_layer", 2]


@pytest.mark.parametrize("T, text, everything, dvp", [
    (16, 1.36, 18.93, 1.68), (32, 2.74, 20.42, 3.06)])
def test_multiply_accumulates_at_the_size_of_the_paper(T, text, everything, dvp):
    """GPT-2 base with 197 tokens of ViT-B/16 in front of layer 0, counted by hand: 12 layers of
    12 d^2 T + 2 d T^2. All tokens there come without a map to GPT-2's width, ours has one: 197 d^2
    more."""
    d = 768
    with torch.device("meta"):
        lm, vit = GPT2(GPT2Config()), CLIPViT(224, 16, 768, 12, 12, 512)
        methods = [DVP(DVP.Config(visual=visual, adapter=0), lm, vit)
                   for visual in ("none", "all", "one")]
        found = [compare.macs(method, lm, vit, T) for method in methods]
    assert [of_lm for of_lm, _ in found] == pytest.approx(
        [text, everything + 197 * d * d / 1e9, dvp], abs=0.01)
    assert found[0][1] == pytest.approx(17.6, abs=0.1)


def test_what_bert_and_t5_read_is_counted_with_the_end_of_the_text():
    """By hand; T5's decoder reads one token, and keys and values of the encoder's text."""
    d, F, S = 32, 64, 9
    for lm, want in (
            (BERT(BERTConfig(50, 32, 2, 3, 4, d, F)),
             3 * ((4 * d * d + 2 * d * F) * S + 2 * d * S * S)),
            (T5(T5Config(50, 2, 3, 4, d, F, d // 4)),
             2 * ((4 * d * d + 2 * d * F) * (S - 1) + 2 * d * (S - 1) ** 2)
             + 3 * (6 * d * d + 2 * d * F + 2 * d + 2 * (d * d + d) * (S - 1)))):
        lm.__dict__["tokenizer"] = SimpleNamespace(eot_token=1)
        vit = CLIPViT(32, 8, 32, 1, 1, 8)
        dvp = DVP(DVP.Config(visual="none", adapter=0, readout="head", answers=["a", "b"]), lm, vit)
        assert compare.macs(dvp, lm, vit, S - 1)[0] * 1e9 == want


def test_fused_attention_on_a_cpu_is_counted_too():
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            lm, vit = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=32)), CLIPViT(32, 8, 32, 1, 1, 8)
            found.append(compare.macs(DVP(DVP.Config(), lm, vit), lm, vit, 8))
    assert found[0] == found[1]


def test_the_table_says_what_the_runs_scored_with_the_sample_standard_deviation():
    scores = {"exact": [90.0, 92.0], "objects named": [99.0], "CIDEr-D": [700.0, 702.0],
              "BLEU-4": [80.0, 80.0]}
    row = {"title": "I-Tuning", "trained": 264_192, "texts_per_s": 1500.4, "macs": (0.01, 0.02),
           "peak_memory": 6.2e8, "test": scores, "novel": {"exact": [88.0, 88.0]}}
    assert compare.table_of({"ituning": row}, "captions")[-1] == [
        "I-Tuning", "264,192", "1,500", "620 MB", "701.0 ± 1.4", "80.0 ± 0.0", "99.0", "91.0 ± 1.4",
        "88.0 ± 0.0"]


def test_a_finished_run_is_not_run_again_and_a_stopped_one_goes_on(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(compare, "command", lambda *words: commands.append(words))
    compare.train(tmp_path, ["--method", "ituning"])
    (tmp_path / "resume.pt").touch()
    compare.train(tmp_path, ["--method", "ituning"])
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 3, "peak_memory": 1}) + "\n")
    compare.train(tmp_path, ["--method", "ituning"])
    assert commands == [("train.py", "--method", "ituning", "--score", 0, "--out", tmp_path),
                        ("train.py", "--resume", "--out", tmp_path)]


def test_scores_are_those_that_the_command_writes(tmp_path, monkeypatch):
    """Of two runs in one file, which is not written a second time."""
    commands, path = [], tmp_path / "s.json"
    rows = [{"scores": {"exact": {"score": score}}} for score in (1.0, 2.0)]
    monkeypatch.setattr(compare, "command", lambda *words: (
        commands.append(words), path.write_text(json.dumps({"rows": rows}))))
    for _ in range(2):
        assert compare.evaluate(["a", "b"], "novel", 5, path) == {"exact": [1.0, 2.0]}
    assert commands == [("-m", "evaluate", "--ckpt", "a", "b", "--split", "novel", "--beam", 5,
                         "--json", path)]


def test_a_method_that_is_not_there_ends_in_one_line():
    with pytest.raises(UserError, match="there are ituning"):
        compare.main(compare.Config(only=["itunin"]))
