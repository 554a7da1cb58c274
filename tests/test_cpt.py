"""CPT: what is painted, what is read, what is asked, and who wins."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ground
from lib.cli import UserError, parse
from clip_vit import preprocess
from data.masks import iou, mask_of, runs_of
from weights.tokenizers import get_tokenizer
from prompts import ALPHA, NONE, PAINTS, TEMPLATES, blank, fill_in, paint, whole_image_features
from test_methods import V, build
from test_train import ROOT, fit


def noise(w, h, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8))


# ---------------------------------------------------------------------------- painting

@pytest.mark.parametrize("before, after", [((0, 0, 0), (120, 0, 15)), ((255, 255, 255), (248, 128, 143)), ((128, 128, 128), (184, 64, 79))])
def test_paint_is_half_of_the_colour_and_half_of_the_picture(before, after):
    image = Image.new("RGB", (8, 6), before)
    out = np.asarray(paint(image, [([2, 1, 3, 4], PAINTS["red"])]), int)
    assert abs(out[1:5, 2:5] - after).max() <= 1
    outside = np.ones((6, 8), bool)
    outside[1:5, 2:5] = False
    assert (out[outside] == before).all() and (np.asarray(image) == before).all()


@pytest.mark.parametrize("box", [[3, 4, 10, 7], [-5, -6, 9, 9], [25, 15, 30, 30], [2.7, 3.9, 5.6, 4.2], [0, 0, 40, 30], [50, 50, 4, 4]])
@pytest.mark.parametrize("word", PAINTS)
def test_painted_pixels_are_those_of_rgba_compositing(box, word):
    """An RGBA patch of the box pasted with itself as its mask, as in the released code; clipped at the borders."""
    image = noise(40, 30)
    x, y, w, h = box
    x0, y0, x1, y1 = int(x), int(y), int(x + w), int(y + h)
    patch = Image.new("RGBA", (x1 - x0, y1 - y0), (*PAINTS[word], ALPHA))
    want = image.copy()
    want.paste(patch, (x0, y0), patch)
    if x >= 0 and y >= 0:  # int() rounds a negative corner towards 0, the border itself is at 0 in both
        assert np.array_equal(np.asarray(paint(image, [(box, PAINTS[word])])), np.asarray(want))
    over = Image.new("RGBA", image.size)
    over.paste((*PAINTS[word], ALPHA), (max(0, x0), max(0, y0), x1, y1))
    if max(0, x0) < 40 and max(0, y0) < 30:
        both = np.asarray(Image.alpha_composite(image.convert("RGBA"), over).convert("RGB"), int)
        assert np.array_equal(both, np.asarray(paint(image, [(box, PAINTS[word])]), int))


def test_painted_masks_are_those_of_rgba_compositing():
    image = noise(40, 30)
    mask = Image.fromarray(np.random.default_rng(1).choice([0, 255], (30, 40)).astype(np.uint8))
    patch = Image.new("RGBA", image.size, (*PAINTS["blue"], ALPHA))
    patch.putalpha(mask.point(lambda v: ALPHA if v else 0))
    want = image.copy()
    want.paste(patch, (0, 0), patch)
    assert np.array_equal(np.asarray(paint(image, [(mask, PAINTS["blue"])])), np.asarray(want))


def test_several_regions_share_a_copy_and_modes_other_than_rgb_are_painted():
    image = noise(20, 20).convert("L")
    out = np.asarray(paint(image, [([0, 0, 5, 5], PAINTS["red"]), ([10, 10, 5, 5], PAINTS["green"])]))
    assert out.shape == (20, 20, 3) and out[2, 2, 0] > out[2, 2, 1] and out[12, 12, 1] > out[12, 12, 0]


def test_a_region_at_the_border_is_still_seen():
    """A centre crop would lose 80 columns on each side of a 640 x 480 picture."""
    image = Image.new("RGB", (640, 480))
    there = paint(image, [([0, 200, 60, 80], PAINTS["red"])])
    squeezed = preprocess(there, 64, crop=False) - preprocess(image, 64, crop=False)
    cropped = preprocess(there, 64) - preprocess(image, 64)
    assert squeezed.abs().max() > 1 and cropped.abs().max() == 0


def test_masks_in_coco_s_forms():
    """A 3 x 4 picture (height 3): runs go down the columns."""
    want = np.zeros((3, 4), np.uint8)
    want[1:, 1] = want[0, 2] = 255
    runs = {"size": [3, 4], "counts": [4, 3, 5]}
    assert np.array_equal(np.asarray(mask_of(runs, (4, 3))), want)
    square = np.asarray(mask_of([[2, 1, 6, 1, 6, 4, 2, 4]], (10, 8)))
    assert square[2, 3] == 255 and square[6, 3] == 0 and square[2, 8] == 0
    for bad in ({"size": [3, 4], "counts": [4, 3]}, {"size": [4, 3], "counts": [4, 3, 5]}, {"size": [3, 4], "counts": [13, -1]}):
        with pytest.raises(UserError, match="does not fit"):
            mask_of(bad, (4, 3))


def letters(runs):
    """COCO's letters, written by hand: the difference to the run two before, 5 bits at a time, lowest first."""
    out = ""
    for i, run in enumerate(runs):
        x = run - runs[i - 2] if i > 2 else run
        while True:
            bits, x = x & 31, x >> 5
            more = not (x == 0 and not bits & 16 or x == -1 and bits & 16)
            out += chr(48 + bits + (32 if more else 0))
            if not more:
                break
    return out


def test_letters_are_the_runs_they_stand_for():
    rng = random.Random(0)
    for _ in range(300):
        runs = [rng.choice((0, 1, 5, 31, 32, 700, 40_000)) for _ in range(rng.randint(1, 12))]
        assert runs_of(letters(runs)) == runs
    assert runs_of("52203") == [5, 2, 2, 2, 5]


# ---------------------------------------------------------------------------- reading

def test_the_blank_is_the_end_of_the_text():
    assert blank("The Red Car.") == "the red car is in"
    assert [blank("{a}  b", t) for t in TEMPLATES] == ["{a} b is in", "{a} b is", "the color of {a} b is"]


@pytest.mark.parametrize("where", [ROOT / "data" / "shapes" / "tiny-gpt2"])
def test_every_colour_and_none_are_one_token(where):
    enc = get_tokenizer(where)
    assert all(len(enc.encode_ordinary(f" {word}")) == 1 for word in (*PAINTS, NONE))


class Letters:
    eot_token = V - 1

    def encode_ordinary(self, text):
        return [ord(c) % (V - 1) for c in text]


@pytest.mark.parametrize("name", ["ituning", "vcgpt", "dvp", "prefix"])
def test_a_word_of_several_tokens_has_the_sum_of_their_log_probabilities(name):
    model = build(name).eval()
    model.lm.tokenizer = enc = Letters()
    images, prompts, words = torch.randn(3, 3, 16, 16), ["ab", "abc", "xy"], ["q", "qr", "qs", "rq"]
    found = fill_in(model, images, prompts, words)
    for i, prompt in enumerate(prompts):
        head = [enc.eot_token, *enc.encode_ordinary(prompt)]
        for w, word in enumerate(words):
            tail = enc.encode_ordinary(f" {word}")
            logits = model(images[i:i + 1], torch.tensor([head + tail]), cond=torch.tensor([len(head)]))[0][0].log_softmax(-1)
            want = sum(logits[len(head) - 1 + j, t] for j, t in enumerate(tail))
            assert abs(found[i, w] - want) < 1e-4


# ---------------------------------------------------------------------------- who wins

def slow_iou(a, b, more=0):
    """Counted pixel by pixel, of integer boxes."""
    cells = [{(x, y) for x in range(c[0], c[0] + c[2] + more) for y in range(c[1], c[1] + c[3] + more)} for c in (a, b)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


@pytest.mark.parametrize("inclusive", [False, True])
def test_iou_is_what_counting_pixels_gives(inclusive):
    rng = random.Random(0)
    for _ in range(500):
        a, b = ([rng.randint(0, 9), rng.randint(0, 9), rng.randint(1, 9), rng.randint(1, 9)] for _ in range(2))
        assert iou(a, b, inclusive) == pytest.approx(slow_iou(a, b, int(inclusive)))


def test_half_is_enough_but_not_for_the_strict_rule():
    """Corners 0..9 and 0..4, both included: exactly 0.5."""
    item = {"box": [0, 0, 9, 9], "proposals": [[0, 0, 9, 4], [0, 0, 10, 10]]}
    assert ground.hits_of([item], strict=True) == [[False, True]]
    assert ground.hits_of([{"box": [0, 0, 10, 10], "proposals": [[0, 0, 10, 5]]}], strict=False) == [[True]]


def test_the_first_of_equal_scores_is_chosen():
    scores, hits = np.array([1.0, 3.0, 2.0, 3.0]), [False, True, False, False]
    assert ground.chosen([scores, np.zeros(4)], [hits, [True, False, False, False]]).tolist() == [1, 1]
    assert ground.chosen([scores, np.zeros(4)], [[True, False, True, True], [False, True, True, True]]).tolist() == [0, 0]
    assert ground.chosen([np.array([-9.0])], [[True]]).tolist() == [1]  # one proposal: always chosen


def test_chance_is_the_share_of_right_proposals(tmp_path):
    noise(100, 100).save(tmp_path / "a.png")
    item = {"image": tmp_path / "a.png", "box": [0, 0, 50, 50], "expression": "the red cat",
            "proposals": [[0, 0, 50, 50], [60, 60, 5, 5], [50, 0, 50, 50], [0, 50, 10, 10]]}
    blind, prior = ground.chances([item], ground.hits_of([item], False))
    assert blind.tolist() == [0.25] and prior.tolist() == [0.5]  # two boxes of less than 5 % are left out


def test_regions_that_overlap_do_not_share_a_copy():
    item = {"proposals": [[0, 0, 10, 10], [1, 1, 10, 10], [20, 0, 10, 10], [0, 20, 10, 10]]}
    assert ground.grouped(item, 1) == [[0], [1], [2], [3]]
    assert ground.grouped(item, 3) == [[0, 2, 3], [1]]


def test_the_score_of_painting_follows_the_painted_region(tmp_path, monkeypatch):
    """A stub that says "red" the louder, the more red it sees where the truth is: every choice is right; n copies, no more."""
    copies = []

    def stub(model, pictures, prompts, words):
        assert prompts == ["the cat is in"] * len(pictures)
        copies.extend(pictures)
        red = torch.tensor([float(np.asarray(p, int)[10:20, 10:20, 0].mean()) for p in pictures])
        assert words == ["red", "blue", "yellow", "purple", "green", "none"]
        return torch.stack([red, -red, -red, -red, -red, torch.zeros(len(red))], 1)

    monkeypatch.setattr(ground, "fill_in", stub)
    encoded = []
    monkeypatch.setattr(ground, "whole_image_features", lambda model, pictures: encoded.append([*pictures]) or encoded[-1])
    Image.new("RGB", (40, 40), (0, 60, 60)).save(tmp_path / "a.png")
    item = {"image": tmp_path / "a.png", "id": 1, "expression": "The cat.", "box": [10, 10, 10, 10],
            "proposals": [[0, 0, 9, 9], [10, 10, 10, 10], [25, 25, 9, 9]]}
    scores = ground.zero_shot(None, [item], ground.Config())
    assert len(copies) == 3 and ground.chosen(scores["raw"], ground.hits_of([item], False)).tolist() == [1]
    assert int(scores["normalised"][0].argmax()) == 1
    other = {**item, "id": 2, "image": tmp_path / "b.png"}
    Image.new("RGB", (40, 40), (200, 0, 0)).save(other["image"])
    encoded.clear()
    scores = ground.zero_shot(None, [item, other, item], ground.Config())  # of two on one image, one is encoded
    assert sum(map(len, encoded)) == 6 and np.array_equal(scores["raw"][0], scores["raw"][2])
    assert not np.array_equal(scores["raw"][0], scores["raw"][1])


def test_planted_colours_are_found_in_order_and_a_word_that_never_wins_is_dropped():
    grid, words = [(0, 0, 0), (255, 0, 0), (0, 0, 255)], ["red", "blue", "black", "pink"]
    scores = np.log([[0.1, 0.2, 0.6, 0.1], [0.8, 0.1, 0.05, 0.3], [0.1, 0.9, 0.0001, 0.2]])
    assert [(w, c) for w, c, _ in ground.ranked(scores, grid, words)] == [
        ("blue", (0, 0, 255)), ("red", (255, 0, 0)), ("black", (0, 0, 0))]


# ---------------------------------------------------------------------------- few-shot

def test_shots_are_drawn_in_total_and_again_the_same():
    items = [{"id": i} for i in range(50)]
    assert ground.shots_of(items, 4, 1) == ground.shots_of(items, 4, 1) != ground.shots_of(items, 4, 2)
    assert len(ground.shots_of(items, 16, 0)) == 16 and ground.shots_of(items, 8, 3)[:4] == ground.shots_of(items, 4, 3)


def test_as_many_wrong_regions_as_right_ones():
    item = {"id": 7, "box": [0, 0, 10, 10], "proposals": [[0, 0, 10, 10], [30, 0, 9, 9], [1, 0, 10, 10], [60, 0, 9, 9], [0, 50, 9, 9]]}
    found = ground.examples(item, 9)
    assert [x for x in found if x[1]] == [(0, True), (2, True)] and sum(not right for _, right in found) == 2
    assert [right for _, right in ground.examples(item, 1)] == [True, False]
    assert ground.examples({**item, "box": [90, 90, 5, 5]}, 9) == [(0, False)]  # nothing covers it: the first, as "none"


@pytest.fixture(scope="module")
def refer(tmp_path_factory):
    """Twelve training and six test pictures with expressions."""
    from data.common import write_meta, write_split
    from data.shapes import prepare, world
    folder, rng = tmp_path_factory.mktemp("refer"), random.Random(0)
    for split, n in (("train", 12), ("test", 6)):
        items = []
        for i in range(n):
            scene = world.sample_from(rng, 3, ("train",))
            world.render(scene, rng).save(folder / f"{split}{i}.png")
            items += [{"id": i, "image": f"{split}{i}.png", **x} for x in prepare.texts("refer", scene, rng)]
        write_split(folder, split, items)
    write_meta(folder, {"task": "refer"})
    return folder


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A captioner after three steps, on the committed backbones."""
    from data.common import write_meta, write_split
    from data.shapes import world
    folder, rng = tmp_path_factory.mktemp("host"), random.Random(1)
    for split in ("train", "val"):
        scene = world.sample_from(rng, 1, ("train",))
        world.render(scene, rng).save(folder / f"{split}.png")
        write_split(folder, split, [{"id": 0, "image": f"{split}.png", "captions": world.captions(scene, rng)}])
    write_meta(folder, {"task": "caption"})
    fit(folder, folder / "run", "--steps", "3")
    return folder / "run"


def command(*words):
    ground.main(*parse(ground.Config, argv=[str(w) for w in words]))


def test_tuning_changes_what_the_captioner_trains_and_nothing_else(refer, host):
    """And with the same seed it is the same."""
    load = lambda: ground.SeeGPT.load(host)
    items = ground.load(refer, "train")[:2]
    config = ground.Config(steps=3, lr=1e-3)
    before, given = load(), load()
    tuned, again = (ground.tune_cpt(given, items, config, 0) for _ in range(2))
    for (n, a), b in zip(before.named_parameters(), given.parameters()):
        assert torch.equal(a, b), n  # what was given to be tuned is left as it was
    for (n, a), b, c in zip(before.named_parameters(), tuned.parameters(), again.parameters()):
        assert torch.equal(b, c)
        assert not torch.equal(a, b) or n.endswith(".k.bias") if n in before.trained() else torch.equal(a, b), n
    model, head = ground.tune_head(load(), items, config, 0)
    scores = ground.score_head(model, head, items)
    assert [len(s) for s in scores] == [len(item["proposals"]) for item in items]


def test_the_rate_of_a_few_shot_run_is_the_published_one(monkeypatch):
    """3e-5 after a tenth of 500 steps, a 450th of it in the last."""
    one, rates, real = torch.nn.Parameter(torch.zeros(2, 2)), [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or real(self))
    for _ in ground.few_shot_steps([one], 3e-5, 500):
        one.sum().backward()
    assert len(rates) == 500 and rates[50] == max(rates) == 3e-5 and rates[-1] == pytest.approx(3e-5 / 450)


def test_of_many_shots_a_part_is_seen_in_a_step(refer, host, monkeypatch):
    """As of K = all: twelve expressions, two copies of each, at most five in a step, and from 16 on one right region each."""
    monkeypatch.setattr(ground, "SHOTS_AT_ONCE", 5)
    sizes, real = [], ground.whole_image_features
    monkeypatch.setattr(ground, "whole_image_features", lambda model, pictures: sizes.append(len(f := real(model, pictures))) or f)
    ground.tune_cpt(ground.SeeGPT.load(host), ground.load(refer, "train"), ground.Config(steps=3), 0)
    assert sizes == [5, 5, 5]


def test_only_a_word_of_one_token_can_be_tuned_on(refer, host, tmp_path):
    (tmp_path / "p.json").write_text('[{"word": "brown", "rgb": [130, 80, 40]}]')
    config = ground.Config(palette=str(tmp_path / "p.json"), colours=["brown"])
    with pytest.raises(UserError, match="brown is more than one token"):
        ground.tune_cpt(ground.SeeGPT.load(host), ground.load(refer, "train")[:1], config, 0)


@pytest.mark.parametrize("name", ["ituning", "vcgpt", "dvp", "prefix"])
def test_phrases_are_read_alike_alone_and_among_longer_ones(name):
    model = build(name).eval()
    model.lm.tokenizer = Letters()
    feats, phrases = torch.randn(3, 5, model.vit.width), ["ab", "abcd", "x"]
    together = ground.phrase_states(model, feats, phrases)
    assert together.shape == (3, model.lm.config.n_embd)
    for i, phrase in enumerate(phrases):
        torch.testing.assert_close(ground.phrase_states(model, feats[i:i + 1], [phrase])[0], together[i], rtol=0, atol=1e-5)


def test_a_colour_is_named_however_it_is_written():
    items = [{"expression": e} for e in ("man in red, left", "the blue-shirt guy", "Gray.", "the greedy redhead", "a pinkish one")]
    assert set(ground.accuracies(np.ones(5), items)) == {"all", "names a colour", "names none"}
    items = [{**item, "split": "testA" if i < 4 else "testB"} for i, item in enumerate(items)]
    found = ground.accuracies(np.array([1.0, 1, 1, 0, 0]), items)
    assert found["testA"][0] == 75 and found["testB"][0] == 0
    assert found["names a colour"][0] == 100 and found["names none"][0] == 0 and found["all"][0] == 60


def test_several_colours_give_each_region_its_own_words_score(tmp_path, monkeypatch):
    """Three regions, two a copy: the score of each is that of the word it was painted with, in the copy it is in."""
    logp = torch.tensor([[-1.0, -2, -8, -8, -8, -9], [-3, -4, -8, -8, -8, -9]])
    monkeypatch.setattr(ground, "whole_image_features", lambda model, pictures: torch.zeros(len([*pictures]), 1))
    monkeypatch.setattr(ground, "fill_in", lambda model, feats, prompts, words: logp[:len(feats)])
    noise(40, 40).save(tmp_path / "a.png")
    item = {"image": tmp_path / "a.png", "id": 1, "expression": "x", "proposals": [[0, 0, 5, 5], [1, 0, 5, 5], [20, 20, 5, 5]]}
    scores = ground.zero_shot(None, [item], ground.Config(colours=["red", "blue"]))
    assert scores["raw"][0].tolist() == [-1, -3, -2]  # the second covers two thirds of the first: a copy of its own
    assert scores["normalised"][0][0] == pytest.approx(float(logp[0].log_softmax(0)[0]))


def test_masks_are_what_is_painted(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ground, "whole_image_features", lambda model, pictures: seen.extend(pictures) or torch.zeros(len(seen), 1))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    item = {"image": tmp_path / "a.png", "id": 1, "expression": "x", "proposals": [[0, 0, 20, 20]], "masks": [[[0, 0, 9, 0, 9, 9, 0, 9]]]}
    list(ground.painted(None, [item], ground.Config(masks=True)))
    red = np.asarray(seen[0])[..., 0]
    assert red[5, 5] == 120 and red[15, 15] == 0


def test_few_shot_goes_on_from_its_file(refer, host, tmp_path, capsys):
    words = ["--ckpt", host, "--dataset", refer, "--shots", "1", "--steps", "2", "--lr", "1e-2"]
    command(*words, "--seeds", "2", "--json", tmp_path / "a.json")
    command(*words, "--seeds", "1", "--json", tmp_path / "b.json")
    capsys.readouterr()
    command(*words, "--seeds", "2", "--json", tmp_path / "b.json")
    assert "seed 0" not in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())
    with pytest.raises(UserError, match="of other settings"):
        command(*words[:-1], "2e-2", "--json", tmp_path / "b.json")


def test_both_tuned_models_learn_their_shots_by_heart(refer, host):
    load = lambda: ground.SeeGPT.load(host)
    items = ground.load(refer, "train")[:2]
    hits = ground.hits_of(items, False)
    config = ground.Config(steps=60, lr=3e-3)
    assert ground.chosen(ground.score_head(*ground.tune_head(load(), items, config, 0), items), hits).all()
    before, after = (ground.score_cpt(m, items, config) for m in (load(), ground.tune_cpt(load(), items, config, 0)))
    for item, old, new in zip(items, before, after):
        (right, _), (wrong, _) = ground.examples(item, 1)
        assert new[right] - new[wrong] > max(2, old[right] - old[wrong] + 1)


def test_the_whole_command(refer, host, tmp_path, capsys):
    """Zero-shot twice gives the same bits; chance and bound are those of the proposals."""
    for name in "ab":
        command("--ckpt", host, "--dataset", refer, "--json", tmp_path / f"{name}.json")
    out = capsys.readouterr().out
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["expressions"] == 6 and set(result["naming"]) == set(PAINTS)
    assert result["rows"]["bound by the proposals"]["all"]["score"] == 100
    assert "CLIP alone" in out and "(accuracy - chance)" in out
    command("--ckpt", host, "--dataset", refer, "--colours", "red", "blue", "green", "--strict", "--images", "2")
    command("--ckpt", host, "--dataset", refer, "--shots", "1", "2", "--seeds", "2", "--steps", "2", "--png", tmp_path / "c.png")
    assert "| 2 |" in capsys.readouterr().out
    command("--ckpt", host, "--search", "--png", tmp_path / "s.png", "--json", tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    assert [x["log_p"] for x in found] == sorted([x["log_p"] for x in found], reverse=True)
    assert Image.open(tmp_path / "s.png").width > 100
    command("--ckpt", host, "--dataset", refer, "--palette", tmp_path / "s.json", "--colours", found[-1]["word"], "--json", tmp_path / "p.json")
    assert list(json.loads((tmp_path / "p.json").read_text())["naming"]) == [x["word"] for x in found]


@pytest.mark.parametrize("words, says", [
    (["--shots", "²"], "from 1 on"), (["--shots", "1", "--seeds", "0"], "must be 1"), (["--png", "x.png"], "with --shots"),
    (["--shots", "1", "--colours", "red", "blue"], "one region"), (["--colours", "mauve"], "there are red"), (["--palette", "ODD"], "not a palette"), (["--palette", "none.json"], "no such file"), (["--shots", "0"], "from 1 on"), (["--dataset", "MINI", "--split", "val"], "there are"),
    (["--masks"], "has no mask")])
def test_what_cannot_be_asked_is_refused(refer, host, tmp_path, words, says):
    (tmp_path / "odd.json").write_text('[{"word": "red", "rgb": [1, 2, 256]}]')
    words = [{"MINI": str(refer), "ODD": str(tmp_path / "odd.json")}.get(w, w) for w in words]
    with pytest.raises(UserError, match=says):
        command("--ckpt", host, *(["--dataset", refer] if "--dataset" not in words else []), *words)


# ---------------------------------------------------------------------------- pointing at one's own picture

def pointing(host, *words):
    import sample
    sample.main(*parse(sample.Config, argv=["--ckpt", str(host), *map(str, words)]))


def test_one_points_at_a_picture_with_boxes_and_without(refer, host, tmp_path, capsys):
    import sample
    boxes = [[0, 0, 20, 20], [30, 30, 20, 20], [40, 0, 20, 20]]
    (tmp_path / "b.json").write_text(json.dumps({"test0.png": boxes}))
    pointing(host, refer / "test0.png", "--ground", "the circle", "--boxes", tmp_path / "b.json", "--json", tmp_path / "o.json",
             "--attn", tmp_path / "o.png")
    found, = json.loads((tmp_path / "o.json").read_text())
    assert sorted(b["box"] for b in found["boxes"]) == sorted(boxes)
    scores = [b["score"] for b in found["boxes"]]
    assert scores == sorted(scores, reverse=True) and str(found["boxes"][0]["box"]) in capsys.readouterr().out
    # the same numbers as from the pictures painted one by one
    model, image = ground.SeeGPT.load(host), Image.open(refer / "test0.png").convert("RGB")
    for b in found["boxes"]:
        logp = fill_in(model, whole_image_features(model, [paint(image, [(b["box"], PAINTS["red"])])]), ["the circle is in"], ["red"])
        assert float(logp[0, 0]) == pytest.approx(b["score"], abs=1e-4)
    assert Image.open(tmp_path / "o.png").width > 500
    pointing(host, refer / "test0.png", "--ground", "the circle")
    assert "sliding windows" in capsys.readouterr().err
    for x, y, w, h in sample.windows((640, 480)):
        assert x >= 0 and y >= 0 and x + w <= 640 and y + h <= 480 and w == h
    for size in ((640, 480), (480, 640), (64, 64), (4032, 3024), (1000, 640)):  # to every border, on every scale
        found = sample.windows(size)
        for side in {w for _, _, w, _ in found}:
            assert (max(x + w for x, _, w, _ in found if w == side), max(y + h for _, y, w, h in found if w == side)) == pytest.approx(size)


@pytest.mark.parametrize("content, says", [
    ("[]", "no boxes"), ("[[1, 2, 3]]", "not of this form"), ("[[1, 2, 0, 4]]", "not of this form"), ("{}", "has no boxes for"),
    ("{", "JSON"), (None, "no such file")])
def test_boxes_that_are_none_end_in_one_line(refer, host, tmp_path, content, says):
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError, match=says):
        pointing(host, refer / "test0.png", "--ground", "the circle", "--boxes", tmp_path / "b.json")
