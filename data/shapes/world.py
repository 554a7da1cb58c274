"""The shapes world: pictures of coloured shapes and everything that can truly be said of them.

A scene is a list of Things. From this one description come the picture (64 x 64 pixels) and all
texts: captions, questions with answers, hypotheses with labels, referring expressions and longer
discourse. Since the truth is known exactly, so is whether a caption is right (`is_exact`).

    scene  [Thing("small","red","circle",18,40), Thing("large","blue","square",47,38)]
    caption          a small red circle left of a large blue square
    question         what colour is the small circle? -> red
    hypothesis       the square is below the circle -> contradiction
    expression       the circle left of the square -> Thing number 0

`home` sends every scene, by a hash of what can be said of it, to one split. The same scene in
other colours of background or some pixels aside has the same hash: it never crosses splits.
"""

import hashlib
import re
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  # of a picture, in pixels
SIZES = {"small": 5.5, "large": 9.5}  # radius in pixels
COLOURS = {
    "red": (220, 40, 40), "orange": (240, 140, 30), "yellow": (235, 215, 40), "green": (50, 160, 60),
    "cyan": (60, 200, 215), "blue": (45, 80, 210), "purple": (135, 60, 180), "pink": (240, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
# Colour-shape pairs that no adaptation sees: the `novel` split, as NoCaps is to COCO.
NOVEL = {("red", "star"), ("orange", "diamond"), ("yellow", "circle"),
         ("green", "cross"), ("blue", "triangle"), ("purple", "square")}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("in the top left", "at the top", "in the top right",
          "on the left", "in the middle", "on the right",
          "in the bottom left", "at the bottom", "in the bottom right")
COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
UNKNOWN = ("heavy", "old", "new", "made of wood", "made of glass", "soft", "expensive", "drawn by a child")


@dataclass(frozen=True)
class Thing:
    """One coloured shape; x, y is its centre in pixels, y downwards."""

    size: str
    colour: str
    shape: str
    x: float
    y: float

    @property
    def looks(self):
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def place(self):
        return PLACES[3 * int(self.y * 3 // SIDE) + int(self.x * 3 // SIDE)]

    @property
    def box(self):
        """[x, y, w, h] in pixels."""
        r = SIZES[self.size]
        return [round(v, 1) for v in (self.x - r, self.y - r, 2 * r, 2 * r)]


def to_json(scene):
    return [asdict(t) for t in scene]


def from_json(things):
    return [Thing(**t) for t in things]


# ---------------------------------------------------------------------------- scenes

def sample(rng, n):
    """A scene of n Things that do not touch and differ in looks; rng is a random.Random.

    Two Things stand clearly left, right, above or below of each other, so that a relation is never
    a matter of taste.
    """
    while True:
        scene = []
        for _ in range(50 * n):
            size = rng.choice(list(SIZES))
            m = SIZES[size] + 1
            t = Thing(size, rng.choice(list(COLOURS)), rng.choice(SHAPES),
                      round(rng.uniform(m, SIDE - m), 1), round(rng.uniform(m, SIDE - m), 1))
            if all(apart(t, o) for o in scene):
                scene.append(t)
            if len(scene) == n:
                break
        if len(scene) == n and is_valid(scene):
            return scene


def apart(t, o):
    """Two Things that may be in one scene: they look different and do not touch."""
    return t.looks != o.looks and np.hypot(t.x - o.x, t.y - o.y) > SIZES[t.size] + SIZES[o.size] + 2


def is_valid(scene):
    """Inside the picture, apart from each other, and, if there are two, clearly placed."""
    inside = all(SIZES[t.size] < min(t.x, t.y, SIDE - t.x, SIDE - t.y) for t in scene)
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


def key(scene):
    """What can be said of a scene, as one string; equal for scenes that sound the same."""
    if len(scene) == 2:  # without places, so that no caption of a test scene occurs in training
        a, b = sorted(scene, key=lambda t: t.looks)
        return f"{a.looks} {relation(a, b)} {b.looks}"
    return ", ".join(sorted(f"{t.looks} {t.place}" for t in scene))


def home(scene):
    """The split a scene belongs to: "train", "val", "test", "novel", "pretrain", or None (unused).

    Pre-training may see "train" and "pretrain" scenes (the latter have a NOVEL pair); adaptation
    sees "train" alone. No val, test or novel scene is seen by either.
    """
    bucket = int.from_bytes(hashlib.sha1(key(scene).encode()).digest()[:4], "big") % 20
    novel = any((t.colour, t.shape) in NOVEL for t in scene)
    if bucket > 2:
        return "pretrain" if novel else "train"
    if bucket == 0:
        return None if novel else "val"
    return "novel" if novel else "test"


def sample_from(rng, n, homes):
    """A scene of n Things whose home is one of homes."""
    while True:
        scene = sample(rng, n)
        if home(scene) in homes:
            return scene


# ---------------------------------------------------------------------------- pictures

def outline(shape, x, y, r):
    """Corners of a shape of radius r around (x, y); None for the circle."""
    if shape == "circle":
        return None
    if shape == "cross":
        a = r / 3
        dots = [(-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a), (a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a)]
        return [(x + u, y + v) for u, v in dots]
    corners = {"square": 4, "diamond": 4, "triangle": 3, "star": 10}[shape]
    turn = np.pi / 4 if shape == "square" else 0
    angles = turn - np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    radius = np.where(np.arange(corners) % 2, 0.45 * r, 1.1 * r) if shape == "star" else np.full(corners, 1.1 * r)
    return [(float(x + d * np.cos(t)), float(y + d * np.sin(t))) for t, d in zip(angles, radius)]


def render(scene, rng):
    """The scene as a 64 x 64 RGB picture; rng picks the grey of the background and the exact tints."""
    zoom = 4  # draw large, then shrink: smooth edges
    grey = rng.randint(185, 245)
    image = Image.new("RGB", (SIDE * zoom, SIDE * zoom), (grey, grey, grey))
    draw = ImageDraw.Draw(image)
    for t in scene:
        tint = tuple(max(0, min(255, c + rng.randint(-14, 14))) for c in COLOURS[t.colour])
        x, y, r = t.x * zoom, t.y * zoom, (SIZES[t.size] + rng.uniform(-0.5, 0.5)) * zoom
        corners = outline(t.shape, x, y, r)
        if corners:
            draw.polygon(corners, fill=tint)
        else:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tint)
    return image.reduce(zoom)


# ---------------------------------------------------------------------------- sentences

def a(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def capture(rel):
    """How a relation is worded. Left and right also with "to the", above and below also as over, under."""
    return {"left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
            "above": ("above", "over"), "below": ("below", "under")}[rel]


ITS = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}


def captions(scene, rng):
    """Five different captions of a scene of one or two Things; each names all that `is_exact` asks."""
    if len(scene) == 1:
        t, = scene
        return [a(t.looks), f"there is {a(t.looks)}", f"this is {a(t.looks)}",
                f"a picture of {a(t.looks)}", f"{a(t.looks)} {t.place}"]
    texts = []
    for x, y in (scene, scene[::-1]):
        rel = relation(x, y)
        texts += [f"{a(x.looks)} {rng.choice(capture(rel))} {a(y.looks)}",
                  f"{a(x.looks)} is {rng.choice(capture(rel))} {a(y.looks)}",
                  f"there is {a(x.looks)} {rng.choice(capture(rel))} {a(y.looks)}",
                  f"{rng.choice(capture(rel))} {a(y.looks)} is {a(x.looks)}",
                  f"{a(x.looks)} with {a(y.looks)} {ITS[INVERSE[rel]]}"]
    return rng.sample(texts, 5)


LOOKS = rf"an? ((?:{'|'.join(SIZES)}) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
WORDED = {words: rel for rel in INVERSE for words in capture(rel)}
RELATION = "|".join(sorted(WORDED, key=len, reverse=True))
GRAMMAR = [  # every caption that is a sentence of this world, and what its groups mean
    (rf"(?:there is |this is |a picture of )?{LOOKS}(?: ({'|'.join(PLACES)}))?", "one"),
    (rf"(?:there is |this is |a picture of )?{LOOKS}(?: is)? ({RELATION}) {LOOKS}", "a rel b"),
    (rf"({RELATION}) {LOOKS} is {LOOKS}", "rel b a"),
    (rf"(?:there is |this is |a picture of )?{LOOKS} with {LOOKS} ({'|'.join(ITS.values())})", "a b its"),
]


def is_exact(caption, scene):
    """Does the caption name every Thing with size, colour and shape, their relation, and nothing wrong?"""
    caption = caption.lower().strip().rstrip(".").strip()
    for pattern, order in GRAMMAR:
        m = re.fullmatch(pattern, caption)
        if not m:
            continue
        if order == "one":
            return len(scene) == 1 and m[1] == scene[0].looks and m[2] in (None, scene[0].place)
        if order == "a rel b":
            first, rel, second = m[1], WORDED[m[2]], m[3]
        elif order == "rel b a":
            first, rel, second = m[3], WORDED[m[1]], m[2]
        else:  # "A with B to its left": B is left of A
            first, second = m[1], m[2]
            rel = INVERSE[next(r for r, words in ITS.items() if words == m[3])]
        if len(scene) != 2:
            return False
        x, y = scene if scene[0].looks == first else scene[::-1]
        return (x.looks, y.looks) == (first, second) and relation(x, y) == rel
    return False


def names_all(caption, scene):
    """Does the caption name every Thing with size, colour and shape, and nothing else? Their relation may be wrong."""
    return sorted(re.findall(LOOKS, caption.lower())) == sorted(t.looks for t in scene)


def refer(thing, scene, rng, hide=()):
    """Words that fit this Thing and no other of the scene, without "the": "small circle".

    hide: attributes that must not be named (the one a question asks for). None if that is impossible.
    """
    options = []
    for size in (True, False):
        for colour in (True, False):
            for shape in (True, False):
                use = [k for k, on in (("size", size), ("colour", colour), ("shape", shape)) if on]
                same = [t for t in scene if all(getattr(t, k) == getattr(thing, k) for k in use)]
                if len(same) == 1 and not set(use) & set(hide):
                    words = [getattr(thing, k) for k in use]
                    options.append(" ".join(words + ([] if shape else ["object"])))
    return rng.choice(options) if options else None


def expression(scene, i, rng):
    """A referring expression for Thing number i, half of the time through a neighbour."""
    t = scene[i]
    others = [o for o in scene if o is not t and relation(t, o)]
    if others and rng.random() < 0.5:
        o = rng.choice(others)
        rel = relation(t, o)
        for words in (t.shape, f"{t.colour} {t.shape}", f"{t.size} {t.shape}", t.looks):
            same = [s for s in scene if s is not o and relation(s, o) == rel and fits(words, s)]
            if len(same) == 1:
                return f"the {words} {rng.choice(capture(rel))} the {refer(o, scene, rng)}"
    return f"the {refer(t, scene, rng)}"


def fits(words, thing):
    return all(w in (thing.size, thing.colour, thing.shape, "object") for w in words.split())


def absent(scene, rng):
    """Words for something that is not in the scene, most often by one attribute only."""
    while True:
        t = rng.choice(scene)
        words = {"size": t.size, "colour": t.colour, "shape": t.shape}
        k = rng.choice(list(words))
        words[k] = rng.choice({"size": list(SIZES), "colour": list(COLOURS), "shape": SHAPES}[k])
        if rng.random() < 0.5:
            del words["size"]
        text = " ".join(words.values())
        if not any(fits(text, o) for o in scene):
            return text


def questions(scene, rng):
    """[(question, answer)] on one scene: attributes, existence, relations, number and place."""
    qa = []
    for t in scene:
        for k, ask in (("colour", "what colour is the {}?"), ("shape", "what shape is the {}?"),
                       ("size", "what size is the {}?")):
            words = refer(t, scene, rng, hide=(k,))
            if words:
                qa.append((ask.format(words), getattr(t, k)))
        qa.append((f"where is the {refer(t, scene, rng)}?", t.place))
        part = rng.choice([t.shape, f"{t.colour} {t.shape}", t.looks, f"{t.colour} object"])
        qa += [(f"is there {a(part)}?", "yes"), (f"is there {a(absent(scene, rng))}?", "no")]
    qa.append(("how many objects are there?", COUNTS[len(scene)]))
    colour = rng.choice([t.colour for t in scene] + list(COLOURS))
    qa.append((f"how many {colour} objects are there?", COUNTS[sum(t.colour == colour for t in scene)]))
    for x, y in pairs(scene, rng):
        rel = relation(x, y)
        said = rng.choice([rel, INVERSE[rel], rng.choice(list(INVERSE))])
        qa.append((f"is the {refer(x, scene, rng)} {rng.choice(capture(said))} the {refer(y, scene, rng)}?",
                   "yes" if said == rel else "no"))
    rng.shuffle(qa)
    return qa


def pairs(scene, rng, most=4):
    """Some ordered pairs of Things with a clear relation."""
    found = [(x, y) for x in scene for y in scene if x is not y and relation(x, y)]
    return rng.sample(found, min(most, len(found)))


def hypotheses(scene, rng):
    """[(sentence, label)]: entailment, contradiction, or neutral where no picture could tell."""
    out = []
    for t in scene:
        words = refer(t, scene, rng)
        out += [(f"there is {a(rng.choice([t.shape, f'{t.colour} {t.shape}', t.looks]))}", "entailment"),
                (f"there is {a(absent(scene, rng))}", "contradiction"),
                (f"the {words} is {rng.choice(UNKNOWN)}", "neutral")]
    for x, y in pairs(scene, rng):
        rel = relation(x, y)
        said = rng.choice([rel, INVERSE[rel]])
        out.append((f"the {refer(x, scene, rng)} is {rng.choice(capture(said))} the {refer(y, scene, rng)}",
                    "entailment" if said == rel else "contradiction"))
    rng.shuffle(out)
    return out


def descriptions(scene, rng):
    """True sentences on single Things of a scene, and on Things that are not there, each once."""
    found = []
    for i, t in enumerate(scene):
        found += [f"{expression(scene, i, rng)} is in {t.colour}",
                  f"{expression(scene, i, rng)} is {rng.choice([t.size, t.place, a(t.shape)])}"]
    found += [f"the {absent(scene, rng)} is in none" for _ in range(2)]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------------- discourse

def listing(scene, rng):
    """All Things of a scene in any order: what an image will later have to supply."""
    order = rng.sample(scene, len(scene))
    looks = [a(t.looks) for t in order]
    if len(scene) == 1:
        return rng.choice([f"there is one object. it is {looks[0]}", f"it is {order[0].place}. it is {looks[0]}"])
    if len(scene) == 2:
        return rng.choice([
            f"there are two objects. one is {looks[0]}. the other one is {looks[1]}",
            f"there are two objects, {looks[0]} and {looks[1]}",
            f"{order[0].place} is {looks[0]}. {order[1].place} is {looks[1]}",
            f"one object is {looks[0]}. the other object is {looks[1]}"])
    return rng.choice([
        f"there are {COUNTS[len(scene)]} objects. " + ". ".join(f"{x} {t.place}" for t, x in zip(order, looks)),
        ", ".join(looks[:-1]) + f" and {looks[-1]}"])


def remarks(scene, rng):
    """Many true short texts about a scene, each of which only repeats or rewords what others say."""
    out = [f"{q} {x}" for q, x in questions(scene, rng)[:4]]
    out += [f"question: {q} answer: {x}" for q, x in questions(scene, rng)[:2]]
    words = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}
    for text, label in hypotheses(scene, rng)[:2]:
        out.append(rng.choice([f"{text}? {words[label]}", f"hypothesis: {text} answer: {label}"]))
    for i, t in enumerate(scene):
        name = refer(t, scene, rng)
        out.append(rng.choice([f"the {name} is {t.size}", f"the {name} is {t.colour}",
                               f"the {name} is {t.place}", f"the {name} is a {t.shape}"]))
        out.append(rng.choice([f"{expression(scene, i, rng)} is in {t.colour}",
                               f"the {absent(scene, rng)} is in none"]))
    for x, y in pairs(scene, rng, most=3):
        rel, one, other = rng.choice(capture(relation(x, y))), refer(x, scene, rng), refer(y, scene, rng)
        out += [f"the {one} is {rel} the {other}", f"what is {rel} the {y.looks}? {a(x.looks)}"]
    if len(scene) == 2:
        x, y = rng.sample(scene, 2)
        out += [f"one is {a(x.looks)}. the other one is {a(y.looks)}",
                f"the {refer(x, scene, rng)} is {x.place}. the other one is {y.place}",
                f"the other one is {a(x.looks)}. this one is {a(y.looks)}",
                *(captions(scene, rng) * 2)]
    elif len(scene) == 1:
        out += captions(scene, rng)
    else:
        out.append(listing(scene, rng))
    return out


def discourse(scene, rng):
    """A text on one scene: a lone caption, captions one after the other, or a longer discourse.

    A model of lone captions learns no memory: its second object is independent of the first. Here
    the later sentences can only be guessed by one that keeps what was said, and of whom. Plain
    repetition is the easiest lesson in that, and speeds up all others.
    """
    say = (lambda: rng.choice(captions(scene, rng))) if len(scene) <= 2 else (lambda: listing(scene, rng))
    kind = rng.random()
    if kind < 0.2:
        return say()
    if kind < 0.45:
        texts = [say() for _ in range(rng.randint(1, 3))]
        return ". ".join(texts + [rng.choice(texts)])
    first = say() if rng.random() < 0.4 else listing(scene, rng)
    rest = remarks(scene, rng)
    return ". ".join([first, *rng.sample(rest, min(len(rest), rng.randint(1, 6)))]) + rng.choice([".", ""])
