"""Image files that are opened, and the few pictures that are drawn: heat maps, sheets, curves."""

import json

import numpy as np
import pytest
from PIL import Image

from clip_vit import MEAN, STD, preprocess
from lib import curves, pictures
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


def test_letters_that_the_built_in_font_lacks_come_from_another():
    text = "\u0416\u03a9"
    if not any(pictures.font(20, name) for name in pictures.FONTS):
        pytest.skip("this machine has no other font")
    assert pictures.lacks(None, text[0])
    assert pictures.font_for(text, 18).getmask(text[0]) != pictures.font(18).getmask(text[0])
    assert pictures.font_for("plain", 18).getname() == pictures.font(18).getname()


def test_a_sheet_ends_before_it_is_taller_than_two_screens():
    block = "title", "note", [(Image.new("RGB", (192, 192)), "label")]
    image, n = pictures.sheet([block] * 30, "little", "much")
    assert pictures.TALL - 300 < image.height <= pictures.TALL and n < 10


def test_the_losses_of_a_run_are_drawn_from_its_log(tmp_path, monkeypatch, capsys):
    log = [{"step": 20, "loss": 3.0, "lr": 1e-3}, {"step": 40, "loss": 9.0},
           {"step": 40, "loss": 2.0}, {"step": 40, "val_loss": 2.5, "blind_loss": 4.0}]
    text = "\n".join(map(json.dumps, log)) + '\n{"step": 60, "lo'  # killed in the middle of a line
    (tmp_path / "log.jsonl").write_text(text, "utf-8")
    drawn, plot = {}, curves.plot
    monkeypatch.setattr(curves, "plot", lambda lines, *rest: drawn.update(
        {line.label: line.points for line in lines}) or plot(lines, *rest))
    curves.draw_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert drawn == {"training": {20: 3.0, 40: 2.0}, "validation": {40: 2.5},
                     "with other images": {40: 4.0}}
    assert Image.open(tmp_path / "loss.png").size == curves.SIZE
    assert "loss.png is drawn" in capsys.readouterr().err


def test_a_point_stands_where_the_axes_say(tmp_path):
    """A dot at the middle of both axes; on a doubling axis the middle of 1 and 16 is 4."""
    for x, ticks in ((5, None), (4, [1, 4, 16])):
        points = {x: 0.5, (ticks or [10])[-1]: 1, (ticks or [0])[0]: 0}
        curves.plot([curves.Line("", points, "#ff0000", dots=True)], tmp_path / "a.png", "x", "y",
                    ticks=ticks)
        pixels = np.asarray(Image.open(tmp_path / "a.png"), int)
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 80)
        ys, xs = np.nonzero(red)
        middle = (xs.min() + xs.max()) // 2, (ys.min() + ys.max()) // 2
        assert red[middle[1] - 2:middle[1] + 3, middle[0] - 2:middle[0] + 3].all()


@pytest.mark.parametrize("low, high, ticks", [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.3, 3.2, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
    (0, 2300, [0, 500, 1000, 1500, 2000, 2500]), (5, 5, [4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6])])
def test_ticks_are_round_and_reach_around_all(low, high, ticks):
    assert curves.nice_ticks(low, high) == ticks


def test_nothing_to_draw_is_said_and_no_file_is_written(tmp_path, capsys):
    curves.plot([curves.Line("a", {})], tmp_path / "a.png", "x", "y")
    assert "nothing to draw" in capsys.readouterr().err and not (tmp_path / "a.png").exists()
