"""The shapes world: what is said of a scene is true of it, and no scene is in two splits."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_vit import CLIPText, CLIPViT, preprocess
from data.shapes import clip_batches, prepare, pretrain, texts, world
from data.shapes.drawing import SHADES, background, mark, outline, render
from data.shapes.export import save_clip, save_gpt2
from data.shapes.world import Thing, with_article
from data.tasks import load_split
from gpt2 import GPT2
from lib.cli import UserError
from weights.reading import metadata
from weights.tokenizers import get_clip_tokenizer

RED, BLUE = Thing("small", "red", "circle", 16, 40), Thing("large", "blue", "square", 47, 38)
SPLITS = ("train", "pretrain", "val", "test", "novel", None)
TINY_GPT2, TINY_CLIP = prepare.HERE / "tiny-gpt2", prepare.HERE / "tiny-clip"


@pytest.fixture
def rng():
    return random.Random(0)


def scenes(rng, n, sizes, splits=SPLITS):
    return [world.sample_from(rng, rng.choice(sizes), splits) for _ in range(n)]


@pytest.mark.parametrize("caption, scene, exact, named", [
    ("a small red circle left of a large blue square", [RED, BLUE], True, True),
    ("A small red circle with a large blue square to its right.", [RED, BLUE], True, True),
    ("right of a small red circle is a large blue square", [RED, BLUE], True, True),
    ("this is a small red circle on the left", [RED], True, True),
    ("a small red circle at the top", [RED], False, True),
    ("a small red circle right of a large blue square", [RED, BLUE], False, True),
    ("a large blue square with a small red star above it", [RED, BLUE], False, False),
    ("a small red circle", [RED, BLUE], False, False),
    ("a small blue circle left of a large red square", [RED, BLUE], False, False),
    ("a small red circle left of a large blue square", [RED], False, False),
    ("There is nothing.", [], True, True), ("a small red circle", [], False, False),
    ("there is nothing", [RED], False, False)])
def test_a_caption_is_exact_if_all_that_it_says_is_true(caption, scene, exact, named):
    """The red circle is in the middle of the left side, the blue square right of it."""
    assert world.is_exact(caption, scene) == exact and world.names_all(caption, scene) == named


def test_every_caption_is_exact_for_its_scene_and_for_no_scene_that_sounds_different(rng):
    many = scenes(rng, 300, (0, 1, 2))
    for scene in many:
        captions, other = world.captions(scene, rng), rng.choice(many)
        assert len(set(captions)) == 5 and all(world.is_exact(c, scene) for c in captions)
        if sorted(t.looks for t in other) != sorted(t.looks for t in scene):
            assert not any(world.is_exact(c, other) for c in captions)


def test_answers_labels_and_descriptions_are_true(rng):
    """Checked from the scene's attributes, by another route than the one that made them."""
    for scene in scenes(rng, 200, (1, 2, 4, 6)):
        there = lambda words: any(texts.fits(words, t) for t in scene)
        for question, answer in texts.questions(scene, rng):
            if m := re.fullmatch(r"how many (\w+) objects are there\?", question):
                assert texts.COUNTS.index(answer) == sum(t.colour == m[1] for t in scene)
            elif m := re.fullmatch(r"is there an? (.+)\?", question):
                assert answer == ("yes" if there(m[1]) else "no")
            elif m := re.fullmatch(r"what (colour|shape|size) is the (.+)\?", question):
                assert {getattr(t, m[1]) for t in scene if texts.fits(m[2], t)} == {answer}
        for text, label in texts.hypotheses(scene, rng):
            if m := re.fullmatch(r"there is an? (.+)", text):
                assert label == ("entailment" if there(m[1]) else "contradiction")
        for text in texts.descriptions(scene, rng):
            name, said = text.removeprefix("the ").split(" is ", 1)
            if said == "in none":
                assert not there(name)
            elif not re.search(world.RELATION, name):
                t, = [t for t in scene if texts.fits(name, t)]
                assert said in (f"in {t.colour}", t.size, t.place, with_article(t.shape))


def test_a_referring_expression_fits_one_thing_only(rng):
    for scene in scenes(rng, 150, (3, 5, 7)):
        i = rng.randrange(len(scene))
        said = texts.expression(scene, i, rng).removeprefix("the ")
        words, rel, anchor = re.fullmatch(rf"(.+?)(?: ({world.RELATION}) the (.+))?", said).groups()
        found = [t for t in scene if texts.fits(words, t)]
        if anchor:
            o, = [t for t in scene if texts.fits(anchor, t)]
            found = [t for t in found if t is not o and world.relation(t, o) == world.MEANING[rel]]
        assert found == [scene[i]], (said, scene)


def colour_at(image, x, y):
    """What anybody would call the colour of a pixel: the nearest of all tints that have a name."""
    pixel, tints = np.asarray(image, float)[int(y), int(x)], {}
    for name, nominal in world.COLOURS.items():
        for far, shade in ((f, s) for f in (0, 0.5, 1) for s in SHADES[name]):
            tints[name, far, shade] = np.add(nominal, far * np.subtract(shade, nominal))
    return min(tints, key=lambda key: np.abs(tints[key] - pixel).max())[0]


def test_things_stay_inside_and_apart_and_pictures_show_their_colours(rng):
    seen = []
    for scene in scenes(rng, 100, (1, 2, 7)):
        image = render(scene, rng)
        assert world.is_valid(scene)
        seen += [colour_at(image, t.x, t.y) == t.colour for t in scene]
        for t in scene:
            low, high = world.RADII[t.size]
            assert low <= t.radius <= high and t.box[2] == pytest.approx(2 * t.radius)
    assert np.mean(seen) > 0.98  # noise and blur may hide one


def test_backgrounds_go_from_black_to_white_and_stay_away_from_what_is_drawn(rng):
    grounds = np.array([background([(220, 40, 40)], rng) for _ in range(500)])
    bright = grounds.mean(1)
    assert bright.min() < 15 and bright.max() > 245 and (np.ptp(grounds, 1) > 40).mean() > 0.1
    assert np.linalg.norm(grounds - (220, 40, 40), axis=1).min() > 80


def test_a_turned_square_is_no_diamond_and_a_large_one_larger_than_a_small_one(rng):
    """A square's corners point to the four corners of the picture, those of a diamond up, down and
    aside. Between them are 45 degrees."""
    sides = {}
    for _ in range(300):
        size, shape = rng.choice(list(world.SIZES)), rng.choice(("square", "diamond"))
        corners = outline(Thing(size, "red", shape, 32, 32, world.radius_of(size, rng)), rng)
        far = corners[np.hypot(*corners.T).argmax()]
        angle = np.degrees(np.arctan2(*far)) % 90
        assert (25 < angle < 65) == (shape == "square")
        x, y = corners.T  # the area, by the shoelace formula
        area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
        sides.setdefault((shape, size), []).append(area ** 0.5)
    for shape in ("square", "diamond"):
        assert max(sides[shape, "small"]) + 0.5 < min(sides[shape, "large"])


def test_every_scene_has_one_split_and_novel_pairs_stay_out_of_adaptation(rng):
    many = scenes(rng, 2000, (1, 2))
    assert {world.split_of(s) for s in many} == {*SPLITS}
    for scene in many:
        novel = any((t.colour, t.shape) in world.NOVEL for t in scene)
        assert novel == (world.split_of(scene) in ("novel", "pretrain", None))
    moved = [BLUE, Thing("small", "red", "circle", 17, 41)]  # told from the other side
    assert world.signature(moved) == world.signature([RED, BLUE])


def test_the_splits_of_every_task_hold_only_their_own_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES", {"train": 20, "val": 8, "test": 8, "novel": 8})
    for task in prepare.TASKS:
        prepare.main(prepare.Config([task], out=tmp_path / task))
        for split, n in prepare.images_of(task).items():
            items = load_split(tmp_path / task, split)
            assert len({x["image"] for x in items}) == n and items[0]["image"].exists()
            found = {world.split_of(world.from_json(x["scene"])) for x in items if "scene" in x}
            assert found == ({split} if task != "regions" else set())
            if task == "refer":
                assert all(x["box"] in x["proposals"] and len(x["proposals"]) >= 6 for x in items)


def test_what_is_not_there_to_pretrain_is_refused(tmp_path):
    with pytest.raises(UserError, match="say what to pre-train"):
        pretrain.main(pretrain.Config(["foo"], out=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_pretraining_sees_no_val_test_or_novel_scene(rng):
    assert {world.split_of(s) for _ in range(300) for s in (
        pretrain.scene_for(rng), *clip_batches.near_duplicates(rng))} == {"train", "pretrain"}


def test_a_marker_is_half_of_its_colour_and_the_rest_of_the_picture_stays(rng):
    image = render(world.sample(rng, 3), rng)
    before = np.array(image, int)
    mark(image, [10.2, 20, 9, 8.7], (240, 0, 30), 0.5)
    after, box = np.array(image, int), (slice(20, 29), slice(10, 19))
    assert np.abs(after[box] - (before[box] + (240, 0, 30)) / 2).max() <= 1
    before[box] = after[box]
    assert (before == after).all()


def test_of_a_marked_thing_the_marker_is_seen_around_it_and_is_what_it_is_in(rng):
    seen = 0
    for paint in 20 * [*world.COLOURS]:
        t = Thing("large", "red", "circle", 32, 32, 9, paint)
        picture, plain = (np.asarray(render([x], random.Random(paint)), int)
                          for x in (t, replace(t, paint="")))
        seen += np.abs(picture[25, 24] - picture[8, 8]).max() > 15  # a corner of the box
        assert paint == t.seen and f"large circle in {paint}" in clip_batches.names(t)
        assert any(said.endswith(f"is in {paint}") for said in texts.descriptions([t], rng))
    assert seen > 0.95 * 160


def test_a_phrase_fits_the_regions_that_it_is_true_of(rng):
    scene = [RED, BLUE]
    weights, real = clip_batches.region_patches([scene, [RED]], 8, seed=0)
    assert real.tolist() == [[True, True, True], [True, False, True]]  # the last: the background
    centres = torch.cartesian_prod(*[torch.arange(4.0, 64, 8)] * 2).flip(1)  # (N, 2), x and y
    found = weights[0, :2] @ centres
    assert (found - torch.tensor([[RED.x, RED.y], [BLUE.x, BLUE.y]])).abs().max() < 6
    assert (weights[0] > 0).sum(0).max() == 1  # no patch in two regions
    phrases, true = clip_batches.region_phrases(60 * [(scene, 0), (scene, 1)], rng, relations=True)
    for t, other, row in zip(scene, ("left of a large blue square", "right of a small red circle"),
                             true):
        a = with_article(t.looks)
        said = {p for p, fits in zip(phrases, row) if fits}
        assert {p for p in said if p.startswith(a)} == {a, f"{a} {t.place}", f"{a} {other}"}
        assert all(p.startswith((a, f"{with_article(t.size)} {t.shape} in {t.colour}"))
                   for p in said)
    assert not true.any(0)[:-1].all()  # false ones are among them


def test_the_committed_files_are_what_is_exported_and_made_from_the_world_that_is_here(tmp_path):
    here = {"data_sha256": pretrain.provenance(pretrain.Config(), 0)["data_sha256"]}
    save_gpt2(GPT2.from_pretrained(TINY_GPT2), tmp_path / "tiny-gpt2", metadata(TINY_GPT2) | here)
    save_clip(CLIPViT.from_pretrained(TINY_CLIP), CLIPText.from_pretrained(TINY_CLIP),
              tmp_path / "tiny-clip", metadata(TINY_CLIP) | here)
    for path in tmp_path.glob("*/*"):
        assert path.read_bytes() == (prepare.HERE / path.relative_to(tmp_path)).read_bytes()


def test_every_word_of_the_world_is_one_token():
    enc, encode = GPT2.from_pretrained(TINY_GPT2).tokenizer, get_clip_tokenizer(TINY_CLIP)
    words = [*world.SIZES, *world.COLOURS, *world.SHAPES, "left", "below"]
    assert {len(set(encode([word])[0].tolist())) for word in words} == {4}  # with 0: padding
    words += "yes no maybe none is in question answer photo".split()
    assert all(len(enc.encode_ordinary(f" {word}")) == 1 for word in words)


@torch.no_grad()
def test_the_tiny_gpt2_remembers_what_was_said(rng):
    """After both objects were named, the colour of the second in a caption costs little; without
    memory it would cost ln 8 = 2.08 nats."""
    model, cost = GPT2.from_pretrained(TINY_GPT2), []
    for x, y in scenes(rng, 60, (2,), ("test",)):
        a, b = with_article(x.looks), with_article(y.looks)
        text = f"one is {a}. the other one is {b}. {a} {world.relation(x, y)} {b}"
        ids = torch.tensor([[model.eot, *model.tokenizer.encode_ordinary(text)]])
        cost.append(F.cross_entropy(model(ids)[0, -3], ids[0, -2]))
    assert np.mean(cost) < 0.5


@torch.no_grad()
def test_the_tiny_clip_tells_near_duplicates_apart(rng):
    """Four pictures that differ in one respect: which does the text mean? Chance is 1/4."""
    vit, text = (tower.from_pretrained(TINY_CLIP) for tower in (CLIPViT, CLIPText))
    encode, right = get_clip_tokenizer(TINY_CLIP), []
    for group in (clip_batches.near_duplicates(rng) for _ in range(60)):
        if len(group[0]) == 2:
            images = torch.stack([preprocess(render(s, rng), 64) for s in group])
            caption = text.encode_text(encode(world.captions(group[0], rng)[:1]))
            scores = F.cosine_similarity(vit.encode_image(images), caption)
            right.append(int(scores.argmax()) == 0)
    assert np.mean(right) > 0.6
