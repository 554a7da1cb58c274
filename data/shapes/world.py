"""The shapes world: pictures of coloured shapes, and captions whose truth is known exactly.

A scene is a list of Things. From this one description come the picture (64 x 64 pixels) and all
texts: captions here, everything else that can be said in texts.py.

    scene      [Thing("small","red","circle",18,40), Thing("large","blue","square",47,38)]
    caption    a small red circle left of a large blue square

The drawings vary as those of other people do: backgrounds from black to white and coloured ones,
sizes, tints, corners, stars of other depth, slight turns, now and then noise or a faint border. A
Thing may be marked: a box of some colour lies half-transparent over it, or under it as a mat. A
scene may be empty: "there is nothing".

`split_of` sends every scene to one split, by a hash of what can be said of it (its `signature`).
The same scene in other tints or some pixels aside has the same hash: it never crosses splits.
"""

import hashlib
import re
from dataclasses import asdict, dataclass, replace

from data.shapes.drawing import COLOURS, SIDE

SIZES = {"small": 5.5, "large": 9.5}  # radius in pixels of a Thing that has none of its own
RADII = {"small": (4.2, 6.6), "large": (8.6, 11.6)}  # of those that are drawn, with a clear gap
WIDE = {"small": (4.0, 6.8), "large": (8.3, 11.8)}  # of those that pre-training sees: more
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
# Colour-shape pairs that no adaptation sees: the `novel` split, as NoCaps is to COCO.
NOVEL = {("red", "star"), ("orange", "diamond"), ("yellow", "circle"),
         ("green", "cross"), ("blue", "triangle"), ("purple", "square")}
PRETRAINING = ("train", "pretrain")  # the splits whose scenes pre-training may see
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("in the top left", "at the top", "in the top right",
          "on the left", "in the middle", "on the right",
          "in the bottom left", "at the bottom", "in the bottom right")


@dataclass(frozen=True)
class Thing:
    """One coloured shape; x, y is its centre in pixels, y downwards."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    r: float = 0  # its own radius in pixels; 0: that of its size
    paint: str = ""  # the colour of the marker that lies over or under it, if any

    @property
    def looks(self):
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def place(self):
        return PLACES[3 * int(self.y * 3 // SIDE) + int(self.x * 3 // SIDE)]

    @property
    def radius(self):
        return self.r or SIZES[self.size]

    @property
    def seen(self):
        """What it "is in": the colour of its marker, or its own where it has none."""
        return self.paint or self.colour

    @property
    def box(self):
        """[x, y, w, h] in pixels."""
        r = self.radius
        return [round(v, 1) for v in (self.x - r, self.y - r, 2 * r, 2 * r)]


def to_json(scene):
    return [{k: v for k, v in asdict(t).items() if k not in ("r", "paint") or v} for t in scene]


def from_json(things):
    return [Thing(**t) for t in things]


# ---------------------------------------------------------------------------- scenes

def radius_of(size, rng, radii=RADII):
    """A radius in pixels for a Thing of this size."""
    return round(rng.uniform(*radii[size]), 1)


def sample(rng, n, radii=RADII):
    """A scene of n Things that do not touch and differ in looks; rng is a random.Random.

    Where there are two, one stands clearly left, right, above or below of the other, so that their
    relation is never a matter of taste.
    """
    while True:
        scene = []
        for _ in range(50 * n):
            size = rng.choice(list(SIZES))
            r = radius_of(size, rng, radii)
            t = Thing(size, rng.choice(list(COLOURS)), rng.choice(SHAPES),
                      round(rng.uniform(r + 1, SIDE - r - 1), 1),
                      round(rng.uniform(r + 1, SIDE - r - 1), 1), r)
            if all(apart(t, o) for o in scene):
                scene.append(t)
            if len(scene) == n:
                break
        if len(scene) == n and is_valid(scene):
            return scene


def apart(t, o):
    """Whether two Things may be in one scene: they look different and their boxes do not touch."""
    distance = max(abs(t.x - o.x), abs(t.y - o.y))
    return t.looks != o.looks and distance > t.radius + o.radius + 2


def is_valid(scene):
    """Inside the picture, apart from each other, and, if there are two, clearly placed."""
    inside = all(t.radius < min(t.x, t.y, SIDE - t.x, SIDE - t.y) for t in scene)
    clear = all(apart(t, o) for i, t in enumerate(scene) for o in scene[:i])
    return inside and clear and (len(scene) != 2 or relation(*scene) is not None)


def relation(a, b):
    """How a stands to b: "left of", "right of", "above", "below", or None where it is not clear."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) >= 1.5 * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) >= 1.5 * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def signature(scene):
    """What can be said of a scene, as one string; equal for scenes that sound the same."""
    if len(scene) == 2:  # without places, so that no caption of a test scene occurs in training
        a, b = sorted(scene, key=lambda t: t.looks)
        return f"{a.looks} {relation(a, b)} {b.looks}"
    return ", ".join(sorted(f"{t.looks} {t.place}" for t in scene))


def split_of(scene):
    """The split of a scene: "train", "val", "test", "novel", "pretrain", or None (unused).

    Pre-training may see "train" and "pretrain" scenes (the latter have a NOVEL pair); adaptation
    sees "train" alone. No val, test or novel scene is seen by either.
    """
    bucket = int.from_bytes(hashlib.sha1(signature(scene).encode()).digest()[:4], "big") % 20
    novel = any((t.colour, t.shape) in NOVEL for t in scene)
    if bucket > 2:
        return "pretrain" if novel else "train"
    if bucket == 0:
        return None if novel else "val"
    return "novel" if novel else "test"


def sample_from(rng, n, splits, radii=RADII):
    """A scene of n Things that belongs to one of the splits."""
    while True:
        scene = sample(rng, n, radii)
        if split_of(scene) in splits:
            return scene


def marked(scene, rng, often=0.6, shares=(0.2, 0.4)):
    """The scene with markers over or under some of its Things, in any colours, or as it is. often:
    how likely there are any; shares: of the Things that have one.

    Pictures on the web hold marked regions here and there, and CLIP has read about them. A world
    without any would make every such picture, and with it CPT (prompts.py), foreign to the model.
    """
    share = rng.choice(shares) if rng.random() < often else 0
    return [replace(t, paint=rng.choice(list(COLOURS))) if rng.random() < share else t
            for t in scene]


# ---------------------------------------------------------------------------- captions

WORDINGS = {"left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
            "above": ("above", "over"), "below": ("below", "under")}
EMPTY = ("nothing", "there is nothing", "a picture of nothing", "nothing is there",
         "there is nothing in the picture")
# "a circle with a square to its left": the square is left of the circle
ITS = {"left of": "to its left", "right of": "to its right",
       "above": "above it", "below": "below it"}


def with_article(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def captions(scene, rng):
    """Five captions of a scene of at most two Things; each names all that `is_exact` asks for."""
    if not scene:
        return list(EMPTY)
    if len(scene) == 1:
        it, place = with_article(scene[0].looks), scene[0].place
        return [it, f"there is {it}", f"this is {it}", f"a picture of {it}", f"{it} {place}"]
    texts = []
    for x, y in (scene, scene[::-1]):
        rel, a, b = relation(x, y), with_article(x.looks), with_article(y.looks)
        texts += [f"{a} {rng.choice(WORDINGS[rel])} {b}",
                  f"{a} is {rng.choice(WORDINGS[rel])} {b}",
                  f"there is {a} {rng.choice(WORDINGS[rel])} {b}",
                  f"{rng.choice(WORDINGS[rel])} {b} is {a}",
                  f"{a} with {b} {ITS[INVERSE[rel]]}"]
    return rng.sample(texts, 5)


def any_of(words):
    """A pattern that matches any of the words, the longest that fits."""
    return "|".join(sorted(words, key=len, reverse=True))


# Words between the Things a and b of a caption -> how a stands to b.
MEANING = {words: rel for rel in WORDINGS for words in WORDINGS[rel]}
RELATION = any_of(MEANING)
MEANING |= {words: INVERSE[rel] for rel, words in ITS.items()}
LOOKS = rf"an? (?P<{{}}>(?:{any_of(SIZES)}) (?:{any_of(COLOURS)}) (?:{any_of(SHAPES)}))"
A, B = LOOKS.format("a"), LOOKS.format("b")
START = "(?:there is |this is |a picture of )?"
GRAMMAR = (  # every caption that is a sentence of this world
    rf"{START}{A}(?: (?P<place>{any_of(PLACES)}))?",
    rf"{START}{A}(?: is)? (?P<words>{RELATION}) {B}",
    rf"(?P<words>{RELATION}) {B} is {A}",
    rf"{START}{A} with {B} (?P<words>{any_of(ITS.values())})",
)


def is_exact(caption, scene):
    """Whether a caption names every Thing with size, colour and shape, their relation, and nothing
    wrong."""
    caption = caption.lower().strip().rstrip(".").strip()
    if not scene:
        return caption in EMPTY
    said = next((m.groupdict() for p in GRAMMAR if (m := re.fullmatch(p, caption))), None)
    if said is None or len(scene) != ("b" in said) + 1:
        return False
    if len(scene) == 1:
        return said["a"] == scene[0].looks and said["place"] in (None, scene[0].place)
    a, b = scene if scene[0].looks == said["a"] else scene[::-1]
    return (a.looks, b.looks, relation(a, b)) == (said["a"], said["b"], MEANING[said["words"]])


def names_all(caption, scene):
    """Whether a caption names every Thing with size, colour and shape, and nothing else. What it
    says of their relation may be wrong."""
    return sorted(re.findall(A, caption.lower())) == sorted(t.looks for t in scene)
