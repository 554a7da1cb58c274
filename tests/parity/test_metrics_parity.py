"""Our metrics and tokenizer beside pycocoevalcap, live; the tokenizer needs Java.

    pip install -r tests/requirements.txt
"""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("pycocoevalcap.eval")

import evaluate
from evaluate.metrics import bleu, cider_d, rouge_l
from evaluate.ptb_tokenizer import tokenize
from make_golden_metrics import image_sets, official, stanford, strings
from test_evaluate import COCO_MINI, command, dataset, results, rows_of

java = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")


@pytest.mark.parametrize("n, seed", [(1, 11), (2, 12), (50, 13), (1500, 14)])
def test_scores_are_equal_to_nine_digits_for_the_corpus_and_for_every_image(n, seed):
    hyps, refs = image_sets(n, seed)
    theirs, images = official(hyps, refs)
    ours = [metric(hyps, refs, True, per_image=True) for metric in (bleu, rouge_l, cider_d)]
    pairs = [*zip(theirs, [score for score, _ in ours]), *zip(images, [each for _, each in ours])]
    worst = [np.abs(np.subtract(a, b)).max() for a, b in pairs]
    print(f"{n} images, largest differences: BLEU {worst[0]:.1e}, ROUGE-L {worst[1]:.1e}, CIDEr-D {worst[2]:.1e}; "
          f"of an image {max(worst[3:]):.1e}")
    assert max(worst) < 1e-9 and (n == 1 or min(theirs[0] + [theirs[1], theirs[2]]) > 0.01)


@java
def test_tokens_are_equal_on_995_of_1000_generated_strings():
    texts = list(strings(5000, seed=99))
    wrong = [(t, s) for t, s in zip(texts, stanford(texts)) if tokenize(t) != s]
    print(f"{len(texts) - len(wrong)} of {len(texts)} strings have equal tokens")
    for text, tokens in wrong:
        print(ascii(text), tokens, tokenize(text), sep="\n    ")
    assert len(wrong) <= 25


@java
@pytest.mark.skipif(not COCO_MINI.exists(), reason="the sample of COCO is not beside the project")
def test_tokens_are_equal_on_real_captions():
    texts = [s["raw"] for image in json.loads(COCO_MINI.read_text())["images"] for s in image["sentences"]]
    assert [tokenize(text) for text in texts] == stanford(texts) and len(texts) == 400


@java
def test_official_gives_the_same_table_and_meteor_and_goes_on_without_spice(tmp_path, capsys, monkeypatch):
    from pycocoevalcap.spice import spice

    def offline():
        raise OSError("no network")

    monkeypatch.setattr(spice, "get_stanford_models", offline)
    items = dataset(tmp_path, 5)
    texts = ["A dog's on a red sofa\r.", "dog 1 sleeps\u2028on it!", "a dog", "", "it is red"]
    path = results(tmp_path / "c.json", items, texts)
    command("--captions", path, "--dataset", tmp_path)
    ours = rows_of(capsys.readouterr().out)["c"]
    command("--captions", path, "--dataset", tmp_path, "--official", "--json", tmp_path / "s.json")
    out, err = capsys.readouterr()
    theirs = rows_of(out)["c"]
    assert {name: theirs[name] for name in ours} == ours and 0 < theirs["METEOR"] < 100
    assert "SPICE left out: OSError: no network" in err and "SPICE" not in theirs
    scores = json.loads((tmp_path / "s.json").read_text())["rows"][0]["scores"]
    assert scores["METEOR"]["low"] is None and scores["CIDEr-D"]["low"] < scores["CIDEr-D"]["high"]
