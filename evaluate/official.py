"""The official Java tools, if they are installed."""

import contextlib
import shutil
import sys

import numpy as np
from x import say

from lib.cli import UserError


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
