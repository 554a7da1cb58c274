"""Our metrics and tokenizer beside pycocoevalcap, live; the tokenizer needs Java.

    pip install -r tests/requirements.txt
"""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("pycocoevalcap.eval")

from make_golden_metrics import image_sets, official, stanford, strings
from test_evaluate import METRICS, captions_file, command, dataset, table_rows

import evaluate.official
from evaluate.ptb_tokenizer import tokenize

java = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")


@pytest.mark.parametrize("n, seed", [(1, 11), (2, 12), (50, 13), (1500, 14)])
def test_scores_are_equal_to_nine_digits_for_the_corpus_and_for_every_image(n, seed):
    hyps, refs = image_sets(n, seed)
    theirs, images = official(hyps, refs)
    ours = [metric(hyps, refs, True, per_image=True) for metric in METRICS]
    pairs = [*zip(theirs, [score for score, _ in ours]), *zip(images, [each for _, each in ours])]
    worst = [np.abs(np.subtract(a, b)).max() for a, b in pairs]
    print(f"{n} images, largest differences: BLEU {worst[0]:.1e}, ROUGE-L {worst[1]:.1e}, CIDEr-D "
          f"{worst[2]:.1e}; of an image {max(worst[3:]):.1e}")
    assert max(worst) < 1e-9 and (n == 1 or min(*theirs[0], *theirs[1:]) > 0.01)


@java
def test_tokens_are_equal_on_995_of_1000_generated_strings():
    texts = list(strings(5000, seed=99))
    wrong = [(t, s) for t, s in zip(texts, stanford(texts)) if tokenize(t) != s]
    print(f"{len(texts) - len(wrong)} of {len(texts)} strings have equal tokens")
    for text, tokens in wrong:
        print(ascii(text), tokens, tokenize(text), sep="\n    ")
    assert len(wrong) <= 25


@java
def test_official_gives_the_same_table_and_meteor_and_goes_on_without_spice(tmp_path, monkeypatch):
    from pycocoevalcap.spice import spice

    def offline():
        raise OSError("no network")

    notes = []
    monkeypatch.setattr(spice, "get_stanford_models", offline)
    monkeypatch.setattr(evaluate.official, "note", notes.append)
    texts = ["A dog's on a red sofa\r.", "dog 1 sleeps\u2028on it!", "a dog", "", "it is red"]
    flags = ["--captions", captions_file(tmp_path / "c.json", dataset(tmp_path, 5), texts),
             "--dataset", tmp_path]
    ours = table_rows(command(*flags))["c"]
    theirs = table_rows(command(*flags, "--official", "--json", tmp_path / "s.json"))["c"]
    assert {name: theirs[name] for name in ours} == ours and 0 < theirs["METEOR"] < 100
    assert notes == ["SPICE left out: OSError: no network"] and "SPICE" not in theirs
    scores = json.loads((tmp_path / "s.json").read_text())["rows"][0]["scores"]
    assert scores["METEOR"]["low"] is None
    assert scores["CIDEr-D"]["low"] < scores["CIDEr-D"]["high"]
