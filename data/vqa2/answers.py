"""The form in which VQA compares answers."""

import re

PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"  # no apostrophe, no colon; the period has a rule of its own
COMMA = re.compile(r"[0-9],[0-9]")
PERIOD = re.compile(r"\.(?![0-9])")
COUNTED = {"none": "0"} | {word: str(n) for n, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}
# {"dont": "don't", ...}: each of these words without one of its apostrophes. The three added below
# are the original's: one is the wrong way round, two change nothing. pitfall: words with a capital
# never match, since the text has none.
CONTRACTIONS = {word[:i] + word[i + 1:]: word for word in """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am
    mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
    you'd you'd've you'll you're you've""".split() for i, c in enumerate(word) if c == "'"}
CONTRACTIONS |= {"somebody'd": "somebodyd", "let's": "let's", "she's": "she's"}


def one_line(text):
    """The text without newlines and tabs, and without space at its ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise_answer(text):
    """An answer (str) in the form in which VQA compares answers (str): no punctuation, lower case,
    digits for number words, no articles, apostrophes where they were left out. "A dog, two cats!"
    -> "dog 2 cats".

    Follows vqaEval.py of GT-Vision-Lab/VQA (commit a013f00), with its quirks. pitfall: an answer
    can lose everything ("the" -> ""), and "none" is "0".
    """
    text = plain = one_line(text)
    comma = COMMA.search(text)
    for mark in PUNCTUATION:
        if mark in text:
            # pitfall: one mark next to a space decides for all of its kind ("x-ray - no" -> "xray
            # no"), and one comma between digits for every mark: "1,000/day" -> "1000day", but
            # "10/day" -> "10 day".
            gone = comma or f"{mark} " in text or f" {mark}" in text
            plain = plain.replace(mark, "" if gone else " ")
    # pitfall: the original means to keep a period after a digit, but looks only at what follows:
    # "5." -> "5", while ".5" stays. It also passes a flag whose value is 32 where the number of
    # replacements belongs.
    plain = PERIOD.sub("", plain, count=32)
    words = [COUNTED.get(word, word) for word in plain.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(CONTRACTIONS.get(word, word) for word in words)
