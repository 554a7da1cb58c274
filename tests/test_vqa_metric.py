"""VQA accuracy, with the quirks of the official evaluator, each worked out by hand.

Worked example: seven people say "2 dogs", three say "two dogs." and "The 2 dogs" is scored. All
eleven become "2 dogs", so each of the ten ways to leave one out has nine matches: accuracy 1. Had
nobody but the three said so, three ways would have 2 matches and seven ways 3: (3 * 2/3 + 7 * 1) /
10 = 0.9.
"""

import pytest

from data.vqa2.answers import CONTRACTIONS, normalise_answer
from evaluate.vqa import vqa_accuracy

# The evaluator's own list.
TABLE = dict(pair.split(":") for pair in """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've
    couldnt've:couldn't've didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've
    hadn'tve:hadn't've hasnt:hasn't havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's
    howd:how'd howll:how'll hows:how's Id've:I'd've I'dve:I'd've Im:I'm Ive:I've isnt:isn't itd:it'd
    itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am mightnt:mightn't
    mightnt've:mightn't've mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've
    neednt:needn't notve:not've oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at
    'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've she's:she's shouldve:should've
    shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
    somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll
    somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've
    someonell:someone'll someones:someone's somethingd:something'd somethingd've:something'd've
    something'dve:something'd've somethingll:something'll thats:that's thered:there'd
    thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd
    theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas
    wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll
    whatre:what're whats:what's whatve:what've whens:when's whered:where'd wheres:where's
    whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
    whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't
    wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll
    yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've
    you'dve:you'd've youll:you'll youre:you're youve:you've
    """.split())


@pytest.mark.parametrize("matches, accuracy", [
    (0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_three_matches_of_ten_are_nine_tenths(matches, accuracy):
    ten = ["cat"] * matches + [f"dog {i}" for i in range(10 - matches)]
    assert vqa_accuracy("cat", ten) == pytest.approx(accuracy, abs=1e-12)


def test_worked_example():
    assert vqa_accuracy("The 2 dogs", ["2 dogs"] * 7 + ["two dogs."] * 3) == 1
    three = ["a cat"] * 7 + ["two dogs."] * 3
    assert vqa_accuracy("The 2 dogs", three) == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize("answer, ten, accuracy", [
    ("Yes.", ["yes"] * 10, 0), ("yes", ["Yes."] * 10, 0), ("Yes.", ["Yes."] * 10, 1),
    ("Yes.", ["yes"] * 9 + ["no"], 1),
    ("yes", ["Yes."] * 9 + ["yes"], 1),  # equal only once normalised: that is not agreement
    ("yes", ["Yes.", "Yes.\n"] * 5, 0),  # equal but for what always goes: that is
    ("\tRed car\n", ["Red\ncar"] * 10, 1)])
def test_nothing_is_normalised_where_all_ten_agree(answer, ten, accuracy):
    assert vqa_accuracy(answer, ten) == accuracy


@pytest.mark.parametrize("text, normal", [
    ("A dog, two cats!", "dog 2 cats"),
    ("None", "0"), ("ten", "10"), ("eleven", "eleven"), ("twenty one", "twenty 1"),
    ("the", ""), ("a an the", ""), ("", ""), ("a man", "man"), ("A.M.", "am"),
    ("x-ray", "x ray"), ("x-ray - no", "xray no"),  # one hyphen at a space, all are removed
    ("yes/no", "yes no"), ("1,000", "1000"), ("1,000/day", "1000day"), ("10/day", "10 day"),
    ("1, 5", "1 5"),
    ("red\n, blue", "red blue"), ("yes !\t", "yes"), ("yes\r!", "yes"),
    ("5.", "5"), ("1.5", "1.5"), (".5", ".5"), ("mr.5", "mr.5"), ("1.5.", "1.5"),  # what follows
    ("." * 40 + "x", "." * 8 + "x"),
    ("12:30", "12:30"), ("man's", "man's"),  # neither is punctuation
    ("Im", "im"), ("IVE", "ive"),  # in the table with a capital only
    ("DONT", "don't"), ("couldnt've", "couldn't've"), ("yall'd've", "y'all'd've"),
    ("don’t", "don’t"), ("somebody'd", "somebodyd"), ("she's", "she's"), ("shes", "shes"),
    ("its", "its"), ("ow's'at", "'ow's'at"),
    ("٣.٤", "٣٤"), ("٣,٤", "٣ ٤"),  # digits are those of ASCII, as in Python 2
    ("x(b) c/d - e,f", "x b c d e f"), ("the DONT/wont, 1,5", "dontwont 15"), ("犬 - 😀", "犬 😀")])
def test_normal_form_with_its_quirks(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize("mark", "()[]{}<>+-=/\\_?!,;@`\"")
def test_a_mark_becomes_a_space_unless_one_of_its_kind_stands_at_a_space(mark):
    assert normalise_answer(f"x{mark}y") == "x y"
    assert normalise_answer(f"x{mark} y{mark}z") == normalise_answer(f"x {mark}y{mark}z") == "x yz"
    assert normalise_answer(f"x{mark}y 1,0") == "xy 10"


def test_number_words_to_ten_become_digits():
    words = "zero one two three four five six seven eight nine ten"
    assert normalise_answer(words) == "0 1 2 3 4 5 6 7 8 9 10"


def test_contractions_are_the_120_of_the_evaluator():
    assert len(CONTRACTIONS) == 120 and CONTRACTIONS == TABLE
