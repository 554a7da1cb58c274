"""BLEU, ROUGE-L and CIDEr-D with their quirks, the tokenizer, intervals, and the command.

What is right is what pycocoevalcap says: tests/golden/metrics holds its answers, and the quirks
have numbers worked out by hand. The command runs on models with random methods, whose captions are
nonsense, or on results files whose captions, and so whose scores, are known.
"""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from make_golden_metrics import GOLDEN, NASTY
from PIL import Image

from clip_vit import CLIPViT, preprocess
from data.shapes import world
from data.shapes.exact import exact_columns
from evaluate import __main__ as evaluate
from evaluate import official, results
from evaluate.metrics import bleu, bleu_counts, cider_d, rouge_l
from evaluate.ptb_tokenizer import tokenize
from evaluate.tables import bootstrap, markdown, shown, table
from gpt2 import GPT2
from ituning import ITuning
from lib import pictures
from lib.cli import UserError, parse
from lib.pictures import open_image
from model import SeeGPT
from weights.reading import fingerprint

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ROOT / "data" / "shapes"
TOKENS = json.loads((GOLDEN / "ptb.json").read_text("utf-8"))
SCORES = json.loads((GOLDEN / "scores.json").read_text("utf-8"))
METRICS = bleu, rouge_l, cider_d

# The nasty strings on which Stanford's tokenizer and ours differ, and why.
DIFFER = {"“““curly””” ‘single’ „low“ «angle» ‹small›": "two double quotes in a row are a token",
          "&amp; &lt;tag&gt; it&apos;s &quot;x&quot; caf&eacute; &#39;": "&eacute; is a letter"}


# ---------------------------------------------------------------------------- tokens

@pytest.mark.parametrize("text, tokens", [
    ("A dog, a CAT; and: two birds - here.", "a dog a cat and two birds here"),
    ("He can't, won't and isn't", "he ca n't wo n't and is n't"),
    ("cannot gonna", "can not gon na"),
    ("the man's dogs' it's I'm they've", "the man 's dogs it 's i 'm they 've"),
    ("black-and-white t-shirt, half - full", "black-and-white t-shirt half full"),
    ("(a) [b] {c}", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),  # lower case too early to go
    ("No! No!! What? What?!", "no no !! what what ?!"),  # runs of marks are one token and stay
    ("Mr. Lee at 5 p.m. etc. in the U.S.", "mr. lee at 5 p.m. etc. in the u.s."),
    ("see www.dogs.com/cats or http://a.b/c?d.", "see www.dogs.com/cats or http://a.b/c?d"),
    ("a dog.Then a cat", "a dog.then a cat"),  # no space, no new token
    ("the end., a dog", "the end. a dog"),
    ("\"a\" 'b' ``c'' “d” ‘e’ it’s", "a b c d e it 's"),
    ("$5.99 €5 £5 5¢ 1,000 50%", "$ 5.99 $ 5 # 5 5 cents 1,000 50 %"),
    ("5'10\" 10:30pm 24/7 ½", "5 10 10:30 pm 24/7 1/2"),
    ("2 1/2 dogs", "2\u00a01/2 dogs"),  # one token with a non-breaking space
    ("a 😀 dog👍", "a dog"),  # Stanford's knows no characters beyond U+FFFF
    ("", ""), (" \n ", ""), ("...", "")])
def test_the_rules_of_the_tokenizer_one_by_one(text, tokens):
    assert tokenize(text) == tokens.split(" " if tokens else None)


def test_tokens_are_stanfords_on_generated_strings_and_on_all_nasty_ones_but_two():
    wrong = [text for text, tokens in TOKENS if tokenize(text) != tokens]
    assert len(TOKENS) == 500 + len(NASTY) and {*wrong} & {*NASTY} == {*DIFFER}
    assert len({*wrong} - {*NASTY}) <= 2, wrong  # 99.5 % of 500


@pytest.mark.parametrize("text", ["a", "a.", "a-", "'", "1 ", "<a ", "(", "a@", "http://", "a/b"])
def test_a_model_that_repeats_itself_for_ever_costs_no_time(text):
    began = time.process_time()
    tokenize((text * 2000)[:2000])
    assert time.process_time() - began < 2


# ---------------------------------------------------------------------------- metrics

@pytest.mark.parametrize("case", SCORES, ids=[f"{s['n']} images" for s in SCORES])
def test_scores_are_pycocoevalcaps_to_nine_digits(case):
    args = case["hypotheses"], case["references"], True
    np.testing.assert_allclose(bleu(*args), case["bleu"], rtol=0, atol=1e-9)
    assert abs(rouge_l(*args) - case["rouge_l"]) < 1e-9
    assert abs(cider_d(*args) - case["cider_d"]) < 1e-9


def test_an_n_gram_counts_no_more_often_than_in_the_reference_that_has_it_most():
    """Papineni's example: "the" seven times, twice in one reference, once in the other."""
    refs = ["the cat is on the mat", "there is a cat on the mat"]
    assert bleu(["the the the the the the the"], [refs], True)[0] == pytest.approx(2 / 7)


def test_bleu_4_is_the_geometric_mean_of_four_precisions_over_the_corpus():
    """Matches of 1- to 4-grams: 4 + 6 of 11, 3 + 5 of 9, 2 + 4 of 7, 1 + 3 of 5."""
    hyps, refs = ["a b c d x", "a b c d e f"], [["a b c d e"], ["a b c d e f"]]
    scores, images = bleu(hyps, refs, True, per_image=True)
    assert scores[3] == pytest.approx((10 / 11 * 8 / 9 * 6 / 7 * 4 / 5) ** 0.25)
    assert scores[1] == pytest.approx((10 / 11 * 8 / 9) ** 0.5)
    assert images.shape == (2, 4) and images[:, 3].mean() != pytest.approx(scores[3], abs=0.01)


@pytest.mark.parametrize("lengths, closest", [((3, 7), 3), ((4, 7), 4), ((2, 7), 7), ((9, 12), 9)])
def test_brevity_is_measured_against_the_closest_length_and_the_shorter_of_a_tie(lengths, closest):
    refs = [" ".join("abcdefghijkl"[:n]) for n in lengths]  # the hypothesis is 5 long
    expected = min(1, math.exp(1 - closest / 5)) * min(5, max(lengths)) / 5
    assert bleu(["a b c d e"], [refs], True)[0] == pytest.approx(expected)


def test_precision_and_recall_of_rouge_may_come_from_two_references():
    """p = 4/4 from the long reference, r = 2/2 from the short: together 1, though none gives 1."""
    assert rouge_l(["a b c d"], [["a b c d e f g h", "a d"]], True) == pytest.approx(1)
    assert rouge_l(["a b c d"], [["a b c d e f g h"]], True) < 0.8


def test_an_empty_caption_is_one_empty_token_to_rouge_and_nothing_to_the_others():
    hyps, refs = ["", "a b c d"], [["a b", ""], ["a b c d"]]
    of_bleu, of_rouge, of_cider = (metric(hyps, refs, True, per_image=True)[1]
                                   for metric in METRICS)
    assert of_rouge.tolist() == [1, pytest.approx(1)]  # "" equals ""
    assert of_bleu[0].tolist() == pytest.approx([0] * 4, abs=1e-5) and of_cider[0] == 0


def test_document_frequencies_are_those_of_the_images_that_are_scored():
    """An image's score depends on the others, and one image alone scores 0: log 1 - log 1."""
    hyps, refs = ["a red dog", "a cat"], [["a red dog", "the red dog"], ["a white cat"]]
    two = cider_d(hyps, refs, True, per_image=True)[1]
    three = cider_d(hyps + ["x"], refs + [["one red dog"]], True, per_image=True)[1]
    assert cider_d(hyps[:1], refs[:1], True) == 0 and 0 < three[0] < two[0]


def test_tokenized_means_that_nothing_is_changed_but_spaces_split():
    hyps, refs = ["A dog.", "a cat"], [["a dog"], ["a cat"]]
    assert (bleu(hyps, refs)[0], bleu(hyps, refs, tokenized=True)[0]) == pytest.approx((1, 0.5))
    assert rouge_l(hyps, refs) == pytest.approx(1) and rouge_l(hyps, refs, tokenized=True) < 0.6
    assert cider_d(hyps, refs) > 1.5 * cider_d(hyps, refs, tokenized=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("hyps, refs, words", [
    (["a"], [["a"], ["b"]], "1 captions for 2 images"),
    (["a", "b"], [["a"], []], "without a reference"), ([], [], "no caption")])
def test_what_cannot_be_scored_is_refused(metric, hyps, refs, words):
    with pytest.raises(UserError, match=words):
        metric(hyps, refs)


def test_ten_thousand_captions_are_scored_in_seconds():
    """1,000 here, in a tenth of the 40 s that 10,000 may take."""
    rng = np.random.default_rng(0)
    words = "a man dog is on the table with two red bikes near small white street holding".split()
    text = lambda: " ".join(rng.choice(words, rng.integers(8, 13))).capitalize() + "."
    hyps, refs = [text() for _ in range(1000)], [[text() for _ in range(5)] for _ in range(1000)]
    began = time.process_time()
    for metric in METRICS:
        metric(hyps, refs)
    assert time.process_time() - began < 4  # three times as long as it takes


# ---------------------------------------------------------------------------- intervals

def test_the_interval_of_a_mean_is_two_standard_errors_to_both_sides():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    counts = np.tile([4.0, 3, 2, 1, 4, 3, 2, 1, 4, 4], (400, 1))
    found = bootstrap({"x": values}, counts)
    score, low, high = found["x"]
    assert score == pytest.approx(100 * values.mean())
    error = 100 * values.std() / 400 ** 0.5
    assert (score - low, high - score) == pytest.approx((1.96 * error, 1.96 * error), rel=0.1)
    assert found["BLEU-4"] == pytest.approx((100, 100, 100))  # all images alike: nothing to vary
    assert bootstrap({"x": values}, counts) == found


def test_a_resample_of_bleu_is_the_bleu_of_those_images_and_not_a_mean():
    hyps, refs = SCORES[3]["hypotheses"], SCORES[3]["references"]
    found = bootstrap({}, bleu_counts(hyps, refs), resamples=100, seed=5)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(100):
        some = rng.integers(len(hyps), size=len(hyps))
        drawn.append(bleu([hyps[i] for i in some], [refs[i] for i in some], True))
    low, high = 100 * np.percentile(drawn, (2.5, 97.5), axis=0)
    for k, name in enumerate(found):
        score = 100 * bleu(hyps, refs, True)[k]
        assert found[name] == pytest.approx((score, low[k], high[k]))


def test_what_is_nan_is_left_out_of_the_mean():
    found = bootstrap({"some": np.array([1, 0, np.nan, np.nan]), "none": np.full(4, np.nan)})
    assert found["some"][0] == pytest.approx(50) and found["none"] == (0, 0, 0)


def test_a_row_of_a_table_is_one_line_whatever_is_in_a_name():
    assert markdown([["a"], ["b\n\x1b[31m"]]).splitlines()[2:] == [r"| b\n\x1b[31m |"]


def test_a_number_that_has_no_interval_is_shown_alone():
    assert (shown(12.34, None, None), shown(12.34, 1, 20)) == ("12.3", "12.3 [1.0, 20.0]")


# ---------------------------------------------------------------------------- helpers

def photo(path, seed=0, size=(10, 8)):
    """A picture of random squares; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).resize((50, 40), Image.NEAREST).save(path)
    return path


def dataset(folder, n=6, **more):
    """A prepared dataset of n images with two captions each; more: {key: values} of the items."""
    items = []
    for i in range(n):
        items.append({"id": 10 + i, "image": photo(folder / f"{i}.png", i).name,
                      "captions": [f"A dog no. {i} on a red sofa.", f"dog {i} sleeps on it"],
                      **{key: values[i] for key, values in more.items()}})
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, items)), "utf-8")
    return items


def captions_file(path, items, texts):
    lines = [{"image_id": item["id"], "caption": t} for item, t in zip(items, texts)]
    path.write_text(json.dumps(lines), "utf-8")
    return path


def checkpoint(run, seed=0, scale=1, data="mine"):
    """Saves I-Tuning with random weights on the committed backbones; returns the run's folder."""
    places = {"lm": str(SHAPES / "tiny-gpt2"), "clip": str(SHAPES / "tiny-clip")}
    lm, vit = GPT2.from_pretrained(places["lm"]), CLIPViT.from_pretrained(places["clip"])
    torch.manual_seed(seed)
    config = ITuning.Config()
    model = SeeGPT(vit, lm, ITuning(config, lm, vit))
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(scale * torch.randn_like(p))
    model.run_info = {"method": "ituning", "config": asdict(config), "task": "captions",
                      "dataset": str(data), "train_lm": False, "train_vision": False,
                      **{name: {"name": places[name], "sha256": fingerprint(frozen)}
                         for name, frozen in (("lm", lm), ("clip", vit))}}
    model.save(run / "best.safetensors", step=3)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("out") / "run")


def command(*argv):
    """What `python -m evaluate ...` does, in this process; returns what it prints."""
    argv = ["--device", "cpu", "--all", *map(str, argv)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        evaluate.main(*parse(evaluate.Config, argv=argv))
    return out.getvalue()


def table_rows(text):
    """{row: {column: number in front of the interval}} of the Markdown table in a text."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line[:1] == "|"]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    number = lambda cell: float(cell.split()[0].replace(",", ""))
    return {row[0]: {name: number(cell) for name, cell in zip(head[1:], row[1:]) if cell}
            for row in rows}


# ---------------------------------------------------------------------------- results files

def test_the_table_holds_the_three_metrics_times_100_in_one_row_a_file(tmp_path):
    items = dataset(tmp_path)
    refs = [item["captions"] for item in items]
    texts = [captions[0] for captions in refs[:3]] + ["a cat", "dog 4 sleeps", ""]
    good = captions_file(tmp_path / "good.json", items, [captions[0] for captions in refs])
    mixed = captions_file(tmp_path / "mixed.json", items[::-1], texts[::-1])  # found by id
    out = command("--captions", good, mixed, "--dataset", tmp_path)
    rows = table_rows(out)
    assert list(rows) == ["good", "mixed"]
    assert list(rows["good"]) == ["images", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L",
                                  "CIDEr-D"]
    assert rows["good"]["BLEU-4"] == rows["good"]["ROUGE-L"] == 100 and rows["good"]["images"] == 6
    expected = [*bleu(texts, refs), rouge_l(texts, refs), cider_d(texts, refs)]
    assert list(rows["mixed"].values())[1:] == [round(100 * x, 1) for x in expected]
    low, high = map(float, out.splitlines()[3].split("[")[-1].rstrip("] |").split(","))
    assert low < rows["mixed"]["CIDEr-D"] < high and "our own tokenizer" in out


def test_exact_scenes_are_counted_where_items_hold_a_scene(tmp_path):
    thing = lambda colour, x: world.Thing("small", colour, "circle", x, 30)
    scenes = [[thing("red", 12)], [thing("blue", 50)], [thing("red", 12), thing("blue", 50)],
              [thing("red", 50), thing("blue", 12)]]
    items = dataset(tmp_path, 4, scene=[world.to_json(scene) for scene in scenes])
    texts = ["a small red circle", "a small red circle",
             "a small red circle left of a small blue circle", "a dog"]
    path = captions_file(tmp_path / "c.json", items, texts)
    row = table_rows(command("--captions", path, "--dataset", tmp_path))["c"]
    assert [row[name] for name in row if name.startswith("exact")] == [50, 50, 50]
    texts[1] = "there is a small blue circle"
    shares = {name: np.nanmean(column) for name, column in exact_columns(texts, scenes).items()}
    assert shares == {"all": 0.75, "one object": 1, "two objects": 0.5}


def test_each_domain_of_nocaps_is_scored_with_its_own_document_frequencies(tmp_path):
    refs = [["a bus on a road"], ["a cat in a box", "a cat"], ["the cat and a dog"], ["a bus"],
            ["two red buses"], ["a dog"]]
    domains = ["out-domain", *["in-domain"] * 2, *["near-domain"] * 3]
    items = dataset(tmp_path, captions=refs, domain=domains)
    texts = ["a bus", "a cat in a hat", "the cat and me", "a bus stop", "red buses", "a dog"]
    path = captions_file(tmp_path / "c.json", items, texts)
    row = table_rows(command("--captions", path, "--dataset", tmp_path))["c"]
    expected = {"CIDEr-D": (0, 6), "CIDEr-D in-domain": (1, 3), "CIDEr-D near-domain": (3, 6),
                "CIDEr-D out-domain": (0, 1)}
    assert list(row)[-4:] == list(expected)
    for name, (a, b) in expected.items():
        assert row[name] == round(100 * cider_d(texts[a:b], refs[a:b]), 1)
    parts = cider_d(texts, refs, per_image=True)[1][1:3].mean()
    assert abs(row["CIDEr-D in-domain"] - 100 * parts) > 1  # not the mean of the overall scores


def test_json_holds_what_the_table_shows_and_its_captions_can_be_scored_again(tmp_path):
    items = dataset(tmp_path)
    path = captions_file(tmp_path / "c.json", items, [f"a dog {i}" for i in range(6)])
    first = table_rows(command("--captions", path, "--dataset", tmp_path,
                               "--json", tmp_path / "s.json"))["c"]
    row, = json.loads((tmp_path / "s.json").read_text("utf-8"))["rows"]
    scores = {name: round(values["score"], 1) for name, values in row["scores"].items()}
    assert scores | {"images": 6} == first and row["captions"] == "s-c.json"
    assert set(row["cider_d"]) == {str(item["id"]) for item in items}
    mean = np.mean(list(row["cider_d"].values()))
    assert mean == pytest.approx(row["scores"]["CIDEr-D"]["score"])
    again = command("--captions", tmp_path / "s-c.json", "--dataset", tmp_path)
    assert table_rows(again)["s-c"] == first


def test_a_part_of_a_split_is_marked_as_such(tmp_path):
    path = captions_file(tmp_path / "c.json", dataset(tmp_path)[:4], ["a dog"] * 4)
    out = command("--captions", path, "--dataset", tmp_path, "--images", 4)
    assert table_rows(out)["c"]["images"] == 4 and "A part of the split" in out


# ---------------------------------------------------------------------------- checkpoints

def test_captions_are_those_of_generate_in_the_order_of_the_items(trained, tmp_path,
                                                                  monkeypatch):
    items, asked, generate = dataset(tmp_path, 5), [], SeeGPT.generate
    monkeypatch.setattr(SeeGPT, "generate", lambda self, feats, **given: (
        asked.append(given) or generate(self, feats, **given)))
    how = {"beam": 3, "max_new_tokens": 6, "prompt": "it", "length_penalty": 0.5}
    flags = [word for name, value in how.items() for word in (f"--{name}", value)]
    command("--ckpt", trained, "--dataset", tmp_path, "--batch", 2, *flags,
            "--json", tmp_path / "new" / "scores.json")
    assert asked == [how] * 3  # five images, two at a time
    images = [preprocess(open_image(tmp_path / item["image"]), 64) for item in items]
    texts = SeeGPT.load(trained).generate(torch.stack(images), **how)
    assert len(set(texts)) == 5, "images with one caption would hide a mix-up"
    assert json.loads((tmp_path / "new" / "scores-run.json").read_text("utf-8")) == [
        {"image_id": item["id"], "caption": text} for item, text in zip(items, texts)]


def test_several_checkpoints_make_several_rows_and_files(tmp_path):
    dataset(tmp_path / "data", 3)
    a, b, other_a = [checkpoint(tmp_path / name, data=tmp_path / "data", seed=seed)
                     for seed, name in enumerate(("out/a", "out/b", "else/a"))]
    rows = table_rows(command("--ckpt", a, b, other_a, "--json", tmp_path / "s.json",
                              "--max_new_tokens", 3, "--beam", 1))
    assert list(rows) == [str(a), "b", str(other_a)]  # a name alone where it is the only one
    written = json.loads((tmp_path / "s.json").read_text("utf-8"))["rows"]
    assert [row["name"] for row in written] == list(rows)
    assert len({(tmp_path / row["captions"]).read_bytes() for row in written}) == 3
    assert results.short_names(["x/a/last.safetensors", "x/a", "b.json"]) == ["a/last", "a", "b"]
    with pytest.raises(UserError, match="--dataset"):
        command("--ckpt", a, checkpoint(tmp_path / "out" / "c", data="coco"))


def test_without_flags_the_newest_run_is_scored_on_its_own_dataset(tmp_path):
    """As a process of its own: with the imports in the order in which a user causes them."""
    dataset(tmp_path / "data", 3)
    checkpoint(tmp_path / "out" / "run", data=tmp_path / "data")
    done = subprocess.run([sys.executable, "-m", "evaluate", "--max_new_tokens", "3"], cwd=tmp_path,
                          capture_output=True, text=True, encoding="utf-8", timeout=120,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1",
                               "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert list(table_rows(done.stdout)) == ["run"] and "the newest run" in done.stderr


# ---------------------------------------------------------------------------- mistakes

@pytest.mark.parametrize("text, words", [
    ("{", "damaged"), ('{"a": 1}', "not a list"),
    ('[{"image": "x.png", "caption": "a"}]', "entry 0 is .*expected"),
    ('[{"image_id": 10, "caption": null}]', "entry 0 is"),
    ('[{"image_id": 10, "caption": "a"}]', "no caption for image_id 11"),
    ('[{"image_id": 10, "caption": "a"}, {"image_id": "10", "caption": "b"}]', "two captions for"),
    ('[{"image_id": 10, "caption": "a"}, {"image_id": 11, "caption": "b"}, '
     '{"image_id": 99, "caption": "b"}]', "no such image: image_id 99")])
def test_a_malformed_results_file_is_one_line(text, words, tmp_path):
    dataset(tmp_path, 2)
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=words) as e:
        command("--captions", tmp_path / "c.json", "--dataset", tmp_path)
    assert "c.json" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("flags, words", [
    ("--beam 0", "--beam 0"), ("--images -1", "--images -1"), ("--sheet a.jpg", "ends in .png"),
    ("--json a", "ends in .json"), ("--captions a.json", "--dataset"),
    ("--ckpt nowhere", "no checkpoint"), ("--ckpt a --captions b", "not both"),
    ("--captions none.json --dataset .", "no such file"),
    ("--captions c.json --dataset . --split val", "there are: test, train"),
    ("--captions c.json --dataset nothing", "neither a dataset nor a folder"),
    ("--json test.jsonl/a.json", "a.json: cannot be written"),
    ("--sheet test.jsonl/a.png", "a.png: cannot be written"), ("--beam 1000", "at most 100")])
def test_a_wrong_switch_is_answered_before_any_work(flags, words, tmp_path, monkeypatch):
    dataset(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        command(*flags.split())


def test_a_missing_image_is_found_before_any_caption_and_a_broken_one_is_named(
        trained, tmp_path, monkeypatch):
    dataset(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1.png: not a readable image"):
        command("--ckpt", trained, "--dataset", tmp_path)
    (tmp_path / "2.png").unlink()
    monkeypatch.setattr(evaluate, "texts_of", None)
    with pytest.raises(UserError, match="2.png: no such image"):
        command("--ckpt", trained, "--dataset", tmp_path)


def test_a_table_is_as_wide_as_a_terminal_and_names_what_it_leaves_out():
    metrics = [f"BLEU-{n}" for n in (1, 2, 3, 4)] + ["ROUGE-L", "CIDEr-D", "exact", "exact, novel"]
    rows = {"out/run": {name: (50.0, 40.0, 60.0) for name in metrics}}
    text, more = table(rows, 1000).split("\n\n")
    assert max(map(len, text.splitlines())) <= 100
    kept = [cell.strip() for cell in text.splitlines()[0].split("|")[3:-1]]
    assert kept == ["BLEU-4", "ROUGE-L", "CIDEr-D", "exact"]
    assert more == "More with --all: BLEU-1; BLEU-2; BLEU-3; exact, novel."
    assert all(name in table(rows, 1000, every=True) for name in metrics)


@pytest.mark.parametrize("more, words", [
    ('"id": 1, "captions": []', "item 1 has no captions"),
    ('"id": 1, "question": "red?", "answers": {"yes": 1}', "different tasks"),
    ('"id": 1, "expression": "the cat"', "referring expressions"),
    ('"id": "0", "captions": ["a"]', "the same id")])
def test_mixed_tasks_no_captions_and_equal_ids_cannot_be_scored(more, words, tmp_path):
    first = '{"id": 0, "image": "a.png", "captions": ["a"]}\n' * ("expression" not in more)
    (tmp_path / "test.jsonl").write_text(first + '{"image": "a.png", %s}' % more)
    with pytest.raises(UserError, match=words):
        evaluate.load_items(tmp_path, "test")


def test_official_tools_that_are_missing_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.eval", None)  # makes its import fail
    with pytest.raises(UserError, match="pip install pycocoevalcap"):
        official.find_official()
    for name in ("pycocoevalcap", "pycocoevalcap.eval"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setattr(official.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no java"):
        official.find_official()


# ---------------------------------------------------------------------------- the contact sheet

def test_the_sheet_shows_best_and_worst_with_score_caption_and_references(tmp_path,
                                                                          monkeypatch):
    drawn = []
    card = lambda image, *texts: drawn.append(texts) or Image.new("RGB", (9, 9))
    monkeypatch.setattr(results, "SHEET", 4)
    monkeypatch.setattr(pictures, "card", card)
    items = dataset(tmp_path)
    refs = [item["captions"] for item in items]
    texts = ["a", "dog 1 sleeps on it", "a dog", "A dog no. 3 on a red sofa", "dog", "a red sofa"]
    command("--captions", captions_file(tmp_path / "c.json", items, texts), "--dataset", tmp_path,
            "--sheet", tmp_path / "s.png")
    cider = cider_d(texts, refs, per_image=True)[1]
    order = np.argsort(-cider, kind="stable")
    assert drawn == [(f"CIDEr-D {100 * cider[i]:.0f}", f"image {10 + i}", texts[i], refs[i])
                     for i in [*order[:2], *order[::-1][:2]]]
    image = Image.open(tmp_path / "s.png")
    assert image.format == "PNG" and image.width > 4 * pictures.CARD


@pytest.mark.parametrize("n, best, worst", [(1, 1, 0), (2, 1, 1), (5, 3, 2), (16, 8, 8), (30, 8, 8)])
def test_no_image_is_on_the_sheet_twice(n, best, worst, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "captioned", lambda title, scores, sections: [
        [cell[2] for cell in cells] for cells in sections.values()])
    items = [{"id": i, "image": photo(tmp_path / "a.png"), "captions": ["a"]} for i in range(n)]
    found = results.contact_sheet(items, ["a"] * n, np.arange(n) % 7, {}, "title")
    assert [len(cells) for cells in found] == [best, worst]
    assert len({*found[0], *found[1]}) == best + worst


def test_of_shapes_a_wrong_caption_is_among_the_worst_however_well_it_scores(tmp_path, monkeypatch):
    """And of the best none is much like another, as long as there are others."""
    monkeypatch.setattr(results, "captioned", lambda title, scores, sections: [
        [cell[3] for cell in cells] for cells in sections.values()])
    monkeypatch.setattr(results, "SHEET", 4)
    scenes = [[world.Thing("small", "red", shape, 20, 20)] for shape in ("star", "star", "cross")]
    items = [{"id": i, "image": photo(tmp_path / "a.png"), "captions": ["a"],
              "scene": world.to_json(scene)} for i, scene in enumerate(scenes * 2)]
    texts = ["a small red star", "a large red star", "a small red cross"] * 2
    best, worst = results.contact_sheet(items, texts, np.array([3, 9, 1, 2, 9, 1.]), {}, "title")
    assert best == ["a small red star", "a small red cross"]
    assert worst == ["a large red star"] * 2


@pytest.mark.parametrize("size", [(2000, 30), (30, 2000), (64, 64), (1, 1), (1200, 900)])
def test_a_picture_is_whole_and_in_the_middle_of_its_place_whatever_its_size(size):
    image = pictures.fit(Image.new("RGB", size, (200, 0, 0)), pictures.CARD, pictures.PLACE)
    x = np.asarray(image)
    assert x.shape == (pictures.PLACE, pictures.CARD, 3)
    ys, xs = np.nonzero((x == (200, 0, 0)).all(-1))
    w, h = np.ptp(xs) + 1, np.ptp(ys) + 1
    assert abs(xs.min() - (pictures.CARD - w) / 2) <= 1
    assert abs(ys.min() - (pictures.PLACE - h) / 2) <= 1
    assert w * h == len(xs) and abs(w - h * size[0] / size[1]) <= 1 + size[0] / size[1]
    assert w > 0.5 * pictures.CARD or h > 0.5 * pictures.PLACE  # it fills its place, more or less


def test_pixels_of_a_tiny_picture_stay_sharp():
    chess = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255)
    fitted = np.asarray(pictures.fit(chess, pictures.CARD, pictures.PLACE))
    assert set(np.unique(fitted)) == {0, 255, *pictures.FRAME}


def test_long_and_odd_texts_stay_inside_their_card():
    image = Image.new("RGB", (64, 64))
    plain = pictures.card(image, "CIDEr-D 100", "image 1", "a dog", ["a dog"])
    assert plain.width == pictures.CARD and plain.height < 420
    endless = pictures.card(image, "CIDEr-D 100", "x" * 300, "w" * 900, ["long " * 300] * 20)
    assert endless.width == pictures.CARD and endless.height < 1000
    for text in ("", "\u65e5\u672c", "\x00\x1b", "\ud800", "a\nb"):
        pictures.captioned(text, [(text, "1.0", text)],
                           {"best": [(image, text, text, text, [text, ""])], "worst": []})
