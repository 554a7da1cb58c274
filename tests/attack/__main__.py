"""Attacks seeGPT with bad files, bad command lines and bad moments, and counts what survives.

    python -m tests.attack                              # every kind, as many cases as it has
    python -m tests.attack weights images --cases 5000 --seed 2
    python -m tests.attack weights --only 17            # one case again

Each kind is a module beside this one with a function case(rng, folder) and the number CASES for a
run at length; test_attack.py runs a few of each. A file must end in a result or in one clear line:
no traceback, no ten seconds, no two gigabytes, and no code from a file may run.
"""

import importlib
from dataclasses import dataclass

from lib.cli import UserError, opt, parse, run
from tests.attack.watch import attack, bad, summary

KINDS = ("weights", "tokenizers", "images", "records", "archives", "commands", "downloads", "kills",
         "pairs")


@dataclass
class Config:
    kinds: list = opt([], f"some of {', '.join(KINDS)}; none: all", positional=True)
    cases: int = opt(0, "how many of each kind; 0: CASES of its module")
    seed: int = opt(1, "another one gives other cases")
    only: int = opt(-1, "the number of one case to repeat")


def main(config):
    failed = False
    if wrong := set(config.kinds) - set(KINDS):
        raise UserError(f"there is no attack {', '.join(wrong)}: {', '.join(KINDS)}")
    for kind in config.kinds or KINDS:
        module = importlib.import_module(f"tests.attack.{kind}")
        numbers = [config.only] if config.only >= 0 else range(config.cases or module.CASES)
        outcomes = attack(module.case, numbers, config.seed)
        print(f"{kind}: {summary(outcomes)}", flush=True)
        print("".join(f"  {line}\n" for line in bad(outcomes)), end="", flush=True)
        failed |= bool(bad(outcomes))
    if failed:
        raise UserError("not all survived")


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
