"""The command that captions your own pictures, and the sheet that shows where the method looked.

The models are tiny and random, so the captions are nonsense made of single bytes; what is tested is
that the right nonsense lands in the right place. For the attention there is a method that always
writes one text and whose gaze is known: at position t it looks at patch number t and nothing else.

    position      0      1   2       3   4   5   6   7   8        (prompt "xy")
    text        <EOT>    x   y       a  ' '  b   c  ' '  d
    looks at patch ...   ...  2      3   4   5   6   7            so the map of "a" is patch 2's
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib import pictures
import sample
from lib.cli import UserError, parse
from clip_vit import CLIPViT, preprocess
from lib.pictures import open_image
from gpt2 import CONV1D, GPT2, GPT2Config
from weights.tokenizers import byte_symbols, EOT
from model import SeeGPT, find_method
from weights.reading import fingerprint
from weights.safetensors import write

ROOT = Path(__file__).resolve().parent.parent

GAZE = '''
import torch
from model import Method as Base, select

TEXT, START = "a bc d", 3  # what it writes, and the tokens in front of it: <EOT> x y

class Method(Base):
    def __init__(self, config, gpt2, vit):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def block(self, l, block, x, ctx, state):
        if self.record_attention is not None:
            R, T, N = len(x), x.shape[1], ctx.shape[1]
            att = torch.zeros(R, 2, T, N)
            att[:, :, range(T), range(1, T + 1)] = 1  # image token 0 is the class token
            self.record_attention.append((l, att))
        return block(x, state.cache, l)

    def logits(self, lm, x, ctx, state):
        ids = [*lm.tokenizer.encode_ordinary(TEXT), lm.tokenizer.eot_token]
        logits = torch.zeros(*x.shape[:2], lm.config.vocab_size)
        for t in range(x.shape[1]):
            place = min(max(state.pos + t + 1 - START, 0), len(ids) - 1)  # of what comes after t
            logits[:, t, ids[place]] = 30
        return select(logits, rows)
'''


def backbones(folder):
    """A GPT-2 of single bytes and a ViT with 4 x 4 patches, as files in the public layouts."""
    torch.manual_seed(0)
    lm = GPT2(GPT2Config(vocab_size=257, n_positions=48, n_layer=2, n_head=2, n_embd=128))
    tensors = {k: 8 * (p.t() if k.endswith(CONV1D) else p) for k, p in lm.state_dict().items()}
    write(folder / "lm" / "model.safetensors", tensors)
    vocab = {symbol: i for i, symbol in enumerate([*byte_symbols(), EOT])}
    (folder / "lm" / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    vit = CLIPViT(32, 8, 64, 1, 1, None)
    write(folder / "vit.safetensors", {f"visual.{k}": p for k, p in vit.state_dict().items()})
    return GPT2.from_pretrained(folder / "lm"), CLIPViT.from_pretrained(folder / "vit.safetensors")


def checkpoint(folder, method, run="run", dataset="mine"):
    """Saves a model with strongly perturbed trained tensors and returns the run's folder."""
    lm, vit = backbones(folder)
    cls, config = find_method(method)
    model = SeeGPT(vit, lm, cls(config(), lm, vit))
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(torch.randn_like(p))
    model.run_info = {"method": method, "config": dataclasses.asdict(config()), "dataset": dataset,
                    "gpt2": {"name": str(folder / "lm"), "sha256": fingerprint(lm)},
                    "clip": {"name": str(folder / "vit.safetensors"), "sha256": fingerprint(vit)},
                    "train_lm": False, "train_vision": False}
    model.save(folder / "out" / run / "best.safetensors")
    return folder / "out" / run


def photo(path, seed=0, size=(50, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.NEAREST).save(path)
    return str(path)


def command(*argv):
    """What `python sample.py ...` does, in this process."""
    argv = ["--device", "cpu", "--max_new_tokens", "8", *map(str, argv)]
    sample.main(*parse(sample.Config, argv=argv))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("ituning"), "ituning")


@pytest.fixture(scope="module")
def gazing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gaze")
    (folder / "gaze.py").write_text(GAZE, "utf-8")
    sys.path.insert(0, str(folder))
    yield checkpoint(folder, "gaze")
    sys.path.remove(str(folder))


# ---------------------------------------------------------------------------- captions

def test_each_image_gets_the_caption_that_generate_gives_it(trained, tmp_path, capsys):
    files = [photo(tmp_path / f"{i}.png", i) for i in range(3)]
    model = SeeGPT.load(trained)
    images = [preprocess(open_image(f), 32)[None] for f in files]
    expected = [model.generate(image, max_new_tokens=8)[0] for image in images]
    assert len(set(expected)) == 3, "three images with one caption would hide a mix-up"
    command("--ckpt", trained, "--batch", 2, *files)  # the last one alone in its batch
    lines = [f"{f}: {' '.join(c.split())}\n" for f, c in zip(files, expected)]
    assert capsys.readouterr().out == "".join(lines)


def test_the_prompt_decides_what_comes_after_it_and_is_not_repeated(trained, tmp_path, capsys):
    file = photo(tmp_path / "one.png")
    model = SeeGPT.load(trained)
    image = preprocess(open_image(file), 32)[None]
    expected = model.generate(image, prompt="it is", max_new_tokens=8, beam=2)[0]
    assert expected != model.generate(image, max_new_tokens=8, beam=2)[0]
    command("--ckpt", trained, "--prompt", "it is", "--beam", 2, file)
    assert capsys.readouterr().out == f"{file}: {' '.join(expected.split())}\n"


def test_a_folder_means_the_image_files_directly_inside_in_order(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "deeper/c.png"):
        photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    alone = photo(tmp_path / "deeper" / "d.png")
    expected = [alone, str(tmp_path / "a.JPG"), str(tmp_path / "b.png")]
    assert sample.find_images([alone, str(tmp_path)]) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in there"):
        sample.find_images([str(tmp_path / "empty")])


def test_json_holds_the_caption_of_every_image(trained, tmp_path, capsys):
    for i in range(3):
        photo(tmp_path / "pictures" / f"{i}.png", i)
    command("--ckpt", trained, "--json", tmp_path / "new" / "c.json", tmp_path / "pictures")
    lines = capsys.readouterr().out.splitlines()
    items = json.loads((tmp_path / "new" / "c.json").read_text("utf-8"))
    assert [set(item) for item in items] == [{"image", "caption"}] * 3
    assert [f"{item['image']}: {' '.join(item['caption'].split())}" for item in items] == lines
    assert os.listdir(tmp_path / "new") == ["c.json"]  # no half-written file beside it


def test_a_broken_image_costs_one_line_and_the_exit_status_but_not_the_others(trained, tmp_path):
    files = [photo(tmp_path / "good.png"), str(tmp_path / "bad.png"), str(tmp_path / "none.png"),
             photo(tmp_path / "more.png", 1)]
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    out = tmp_path / "c.json"
    done = subprocess.run(
        [sys.executable, ROOT / "sample.py", "--ckpt", trained, "--device", "cpu",
         "--max_new_tokens", "4", "--json", out, *files], cwd=tmp_path, capture_output=True,
        text=True, encoding="utf-8", env={**os.environ, "PYTHONIOENCODING": "utf-8",
                                                "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert [f for line in done.stdout.splitlines() for f in files if f in line] == files[::3]
    errors = done.stderr.splitlines()
    assert "bad.png: not a readable image" in errors[0] and "none.png: no such image" in errors[1]
    assert errors[2:] == ["error: 2 of 4 images could not be read; the others have their captions"]
    assert [item["image"] for item in json.loads(out.read_text("utf-8"))] == files[::3]


def test_nothing_but_unreadable_images_is_an_error_and_writes_no_file(trained, tmp_path):
    with pytest.raises(UserError, match="none of the images"):
        command("--ckpt", trained, "--json", tmp_path / "c.json", "--attn", tmp_path / "a.png",
                tmp_path / "none.png")
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------------- checkpoint, switches

def test_without_ckpt_the_newest_run_is_taken_and_named(trained, tmp_path, monkeypatch, capsys):
    for age, name in enumerate(("newest", "older", "oldest")):
        (tmp_path / "out" / name).mkdir(parents=True)
        copy = tmp_path / "out" / name / "best.safetensors"
        copy.write_bytes((trained / "best.safetensors").read_bytes())
        os.utime(copy, (10 ** 9 - age, 10 ** 9 - age))
    monkeypatch.chdir(tmp_path)
    command(photo(tmp_path / "one.png"))
    assert f"checkpoint: {os.path.join('out', 'newest')}," in capsys.readouterr().err


def test_no_checkpoint_at_all_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "here", lambda name: tmp_path / name)
    with pytest.raises(UserError, match="python train.py"):
        command(photo(tmp_path / "one.png"))


@pytest.mark.parametrize("flags, words", [
    ((), "which picture"),
    (("--beam", "0", "x.png"), "--beam 0"),
    (("--max_new_tokens", "0", "x.png"), "--max_new_tokens 0"),
    (("--attn", "a.jpg", "x.png"), "ends in .png"),
    (("--device", "abacus", "x.png"), "--device abacus"),
    (("--ckpt", "nowhere", "x.png"), "nowhere: no checkpoint")])
def test_a_wrong_switch_is_answered_before_any_work(flags, words):
    with pytest.raises(UserError, match=words):
        command(*flags)


def test_a_run_on_shapes_says_so_and_another_does_not(trained, tmp_path, capsys):
    file = photo(tmp_path / "one.png")
    command("--ckpt", checkpoint(tmp_path, "ituning", dataset="shapes"), file)
    assert "coloured shapes" in capsys.readouterr().err
    command("--ckpt", trained, file)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------- attention

def test_tokens_are_joined_to_words_at_leading_spaces():
    pieces = [b"a", b" ski", b"er", b".", b" caf", b"\xc3", b"\xa9", b"\n",
              b" \xf0\x9f", b"\x99\x82"]

    class Encoding:  # as GPT-2's: the space belongs to the word behind it, a letter may be cut
        def decode_single_token_bytes(self, i):
            return pieces[i]

    assert sample.words(Encoding(), list(range(10))) == [
        ("a", [0]), ("skier.", [1, 2, 3]), ("caf\u00e9", [4, 5, 6]), ("\U0001f642", [8, 9])]
    assert sample.words(Encoding(), [5, 0]) == [("\ufffda", [0, 1])]  # half a letter
    assert sample.words(Encoding(), []) == []


def test_a_words_map_is_that_of_the_position_in_front_of_it(gazing, tmp_path):
    """See the table at the top; " bc" is three tokens, and their maps are averaged."""
    model = SeeGPT.load(gazing)
    feats = model.image_features(torch.randn(1, 3, 32, 32))
    (text, ids), = model.generate(feats, "xy", beam=2, with_ids=True)
    assert text == "a bc d"
    start = [model.lm.tokenizer.eot_token, *model.lm.tokenizer.encode_ordinary("xy")]
    maps = sample.look(model, feats, start, ids)
    assert maps.shape == (6, 4, 4)
    seen = {word: maps[places].mean(0).flatten()
            for word, places in sample.words(model.lm.tokenizer, ids)}
    patches = {word: m.nonzero().flatten().tolist() for word, m in seen.items()}
    assert patches == {"a": [2], "bc": [3, 4, 5], "d": [6, 7]}
    assert seen["a"][2] == 1 and torch.allclose(seen["bc"][3:6], torch.tensor(1 / 3))
    assert model.method.record_attention is None


def test_attention_is_the_mean_over_heads_and_layers_of_the_method(trained):
    model = SeeGPT.load(trained)
    feats, start, ids = model.image_features(torch.randn(1, 3, 32, 32)), [256, 5], [7, 8, 9]
    maps = sample.look(model, feats, start, ids)
    model.method.record_attention = []
    model(feats, torch.tensor([[256, 5, 7, 8, 9]]))
    (_, low), (_, high) = model.method.record_attention  # 2 layers, (1, 2 heads, 5, 17) each
    by_hand = np.zeros(16)
    for patch in range(16):
        for att in (low, high):
            for head in range(2):
                by_hand[patch] += att[0, head, 1, 1 + patch] / 4
    np.testing.assert_allclose(maps[0].flatten(), by_hand, atol=1e-6)
    assert by_hand.std() > 1e-3 and not torch.allclose(low, high)


def test_a_method_that_attends_to_nothing_is_told_so(trained, tmp_path):
    model = SeeGPT.load(trained)
    model.method.block = lambda l, block, x, ctx, state: block(x, state.cache, l)
    with pytest.raises(UserError, match="does not attend"):
        sample.look(model, model.image_features(torch.randn(1, 3, 32, 32)), [256], [1, 2])


# ---------------------------------------------------------------------------- pictures

@pytest.mark.parametrize("background", [0, 128, 255])
def test_heat_is_brightest_where_the_attention_is(background):
    grid = np.zeros((4, 4))
    grid[1, 2] = 1
    image = pictures.heat(Image.new("RGB", (192, 192), (background,) * 3), grid)
    assert image.size == (192, 192)
    light = np.asarray(image.convert("L"), float)
    patches = light.reshape(4, 48, 4, 48).mean((1, 3))
    assert np.unravel_index(patches.argmax(), (4, 4)) == (1, 2)
    assert light[72, 120] > 60 + np.delete(patches.flatten(), 6).max()  # the centre of that patch


def test_where_it_is_cold_the_picture_shows_through():
    stripes = Image.new("RGB", (192, 192))
    stripes.paste("white", (0, 0, 192, 96))
    contrast = {}
    for x in (0, 1):
        light = np.asarray(pictures.heat(stripes, np.full((4, 4), x)).convert("L"), float)
        contrast[x] = light[10, 10] - light[180, 10]
    assert contrast[0] > 100 and 20 < contrast[1] < 60


def test_colours_get_lighter_all_the_way():
    light = pictures.colours(np.linspace(0, 1, 200)) @ (0.299, 0.587, 0.114)
    assert (np.diff(light) > 0).all() and light[-1] > 230 and light[0] < 30


def test_a_picture_is_shown_as_the_model_sees_it():
    left, right = (200, 40, 90), (30, 120, 220)
    x = Image.new("RGB", (96, 64), left)
    x.paste(right, (32, 0, 48, 64))  # of the centre 64 x 64 the second quarter
    for size, side in ((32, 192), (64, 192), (224, 224), (336, 256)):
        image = sample.picture(preprocess(x, size))
        assert image.size == (side, side)
        seen = [image.getpixel((round(f * side), side // 2)) for f in (0.1, 0.4, 0.9)]
        assert np.abs(np.subtract(seen, [left, right, left])).max() <= 12  # resizing overshoots


def test_attn_writes_the_sheet_with_a_cell_for_every_word(gazing, tmp_path, capsys):
    black = tmp_path / "black.png"
    Image.new("RGB", (32, 32)).save(black)
    flags = ("--prompt", "xy", "--beam", 1, "--attn", tmp_path / "a.png")
    command("--ckpt", gazing, *flags, black)
    assert capsys.readouterr().out == f"{black}: a bc d\n"
    image = Image.open(tmp_path / "a.png")
    width = 2 * pictures.MARGIN + 4 * 192 + 3 * pictures.GAP  # the picture and three words
    assert image.format == "PNG" and image.width == width and 300 < image.height < 450
    pixels = np.asarray(image.convert("L"), float)
    black = (pixels[:, pictures.MARGIN + 1:pictures.MARGIN + 190] < 30).all(1)
    top = int(black.argmax())  # the first row of the picture
    patches, light, ink = [], [], []
    for i in range(4):
        x = pictures.MARGIN + i * (192 + pictures.GAP)
        ink.append((pixels[top + 194:top + 224, x:x + 192] < 128).sum())
        cell = pixels[top + 1:top + 190, x + 1:x + 190]
        y, x = np.unravel_index(cell.argmax(), cell.shape)
        patches.append(4 * (y // 48) + x // 48)
        light.append(cell.max())
    assert patches[1] == 2 and patches[2] in (3, 4, 5) and patches[3] in (6, 7)
    # The gaze of "bc" is spread over three patches and that of "d" over two: not as bright.
    assert light[0] < 20 < light[2] < light[3] - 8 < light[1] - 50
    assert ink[0] == 0 < ink[1] < ink[2]  # a word is written under its cell, "bc" with more ink


def test_a_sheet_holds_only_the_first_pictures(gazing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample, "SHEET", 2)
    flags = ("--prompt", "xy", "--beam", 1, "--attn", tmp_path / "a.png")
    files = [photo(tmp_path / f"{i}.png", i) for i in range(3)]
    heights = []
    for n in (2, 3):
        command("--ckpt", gazing, *flags, *files[:n])
        heights.append(Image.open(tmp_path / "a.png").height)
        assert ("first 2 of 3" in capsys.readouterr().err) == (n == 3)
    assert 550 < heights[0] == heights[1]


def test_odd_characters_and_endless_words_do_not_stop_a_sheet():
    cell = Image.new("RGB", (192, 192))
    labels = ["", "\u65e5\u672c", "\U0001f642", "\x00\x1b[0m", "\u202e\ufffd", "\ud800", "w" * 500]
    odd = ("\x00 " + "w" * 300, "\udcff.png", [(cell, label) for label in labels])
    image = pictures.sheet([odd, ("", "", [(cell, "a\nb")])], "little", "much")
    assert image.width <= pictures.WIDE and image.height < 1200


def test_lines_are_as_wide_as_asked_and_lose_no_letter():
    text = "a skier " + "w" * 100 + " in the snow"
    lines = pictures.wrap(text, 200, 18)
    assert max(pictures.font(18).getlength(line) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert pictures.wrap("a skier", 200, 18) == ["a skier"]


def test_curves_are_drawn_from_the_log(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    log = [{"step": 20, "loss": 3.0, "lr": 1e-3}, {"step": 40, "loss": 9.0},
           {"step": 40, "loss": 2.0}, {"step": 40, "val_loss": 2.5, "blind_loss": 4.0}]
    text = "\n".join(map(json.dumps, log)) + '\n{"step": 60, "lo'  # killed in the middle of a line
    (tmp_path / "log.jsonl").write_text(text, "utf-8")
    drawn, savefig = {}, figure.savefig

    def spy(self, path, **looks):
        for line in self.axes[0].lines:
            drawn[line.get_label()] = [*zip(line.get_xdata(), line.get_ydata())]
        savefig(self, path, **looks)

    monkeypatch.setattr(figure, "savefig", spy)
    assert pictures.curve(tmp_path / "log.jsonl", tmp_path / "loss.png") is True
    assert drawn == {"training": [(20, 3.0), (40, 2.0)], "validation": [(40, 2.5)],
                     "validation, with other images": [(40, 4.0)]}
    assert Image.open(tmp_path / "loss.png").width > 500


def test_without_matplotlib_one_line_says_where_the_numbers_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # makes its import fail
    (tmp_path / "log.jsonl").touch()
    assert pictures.curve(tmp_path / "log.jsonl", tmp_path / "loss.png") is False
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "matplotlib" in out and "log.jsonl" in out
