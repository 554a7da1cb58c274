"""How the shapes world is drawn: as many people would, each a little differently.

    background  from black to white and coloured, never near a colour that is drawn on it
    tints       from the named colour towards a neighbour that everybody calls the same
    outlines    corners soft or sharp, stars deep or flat, slight turns
    markers     a half-transparent box over a Thing, or under it as a mat
    weather     now and then a faint frame, a blur, noise; clutter where there is nothing else
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 64  # of a picture, in pixels
COLOURS = {
    "red": (220, 40, 40), "orange": (240, 140, 30), "yellow": (235, 215, 40),
    "green": (50, 160, 60), "cyan": (60, 200, 215), "blue": (45, 80, 210),
    "purple": (135, 60, 180), "pink": (240, 130, 190),
}
# Tints go from the colour above towards one of these: CPT's paints (prompts.py) and CSS's names.
SHADES = {
    "red": ((240, 0, 30), (255, 0, 0)), "orange": ((255, 165, 0),),
    "yellow": ((255, 255, 25), (255, 230, 0)), "green": ((0, 255, 0), (0, 128, 0)),
    "cyan": ((0, 255, 255),), "blue": ((0, 10, 255), (25, 50, 150)),
    "purple": ((155, 50, 210), (128, 0, 128)), "pink": ((255, 192, 203), (255, 105, 180)),
}


def tint(colour, rng):
    """(r, g, b) that everybody calls by this name."""
    far, shade = rng.random(), rng.choice(SHADES[colour])
    return tuple(max(0, min(255, round(a + far * (b - a)) + rng.randint(-14, 14)))
                 for a, b in zip(COLOURS[colour], shade))


def background(tints, rng):
    """(r, g, b) from black to white or coloured, far from the tints of what is drawn on it and from
    every colour that has a name here."""
    while True:
        kind, grey = rng.random(), rng.choice((rng.randint(0, 255), rng.randint(190, 255)))
        rgb = [grey] * 3
        if kind > 0.5:  # coloured: pastel, dark, or anything
            hue = [rng.randint(0, 255) for _ in rgb]
            far, towards = rng.uniform(0.1, 0.45), 255 if kind < 0.75 else 0
            rgb = hue if kind > 0.92 else [round(towards + far * (v - towards)) for v in hue]
        if all(sum((a - b) ** 2 for a, b in zip(rgb, other)) > least ** 2
               for least, others in ((80, tints), (50, COLOURS.values())) for other in others):
            return tuple(rgb)


def outline(t, rng):
    """Corners (n, 2) of a Thing around (0, 0), in pixels, as somebody might draw it; None for the
    circle."""
    r, turn = t.radius, rng.uniform(-0.2, 0.2)  # 11 degrees: a square is no diamond yet
    if t.shape == "circle":
        return None
    if t.shape == "cross":
        a = rng.uniform(0.26, 0.4)
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
                   (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    elif t.shape == "square":
        # Some give a square the radius of its corners, others that of its sides. Either way a small
        # one stays clearly smaller than a large one.
        half = rng.uniform(0.78, 1) * r
        half = (min(half, 6.5) if t.size == "small" else max(half, 7.2)) / r
        corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    elif t.shape == "diamond":
        w, h = rng.uniform(0.78, 1.1), rng.uniform(0.98, 1.12)
        corners = [(0, -h), (w, 0), (0, h), (-w, 0)]
    elif t.shape == "triangle":
        w, h, low = rng.uniform(0.9, 1.0), rng.uniform(0.95, 1.1), rng.uniform(0.55, 1.0)
        corners = [(0, -h), (w, low), (-w, low)]
    else:
        n, far, deep = rng.choice((5, 5, 5, 5, 6)), rng.uniform(1, 1.13), rng.uniform(0.36, 0.56)
        angles = np.pi * np.arange(2 * n) / n
        radii = far * np.where(np.arange(2 * n) % 2, deep, 1)
        corners = np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    soft = rng.choice((0, 0, rng.uniform(0, 0.12 if t.size == "small" else 0.22)))
    return r * soften(np.array(corners), soft) @ rotate


def soften(corners, by):
    """Corners (n, 2), each replaced by three on a curve that leaves the sides at a share `by`."""
    if not by:
        return corners
    before = corners + by * (np.roll(corners, 1, 0) - corners)
    after = corners + by * (np.roll(corners, -1, 0) - corners)
    return np.stack([before, (before + 2 * corners + after) / 4, after], 1).reshape(-1, 2)


def mark(image, box, colour, opacity):
    """Lays a half-transparent box [x, y, w, h] over an image, in place."""
    x, y, w, h = map(round, box)
    image.paste(colour, (x, y, x + w, y + h), Image.new("L", (w, h), round(255 * opacity)))


def draw_thing(draw, t, fill, edge, zoom, rng):
    """One Thing, zoom pixels for one; edge: the colour of its rim, or None."""
    corners = outline(t, rng)
    if corners is None:
        r = t.radius
        draw.ellipse([zoom * v for v in (t.x - r, t.y - r, t.x + r, t.y + r)], fill, edge, zoom)
    else:
        points = (zoom * (corners + (t.x, t.y))).ravel().tolist()
        draw.polygon(points, fill, edge, zoom)


def clutter(draw, zoom, rng):
    """Lines, arcs and dots that are no shape of this world."""
    for _ in range(rng.randint(1, 6)):
        ends = [zoom * rng.uniform(-8, SIDE + 8) for _ in range(4)]
        colour, width = tuple(rng.randint(0, 255) for _ in "rgb"), rng.randint(1, 2) * zoom
        if rng.random() < 0.6:
            draw.line(ends, colour, width)
        else:
            x, y = sorted(ends[::2]), sorted(ends[1::2])
            draw.arc((x[0], y[0], x[1] + 9, y[1] + 9), ends[0], ends[0] + 90, colour, width)


def render(scene, rng, strays=0):
    """The scene as a 64 x 64 RGB picture; rng picks all that a caption does not tell.

    strays: how many markers lie where no Thing is.
    """
    # Draw large, then shrink: smooth edges. Some programs do not.
    zoom = rng.choice((1, 2, 4, 4))
    tints, paints = ([tint(c, rng) for c in colours] for colours in (
        [t.colour for t in scene], [t.paint or rng.choice(list(COLOURS)) for t in scene]))
    seen = [paint for t, paint in zip(scene, paints) if t.paint]
    ground = background(tints + seen, rng)
    image = Image.new("RGB", (SIDE * zoom,) * 2, ground)
    over = []
    for t, colour in zip(scene, paints):
        if t.paint:
            box = [t.x - t.radius - rng.randint(0, 3), t.y - t.radius - rng.randint(0, 3),
                   2 * t.radius + rng.randint(0, 6), 2 * t.radius + rng.randint(0, 6)]
            if t.paint == t.colour or rng.random() < 0.6:
                over.append((box, colour, rng.choice((0.5, rng.uniform(0.3, 0.7)))))
            else:
                mark(image, [zoom * v for v in (box[0] - 1, box[1] - 1, box[2] + 2, box[3] + 2)],
                     colour, rng.uniform(0.3, 1))
    draw, rim = ImageDraw.Draw(image), rng.random() < 0.1
    for t, fill in zip(scene, tints):
        edge = tuple(round(0.75 * v) for v in fill) if rim else None
        draw_thing(draw, t, fill, edge, zoom, rng)
    if not scene and rng.random() < 0.4:
        clutter(draw, zoom, rng)
    image = image.reduce(zoom)
    for box, colour, opacity in over + list(stray_marks(scene, strays, rng)):
        mark(image, box, colour, opacity)
    return weather(image, ground, rng)


def stray_marks(scene, n, rng):
    """Yields up to n boxes on the background, (box, colour, opacity)."""
    for _ in range(n):
        side = 2 * rng.uniform(4, 11.8)
        x, y = (rng.uniform(0, SIDE - side) for _ in "xy")
        if all(max(abs(x + side / 2 - t.x), abs(y + side / 2 - t.y)) > t.radius + 0.4 * side
               for t in scene):
            colour = tint(rng.choice(list(COLOURS)), rng)
            yield [x, y, side, side], colour, rng.choice((0.5, rng.uniform(0.3, 0.8)))


def weather(image, ground, rng):
    """Now and then a faint frame, a blur, or noise."""
    if rng.random() < 0.06:
        frame = tuple(round(0.8 * v + 25) for v in ground)
        ImageDraw.Draw(image).rectangle((0, 0, SIDE - 1, SIDE - 1), None, frame, rng.randint(1, 2))
    if rng.random() < 0.12:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.6)))
    if rng.random() < 0.12:
        noise = np.random.default_rng(rng.randrange(2 ** 32)).normal(0, rng.uniform(2, 9),
                                                                     (SIDE, SIDE, 3))
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return image
