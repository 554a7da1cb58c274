"""Image files that are opened, and the few pictures that are drawn: heat maps, sheets, curves."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from clip_vit import MEAN, STD, preprocess
from lib import pictures
from lib.cli import UserError
from lib.images import open_image

# ---------------------------------------------------------------------------- image files

def test_a_file_is_opened_upright_and_in_rgb(tmp_path):
    """Orientation 6: the camera was held upright, its sensor lay on the side. The top of the file
    is the right of the picture."""
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (0, 10, 40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "phone.png", exif=exif)
    upright = open_image(str(tmp_path / "phone.png"))
    assert upright.size == (20, 40) and upright.mode == "RGB"
    assert upright.getpixel((15, 20)) == (255, 0, 0) and upright.getpixel((4, 20)) == (0, 0, 255)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow thinks of some of the files
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "gif", "bmp", "dds", "ico"])
def test_a_missing_or_damaged_image_is_one_line_for_the_user(kind, tmp_path):
    """Some damaged bytes leave a picture or make a UserError, never anything else."""
    rng, path = np.random.RandomState(0), tmp_path / f"photo.{kind}"
    with pytest.raises(UserError, match="no such image"):
        open_image(path)
    Image.fromarray(rng.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    whole, complaints = path.read_bytes(), []
    for damage in (0, *[4] * 40):
        damaged = bytearray(whole if damage else b"<!DOCTYPE html>")
        for place in rng.randint(0, min(len(whole), 300), damage):
            damaged[place] = rng.randint(256)
        path.write_bytes(damaged)
        try:
            assert open_image(path).mode == "RGB"
        except UserError as e:
            complaints.append(str(e))
    assert len(complaints) > 1
    assert all(c.startswith(f"{path}: not a readable") and "\n" not in c for c in complaints)


# ---------------------------------------------------------------------------- heat maps

@pytest.mark.parametrize("background", ["black", "white", "yellow", "blue", "grey"])
def test_heat_shows_on_every_picture_and_leaves_what_is_not_looked_at(background):
    grid = np.zeros((4, 4))
    grid[1, 2] = 1
    plain = Image.new("RGB", (192, 192), background)
    changed = np.abs(np.subtract(pictures.heat(plain, grid), plain, dtype=float)).sum(2)
    assert changed[:, :24].max() == 0 and changed[176:].max() == 0
    patch = changed[48:96, 96:144]
    assert patch.mean() > 60 and patch.max() > 200


@pytest.mark.parametrize("size, side", [(32, 192), (64, 192), (224, 224), (336, 256)])
def test_a_picture_is_shown_as_the_model_sees_it(size, side):
    left, right = (200, 40, 90), (30, 120, 220)
    x = Image.new("RGB", (96, 64), left)
    x.paste(right, (32, 0, 48, 64))  # of the centre 64 x 64 the second quarter
    image = pictures.from_pixels(preprocess(x, size), MEAN, STD)
    assert image.size == (side, side)
    seen = [image.getpixel((round(f * side), side // 2)) for f in (0.1, 0.4, 0.9)]
    assert np.abs(np.subtract(seen, [left, right, left])).max() <= 12  # resizing overshoots


# ---------------------------------------------------------------------------- sheets and curves

def test_odd_characters_and_endless_words_do_not_stop_a_sheet():
    cell = Image.new("RGB", (192, 192))
    labels = ["", "\u65e5\u672c", "\U0001f642", "\x00\x1b[0m", "\u202e\ufffd", "\ud800", "w" * 500]
    odd = ("\x00 " + "w" * 300, "\udcff.png", [(cell, label) for label in labels])
    image, n = pictures.sheet([odd, ("", "", [(cell, "a\nb")])], "little", "much")
    assert n == 2 and image.width <= pictures.WIDE and image.height < 1200


def test_lines_are_as_wide_as_asked_and_lose_no_letter():
    text = "a skier " + "w" * 100 + " in the snow"
    lines = pictures.wrap(text, 200, 18)
    assert max(pictures.font(18).getlength(line) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert pictures.wrap("a skier", 200, 18) == ["a skier"]


def test_curves_are_drawn_from_the_log_if_matplotlib_is_there(tmp_path, monkeypatch, capsys):
    log = [{"step": 20, "loss": 3.0, "lr": 1e-3}, {"step": 40, "loss": 9.0},
           {"step": 40, "loss": 2.0}, {"step": 40, "val_loss": 2.5, "blind_loss": 4.0}]
    text = "\n".join(map(json.dumps, log)) + '\n{"step": 60, "lo'  # killed in the middle of a line
    (tmp_path / "log.jsonl").write_text(text, "utf-8")
    drawn, plot = {}, pictures.plot
    monkeypatch.setattr(pictures, "plot", lambda lines, *rest: drawn.update(
        {label: points for label, points, _ in lines}) or plot(lines, *rest))
    there = pictures.curve(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert there == (tmp_path / "loss.png").exists()
    assert drawn == {"training": {20: 3.0, 40: 2.0}, "validation": {40: 2.5},
                     "validation, with other images": {40: 4.0}}
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # makes its import fail
    assert not pictures.curve(tmp_path / "log.jsonl", tmp_path / "loss.png")
    *_, line = capsys.readouterr().out.splitlines()
    assert "matplotlib" in line and "log.jsonl" in line


