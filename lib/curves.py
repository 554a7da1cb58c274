"""Curves, drawn with Pillow: of a run's losses, of a search's policy, of scores over shots."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from lib.cli import note
from lib.files import replacing
from lib.pictures import GREY, INK, PAPER, colours, font
from lib.runs import read_log

SIZE = 940, 560  # pixels of the picture
LEFT, TOP, BELOW = 74, 40, 62  # what its axes and their numbers take
FINE = 2  # it is drawn so many times as large: smooth lines


@dataclass
class Line:
    label: str  # "" for none
    points: dict  # {x: y}
    colour: str = "#1f4e8c"
    width: float = 2.5
    dots: bool = False
    dashed: bool = False
    band: dict = field(default_factory=dict)  # {x: (low, high)} around it


def nice_ticks(low, high, n=6):
    """About n round numbers that reach from low or below to high or above."""
    if high - low < 1e-9 * max(1, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / n
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(i * step, 12) for i in range(first, last + 1)]


def plot(lines, path, xlabel, ylabel, levels=(), ticks=None):
    """Draws Lines into a PNG and says so. levels [(label, y)] are drawn across. ticks: the numbers
    below the x axis, which then grows by doubling (1, 2, 4, 8 are equally far apart)."""
    lines = [line for line in lines if line.points]
    if not lines:
        note(f"{path}: there is nothing to draw")
        return
    place = math.log2 if ticks else float
    xs = [place(x) for line in lines for x in line.points]
    ys = [v for line in lines for v in (*line.points.values(), *np.ravel([*line.band.values()]))]
    marks = nice_ticks(min(ys + [y for _, y in levels]), max(ys + [y for _, y in levels]))
    below = ticks or [t for t in nice_ticks(min(0, *xs), max(xs)) if t <= max(xs)]
    side = round(62 + max(font(14).getlength(line.label) for line in lines))
    width, height = SIZE[0] - LEFT - side, SIZE[1] - TOP - BELOW
    left, right = (f([place(t) for t in below] + xs) for f in (min, max))

    def at(x, y):
        """Where a point stands on the enlarged canvas."""
        across = (place(x) - left) / max(right - left, 1e-9)
        up = (y - marks[0]) / (marks[-1] - marks[0])
        return FINE * (LEFT + 12 + across * (width - 24)), FINE * (TOP + height * (1 - up))

    canvas = Image.new("RGB", [FINE * n for n in SIZE], PAPER)
    draw = ImageDraw.Draw(canvas, "RGBA")
    text = lambda x, y, words, anchor, ink=GREY: draw.text((x, y), words, ink, font(14 * FINE),
                                                           anchor)
    edge = FINE * LEFT, FINE * (LEFT + width)
    for y in marks:
        draw.line((edge[0], at(below[0], y)[1], edge[1], at(below[0], y)[1]), "#e6e6e4", FINE)
        text(edge[0] - 8 * FINE, at(below[0], y)[1], f"{y:,.10g}", "rm")
    for x in below:
        text(at(x, 0)[0], FINE * (TOP + height + 10), f"{x:,.10g}", "ma")
    text(FINE * (LEFT + width / 2), FINE * (SIZE[1] - 24), xlabel, "ma", INK)
    text(FINE * 12, FINE * 2, ylabel, "la", INK)
    for line in lines:
        draw_line(draw, line, at)
    for label, y in levels:
        y = at(below[0], y)[1]
        dash(draw, [(edge[0], y), (edge[1], y)], GREY, 1.5)
        text(edge[1] - 4 * FINE, y - 3 * FINE, label, "rd")
    legend(draw, lines, FINE * (LEFT + width + 14), text)
    with replacing(path) as f:
        canvas.resize(SIZE, Image.LANCZOS).save(f, "PNG")
    note(f"{path} is drawn")


def draw_line(draw, line, at):
    """A Line with its band and dots."""
    points = [at(x, y) for x, y in sorted(line.points.items())]
    if line.band:
        low, high = ([at(x, band[i]) for x, band in sorted(line.band.items())] for i in (0, 1))
        draw.polygon(low + high[::-1], (*ImageColor.getrgb(line.colour), 45))
    if line.dashed:
        dash(draw, points, line.colour, line.width)
    else:
        draw.line(points, line.colour, round(FINE * line.width), "curve")
    r = FINE * (line.width + 1.5)
    for x, y in points if line.dots or len(points) == 1 else ():
        draw.ellipse((x - r, y - r, x + r, y + r), line.colour)


def dash(draw, points, colour, width, on=7, off=5):
    """A dashed line through points."""
    done, on, off = 0, on * FINE, off * FINE
    for (x, y), (u, v) in zip(points, points[1:]):
        length = math.hypot(u - x, v - y)
        start = -(done % (on + off))  # where the dash that is under way began
        while start < length:
            a, b = (max(0, min(length, s)) / max(length, 1e-9) for s in (start, start + on))
            if b > a:
                draw.line((x + a * (u - x), y + a * (v - y), x + b * (u - x), y + b * (v - y)),
                          colour, round(FINE * width))
            start += on + off
        done += length


def legend(draw, lines, x, text):
    """The names beside the curves, from the top."""
    y = FINE * (TOP + 8)
    for line in (line for line in lines if line.label):
        ends = [(x, y), (x + FINE * 26, y)]
        (dash(draw, ends, line.colour, line.width) if line.dashed else
         draw.line(ends, line.colour, round(FINE * line.width)))
        text(x + FINE * 34, y, line.label, "lm", INK)
        y += FINE * 23


# ---------------------------------------------------------------------------- what is drawn

def series(log, name):
    """{step: number} of one entry of a run's log.jsonl; of a step done again, the last."""
    return {line["step"]: line[name] for line in read_log(Path(log)) if name in line}


def draw_losses(log, path):
    """The losses of a run, read from its log.jsonl, as a PNG."""
    plot([Line("training", series(log, "loss"), "#9db4d0", 1.5),
          Line("validation", series(log, "val_loss"), "#1f4e8c", dots=True),
          Line("with other images", series(log, "blind_loss"), "#d1652a", 2, True, True)],
         path, "step", "loss, nats per token")


def draw_policy(history, path):
    """How a search's policy {step: [probability of each layer]} moved, as a PNG."""
    n = len(next(iter(history.values())))
    shades = colours(np.linspace(0.15, 0.9, n))[:, :3].round().astype(int).tolist()
    plot([Line(f"layer {l}", {step: policy[l] for step, policy in history.items()},
               "#{:02x}{:02x}{:02x}".format(*shade), 2) for l, shade in enumerate(shades)],
         path, "step of the search", "policy")
