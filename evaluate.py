"""How good are captions and answers? BLEU, ROUGE-L, CIDEr-D and VQA accuracy as the papers measure them, and exact scenes.

    python evaluate.py                                        the newest run in out/, on its dataset's test
    python evaluate.py --ckpt out/a out/b --dataset coco --split test --json scores.json --sheet sheet.png
    python evaluate.py --captions scores-a.json --dataset coco      a results file, from any captioner
    python evaluate.py --official ...                         the official Java tools, with METEOR and SPICE
    python evaluate.py --ckpt out/dvp --dataset vqa2 --split test --json answers.json     for the challenge

  hypothesis  "A dog's ball."     references  "The dog has a ball", ...
        |                               |
        +----------- tokenize ----------+      "a dog 's ball"     lower case, no punctuation
        |                               |
        +---> n-grams, 1 to 4 long <----+      BLEU, CIDEr-D
        +---> longest common part  <----+      ROUGE-L

It prints one table with a row a checkpoint. --json scores.json writes the numbers, and beside it for every
row scores-NAME.json with the captions alone, in COCO's results format, which the official tools read:

    [{"image_id": 42, "caption": "a dog on a sofa"}, ...]

or with the answers, in that of the VQA challenge: [{"question_id": 42, "answer": "a dog"}, ...]. Answers are
not scored where the split has none (VQA's test).

The three metrics follow pycocoevalcap, the code behind the papers' tables, with its quirks; they are marked
below. differs: it calls a tokenizer in Java, this file has its own. The two disagree on rare strings only
(the README says how often), but scores to the last digit need --official.

Exact-scene accuracy is the share of images of the shapes world whose caption names every object with size,
colour and shape, and their relation, and says nothing wrong (data/shapes/world.py, is_exact).
"""

import contextlib
import json
import math
import re
import shutil
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch

from lib.cli import UserError, opt, parse, run
from clip_vit import open_image, preprocess
from data.common import find_dataset, load_split
from lib.files import progress, read_json, replacing
from data.shapes import world
from lib.pictures import captioned
from model import SeeGPT, answered, answers_to, condition, need_room, origin_of, task_of

SHEET = 24  # pictures on --sheet: the better half of them the best, the others the worst
RESAMPLES = 1000  # of the bootstrap
DOMAINS = ("in-domain", "near-domain", "out-domain")  # of nocaps, in the order of its papers


@dataclass
class Config:
    ckpt: list = opt([], "runs' folders or checkpoint files, a row each; empty: the newest run in out/")
    captions: list = opt([], "results files in COCO's format to score instead, a row each; no model is needed")
    dataset: str = opt("", "a dataset's name or folder; empty: the one that the checkpoint was trained on")
    split: str = opt("test", "which of its splits (nocaps has only val)")
    images: int = opt(0, "only the first so many images; 0: all")
    beam: int = opt(5, "beams of the search for a caption; 1 takes the likeliest token each time (papers: 5)")
    length_penalty: float = opt(0.0, "a beam's score is its log-probability / tokens ** this; above 0: longer")
    max_new_tokens: int = opt(30, "longest caption in tokens")
    prompt: str = opt("", "how the text begins (no space at its end); not part of the caption that is scored")
    batch: int = opt(64, "images at a time")
    json: str = opt("", "write the scores to this file, and the captions beside it")
    sheet: str = opt("", f"PNG file for a look: the {SHEET // 2} best and the {SHEET // 2} worst by CIDEr-D")
    official: bool = opt(False, "score with pycocoevalcap and Java; adds METEOR and SPICE")
    device: str = opt("auto", "auto, cpu, cuda, mps")
    dtype: str = opt("float32", "of matrix products and frozen weights", choices=("float32", "bfloat16", "float16"))
    gpt2: str = opt("", "where the frozen GPT-2 lies now, if not where it lay in training")
    clip: str = opt("", "where the frozen CLIP lies now, if not where it lay in training")


# ---------------------------------------------------------------------------- tokens

# The pieces that the rules below are made of. A letter is what Python calls one, without fractions and powers,
# which it counts among them, and with the marks that stand above or below a letter.
MARKS = "".join(c for c in map(chr, range(0x300, 0x1000)) if unicodedata.category(c)[0] == "M")
LETTER = ("(?:[^\\W\\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2189\u2460-\u24ff"
          f"\u2776-\u2793\U00010000-\U0010ffff]|[{MARKS}])")
ALNUM = rf"(?:{LETTER}|\d)"
APOS = "(?:['\u2019]|&apos;)"
ANYAPOS = "(?:['\u2018\u2019`]|&apos;)"
HYPHEN = "[-\u2010\u2011]"
NUMBER = r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)"
WORD = f"{LETTER}{ALNUM}*(?:[.!?]{LETTER}{ALNUM}*)*"  # pitfall: with "stop.Then" in it, as one token
PART = f"(?:[dDoOlL]{ANYAPOS}{ALNUM})?{ALNUM}+"  # o'clock, d'or
HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:{HYPHEN}(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+"
SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
VERB = "(?i:[msd]|re|ve|ll)"  # I'm, it's, he'd, we're, I've, you'll
ADDRESS = "[^\\s\"<>|(){}.!?,"  # the beginning of a class of characters
ABBREVIATIONS = (
    "adj adm adv al ala apr ariz alex ass[nt] assoc attys? aug ave bancorp bhd bldg blvd brig bros calif capt "
    "cf cie co co?mdr col colo conn corp cos cpl ct dak dec dept det drs? elec ens esq est etc ext feb fla fri "
    "ft ga gen govs? hon inc ind insp intl invt jan jos jr jul jun kans? ky lieut lt ltd maj mar md messrs mfg "
    "mich minn mlle mme mon? mont mrs? ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc p?pt[ey]s? "
    "pres profs? pvt rd reps? rev rt sens? sept? seq sfc sgt spc sq sr ste? supts? sys tel tenn thu thurs "
    "treas tues? univ va vs vt wed wisc? wm wyo")
STATES = "A(?:rk|z)|Del|Ill|La|M(?:a|i)ss|Ore|Pa|Tex|Wash"  # only with a capital: "a wash." is none

# At every place the longest rule wins, the first among equals. With a group, the token is the group: what
# follows it must be there, counts towards the length, and is read again.
RULES = [re.compile(rule) for rule in (
    f"({WORD})[nN]{ANYAPOS}[tT]|[nN]{ANYAPOS}[tT]",                           # do | n't
    f"({WORD}){APOS}{VERB}(?:[^A-Za-z]|$)",                                   # dog | 's
    f"({APOS}{VERB})(?:[^A-Za-z]|$)",
    "(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na|('t)(?:is|was))",   # read again: not, na, ...
    WORD,
    f"{PART}(?:(?:{HYPHEN}|_){PART})*",                                       # t-shirt, 10-year-old, 3d, 1950s
    HYPHENED,                                                                 # 1.5-inch, u.s.-made
    rf"{SLASHED}(?:\\?/{SLASHED}){{1,2}}",                                    # and/or, 24/7
    "[A-Z]+(?:[+&][A-Z]+)+",                                                  # AT&T
    "(?i:c[+][+]|c#|s&p-500|s&ls|pro-|anti-|cap['\u2019]n|c['\u2019]est|c'mon|e'er|nat'l|li'l|ev'ry|s'mores|"
    "-[lr][rcs]b-)",
    f"{APOS}[nN]{APOS}?|[lLdDjJ]{APOS}|[yY]{APOS}(?={LETTER})",               # rock | 'n' | roll, y' | all
    f"(?i:(?:dunkin|somethin|ol){APOS}|{APOS}(?:em|cause|till?))",
    rf"{APOS}[2-9]0[sS]|({APOS}\d\d)(?:\s|$)",                                # '50s, '08
    f"[A-HJ-XZn]{APOS}{LETTER}{{2,}}|[A-Za-z]+[aeiouyAEIOUY]{APOS}[aeiouA-Z][A-Za-z]*",  # D'Angelo, Hawai'i
    r"(')[A-Za-z]\S",                                                         # an opening quote: ' | hello
    f"{APOS}{VERB}",
    r"(?i:https?)://[^\s\"<>|()]+[^\s\"<>|().!?{},-]",
    rf"(?:www\.(?:{ADDRESS}]+\.)+[A-Za-z]{{2,4}}|(?:{ADDRESS}`'$\--_]+\.)+(?:com|net|org|edu))"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|().!?{},-])?",
    r"[A-Za-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+",      # me@home.org
    rf"@[A-Za-z_][A-Za-z_0-9]*|#{LETTER}+",                                   # @user, #tag
    NUMBER,
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",                                         # 12/25/2013
    r"(?:\d{1,4}[-\u00a0 ])?\d{1,4}(?:\\?/|\u2044)\d{1,4}",                   # 1/2, and "2 1/2" as one token
    r"(?:\(\d{2,3}\)[\u00a0 ]?|(?:\+\+?)?(?:\d{2,4}[-\u00a0 ])?\d{2,4}[-\u00a0 ])\d{3,4}[-\u00a0 ]?\d{3,5}"
    r"|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",                    # telephone numbers
    r"[A-Z]*\$|[\u00a2-\u00a4\u20ac]",
    rf"(?i:(?:ed|ph)\.d|{'|'.join(ABBREVIATIONS.split())})\.|(?:{STATES}|{STATES.upper()})\.",
    r"[A-Za-z](?:\.[A-Za-z])*\.",                                             # a.m., U.S., J.
    r"((?i:art|ca|figs?|nos?|op|pp|prop)\.) ?\d",                             # no. 5, but: oh no | .
    rf"({ALNUM}+(?:\.{ALNUM}+)*\.(?i:bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|"
    r"pdf|php|pl|png|pptx?|ps|py|sql|tar|txt|wav|x|xml|zip))(?:[\s.?!,]|$)",      # 1.jpg
    rf"((?:{WORD}|{HYPHENED}|{NUMBER})\.)[,;:]",                              # pitfall: "a dog., a cat"
    rf"</?[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *['\"][^'\"]*['\"])?)* */? *>|<[!?][A-Za-z-][^>]*>",
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?:[^A-Za-z]|$)",                  # :-)
    r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",  # ^_^
    "&(?:lt|gt|quot|apos|nbsp|mdash|ndash|#[0-9]+);",
    r"[?!]+|-+|\.{3,5}|(?:\.[\u00a0 ]){2,4}\.|\*+|@+|#+|_+|<<|>>|''|``",
    # Any other sign is a token of its own; what is not in here (emoji, say) vanishes.
    "[!-~\u0e3f\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u2013-\u2023\u2026"
    "\u2030-\u203b\u203e-\u2042\u2070-\u208e\u2100-\u214f\u2153-\u215e\u2190-\u2bff"
    "\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]",
)]

# Tokens that come out in another form. What stands for nothing here is dropped in the end.
NORMAL = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&lt;": "<", "&gt;": ">",
          "\u00a3": "#", "\u20ac": "$", "\u00a4": "$", "\u00a2": "cents",
          "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3", "n\u2018t": "n`t",
          **{a + end: "'" + end for a in ("\u2019", "&apos;") for end in ("s", "m", "d", "re", "ve", "ll")},
          **{f"n{a}t": "n't" for a in ("\u2019", "&apos;")}}
DROPPED = {*"'\"`.?!,:;-\u2013\u2014\u2015\u2018\u2019\u201b\u201c\u201d\u00ab\u00bb\u2039\u203a\u2026",
           "''", "``", "--", "---", "----", "&quot;", "&apos;", "&nbsp;", "&mdash;", "&ndash;"}
PLAIN = re.compile("(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna) )[A-Za-z]+(?= )")


def tokenize(text):
    """A caption as the list of tokens that BLEU, ROUGE-L and CIDEr-D compare.

    Meant to give what Stanford's PTBTokenizer 3.4.1 gives with -preserveLines -lowerCase, after
    pycocoevalcap has dropped the punctuation; written from what it does to thousands of strings.
    pitfall: brackets become words (-lrb-), "!!!" and "?!" stay, while "!" and "?" go.
    """
    # A soft hyphen is nowhere; entities occur in captions that were copied from web pages.
    text, i, tokens = text.replace("\n", " ").replace("\u00ad", "").replace("&amp;", "&"), 0, []
    while i < len(text):
        match = PLAIN.match(text, i) or max((m for rule in RULES if (m := rule.match(text, i))),
                                            key=lambda m: m.end(), default=None)
        if not match:  # white space, or a character that the Stanford tokenizer does not know
            i += 1
            continue
        token = match[match.lastindex or 0]
        i += len(token)
        # pitfall: the space in "2 1/2" becomes one that does not break; str.split() splits there still.
        token = token.lower().replace(" ", "\u00a0")
        if token not in DROPPED and token.strip(".\u00a0"):
            tokens.append(NORMAL.get(token) or token.replace("(", "-lrb-").replace(")", "-rrb-"))
    return tokens


# ---------------------------------------------------------------------------- metrics

def prepare(hypotheses, references, tokenized):
    """Both as strings with one space between tokens. UserError unless there is one hypothesis and at
    least one reference an image."""
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses):,} captions for {len(references):,} images; one each is needed")
    if not hypotheses or not all(references):
        raise UserError("an image without a reference caption cannot be scored" if hypotheses
                        else "there is no caption to score")
    if tokenized:
        return hypotheses, references
    joined = lambda text: " ".join(tokenize(text))
    return [joined(h) for h in hypotheses], [[joined(ref) for ref in refs] for refs in references]


def ngrams(text):
    """{n-gram: how often} for n = 1 to 4 together."""
    words = text.split()
    return Counter(tuple(words[i:i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def bleu_counts(hypotheses, references):
    """What BLEU needs of each image (n, 10): matches and totals of 1- to 4-grams, both lengths.

    An n-gram matches as often as it occurs in that reference where it occurs most. The reference
    length is that closest to the hypothesis, the shorter of two equally close ones.
    """
    rows = []
    for hypothesis, refs in zip(hypotheses, references):
        most, matches, length = Counter(), [0] * 4, len(hypothesis.split())
        for ref in refs:
            most |= ngrams(ref)
        for gram, count in ngrams(hypothesis).items():
            matches[len(gram) - 1] += min(count, most[gram])
        _, closest = min((abs(len(ref.split()) - length), len(ref.split())) for ref in refs)
        rows.append([*matches, *(max(0, length - n) for n in range(4)), length, closest])
    return np.array(rows, float)


def bleu_scores(counts):
    """BLEU-1 to -4 (..., 4) of counts (..., 10), of one image or summed over many."""
    matches, totals, length, closest = counts[..., :4], counts[..., 4:8], counts[..., 8:9], counts[..., 9:]
    # The two tiny numbers, which spare a division by zero, are pycocoevalcap's.
    precision = np.cumprod((matches + 1e-15) / (totals + 1e-9), -1) ** (1 / np.arange(1, 5))
    ratio = (length + 1e-15) / (closest + 1e-9)
    return precision * np.exp(1 - 1 / np.minimum(ratio, 1))  # too short a text is punished


def bleu(hypotheses, references, tokenized=False, per_image=False):
    """[BLEU-1, ..., BLEU-4] in 0..1 of one hypothesis and a list of references an image (Papineni et
    al. 2002); per_image: also that of every image (n, 4). tokenized: tokens are split at spaces only.

    BLEU-4 is the geometric mean of four precisions over the corpus. pitfall: the mean of the images'
    own BLEU-4 is another, much smaller number.
    """
    counts = bleu_counts(*prepare(hypotheses, references, tokenized))
    scores = bleu_scores(counts.sum(0)).tolist()
    return (scores, bleu_scores(counts)) if per_image else scores


def common(a, b):
    """Length of the longest common subsequence of two lists."""
    row = [0] * (len(b) + 1)  # row[j]: with the words of a so far and the first j of b
    for x in a:
        corner = 0
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], corner + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(hypotheses, references, tokenized=False, per_image=False):
    """ROUGE-L in 0..1 (Lin 2004), the mean over images; arguments as bleu; per_image: also (n,).

    F of precision and recall with beta 1.2. pitfall: both are the best over the references, each by
    itself, so they may come from two of them. An empty caption counts as one empty token.
    """
    scores, b2 = [], 1.2 ** 2
    for hypothesis, refs in zip(*prepare(hypotheses, references, tokenized)):
        words, refs = hypothesis.split(" "), [ref.split(" ") for ref in refs]
        lengths = [common(words, ref) for ref in refs]
        p, r = max(lengths) / len(words), max(n / len(ref) for n, ref in zip(lengths, refs))
        scores.append((1 + b2) * p * r / (r + b2 * p) if p and r else 0.0)
    return (float(np.mean(scores)), np.array(scores)) if per_image else float(np.mean(scores))


def cider_d(hypotheses, references, tokenized=False, per_image=False):
    """CIDEr-D (Vedantam et al. 2015), the mean over images, 1.20 for what papers print as 120; arguments as bleu.

    The cosine of tf-idf vectors of n-grams, where what the hypothesis repeats is clipped and another
    length is punished; a mean over n = 1 to 4 and over the references, times 10. pitfall: the document
    frequencies are those of the references given here. So a part of a split cannot be compared with all
    of it, and the score of a single image is 0.
    """
    hypotheses, references = prepare(hypotheses, references, tokenized)
    references = [[ngrams(ref) for ref in refs] for refs in references]
    df = Counter(gram for refs in references for gram in set().union(*refs))  # in how many images
    log_n = math.log(len(references))

    def vector(counts):
        """Weights {n-gram: tf * idf}, their norm for each n, and the length counted in bigrams."""
        weights = {gram: tf * (log_n - math.log(max(1, df[gram]))) for gram, tf in counts.items()}
        squares = [0.0] * 4
        for gram, w in weights.items():
            squares[len(gram) - 1] += w * w
        return weights, [math.sqrt(s) for s in squares], sum(tf for gram, tf in counts.items() if len(gram) == 2)

    scores = []
    for hypothesis, refs in zip(hypotheses, references):
        hyp, hyp_norm, hyp_length = vector(ngrams(hypothesis))
        score = 0.0
        for ref, ref_norm, ref_length in map(vector, refs):
            dot = [0.0] * 4
            for gram, w in hyp.items():
                if gram in ref:
                    dot[len(gram) - 1] += min(w, ref[gram]) * ref[gram]
            cosines = sum(d / (h * r) for d, h, r in zip(dot, hyp_norm, ref_norm) if h and r)
            score += cosines / 4 * math.exp(-(hyp_length - ref_length) ** 2 / (2 * 6 ** 2))
        scores.append(10 * score / len(refs))
    return (float(np.mean(scores)), np.array(scores)) if per_image else float(np.mean(scores))


def bootstrap(counts, means, resamples=RESAMPLES, seed=1337):
    """{metric: (score, low, high)} x 100 with the interval that holds the middle 95 % of resamples.

    counts (n, 10) as bleu_counts makes them, or (n, 0) for no BLEU; means {metric: (values (n,), weights (n,))}, whose score
    is sum(values * weights) / sum(weights). A resample draws n of the n images, with repetition, and
    scores them: how much would the number move with other images like these? (Efron 1979.) Every score
    is a function of sums over images, so a resample is one product of how often each image was drawn
    with the table of all columns. CIDEr-D keeps the document frequencies of the images that there are.
    The seed is fixed: the same captions give the same interval.
    """
    with_bleu = counts.shape[1]
    columns = [counts.T, *(part for v, w in means.values() for part in ((v * w)[None], w[None]))]
    columns = np.concatenate(columns).T  # (n, columns)

    def scores(sums):  # (..., columns) -> (..., metrics)
        ratios = sums[..., with_bleu::2] / np.maximum(sums[..., with_bleu + 1::2], 1e-9)
        return 100 * (np.concatenate([bleu_scores(sums[..., :10]), ratios], -1) if with_bleu else ratios)

    rng, n = np.random.default_rng(seed), len(columns)
    drawn = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) @ columns for _ in range(resamples)])
    low, high = np.percentile(scores(drawn), (2.5, 97.5), axis=0)
    names = [f"BLEU-{k}" for k in range(1, 5) if with_bleu] + list(means)
    return dict(zip(names, zip(scores(columns.sum(0)).tolist(), low.tolist(), high.tolist())))


# ---------------------------------------------------------------------------- VQA accuracy

PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"  # no apostrophe, no colon; the period has a rule of its own
COMMA = re.compile(r"[0-9],[0-9]")
PERIOD = re.compile(r"\.(?![0-9])")
COUNTED = {"none": "0"} | {word: str(n) for n, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}
# {"dont": "don't", ...}: each of these words without one of its apostrophes. The three more are the original's:
# one is the wrong way round, two change nothing. pitfall: words with a capital never match, the text has none.
CONTRACTIONS = {word[:i] + word[i + 1:]: word for word in """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've""".split() for i, c in enumerate(word) if c == "'"}
CONTRACTIONS |= {"somebody'd": "somebodyd", "let's": "let's", "she's": "she's"}


def one_line(text):
    """The text without newlines and tabs, and without space at its ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise_answer(text):
    """An answer (str) in the form in which VQA compares answers (str): no punctuation, lower case, digits for
    number words, no articles, apostrophes where they were left out. "A dog, two cats!" -> "dog 2 cats".

    Follows vqaEval.py of GT-Vision-Lab/VQA (commit a013f00), with its quirks. pitfall: an answer can lose
    everything ("the" -> ""), and "none" is "0".
    """
    text = plain = one_line(text)
    comma = COMMA.search(text)
    for mark in PUNCTUATION:
        if mark in text:
            # pitfall: one mark next to a space decides for all of its kind ("x-ray - no" -> "xray no"), and one
            # comma between digits for every mark: "1,000/day" -> "1000day", but "10/day" -> "10 day".
            gone = comma or f"{mark} " in text or f" {mark}" in text
            plain = plain.replace(mark, "" if gone else " ")
    # pitfall: the original means to keep a period after a digit, but looks only at what follows: "5." -> "5",
    # while ".5" stays. It also passes a flag whose value is 32 where the number of replacements belongs.
    plain = PERIOD.sub("", plain, count=32)
    words = [COUNTED.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(answer, ten_answers):
    """VQA accuracy in 0..1 (Antol et al. 2015) of an answer (str) by those of ten people (list of str).

    Three who say the same make an answer right: min(1, matches / 3), a mean over the ten ways to leave one of
    them out. 0 to 4 matches give 0, 0.3, 0.6, 0.9, 1. pitfall: min(1, matches / 3) of all ten is another number.
    pitfall: where the ten agree to the letter nothing is normalised, so "Yes." is wrong if all say "yes".
    """
    answer, truths = one_line(answer), [one_line(truth) for truth in ten_answers]
    if len(set(truths)) > 1:
        normal = {text: normalise_answer(text) for text in {answer, *truths}}
        answer, truths = normal[answer], [normal[truth] for truth in truths]
    matches = truths.count(answer)
    return sum(min(1, (matches - (truth == answer)) / 3) for truth in truths) / len(truths)


# ---------------------------------------------------------------------------- boxes

def iou(a, b, inclusive=False):
    """Intersection over union of two boxes [x, y, w, h]. inclusive: w and h are 1 more, as code of MAttNet's time has it,
    where a box ends with its last pixel and not behind it."""
    more = 1 if inclusive else 0
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) + more
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) + more
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] + more) * (a[3] + more) + (b[2] + more) * (b[3] + more) - w * h)


# ---------------------------------------------------------------------------- the official tools

def find_official():
    """UserError unless pycocoevalcap and Java are there."""
    try:
        import pycocoevalcap.eval  # noqa: F401
    except ImportError as e:
        raise UserError(f"--official: {e}; pip install pycocoevalcap pycocotools (104 MB)") from e
    if not shutil.which("java"):
        raise UserError("--official: no java on the PATH; install a Java runtime (8 or newer), for example "
                        "with apt install default-jre-headless")


def official(hypotheses, references, extra=True):
    """What pycocoevalcap says: hypotheses and references tokenized by Stanford's tokenizer, {metric: score}
    and {metric: per image (n,)}. extra: with METEOR and SPICE; one that fails is said and left out."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.spice.spice import Spice
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # pitfall: it writes one caption a line, and some characters other than \n also end a line in Java.
    as_lines = lambda texts: [{"caption": " ".join(text.split())} for text in texts]
    res = PTBTokenizer().tokenize({i: as_lines([h]) for i, h in enumerate(hypotheses)})
    gts = PTBTokenizer().tokenize({i: as_lines(refs) for i, refs in enumerate(references)})
    scores, per_image = {}, {}
    for k, score in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0], 1):
        scores[f"BLEU-{k}"] = score
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr-D", Cider())):
        scores[name], per_image[name] = scorer.compute_score(gts, res)
    for name, tool in (("METEOR", Meteor), ("SPICE", Spice)) if extra else ():
        scorer = None
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
                scorer = tool()
                scores[name], found = scorer.compute_score(gts, res)
            if name == "SPICE":  # METEOR's is no mean over images, so there is nothing to resample
                per_image[name] = np.array([x["All"]["f"] for x in found])
        except Exception as e:  # SPICE downloads 700 MB when first used, and both are other programs
            say(f"{name} left out: {type(e).__name__}: {' '.join(str(e).split())[:150]}")
            if lock := getattr(scorer, "lock", None):  # else METEOR's destructor waits for it for ever
                lock.locked() and lock.release()
    return [res[i][0] for i in range(len(res))], [gts[i] for i in range(len(gts))], scores, per_image


# ---------------------------------------------------------------------------- captions and their scores

def features(model, items, device, batch=64):
    """Feats (n, N, D) of the items' images, in memory. UserError for an image that cannot be read."""
    load = lambda item: preprocess(open_image(item["image"]), model.vit.image_size)
    with ThreadPool() as pool, torch.no_grad():  # decoding JPEGs takes longer than a small ViT
        return torch.cat([model.see(torch.stack(pool.map(load, items[i:i + batch])).to(device))
                          for i in range(0, len(items), batch)])


def caption(model, items, config, device, autocast, label="captions"):
    """One caption an item, a list of str."""
    texts, show = [], progress(label, len(items))
    for i in range(0, len(items), config.batch):
        with autocast:
            feats = features(model, items[i:i + config.batch], device)
            texts += model.generate(feats, prompt=config.prompt, beam=config.beam,
                                    max_new_tokens=config.max_new_tokens, length_penalty=config.length_penalty)
        show(len(texts))
    return texts


def answer(model, items, config, device, autocast, label="answers"):
    """One answer an item, a list of str: chosen, or written greedily. An image is encoded once for its questions."""
    if model.method.needs_image and any(item["image"] is None for item in items):
        raise UserError("some items have no image, which this model cannot do without; dvp can")
    need_room(model.gpt2, map(condition, items), 0 if model.method.answers else config.max_new_tokens)
    texts, show = [None] * len(items), progress(label, len(items))
    # Questions on one image one after another, those without one at the end.
    order = sorted(range(len(items)), key=lambda i: (items[i]["image"] is None, str(items[i]["image"])))
    with_image, done = sum(item["image"] is not None for item in items), 0
    for part in (order[:with_image], order[with_image:]):
        for at in range(0, len(part), config.batch):
            numbers = part[at:at + config.batch]
            prompts, first = [condition(items[i]) for i in numbers], {}  # image -> the first question on it
            for i in numbers:
                first.setdefault(items[i]["image"], i)
            with autocast:
                feats = None
                if items[numbers[0]]["image"] is not None:
                    place = {image: n for n, image in enumerate(first)}
                    feats = features(model, [items[i] for i in first.values()], device)
                    feats = feats[torch.tensor([place[items[i]["image"]] for i in numbers], device=device)]
                found = ([best[0][0] for best in model.choose(feats, prompts)] if model.method.answers else
                         model.generate(feats, prompts, beam=1, max_new_tokens=config.max_new_tokens))
            for i, text in zip(numbers, found):
                texts[i] = text
            done += len(numbers)
            show(done)
    return texts


def score_answers(answers, items):
    """({metric: (score, low, high)} x 100, how right every answer is (n,)); ({}, None) unless every item has one to compare with.

    Where several answers are known but not the ten people's, only the most frequent one is right.
    """
    if not all(map(answered, items)):
        return {}, None
    right = []
    for text, item in zip(answers, items):
        if item.get("raw_answers"):
            right.append(vqa_accuracy(text, item["raw_answers"]))
        elif "choices" in item:  # "B", "B. because ..." or "(B) a hill", but not "Because" or "A hill"
            letter = re.fullmatch(r"\(?([A-Z])([.)].*)?", text.strip(), re.DOTALL)
            right.append(float(bool(letter) and letter[1] in item["answers"]))
        else:
            counts = answers_to(item)
            right.append(float(counts.get(text.strip()) == max(counts.values())))
    right = np.array(right)
    means = {"accuracy": (right, np.ones(len(items)))}
    sort = np.array([kind_of(item) for item in items])
    for kind in dict.fromkeys(sorted(sort.tolist())) if len(set(sort)) > 1 else ():
        means[kind] = (right, 1.0 * (sort == kind))
    return bootstrap(np.zeros((len(items), 0)), means), right


def kind_of(item):
    """"yes or no", "other", or the label of a hypothesis: accuracies that are worth a column of their own."""
    if "label" in item:
        return item["label"]
    if "choices" in item:
        return "without an image" if item["image"] is None else "with an image"
    return "yes or no" if max(item["answers"], key=item["answers"].get, default="") in ("yes", "no") else "other"


def exact(captions, scenes):
    """Share of the captions that are exact, in all and for scenes of one and of two objects."""
    columns = exact_columns(captions, scenes)
    return {name: float((v * w).sum() / max(1, w.sum())) for name, (v, w) in columns.items()}


def exact_columns(captions, scenes):
    """{which scenes: (right (n,), whether it is such a scene (n,))}, in 0 and 1."""
    right = np.array([world.is_exact(c, s) for c, s in zip(captions, scenes)], float)
    objects = np.array([len(s) for s in scenes])
    return {"all": (right, np.ones(len(right))), "one object": (right, 1.0 * (objects == 1)),
            "two objects": (right, 1.0 * (objects == 2))}


def scenes_of(items):
    """The scenes of a dataset of the shapes world, None for any other."""
    try:
        return [world.from_json(item["scene"]) for item in items]
    except (KeyError, TypeError):
        return None


def score(captions, items, use_official=False, domains=True):
    """({metric: (score, low, high)} x 100, CIDEr-D of every image (n,)) for one caption an item."""
    references, theirs, per_image = [item["captions"] for item in items], {}, {}
    if use_official:
        hyps, refs, theirs, per_image = official(captions, references, extra=domains)
    else:
        hyps, refs = prepare(captions, references, tokenized=False)
    cider = cider_d(hyps, refs, True, per_image=True)[1]
    means = {"ROUGE-L": rouge_l(hyps, refs, True, per_image=True)[1], "CIDEr-D": cider}
    means = {name: (values, np.ones(len(items))) for name, values in (means | per_image).items()}
    if scenes := scenes_of(items):
        columns = exact_columns(captions, scenes)
        means |= {"exact" if name == "all" else f"exact, {name}": columns[name] for name in columns}
        named = np.array([world.names_all(c, s) for c, s in zip(captions, scenes)], float)
        means["objects named"] = (named, np.ones(len(named)))
    scores = bootstrap(bleu_counts(hyps, refs), means)
    # Their own number stands; the interval is ours, of the same tokens and the same definition.
    scores |= {name: (100 * float(value), *scores.get(name, (None, None, None))[1:])
               for name, value in theirs.items()}
    if domains and all("domain" in item for item in items):
        # As the public scripts do: the COCO scorer runs on one domain's images alone, so CIDEr-D's document
        # frequencies are those of the domain, and "overall" is no mean of the three.
        for domain in dict.fromkeys([*DOMAINS, *sorted({item["domain"] for item in items})]):
            if of := [i for i, item in enumerate(items) if item["domain"] == domain]:
                part, _ = score([captions[i] for i in of], [items[i] for i in of], use_official, domains=False)
                scores[f"CIDEr-D {domain}"] = part["CIDEr-D"]
    return scores, cider


def report_exact(model, folder, device, n, batch=250):
    """Prints exact-scene accuracy of greedy captions on n test and n novel images, and blind.

    Blind: the captions of other images are held against the scenes. What that scores is chance.
    """
    print(f"greedy captions, exact scenes   {'all':>7}{'one object':>13}{'two objects':>13}")
    for split in ("test", "novel"):
        items = load_split(folder, split)[:n]
        scenes = [world.from_json(x["scene"]) for x in items]
        feats = features(model, items, device)
        captions = [c for i in range(0, len(items), batch) for c in model.generate(feats[i:i + batch], beam=1)]
        half = len(items) // 2
        results = {split: exact(captions, scenes)}
        if split == "test":
            results["test, other images"] = exact(captions[half:] + captions[:half], scenes)
        for name, r in results.items():
            print(f"  {name:20}{len(items):>8,}  " + "".join(f"{100 * v:>11.1f} %" for v in r.values()))


# ---------------------------------------------------------------------------- the command

def say(text):
    """To stderr: stdout is for the table."""
    print(text, file=sys.stderr, flush=True)


def load_items(dataset, split, images=0):
    """The items of a split, all of one task. UserError for what cannot be evaluated here."""
    items = load_split(find_dataset(dataset), split)[:images or None]
    for item in items:
        if "expression" in item:
            raise UserError(f"{dataset}, {split}: referring expressions; this command scores captions and answers")
        if task_of(item) != task_of(items[0]):
            raise UserError(f"{dataset}, {split}: items {items[0]['id']} and {item['id']} have different tasks")
        if "captions" in item and not item["captions"]:
            raise UserError(f"{dataset}, {split}: item {item['id']} has no captions to compare with")
    if len({str(item["id"]) for item in items}) < len(items):
        raise UserError(f"{dataset}, {split}: several items have the same id, so they cannot be told apart")
    return items


def read_captions(path, items):
    """The captions of a results file, in the order of the items. UserError unless the file is a list as in
    the text on top and has exactly one caption for every item."""
    form = 'expected [{"image_id": 42, "caption": "a dog"}, ...]'
    found = read_json(Path(path), form)
    if not isinstance(found, list):
        raise UserError(f"{path}: not a list; {form}")
    texts = {}
    for number, line in enumerate(found):
        if not isinstance(line, dict) or "image_id" not in line or not isinstance(line.get("caption"), str):
            raise UserError(f"{path}: entry {number} is {json.dumps(line)[:60]}; {form}")
        if str(line["image_id"]) in texts:
            raise UserError(f"{path}: two captions for image_id {line['image_id']}")
        texts[str(line["image_id"])] = line["caption"]
    ids = [str(item["id"]) for item in items]
    for what, wrong in (("no caption for", set(ids) - set(texts)), ("no such image:", set(texts) - set(ids))):
        if wrong:
            raise UserError(f"{path}: {what} image_id {min(wrong)}, and {len(wrong) - 1:,} more; "
                            f"there are {len(ids):,} images to be scored")
    return [texts[i] for i in ids]


def unlike(paths):
    """A short name for each: the last part of its path, or all of it where that is not unique."""
    def short(p):
        if p.suffix == ".safetensors":  # out/a/last.safetensors
            return f"{p.resolve().parent.name}/{p.stem}"
        return p.stem if p.suffix == ".json" else p.resolve().name

    names = [short(Path(p)) for p in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths)]


def beside(path, name):
    """scores.json, a -> scores-a.json"""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
    return Path(path).with_name(f"{Path(path).stem}-{name}{Path(path).suffix}")


def shown(score, low, high):
    return f"{score:.1f}" if low is None else f"{score:.1f} [{low:.1f}, {high:.1f}]"


def markdown(lines):
    """A Markdown table of lines of cells (str), the first of them the head; all columns but the first to the right."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *rest])


def table(rows, n, of="images"):
    """Markdown of {row: {metric: (score, low, high)}}, each of n images or questions."""
    metrics = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    cells = [["checkpoint", of, *metrics]]
    for name, scores in rows.items():
        numbers = [shown(*scores[m]) if m in scores else "" for m in metrics]
        cells.append([name.replace("|", "\\|"), f"{n:,}", *numbers])
    return markdown(cells)


def best_and_worst(items, captions, cider, scores, title):
    """The contact sheet: images in the order of their CIDEr-D, from both ends."""
    order = np.argsort(-cider, kind="stable").tolist()
    half = min(SHEET // 2, -(-len(order) // 2))
    best, worst = order[:half], order[half:][::-1][:SHEET // 2]
    cell = lambda i: (open_image(items[i]["image"]), f"CIDEr-D {100 * cider[i]:.0f}",
                      f"image {Path(str(items[i]['id'])).name}", captions[i], items[i]["captions"])
    top = [(name, f"{value:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}")
           for name, (value, low, high) in scores.items()]
    return captioned(title, top, {"best": map(cell, best), "worst": map(cell, worst)})


def check(config):
    """UserError for what would otherwise be found out late, after all the captions."""
    for name in ("beam", "max_new_tokens", "batch"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: must be 1 or more")
    if config.images < 0:
        raise UserError(f"--images {config.images}: must be 0 (all) or more")
    for flag, ending in (("json", ".json"), ("sheet", ".png")):
        value = getattr(config, flag)
        if value and not value.lower().endswith(ending):
            raise UserError(f"--{flag} {value}: a name that ends in {ending}, please")
    if config.ckpt and config.captions:
        raise UserError("--ckpt or --captions, not both: score the captions of a checkpoint, or those of a file")
    if config.official:
        find_official()


def trained_on(ckpts):
    """The dataset in the metadata of all these checkpoints. UserError where they differ."""
    names = {origin_of(c)["dataset"] for c in ckpts}
    if len(names) > 1:
        raise UserError(f"trained on {' and '.join(sorted(names))}; say with --dataset on which to compare them")
    return names.pop()


@torch.no_grad()
def main(config):
    # Here, since both import this file: train.py to score at its end, sample.py through train.py.
    from sample import newest_run
    from train import pick_device

    check(config)
    device, dtype = pick_device(config.device), getattr(torch, config.dtype)
    ckpts = [] if config.captions else config.ckpt or [newest_run()]
    if ckpts and not config.ckpt:
        say(f"checkpoint: {ckpts[0]}, the newest run (--ckpt for another)")
    dataset = config.dataset or (trained_on(ckpts) if ckpts else "")
    if not dataset:
        raise UserError("--captions: say with --dataset which images these captions belong to")
    items = load_items(dataset, config.split, config.images)
    asked = task_of(items[0]) != "captions"
    if asked and (config.captions or config.sheet or config.official):
        raise UserError(f"{dataset}: questions; --captions, --sheet and --official are for captions")
    if asked and not config.json and not score_answers([""] * len(items), items)[0]:
        raise UserError(f"{dataset}, {config.split} has no answers to compare with; --json writes those of the model")
    if ckpts or config.sheet:
        for item in items:  # now rather than after an hour of captions
            if item["image"] is not None and not item["image"].is_file():
                raise UserError(f"{item['image']}: no such image")
    captions, rows, ciders = {}, {}, {}
    for path, name in zip(ckpts or config.captions, unlike(ckpts or config.captions)):
        if config.captions:
            captions[name] = read_captions(path, items)
        else:
            model = SeeGPT.load(path, device, config.gpt2 or None, config.clip or None).hold(dtype)
            autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
            task = answer if asked else caption
            learnt, needed = model.origin.get("task", "captions"), task_of(items[0])
            if learnt != needed:
                a = {"captions": "captions", "question": "answers to questions", "hypothesis": "labels of hypotheses"}
                raise UserError(f"{path} was trained on {a[learnt]}; {dataset} asks for {a[needed]}")
            captions[name] = task(model, items, config, device, autocast, f"{name}: {task.__name__}s")
        rows[name], ciders[name] = (score_answers(captions[name], items) if asked else
                                    score(captions[name], items, config.official))
    if not any(rows.values()):
        print(f"{dataset}, {config.split} has no answers to compare with; --json holds those of the model")
    else:
        print(table(rows, len(items), "questions" if asked else "images"))
        print(f"\n{dataset}, {config.split}; all x 100, as papers print them; in brackets the 95 % interval of "
              f"{RESAMPLES:,} resamples of the {'questions' if asked else 'images'}" + ("." if asked else "; Stanford's "
              "tokenizer, pycocoevalcap." if config.official else "; our own tokenizer (--official: Stanford's)."))
    if config.images and not asked:
        print("A part of the split: CIDEr-D takes its document frequencies from these images, so it cannot be "
              "compared with that of all.")
    if config.json:
        write_json(config.json, dataset, config, items, captions, rows, ciders)
    for name in rows if config.sheet else ():
        path = Path(config.sheet) if len(rows) == 1 else beside(config.sheet, name)
        picture = best_and_worst(items, captions[name], ciders[name], rows[name],
                                 f"{name} on {dataset}, {config.split}")
        with replacing(path) as f:
            picture.save(f, "PNG")
        say(f"sheet: {path}")


def write_json(path, dataset, config, items, captions, rows, ciders):
    """The scores as one file, and for every row its captions as a plain results file beside it."""
    keys, asked = ("score", "low", "high"), task_of(items[0]) != "captions"
    decoding = {k: getattr(config, k) for k in ("beam", "length_penalty", "max_new_tokens", "prompt")}
    result = {"dataset": dataset, "split": config.split, "questions" if asked else "images": len(items), "unit": "x 100",
              **({} if asked else {"tokenizer": "stanford" if config.official else "ours"}),
              **({} if asked or config.captions else decoding), "rows": []}
    for name, texts in captions.items():
        each = {} if ciders[name] is None else {str(x["id"]): float(100 * c) for x, c in zip(items, ciders[name])}
        result["rows"].append({"name": name, "answers" if asked else "captions": beside(path, name).name,
                               "scores": {metric: dict(zip(keys, values)) for metric, values in rows[name].items()},
                               "accuracy" if asked else "cider_d": each})
        id_key, text_key = ("question_id", "answer") if asked else ("image_id", "caption")
        with replacing(beside(path, name)) as f:
            f.write(json.dumps([{id_key: item["id"], text_key: text} for item, text in zip(items, texts)],
                               indent=0).encode() + b"\n")
    with replacing(path) as f:
        f.write(json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a character they lack becomes its number
        stream.reconfigure(errors="backslashreplace")
    run(lambda: main(*parse(Config)))
