"""Writes tests/golden/metrics: what the official caption scorers say, so that tests can compare without Java.

    pip install -r tests/requirements.txt && python tests/make_golden_metrics.py      (needs Java)

    ptb.json     strings and their tokens by Stanford's PTBTokenizer, through pycocoevalcap
    scores.json  tokenized captions with references, and pycocoevalcap's BLEU, ROUGE-L and CIDEr-D of them

The strings are caption-like: an ordinary sentence with one to three of the things that tokenizers trip over.
`strings` makes any number of them; test_metrics_parity.py compares thousands live.
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

GOLDEN = HERE / "golden" / "metrics"

NOUNS = (
    "man woman dog cat horse bus kitchen plate pizza street giraffe skateboard umbrella bicycle child baby "
    "boat bench laptop zebra cow tennis-player snowboarder truck motorcycle clock sandwich bathroom").split()
ADJECTIVES = "red small old wooden white brown busy large colorful empty yellow parked young striped snowy".split()
VERBS = (
    "sitting on|standing next to|riding|holding|looking at|walking past|lying under|playing with|eating|"
    "flying over|driving by|posing with|parked near").split("|")
NAMES = (
    "John Mary O'Neil McCoy Obama Jean-Luc Chris James Tess D'Arcy José Zoë Müller van-Gogh Lopez Hawai'i").split()
PLACES = (
    "London|New York|St. Louis|Washington D.C.|the U.S.|the U.K.|San José|Mt. Fuji|Main St.|5th Ave.|Tokyo").split("|")
BRANDS = (
    "Lay's McDonald's Ben&Jerry's AT&T H&M M&M's Dunkin' Levi's Wi-Fi iPhone X-Box 7-Eleven 7UP Coca-Cola "
    "Hershey's B&B R&B KFC IKEA Yahoo! YouTube Toys'R'Us L'Oreal Chick-fil-A Trader-Joe's Wendy's").split()
CONTRACTIONS = (
    "isn't don't can't won't couldn't doesn't aren't wasn't ain't it's he's she's that's there's what's who's "
    "let's I'm we're they're you're I've we've they'll you'll he'd they'd could've y'all o'clock ma'am 'tis "
    "cannot gonna wanna gotta gimme lemme dunno c'mon 'em 'cause 'til rock'n'roll s'mores should've").split()
COMPOUNDS = (
    "t-shirt black-and-white well-lit close-up half-eaten two-story x-ray 3-piece 10-year-old 18-wheeler "
    "multi-colored stop-sign side-by-side old-fashioned one-way 4x4 double-decker semi-truck 20-inch "
    "6-foot-tall pre-made sit-up jack-o-lantern merry-go-round hot-air f-16 u-turn man-made non-stop "
    "ready-to-eat").split()
SYMBOLS = (
    "& + = # @ * % / | ~ ^ _ < > \\ © ® ™ ° • ★ ♥ → × ½ ¼ ¾ … – — ‘ ’ “ ” « » ´ ` ¿ ¡ § ✓ ☺").split()
EMOJI = "😀 🐶 ❤️ 👍🏽 👨‍👩‍👧 🍕 🇺🇸 ☀️ 🎂🎉 😂😂".split()
FOREIGN = (
    "café naïve jalapeño piñata crème brûlée résumé über fiancée Zürich São Paulo Ångström smörgåsbord façade "
    "日本語 привет αβγ 한국어 mañana déjà vu").split()


def item(rng):
    """One thing that is hard to cut into tokens."""
    n, m = rng.randint(1, 12), rng.randint(2, 59)
    noun, name, other = rng.choice(NOUNS), rng.choice(NAMES), rng.choice(NOUNS)
    quotes = rng.choice(("\"\"", "''", "“”", "‘’", "``", "«»", "()", "[]", "{}", "<>"))
    kinds = (
        lambda: rng.choice(CONTRACTIONS), lambda: rng.choice(CONTRACTIONS).replace("'", "’"),
        lambda: rng.choice(CONTRACTIONS).capitalize(), lambda: rng.choice(CONTRACTIONS).upper(),
        lambda: f"{noun}'s {other}", lambda: f"{noun}s' {other}s", lambda: f"{name}’s {noun}",
        lambda: f"{name}' {noun}", lambda: rng.choice(COMPOUNDS), lambda: rng.choice(COMPOUNDS).title(),
        lambda: f"{noun}-{other}", lambda: f"{rng.choice(ADJECTIVES)}-{rng.choice(ADJECTIVES)}-{noun}",
        lambda: f"{noun} -{other}", lambda: f"{noun} - {other}", lambda: f"{noun}--{other}",
        lambda: f"{noun} -- {other}", lambda: f"{noun} — {other}", lambda: f"{n}",
        lambda: f"{n * 1000 + m:,} {noun}s", lambda: f"{n}.{m} {noun}s", lambda: f"-{n} degrees",
        lambda: f"{n}0%", lambda: f"{n}0 %", lambda: f"{n}{rng.choice(('st', 'nd', 'rd', 'th'))} {noun}",
        lambda: f"#{n}", lambda: f"No. {n}", lambda: f"no.{n}", lambda: f"{n}x{m}", lambda: f"{n} x {m}",
        lambda: f"{n}-{m}", lambda: f"{n}/{m}", lambda: f"{n} {rng.choice(('1/2', '3/4', '1/3'))} {noun}s",
        lambda: f"{n}½", lambda: f"1,{m}0.{n}5", lambda: f"{n}k", lambda: f"{n}mm", lambda: f"{n} mm.",
        lambda: f"${n}", lambda: f"${n}.{m:02}", lambda: f"$ {n}", lambda: f"US${n}", lambda: f"€{n}",
        lambda: f"£{n}.50", lambda: f"{m}¢", lambda: f"{n}$", lambda: f"${n}-${m}", lambda: f"¥{m}00",
        lambda: f"{m} cents", lambda: f"{n}:{m:02}", lambda: f"{n}:{m:02}pm", lambda: f"{n}:{m:02} p.m.",
        lambda: f"{n}am", lambda: f"{n} a.m.", lambda: f"{n}:{m:02}:{m:02}", lambda: f"{n} o'clock",
        lambda: f"{n} o’clock", lambda: f"{n} PM", lambda: f"{n}/{m}/20{n:02}", lambda: f"{n}-{m}-{n:02}",
        lambda: f"Jan. {n}, 20{n:02}", lambda: f"20{n:02}-{n:02}-{m:02}", lambda: f"the '{n}0s",
        lambda: f"the 19{n % 9 + 1}0s", lambda: f"the 19{n % 9 + 1}0's", lambda: f"'{m:02}",
        lambda: f"{n}'{m % 12}\"", lambda: f"{n}' {m % 12}\"", lambda: f"{n}’{m % 12}”", lambda: f"{n} ft.",
        lambda: f"{n}\"", lambda: f"{n}ft. {m % 12}in.", lambda: f"{n} in.", lambda: f"{n} lbs.",
        lambda: f"{n} oz.", lambda: f"{n} sq. ft.", lambda: f"Mr. {name}", lambda: f"Mrs. {name}",
        lambda: f"Dr. {name}", lambda: f"mr. {name}", lambda: f"{name} Jr.", lambda: f"J. K. {name}",
        lambda: f"J.K. {name}", lambda: f"{noun}s, {other}s, etc.", lambda: f"{noun} vs. {other}",
        lambda: f"{noun} vs {other}", lambda: f"{noun} (e.g. {other})", lambda: f"i.e. {noun}",
        lambda: f"{name} & Co.", lambda: f"{name} Inc.", lambda: rng.choice(PLACES),
        lambda: f"{rng.choice(PLACES)}, {name}", lambda: "U.S.A.", lambda: f"{quotes[0]}{noun}{quotes[1]}",
        lambda: f"{quotes[0]}{noun} {other}{quotes[1]}", lambda: f"{quotes[0]} {noun} {quotes[1]}",
        lambda: f"{quotes[0]}{name}'s {noun}{quotes[1]}", lambda: f"{quotes[0]}{noun}.{quotes[1]}",
        lambda: f"{noun}{quotes[0]}s{quotes[1]}", lambda: f"{quotes[0]}{n}{quotes[1]}",
        lambda: f"{noun}... {other}", lambda: f"{noun}...{other}", lambda: f"{noun}.. {other}",
        lambda: f"{noun} . . . {other}", lambda: f"{noun}…{other}", lambda: f"{noun}!!!", lambda: f"{noun}?!",
        lambda: f"{noun}!? {other}", lambda: "wow!!", lambda: f"{noun},{other}", lambda: f"{noun} ,{other}",
        lambda: f"{noun};{other}", lambda: f"{noun}:{other}", lambda: f"{noun}.{other.capitalize()}",
        lambda: f"{noun}.{other}", lambda: f"{noun}. {other.capitalize()}", lambda: f"{noun}/{other}",
        lambda: f"{noun}/{other}/{noun}", lambda: "and/or", lambda: f"w/ {noun}", lambda: f"w/{noun}",
        lambda: f"{noun} / {other}", lambda: "his/her", lambda: "24/7", lambda: f"{n}mph", lambda: f"{n} km/h",
        lambda: f"www.{noun}.com", lambda: f"http://www.{noun}.com/{other}/{n}.html",
        lambda: f"{noun}{other}.com", lambda: f"https://{noun}.org/{other}?id={n}",
        lambda: f"flickr.com/photos/{n}", lambda: f"{noun}@{other}.com", lambda: f"@{noun}", lambda: f"#{noun}",
        lambda: f"#{noun}{n}", lambda: f"{noun}{n}.jpg", lambda: f"IMG_{m}{m}.JPG", lambda: f"{n}.png",
        lambda: f"{rng.choice(NOUNS)}_{other}", lambda: f"{noun}{m}", lambda: f"{m}{noun}",
        lambda: rng.choice(BRANDS), lambda: f"{rng.choice(BRANDS)} {noun}", lambda: f"{rng.choice(BRANDS)}'s",
        lambda: rng.choice(SYMBOLS), lambda: f"{noun}{rng.choice(SYMBOLS)}{other}",
        lambda: f"{rng.choice(SYMBOLS)}{noun}", lambda: f"{noun}{rng.choice(SYMBOLS)}",
        lambda: f"{noun} {rng.choice(SYMBOLS)} {other}", lambda: rng.choice(EMOJI),
        lambda: f"{noun}{rng.choice(EMOJI)}", lambda: f"{rng.choice(EMOJI)} {noun}", lambda: rng.choice(FOREIGN),
        lambda: f"{rng.choice(FOREIGN)}'s", lambda: rng.choice(FOREIGN).upper(), lambda: f"rock 'n' roll",
        lambda: "rock 'n roll", lambda: "fish n' chips", lambda: "mac 'n' cheese", lambda: "rock ’n’ roll",
        lambda: rng.choice((":)", ":-)", ";)", ":(", "<3", ":D", ":P", "^_^", "XD")), lambda: noun.upper(),
        lambda: f"{noun.upper()}'S", lambda: f"{noun.upper()} {other.upper()}", lambda: noun.title(),
        lambda: f"{n}° angle", lambda: f"{m}°F", lambda: f"{m} °C", lambda: f"&amp; {noun}",
        lambda: f"{noun} &lt; {other}", lambda: f"{m}{m}-{m}{m}{n}", lambda: f"({m}{n}) 555-{m}{m}",
        lambda: f"{m} {m} {m}", lambda: f"<b>{noun}</b>", lambda: f"(a {noun})", lambda: f"(the {noun}'s)",
        lambda: f"[{noun}]", lambda: f"({n})", lambda: f"{n})", lambda: f"{n}.", lambda: f"{noun}   {other}",
        lambda: f"{noun} \t{other}", lambda: f"{noun}\u00a0{other}", lambda: f"{noun} ,", lambda: f"a{noun}.",
    )
    return rng.choice(kinds)()


def strings(n, seed):
    """n caption-like strings."""
    rng = random.Random(seed)
    for _ in range(n):
        words = [rng.choice(("A", "a", "The", "There is a", "two", "An", "this is a")), rng.choice(ADJECTIVES),
                 rng.choice(NOUNS), rng.choice(VERBS), rng.choice(("a", "the", "some")), rng.choice(NOUNS)]
        for _ in range(rng.choice((1, 1, 2, 2, 3))):
            words.insert(rng.randint(0, len(words)), item(rng))
        yield " ".join(words) + rng.choice((".", ".", ". ", "", "", " .", "!", "?", "...", ",", "\"", ";", ")"))


# Deliberately nasty. test_evaluate.py names those on which the two tokenizers differ.
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
    """(hypotheses, references): tokenized nonsense of n images with 1 to 7 references each, that shares words and
    word order often enough; some are empty, some repeat themselves."""
    rng = random.Random(seed)
    words = [f"w{min(int(rng.paretovariate(0.7)), 300)}" for _ in range(5000)]
    text = lambda low, high: [rng.choice(words) for _ in range(rng.randint(low, high))]
    hypotheses, references = [], []
    for _ in range(n):
        refs = [text(0 if rng.random() < 0.03 else 3, 14) for _ in range(rng.randint(1, 7))]
        known = rng.choice(refs)
        hypotheses.append(" ".join(rng.choice((known, known[:rng.randint(0, 9)], sorted(known), known + text(0, 5),
                                               known * 2, text(0, 12)))))
        references.append([" ".join(ref) for ref in refs])
    return hypotheses, references


def official(hypotheses, references):
    """pycocoevalcap's ([BLEU-1, ..., -4], ROUGE-L, CIDEr-D) and the same for every image (n, 4), (n,), (n,)."""
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
