"""The few pictures made here: heat maps, sheets of labelled cells, sheets of captions.

  title, wrapped at the sheet's width
  note, small and grey
  +---------+ +---------+ +---------+
  |  cell   | |  cell   | |  cell   |     as many to a row as fit, then the next row
  +---------+ +---------+ +---------+
     label       label       label
  less [colour bar] more

Pillow does all of it; curves are in curves.py.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib.cli import UserError, note
from lib.images import open_image

PAPER, INK, GREY, LINE = (252, 252, 250), (30, 30, 36), (125, 125, 132), (214, 214, 212)
FRAME = (236, 236, 233)  # around a picture that is not as wide or tall as its place
MARGIN, GAP = 28, 14  # pixels around the sheet, and between cells
WIDE = 1500  # pixels a sheet may be wide, unless a single cell is wider
TALL = 2160  # and tall, unless a single block is taller: two screens


# ---------------------------------------------------------------------------- image files

def read_images(names):
    """(names, RGB images) of the files that can be read; the others are named on stderr."""
    good, images = [], []
    for name in names:
        try:
            images.append(open_image(name))
            good.append(name)
        except UserError as e:
            note(e)
    return good, images


# ---------------------------------------------------------------------------- heat maps

# What is not looked at stays as it is; then violet over red and orange to yellow: rings around a
# place, which show on a picture of any colour. Red, green, blue, and how much of it is covered.
HEAT = np.array([(80, 10, 130, 0), (100, 15, 135, 0.08), (150, 20, 120, 0.42), (215, 50, 70, 0.66),
                 (245, 125, 25, 0.76), (255, 226, 40, 0.84)])


def colours(x):
    """Numbers in 0..1, any shape (...) -> (..., 4) interpolated in HEAT."""
    at = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(x, at, HEAT[:, c]) for c in range(4)], -1)


def heat(image, grid):
    """Lays a map over an RGB image: grid (h, w) of numbers from 0 (as it was) to 1 (yellow)."""
    # Bicubic between the centres of the patches: squares would look like sharp knowledge.
    smooth = Image.fromarray(np.asarray(grid, np.float32)).resize(image.size, Image.BICUBIC)
    colour = colours(np.asarray(smooth).clip(0, 1))  # (H, W, 4); bicubic overshoots a little
    cover = colour[..., 3:]
    mixed = np.asarray(image, np.float32) * (1 - cover) + colour[..., :3] * cover
    return Image.fromarray(mixed.round().astype(np.uint8))


def glow(image, grid):
    """heat of a map whose weak places are lifted a little; the order stays."""
    return heat(image, np.asarray(grid) ** 0.7)


def from_pixels(x, mean, std):
    """A preprocessed image (3, H, W), as the model sees it, in the size of a cell of a sheet."""
    x = x.cpu().permute(1, 2, 0).numpy() * np.float32(std) + np.float32(mean)
    image = Image.fromarray((255 * x.clip(0, 1)).round().astype(np.uint8))
    side = image.width
    if side < 128:  # whole multiples without smoothing: the few pixels there are
        return image.resize([side * round(192 / side)] * 2, Image.NEAREST)
    return image if side <= 256 else image.resize((256, 256), Image.LANCZOS)


# ---------------------------------------------------------------------------- sheets

# Of other systems' fonts, those with most of the world's letters.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arialuni.ttf", "msyh.ttc",
         "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "arial.ttf")


@functools.cache
def font(size, name=None):
    """A font of this machine, or Pillow's own; None if there is none of that name."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@functools.cache
def lacks(name, c):
    """Whether a font has no picture of a character but the box that stands for all of them."""
    box, found = (font(20, name).getmask(c) for c in ("\uffff", c))
    return (box.size, bytes(box)) == (found.size, bytes(found))


def font_for(text, size):
    """Pillow's own font, or if it lacks a character of the text, the one that lacks fewest; what
    none of them has is a box."""
    odd = [c for c in dict.fromkeys(text) if not c.isascii() and c.isprintable()]
    missing = lambda name: sum(lacks(name, c) for c in odd)
    there = [name for name in (None, *FONTS) if odd and font(20, name)]
    return font(size, min(there, key=missing) if there else None)


def wrap(text, width, size):
    """Cuts a text into lines of at most width pixels, at spaces; only too long a word is broken."""
    letters = font_for(text, size)
    fits = lambda line: letters.getlength(line) <= width
    lines = [""]
    for word in text.split():
        if fits(f"{lines[-1]} {word}".strip()):
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines += [""] if lines[-1] else []
        for c in word:
            if lines[-1] and not fits(lines[-1] + c):
                lines.append("")
            lines[-1] += c
    return lines


def write(draw, x, y, lines, size, fill, anchor="la"):
    """Draws lines of text from y downwards and returns the y below them."""
    for line in lines:
        draw.text((x, y), line, fill, font_for(line, size), anchor)
        y += round(1.35 * size)
    return y


def rows_of_cells(title, note, cells, columns, width):
    """One block: a title, a note, and cells [(RGB image, label)] of equal size in rows."""
    w, h = cells[0][0].size
    title, note = wrap(title, width, 24), wrap(note, width, 14)
    most = 40 * len(title + note) + len(cells) * (h + 80)  # cut to what is used at the end
    canvas = Image.new("RGB", (width, most), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = write(draw, 0, 0, title, 24, INK)
    y = write(draw, 0, y, note, 14, GREY) + GAP
    for start in range(0, len(cells), columns):
        bottom = y
        for i, (image, label) in enumerate(cells[start:start + columns]):
            x = i * (w + GAP)
            canvas.paste(image, (x, y))
            draw.rectangle((x, y, x + w - 1, y + h - 1), outline=LINE)
            lines = wrap(label, w, 18)
            lines = lines if len(lines) < 3 else [lines[0], lines[1][:-3] + "..."]
            bottom = max(bottom, write(draw, x + w // 2, y + h + 6, lines, 18, INK, "ma"))
        y = bottom + GAP
    return canvas.crop((0, 0, width, y))


def colour_bar(little, much, height=14, width=180):
    """What the colours mean: the words for 0, all colours, the words for 1."""
    left, right = (round(font(14).getlength(text)) for text in (little, much))
    canvas = Image.new("RGB", (left + width + right + 2 * GAP, 20), PAPER)
    draw = ImageDraw.Draw(canvas)
    # Laid over white and black, as it is over a picture.
    ground = Image.new("RGB", (width, height), "white")
    ground.paste((0, 0, 0), (0, height // 2, width, height))
    canvas.paste(heat(ground, np.linspace(0, 1, width)[None]), (left + GAP, 4))
    draw.rectangle((left + GAP - 1, 3, left + GAP + width, 4 + height), outline=LINE)
    write(draw, 0, 2, [little], 14, GREY)
    write(draw, left + width + 2 * GAP, 2, [much], 14, GREY)
    return canvas


def sheet(blocks, little="", much=""):
    """(picture, number of blocks in it): the blocks [(title, note, cells)] one under another, as
    many as TALL allows, and the colour bar at the end.

    All cells are of one size. little and much are the words at the two ends of the bar; without
    them there is no bar.
    """
    w = blocks[0][2][0][0].width + GAP
    most = max(1, (WIDE - 2 * MARGIN + GAP) // w)
    # Rows of equal length: 5 + 4 rather than 7 + 2.
    columns = [-(-len(cells) // -(-len(cells) // most)) for _, _, cells in blocks]
    bars = [colour_bar(little, much)] if little or much else []
    width = max(max(columns) * w - GAP, *(bar.width for bar in bars), 560)
    parts, height = [], 2 * MARGIN + sum(GAP + bar.height for bar in bars)
    for block, n in zip(blocks, columns):
        part = rows_of_cells(*block, n, width)
        height += part.height + GAP
        if parts and height > TALL:
            break
        parts.append(part)
    return stack(parts + bars, width), len(parts)


def stack(parts, width):
    """Pictures one under another, a gap between them and a margin around."""
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    canvas = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    y = MARGIN
    for part in parts:
        canvas.paste(part, (MARGIN, y))
        y += part.height + GAP
    return canvas


def fit(image, width, height):
    """An image in a frame of that size, whole and undistorted, whatever its own size."""
    scale = min(width / image.width, height / image.height)
    if scale >= 2:  # whole multiples without smoothing: the few pixels there are
        scale = int(scale)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.convert("RGB").resize(size, Image.NEAREST if scale >= 2 else Image.LANCZOS)
    frame = Image.new("RGB", (width, height), FRAME)
    frame.paste(image, ((width - size[0]) // 2, (height - size[1]) // 2))
    return frame


def box_cells(image, found, painted, most=11):
    """For a sheet: the picture with the outline of the first of found, [(box, score)], best first,
    then the best candidates, painted(box), each with its score."""
    scale = 224 / max(image.size)
    smooth = Image.NEAREST if scale > 2 else Image.LANCZOS
    enlarge = lambda p: p.resize([max(1, round(v * scale)) for v in p.size], smooth)
    whole = enlarge(image)
    x, y, w, h = (v * scale for v in found[0][0])
    corner = max(x, min(x + w, whole.width) - 1), max(y, min(y + h, whole.height) - 1)
    ImageDraw.Draw(whole).rectangle((x, y, *corner), outline=(240, 0, 30), width=3)
    cells = [(whole, "the winner")]
    cells += [(enlarge(painted(box)), f"{score:.2f}") for box, score in found[:most]]
    return [(fit(picture, 224, 224), label) for picture, label in cells]


# ---------------------------------------------------------------------------- captions, a card each

CARD, PLACE = 350, 190  # pixels: width of a card, and height of the place for its picture
REFERENCES = 3  # of an image that are shown


def shortened(lines, most):
    """At most so many lines, the last one with dots if there were more."""
    if len(lines) <= most:
        return lines
    return [*lines[:most - 1], lines[most - 1].rstrip(" .,") + " ..."]


def card(image, score, name, caption, references):
    """One image with its score and name, the caption below, the references below that in grey."""
    ink = INK if caption else GREY
    texts = [(shortened(wrap(caption or "(empty)", CARD, 20), 5), 20, ink, 8)]
    for reference in references[:REFERENCES]:
        texts.append((shortened(wrap(f"- {reference}", CARD, 15), 3), 15, GREY, 2))
    if len(references) > REFERENCES:
        texts.append(([f"and {len(references) - REFERENCES} more"], 15, GREY, 0))
    height = PLACE + 40 + sum(round(1.35 * size) * len(lines) + gap
                              for lines, size, _, gap in texts)
    canvas = Image.new("RGB", (CARD, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    canvas.paste(fit(image, CARD, PLACE), (0, 0))
    draw.rectangle((0, 0, CARD - 1, PLACE - 1), outline=LINE)
    draw.text((0, PLACE + 10), score, INK, font(16))
    room = CARD - font(16).getlength(score) - 2 * GAP
    label, cut = name, 0
    while font(16).getlength(label) > room:  # the end of a file's name says more than its beginning
        cut += 1
        label = "..." + name[cut:]
    draw.text((CARD, PLACE + 10), label, GREY, font(16), "ra")
    y = PLACE + 40
    for lines, size, colour, gap in texts:
        y = write(draw, 0, y, lines, size, colour) + gap
    return canvas


def numbers(scores, width, cell=164):
    """Figures [(name, number, interval)] in rows of equal length, the number large."""
    rows = -(-len(scores) // (width // cell))
    columns = -(-len(scores) // max(rows, 1))
    canvas = Image.new("RGB", (width, 76 * rows + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (name, number, interval) in enumerate(scores):
        x, y = i % columns * cell, i // columns * 76
        for text, size, colour in ((number, 26, INK), (name, 15, INK), (interval, 13, GREY)):
            y = write(draw, x, y, shortened(wrap(text, cell - GAP, size), 1), size, colour)
    return canvas


def captioned(title, scores, sections, columns=4):
    """A contact sheet: title, scores [(name, number, interval)], then the sections {heading:
    [(image, score, name, caption, references), ...]} with their cards in rows. All but images and
    references are texts."""
    width = columns * CARD + (columns - 1) * 2 * GAP
    parts = [heading(title, 30, width, GAP // 2), numbers(scores, width)]
    for label, entries in sections.items():
        cards = [card(*entry) for entry in entries]
        if cards:
            parts.append(heading(label, 24, width, 0, line=True))
        for start in range(0, len(cards), columns):
            row = cards[start:start + columns]
            strip = Image.new("RGB", (width, max(c.height for c in row) + GAP), PAPER)
            for i, c in enumerate(row):
                strip.paste(c, (i * (CARD + 2 * GAP), 0))
            parts.append(strip)
    return stack(parts, width)


def heading(text, size, width, below, line=False):
    """A text in as many lines as it needs, with a thin line above it if asked for."""
    lines = wrap(text, width, size)
    canvas = Image.new("RGB", (width, round(1.35 * size) * len(lines) + below + 12 * line), PAPER)
    draw = ImageDraw.Draw(canvas)
    if line:
        draw.line((0, 0, width, 0), LINE, 2)
    write(draw, 0, 12 * line, lines, size, INK)
    return canvas
