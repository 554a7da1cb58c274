"""CPT: what is painted, what is read, what is asked, and who wins.

The host is an untrained captioner on the committed backbones; the pictures are noise with a few
boxes, of which one is meant.
"""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import SHAPES, checkpoint
from test_methods import Letters, V, build

import sample
from clip_vit import preprocess
from data.boxes import boxes_of, load_boxes, windows
from data.features import whole_image_features
from data.masks import decompress, iou, mask_of
from evaluate import overlays, pointing, region_head, regions, tuning
from evaluate.colours import rank_words
from evaluate.regions import chosen, hits_of, load_expressions
from lib.cli import UserError, parse
from model import SeeGPT
from prompts import ALPHA, NONE, PAINTS, TEMPLATES, cloze, fill_in, paint
from weights.tokenizers import get_tokenizer


def noise(w, h, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8))


# ---------------------------------------------------------------------------- painting

@pytest.mark.parametrize("before, after", [
    ((0, 0, 0), (120, 0, 15)), ((255, 255, 255), (248, 128, 143)),
    ((128, 128, 128), (184, 64, 79))])
def test_paint_is_half_of_the_colour_and_half_of_the_picture(before, after):
    image = Image.new("RGB", (8, 6), before)
    out = np.asarray(paint(image, [2, 1, 3, 4], PAINTS["red"]), int)
    assert abs(out[1:5, 2:5] - after).max() <= 1
    outside = np.ones((6, 8), bool)
    outside[1:5, 2:5] = False
    assert (out[outside] == before).all() and (np.asarray(image) == before).all()


@pytest.mark.parametrize("region", [
    [3, 4, 10, 7], [-5, -6, 9, 9], [25, 15, 30, 30], [2.7, 3.9, 5.6, 4.2], [50, 50, 4, 4], "mask"])
@pytest.mark.parametrize("word", PAINTS)
def test_painted_pixels_are_those_of_rgba_compositing(region, word):
    """A half-transparent layer over the image, clipped at the borders."""
    image, layer = noise(40, 30), Image.new("RGBA", (40, 30))
    if region == "mask":
        region = Image.fromarray(255 * np.random.default_rng(1).integers(0, 2, (30, 40), np.uint8))
        layer.paste((*PAINTS[word], ALPHA), mask=region)
    else:
        x, y, w, h = region
        box = max(0, int(x)), max(0, int(y)), int(x + w), int(y + h)
        layer.paste((*PAINTS[word], ALPHA), box)
    both = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
    assert np.array_equal(np.asarray(both), np.asarray(paint(image, region, PAINTS[word])))


def test_modes_other_than_rgb_are_painted():
    out = np.asarray(paint(noise(20, 20).convert("L"), [0, 0, 5, 5], PAINTS["red"]))
    assert out.shape == (20, 20, 3) and out[2, 2, 0] > out[2, 2, 1]


def test_a_region_at_the_border_is_still_seen():
    """A centre crop would lose 80 columns on each side of a 640 x 480 picture."""
    image = Image.new("RGB", (640, 480))
    there = paint(image, [0, 200, 60, 80], PAINTS["red"])
    squeezed = preprocess(there, 64, crop=False) - preprocess(image, 64, crop=False)
    cropped = preprocess(there, 64) - preprocess(image, 64)
    assert squeezed.abs().max() > 1 and cropped.abs().max() == 0


# ---------------------------------------------------------------------------- masks and boxes

def test_run_lengths_go_down_the_columns_and_polygons_are_filled():
    want = np.zeros((3, 4), np.uint8)
    want[1:, 1] = want[0, 2] = 255
    assert np.array_equal(np.asarray(mask_of({"size": [3, 4], "counts": [4, 3, 5]}, (4, 3))), want)
    square = np.asarray(mask_of([[2, 1, 6, 1, 6, 4, 2, 4]], (10, 8)))
    assert square[2, 3] == 255 and square[6, 3] == 0 and square[2, 8] == 0


@pytest.mark.parametrize("mask, words", [
    ({"size": [3, 4], "counts": [4, 3]}, "does not fit"),
    ({"size": [4, 3], "counts": [4, 3, 5]}, "does not fit"),
    ({"size": [3, 4], "counts": [13, -1]}, "does not fit"), ([[1, 1, 2, 2]], "at least three")])
def test_a_mask_that_is_none_is_refused(mask, words):
    with pytest.raises(UserError, match=words):
        mask_of(mask, (4, 3))


def compress(runs):
    """COCO's letters by hand: the difference to the run two before, 5 bits at a time."""
    out = ""
    for i, run in enumerate(runs):
        x, more = run - runs[i - 2] if i > 2 else run, True
        while more:
            bits, x = x & 31, x >> 5
            more = not (x == 0 and not bits & 16 or x == -1 and bits & 16)
            out += chr(48 + bits + 32 * more)
    return out


def test_letters_are_the_run_lengths_they_stand_for():
    rng = random.Random(0)
    for _ in range(300):
        runs = [rng.choice((0, 1, 5, 31, 32, 700, 40_000)) for _ in range(rng.randint(1, 12))]
        assert decompress(compress(runs)) == runs
    assert decompress("52203") == [5, 2, 2, 2, 5]


def test_iou_is_what_counting_pixels_gives():
    rng = random.Random(0)
    for _ in range(500):
        a, b = ([rng.randint(0, 9), rng.randint(0, 9), rng.randint(1, 9), rng.randint(1, 9)]
                for _ in range(2))
        cells = [{(x, y) for x in range(c[0], c[0] + c[2]) for y in range(c[1], c[1] + c[3])}
                 for c in (a, b)]
        assert iou(a, b) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (64, 64), (4032, 3024), (1000, 640)])
def test_windows_reach_every_border_on_every_scale(size):
    found = np.array(windows(size))
    assert found[:, :2].min() >= 0 and (found[:, 2] == found[:, 3]).all()
    for side in set(found[:, 2]):
        some = found[found[:, 2] == side]
        assert (some[:, :2] + some[:, 2:]).max(0).tolist() == pytest.approx(list(size))


@pytest.mark.parametrize("content, words", [
    ("[]", "none for"), ("[[1, 2, 3]]", "not of this form"), ("[[1, 2, 0, 4]]", "not of this form"),
    ("{}", "none for"), ("[[9, 9, 1, 1]]", "lies outside"), ("{", "JSON"),
    (None, "no such file")])
def test_a_file_without_boxes_for_a_picture_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError, match=words):
        boxes_of(load_boxes(tmp_path / "b.json"), "a.png", (8, 8))


# ---------------------------------------------------------------------------- reading

def test_the_blank_is_the_end_of_the_text():
    assert cloze("The Red Car.") == "the red car is in"
    assert [cloze("{a}  b", t) for t in TEMPLATES] == ["{a} b is in", "{a} b is",
                                                        "the color of {a} b is"]


def test_every_colour_and_none_are_one_token():
    enc = get_tokenizer(SHAPES / "tiny-gpt2")
    assert all(len(enc.encode_ordinary(f" {word}")) == 1 for word in (*PAINTS, NONE))


@pytest.mark.parametrize("name", ["ituning", "vcgpt", "dvp", "prefix"])
def test_a_word_of_several_tokens_has_the_sum_of_their_log_probabilities(name):
    model = build(name).eval()
    model.lm.tokenizer = enc = Letters()
    images, prompts = torch.randn(3, 3, 16, 16), ["ab", "abc", "xy"]
    words = ["q", "qr", "qs", "rq"]
    found = fill_in(model, images, prompts, words)
    for i, prompt in enumerate(prompts):
        head = [enc.eot_token, *enc.encode_ordinary(prompt)]
        for w, word in enumerate(words):
            tail = enc.encode_ordinary(f" {word}")
            logits, _ = model(images[i:i + 1], torch.tensor([head + tail]),
                              condition_len=torch.tensor([len(head)]))
            logp = logits[0].log_softmax(-1)
            want = sum(logp[len(head) - 1 + j, token] for j, token in enumerate(tail))
            assert abs(found[i, w] - want) < 1e-4


@pytest.mark.parametrize("name", ["ituning", "vcgpt", "dvp", "prefix"])
def test_phrases_are_read_alike_alone_and_among_longer_ones(name):
    model = build(name).eval()
    idx, lengths = torch.randint(0, V, (3, 5)), torch.tensor([3, 5, 2])
    feats = torch.randn(3, 5, model.vit.width)
    together = region_head.phrase_states(model, feats, idx, lengths)
    for i, n in enumerate(lengths):
        alone = region_head.phrase_states(model, feats[i:i + 1], idx[i:i + 1, :n], n[None])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------- who wins

@pytest.mark.parametrize("strict", [False, True])
def test_half_is_enough_but_not_for_the_strict_rule(strict):
    item = {"box": [0, 0, 10, 10], "proposals": [[0, 0, 10, 5], [0, 0, 10, 6], [0, 0, 10, 4]]}
    assert hits_of([item], strict) == [[not strict, True, False]]


@pytest.mark.parametrize("strict", [False, True])
def test_hits_are_those_of_a_slow_count_of_pixels(strict):
    rng = random.Random(1)
    for _ in range(200):
        a, b = ([rng.randint(0, 4), rng.randint(0, 4), rng.randint(1, 6), rng.randint(1, 6)]
                for _ in range(2))
        cells = [{(x, y) for x in range(c[0], c[0] + c[2]) for y in range(c[1], c[1] + c[3])}
                 for c in (a, b)]
        both, either = len(cells[0] & cells[1]), len(cells[0] | cells[1])
        want = 2 * both > either if strict else 2 * both >= either
        assert hits_of([{"box": a, "proposals": [b]}], strict) == [[want]]
    half = {"box": [0, 0, 20, 20], "proposals": [[0, 0, 20, 10]]}  # no pixel is added
    assert hits_of([half], strict) == [[not strict]] and iou(half["box"], [0, 0, 20, 10]) == 0.5


def test_the_first_of_equal_scores_is_chosen():
    scores, hits = np.array([1.0, 3.0, 2.0, 3.0]), [False, True, False, False]
    equal, first = np.zeros(4), [True, False, False, False]
    assert chosen([scores, equal, np.array([-9.0])], [hits, first, [True]]).tolist() == [1, 1, 1]
    assert chosen([scores, equal], [first, hits]).tolist() == [0, 0]


def test_chance_is_the_share_of_right_proposals(tmp_path):
    noise(100, 100).save(tmp_path / "a.png")
    item = {"image": tmp_path / "a.png", "box": [0, 0, 50, 50],
            "proposals": [[0, 0, 50, 50], [60, 60, 5, 5], [50, 0, 50, 50], [0, 50, 10, 10]]}
    blind, prior = pointing.chances([item], hits_of([item]))
    assert blind.tolist() == [0.25] and prior.tolist() == [0.5]  # two boxes have less than 5 %


def test_the_score_follows_the_painted_region_and_one_image_is_encoded_once(tmp_path, monkeypatch):
    """A stub that says "red" the louder, the more red it sees where the truth is."""
    def stub(model, copies, prompts, words):
        assert prompts == ["the cat is in"] * 3 and words == [*PAINTS, "none"]
        red = torch.tensor([float(np.asarray(p, int)[10:20, 10:20, 0].mean()) for p in copies])
        return torch.stack([red, *[-red] * 4, 0 * red], 1)

    class Copies(list):
        def split(self, sizes):
            return [self[i:i + n] for i, n in zip(np.cumsum([0, *sizes]), sizes)]

    encoded = []
    monkeypatch.setattr(pointing, "fill_in", stub)
    monkeypatch.setattr(regions, "whole_image_features",
                        lambda model, copies: encoded.append(Copies(copies)) or encoded[-1])
    items = []
    for name, colour in (("a", (0, 60, 60)), ("b", (200, 0, 0)), ("a", (0, 60, 60))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
        items.append({"image": tmp_path / f"{name}.png", "expression": "The cat.",
                      "box": [10, 10, 10, 10],
                      "proposals": [[0, 0, 9, 9], [10, 10, 10, 10], [25, 25, 9, 9]]})
    scores = pointing.zero_shot(None, items, pointing.Config(others=False))
    assert set(scores) == {"raw", "normalised", "wrong word"} and len(encoded[0]) == 6
    for name in ("raw", "normalised"):
        assert chosen(scores[name], hits_of(items))[[0, 2]].tolist() == [1, 1]
        assert np.array_equal(scores[name][0], scores[name][2])
        assert not np.array_equal(scores[name][0], scores[name][1])


def test_masks_are_what_is_painted(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(regions, "whole_image_features", lambda model, copies: (
        seen.extend(copies) or torch.zeros(1)))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    item = {"image": tmp_path / "a.png", "proposals": [[0, 0, 20, 20]],
            "masks": [[[0, 0, 9, 0, 9, 9, 0, 9]]]}
    list(regions.painted(None, [item], pointing.Config(masks=True)))
    red = np.asarray(seen[0])[..., 0]
    assert red[5, 5] == 120 and red[15, 15] == 0


def test_a_colour_is_named_however_it_is_written_and_each_split_has_its_column():
    said = "man in red, left", "the blue-shirt guy", "Gray.", "the greedy redhead", "a pinkish one"
    items = [{"expression": text} for text in said]
    assert set(pointing.accuracies(np.ones(5), items)) == {"all", "names a colour", "names none"}
    items = [{**item, "split": "testA" if i < 4 else "testB"} for i, item in enumerate(items)]
    found = pointing.accuracies(np.array([1.0, 1, 1, 0, 0]), items)
    assert {name: values[0] for name, values in found.items()} == pytest.approx({
        "all": 60, "names a colour": 100, "names none": 0, "testA": 75, "testB": 0})


def test_planted_colours_are_found_in_order_and_a_word_that_never_wins_is_dropped():
    grid, words = [(0, 0, 0), (255, 0, 0), (0, 0, 255)], ["red", "blue", "black", "pink"]
    scores = np.log([[0.1, 0.2, 0.6, 0.1], [0.8, 0.1, 0.05, 0.3], [0.1, 0.9, 0.0001, 0.2]])
    assert [(word, colour) for word, colour, _ in rank_words(scores, grid, words)] == [
        ("blue", (0, 0, 255)), ("red", (255, 0, 0)), ("black", (0, 0, 0))]


def test_outside_the_region_the_picture_is_blurred_or_grey():
    image = noise(40, 30)
    for name, overlay in overlays.OVERLAYS.items():
        out, before = (np.asarray(x, int) for x in (overlay(image, [5, 6, 10, 8]), image))
        inside = np.zeros((30, 40), bool)
        inside[6:14, 5:15] = True
        assert (out[inside] == before[inside]).all() and out[~inside].std() < before.std() / 3, name


@torch.no_grad()
@pytest.mark.parametrize("name", ["ituning", "vcgpt", "dvp", "prefix"])
def test_a_text_has_the_sum_of_its_tokens_log_probabilities(name):
    """Shorter texts beside longer ones."""
    model, texts = build(name).eval(), ["ab", "abcxy"]
    model.lm.tokenizer = enc = Letters()
    feats = torch.randn(2, 5, model.vit.width)
    found = overlays.text_logp(model, feats, texts)
    for i, ids in enumerate(map(enc.encode_ordinary, texts)):
        logits, _ = model(feats[i:i + 1], torch.tensor([[enc.eot_token, *ids]]),
                          condition_len=torch.tensor([1]))
        logp = logits[0].log_softmax(-1)
        assert float(found[i]) == pytest.approx(sum(float(logp[j, t]) for j, t in enumerate(ids)),
                                                abs=1e-4)


# ---------------------------------------------------------------------------- few-shot

BOXES = [[2, 2, 24, 24], [34, 2, 24, 24], [2, 34, 24, 24], [34, 34, 24, 24]]


@pytest.fixture(scope="module")
def refer(tmp_path_factory):
    """Twelve training and six test pictures, each with an expression for one of its boxes."""
    folder, rng = tmp_path_factory.mktemp("refer"), random.Random(0)
    for split, n in (("train", 12), ("test", 6)):
        lines = []
        for i in range(n):
            noise(60, 60, i).save(folder / f"{split}{i}.png")
            boxes = BOXES[:3] if split == "train" and i % 2 else BOXES
            lines.append(json.dumps({
                "id": i, "image": f"{split}{i}.png", "proposals": boxes, "box": rng.choice(boxes),
                "expression": rng.choice(("the red circle", "the star left of it"))}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("out") / "host", scale=0.02)


@pytest.fixture
def command(host, refer, capsys):
    """What `python -m evaluate.pointing ...` does, in this process: returns (stdout, stderr)."""
    def call(*words):
        capsys.readouterr()
        words = map(str, ["--ckpt", host, "--dataset", refer, *words])
        pointing.main(*parse(pointing.Config, argv=[*words]))
        return capsys.readouterr()

    return call


def test_shots_are_drawn_in_total_and_again_the_same():
    draw, items = tuning.draw_shots, list(range(50))
    assert draw(items, 4, 1) == draw(items, 4, 1) != draw(items, 4, 2)
    assert len(draw(items, 16, 0)) == 16 and draw(items, 8, 3)[:4] == draw(items, 4, 3)


def test_as_many_wrong_regions_as_right_ones():
    rng, hits = np.random.default_rng(0), [True, False, True, False, False]
    for limit, n in ((9, 2), (1, 1)):
        found = tuning.draw_copies(hits, limit, rng)
        assert [right for _, right in found] == n * [True] + n * [False]
        assert all(hits[i] == right for i, right in found) and len({*found}) == 2 * n
    assert tuning.draw_copies([False] * 3, 9, rng) == [(0, False)]  # nothing covers it


@pytest.mark.parametrize("shots, right", [(1, {0}), (16, {0, 1})])
def test_copies_are_drawn_anew_in_every_step_until_all_were_seen(refer, host, monkeypatch,
                                                                 shots, right):
    """Of one shot all wrong proposals in turn; of sixteen the one right proposal, too."""
    item, seen = load_expressions(refer, "train")[0], []
    item |= {"box": BOXES[0], "proposals": [BOXES[0], [3, 2, 24, 24], *BOXES[1:]]}
    real = tuning.draw_copies
    monkeypatch.setattr(tuning, "draw_copies",
                        lambda *args: seen.append(real(*args)) or seen[-1])
    model, config = SeeGPT.load(host), pointing.Config(steps=12)
    copies = tuning.Copies(model, [item] * shots, config)
    tuning.tune_cpt(model, copies, config, 0, "released", 1e-3)
    assert len({str(draw) for draw in seen[::shots]}) > 3  # frozen, there would be one
    assert {i for draw in seen for i, hit in draw if not hit} == {2, 3, 4}
    assert right <= {i for draw in seen for i, hit in draw if hit} <= {0, 1}


def test_the_rate_of_a_few_shot_run_is_the_published_one():
    """3e-5 after a tenth of 500 steps, a 450th of it in the last."""
    one = torch.nn.Parameter(torch.zeros(2, 2))
    rates = [opt.param_groups[0]["lr"] for opt in tuning.few_shot_steps([one], 3e-5, 500)]
    assert len(rates) == 500 and rates[50] == max(rates) == 3e-5
    assert rates[-1] == pytest.approx(3e-5 / 450)


@pytest.mark.parametrize("loss", tuning.LOSSES)
def test_the_colour_is_asked_for_behind_the_text_and_nowhere_else(refer, host, monkeypatch, loss):
    """The loss of the first step, worked out from fill_in on the copies one by one."""
    model, items, config = SeeGPT.load(host), load_expressions(refer, "train")[:3], pointing.Config()
    copies, hits = tuning.Copies(model, items, config), hits_of(items)
    texts, words = [cloze(x["expression"]) for x in items], tuning.word_tokens(model, ["red", NONE])
    logp = [fill_in(model, f, [t] * len(f), ["red", NONE]) for f, t in
            zip(copies.read(range(3)), texts)]
    if loss == "proposals":
        batch, forward = tuning.proposals_batch(model, copies, [0, 1, 2], hits, texts, words)
        want = [-rows[:, 0].log_softmax(0)[hit.index(True)] for rows, hit in zip(logp, hits)]
    else:
        monkeypatch.setattr(tuning, "draw_copies", lambda hit, *_: [(i, h) for i, h in
                                                                    enumerate(hit)])
        batch, forward = tuning.released_batch(model, copies, [0, 1, 2], hits, texts, words, 1, 0)
        want = [-row[0 if h else 1] for rows, hit in zip(logp, hits) for row, h in zip(rows, hit)]
    assert forward(*batch)[1].item() == pytest.approx(float(torch.stack(want).mean()), abs=1e-4)


def test_before_the_first_step_the_score_is_the_zero_shot_one(refer, host):
    model, items = SeeGPT.load(host), load_expressions(refer, "test")
    config = pointing.Config(steps=2)
    copies = tuning.Copies(model, items, config)
    tuned = tuning.tune_cpt(model, copies, config, 0, lr=0.0)
    for a, b in zip(tuning.score_cpt(tuned, copies, config)["prior"],
                    pointing.zero_shot(model, items, config)["raw"]):
        np.testing.assert_allclose(a, b, atol=2e-3)  # features are kept in half precision


@pytest.mark.parametrize("loss", tuning.LOSSES)
def test_tuning_changes_what_the_captioner_trains_and_nothing_else(refer, host, loss):
    """And with the same seed it is the same."""
    items, config = load_expressions(refer, "train")[:2], pointing.Config(steps=3)
    before, given = SeeGPT.load(host), SeeGPT.load(host)
    copies = tuning.Copies(given, items, config)
    tuned, again = (tuning.tune_cpt(given, copies, config, 0, loss, 1e-3) for _ in range(2))
    for (name, a), b, c, d in zip(before.named_parameters(), given.parameters(),
                                  tuned.parameters(), again.parameters()):
        assert torch.equal(a, b) and torch.equal(c, d), name  # what was given stays as it was
        if not name.endswith(".k.bias"):  # shifts all scores of a query alike
            assert torch.equal(a, c) == (name not in before.trained()), name


def test_the_loss_of_images_with_more_and_fewer_proposals_is_their_mean(refer, host):
    items, head = load_expressions(refer, "train")[:2], region_head.RegionHead(SeeGPT.load(host))
    images = [region_head.read_image(head.captioner, item) for item in items]

    def loss(*some):  # of the first proposal
        regions, batch = region_head.head_batch(
            head.captioner, [items[i] for i in some], [images[i] for i in some])
        targets = torch.eye(4)[[0] * len(some), :max(map(len, regions))]
        return head(regions, batch.images, batch.idx, targets, batch.condition_len)[1].item()

    assert [len(regions) for _, regions in images] == [4, 3]
    assert loss(0, 1) == pytest.approx((loss(0) + loss(1)) / 2, rel=1e-5)


def test_of_many_shots_a_part_is_painted_in_a_step(refer, host, monkeypatch):
    """As of K = all: twelve expressions, five in a step, and what was painted is kept."""
    sizes, real = [], tuning.painted
    monkeypatch.setitem(tuning.EXPRESSIONS, "proposals", 5)
    monkeypatch.setattr(tuning, "painted", lambda model, items, *a, **k: (
        sizes.append(len(items)) or real(model, items, *a, **k)))
    model, config = SeeGPT.load(host), pointing.Config(steps=3)
    tuning.tune_cpt(model, tuning.Copies(model, load_expressions(refer, "train"), config), config, 0)
    assert sizes[0] == 5 and len(sizes) == 3 and 5 < sum(sizes) <= 12


def test_expressions_on_one_image_share_what_is_encoded_and_no_more_is_kept_than_asked(
        refer, host, monkeypatch):
    encoded, real = [], regions.whole_image_features
    monkeypatch.setattr(region_head, "KEPT", 2)
    for module in (regions, region_head):
        monkeypatch.setattr(module, "whole_image_features", lambda model, images, *size: (
            encoded.append(1) or real(model, images, *size)))
    model, items = SeeGPT.load(host), [dict(x) for x in load_expressions(refer, "test")[:3]]
    items.insert(1, {**items[0], "expression": "the star"})
    for kept in (tuning.Copies(model, items, pointing.Config(), most=2),
                 region_head.Images(model, items)):
        counts = []
        for which in ([0], [1], [0, 2], [1, 3], [0]):
            encoded.clear()
            assert len(kept.read(which)) == len(which) and len(kept.kept) <= 2
            counts.append(len(encoded))
        assert counts[0] > 0 == counts[1] == counts[4] and counts[2] > 0 and counts[3] > 0


@pytest.mark.parametrize("loss", tuning.LOSSES)
def test_both_tuned_models_learn_their_shots_by_heart(refer, host, loss):
    items, config = load_expressions(refer, "train")[:2], pointing.Config(steps=60)
    hits, model = hits_of(items), SeeGPT.load(host)
    images, copies = region_head.Images(model, items), tuning.Copies(model, items, config)
    head = region_head.tune_head(model, images, config, 0, 6e-3)
    assert chosen(region_head.score_head(head, images), hits).all()
    tuned = tuning.tune_cpt(model, copies, config, 0, loss, 3e-3)
    score = "prior" if loss == "proposals" else "released"
    assert chosen(tuning.score_cpt(tuned, copies, config)[score], hits).all()


def test_few_shot_goes_on_from_its_file(command, tmp_path):
    words = ["--shots", "1", "--steps", "2", "--lr", "1e-2", "--head_lr", "1e-2", "--json"]
    out, _ = command(*words, tmp_path / "a.json", "--seeds", "2")
    command(*words, tmp_path / "b.json", "--seeds", "1")
    again, err = command(*words, tmp_path / "b.json", "--seeds", "2")
    assert "seed 0" not in err and out == again and "shots | 1 |" in out
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(
        (tmp_path / "b.json").read_text())
    side_by_side, _ = command(*words, tmp_path / "c.json", "--seeds", "2", "--jobs", "2")
    assert side_by_side == out
    with pytest.raises(UserError, match="of other settings"):
        command(*words, tmp_path / "b.json", "--steps", "3")
    half = json.loads((tmp_path / "b.json").read_text()) | {"accuracies": {"zero-shot": {"1": 3}}}
    (tmp_path / "b.json").write_text(json.dumps(half))
    with pytest.raises(UserError, match="b.json: damaged"):
        command(*words, tmp_path / "b.json", "--seeds", "2")


# ---------------------------------------------------------------------------- the command

def test_zero_shot_twice_gives_the_same_bits(command, tmp_path):
    """Chance and bound are those of the proposals."""
    out, _ = command("--json", tmp_path / "a.json")
    command("--json", tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["expressions"] == 6 and set(result["naming"]) == set(PAINTS)
    assert result["rows"]["random"]["all"]["score"] == 25
    assert result["rows"]["bound by the proposals"]["all"]["score"] == 100
    assert "CLIP alone" in out and "(accuracy - chance)" in out


def test_the_search_ranks_colours_and_its_file_is_a_palette(command, tmp_path):
    command("--search", "--png", tmp_path / "s.png", "--json", tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    assert [x["log_p"] for x in found] == sorted((x["log_p"] for x in found), reverse=True)
    assert Image.open(tmp_path / "s.png").width > 100
    command("--palette", tmp_path / "s.json", "--colour", found[-1]["word"], "--images", "1",
            "--json", tmp_path / "p.json")
    naming = json.loads((tmp_path / "p.json").read_text())["naming"]
    assert list(naming) == [x["word"] for x in found]


def test_sample_points_at_a_box_of_ones_own_picture(refer, host, tmp_path, capsys):
    """The scores are those of the copies painted one by one, the best first."""
    photo, out = refer / "test0.png", tmp_path / "o.json"
    (tmp_path / "b.json").write_text(json.dumps({photo.name: BOXES}))
    flags = ["--ckpt", host, photo, "--ground", "the circle", "--json", out]
    point = lambda *more: sample.main(*parse(sample.Config, argv=[*map(str, [*flags, *more])]))
    point("--boxes", tmp_path / "b.json", "--attn", tmp_path / "o.png")
    found, = json.loads(out.read_text())
    boxes, scores = zip(*((x["box"], x["score"]) for x in found["boxes"]))
    assert sorted(boxes) == BOXES[::2] + BOXES[1::2] and [*scores] == sorted(scores, reverse=True)
    assert str(boxes[0]) in capsys.readouterr().out and Image.open(tmp_path / "o.png").width > 500
    model = SeeGPT.load(host)
    for box, score in zip(boxes, scores):
        copy = paint(Image.open(photo), box, PAINTS["red"])
        logp = fill_in(model, whole_image_features(model, [copy]), ["the circle is in"], ["red"])
        assert float(logp) == pytest.approx(score, abs=1e-4)
    point()
    assert len(json.loads(out.read_text())[0]["boxes"]) == len(windows((60, 60)))


@pytest.mark.parametrize("words, says", [
    ("--shots 1 --lr x", "--lr: numbers"), ("--shots 1 --loss odd", "--loss: some"),
    ("--shots ²", "from 1 on"), ("--shots 0", "from 1 on"), ("--shots 1 --seeds 0", "must be 1"),
    ("--png x.png", "with --shots"), ("--search --shots 1", "one of them"),
    ("--json odd.json/x", "odd.json/x: cannot be written"),
    ("--shots " + 5000 * "9", "from 1 on"), ("--lr nan", "--lr"),
    ("--colour mauve", "there are red"),
    ("--palette odd.json", "not a palette"), ("--palette none.json", "no such file"),
    ("--split val", "there are"), ("--masks", "has no mask"),
    ("--palette brown.json --colour brown --shots 1", "brown is more than one token")])
def test_what_cannot_be_asked_is_refused(command, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.json").write_text('[{"word": "red", "rgb": [1, 2, 256]}]')
    (tmp_path / "brown.json").write_text('[{"word": "brown", "rgb": [130, 80, 40]}]')
    with pytest.raises(UserError, match=says):
        command(*words.split())
