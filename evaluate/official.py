"""The official scorers in Java, if they are installed: pycocoevalcap, with METEOR and SPICE."""

import contextlib
import importlib
import shutil
import sys

import numpy as np

from lib.cli import UserError, note


def find_official():
    """UserError unless pycocoevalcap and Java are there."""
    try:
        importlib.import_module("pycocoevalcap.eval")
    except ImportError as e:
        raise UserError(f"--official: {e}; pip install pycocoevalcap pycocotools (104 MB)") from e
    if not shutil.which("java"):
        raise UserError("--official: no java on the PATH; install a Java runtime (8 or newer), for "
                        "example with apt install default-jre-headless")


def official_tokens(hypotheses, references):
    """(hypotheses, references) as Stanford's tokenizer splits them, one space between tokens."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # pitfall: it writes one caption a line, and some characters other than \n end a line in Java.
    as_lines = lambda texts: [{"caption": " ".join(text.split())} for text in texts]
    hyps = PTBTokenizer().tokenize({i: as_lines([h]) for i, h in enumerate(hypotheses)})
    refs = PTBTokenizer().tokenize({i: as_lines(texts) for i, texts in enumerate(references)})
    return [hyps[i][0] for i in range(len(hyps))], [refs[i] for i in range(len(refs))]


def official_scores(hypotheses, references, extra=True):
    """{metric: score} and {metric: per image (n,)} by pycocoevalcap, of tokens as official_tokens
    gives them. extra: with METEOR and SPICE; one that fails is reported and left out."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.spice.spice import Spice

    gts, res = dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)}
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    scores, per_image = {f"BLEU-{k}": score for k, score in enumerate(bleu, 1)}, {}
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
        except Exception as e:  # SPICE first downloads 700 MB, and both run other programs
            note(f"{name} left out: {type(e).__name__}: {' '.join(str(e).split())[:150]}")
            lock = getattr(scorer, "lock", None)
            if lock and lock.locked():  # else METEOR's destructor waits for it for ever
                lock.release()
    return scores, per_image
