"""The command that captions your own pictures, and the sheet that shows where the method looked.

The method is random, so the captions are nonsense; what is tested is that the right nonsense lands
in the right place. For the attention there is a method that always writes one text and whose gaze
is known: at position t it looks at patch number t alone.

    position      0      1   2       3   4   5   6        (prompt "xy")
    text        <EOT>    x   y       a  ' b' c  ' d'
    looks at patch ...   ...  2      3   4   5            so the map of "a" is patch 2's
"""

import base64
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import SHAPES, checkpoint, photo

import sample
from clip_vit import CLIPViT, preprocess
from gpt2 import GPT2
from lib import attention, pictures
from lib.cli import UserError, parse
from lib.files import find_images
from lib.pictures import open_image
from model import Method, SeeGPT, select
from weights.tokenizers import join_words


class Gaze(Method):
    """See the table at the top. 3 tokens stand in front of what it writes: <EOT> x y."""

    def block(self, l, layer, x, ctx, state):
        if self.record_attention is not None:
            att = torch.zeros(len(x), 2, x.shape[1], ctx.shape[1])
            att[:, :, range(x.shape[1]), range(1, x.shape[1] + 1)] = 1  # 0 is the class token
            self.record_attention.append((l, att))
        return layer(x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        ids = [*lm.tokenizer.encode_ordinary("a bc d"), *[lm.eot] * 9]
        logits = torch.zeros(*x.shape[:2], lm.config.vocab_size)
        for t in range(x.shape[1]):
            logits[:, t, ids[max(state.pos + t + 1 - 3, 0)]] = 30
        return select(logits, state)


def command(*argv):
    """What `python sample.py ...` does, in this process."""
    argv = ["--device", "cpu", "--max_new_tokens", "8", *map(str, argv)]
    sample.main(*parse(sample.Config, argv=argv))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("ituning") / "run")


@pytest.fixture
def gazing(monkeypatch):
    vit = CLIPViT.from_pretrained(SHAPES / "tiny-clip")
    model = SeeGPT(vit, GPT2.from_pretrained(SHAPES / "tiny-gpt2"), Gaze()).eval()
    monkeypatch.setattr(sample, "load", lambda *args: model)
    return model


@pytest.fixture
def files(tmp_path):
    return [photo(tmp_path / "photos" / f"{i}.png", i) for i in range(3)]


# ---------------------------------------------------------------------------- captions

@pytest.mark.parametrize("flags, how", [("--batch 2", {}),  # the last one alone in its batch
                                        ("--prompt red --beam 2", dict(prompt="red", beam=2))])
def test_each_image_gets_the_caption_that_generate_gives_it(flags, how, trained, files, capsys):
    """On stdout and in the JSON file; a prompt is not repeated."""
    images = torch.stack([preprocess(open_image(f), 64) for f in files])
    expected = SeeGPT.load(trained).generate(images, max_new_tokens=8, **how)
    assert len(set(expected)) == 3, "three images with one caption would hide a mix-up"
    out = files[0].parent / "new" / "c.json"
    command("--ckpt", trained, *flags.split(), "--json", out, *files)
    lines = [f"{f}: {' '.join(c.split())}" for f, c in zip(files, expected)]
    assert capsys.readouterr().out.splitlines() == lines
    assert json.loads(out.read_text("utf-8")) == [{"image": str(f), "caption": c}
                                                  for f, c in zip(files, expected)]
    assert os.listdir(out.parent) == ["c.json"]  # no half-written file beside it


def test_a_folder_means_the_image_files_directly_inside_in_order(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "deeper/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    alone, *inside = (str(tmp_path / name) for name in ("deeper/c.png", "a.JPG", "b.png"))
    assert find_images([alone, str(tmp_path)]) == [alone, *inside]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in there"):
        find_images([str(tmp_path / "empty")])


def test_a_broken_image_costs_one_line_but_not_the_others(trained, files, capsys):
    files[1].write_bytes(b"no picture")
    with pytest.raises(UserError, match="2 of 4 images could not be"):
        command("--ckpt", trained, "--json", files[0].parent / "c.json", "none.png", *files)
    out, errors = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(f) for f in files[::2]]
    none, broken, written = errors.splitlines()
    assert "none.png: no such image" in none and "1.png: not a readable image" in broken
    assert written == f"{files[0].parent / 'c.json'} is written"
    assert len(json.loads((files[0].parent / "c.json").read_text("utf-8"))) == 2


def test_nothing_but_unreadable_images_is_an_error_and_writes_no_file(trained, tmp_path):
    with pytest.raises(UserError, match="none of the images"):
        command("--ckpt", trained, "--json", tmp_path / "c.json", "--attn", tmp_path / "a.png",
                tmp_path / "none.png")
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------------- checkpoint, switches

def test_without_ckpt_the_newest_run_is_taken(trained, tmp_path, files, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("newest", "older", "oldest")):
        copy = tmp_path / "out" / name / "best.safetensors"
        copy.parent.mkdir(parents=True)
        copy.write_bytes((trained / "best.safetensors").read_bytes())
        os.utime(copy, (10 ** 9 - age, 10 ** 9 - age))
    strange = photo(tmp_path / "two\nlines\x1b[31m.png")
    command(files[0], strange)
    said = capsys.readouterr()
    assert f"{os.path.join('out', 'newest')}, the newest run (ituning on mine, 3 steps)" in said.err
    assert r"two\nlines\x1b[31m.png: " in said.out and len(said.out.splitlines()) == 2


@pytest.mark.parametrize("flags, says", [
    ("", "which picture"), ("--beam 0 x.png", "--beam.*must be 1"), ("--top_p 2 x.png", "--top_p"),
    ("--max_new_tokens 0 x.png", "--max_new_tokens"), ("--attn a.jpg x.png", "ends in .png"),
    ("--device abacus x.png", "--device abacus"), ("--boxes b.json x.png", "for --ground"),
    ("--ckpt nowhere x.png", "nowhere: no checkpoint"), ("x.png", "run python train.py first"),
    ("--prompt a --question b x.png", "one of them"), ("--temperature nan x.png", "--temperature"),
    ("--length_penalty 1000 x.png", "at most 10"), ("--seed 100000000000 x.png", "--seed"),
    ("http://127.0.0.1/x.png", "a web address"), ("--json sample.py/x x.png", "cannot be written"),
    ("--attn sample.py/x.png x.png", "cannot be written"), ("--html a.png x.png", "ends in .html"),
    ("--html a.html --ground b x.png", "has none of its own")])
def test_a_wrong_switch_is_answered_before_any_work(flags, says, monkeypatch, tmp_path):
    monkeypatch.setattr("lib.runs.repo_path", lambda name: tmp_path / name)  # where no run is
    with pytest.raises(UserError, match=says):
        command(*flags.split())


def test_a_captioner_of_shapes_says_so(trained, tmp_path, files, capsys):
    with pytest.raises(UserError, match="trained on captions, so it answers no question"):
        command("--ckpt", trained, "--question", "is it red?", files[0])
    for run in (trained, checkpoint(tmp_path / "run", data="shapes")):
        command("--ckpt", run, files[0])
        assert ("coloured shapes" in capsys.readouterr().err) == (run != trained)


# ---------------------------------------------------------------------------- attention

@pytest.mark.parametrize("pieces, words", [
    ([b"a", b" ski", b"er", b".", b"\n", b" caf", b"\xc3", b"\xa9"],
     [("a", [0]), ("skier.", [1, 2, 3]), ("caf\u00e9", [5, 6, 7])]),
    ([b"\xc3", b"a"], [("\ufffda", [0, 1])]), ([], [])])  # half a letter; nothing
def test_tokens_are_joined_to_words_at_leading_spaces(pieces, words):
    class Encoding:
        decode_single_token_bytes = staticmethod(pieces.__getitem__)

    assert join_words(Encoding, range(len(pieces))) == words


def test_a_words_map_is_that_of_the_position_in_front_of_it(gazing):
    """See the table at the top; " bc" is two tokens, and their maps are averaged."""
    feats, encoding = gazing.image_features(torch.randn(1, 3, 64, 64)), gazing.lm.tokenizer
    (text, ids), = gazing.generate(feats, "xy", beam=2, with_ids=True)
    start = [gazing.lm.eot, *encoding.encode_ordinary("xy")]
    look = attention.look_of_words(gazing, feats, start, ids)
    assert text == "a bc d" and look.maps.shape == (len(gazing.lm.h), 2, 3, 8, 8)
    expected = {"a": {2: 1}, "bc": {3: 0.5, 4: 0.5}, "d": {5: 1}}
    for word, maps in zip(look.words, look.maps.unbind(2), strict=True):
        seen = maps.mean((0, 1)).flatten()
        assert {i: seen[i].item() for i in seen.nonzero().flatten().tolist()} == expected[word]
    assert gazing.method.record_attention is None


def test_attention_is_that_of_every_head_and_layer_of_the_method(trained):
    model = SeeGPT.load(trained)
    feats, start, ids = model.image_features(torch.randn(1, 3, 64, 64)), [256, 5], [7, 8, 9]
    maps, numbers = attention.attention_maps(model, feats, start, ids)
    model.method.record_attention = []
    model(feats, torch.tensor([start + ids]))
    layers = torch.stack([att[0] for _, att in model.method.record_attention])  # (L, nh, 5, 65)
    torch.testing.assert_close(maps.flatten(3), layers[:, :, 1:4, 1:])
    assert numbers == [l for l, _ in model.method.record_attention]
    assert len(layers) > 1 and not torch.allclose(layers[0], layers[1])


def test_attn_of_a_method_that_does_not_attend_is_refused_before_any_caption(
        gazing, files, tmp_path, monkeypatch):
    monkeypatch.setattr(Gaze, "block", Method.block)
    monkeypatch.setattr(SeeGPT, "generate", None)
    with pytest.raises(UserError, match="does not attend"):
        command("--attn", tmp_path / "a.png", "--json", tmp_path / "c.json", *files)


def test_a_written_answer_is_greedy_as_in_evaluation_whatever_the_beams_of_a_caption(
        gazing, files, monkeypatch):
    asked = []
    monkeypatch.setattr(SeeGPT, "generate", lambda self, feats, prompt, beam, *more, **kw: (
        asked.append(beam), [("yes", [1])] * len(feats))[1])
    command("--question", "red?", *files)
    command("--beam", 4, *files)
    assert asked == [1, 4]


def test_attn_writes_a_sheet_with_a_cell_for_every_word_of_the_first_pictures(
        gazing, tmp_path, monkeypatch, capsys, files):
    """A cell glows where the word's map is; the gaze of "bc" is on two patches, so half as much."""
    blocks, sheet = [], pictures.sheet
    monkeypatch.setattr(sample, "SHEET", 2)
    monkeypatch.setattr(pictures, "sheet", lambda b, *rest: blocks.extend(b) or sheet(b, *rest))
    for path in files:
        Image.new("RGB", (64, 64)).save(path)
    command("--prompt", "xy", "--beam", 1, "--attn", tmp_path / "a.png", *files)
    assert "a.png: 2 of 3 pictures" in capsys.readouterr().err
    (title, name, cells), _ = blocks
    assert (title, name) == ("a bc d", str(files[0]))
    assert [label for _, label in cells] == ["", "a", "bc", "d"]
    light = np.stack([np.asarray(image.convert("L"), float) for image, _ in cells])
    patches = light.reshape(4, 8, 24, 8, 24).mean((2, 4)).reshape(4, 64)  # of 24 x 24 pixels
    assert patches[0].max() < 20 and patches[1:].argmax(1).tolist() in ([2, 3, 5], [2, 4, 5])
    assert patches[2].max() < patches[1].max() - 20
    assert patches[1].min() == patches[0].min(), "what is not looked at stays as it is"
    image = Image.open(tmp_path / "a.png")
    assert image.format == "PNG" and image.width == 2 * pictures.MARGIN + 4 * 192 + 3 * pictures.GAP


def test_html_holds_the_words_and_maps_of_every_picture_and_no_folder(gazing, tmp_path, files):
    """The page's numbers are square roots, 255 for the most; "bc" looks at two patches."""
    name = photo(tmp_path / "secret" / "<script>.png")
    command("--prompt", "xy", "--html", tmp_path / "a.html", *files, name)
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "secret" not in text and "<script>." not in text and "http" not in text.replace(
        "http-equiv", "")
    readings = json.loads(re.search(r"readings} = (.*);\n", text)[1])["readings"]
    names = [r["name"].split(", 50 x 40: the square")[0] for r in readings]
    assert names == ["0.png", "1.png", "2.png", "<script>.png"]
    look = readings[0]["look"]
    maps = np.frombuffer(base64.b64decode(look["maps"]), np.uint8).reshape(-1, 2, 3, 64)
    assert look["words"] == ["a", "bc", "d"] and look["layers"] == [*range(len(gazing.lm.h))]
    seen = [{i: maps[1, 0, w, i] for i in np.flatnonzero(maps[1, 0, w])} for w in range(3)]
    assert seen == [{2: 255}, {3: 180, 4: 180}, {5: 255}]
