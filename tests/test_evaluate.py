"""BLEU, ROUGE-L and CIDEr-D with their quirks, the tokenizer, intervals, and the command around them.

What is right is what pycocoevalcap says: tests/golden/metrics holds its answers, and the quirks have numbers
worked out by hand. The command runs on random models whose captions are nonsense, or on results files whose
captions, and so whose scores, are known.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib import pictures
import evaluate
from lib.cli import UserError, parse
from clip_vit import preprocess
from lib.pictures import open_image
from data.shapes import world
from evaluate.metrics import bleu, cider_d, rouge_l
from evaluate.ptb_tokenizer import tokenize
from make_golden_metrics import GOLDEN, NASTY
from model import SeeGPT
from test_sample import checkpoint, photo

ROOT = Path(__file__).resolve().parent.parent
TOKENS = json.loads((GOLDEN / "ptb.json").read_text("utf-8"))
SCORES = json.loads((GOLDEN / "scores.json").read_text("utf-8"))
COCO_MINI = ROOT.parent / "shared" / "coco-mini" / "dataset_coco.json"

# The nasty strings on which Stanford's tokenizer and ours differ, and why.
DIFFER = {"“““curly””” ‘single’ „low“ «angle» ‹small›": "two double quotes in a row are one token, ````",
          "&amp; &lt;tag&gt; it&apos;s &quot;x&quot; caf&eacute; &#39;": "&eacute; counts as a letter"}


# ---------------------------------------------------------------------------- tokens

@pytest.mark.parametrize("text, tokens", [
    ("A dog, a CAT; and: two birds - here.", "a dog a cat and two birds here"),  # punctuation goes
    ("He can't, won't and isn't", "he ca n't wo n't and is n't"),
    ("cannot gonna", "can not gon na"),
    ("the man's dogs' it's I'm they've", "the man 's dogs it 's i 'm they 've"),
    ("black-and-white t-shirt, half - full", "black-and-white t-shirt half full"),  # hyphenated words stay whole
    ("(a) [b] {c}", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),  # lower-cased too early to be dropped
    ("No! No!! What? What?!", "no no !! what what ?!"),  # runs of marks are one token and stay
    ("Mr. Lee at 5 p.m. etc. in the U.S.", "mr. lee at 5 p.m. etc. in the u.s."),
    ("see www.dogs.com/cats or http://a.b/c?d.", "see www.dogs.com/cats or http://a.b/c?d"),
    ("a dog.Then a cat", "a dog.then a cat"),  # no space, no new token
    ("the end., a dog", "the end. a dog"),
    ("\"a\" 'b' ``c'' “d” ‘e’ it’s", "a b c d e it 's"),
    ("$5.99 €5 £5 5¢ 1,000 50%", "$ 5.99 $ 5 # 5 5 cents 1,000 50 %"),
    ("5'10\" 10:30pm 24/7 ½", "5 10 10:30 pm 24/7 1/2"),
    ("a 😀 dog👍", "a dog"),  # Stanford's knows no characters beyond U+FFFF
    ("", ""), (" \n ", ""), ("...", "")])
def test_the_rules_of_the_tokenizer_one_by_one(text, tokens):
    assert " ".join(tokenize(text)) == tokens


def test_a_mixed_number_is_one_token_with_a_space_that_does_not_break():
    assert tokenize("2 1/2 dogs") == ["2\u00a01/2", "dogs"]


def test_tokens_are_stanfords_on_generated_strings():
    wrong = [text for text, tokens in TOKENS if text not in NASTY and tokenize(text) != tokens]
    assert len(TOKENS) == 500 + len(NASTY)
    assert len(wrong) <= 2, wrong  # 99.5 % of 500


@pytest.mark.parametrize("text, tokens", [t for t in TOKENS if t[0] in NASTY], ids=range(len(NASTY)))
def test_tokens_are_stanfords_on_nasty_strings_but_for_those_that_are_named(text, tokens):
    assert (tokenize(text) == tokens) == (text not in DIFFER)


@pytest.mark.skipif(not COCO_MINI.exists(), reason="the sample of COCO is not beside the project")
def test_tokens_are_those_in_the_coco_splits_where_these_kept_everything():
    """The splits' own tokens come from another tokenizer, which drops more; most captions are plain."""
    sentences = [s for image in json.loads(COCO_MINI.read_text())["images"] for s in image["sentences"]]
    same = sum(tokenize(s["raw"]) == s["tokens"] for s in sentences)
    assert len(sentences) == 400 and same > 350


@pytest.mark.parametrize("text", ["a" * 20000, "a." * 10000, "a-" * 10000, "'" * 20000, "1 " * 10000, "<a " * 5000,
                                  "(" * 20000, "a@" * 3000, "http://" * 3000, "a/b" * 5000])
def test_a_model_that_repeats_itself_for_ever_costs_no_time(text):
    began = time.process_time()
    tokenize(text[:2000])
    assert time.process_time() - began < 2


# ---------------------------------------------------------------------------- metrics

@pytest.mark.parametrize("case", SCORES, ids=[f"{s['n']} images" for s in SCORES])
def test_scores_are_pycocoevalcaps_to_nine_digits(case):
    args = case["hypotheses"], case["references"], True
    np.testing.assert_allclose(bleu(*args), case["bleu"], rtol=0, atol=1e-9)
    assert abs(rouge_l(*args) - case["rouge_l"]) < 1e-9 and abs(cider_d(*args) - case["cider_d"]) < 1e-9


def test_scores_of_images_are_those_of_a_slow_and_plain_version():
    """ROUGE-L by trying all subsequences' lengths recursively, CIDEr-D as the paper writes it, vectors and all."""
    hyps, refs = SCORES[2]["hypotheses"][:20], SCORES[2]["references"][:20]

    def lcs(a, b, memo):
        if not a or not b:
            return 0
        if (len(a), len(b)) not in memo:
            memo[len(a), len(b)] = (lcs(a[1:], b[1:], memo) + 1 if a[0] == b[0] else
                                    max(lcs(a[1:], b, memo), lcs(a, b[1:], memo)))
        return memo[len(a), len(b)]

    def rouge(hyp, refs):
        p = max(lcs(hyp, r, {}) / len(hyp) for r in refs)
        r = max(lcs(hyp, r, {}) / len(r) for r in refs)
        return 2.44 * p * r / (r + 1.44 * p) if p * r else 0

    slow = [rouge(h.split(" "), [r.split(" ") for r in rs]) for h, rs in zip(hyps, refs)]
    mean, images = rouge_l(hyps, refs, True, per_image=True)
    np.testing.assert_allclose(images, slow, atol=1e-12)
    assert mean == pytest.approx(np.mean(slow))

    grams = lambda text, n: [tuple(text.split()[i:i + n]) for i in range(len(text.split()) - n + 1)]

    def cider(hyp, rs):
        total = 0
        for n in range(1, 5):
            vocabulary = sorted({g for t in [hyp, *rs] for g in grams(t, n)})
            df = [sum(any(g in grams(r, n) for r in other) for other in refs) for g in vocabulary]
            idf = np.log(len(refs)) - np.log(np.maximum(1, df))
            vector = lambda t: np.array([grams(t, n).count(g) for g in vocabulary]) * idf
            for r in rs:
                h, v = vector(hyp), vector(r)
                norms = np.linalg.norm(h) * np.linalg.norm(v)
                penalty = math.exp(-(len(grams(hyp, 2)) - len(grams(r, 2))) ** 2 / 72)
                total += 10 / 4 / len(rs) * penalty * (np.minimum(h, v) @ v / norms if norms else 0)
        return total

    slow = [cider(h, rs) for h, rs in zip(hyps, refs)]
    mean, images = cider_d(hyps, refs, True, per_image=True)
    np.testing.assert_allclose(images, slow, atol=1e-9)
    assert mean == pytest.approx(np.mean(slow)) and max(slow) > 0.5


def test_an_n_gram_counts_no_more_often_than_in_the_reference_that_has_it_most():
    """Papineni's example: "the" seven times, twice in one reference, once in the other."""
    refs = ["the cat is on the mat", "there is a cat on the mat"]
    assert bleu(["the the the the the the the"], [refs], True)[0] == pytest.approx(2 / 7)


def test_bleu_4_is_the_geometric_mean_of_four_precisions_over_the_corpus():
    hyps, refs = ["a b c d x", "a b c d e f"], [["a b c d e"], ["a b c d e f"]]
    # matches of 1- to 4-grams: 4 + 6 of 11, 3 + 5 of 9, 2 + 4 of 7, 1 + 3 of 5; no brevity penalty
    scores, images = bleu(hyps, refs, True, per_image=True)
    assert scores[3] == pytest.approx((10 / 11 * 8 / 9 * 6 / 7 * 4 / 5) ** 0.25)
    assert scores[1] == pytest.approx((10 / 11 * 8 / 9) ** 0.5)
    assert images.shape == (2, 4) and images[:, 3].mean() != pytest.approx(scores[3], abs=0.01)


@pytest.mark.parametrize("lengths, closest", [((3, 7), 3), ((4, 7), 4), ((2, 7), 7), ((9, 12), 9)])
def test_brevity_is_measured_against_the_closest_length_and_the_shorter_of_a_tie(lengths, closest):
    refs = [" ".join("abcdefghijkl"[:n]) for n in lengths]  # the hypothesis is 5 long
    expected = min(1, math.exp(1 - closest / 5)) * min(5, max(lengths)) / 5
    assert bleu(["a b c d e"], [refs], True)[0] == pytest.approx(expected)


def test_nothing_in_common_is_almost_but_not_exactly_zero():
    assert 0 < bleu(["a b c d e"], [["v w x y z"]], True)[3] < 1e-12


def test_precision_and_recall_of_rouge_may_come_from_two_references():
    """p = 4/4 from the long reference, r = 2/2 from the short: together 1, though no reference gives 1."""
    assert rouge_l(["a b c d"], [["a b c d e f g h", "a d"]], True) == pytest.approx(1)
    assert rouge_l(["a b c d"], [["a b c d e f g h"]], True) < 0.8


def test_an_empty_caption_is_one_empty_token_to_rouge_and_nothing_to_the_others():
    hyps, refs = ["", "a b c d"], [["a b", ""], ["a b c d"]]
    assert rouge_l(hyps, refs, True, per_image=True)[1].tolist() == [1, pytest.approx(1)]  # "" equals ""
    assert bleu(hyps, refs, True, per_image=True)[1][0].tolist() == pytest.approx([0] * 4, abs=1e-5)
    assert cider_d(hyps, refs, True, per_image=True)[1][0] == 0


def test_document_frequencies_are_those_of_the_images_that_are_scored():
    """An image's score depends on the others, and one image alone scores 0: log 1 - log 1."""
    hyps, refs = ["a red dog", "a cat"], [["a red dog", "the red dog"], ["a white cat"]]
    two = cider_d(hyps, refs, True, per_image=True)[1]
    three = cider_d(hyps + ["x"], refs + [["one red dog"]], True, per_image=True)[1]
    assert cider_d(hyps[:1], refs[:1], True) == 0 and 0 < three[0] < two[0]


def test_repeating_a_rare_word_wins_nothing_in_cider():
    refs = [["a dog on a sofa"], ["two cats"], ["a bus"]]
    once, often = (cider_d([hyp, "x", "x"], refs, True) for hyp in ("dog", "dog dog dog"))
    assert often < once


def test_another_length_is_punished_by_cider():
    refs = [["a b c d", "a b c d e f g h i j"], ["x y z"]]  # 3 and 9 bigrams
    same, other = (cider_d(["a b c d", "q"], [[r], ["x y z"]], True) for r in refs[0])
    weight = lambda text: np.array([len(text.split()) - n for n in range(4)])  # all n-grams weigh log 2
    cosine = np.sqrt(weight(refs[0][0]) / weight(refs[0][1])).mean()
    assert same == pytest.approx(10 / 2) and other == pytest.approx(10 / 2 * cosine * math.exp(-6 ** 2 / 72))


def test_tokenized_means_that_nothing_is_changed_but_spaces_split():
    hyps, refs = ["A dog.", "a cat"], [["a dog"], ["a cat"]]
    assert bleu(hyps, refs)[0] == pytest.approx(1) and bleu(hyps, refs, tokenized=True)[0] == pytest.approx(0.5)
    assert rouge_l(hyps, refs) == pytest.approx(1) and rouge_l(hyps, refs, tokenized=True) < 0.6
    assert cider_d(hyps, refs) > 1.5 * cider_d(hyps, refs, tokenized=True)


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider_d])
@pytest.mark.parametrize("hyps, refs, words", [
    (["a"], [["a"], ["b"]], "1 captions for 2 images"), (["a", "b"], [["a"], []], "without a reference"),
    ([], [], "no caption")])
def test_what_cannot_be_scored_is_said(metric, hyps, refs, words):
    with pytest.raises(UserError, match=words):
        metric(hyps, refs)


def test_ten_thousand_captions_are_scored_in_seconds():
    """1,000 here, in a tenth of the 20 s that 10,000 may take."""
    rng = np.random.default_rng(0)
    words = "a man dog is on the table with two red bikes near small white street holding of and in".split()
    text = lambda: " ".join(rng.choice(words, rng.integers(8, 13))).capitalize() + "."
    hyps, refs = [text() for _ in range(1000)], [[text() for _ in range(5)] for _ in range(1000)]
    began = time.process_time()
    bleu(hyps, refs), rouge_l(hyps, refs), cider_d(hyps, refs)
    assert time.process_time() - began < 4  # three times as long as it takes, and each tokenizes anew


# ---------------------------------------------------------------------------- intervals

def test_the_interval_of_a_mean_is_two_standard_errors_to_both_sides():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    counts = np.tile([4.0, 3, 2, 1, 4, 3, 2, 1, 4, 4], (400, 1))
    found = evaluate.bootstrap(counts, {"x": (values, np.ones(400))})
    score, low, high = found["x"]
    assert score == pytest.approx(100 * values.mean())
    error = 100 * values.std() / 400 ** 0.5
    assert (score - low, high - score) == pytest.approx((1.96 * error, 1.96 * error), rel=0.1)
    assert found["BLEU-4"] == pytest.approx((100, 100, 100))  # all images alike: nothing to vary


def test_a_resample_of_bleu_is_the_bleu_of_those_images_and_not_a_mean():
    hyps, refs = SCORES[3]["hypotheses"], SCORES[3]["references"]
    found = evaluate.bootstrap(evaluate.bleu_counts(hyps, refs), {}, resamples=100, seed=5)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(100):
        of = rng.integers(len(hyps), size=len(hyps))
        drawn.append(bleu([hyps[i] for i in of], [refs[i] for i in of], True))
    low, high = 100 * np.percentile(drawn, (2.5, 97.5), axis=0)
    for k, name in enumerate(found):
        assert found[name] == pytest.approx((100 * bleu(hyps, refs, True)[k], low[k], high[k]))


def test_weights_make_a_mean_over_some_of_the_images():
    counts, right, one = np.ones((4, 10)), np.array([1.0, 0, 1, 1]), np.array([1.0, 1, 0, 0])
    assert evaluate.bootstrap(counts, {"one": (right, one)})["one"][0] == pytest.approx(50)
    assert evaluate.bootstrap(counts, {"none": (right, 0 * one)})["none"] == (0, 0, 0)


def test_the_same_captions_give_the_same_interval():
    args = evaluate.bleu_counts(SCORES[2]["hypotheses"], SCORES[2]["references"]), {}
    assert evaluate.bootstrap(*args) == evaluate.bootstrap(*args)


# ---------------------------------------------------------------------------- a split's scores

def dataset(folder, n=6, **more):
    """A prepared dataset of n images with two captions each; more: {key: values} of the items."""
    captions = lambda i: [f"A dog no. {i} on a red sofa.", f"dog {i} sleeps on it"]
    items = [{"id": 10 + i, "image": f"{i}.png", "captions": captions(i),
              **{key: values[i] for key, values in more.items()}} for i in range(n)]
    for i in range(n):
        photo(folder / f"{i}.png", i)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, items)), "utf-8")
    return items


def results(path, items, texts):
    path.write_text(json.dumps([{"image_id": item["id"], "caption": t} for item, t in zip(items, texts)]), "utf-8")
    return path


def command(*argv):
    """What `python evaluate.py ...` does, in this process."""
    evaluate.main(*parse(evaluate.Config, argv=["--device", "cpu", *map(str, argv)]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("ituning"), "ituning")


def text_rows(text):
    """{row name: {column: number in front of the interval}} of the Markdown table in a text."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line[:1] == "|"]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    number = lambda cell: float(cell.split()[0].replace(",", ""))
    return {row[0]: {name: number(cell) for name, cell in zip(head[1:], row[1:]) if cell} for row in rows}


def test_the_table_holds_the_three_metrics_times_100_in_one_row_a_file(tmp_path, capsys):
    items = dataset(tmp_path)
    texts = [item["captions"][0] for item in items[:3]] + ["a cat", "dog 4 sleeps", ""]
    good = results(tmp_path / "good.json", items, [item["captions"][0] for item in items])
    mixed = results(tmp_path / "mixed.json", items[::-1], texts[::-1])  # found by id, not by place
    command("--captions", good, mixed, "--dataset", tmp_path)
    out = capsys.readouterr().out
    rows, refs = text_rows(out), [item["captions"] for item in items]
    assert list(rows) == ["good", "mixed"]
    assert list(rows["good"]) == ["images", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    assert rows["good"]["BLEU-4"] == rows["good"]["ROUGE-L"] == 100 and rows["good"]["images"] == 6
    expected = [*bleu(texts, refs), rouge_l(texts, refs), cider_d(texts, refs)]
    assert list(rows["mixed"].values())[1:] == [round(100 * x, 1) for x in expected]
    assert "x 100" in out and "95 %" in out and "our own tokenizer" in out
    low, high = map(float, out.splitlines()[3].split("|")[-2].split("[")[1].rstrip("] ").split(","))
    assert low < rows["mixed"]["CIDEr-D"] < high


def test_exact_scenes_are_counted_where_items_hold_a_scene(tmp_path, capsys):
    thing = lambda colour, x: world.Thing("small", colour, "circle", x, 30)
    red, blue = thing("red", 12), thing("blue", 50)
    scenes = [[red], [blue], [red, blue], [thing("red", 50), thing("blue", 12)]]
    items = dataset(tmp_path, 4, scene=[world.to_json(s) for s in scenes])
    texts = ["a small red circle", "a small red circle", "a small red circle left of a small blue circle", "a dog"]
    command("--captions", results(tmp_path / "c.json", items, texts), "--dataset", tmp_path)
    row = text_rows(capsys.readouterr().out)["c"]
    assert (row["exact"], row["exact, one object"], row["exact, two objects"]) == (50, 50, 50)
    texts[1] = "there is a small blue circle"
    assert evaluate.exact(texts, scenes) == {"all": 0.75, "one object": 1, "two objects": 0.5}


def test_each_domain_of_nocaps_is_scored_with_its_own_document_frequencies(tmp_path, capsys):
    captions = [["a bus on a road"], ["a cat in a box", "a cat"], ["the cat and a dog"],
                ["a bus"], ["two red buses"], ["a dog"]]
    domains = ["out-domain", "in-domain", "in-domain", "near-domain", "near-domain", "near-domain"]
    items = dataset(tmp_path, 6, captions=captions, domain=domains)
    texts = ["a bus", "a cat in a hat", "the cat and me", "a bus stop", "red buses", "a dog"]
    command("--captions", results(tmp_path / "c.json", items, texts), "--dataset", tmp_path)
    row, refs = text_rows(capsys.readouterr().out)["c"], [item["captions"] for item in items]
    assert list(row)[-3:] == ["CIDEr-D in-domain", "CIDEr-D near-domain", "CIDEr-D out-domain"]
    assert row["CIDEr-D"] == round(100 * cider_d(texts, refs), 1)  # overall
    assert row["CIDEr-D in-domain"] == round(100 * cider_d(texts[1:3], refs[1:3]), 1)
    assert row["CIDEr-D near-domain"] == round(100 * cider_d(texts[3:], refs[3:]), 1)
    assert row["CIDEr-D out-domain"] == 0  # a single image
    parts = cider_d(texts, refs, per_image=True)[1][1:3].mean()
    assert abs(row["CIDEr-D in-domain"] - 100 * parts) > 1  # not the mean of the overall scores


def test_a_part_of_a_split_is_marked_as_such(tmp_path, capsys):
    items = dataset(tmp_path)
    path = results(tmp_path / "c.json", items[:4], ["a dog"] * 4)
    command("--captions", path, "--dataset", tmp_path, "--images", 4)
    out = capsys.readouterr().out
    assert text_rows(out)["c"]["images"] == 4 and "A part of the split" in out


# ---------------------------------------------------------------------------- checkpoints

def test_captions_are_those_of_generate_with_the_switches_and_in_order(trained, tmp_path, capsys):
    items = dataset(tmp_path / "data", 5)
    command("--ckpt", trained, "--dataset", tmp_path / "data", "--batch", 2, "--beam", 3, "--max_new_tokens", 6,
            "--prompt", "it", "--json", tmp_path / "new" / "scores.json")
    model = SeeGPT.load(trained)
    images = [preprocess(open_image(tmp_path / "data" / item["image"]), 32) for item in items]
    feats = model.image_features(torch.stack(images))
    expected = model.generate(feats, prompt="it", beam=3, max_new_tokens=6)
    assert len(set(expected)) == 5, "images with one caption would hide a mix-up"
    found = json.loads((tmp_path / "new" / "scores-run.json").read_text("utf-8"))
    assert found == [{"image_id": item["id"], "caption": text} for item, text in zip(items, expected)]
    assert expected != model.generate(feats, beam=3, max_new_tokens=6)
    assert text_rows(capsys.readouterr().out)["run"]["images"] == 5


def test_every_switch_of_the_decoding_reaches_generate(trained, tmp_path, monkeypatch):
    dataset(tmp_path, 3)
    asked = []
    monkeypatch.setattr(SeeGPT, "generate", lambda self, feats, **how: asked.append(how) or ["a dog"] * len(feats))
    command("--ckpt", trained, "--dataset", tmp_path, "--beam", 2, "--length_penalty", 0.5, "--max_new_tokens", 7,
            "--prompt", "a photo of")
    assert asked == [{"beam": 2, "length_penalty": 0.5, "max_new_tokens": 7, "prompt": "a photo of"}]


def test_several_checkpoints_make_several_rows_and_files_and_the_dataset_may_be_theirs(tmp_path, capsys):
    dataset(tmp_path / "data", 3)
    runs = [checkpoint(tmp_path, "ituning", run, dataset=str(tmp_path / "data")) for run in ("a", "b")]
    other = checkpoint(tmp_path / "else", "ituning", "a", dataset=str(tmp_path / "data"))
    command("--ckpt", *runs, other, "--json", tmp_path / "s.json", "--max_new_tokens", 3, "--beam", 1)
    names = [str(runs[0]), "b", str(other)]  # a name alone where it is the only one of its kind
    assert list(text_rows(capsys.readouterr().out)) == names
    rows = json.loads((tmp_path / "s.json").read_text("utf-8"))["rows"]
    assert [row["name"] for row in rows] == names and len({row["captions"] for row in rows}) == 3
    assert all((tmp_path / row["captions"]).exists() for row in rows)
    assert evaluate.unlike(["x/a/last.safetensors", "x/a", "b.json"]) == ["a/last", "a", "b"]
    with pytest.raises(UserError, match="--dataset"):
        evaluate.trained_on([runs[0], checkpoint(tmp_path, "ituning", "c", dataset="coco")])


def test_json_holds_what_the_table_shows_and_its_captions_can_be_scored_again(tmp_path, capsys):
    items = dataset(tmp_path)
    path = results(tmp_path / "c.json", items, [f"a dog {i}" for i in range(6)])
    command("--captions", path, "--dataset", tmp_path, "--json", tmp_path / "s.json")
    first = capsys.readouterr().out
    found = json.loads((tmp_path / "s.json").read_text("utf-8"))
    row, = found["rows"]
    assert {name: round(x["score"], 1) for name, x in row["scores"].items()} | {"images": 6} == text_rows(first)["c"]
    assert row["captions"] == "s-c.json" and set(row["cider_d"]) == {str(item["id"]) for item in items}
    assert np.mean(list(row["cider_d"].values())) == pytest.approx(row["scores"]["CIDEr-D"]["score"])
    command("--captions", tmp_path / "s-c.json", "--dataset", tmp_path)
    assert text_rows(capsys.readouterr().out)["s-c"] == text_rows(first)["c"]


def test_without_flags_the_newest_run_is_scored_on_its_own_dataset(tmp_path):
    """As a command of its own: with the imports in the order in which a user causes them."""
    dataset(tmp_path / "data", 3)
    checkpoint(tmp_path, "ituning", dataset=str(tmp_path / "data"))
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--max_new_tokens", "3", "--device", "cpu"],
                          cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=120,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert list(text_rows(done.stdout)) == ["run"] and "the newest run" in done.stderr


# ---------------------------------------------------------------------------- mistakes

def put(path, text):
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("text, words", [
    ("{", "damaged"), ('{"a": 1}', "not a list"),
    ('[{"image": "x.png", "caption": "a"}]', "entry 0 is .*expected"),
    ('[{"image_id": 10, "caption": null}]', "entry 0 is"),
    ('[{"image_id": 10, "caption": "a"}]', "no caption for image_id 11"),
    ('[{"image_id": 10, "caption": "a"}, {"image_id": "10", "caption": "b"}]', "two captions for image_id 10"),
    ('[{"image_id": 10, "caption": "a"}, {"image_id": 11, "caption": "b"}, {"image_id": 99, "caption": "b"}]',
     "no such image: image_id 99")])
def test_a_malformed_results_file_is_one_line(text, words, tmp_path):
    dataset(tmp_path, 2)
    with pytest.raises(UserError, match=words) as e:
        command("--captions", put(tmp_path / "c.json", text), "--dataset", tmp_path)
    assert "c.json" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("flags, words", [
    (("--beam", "0"), "--beam 0"), (("--images", "-1"), "--images -1"), (("--sheet", "a.jpg"), "ends in .png"),
    (("--json", "a"), "ends in .json"), (("--captions", "a.json"), "--dataset"),
    (("--ckpt", "nowhere"), "no checkpoint"), (("--ckpt", "a", "--captions", "b"), "not both"),
    (("--captions", "none.json", "--dataset", "DATA"), "no such file"),
    (("--captions", "c.json", "--dataset", "DATA", "--split", "val"), "there are: test, train"),
    (("--captions", "c.json", "--dataset", "nothing"), "neither a dataset nor a folder")])
def test_a_wrong_switch_is_answered_before_any_work(flags, words, tmp_path):
    dataset(tmp_path, 2)
    with pytest.raises(UserError, match=words):
        command(*(str(tmp_path) if flag == "DATA" else flag for flag in flags))


def test_a_missing_image_is_found_before_any_caption_and_a_broken_one_is_named(trained, tmp_path, monkeypatch):
    dataset(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1.png: not a readable image"):
        command("--ckpt", trained, "--dataset", tmp_path)
    (tmp_path / "2.png").unlink()
    monkeypatch.setattr(evaluate, "caption", None)
    with pytest.raises(UserError, match="2.png: no such image"):
        command("--ckpt", trained, "--dataset", tmp_path)


def test_items_without_captions_of_mixed_tasks_or_with_one_id_cannot_be_scored(tmp_path):
    good = '{"id": 0, "image": "a.png", "captions": ["a"]}\n'
    for line, says in (('"captions": []', "item 1 has no captions"), ('"question": "red?", "answers": {"yes": 1}', "different tasks"),
                       ('"expression": "the cat"', "referring expressions")):
        put(tmp_path / "test.jsonl", good + '{"id": 1, "image": "a.png", %s}' % line)
        with pytest.raises(UserError, match=says):
            evaluate.load_items(tmp_path, "test")
    line = '{"id": %s, "image": "a.png", "captions": ["a"]}\n'
    put(tmp_path / "test.jsonl", line % "1" + line % '"1"')
    with pytest.raises(UserError, match="the same id"):
        evaluate.load_items(tmp_path, "test")


def test_official_tools_that_are_missing_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.eval", None)  # makes its import fail
    with pytest.raises(UserError, match="pip install pycocoevalcap") as e:
        command("--official", "--captions", "c.json", "--dataset", "d")
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", type(sys)("pycocoevalcap"))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.eval", type(sys)("eval"))
    monkeypatch.setattr(evaluate.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no java"):
        command("--official", "--captions", "c.json", "--dataset", "d")


def test_a_number_that_has_no_interval_is_shown_alone():
    assert evaluate.shown(12.34, None, None) == "12.3" and evaluate.shown(12.34, 1, 20) == "12.3 [1.0, 20.0]"


# ---------------------------------------------------------------------------- the contact sheet

def spy_on_sheet(monkeypatch):
    """Collects (heading, score, name, caption, references) of all cards; the sheet is drawn all the same."""
    seen, drawn = [], pictures.captioned

    def spy(title, scores, sections):
        sections = {label: list(cards) for label, cards in sections.items()}
        seen.extend((label, *card[1:]) for label, cards in sections.items() for card in cards)
        return drawn(title, scores, sections)

    monkeypatch.setattr(evaluate, "captioned", spy)
    return seen


def test_the_sheet_shows_best_and_worst_with_score_caption_and_references(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SHEET", 4)
    items, seen = dataset(tmp_path), spy_on_sheet(monkeypatch)
    texts = ["a", "dog 1 sleeps on it", "a dog", "A dog no. 3 on a red sofa", "dog", "a red sofa"]
    path = results(tmp_path / "c.json", items, texts)
    command("--captions", path, "--dataset", tmp_path, "--sheet", tmp_path / "s.png")
    cider = cider_d(texts, [item["captions"] for item in items], per_image=True)[1]
    order = np.argsort(-cider, kind="stable")
    assert [(s[0], s[2]) for s in seen] == [*(("best", f"image {10 + i}") for i in order[:2]),
                                             *(("worst", f"image {10 + i}") for i in order[::-1][:2])]
    best = order[0]
    assert seen[0][1:3] == (f"CIDEr-D {100 * cider[best]:.0f}", f"image {10 + best}")
    assert seen[0][3:] == (texts[best], items[best]["captions"])
    image = Image.open(tmp_path / "s.png")
    assert image.format == "PNG" and image.width == 2 * pictures.MARGIN + 3 * pictures.CARD + 4 * pictures.GAP


@pytest.mark.parametrize("n, best, worst", [(1, 1, 0), (2, 1, 1), (5, 3, 2), (24, 12, 12), (30, 12, 12)])
def test_no_image_is_on_the_sheet_twice(n, best, worst, tmp_path, monkeypatch):
    file, seen = photo(tmp_path / "a.png"), spy_on_sheet(monkeypatch)
    items = [{"id": i, "image": file, "captions": ["a"]} for i in range(n)]
    evaluate.best_and_worst(items, ["a"] * n, np.arange(n) % 7, {}, "title")
    assert Counter(s[0] for s in seen) == Counter({"best": best, "worst": worst})
    assert len({s[2] for s in seen}) == best + worst


@pytest.mark.parametrize("size", [(2000, 30), (30, 2000), (64, 64), (1, 1), (1200, 900), (464, 300)])
def test_a_picture_is_whole_and_in_the_middle_of_its_place_whatever_its_size(size):
    x = np.asarray(pictures.fit(Image.new("RGB", size, (200, 0, 0)), pictures.CARD, pictures.TALL))
    assert x.shape == (pictures.TALL, pictures.CARD, 3)
    ys, xs = np.nonzero((x == (200, 0, 0)).all(-1))
    w, h = xs.max() - xs.min() + 1, ys.max() - ys.min() + 1
    assert abs(xs.min() - (pictures.CARD - w) / 2) <= 1 and abs(ys.min() - (pictures.TALL - h) / 2) <= 1
    assert (w * h == len(xs)) and abs(w - h * size[0] / size[1]) <= 1 + size[0] / size[1]
    assert w > 0.5 * pictures.CARD or h > 0.5 * pictures.TALL  # it fills its place in one direction, more or less


def test_long_and_odd_texts_stay_inside_their_card():
    image = Image.new("RGB", (64, 64))
    plain = pictures.card(image, "CIDEr-D 100", "image 1", "a dog", ["a dog"])
    assert plain.width == pictures.CARD and plain.height < 420
    endless = pictures.card(image, "CIDEr-D 100", "image " + "x" * 300, "w" * 900, ["long " * 300] * 20)
    assert endless.width == pictures.CARD and endless.height < 1000
    for text in ("", "\u65e5\u672c", "\x00\x1b", "\ud800", "a\nb"):
        pictures.captioned(text, [(text, "1.0", text)], {"best": [(image, text, text, text, [text, ""])], "worst": []})


def test_pixels_of_a_tiny_picture_stay_sharp():
    chess = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255)
    assert set(np.unique(np.asarray(pictures.fit(chess, pictures.CARD, pictures.TALL)))) == {0, 255, *pictures.FRAME}


# ---------------------------------------------------------------------------- train.py's last lines

def test_features_are_those_of_the_images_in_their_order(trained, tmp_path):
    items = [{"image": photo(tmp_path / f"{i}.png", i)} for i in range(5)]
    model = SeeGPT.load(trained)
    feats = evaluate.features(model, items, "cpu", batch=2)
    for item, f in zip(items, feats):
        torch.testing.assert_close(f, model.image_features(preprocess(open_image(item["image"]), 32)[None])[0])
