"""The shapes world: what is said of a scene is true of it, and no scene is in two splits."""

import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_vit import CLIPText, CLIPViT, preprocess
from data.shapes import clip_batches, prepare, pretrain, texts, world
from data.shapes.export import save_clip, save_gpt2
from data.shapes.world import Thing, with_article
from data.tasks import load_split
from gpt2 import GPT2
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
    ("a small red circle left of a large blue square", [RED], False, False)])
def test_a_caption_is_exact_if_all_that_it_says_is_true(caption, scene, exact, named):
    """The red circle is in the middle of the left side, the blue square right of it."""
    assert world.is_exact(caption, scene) == exact and world.names_all(caption, scene) == named


def test_every_caption_is_exact_for_its_scene_and_for_no_scene_that_sounds_different(rng):
    many = scenes(rng, 300, (1, 2))
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


def test_things_stay_inside_and_apart_and_pictures_show_their_colours(rng):
    for scene in scenes(rng, 60, (1, 2, 7)):
        pixels = np.asarray(world.render(scene, rng)).astype(int)
        assert world.is_valid(scene)
        for t in scene:
            if t.shape != "triangle" or t.size == "large":
                assert np.abs(pixels[int(t.y), int(t.x)] - world.COLOURS[t.colour]).max() <= 20, t


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
        for split, n in prepare.IMAGES.items():
            items = load_split(tmp_path / task, split)
            assert len({x["image"] for x in items}) == n and items[0]["image"].exists()
            found = {world.split_of(world.from_json(x["scene"])) for x in items if "scene" in x}
            assert found == ({split} if task != "regions" else set())
            if task == "refer":
                assert all(x["box"] in x["proposals"] and len(x["proposals"]) >= 6 for x in items)


def test_pretraining_sees_no_val_test_or_novel_scene(rng):
    assert {world.split_of(s) for _ in range(300) for s in (
        pretrain.scene_for(rng), *clip_batches.near_duplicates(rng))} == {"train", "pretrain"}


def test_a_painted_thing_is_named_by_its_paint_and_the_rest_of_the_picture_stays(rng):
    for t, *rest in scenes(rng, 40, (3, 5)):
        image = world.render([t, *rest], rng)
        before, painted = np.array(image, int), clip_batches.paint(image, t, rng)
        after, at = np.array(image, int), (int(t.y), int(t.x))
        assert painted.looks == f"{t.size} {t.shape} in {painted.paint}"
        mixed = (before[at] * 128 + np.array(world.COLOURS[painted.paint]) * 127) / 255
        assert np.abs(after[at] - mixed).max() <= 1
        y, x = np.nonzero((before != after).any(-1))
        assert np.hypot(x + 0.5 - t.x, y + 0.5 - t.y).max() < 1.5 * world.SIZES[t.size] + 8


def test_a_phrase_fits_the_regions_that_it_is_true_of(rng):
    scene = [RED, BLUE]
    weights, real = clip_batches.region_patches([scene, [RED]], 8, seed=0)
    assert real.tolist() == [[True, True, True], [True, False, True]]  # the last: the background
    centres = torch.cartesian_prod(*[torch.arange(4.0, 64, 8)] * 2).flip(1)  # (N, 2), x and y
    found = weights[0, :2] @ centres
    assert (found - torch.tensor([[RED.x, RED.y], [BLUE.x, BLUE.y]])).abs().max() < 6
    assert (weights[0] > 0).sum(0).max() == 1  # no patch in two regions
    phrases, true = clip_batches.region_phrases(8 * [(scene, 0), (scene, 1)], rng, relations=True)
    for t, other, row in zip(scene, ("left of a large blue square", "right of a small red circle"),
                             true):
        a, said = with_article(t.looks), {p for p, fits in zip(phrases, row) if fits}
        assert said == {a, f"{a} {t.place}", f"{a} {other}"}
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
            images = torch.stack([preprocess(world.render(s, rng), 64) for s in group])
            caption = text.encode_text(encode(world.captions(group[0], rng)[:1]))
            scores = F.cosine_similarity(vit.encode_image(images), caption)
            right.append(int(scores.argmax()) == 0)
    assert np.mean(right) > 0.6
