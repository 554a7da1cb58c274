"""The shapes world: what is said of a scene is true of it, and no scene is in two splits."""

import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_vit import CLIPText, CLIPViT, preprocess
from weights.tokenizers import get_clip_tokenizer
from data.tasks import load_split
from data.shapes import prepare, pretrain, world
from data.shapes.world import Thing
from gpt2 import GPT2
from weights.reading import metadata

SHAPES = Path(world.__file__).resolve().parent
RED, BLUE = Thing("small", "red", "circle", 16, 40), Thing("large", "blue", "square", 47, 38)


def scenes(n, things, seed=0, homes=("train", "pretrain", "val", "test", "novel", None)):
    rng = random.Random(seed)
    return [world.sample_from(rng, rng.choice(things), homes) for _ in range(n)], rng


def test_a_worked_example():
    """A small red circle on the left, a large blue square on the right of the middle."""
    scene = [RED, BLUE]
    assert world.relation(*scene) == "left of" and world.relation(BLUE, RED) == "right of"
    assert (RED.place, BLUE.place, RED.box) == ("on the left", "on the right", [10.5, 34.5, 11.0, 11.0])
    for right in ("a small red circle left of a large blue square", "A small red circle with a large blue square to its right.",
                  "there is a large blue square to the right of a small red circle",
                  "right of a small red circle is a large blue square"):
        assert world.is_exact(right, scene), right
    for wrong in ("a small red circle", "a large red circle left of a large blue square",
                  "a small red circle right of a large blue square", "a small red circle above a large blue square",
                  "a small blue circle left of a large red square", "a small red circle left of a large blue square today",
                  "a small red square left of a large blue circle", ""):
        assert not world.is_exact(wrong, scene), wrong
    assert world.is_exact("this is a small red circle on the left", [RED])
    assert not world.is_exact("a small red circle at the top", [RED])
    assert not world.is_exact("a small red circle left of a large blue square", [RED])


def test_every_caption_is_exact_for_its_scene_and_for_no_scene_that_sounds_different():
    many, rng = scenes(300, (1, 2))
    for scene in many:
        texts = world.captions(scene, rng)
        assert len(set(texts)) == 5 and all(world.is_exact(t, scene) for t in texts)
        other = rng.choice(many)
        if sorted(t.looks for t in other) != sorted(t.looks for t in scene):
            assert not any(world.is_exact(t, other) for t in texts)


def test_answers_and_labels_are_true():
    """Checked by another route than the one that made them: from the scene's attributes directly."""
    many, rng = scenes(200, (1, 2, 4, 6))
    for scene in many:
        for question, answer in world.questions(scene, rng):
            if m := re.fullmatch(r"how many (\w+) objects are there\?", question):
                assert world.COUNTS.index(answer) == sum(t.colour == m[1] for t in scene)
            elif m := re.fullmatch(r"is there an? (.+)\?", question):
                assert answer == ("yes" if any(world.fits(m[1], t) for t in scene) else "no")
            elif m := re.fullmatch(r"what colour is the (.+)\?", question):
                assert {t.colour for t in scene if world.fits(m[1], t)} == {answer}
        for text, label in world.hypotheses(scene, rng):
            if m := re.fullmatch(r"there is an? (.+)", text):
                assert label == ("entailment" if any(world.fits(m[1], t) for t in scene) else "contradiction")


def test_a_referring_expression_fits_one_thing_only():
    many, rng = scenes(150, (3, 5, 7))
    for scene in many:
        i = rng.randrange(len(scene))
        said = world.expression(scene, i, rng).removeprefix("the ")
        words, rel, anchor = re.fullmatch(rf"(.+?)(?: ({world.RELATION}) the (.+))?", said).groups()
        found = [t for t in scene if world.fits(words, t)]
        if anchor:
            o, = [t for t in scene if world.fits(anchor, t)]
            found = [t for t in found if t is not o and world.relation(t, o) == world.WORDED[rel]]
        assert found == [scene[i]], (said, world.key(scene))


def test_things_stay_inside_and_apart_and_pictures_show_their_colours():
    many, rng = scenes(60, (1, 2, 7))
    for scene in many:
        pixels = np.asarray(world.render(scene, rng))
        assert world.is_valid(scene) and pixels.shape == (64, 64, 3)
        for t in scene:
            if t.shape != "triangle" or t.size == "large":
                assert np.abs(pixels[int(t.y), int(t.x)].astype(int) - world.COLOURS[t.colour]).max() <= 20, t


def test_every_scene_has_one_home_and_novel_pairs_stay_out_of_adaptation():
    many, rng = scenes(2000, (1, 2), seed=1)
    homes = {h: sum(world.home(s) == h for s in many) for h in ("train", "val", "test", "novel", "pretrain")}
    assert all(homes.values())
    for scene in many:
        has_novel = any((t.colour, t.shape) in world.NOVEL for t in scene)
        assert has_novel == (world.home(scene) in ("novel", "pretrain", None))
        if len(scene) == 2:  # the same scene told from the other side, somewhat moved
            moved = [dataclasses.replace(t, x=t.x + 0.5) for t in scene[::-1]]
            if world.relation(*moved[::-1]) == world.relation(*scene):
                assert world.home(moved) == world.home(scene)


def test_pretraining_sees_no_val_test_or_novel_scene():
    """The generators themselves are watched: every scene that is drawn or told goes through render
    or discourse."""
    homes = set()
    rng = random.Random(0)
    for _ in range(300):
        homes.add(world.home(pretrain.scene_for(rng)))
        homes |= {world.home(s) for s in pretrain.near_duplicates(rng)}
    assert homes == {"train", "pretrain"}


def test_a_painted_thing_is_named_by_its_paint_and_the_rest_of_the_picture_stays():
    many, rng = scenes(40, (3, 5))
    for scene in many:
        before = world.render(scene, rng)
        after, t = before.copy(), scene[0]
        painted = pretrain.paint(after, t, rng)
        a, b = (np.asarray(x).astype(int) for x in (before, after))
        x, y = int(t.x), int(t.y)
        mixed = (a[y, x] * 128 + np.array(world.COLOURS[painted.paint]) * 127) / 255
        assert np.abs(b[y, x] - mixed).max() <= 1
        far = np.hypot(*(np.mgrid[:64, :64][::-1] + 0.5 - np.array([t.x, t.y])[:, None, None])) > 1.5 * world.SIZES[t.size] + 8
        assert (a == b)[far].all() and (a != b).any()
        assert painted.looks == f"{t.size} {t.shape} in {painted.paint}"
        others = [painted, *scene[1:]]
        said = pretrain.phrase(others, painted, rng, True)
        assert pretrain.is_true(said, others, painted) and not pretrain.is_true(said, others, scene[1])


def test_adaptation_splits_hold_only_their_own_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES", {"train": 20, "val": 8, "test": 8, "novel": 8})
    for task in ("caption", "vqa", "entail", "refer"):  # regions have no "scene" in their lines
        prepare.prepare(task, tmp_path / task)
        for split in prepare.IMAGES:
            lines = (tmp_path / task / f"{split}.jsonl").read_text().splitlines()
            for item in map(json.loads, lines):
                scene = world.from_json(item["scene"])
                assert world.home(scene) == split and (tmp_path / task / item["image"]).exists()
                if task == "refer":
                    assert item["box"] in item["proposals"] and len(item["proposals"]) >= 6


# ---------------------------------------------------------------------------- the committed backbones

@pytest.mark.parametrize("name", ["gpt2", "clip"])
def test_the_files_say_how_they_were_made(name):
    """The command, and the world they were made from: it is the one that is here."""
    notes = metadata(SHAPES / f"tiny-{name}")
    assert notes["command"] == f"python data/shapes/pretrain.py {name}" and {"seed", "steps"} <= notes.keys()
    assert notes["data_sha256"] == pretrain.run_info(pretrain.Config(), 0)["data_sha256"]
    assert (SHAPES / f"tiny-{name}" / "model.safetensors").stat().st_size < 5e6


def test_every_word_of_the_world_is_one_token():
    enc = GPT2.from_pretrained(SHAPES / "tiny-gpt2").tokenizer
    encode = get_clip_tokenizer(SHAPES / "tiny-clip")
    said = [*world.SIZES, *world.COLOURS, *world.SHAPES, "yes", "no", "maybe", "none", "is", "in", "entailment",
            "neutral", "contradiction", "question", "answer", "left", "below", "photo"]
    for word in said:
        assert len(enc.encode_ordinary(f" {word}")) == 1, word
    for word in [*world.SIZES, *world.COLOURS, *world.SHAPES, "left", "below"]:
        assert int((encode([word]) > 0).sum()) in (2, 3), word  # SOT (may be any id), the word, EOT


def test_the_tiny_gpt2_remembers_what_was_said():
    """After both objects were named, the second one of a caption costs little; without memory its colour
    alone would cost ln 8 = 2.08 nats."""
    model = GPT2.from_pretrained(SHAPES / "tiny-gpt2")
    many, rng = scenes(60, (2,), homes=("test",))
    cost = []
    for x, y in many:
        text = (f"there are two objects. one is {world.a(x.looks)}. the other one is {world.a(y.looks)}. "
                f"{world.a(x.looks)} {world.relation(x, y)} {world.a(y.looks)}")
        ids = torch.tensor([[model.tokenizer.eot_token, *model.tokenizer.encode_ordinary(text)]])
        with torch.no_grad():
            logp = model(ids)[0].log_softmax(-1)
        colour = ids.shape[1] - 2
        cost.append(-logp[colour - 1, ids[0, colour]].item())
    assert np.mean(cost) < 0.5


def test_the_tiny_clip_tells_near_duplicates_apart():
    """Four pictures that differ from each other in one respect: which does the text mean? Chance is 1/4."""
    vit, text = (c.from_pretrained(SHAPES / "tiny-clip") for c in (CLIPViT, CLIPText))
    encode, rng, right = get_clip_tokenizer(SHAPES / "tiny-clip"), random.Random(5), []
    for _ in range(60):
        group = pretrain.near_duplicates(rng)
        if len(group[0]) == 2:
            images = torch.stack([preprocess(world.render(s, rng), 64) for s in group])
            with torch.no_grad():
                a = torch.nn.functional.normalize(vit.encode_image(images), dim=-1)
                b = torch.nn.functional.normalize(text.encode_text(encode([rng.choice(world.captions(group[0], rng))])), dim=-1)
            right.append(int((a @ b[0]).argmax()) == 0)
    assert np.mean(right) > 0.6


def test_all_objects_can_be_named_with_a_wrong_relation():
    scene = [world.Thing("small", "red", "circle", 18, 40), world.Thing("large", "blue", "square", 47, 38)]
    wrong = "a small red circle right of a large blue square"
    assert world.names_all(wrong, scene) and not world.is_exact(wrong, scene)
    assert world.names_all("a large blue square with a small red circle to its left", scene)
    for text in ("a small red circle", wrong + " and a small red star", "a small red circle left of a small red circle"):
        assert not world.names_all(text, scene)


def test_descriptions_are_true_of_the_thing_they_name():
    rng = random.Random(0)
    for _ in range(200):
        scene = world.sample(rng, rng.randint(3, 7))
        for text in world.descriptions(scene, rng):
            name, said = text.removeprefix("the ").split(" is ", 1)
            if said == "in none":
                assert not any(world.fits(name, t) for t in scene)
            elif not any(f" {rel} " in f" {name} " for rel in world.WORDED):
                thing, = [t for t in scene if world.fits(name, t)]
                assert said in (f"in {thing.colour}", thing.size, thing.place, world.a(thing.shape))


def test_regions_are_prepared_as_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES", {"train": 5, "val": 2})
    prepare.prepare("regions", tmp_path)
    items = load_split(tmp_path, "train")
    assert len(items) == 5 and all(len(item["captions"]) >= 6 and "scene" not in item for item in items)
