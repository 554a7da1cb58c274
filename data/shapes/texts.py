"""What is said of scenes beside captions: questions, hypotheses, expressions, whole discourses.

    scene         [Thing("small","red","circle",18,40), Thing("large","blue","square",47,38)]
    question      what colour is the small circle? -> red
    hypothesis    the square is below the circle -> contradiction
    expression    the circle left of the square -> Thing number 0
    description   the large square is in blue
    discourse     there are two objects. one is a small red circle. the other one is ...

Every function draws from rng, a random.Random, and says nothing but the truth.
"""

from itertools import compress, product

from data.shapes.world import (COLOURS, INVERSE, SHAPES, SIZES, WORDINGS, captions, relation,
                               with_article)

COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
UNKNOWN = ("heavy", "old", "new", "made of wood", "made of glass", "soft", "expensive",
           "drawn by a child")
ATTRIBUTES = {"size": list(SIZES), "colour": list(COLOURS), "shape": list(SHAPES)}


# ---------------------------------------------------------------------------- naming Things

def fits(words, thing):
    """Whether words like "small circle" or "red object" are true of a Thing."""
    return all(w in (thing.size, thing.colour, thing.shape, "object") for w in words.split())


def refer(thing, scene, rng, hide=None):
    """Words that fit this Thing and no other of the scene, without "the": "small circle".

    hide: an attribute that must not be named (the one a question asks for). None if that is
    impossible.
    """
    options = []
    for chosen in product((True, False), repeat=3):
        names = list(compress(ATTRIBUTES, chosen))
        words = [getattr(thing, name) for name in names]
        if "shape" not in names:
            words.append("object")
        words = " ".join(words)
        if hide not in names and sum(fits(words, t) for t in scene) == 1:
            options.append(words)
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
                return f"the {words} {rng.choice(WORDINGS[rel])} the {refer(o, scene, rng)}"
    return f"the {refer(t, scene, rng)}"


def absent(scene, rng):
    """Words for something that is not in the scene, most often by one attribute only."""
    while True:
        t = rng.choice(scene)
        words = {name: getattr(t, name) for name in ATTRIBUTES}
        name = rng.choice(list(words))
        words[name] = rng.choice(ATTRIBUTES[name])
        if rng.random() < 0.5:
            del words["size"]
        text = " ".join(words.values())
        if not any(fits(text, o) for o in scene):
            return text


def pairs(scene, rng, most=4):
    """Some ordered pairs of Things with a clear relation."""
    found = [(x, y) for x in scene for y in scene if x is not y and relation(x, y)]
    return rng.sample(found, min(most, len(found)))


# ---------------------------------------------------------------------------- tasks

def questions(scene, rng):
    """[(question, answer)] on one scene: attributes, existence, relations, number and place."""
    qa = []
    for t in scene:
        for name in ("colour", "shape", "size"):
            words = refer(t, scene, rng, hide=name)
            if words:
                qa.append((f"what {name} is the {words}?", getattr(t, name)))
        qa.append((f"where is the {refer(t, scene, rng)}?", t.place))
        part = rng.choice([t.shape, f"{t.colour} {t.shape}", t.looks, f"{t.colour} object"])
        qa += [(f"is there {with_article(part)}?", "yes"),
               (f"is there {with_article(absent(scene, rng))}?", "no")]
    qa.append(("how many objects are there?", COUNTS[len(scene)]))
    colour = rng.choice([t.colour for t in scene] + list(COLOURS))
    count = sum(t.colour == colour for t in scene)
    qa.append((f"how many {colour} objects are there?", COUNTS[count]))
    for x, y in pairs(scene, rng):
        rel = relation(x, y)
        said = rng.choice([rel, INVERSE[rel], rng.choice(list(INVERSE))])
        one, words, other = refer(x, scene, rng), rng.choice(WORDINGS[said]), refer(y, scene, rng)
        qa.append((f"is the {one} {words} the {other}?", "yes" if said == rel else "no"))
    rng.shuffle(qa)
    return qa


def hypotheses(scene, rng):
    """[(sentence, label)]: entailment, contradiction, or neutral where no picture could tell."""
    out = []
    for t in scene:
        name = refer(t, scene, rng)
        part = rng.choice([t.shape, f"{t.colour} {t.shape}", t.looks])
        out += [(f"there is {with_article(part)}", "entailment"),
                (f"there is {with_article(absent(scene, rng))}", "contradiction"),
                (f"the {name} is {rng.choice(UNKNOWN)}", "neutral")]
    for x, y in pairs(scene, rng):
        rel = relation(x, y)
        said = rng.choice([rel, INVERSE[rel]])
        one, words, other = refer(x, scene, rng), rng.choice(WORDINGS[said]), refer(y, scene, rng)
        label = "entailment" if said == rel else "contradiction"
        out.append((f"the {one} is {words} the {other}", label))
    rng.shuffle(out)
    return out


def descriptions(scene, rng):
    """True sentences on single Things of a scene, and on Things that are not there, each once. What
    is marked "is in" the colour of its marker."""
    found = []
    for i, t in enumerate(scene):
        # Of what is marked its marker is what has to be learnt.
        rest = [f"in {t.seen}"] if t.paint else [t.size, t.place, with_article(t.shape)]
        found += [f"{expression(scene, i, rng)} is in {t.seen}",
                  f"{expression(scene, i, rng)} is {rng.choice(rest)}"]
    if rng.random() < 0.5:
        found.append(f"the {absent(scene, rng)} is in none")
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------------- discourse

def listing(scene, rng):
    """All Things of a scene in any order: what an image will later have to supply."""
    order = rng.sample(scene, len(scene))
    places, looks = [t.place for t in order], [with_article(t.looks) for t in order]
    count = COUNTS[len(scene)]
    if len(scene) == 1:
        return rng.choice([f"there is one object. it is {looks[0]}",
                           f"it is {places[0]}. it is {looks[0]}"])
    if len(scene) == 2:
        return rng.choice([
            f"there are two objects. one is {looks[0]}. the other one is {looks[1]}",
            f"there are two objects, {looks[0]} and {looks[1]}",
            f"{places[0]} is {looks[0]}. {places[1]} is {looks[1]}",
            f"one object is {looks[0]}. the other object is {looks[1]}"])
    return rng.choice([
        f"there are {count} objects. " + ". ".join(map(" ".join, zip(looks, places))),
        ", ".join(looks[:-1]) + f" and {looks[-1]}"])


def remarks(scene, rng):
    """Many true short texts about a scene, each of which repeats or rewords what others say."""
    out = [f"{q} {a}" for q, a in questions(scene, rng)[:4]]
    out += [f"question: {q} answer: {a}" for q, a in questions(scene, rng)[:2]]
    answers = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}
    for text, label in hypotheses(scene, rng)[:2]:
        out.append(rng.choice([f"{text}? {answers[label]}", f"hypothesis: {text} answer: {label}"]))
    for i, t in enumerate(scene):
        name = refer(t, scene, rng)
        out.append(rng.choice([f"the {name} is {t.size}", f"the {name} is {t.colour}",
                               f"the {name} is {t.place}", f"the {name} is a {t.shape}"]))
        out.append(rng.choice([f"{expression(scene, i, rng)} is in {t.seen}",
                               f"the {absent(scene, rng)} is in none"]))
    for x, y in pairs(scene, rng, most=3):
        words, one = rng.choice(WORDINGS[relation(x, y)]), refer(x, scene, rng)
        out += [f"the {one} is {words} the {refer(y, scene, rng)}",
                f"what is {words} the {y.looks}? {with_article(x.looks)}"]
    if len(scene) == 2:
        x, y = rng.sample(scene, 2)
        a, b = with_article(x.looks), with_article(y.looks)
        out += [f"one is {a}. the other one is {b}",
                f"the {refer(x, scene, rng)} is {x.place}. the other one is {y.place}",
                f"the other one is {a}. this one is {b}",
                *(captions(scene, rng) * 2)]
    elif len(scene) == 1:
        out += captions(scene, rng)
    else:
        out.append(listing(scene, rng))
    return out


def emptiness(rng):
    """A text on a picture without any Thing."""
    thing = [rng.choice(values) for values in ATTRIBUTES.values()]
    out = [*captions([], rng), "it shows nothing", "how many objects are there? none",
           f"is there {with_article(' '.join(thing))}? no", f"there is no {' '.join(thing[1:])}",
           f"the {' '.join(thing[rng.randint(0, 1):])} is in none"]
    return ". ".join([rng.choice(captions([], rng)), *rng.sample(out, rng.randint(0, 3))])


def discourse(scene, rng):
    """A text on one scene: a lone caption, captions one after the other, or a longer discourse.

    A model of lone captions learns no memory: its second object is independent of the first. Here
    the later sentences can only be guessed by one that keeps what was said, and of whom. Plain
    repetition is the easiest lesson in that, and speeds up all others.
    """
    if not scene:
        return emptiness(rng)

    def say():
        return rng.choice(captions(scene, rng)) if len(scene) <= 2 else listing(scene, rng)

    kind = rng.random()
    if kind < 0.2:
        return say()
    if kind < 0.45:
        texts = [say() for _ in range(rng.randint(1, 3))]
        return ". ".join(texts + [rng.choice(texts)])
    first = say() if rng.random() < 0.4 else listing(scene, rng)
    rest = remarks(scene, rng)
    rest = rng.sample(rest, min(len(rest), rng.randint(1, 6)))
    return ". ".join([first, *rest]) + rng.choice([".", ""])
