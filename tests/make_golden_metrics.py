"""Writes tests/golden/metrics: what the official caption scorers say, to be compared without Java.

    pip install -r tests/requirements.txt && python tests/make_golden_metrics.py       (needs Java)

    ptb.json     strings and their tokens by Stanford's PTBTokenizer, through pycocoevalcap
    scores.json  tokenized captions with references, and pycocoevalcap's BLEU, ROUGE-L and CIDEr-D

The strings are caption-like: an ordinary sentence with one to three of the things that tokenizers
trip over. `strings` makes any number of them; test_metrics_parity.py compares thousands live.
"""

import json
import random
import string
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

GOLDEN = HERE / "golden" / "metrics"

NOUNS = """
    man woman dog cat horse bus kitchen plate pizza street giraffe skateboard umbrella bicycle child
    baby boat bench laptop zebra cow tennis-player snowboarder truck motorcycle clock sandwich
    bathroom""".split()
ADJECTIVES = """
    red small old wooden white brown busy large colorful empty yellow parked young striped
    snowy""".split()
VERBS = """sitting on|standing next to|riding|holding|looking at|walking past|lying under|
    playing with|eating|flying over|driving by|posing with|parked near"""
VERBS = [verb.strip() for verb in VERBS.split("|")]
NAMES = """
    John Mary O'Neil McCoy Obama Jean-Luc Chris James Tess D'Arcy José Zoë Müller van-Gogh Lopez
    Hawai'i""".split()
LISTS = {  # what a field in ITEMS is drawn from
    "noun": NOUNS, "adjective": ADJECTIVES,
    "place": [place.strip() for place in """London|New York|St. Louis|Washington D.C.|the U.S.|
        the U.K.|San José|Mt. Fuji|Main St.|5th Ave.|Tokyo""".split("|")],
    "brand": """
        Lay's McDonald's Ben&Jerry's AT&T H&M M&M's Dunkin' Levi's Wi-Fi iPhone X-Box 7-Eleven 7UP
        Coca-Cola Hershey's B&B R&B KFC IKEA Yahoo! YouTube Toys'R'Us L'Oreal Chick-fil-A
        Trader-Joe's Wendy's""".split(),
    "contraction": """
        isn't don't can't won't couldn't doesn't aren't wasn't ain't it's he's she's that's there's
        what's who's let's I'm we're they're you're I've we've they'll you'll he'd they'd could've
        y'all o'clock ma'am 'tis cannot gonna wanna gotta gimme lemme dunno c'mon 'em 'cause 'til
        rock'n'roll s'mores should've""".split(),
    "compound": """
        t-shirt black-and-white well-lit close-up half-eaten two-story x-ray 3-piece 10-year-old
        18-wheeler multi-colored stop-sign side-by-side old-fashioned one-way 4x4 double-decker
        semi-truck 20-inch 6-foot-tall pre-made sit-up jack-o-lantern merry-go-round hot-air f-16
        u-turn man-made non-stop ready-to-eat""".split(),
    "symbol": """
        & + = # @ * % / | ~ ^ _ < > \\ © ® ™ ° • ★ ♥ → × ½ ¼ ¾ … – — ‘ ’ “ ” « » ´ ` ¿ ¡ § ✓
        ☺""".split(),
    "emoji": "😀 🐶 ❤️ 👍🏽 👨‍👩‍👧 🍕 🇺🇸 ☀️ 🎂🎉 😂😂".split(),
    "foreign": """
        café naïve jalapeño piñata crème brûlée résumé über fiancée Zürich São Paulo Ångström
        smörgåsbord façade 日本語 привет αβγ 한국어 mañana déjà vu""".split(),
    "smiley": ":) :-) ;) :( <3 :D :P ^_^ XD".split(), "ordinal": "st nd rd th".split(),
    "fraction": "1/2 3/4 1/3".split()}
# Things that are hard to cut into tokens, one of them between two |. !c begins with a capital, !u
# is upper case, !t a title, !q has a curly apostrophe.
ITEMS = """{contraction}|{contraction!q}|{contraction!c}|{contraction!u}|{a}'s {b}|{a}s' {b}s|
{name}’s {a}|{name}' {a}|{compound}|{compound!t}|{a}-{b}|{adjective}-{adjective}-{a}|{a} -{b}|
{a} - {b}|{a}--{b}|{a} -- {b}|{a} — {b}|{n}|{thousands:,} {a}s|{n}.{m} {a}s|-{n} degrees|{n}0%|
{n}0 %|{n}{ordinal} {a}|#{n}|No. {n}|no.{n}|{n}x{m}|{n} x {m}|{n}-{m}|{n}/{m}|{n} {fraction} {a}s|
{n}½|1,{m}0.{n}5|{n}k|{n}mm|{n} mm.|${n}|${n}.{m:02}|$ {n}|US${n}|€{n}|£{n}.50|{m}¢|{n}$|${n}-${m}|
¥{m}00|{m} cents|{n}:{m:02}|{n}:{m:02}pm|{n}:{m:02} p.m.|{n}am|{n} a.m.|{n}:{m:02}:{m:02}|
{n} o'clock|{n} o’clock|{n} PM|{n}/{m}/20{n:02}|{n}-{m}-{n:02}|Jan. {n}, 20{n:02}|
20{n:02}-{n:02}-{m:02}|the '{n}0s|the 19{decade}0s|the 19{decade}0's|'{m:02}|{n}'{inches}"|
{n}' {inches}"|{n}’{inches}”|{n} ft.|{n}"|{n}ft. {inches}in.|{n} in.|{n} lbs.|{n} oz.|{n} sq. ft.|
Mr. {name}|Mrs. {name}|Dr. {name}|mr. {name}|{name} Jr.|J. K. {name}|J.K. {name}|{a}s, {b}s, etc.|
{a} vs. {b}|{a} vs {b}|{a} (e.g. {b})|i.e. {a}|{name} & Co.|{name} Inc.|{place}|{place}, {name}|
U.S.A.|{q[0]}{a}{q[1]}|{q[0]}{a} {b}{q[1]}|{q[0]} {a} {q[1]}|{q[0]}{name}'s {a}{q[1]}|
{q[0]}{a}.{q[1]}|{a}{q[0]}s{q[1]}|{q[0]}{n}{q[1]}|{a}... {b}|{a}...{b}|{a}.. {b}|{a} . . . {b}|
{a}…{b}|{a}!!!|{a}?!|{a}!? {b}|wow!!|{a},{b}|{a} ,{b}|{a};{b}|{a}:{b}|{a}.{b!c}|{a}.{b}|{a}. {b!c}|
{a}/{b}|{a}/{b}/{a}|and/or|w/ {a}|w/{a}|{a} / {b}|his/her|24/7|{n}mph|{n} km/h|www.{a}.com|
http://www.{a}.com/{b}/{n}.html|{a}{b}.com|https://{a}.org/{b}?id={n}|flickr.com/photos/{n}|
{a}@{b}.com|@{a}|#{a}|#{a}{n}|{a}{n}.jpg|IMG_{m}{m}.JPG|{n}.png|{noun}_{b}|{a}{m}|{m}{a}|{brand}|
{brand} {a}|{brand}'s|{symbol}|{a}{symbol}{b}|{symbol}{a}|{a}{symbol}|{a} {symbol} {b}|{emoji}|
{a}{emoji}|{emoji} {a}|{foreign}|{foreign}'s|{foreign!u}|rock 'n' roll|rock 'n roll|fish n' chips|
mac 'n' cheese|rock ’n’ roll|{smiley}|{a!u}|{a!u}'S|{a!u} {b!u}|{a!t}|{n}° angle|{m}°F|{m} °C|
&amp; {a}|{a} &lt; {b}|{m}{m}-{m}{m}{n}|({m}{n}) 555-{m}{m}|{m} {m} {m}|<b>{a}</b>|(a {a})|
(the {a}'s)|[{a}]|({n})|{n})|{n}.|{a}   {b}|{a} \t{b}|{a}\u00a0{b}|{a} ,|a{a}."""
ITEMS = ITEMS.replace("|\n", "|").split("|")
CASES = {"c": str.capitalize, "u": str.upper, "t": str.title, "q": lambda t: t.replace("'", "’")}


class Filler(string.Formatter):
    """Fills in an item: the values it is given, or a draw from a list for every field."""

    def __init__(self, rng):
        self.rng = rng

    def get_value(self, key, args, values):
        return values[key] if key in values else self.rng.choice(LISTS[key])

    def convert_field(self, value, conversion):
        return CASES[conversion](value) if conversion else value


def item(rng):
    """One thing that is hard to cut into tokens."""
    n, m = rng.randint(1, 12), rng.randint(2, 59)
    a, name, b = rng.choice(NOUNS), rng.choice(NAMES), rng.choice(NOUNS)
    quotes = rng.choice(("\"\"", "''", "“”", "‘’", "``", "«»", "()", "[]", "{}", "<>"))
    return Filler(rng).format(rng.choice(ITEMS), a=a, b=b, name=name, n=n, m=m, q=quotes,
                              thousands=n * 1000 + m, decade=n % 9 + 1, inches=m % 12)


def strings(n, seed):
    """n caption-like strings."""
    rng = random.Random(seed)
    for _ in range(n):
        words = [rng.choice(("A", "a", "The", "There is a", "two", "An", "this is a")),
                 rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(VERBS),
                 rng.choice(("a", "the", "some")), rng.choice(NOUNS)]
        for _ in range(rng.choice((1, 1, 2, 2, 3))):
            words.insert(rng.randint(0, len(words)), item(rng))
        ends = ".", ".", ". ", "", "", " .", "!", "?", "...", ",", "\"", ";", ")"
        yield " ".join(words) + rng.choice(ends)


# Deliberately nasty; test_evaluate.py names those on which the two tokenizers differ.
NASTY = [
    "He's 5'10\" tall; she isn't, y'all!",
    "It’s a man’s world, isn’t it?",
    "Rock 'n' roll at 9 o'clock (p.m.)",
    "''Tis \"the\" 'dog'",
    "`quoted' ``twice'' and '''thrice'''",
    "“““curly””” ‘single’ „low“ «angle» ‹small›",
    "cannot, can not, can't, cant; CANNOT!",
    "the dogs' and James's and the 1980's and '80s",
    "wait.. what... no.... yes..... end",
    "What?!? No!!! Wow!?",
    "a - b -- c --- d ---- e ----- f",
    "black-and-white, -left, right- and -5 or +5",
    "$5.99, US$20, €5, £5, 5¢ and ¥500",
    "1/2, 3 1/2, 10/12/2013, 24/7, ½ and 1½",
    "10:30pm, 10:30 p.m., 5p.m. and 17h30",
    "call 555-1234 or (555) 555-1234 or 1 800 555 1234",
    "http://a.b/c?d=e&f=(g), www.dogs.com/a. x@y.org!",
    "@user likes #dogs #1 a@b and C++ or C#",
    "IMG_0123.JPG photo.jpg 12.png my_file.txt",
    "Mr. Smith, Ph.D., of St. Louis, U.S.A.",
    "no. 5, oh no. Fig. 3. a fig.",
    "the end., a dog; etc., and so on etc.",
    "stop.Then go.now,please;thanks:bye",
    "<b>bold</b> a<b and c>d <3 <br/> -> <-",
    "[a] {b} (c) ((d)) (e.) (5) (x_x)",
    "AT&T, R&B, a&b, M&M's, Q & A, A+B",
    "and/or his/her w/ w/o s/he a/b/c/d",
    "café naïve Zürich 日本語 привет हिन्दी",
    "a😀b 👍🏽 👨‍👩‍👧 ❤️ ☺ ★★ 1️⃣",
    "a\u00a0b\u2009c\u200bd\u00ade\ufefff",
    "5°C 20 °C. 45° 10m² H₂O 5×5 ±1 ™ © ®",
    "I'd've, 'em, 'til, gonna've, ain't-a, O'Brien's",
    ":) :-( ;) =D :/ ^_^ >:( XD :p:",
    "&amp; &lt;tag&gt; it&apos;s &quot;x&quot; caf&eacute; &#39;",
    "\\ | ~ ^ _ __ * ** % + = a_b a*b a|b a~b",
    "   ", "", ".", "!", "...", "A",
]


def stanford(texts):
    """The tokens of each text by the jar, without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    found = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    return [found[i][0].split(" ") if found[i][0] else [] for i in range(len(texts))]


def image_sets(n, seed):
    """(hypotheses, references): tokenized nonsense of n images with 1 to 7 references each, which
    shares words and word order often enough; some are empty, some repeat themselves."""
    rng = random.Random(seed)
    words = [f"w{min(int(rng.paretovariate(0.7)), 300)}" for _ in range(5000)]
    text = lambda low, high: [rng.choice(words) for _ in range(rng.randint(low, high))]
    hypotheses, references = [], []
    for _ in range(n):
        refs = [text(0 if rng.random() < 0.03 else 3, 14) for _ in range(rng.randint(1, 7))]
        known = rng.choice(refs)
        hypotheses.append(" ".join(rng.choice((
            known, known[:rng.randint(0, 9)], sorted(known), known + text(0, 5), known * 2,
            text(0, 12)))))
        references.append([" ".join(ref) for ref in refs])
    return hypotheses, references


def official(hypotheses, references):
    """pycocoevalcap's ([BLEU-1, ..., -4], ROUGE-L, CIDEr-D) and the same for every image (n, 4),
    (n,), (n,)."""
    import numpy as np
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    res, gts = {i: [h] for i, h in enumerate(hypotheses)}, dict(enumerate(references))
    b, bs = Bleu(4).compute_score(gts, res, verbose=0)
    (r, rs), (c, cs) = Rouge().compute_score(gts, res), Cider().compute_score(gts, res)
    return ([float(x) for x in b], float(r), float(c)), (np.array(bs).T, rs, cs)


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    texts = [*NASTY, *strings(500, seed=1)]
    lines = [json.dumps([text, tokens]) for text, tokens in zip(texts, stanford(texts))]
    (GOLDEN / "ptb.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
    sets = []
    for n, seed in ((1, 1), (2, 2), (60, 3), (120, 4)):
        hypotheses, references = image_sets(n, seed)
        (b, r, c), _ = official(hypotheses, references)
        sets.append(json.dumps({"n": n, "seed": seed, "bleu": b, "rouge_l": r, "cider_d": c,
                                "hypotheses": hypotheses, "references": references}))
    (GOLDEN / "scores.json").write_text("[\n" + ",\n".join(sets) + "\n]\n", "utf-8")
