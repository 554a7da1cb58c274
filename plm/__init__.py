"""The language models that DVP was written for, each in one file like gpt2.py, and the choice of
one.

What model.py and the methods ask of all of them is offered by gpt2.py, too: embed, start, h, head,
config, tokenizer, eot, and of a layer its parts. The kind of a file is told by weights/kinds.py.
"""

from gpt2 import GPT2
from lib.cli import UserError
from plm.bert import BERT
from plm.llama import LLaMA
from plm.t5 import T5
from weights.kinds import kind_of

CLASSES = {"gpt2": GPT2, "llama": LLaMA, "bert": BERT, "t5": T5}


def load_lm(name, method):
    """The language model in a file or folder, or of a public name, of whichever kind, for a class
    of methods. UserError if such a method does not fit that kind."""
    kind = kind_of(name)
    if kind not in method.lms:
        fitting = " or ".join(CLASSES[k].__name__ for k in method.lms)
        raise UserError(f"{name} is a {CLASSES[kind].__name__}, and this method needs a {fitting}: "
                        "use --method dvp, which fits all")
    return CLASSES[kind].from_pretrained(name)
